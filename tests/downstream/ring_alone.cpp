// ring.h and capture.h in a C++ program: no Python, the ring in memory of its own.
#include "pcmring/capture.h"

#include <cstdio>
#include <cstdlib>
#include <thread>

int main()
{
    pcmring_config config{};
    pcmring_control plan{};
    pcmring_ring ring{};
    pcmring_reader reader{};
    config.capacity = 1000;
    config.channels = 2;
    config.format = PCMRING_FLOAT32;
    const uint64_t bytes = pcmring_plan(&config, &plan);
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, bytes) != 0)
        return 2;
    memset(memory, 0, bytes);
    if (pcmring_init(&ring, memory, &config) != 0)
        return 2;
    pcmring_reader_open(&reader, 0);

    // int16 blocks through the capture callback in another thread; floats come out here
    pcmring_capture capture{};
    capture.ring = &ring;
    capture.format = PCMRING_INT16;
    std::thread producer([&capture] {
        int16_t block[200];
        for (int at = 0; at < 900; at += 100) {
            for (int i = 0; i < 200; i++)
                block[i] = static_cast<int16_t>(at * 2 + i);
            pcmring_capture_callback(block, nullptr, 100, nullptr, 0, &capture);
        }
    });
    if (pcmring_wait_readable(&ring, 900, PCMRING_FOREVER, nullptr) != PCMRING_READY)
        return 3;
    producer.join();

    float out[1800];
    uint64_t first = 1;
    if (pcmring_read(&ring, &reader, out, 900, PCMRING_NEVER, &first) != 900 || first != 0)
        return 4;
    for (int i = 0; i < 1800; i++)
        if (out[i] != static_cast<float>(i) / 32768.0f)
            return 5;
    pcmring_close(&ring);
    std::free(memory);
    std::puts("900 frames");
    return 0;
}
