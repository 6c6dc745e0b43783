/* pcmring/capture.h: the function PortAudio's real-time thread calls, storing straight into a ring.
 *
 * Needs no PortAudio headers: the types below have the shape of its PaStreamCallback (portaudio.h, v19).
 * It calls nothing but ring.h and the monotonic clock: no Python, no allocation, no lock. Only the first call may ask the
 * system for one thing more, its thread's priority. */
#ifndef PCMRING_CAPTURE_H
#define PCMRING_CAPTURE_H

#include "ring.h"
#if defined(__linux__)
#include <sched.h>
#ifndef SCHED_RESET_ON_FORK /* a strict -std=c11 hides it */
#define SCHED_RESET_ON_FORK 0x40000000
#endif
#endif

/* PaStreamCallbackTimeInfo: seconds on the stream's clock; hosts are known to leave zeros. */
typedef struct pcmring_pa_times {
    double input_adc, current, output_dac;
} pcmring_pa_times;

#define PCMRING_PA_INPUT_UNDERFLOW 0x1ul
#define PCMRING_PA_INPUT_OVERFLOW 0x2ul /* frames were lost somewhere before this block */
#define PCMRING_PA_CONTINUE 0
#define PCMRING_PA_COMPLETE 1

/* The callback's userdata. The callback's thread is the ring's producer for as long as the stream runs. */
typedef struct pcmring_capture {
    pcmring_ring *ring;
    uint32_t format;  /* of the samples PortAudio delivers */
    uint32_t realtime; /* the first call makes its thread a real-time one where it may */
    pcmring_a32 stop; /* set by any thread: the next call ends the stream and stores nothing */
    pcmring_a32 busy; /* 1 inside the callback */
    pcmring_a64 callbacks;
    pcmring_a64 overflows;    /* calls that carried the overflow flag */
    pcmring_a64 underflows;   /* calls that carried the underflow flag */
    pcmring_a64 empty;        /* calls without frames or without a buffer */
    pcmring_a64 last_call_ns; /* pcmring_now_ns() at the last call: how a watchdog sees a silent device */
    int64_t missing_since_ns; /* 0, or when the stream ended that this one goes on with: see the first block */
    pcmring_a64 thread_id;    /* the system's, of the thread that was made real-time here; 0: none was */
    /* the callback's own notes about the block before */
    uint64_t last_frames;
    uint64_t reported; /* frames reported missing since */
    double last_adc_s;
    /* the last block that came no later than those before it, and the frames since: how late others are */
    int64_t punctual_ns;
    uint64_t since_punctual;
} pcmring_capture;

/* How far the arrival of a frame may be from its capture, by more than that of the frames before it. */
#define PCMRING_ARRIVAL_S 0.1
/* A stream that has been late for so long is late for good: it lost something unsaid, or its device is slow. */
#define PCMRING_LATE_S 2.0

/* Frames for which there was time since the last punctual block. */
static inline double pcmring_capture_since_(const pcmring_capture *capture, int64_t now_ns)
{
    return (double)(now_ns - capture->punctual_ns) * 1e-9 * capture->ring->control->samplerate;
}

/* Frames missing between the last block and this one by the clock: the device's own, unless it gives none or one that
 * tells of more time than there was; else the arrival times. An estimate; 0 when the clock shows no gap. */
static inline uint64_t pcmring_capture_missing_(pcmring_capture *capture, uint64_t frames, double adc_s,
                                                int64_t now_ns)
{
    const double samplerate = capture->ring->control->samplerate;
    double elapsed, missing, by_clock;
    if (capture->punctual_ns == 0 || samplerate <= 0.0)
        return 0;
    elapsed = pcmring_capture_since_(capture, now_ns) - (double)capture->since_punctual;
    missing = elapsed - (double)frames;
    if (capture->last_adc_s > 0.0 && adc_s > capture->last_adc_s) {
        by_clock = (adc_s - capture->last_adc_s) * samplerate - (double)capture->last_frames;
        if (by_clock <= elapsed + PCMRING_ARRIVAL_S * samplerate)
            missing = by_clock;
    }
    missing -= (double)capture->reported;
    if (!(missing >= 0.5 && missing < 9e15))
        return 0;
    capture->reported += (uint64_t)(missing + 0.5);
    return (uint64_t)(missing + 0.5);
}

