/* scenarios.c: ring.h itself, not a copy of its logic, under every execution the model of model.h allows.
 *
 * A ring of one float64 channel: a frame is 8 bytes, one location of the model. The bits of a frame say
 * which position it belongs to, so a reader can tell a frame that is torn, stale or misplaced. Each
 * scenario is as small as shows its point; the search over it is exhaustive.
 */
#include "litmus.h"
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Event descriptors are words of the arena: the sum not yet read, and a bit once closed. */
#define CLOSED_FD 0x80000000u
static void event_write(int fd);
#define write(fd, data, bytes) (event_write(fd), (ssize_t)(bytes)) /* the only system call in ring.h */
#include <pcmring/ring.h>
#undef write

static struct world {
    pcmring_ring ring;
    pcmring_a32 cancel, fd[2];
    uint64_t attempted, accepted; /* frames the producer has tried to write, and which the ring took */
    uint64_t end;                 /* frames written when a reader met the end, or PCMRING_NEVER */
    struct client { /* a reader and what it must be able to account for */
        pcmring_reader reader;
        uint64_t delivered, lost;
    } clients[2];
    _Alignas(64) unsigned char memory[MODEL_ARENA_BYTES - 512];
} *const w = (struct world *)model_arena;
typedef struct client client;
static pcmring_ring *const ring = (pcmring_ring *)model_arena;

/* ---- names for traces --------------------------------------------------------------------------- */

static void name_of(const void *address, char *out, size_t bytes)
{
#define FIELD(name) {offsetof(pcmring_control, name), #name}
    static const struct { size_t offset; const char *name; } fields[] = {
        FIELD(reserved), FIELD(committed), FIELD(blocks), FIELD(min_block), FIELD(max_block), FIELD(storing),
        FIELD(gap_seq), FIELD(stamp_seq), FIELD(wake_at), FIELD(floor), FIELD(peak_fill), FIELD(wake_seq),
        FIELD(sleepers), FIELD(space_seq), FIELD(producer_waits), FIELD(closed), FIELD(guard_epoch), FIELD(guard_high),
    };
    static const char *const gap[] = {"position", "", "frames", "", "cause", "exact"};
    static const char *const stamp[] = {"position", "", "frames", "", "adc_bits", "", "mono_ns"};
    const unsigned char *at = address, *start = (const unsigned char *)ring->control;
    const pcmring_control *c = ring->control;
    const size_t offset = (size_t)(at - start);
    if (at >= ring->data && at < start + c->total_bytes)
        snprintf(out, bytes, "frame[%zu]", (size_t)(at - ring->data) / 8);
    else if (address == &w->cancel)
        snprintf(out, bytes, "cancel");
    else if (address == &ring->notifying || address == &ring->listeners)
        snprintf(out, bytes, address == &ring->notifying ? "notifying" : "listeners");
    else if (at >= (const unsigned char *)ring->listener_fd && at < (const unsigned char *)(ring + 1))
        snprintf(out, bytes, "listener_fd[%zu]", (size_t)(at - (const unsigned char *)ring->listener_fd) / 4);
    else if (address == &w->fd[0] || address == &w->fd[1])
        snprintf(out, bytes, "fd[%d]", address == &w->fd[1]);
    else if (offset >= c->gaps_offset)
        snprintf(out, bytes, "gap[%zu].%s", (size_t)(offset - c->gaps_offset) / sizeof(pcmring_gap_slot),
                 gap[(offset - c->gaps_offset) % sizeof(pcmring_gap_slot) / 4]);
    else if (offset >= c->stamps_offset)
        snprintf(out, bytes, "stamp[%zu].%s", (size_t)(offset - c->stamps_offset) / sizeof(pcmring_stamp_slot),
                 stamp[(offset - c->stamps_offset) % sizeof(pcmring_stamp_slot) / 4]);
    else if (offset >= c->guards_offset)
        snprintf(out, bytes, "guard[%zu].%s", (size_t)(offset - c->guards_offset) / sizeof(pcmring_guard),
                 (offset - c->guards_offset) % sizeof(pcmring_guard) ? "state" : "position");
    else
        snprintf(out, bytes, "+%zu", offset);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].offset == offset)
            snprintf(out, bytes, "%s", fields[i].name);
