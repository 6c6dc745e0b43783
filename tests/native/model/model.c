/* model.c: the checker behind model.h, where the model and its limits are stated. */
#include "model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

#define STACK_BYTES 65536
#define STACK_KEPT 4096      /* of a thread that stands still, at most */
#define STACK_LITTER 2048    /* cleared below the stack of a thread that stands still */
#define STAMP_GAP (1u << 16) /* room for 16 messages squeezed in one behind the other */
#define NOBODY (-1)

enum kind { LOAD, STORE, RMW, CAS, FENCE, WAIT, WAKE };
static const char *const kind_names[] = {"load", "store", "rmw", "cas", "fence", "wait", "wake"};
static const char *const order_names[] = {"relaxed", "acquire", "release", "acq_rel", "seq_cst"};

/* Entry t < MODEL_THREADS counts thread t's loads of exclusive words (see model_exclusive()); entry
 * MODEL_THREADS + id is the stamp of the message of location id. 0: the value before all stores. */
#define VIEW (MODEL_THREADS + MODEL_SHARED)
typedef struct view { uint32_t at[VIEW]; } view;

typedef struct message {
    uint32_t stamp; /* grows along the modification order */
    bool chained;   /* stored by a read-modify-write of the message before it */
    int writer;     /* thread, or NOBODY: it was there at the start */
    int event;      /* line of the trace that stored it */
    uint64_t value;
    view seen;      /* what an acquiring reader learns */
} message;

/* What is known of a word of the arena. Masks have a bit per thread; they only grow in a search. */
typedef struct place {
    uint8_t users, loaders, storers, writers, sleepers; /* loaders include compare-exchange; writers all but loads */
    uint8_t id; /* location + 1 once two threads use it */
    uint8_t bytes;
    bool exclusive;
} place;

typedef struct location {
    int count; /* 0: nobody has used it in this search */
    message messages[MODEL_MESSAGES];
} location;

typedef struct op {
    enum kind kind;
    enum model_order order;
    enum model_rmw how;
    bool may_expire;
    int await; /* index of scenario->awaits, or NOBODY */
    unsigned char *address;
    size_t bytes;
    uint64_t value, expected;
    const char *where;
    place *place;
} op;

enum status { RUNNING, AT_STEP, ASLEEP, ENDED };
typedef struct thread {
    jmp_buf start, now;
    enum status status;
    op op;           /* AT_STEP: what it will do next; ASLEEP: how it fell asleep */
    uint64_t result; /* of the last op */
    bool flag;       /* of the last op: exchanged; time was up */
    unsigned char *base, *low; /* its stack when it was entered and now */
    place *awaited;  /* it met a value here that makes it try again, */
    uint32_t awaited_stamp; /* in this message */
    view cur, acq, rel;
} thread;

typedef struct event {
    int thread, writer, from, newer;
    enum kind kind;
    enum model_order order;
    const unsigned char *address;
    uint64_t value, old;
    const char *where, *note;
} event;

_Alignas(64) unsigned char model_arena[MODEL_ARENA_BYTES];
size_t model_arena_used;

static const model_scenario *scenario;
static model_options options;
static place places[MODEL_ARENA_BYTES / 4];
static location locations[MODEL_SHARED];
static place *location_places[MODEL_SHARED];
static int location_count, thread_count, self, awaits_count;
static unsigned sc_users;   /* threads that use seq_cst operations */
static bool threads_run;    /* false in setup() and finish() */
static bool learnt, failed; /* in this execution */
static thread threads[MODEL_THREADS];
static unsigned char stacks[MODEL_THREADS][STACK_BYTES] __attribute__((aligned(64)));
static jmp_buf explorer;
static view sc;
static uint32_t looked[MODEL_SHARED][MODEL_THREADS]; /* exclusive words: each thread's count at its last load */
static struct { uint8_t id, index; } stored[MODEL_EVENTS]; /* all messages stored, to take them back */
static int stored_count;
static event events[MODEL_EVENTS];
static int event_count;
static model_report report;

/* ---- hashes ------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t a, uint64_t b)
{
    const unsigned __int128 product = (unsigned __int128)(a ^ 0x9e3779b97f4a7c15ull) * (b ^ 0xe7037ed1a0b428dbull);
    return (uint64_t)product ^ (uint64_t)(product >> 64) ^ a; /* ^ a: a product of 0 must not forget it */
}

