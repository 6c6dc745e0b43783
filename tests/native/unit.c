/* Deterministic tests of every function of ring.h. One thread, but for the cases about waiting and
 * listeners. A torn copy is made on purpose by moving `reserved` as a producer in mid-write would.
 *
 * The oracle: a sample's value follows from its position and channel alone, in every format exactly, so
 * the expected content of any range can be made anew and compared byte for byte. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "check.h"

#include "pcmring/ring.h"

#if !defined(_WIN32)
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#if defined(__linux__)
#include <sys/eventfd.h>
#endif
#else
#include <malloc.h>
#endif

const char *check_case;
int check_case_failures, check_passed, check_failed, check_first_only;

void run_wake_cases(void); /* unit_wakes.c */

#define MS ((int64_t)1000000)
#ifndef FAR_S
#define FAR_S 20 /* seconds after which a wait that should have ended has failed */
#endif
#define FAR_MS (FAR_S * 1000 * MS)
static const uint64_t STARTS[] = {0, ((uint64_t)1 << 32) - 5, ((uint64_t)1 << 63) - 9};
#define COUNT_OF(a) (sizeof(a) / sizeof *(a))

/* ---- rings and frames to test with ---------------------------------------------------------------- */

typedef struct box {
    pcmring_ring ring;
    uint8_t *memory;
    uint64_t bytes;
} box;

#define CANARY 16u /* bytes behind the ring that nobody may touch; ASan watches them itself */

static void *aligned_memory(uint64_t bytes)
{
    void *memory = NULL;
#if defined(_WIN32)
    memory = _aligned_malloc((size_t)bytes, 64);
#else
    if (posix_memalign(&memory, 64, (size_t)bytes))
        memory = NULL;
#endif
    if (!memory) {
        fprintf(stderr, "out of memory: %" PRIu64 " bytes\n", bytes);
        exit(2);
    }
    memset(memory, 0, (size_t)bytes);
    return memory;
}

