"""Plant errors in a copy of ring.h and see that the native tests catch each of them.

A test that never fails proves nothing. Each mutant below is one wrong line, with the reason why
it is wrong; it counts as caught when a check that passes on the true header fails, or does not
end, on the mutant. Before the mutants every check runs once on the true header.

The checks, cheapest first: `unit`, `stress` (threads, release form), `tsan` (guarded readers only,
where plain memcpy must be free of races), and `model`, which explores interleavings under the C11
memory model: only it can tell that a fence is missing which x86 does not need.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Mutant:
    """One planted error: texts that occur exactly once in ring.h, and what to put there."""

    name: str
    why: str
    edits: tuple[tuple[str, str], ...]
    # "model guard": of the model checker, the scenarios with this word in their name
    checks: tuple[str, ...] = ("unit",)


def mutant(name: str, why: str, old: str, new: str, *checks: str) -> Mutant:
    """Return a mutant with a single edit."""
    return Mutant(name, why, ((old, new),), checks or ("unit",))


MUTANTS = (
    # ---- the sequence lock over the frames
    mutant(
        "committed published relaxed",
        "a reader may see the count before the frames",
        "pcmring_store(&c->committed, end, release);",
        "pcmring_store(&c->committed, end, relaxed);",
        "tsan",
        "model overwrite",
    ),
    mutant(
        "committed read relaxed",
        "the frames may be read before the count that covers them",
        "return pcmring_load(&r->control->committed, acquire);",
        "return pcmring_load(&r->control->committed, relaxed);",
        "tsan",
        "model overwrite",
    ),
    mutant(
        "reserved never stored",
        "no reader learns that it was overtaken",
        "pcmring_store(&c->reserved, end, relaxed);",
        "",
    ),
    Mutant(
        "reserved stored after the frames",
        "the announcement comes too late",
        (
            ("    pcmring_store(&c->reserved, end, relaxed);\n    pcmring_fence(release);\n", ""),
            (
                "    /* release, partner of the acquire in pcmring_frames_written(): the frames come before",
                "    pcmring_store(&c->reserved, end, release);\n    /* release: the frames come before",
            ),
        ),
        ("stress", "model overwrite"),
    ),
    mutant(
        "no release fence after reserved",
        "frames may become visible before their announcement",
        "    pcmring_store(&c->reserved, end, relaxed);\n    pcmring_fence(release);\n",
        "    pcmring_store(&c->reserved, end, relaxed);\n",
        "model overwrite",
    ),
    mutant(
        "no acquire fence before the check",
        "the check may be made before the copy",
        "    pcmring_fence(acquire);\n    reserved = ",
        "    reserved = ",
        "model overwrite",
    ),
    mutant(
        "copy not validated",
        "torn frames are handed out",
        "if (PCMRING_LIKELY(whole <= start))\n        return 0;",
        "return 0;",
    ),
    mutant(
        "first whole frame one too old",
        "the frame being overwritten counts as whole",
        "return reserved > r->slots ? reserved - r->slots : 0;",
        "return reserved > r->slots ? reserved - r->slots - 1 : 0;",
    ),
    mutant(
        "first whole frame counted by capacity",
        "frames in the slack are thrown away, or kept where slots == capacity",
        "return reserved > r->slots ? reserved - r->slots : 0;",
        "return reserved > r->capacity ? reserved - r->capacity : 0;",
    ),
    mutant(
        "torn frames stay in front",
        "the frames handed out are not those claimed",
        "memmove(out, (uint8_t *)out + torn * r->frame_bytes, (size_t)(copied * r->frame_bytes));",
        "",
    ),
    mutant(
        "position not moved past the tear",
        "the frames claimed are older than those given",
        "        position += torn;\n",
        "",
    ),
    mutant(
        "latest counts torn frames",
        "more frames are claimed than were given",
        "*start = written - n + torn;\n            return n - torn;",
        "*start = written - n + torn;\n            return n;",
    ),
    # ---- indexes, wrap, what is held
    mutant(
        "put_ wraps one frame short",
        "the second part begins with the wrong frame",
        "pcmring_copy_in_(r->data, src + first * r->frame_bytes, (frames - first)",
        "pcmring_copy_in_(r->data, src + (first - 1) * r->frame_bytes, (frames - first)",
    ),
    mutant(
        "put_ leaves the last wrapped frame out",
        "an old frame stays in its place",
        "pcmring_copy_in_(r->data, src + first * r->frame_bytes, (frames - first)",
        "pcmring_copy_in_(r->data, src + first * r->frame_bytes, (frames - first - (frames > first))",
    ),
    mutant(
        "copy_range wraps one frame short",
        "the second part lands on the first",
        "pcmring_copy_out_((uint8_t *)out + to_end * r->frame_bytes, r->data,",
        "pcmring_copy_out_((uint8_t *)out + (to_end - 1) * r->frame_bytes, r->data,",
    ),
    mutant(
        "put_converted_ wraps too late",
        "a frame is written behind the end",
        "index = n < to_end ? index + n : 0;",
        "index = n <= to_end ? index + n : 0;",
    ),
    mutant(
        "put_converted_ does not stop at the end",
        "frames are written behind the end",
        "n = n < to_end ? n : to_end;",
        "n = n < to_end + 1 ? n : to_end + 1;",
    ),
    mutant(
        "write index reaches slots",
        "the next block begins behind the end",
        "    index += kept;\n    return index < r->slots ? index : index - r->slots;",
        "    index += kept;\n    return index <= r->slots ? index : index - r->slots;",
    ),
    mutant(
        "write index reaches slots without a wrap",
        "the next block begins behind the end",
        "src_format == r->format && frames < to_end)",
        "src_format == r->format && frames <= to_end)",
    ),
    mutant(
        "no look at longer and shorter blocks",
        "the counters stay at the first block's length",
        "frames - shortest <= pcmring_load(&c->max_block, relaxed) - shortest",
        "shortest",
    ),
    mutant(
        "slot by 32 bits beyond 2^32",
        "ranges past 2^32 are read elsewhere",
        "if (PCMRING_LIKELY((position >> 32) == 0 && (r->slots >> 32) == 0))",
        "if (PCMRING_LIKELY((r->slots >> 32) == 0))",
    ),
    mutant(
        "oldest one too old",
        "a frame already overwritten counts as held",
        "written > r->capacity ? written - r->capacity : 0;",
        "written > r->capacity ? written - r->capacity - 1 : 0;",
    ),
    mutant(
        "oldest one too young",
        "one frame less is held than promised",
        "written > r->capacity ? written - r->capacity : 0;",
        "written > r->capacity ? written - r->capacity + 1 : 0;",
    ),
    mutant(
        "floor ignored",
        "cleared frames come back",
        "if (PCMRING_LIKELY(oldest >= floor))",
        "if (1)",
    ),
    mutant(
        "floor past what the caller has seen",
        "a reader beside clear() counts backwards",
        "return floor < written ? floor : written;",
        "return floor;",
    ),
    mutant(
        "over-long block keeps its first frames",
        "the newest are to stay",
        "src = (const uint8_t *)src + (frames - kept) * pcmring_sample_bytes(src_format)",
        "src = (const uint8_t *)src + 0 * pcmring_sample_bytes(src_format)",
    ),
    mutant(
        "over-long block does not skip slots",
        "the frames lie in other slots than their positions say",
        "index = (index + (frames - kept) % r->slots) % r->slots;",
        "",
    ),
    mutant(
        "over-long block skips modulo capacity",
        "wrong where slots > capacity",
        "index = (index + (frames - kept) % r->slots) % r->slots;",
        "index = (index + (frames - kept) % r->capacity) % r->slots;",
    ),
    mutant(
        "over-long source skips by the ring's sample size",
        "wrong where the formats differ",
        "(frames - kept) * pcmring_sample_bytes(src_format) * r->channels;",
        "(frames - kept) * r->frame_bytes;",
    ),
    # ---- readers
    mutant(
        "lost not counted",
        "frames vanish from the account",
        "    reader->lost += position - reader->position;\n",
        "",
    ),
    mutant(
        "advance never ends",
        "PCMRING_NEVER is a number like any other",
        "position + (advance < copied ? advance : copied));",
        "position + advance);",
    ),
    mutant(
        "advance ignored",
        "windows no longer overlap",
        "position + (advance < copied ? advance : copied));",
        "position + copied);",
    ),
    mutant(
        "guard position published relaxed",
        "the producer may overwrite what is still being copied",
        "pcmring_store(&reader->guard->position, position, release);",
        "pcmring_store(&reader->guard->position, position, relaxed);",
        "tsan",
        "model drop",
    ),
    mutant(
        "guard position read relaxed",
        "the producer may overwrite what is still being copied",
        "pcmring_load(&r->guards[i].position, acquire);",
        "pcmring_load(&r->guards[i].position, relaxed);",
        "tsan",
        "model drop",
    ),
    mutant(
        "guard freed relaxed",
        "the last copy of a leaving reader may be overwritten",
        "pcmring_store(&reader->guard->state, PCMRING_GUARD_FREE, release);",
        "pcmring_store(&reader->guard->state, PCMRING_GUARD_FREE, relaxed);",
        "tsan",
        "model guard",
    ),
    mutant(
        "guard state read relaxed",
        "the last copy of a leaving reader may be overwritten",
        "if (pcmring_load(&r->guards[i].state, acquire) == PCMRING_GUARD_ACTIVE)",
        "if (pcmring_load(&r->guards[i].state, relaxed) == PCMRING_GUARD_ACTIVE)",
        "tsan",
        "model guard",
    ),
    mutant(
        "guard slot claimed relaxed",
        "the last owner's copy is not ordered before what the new one publishes",
        "&state, PCMRING_GUARD_CLAIMED, acquire)",
        "&state, PCMRING_GUARD_CLAIMED, relaxed)",
        "tsan",
        "model guard",
    ),
    mutant(
        "no fence after a guard opens",
        "a producer may miss the reader for more than the block under way",
        "        pcmring_fence(seq_cst);\n        if (position == PCMRING_NEVER) {",
        "        if (position == PCMRING_NEVER) {",
        "model guard",
    ),
    mutant(
        "guard starts where it first looked",
        "blocks stored before the guard took effect count as promised",
        "            reader->start = reader->position = pcmring_frames_written(r);\n",
        "",
        "model guard",
    ),
    mutant(
        "guard_high not raised",
        "the producer never looks at the slot",
        "while (high < i + 1 && !pcmring_cas(&c->guard_high, &high, i + 1, relaxed)) {\n        }",
        "",
    ),
    mutant(
        "guard scan one short",
        "the last guard is not respected",
        "for (i = 0; i < high; i++) {",
        "for (i = 0; i + 1 < high; i++) {",
    ),
    mutant(
        "epoch not bumped",
        "the producer goes by a limit that does not know the reader",
        "        pcmring_add(&c->guard_epoch, 1, release);\n",
        "",
    ),
    mutant(
        "epoch not looked at",
        "the producer goes by a limit that does not know the reader",
        "if (epoch != c->guard_epoch_seen || c->write_limit < written",
        "if (c->write_limit < written",
    ),
    mutant(
        "space one too large",
        "an unread frame is overwritten",
        "(limit > floor ? limit : floor) + r->capacity;",
        "(limit > floor ? limit : floor) + r->capacity + 1;",
    ),
    mutant(
        "space one too small",
        "a frame that fits is refused",
        "(limit > floor ? limit : floor) + r->capacity;",
        "(limit > floor ? limit : floor) + r->capacity - 1;",
    ),
    mutant(
        "space does not follow clear",
        "a cleared ring stays full",
        "limit = (limit > floor ? limit : floor) + r->capacity;",
        "limit = limit + r->capacity + 0 * floor;",
    ),
    mutant(
        "space ignored",
        "guarded audio is overwritten",
        "accepted = frames < space ? frames : space;",
        "accepted = space ? frames : 0;",
    ),
    # ---- ledger and stamps
    mutant(
        "drop not recorded",
        "dropped frames are in no account",
        "        pcmring_add_gap(r, frames - accepted, PCMRING_DROPPED, 1);\n",
        "        (void)0;\n",
    ),
    mutant(
        "gaps merge across positions",
        "a gap is booked where it was not",
        "if (made && pcmring_load(&last->position, relaxed) == position && ",
        "if (made && ",
    ),
    mutant(
        "gaps merge across causes",
        "a gap is booked under another cause",
        "pcmring_load(&last->cause, relaxed) == cause &&",
        "1 &&",
    ),
    mutant(
        "a full ledger keeps its oldest",
        "the newest is to be kept",
        "pcmring_gap_slot *gap = &r->gaps[made % c->gap_slots];",
        "pcmring_gap_slot *gap = &r->gaps[made < c->gap_slots ? made : c->gap_slots - 1];",
    ),
    mutant(
        "lost frames not totalled",
        "what falls out of the ledger is gone",
        "    pcmring_count(&c->lost[cause], frames);\n",
        "",
    ),
    mutant(
        "stamp not forced after a gap",
        "times after the gap are computed across it",
        "        c->next_stamp = position; ",
        "        c->next_stamp = c->next_stamp; ",
    ),
    mutant(
        "stamp one block late",
        "the block at the interval goes without",
        "if (!PCMRING_LIKELY(written < c->next_stamp))",
        "if (!PCMRING_LIKELY(written <= c->next_stamp))",
    ),
    mutant(
        "every block stamped",
        "the stamps no longer span the ring",
        "if (!PCMRING_LIKELY(written < c->next_stamp))",
        "if (c->stamp_slots)",
    ),
    mutant(
        "shortest block wrong",
        "the counter stays at none",
        "if (frames - 1 < pcmring_load(&c->min_block, relaxed) - 1)",
        "if (frames < pcmring_load(&c->min_block, relaxed))",
    ),
    mutant(
        "snapshot not validated",
        "entries of two laps are mixed",
        "whole = begun > places ? begun - places : 0;",
        "whole = begun > places ? 0 : 0;",
        "stress",
        "model gaps stamps",
    ),
    mutant(
        "entry not announced",
        "the oldest entry may be copied while it becomes the newest",
        "    pcmring_store(seq, 2 * made + 1, release);\n",
        "",
        "stress",
        "model gaps stamps",
    ),
    mutant(
        "entry announced relaxed",
        "who meets the odd number may not see the entries before",
        "pcmring_store(seq, 2 * made + 1, release);",
        "pcmring_store(seq, 2 * made + 1, relaxed);",
        "model gaps stamps",
    ),
    mutant(
        "no release fence after the announcement",
        "a changed entry may be visible before the odd number",
        "    pcmring_fence(release);\n    return made;",
        "    return made;",
        "model gaps stamps",
    ),
    mutant(
        "no acquire fence before the entries are checked",
        "the check may be made before the copy",
        "    pcmring_fence(acquire); /* partner of the release fence in pcmring_entry_begin_() */\n",
        "",
        "model gaps stamps",
    ),
    mutant(
        "entry published relaxed",
        "the even number may be visible before the entry",
        "pcmring_store(seq, 2 * made + 2, release);",
        "pcmring_store(seq, 2 * made + 2, relaxed);",
        "model gaps stamps",
    ),
    mutant(
        "entries counted relaxed",
        "the entry may be copied before it was there",
        "return pcmring_load(seq, acquire) / 2;",
        "return pcmring_load(seq, relaxed) / 2;",
        "model gaps stamps",
    ),
    # ---- conversions
    mutant(
        "int16 does not saturate",
        "loud samples wrap to the other sign",
        "x = x > 32767.0f ? 32767.0f : x;",
        "",
    ),
    mutant(
        "int16 does not saturate below",
        "loud samples wrap to the other sign",
        "x = x < -32768.0f ? -32768.0f : x;",
        "",
    ),
    mutant(
        "int32 saturates one too high",
        "full scale wraps to the other sign",
        "x = x > scale - 1.0 ? scale - 1.0 : x;",
        "x = x > scale ? scale : x;",
    ),
    mutant(
        "float32 NaN passes",
        "NaN becomes its payload",
        "x = x != x ? 0.0f : x;",
        "",
    ),
    mutant(
        "float64 NaN passes",
        "NaN becomes its payload",
        "x = x != x ? 0.0 : x;",
        "",
    ),
    mutant(
        "float32 truncates",
        "half to even is the rule",
        "return (int16_t)(sum.i & 0xffff);",
        "return (int16_t)(x + 0.0f * sum.f);",
    ),
    mutant(
        "int32 rounds half up",
        "half to even is the rule",
        "((int64_t)x + 0x7fff + ((x >> 16) & 1)) >> 16;",
        "((int64_t)x + 0x8000) >> 16;",
    ),
    mutant(
        "int32 to int16 does not saturate",
        "full scale wraps to the other sign",
        "return (int16_t)(rounded > 32767 ? 32767 : rounded);",
        "return (int16_t)rounded;",
    ),
    # ---- attach
    mutant(
        "attach trusts frame_bytes",
        "frames would be read past the end",
        "c->frame_bytes != c->channels * pcmring_sample_bytes(c->format) || ",
        "",
    ),
    mutant(
        "attach trusts slots",
        "frames would be read past the end",
        " || c->slots > (c->total_bytes - c->data_offset) / c->frame_bytes)",
        ")",
    ),
    # ---- waking
    mutant(
        "no fence after committed",
        "the wish may be read before the frames are visible: both sides miss each other",
        "    pcmring_fence(seq_cst);\n    return pcmring_load(&c->wake_at, relaxed) <= end;",
        "    return pcmring_load(&c->wake_at, relaxed) <= end;",
        "stress",
        "model sleeper",
    ),
    mutant(
        "no fence after the wish",
        "the count may be read before the wish is visible: both sides miss each other",
        "    pcmring_fence(seq_cst); /* partner of those in pcmring_store_block_() and pcmring_wake() */\n",
        "",
        "model sleeper",
    ),
    mutant(
        "woken one frame late",
        "the frame waited for does not wake",
        "return pcmring_load(&c->wake_at, relaxed) <= end;",
        "return pcmring_load(&c->wake_at, relaxed) < end;",
    ),
    mutant(
        "wake_seq not bumped",
        "who is about to sleep misses the wake-up",
        "    pcmring_add(&c->wake_seq, 1, release);\n",
        "",
    ),
    Mutant(
        "wake_seq read after the wish",
        "a wake-up between the two is slept through",
        (
            ("        const uint32_t seq = pcmring_load(&c->wake_seq, acquire);\n", ""),
            (
                "        result = pcmring_os_wait(&c->wake_seq, seq, deadline_ns",
                "        const uint32_t seq = pcmring_load(&c->wake_seq, acquire);\n"
                "        result = pcmring_os_wait(&c->wake_seq, seq, deadline_ns",
            ),
        ),
        ("stress", "model sleeper"),
    ),
    mutant(
        "wish not taken by the wake-up",
        "every block wakes from then on",
        "    pcmring_exchange(&c->wake_at, PCMRING_NEVER, relaxed);\n",
        "",
    ),
    mutant(
        "no fence after wake_seq",
        "the sleepers may be counted before the new number is visible: both sides miss each other",
        "    pcmring_fence(seq_cst);\n    if (pcmring_load(&c->sleepers",
        "    if (pcmring_load(&c->sleepers",
        "model sleeper",
    ),
    mutant(
        "listener trusts a wish already taken",
        "it is in the list too late for that wake-up, and nobody makes the wish anew",
        "            pcmring_add(&r->control->wake_at, 0, acq_rel);\n",
        "",
        "model loop",
    ),
    mutant(
        "listener announced relaxed",
        "who takes the wish may not see the listener",
        "            pcmring_add(&r->control->wake_at, 0, acq_rel);\n",
        "            pcmring_add(&r->control->wake_at, 0, relaxed);\n",
        "model loop",
    ),
    mutant(
        "guard that moves up does not wake the producer",
        "it sleeps although there is space",
        "if (r->policy == PCMRING_BLOCK) /* it may have gone to sleep at the older position */",
        "if (0)",
        "model space",
    ),
    mutant(
        "no fence after storing",
        "the producer may miss the close, and the reader that it is storing",
        "        pcmring_fence(seq_cst);\n        if (pcmring_load(&r->control->closed, relaxed)) {",
        "        if (pcmring_load(&r->control->closed, relaxed)) {",
        "model nothing",
    ),
    mutant(
        "no fence before storing is read",
        "the reader may miss that the producer is storing",
        "    pcmring_fence(seq_cst); /* partner of the one in pcmring_write() */\n",
        "",
        "model nothing",
    ),
    mutant(
        "sleepers not counted",
        "nobody is woken",
        "    pcmring_add(&c->sleepers, 1, relaxed);",
        "",
    ),
    mutant(
        "woken without sleepers",
        "a system call for nobody",
        "if (pcmring_load(&c->sleepers, relaxed))",
        "if (1)",
    ),
    mutant(
        "private wake of a shared word",
        "the sleeper and the waker mean different words",
        "FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG)",
        "FUTEX_WAKE | FUTEX_PRIVATE_FLAG",
    ),
    mutant(
        "close does not wake readers",
        "they sleep on",
        "    pcmring_wake(r);\n    pcmring_add(&r->control->space_seq, 1, release);",
        "    pcmring_add(&r->control->space_seq, 1, release);",
    ),
    mutant(
        "close does not wake the producer",
        "it sleeps on",
        "    pcmring_os_wake(&r->control->space_seq, (int)r->control->shared);\n",
        "",
    ),
    mutant(
        "read does not wake the producer",
        "it sleeps although there is space",
        "pcmring_store(&reader->guard->position, position, release);\n        if (r->policy == PCMRING_BLOCK)",
        "pcmring_store(&reader->guard->position, position, release);\n        if (0)",
    ),
    mutant(
        "guard that closes does not wake the producer",
        "it sleeps although there is space",
        "        reader->counts_fill = 0;\n        if (r->policy == PCMRING_BLOCK)",
        "        reader->counts_fill = 0;\n        if (0)",
    ),
    mutant(
        "clear does not wake the producer",
        "it sleeps although there is space",
        "    if (r->policy == PCMRING_BLOCK)\n        pcmring_wake_producer_(r);\n}\n\n/* ---- readers",
        "}\n\n/* ---- readers",
    ),
    mutant(
        "no fence after producer_waits",
        "the producer may look for space before its wait is visible",
        "        pcmring_fence(seq_cst); /* partner of the one in pcmring_wake_producer_() */\n",
        "",
        "model space",
    ),
    mutant(
        "no fence before producer_waits is read",
        "the reader may miss the producer's wait before its space is visible",
        "    pcmring_fence(seq_cst);\n    if (pcmring_load(&c->producer_waits, relaxed)) {",
        "    if (pcmring_load(&c->producer_waits, relaxed)) {",
        "model space",
    ),
    mutant(
        "space_seq not bumped",
        "a producer about to sleep misses the wake-up",
        "        pcmring_add(&c->space_seq, 1, release); /*",
        "        /*",
    ),
    mutant(
        "listener removed too soon",
        "its descriptor's next owner is written to",
        "    while (pcmring_load(&r->notifying, seq_cst)) {\n    }\n",
        "",
    ),
    mutant(
        "deadline beats the frames",
        "frames that came with the deadline are reported as none",
        "            result = pcmring_frames_written(r) >= target ? PCMRING_READY : result;\n",
        "",
    ),
)

# What says best how a check failed, best first: a race, a unit test, a stress scenario's finding.
TELLING = tuple(
    map(
        re.compile,
        (
            r"^SUMMARY: ",
            r"^FAILED \w+ \(",
            r"^(overwrite|drop|block|wake) .*?: ",
            r"(?i)violat|FAILED",
        ),
    )
)
SETARCH = ["setarch", "-R"]
# Many times what each takes on the true header: a mutant may open many more interleavings.
LIMITS_S = {"unit": 30.0, "stress": 120.0, "tsan": 120.0, "model": 900.0}


class Bench:
    """A folder with a mutated header, and the checks to run on it."""

    def __init__(self, folder: Path, header: str, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        include = folder / "include" / "pcmring"
        include.mkdir(parents=True)
        (include / "ring.h").write_text(header, encoding="utf-8")

    def build(self, where: str, name: str) -> str:
        """Build a program with the mutated header, outside the source, and return its path."""
        folder = self.folder / "build" / where
        variables = [f"RING_DIR={self.folder / 'include'}", f"BUILD={folder}"]
        if where == ".":
            variables += ["WARN=", "CFLAGS=-DFAR_S=3"]
        done = subprocess.run(
            ["make", "-s", "-C", str(HERE / where), *variables, str(folder / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"does not build:\n{done.stdout}")
        return str(folder / name)

    def run(self, check: str) -> str:
        """Return what the check found, or "" when it passed."""
        check, *words = check.split()
        seed = ["--seed", str(self.seed)]
        if check == "model":
            command = [self.build("model", "model"), *words]
        elif check == "unit":
            command = [self.build(".", "unit"), "--first"]
        elif check == "stress":
            command = [self.build(".", "stress"), "--frames", "3e7", "--patience", "2", *seed]
        else:
            program = self.build(".", "stress_tsan_memcpy")
            command = [program, "--guarded", "--frames", "1e7", "--patience", "5", *seed]
            # ThreadSanitizer needs its addresses where the kernel may have put something else.
            if subprocess.run([*SETARCH, "true"], check=False).returncode == 0:
                command = [*SETARCH, *command]
        return self.verdict(command, LIMITS_S[check])

    def verdict(self, command: Sequence[str], limit_s: float) -> str:
        """Run to the end or the limit; return the most telling line of a failure."""
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # a session of its own: this program and what it started
                process.communicate()
                return f"does not end within {limit_s:.0f} s"
        if process.returncode == 0:
            return ""
        return most_telling(output, process.returncode)


def most_telling(output: str, code: int) -> str:
    """Return the line of a failed check's output that says what was wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in TELLING:
        for line in lines:
            if pattern.search(line):
                return re.sub(r"\S*/(?=\w+\.[ch]\b)", "", line)
    return lines[-1] if lines and code > 0 else f"ended by {code}"


