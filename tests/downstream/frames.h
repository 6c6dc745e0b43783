/* What both downstream modules write, and the thread they write it from. */
#ifndef FRAMES_H
#define FRAMES_H

#include <pthread.h>
#include <stdint.h>

/* Every sample tells its position and channel. */
static inline void fill_frames(int32_t *out, uint64_t position, uint64_t frames, uint32_t channels)
{
    for (uint64_t i = 0; i < frames * channels; i++)
        out[i] = (int32_t)(position * channels + i + 1);
}

/* Run `work` in a thread that Python has never heard of, to its end. Returns 0, or an error's number. */
static inline int in_foreign_thread(void *(*work)(void *), void *argument)
{
    pthread_t thread;
    const int error = pthread_create(&thread, NULL, work, argument);
    return error ? error : pthread_join(thread, NULL);
}

#endif