static uint64_t hash_bytes(uint64_t hash, const unsigned char *at, size_t bytes) /* multiples of 8 */
{
    uint64_t word[4] = {hash, 1, 2, 3}, next;
    for (size_t i = 0; i < bytes; i += 8) { /* four chains: the processor works on them at once */
        memcpy(&next, at + i, 8);
        word[i / 8 & 3] = mix(word[i / 8 & 3], next);
    }
    return mix(mix(word[0], word[1]), mix(word[2], word[3]));
}

/* A set of hashes: open addressing, never more than half full. */
static struct { uint64_t *slots; size_t size, used; } met;

static void forget_states(void)
{
    free(met.slots);
    met.size = 1 << 12;
    met.used = 0;
    met.slots = calloc(met.size, sizeof *met.slots);
}

static bool add_state(uint64_t hash)
{
    size_t i;
    hash += hash == 0;
    for (i = hash & (met.size - 1); met.slots[i]; i = (i + 1) & (met.size - 1))
        if (met.slots[i] == hash)
            return false;
    met.slots[i] = hash;
    if (++met.used * 2 > met.size) {
        uint64_t *old = met.slots;
        const size_t old_size = met.size;
        met.size *= 2;
        met.slots = calloc(met.size, sizeof *met.slots);
        for (size_t j = 0; j < old_size; j++) {
            for (i = old[j] & (met.size - 1); old[j] && met.slots[i]; i = (i + 1) & (met.size - 1)) {
            }
            if (old[j])
                met.slots[i] = old[j];
        }
        free(old);
    }
    return true;
}

/* ---- words, locations, views ------------------------------------------------------------------- */

static uint64_t raw_load(const unsigned char *address, size_t bytes)
{
    uint64_t value = 0;
    memcpy(&value, address, bytes); /* little-endian, as everything this runs on */
    return value;
}

static void join(view *to, const view *from)
{
    const int used = MODEL_THREADS + location_count;
    for (int i = 0; i < used; i++)
        to->at[i] = to->at[i] > from->at[i] ? to->at[i] : from->at[i];
}

/* What thread t knows of one entry. acq may know of more already: from a relaxed load, for its next fence. */
static void reach(thread *t, int entry, uint32_t stamp)
{
    t->cur.at[entry] = stamp;
    t->acq.at[entry] = t->acq.at[entry] > stamp ? t->acq.at[entry] : stamp;
}

static int entry_of(const place *p) { return MODEL_THREADS + p->id - 1; }

static location *location_of(const place *p)
{
    location *l = &locations[p->id - 1];
    if (l->count == 0) { /* what setup() left is its first message */
        const size_t offset = (size_t)(p - places) * 4;
        message *first = &l->messages[0];
        memset(first, 0, sizeof *first);
        first->writer = first->event = NOBODY;
        first->value = raw_load(model_arena + offset, p->bytes);
        l->count = 1;
    }
    return l;
}

static bool acquires(enum model_order o) { return o == model_acquire || o == model_acq_rel || o == model_seq_cst; }
static bool releases(enum model_order o) { return o == model_release || o == model_acq_rel || o == model_seq_cst; }

/* ---- failures and traces ------------------------------------------------------------------------- */

static const char *thread_name(int t)
{
    static char digits[2][4];
    if (t == NOBODY)
        return "setup";
    if (scenario->thread_names[t])
        return scenario->thread_names[t];
    snprintf(digits[t & 1], sizeof digits[0], "%d", t);
    return digits[t & 1];
}

static void print_trace(void)
{
    for (int i = 0; i < event_count; i++) {
        const event *e = &events[i];
        char name[64] = "";
        if (e->address && scenario->name_of)
            scenario->name_of(e->address, name, sizeof name);
        else if (e->address)
            snprintf(name, sizeof name, "+%td", e->address - model_arena);
        printf("  %4d  %-10s %-5s %s", i, thread_name(e->thread), kind_names[e->kind], name);
        if (e->kind == LOAD)
            printf(" -> %lld", (long long)e->value);
        if (e->kind == STORE)
            printf(" = %lld", (long long)e->value);
        if (e->kind == RMW || e->kind == CAS)
            printf(" %lld -> %lld", (long long)e->old, (long long)e->value);
        if (e->kind != WAIT && e->kind != WAKE)
            printf(" %s", order_names[e->order]);
        if (e->from >= 0)
            printf(", stored by %s at %d", thread_name(e->writer), e->from);
        if (e->newer)
            printf(", %d newer", e->newer);
        printf("%s%s   [%s]\n", *e->note ? ", " : "", e->note, e->where);
    }
    for (int t = 0; t < thread_count; t++) {
        static const char *const states[] = {"running", "about to", "asleep in", "ended"};
        printf("        %-10s %s %s\n", thread_name(t), states[threads[t].status],
               threads[t].status == AT_STEP || threads[t].status == ASLEEP ? threads[t].op.where : "");
    }
}

