/* Waiting and waking without the system: the two functions that enter it are replaced by fakes that
 * count, and that play the other side at the one moment that matters. Part of unit.c's program. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "check.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#define write fake_write /* the wake-up of a listener */
static ssize_t fake_write(int fd, const void *bytes, size_t count);
#endif
#define PCMRING_OWN_WAIT
#define pcmring_os_wait fake_wait
#define pcmring_os_wake fake_wake
static int fake_wait(volatile void *word, uint32_t expected, int64_t deadline_ns, int shared);
static void fake_wake(volatile void *word, int shared);

#include "pcmring/ring.h"

void run_wake_cases(void);

static struct {
    int waits, wakes;          /* calls: each is a system call in the real form */
    int slept;                 /* waits that were not refused */
    const volatile void *wait_word, *wake_word;
    uint32_t expected;
    int64_t deadline_ns;
    int shared;
    int woken;
    void (*before_sleep)(void); /* runs between the caller's last look and the system's comparison */
    void (*asleep[4])(void);    /* run one after the other while it sleeps, until it is woken */
} os;

static uint64_t storage[16384];
static pcmring_ring ring;
static pcmring_reader guarded;

/* As a futex: refuses when the word has changed, and then nothing but a wake-up of this word ends the
 * sleep before the deadline. */
static int fake_wait(volatile void *word, uint32_t expected, int64_t deadline_ns, int shared)
{
    int i;
    os.waits++;
    os.wait_word = word;
    os.expected = expected;
    os.deadline_ns = deadline_ns;
    os.shared = shared;
    if (os.before_sleep) {
        void (*act)(void) = os.before_sleep;
        os.before_sleep = NULL;
        act();
    }
    if (pcmring_load((pcmring_a32 *)(uintptr_t)word, seq_cst) != expected)
        return PCMRING_READY;
    os.slept++;
    os.woken = 0;
    for (i = 0; i < 4; i++) {
        void (*act)(void) = os.asleep[i];
        os.asleep[i] = NULL;
        if (act)
            act();
        if (os.woken)
            return PCMRING_READY;
    }
    return PCMRING_TIMED_OUT;
}

static void fake_wake(volatile void *word, int shared)
{
    os.wakes++;
    os.wake_word = word;
    os.shared = shared;
    os.woken |= word == os.wait_word;
}

static void start(uint32_t policy, uint64_t capacity)
{
    pcmring_config config;
    memset(storage, 0, sizeof storage);
    memset(&os, 0, sizeof os);
    memset(&config, 0, sizeof config);
    config.capacity = capacity;
    config.channels = 1;
    config.format = PCMRING_INT16;
    config.policy = policy;
    EQ(pcmring_init(&ring, (void *)(((uintptr_t)storage + 63) & ~(uintptr_t)63), &config), 0);
    if (policy != PCMRING_OVERWRITE)
        EQ(pcmring_guard_open(&ring, &guarded, PCMRING_NEVER, 0), 0);
}

static int put(uint64_t frames)
{
    static const int16_t silence[64];
    int wake;
    pcmring_write(&ring, silence, PCMRING_INT16, frames, NULL, &wake);
    return wake;
}

static void put_1_and_wake(void)
{
    if (put(1))
        pcmring_wake(&ring);
}
static void put_3_and_wake(void)
{
    if (put(3))
        pcmring_wake(&ring);
}
static void wake_for_nothing(void) { pcmring_wake(&ring); }
static void close_ring(void) { pcmring_close(&ring); }
static void read_1(void)
{
    int16_t sample;
    uint64_t first;
    pcmring_read(&ring, &guarded, &sample, 1, PCMRING_NEVER, &first);
}
static void read_1_silently(void) /* its wake-up is still under way at the deadline */
{
    pcmring_store(&guarded.guard->position, ++guarded.position, release);
}
static void close_guard(void) { pcmring_guard_close(&ring, &guarded); }
static void clear_ring(void) { pcmring_clear(&ring); }
static pcmring_a32 cancelled;
static void cancel(void)
{
    pcmring_store(&cancelled, 1, seq_cst);
    pcmring_wake(&ring);
}
static pcmring_reader second;
static void second_sleeper_arms_at_1(void) { EQ(pcmring_arm(&ring, 1), 0); }

