/* Threads on rings so small that they wrap all the time: one producer, readers of different habits.
 *
 * Every sample is a hash of its position and channel, so a frame that is torn, repeated, reordered or
 * handed out under another position betrays itself. What a reader was given and what it was told it
 * lost are added up here, independently of the ring's own counters, and must fill the positions without
 * a rest: `unaccounted` is what is left over.
 *
 * Who does what: main() starts the threads of one scenario, watches that they get on, and joins them.
 * The producer thread alone writes. Each reader thread owns its pcmring_reader. `stop` is set by the
 * producer after it has closed the ring. No thread sleeps for time to pass: pauses are spun, waits are
 * the ring's own and have a deadline, past which a wake-up was lost and the scenario fails.
 *
 * PCMRING_ATOMIC_COPY=1 and =0 build the two forms of the copy; both must pass. --guarded keeps only
 * guarded readers, where acquire and release alone make even memcpy free of races: that form runs under
 * TSan. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "pcmring/ring.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_FRAMES 1100u /* the longest block written or read here */
#define MAX_CHANNELS 3u

/* What a reader does. */
enum {
    GREEDY = 1,   /* a few frames at a time, at once again */
    LARGE = 2,    /* waits for many, takes all */
    SLOW = 4,     /* long pauses */
    WINDOWS = 8,  /* overlapping windows */
    POLLER = 16,  /* latest, ranges, ledger and stamps; consumes nothing */
    VISITOR = 32, /* opens a guard, reads a little, closes it, again and again; comes in twos */
    CLEARER = 64  /* clears the ring now and then */
};

typedef struct scenario {
    const char *name;
    uint32_t policy;
    uint64_t capacity, slots;
    uint32_t channels, format, source;
    uint64_t max_block;
    uint32_t guarded, loose; /* habits of guarded readers, of the others */
    int ledger;              /* the producer also reports gaps of its own */
    uint32_t share;          /* of all frames, in thousandths */
} scenario;

#define I16 PCMRING_INT16
#define I32 PCMRING_INT32
#define F64 PCMRING_FLOAT64
static const scenario scenarios[] = {
    /* overwrite: nobody is protected, so all depends on the check after the copy */
    {"overwrite 1/1 int32", PCMRING_OVERWRITE, 1, 1, 1, I32, I32, 3, 0, GREEDY | LARGE | SLOW | POLLER, 0, 50},
    {"overwrite 2/2 int16x3", PCMRING_OVERWRITE, 2, 2, 3, I16, I16, 5, 0, GREEDY | SLOW | WINDOWS | POLLER, 0, 50},
    {"overwrite 3/7 float64", PCMRING_OVERWRITE, 3, 7, 1, F64, F64, 9, 0, GREEDY | LARGE | WINDOWS | POLLER, 1, 80},
    {"overwrite 7/9 int16", PCMRING_OVERWRITE, 7, 9, 1, I16, I16, 6, 0, GREEDY | LARGE | SLOW | POLLER, 1, 80},
    {"overwrite 13/20 int16>int32", PCMRING_OVERWRITE, 13, 20, 1, I32, I16, 43, 0, GREEDY | LARGE | WINDOWS, 0, 80},
    {"overwrite 17/17 float64x3", PCMRING_OVERWRITE, 17, 17, 3, F64, F64, 11, 0, GREEDY | SLOW | WINDOWS | POLLER, 0, 80},
    {"overwrite 16/16 clear int16x3", PCMRING_OVERWRITE, 16, 16, 3, I16, I16, 5, 0, GREEDY | LARGE | SLOW | CLEARER, 0, 50},
    {"overwrite 1009/1009 int32", PCMRING_OVERWRITE, 1009, 1009, 1, I32, I32, 160, 0, GREEDY | LARGE | WINDOWS | POLLER, 1, 200},
    {"overwrite 1009/1024 int16x3", PCMRING_OVERWRITE, 1009, 1024, 3, I16, I16, 160, 0, GREEDY | LARGE | SLOW | POLLER, 0, 100},
    {"overwrite 1009/1013 float64>int16", PCMRING_OVERWRITE, 1009, 1013, 1, I16, F64, 640, 0, GREEDY | LARGE | WINDOWS, 0, 50},
    /* drop: guarded readers lose nothing, the ledger holds what did not fit */
    {"drop 5/5 int32", PCMRING_DROP, 5, 5, 1, I32, I32, 7, GREEDY | LARGE | SLOW, POLLER, 0, 5},
    {"drop 11/13 int16x3", PCMRING_DROP, 11, 13, 3, I16, I16, 5, GREEDY | WINDOWS | VISITOR, SLOW | POLLER, 0, 15},
    {"drop 17/17 clear float64", PCMRING_DROP, 17, 17, 1, F64, F64, 6, GREEDY | LARGE, SLOW | CLEARER, 0, 15},
    {"drop 1009/1009 int16", PCMRING_DROP, 1009, 1009, 1, I16, I16, 160, GREEDY | LARGE | WINDOWS, GREEDY | POLLER, 0, 60},
    /* block: nothing is lost at all */
    {"block 1/1 int32", PCMRING_BLOCK, 1, 1, 1, I32, I32, 3, GREEDY | LARGE, SLOW | POLLER, 0, 1},
    {"block 2/3 int16x3", PCMRING_BLOCK, 2, 3, 3, I16, I16, 3, LARGE | WINDOWS | VISITOR, 0, 0, 1},
    {"block 17/17 float64x3", PCMRING_BLOCK, 17, 17, 3, F64, F64, 20, GREEDY | LARGE | WINDOWS, POLLER, 0, 8},
    {"block 1009/1021 int16>int32", PCMRING_BLOCK, 1009, 1021, 1, I32, I16, 1100, GREEDY | LARGE | WINDOWS | VISITOR, SLOW | POLLER, 0, 75},
};
#define SCENARIOS (sizeof scenarios / sizeof *scenarios)