#undef FIELD
}

/* Loops of ring.h that wait for another thread. */
static bool is_not_zero(uint64_t v) { return v != 0; }
static const model_await awaits[] = {
    {"pcmring_remove_listener", is_not_zero},
    {NULL, NULL},
};

/* ---- the producer's and the readers' habits ------------------------------------------------------ */

static uint64_t bits_of(uint64_t position) { return 0xf00d000000000000ull + position; }

static void init(const pcmring_config *config)
{
    pcmring_control plan = {0};
    model_arena_used = offsetof(struct world, memory) + pcmring_round_up_(pcmring_plan(config, &plan), 8);
    model_check(model_arena_used <= MODEL_ARENA_BYTES);
    model_check(pcmring_init(ring, w->memory, config) == 0);
}

static void make(uint64_t capacity, uint64_t slots, uint32_t policy)
{
    pcmring_config config = {0};
    config.capacity = capacity;
    config.slots = slots;
    config.channels = 1;
    config.format = PCMRING_FLOAT64;
    config.policy = policy;
    init(&config);
}

/* Write `frames` frames as one block, wake as asked. Returns how many were accepted. */
static uint64_t put(uint64_t frames)
{
    uint64_t block[8], taken;
    int wake;
    for (uint64_t i = 0; i < frames; i++)
        block[i] = bits_of(w->accepted + i);
    taken = pcmring_write(ring, block, PCMRING_FLOAT64, frames, NULL, &wake);
    w->attempted += frames;
    w->accepted += taken;
    if (wake)
        pcmring_wake(ring);
    return taken;
}

static void open_reader(client *c, uint64_t position)
{
    memset(c, 0, sizeof *c);
    pcmring_reader_open(&c->reader, position);
}

static void open_guard(client *c, uint64_t position)
{
    memset(c, 0, sizeof *c);
    model_check(pcmring_guard_open(ring, &c->reader, position, 1) == 0);
}

static uint64_t take(client *c, uint64_t frames)
{
    const uint64_t before = c->reader.position;
    uint64_t out[8], first = UINT64_MAX;
    const uint64_t n = pcmring_read(ring, &c->reader, out, frames, PCMRING_NEVER, &first);
    model_check(n <= frames && first >= before); /* nothing twice */
    for (uint64_t i = 0; i < n; i++)
        model_check(out[i] == bits_of(first + i)); /* nothing torn, stale or misplaced */
    c->delivered += n;
    c->lost += first - before;
    model_check(c->reader.lost == c->lost && pcmring_delivered(&c->reader) == c->delivered);
    model_check(c->reader.position - c->reader.start == c->delivered + c->lost);
    return n;
}

/* Wait for and take one frame after the other up to `end`. */
static void follow(client *c, uint64_t end)
{
    while (c->reader.position < end) {
        model_check(pcmring_wait_readable(ring, c->reader.position + 1, PCMRING_FOREVER, NULL) == PCMRING_READY);
        model_check(pcmring_frames_written(ring) > c->reader.position);
        take(c, 1);
    }
    model_check(c->reader.position == end);
}

static void nobody_waits(void)
{
    model_check(pcmring_load(&ring->control->sleepers, relaxed) == 0);
    model_check(pcmring_load(&ring->control->producer_waits, relaxed) == 0);
    model_check(pcmring_load(&ring->notifying, relaxed) == 0);
}

