/* pcmring/ring.h: a lock-free audio ring with one producer and any number of readers.
 *
 * Who owns what
 *   - The memory (one control block, four side tables, then the frames) belongs to the caller of
 *     pcmring_init(); it holds no pointers, so the same bytes serve private memory, named shared
 *     memory and a file. `pcmring_ring` is one process's handle on it.
 *   - One thread at a time is the producer: it alone calls pcmring_write(), pcmring_add_gap(),
 *     pcmring_wait_space(). It alone stores to `reserved`, `committed`, the counters, the gap
 *     ledger and the time stamps.
 *   - A `pcmring_reader` belongs to one thread at a time. Its position is its own; only a guarded
 *     reader publishes it, in a guard slot of the control block.
 *   - pcmring_latest(), pcmring_copy_range(), pcmring_gaps(), pcmring_stamps(), pcmring_clear(),
 *     pcmring_close() may be called by any thread at any time.
 *
 * What is guaranteed
 *   - A position counts the frames ever stored. It never wraps and is never reset.
 *   - pcmring_write() is wait-free: no loop depends on another thread, nothing is allocated,
 *     locked or logged, and no system call is made but, when a reader sleeps, the one that wakes
 *     it (plus one write() for each event loop that sleeps on a descriptor).
 *   - A read returns exactly the frames at the positions it claims. Frames overtaken by the
 *     producer during the copy are cut off and reported as lost, never handed out.
 *   - For each reader, at every return: position - start == delivered + lost.
 *   - Frames a guarded reader has not read are not overwritten (policies drop and block).
 *
 * The protocol in one paragraph: the producer announces where it will write (`reserved`), copies,
 * then publishes (`committed`). A reader takes a range below `committed`, copies, then looks at
 * `reserved`: every frame at or above `reserved - slots` was untouched while it copied. This is a
 * sequence lock whose sequence is the audio position itself (H.-J. Boehm, "Can seqlocks get along
 * with programming language memory models?", MSPC 2012).
 *
 * About the copy: overwriting what an unguarded reader may be copying is a data race by the letter
 * of C11 even though the copy is then discarded. PCMRING_ATOMIC_COPY=1 copies word by word with
 * relaxed atomics and is free of it; sanitizer and model builds use that form. Release builds use
 * memcpy() between the same fences. A compiler cannot break that form: the frames are reachable
 * from other threads, so it must assume that a fence lets their values change, may not move an
 * access across it, and may not read a byte again after the fence that precedes the check.
 *
 * Includes only the C library and, for waiting, the system's own headers. C11; also compiles as
 * C++11. MSVC needs /std:c11 /experimental:c11atomics.
 */
#ifndef PCMRING_RING_H
#define PCMRING_RING_H

/* clock_gettime() and syscall(): a strict -std=c11 hides them unless this comes before the first header */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#elif defined(__APPLE__)
#include <AvailabilityMacros.h>
#if defined(__has_include)
#if __has_include(<os/os_sync_wait_on_address.h>) && MAC_OS_X_VERSION_MIN_REQUIRED >= 140400
#include <os/os_sync_wait_on_address.h>
#define PCMRING_HAVE_OS_SYNC 1
#endif
#endif
#endif
#endif

#ifndef PCMRING_ATOMIC_COPY
#define PCMRING_ATOMIC_COPY 0
#endif

/* ---- atomics ------------------------------------------------------------------------------ */

/* A checker that explores interleavings defines these names itself and PCMRING_OWN_ATOMICS. */
#ifndef PCMRING_OWN_ATOMICS
#ifdef __cplusplus
#include <atomic>
typedef std::atomic<uint16_t> pcmring_a16;
typedef std::atomic<uint32_t> pcmring_a32;
typedef std::atomic<uint64_t> pcmring_a64;
#define PCMRING_ORDER_(order) std::memory_order_##order
#define PCMRING_STD_(name) std::name
#else
#include <stdatomic.h>
typedef _Atomic uint16_t pcmring_a16;
typedef _Atomic uint32_t pcmring_a32;
typedef _Atomic uint64_t pcmring_a64;
#define PCMRING_ORDER_(order) memory_order_##order
#define PCMRING_STD_(name) name
#endif
#define pcmring_load(p, order) PCMRING_STD_(atomic_load_explicit)((p), PCMRING_ORDER_(order))
#define pcmring_store(p, v, order) PCMRING_STD_(atomic_store_explicit)((p), (v), PCMRING_ORDER_(order))
#define pcmring_exchange(p, v, order) PCMRING_STD_(atomic_exchange_explicit)((p), (v), PCMRING_ORDER_(order))
#define pcmring_add(p, v, order) PCMRING_STD_(atomic_fetch_add_explicit)((p), (v), PCMRING_ORDER_(order))
#define pcmring_sub(p, v, order) PCMRING_STD_(atomic_fetch_sub_explicit)((p), (v), PCMRING_ORDER_(order))
#define pcmring_cas(p, expected, v, order)                                                         \
    PCMRING_STD_(atomic_compare_exchange_strong_explicit)((p), (expected), (v),                    \
                                                          PCMRING_ORDER_(order), PCMRING_ORDER_(relaxed))
#define pcmring_fence(order) PCMRING_STD_(atomic_thread_fence)(PCMRING_ORDER_(order))
/* A statistic with a single writer: relaxed, because nothing is concluded from its value. */
#define pcmring_count(p, v) pcmring_store((p), pcmring_load((p), relaxed) + (v), relaxed)
#endif

#if defined(__GNUC__) || defined(__clang__)
#define PCMRING_LIKELY(x) __builtin_expect(!!(x), 1)
#define PCMRING_NOINLINE __attribute__((noinline, unused))
#else
#define PCMRING_LIKELY(x) (x)
#define PCMRING_NOINLINE
#endif

/* ---- facts -------------------------------------------------------------------------------- */

#define PCMRING_MAGIC 0x676e69726d6370ull /* "pcmring" in memory, little-endian */
#define PCMRING_LAYOUT 2u                 /* raised whenever the bytes below change meaning */
#define PCMRING_MAX_CHANNELS 64u
#define PCMRING_GUARD_SLOTS 64u    /* guarded readers at a time; bounds the producer's scan */
#define PCMRING_MAX_GAPS 256u      /* ledger entries of a full-size ring */
#define PCMRING_MAX_STAMPS 256u    /* time stamps of a full-size ring; they span its capacity */
#define PCMRING_MAX_LISTENERS 8u   /* event loops that can sleep on one ring */
#define PCMRING_READ_ATTEMPTS 4    /* a reader overtaken this often in one call returns empty */
#define PCMRING_NEVER UINT64_MAX   /* a position that is never reached */
#define PCMRING_FOREVER INT64_MAX  /* a deadline that never comes */

enum pcmring_format { PCMRING_INT16 = 1, PCMRING_INT32, PCMRING_FLOAT32, PCMRING_FLOAT64 };
enum pcmring_policy { PCMRING_OVERWRITE = 0, PCMRING_DROP, PCMRING_BLOCK };
enum pcmring_cause {
    PCMRING_DEVICE_OVERFLOW = 0, /* the sound card or its driver lost frames before we saw them */
    PCMRING_DROPPED,             /* policy drop: no space beside a guarded reader's unread audio */
    PCMRING_REOPENED,            /* the device went away and came back */
    PCMRING_PAUSED,              /* the owner stopped and started again */
    PCMRING_CAUSES
};
enum pcmring_wait { PCMRING_READY = 0, PCMRING_TIMED_OUT, PCMRING_CLOSED, PCMRING_INTERRUPTED };
enum pcmring_guard_state { PCMRING_GUARD_FREE = 0, PCMRING_GUARD_CLAIMED, PCMRING_GUARD_ACTIVE };

/* One guarded reader. A cache line each: neighbours must not slow each other. */
typedef struct pcmring_guard {
    pcmring_a64 position; /* next frame this reader wants; only its reader stores */
    pcmring_a32 state;    /* enum pcmring_guard_state */
    uint32_t owner_pid;   /* process of the reader, so that a dead one's slot can be found */
    uint64_t reserved[6];
} pcmring_guard;

