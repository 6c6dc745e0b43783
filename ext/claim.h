/* Who may use a piece of C state: one thread at a time (a claim), or as many as like until it closes (pins).
 *
 * With the GIL these words change only while it is held, so plain stores do. Without it they are atomic.
 * Neither ever waits: a refusal becomes an exception that says who is in the way. */
#ifndef PCMRING_CLAIM_H
#define PCMRING_CLAIM_H

#include <Python.h>
#include "pcmring/ring.h"

#define PCMRING_PINS_CLOSED 0x80000000u
#define PCMRING_PINS_LAST (PCMRING_PINS_CLOSED | 1u)

#ifdef Py_GIL_DISABLED
/* acquire and release: what the last holder did is visible to the next */
static inline int pcmring_claim_take(uint32_t *claim)
{
    uint32_t idle = 0;
    return pcmring_cas((pcmring_a32 *)claim, &idle, 1u, acquire);
}
/* Held for a few instructions, for which pcmring_claim_take_soon() waits. */
static inline int pcmring_claim_take_briefly(uint32_t *claim)
{
    uint32_t idle = 0;
    return pcmring_cas((pcmring_a32 *)claim, &idle, 2u, acquire);
}
static inline int pcmring_claim_take_soon(uint32_t *claim)
{
    uint32_t now;
    do {
        now = 0;
        if (pcmring_cas((pcmring_a32 *)claim, &now, 1u, acquire))
            return 1;
    } while (now == 2u);
    return 0;
}
static inline void pcmring_claim_give(uint32_t *claim) { pcmring_store((pcmring_a32 *)claim, 0u, release); }
static inline void pcmring_claim_fence(void) { pcmring_fence(seq_cst); }
static inline int pcmring_gil_claims(const uint32_t *claim, const uint32_t *pins)
{
    (void)claim, (void)pins;
    return 0;
}

static inline int pcmring_pin(uint32_t *pins)
{
    uint32_t now = pcmring_load((pcmring_a32 *)pins, relaxed);
    while (!(now & PCMRING_PINS_CLOSED))
        if (pcmring_cas((pcmring_a32 *)pins, &now, now + 1, acquire))
            return 1;
    return 0;
}
/* Also when closed, as long as somebody else's pin keeps the memory. */
static inline int pcmring_pin_mapped(uint32_t *pins)
{
    uint32_t now = pcmring_load((pcmring_a32 *)pins, acquire);
    while (now != PCMRING_PINS_CLOSED)
        if (pcmring_cas((pcmring_a32 *)pins, &now, now + 1, acquire))
            return 1;
    return 0;
}
static inline uint32_t pcmring_pins_now(uint32_t *pins) { return pcmring_load((pcmring_a32 *)pins, relaxed); }
/* acq_rel: whoever frees comes after everything the others did */
static inline int pcmring_unpin_from(uint32_t *pins, uint32_t *now)
{
    return pcmring_cas((pcmring_a32 *)pins, now, *now - 1u, acq_rel);
}
static inline void pcmring_pins_close(uint32_t *pins)
{
    uint32_t now = pcmring_load((pcmring_a32 *)pins, relaxed);
    while (!pcmring_cas((pcmring_a32 *)pins, &now, now | PCMRING_PINS_CLOSED, acq_rel)) {
    }
}
static inline int pcmring_pins_closed(uint32_t *pins)
{
    return (pcmring_load((pcmring_a32 *)pins, acquire) & PCMRING_PINS_CLOSED) != 0;
}
#else
static inline int pcmring_claim_take(uint32_t *claim)
{
    const int free_before = *claim == 0;
    *claim = 1;
    return free_before;
}
#define pcmring_claim_take_soon pcmring_claim_take
#define pcmring_claim_take_briefly pcmring_claim_take
static inline void pcmring_claim_give(uint32_t *claim) { *claim = 0; }
static inline void pcmring_claim_fence(void) {}
/* Nobody has the claim and the state is not closed: both stay so for as long as the caller keeps the GIL. */
static inline int pcmring_gil_claims(const uint32_t *claim, const uint32_t *pins)
{
    return *claim == 0 && !(*pins & PCMRING_PINS_CLOSED);
}

static inline int pcmring_pin(uint32_t *pins)
{
    if (*pins & PCMRING_PINS_CLOSED)
        return 0;
    ++*pins;
    return 1;
}
static inline int pcmring_pin_mapped(uint32_t *pins)
{
    if (*pins == PCMRING_PINS_CLOSED)
        return 0;
    ++*pins;
    return 1;
}
static inline uint32_t pcmring_pins_now(uint32_t *pins) { return *pins; }
static inline int pcmring_unpin_from(uint32_t *pins, uint32_t *now) { (void)now; --*pins; return 1; }
static inline void pcmring_pins_close(uint32_t *pins) { *pins |= PCMRING_PINS_CLOSED; }
static inline int pcmring_pins_closed(uint32_t *pins) { return (*pins & PCMRING_PINS_CLOSED) != 0; }
#endif

#endif