/* ---- options and results ---------------------------------------------------------------------------- */

static uint64_t all_frames = 110000000, seed = 1;
static int64_t patience_ns = (int64_t)20000000000;
static const char *only = NULL;
static int guarded_only = 0;

static uint64_t total_written, total_delivered, total_lost, total_unaccounted, total_looked_at, total_dropped;
static int passed, failed;

/* ---- the threads of one scenario ------------------------------------------------------------------------ */

#define MAX_WORKERS 12

typedef struct stage stage;
typedef struct worker {
    stage *stage;
    void *(*body)(void *);
    uint32_t habit;
    int guarded;
    uint64_t random;
    uint64_t start, end, delivered, lost, looked_at; /* read by main() after the join */
} worker;

struct stage {
    const scenario *is;
    pcmring_ring ring;
    uint64_t frames; /* to write */
    uint64_t offered, dropped;
    worker workers[MAX_WORKERS];
    int count;
    pcmring_a32 ready, go, stop, failures, finished;
    pcmring_a64 rounds; /* of the scenarios about waking: shows that they get on */
    pcmring_a64 acknowledged[4];
    pthread_mutex_t lock;
    pthread_cond_t ended;
};

static void fail(stage *s, const char *format, ...)
{
    va_list arguments;
    if (pcmring_add(&s->failures, 1, relaxed) >= 5) /* the first few tell */
        return;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", s->is->name);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static void spin(uint64_t turns)
{
    volatile uint64_t i;
    for (i = 0; i < turns; i = i + 1) {
    }
}

static inline uint32_t mix(uint64_t position, uint32_t channel)
{
    uint32_t x = (uint32_t)position * 0x9e3779b1u + (uint32_t)(position >> 32) * 0x85ebca6bu + channel * 0xc2b2ae35u;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
    return x;
}

/* A ring fed through a conversion holds 16-bit values, others the whole hash. */
#define EACH_SAMPLE(T, value)                                                                      \
    for (f = 0; f < frames; f++)                                                                   \
        for (ch = 0; ch < channels; ch++) {                                                        \
            const uint32_t x = mix(position + f, ch);                                              \
            ((T *)out)[f * channels + ch] = (T)(value);                                            \
        }

static void fill(const scenario *is, void *out, uint32_t format, uint64_t position, uint64_t frames)
{
    const uint32_t channels = is->channels;
    const int converted = is->format != is->source;
    uint64_t f;
    uint32_t ch;
    if (format == I16) {
        EACH_SAMPLE(int16_t, (int16_t)(x >> 16))
    } else if (format == I32 && converted) {
        EACH_SAMPLE(int32_t, (int32_t)(x & 0xffff0000u))
    } else if (format == I32) {
        EACH_SAMPLE(int32_t, (int32_t)x)
    } else if (converted) {
        EACH_SAMPLE(double, (double)(int16_t)(x >> 16) / 32768.0)
    } else {
        EACH_SAMPLE(double, (double)(int32_t)x)
    }
}

/* The frames in `got` must be those at `position` and on. */
static void check_frames(stage *s, const char *who, const void *got, uint64_t position, uint64_t frames)
{
    union { double d[MAX_FRAMES * MAX_CHANNELS]; int32_t i[2]; } expected;
    const scenario *is = s->is;
    const uint64_t frame_bytes = s->ring.frame_bytes;
    uint64_t f, shift;
    fill(is, &expected, is->format, position, frames);
    if (memcmp(got, &expected, (size_t)(frames * frame_bytes)) == 0)
        return;
    for (f = 0; memcmp((const uint8_t *)got + f * frame_bytes, (uint8_t *)&expected + f * frame_bytes, frame_bytes) == 0; f++) {
    }
    got = (const uint8_t *)got + f * frame_bytes;
    for (shift = 1; shift < 8 * is->slots + 64; shift++) { /* whose frame is it? */
        fill(is, &expected, is->format, position + f + shift, 1);
        if (memcmp(got, &expected, frame_bytes) == 0) {
            fail(s, "%s: frame %" PRIu64 " of %" PRIu64 "+%" PRIu64 " is the frame %" PRIu64 " later", who, position + f,
                 position, frames, shift);
            return;
        }
        fill(is, &expected, is->format, position + f - shift, 1);
        if (memcmp(got, &expected, frame_bytes) == 0) {
            fail(s, "%s: frame %" PRIu64 " of %" PRIu64 "+%" PRIu64 " is the frame %" PRIu64 " earlier", who, position + f,
                 position, frames, shift);
            return;
        }
    }
    fail(s, "%s: frame %" PRIu64 " of %" PRIu64 "+%" PRIu64 " is torn", who, position + f, position, frames);
}

static void meet(stage *s)
{
    pcmring_add(&s->ready, 1, seq_cst);
    while (!pcmring_load(&s->go, acquire))
        sched_yield();
}

static void wait_until_written(stage *s, const char *who, uint64_t target)
{
    const int64_t before = pcmring_now_ns();
    const int result = pcmring_wait_readable(&s->ring, target, before + patience_ns, NULL);
    if (pcmring_now_ns() - before >= patience_ns)
        fail(s, "%s: slept past its deadline for frame %" PRIu64 " (%" PRIu64 " written): a wake-up was lost", who, target,
             pcmring_frames_written(&s->ring));
    else if (result == PCMRING_READY && pcmring_frames_written(&s->ring) < target)
        fail(s, "%s: woken as ready at %" PRIu64 " for frame %" PRIu64, who, pcmring_frames_written(&s->ring), target);
    else if (result == PCMRING_TIMED_OUT)
        fail(s, "%s: timed out before its deadline", who);
}

/* ---- the producer ------------------------------------------------------------------------------------------ */

static uint32_t gap_code(uint64_t position, uint64_t sequence) { return mix(position + sequence, 77); }

/* The newest gaps as this thread made them, against the ledger. */
typedef struct own_gap { uint64_t position, frames; } own_gap;
static void check_own_ledger(stage *s, const own_gap *own, uint64_t count)
{
    pcmring_gap gaps[PCMRING_MAX_GAPS];
    const uint32_t n = pcmring_gaps(&s->ring, gaps, 8);
    uint32_t i;
    if (n != (count < 8 ? count : 8))
        fail(s, "ledger: %u entries after %" PRIu64 " gaps", n, count);
    for (i = 0; i < n; i++) {
        const own_gap *expected = &own[(count - n + i) % 8];
        if (gaps[i].position != expected->position || gaps[i].frames != expected->frames ||
            gaps[i].cause != PCMRING_DROPPED || gaps[i].exact != 1)
            fail(s, "ledger: gap of %" PRIu64 " at %" PRIu64 ", made was %" PRIu64 " at %" PRIu64, gaps[i].frames,
                 gaps[i].position, expected->frames, expected->position);
    }
}

static void *produce(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    pcmring_ring *r = &s->ring;
    const scenario *is = s->is;
    const uint64_t start = pcmring_frames_written(r), end = start + s->frames;
    uint64_t position = start, gaps_made = 0, own_lost[PCMRING_CAUSES] = {0}, own_count = 0, writes = 0, pace = 0;
    double block[MAX_FRAMES * MAX_CHANNELS];
    own_gap own[8];
    int refused = 0, cause;
    meet(s);
    while (position < end && !pcmring_load(&s->failures, relaxed)) {
        const uint64_t dice = next_random(&w->random);
        uint64_t frames = 1 + dice % is->max_block, accepted;
        int wake;
        const pcmring_when when = {(double)position * 0.25, (int64_t)(position * 1000 + frames)};
        if (frames > end - position)
            frames = end - position;
        fill(is, block, is->source, position, frames);
        accepted = pcmring_write(r, block, is->source, frames, &when, &wake);
        if (wake)
            pcmring_wake(r);
        if (accepted > frames)
            fail(s, "producer: %" PRIu64 " accepted of %" PRIu64, accepted, frames);
        position += accepted;
        s->offered += frames;
        if (accepted < frames) {
            if (is->policy == PCMRING_OVERWRITE)
                fail(s, "producer: overwrite refused frames");
            if (is->policy == PCMRING_BLOCK) {
                const int64_t before = pcmring_now_ns();
                const int result = pcmring_wait_space(r, before + patience_ns);
                if (pcmring_now_ns() - before >= patience_ns || result != PCMRING_READY)
                    fail(s, "producer: waiting for space ended with %d: a wake-up was lost", result);
                s->offered -= frames - accepted; /* offers them again */
            }
            if (is->policy == PCMRING_DROP) {
                if (own_count && own[(own_count - 1) % 8].position == position) {
                    own[(own_count - 1) % 8].frames += frames - accepted;
                } else {
                    own[own_count % 8].position = position;
                    own[own_count++ % 8].frames = frames - accepted;
                }
                own_lost[PCMRING_DROPPED] += frames - accepted;
                if (++refused >= 16) { /* let a reader run where there are fewer cores than threads */
                    sched_yield();
                    refused = 0;
                }
            }
        }
        if (is->ledger && accepted && dice >> 60 == 0) {
            const uint32_t code = gap_code(position, ++gaps_made);
            pcmring_add_gap(r, gaps_made, code % PCMRING_CAUSES, code >> 8 & 1);
            own_lost[code % PCMRING_CAUSES] += gaps_made;
        }
        if (is->policy == PCMRING_DROP && writes % 1024 == 0)
            check_own_ledger(s, own, own_count);
        if (++writes % 256 == 0)
            pace = dice >> 62;
        if (pace == 1) /* 0: as fast as it goes; 1: readers see most of it; 2 and 3: they keep up or wait */
            spin(dice >> 20 & 127);
        else if (pace)
            spin(dice >> 20 & 1023);
        if (dice >> 52 == 1)
            sched_yield();
    }
    if (is->policy == PCMRING_DROP)
        check_own_ledger(s, own, own_count);
    if (pcmring_frames_written(r) != position || pcmring_load(&r->control->reserved, relaxed) != position)
        fail(s, "producer: the ring counts %" PRIu64 ", stored were %" PRIu64, pcmring_frames_written(r), position);
    for (cause = 0; cause < PCMRING_CAUSES; cause++)
        if (pcmring_load(&r->control->lost[cause], relaxed) != own_lost[cause])
            fail(s, "producer: %" PRIu64 " lost by cause %d, made were %" PRIu64,
                 pcmring_load(&r->control->lost[cause], relaxed), cause, own_lost[cause]);
    s->dropped = own_lost[PCMRING_DROPPED];
    pcmring_close(r);
    pcmring_store(&s->stop, 1, release);
    return NULL;
}

/* ---- readers --------------------------------------------------------------------------------------------------- */

/* One read with all that can be said about it. Returns the frames consumed. */
static uint64_t read_and_check(worker *w, pcmring_reader *reader, const char *who, uint64_t frames, uint64_t advance)
{
    stage *s = w->stage;
    double out[MAX_FRAMES * MAX_CHANNELS];
    const uint64_t before = reader->position, lost = reader->lost;
    uint64_t first = 0, n, moved;
    n = pcmring_read(&s->ring, reader, out, frames, advance, &first);
    moved = advance < n ? advance : n;
    if (n > frames || first < before || reader->lost - lost != first - before || reader->position != first + moved)
        fail(s, "%s: read %" PRIu64 "+%" PRIu64 " gave %" PRIu64 "+%" PRIu64 ", lost %" PRIu64 ", now at %" PRIu64, who, before,
             frames, first, n, reader->lost - lost, reader->position);
    if (w->guarded && first != before && !(s->is->loose & CLEARER))
        fail(s, "%s: a guarded reader lost %" PRIu64 " frames at %" PRIu64, who, first - before, before);
    check_frames(s, who, out, first, n);
    w->delivered += moved;
    w->lost += first - before;
    return moved;
}

static void *read_by_habit(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    pcmring_ring *r = &s->ring;
    const uint64_t capacity = s->is->capacity;
    const char *who = w->habit == GREEDY ? "greedy" : w->habit == LARGE ? "large" : w->habit == SLOW ? "slow" : "windows";
    pcmring_reader reader;
    int empty = 0;
    pcmring_reader_open(&reader, pcmring_frames_written(r));
    if (w->guarded && pcmring_guard_open(r, &reader, PCMRING_NEVER, 1) != 0)
        fail(s, "%s: no guard slot", who);
    w->start = reader.position;
    meet(s);
    for (;;) {
        const uint64_t dice = next_random(&w->random);
        const int closed = pcmring_is_closed(r); /* before the read: what it leaves then is the end */
        uint64_t frames = 1 + dice % 3, advance = PCMRING_NEVER, moved;
        if (w->habit == LARGE)
            frames = capacity + dice % 3;
        else if (w->habit == SLOW)
            frames = 1 + dice % (capacity + 3);
        else if (w->habit == WINDOWS) {
            frames = capacity < 5 ? capacity : 5 + dice % (capacity / 3 + 1);
            advance = closed ? PCMRING_NEVER : 1 + (dice >> 32) % frames;
        }
        moved = read_and_check(w, &reader, who, frames, advance);
        if (pcmring_load(&s->failures, relaxed))
            break;
        if (moved == 0 && closed && reader.position == pcmring_frames_written(r))
            break;
        if (w->habit == SLOW) {
            spin(dice >> 60 == 0 ? dice >> 20 & 0xffff : dice >> 20 & 1023);
            if (s->is->policy != PCMRING_OVERWRITE)
                sched_yield();
        } else if (moved == 0 && w->habit == GREEDY && s->is->policy != PCMRING_BLOCK) {
            if (++empty % (s->is->policy == PCMRING_OVERWRITE ? 64 : 4) == 0)
                sched_yield();
        } else if (moved == 0 || w->habit != GREEDY) {
            uint64_t some = w->habit == GREEDY ? 1 : 1 + (dice >> 16) % (frames < capacity ? frames : capacity);
            wait_until_written(s, who, reader.position + some);
        }
    }
    if (w->guarded)
        pcmring_guard_close(r, &reader);
    if (reader.start != w->start || reader.lost != w->lost || pcmring_delivered(&reader) != w->delivered)
        fail(s, "%s: it counts %" PRIu64 " delivered and %" PRIu64 " lost, given were %" PRIu64 " and %" PRIu64, who,
             pcmring_delivered(&reader), reader.lost, w->delivered, w->lost);
    if (reader.peak > capacity)
        fail(s, "%s: a peak of %" PRIu64, who, reader.peak);
    w->end = reader.position;
    return NULL;
}

static void check_snapshots(stage *s, const char *who)
{
    pcmring_gap gaps[PCMRING_MAX_GAPS];
    pcmring_stamp stamps[PCMRING_MAX_STAMPS];
    uint32_t n = pcmring_gaps(&s->ring, gaps, PCMRING_MAX_GAPS), i;
    for (i = 0; i < n; i++) {
        const uint32_t code = gap_code(gaps[i].position, gaps[i].frames);
        if (s->is->ledger && (gaps[i].cause != code % PCMRING_CAUSES || gaps[i].exact != (code >> 8 & 1)))
            fail(s, "%s: entry %u of %u of the ledger is mixed: %" PRIu64 " frames at %" PRIu64, who, i, n, gaps[i].frames,
                 gaps[i].position);
        if (s->is->ledger && i && gaps[i].frames != gaps[i - 1].frames + 1)
            fail(s, "%s: entry %u of %u of the ledger follows on another", who, i, n);
        if (!s->is->ledger && (gaps[i].cause != PCMRING_DROPPED || gaps[i].exact != 1 || gaps[i].frames == 0))
            fail(s, "%s: entry %u of %u of the ledger was never made", who, i, n);
        if (i && gaps[i].position <= gaps[i - 1].position)
            fail(s, "%s: the ledger goes back at entry %u of %u", who, i, n);
    }
    n = pcmring_stamps(&s->ring, stamps, PCMRING_MAX_STAMPS);
    for (i = 0; i < n; i++) {
        if (stamps[i].adc_s != (double)stamps[i].position * 0.25 || stamps[i].frames == 0 ||
            stamps[i].mono_ns < (int64_t)(stamps[i].position * 1000) + (int64_t)stamps[i].frames ||
            stamps[i].mono_ns > (int64_t)(stamps[i].position * 1000 + s->is->max_block))
            fail(s, "%s: stamp %u of %u is mixed: position %" PRIu64 " at %g s", who, i, n, stamps[i].position,
                 stamps[i].adc_s);
        if (i && stamps[i].position <= stamps[i - 1].position)
            fail(s, "%s: the stamps go back at %u of %u", who, i, n);
    }
}

static void *poll_history(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    pcmring_ring *r = &s->ring;
    const uint64_t capacity = s->is->capacity;
    double out[MAX_FRAMES * MAX_CHANNELS];
    uint64_t newest = 0;
    meet(s);
    while (!pcmring_load(&s->stop, acquire)) {
        const uint64_t dice = next_random(&w->random);
        uint64_t start, n;
        if (!guarded_only) {
            const uint64_t written = pcmring_frames_written(r), oldest = pcmring_oldest(r);
            n = pcmring_latest(r, out, 1 + dice % capacity, &start);
            if (start + n < newest || n > capacity)
                fail(s, "poller: the newest frame went back from %" PRIu64 " to %" PRIu64, newest, start + n);
            newest = start + n;
            check_frames(s, "poller, latest", out, start, n);
            w->looked_at += n;
            if (oldest < written) { /* else it was overtaken between the two */
                const uint64_t from = oldest + (dice >> 20) % (written - oldest + 1), frames = written - from;
                const uint64_t torn = pcmring_copy_range(r, out, from, frames);
                if (torn > frames)
                    fail(s, "poller: %" PRIu64 " torn of %" PRIu64, torn, frames);
                else
                    check_frames(s, "poller, range", (uint8_t *)out + torn * r->frame_bytes, from + torn, frames - torn);
                w->looked_at += frames - torn;
            }
        }
        check_snapshots(s, "poller");
        if (pcmring_load(&s->failures, relaxed))
            break;
        spin(dice >> 40 & 255);
        if (s->is->policy != PCMRING_OVERWRITE || dice >> 60 == 0)
            sched_yield();
    }
    return NULL;
}

static void *visit(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    pcmring_ring *r = &s->ring;
    meet(s);
    while (!pcmring_load(&s->stop, acquire) && !pcmring_load(&s->failures, relaxed)) {
        const uint64_t dice = next_random(&w->random);
        uint64_t reads = dice % 4;
        pcmring_reader reader;
        if (pcmring_guard_open(r, &reader, PCMRING_NEVER, 1) != 0) {
            fail(s, "visitor: no guard slot");
            break;
        }
        w->start = w->end = w->delivered = w->lost = 0; /* each visit is an account of its own */
        spin(dice >> 32 & 255);
        while (reads--) {
            if (pcmring_available(r, &reader) == 0)
                wait_until_written(s, "visitor", reader.position + 1);
            /* a block that was under way at the opening may be longer than the ring */
            if (s->is->max_block > s->is->capacity && reader.position == reader.start)
                reader.position = reader.position > pcmring_oldest(r) ? reader.position : pcmring_oldest(r);
            read_and_check(w, &reader, "visitor", 1 + (dice >> 8) % s->is->capacity, PCMRING_NEVER);
        }
        pcmring_guard_close(r, &reader);
        w->looked_at += w->delivered;
        w->delivered = w->lost = 0;
        sched_yield();
    }
    return NULL;
}

static void *clear_now_and_then(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    meet(s);
    while (!pcmring_load(&s->stop, acquire)) {
        uint64_t dice = next_random(&w->random), times = dice >> 60 == 0 ? 1000 : 1; /* some in a row, to meet readers */
        while (times--) {
            pcmring_clear(&s->ring);
            spin(dice & 7);
        }
        spin(dice >> 20 & 4095);
        if (dice >> 50 & 1)
            sched_yield();
    }
    return NULL;
}

/* ---- scenarios about waking: the producer goes on only when everybody has seen its frame ------------- */

/* Here a lost wake-up cannot be made good by the next block: there is none until it is noticed. */
static int wait_for_acknowledgement(stage *s, int of, uint64_t position)
{
    const int64_t deadline = pcmring_now_ns() + 2 * patience_ns;
    uint32_t turns = 0;
    while (pcmring_load(&s->acknowledged[of], acquire) < position) {
        if (pcmring_load(&s->failures, relaxed))
            return 0;
        if (++turns % 256 == 0) {
            sched_yield();
            if (pcmring_now_ns() > deadline) {
                fail(s, "producer: sleeper %d never saw frame %" PRIu64, of, position);
                return 0;
            }
        }
    }
    return 1;
}

static uint64_t odd_pause(uint64_t dice) /* from nothing to long enough for the other side to fall asleep */
{
    return dice >> 61 == 0 ? dice & 8191 : dice >> 61 < 4 ? dice & 63 : dice & 511;
}

static void *produce_and_wait(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    pcmring_ring *r = &s->ring;
    const int sleepers = s->count - 1;
    uint64_t position;
    meet(s);
    for (position = 0; position < s->frames && !pcmring_load(&s->failures, relaxed); position++) {
        double block[MAX_CHANNELS];
        int wake, i;
        spin(odd_pause(next_random(&w->random)));
        fill(s->is, block, s->is->source, position, 1);
        pcmring_write(r, block, s->is->source, 1, NULL, &wake);
        if (wake)
            pcmring_wake(r);
        for (i = 0; i < sleepers; i++)
            wait_for_acknowledgement(s, i, i == 1 ? (position + 1) / 2 * 2 : position + 1);
        pcmring_add(&s->rounds, 1, relaxed);
    }
    s->offered = position;
    pcmring_close(r);
    pcmring_store(&s->stop, 1, release);
    return NULL;
}

static void *sleep_and_acknowledge(void *argument) /* the second of them wants two frames at a time */
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    const int me = (int)w->habit;
    const uint64_t step = me == 1 ? 2 : 1;
    pcmring_reader reader;
    pcmring_reader_open(&reader, 0);
    meet(s);
    while (!pcmring_load(&s->failures, relaxed)) {
        spin(odd_pause(next_random(&w->random)));
        wait_until_written(s, "sleeper", reader.position + step);
        if (pcmring_frames_written(&s->ring) < reader.position + step && pcmring_is_closed(&s->ring))
            step == 2 ? read_and_check(w, &reader, "sleeper", 1, 1) : 0;
        else
            read_and_check(w, &reader, "sleeper", step, step);
        pcmring_store(&s->acknowledged[me], reader.position, release);
        if (pcmring_is_closed(&s->ring) && reader.position == pcmring_frames_written(&s->ring))
            break;
    }
    w->end = reader.position;
    return NULL;
}

