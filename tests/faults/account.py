"""Every frame accounted for: what a consumer was given, what it was told is lost, what the ledger says is missing.

`ReaderAccount` follows one reader from call to call. `settle` closes the books of a stream. Both raise `Unaccounted`
when a frame is missing that nobody told of, is there twice, at the wrong place, or told to be missing and is there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from faults.positions import Unaccounted, serials
from pcmring import AudioBuffer, Gap

#: Reader.losses() keeps so many ranges.
LOSS_RANGES = 1024


def require(holds: bool, *facts: object) -> None:
    if not holds:
        raise Unaccounted(" ".join(map(str, facts)))


class Runs:
    """Frames without a break: (position, serial, frames), neighbours joined."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int, int]] = []

    def add(self, position: int, audio: np.ndarray) -> None:
        if not len(audio):
            return
        last_position, last_serial, last_frames = self.runs[-1] if self.runs else (0, 0, 0)
        require(position >= last_position + last_frames, "went back to position", position)
        found = serials(audio, last_serial + last_frames)
        breaks = [0, *(np.flatnonzero(np.diff(found) != 1) + 1).tolist(), len(found)]
        for begin, end in pairwise(breaks):
            run = (position + begin, int(found[begin]), end - begin)
            if self.runs:
                last = self.runs[-1]
                if (last[0] + last[2], last[1] + last[2]) == run[:2]:
                    self.runs[-1] = (last[0], last[1], last[2] + run[2])
                    continue
            self.runs.append(run)


class ReaderAccount(Runs):
    """Of one reader, a ring's or a resampling one at the ring's own rate. Call `add` with all it gives."""

    def __init__(self, reader: Any) -> None:
        super().__init__()
        self.reader = reader
        self.delivered = 0
        self._position, self._lost = reader.position, reader.lost
        self._lost_ranges: list[tuple[int, int]] = []

    def add(self, audio: np.ndarray, position: int | None = None) -> None:
        """`position` as the reader gave it, where it did."""
        reader = self.reader
        lost = reader.lost - self._lost
        require(lost >= 0, reader, "has lost less than before")
        first = self._position + lost
        require(reader.position == first + len(audio), reader, "should be at", first + len(audio))
        require(position in (None, first), reader, "gave position", position, "instead of", first)
        if lost:
            self._lost_ranges.append((self._position, first))
        super().add(first, audio)
        self.delivered += len(audio)
        self._position, self._lost = reader.position, reader.lost

    def settle(self) -> None:
        """delivered + lost == position - start, and the ranges told are those that were missing."""
        reader = self.reader
        require(
            self.delivered + reader.lost == reader.position - reader.start and reader.delivered == self.delivered,
            f"{reader}: {self.delivered} delivered + {reader.lost} lost != {reader.position} - {reader.start}",
        )
        told = reader.losses()
        require(all(first < last for first, last in told), "an empty loss in", told)
        joined: list[tuple[int, int]] = []
        for first, last in self._lost_ranges:
            if joined and joined[-1][1] == first:
                first = joined.pop()[0]
            joined.append((first, last))
        require(told == joined[-LOSS_RANGES:], reader, "tells of", told[-5:], "but missing are", joined[-5:])


def check_ledger(runs: Iterable[tuple[int, int, int]], gaps: Sequence[Gap], frames_missing: int) -> None:
    """The frames at each position are those that the gaps before it leave over.

    `frames_missing`: of all gaps there ever were; the ledger forgets the oldest.
    """
    gaps = [gap for gap in gaps if gap.frames]
    forgotten = frames_missing - sum(gap.frames for gap in gaps)
    missing_before = list(accumulate((gap.frames for gap in gaps), initial=forgotten))
    at = [gap.position for gap in gaps]
    for position, serial, length in runs:
        known = bisect_right(at, position)
        if known == 0 and forgotten:
            continue  # before what the ledger still knows
        require(
            serial - position == missing_before[known],
            f"at position {position}, {serial - position} frames are missing; the ledger says {missing_before[known]}",
        )
        require(
            bisect_left(at, position + length) == known,
            f"the ledger has a gap between {position} and {position + length}, where nothing is missing",
        )


def settle(buffer: AudioBuffer, offered: int, accounts: Iterable[ReaderAccount], counts: Counter[str]) -> None:
    """Close the books of a stream of which `offered` frames existed, and add its figures to `counts`."""
    statistics, gaps = buffer.statistics(), buffer.gaps()
    missing = sum(statistics.frames_lost.values())
    require(
        statistics.frames_written + missing == offered,
        f"{statistics.frames_written} written + {statistics.frames_lost} missing != {offered} offered",
    )
    counts["offered"] += offered
    counts["missing"] += missing
    for account in accounts:
        account.settle()
        check_ledger(account.runs, gaps, missing)
        counts["delivered"] += account.delivered
        counts["lost"] += account.reader.lost