void model_fail(const char *format, ...)
{
    va_list arguments;
    if (failed)
        return;
    failed = report.failed = true;
    va_start(arguments, format);
    vsnprintf(report.why, sizeof report.why, format, arguments);
    va_end(arguments);
    if (!options.quiet) {
        printf("FAILED %s: %s\n", scenario->name, report.why);
        print_trace();
    }
    if (threads_run && self != NOBODY)
        _longjmp(explorer, 1);
}

static event *record(const op *o)
{
    static event spare;
    event *e = event_count < MODEL_EVENTS ? &events[event_count++] : &spare;
    *e = (event){self, NOBODY, NOBODY, 0, o->kind, o->order, o->address, o->value, 0, o->where, ""};
    if (e == &spare)
        model_fail("more than %d operations: a loop without end?", MODEL_EVENTS);
    return e;
}

/* ---- the memory model ---------------------------------------------------------------------------- */

/* Whether thread t's `o` may read, or store right behind, message i of its location. */
static bool admits(const thread *t, const op *o, const location *l, int i)
{
    const message *m = &l->messages[i];
    const int entry = entry_of(o->place);
    const bool taken = i + 1 < l->count && l->messages[i + 1].chained;
    if (m->stamp < t->cur.at[entry] || (o->order == model_seq_cst && m->stamp < sc.at[entry]))
        return false;
    switch (o->kind) {
    case LOAD: return o->await == NOBODY || t->awaited != o->place || m->stamp > t->awaited_stamp;
    case CAS: return !taken || m->value != o->expected; /* it may not fail on the expected value */
    default: return !taken;
    }
}

/* In how many ways `o` can go on; the message it then acts on is *index for the `pick`-th of them,
 * newest first. */
static int ways(const thread *t, const op *o, int pick, int *index)
{
    int count = 0;
    if (o->kind == LOAD && o->await != NOBODY && !o->place->id)
        return t->awaited != o->place; /* as far as is known, what it waits for never comes */
    if (o->kind >= FENCE || !o->place->id)
        return 1;
    const location *l = location_of(o->place);
    for (int i = l->count - 1; i >= 0; i--) {
        if (l->messages[i].stamp < t->cur.at[entry_of(o->place)])
            break;
        if (admits(t, o, l, i) && count++ == pick)
            *index = i;
    }
    return count;
}

static void check_race(const thread *t, const op *o, const location *l)
{
    if (!o->place->exclusive)
        return;
    if (t->cur.at[entry_of(o->place)] != l->messages[l->count - 1].stamp)
        model_fail("data race: %s beside the store at %d", kind_names[o->kind], l->messages[l->count - 1].event);
    for (int u = 0; o->kind != LOAD && u < thread_count; u++)
        if (looked[o->place->id - 1][u] > t->cur.at[u])
            model_fail("data race: %s beside a load by %s", kind_names[o->kind], thread_name(u));
}

static void take_message(thread *t, op *o, location *l, int index, enum model_order order)
{
    const message *m = &l->messages[index];
    const int entry = entry_of(o->place);
    event *e = &events[event_count - 1];
    check_race(t, o, l);
    e->old = e->value = t->result = m->value;
    e->writer = m->writer;
    e->from = m->event;
    e->newer = l->count - 1 - index;
    reach(t, entry, m->stamp);
    join(&t->acq, &m->seen);
    if (acquires(order))
        join(&t->cur, &m->seen);
    if (o->place->exclusive)
        reach(t, self, looked[o->place->id - 1][self] = t->cur.at[self] + 1);
}

