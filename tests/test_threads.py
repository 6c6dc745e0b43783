"""Readers beside a producer, and threads that break the rules; through the Python API.

A frame says where it belongs: its first sample is its position, the second the complement. So a torn, repeated or
misplaced one shows at once, at millions of frames a second. With the GIL only copies of 256 KiB and more run beside
each other; the same tests on a free-threaded Python let every call do so. The 10**8 frames of CI are tests/native's.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from pcmring import AudioBuffer, AudioView, BufferClosed, FramesLost

pytestmark = pytest.mark.stress

#: NumPy reads a view with plain loads beside a producer that goes on: races to TSan, judged by `intact` afterwards.
IS_UNDER_TSAN = "libtsan" in os.environ.get("LD_PRELOAD", "")
SEED = int(os.environ.get("PCMRING_TEST_SEED", random.SystemRandom().randrange(2**32)))
LIMIT_S = 60.0  # for anything that should take a moment
LARGE = 65_536  # frames; longer than any block here
POSITIONS = np.arange(LARGE, dtype=np.int32)
CODES = np.stack((POSITIONS, ~POSITIONS), axis=1)
STEP = np.array([1, -1], dtype=np.int32)


@pytest.fixture(autouse=True)
def seed() -> int:
    print(f"PCMRING_TEST_SEED={SEED}")
    return SEED


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def new_buffer(capacity: int, policy: str = "overwrite", tracker: object = None) -> AudioBuffer:
    return AudioBuffer(capacity, 2, np.int32, tracker, policy=policy)


def coded(start: int, frames: int) -> np.ndarray:
    return CODES[:frames] + STEP * np.int32(start)


def check(frames: np.ndarray, start: int) -> None:
    """These are the frames from `start` on, whole and in order."""
    assert (frames[:, 0] - POSITIONS[: len(frames)] == start).all()
    assert (frames[:, 1] == ~frames[:, 0]).all()


class Barrier(threading.Barrier):
    def __init__(self, parties: int) -> None:
        super().__init__(parties, timeout=LIMIT_S)


def spin_until(ready: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Meet another thread more closely than a barrier can."""
    deadline = time.monotonic() + limit_s
    while not ready():
        for _ in range(300):
            if ready():
                return
        assert time.monotonic() < deadline, "the other thread does not come"
        time.sleep(0)


# ---- one producer, three readers ---------------------------------------------------------------------------


class Account:
    """Follows a reader from call to call; an error of one frame anywhere fails."""

    def __init__(self, reader) -> None:
        self.reader = reader
        self.position, self.lost = reader.position, reader.lost
        self.delivered = 0

    def add(self, frames: np.ndarray) -> None:
        """After a call that returned `frames`."""
        reader = self.reader
        lost = reader.lost - self.lost
        assert lost >= 0
        start = self.position + lost
        assert reader.position == start + len(frames)
        check(frames, start)
        self.delivered += len(frames)
        assert reader.delivered == self.delivered
        self.position, self.lost = reader.position, reader.lost
        assert self.position - reader.start == self.delivered + self.lost

    def close(self) -> None:
        """At the end every frame ever stored was delivered or counted as lost."""
        reader = self.reader
        assert reader.start + self.delivered + reader.lost == self.position
        ranges = reader.losses()
        assert all(first < last for first, last in ranges)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
        if len(ranges) < 1024:  # it keeps that many
            assert sum(last - first for first, last in ranges) == reader.lost


def read_greedily(reader, most: int, rng: random.Random) -> None:
    """Large reads of varying length."""
    account = Account(reader)
    with suppress(BufferClosed):
        while True:
            account.add(reader.read(rng.randint(1, most), timeout=LIMIT_S))
    account.close()


def read_in_sips(reader, most: int, rng: random.Random) -> None:
    """Small reads into one array, and now and then a pause that lets the producer run away."""
    account = Account(reader)
    out = np.empty((most, 2), np.int32)
    with suppress(BufferClosed):
        while True:
            part = out[: rng.randint(1, most)]
            account.add(part[: reader.read_into(part, timeout=LIMIT_S)])
            if rng.random() < 0.01:
                time.sleep(0)
    account.close()