static void nobody_asleep_means_no_system_call(void)
{
    int16_t samples[8];
    uint64_t first, i;
    uint32_t policy;
    for (policy = PCMRING_OVERWRITE; policy <= PCMRING_BLOCK; policy++) {
        pcmring_reader reader;
        start(policy, 5);
        pcmring_reader_open(&reader, 0);
        for (i = 0; i < 100; i++) {
            EQ(put(1 + i % 4), 0);
            pcmring_read(&ring, &reader, samples, 8, PCMRING_NEVER, &first);
            if (policy != PCMRING_OVERWRITE)
                pcmring_read(&ring, &guarded, samples, 8, PCMRING_NEVER, &first);
            pcmring_clear(&ring);
        }
        for (i = 0; i < 10; i++) { /* waits for what is there already */
            put_1_and_wake();
            EQ(pcmring_wait_readable(&ring, pcmring_frames_written(&ring), PCMRING_FOREVER, NULL), PCMRING_READY);
        }
        pcmring_clear(&ring);
        if (policy != PCMRING_OVERWRITE) {
            EQ(pcmring_wait_space(&ring, PCMRING_FOREVER), PCMRING_READY);
            pcmring_guard_close(&ring, &guarded);
        }
        pcmring_wake(&ring);
        EQ(os.waits, 0);
        EQ(os.wakes, 0);
    }
}

static void a_wish_is_met_once_and_only_when_its_frame_is_there(void)
{
    start(PCMRING_OVERWRITE, 5);
    EQ(pcmring_arm(&ring, 4), 0);
    EQ(pcmring_arm(&ring, 9), 0); /* a later wish does not push an earlier one away */
    EQ(put(3), 0);
    EQ(put(1), 1);
    EQ(put(1), 1); /* not taken yet: asked again */
    pcmring_wake(&ring);
    EQ(put(1), 0);
    EQ(os.wakes, 0); /* no thread slept: an event loop may have wished */
    EQ(pcmring_arm(&ring, 6), 1); /* there already; the wish stays behind */
    EQ(put(1), 1);
    EQ(pcmring_load(&ring.control->wake_seq, relaxed), 1);
}

static void a_sleeper_is_woken_by_the_frame_it_waits_for(void)
{
    start(PCMRING_OVERWRITE, 5);
    os.asleep[0] = put_1_and_wake;
    os.asleep[1] = put_1_and_wake;
    os.asleep[2] = put_1_and_wake;
    EQ(pcmring_wait_readable(&ring, 3, 12345, NULL), PCMRING_READY);
    EQ(os.waits, 1);
    EQ(os.wakes, 1); /* only the third block had a reason */
    CHECK(os.wait_word == (volatile void *)&ring.control->wake_seq && os.wake_word == os.wait_word);
    EQ(os.expected, 0);
    EQ(os.deadline_ns, 12345);
    EQ(os.shared, 0);
    EQ(pcmring_load(&ring.control->sleepers, relaxed), 0);
}

static void a_frame_between_look_and_sleep_is_not_slept_through(void)
{
    start(PCMRING_OVERWRITE, 5);
    os.before_sleep = put_3_and_wake;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, NULL), PCMRING_READY);
    EQ(os.waits, 1);
    EQ(os.slept, 0); /* the number had changed: the system refused */
}

static void a_useless_wake_up_puts_the_wish_again(void)
{
    start(PCMRING_OVERWRITE, 5);
    os.asleep[0] = wake_for_nothing; /* takes the wish */
    os.asleep[1] = wake_for_nothing;
    os.asleep[2] = put_3_and_wake;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, NULL), PCMRING_READY);
    EQ(os.waits, 3);
    EQ(os.wakes, 3);
}

static void a_wish_taken_just_before_sleep_is_put_again(void)
{
    start(PCMRING_OVERWRITE, 5);
    os.before_sleep = wake_for_nothing;
    os.asleep[0] = put_3_and_wake;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, NULL), PCMRING_READY);
    EQ(os.waits, 2);
    EQ(os.slept, 1);
}