/* Store `value` right behind message `after`, as a read-modify-write of it if `chained`. */
static void put_message(thread *t, const op *o, location *l, int after, uint64_t value, bool chained)
{
    const int entry = entry_of(o->place);
    const uint32_t low = l->messages[after].stamp;
    const bool last = after == l->count - 1;
    message *m = &l->messages[after + 1];
    if (l->count == MODEL_MESSAGES) {
        model_fail("more than %d stores to one location", MODEL_MESSAGES);
        return;
    }
    check_race(t, o, l);
    memmove(m + 1, m, (size_t)(l->count - after - 1) * sizeof *m);
    l->count++;
    stored[stored_count].id = (uint8_t)(o->place->id - 1);
    stored[stored_count++].index = (uint8_t)(after + 1);
    m->stamp = last ? low + STAMP_GAP : low + (m[1].stamp - low) / 2;
    if (m->stamp == low)
        model_fail("too many stores between two others");
    m->value = value;
    m->chained = chained;
    m->writer = self;
    m->event = event_count - 1;
    events[event_count - 1].newer = l->count - 2 - after;
    reach(t, entry, m->stamp);
    if (o->order == model_seq_cst)
        sc.at[entry] = m->stamp;
    m->seen = releases(o->order) ? t->cur : t->rel;
    m->seen.at[entry] = m->stamp;
    if (chained)
        join(&m->seen, &l->messages[after].seen); /* the release sequence goes on */
    if (last)
        memcpy(o->address, &value, o->bytes); /* memory holds the newest values, for finish() and WAIT */
}

static uint64_t modified(const op *o, uint64_t old)
{
    const uint64_t value = o->how == MODEL_EXCHANGE ? o->value : o->how == MODEL_ADD ? old + o->value : old - o->value;
    return o->bytes == 8 ? value : (uint32_t)value;
}

static void fence(thread *t, enum model_order order)
{
    if (acquires(order))
        t->cur = t->acq;
    if (order == model_seq_cst) {
        join(&sc, &t->cur);
        t->cur = sc;
        join(&t->acq, &sc);
    }
    if (releases(order))
        t->rel = t->cur;
}

/* A word that only this thread uses, or nobody stores to. */
static void act_plainly(thread *t, op *o, event *e)
{
    const uint64_t old = t->result = raw_load(o->address, o->bytes);
    uint64_t value = o->value;
    e->old = old;
    t->flag = o->kind == CAS && old == o->expected;
    if (o->kind == RMW)
        value = modified(o, old);
    e->value = o->kind == LOAD || (o->kind == CAS && !t->flag) ? old : value;
    if (o->kind == STORE || o->kind == RMW || t->flag)
        memcpy(o->address, &value, o->bytes);
}

/* If the load just made is one of a loop that waits: whether it will be made again, and not of this message. */
static void note_await(thread *t, uint32_t stamp)
{
    if (t->op.kind == LOAD && t->op.await != NOBODY) {
        t->awaited = scenario->awaits[t->op.await].retry(t->result) ? t->op.place : NULL;
        t->awaited_stamp = stamp;
    }
}

/* Do thread t's op in the `pick`-th way. */
static void act(thread *t, int pick)
{
    op *o = &t->op;
    event *e = record(o);
    location *l;
    int i = 0;
    if (o->kind == FENCE) {
        fence(t, o->order);
    } else if (o->kind == WAIT) {
        const bool same = raw_load(o->address, o->bytes) == o->expected;
        t->flag = false;
        t->result = same;
        t->status = same ? ASLEEP : RUNNING;
        e->note = same ? "falls asleep" : "not the expected value";
        if (!same && o->place->id) { /* it will not miss what the system just saw */
            l = location_of(o->place);
            reach(t, entry_of(o->place), l->messages[l->count - 1].stamp);
        }
    } else if (o->kind == WAKE) {
        for (int u = 0; u < thread_count; u++) {
            if (threads[u].status == ASLEEP && threads[u].op.place == o->place) {
                threads[u].status = RUNNING;
                e->note = "wakes";
            }
        }
    } else if (!o->place->id) {
        act_plainly(t, o, e);
        note_await(t, 0);
    } else {
        l = location_of(o->place);
        if (ways(t, o, pick, &i) <= pick) {
            model_fail("the checker is wrong: a step that cannot be made");
        } else if (o->kind == LOAD) {
            take_message(t, o, l, i, o->order);
            note_await(t, l->messages[i].stamp);
        } else if (o->kind == STORE) {
            put_message(t, o, l, i, o->value, false);
        } else {
            t->flag = o->kind == CAS && l->messages[i].value == o->expected;
            take_message(t, o, l, i, o->kind == RMW || t->flag ? o->order : model_relaxed);
            if (o->kind == RMW || t->flag) {
                e->value = o->kind == CAS ? o->value : modified(o, t->result);
                put_message(t, o, l, i, e->value, true);
            }
        }
    }
}