/* One entry of the ledger. Fields are atomic only because a snapshot may race; see gap_seq. */
typedef struct pcmring_gap_slot {
    pcmring_a64 position; /* the first frame stored after the gap */
    pcmring_a64 frames;   /* how many are missing just before it */
    pcmring_a32 cause;    /* enum pcmring_cause */
    pcmring_a32 exact;    /* 0: the length is an estimate from a clock */
} pcmring_gap_slot;

/* When a block came. */
typedef struct pcmring_stamp_slot {
    pcmring_a64 position; /* first frame of the block */
    pcmring_a64 frames;   /* its length */
    pcmring_a64 adc_bits; /* bits of a double: seconds, capture time of the first frame; 0 unknown */
    pcmring_a64 mono_ns;  /* CLOCK_MONOTONIC when the whole block had arrived */
} pcmring_stamp_slot;

typedef struct pcmring_control {
    /* Written by pcmring_init(), constant from then on. */
    uint64_t magic;
    uint32_t layout;
    uint32_t control_bytes; /* sizeof(pcmring_control), so that another build can tell */
    uint64_t total_bytes;   /* control block, tables and frames */
    uint64_t guards_offset, gaps_offset, stamps_offset, data_offset; /* bytes from here */
    uint64_t capacity;      /* frames held at most */
    uint64_t slots;         /* frames of memory, >= capacity; a mirrored ring fills whole pages */
    uint64_t stamp_interval; /* frames between stamps: they then always span the capacity */
    double samplerate;      /* hertz; 0: unknown, no stamps are kept */
    uint32_t channels, format, frame_bytes, policy;
    uint32_t guard_slots, gap_slots, stamp_slots;
    uint32_t shared;        /* waits cross processes */
    uint64_t spare;

    /* What the producer publishes. Readers load this line, only the producer stores to it. */
    pcmring_a64 reserved;  /* frames below this may be being written; >= committed */
    pcmring_a64 committed; /* frames below this are stored: `frames_written` */
    pcmring_a64 blocks;    /* calls that stored at least one frame */
    pcmring_a64 min_block, max_block; /* frames */
    pcmring_a64 gap_seq, stamp_seq; /* twice the entries ever made, odd while one is being made */
    pcmring_a32 storing;   /* policy block: a write that was let in has not yet published its frames */
    uint32_t pad0;

    /* The producer's own notes. */
    uint64_t write_index;  /* committed % slots, kept to save the division */
    uint64_t write_limit;  /* writing below this touches no unread frame of a guarded reader */
    uint64_t next_stamp;   /* position from which the next block is stamped */
    uint32_t guard_epoch_seen;
    uint32_t pad1;
    pcmring_a64 lost[PCMRING_CAUSES]; /* frames by cause, whole life */

    /* What the two sides tell each other; seldom written while nobody waits. */
    pcmring_a64 wake_at;   /* lowest position a sleeper waits for, PCMRING_NEVER if none */
    pcmring_a64 floor;     /* frames below this were cleared */
    pcmring_a64 peak_fill; /* high-water mark, frames */
    pcmring_a32 wake_seq;  /* futex word of the readers */
    pcmring_a32 sleepers;  /* threads in or about to enter a wait on wake_seq */
    pcmring_a32 space_seq; /* futex word of the producer (policy block) */
    pcmring_a32 producer_waits; /* 1: the producer sleeps or is about to */
    pcmring_a32 closed;
    pcmring_a32 guard_epoch; /* +1 for each guarded reader opened */
    pcmring_a32 guard_high;  /* guard slots ever used; bounds the producer's scan */
    pcmring_a32 pad2[3];
} pcmring_control;

/* A process's handle: constant after init or attach, except the listeners. */
typedef struct pcmring_ring {
    pcmring_control *control;
    uint8_t *data;
    pcmring_guard *guards;
    pcmring_gap_slot *gaps;
    pcmring_stamp_slot *stamps;
    uint64_t capacity, slots;
    uint32_t channels, format, frame_bytes, policy;
    pcmring_a32 notifying; /* 1 while the producer writes to the descriptors below */
    pcmring_a32 listeners; /* descriptors in use */
    pcmring_a32 listener_fd[PCMRING_MAX_LISTENERS]; /* descriptor + 1; 0 is a free place */
} pcmring_ring;

typedef struct pcmring_config {
    uint64_t capacity;   /* frames, >= 1 */
    uint64_t slots;      /* frames of memory; 0: the capacity */
    uint64_t data_align; /* bytes, a power of two; 0: 64 */
    uint64_t first_position; /* position of the first frame; 0 but in tests of large positions */
    double samplerate;
    uint32_t channels;
    uint32_t format;
    uint32_t policy;
    uint32_t shared;
} pcmring_config;

typedef struct pcmring_reader {
    pcmring_guard *guard; /* NULL: unguarded */
    uint64_t start;       /* position at opening */
    uint64_t position;    /* next frame to read */
    uint64_t lost;        /* frames skipped because they were gone */
    uint64_t peak;        /* largest number of unread frames met */
    uint32_t counts_fill; /* its unread audio is the ring's fill */
} pcmring_reader;

typedef struct pcmring_gap {
    uint64_t position, frames;
    uint32_t cause, exact;
} pcmring_gap;

typedef struct pcmring_stamp {
    uint64_t position, frames;
    double adc_s;
    int64_t mono_ns;
} pcmring_stamp;

static inline uint32_t pcmring_sample_bytes(uint32_t format)
{
    return format == PCMRING_INT16 ? 2u : format == PCMRING_FLOAT64 ? 8u : 4u;
}

/* ---- clock and waiting: the only lines that know the system --------------------------------- */

/* The clock behind Python's time.monotonic_ns() on the same system. */
static inline int64_t pcmring_now_ns(void)
{
#if defined(_WIN32)
    LARGE_INTEGER ticks, rate;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&rate);
    return (int64_t)(ticks.QuadPart / rate.QuadPart * 1000000000 +
                     ticks.QuadPart % rate.QuadPart * 1000000000 / rate.QuadPart);
#elif defined(__APPLE__)
    return (int64_t)clock_gettime_nsec_np(CLOCK_UPTIME_RAW);
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}

#ifndef PCMRING_OWN_WAIT
/* Sleep while *word == expected, until woken or `deadline_ns` on pcmring_now_ns()'s clock. May
 * return early for no reason; callers look again. Returns PCMRING_READY, _TIMED_OUT or
 * _INTERRUPTED (a signal came; only where the system tells). */
static inline int pcmring_os_wait(pcmring_a32 *word, uint32_t expected, int64_t deadline_ns, int shared)
{
#if defined(__linux__)
    struct timespec until;
    int op = FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG); /* BITSET: absolute deadline */
    until.tv_sec = (time_t)(deadline_ns / 1000000000);
    until.tv_nsec = (long)(deadline_ns % 1000000000);
    if (syscall(SYS_futex, (uint32_t *)word, op, expected,
                deadline_ns == PCMRING_FOREVER ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
        return PCMRING_READY;
    return errno == ETIMEDOUT ? PCMRING_TIMED_OUT : errno == EINTR ? PCMRING_INTERRUPTED : PCMRING_READY;
#else
    int64_t left_ns = deadline_ns == PCMRING_FOREVER ? PCMRING_FOREVER : deadline_ns - pcmring_now_ns();
    if (left_ns <= 0)
        return PCMRING_TIMED_OUT;
#if defined(_WIN32)
    if (!shared) { /* WaitOnAddress does not cross processes */
        DWORD ms = left_ns == PCMRING_FOREVER ? INFINITE : (DWORD)((left_ns + 999999) / 1000000);
        if (WaitOnAddress((volatile VOID *)word, &expected, sizeof expected, ms))
            return PCMRING_READY;
        return GetLastError() == ERROR_TIMEOUT ? PCMRING_TIMED_OUT : PCMRING_READY;
    }
    Sleep(1);
    return PCMRING_READY;
#elif defined(PCMRING_HAVE_OS_SYNC)
    uint32_t flags = shared ? OS_SYNC_WAIT_ON_ADDRESS_SHARED : OS_SYNC_WAIT_ON_ADDRESS_NONE;
    int rc = left_ns == PCMRING_FOREVER
                 ? os_sync_wait_on_address((void *)word, expected, sizeof expected, flags)
                 : os_sync_wait_on_address_with_timeout((void *)word, expected, sizeof expected, flags,
                                                        OS_CLOCK_MACH_ABSOLUTE_TIME, (uint64_t)left_ns);
    if (rc >= 0)
        return PCMRING_READY;
    return errno == ETIMEDOUT ? PCMRING_TIMED_OUT : errno == EINTR ? PCMRING_INTERRUPTED : PCMRING_READY;
#else
    struct timespec nap = {0, 500000}; /* no wait on an address here: look again in 0.5 ms */
    (void)shared;
    if (pcmring_load(word, acquire) != expected)
        return PCMRING_READY;
    if (left_ns < nap.tv_nsec)
        nap.tv_nsec = (long)left_ns;
    return nanosleep(&nap, NULL) == 0 ? PCMRING_READY : PCMRING_INTERRUPTED;
#endif
#endif
}

/* Wake every thread asleep on `word`. Does not block. */
static inline void pcmring_os_wake(pcmring_a32 *word, int shared)
{
#if defined(__linux__)
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), INT_MAX, NULL, NULL, 0);
#elif defined(_WIN32)
    (void)shared;
    WakeByAddressAll((PVOID)word);