/* All frames tried are either in the ring or in the ledger. */
static void ledger_adds_up(void)
{
    pcmring_gap gaps[8];
    const uint32_t n = pcmring_gaps(ring, gaps, 8);
    uint64_t dropped = 0;
    for (uint32_t i = 0; i < n; i++) {
        model_check(gaps[i].cause == PCMRING_DROPPED && gaps[i].exact == 1 && gaps[i].frames > 0);
        model_check(gaps[i].position <= w->accepted && (i == 0 || gaps[i].position > gaps[i - 1].position));
        dropped += gaps[i].frames;
    }
    model_check(pcmring_frames_written(ring) == w->accepted && w->accepted + dropped == w->attempted);
}

static void guard_frames(void) /* no reader may copy what the producer overwrites: not even to discard it */
{
    for (uint64_t i = 0; i < ring->slots; i++)
        model_exclusive(ring->data + i * 8);
}

static void take_1_1(void) { take(&w->clients[0], 1), take(&w->clients[0], 1); }
static void take_2_2(void) { take(&w->clients[0], 2), take(&w->clients[0], 2); }
static void take_2_2_2(void) { take_2_2(), take(&w->clients[0], 2); }
static void put_1_1(void) { put(1), put(1); }
static void put_1_1_1(void) { put(1), put(1), put(1); }
static void put_1_1_1_1(void) { put_1_1(), put_1_1(); }
static void put_1_2_1_1(void) { put(1), put(2), put(1), put(1); }
static void latest_2(void)
{
    uint64_t out[2], start = UINT64_MAX;
    for (int i = 0; i < 2; i++) {
        const uint64_t n = pcmring_latest(ring, out, 2, &start);
        model_check(n <= 2);
        for (uint64_t j = 0; j < n; j++)
            model_check(out[j] == bits_of(start + j));
    }
}

/* ---- overwrite ------------------------------------------------------------------------------------------ */

static void overwrite_2(void) { make(2, 2, PCMRING_OVERWRITE), open_reader(&w->clients[0], 0); }
static void overwrite_2_full(void) { overwrite_2(), put(2); }
static void overwrite_2_of_3(void) { make(2, 3, PCMRING_OVERWRITE), open_reader(&w->clients[0], 0), put(1); }
static void overwrite_1(void) { make(1, 1, PCMRING_OVERWRITE), open_reader(&w->clients[0], 0); }
static void put_long(void) { put(1), put(5), put(1); }

/* ---- guards ----------------------------------------------------------------------------------------------- */

static void drop_guarded(void) { make(2, 2, PCMRING_DROP), open_guard(&w->clients[0], 0), guard_frames(); }
static void drop_1(void) { make(1, 1, PCMRING_DROP); }
static void drop_guarded_loosely(void) { make(1, 1, PCMRING_DROP), open_guard(&w->clients[0], 0); }
static void drop_unguarded(void) { make(2, 2, PCMRING_DROP); }
static void drop_two_guards(void) { make(1, 1, PCMRING_DROP), open_guard(&w->clients[0], 0), open_guard(&w->clients[1], 0), guard_frames(); }
static void take_all_or_nothing(void) { take_2_2(), model_check(w->clients[0].lost == 0); }
static void take_1_other(void) { take(&w->clients[1], 1), take(&w->clients[1], 1), model_check(w->clients[1].lost == 0); }
static void take_1_all(void) { take_1_1(), model_check(w->clients[0].lost == 0); }

static void guard_now(void)
{
    open_guard(&w->clients[0], PCMRING_NEVER);
    take_2_2();
    model_check(w->clients[0].lost == 0);
}

static void guard_now_and_take_1(client *c)
{
    open_guard(c, PCMRING_NEVER);
    take(c, 1);
    model_check(c->lost == 0);
}
static void guard_now_1(void) { guard_now_and_take_1(&w->clients[0]); }
static void guard_now_2(void) { guard_now_and_take_1(&w->clients[1]); }

static void guard_from_the_start(void) /* older frames may be lost to the block being written */
{
    open_guard(&w->clients[0], 0);
    const uint64_t next = pcmring_frames_written(ring);
    for (int i = 0; i < 2; i++) {
        const uint64_t lost = w->clients[0].lost, n = take(&w->clients[0], 2);
        model_check(w->clients[0].lost == lost || w->clients[0].reader.position - n <= next);
    }
}