static void *listen_and_acknowledge(void *argument) /* an event loop: sleeps on a descriptor */
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    const int me = (int)w->habit;
    int ends[2];
    pcmring_reader reader;
    pcmring_reader_open(&reader, 0);
    if (pipe(ends) != 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) || fcntl(ends[1], F_SETFL, O_NONBLOCK) ||
        pcmring_add_listener(&s->ring, ends[1]) != 0)
        fail(s, "listener: no pipe");
    meet(s);
    while (!pcmring_load(&s->failures, relaxed)) {
        struct pollfd ready;
        char bytes[256];
        ready.fd = ends[0];
        ready.events = POLLIN;
        if (!pcmring_arm(&s->ring, reader.position + 1) && poll(&ready, 1, (int)(patience_ns / 1000000)) != 1)
            fail(s, "listener: slept past its deadline for frame %" PRIu64 ": a wake-up was lost", reader.position);
        while (read(ends[0], bytes, sizeof bytes) > 0) {
        }
        read_and_check(w, &reader, "listener", 1, 1);
        pcmring_store(&s->acknowledged[me], reader.position, release);
        if (pcmring_is_closed(&s->ring) && reader.position == pcmring_frames_written(&s->ring))
            break;
    }
    pcmring_remove_listener(&s->ring, ends[1]);
    close(ends[0]);
    close(ends[1]);
    w->end = reader.position;
    return NULL;
}

