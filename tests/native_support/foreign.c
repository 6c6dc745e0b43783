/* Threads that Python has never heard of: what PortAudio's audio thread is to the capture callback.
 *
 * A `foreign` belongs to whoever started it until foreign_join(); the thread shares with it only the two
 * atomics. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#pragma GCC diagnostic ignored "-Wunused-function" /* the callback under test is the extension's own copy */
#include "pcmring/capture.h"

typedef int callback_function(const void *, void *, unsigned long, const pcmring_pa_times *, unsigned long, void *);

typedef struct foreign {
    pthread_t thread;
    callback_function *callback;
    void *userdata;
    const uint8_t *data;
    uint64_t frames, frame_bytes, block;
    int64_t period_ns;
    const pcmring_pa_times *times;
    unsigned long flags;
    atomic_ullong calls;
    int result;
    /* foreign_steady() */
    uint64_t steady_calls;
    void (*count)(int64_t *);
    int64_t *counts;
} foreign;

static void nap_until(int64_t until_ns)
{
    int64_t left_ns;
    while ((left_ns = until_ns - pcmring_now_ns()) > 0) {
        const struct timespec nap = {(time_t)(left_ns / 1000000000), (long)(left_ns % 1000000000)};
        nanosleep(&nap, NULL);
    }
}

/* ---- one call ---- */

static void *call_in_a_thread(void *argument)
{
    foreign *f = argument;
    f->result = f->callback(f->data, NULL, (unsigned long)f->frames, f->times, f->flags, f->userdata);
    return NULL;
}

int foreign_call(callback_function *callback, void *userdata, const void *data, uint64_t frames,
                 const pcmring_pa_times *times, unsigned long flags)
{
    foreign f = {.callback = callback, .userdata = userdata, .data = data, .frames = frames, .times = times, .flags = flags};
    if (pthread_create(&f.thread, NULL, call_in_a_thread, &f) != 0)
        return -1;
    pthread_join(f.thread, NULL);
    return f.result;
}

/* ---- a stream ---- */

static void *stream(void *argument)
{
    foreign *f = argument;
    int64_t due_ns = pcmring_now_ns();
    for (uint64_t at = 0; at < f->frames && f->result == PCMRING_PA_CONTINUE; at += f->block) {
        const uint64_t left = f->frames - at, n = left < f->block ? left : f->block;
        f->result = f->callback(f->data + at * f->frame_bytes, NULL, (unsigned long)n, NULL, 0, f->userdata);
        atomic_fetch_add(&f->calls, 1);
        if (f->period_ns)
            nap_until(due_ns += f->period_ns);
    }
    return NULL;
}

foreign *foreign_start(callback_function *callback, void *userdata, const void *data, uint64_t frames,
                       uint64_t frame_bytes, uint64_t block, int64_t period_ns)
{
    foreign *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->callback = callback, f->userdata = userdata, f->data = data;
    f->frames = frames, f->frame_bytes = frame_bytes, f->block = block, f->period_ns = period_ns;
    if (pthread_create(&f->thread, NULL, stream, f) != 0) {
        free(f);
        return NULL;
    }
    return f;
}

uint64_t foreign_calls(foreign *f) { return atomic_load(&f->calls); }

int foreign_join(foreign *f)
{
    int result;
    pthread_join(f->thread, NULL);
    result = f->result;
    free(f);
    return result;
}

/* Return after `hold_ns` and `calls` callbacks, but at `limit_ns` in any case: how many came meanwhile. Called
 * through ctypes.PyDLL it holds the GIL all that time. */
uint64_t foreign_hold(foreign *f, int64_t hold_ns, uint64_t calls, int64_t limit_ns)
{
    const int64_t begin_ns = pcmring_now_ns();
    const uint64_t before = atomic_load(&f->calls);
    for (;;) {
        const int64_t held_ns = pcmring_now_ns() - begin_ns;
        const uint64_t came = atomic_load(&f->calls) - before;
        if ((held_ns >= hold_ns && came >= calls) || held_ns >= limit_ns)
            return came;
        nap_until(pcmring_now_ns() + 1000000);
    }
}

/* ---- looking into a capture ---- */

uint32_t foreign_sleepers(pcmring_capture *capture)
{
    return pcmring_load(&capture->ring->control->sleepers, seq_cst);
}

void foreign_set_busy(pcmring_capture *capture, uint32_t busy) { pcmring_store(&capture->busy, busy, seq_cst); }

/* ---- what a call costs, counted in the thread that makes it ---- */

static int64_t minor_faults(void)
{
#ifdef RUSAGE_THREAD
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
#else
    return 0; /* Linux tells them by thread */
#endif
}

static void *steady(void *argument)
{
    foreign *f = argument;
    pcmring_pa_times times = {1.0, 0.0, 0.0};
    int64_t before[8] = {0}, after[8] = {0}, faults;
    f->count(after);
    faults = minor_faults();
    f->count(before);
    faults = minor_faults();
    for (uint64_t i = 0; i < f->steady_calls; i++) {
        f->result |= f->callback(f->data, NULL, (unsigned long)f->frames, &times, 0, f->userdata);
        times.input_adc += 0.01;
    }
    faults = minor_faults() - faults;
    f->count(after);
    for (int i = 0; i < 7; i++)
        f->counts[i] = after[i] - before[i];
    f->counts[7] = faults;
    return NULL;
}

/* `calls` callbacks from a new thread; `counts` gets what preload_counter.c counted in it, and its page faults. */
int foreign_steady(callback_function *callback, void *userdata, const void *data, uint64_t frames, uint64_t calls,
                   void (*count)(int64_t *), int64_t *counts)
{
    foreign f = {.callback = callback, .userdata = userdata, .data = data, .frames = frames,
                 .steady_calls = calls, .count = count, .counts = counts};
    if (pthread_create(&f.thread, NULL, steady, &f) != 0)
        return -1;
    pthread_join(f.thread, NULL);
    return f.result;
}