static void guard_twice(void) /* the same place, for another reader */
{
    open_guard(&w->clients[0], PCMRING_NEVER);
    take(&w->clients[0], 1);
    model_check(w->clients[0].lost == 0);
    pcmring_guard_close(ring, &w->clients[0].reader);
    open_guard(&w->clients[1], PCMRING_NEVER);
    take(&w->clients[1], 2), take(&w->clients[1], 2);
    model_check(w->clients[1].lost == 0);
}

static void open_another(void)
{
    open_guard(&w->clients[1], PCMRING_NEVER);
    take(&w->clients[1], 1), take(&w->clients[1], 1);
    model_check(w->clients[1].lost == 0);
}

static void release_guard(void)
{
    take(&w->clients[0], 1);
    model_check(w->clients[0].lost == 0);
    pcmring_guard_close(ring, &w->clients[0].reader);
}

/* ---- waiting for frames --------------------------------------------------------------------------------------- */

static void wide(void) { make(4, 4, PCMRING_OVERWRITE), open_reader(&w->clients[0], 0), open_reader(&w->clients[1], 0); }
static void follow_1(void) { follow(&w->clients[0], 1); }
static void follow_3(void) { follow(&w->clients[0], 3); }
static void follow_2(void) { follow(&w->clients[0], 2); }
static void wait_for_2(void)
{
    model_check(pcmring_wait_readable(ring, 2, PCMRING_FOREVER, NULL) == PCMRING_READY);
    model_check(take(&w->clients[1], 2) == 2);
}
static void wait_for_1_a_while(void)
{
    const int result = pcmring_wait_readable(ring, 1, 1, NULL);
    model_check(result == PCMRING_READY ? take(&w->clients[0], 1) == 1 : result == PCMRING_TIMED_OUT);
}
static void wait_for_2_a_while(void)
{
    const int result = pcmring_wait_readable(ring, 2, 1, NULL);
    model_check(result == PCMRING_TIMED_OUT);
}
static void close_ring(void) { pcmring_close(ring); }
static void put_1(void) { put(1); }
static void put_1_close(void) { put(1), pcmring_close(ring); }
static void wait_closed(void)
{
    model_check(pcmring_wait_readable(ring, 2, PCMRING_FOREVER, NULL) == PCMRING_CLOSED);
    model_check(pcmring_is_closed(ring));
}
static void wait_closed_or_1(void)
{
    const int result = pcmring_wait_readable(ring, 1, PCMRING_FOREVER, NULL);
    model_check(result == PCMRING_READY || (result == PCMRING_CLOSED && pcmring_is_closed(ring)));
    model_check(take(&w->clients[0], 1) == 1 || result == PCMRING_CLOSED);
}
static void wait_cancelled(void)
{
    model_check(pcmring_wait_readable(ring, 2, PCMRING_FOREVER, &w->cancel) == PCMRING_CLOSED);
}
static void cancel(void)
{
    pcmring_store(&w->cancel, 1, release);
    pcmring_wake(ring);
}

/* ---- waiting for space ------------------------------------------------------------------------------------------ */

