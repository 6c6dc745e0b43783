"""The ring as plain Python lists: what AudioBuffer and Reader promise, with nothing that makes it fast.

Written from the docstrings. A frame is a serial number; `samples` says what the frame of that number
holds, so that every frame differs from those a lap earlier or later and from its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: Full scale of the dtypes: 1.0, or the integer that stands for it.
_SCALE = {"int16": 1, "int32": 65_536, "float32": 1 / 32_768, "float64": 1 / 32_768}

#: ring.h, pcmring_table_slots_(): entries of the ledger, as many as there are 10 ms blocks at 16 kHz, 8 to 256.
LEDGER_LEAST, LEDGER_MOST, LEDGER_BLOCK = 8, 256, 160

#: Reader.losses(): "the newest 1,024 ranges".
LOSS_RANGES = 1024


def samples(serials, channels: int, dtype: str) -> np.ndarray:
    """The audio of these frames. 16 bits that every dtype holds exactly, so that converting changes nothing."""
    serial = np.asarray(serials, dtype=np.int64).reshape(-1, 1)
    code = (serial * 40_503 + (serial >> 16) * 12_289 + np.arange(channels) * 9_973) & 0xFFFF
    return ((code - 32_768) * _SCALE[dtype]).astype(dtype)


@dataclass
class ModelReader:
    """One consumer's account."""

    ring: ModelRing
    start: int
    guard: bool = False
    position: int = 0
    delivered: int = 0
    lost: int = 0
    losses: list[tuple[int, int]] = field(default_factory=list)
    handed: int = 0  # position behind the newest frame it was given; windows overlap
    closed: bool = False

    def __post_init__(self) -> None:
        self.position = self.handed = self.start

    @property
    def available(self) -> int:
        return 0 if self.closed else self.ring.written - max(self.position, self.ring.oldest)

    def take(self, frames: int, advance: int | None = None) -> list[int]:
        """Read up to `frames` frames and move on by at most `advance`; what is gone is counted now, not before."""
        first = max(self.position, self.ring.oldest)
        gone_from = min(max(self.position, self.handed), first)  # what it was given before it went is not lost
        self.delivered += gone_from - self.position
        if gone_from < first:
            self.lost += first - gone_from
            if self.losses and self.losses[-1][1] == gone_from:
                self.losses[-1] = (self.losses[-1][0], first)
            else:
                self.losses.append((gone_from, first))
            del self.losses[:-LOSS_RANGES]
        stop = min(first + frames, self.ring.written)
        step = stop - first if advance is None else min(advance, stop - first)
        self.delivered += step
        self.position = first + step
        self.handed = max(self.handed, stop)
        return self.ring.serials(first, stop)


class ModelBlocks:
    """The windows of a reader."""

    def __init__(self, reader: ModelReader, frames: int, hop: int) -> None:
        self.reader, self.frames, self.hop = reader, frames, hop
        self.end = 0  # position behind the newest frame of the last window
        self.lost_before = reader.lost
        self.over = False

    def next(self) -> tuple[int, list[int], int] | None:
        """(start, serials, lost); None: not there yet; StopIteration: no more."""
        reader, frames = self.reader, self.frames
        if self.over or reader.closed:
            raise StopIteration
        if reader.available < frames:
            if not reader.ring.closed:
                return None
            frames = reader.available
            if frames == 0 or reader.ring.written <= self.end:
                self.over = True
                raise StopIteration
        start = max(reader.position, reader.ring.oldest)
        found = reader.take(frames, self.hop)
        lost, self.lost_before = reader.lost - self.lost_before, reader.lost
        self.end = start + frames
        return start, found, lost


class ModelRing:
    """An AudioBuffer."""

    def __init__(self, capacity: int, channels: int, dtype: str, policy: str, first: int = 0) -> None:
        self.capacity, self.channels, self.dtype, self.policy = capacity, channels, dtype, policy
        self.first = self.floor = first
        self.frames: list[int] = []  # serial of every frame ever stored
        self.own = ModelReader(self, first, guard=policy != "overwrite")
        self.readers: list[ModelReader] = []
        self.gaps: list[tuple[int, int, str, bool]] = []  # every entry ever made
        self.lost_by_cause = dict.fromkeys(("device_overflow", "dropped", "reopened", "paused"), 0)
        self.blocks: list[int] = []  # lengths
        self.offered = self.refused = 0
        self.peak_fill = 0
        self.closed = False

    def serials(self, start: int, stop: int) -> list[int]:
        return self.frames[start - self.first : stop - self.first]

    def audio(self, serials: list[int]) -> np.ndarray:
        return samples(serials, self.channels, self.dtype)

    @property
    def written(self) -> int:
        return self.first + len(self.frames)

    @property
    def oldest(self) -> int:
        return max(self.floor, self.written - self.capacity)

    @property
    def guards(self) -> list[ModelReader]:
        return [reader for reader in (self.own, *self.readers) if reader.guard and not reader.closed]

    @property
    def fill(self) -> int:
        return max(reader.available for reader in self.guards or [self.own])

    @property
    def space(self) -> int | None:
        """Frames a write takes now; None: any number."""
        return self.capacity - self.fill if self.guards else None

    def note(self) -> None:
        """A moment passed."""
        self.peak_fill = max(self.peak_fill, self.fill)

    def write(self, serials: list[int]) -> int:
        space = self.space
        accepted = len(serials) if space is None else min(len(serials), space)
        self.frames += serials[:accepted]
        if accepted:
            self.blocks.append(accepted)
        self.offered += len(serials)
        self.refused += len(serials) - accepted
        if accepted < len(serials) and self.policy == "drop":
            self.add_gap(len(serials) - accepted, "dropped", True)
        return accepted

    def add_gap(self, frames: int, cause: str, exact: bool) -> None:
        last = self.gaps[-1] if self.gaps else None
        if last is not None and (last[0], last[2], last[3]) == (self.written, cause, exact):
            self.gaps[-1] = (self.written, last[1] + frames, cause, exact)
        else:
            self.gaps.append((self.written, frames, cause, exact))
        self.lost_by_cause[cause] += frames

    @property
    def ledger(self) -> list[tuple[int, int, str, bool]]:
        slots = min(max(self.capacity // LEDGER_BLOCK, LEDGER_LEAST), LEDGER_MOST)
        return self.gaps[-slots:]

    def open_reader(self, start: str | int, guard: bool) -> ModelReader:
        if self.own.guard and self.own.position == self.own.start:
            self.own.guard = False  # guarded for want of another, and never used
        position = {"now": self.written, "oldest": self.oldest}.get(start, start)
        reader = ModelReader(self, position, guard)
        self.readers.append(reader)
        return reader

    def clear(self) -> None:
        self.floor = self.written