def planted(header: str, one: Mutant) -> str:
    """Return the header with the mutant in it."""
    for old, new in one.edits:
        if header.count(old) != 1:
            raise RuntimeError(f"its text occurs {header.count(old)} times in ring.h: {old!r}")
        header = header.replace(old, new)
    return header


def main() -> int:
    """Run the mutants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ring-dir", type=Path, default=HERE / "../../src/pcmring/include")
    parser.add_argument("--only", default="", help="mutants whose name contains one of PART,PART…")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    options = parser.parse_args()

    parts = options.only.split(",")
    chosen = [one for one in MUTANTS if any(part in one.name for part in parts)]
    if options.list:
        for one in chosen:
            print(f"{one.name}: {one.why} ({', '.join(one.checks)})")
        return 0
    header = (options.ring_dir / "pcmring" / "ring.h").read_text(encoding="utf-8")
    have_model = (HERE / "model" / "Makefile").exists()
    started = time.monotonic()
    failures = 0

    def attempt(text: str, checks: Sequence[str]) -> tuple[str, str]:
        """Return the check that failed and what it said, or two empty texts."""
        folder = Path(tempfile.mkdtemp(prefix="pcmring-mutant-"))
        try:
            bench = Bench(folder, text, options.seed)
            for check in checks:
                if check.startswith("model") and not have_model:
                    continue
                said = bench.run(check)
                if said:
                    return check.split()[0], said
        finally:
            shutil.rmtree(folder)
        return "", ""

    wanted = {check.split()[0] for one in chosen for check in one.checks}
    needed = [check for check in ("unit", "stress", "tsan", "model") if check in wanted]
    if not have_model and "model" in needed:
        needed.remove("model")
    check, said = attempt(header, needed)
    if check:
        print(f"the true header fails {check}: {said}")
        return 1
    print(f"the true header passes {', '.join(needed)} ({time.monotonic() - started:.0f} s)")
    if not have_model:
        print("the model checker is not here: what only it can catch stays pending")

    print(f"{'mutant':48} {'caught by':9} {'seconds':>7}  how", flush=True)
    for one in chosen:
        before = time.monotonic()
        try:
            check, said = attempt(planted(header, one), one.checks)
        except RuntimeError as error:
            check, said = "ERROR", str(error)
            failures += 1
        if not check:
            pending = one.checks[-1].startswith("model") and not have_model
            check, said = ("pending" if pending else "SURVIVED"), one.why
            failures += 1
        print(f"{one.name:48} {check:9} {time.monotonic() - before:7.1f}  {said}", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} caught, {failures} not, {time.monotonic() - started:.0f} s")
    return 1 if failures or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