static void block_full(void) { make(1, 1, PCMRING_BLOCK), open_guard(&w->clients[0], 0), put(1), guard_frames(); }
static void block_empty(void) { make(1, 1, PCMRING_BLOCK), open_guard(&w->clients[0], 0), guard_frames(); }
static void block_two_guards(void) { make(1, 1, PCMRING_BLOCK), open_guard(&w->clients[0], 0), open_guard(&w->clients[1], 0), put(1), guard_frames(); }
static void block_clear(void) { make(1, 1, PCMRING_BLOCK), open_guard(&w->clients[0], 0), put(1); }
static void put_patiently(uint64_t frames)
{
    while (frames) {
        if (put(1)) {
            frames--;
            continue;
        }
        model_check(pcmring_wait_space(ring, PCMRING_FOREVER) == PCMRING_READY);
        model_check(pcmring_space(ring) > 0);
    }
}
static void put_3_patiently(void) { put_patiently(3); }
static void put_1_patiently(void) { put_patiently(1); }
static void put_2_patiently(void) { put_patiently(2); }
static void take_1(void) { take(&w->clients[0], 1), model_check(w->clients[0].lost == 0); }
static void take_1_second(void) { take(&w->clients[1], 1), model_check(w->clients[1].lost == 0); }
static void unguard(void) { pcmring_guard_close(ring, &w->clients[0].reader); }
static void wait_for_nothing(void) { model_check(pcmring_wait_space(ring, PCMRING_FOREVER) == PCMRING_CLOSED); }
static void wait_for_space_a_while(void)
{
    const int result = pcmring_wait_space(ring, 1);
    model_check(result == PCMRING_READY ? put(1) == 1 : result == PCMRING_TIMED_OUT);
}
static void open_ring_for_one(void) { make(2, 2, PCMRING_BLOCK), w->end = PCMRING_NEVER; }
static void look_for_the_end(void)
{
    if (pcmring_is_ended(ring))
        w->end = pcmring_frames_written(ring);
}
static void nothing_came_after_the_end(void)
{
    model_check(w->end == PCMRING_NEVER || w->end == w->accepted);
    model_check(pcmring_frames_written(ring) == w->accepted);
}
static void block_unguarded(void) { make(1, 1, PCMRING_BLOCK); }
static void guard_now_and_make_space_once(void)
{
    open_guard(&w->clients[0], PCMRING_NEVER);
    if (w->clients[0].reader.position == 0)
        follow(&w->clients[0], 1);
}
static void clear(void) { pcmring_clear(ring); }
static void clear_twice(void) { clear(), clear(); }

/* ---- ledger and stamps --------------------------------------------------------------------------------------------- */

static void side_tables(void)
{
    pcmring_config config = {0};
    config.capacity = 8; /* stamps: one for each block */
    config.channels = 1;
    config.format = PCMRING_FLOAT64;
    config.samplerate = 16000.0;
    init(&config);
    ring->control->gap_slots = ring->control->stamp_slots = 2; /* so that entries give way soon */
}

static void add_gaps(void)
{
    pcmring_add_gap(ring, 5, PCMRING_DEVICE_OVERFLOW, 1);
    pcmring_add_gap(ring, 2, PCMRING_DEVICE_OVERFLOW, 1); /* joins the first */
    pcmring_add_gap(ring, 3, PCMRING_PAUSED, 0);
    pcmring_add_gap(ring, 4, PCMRING_REOPENED, 1); /* takes its place */
}

static void look_at_gaps(void)
{
    static const struct { uint32_t n, frames[2], cause[2], exact[2]; } valid[] = {
        {0, {0, 0}, {0, 0}, {0, 0}},
        {1, {5, 0}, {PCMRING_DEVICE_OVERFLOW, 0}, {1, 0}},
        {1, {7, 0}, {PCMRING_DEVICE_OVERFLOW, 0}, {1, 0}},
        {2, {7, 3}, {PCMRING_DEVICE_OVERFLOW, PCMRING_PAUSED}, {1, 0}},
        {1, {3, 0}, {PCMRING_PAUSED, 0}, {0, 0}}, /* the third is being made in the first one's place */
        {2, {3, 4}, {PCMRING_PAUSED, PCMRING_REOPENED}, {0, 1}},
    };
    pcmring_gap got[4];
    const uint32_t n = pcmring_gaps(ring, got, 4);
    bool found = false;
    for (size_t i = 0; i < sizeof valid / sizeof *valid; i++) {
        bool same = valid[i].n == n;
        for (uint32_t j = 0; j < n && same; j++)
            same = got[j].frames == valid[i].frames[j] && got[j].cause == valid[i].cause[j] &&
                   got[j].exact == valid[i].exact[j] && got[j].position == 0;
        found |= same;
    }
    model_check(found);
}