def read_windows(reader, frames: int, hop: int, buffer: AudioBuffer) -> None:
    """Windows that overlap."""
    next_start, end = reader.start, reader.start
    for block in reader.blocks(frames, hop, timeout=LIMIT_S):
        check(block.array, block.start)
        assert block.frames == len(block.array)
        assert block.start >= next_start
        assert block.lost == max(0, block.start - end)
        next_start, end = block.start + min(hop, block.frames), block.start + block.frames
        assert block.frames == frames or end == buffer.frames_written
        assert reader.position == next_start == reader.start + reader.delivered + reader.lost
    assert end == buffer.frames_written


def produce(buffer: AudioBuffer, total: int, most: int, rng: random.Random, results: dict) -> None:
    """Blocks of 1 to `most` frames, most of them long, until `total` frames were offered; then the end."""
    position = offered = 0
    while offered < total:
        frames = rng.randint(1, most) if rng.random() < 0.9 else rng.randint(1, min(most, 3))
        accepted = buffer.write(coded(position, frames), timeout=LIMIT_S)
        assert accepted == frames or buffer.policy == "drop"
        position += accepted
        offered += frames
    results["statistics"] = buffer.statistics()
    results["offered"] = offered
    buffer.close()


# capacity, longest block, frames: wraps at nearly every block; wraps every few; copies without the GIL
RINGS = [(17, 11, 300_000), (997, 600, 10_000_000), (40_009, 37_000, 60_000_000)]