static void an_earlier_wish_of_another_does_not_swallow_ones_own(void)
{
    start(PCMRING_OVERWRITE, 5);
    second_sleeper_arms_at_1(); /* and then leaves: its wish stays behind */
    os.asleep[0] = put_1_and_wake; /* takes that wish, wakes all */
    os.asleep[1] = put_1_and_wake;
    os.asleep[2] = put_1_and_wake;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, NULL), PCMRING_READY);
    EQ(os.waits, 2);
}

static void close_and_cancel_end_a_wait_for_readers(void)
{
    start(PCMRING_OVERWRITE, 5);
    os.asleep[0] = close_ring;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, NULL), PCMRING_CLOSED);
    EQ(os.waits, 1);

    start(PCMRING_OVERWRITE, 5);
    os.before_sleep = close_ring;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, NULL), PCMRING_CLOSED);
    EQ(os.slept, 0);

    start(PCMRING_OVERWRITE, 5);
    pcmring_store(&cancelled, 0, relaxed);
    os.asleep[0] = cancel;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, &cancelled), PCMRING_CLOSED);
    EQ(os.waits, 1);

    start(PCMRING_OVERWRITE, 5);
    pcmring_store(&cancelled, 0, relaxed);
    os.before_sleep = cancel;
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, &cancelled), PCMRING_CLOSED);
    EQ(os.slept, 0);

    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, &cancelled), PCMRING_CLOSED); /* set before */
    EQ(os.waits, 1);
    put(3);
    EQ(pcmring_wait_readable(&ring, 3, PCMRING_FOREVER, &cancelled), PCMRING_READY); /* frames go first */
}

static void put_1_silently(void) { put(1); }

static void a_deadline_passed_with_the_frames_there_is_success(void)
{
    start(PCMRING_OVERWRITE, 5);
    os.asleep[0] = put_1_silently;
    EQ(pcmring_wait_readable(&ring, 1, 5, NULL), PCMRING_READY);
    EQ(os.waits, 1);
    EQ(pcmring_wait_readable(&ring, 2, 5, NULL), PCMRING_TIMED_OUT);
    EQ(pcmring_load(&ring.control->sleepers, relaxed), 0);
    start(PCMRING_BLOCK, 5);
    put(5);
    os.asleep[0] = read_1_silently;
    EQ(pcmring_wait_space(&ring, 5), PCMRING_READY);
    EQ(os.waits, 1);
    put(1);
    EQ(pcmring_wait_space(&ring, 5), PCMRING_TIMED_OUT);
    EQ(pcmring_load(&ring.control->producer_waits, relaxed), 0);
}

static void only_a_waiting_producer_is_woken(void)
{
    static void (*const givers[])(void) = {read_1, close_guard, clear_ring, close_ring};
    size_t i;
    for (i = 0; i < 4; i++) {
        const int result = givers[i] == close_ring ? PCMRING_CLOSED : PCMRING_READY;
        start(PCMRING_BLOCK, 5);
        put(5);
        if (givers[i] != close_ring) { /* close wakes in any case */
            givers[i]();
            EQ(os.wakes, 0);
        }

        start(PCMRING_BLOCK, 5);
        put(5);
        os.asleep[0] = givers[i];
        EQ(pcmring_wait_space(&ring, 777), result);
        EQ(os.waits, 1);
        EQ(os.wakes, 1);
        CHECK(os.wait_word == (volatile void *)&ring.control->space_seq && os.wake_word == os.wait_word);
        EQ(os.deadline_ns, 777);
        EQ(pcmring_load(&ring.control->producer_waits, relaxed), 0);

        start(PCMRING_BLOCK, 5);
        put(5);
        os.before_sleep = givers[i];
        EQ(pcmring_wait_space(&ring, PCMRING_FOREVER), result);
        EQ(os.slept, 0);
    }
}