#elif defined(PCMRING_HAVE_OS_SYNC)
    os_sync_wake_by_address_all((void *)word, sizeof(uint32_t),
                                shared ? OS_SYNC_WAKE_BY_ADDRESS_SHARED : OS_SYNC_WAKE_BY_ADDRESS_NONE);
#else
    (void)word;
    (void)shared;
#endif
}
#endif /* PCMRING_OWN_WAIT */

/* ---- samples: the one place that converts ---------------------------------------------------- */

/* Full scale is +-1.0: an integer x of b bits is x / 2^(b-1). Float to integer rounds half to even
 * and saturates, NaN becomes 0. Adding 1.5 * 2^(mantissa bits) leaves the rounded integer in the low
 * bits of the sum: exact for the clamped range, and every compiler vectorises it. */
static inline int16_t pcmring_i16_of_f32_(float x)
{
    union { float f; int32_t i; } sum;
    x = x * 32768.0f;
    x = x != x ? 0.0f : x;
    x = x < -32768.0f ? -32768.0f : x;
    x = x > 32767.0f ? 32767.0f : x;
    sum.f = x + 12582912.0f;
    return (int16_t)(sum.i & 0xffff);
}

static inline int32_t pcmring_int_of_f64_(double x, double scale)
{
    union { double f; int64_t i; } sum;
    x = x * scale;
    x = x != x ? 0.0 : x;
    x = x < -scale ? -scale : x;
    x = x > scale - 1.0 ? scale - 1.0 : x;
    sum.f = x + 6755399441055744.0;
    return (int32_t)(uint32_t)(sum.i & 0xffffffff);
}

static inline int16_t pcmring_i16_of_i32_(int32_t x)
{
    int64_t rounded = ((int64_t)x + 0x7fff + ((x >> 16) & 1)) >> 16; /* half to even, as above */
    return (int16_t)(rounded > 32767 ? 32767 : rounded);
}

#define PCMRING_EACH_(D, S, expression)                                                            \
    do {                                                                                           \
        D *to = (D *)dst;                                                                          \
        const S *from = (const S *)src;                                                            \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            const S x = from[i];                                                                   \
            to[i] = expression;                                                                    \
        }                                                                                          \
        return;                                                                                    \
    } while (0)
#define PCMRING_PAIR_(to, from) ((to) * 8u + (from))

/* Convert `count` samples. Both ends aligned for their type, not overlapping. */
static PCMRING_NOINLINE void pcmring_convert(void *dst, uint32_t dst_format, const void *src, uint32_t src_format,
                                             uint64_t count)
{
    switch (PCMRING_PAIR_(dst_format, src_format)) {
    case PCMRING_PAIR_(PCMRING_INT16, PCMRING_INT32): PCMRING_EACH_(int16_t, int32_t, pcmring_i16_of_i32_(x));
    case PCMRING_PAIR_(PCMRING_INT16, PCMRING_FLOAT32): PCMRING_EACH_(int16_t, float, pcmring_i16_of_f32_(x));
    case PCMRING_PAIR_(PCMRING_INT16, PCMRING_FLOAT64):
        PCMRING_EACH_(int16_t, double, (int16_t)pcmring_int_of_f64_(x, 32768.0));
    case PCMRING_PAIR_(PCMRING_INT32, PCMRING_INT16): PCMRING_EACH_(int32_t, int16_t, (int32_t)x * 65536);
    case PCMRING_PAIR_(PCMRING_INT32, PCMRING_FLOAT32):
        PCMRING_EACH_(int32_t, float, pcmring_int_of_f64_((double)x, 2147483648.0));
    case PCMRING_PAIR_(PCMRING_INT32, PCMRING_FLOAT64):
        PCMRING_EACH_(int32_t, double, pcmring_int_of_f64_(x, 2147483648.0));
    case PCMRING_PAIR_(PCMRING_FLOAT32, PCMRING_INT16): PCMRING_EACH_(float, int16_t, (float)x * (1.0f / 32768.0f));
    case PCMRING_PAIR_(PCMRING_FLOAT32, PCMRING_INT32):
        PCMRING_EACH_(float, int32_t, (float)x * (1.0f / 2147483648.0f));
    case PCMRING_PAIR_(PCMRING_FLOAT32, PCMRING_FLOAT64): PCMRING_EACH_(float, double, (float)x);
    case PCMRING_PAIR_(PCMRING_FLOAT64, PCMRING_INT16): PCMRING_EACH_(double, int16_t, (double)x * (1.0 / 32768.0));
    case PCMRING_PAIR_(PCMRING_FLOAT64, PCMRING_INT32):
        PCMRING_EACH_(double, int32_t, (double)x * (1.0 / 2147483648.0));
    case PCMRING_PAIR_(PCMRING_FLOAT64, PCMRING_FLOAT32): PCMRING_EACH_(double, float, (double)x);
    default: memcpy(dst, src, (size_t)(count * pcmring_sample_bytes(dst_format))); return;
    }
}
#undef PCMRING_EACH_
#undef PCMRING_PAIR_

/* ---- layout ---------------------------------------------------------------------------------- */

