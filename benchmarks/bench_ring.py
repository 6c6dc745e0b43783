"""One thread: what a block costs on its way in and out, and what the newest audio costs."""

from __future__ import annotations

from dataclasses import dataclass
from timeit import Timer
from typing import Any

import numpy as np
from harness import Calls, Effort, Round, each_call, race
from peers import Audio, Contender, able
from peers.limits import CMethod, compiled
from peers.ours import Ring

import pcmring

RATE = 16_000
LONG = 30 * RATE  # does not stay in the nearest caches


@dataclass(frozen=True)
class Block:
    name: str
    frames: int = 160
    channels: int = 1
    capacity: int = LONG

    def __str__(self) -> str:
        return self.name

    @property
    def per_ring(self) -> int:
        return self.capacity // self.frames

    def audio(self, contender: type[Contender], seed: int = 1) -> Audio:
        audio = np.random.default_rng(seed).random((self.frames, self.channels), np.float32)
        return audio.reshape(-1) if contender.is_flat or self.channels == 1 else audio

    def make(self, contender: type[Contender]) -> Contender:
        return contender(self.capacity, self.channels, self.frames)


BLOCKS = (
    Block("10 ms"),
    Block("10 ms, ring in the cache", capacity=16_384),
    Block("1,024 frames", 1024),
    Block("10 ms of 48 kHz stereo", 480, 2, 3 * LONG),
    Block("65,536 frames", 65_536),
)


def written(place: Contender, frames: int, block: Audio) -> Any:
    """The block that was written last, by whichever way this contender has."""
    count = block.size if place.is_flat else frames
    if "newest" in place.does:
        return place.newest(count)
    if "view" in place.does:
        return place.view(count)
    if "read_into" in place.does:
        out = np.empty_like(block)
        place.read_into(out)
        return out
    return place.read() if place.reads_blocks else place.read(len(block))


def same(found: Any, expected: Audio) -> None:
    assert np.array_equal(np.asarray(found, np.float32).reshape(-1), expected.reshape(-1)), (
        "not the audio that was written"
    )


@race(able("write"), BLOCKS, goal="10 ms: at most 1.25 x the limit")
def bench_write(contender: type[Contender], case: Block, effort: Effort) -> Round:
    """One block into the ring. Queues store a copy, as a callback must: its block is PortAudio's."""
    place, block = case.make(contender), case.audio(contender)
    place.write(case.audio(contender, seed=2))
    place.drain()
    place.write(block)
    same(written(place, case.frames, block), block)
    prepare = place.drain if contender.keeps_unread else int
    return Calls(place.write, (block,), effort, prepare, case.per_ring - 1)


@race(able("read_into"), BLOCKS, goal="10 ms: at most 1.5 x the limit, and at least 12 x faster than the best peer")
def bench_read_into(contender: type[Contender], case: Block, effort: Effort) -> Round:
    """One block out of a filled ring, into an array that is there. Queues: get, then copy."""
    place, block = case.make(contender), case.audio(contender)
    out = np.zeros_like(block)

    def fill() -> None:
        place.drain()
        for _ in range(case.per_ring - 1):
            place.write(block)

    fill()
    place.read_into(out)
    same(out, block)
    return Calls(place.read_into, (out,), effort, fill, case.per_ring - 1)


@race(able("read"), BLOCKS)
def bench_read(contender: type[Contender], case: Block, effort: Effort) -> Round:
    """One block out of a filled ring as a new array. Queues hand over the array that was stored: they copied before."""
    place, block = case.make(contender), case.audio(contender)

    def fill() -> None:
        place.drain()
        for _ in range(case.per_ring - 1):
            place.write(block)

    arguments = () if contender.reads_blocks else (len(block),)
    fill()
    same(place.read(*arguments), block)
    return Calls(place.read, arguments, effort, fill, case.per_ring - 1)


@dataclass(frozen=True)
class Newest:
    seconds: int
    is_wrapped: bool

    def __str__(self) -> str:
        return f"{self.seconds} s, {'across the end of memory' if self.is_wrapped else 'in one piece'}"

    def fill(self, place: Contender, effort: Effort) -> tuple[int, Audio]:
        """Return how many frames to ask for, and what they are."""
        frames = self.seconds * RATE
        beyond = frames // 320 * 160 if self.is_wrapped else LONG if frames == LONG else frames
        audio = np.random.default_rng(1).random(LONG + beyond, np.float32)
        for at in range(0, len(audio), 160):
            place.write(audio[at : at + 160])
        return frames, audio[-frames:]


NEWEST = [Newest(seconds, is_wrapped) for seconds in (1, 30) for is_wrapped in (False, True)]


@race(able("view"), NEWEST, goal="30 s across the end: at most 2 x the limit, whatever the size")
def bench_newest_view(contender: type[Contender], case: Newest, effort: Effort) -> Round:
    """The newest audio without taking it, and without a copy where the contender has a way. The limit is an ndarray
    over the start of its memory. A view may be overwritten while it is used; pcmring's says so (`intact`).
    dvg-ringbuffer copies once after each write, and nothing is written here: see the windows for that.
    """
    place = contender(LONG)
    frames, audio = case.fill(place, effort)
    found = place.view(frames)
    if contender.kind != "limit":
        same(getattr(found, "array", found), audio)
    return Calls(place.view, (frames,), effort)