/* ---- threads ----------------------------------------------------------------------------------------- */

/* Which threads do steps that do not commute with thread t's `o`, as far as is known. `among`: those who
 * still run. */
static unsigned rivals(int t, const op *o, unsigned among)
{
    const unsigned others = among & ~(1u << t);
    const place *p = o->place;
    if (o->kind == FENCE)
        return o->order == model_seq_cst ? sc_users & others : 0;
    if (o->kind == WAIT)
        return 1u << t; /* never at once: it may have to sleep */
    if (!p->id)
        return o->kind == LOAD && o->await != NOBODY ? 1u << t : 0;
    if (o->kind == LOAD)
        return p->writers & others;
    return ((o->kind == WAKE ? 0 : p->writers) | p->sleepers | (o->order == model_seq_cst ? sc_users : 0)) & others;
}

static void learn(uint8_t *mask, bool matters)
{
    const uint8_t now = *mask | (uint8_t)(1u << self);
    learnt |= now != *mask && matters;
    *mask = now;
}

/* Note who uses what. What was not known makes the search start again. */
static void observe(const op *o)
{
    place *p = o->place;
    if (o->order == model_seq_cst && !(sc_users >> self & 1)) {
        sc_users |= 1u << self;
        learnt = true;
    }
    if (!p)
        return;
    learn(&p->users, p->id != 0);
    if (!p->id && (p->users & (p->users - 1)) && (p->writers || o->kind != LOAD)) {
        if (location_count == MODEL_SHARED)
            model_fail("more than %d shared locations", MODEL_SHARED);
        location_places[location_count] = p;
        p->id = (uint8_t)++location_count;
        learnt = true;
    }
    if (o->kind == LOAD || o->kind == CAS)
        learn(&p->loaders, p->id != 0);
    if (o->kind == STORE)
        learn(&p->storers, p->id != 0);
    if (o->kind == WAIT)
        learn(&p->sleepers, true);
    else if (o->kind != LOAD)
        learn(&p->writers, p->id != 0);
}

/* Leave a thread until the explorer goes on with it. Nothing of it lies below what alloca() gives here, and
 * registers that outlive the call are in t->now. */
static __attribute__((noinline)) void park(thread *t)
{
    t->low = __builtin_alloca(16);
    if (_setjmp(t->now) == 0)
        _longjmp(explorer, 1);
}

/* What calls that have ended left on the stack is of no meaning, and must not make equal states look
 * different: clear it below the running thread, and below one that stands still. */
static __attribute__((noinline)) void scrub(void)
{
    unsigned char *low = __builtin_alloca(STACK_LITTER / 2);
    memset(low, 0, STACK_LITTER / 2);
    __asm__ volatile("" : : "r"(low) : "memory");
}
static void scrub_below(const thread *t) { memset(t->low - STACK_LITTER, 0, STACK_LITTER); }

/* Called in a thread: do `o` now, or when the explorer says so. */
static thread *step(op o)
{
    thread *t = &threads[self];
    if (o.address) {
        const size_t offset = (size_t)(o.address - model_arena);
        if (offset + o.bytes > model_arena_used || offset % 4 || (o.bytes != 4 && o.bytes != 8))
            model_fail("an atomic outside model_arena, or of %zu bytes", o.bytes);
        o.place = &places[offset / 4];
        if (o.place->bytes && o.place->bytes != o.bytes)
            model_fail("a word used as %d and as %zu bytes", o.place->bytes, o.bytes);
        o.place->bytes = (uint8_t)o.bytes;
        if (o.bytes == 4)
            o.value = (uint32_t)o.value;
    }
    report.sc_accesses |= o.kind != FENCE && o.order == model_seq_cst;
    if (options.weak_sc && o.kind != FENCE && o.order == model_seq_cst)
        o.order = o.kind == LOAD ? model_acquire : o.kind == STORE ? model_release : model_acq_rel;
    t->op = o;
    observe(&o);
    if (learnt)
        _longjmp(explorer, 1);
    if (rivals(self, &o, ~0u) || (options.plain && o.kind == FENCE) || (options.plain && o.place && o.place->id)) {
        t->status = AT_STEP;
        park(t);
    } else {
        act(t, 0);
    }
    scrub();
    return t;
}

static void run_thread(void)
{
    threads[self].base = __builtin_alloca(16);
    if (_setjmp(threads[self].start) == 0)
        _longjmp(explorer, 1);
    scenario->threads[self]();
    threads[self].status = ENDED;
    _longjmp(explorer, 1);
}