static void put_stamped(void)
{
    uint64_t block[4] = {0};
    int wake;
    for (uint64_t i = 1; i <= 3; i++) { /* the third takes the first one's place */
        const pcmring_when when = {(double)i, (int64_t)(100 * i)};
        ring->control->next_stamp = 0;
        pcmring_write(ring, block, PCMRING_FLOAT64, i, &when, &wake);
    }
}

static void look_at_stamps(void)
{
    static const uint64_t first[] = {0, 0, 1, 3};
    pcmring_stamp got[4];
    const uint32_t n = pcmring_stamps(ring, got, 4);
    model_check(n <= 2);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t frames = got[i].frames;
        model_check(frames >= 1 && frames <= 3 && got[i].position == first[frames]);
        model_check(got[i].adc_s == (double)frames && got[i].mono_ns == (int64_t)(100 * frames));
        model_check(i == 0 || frames == got[0].frames + 1);
    }
    model_check(n != 1 || got[0].frames <= 2); /* the first alone, or the second while the third takes its place */
}

/* ---- clearing ---------------------------------------------------------------------------------------------------- */

static void clear_then_look(void)
{
    pcmring_clear(ring);
    const uint64_t oldest = pcmring_oldest(ring), written = pcmring_frames_written(ring);
    model_check(oldest <= written && written - oldest <= 2);
    open_reader(&w->clients[1], oldest);
    take(&w->clients[1], 2);
    model_check(w->clients[1].reader.position >= oldest);
}

/* ---- event loops ------------------------------------------------------------------------------------------------- */

static void event_write(int fd)
{
    /* a system call, and it takes the descriptor's lock: acq_rel */
    const uint32_t old = pcmring_add(&w->fd[fd], 1, acq_rel);
    model_check((old & CLOSED_FD) == 0); /* it may be somebody else's file by now */
    model_wake(&w->fd[fd], 4, __func__);
}
static void event_close(int fd) { pcmring_exchange(&w->fd[fd], CLOSED_FD, acq_rel); }
static void event_wait(int fd)
{
    while (pcmring_exchange(&w->fd[fd], 0, acq_rel) == 0)
        model_wait(&w->fd[fd], 4, 0, false, __func__);
}

static void loop_ring(void) { wide(), pcmring_add_listener(ring, 0); }
static void loop_for_2(void)
{
    while (!pcmring_arm(ring, 2))
        event_wait(0);
    model_check(take(&w->clients[1], 2) == 2);
}
static void loop_from_now(void) { pcmring_add_listener(ring, 0), loop_for_2(); }
static void loop_closed(void)
{
    pcmring_add_listener(ring, 0);
    while (!pcmring_arm(ring, 2))
        event_wait(0);
    model_check(pcmring_is_closed(ring));
}
static void stop_listening(void)
{
    pcmring_remove_listener(ring, 0);
    event_close(0);
}
static void listen_to_another(void)
{
    stop_listening();
    pcmring_add_listener(ring, 1);
}
static void wake_all(void) { pcmring_wake(ring); }

/* ---- all of them ------------------------------------------------------------------------------------------------- */

#define PRODUCER(f) .threads[0] = f, .thread_names[0] = "producer"
#define THREAD(i, name, f) .threads[i] = f, .thread_names[i] = name