static inline uint64_t pcmring_round_up_(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

/* Entries of a side table: as many as there are 10 ms blocks at 16 kHz in the ring, within bounds. */
static inline uint32_t pcmring_table_slots_(uint64_t capacity, uint32_t most)
{
    const uint64_t blocks = capacity / 160;
    return blocks >= most ? most : blocks < 8 ? 8u : (uint32_t)blocks;
}

/* Fill a control block that describes `config`. Returns the bytes of memory it needs, or 0 when the
 * numbers are out of range or their product does not fit 63 bits. */
static inline uint64_t pcmring_plan(const pcmring_config *config, pcmring_control *plan)
{
    const uint64_t align = config->data_align ? config->data_align : 64;
    uint64_t offset = pcmring_round_up_(sizeof(pcmring_control), 64);
    if (config->channels < 1 || config->channels > PCMRING_MAX_CHANNELS || config->format < PCMRING_INT16 ||
        config->format > PCMRING_FLOAT64 || config->policy > PCMRING_BLOCK || config->capacity < 1 ||
        !(config->samplerate >= 0.0))
        return 0;
    plan->magic = PCMRING_MAGIC;
    plan->layout = PCMRING_LAYOUT;
    plan->control_bytes = (uint32_t)sizeof(pcmring_control);
    plan->capacity = config->capacity;
    plan->slots = config->slots ? config->slots : config->capacity;
    plan->channels = config->channels;
    plan->format = config->format;
    plan->frame_bytes = config->channels * pcmring_sample_bytes(config->format);
    plan->policy = config->policy;
    plan->shared = config->shared;
    plan->samplerate = config->samplerate;
    if (plan->slots < plan->capacity || plan->slots > ((uint64_t)1 << 62) / plan->frame_bytes)
        return 0;
    plan->guard_slots = config->policy == PCMRING_OVERWRITE ? 0 : PCMRING_GUARD_SLOTS;
    plan->gap_slots = pcmring_table_slots_(config->capacity, PCMRING_MAX_GAPS);
    plan->stamp_slots = config->samplerate > 0.0 ? pcmring_table_slots_(config->capacity, PCMRING_MAX_STAMPS) : 0;
    plan->stamp_interval = plan->stamp_slots ? config->capacity / (plan->stamp_slots - 1) + 1 : 0;
    plan->guards_offset = offset;
    offset += (uint64_t)plan->guard_slots * sizeof(pcmring_guard);
    plan->stamps_offset = offset;
    offset += (uint64_t)plan->stamp_slots * sizeof(pcmring_stamp_slot);
    plan->gaps_offset = offset;
    offset += (uint64_t)plan->gap_slots * sizeof(pcmring_gap_slot);
    plan->data_offset = pcmring_round_up_(offset, align);
    plan->total_bytes = plan->data_offset + plan->slots * plan->frame_bytes;
    return plan->total_bytes;
}

static inline void pcmring_bind_(pcmring_ring *r, void *memory)
{
    pcmring_control *c = (pcmring_control *)memory;
    uint32_t i;
    r->control = c;
    r->data = (uint8_t *)memory + c->data_offset;
    r->guards = (pcmring_guard *)((uint8_t *)memory + c->guards_offset);
    r->gaps = (pcmring_gap_slot *)((uint8_t *)memory + c->gaps_offset);
    r->stamps = (pcmring_stamp_slot *)((uint8_t *)memory + c->stamps_offset);
    r->capacity = c->capacity;
    r->slots = c->slots;
    r->channels = c->channels;
    r->format = c->format;
    r->frame_bytes = c->frame_bytes;
    r->policy = c->policy;
    pcmring_store(&r->notifying, 0, relaxed);
    pcmring_store(&r->listeners, 0, relaxed);
    for (i = 0; i < PCMRING_MAX_LISTENERS; i++)
        pcmring_store(&r->listener_fd[i], 0, relaxed);
}

/* Make a ring in `memory`, which must be zeroed, aligned to 64 bytes and as large as pcmring_plan()
 * said. Returns 0, or -1 for an impossible configuration. */
static inline int pcmring_init(pcmring_ring *r, void *memory, const pcmring_config *config)
{
    pcmring_control *c = (pcmring_control *)memory;
    if (pcmring_plan(config, c) == 0)
        return -1;
    pcmring_store(&c->reserved, config->first_position, relaxed);
    pcmring_store(&c->floor, config->first_position, relaxed);
    pcmring_store(&c->wake_at, PCMRING_NEVER, relaxed);
    c->write_index = config->first_position % c->slots;
    c->next_stamp = c->stamp_slots ? config->first_position : PCMRING_NEVER;
    /* release: whoever finds this position through a pointer also finds the fields above */
    pcmring_store(&c->committed, config->first_position, release);
    pcmring_bind_(r, memory);
    return 0;
}

/* Use a ring that somebody else made in `memory`. Returns 0, or -1 when these `bytes` are not one. */
static inline int pcmring_attach(pcmring_ring *r, void *memory, uint64_t bytes)
{
    const pcmring_control *c = (const pcmring_control *)memory;
    if (bytes < sizeof *c || c->magic != PCMRING_MAGIC || c->layout != PCMRING_LAYOUT ||
        c->control_bytes != sizeof *c || c->total_bytes > bytes || c->capacity < 1 || c->slots < c->capacity ||
        c->channels < 1 || c->channels > PCMRING_MAX_CHANNELS || c->format < PCMRING_INT16 ||
        c->format > PCMRING_FLOAT64 || c->policy > PCMRING_BLOCK ||
        c->frame_bytes != c->channels * pcmring_sample_bytes(c->format) || c->guard_slots > PCMRING_GUARD_SLOTS ||
        c->gap_slots < 1 || c->gap_slots > PCMRING_MAX_GAPS || c->stamp_slots > PCMRING_MAX_STAMPS ||
        c->guards_offset < sizeof *c ||
        c->stamps_offset != c->guards_offset + (uint64_t)c->guard_slots * sizeof(pcmring_guard) ||
        c->gaps_offset != c->stamps_offset + (uint64_t)c->stamp_slots * sizeof(pcmring_stamp_slot) ||
        c->data_offset < c->gaps_offset + (uint64_t)c->gap_slots * sizeof(pcmring_gap_slot) ||
        c->data_offset > c->total_bytes || c->slots > (c->total_bytes - c->data_offset) / c->frame_bytes)
        return -1;
    pcmring_bind_(r, memory);
    return 0;
}

/* ---- moving frames ---------------------------------------------------------------------------- */

#if PCMRING_ATOMIC_COPY
/* Word by word, relaxed: the fences and the published positions order them. Only the ring's side is
 * shared. A frame is at least two bytes and the ring starts on a 64-byte line, so 2-byte steps always
 * fit; 8-byte steps are taken where the ring's side is aligned for them. */
static inline void pcmring_copy_in_(uint8_t *ring, const uint8_t *src, uint64_t bytes)
{
    while (bytes) {
        if (bytes >= 8 && ((uintptr_t)ring & 7) == 0) {
            uint64_t word;
            memcpy(&word, src, 8);
            pcmring_store((pcmring_a64 *)(void *)ring, word, relaxed);
            ring += 8, src += 8, bytes -= 8;
        } else {
            uint16_t half;
            memcpy(&half, src, 2);
            pcmring_store((pcmring_a16 *)(void *)ring, half, relaxed);
            ring += 2, src += 2, bytes -= 2;
        }
    }
}
static inline void pcmring_copy_out_(uint8_t *dst, const uint8_t *ring, uint64_t bytes)
{
    while (bytes) {
        if (bytes >= 8 && ((uintptr_t)ring & 7) == 0) {
            const uint64_t word = pcmring_load((pcmring_a64 *)(void *)(uintptr_t)ring, relaxed);
            memcpy(dst, &word, 8);
            ring += 8, dst += 8, bytes -= 8;
        } else {
            const uint16_t half = pcmring_load((pcmring_a16 *)(void *)(uintptr_t)ring, relaxed);
            memcpy(dst, &half, 2);
            ring += 2, dst += 2, bytes -= 2;
        }
    }
}
#else
static inline void pcmring_copy_in_(uint8_t *ring, const uint8_t *src, uint64_t bytes)
{
    memcpy(ring, src, (size_t)bytes);
}
static inline void pcmring_copy_out_(uint8_t *dst, const uint8_t *ring, uint64_t bytes)
{
    memcpy(dst, ring, (size_t)bytes);
}
#endif

static inline uint64_t pcmring_slot_of_(const pcmring_ring *r, uint64_t position)
{
    /* a 64-bit division costs several times a 32-bit one on older machines */
    if (PCMRING_LIKELY((position >> 32) == 0 && (r->slots >> 32) == 0))
        return (uint32_t)position % (uint32_t)r->slots;
    return position % r->slots;
}

/* Frames from `src`, in the ring's own format, to slot `index` and on, round the end. */
static inline void pcmring_put_(pcmring_ring *r, uint64_t index, const uint8_t *src, uint64_t frames)
{
    const uint64_t to_end = r->slots - index, first = frames < to_end ? frames : to_end;
    pcmring_copy_in_(r->data + index * r->frame_bytes, src, first * r->frame_bytes);
    pcmring_copy_in_(r->data, src + first * r->frame_bytes, (frames - first) * r->frame_bytes);
}

/* The same from another sample format, through a stage that stays in the first-level cache. */
static PCMRING_NOINLINE void pcmring_put_converted_(pcmring_ring *r, uint64_t index, const uint8_t *src,
                                                    uint32_t src_format, uint64_t frames)
{
    uint64_t stage[512]; /* 4 KiB: at least 8 frames of 64 channels of 8 bytes */
    const uint64_t frames_at_once = sizeof stage / r->frame_bytes;
    const uint64_t src_frame_bytes = (uint64_t)pcmring_sample_bytes(src_format) * r->channels;
    while (frames) {
        const uint64_t to_end = r->slots - index;
        uint64_t n = frames < frames_at_once ? frames : frames_at_once;
        n = n < to_end ? n : to_end;
        pcmring_convert(stage, r->format, src, src_format, n * r->channels);
        pcmring_copy_in_(r->data + index * r->frame_bytes, (const uint8_t *)stage, n * r->frame_bytes);
        src += n * src_frame_bytes;
        frames -= n;
        index = n < to_end ? index + n : 0;
    }
}

/* A block of any format and length from slot `index` on; of one longer than the ring the last `capacity` frames.
 * Returns the slot behind it. */
static PCMRING_NOINLINE uint64_t pcmring_put_any_(pcmring_ring *r, uint64_t index, const void *src, uint32_t src_format,
                                                  uint64_t frames)
{
    uint64_t kept = frames;
    if (frames > r->capacity) {
        kept = r->capacity;
        src = (const uint8_t *)src + (frames - kept) * pcmring_sample_bytes(src_format) * r->channels;
        index = (index + (frames - kept) % r->slots) % r->slots;
    }
    if (src_format == r->format)
        pcmring_put_(r, index, (const uint8_t *)src, kept);
    else
        pcmring_put_converted_(r, index, (const uint8_t *)src, src_format, kept);
    index += kept;
    return index < r->slots ? index : index - r->slots;
}

/* ---- what is held ------------------------------------------------------------------------------- */

static inline uint64_t pcmring_frames_written(const pcmring_ring *r)
{
    /* acquire, partner of the release in pcmring_store_block_(): the frames below are readable */
    return pcmring_load(&r->control->committed, acquire);
}

/* The oldest frame held when `written` frames had been stored. */
static inline uint64_t pcmring_oldest_at_(const pcmring_ring *r, uint64_t written)
{
    /* relaxed: clearing takes frames away, it publishes nothing */
    const uint64_t floor = pcmring_load(&r->control->floor, relaxed);
    const uint64_t oldest = written > r->capacity ? written - r->capacity : 0;
    if (PCMRING_LIKELY(oldest >= floor))
        return oldest;
    return floor < written ? floor : written; /* cleared past what this caller has seen */
}

static inline uint64_t pcmring_oldest(const pcmring_ring *r)
{
    return pcmring_oldest_at_(r, pcmring_frames_written(r));
}

/* The oldest frame the producer has not begun to overwrite. Frames at or above it that were copied
 * before this call were copied whole. */
static inline uint64_t pcmring_first_whole(const pcmring_ring *r)
{
    uint64_t reserved;
    /* acquire fence, partner of the release fence in pcmring_store_block_(): if the copy met a byte of
     * a later block, the load below meets at least that block's reservation */
    pcmring_fence(acquire);
    reserved = pcmring_load(&r->control->reserved, relaxed);
    return reserved > r->slots ? reserved - r->slots : 0;
}

/* Copy [start, start + frames), which must lie below frames_written. Returns how many frames at its
 * beginning the producer overtook meanwhile: those are worthless in `out`, the others are whole. */
static inline uint64_t pcmring_copy_range(const pcmring_ring *r, void *out, uint64_t start, uint64_t frames)
{
    const uint64_t index = pcmring_slot_of_(r, start), to_end = r->slots - index;
    uint64_t whole;
    if (PCMRING_LIKELY(frames <= to_end)) {
        pcmring_copy_out_((uint8_t *)out, r->data + index * r->frame_bytes, frames * r->frame_bytes);
    } else {
        pcmring_copy_out_((uint8_t *)out, r->data + index * r->frame_bytes, to_end * r->frame_bytes);
        pcmring_copy_out_((uint8_t *)out + to_end * r->frame_bytes, r->data, (frames - to_end) * r->frame_bytes);
    }
    whole = pcmring_first_whole(r);
    if (PCMRING_LIKELY(whole <= start))
        return 0;
    return whole - start < frames ? whole - start : frames;
}

/* Copy the newest frames, at most `frames` and at most what is held; `*start` is the position of the
 * first. Consumes nothing. */
static inline uint64_t pcmring_latest(const pcmring_ring *r, void *out, uint64_t frames, uint64_t *start)
{
    int attempt;
    for (attempt = 1;; attempt++) {
        const uint64_t written = pcmring_frames_written(r), held = written - pcmring_oldest_at_(r, written);
        const uint64_t n = frames < held ? frames : held;
        const uint64_t torn = pcmring_copy_range(r, out, written - n, n);
        if (PCMRING_LIKELY(torn == 0) || attempt == PCMRING_READ_ATTEMPTS) {
            if (torn)
                memmove(out, (uint8_t *)out + torn * r->frame_bytes, (size_t)((n - torn) * r->frame_bytes));
            *start = written - n + torn;
            return n - torn;
        }
    }
}

/* ---- the ledger of gaps and the time stamps -------------------------------------------------------- */

/* The tables are rings of entries under the protocol of the frames. `*seq` counts them: twice the entries ever
 * made, and one more while the next is being made in the place of the oldest. */
static inline uint64_t pcmring_entry_begin_(pcmring_a64 *seq)
{
    const uint64_t made = pcmring_load(seq, relaxed) / 2; /* our own; odd already: a producer died here */
    /* release, for who takes this number for the count of the entries before */
    pcmring_store(seq, 2 * made + 1, release);
    /* release fence, partner of the acquire fence in pcmring_entries_gone_(): who meets a changed place also
     * meets the odd number */
    pcmring_fence(release);
    return made;
}

static inline void pcmring_entry_end_(pcmring_a64 *seq, uint64_t made)
{
    pcmring_store(seq, 2 * made + 2, release); /* partner of the acquire in pcmring_entries_() */
}

/* Entries ever made. */
static inline uint64_t pcmring_entries_(const pcmring_a64 *seq)
{
    return pcmring_load(seq, acquire) / 2; /* partner of the releases in pcmring_entry_begin_() and _end_() */
}

/* After a copy of the `n` entries before `made`: at how many of them, the oldest, the place was used again meanwhile. */
static inline uint32_t pcmring_entries_gone_(const pcmring_a64 *seq, uint32_t places, uint64_t made, uint32_t n)
{
    uint64_t begun, whole;
    pcmring_fence(acquire); /* partner of the release fence in pcmring_entry_begin_() */
    begun = (pcmring_load(seq, relaxed) + 1) / 2;
    whole = begun > places ? begun - places : 0; /* the oldest that is */
    return whole > made ? n : whole > made - n ? (uint32_t)(whole - (made - n)) : 0;
}

/* Entries ever made in the ledger. Any thread. */
static inline uint64_t pcmring_gaps_made(const pcmring_ring *r) { return pcmring_entries_(&r->control->gap_seq); }

/* Producer: `frames` are missing before the next frame. Consecutive reports of one kind at one position
 * become one entry. The oldest entry gives way; the totals keep it. */
static PCMRING_NOINLINE void pcmring_add_gap(pcmring_ring *r, uint64_t frames, uint32_t cause, uint32_t exact)
{
    pcmring_control *c = r->control;
    const uint64_t position = pcmring_load(&c->committed, relaxed); /* our own */
    const uint64_t made = pcmring_load(&c->gap_seq, relaxed) / 2;   /* our own */
    pcmring_gap_slot *last = &r->gaps[(made + c->gap_slots - 1) % c->gap_slots];
    if (made && pcmring_load(&last->position, relaxed) == position && pcmring_load(&last->cause, relaxed) == cause &&
        pcmring_load(&last->exact, relaxed) == exact) {
        /* every value it takes is true: nothing to announce */
        pcmring_store(&last->frames, pcmring_load(&last->frames, relaxed) + frames, relaxed);
    } else {
        pcmring_gap_slot *gap = &r->gaps[made % c->gap_slots];
        pcmring_entry_begin_(&c->gap_seq);
        pcmring_store(&gap->position, position, relaxed);
        pcmring_store(&gap->frames, frames, relaxed);
        pcmring_store(&gap->cause, cause, relaxed);
        pcmring_store(&gap->exact, exact, relaxed);
        pcmring_entry_end_(&c->gap_seq, made);
    }
    pcmring_count(&c->lost[cause], frames);
    if (c->stamp_slots)
        c->next_stamp = position; /* the line of time breaks here: stamp the next block */
}

/* Copy the newest gaps, oldest first, at most `most`. Returns how many. Wait-free: what the producer writes over
 * meanwhile is left out. */
static PCMRING_NOINLINE uint32_t pcmring_gaps(const pcmring_ring *r, pcmring_gap *out, uint32_t most)
{
    const pcmring_control *c = r->control;
    const uint64_t made = pcmring_entries_(&c->gap_seq);
    const uint32_t held = made < c->gap_slots ? (uint32_t)made : c->gap_slots, n = held < most ? held : most;
    uint32_t i, gone;
    for (i = 0; i < n; i++) {
        const pcmring_gap_slot *gap = &r->gaps[(made - n + i) % c->gap_slots];
        out[i].position = pcmring_load(&gap->position, relaxed);
        out[i].frames = pcmring_load(&gap->frames, relaxed);
        out[i].cause = pcmring_load(&gap->cause, relaxed);
        out[i].exact = pcmring_load(&gap->exact, relaxed);
    }
    gone = pcmring_entries_gone_(&c->gap_seq, c->gap_slots, made, n);
    memmove(out, out + gone, (n - gone) * sizeof *out);
    return n - gone;
}

/* When a block came. A NULL pointer to one stands for "now, capture time unknown". */
typedef struct pcmring_when {
    double adc_s;    /* seconds on the device's clock, of the block's first frame; 0 unknown */
    int64_t mono_ns; /* pcmring_now_ns() when the block was complete */
} pcmring_when;

static PCMRING_NOINLINE void pcmring_add_stamp_(pcmring_ring *r, uint64_t position, uint64_t frames,
                                                const pcmring_when *when)
{
    pcmring_control *c = r->control;
    pcmring_stamp_slot *stamp;
    const int64_t mono_ns = when ? when->mono_ns : pcmring_now_ns();
    uint64_t adc_bits = 0, made;
    if (when)
        memcpy(&adc_bits, &when->adc_s, sizeof adc_bits);
    made = pcmring_entry_begin_(&c->stamp_seq);
    stamp = &r->stamps[made % c->stamp_slots];
    pcmring_store(&stamp->position, position, relaxed);
    pcmring_store(&stamp->frames, frames, relaxed);
    pcmring_store(&stamp->adc_bits, adc_bits, relaxed);
    pcmring_store(&stamp->mono_ns, (uint64_t)mono_ns, relaxed);
    pcmring_entry_end_(&c->stamp_seq, made);
    c->next_stamp = position + c->stamp_interval;
}

/* Copy the newest stamps, oldest first, at most `most`. Returns how many. Wait-free, as pcmring_gaps(). */
static PCMRING_NOINLINE uint32_t pcmring_stamps(const pcmring_ring *r, pcmring_stamp *out, uint32_t most)
{
    const pcmring_control *c = r->control;
    const uint64_t made = pcmring_entries_(&c->stamp_seq);
    const uint32_t held = made < c->stamp_slots ? (uint32_t)made : c->stamp_slots, n = held < most ? held : most;
    uint32_t i, gone;
    for (i = 0; i < n; i++) {
        const pcmring_stamp_slot *stamp = &r->stamps[(made - n + i) % c->stamp_slots];
        const uint64_t adc_bits = pcmring_load(&stamp->adc_bits, relaxed);
        out[i].position = pcmring_load(&stamp->position, relaxed);
        out[i].frames = pcmring_load(&stamp->frames, relaxed);
        out[i].mono_ns = (int64_t)pcmring_load(&stamp->mono_ns, relaxed);
        memcpy(&out[i].adc_s, &adc_bits, sizeof adc_bits);
    }
    gone = pcmring_entries_gone_(&c->stamp_seq, c->stamp_slots, made, n);
    memmove(out, out + gone, (n - gone) * sizeof *out);
    return n - gone;
}

/* ---- the producer ------------------------------------------------------------------------------------ */

/* The lowest position that an active guarded reader has yet to read, PCMRING_NEVER if there is none. */
static inline uint64_t pcmring_lowest_guard(const pcmring_ring *r)
{
    /* relaxed: a slot beyond is a reader whose epoch the caller has not met either */
    const uint32_t high = pcmring_load(&r->control->guard_high, relaxed);
    uint64_t lowest = PCMRING_NEVER;
    uint32_t i;
    for (i = 0; i < high; i++) {
        /* both acquire, partners of the releases in pcmring_guard_close() and pcmring_advance_(): what
         * that reader copied before it moved on, it copied before we overwrite it */
        if (pcmring_load(&r->guards[i].state, acquire) == PCMRING_GUARD_ACTIVE) {
            const uint64_t position = pcmring_load(&r->guards[i].position, acquire);
            lowest = position < lowest ? position : lowest;
        }
    }
    return lowest;
}

/* Frames that fit after `written` without touching a guarded reader's unread audio. */
static inline uint64_t pcmring_space_(pcmring_ring *r, uint64_t written, uint64_t wanted)
{
    pcmring_control *c = r->control;
    /* acquire, partner of the release in pcmring_guard_open(): a new epoch shows the new reader */
    const uint32_t epoch = pcmring_load(&c->guard_epoch, acquire);
    /* positions only grow, so an old limit errs on the safe side until a reader is added */
    if (epoch != c->guard_epoch_seen || c->write_limit < written || c->write_limit - written < wanted) {
        uint64_t limit = pcmring_lowest_guard(r);
        if (limit != PCMRING_NEVER) {
            const uint64_t floor = pcmring_load(&c->floor, relaxed); /* cleared frames need no care */
            limit = (limit > floor ? limit : floor) + r->capacity;
        }
        c->write_limit = limit;
        c->guard_epoch_seen = epoch;
    }
    return c->write_limit > written ? c->write_limit - written : 0;
}

/* Producer: frames that pcmring_write() would take now. */
static inline uint64_t pcmring_space(pcmring_ring *r)
{
    const uint64_t written = pcmring_load(&r->control->committed, relaxed); /* our own */
    return r->policy == PCMRING_OVERWRITE ? PCMRING_NEVER - written : pcmring_space_(r, written, r->capacity);
}

static PCMRING_NOINLINE void pcmring_note_length_(pcmring_control *c, uint64_t frames)
{
    if (frames > pcmring_load(&c->max_block, relaxed))
        pcmring_store(&c->max_block, frames, relaxed);
    if (frames - 1 < pcmring_load(&c->min_block, relaxed) - 1) /* 0 stands for none yet */
        pcmring_store(&c->min_block, frames, relaxed);
}

/* Store a block that fits; of one longer than the ring the last `capacity` frames stay. Returns whether
 * a sleeper waits for what is there now. */
static inline int pcmring_store_block_(pcmring_ring *r, const void *src, uint32_t src_format, uint64_t frames,
                                       const pcmring_when *when)
{
    pcmring_control *c = r->control;
    const uint64_t written = pcmring_load(&c->committed, relaxed); /* our own */
    const uint64_t end = written + frames, index = c->write_index, to_end = r->slots - index;
    uint64_t shortest;

    if (!PCMRING_LIKELY(written < c->next_stamp))
        pcmring_add_stamp_(r, written, frames, when);

    /* relaxed, then a release fence, partner of the acquire fence in pcmring_first_whole(): no frame
     * below becomes visible before this announcement. Without it a reader would trust a torn copy. */
    pcmring_store(&c->reserved, end, relaxed);
    pcmring_fence(release);

    if (PCMRING_LIKELY(src_format == r->format && frames < to_end)) {
        pcmring_copy_in_(r->data + index * r->frame_bytes, (const uint8_t *)src, frames * r->frame_bytes);
        c->write_index = index + frames;
    } else {
        c->write_index = pcmring_put_any_(r, index, src, src_format, frames);
    }

    /* release, partner of the acquire in pcmring_frames_written(): the frames come before their count */
    pcmring_store(&c->committed, end, release);

    pcmring_count(&c->blocks, 1);
    shortest = pcmring_load(&c->min_block, relaxed);
    if (!PCMRING_LIKELY(frames - shortest <= pcmring_load(&c->max_block, relaxed) - shortest))
        pcmring_note_length_(c, frames);

    /* seq_cst, partner of the one in pcmring_arm(): either we meet the sleeper's wish or it meets our
     * frames; no wake-up falls between. Partner, too, of the one in pcmring_guard_open(). */
    pcmring_fence(seq_cst);
    return pcmring_load(&c->wake_at, relaxed) <= end;
}

/* Under drop and block; and blocks of no frames under any policy. */
static PCMRING_NOINLINE uint64_t pcmring_write_limited_(pcmring_ring *r, const void *src, uint32_t src_format,
                                                        uint64_t frames, const pcmring_when *when, int *wake)
{
    const uint64_t written = pcmring_load(&r->control->committed, relaxed); /* our own */
    const uint64_t space = frames ? pcmring_space_(r, written, frames) : 0;
    const uint64_t accepted = frames < space ? frames : space;
    if (r->policy == PCMRING_BLOCK && accepted) {
        pcmring_store(&r->control->storing, 1, relaxed);
        /* seq_cst, partner of the one in pcmring_is_ended(): either we meet that the ring is closed, or
         * a reader that met that meets this and waits for the frames we accept */
        pcmring_fence(seq_cst);
        if (pcmring_load(&r->control->closed, relaxed)) {
            pcmring_store(&r->control->storing, 0, relaxed);
            return 0;
        }
    }
    if (accepted)
        *wake = pcmring_store_block_(r, src, src_format, accepted, when);
    if (r->policy == PCMRING_BLOCK)
        pcmring_store(&r->control->storing, 0, release); /* partner of the acquire in pcmring_is_ended() */
    if (accepted < frames && r->policy == PCMRING_DROP)
        pcmring_add_gap(r, frames - accepted, PCMRING_DROPPED, 1);
    return accepted;
}

/* Producer: store `frames` interleaved frames of `src_format`, with the ring's channels.
 *
 * Returns the frames accepted: all of them under overwrite; under drop the rest is dropped and goes into
 * the ledger; under block the rest is still the caller's. When `*wake` is set on return, call
 * pcmring_wake(); who holds Python's GIL gives it up for that call, the woken thread will want it.
 * Wait-free. */
static inline uint64_t pcmring_write(pcmring_ring *r, const void *src, uint32_t src_format, uint64_t frames,
                                     const pcmring_when *when, int *wake)
{
    *wake = 0;
    if (!PCMRING_LIKELY(r->policy == PCMRING_OVERWRITE && frames))
        return pcmring_write_limited_(r, src, src_format, frames, when, wake);
    *wake = pcmring_store_block_(r, src, src_format, frames, when);
    return frames;
}

/* ---- waking and waiting -------------------------------------------------------------------------------- */

/* Wake everyone who sleeps on the ring. Never blocks. Any thread. */
static PCMRING_NOINLINE void pcmring_wake(pcmring_ring *r)
{
    pcmring_control *c = r->control;
    /* relaxed: who made the wish is met behind the fence below, partner of the sleeper's in pcmring_arm()
     * and of the release in pcmring_add_listener() */
    pcmring_exchange(&c->wake_at, PCMRING_NEVER, relaxed);
    /* release, partner of the acquire in pcmring_wait_readable(): the system refuses to put to sleep
     * who goes by the old number; who meets the new one meets the reason */
    pcmring_add(&c->wake_seq, 1, release);
    /* seq_cst, partner of the one in pcmring_arm(): either we meet the sleeper, or the system meets the new
     * number and refuses to put it to sleep */
    pcmring_fence(seq_cst);
    if (pcmring_load(&c->sleepers, relaxed))
        pcmring_os_wake(&c->wake_seq, (int)c->shared);
#if !defined(_WIN32)
    if (pcmring_load(&r->listeners, seq_cst)) {
        const uint64_t one = 1;
        uint32_t i;
        /* seq_cst, partner of the loop in pcmring_remove_listener(): no descriptor is closed under us.
         * A count, because a closing thread may wake beside the producer. */
        pcmring_add(&r->notifying, 1, seq_cst);
        for (i = 0; i < PCMRING_MAX_LISTENERS; i++) {
            const uint32_t place = pcmring_load(&r->listener_fd[i], seq_cst);
            if (place && write((int)(place - 1), &one, sizeof one) < 0) {
                /* full: that loop has a wake-up waiting already */
            }
        }
        pcmring_sub(&r->notifying, 1, seq_cst);
    }
#endif
}

#if !defined(_WIN32)
/* From now on every wake-up writes 8 bytes to `fd`, an eventfd or a pipe, which must not block.
 * Returns 0, or -1 when all places are taken. Callers serialise. */
static inline int pcmring_add_listener(pcmring_ring *r, int fd)
{
    uint32_t i;
    for (i = 0; i < PCMRING_MAX_LISTENERS; i++) {
        if (pcmring_load(&r->listener_fd[i], relaxed) == 0) {
            pcmring_store(&r->listener_fd[i], (uint32_t)fd + 1, seq_cst);
            pcmring_add(&r->listeners, 1, seq_cst);
            /* acq_rel, partner of the exchange in pcmring_wake(): either that comes later and meets us in the
             * list, or we come later and pcmring_arm() does not trust a wish that was taken before */
            pcmring_add(&r->control->wake_at, 0, acq_rel);
            return 0;
        }
    }
    return -1;
}

/* On return nobody writes to `fd` any more: it may be closed. Callers serialise. */
static inline void pcmring_remove_listener(pcmring_ring *r, int fd)
{
    uint32_t i;
    for (i = 0; i < PCMRING_MAX_LISTENERS; i++) {
        if (pcmring_load(&r->listener_fd[i], relaxed) == (uint32_t)fd + 1) {
            pcmring_store(&r->listener_fd[i], 0, seq_cst);
            pcmring_sub(&r->listeners, 1, seq_cst);
            break;
        }
    }
    /* seq_cst: either the waker meets the empty place, or we meet that it is at work and let it end
     * its few non-blocking writes */
    while (pcmring_load(&r->notifying, seq_cst)) {
    }
}
#endif

/* Ask to be woken when frames_written reaches `target`. Returns non-zero if it has already or the ring
 * is closed; the wish may then stay behind, which costs one idle wake-up. */
static inline int pcmring_arm(pcmring_ring *r, uint64_t target)
{
    pcmring_control *c = r->control;
    uint64_t wish = pcmring_load(&c->wake_at, relaxed);
    while (target < wish && !pcmring_cas(&c->wake_at, &wish, target, relaxed)) {
    }
    pcmring_fence(seq_cst); /* partner of those in pcmring_store_block_() and pcmring_wake() */
    return pcmring_frames_written(r) >= target || pcmring_load(&c->closed, acquire);
}

/* Sleep until frames_written reaches `target`, the ring is closed, `*cancel` becomes non-zero (whoever
 * sets it calls pcmring_wake()), or the deadline on pcmring_now_ns()'s clock. Returns enum pcmring_wait. */
static inline int pcmring_wait_readable(pcmring_ring *r, uint64_t target, int64_t deadline_ns, pcmring_a32 *cancel)
{
    pcmring_control *c = r->control;
    int result;
    pcmring_add(&c->sleepers, 1, relaxed); /* before the fence in pcmring_arm() */
    for (;;) {
        /* acquire, partner of the release in pcmring_wake(). Before the wish: a wake-up that takes the
         * wish changes the number we are about to sleep on. */
        const uint32_t seq = pcmring_load(&c->wake_seq, acquire);
        if (pcmring_arm(r, target) || (cancel && pcmring_load(cancel, acquire))) {
            result = pcmring_frames_written(r) >= target ? PCMRING_READY : PCMRING_CLOSED;
            break;
        }
        result = pcmring_os_wait(&c->wake_seq, seq, deadline_ns, (int)c->shared);
        if (result != PCMRING_READY) {
            result = pcmring_frames_written(r) >= target ? PCMRING_READY : result;
            break;
        }
    }
    pcmring_sub(&c->sleepers, 1, relaxed);
    return result;
}

/* Wake the producer if it waits for space. */
static inline void pcmring_wake_producer_(pcmring_ring *r)
{
    pcmring_control *c = r->control;
    /* seq_cst, partner of the one in pcmring_wait_space(): either we meet that it waits, or it meets the
     * space we just gave */
    pcmring_fence(seq_cst);
    if (pcmring_load(&c->producer_waits, relaxed)) {
        pcmring_store(&c->producer_waits, 0, relaxed);
        pcmring_add(&c->space_seq, 1, release); /* partner of the acquire in pcmring_wait_space() */
        pcmring_os_wake(&c->space_seq, (int)c->shared);
    }
}

/* Producer, policy block: sleep until a frame fits, the ring is closed, or the deadline. */
static inline int pcmring_wait_space(pcmring_ring *r, int64_t deadline_ns)
{
    pcmring_control *c = r->control;
    int result = PCMRING_READY;
    while (result == PCMRING_READY) {
        const uint32_t seq = pcmring_load(&c->space_seq, acquire); /* of the release in pcmring_wake_producer_() */
        pcmring_store(&c->producer_waits, 1, relaxed);
        pcmring_fence(seq_cst); /* partner of the one in pcmring_wake_producer_() */
        if (pcmring_load(&c->closed, acquire)) /* first: after the end nothing more is stored */
            result = PCMRING_CLOSED;
        else if (pcmring_space(r))
            break;
        else
            result = pcmring_os_wait(&c->space_seq, seq, deadline_ns, (int)c->shared);
    }
    pcmring_store(&c->producer_waits, 0, relaxed);
    return result != PCMRING_READY && result != PCMRING_CLOSED && pcmring_space(r) ? PCMRING_READY : result;
}

/* No more frames will come: everyone who waits is woken. Any thread, any number of times. */
static inline void pcmring_close(pcmring_ring *r)
{
    pcmring_store(&r->control->closed, 1, seq_cst); /* before the wake-ups: who is woken meets it */
    pcmring_wake(r);
    pcmring_add(&r->control->space_seq, 1, release);
    pcmring_os_wake(&r->control->space_seq, (int)r->control->shared);
}

static inline int pcmring_is_closed(const pcmring_ring *r)
{
    return pcmring_load(&r->control->closed, acquire) != 0;
}

/* Closed, and what a write under policy block was storing meanwhile has arrived. */
static inline int pcmring_is_ended(const pcmring_ring *r)
{
    if (!pcmring_is_closed(r))
        return 0;
    pcmring_fence(seq_cst); /* partner of the one in pcmring_write() */
    return pcmring_load(&r->control->storing, acquire) == 0;
}

/* Forget every frame stored so far. Positions go on; a reader that had not read them loses them. */
static inline void pcmring_clear(pcmring_ring *r)
{
    const uint64_t written = pcmring_frames_written(r);
    uint64_t floor = pcmring_load(&r->control->floor, relaxed);
    while (floor < written && !pcmring_cas(&r->control->floor, &floor, written, relaxed)) {
    }
    if (r->policy == PCMRING_BLOCK)
        pcmring_wake_producer_(r);
}

/* ---- readers ---------------------------------------------------------------------------------------------- */

/* Start an unguarded reader at `position`, which must not exceed frames_written. */
static inline void pcmring_reader_open(pcmring_reader *reader, uint64_t position)
{
    memset(reader, 0, sizeof *reader);
    reader->start = reader->position = position;
}

/* Start a guarded reader at `position`, or at the next frame to come for PCMRING_NEVER. Returns 0, or -1
 * when all guard slots are taken or the policy keeps none.
 *
 * From the next frame to come on, nothing is overwritten unread. Older frames may be overwritten by the
 * one block the producer may be writing at this moment; the reader then counts them as lost. */
static inline int pcmring_guard_open(pcmring_ring *r, pcmring_reader *reader, uint64_t position, uint32_t owner_pid)
{
    pcmring_control *c = r->control;
    uint32_t i, high;
    for (i = 0; i < c->guard_slots; i++) {
        uint32_t state = PCMRING_GUARD_FREE;
        pcmring_guard *guard = &r->guards[i];
        /* acquire, partner of the release in pcmring_guard_close(): after what the last owner did */
        if (!pcmring_cas(&guard->state, &state, PCMRING_GUARD_CLAIMED, acquire))
            continue;
        pcmring_reader_open(reader, position == PCMRING_NEVER ? pcmring_frames_written(r) : position);
        reader->guard = guard;
        reader->counts_fill = 1;
        guard->owner_pid = owner_pid;
        pcmring_store(&guard->position, reader->position, relaxed);
        pcmring_store(&guard->state, PCMRING_GUARD_ACTIVE, release); /* the position comes first */
        high = pcmring_load(&c->guard_high, relaxed);
        while (high < i + 1 && !pcmring_cas(&c->guard_high, &high, i + 1, relaxed)) {
        }
        /* release, partner of the acquire in pcmring_space_(): a new epoch shows all of the above */
        pcmring_add(&c->guard_epoch, 1, release);
        /* seq_cst, partner of the one that ends pcmring_store_block_(): a producer whose frames the load
         * below misses knows this reader from its next block on */
        pcmring_fence(seq_cst);
        if (position == PCMRING_NEVER) {
            reader->start = reader->position = pcmring_frames_written(r);
            pcmring_store(&guard->position, reader->position, release);
            if (r->policy == PCMRING_BLOCK) /* it may have gone to sleep at the older position */
                pcmring_wake_producer_(r);
        }
        return 0;
    }
    return -1;
}

/* End the guard, not the reader: it reads on unguarded. Harmless for an unguarded one. */
static inline void pcmring_guard_close(pcmring_ring *r, pcmring_reader *reader)
{
    if (reader->guard) {
        /* release, partner of the acquire in pcmring_lowest_guard(): our copies come first */
        pcmring_store(&reader->guard->state, PCMRING_GUARD_FREE, release);
        reader->guard = NULL;
        reader->counts_fill = 0;
        if (r->policy == PCMRING_BLOCK)
            pcmring_wake_producer_(r);
    }
}

static inline uint64_t pcmring_delivered(const pcmring_reader *reader)
{
    return reader->position - reader->start - reader->lost;
}

/* Frames a read would find now. */
static inline uint64_t pcmring_available(const pcmring_ring *r, const pcmring_reader *reader)
{
    const uint64_t written = pcmring_frames_written(r), oldest = pcmring_oldest_at_(r, written);
    return written - (reader->position > oldest ? reader->position : oldest);
}

static PCMRING_NOINLINE void pcmring_note_fill_(const pcmring_ring *r, pcmring_reader *reader, uint64_t unread)
{
    uint64_t peak = pcmring_load(&r->control->peak_fill, relaxed);
    reader->peak = unread;
    while (reader->counts_fill && peak < unread && !pcmring_cas(&r->control->peak_fill, &peak, unread, relaxed)) {
    }
}

/* Move a reader to `position`, done with all that lies before. */
static inline void pcmring_advance_(pcmring_ring *r, pcmring_reader *reader, uint64_t position)
{
    reader->position = position;
    if (reader->guard) {
        /* release, partner of the acquire in pcmring_lowest_guard(): our copy comes first */
        pcmring_store(&reader->guard->position, position, release);
        if (r->policy == PCMRING_BLOCK)
            pcmring_wake_producer_(r);
    }
}

/* Copy up to `frames` frames from the reader's position on to `out`, and move at most `advance` frames
 * past their first (PCMRING_NEVER: past all of them; windows that overlap pass their hop).
 *
 * Returns the frames copied; they begin at position `*first`. Frames that were gone are counted in
 * reader->lost: in this call they are exactly [position before, *first). */
static inline uint64_t pcmring_read(pcmring_ring *r, pcmring_reader *reader, void *out, uint64_t frames,
                                    uint64_t advance, uint64_t *first)
{
    uint64_t position = reader->position, copied = 0;
    int attempt;
    for (attempt = 0; attempt < PCMRING_READ_ATTEMPTS; attempt++) {
        const uint64_t written = pcmring_frames_written(r), oldest = pcmring_oldest_at_(r, written);
        uint64_t unread, torn;
        position = position > oldest ? position : oldest;
        unread = written - position;
        if (unread > reader->peak)
            pcmring_note_fill_(r, reader, unread);
        copied = frames < unread ? frames : unread;
        if (copied == 0)
            break;
        torn = pcmring_copy_range(r, out, position, copied);
        if (PCMRING_LIKELY(torn == 0))
            break;
        position += torn;
        copied -= torn;
        if (copied) { /* the rest is whole: hand it out */
            memmove(out, (uint8_t *)out + torn * r->frame_bytes, (size_t)(copied * r->frame_bytes));
            break;
        }
    }
    *first = position;
    reader->lost += position - reader->position;
    pcmring_advance_(r, reader, position + (advance < copied ? advance : copied));
    return copied;
}

#endif /* PCMRING_RING_H */