class PlainArray(Contender):
    name, kind, does = "floor: a[-n:].copy()", "floor", frozenset({"newest"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._blocks: list[Audio] = []
        self.write = self._blocks.append
        self._audio: Audio | None = None

    def newest(self, frames: int) -> Audio:
        if self._audio is None:
            self._audio = np.concatenate(self._blocks)
        return self._audio[-frames:].copy()


@race([PlainArray, *able("newest")], NEWEST)
def bench_newest_copy(contender: type[Contender], case: Newest, effort: Effort) -> Round:
    """The newest audio as a new array, nothing consumed."""
    place = contender(LONG)
    frames, audio = case.fill(place, effort)
    same(place.newest(frames), audio)
    return Calls(place.newest, (frames,), effort)


class OurBlocks(Contender):
    """The same by the iterator that is made for it."""

    name, kind, does = "pcmring Reader.blocks(n, hop)", "pcmring", frozenset({"windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        ring = pcmring.AudioBuffer(capacity)
        self.write = ring.write
        self._windows = ring.reader().blocks(RATE, RATE // 10)

    def newest(self, frames: int) -> Audio:
        return next(self._windows).array


@race([*able("windows"), OurBlocks], ["1 s every 100 ms"], is_long=True)
def bench_windows(contender: type[Contender], case: str, effort: Effort) -> Round:
    """A minute of audio in 10 ms blocks, from which every 100 ms the newest second is taken: seconds a window, the ten
    writes included.
    """
    source = np.random.default_rng(1).random(60 * RATE, np.float32)[: effort.count(60 * RATE, 2 * RATE) // 1600 * 1600]
    blocks = list(source.reshape(-1, 160))
    if not contender.is_flat:
        blocks = [block.reshape(-1, 1) for block in blocks]

    def round_() -> list[float]:
        place = contender(LONG)
        write, take = place.write, place.view if "view" in contender.does else place.newest

        def minute() -> None:
            for at, block in enumerate(blocks, 1):
                write(block)
                if at >= 100 and at % 10 == 0:
                    window = take(RATE)
            same(window, source[-RATE:])

        seconds = Timer(minute).timeit(1)
        place.close()
        return [seconds / (len(blocks) // 10 - 9)]

    return round_


@race(
    able("write"),
    ["a ring written before", "the first pass"],
    is_long=True,
    is_of_calls=True,
    goal="p99.9: at most 2 x the limit's",
)
def bench_write_tail(contender: type[Contender], case: str, effort: Effort) -> Round:
    """Every single write of 10 ms, the clock's own 30 ns or so included: what counts is p99.9. On the first pass memory
    is touched for the first time, unless the constructor did that.
    """
    block = Block("").audio(contender)
    calls = LONG // 160 - 1
    place = contender(LONG)
    place.write(block)
    same(written(place, 160, block), block)
    for _ in range(calls if case == "a ring written before" else 0):
        place.drain() if contender.keeps_unread else None
        place.write(block)

    def round_() -> list[float]:
        fresh = contender(LONG) if case == "the first pass" else place
        if contender.keeps_unread:
            fresh.drain()
        return each_call(fresh.write, block, effort.count(calls, 10))

    return round_


class EmptyMethod:
    name, kind = "limit: an empty C method", "limit"

    def __init__(self) -> None:
        self.call = compiled().nothing


class EmptyFunction:
    name, kind = "floor: an empty Python function", "floor"

    def __init__(self) -> None:
        self.call = lambda block: None


class WriteNothing:
    name, kind = "pcmring, write of no frames", "pcmring"

    def __init__(self) -> None:
        self.call = pcmring.AudioBuffer(LONG).write


@race([EmptyMethod, EmptyFunction, WriteNothing], ["one argument"])
def bench_empty_call(contender: type[EmptyMethod | EmptyFunction | WriteNothing], case: str, effort: Effort) -> Round:
    """What a call costs that moves nothing; some 7 ns of each figure here are the loop's."""
    return Calls(contender().call, (np.empty(0, np.float32),), effort)


@race([CMethod, Ring], [1_600, 16_000, 160_000, 480_000, 4_800_000, 19_200_000])
def bench_write_by_ring_size(contender: type[Contender], case: int, effort: Effort) -> Round:
    """One block of 10 ms into rings of this many frames: what is not flat is the memory's doing, see the limit."""
    place, block = contender(case), Block("").audio(contender)
    place.write(block)
    same(written(place, 160, block), block)
    for _ in range(min(case // 160, effort.count(120_000))):  # touch it all
        place.write(block)
    return Calls(place.write, (block,), effort)


@race([CMethod, Ring], [16, 64, 160, 256, 512, 1024, 4096, 16_384, 65_536])
def bench_write_by_block_size(contender: type[Contender], case: int, effort: Effort) -> Round:
    """One block of this many frames into a ring of 30 s: seconds a *frame*."""
    size = Block("", case)
    place, block = size.make(contender), size.audio(contender)
    place.write(block)
    same(written(place, case, block), block)
    calls = Calls(place.write, (block,), effort)
    return lambda: [calls()[0] / case]


@race([Ring], [0, 1, 8, 64, 512])
def bench_write_by_readers(contender: type[Contender], case: int, effort: Effort) -> Round:
    """One block of 10 ms into a ring that this many readers are open on, none of them waiting."""
    place, block = Ring(LONG), Block("").audio(contender)
    readers = [place.ring.reader() for _ in range(case)]
    place.write(block)
    for reader in readers:
        same(reader.read(160), block)
    return Calls(place.write, (block,), effort)
