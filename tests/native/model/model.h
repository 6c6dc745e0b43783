/* model.h: an exhaustive checker for small programs over C11 atomics.
 *
 * A scenario is one to four thread functions in plain C. The checker runs them in one system thread,
 * as coroutines, again and again, until every execution that the memory model allows has been seen
 * or one of them fails. What can differ between two executions is the order of the threads' steps
 * and, for each load, which of the values still in sight it returns: a load may well return an old
 * one, which is how a weak machine is played on a strong one.
 *
 * Who owns what
 *   - All atomics lie in model_arena, which setup() finds zeroed; atomics elsewhere are refused.
 *   - What a thread keeps lies on its stack or in the arena, nowhere else: the checker copies both to go
 *     back to a state, and compares both to recognise one. A plain variable in the arena is used by one
 *     thread, and by setup() and finish().
 *   - setup() and finish() run alone; their atomics are plain accesses.
 *
 * The memory model: RC11 (Lahav, Vafeiadis, Kang, Hur, Dreyer: "Repairing sequential consistency in
 * C/C++11", PLDI 2017; release sequences as in C++20) in the operational form of Kang et al., "A
 * promising semantics for relaxed-memory concurrency", POPL 2017, without the promises.
 *   - A location holds all messages ever stored to it, in modification order.
 *   - A view says, for each location, which message one has got to at least. A message carries the
 *     view that an acquiring reader gains.
 *   - A thread has three views. `cur`: what it may no longer miss. `acq`: what it would know after an
 *     acquire fence. `rel`: what it knew at its last release fence.
 *   - A load picks any message not before cur[location]. All its loads join the message's view into
 *     acq, acquire loads into cur too.
 *   - A store puts its message anywhere after cur[location] in the modification order (not between a
 *     read-modify-write and what it read). The message carries rel, that of a release store cur.
 *   - A read-modify-write reads any message that no other one has taken, stores right behind it, and
 *     passes on that message's view (release sequence). A failing compare-exchange is a relaxed load.
 *   - seq_cst fences exchange views with a global view `sc`; seq_cst accesses also go by sc[location].
 *   - The futex: waiting compares with the newest message and falls asleep in one step.
 * litmus.c compares all this with the axioms of RC11 on random programs.
 *
 * What the model leaves out, so what a pass does not prove
 *   - Load buffering: a load never returns a value stored later in the same execution (the axiom
 *     "sb + rf acyclic"; compilers and machines may break it for relaxed accesses). Against one case of
 *     it, overwriting a frame that a guarded reader still copies, see model_exclusive().
 *   - seq_cst operations take effect in the order of execution. RC11 lets seq_cst accesses that are mixed
 *     with weaker ones stray from it, in a few programs of a hundred. With model_options.weak_sc they are
 *     mere acquire and release accesses, which is weaker than RC11: what passes both ways is safe.
 *   - Accesses of different sizes to the same bytes; plain accesses (TSan watches those); spurious
 *     wake-ups; more threads and longer runs than the scenario has.
 *
 * How it finishes in seconds, and why nothing is lost
 *   - Steps that commute with every step of the others are taken at once, without asking who goes
 *     first: fences but seq_cst, locations that one thread uses or nobody stores to, and stores to a
 *     location nobody else stores to and nobody sleeps on: being stored early does not oblige anyone
 *     to read it. (A persistent set of one thread: Godefroid, "Partial-order methods", 1996.) Who uses
 *     what is learnt: when a use comes up that was not foreseen, the search starts again, knowing it.
 *   - A state met before is not continued twice. A state is the stacks, registers and views of the threads
 *     that have not ended, the arena, and the messages that can still be read; compared as 64-bit hashes:
 *     among ten million states two collide with probability 3e-6.
 *   - The search goes back by copying the last state with an untried choice, not by running up to it.
 *   - A loop that waits for another thread (model_await) does not read the same message twice.
 * litmus.c compares these with the plain search, too.
 */
#ifndef PCMRING_MODEL_H
#define PCMRING_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_THREADS 4      /* at most in a scenario */
#define MODEL_SHARED 44      /* locations used by two threads, at most; a view has an entry for each */
#define MODEL_MESSAGES 48    /* stores to one location in one execution, at most */
#define MODEL_EVENTS 4000    /* operations in one execution, at most; beyond, a thread is taken to loop */
#define MODEL_ARENA_BYTES 8192

enum model_order { model_relaxed, model_acquire, model_release, model_acq_rel, model_seq_cst };

extern unsigned char model_arena[MODEL_ARENA_BYTES]; /* aligned to 64 bytes */
extern size_t model_arena_used; /* setup() may lower it to a multiple of 8, which is faster */

/* Loads in function `name` are a loop that waits for another thread as long as `retry` is true of what they
 * return: it reads each message once, and sleeps until there is a newer one. */