static void *read_with_pauses(void *argument) /* policy block: the producer is the one that sleeps */
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    pcmring_reader reader;
    w->guarded = 1;
    if (pcmring_guard_open(&s->ring, &reader, PCMRING_NEVER, 1) != 0)
        fail(s, "no guard slot");
    meet(s);
    while (!pcmring_load(&s->failures, relaxed)) {
        const uint64_t dice = next_random(&w->random);
        const int closed = pcmring_is_closed(&s->ring);
        spin(odd_pause(dice));
        if (read_and_check(w, &reader, "pauser", 1, 1) == 0 && closed)
            break;
        if (dice >> 50 & 1)
            wait_until_written(s, "pauser", reader.position + 1);
        pcmring_store(&s->rounds, reader.position, relaxed);
    }
    pcmring_guard_close(&s->ring, &reader);
    w->end = reader.position;
    return NULL;
}

static const scenario wake_scenarios[] = {
    {"wake one sleeper", PCMRING_OVERWRITE, 4, 4, 1, I32, I32, 1, 0, 1, 0, 2},
    {"wake two sleepers and an event loop", PCMRING_OVERWRITE, 4, 4, 1, I32, I32, 1, 0, 3, 0, 1},
    {"wake a producer", PCMRING_BLOCK, 1, 1, 1, I32, I32, 1, 1, 0, 0, 2},
};
#define WAKE_SCENARIOS (sizeof wake_scenarios / sizeof *wake_scenarios)