static void a_producer_woken_without_space_sleeps_again(void)
{
    start(PCMRING_BLOCK, 5);
    EQ(pcmring_guard_open(&ring, &second, PCMRING_NEVER, 0), 0);
    put(5);
    os.asleep[0] = read_1; /* the other guard still holds the ring */
    os.asleep[1] = close_ring;
    EQ(pcmring_wait_space(&ring, PCMRING_FOREVER), PCMRING_CLOSED);
    EQ(os.waits, 2);
    EQ(os.slept, 2);
}

static void waits_of_a_shared_ring_cross_processes(void)
{
    start(PCMRING_BLOCK, 5);
    ring.control->shared = 1;
    put(5);
    os.asleep[0] = read_1;
    EQ(pcmring_wait_space(&ring, PCMRING_FOREVER), PCMRING_READY);
    EQ(os.shared, 1);
    os.shared = 0;
    os.asleep[0] = close_ring;
    EQ(pcmring_wait_readable(&ring, 6, PCMRING_FOREVER, NULL), PCMRING_CLOSED);
    EQ(os.shared, 1);
}

static void only_policy_block_pays_for_waking_the_producer(void)
{
    start(PCMRING_DROP, 5);
    pcmring_store(&ring.control->producer_waits, 1, relaxed);
    put(5);
    read_1();
    clear_ring();
    close_guard();
    EQ(os.wakes, 0);
}

#if !defined(_WIN32)

static struct {
    pcmring_a32 inside;  /* the waker is writing to the descriptor */
    pcmring_a32 removed; /* pcmring_remove_listener() has returned */
    int fd, early;
    size_t count;
} writing;

/* Writes for a long time: until the listener is removed although we are at it, or for 50 ms. */
static ssize_t fake_write(int fd, const void *bytes, size_t count)
{
    const int64_t end = pcmring_now_ns() + 50000000;
    (void)bytes;
    writing.fd = fd;
    writing.count = count;
    pcmring_store(&writing.inside, 1, release);
    while (!pcmring_load(&writing.removed, acquire) && pcmring_now_ns() < end)
        sched_yield();
    writing.early = (int)pcmring_load(&writing.removed, acquire);
    return (ssize_t)count;
}

static void *wake_in_a_thread(void *unused)
{
    pcmring_wake(&ring);
    return unused;
}

static void a_listener_is_removed_only_when_nobody_writes_to_it(void)
{
    pthread_t thread;
    start(PCMRING_OVERWRITE, 5);
    memset(&writing, 0, sizeof writing);
    EQ(pcmring_add_listener(&ring, 1234), 0);
    CHECK(pthread_create(&thread, NULL, wake_in_a_thread, NULL) == 0);
    while (!pcmring_load(&writing.inside, acquire))
        sched_yield();
    pcmring_remove_listener(&ring, 1234);
    pcmring_store(&writing.removed, 1, release);
    pthread_join(thread, NULL);
    EQ(writing.early, 0);
    EQ(writing.fd, 1234);
    EQ(writing.count, 8);
    EQ(os.wakes, 0); /* a listener is not woken by the system's wait */
}

#endif

void run_wake_cases(void)
{
    RUN(nobody_asleep_means_no_system_call);
    RUN(a_wish_is_met_once_and_only_when_its_frame_is_there);
    RUN(a_sleeper_is_woken_by_the_frame_it_waits_for);
    RUN(a_frame_between_look_and_sleep_is_not_slept_through);
    RUN(a_useless_wake_up_puts_the_wish_again);
    RUN(a_wish_taken_just_before_sleep_is_put_again);
    RUN(an_earlier_wish_of_another_does_not_swallow_ones_own);
    RUN(close_and_cancel_end_a_wait_for_readers);
    RUN(a_deadline_passed_with_the_frames_there_is_success);
    RUN(only_a_waiting_producer_is_woken);
    RUN(a_producer_woken_without_space_sleeps_again);
    RUN(waits_of_a_shared_ring_cross_processes);
    RUN(only_policy_block_pays_for_waking_the_producer);
#if !defined(_WIN32)
    RUN(a_listener_is_removed_only_when_nobody_writes_to_it);
#endif
}