static const model_scenario scenarios[] = {
    {"overwrite_frames_are_whole", overwrite_2, PRODUCER(put_1_2_1_1), THREAD(1, "reader", take_2_2_2)},
    {"overwrite_of_a_full_ring", overwrite_2_full, PRODUCER(put_1_1_1_1), THREAD(1, "reader", take_2_2_2)},
    {"overwrite_capacity_1", overwrite_1, PRODUCER(put_1_1_1_1), THREAD(1, "reader", take_1_1)},
    {"two_readers_one_latest", overwrite_2_full, PRODUCER(put_1_1_1), THREAD(1, "reader", take_2_2),
     THREAD(2, "latest", latest_2)},
    {"more_slots_than_capacity", overwrite_2_of_3, PRODUCER(put_1_2_1_1), THREAD(1, "reader", take_2_2),
     THREAD(2, "latest", latest_2)},
    {"block_longer_than_ring", overwrite_2, PRODUCER(put_long), THREAD(1, "reader", take_2_2_2)},
    {"block_longer_than_ring_more_slots", overwrite_2_of_3, PRODUCER(put_long), THREAD(1, "reader", take_2_2)},
    {"drop_loses_nothing_unread", drop_guarded, PRODUCER(put_1_2_1_1), THREAD(1, "reader", take_all_or_nothing),
     .finish = ledger_adds_up},
    {"drop_two_guards", drop_two_guards, PRODUCER(put_1_1_1), THREAD(1, "reader", take_1_all),
     THREAD(2, "other", take_1_other), .finish = ledger_adds_up},
    {"guard_opened_meanwhile", drop_unguarded, PRODUCER(put_1_1_1_1), THREAD(1, "reader", guard_now)},
    {"guard_opened_on_old_frames", drop_unguarded, PRODUCER(put_1_1_1_1), THREAD(1, "reader", guard_from_the_start)},
    {"guard_place_used_again", drop_unguarded, PRODUCER(put_1_1_1_1), THREAD(1, "reader", guard_twice)},
    {"guard_place_taken_over", drop_guarded_loosely, PRODUCER(put_1_1_1), THREAD(1, "reader", release_guard),
     THREAD(2, "other", open_another)},
    {"two_guards_opened_meanwhile", drop_1, PRODUCER(put_1_1), THREAD(1, "reader", guard_now_1),
     THREAD(2, "other", guard_now_2)},
    {"guard_closed_meanwhile", drop_guarded, PRODUCER(put_1_1_1_1), THREAD(1, "reader", release_guard)},
    {"sleeper_is_woken", wide, PRODUCER(put_1_1), THREAD(1, "reader", follow_2), .finish = nobody_waits},
    {"two_sleepers_two_targets", wide, PRODUCER(put_1_1), THREAD(1, "near", follow_1), THREAD(2, "far", wait_for_2),
     .finish = nobody_waits},
    {"sleeper_beside_one_that_gives_up", wide, PRODUCER(put_1_1), THREAD(1, "hasty", wait_for_1_a_while),
     THREAD(2, "far", wait_for_2), .finish = nobody_waits},
    {"far_wish_hides_no_near_one", wide, PRODUCER(put_1), THREAD(1, "near", follow_1),
     THREAD(2, "far", wait_for_2_a_while), .finish = nobody_waits},
    {"space_by_reading", block_full, PRODUCER(put_1_patiently), THREAD(1, "reader", take_1_1), .finish = nobody_waits},
    {"space_and_frames", block_empty, PRODUCER(put_3_patiently), THREAD(1, "reader", follow_3), .finish = nobody_waits},
    {"space_by_two_readers", block_two_guards, PRODUCER(put_1_patiently), THREAD(1, "reader", take_1),
     THREAD(2, "other", take_1_second), .finish = nobody_waits},
    {"space_by_closing_the_guard", block_full, PRODUCER(put_2_patiently), THREAD(1, "reader", unguard),
     .finish = nobody_waits},
    {"space_by_opening_a_guard", block_unguarded, PRODUCER(put_2_patiently),
     THREAD(1, "reader", guard_now_and_make_space_once), .finish = nobody_waits},
    {"nothing_after_the_end", open_ring_for_one, PRODUCER(put_1_1), THREAD(1, "closer", close_ring),
     THREAD(2, "reader", look_for_the_end), .finish = nothing_came_after_the_end},
    {"space_by_clearing", block_clear, PRODUCER(put_1_patiently), THREAD(1, "clearer", clear),
     .finish = nobody_waits},
    {"space_or_deadline", block_full, PRODUCER(wait_for_space_a_while), THREAD(1, "reader", take_1),
     .finish = nobody_waits},
    {"close_beside_sleeper", wide, PRODUCER(put_1), THREAD(1, "reader", wait_closed), THREAD(2, "closer", close_ring),
     .finish = nobody_waits},
    {"close_by_producer", wide, PRODUCER(put_1_close), THREAD(1, "reader", wait_closed_or_1),
     THREAD(2, "far", wait_closed), .finish = nobody_waits},
    {"close_beside_waiting_producer", block_full, PRODUCER(wait_for_nothing), THREAD(1, "closer", close_ring),
     .finish = nobody_waits},
    {"cancel_beside_producer", wide, PRODUCER(put_1), THREAD(1, "reader", wait_cancelled), THREAD(2, "canceller", cancel),
     .finish = nobody_waits},
    {"gaps_are_consistent", side_tables, PRODUCER(add_gaps), THREAD(1, "looker", look_at_gaps)},
    {"stamps_are_consistent", side_tables, PRODUCER(put_stamped), THREAD(1, "looker", look_at_stamps)},
    {"clear_beside_reader", overwrite_2_full, PRODUCER(put_1_1), THREAD(1, "reader", take_2_2),
     THREAD(2, "clearer", clear_then_look)},
    {"two_clear_beside_guard", block_clear, PRODUCER(put_1_1), THREAD(1, "reader", take_1_1),
     THREAD(2, "clearer", clear_twice)},
    {"listener_removed_beside_wake", loop_ring, THREAD(0, "waker", wake_all), THREAD(1, "loop", stop_listening),
     .finish = nobody_waits, .relies_on_sc = true},
    {"listener_replaced_beside_two_wakes", loop_ring, THREAD(0, "waker", wake_all),
     THREAD(1, "loop", listen_to_another), THREAD(2, "closer", close_ring), .finish = nobody_waits, .relies_on_sc = true},
    {"loop_is_woken", loop_ring, PRODUCER(put_1_1), THREAD(1, "near", follow_1), THREAD(2, "loop", loop_for_2)},
    {"loop_added_meanwhile", wide, PRODUCER(put_1_1), THREAD(1, "near", follow_1), THREAD(2, "loop", loop_from_now)},
    {"loop_added_beside_close", wide, PRODUCER(put_1), THREAD(1, "loop", loop_closed), THREAD(2, "closer", close_ring)},
};