/* Let a thread run to its next step, its end, or a failure. */
static void resume(int t)
{
    self = t;
    if (_setjmp(explorer) == 0)
        _longjmp(threads[t].now, 1);
    self = NOBODY;
    scrub_below(&threads[t]);
}

/* Enter a coroutine once, so that from then on a longjmp starts it. */
static void make_thread(int t)
{
    ucontext_t fresh;
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = stacks[t];
    fresh.uc_stack.ss_size = STACK_BYTES;
    fresh.uc_link = NULL;
    makecontext(&fresh, run_thread, 0);
    self = t;
    if (_setjmp(explorer) == 0)
        setcontext(&fresh);
    self = NOBODY;
}

/* ---- what ring.h calls ------------------------------------------------------------------------------- */

static unsigned char *plain(const void *address) { return (unsigned char *)(uintptr_t)address; }

uint64_t model_load(const void *address, size_t bytes, enum model_order order, const char *where)
{
    int await = NOBODY;
    if (!threads_run)
        return raw_load(address, bytes);
    for (int i = 0; i < awaits_count; i++)
        if (strcmp(scenario->awaits[i].name, where) == 0)
            await = i;
    return step((op){.kind = LOAD, .order = order, .address = plain(address), .bytes = bytes, .where = where,
                     .await = await})->result;
}

void model_store(void *address, size_t bytes, uint64_t value, enum model_order order, const char *where)
{
    if (!threads_run)
        memcpy(address, &value, bytes);
    else
        step((op){.kind = STORE, .order = order, .address = address, .bytes = bytes, .value = value, .where = where});
}

uint64_t model_rmw(void *address, size_t bytes, enum model_rmw how, uint64_t value, enum model_order order,
                   const char *where)
{
    const op o = {.kind = RMW, .order = order, .how = how, .address = address, .bytes = bytes, .value = value,
                  .where = where};
    if (!threads_run) {
        const uint64_t old = raw_load(address, bytes), now = modified(&o, old);
        memcpy(address, &now, bytes);
        return old;
    }
    return step(o)->result;
}

bool model_cas(void *address, size_t bytes, void *expected, uint64_t value, enum model_order order, const char *where)
{
    const uint64_t wanted = raw_load(expected, bytes);
    if (!threads_run) {
        if (raw_load(address, bytes) != wanted) {
            memcpy(expected, address, bytes);
            return false;
        }
        memcpy(address, &value, bytes);
        return true;
    }
    const thread *t = step((op){.kind = CAS, .order = order, .address = address, .bytes = bytes, .value = value,
                                .expected = wanted, .where = where});
    if (!t->flag)
        memcpy(expected, &t->result, bytes);
    return t->flag;
}

void model_fence(enum model_order order, const char *where)
{
    if (threads_run)
        step((op){.kind = FENCE, .order = order, .where = where});
}

bool model_wait(void *word, size_t bytes, uint64_t expected, bool may_expire, const char *where)
{
    return step((op){.kind = WAIT, .address = word, .bytes = bytes, .expected = expected, .may_expire = may_expire,
                     .where = where})->flag;
}

void model_wake(void *word, size_t bytes, const char *where)
{
    if (threads_run)
        step((op){.kind = WAKE, .address = word, .bytes = bytes, .where = where});
}

void model_exclusive(const void *address) { places[(size_t)(plain(address) - model_arena) / 4].exclusive = true; }

/* ---- states and steps ------------------------------------------------------------------------------------ */

/* A state as a number: equal numbers for states that have the same future.
 *
 * What a view says of a location matters only to the threads that load from it or choose where to store:
 * read-modify-writes of a location that has no stores take the last message anyway. Below the least that
 * any of those has got to, views may differ and messages are gone; the stamps are counted from there. */
static uint32_t floors[MODEL_SHARED];

static uint64_t hash_view(uint64_t hash, const view *v)
{
    uint64_t word[2] = {hash, 1};
    for (int i = 0; i < thread_count; i++)
        word[0] = mix(word[0], v->at[i]);
    for (int i = 0; i < location_count; i++) {
        const uint32_t stamp = v->at[MODEL_THREADS + i];
        word[i & 1] = mix(word[i & 1], stamp > floors[i] ? stamp - floors[i] : 0);
    }
    return mix(word[0], word[1]);
}