/* ---- running -------------------------------------------------------------------------------------------------- */

static void *run_worker(void *argument)
{
    worker *w = (worker *)argument;
    stage *s = w->stage;
    w->body(w);
    pthread_mutex_lock(&s->lock);
    pcmring_add(&s->finished, 1, seq_cst);
    pthread_cond_signal(&s->ended);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void add_worker(stage *s, void *(*body)(void *), uint32_t habit, int guarded)
{
    worker *w = &s->workers[s->count];
    w->stage = s;
    w->body = body;
    w->habit = habit;
    w->guarded = guarded;
    w->random = (seed * 1000003 + (uint64_t)s->count + 1) * 0x9e3779b97f4a7c15u | 1;
    s->count++;
}

static void add_readers(stage *s, uint32_t habits, int guarded)
{
    uint32_t habit;
    for (habit = GREEDY; habit <= CLEARER; habit <<= 1) {
        if ((habits & habit) == 0)
            continue;
        if (habit == VISITOR) { /* two: guard slots then pass from one thread to another */
            add_worker(s, visit, habit, guarded);
            add_worker(s, visit, habit, guarded);
        } else if (habit == POLLER) {
            add_worker(s, poll_history, habit, guarded);
        } else if (habit == CLEARER) {
            add_worker(s, clear_now_and_then, habit, guarded);
        } else {
            add_worker(s, read_by_habit, habit, guarded);
        }
    }
}

static int wanted(const char *name)
{
    char copy[400], *part, *rest;
    if (!only)
        return 1;
    snprintf(copy, sizeof copy, "%s", only);
    for (part = copy; part; part = rest) {
        rest = strchr(part, ',');
        if (rest)
            *rest++ = 0;
        if (strstr(name, part))
            return 1;
    }
    return 0;
}

/* Returns when every thread has ended; ends the program when none gets on any more. */
static void watch(stage *s)
{
    uint64_t last = 0;
    int64_t since = pcmring_now_ns();
    pthread_mutex_lock(&s->lock);
    while (pcmring_load(&s->finished, seq_cst) < (uint32_t)s->count) {
        const uint64_t now = pcmring_frames_written(&s->ring) + pcmring_load(&s->rounds, relaxed) +
                             pcmring_load(&s->finished, relaxed) * ((uint64_t)1 << 40);
        struct timespec until;
        if (now != last)
            since = pcmring_now_ns();
        last = now;
        if (pcmring_now_ns() - since > 3 * patience_ns) {
            fprintf(stderr, "%s: stuck at frame %" PRIu64 ", %u of %d threads have ended\n", s->is->name,
                    pcmring_frames_written(&s->ring), pcmring_load(&s->finished, relaxed), s->count);
            printf("%d passed, %d failed (stuck)\n", passed, failed + 1);
            fflush(stdout);
            _Exit(3);
        }
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 1;
        pthread_cond_timedwait(&s->ended, &s->lock, &until);
    }
    pthread_mutex_unlock(&s->lock);
}

static void run(const scenario *is, int about_waking)
{
    pthread_t threads[MAX_WORKERS];
    pcmring_config config;
    pcmring_control plan;
    stage *s;
    void *memory = NULL;
    uint64_t delivered = 0, lost = 0, unaccounted = 0, written, bytes;
    const int64_t before = pcmring_now_ns();
    int i;
    if (!wanted(is->name) || (guarded_only && !is->guarded))
        return;
    memset(&config, 0, sizeof config);
    memset(&plan, 0, sizeof plan);
    config.capacity = is->capacity;
    config.slots = is->slots;
    config.channels = is->channels;
    config.format = is->format;
    config.policy = is->policy;
    config.samplerate = is->ledger || is->guarded ? 16000.0 : 0.0;
    config.first_position = about_waking ? 0 : ((uint64_t)1 << 32) - 1000; /* passes 2^32 on the way */
    bytes = pcmring_plan(&config, &plan);
    s = (stage *)calloc(1, sizeof *s);
    if (bytes == 0 || !s || posix_memalign(&memory, 64, (size_t)bytes)) {
        fprintf(stderr, "%s: no ring\n", is->name);
        exit(2);
    }
    memset(memory, 0, (size_t)bytes);
    s->is = is;
    s->frames = all_frames / 1000 * is->share + all_frames % 1000 * is->share / 1000 + 1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->ended, NULL);
    if (pcmring_init(&s->ring, memory, &config) != 0)
        fail(s, "no ring");
    if (!about_waking) {
        add_worker(s, produce, 0, 0);
        add_readers(s, is->guarded, 1);
        add_readers(s, guarded_only ? is->loose & POLLER : is->loose, 0);
    } else if (is->policy == PCMRING_BLOCK) {
        add_worker(s, produce, 0, 0);
        add_worker(s, read_with_pauses, 0, 1);
    } else {
        add_worker(s, produce_and_wait, 0, 0);
        for (i = 0; i < (int)is->loose; i++)
            add_worker(s, i == 2 ? listen_and_acknowledge : sleep_and_acknowledge, (uint32_t)i, 0);
    }
    for (i = 0; i < s->count; i++)
        if (pthread_create(&threads[i], NULL, run_worker, &s->workers[i])) {
            fprintf(stderr, "no thread\n");
            exit(2);
        }
    while (pcmring_load(&s->ready, seq_cst) < (uint32_t)s->count) /* all readers are open */
        sched_yield();
    pcmring_store(&s->go, 1, release);
    watch(s);
    for (i = 0; i < s->count; i++)
        pthread_join(threads[i], NULL);

    written = pcmring_frames_written(&s->ring) - config.first_position;
    for (i = 1; i < s->count; i++) {
        const worker *w = &s->workers[i];
        const uint64_t span = w->end - w->start, told = w->delivered + w->lost;
        delivered += w->delivered;
        lost += w->lost;
        unaccounted += span > told ? span - told : told - span;
        total_looked_at += w->looked_at;
        if (w->end && w->end != pcmring_frames_written(&s->ring) && !pcmring_load(&s->failures, relaxed))
            fail(s, "reader %d ended at %" PRIu64 " of %" PRIu64, i, w->end, pcmring_frames_written(&s->ring));
    }
    if (is->policy == PCMRING_DROP)
        unaccounted += s->offered - written - s->dropped;
    else
        unaccounted += s->offered - written;
    if (unaccounted)
        fail(s, "%" PRIu64 " frames unaccounted", unaccounted);
    total_written += written;
    total_delivered += delivered;
    total_lost += lost;
    total_dropped += is->policy == PCMRING_DROP ? s->dropped : 0;
    total_unaccounted += unaccounted;
    *(pcmring_load(&s->failures, relaxed) ? &failed : &passed) += 1;
    printf("%-6s %-36s written %10" PRIu64 "  delivered %11" PRIu64 "  lost %11" PRIu64 "  %6.2f s\n",
           pcmring_load(&s->failures, relaxed) ? "FAILED" : "ok", is->name, written, delivered, lost,
           (double)(pcmring_now_ns() - before) * 1e-9);
    fflush(stdout);
    pthread_cond_destroy(&s->ended);
    pthread_mutex_destroy(&s->lock);
    free(memory);
    free(s);
}