@pytest.mark.parametrize("policy", ["overwrite", "drop", "block"])
@pytest.mark.parametrize(("capacity", "most", "total"), RINGS)
def test_three_readers_account_for_every_frame(crew, policy: str, capacity: int, most: int, total: int) -> None:
    buffer = new_buffer(capacity, policy)
    guarded = policy != "overwrite"
    readers = [
        buffer.reader(guard=guarded, name="greedy"),
        buffer.reader(guard=policy == "block", name="sips"),
        buffer.reader(name="windows"),
    ]
    results: dict = {}
    began = time.perf_counter()
    crew.start(read_greedily, readers[0], capacity, random.Random(SEED))
    crew.start(read_in_sips, readers[1], most, random.Random(SEED + 1))
    crew.start(read_windows, readers[2], most, max(most // 3, 1), buffer)
    crew.start(produce, buffer, total, most, random.Random(SEED + 2), results)
    crew.join(LIMIT_S)
    elapsed_s = time.perf_counter() - began

    found = results["statistics"]
    assert found.frames_written == buffer.frames_written
    assert found.frames_written + found.frames_lost["dropped"] == results["offered"]
    assert all(reader.position == buffer.frames_written for reader in readers[:2])
    if policy != "drop":
        assert found.frames_lost["dropped"] == 0
    for reader in readers:
        assert not reader.guard or reader.lost == 0
    print(
        f"{policy}, capacity {capacity}: {found.frames_written:,} frames in {elapsed_s:.2f} s, "
        f"{found.frames_lost['dropped']:,} dropped; lost by greedy, sips, windows: "
        f"{[reader.lost for reader in readers]}; unaccounted 0"
    )


@pytest.mark.parametrize(("capacity", "most", "total"), [(97, 60, 500_000), (40_009, 37_000, 20_000_000)])
def test_history_is_whole_while_the_producer_overwrites_it(crew, capacity: int, most: int, total: int) -> None:
    """get_latest, read_range and views return what they claim, or say that it is gone."""
    buffer = new_buffer(capacity)
    done = threading.Event()
    seen = {"latest": 0, "ranges": 0, "views": 0, "gone": 0, "overwritten views": 0}

    def look(rng: random.Random) -> None:
        out = np.empty((capacity, 2), np.int32)
        while not done.is_set():
            frames = rng.randint(1, capacity)
            latest = buffer.get_latest(frames, out[:frames] if rng.random() < 0.5 else None)
            if len(latest):
                check(latest, int(latest[0, 0]))
            seen["latest"] += 1
            oldest = buffer.oldest
            stop = min(oldest + frames, buffer.frames_written)
            if stop < oldest:  # overtaken between the two questions
                continue
            try:
                check(buffer.read_range(oldest, stop), oldest)
                seen["ranges"] += 1
            except FramesLost as gone:
                assert gone.first == oldest < gone.last <= stop
                seen["gone"] += 1
            with suppress(FramesLost):
                if IS_UNDER_TSAN:
                    continue
                view = buffer.view(stop - (stop - oldest) // 2, stop)
                copy = view.array.copy()
                if view.intact:
                    check(copy, view.start)
                    seen["views"] += 1
                else:
                    seen["overwritten views"] += 1

    def end() -> None:
        try:
            produce(buffer, total, most, random.Random(SEED), {})
        finally:
            done.set()

    def look_until_closed(rng: random.Random) -> None:
        with suppress(BufferClosed):
            look(rng)

    crew.start(look_until_closed, random.Random(SEED + 1))
    crew.start(look_until_closed, random.Random(SEED + 2))
    crew.start(end)
    crew.join(LIMIT_S)
    print(seen)
    assert seen["latest"]


# ---- threads that break the rules -----------------------------------------------------------------------------


def test_two_writers_are_refused_or_complete(crew) -> None:
    """Of two that write at once one is told so, and what was accepted is stored whole."""
    buffer = new_buffer(40_009)
    reader = buffer.reader("oldest")
    long = np.zeros((33_000, 2), np.int32)  # long enough to be copied without the GIL
    barrier, accepted, refused = Barrier(2), [0, 0], [0, 0]

    def write(me: int) -> None:
        frames = np.full_like(long, me + 1)
        barrier.wait()
        for i in range(10_000):
            part = frames if i % 2 else frames[: i % 7]
            try:
                accepted[me] += buffer.write(part)
            except RuntimeError as error:
                assert "one producer at a time" in str(error)
                refused[me] += 1

    crew.start(write, 0)
    crew.start(write, 1)
    crew.join(LIMIT_S)
    assert buffer.frames_written == sum(accepted)
    latest = buffer.get_latest(40_009)
    assert ((latest == 1) | (latest == 2)).all()
    assert reader.lost == 0 == reader.position
    print(f"accepted {accepted}, refused {refused}")


def test_a_writer_beside_one_that_waits_is_refused(crew) -> None:
    buffer = new_buffer(8, "block")
    waiting = crew.start(buffer.write, coded(0, 20))
    crew.wait_until_asleep(waiting)
    for call in (lambda: buffer.write(coded(0, 1)), lambda: buffer.mark_gap(1, "paused")):
        with pytest.raises(RuntimeError, match="one producer at a time"):
            call()
    assert buffer.gaps() == []
    got = [buffer.read(8, timeout=LIMIT_S) for _ in range(2)]
    got.append(buffer.read(4, timeout=LIMIT_S))
    crew.join(LIMIT_S)
    check(np.concatenate(got), 0)
    assert buffer.frames_written == 20


def test_a_reader_shared_by_threads_gives_each_frame_once(crew) -> None:
    """A call that meets another is refused and takes nothing."""
    buffer = new_buffer(64, "block")
    reader = buffer.reader(guard=True)
    barrier, total = Barrier(3), 60_000
    got: list[list[np.ndarray]] = [[], []]
    refused = [0, 0]

    def read(me: int) -> None:
        barrier.wait()
        while True:
            try:
                frames = reader.read(5, timeout=0.001)
            except BufferClosed:
                return
            except RuntimeError as error:
                assert "another thread is using this reader" in str(error)
                refused[me] += 1
                time.sleep(0)
            else:
                got[me].append(frames)
                time.sleep(0)

    def write() -> None:
        barrier.wait()
        for start in range(0, total, 30):
            assert buffer.write(coded(start, 30), timeout=LIMIT_S) == 30
        buffer.close()

    for work in ((read, 0), (read, 1), (write,)):
        crew.start(*work)
    crew.join(LIMIT_S)
    frames = np.concatenate(got[0] + got[1])
    check(frames[np.argsort(frames[:, 0])], 0)
    assert len(frames) == reader.delivered == reader.position == total
    assert reader.lost == 0
    print(f"reads {[len(part) for part in got]}, refused {refused}")


def test_a_read_beside_one_that_waits_is_refused(crew) -> None:
    buffer = new_buffer(16)
    reader = buffer.reader()
    out = np.empty((1, 2), np.int32)
    blocks = reader.blocks(8, timeout=0.0)
    for consumer, calls in (
        (buffer, (lambda: buffer.read(1), lambda: buffer.read_into(out))),
        (reader, (lambda: reader.read(1), lambda: reader.read_into(out), lambda: next(blocks))),
    ):
        waiting = crew.start(consumer.read, 16, None)
        crew.wait_until_asleep(waiting)
        for call in calls:
            with pytest.raises(RuntimeError, match="another thread"):
                call()
    buffer.write(coded(0, 16))
    crew.join(LIMIT_S)
    assert reader.position == 16


def test_looking_at_a_reader_does_not_disturb_it(crew) -> None:
    """Properties and losses() may be asked by any thread, beside a read."""
    buffer = new_buffer(13)
    reader = buffer.reader()
    done = threading.Event()

    def read() -> None:
        account = Account(reader)
        try:
            for i in range(8_000):
                buffer.write(coded(buffer.frames_written, i % 7))
                account.add(reader.read(i % 5))
        finally:
            done.set()

    def look() -> None:
        position = 0
        while not done.is_set():
            assert reader.available <= buffer.capacity
            assert position <= reader.position
            position = reader.position
            assert not reader.guard
            assert not reader.closed
            reader.losses()
            repr(reader)

    crew.start(look)
    crew.start(read)
    crew.join(LIMIT_S)


def test_available_tells_the_truth_while_another_thread_waits_in_a_read(crew) -> None:
    buffer = new_buffer(16)
    reader = buffer.reader()
    buffer.write(coded(0, 3))
    waiting = crew.start(reader.read, 16, LIMIT_S)
    crew.wait_until_asleep(waiting)
    assert reader.available == 3
    buffer.write(coded(3, 13))
    crew.join(LIMIT_S)


def test_opening_readers_does_not_disturb_the_buffers_own(crew) -> None:
    """reader() may be called by any thread, beside everything."""
    buffer = new_buffer(13, "drop")
    done = threading.Event()

    def read() -> None:
        expected = position = buffer.frames_written
        try:
            for i in range(15_000):
                position += buffer.write(coded(position, i % 7))
                frames = buffer.read(i % 8)
                check(frames, expected)
                expected += len(frames)
        finally:
            done.set()

    def open_and_close() -> None:
        while not done.is_set():
            buffer.reader().close()

    buffer.write(coded(0, 1))
    buffer.read(1)  # used, and therefore guarded for good
    crew.start(open_and_close)
    crew.start(read)
    crew.join(LIMIT_S)
    assert buffer.losses() == []


def test_statistics_make_sense_beside_a_reader_that_loses(crew) -> None:
    """The account of the buffer's own reader, asked by another thread in the middle of a read."""
    buffer = new_buffer(13)
    done = threading.Event()

    def read() -> None:
        out = np.empty((5, 2), np.int32)
        data = coded(0, 20)
        try:
            for _ in range(40_000):
                buffer.write(data)
                buffer.read_into(out)
        finally:
            done.set()

    def look() -> None:
        delivered = lost = 0
        while not done.is_set():
            found = buffer.statistics()
            assert found.frames_delivered + found.frames_overrun <= buffer.frames_written
            assert delivered <= found.frames_delivered
            assert lost <= found.frames_overrun
            delivered, lost = found.frames_delivered, found.frames_overrun

    crew.start(look)
    crew.start(read)
    crew.join(LIMIT_S)
    found = buffer.statistics()
    assert (found.frames_delivered, found.frames_overrun) == (40_000 * 5, 40_000 * 20 - 40_000 * 5 - 8)


def test_frames_written_does_not_fall_when_the_memory_goes(crew) -> None:
    current, done = [new_buffer(7)], threading.Event()
    current[0].write(coded(0, 20))

    def close() -> None:
        try:
            for i in range(5_000):
                buffer = new_buffer(7)
                buffer.write(coded(0, 20))
                current[0] = buffer
                for _ in range(i % 30):  # now earlier, now later
                    pass
                buffer.close()
        finally:
            done.set()

    def look() -> None:
        while not done.is_set():
            assert current[0].frames_written == 20

    crew.start(look)
    crew.start(close)
    crew.join(LIMIT_S)


def test_a_reader_at_the_end_has_had_every_frame_a_waiting_write_stored(crew) -> None:
    """close() beside a write that waits for space: what it returned was delivered before BufferClosed."""
    rng = random.Random(SEED)
    for _ in range(150):
        buffer = new_buffer(4, "block")
        reader = buffer.reader(guard=True)
        barrier = Barrier(3)
        accepted, delivered = [0], [0]

        def write(buffer=buffer, barrier=barrier, accepted=accepted) -> None:
            barrier.wait()
            with suppress(BufferClosed):
                accepted[0] = buffer.write(coded(0, 4_000), timeout=LIMIT_S)

        def read(reader=reader, barrier=barrier, delivered=delivered) -> None:
            barrier.wait()
            with suppress(BufferClosed):
                while True:
                    reader.read(3, timeout=LIMIT_S)
            delivered[0] = reader.delivered

        def close(turns: int, buffer=buffer, barrier=barrier) -> None:
            barrier.wait()
            for _ in range(turns):
                time.sleep(0)
            buffer.close()

        crew.start(write)
        crew.start(read)
        crew.start(close, rng.randrange(30))
        crew.join(LIMIT_S)
        assert delivered == accepted == [buffer.frames_written]


def test_guarded_readers_come_and_go_beside_the_producer(crew) -> None:
    """None leaves its guard behind: in the end the producer is free, and all 64 places are."""
    buffer = new_buffer(31, "block")
    buffer.reader().close()  # the buffer's own reader is not guarded from now on
    done = threading.Event()

    def write() -> None:
        position = 0
        try:
            for i in range(8_000):
                assert buffer.write(coded(position, i % 40), timeout=LIMIT_S) == i % 40
                position += i % 40
        finally:
            done.set()

    def read(me: int) -> None:
        rng = random.Random(SEED + me)
        out = np.empty((31, 2), np.int32)
        while not done.is_set():
            with buffer.reader(rng.choice(("now", "oldest")), guard=rng.random() < 0.7) as reader:
                account = Account(reader)
                for _ in range(rng.randint(0, 5)):
                    account.add(out[: reader.read_into(out[: rng.randint(0, 31)])])

    crew.start(write)
    crew.start(read, 0)
    crew.start(read, 1)
    crew.join(LIMIT_S)
    assert buffer.write(coded(0, 500), timeout=0.0) == 500
    guards = [buffer.reader(guard=True) for _ in range(64)]
    with pytest.raises(ValueError, match="at most 64 guarded readers"):
        buffer.reader(guard=True)
    assert buffer.write(coded(0, 500), timeout=0.0) == 31
    for reader in guards:
        reader.close()
    assert buffer.write(coded(0, 500), timeout=0.0) == 500


def test_a_reader_closed_beside_its_last_call_ends_its_guard(crew) -> None:
    """Whichever is first; here nobody calls again, who could repair it."""
    buffer = new_buffer(4, "drop")
    buffer.reader().close()
    rounds = 1_000
    readers = [buffer.reader()] * rounds
    opened, closed = [-1], [-1]

    def close() -> None:
        for i in range(rounds):
            spin_until(lambda i=i: opened[0] == i)
            for _ in range(i % 50):  # now earlier, now later
                pass
            readers[i].close()
            closed[0] = i

    def read() -> None:
        out = np.empty((1, 2), np.int32)
        for i in range(rounds):
            readers[i] = reader = buffer.reader(guard=True)
            opened[0] = i
            with suppress(BufferClosed):
                reader.read_into(out)
            spin_until(lambda i=i: closed[0] == i)
            assert not reader.guard
            assert buffer.write(coded(0, 9)) == 9

    for work in (close, read):
        crew.start(work)
    crew.join(LIMIT_S)


class CountingTracker:
    """What AudioBuffer expects of a tracker."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def track_buffer(self, buffer: AudioBuffer, size_bytes: int) -> None:
        self.events.append(f"track {size_bytes}")

    def untrack_buffer(self, buffer: AudioBuffer) -> None:
        self.events.append("untrack")


def iterate(blocks: Iterator) -> None:
    for _ in range(3):
        with suppress(TimeoutError):
            next(blocks, None)


def contents(view: AudioView) -> np.ndarray:
    return view.array[:0] if IS_UNDER_TSAN else view.array


#: Every call, each with what it may raise beside BufferClosed when other threads do anything else.
CALLS: list[tuple[str, Callable, type[Exception] | tuple]] = [
    ("write", lambda b, r: b.write(coded(0, 5), timeout=0.0005), RuntimeError),
    ("write long", lambda b, r: b.write(CODES[:33_000], timeout=0.0005), RuntimeError),
    ("mark_gap", lambda b, r: b.mark_gap(1, "paused"), RuntimeError),
    ("clear", lambda b, r: b.clear(), ()),
    ("read", lambda b, r: b.read(3, timeout=0.0005), RuntimeError),
    ("read_into", lambda b, r: b.read_into(np.empty((4, 2), np.int32)), RuntimeError),
    ("get_latest", lambda b, r: b.get_latest(9), ()),
    ("read_range", lambda b, r: b.read_range(b.oldest, b.frames_written), FramesLost),
    ("view", lambda b, r: contents(b.view(b.oldest, b.frames_written)).sum(), FramesLost),
    ("latest_view", lambda b, r: contents(b.latest_view(9)).sum(), ()),
    ("reader", lambda b, r: b.reader(guard=b.policy != "overwrite").close(), ()),
    ("reader left open", lambda b, r: b.reader("oldest").read(2), ()),
    ("statistics", lambda b, r: b.statistics(), ()),
    ("gaps", lambda b, r: b.gaps(), ()),
    ("facts", lambda b, r: (b.fill, b.oldest, b.get_fill_level()), ()),
    ("facts that stay", lambda b, r: (b.frames_written, b.closed, b.losses(), b.nbytes, repr(b)), ()),
    ("Reader.read", lambda b, r: r.read(3, timeout=0.0005), RuntimeError),
    ("Reader.read_into", lambda b, r: r.read_into(np.empty((4, 2), np.int32)), RuntimeError),
    ("Reader.blocks", lambda b, r: iterate(r.blocks(4, 2, timeout=0.0005)), RuntimeError),
    ("Reader facts", lambda b, r: (r.position, r.available, r.lost, r.losses(), r.guard, r.closed, repr(r)), ()),
]


@pytest.mark.parametrize("policy", ["overwrite", "drop", "block"])
def test_close_during_any_call(crew, policy: str) -> None:
    """Each call ends as documented, and the memory goes exactly once."""
    rng = random.Random(SEED)
    counts: dict[str, int] = {}
    for round_number in range(30):
        tracker = CountingTracker()
        buffer = new_buffer(rng.choice((7, 64, 33_000)), policy, tracker)
        reader = buffer.reader(guard=policy != "overwrite" and rng.random() < 0.5)
        barrier = Barrier(4)

        def work(number: int, buffer=buffer, reader=reader, barrier=barrier) -> None:
            mine = random.Random(number)
            written = 0
            barrier.wait()
            for _ in range(60):
                name, call, may_raise = mine.choice(CALLS)
                try:
                    call(buffer, reader)
                except BufferClosed:
                    counts["closed"] = counts.get("closed", 0) + 1
                except may_raise as error:
                    kind = f"{name}: {type(error).__name__}"
                    counts[kind] = counts.get(kind, 0) + 1
                now = buffer.frames_written
                assert written <= now
                written = now

        def close(rounds: int, buffer=buffer, reader=reader, barrier=barrier) -> None:
            barrier.wait()
            for _ in range(rounds):  # lets the others come as far as they like
                time.sleep(0)
            (reader if rounds % 3 == 0 else buffer).close()
            buffer.close()

        for i in range(3):
            crew.start(work, SEED + round_number * 3 + i)
        crew.start(close, rng.choice((0, 3, 30, 300)))
        crew.join(LIMIT_S)
        assert buffer.closed
        written = buffer.frames_written
        reader.close()
        gc.collect()
        assert tracker.events == [f"track {buffer.nbytes}", "untrack"]
        assert buffer.frames_written == written
    print(counts)