/* The frames between the end of the stream before and this block, by the arrival times. */
static inline void pcmring_capture_continue_(pcmring_capture *capture, uint64_t frames, int64_t now_ns)
{
    const double missing = (double)(now_ns - capture->missing_since_ns) * 1e-9 * capture->ring->control->samplerate -
                           (double)frames;
    capture->missing_since_ns = 0;
    pcmring_add_gap(capture->ring, missing >= 0.5 && missing < 9e15 ? (uint64_t)(missing + 0.5) : 0, PCMRING_REOPENED, 0);
}

/* PortAudio leaves its thread among all others where the host is ALSA. Put it before them, if the system allows that
 * (RLIMIT_RTPRIO, CAP_SYS_NICE): the lowest real-time priority is before all that has none. Children do not inherit it. */
static inline void pcmring_capture_prioritise_(pcmring_capture *capture)
{
#if defined(__linux__)
    struct sched_param lowest;
    lowest.sched_priority = sched_get_priority_min(SCHED_FIFO);
    if (sched_getscheduler(0) == SCHED_OTHER && sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest) == 0)
        pcmring_store(&capture->thread_id, (uint64_t)syscall(SYS_gettid), relaxed);
#else
    (void)capture;
#endif
}

/* PaStreamCallback. `userdata` is a pcmring_capture. */
static PCMRING_NOINLINE int pcmring_capture_callback(const void *input, void *output, unsigned long frames,
                                    const pcmring_pa_times *times, unsigned long flags, void *userdata)
{
    pcmring_capture *capture = (pcmring_capture *)userdata;
    pcmring_ring *ring = capture->ring;
    const int64_t now_ns = pcmring_now_ns();
    const double adc_s = times ? times->input_adc : 0.0;
    int wake = 0;
    (void)output;

    /* seq_cst with the load of `stop`, partner of pcmring_capture_stop(): either the stopper sees us at
     * work and waits, or we see that we must not touch the ring */
    pcmring_store(&capture->busy, 1, seq_cst);
    if (pcmring_load(&capture->stop, seq_cst) || pcmring_is_closed(ring)) {
        pcmring_store(&capture->busy, 0, release);
        return PCMRING_PA_COMPLETE;
    }
    if (capture->realtime && pcmring_load(&capture->callbacks, relaxed) == 0)
        pcmring_capture_prioritise_(capture);
    pcmring_count(&capture->callbacks, 1);
    pcmring_store(&capture->last_call_ns, (uint64_t)now_ns, relaxed);
    if (flags & PCMRING_PA_INPUT_UNDERFLOW)
        pcmring_count(&capture->underflows, 1);
    if (flags & PCMRING_PA_INPUT_OVERFLOW) {
        pcmring_count(&capture->overflows, 1);
        pcmring_add_gap(ring, pcmring_capture_missing_(capture, frames, adc_s, now_ns), PCMRING_DEVICE_OVERFLOW, 0);
    }
    if (input && frames) {
        const pcmring_when when = {adc_s, now_ns};
        uint64_t accepted;
        if (capture->missing_since_ns)
            pcmring_capture_continue_(capture, frames, now_ns);
        accepted = pcmring_write(ring, input, capture->format, frames, &when, &wake);
        if (accepted < frames && ring->policy == PCMRING_BLOCK) /* a device cannot wait for space */
            pcmring_add_gap(ring, frames - accepted, PCMRING_DROPPED, 1);
        capture->since_punctual += frames + capture->reported;
        /* a thousandth: more than a device's clock and the computer's differ by */
        if (pcmring_capture_since_(capture, now_ns) * 0.999 <= (double)capture->since_punctual ||
            (double)capture->since_punctual > PCMRING_LATE_S * ring->control->samplerate || capture->punctual_ns == 0) {
            capture->punctual_ns = now_ns;
            capture->since_punctual = 0;
        }
        capture->last_frames = frames;
        capture->reported = 0;
        capture->last_adc_s = adc_s;
        if (wake)
            pcmring_wake(ring);
    } else {
        pcmring_count(&capture->empty, 1);
    }
    pcmring_store(&capture->busy, 0, release);
    return PCMRING_PA_CONTINUE;
}

/* From the return of this call on the callback does not touch the ring; called again it ends the stream. */
static inline void pcmring_capture_stop(pcmring_capture *capture)
{
    pcmring_store(&capture->stop, 1, seq_cst);
    while (pcmring_load(&capture->busy, seq_cst)) {
        /* one callback's length at most: it waits for nothing */
    }
}

#endif