int main(int argc, char **argv)
{
    size_t i;
    int a;
    for (a = 1; a < argc; a++) {
        const char *value = a + 1 < argc ? argv[a + 1] : "";
        if (strcmp(argv[a], "--guarded") == 0) {
            guarded_only = 1;
        } else if (strcmp(argv[a], "--list") == 0) {
            for (i = 0; i < SCENARIOS; i++)
                puts(scenarios[i].name);
            for (i = 0; i < WAKE_SCENARIOS; i++)
                puts(wake_scenarios[i].name);
            return 0;
        } else if (strcmp(argv[a], "--frames") == 0 && *value) {
            all_frames = (uint64_t)strtod(value, NULL), a++; /* takes 1e9 too */
        } else if (strcmp(argv[a], "--seed") == 0 && *value) {
            seed = strtoull(value, NULL, 10), a++;
        } else if (strcmp(argv[a], "--only") == 0 && *value) {
            only = value, a++;
        } else if (strcmp(argv[a], "--patience") == 0 && *value) {
            patience_ns = (int64_t)(strtod(value, NULL) * 1e9), a++;
        } else {
            fprintf(stderr,
                    "usage: %s [--frames N] [--seed N] [--only PART,PART…] [--patience SECONDS] [--guarded] [--list]\n"
                    "  --frames    frames to write in all (default 1.1e8)\n"
                    "  --only      scenarios whose name contains one of these\n"
                    "  --patience  seconds after which a wait counts as a lost wake-up (default 20)\n"
                    "  --guarded   only guarded readers: free of races with plain memcpy, too\n",
                    argv[0]);
            return 2;
        }
    }
    printf("stress: copy %s, %" PRIu64 " frames, seed %" PRIu64 "%s\n", PCMRING_ATOMIC_COPY ? "atomic" : "memcpy", all_frames,
           seed, guarded_only ? ", guarded readers only" : "");
    for (i = 0; i < SCENARIOS; i++)
        run(&scenarios[i], 0);
    for (i = 0; i < WAKE_SCENARIOS; i++)
        run(&wake_scenarios[i], 1);
    printf("frames written %" PRIu64 ", delivered %" PRIu64 ", lost %" PRIu64 " (by all readers), dropped %" PRIu64
           ", looked at %" PRIu64 ", unaccounted %" PRIu64 "\n",
           total_written, total_delivered, total_lost, total_dropped, total_looked_at, total_unaccounted);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