typedef struct model_await {
    const char *name;
    bool (*retry)(uint64_t value);
} model_await;

typedef struct model_scenario {
    const char *name;
    void (*setup)(void);
    void (*threads[MODEL_THREADS])(void);
    const char *thread_names[MODEL_THREADS]; /* NULL: thread 0, 1, … */
    void (*finish)(void);                    /* NULL: nothing to look at in the end */
    void (*name_of)(const void *address, char *out, size_t bytes); /* for traces; NULL: offsets */
    const model_await *awaits;               /* ends with a NULL name; NULL: no such loops */
    bool relies_on_sc;                       /* for the caller: it cannot pass with weak_sc */
} model_scenario;

typedef struct model_options {
    bool plain;     /* every shared step asks who goes first, no state is recognised: slow, simple */
    bool weak_sc;   /* seq_cst accesses (not fences) are acquire and release accesses */
    bool quiet;     /* a failure prints no trace */
    double limit_s; /* a search that takes longer has failed; 0: no limit */
} model_options;

typedef struct model_report {
    bool failed;
    bool sc_accesses;    /* there were some, so weak_sc makes a difference */
    char why[160];
    uint64_t executions; /* seen to the end */
    uint64_t merged;     /* left where they reached a state met before */
    uint64_t states;     /* in which there was something to choose */
    double seconds;
} model_report;

/* Search all executions. The first failure ends the search and prints its trace. */
model_report model_explore(const model_scenario *scenario, model_options options);

/* In a thread or finish(): what must hold. */
#define model_check(condition) ((condition) ? (void)0 : model_fail("%s:%d: not so: %s", __FILE__, __LINE__, #condition))
void model_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* In setup(): the 8 bytes at `address` are to be free of data races, as if they were not atomic. A load
 * must happen after every store, a store after every load and store: in any execution, not only when
 * the value betrays it. */
void model_exclusive(const void *address);

uint64_t model_load(const void *address, size_t bytes, enum model_order order, const char *where);
void model_store(void *address, size_t bytes, uint64_t value, enum model_order order, const char *where);
enum model_rmw { MODEL_EXCHANGE, MODEL_ADD, MODEL_SUB };
uint64_t model_rmw(void *address, size_t bytes, enum model_rmw how, uint64_t value, enum model_order order,
                   const char *where);
bool model_cas(void *address, size_t bytes, void *expected, uint64_t value, enum model_order order, const char *where);
void model_fence(enum model_order order, const char *where);

/* Sleep while the word is `expected`, until woken. With `may_expire` the other outcome is tried, too.
 * Returns whether the time was up. */
bool model_wait(void *word, size_t bytes, uint64_t expected, bool may_expire, const char *where);
void model_wake(void *word, size_t bytes, const char *where);

/* ---- the names ring.h asks for --------------------------------------------------------------- */

#define PCMRING_OWN_ATOMICS 1
#define PCMRING_OWN_WAIT 1
#define PCMRING_ATOMIC_COPY 1

typedef struct { uint16_t bits; } pcmring_a16;
typedef struct { uint32_t bits; } pcmring_a32;
typedef struct { uint64_t bits; } pcmring_a64;

/* a value of the word's type: + drops its const; a statement, because ring.h ignores some results */
#define MODEL_AS_(p, value) __extension__({ __typeof__(+(p)->bits) model_value_ = (value); model_value_; })
#define pcmring_load(p, order) MODEL_AS_(p, model_load((p), sizeof *(p), model_##order, __func__))
#define pcmring_store(p, v, order) model_store((p), sizeof *(p), (v), model_##order, __func__)
#define pcmring_exchange(p, v, order)                                                              \
    MODEL_AS_(p, model_rmw((p), sizeof *(p), MODEL_EXCHANGE, (v), model_##order, __func__))
#define pcmring_add(p, v, order) MODEL_AS_(p, model_rmw((p), sizeof *(p), MODEL_ADD, (v), model_##order, __func__))
#define pcmring_sub(p, v, order) MODEL_AS_(p, model_rmw((p), sizeof *(p), MODEL_SUB, (v), model_##order, __func__))
#define pcmring_cas(p, expected, v, order) model_cas((p), sizeof *(p), (expected), (v), model_##order, __func__)
#define pcmring_fence(order) model_fence(model_##order, __func__)
#define pcmring_count(p, v) ((void)((p)->bits += (v))) /* a statistic with one writer: nobody branches on it */
#define pcmring_os_wait(word, expected, deadline_ns, shared)                                       \
    ((void)(shared),                                                                               \
     model_wait((word), sizeof *(word), (expected), (deadline_ns) != PCMRING_FOREVER, __func__) ? PCMRING_TIMED_OUT \
                                                                                               : PCMRING_READY)
#define pcmring_os_wake(word, shared) ((void)(shared), model_wake((word), sizeof *(word), __func__))

#endif