static uint64_t hash_state(unsigned alive)
{
    uint64_t hash = hash_bytes(0, model_arena, model_arena_used);
    for (int i = 0; i < location_count; i++) {
        const place *p = location_places[i];
        const unsigned concerned = (p->storers ? p->users : p->loaders) & alive;
        const location *l = location_of(p);
        floors[i] = l->messages[l->count - 1].stamp;
        for (int t = 0; t < thread_count; t++)
            if (concerned >> t & 1 && threads[t].cur.at[MODEL_THREADS + i] < floors[i])
                floors[i] = threads[t].cur.at[MODEL_THREADS + i];
    }
    hash = hash_view(hash, &sc);
    for (int i = 0; i < location_count; i++) {
        const location *l = &locations[i];
        if (!(location_places[i]->users & alive))
            continue;
        for (int j = l->count - 1; j >= 0 && l->messages[j].stamp >= floors[i]; j--) {
            const message *m = &l->messages[j];
            hash = hash_view(mix(hash, (uint64_t)(m->stamp - floors[i]) << 1 | m->chained), &m->seen);
            hash = mix(hash, m->value);
        }
        hash = mix(hash, (uint64_t)i);
    }
    for (int i = 0; i < thread_count; i++) {
        const thread *t = &threads[i];
        hash = mix(hash, t->status);
        if (t->status == ENDED)
            continue;
        hash = mix(hash, t->awaited ? t->awaited_stamp + 1 : 0);
        hash = mix(hash, (uint64_t)t->op.kind << 16 | (uint64_t)t->op.order << 8 | (uint64_t)t->op.how << 1 | t->op.may_expire);
        hash = mix(mix(mix(hash, (uintptr_t)t->op.address), t->op.value), t->op.expected);
        hash = hash_bytes(hash, t->low, (size_t)(t->base - t->low));
        hash = hash_bytes(hash, (const unsigned char *)t->now, sizeof t->now); /* the registers */
        hash = hash_view(hash_view(hash_view(hash, &t->cur), &t->acq), &t->rel);
    }
    return hash;
}

/* Do what thread t is about to do, in the `pick`-th way; a sleeper's only way is that its time is up. */
static void choose(int t, int pick)
{
    thread *now = &threads[t];
    const bool expires = now->status == ASLEEP;
    self = t;
    if (_setjmp(explorer) == 0) { /* otherwise it failed */
        now->status = RUNNING;
        if (expires) {
            record(&now->op)->note = "its time is up";
            now->flag = true;
        } else {
            act(now, pick);
        }
    }
    self = NOBODY;
}

/* ---- the search ------------------------------------------------------------------------------------------ */

/* A state in which there was a choice, kept until all its ways are explored. Messages are not copied: those
 * stored later are taken out again. */
typedef struct choice {
    int ways, next, count[MODEL_THREADS]; /* in all, the one to try next, and how many are each thread's */
    int event_count, stored_count;
    uint32_t looked[MODEL_SHARED][MODEL_THREADS];
    view sc;
    thread threads[MODEL_THREADS];
    unsigned char arena[MODEL_ARENA_BYTES], stacks[MODEL_THREADS][STACK_KEPT];
} choice;
static choice *choices[MODEL_EVENTS];
static int choice_count;

static size_t stack_of(const thread *t) { return t->status == ENDED ? 0 : (size_t)(t->base - t->low); }

static void keep(int ways, const int *count)
{
    if (!choices[choice_count])
        choices[choice_count] = malloc(sizeof(choice));
    choice *c = choices[choice_count++];
    c->ways = ways;
    c->next = 1; /* the first is taken now */
    memcpy(c->count, count, sizeof c->count);
    c->event_count = event_count;
    c->stored_count = stored_count;
    c->sc = sc;
    memcpy(c->looked, looked, sizeof looked);
    memcpy(c->arena, model_arena, model_arena_used);
    for (int t = 0; t < thread_count; t++) {
        c->threads[t] = threads[t];
        if (stack_of(&threads[t]) > STACK_KEPT)
            model_fail("more than %d bytes of stack", STACK_KEPT);
        else
            memcpy(c->stacks[t], threads[t].low, stack_of(&threads[t]));
    }
}