static void free_aligned(void *memory)
{
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

static pcmring_config config_of(uint64_t capacity, uint32_t channels, uint32_t format, uint32_t policy)
{
    pcmring_config config;
    memset(&config, 0, sizeof config);
    config.capacity = capacity;
    config.channels = channels;
    config.format = format;
    config.policy = policy;
    return config;
}

static void box_open(box *b, const pcmring_config *config)
{
    pcmring_control plan;
    memset(&plan, 0, sizeof plan);
    b->bytes = pcmring_plan(config, &plan);
    CHECK(b->bytes > 0);
#if defined(__SANITIZE_ADDRESS__)
    b->memory = (uint8_t *)aligned_memory(b->bytes);
#else
    b->memory = (uint8_t *)aligned_memory(b->bytes + CANARY);
    memset(b->memory + b->bytes, 0xa5, CANARY);
#endif
    EQ(pcmring_init(&b->ring, b->memory, config), 0);
}

static void box_close(box *b)
{
#if !defined(__SANITIZE_ADDRESS__)
    uint8_t canary[CANARY];
    memset(canary, 0xa5, CANARY);
    BYTES(b->memory + b->bytes, canary, CANARY);
#endif
    free_aligned(b->memory);
}

static int16_t code(uint64_t position, uint32_t channel)
{
    uint64_t x = position * 0x9e3779b97f4a7c15u + channel * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return (int16_t)(x >> 48);
}

/* The frames [position, position + frames) in any format. */
static void fill(void *out, uint32_t format, uint32_t channels, uint64_t position, uint64_t frames)
{
    uint64_t f;
    uint32_t ch;
    for (f = 0; f < frames; f++) {
        for (ch = 0; ch < channels; ch++) {
            const uint64_t i = f * channels + ch;
            const int16_t v = code(position + f, ch);
            switch (format) {
            case PCMRING_INT16: ((int16_t *)out)[i] = v; break;
            case PCMRING_INT32: ((int32_t *)out)[i] = v * 65536; break;
            case PCMRING_FLOAT32: ((float *)out)[i] = (float)v / 32768.0f; break;
            default: ((double *)out)[i] = (double)v / 32768.0; break;
            }
        }
    }
}

/* Scratch for the largest block used here: 4,200 mono frames, or 77 frames of 64 doubles. */
static uint64_t source_block[8192], got_block[8192], expected_block[8192];

/* Producer: `frames` coded frames in `format`. Returns those accepted. */
static uint64_t put_as(pcmring_ring *r, uint32_t format, uint64_t frames)
{
    int wake;
    fill(source_block, format, r->channels, pcmring_frames_written(r), frames);
    return pcmring_write(r, source_block, format, frames, NULL, &wake);
}

static uint64_t put(pcmring_ring *r, uint64_t frames) { return put_as(r, r->format, frames); }

/* `got` must be the frames [position, position + frames). */
static void check_frames(const pcmring_ring *r, const void *got, uint64_t position, uint64_t frames)
{
    fill(expected_block, r->format, r->channels, position, frames);
    BYTES(got, expected_block, frames * r->frame_bytes);
}

/* ---- every shape of ring ----------------------------------------------------------------------------- */

typedef struct shape {
    uint64_t capacity, slots, start;
    uint32_t channels, format, source;
} shape;

static pcmring_config config_of_shape(const shape *s, uint32_t policy)
{
    pcmring_config config = config_of(s->capacity, s->channels, s->format, policy);
    config.slots = s->slots;
    config.first_position = s->start;
    return config;
}

static void for_each_shape(void (*body)(const shape *))
{
    static const uint64_t capacities[] = {1, 2, 7, 16, 17}, extra_slots[] = {0, 1, 20};
    static const uint32_t channels[] = {1, 2, 7, 64};
    static const uint32_t formats[][2] = {{PCMRING_FLOAT32, PCMRING_FLOAT32},
                                          {PCMRING_INT16, PCMRING_INT16},
                                          {PCMRING_FLOAT64, PCMRING_INT16},
                                          {PCMRING_INT16, PCMRING_FLOAT64},
                                          {PCMRING_INT32, PCMRING_FLOAT32}};
    size_t a, b, c, d, e;
    for (a = 0; a < COUNT_OF(capacities); a++)
        for (b = 0; b < COUNT_OF(extra_slots); b++)
            for (c = 0; c < COUNT_OF(channels); c++)
                for (d = 0; d < COUNT_OF(STARTS); d++)
                    for (e = 0; e < COUNT_OF(formats); e++) {
                        const shape s = {capacities[a], capacities[a] + extra_slots[b], STARTS[d], channels[c],
                                         formats[e][0], formats[e][1]};
                        const int before = check_case_failures;
                        body(&s);
                        if (before == 0 && check_case_failures)
                            fprintf(stderr,
                                    "  with capacity %" PRIu64 ", slots %" PRIu64 ", start %" PRIu64
                                    ", channels %u, format %u from %u\n",
                                    s.capacity, s.slots, s.start, s.channels, s.format, s.source);
                    }
}

#define LENGTHS 12
static void lengths_of(const shape *s, uint64_t lengths[LENGTHS])
{
    const uint64_t all[LENGTHS] = {0, 1, s->capacity - 1, s->capacity, s->capacity + 1, 13, 2 * s->slots + 3, 1, 5,
                                   s->capacity - 1, 3, 2};
    memcpy(lengths, all, sizeof all);
}

/* ---- plan, init, attach -------------------------------------------------------------------------------- */

static void plan_lays_control_tables_and_frames_one_after_the_other(void)
{
    pcmring_config config = config_of(16000, 2, PCMRING_FLOAT32, PCMRING_DROP);
    pcmring_control plan;
    uint64_t bytes;
    memset(&plan, 0, sizeof plan);
    config.samplerate = 16000.0;
    bytes = pcmring_plan(&config, &plan);
    EQ(bytes, plan.total_bytes);
    EQ(plan.magic, PCMRING_MAGIC);
    BYTES(&plan.magic, "pcmring", 8); /* on the little-endian machines this runs on */
    EQ(plan.layout, PCMRING_LAYOUT);
    EQ(plan.control_bytes, sizeof(pcmring_control));
    EQ(plan.frame_bytes, 8);
    EQ(plan.slots, 16000);
    EQ(plan.guard_slots, PCMRING_GUARD_SLOTS);
    EQ(plan.gap_slots, 100);
    EQ(plan.stamp_slots, 100);
    CHECK(plan.guards_offset >= sizeof(pcmring_control) && plan.guards_offset % 64 == 0);
    EQ(plan.stamps_offset, plan.guards_offset + 64 * sizeof(pcmring_guard));
    EQ(plan.gaps_offset, plan.stamps_offset + 100 * sizeof(pcmring_stamp_slot));
    CHECK(plan.data_offset >= plan.gaps_offset + 100 * sizeof(pcmring_gap_slot) && plan.data_offset % 64 == 0);
    CHECK(plan.data_offset < plan.gaps_offset + 100 * sizeof(pcmring_gap_slot) + 64);
    EQ(plan.total_bytes, plan.data_offset + 16000 * 8);
    EQ(sizeof(pcmring_guard), 64); /* a cache line each */
}

static void plan_aligns_frames_as_asked(void)
{
    pcmring_config config = config_of(1000, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_control plan;
    memset(&plan, 0, sizeof plan);
    config.data_align = 65536;
    config.slots = 32768;
    EQ(pcmring_plan(&config, &plan), 65536 + 65536);
    EQ(plan.data_offset, 65536);
    EQ(plan.capacity, 1000);
    EQ(plan.slots, 32768);
}

static void plan_bounds_the_side_tables(void)
{
    static const struct { uint64_t capacity; uint32_t slots; } cases[] = {
        {1, 8}, {160 * 8, 8}, {160 * 9 - 1, 8}, {160 * 9, 9}, {160 * 255, 255}, {160 * 256, 256}, {160 * 257, 256},
        {480000, 256}};
    size_t i;
    for (i = 0; i < COUNT_OF(cases); i++) {
        pcmring_config config = config_of(cases[i].capacity, 1, PCMRING_INT16, PCMRING_OVERWRITE);
        pcmring_control plan;
        memset(&plan, 0, sizeof plan);
        CHECK(pcmring_plan(&config, &plan) > 0);
        EQ(plan.gap_slots, cases[i].slots);
        EQ(plan.guard_slots, 0); /* overwrite keeps no guards */
        EQ(plan.stamp_slots, 0); /* no rate, no stamps */
        config.samplerate = 16000.0;
        CHECK(pcmring_plan(&config, &plan) > 0);
        EQ(plan.stamp_slots, cases[i].slots);
        /* n stamps enclose n - 1 intervals */
        CHECK(plan.stamp_interval * (plan.stamp_slots - 1) >= plan.capacity);
    }
}

static uint64_t plan_with(void (*change)(pcmring_config *))
{
    pcmring_config config = config_of(100, 2, PCMRING_FLOAT32, PCMRING_OVERWRITE);
    pcmring_control plan;
    pcmring_ring ring;
    uint64_t bytes;
    memset(&plan, 0, sizeof plan);
    change(&config);
    bytes = pcmring_plan(&config, &plan);
    if (bytes == 0) {
        memset(&plan, 0, sizeof plan);
        EQ(pcmring_init(&ring, &plan, &config), -1);
    }
    return bytes;
}

#define CHANGE(name, statement)                                                                    \
    static void name(pcmring_config *c) { statement; }
CHANGE(as_it_is, (void)c)
CHANGE(no_channels, c->channels = 0)
CHANGE(channels_64, c->channels = 64)
CHANGE(channels_65, c->channels = 65)
CHANGE(format_0, c->format = 0)
CHANGE(format_5, c->format = 5)
CHANGE(policy_3, c->policy = 3)
CHANGE(no_capacity, c->capacity = 0)
CHANGE(negative_rate, c->samplerate = -1.0)
CHANGE(nan_rate, c->samplerate = NAN)
CHANGE(slots_below_capacity, c->slots = 99)
CHANGE(slots_at_limit, c->slots = ((uint64_t)1 << 62) / 8)
CHANGE(slots_past_limit, c->slots = ((uint64_t)1 << 62) / 8 + 1)
CHANGE(capacity_past_limit, c->capacity = ((uint64_t)1 << 62) / 8 + 1)
CHANGE(product_wraps, c->capacity = ((uint64_t)1 << 61) + 1)

static void plan_refuses_impossible_numbers(void)
{
    CHECK(plan_with(as_it_is) > 0);
    CHECK(plan_with(channels_64) > 0);
    CHECK(plan_with(slots_at_limit) > (uint64_t)1 << 62);
    EQ(plan_with(no_channels), 0);
    EQ(plan_with(channels_65), 0);
    EQ(plan_with(format_0), 0);
    EQ(plan_with(format_5), 0);
    EQ(plan_with(policy_3), 0);
    EQ(plan_with(no_capacity), 0);
    EQ(plan_with(negative_rate), 0);
    EQ(plan_with(nan_rate), 0);
    EQ(plan_with(slots_below_capacity), 0);
    EQ(plan_with(slots_past_limit), 0);
    EQ(plan_with(capacity_past_limit), 0);
    EQ(plan_with(product_wraps), 0);
}

static void sample_bytes_are_those_of_the_format(void)
{
    EQ(pcmring_sample_bytes(PCMRING_INT16), 2);
    EQ(pcmring_sample_bytes(PCMRING_INT32), 4);
    EQ(pcmring_sample_bytes(PCMRING_FLOAT32), 4);
    EQ(pcmring_sample_bytes(PCMRING_FLOAT64), 8);
}

static void init_starts_empty_at_the_first_position(void)
{
    size_t i;
    for (i = 0; i < COUNT_OF(STARTS); i++) {
        pcmring_config config = config_of(7, 1, PCMRING_INT16, PCMRING_DROP);
        box b;
        uint64_t start;
        config.first_position = STARTS[i];
        box_open(&b, &config);
        EQ(pcmring_frames_written(&b.ring), STARTS[i]);
        EQ(pcmring_oldest(&b.ring), STARTS[i]);
        EQ(pcmring_latest(&b.ring, got_block, 7, &start), 0);
        EQ(start, STARTS[i]);
        EQ(pcmring_space(&b.ring), PCMRING_NEVER - STARTS[i]); /* no guarded reader: anything fits */
        EQ(pcmring_is_closed(&b.ring), 0);
        EQ(pcmring_lowest_guard(&b.ring), PCMRING_NEVER);
        EQ(b.ring.control->write_index, STARTS[i] % 7);
        box_close(&b);
    }
}

static void attach_finds_what_another_handle_wrote(void)
{
    pcmring_config config = config_of(17, 3, PCMRING_INT32, PCMRING_BLOCK);
    pcmring_ring other;
    pcmring_reader reader;
    uint64_t start;
    box b;
    config.samplerate = 48000.0;
    box_open(&b, &config);
    EQ(put(&b.ring, 23), 23);
    EQ(pcmring_attach(&other, b.memory, b.bytes), 0);
    EQ(other.capacity, 17);
    EQ(other.slots, 17);
    EQ(other.channels, 3);
    EQ(other.format, PCMRING_INT32);
    EQ(other.frame_bytes, 12);
    EQ(other.policy, PCMRING_BLOCK);
    EQ(pcmring_latest(&other, got_block, 100, &start), 17);
    EQ(start, 6);
    check_frames(&other, got_block, 6, 17);
    EQ(pcmring_guard_open(&other, &reader, PCMRING_NEVER, 1), 0);
    EQ(pcmring_space(&b.ring), 17); /* a guard made through one handle binds the other */
    EQ(put(&b.ring, 20), 17);
    EQ(pcmring_attach(&other, b.memory, b.bytes + 4096), 0); /* a file may be longer */
    box_close(&b);
}

static void attach_refuses_each_corrupted_field(void)
{
    pcmring_config config = config_of(17, 3, PCMRING_INT32, PCMRING_DROP);
    pcmring_control *c;
    pcmring_ring other;
    uint8_t *copy;
    box b;
    config.samplerate = 16000.0;
    box_open(&b, &config);
    copy = (uint8_t *)aligned_memory(b.bytes);
    c = (pcmring_control *)(void *)copy;
#define REFUSES(statement)                                                                         \
    do {                                                                                           \
        memcpy(copy, b.memory, (size_t)b.bytes);                                                   \
        EQ(pcmring_attach(&other, copy, b.bytes), 0);                                              \
        statement;                                                                                 \
        check_eq_(__FILE__, __LINE__, "attach after " #statement,                                  \
                  (uint64_t)(int64_t)pcmring_attach(&other, copy, b.bytes), (uint64_t)(int64_t)-1); \
    } while (0)
    REFUSES(c->magic++);
    REFUSES(c->magic = 0);
    REFUSES(c->layout++);
    REFUSES(c->layout = 0);
    REFUSES(c->control_bytes -= 8);
    REFUSES(c->control_bytes += 8);
    REFUSES(c->total_bytes++);
    REFUSES(c->total_bytes -= 1);
    REFUSES(c->total_bytes = 0);
    REFUSES(c->total_bytes = UINT64_MAX);
    REFUSES(c->capacity = 0);
    REFUSES(c->capacity = c->slots + 1);
    REFUSES(c->slots++);
    REFUSES(c->slots = c->capacity - 1);
    REFUSES(c->slots = UINT64_MAX);
    REFUSES(c->slots = (uint64_t)1 << 62);
    REFUSES(c->channels = 0);
    REFUSES(c->channels = 1);
    REFUSES(c->channels = 65);
    REFUSES((c->channels = 65, c->frame_bytes = 65 * 4));
    REFUSES((c->channels = 0, c->frame_bytes = 0));
    REFUSES(c->format = 0);
    REFUSES(c->format = 5);
    REFUSES(c->format = PCMRING_INT16);
    REFUSES(c->policy = 3);
    REFUSES(c->frame_bytes++);
    REFUSES(c->frame_bytes = 0);
    REFUSES(c->guard_slots--);
    REFUSES(c->guard_slots = 65);
    REFUSES(c->gap_slots = 0);
    REFUSES(c->gap_slots = 257);
    REFUSES(c->stamp_slots--);
    REFUSES(c->stamp_slots = 257);
    REFUSES(c->guards_offset = 0);
    REFUSES(c->guards_offset += 64);
    REFUSES(c->stamps_offset += 8);
    REFUSES(c->stamps_offset -= 8);
    REFUSES(c->gaps_offset += 8);
    REFUSES(c->gaps_offset -= 8);
    REFUSES(c->data_offset += 64);
    REFUSES(c->data_offset -= 64);
    REFUSES(c->data_offset = UINT64_MAX);
    REFUSES(c->data_offset = 0);
#undef REFUSES
    EQ(pcmring_attach(&other, b.memory, b.bytes - 1), -1);
    EQ(pcmring_attach(&other, b.memory, sizeof(pcmring_control) - 1), -1);
    EQ(pcmring_attach(&other, b.memory, 0), -1);
    free_aligned(copy);
    box_close(&b);
}

/* ---- conversions ------------------------------------------------------------------------------------------ */

/* The straightforward reference: scale, round half to even by the C library, saturate, NaN is 0. */
static int64_t ref_int(double x, int bits)
{
    const double scale = ldexp(1.0, bits - 1);
    double y;
    if (isnan(x))
        return 0;
    y = nearbyint(x * scale); /* the default rounding mode is half to even */
    return y >= scale ? (int64_t)scale - 1 : y < -scale ? -(int64_t)scale : (int64_t)y;
}

static void check_f32(float x)
{
    int16_t i16 = 1;
    int32_t i32 = 1;
    double f64 = 1.0;
    float back = 1.0f;
    pcmring_convert(&i16, PCMRING_INT16, &x, PCMRING_FLOAT32, 1);
    pcmring_convert(&i32, PCMRING_INT32, &x, PCMRING_FLOAT32, 1);
    pcmring_convert(&f64, PCMRING_FLOAT64, &x, PCMRING_FLOAT32, 1);
    pcmring_convert(&back, PCMRING_FLOAT32, &x, PCMRING_FLOAT32, 1);
    if (EQ(i16, ref_int((double)x, 16)) + EQ(i32, ref_int((double)x, 32)) != 2)
        fprintf(stderr, "  for float32 %.9g\n", (double)x);
    if (isnan(x)) {
        CHECK(isnan(f64) && isnan(back));
    } else {
        const double expected = (double)x;
        BYTES(&f64, &expected, 8);
        BYTES(&back, &x, 4);
    }
}

static void check_f64(double x)
{
    int16_t i16 = 1;
    int32_t i32 = 1;
    float f32 = 1.0f;
    pcmring_convert(&i16, PCMRING_INT16, &x, PCMRING_FLOAT64, 1);
    pcmring_convert(&i32, PCMRING_INT32, &x, PCMRING_FLOAT64, 1);
    pcmring_convert(&f32, PCMRING_FLOAT32, &x, PCMRING_FLOAT64, 1);
    if (EQ(i16, ref_int(x, 16)) + EQ(i32, ref_int(x, 32)) != 2)
        fprintf(stderr, "  for float64 %.17g\n", x);
    if (isnan(x)) {
        CHECK(isnan(f32));
    } else {
        const float expected = (float)x;
        BYTES(&f32, &expected, 4);
    }
}

static void check_i32(int32_t x)
{
    int16_t i16 = 1;
    float f32 = 1.0f;
    double f64 = 1.0;
    const double exact = (double)x / 2147483648.0;
    const float nearest = (float)exact;
    pcmring_convert(&i16, PCMRING_INT16, &x, PCMRING_INT32, 1);
    pcmring_convert(&f32, PCMRING_FLOAT32, &x, PCMRING_INT32, 1);
    pcmring_convert(&f64, PCMRING_FLOAT64, &x, PCMRING_INT32, 1);
    if (!EQ(i16, ref_int(exact, 16)))
        fprintf(stderr, "  for int32 %d\n", x);
    BYTES(&f32, &nearest, 4);
    BYTES(&f64, &exact, 8);
}

static uint64_t random_state;
static uint64_t next_random(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void int16_survives_every_format_and_back(void)
{
    static int16_t all[65536], back[65536];
    static double wide[65536];
    static const uint32_t formats[] = {PCMRING_INT16, PCMRING_INT32, PCMRING_FLOAT32, PCMRING_FLOAT64};
    size_t i;
    for (i = 0; i < 65536; i++)
        all[i] = (int16_t)((int)i - 32768);
    for (i = 0; i < COUNT_OF(formats); i++) {
        memset(back, 0x55, sizeof back);
        pcmring_convert(wide, formats[i], all, PCMRING_INT16, 65536);
        pcmring_convert(back, PCMRING_INT16, wide, formats[i], 65536);
        BYTES(back, all, sizeof all);
    }
    pcmring_convert(wide, PCMRING_FLOAT32, all, PCMRING_INT16, 65536);
    for (i = 0; i < 65536; i++) {
        const float expected = (float)((double)all[i] / 32768.0);
        BYTES((float *)wide + i, &expected, 4);
    }
    pcmring_convert(wide, PCMRING_INT32, all, PCMRING_INT16, 65536);
    for (i = 0; i < 65536; i++)
        EQ(((int32_t *)wide)[i], all[i] * 65536);
}

static void int32_survives_float64_and_back(void)
{
    int64_t x;
    random_state = 32;
    for (x = INT32_MIN; x <= INT32_MAX; x += 65521 + (int64_t)(next_random() % 7)) {
        const int32_t in = (int32_t)x;
        int32_t back = in ^ 1;
        double f64;
        pcmring_convert(&f64, PCMRING_FLOAT64, &in, PCMRING_INT32, 1);
        pcmring_convert(&back, PCMRING_INT32, &f64, PCMRING_FLOAT64, 1);
        EQ(back, in);
    }
}

static void floats_round_half_to_even(void)
{
    int k;
    for (k = -32770; k <= 32770; k++) {
        const double tie = ((double)k + 0.5) / 32768.0;
        const float tie_f = (float)tie; /* exact: 17 bits */
        check_f64(tie);
        check_f64(nextafter(tie, 2.0));
        check_f64(nextafter(tie, -2.0));
        check_f32(tie_f);
        check_f32(nextafterf(tie_f, 2.0f));
        check_f32(nextafterf(tie_f, -2.0f));
    }
    for (k = -2000; k <= 2000; k++) {
        check_f64(((double)k + 0.5) / 2147483648.0);
        check_f64(nextafter(((double)k + 0.5) / 2147483648.0, 1.0));
        check_f32(((float)k + 0.5f) / 2147483648.0f);
        check_f64((2147483648.0 - (double)k - 0.5) / 2147483648.0);
        check_f64((-2147483648.0 + (double)k + 0.5) / 2147483648.0);
    }
}

static void integers_round_half_to_even(void)
{
    int64_t x;
    int k;
    for (k = -32768; k <= 32767; k++)
        for (x = -2; x <= 2; x++) {
            const int64_t near_tie = (int64_t)k * 65536 + 32768 + x;
            if (near_tie >= INT32_MIN && near_tie <= INT32_MAX)
                check_i32((int32_t)near_tie);
        }
    random_state = 16;
    for (k = 0; k < 100000; k++)
        check_i32((int32_t)(uint32_t)next_random());
}

static void extremes_saturate_and_nan_is_zero(void)
{
    static const double extremes[] = {0.0, -0.0, 1.0, -1.0, 0.999999, -0.999999, 2.0, -2.0, 1e10, -1e10, 1e-40, -1e-40,
                                      32767.0 / 32768.0, 32766.5 / 32768.0, 32767.49 / 32768.0, 32767.5 / 32768.0,
                                      -32768.49 / 32768.0, -32768.5 / 32768.0, 1e30, -1e30, 2147483647.0 / 2147483648.0,
                                      2147483646.5 / 2147483648.0, 2147483647.5 / 2147483648.0, INFINITY, -INFINITY, NAN};
    static const int32_t integers[] = {INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, 0, -1, 1, 32767 * 65536 + 32767,
                                       32767 * 65536 + 32768, 32767 * 65536 + 32769};
    const float denormal = 1e-45f, huge = 3.4028234e38f;
    const double too_wide = 1e300;
    float narrowed;
    size_t i;
    for (i = 0; i < COUNT_OF(extremes); i++) {
        check_f64(extremes[i]);
        check_f32((float)extremes[i]);
    }
    check_f32(denormal);
    check_f32(huge);
    check_f32(-huge);
    for (i = 0; i < COUNT_OF(integers); i++)
        check_i32(integers[i]);
    pcmring_convert(&narrowed, PCMRING_FLOAT32, &too_wide, PCMRING_FLOAT64, 1);
    CHECK(isinf(narrowed)); /* floats do not saturate: values past full scale are legal there */
    random_state = 64;
    for (i = 0; i < 200000; i++) { /* any bit pattern: every exponent, NaN payloads, denormals */
        const uint64_t bits = next_random();
        const uint32_t bits32 = (uint32_t)bits;
        double d;
        float f;
        memcpy(&d, &bits, 8);
        memcpy(&f, &bits32, 4);
        check_f32(f);
        if (isnan(d) || fabs(d) < 1e38)
            check_f64(d);
        check_f64((double)(int64_t)bits / 4611686018427387904.0); /* within +-2.0 */
    }
}

static void long_runs_convert_like_single_samples(void)
{
    /* the vectorised body, its remainder and an offset start give the same as one by one */
    static double in[1000], whole[1000], single[1000];
    static const uint32_t formats[] = {PCMRING_INT16, PCMRING_INT32, PCMRING_FLOAT32, PCMRING_FLOAT64};
    size_t a, b, i, n;
    random_state = 7;
    for (a = 0; a < 4; a++) {
        const uint32_t from = formats[a], from_bytes = pcmring_sample_bytes(from);
        for (i = 0; i < 1000; i++) {
            const double x = (double)(int64_t)next_random() / 4611686018427387904.0;
            pcmring_convert((uint8_t *)in + i * from_bytes, from, &x, PCMRING_FLOAT64, 1);
        }
        for (b = 0; b < 4; b++) {
            const uint32_t to = formats[b], to_bytes = pcmring_sample_bytes(to);
            for (i = 0; i < 1000; i++)
                pcmring_convert((uint8_t *)single + i * to_bytes, to, (uint8_t *)in + i * from_bytes, from, 1);
            for (n = 0; n < 40; n++) {
                memset(whole, 0x77, sizeof whole);
                pcmring_convert(whole, to, (uint8_t *)in + n * from_bytes, from, n * 24);
                BYTES(whole, (uint8_t *)single + n * to_bytes, n * 24 * to_bytes);
                EQ(((uint8_t *)whole)[n * 24 * to_bytes], 0x77);
            }
        }
    }
}

static void a_converted_write_equals_a_write_of_converted_samples(void)
{
    /* longer than the converting stage (4 KiB), across the wrap, at odd indexes */
    static const uint32_t formats[] = {PCMRING_INT16, PCMRING_INT32, PCMRING_FLOAT32, PCMRING_FLOAT64};
    static const uint32_t channels[] = {1, 3, 64};
    size_t a, b, c;
    for (a = 0; a < 4; a++)
        for (b = 0; b < 4; b++)
            for (c = 0; c < COUNT_OF(channels); c++) {
                const uint64_t capacity = 2600 / channels[c] + 1;
                const pcmring_config config = config_of(capacity, channels[c], formats[a], PCMRING_OVERWRITE);
                uint64_t start, n;
                box x;
                box_open(&x, &config);
                for (n = 0; n < 4; n++) {
                    const uint64_t frames = n == 0 ? capacity / 3 : n == 1 ? capacity : n == 2 ? capacity + 7 : 1;
                    put_as(&x.ring, formats[b], frames);
                    EQ(pcmring_latest(&x.ring, got_block, capacity, &start), n == 0 ? frames : capacity);
                    check_frames(&x.ring, got_block, start, n == 0 ? frames : capacity);
                }
                box_close(&x);
            }
}

/* ---- what is held, at every shape ------------------------------------------------------------------------ */

static void body_held(const shape *s)
{
    const pcmring_config config = config_of_shape(s, PCMRING_OVERWRITE);
    uint64_t lengths[LENGTHS], written = s->start, blocks = 0, longest = 0, shortest = 0, start, n;
    size_t i;
    box b;
    box_open(&b, &config);
    lengths_of(s, lengths);
    for (i = 0; i < LENGTHS; i++) {
        const uint64_t frames = lengths[i];
        uint64_t held;
        EQ(put_as(&b.ring, s->source, frames), frames);
        written += frames;
        if (frames) {
            blocks++;
            longest = frames > longest ? frames : longest;
            shortest = shortest == 0 || frames < shortest ? frames : shortest;
        }
        held = written - s->start < s->capacity ? written - s->start : s->capacity;
        EQ(pcmring_frames_written(&b.ring), written);
        EQ(pcmring_oldest(&b.ring), written - held);
        EQ(pcmring_load(&b.ring.control->reserved, relaxed), written);
        EQ(b.ring.control->write_index, written % s->slots);
        EQ(pcmring_load(&b.ring.control->blocks, relaxed), blocks);
        EQ(pcmring_load(&b.ring.control->max_block, relaxed), longest);
        EQ(pcmring_load(&b.ring.control->min_block, relaxed), shortest);
        EQ(pcmring_first_whole(&b.ring), written > s->slots ? written - s->slots : 0);
        for (n = 0; n <= s->capacity + 1; n++) {
            const uint64_t expected = n < held ? n : held;
            memset(got_block, 0x5a, (size_t)((n + 1) * b.ring.frame_bytes));
            EQ(pcmring_latest(&b.ring, got_block, n, &start), expected);
            EQ(start, written - expected);
            check_frames(&b.ring, got_block, start, expected);
            EQ(((uint8_t *)got_block)[expected * b.ring.frame_bytes], 0x5a); /* and not a byte more */
        }
    }
    box_close(&b);
}

static void the_newest_capacity_frames_are_held_whatever_the_block_lengths(void) { for_each_shape(body_held); }

static void body_ranges(const shape *s)
{
    const pcmring_config config = config_of_shape(s, PCMRING_OVERWRITE);
    uint64_t from, frames, written, step;
    box b;
    box_open(&b, &config);
    for (step = 0; step < 2 * s->slots + 2; step += s->slots / 2 + 1) { /* several places of the wrap */
        put_as(&b.ring, s->source, step ? s->slots / 2 + 1 : s->capacity);
        written = pcmring_frames_written(&b.ring);
        for (from = pcmring_oldest(&b.ring); from <= written; from++)
            for (frames = 0; frames <= written - from; frames += 1 + frames / 3) {
                memset(got_block, 0x5a, (size_t)((frames + 1) * b.ring.frame_bytes));
                EQ(pcmring_copy_range(&b.ring, got_block, from, frames), 0);
                check_frames(&b.ring, got_block, from, frames);
                EQ(((uint8_t *)got_block)[frames * b.ring.frame_bytes], 0x5a);
            }
    }
    box_close(&b);
}

static void copy_range_gives_any_range_that_is_held(void) { for_each_shape(body_ranges); }

static void body_readers(const shape *s)
{
    const pcmring_config config = config_of_shape(s, PCMRING_OVERWRITE);
    pcmring_reader all, few, windows;
    uint64_t lengths[LENGTHS], delivered_all = 0, delivered_few = 0, first, n, hop;
    size_t i;
    box b;
    box_open(&b, &config);
    lengths_of(s, lengths);
    pcmring_reader_open(&all, s->start);
    pcmring_reader_open(&few, s->start);
    pcmring_reader_open(&windows, s->start);
    for (i = 0; i < LENGTHS; i++) {
        uint64_t oldest, written, before;
        put_as(&b.ring, s->source, lengths[i]);
        oldest = pcmring_oldest(&b.ring);
        written = pcmring_frames_written(&b.ring);

        before = all.position > oldest ? all.position : oldest;
        EQ(pcmring_available(&b.ring, &all), written - before);
        n = pcmring_read(&b.ring, &all, got_block, 2 * s->slots + 9, PCMRING_NEVER, &first);
        EQ(n, written - before);
        EQ(first, before);
        EQ(all.position, written);
        check_frames(&b.ring, got_block, first, n);
        delivered_all += n;
        EQ(pcmring_available(&b.ring, &all), 0);

        before = few.position > oldest ? few.position : oldest;
        n = pcmring_read(&b.ring, &few, got_block, 2, PCMRING_NEVER, &first);
        EQ(first, before);
        EQ(n, written - before < 2 ? written - before : 2);
        check_frames(&b.ring, got_block, first, n);
        delivered_few += n;

        for (hop = 0; hop < 3; hop++) { /* windows of 5 that move on by 0, 1 and 2 */
            before = windows.position > oldest ? windows.position : oldest;
            n = pcmring_read(&b.ring, &windows, got_block, 5, hop, &first);
            EQ(first, before);
            EQ(n, written - before < 5 ? written - before : 5);
            check_frames(&b.ring, got_block, first, n);
            EQ(windows.position, first + (hop < n ? hop : n));
        }
        EQ(pcmring_delivered(&all), delivered_all);
        EQ(all.position, s->start + delivered_all + all.lost);
        EQ(pcmring_delivered(&few), delivered_few);
        EQ(few.position, s->start + delivered_few + few.lost);
        CHECK(few.peak <= s->capacity);
    }
    CHECK(all.lost > 0); /* the long block overtook it */
    CHECK(few.lost >= all.lost);
    box_close(&b);
}

static void readers_get_what_is_left_in_order_and_count_the_rest_as_lost(void) { for_each_shape(body_readers); }

static void body_torn(const shape *s)
{
    /* a producer in mid-write: `reserved` is ahead of `committed` by some frames */
    const pcmring_config config = config_of_shape(s, PCMRING_OVERWRITE);
    const uint64_t slack = s->slots - s->capacity; /* frames it may write without touching what is held */
    uint64_t ahead, written, first, n, start;
    pcmring_reader reader;
    box b;
    box_open(&b, &config);
    put_as(&b.ring, s->source, s->slots + s->capacity + 3);
    written = pcmring_frames_written(&b.ring);
    for (ahead = 0; ahead <= s->slots + 2; ahead++) {
        const uint64_t cut = ahead <= slack ? 0 : ahead - slack < s->capacity ? ahead - slack : s->capacity;
        const uint64_t oldest = written - s->capacity;
        pcmring_store(&b.ring.control->reserved, written + ahead, relaxed);
        EQ(pcmring_first_whole(&b.ring), written + ahead - s->slots);
        EQ(pcmring_copy_range(&b.ring, got_block, oldest, s->capacity), cut);
        check_frames(&b.ring, (uint8_t *)got_block + cut * b.ring.frame_bytes, oldest + cut, s->capacity - cut);
        pcmring_reader_open(&reader, oldest);
        n = pcmring_read(&b.ring, &reader, got_block, s->capacity, PCMRING_NEVER, &first);
        EQ(n, s->capacity - cut);
        EQ(first, oldest + cut);
        EQ(reader.lost, cut);
        EQ(reader.position, written);
        check_frames(&b.ring, got_block, first, n);
        n = pcmring_latest(&b.ring, got_block, s->capacity, &start);
        EQ(n, s->capacity - cut);
        EQ(start, oldest + cut);
        check_frames(&b.ring, got_block, start, n);
    }
    pcmring_store(&b.ring.control->reserved, written, relaxed);
    box_close(&b);
}

static void frames_the_producer_is_overwriting_are_cut_off_and_counted(void) { for_each_shape(body_torn); }

static void a_reader_overtaken_throughout_a_small_read_goes_on_behind_the_tear(void)
{
    const pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_reader reader;
    uint64_t first;
    box b;
    box_open(&b, &config);
    put(&b.ring, 32);
    pcmring_store(&b.ring.control->reserved, 32 + 5, relaxed); /* frames 16..20 are being overwritten */
    pcmring_reader_open(&reader, 0);
    /* two frames at a time: 16-17, 18-19 are torn whole, of 20-21 the second is whole */
    EQ(pcmring_read(&b.ring, &reader, got_block, 2, PCMRING_NEVER, &first), 1);
    EQ(first, 21);
    EQ(reader.lost, 21);
    check_frames(&b.ring, got_block, 21, 1);
    pcmring_store(&b.ring.control->reserved, 32 + 12, relaxed);
    EQ(pcmring_read(&b.ring, &reader, got_block, 1, PCMRING_NEVER, &first), 0); /* 22-25: the tries are used up */
    EQ(first, 22 + PCMRING_READ_ATTEMPTS);
    EQ(reader.position, first);
    EQ(reader.lost, 21 + PCMRING_READ_ATTEMPTS);
    EQ(pcmring_delivered(&reader), 1);
    box_close(&b);
}

static void a_read_of_nothing_still_reports_what_is_gone(void)
{
    const pcmring_config config = config_of(4, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_reader reader;
    uint64_t first;
    box b;
    box_open(&b, &config);
    pcmring_reader_open(&reader, 0);
    EQ(pcmring_read(&b.ring, &reader, got_block, 0, PCMRING_NEVER, &first), 0);
    EQ(first, 0);
    put(&b.ring, 10);
    EQ(pcmring_read(&b.ring, &reader, got_block, 0, PCMRING_NEVER, &first), 0);
    EQ(first, 6);
    EQ(reader.lost, 6);
    EQ(pcmring_available(&b.ring, &reader), 4);
    EQ(reader.peak, 4);
    box_close(&b);
}

/* ---- policies and guards -------------------------------------------------------------------------------------- */

static uint64_t lost_of(const pcmring_ring *r, int cause) { return pcmring_load(&r->control->lost[cause], relaxed); }

static void body_guarded(const shape *s)
{
    uint32_t policy;
    for (policy = PCMRING_DROP; policy <= PCMRING_BLOCK; policy++) {
        const pcmring_config config = config_of_shape(s, policy);
        uint64_t lengths[LENGTHS], offered = 0, dropped = 0, first, n;
        pcmring_reader guarded, loose;
        size_t i;
        box b;
        box_open(&b, &config);
        lengths_of(s, lengths);
        EQ(pcmring_guard_open(&b.ring, &guarded, PCMRING_NEVER, 7), 0);
        EQ(guarded.start, s->start);
        pcmring_reader_open(&loose, s->start);
        for (i = 0; i < LENGTHS; i++) {
            const uint64_t frames = lengths[i], written = pcmring_frames_written(&b.ring);
            const uint64_t space = guarded.position + s->capacity - written, accepted = frames < space ? frames : space;
            EQ(pcmring_space(&b.ring), space);
            EQ(put_as(&b.ring, s->source, frames), accepted);
            EQ(pcmring_frames_written(&b.ring), written + accepted);
            EQ(pcmring_lowest_guard(&b.ring), guarded.position);
            offered += frames;
            dropped += policy == PCMRING_DROP ? frames - accepted : 0;
            EQ(lost_of(&b.ring, PCMRING_DROPPED), dropped);
            if (i % 3 == 2) { /* otherwise it stays full and the next block meets no space */
                n = pcmring_read(&b.ring, &guarded, got_block, s->capacity / 2 + 1, PCMRING_NEVER, &first);
                CHECK(n > 0 || written + accepted == first);
                EQ(first + n, guarded.position);
                check_frames(&b.ring, got_block, first, n);
            }
            pcmring_read(&b.ring, &loose, got_block, 1, PCMRING_NEVER, &first);
        }
        for (i = 0; i <= s->capacity && (n = pcmring_read(&b.ring, &guarded, got_block, 3, 2, &first)) > 0; i++)
            check_frames(&b.ring, got_block, first, n);
        EQ(guarded.lost, 0);
        EQ(guarded.position, pcmring_frames_written(&b.ring));
        if (policy == PCMRING_DROP)
            EQ(pcmring_frames_written(&b.ring) - s->start + dropped, offered);
        pcmring_guard_close(&b.ring, &guarded);
        EQ(put_as(&b.ring, s->source, 2 * s->slots + 3), 2 * s->slots + 3); /* nobody to protect any more */
        box_close(&b);
    }
}

static void a_guarded_reader_loses_nothing_and_bounds_the_space(void) { for_each_shape(body_guarded); }

static void drop_takes_what_fits_and_records_the_rest_once(void)
{
    const pcmring_config config = config_of(5, 1, PCMRING_INT16, PCMRING_DROP);
    pcmring_reader reader;
    pcmring_gap gaps[8];
    uint64_t first;
    box b;
    box_open(&b, &config);
    pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
    EQ(put(&b.ring, 3), 3);
    EQ(put(&b.ring, 4), 2);
    EQ(put(&b.ring, 4), 0);
    EQ(put(&b.ring, 1), 0);
    EQ(pcmring_gaps(&b.ring, gaps, 8), 1); /* one hole before frame 5, however many blocks fell in */
    EQ(gaps[0].position, 5);
    EQ(gaps[0].frames, 7);
    EQ(gaps[0].cause, PCMRING_DROPPED);
    EQ(gaps[0].exact, 1);
    EQ(pcmring_read(&b.ring, &reader, got_block, 2, PCMRING_NEVER, &first), 2);
    EQ(put(&b.ring, 3), 2);
    EQ(pcmring_gaps(&b.ring, gaps, 8), 2);
    EQ(gaps[1].position, 7);
    EQ(gaps[1].frames, 1);
    EQ(lost_of(&b.ring, PCMRING_DROPPED), 8);
    EQ(pcmring_load(&b.ring.control->blocks, relaxed), 3); /* blocks that stored nothing do not count */
    box_close(&b);
}

static void block_leaves_the_rest_with_the_caller(void)
{
    const pcmring_config config = config_of(5, 1, PCMRING_INT16, PCMRING_BLOCK);
    pcmring_reader reader;
    pcmring_gap gap;
    box b;
    box_open(&b, &config);
    pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
    EQ(put(&b.ring, 9), 5);
    EQ(put(&b.ring, 4), 0);
    EQ(pcmring_space(&b.ring), 0);
    EQ(pcmring_gaps(&b.ring, &gap, 1), 0);
    EQ(lost_of(&b.ring, PCMRING_DROPPED), 0);
    box_close(&b);
}

static void without_guarded_readers_drop_and_block_take_everything(void)
{
    uint32_t policy;
    for (policy = PCMRING_DROP; policy <= PCMRING_BLOCK; policy++) {
        const pcmring_config config = config_of(5, 1, PCMRING_INT16, policy);
        pcmring_reader loose;
        uint64_t first;
        box b;
        box_open(&b, &config);
        pcmring_reader_open(&loose, 0);
        EQ(put(&b.ring, 13), 13);
        EQ(put(&b.ring, 4), 4);
        EQ(pcmring_read(&b.ring, &loose, got_block, 9, PCMRING_NEVER, &first), 5);
        EQ(loose.lost, 12);
        box_close(&b);
    }
}

static void sixty_four_guards_fit_and_the_slowest_counts(void)
{
    const pcmring_config config = config_of(10, 1, PCMRING_INT16, PCMRING_DROP);
    pcmring_reader readers[PCMRING_GUARD_SLOTS], extra;
    uint64_t first;
    uint32_t i;
    box b;
    box_open(&b, &config);
    for (i = 0; i < PCMRING_GUARD_SLOTS; i++)
        EQ(pcmring_guard_open(&b.ring, &readers[i], PCMRING_NEVER, 100 + i), 0);
    memset(&extra, 0x33, sizeof extra);
    EQ(pcmring_guard_open(&b.ring, &extra, PCMRING_NEVER, 1), -1);
    EQ(pcmring_load(&b.ring.control->guard_high, relaxed), 64);
    EQ(b.ring.guards[63].owner_pid, 163);
    EQ(put(&b.ring, 12), 10);
    for (i = 0; i < PCMRING_GUARD_SLOTS; i++) {
        EQ(pcmring_space(&b.ring), 0); /* each of them alone holds the ring */
        EQ(pcmring_read(&b.ring, &readers[i], got_block, i == 40 ? 4 : 7, PCMRING_NEVER, &first), i == 40 ? 4 : 7);
    }
    EQ(pcmring_space(&b.ring), 4);
    EQ(pcmring_lowest_guard(&b.ring), 4);
    pcmring_guard_close(&b.ring, &readers[40]);
    EQ(pcmring_space(&b.ring), 7);
    EQ(pcmring_guard_open(&b.ring, &extra, PCMRING_NEVER, 1), 0); /* takes the free slot */
    CHECK(extra.guard == &b.ring.guards[40]);
    EQ(extra.start, 10);
    pcmring_guard_close(&b.ring, &extra);
    pcmring_guard_close(&b.ring, &extra); /* harmless */
    box_close(&b);
}

static void a_new_guard_takes_effect_although_space_was_known_before(void)
{
    const pcmring_config config = config_of(10, 1, PCMRING_INT16, PCMRING_DROP);
    pcmring_reader late, early;
    uint64_t first;
    box b;
    box_open(&b, &config);
    EQ(put(&b.ring, 8), 8); /* the producer has noted: no guard, no limit */
    EQ(pcmring_guard_open(&b.ring, &late, PCMRING_NEVER, 0), 0);
    EQ(late.position, 8);
    EQ(put(&b.ring, 12), 10);
    EQ(pcmring_read(&b.ring, &late, got_block, 10, PCMRING_NEVER, &first), 10);
    EQ(pcmring_space(&b.ring), 10);
    EQ(pcmring_guard_open(&b.ring, &early, 9, 0), 0); /* behind the other, still held */
    EQ(early.start, 9);
    EQ(pcmring_space(&b.ring), 1);
    EQ(put(&b.ring, 3), 1);
    EQ(pcmring_read(&b.ring, &early, got_block, 20, PCMRING_NEVER, &first), 10);
    EQ(first, 9);
    check_frames(&b.ring, got_block, 9, 10);
    EQ(early.lost, 0);
    box_close(&b);
}

static void a_guard_behind_the_oldest_frame_blocks_until_it_reads(void)
{
    const pcmring_config config = config_of(4, 1, PCMRING_INT16, PCMRING_DROP);
    pcmring_reader reader;
    uint64_t first;
    box b;
    box_open(&b, &config);
    put(&b.ring, 9);
    EQ(pcmring_guard_open(&b.ring, &reader, 2, 0), 0);
    EQ(pcmring_space(&b.ring), 0);
    EQ(pcmring_read(&b.ring, &reader, got_block, 1, PCMRING_NEVER, &first), 1);
    EQ(first, 5);
    EQ(reader.lost, 3);
    EQ(pcmring_space(&b.ring), 1);
    box_close(&b);
}

static void overwrite_keeps_no_guards(void)
{
    const pcmring_config config = config_of(4, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_reader reader;
    box b;
    box_open(&b, &config);
    EQ(pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0), -1);
    EQ(pcmring_space(&b.ring), PCMRING_NEVER);
    put(&b.ring, 3);
    EQ(pcmring_space(&b.ring), PCMRING_NEVER - 3);
    box_close(&b);
}

static void a_closed_guard_reads_on_unguarded(void)
{
    const pcmring_config config = config_of(4, 1, PCMRING_INT16, PCMRING_DROP);
    pcmring_reader reader;
    uint64_t first;
    box b;
    box_open(&b, &config);
    EQ(pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0), 0);
    put(&b.ring, 4);
    pcmring_guard_close(&b.ring, &reader);
    EQ(put(&b.ring, 3), 3);
    EQ(pcmring_read(&b.ring, &reader, got_block, 9, PCMRING_NEVER, &first), 4);
    EQ(first, 3);
    EQ(reader.lost, 3);
    box_close(&b);
}

static void peak_fill_is_the_most_a_guarded_reader_had_unread(void)
{
    const pcmring_config config = config_of(10, 1, PCMRING_INT16, PCMRING_BLOCK);
    pcmring_reader guarded, loose;
    uint64_t first;
    box b;
    box_open(&b, &config);
    EQ(pcmring_guard_open(&b.ring, &guarded, PCMRING_NEVER, 0), 0);
    pcmring_reader_open(&loose, 0);
    put(&b.ring, 3);
    pcmring_read(&b.ring, &guarded, got_block, 1, PCMRING_NEVER, &first);
    EQ(pcmring_load(&b.ring.control->peak_fill, relaxed), 3);
    put(&b.ring, 6);
    pcmring_read(&b.ring, &loose, got_block, 1, PCMRING_NEVER, &first);
    EQ(loose.peak, 9);
    EQ(pcmring_load(&b.ring.control->peak_fill, relaxed), 3); /* a loose reader's laziness is its own */
    pcmring_read(&b.ring, &guarded, got_block, 8, PCMRING_NEVER, &first);
    EQ(pcmring_load(&b.ring.control->peak_fill, relaxed), 8);
    EQ(guarded.peak, 8);
    box_close(&b);
}

/* ---- the ledger ---------------------------------------------------------------------------------------------- */

static void gaps_merge_only_at_one_position_of_one_kind(void)
{
    const pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_gap gaps[16];
    box b;
    box_open(&b, &config);
    pcmring_add_gap(&b.ring, 10, PCMRING_DEVICE_OVERFLOW, 0);
    pcmring_add_gap(&b.ring, 5, PCMRING_DEVICE_OVERFLOW, 0); /* merges */
    pcmring_add_gap(&b.ring, 3, PCMRING_DEVICE_OVERFLOW, 1); /* another exactness */
    pcmring_add_gap(&b.ring, 2, PCMRING_REOPENED, 1);        /* another cause */
    put(&b.ring, 4);
    pcmring_add_gap(&b.ring, 1, PCMRING_REOPENED, 1); /* another position */
    EQ(pcmring_gaps(&b.ring, gaps, 16), 4);
    EQ(gaps[0].frames, 15);
    EQ(gaps[0].cause, PCMRING_DEVICE_OVERFLOW);
    EQ(gaps[0].exact, 0);
    EQ(gaps[1].frames, 3);
    EQ(gaps[1].exact, 1);
    EQ(gaps[2].frames, 2);
    EQ(gaps[2].cause, PCMRING_REOPENED);
    EQ(gaps[2].position, 0);
    EQ(gaps[3].position, 4);
    EQ(gaps[3].frames, 1);
    EQ(lost_of(&b.ring, PCMRING_DEVICE_OVERFLOW), 18);
    EQ(lost_of(&b.ring, PCMRING_REOPENED), 3);
    EQ(lost_of(&b.ring, PCMRING_DROPPED), 0);
    EQ(lost_of(&b.ring, PCMRING_PAUSED), 0);
    box_close(&b);
}

static void a_full_ledger_keeps_the_newest_and_the_totals(void)
{
    size_t s;
    for (s = 0; s < COUNT_OF(STARTS); s++) {
        pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
        pcmring_gap gaps[16];
        uint64_t i, n;
        box b;
        config.first_position = STARTS[s];
        box_open(&b, &config);
        EQ(b.ring.control->gap_slots, 8);
        for (i = 0; i < 21; i++) {
            pcmring_add_gap(&b.ring, i + 1, PCMRING_PAUSED, 1);
            put(&b.ring, 3);
            for (n = 0; n < 10; n++) { /* any number asked for: the newest of them, oldest first */
                const uint64_t held = i + 1 < 8 ? i + 1 : 8, expected = n < held ? n : held;
                uint64_t k;
                memset(gaps, 0x77, sizeof gaps);
                EQ(pcmring_gaps(&b.ring, gaps, (uint32_t)n), expected);
                for (k = 0; k < expected; k++) {
                    const uint64_t which = i + 1 - expected + k;
                    EQ(gaps[k].position, STARTS[s] + 3 * which);
                    EQ(gaps[k].frames, which + 1);
                    EQ(gaps[k].cause, PCMRING_PAUSED);
                }
                EQ(gaps[expected].position, 0x7777777777777777u);
            }
        }
        EQ(lost_of(&b.ring, PCMRING_PAUSED), 231);
        EQ(pcmring_gaps_made(&b.ring), 21);
        box_close(&b);
    }
}

static void a_gap_does_not_merge_into_an_older_lap_of_the_table(void)
{
    /* the entry after the newest is the oldest: an off-by-one would compare with that */
    const pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_gap gaps[8];
    uint64_t i;
    box b;
    box_open(&b, &config);
    for (i = 0; i < 9; i++)
        pcmring_add_gap(&b.ring, 1, (uint32_t)(i % 2 ? PCMRING_PAUSED : PCMRING_REOPENED), 1); /* all at position 0 */
    EQ(pcmring_gaps(&b.ring, gaps, 8), 8);
    for (i = 0; i < 8; i++)
        EQ(gaps[i].frames, 1);
    box_close(&b);
}

static void a_snapshot_ends_although_a_producer_died_in_mid_change(void)
{
    pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    const pcmring_when when = {1.0, 2};
    pcmring_gap gaps[8];
    pcmring_stamp stamps[8];
    int wake;
    box b;
    config.samplerate = 16000.0;
    box_open(&b, &config);
    fill(source_block, PCMRING_INT16, 1, 0, 1);
    pcmring_write(&b.ring, source_block, PCMRING_INT16, 1, &when, &wake);
    pcmring_add_gap(&b.ring, 4, PCMRING_PAUSED, 1);
    pcmring_store(&b.ring.control->gap_seq, 3, relaxed); /* in the middle of the second */
    pcmring_store(&b.ring.control->stamp_seq, 3, relaxed);
    EQ(pcmring_gaps(&b.ring, gaps, 8), 1);
    EQ(gaps[0].frames, 4);
    EQ(pcmring_stamps(&b.ring, stamps, 8), 1);
    pcmring_add_gap(&b.ring, 5, PCMRING_REOPENED, 1); /* the next one mends the number */
    EQ(pcmring_load(&b.ring.control->gap_seq, relaxed), 4);
    EQ(pcmring_gaps(&b.ring, gaps, 8), 2);
    EQ(gaps[1].frames, 5);
    box_close(&b);
}

/* ---- time stamps ------------------------------------------------------------------------------------------------ */

static uint64_t put_at(pcmring_ring *r, uint64_t frames, double adc_s, int64_t mono_ns)
{
    const pcmring_when when = {adc_s, mono_ns};
    int wake;
    fill(source_block, r->format, r->channels, pcmring_frames_written(r), frames);
    return pcmring_write(r, source_block, r->format, frames, &when, &wake);
}

static void stamps_come_every_interval_and_hold_what_was_given(void)
{
    pcmring_config config = config_of(80, 1, PCMRING_INT16, PCMRING_OVERWRITE); /* 8 stamps, every 11 or 12 frames */
    pcmring_stamp stamps[16];
    uint64_t i, interval;
    uint32_t n;
    box b;
    config.samplerate = 16000.0;
    config.first_position = 1000;
    box_open(&b, &config);
    interval = b.ring.control->stamp_interval;
    CHECK(interval > 10 && interval < 15);
    for (i = 0; i < 12; i++)
        put_at(&b.ring, 5, (double)i * 0.5, (int64_t)i * -7);
    /* blocks begin at 1000, 1005, 1010, 1015 …; stamped: the first, then the first at or past the interval */
    n = pcmring_stamps(&b.ring, stamps, 16);
    EQ(n, 4);
    for (i = 0; i < n; i++) {
        const double adc_s = (double)(3 * i) * 0.5;
        EQ(stamps[i].position, 1000 + 15 * i);
        EQ(stamps[i].frames, 5);
        BYTES(&stamps[i].adc_s, &adc_s, 8);
        EQ(stamps[i].mono_ns, -7 * (int64_t)(3 * i));
    }
    EQ(b.ring.control->next_stamp, 1045 + interval);
    box_close(&b);
}

static void a_block_exactly_at_the_interval_is_stamped(void)
{
    pcmring_config config = config_of(80, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_stamp stamps[16];
    box b;
    config.samplerate = 16000.0;
    box_open(&b, &config);
    put_at(&b.ring, b.ring.control->stamp_interval - 1, 0.0, 1);
    put_at(&b.ring, 1, 0.0, 2);
    put_at(&b.ring, 1, 0.0, 3);
    EQ(pcmring_stamps(&b.ring, stamps, 16), 2);
    EQ(stamps[1].position, b.ring.control->stamp_interval);
    EQ(stamps[1].mono_ns, 3);
    box_close(&b);
}

static void a_full_stamp_table_spans_the_capacity(void)
{
    uint64_t block;
    for (block = 1; block < 100; block += 6) {
        pcmring_config config = config_of(80, 1, PCMRING_INT16, PCMRING_OVERWRITE);
        pcmring_stamp stamps[16];
        uint64_t i, k;
        uint32_t n = 0;
        box b;
        config.samplerate = 8000.0;
        box_open(&b, &config);
        for (i = 0; i < 300; i++) {
            put_at(&b.ring, block, 0.0, (int64_t)i);
            n = pcmring_stamps(&b.ring, stamps, 16);
            CHECK(n >= 1 && n <= 8);
            CHECK(stamps[0].position <= pcmring_oldest(&b.ring)); /* every frame held lies past a stamp */
            for (k = 0; k < n; k++)
                EQ(stamps[k].position, (uint64_t)stamps[k].mono_ns * block);
        }
        EQ(n, 8);
        EQ(pcmring_stamps(&b.ring, stamps, 3), 3); /* the newest three */
        EQ(pcmring_stamps(&b.ring, stamps + 3, 1), 1);
        EQ(stamps[2].position, stamps[3].position);
        box_close(&b);
    }
}

static void the_block_after_a_gap_is_stamped(void)
{
    pcmring_config config = config_of(1600, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_stamp stamps[16];
    box b;
    config.samplerate = 16000.0;
    box_open(&b, &config);
    put_at(&b.ring, 4, 0.0, 10);
    put_at(&b.ring, 4, 0.0, 11);
    EQ(pcmring_stamps(&b.ring, stamps, 16), 1);
    pcmring_add_gap(&b.ring, 100, PCMRING_DEVICE_OVERFLOW, 0);
    put_at(&b.ring, 4, 0.0, 12);
    EQ(pcmring_stamps(&b.ring, stamps, 16), 2);
    EQ(stamps[1].position, 8);
    EQ(stamps[1].mono_ns, 12);
    put_at(&b.ring, 4, 0.0, 13);
    EQ(pcmring_stamps(&b.ring, stamps, 16), 2);
    box_close(&b);
}

static void a_block_without_a_time_is_stamped_now(void)
{
    pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_stamp stamp;
    int64_t before, after;
    box b;
    config.samplerate = 16000.0;
    box_open(&b, &config);
    before = pcmring_now_ns();
    put(&b.ring, 3);
    after = pcmring_now_ns();
    EQ(pcmring_stamps(&b.ring, &stamp, 1), 1);
    CHECK(stamp.mono_ns >= before && stamp.mono_ns <= after);
    CHECK(stamp.adc_s == 0.0); /* unknown */
    box_close(&b);
}

static void without_a_samplerate_no_stamps_are_kept(void)
{
    const pcmring_config config = config_of(16, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pcmring_stamp stamp;
    box b;
    box_open(&b, &config);
    put_at(&b.ring, 3, 1.0, 1);
    pcmring_add_gap(&b.ring, 1, PCMRING_PAUSED, 1);
    put_at(&b.ring, 3, 1.0, 1);
    EQ(pcmring_stamps(&b.ring, &stamp, 1), 0);
    EQ(pcmring_load(&b.ring.control->stamp_seq, relaxed), 0);
    box_close(&b);
}

/* ---- clear and close --------------------------------------------------------------------------------------------- */

static void clear_forgets_what_is_held_and_positions_go_on(void)
{
    size_t s;
    for (s = 0; s < COUNT_OF(STARTS); s++) {
        pcmring_config config = config_of(7, 2, PCMRING_INT16, PCMRING_OVERWRITE);
        const uint64_t at = STARTS[s];
        pcmring_reader reader;
        uint64_t first, start;
        box b;
        config.first_position = at;
        box_open(&b, &config);
        pcmring_reader_open(&reader, at);
        put(&b.ring, 5);
        EQ(pcmring_read(&b.ring, &reader, got_block, 2, PCMRING_NEVER, &first), 2);
        pcmring_clear(&b.ring);
        pcmring_clear(&b.ring);
        EQ(pcmring_oldest(&b.ring), at + 5);
        EQ(pcmring_frames_written(&b.ring), at + 5);
        EQ(pcmring_latest(&b.ring, got_block, 7, &start), 0);
        EQ(start, at + 5);
        EQ(pcmring_available(&b.ring, &reader), 0);
        put(&b.ring, 4);
        EQ(pcmring_oldest(&b.ring), at + 5);
        EQ(pcmring_available(&b.ring, &reader), 4);
        EQ(pcmring_latest(&b.ring, got_block, 7, &start), 4);
        check_frames(&b.ring, got_block, at + 5, 4);
        EQ(pcmring_read(&b.ring, &reader, got_block, 9, PCMRING_NEVER, &first), 4);
        EQ(first, at + 5);
        EQ(reader.lost, 3);
        EQ(pcmring_delivered(&reader), 6);
        put(&b.ring, 11); /* the floor falls behind again */
        EQ(pcmring_oldest(&b.ring), at + 13);
        box_close(&b);
    }
}

static void a_look_at_the_count_before_a_clear_stays_consistent(void)
{
    /* a reader that saw 3 frames, then another thread stored more and cleared: it holds none, not minus two */
    const pcmring_config config = config_of(7, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    box b;
    box_open(&b, &config);
    put(&b.ring, 5);
    pcmring_clear(&b.ring);
    EQ(pcmring_oldest_at_(&b.ring, 3), 3);
    EQ(pcmring_oldest_at_(&b.ring, 5), 5);
    EQ(pcmring_oldest_at_(&b.ring, 6), 5);
    box_close(&b);
}

static void clear_gives_guarded_space_back(void)
{
    const pcmring_config config = config_of(6, 1, PCMRING_INT16, PCMRING_DROP);
    pcmring_reader reader;
    uint64_t first;
    box b;
    box_open(&b, &config);
    pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
    EQ(put(&b.ring, 9), 6);
    EQ(pcmring_space(&b.ring), 0);
    pcmring_clear(&b.ring);
    EQ(pcmring_space(&b.ring), 6);
    EQ(put(&b.ring, 4), 4);
    EQ(pcmring_read(&b.ring, &reader, got_block, 9, PCMRING_NEVER, &first), 4);
    EQ(first, 6);
    EQ(reader.lost, 6);
    check_frames(&b.ring, got_block, 6, 4);
    box_close(&b);
}

static void close_is_final_and_idempotent_and_keeps_the_frames(void)
{
    const pcmring_config config = config_of(6, 1, PCMRING_INT16, PCMRING_BLOCK);
    pcmring_reader reader;
    uint64_t first;
    box b;
    box_open(&b, &config);
    pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
    put(&b.ring, 6);
    EQ(pcmring_is_closed(&b.ring), 0);
    pcmring_close(&b.ring);
    pcmring_close(&b.ring);
    EQ(pcmring_is_closed(&b.ring), 1);
    EQ(pcmring_wait_readable(&b.ring, 6, PCMRING_FOREVER, NULL), PCMRING_READY); /* what is there is there */
    EQ(pcmring_wait_readable(&b.ring, 7, PCMRING_FOREVER, NULL), PCMRING_CLOSED);
    EQ(pcmring_wait_space(&b.ring, PCMRING_FOREVER), PCMRING_CLOSED);
    EQ(pcmring_read(&b.ring, &reader, got_block, 9, PCMRING_NEVER, &first), 6);
    EQ(pcmring_wait_space(&b.ring, PCMRING_FOREVER), PCMRING_CLOSED); /* space or not: nothing more is stored */
    box_close(&b);
}

/* ---- waiting for the system: unit_wakes.c covers the rest without it ------------------------------------------ */

static void a_wait_ends_at_its_deadline(void)
{
    const pcmring_config config = config_of(6, 1, PCMRING_INT16, PCMRING_BLOCK);
    pcmring_reader reader;
    int64_t before;
    int shared;
    box b;
    for (shared = 0; shared < 2; shared++) {
        pcmring_config c = config;
        c.shared = (uint32_t)shared;
        box_open(&b, &c);
        pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
        put(&b.ring, 6);
        before = pcmring_now_ns();
        EQ(pcmring_wait_readable(&b.ring, 7, before + 20 * MS, NULL), PCMRING_TIMED_OUT);
        CHECK(pcmring_now_ns() - before >= 20 * MS);
        before = pcmring_now_ns();
        EQ(pcmring_wait_space(&b.ring, before + 20 * MS), PCMRING_TIMED_OUT);
        CHECK(pcmring_now_ns() - before >= 20 * MS);
        EQ(pcmring_wait_readable(&b.ring, 7, before, NULL), PCMRING_TIMED_OUT); /* past already */
        EQ(pcmring_wait_readable(&b.ring, 7, 0, NULL), PCMRING_TIMED_OUT);
        EQ(pcmring_wait_space(&b.ring, 0), PCMRING_TIMED_OUT);
        EQ(pcmring_wait_readable(&b.ring, 6, 0, NULL), PCMRING_READY); /* no wait needed */
        EQ(pcmring_load(&b.ring.control->sleepers, relaxed), 0);
        EQ(pcmring_load(&b.ring.control->producer_waits, relaxed), 0);
        box_close(&b);
    }
}

#if !defined(_WIN32)

static void nothing_happens(int number) { (void)number; }

static void signals_every_5_ms(int on)
{
    struct sigaction action;
    struct itimerval timer;
    memset(&action, 0, sizeof action);
    memset(&timer, 0, sizeof timer);
    action.sa_handler = on ? nothing_happens : SIG_DFL;
    timer.it_value.tv_usec = timer.it_interval.tv_usec = on ? 5000 : 0;
    if (on)
        sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    if (!on) {
        action.sa_handler = SIG_IGN;
        sigaction(SIGALRM, &action, NULL);
    }
}

static void a_signal_interrupts_a_wait(void)
{
    const pcmring_config config = config_of(6, 1, PCMRING_INT16, PCMRING_BLOCK);
    pcmring_reader reader;
    int64_t deadline;
    box b;
    box_open(&b, &config);
    pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
    put(&b.ring, 6);
    deadline = pcmring_now_ns() + FAR_MS;
    signals_every_5_ms(1);
    EQ(pcmring_wait_readable(&b.ring, 7, deadline, NULL), PCMRING_INTERRUPTED);
    EQ(pcmring_wait_space(&b.ring, deadline), PCMRING_INTERRUPTED);
    signals_every_5_ms(0);
    CHECK(pcmring_now_ns() < deadline);
    box_close(&b);
}

/* A second thread that acts once the first sleeps. */
typedef struct helper {
    pcmring_ring *ring;
    pcmring_a32 cancel, over; /* over: the first sleeps no more, whatever came of it */
    pcmring_reader *reader;
    int what;
} helper;
enum { WRITES, CLOSES, CANCELS, WRITES_TOO_LITTLE_THEN_ENOUGH, READS, CLOSES_GUARD, CLEARS };

static void *help(void *argument)
{
    helper *h = (helper *)argument;
    pcmring_ring *r = h->ring;
    const int about_space = h->what == READS || h->what == CLOSES_GUARD || h->what == CLEARS;
    const int64_t deadline = pcmring_now_ns() + FAR_MS;
    int16_t sample = 0;
    uint64_t first;
    int wake = 0, times;
    /* it is asleep, or will find the number changed: both must work */
    while (pcmring_load(about_space ? &r->control->producer_waits : &r->control->sleepers, seq_cst) == 0)
        if (pcmring_load(&h->over, relaxed) || pcmring_now_ns() > deadline)
            return NULL;
    switch (h->what) {
    case WRITES_TOO_LITTLE_THEN_ENOUGH:
        for (times = 0; times < 5; times++) {
            pcmring_write(r, &sample, PCMRING_INT16, 1, NULL, &wake);
            pcmring_wake(r); /* asked for or not: the sleeper must go back to sleep */
        }
        break;
    case WRITES:
        while (!wake && pcmring_now_ns() < deadline)
            pcmring_write(r, &sample, PCMRING_INT16, 1, NULL, &wake);
        pcmring_wake(r);
        break;
    case CLOSES: pcmring_close(r); break;
    case CANCELS:
        pcmring_store(&h->cancel, 1, seq_cst);
        pcmring_wake(r);
        break;
    case READS: pcmring_read(r, h->reader, got_block, 1, PCMRING_NEVER, &first); break;
    case CLOSES_GUARD: pcmring_guard_close(r, h->reader); break;
    default: pcmring_clear(r); break;
    }
    return NULL;
}

static void wait_while(int what, uint32_t policy, int expected, uint64_t target)
{
    pcmring_config config = config_of(8, 1, PCMRING_INT16, policy);
    const int about_space = what == READS || what == CLOSES_GUARD || what == CLEARS || policy == PCMRING_BLOCK;
    const int64_t deadline = pcmring_now_ns() + FAR_MS;
    pcmring_reader reader;
    pthread_t thread;
    int round;
    for (round = 0; round < 40 && !check_case_failures; round++) {
        helper h;
        box b;
        config.shared = (uint32_t)(round & 1);
        box_open(&b, &config);
        memset(&h, 0, sizeof h);
        h.ring = &b.ring;
        h.what = what;
        h.reader = &reader;
        if (about_space) {
            pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
            put(&b.ring, 8);
        }
        CHECK(pthread_create(&thread, NULL, help, &h) == 0);
        if (about_space) {
            if (what == CLOSES) /* the helper waits for a sleeper on the readers' word; play both */
                EQ(pcmring_wait_readable(&b.ring, 9, deadline, NULL), expected);
            EQ(pcmring_wait_space(&b.ring, deadline), expected);
        } else {
            EQ(pcmring_wait_readable(&b.ring, target, deadline, &h.cancel), expected);
        }
        CHECK(pcmring_now_ns() < deadline);
        pcmring_store(&h.over, 1, relaxed);
        pthread_join(thread, NULL);
        EQ(pcmring_load(&b.ring.control->sleepers, relaxed), 0);
        EQ(pcmring_load(&b.ring.control->producer_waits, relaxed), 0);
        box_close(&b);
    }
}

static void a_sleeping_reader_is_woken_by_data(void) { wait_while(WRITES, PCMRING_OVERWRITE, PCMRING_READY, 3); }
static void a_reader_woken_too_early_sleeps_on(void)
{
    wait_while(WRITES_TOO_LITTLE_THEN_ENOUGH, PCMRING_OVERWRITE, PCMRING_READY, 5);
}
static void a_sleeping_reader_is_woken_by_close(void) { wait_while(CLOSES, PCMRING_OVERWRITE, PCMRING_CLOSED, 3); }
static void a_sleeping_reader_is_woken_by_cancel(void) { wait_while(CANCELS, PCMRING_OVERWRITE, PCMRING_CLOSED, 3); }
static void a_sleeping_producer_is_woken_by_a_read(void) { wait_while(READS, PCMRING_BLOCK, PCMRING_READY, 0); }
static void a_sleeping_producer_is_woken_by_a_guard_that_closes(void)
{
    wait_while(CLOSES_GUARD, PCMRING_BLOCK, PCMRING_READY, 0);
}
static void a_sleeping_producer_is_woken_by_clear(void) { wait_while(CLEARS, PCMRING_BLOCK, PCMRING_READY, 0); }
static void close_ends_waits_of_both_sides(void) { wait_while(CLOSES, PCMRING_BLOCK, PCMRING_CLOSED, 0); }

static void *close_when_the_producer_waits(void *argument)
{
    pcmring_ring *r = (pcmring_ring *)argument;
    const int64_t deadline = pcmring_now_ns() + FAR_MS;
    while (pcmring_load(&r->control->producer_waits, seq_cst) == 0)
        if (pcmring_now_ns() > deadline)
            return NULL;
    pcmring_close(r);
    return NULL;
}

static void a_sleeping_producer_is_woken_by_close(void)
{
    int round;
    for (round = 0; round < 40 && !check_case_failures; round++) {
        const pcmring_config config = config_of(8, 1, PCMRING_INT16, PCMRING_BLOCK);
        const int64_t deadline = pcmring_now_ns() + FAR_MS;
        pcmring_reader reader;
        pthread_t thread;
        box b;
        box_open(&b, &config);
        pcmring_guard_open(&b.ring, &reader, PCMRING_NEVER, 0);
        put(&b.ring, 8);
        CHECK(pthread_create(&thread, NULL, close_when_the_producer_waits, &b.ring) == 0);
        EQ(pcmring_wait_space(&b.ring, deadline), PCMRING_CLOSED);
        CHECK(pcmring_now_ns() < deadline);
        pthread_join(thread, NULL);
        box_close(&b);
    }
}

/* ---- listeners ------------------------------------------------------------------------------------------------------ */

static void open_pipe(int ends[2])
{
    CHECK(pipe(ends) == 0);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
}

static uint64_t drain(int fd)
{
    char bytes[512];
    uint64_t total = 0;
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0)
        total += (uint64_t)n;
    return total;
}

static void a_wake_up_writes_one_number_to_each_listener(void)
{
    const pcmring_config config = config_of(8, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    int ends[PCMRING_MAX_LISTENERS + 1][2], wake, i;
    int16_t samples[3] = {0, 0, 0};
    box b;
    box_open(&b, &config);
    for (i = 0; i <= (int)PCMRING_MAX_LISTENERS; i++)
        open_pipe(ends[i]);
    for (i = 0; i < (int)PCMRING_MAX_LISTENERS; i++)
        EQ(pcmring_add_listener(&b.ring, ends[i][1]), 0);
    EQ(pcmring_add_listener(&b.ring, ends[PCMRING_MAX_LISTENERS][1]), -1); /* all places taken */
    EQ(pcmring_arm(&b.ring, 3), 0);
    pcmring_write(&b.ring, samples, PCMRING_INT16, 2, NULL, &wake);
    EQ(wake, 0); /* two frames are not three */
    EQ(drain(ends[0][0]), 0);
    pcmring_write(&b.ring, samples, PCMRING_INT16, 1, NULL, &wake);
    EQ(wake, 1);
    pcmring_wake(&b.ring);
    for (i = 0; i < (int)PCMRING_MAX_LISTENERS; i++)
        EQ(drain(ends[i][0]), 8);
    EQ(drain(ends[PCMRING_MAX_LISTENERS][0]), 0);
    pcmring_remove_listener(&b.ring, ends[2][1]);
    pcmring_remove_listener(&b.ring, ends[2][1]); /* unknown by now: harmless */
    EQ(pcmring_load(&b.ring.listeners, relaxed), 7);
    EQ(pcmring_add_listener(&b.ring, ends[PCMRING_MAX_LISTENERS][1]), 0); /* into the free place */
    pcmring_close(&b.ring);
    for (i = 0; i <= (int)PCMRING_MAX_LISTENERS; i++)
        EQ(drain(ends[i][0]), i == 2 ? 0 : 8);
    for (i = 0; i <= (int)PCMRING_MAX_LISTENERS; i++)
        pcmring_remove_listener(&b.ring, ends[i][1]);
    EQ(pcmring_load(&b.ring.listeners, relaxed), 0);
    pcmring_wake(&b.ring);
    for (i = 0; i <= (int)PCMRING_MAX_LISTENERS; i++) {
        EQ(drain(ends[i][0]), 0);
        close(ends[i][0]);
        close(ends[i][1]);
    }
    box_close(&b);
}

static void a_full_pipe_does_not_hold_the_waker_up(void)
{
    const pcmring_config config = config_of(8, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    int full[2], next[2], i;
    char bytes[4096] = {0};
    uint64_t held;
    box b;
    box_open(&b, &config);
    open_pipe(full);
    open_pipe(next);
    while (write(full[1], bytes, sizeof bytes) > 0) {
    }
    while (write(full[1], bytes, 1) > 0) {
    }
    EQ(pcmring_add_listener(&b.ring, full[1]), 0);
    EQ(pcmring_add_listener(&b.ring, next[1]), 0);
    for (i = 0; i < 100; i++)
        pcmring_wake(&b.ring);
    held = drain(full[0]);
    CHECK(held >= 4096 && held % 8 == 0);
    EQ(drain(next[0]), 800); /* the next in line gets its wake-ups all the same */
    close(full[0]);
    close(full[1]);
    close(next[0]);
    close(next[1]);
    box_close(&b);
}

#if defined(__linux__)
static void an_eventfd_counts_the_wake_ups(void)
{
    const pcmring_config config = config_of(8, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    const int fd = eventfd(0, EFD_NONBLOCK);
    uint64_t count = 0;
    struct pollfd ready;
    box b;
    box_open(&b, &config);
    ready.fd = fd;
    ready.events = POLLIN;
    EQ(pcmring_add_listener(&b.ring, fd), 0);
    EQ(poll(&ready, 1, 0), 0);
    pcmring_wake(&b.ring);
    pcmring_wake(&b.ring);
    EQ(poll(&ready, 1, 0), 1);
    CHECK(read(fd, &count, sizeof count) == sizeof count);
    EQ(count, 2);
    pcmring_remove_listener(&b.ring, fd);
    close(fd);
    box_close(&b);
}
#endif

typedef struct churn {
    pcmring_ring *ring;
    pcmring_a32 stop;
} churn;

static void *wake_all_the_time(void *argument)
{
    churn *c = (churn *)argument;
    while (!pcmring_load(&c->stop, relaxed))
        pcmring_wake(c->ring);
    return NULL;
}

static void a_removed_listener_is_never_written_to_again(void)
{
    /* once the descriptor is closed its number goes to somebody else: any byte there is a stray write */
    const pcmring_config config = config_of(8, 1, PCMRING_INT16, PCMRING_OVERWRITE);
    pthread_t threads[2];
    int round, i, others = 0;
    churn c;
    box b;
    box_open(&b, &config);
    memset(&c, 0, sizeof c);
    c.ring = &b.ring;
    for (i = 0; i < 2; i++) /* a producer and somebody who closes */
        CHECK(pthread_create(&threads[i], NULL, wake_all_the_time, &c) == 0);
    for (round = 0; round < 3000; round++) {
        int listener[2], stranger[2];
        open_pipe(listener);
        EQ(pcmring_add_listener(&b.ring, listener[1]), 0);
        for (i = 0; i < round % 64; i++)
            drain(listener[0]);
        pcmring_remove_listener(&b.ring, listener[1]);
        close(listener[1]);
        close(listener[0]);
        open_pipe(stranger);
        others += stranger[1] == listener[1];
        for (i = 0; i < 4; i++)
            EQ(drain(stranger[0]), 0);
        close(stranger[0]);
        close(stranger[1]);
    }
    pcmring_store(&c.stop, 1, relaxed);
    for (i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(others > 2900); /* or the case would show nothing */
    EQ(pcmring_load(&b.ring.notifying, relaxed), 0);
    box_close(&b);
}

#endif /* not Windows */

static void the_clock_only_goes_forward(void)
{
    int64_t last = pcmring_now_ns();
    int i;
    CHECK(last > 0);
    for (i = 0; i < 1000; i++) {
        const int64_t now = pcmring_now_ns();
        CHECK(now >= last);
        last = now;
    }
}

int main(int argc, char **argv)
{
    check_first_only = argc > 1 && strcmp(argv[1], "--first") == 0; /* end at the first case that fails */
    RUN(plan_lays_control_tables_and_frames_one_after_the_other);
    RUN(plan_aligns_frames_as_asked);
    RUN(plan_bounds_the_side_tables);
    RUN(plan_refuses_impossible_numbers);
    RUN(sample_bytes_are_those_of_the_format);
    RUN(init_starts_empty_at_the_first_position);
    RUN(attach_finds_what_another_handle_wrote);
    RUN(attach_refuses_each_corrupted_field);
    RUN(int16_survives_every_format_and_back);
    RUN(int32_survives_float64_and_back);
    RUN(floats_round_half_to_even);
    RUN(integers_round_half_to_even);
    RUN(extremes_saturate_and_nan_is_zero);
    RUN(long_runs_convert_like_single_samples);
    RUN(a_converted_write_equals_a_write_of_converted_samples);
    RUN(the_newest_capacity_frames_are_held_whatever_the_block_lengths);
    RUN(copy_range_gives_any_range_that_is_held);
    RUN(readers_get_what_is_left_in_order_and_count_the_rest_as_lost);
    RUN(frames_the_producer_is_overwriting_are_cut_off_and_counted);
    RUN(a_reader_overtaken_throughout_a_small_read_goes_on_behind_the_tear);
    RUN(a_read_of_nothing_still_reports_what_is_gone);
    RUN(a_guarded_reader_loses_nothing_and_bounds_the_space);
    RUN(drop_takes_what_fits_and_records_the_rest_once);
    RUN(block_leaves_the_rest_with_the_caller);
    RUN(without_guarded_readers_drop_and_block_take_everything);
    RUN(sixty_four_guards_fit_and_the_slowest_counts);
    RUN(a_new_guard_takes_effect_although_space_was_known_before);
    RUN(a_guard_behind_the_oldest_frame_blocks_until_it_reads);
    RUN(overwrite_keeps_no_guards);
    RUN(a_closed_guard_reads_on_unguarded);
    RUN(peak_fill_is_the_most_a_guarded_reader_had_unread);
    RUN(gaps_merge_only_at_one_position_of_one_kind);
    RUN(a_full_ledger_keeps_the_newest_and_the_totals);
    RUN(a_gap_does_not_merge_into_an_older_lap_of_the_table);
    RUN(a_snapshot_ends_although_a_producer_died_in_mid_change);
    RUN(stamps_come_every_interval_and_hold_what_was_given);
    RUN(a_block_exactly_at_the_interval_is_stamped);
    RUN(a_full_stamp_table_spans_the_capacity);
    RUN(the_block_after_a_gap_is_stamped);
    RUN(a_block_without_a_time_is_stamped_now);
    RUN(without_a_samplerate_no_stamps_are_kept);
    RUN(clear_forgets_what_is_held_and_positions_go_on);
    RUN(a_look_at_the_count_before_a_clear_stays_consistent);
    RUN(clear_gives_guarded_space_back);
    RUN(close_is_final_and_idempotent_and_keeps_the_frames);
    RUN(the_clock_only_goes_forward);
    run_wake_cases();
    RUN(a_wait_ends_at_its_deadline);
#if !defined(_WIN32)
    RUN(a_signal_interrupts_a_wait);
    RUN(a_sleeping_reader_is_woken_by_data);
    RUN(a_reader_woken_too_early_sleeps_on);
    RUN(a_sleeping_reader_is_woken_by_close);
    RUN(a_sleeping_reader_is_woken_by_cancel);
    RUN(a_sleeping_producer_is_woken_by_a_read);
    RUN(a_sleeping_producer_is_woken_by_a_guard_that_closes);
    RUN(a_sleeping_producer_is_woken_by_clear);
    RUN(a_sleeping_producer_is_woken_by_close);
    RUN(close_ends_waits_of_both_sides);
    RUN(a_wake_up_writes_one_number_to_each_listener);
    RUN(a_full_pipe_does_not_hold_the_waker_up);
#if defined(__linux__)
    RUN(an_eventfd_counts_the_wake_ups);
#endif
    RUN(a_removed_listener_is_never_written_to_again);
#endif
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed != 0;
}