static model_report search(const model_scenario *base, bool weak_sc)
{
    model_scenario s = *base;
    s.name_of = name_of;
    s.awaits = awaits;
    const model_report r = model_explore(&s, (model_options){.weak_sc = weak_sc, .limit_s = 300.0});
    printf("%-6s %-36s %-7s %8llu executions %8llu merged %7llu states %6.2f s  %s\n", r.failed ? "FAILED" : "ok",
           s.name, weak_sc ? "weak_sc" : "", (unsigned long long)r.executions, (unsigned long long)r.merged,
           (unsigned long long)r.states, r.seconds, r.failed ? r.why : "exhaustive");
    return r;
}

/* Arguments: parts of the names of scenarios to run; none: all, and the tests of the checker itself.
 * --stop, before them: not beyond the first that fails. */
int main(int argc, char **argv)
{
    const bool stop = argc > 1 && strcmp(argv[1], "--stop") == 0;
    const int first = 1 + stop;
    int passed = 0, failed = 0;
    double total = 0.0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 1)
        litmus_run(&passed, &failed);
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios && !(stop && failed); i++) {
        bool wanted = argc == first;
        for (int j = first; j < argc; j++)
            wanted |= strstr(scenarios[i].name, argv[j]) != NULL;
        if (!wanted)
            continue;
        model_report r = search(&scenarios[i], false);
        ++*(r.failed ? &failed : &passed);
        total += r.seconds;
        if (r.sc_accesses && !scenarios[i].relies_on_sc && !r.failed) {
            r = search(&scenarios[i], true);
            ++*(r.failed ? &failed : &passed);
            total += r.seconds;
        }
    }
    printf("scenarios: %.1f s\n", total);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