static void go_back_to(const choice *c)
{
    while (stored_count > c->stored_count) {
        location *l = &locations[stored[--stored_count].id];
        message *m = &l->messages[stored[stored_count].index];
        memmove(m, m + 1, (size_t)(--l->count - stored[stored_count].index) * sizeof *m);
    }
    event_count = c->event_count;
    sc = c->sc;
    memcpy(looked, c->looked, sizeof looked);
    memcpy(model_arena, c->arena, model_arena_used);
    for (int t = 0; t < thread_count; t++) {
        threads[t] = c->threads[t];
        memcpy(threads[t].low, c->stacks[t], stack_of(&threads[t]));
        scrub_below(&threads[t]);
    }
    threads_run = true;
}

static void start(void)
{
    event_count = stored_count = 0;
    learnt = failed = threads_run = false;
    memset(&sc, 0, sizeof sc);
    memset(looked, 0, sizeof looked);
    memset(model_arena, 0, sizeof model_arena);
    model_arena_used = sizeof model_arena;
    for (int i = 0; i < location_count; i++)
        locations[i].count = 0;
    scenario->setup();
    for (int t = 0; t < thread_count; t++) {
        thread *now = &threads[t];
        memcpy(now->now, now->start, sizeof now->now);
        now->status = RUNNING;
        now->low = now->base;
        now->awaited = NULL;
        now->cur = now->acq = now->rel = (view){{0}};
    }
    threads_run = true;
}

enum end { COMPLETE, MERGED, FAILED, LEARNT };

/* Go on from here, always in the first way, to the end or to a state met before. */
static enum end go_on(void)
{
    for (;;) {
        unsigned alive = 0;
        int count[MODEL_THREADS] = {0}, total = 0, chosen = 0;
        for (int t = 0; t < thread_count && !learnt && !failed; t++)
            if (threads[t].status == RUNNING)
                resume(t);
        if (learnt || failed)
            return failed ? FAILED : LEARNT;
        for (int t = 0; t < thread_count; t++)
            alive |= (unsigned)(threads[t].status != ENDED) << t;
        if (!alive)
            break;
        for (int t = 0; t < thread_count; t++) {
            const thread *now = &threads[t];
            count[t] = now->status == AT_STEP ? ways(now, &now->op, -1, NULL)
                       : now->status == ASLEEP ? now->op.may_expire : 0;
            total += count[t];
            if (!options.plain && now->status == AT_STEP && count[t] && !rivals(t, &now->op, alive)) {
                memset(count, 0, (size_t)t * sizeof *count); /* commutes with all that is to come: it goes first */
                total = count[t];
                break;
            }
        }
        if (total == 0) {
            model_fail("lost wake-up: all that have not ended sleep, or wait in a loop");
            return FAILED;
        }
        if (total > 1) {
            if (!options.plain && !add_state(hash_state(alive)))
                return MERGED;
            report.states++;
            keep(total, count);
        }
        while (!count[chosen])
            chosen++;
        choose(chosen, 0);
    }
    threads_run = false;
    if (scenario->finish)
        scenario->finish();
    return failed ? FAILED : COMPLETE;
}

/* Back to the last state that has a way left, and into it. */
static bool go_back(void)
{
    int chosen = 0, pick;
    while (choice_count && choices[choice_count - 1]->next == choices[choice_count - 1]->ways)
        choice_count--;
    if (choice_count == 0)
        return false;
    choice *c = choices[choice_count - 1];
    go_back_to(c);
    for (pick = c->next++; pick >= c->count[chosen]; chosen++)
        pick -= c->count[chosen];
    choose(chosen, pick);
    return true;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

model_report model_explore(const model_scenario *s, model_options o)
{
    const double began = seconds();
    enum end end;
    scenario = s;
    options = o;
    for (thread_count = 0; thread_count < MODEL_THREADS && s->threads[thread_count];)
        thread_count++;
    for (awaits_count = 0; s->awaits && s->awaits[awaits_count].name;)
        awaits_count++;
    memset(places, 0, sizeof places);
    location_count = 0;
    sc_users = 0;
    for (int t = 0; t < thread_count; t++)
        make_thread(t);
    do { /* until nothing new is learnt about who uses what */
        memset(&report, 0, sizeof report);
        choice_count = 0;
        forget_states();
        start();
        do {
            end = go_on();
            report.executions += end == COMPLETE;
            report.merged += end == MERGED;
            if (o.limit_s > 0.0 && end != FAILED && seconds() - began > o.limit_s)
                model_fail("not searched to the end within %g s", o.limit_s);
        } while (!failed && end != LEARNT && go_back());
    } while (end == LEARNT);
    threads_run = false;
    report.seconds = seconds() - began;
    return report;
}
