"""Waiting in a thread: what wakes it, what it returns, and that it holds nobody up.

The waits happen in threads of a Crew, so one that never wakes is a failure and not a hang. Clocks decide nothing:
where a time is asserted, it is a lower bound (not returned too early) or a generous upper one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pcmring import AudioBuffer, BufferClosed

LIMIT_S = 30.0  # a wait that should end at once ends by then, or the test fails
READS = ("buffer.read", "buffer.read_into", "reader.read", "reader.read_into", "blocks")
WAITS = (*READS, "write")

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def ramp(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32).reshape(-1, 1)


class Waiter:
    """A wait of one kind for 8 frames (or for space for them), ready to be called in any thread."""

    def __init__(self, kind: str, timeout: object = None, policy: str | None = None) -> None:
        self.kind = kind
        self.buffer = AudioBuffer(8, policy=policy or ("block" if kind == "write" else "overwrite"))
        self.reader = self.buffer.reader(guard=kind == "write")
        self.out = np.zeros((8, 1), np.float32)
        self.timeout = timeout
        self.got: np.ndarray | None = None
        self.accepted: int | None = None
        if kind == "blocks":
            self.windows = self.reader.blocks(8, timeout=timeout)
        if kind == "write":
            assert self.buffer.write(ramp(0, 8)) == 8

    def __call__(self) -> None:
        if self.kind == "write":
            self.accepted = self.buffer.write(ramp(8, 16), timeout=self.timeout)
        elif self.kind == "blocks":
            self.got = next(self.windows).array
        else:
            of, method = self.kind.split(".")
            consumer = self.buffer if of == "buffer" else self.reader
            if method == "read":
                self.got = consumer.read(8, timeout=self.timeout)
            else:
                self.got = self.out[: consumer.read_into(self.out, timeout=self.timeout)]

    def feed(self) -> None:
        """What it waits for."""
        if self.kind == "write":
            assert np.array_equal(self.reader.read(8), ramp(0, 8))
        else:
            assert self.buffer.write(ramp(0, 8)) == 8

    def check_done(self) -> None:
        if self.kind == "write":
            assert self.accepted == 8
            assert np.array_equal(self.reader.read(8), ramp(8, 16))
        else:
            assert np.array_equal(self.got, ramp(0, 8))


# ---- what wakes, and what does not ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WAITS)
def test_other_threads_run_while_one_waits(crew, kind: str) -> None:
    """The wait gives the GIL up: were it held, nothing here would happen until it timed out."""
    waiter = Waiter(kind, timeout=LIMIT_S)
    counted = [0]

    def count() -> None:
        for _ in range(100_000):
            counted[0] += 1

    waiting = crew.start(waiter)
    crew.wait_until_asleep(waiting)
    counting = crew.start(count)
    counting.join(LIMIT_S)
    assert counted == [100_000]
    assert waiting.is_alive()
    waiter.feed()
    crew.join(LIMIT_S)
    waiter.check_done()


@pytest.mark.parametrize("kind", WAITS)
def test_a_wait_without_limit_ends_when_what_it_waits_for_is_there(crew, kind: str) -> None:
    waiter = Waiter(kind, timeout=None)
    crew.wait_until_asleep(crew.start(waiter))
    waiter.feed()
    crew.join(LIMIT_S)
    waiter.check_done()


@pytest.mark.parametrize("kind", WAITS)
@pytest.mark.parametrize(
    "timeout", [math.inf, 1e300, 10**400, np.float32(20), Decimal("20.5"), Fraction(41, 2), 20, True]
)
def test_timeouts_are_any_number_of_seconds(crew, kind: str, timeout: object) -> None:
    waiter = Waiter(kind, timeout)
    waiter.feed()
    crew.start(waiter)
    crew.join(LIMIT_S)
    waiter.check_done()


@pytest.mark.parametrize("kind", READS)
def test_closing_the_buffer_ends_a_read_with_what_there_is(crew, kind: str) -> None:
    waiter = Waiter(kind)
    waiter.buffer.write(ramp(0, 3))
    crew.wait_until_asleep(crew.start(waiter))
    waiter.buffer.close()
    crew.join(LIMIT_S)
    assert np.array_equal(waiter.got, ramp(0, 3))


def test_closing_the_buffer_ends_a_write_with_what_it_stored(crew) -> None:
    waiter = Waiter("write")
    writing = crew.start(waiter)
    crew.wait_until_asleep(writing)
    assert len(waiter.reader.read(3)) == 3
    deadline = time.monotonic() + LIMIT_S
    while waiter.buffer.frames_written < 11 and time.monotonic() < deadline:
        time.sleep(0)
    waiter.buffer.close()
    crew.join(LIMIT_S)
    assert waiter.accepted == 3
    assert np.array_equal(waiter.reader.read(100), ramp(3, 11))
    with pytest.raises(BufferClosed):
        waiter.reader.read(1)


def expect(error: type[BaseException], call: Callable[[], object]) -> Callable[[], None]:
    def work() -> None:
        with pytest.raises(error):
            call()

    return work


def test_closing_the_buffer_refuses_a_write_that_stored_nothing(crew) -> None:
    waiter = Waiter("write")
    crew.wait_until_asleep(crew.start(expect(BufferClosed, waiter)))
    waiter.buffer.close()
    crew.join(LIMIT_S)
    assert waiter.buffer.frames_written == 8


@pytest.mark.parametrize("kind", ["reader.read", "reader.read_into", "blocks"])
@pytest.mark.parametrize("closes", ["buffer", "reader"])
def test_closing_ends_a_wait_for_which_nothing_came(crew, kind: str, closes: str) -> None:
    waiter = Waiter(kind)
    ended: list[str] = []

    def wait() -> None:
        try:
            waiter()
        except (BufferClosed, StopIteration) as end:
            ended.append(type(end).__name__)
        else:
            assert waiter.got is not None
            ended.append(f"{len(waiter.got)} frames")

    crew.wait_until_asleep(crew.start(wait))
    getattr(waiter, closes).close()
    crew.join(LIMIT_S)
    if kind == "blocks":
        assert ended == ["StopIteration"]
    elif closes == "buffer":
        assert ended == ["BufferClosed"]
    else:  # the docstring leaves open which; it ends, and the next call says why
        assert ended in (["BufferClosed"], ["0 frames"])
        with pytest.raises(BufferClosed):
            waiter()


@pytest.mark.parametrize("kind", ["reader.read", "reader.read_into"])
def test_closing_the_reader_ends_its_wait_with_what_there_is(crew, kind: str) -> None:
    waiter = Waiter(kind)
    waiter.buffer.write(ramp(0, 3))
    crew.wait_until_asleep(crew.start(waiter))
    waiter.reader.close()
    crew.join(LIMIT_S)
    assert np.array_equal(waiter.got, ramp(0, 3))
    assert (waiter.reader.position, waiter.reader.delivered, waiter.reader.lost) == (3, 3, 0)
    assert not waiter.buffer.closed


def test_closing_one_reader_leaves_the_others_waiting(crew) -> None:
    buffer = AudioBuffer(8)
    readers = [buffer.reader() for _ in range(3)]
    got: dict[int, int] = {}

    def read(i: int) -> None:
        got[i] = len(readers[i].read(8, timeout=LIMIT_S))

    threads = [crew.start(read, i) for i in range(3)]
    for thread in threads:
        crew.wait_until_asleep(thread)
    readers[1].close()
    threads[1].join(LIMIT_S)
    crew.wait_until_asleep(threads[0])
    assert got == {1: 0}
    buffer.write(ramp(0, 8))
    crew.join(LIMIT_S)
    assert got == {0: 8, 1: 0, 2: 8}


@pytest.mark.parametrize("frees", ["close", "forget", "clear", "open another"])
def test_a_write_wakes_when_a_guard_lets_go(crew, frees: str) -> None:
    """Not only a read makes space."""
    buffer = AudioBuffer(8, policy="block")
    readers = [] if frees == "open another" else [buffer.reader(guard=True)]
    assert buffer.write(ramp(0, 8)) == 8
    accepted: list[int] = []
    crew.wait_until_asleep(crew.start(lambda: accepted.append(buffer.write(ramp(8, 12), timeout=LIMIT_S))))
    if frees == "close":
        readers[0].close()
    elif frees == "forget":
        readers.clear()
    elif frees == "clear":
        buffer.clear()
    else:  # then the buffer's own reader, unused, is not guarded any more
        readers.append(buffer.reader())
    crew.join(LIMIT_S)
    assert accepted == [4]


def test_a_long_write_goes_on_as_space_comes(crew) -> None:
    """A block of many capacities under "block", read in other pieces."""
    buffer = AudioBuffer(7, policy="block")
    reader = buffer.reader(guard=True)
    accepted: list[int] = []
    crew.start(lambda: accepted.append(buffer.write(ramp(0, 5000), timeout=None)))
    position = 0
    while position < 5000:
        frames = reader.read(1 + position % 9, timeout=LIMIT_S)
        assert np.array_equal(frames, ramp(position, position + len(frames)))
        assert len(frames)
        position += len(frames)
    crew.join(LIMIT_S)
    assert accepted == [5000]
    assert reader.lost == 0


def test_a_reader_that_wants_more_than_the_capacity_gets_the_capacity(crew) -> None:
    buffer = AudioBuffer(8, policy="block")
    reader = buffer.reader(guard=True)
    got: list[np.ndarray] = []
    crew.wait_until_asleep(crew.start(lambda: got.append(reader.read(100, timeout=LIMIT_S))))
    buffer.write(ramp(0, 8))
    crew.join(LIMIT_S)
    assert np.array_equal(got[0], ramp(0, 8))


@pytest.mark.skipif(sys.platform != "linux", reason="counts a thread's switches, Linux only")
def test_a_waiting_reader_is_not_woken_for_each_block(crew) -> None:
    """Blocks of one frame, a reader that wants 4,000: it wakes when they are there, not 4,000 times."""
    import resource

    buffer = AudioBuffer(4096)
    reader = buffer.reader()
    switches: list[int] = []

    def read() -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        got = reader.read(4000, timeout=LIMIT_S)
        switches.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before)
        assert len(got) == 4000

    crew.wait_until_asleep(crew.start(read))
    frame = ramp(0, 1)
    for _ in range(4000):
        buffer.write(frame)
        time.sleep(0)  # a reader that was woken would now run
    crew.join(LIMIT_S)
    print(f"{switches[0]} switches of the waiting thread for 4,000 blocks")
    assert switches[0] < 200


def test_readers_that_want_different_amounts_wake_in_turn(crew) -> None:
    """The wish of the one that is served does not take the others' with it."""
    buffer = AudioBuffer(64)
    done: list[int] = []

    def read(reader, frames: int) -> None:
        assert len(reader.read(frames, timeout=LIMIT_S)) == frames
        done.append(frames)

    threads = {frames: crew.start(read, buffer.reader(), frames) for frames in (5, 40, 20)}
    for thread in threads.values():
        crew.wait_until_asleep(thread)
    for total in (5, 20, 40):
        buffer.write(ramp(0, total - buffer.frames_written))
        threads[total].join(LIMIT_S)
        assert done[-1] == total
    assert done == [5, 20, 40]


# ---- timeouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["buffer.read", "buffer.read_into", "reader.read", "reader.read_into"])
@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("timeout", [0.0, 0.03])
def test_when_the_time_is_up_a_read_returns_what_there_is(crew, kind: str, held: int, timeout: float) -> None:
    waiter = Waiter(kind, timeout)
    waiter.buffer.write(ramp(0, held))
    began = time.monotonic()
    crew.start(waiter)
    crew.join(LIMIT_S)
    assert time.monotonic() - began >= timeout
    assert np.array_equal(waiter.got, ramp(0, held))


@pytest.mark.parametrize("timeout", [0.0, 0.03])
def test_when_the_time_is_up_a_write_returns_what_it_stored(timeout: float) -> None:
    buffer = AudioBuffer(8, policy="block")
    began = time.monotonic()
    assert buffer.write(ramp(0, 20), timeout=timeout) == 8
    assert buffer.write(ramp(0, 20), timeout=timeout) == 0
    assert time.monotonic() - began >= 2 * timeout
    assert np.array_equal(buffer.read(20), ramp(0, 8))
    assert buffer.gaps() == []


@pytest.mark.parametrize("timeout", [0.0, 0.02])
def test_windows_go_on_after_a_timeout(timeout: float) -> None:
    buffer = AudioBuffer(16)
    reader = buffer.reader()
    blocks = reader.blocks(6, hop=4, timeout=timeout)
    found = []
    for i in range(40):  # one frame at a time: most turns time out
        buffer.write(ramp(i, i + 1))
        began = time.monotonic()
        try:
            found.append(next(blocks))
        except TimeoutError:
            assert time.monotonic() - began >= timeout
    assert [block.start for block in found] == list(range(0, 36, 4))
    assert all(np.array_equal(block.array, ramp(block.start, block.start + 6)) for block in found)
    assert all(block.lost == 0 for block in found)
    assert reader.lost == 0


def test_frames_cleared_during_a_wait_do_not_count(crew) -> None:
    """A read that waits for 4 frames waits for 4 that it can have."""
    buffer = AudioBuffer(8)
    reader = buffer.reader()
    got: list[np.ndarray] = []
    waiting = crew.start(lambda: got.append(reader.read(4, timeout=LIMIT_S)))
    crew.wait_until_asleep(waiting)
    buffer.write(ramp(0, 2))
    buffer.clear()
    buffer.write(ramp(2, 4))
    crew.wait_until_asleep(waiting)
    buffer.write(ramp(4, 6))
    crew.join(LIMIT_S)
    assert np.array_equal(got[0], ramp(2, 6))
    assert reader.losses() == [(0, 2)]


INVALID = [
    (-1, ValueError),
    (-0.001, ValueError),
    (-math.inf, ValueError),
    (math.nan, ValueError),
    (-(10**400), ValueError),
    (np.float64("nan"), ValueError),
    ("1", TypeError),
    (b"1", TypeError),
    (1j, TypeError),
    ([], TypeError),
    (object(), TypeError),
]


@pytest.mark.parametrize("kind", WAITS)
@pytest.mark.parametrize(("timeout", "error"), INVALID, ids=lambda value: repr(value)[:12])
def test_an_invalid_timeout_is_named_and_nothing_happens(kind: str, timeout: object, error: type[Exception]) -> None:
    waiter = Waiter(kind, policy="block") if kind != "blocks" else Waiter(kind)
    waiter.timeout = timeout
    if kind != "write":
        waiter.buffer.write(ramp(0, 3))
    before = (waiter.buffer.statistics(), waiter.reader.position)
    with pytest.raises(error) as caught:
        if kind == "blocks":
            waiter.reader.blocks(8, timeout=timeout)
        else:
            waiter()
    assert repr(timeout) in str(caught.value)
    assert "timeout" in str(caught.value)
    assert (waiter.buffer.statistics(), waiter.reader.position) == before


def test_a_guard_ends_with_its_reader_also_where_that_is_closed_in_a_wait(crew) -> None:
    buffer = AudioBuffer(8, policy="drop")
    reader = buffer.reader(guard=True)
    thread = crew.start(reader.read, 1, None)
    crew.wait_until_asleep(thread)
    reader.close()
    crew.join()
    assert not reader.guard
    assert buffer.write(ramp(0, 20)) == 20


# ---- the end of a buffer ----------------------------------------------------------------------------------------


def test_a_reader_drains_a_closed_buffer_and_is_then_told(crew) -> None:
    buffer = AudioBuffer(8)
    reader = buffer.reader()
    buffer.write(ramp(0, 11))
    buffer.close()
    got = [reader.read(3, timeout=None), reader.read(100, timeout=None)]
    assert np.array_equal(np.concatenate(got), ramp(3, 11))
    assert reader.losses() == [(0, 3)]
    for _ in range(2):
        assert reader.read(0).shape == (0, 1), "nothing was asked for"
        with pytest.raises(BufferClosed):
            reader.read(1, timeout=None)
        with pytest.raises(BufferClosed):
            reader.read_into(np.empty((1, 1), np.float32), timeout=None)
    assert (reader.position, reader.delivered, reader.lost) == (11, 8, 3)


@pytest.mark.parametrize(("n", "hop", "written", "windows"), [
    (4, 4, 10, [(0, 4), (4, 8), (8, 10)]),
    (4, 4, 8, [(0, 4), (4, 8)]),
    (4, 1, 6, [(0, 4), (1, 5), (2, 6)]),
    (4, 2, 7, [(0, 4), (2, 6), (4, 7)]),
    (4, 2, 3, [(0, 3)]),
    (4, 2, 0, []),
    (16, 1, 16, [(0, 16)]),
])  # fmt: skip
def test_the_last_window_of_a_closed_buffer_may_be_shorter(n: int, hop: int, written: int, windows: list) -> None:
    """It shows frames that no window before it showed; there is no other shorter one."""
    buffer = AudioBuffer(16)
    reader = buffer.reader()
    buffer.write(ramp(0, written))
    buffer.close()
    blocks = reader.blocks(n, hop)
    found = list(blocks)
    assert [(block.start, block.start + block.frames) for block in found] == windows
    assert all(np.array_equal(block.array, ramp(*span)) for block, span in zip(found, windows, strict=True))
    assert next(blocks, None) is None


def test_windows_say_what_was_lost_between_them(crew) -> None:
    """Also where they overlap: frames that the window before had shown are not lost."""
    buffer = AudioBuffer(8)
    reader = buffer.reader()
    blocks = reader.blocks(6, hop=2, timeout=0.0)
    buffer.write(ramp(0, 6))
    assert next(blocks).lost == 0
    buffer.write(ramp(6, 25))
    block = next(blocks)
    assert (block.start, block.lost) == (17, 11)
    assert reader.losses() == [(6, 17)]
    assert (reader.position, reader.delivered, reader.lost) == (19, 8, 11)


# ---- signals ----------------------------------------------------------------------------------------------------

CTRL_C = """
    import json, os, signal, sys, threading, time
    import numpy as np
    sys.path.insert(0, {tests!r})
    from conftest import Crew
    from test_waiting import WAITS, Waiter, ramp

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread()

    def interrupt(sent):
        Crew.wait_until_asleep(main)
        sent.append(time.monotonic())
        if sys.argv[1] == "process":
            os.kill(os.getpid(), signal.SIGINT)
        else:  # the system gives it to another thread: nothing interrupts the main thread's sleep
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def interrupted(kind):
        waiter, sent, latency = Waiter(kind, None), [], None
        if kind != "write":
            waiter.buffer.write(ramp(0, 3))
        account = (waiter.reader.position, waiter.reader.lost, waiter.buffer.statistics())
        thread = threading.Thread(target=interrupt, args=(sent,))
        thread.start()
        try:
            waiter()
        except KeyboardInterrupt:
            latency = time.monotonic() - sent[0]
        thread.join()
        assert latency is not None, "not interrupted"
        # nothing was consumed or lost, and everything still works
        assert (waiter.reader.position, waiter.reader.lost, waiter.buffer.statistics()) == account
        if kind == "write":
            assert np.array_equal(waiter.reader.read(100), ramp(0, 8))
            waiter()
            assert np.array_equal(waiter.reader.read(100), ramp(8, 16))
        else:
            waiter.buffer.write(ramp(3, 8))
            waiter()
            assert np.array_equal(waiter.got, ramp(0, 8)), waiter.got
        return latency

    print(json.dumps({{kind: [interrupted(kind) for _ in range(4)] for kind in WAITS}}))
"""


@posix_only
@pytest.mark.parametrize("where", ["process", "other thread"])
def test_ctrl_c_interrupts_every_wait_in_the_main_thread(where: str) -> None:
    """At once; 100 ms is the promise, a second what a busy machine may take before this fails."""
    script = textwrap.dedent(CTRL_C.format(tests=str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", script, where], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    latencies = json.loads(done.stdout)
    assert set(latencies) == set(WAITS)
    for kind, seconds in latencies.items():
        print(f"Ctrl-C to KeyboardInterrupt, {where}, {kind}: {[f'{1e3 * s:.1f} ms' for s in seconds]}")
        assert min(seconds) < 0.1
        assert max(seconds) < 1.0


@posix_only
@pytest.mark.parametrize("kind", WAITS)
def test_a_handler_that_returns_lets_the_wait_go_on(crew, kind: str) -> None:
    """In the main thread: the third signal's handler brings what the wait is for."""
    assert threading.current_thread() is threading.main_thread()
    waiter = Waiter(kind, timeout=LIMIT_S)
    handled: list[int] = []

    def handle(number: int, frame: object) -> None:
        handled.append(number)
        if len(handled) == 3:
            waiter.feed()

    def send() -> None:
        for i in range(3):
            crew.wait_until_asleep(threading.main_thread())
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + LIMIT_S
            while len(handled) <= i and time.monotonic() < deadline:
                time.sleep(0.001)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        crew.start(send)
        waiter()
    finally:
        crew.join(LIMIT_S)
        signal.signal(signal.SIGUSR1, before)
    assert len(handled) == 3
    waiter.check_done()


@posix_only
@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer of Cython's lines swallows what a handler raises")
def test_an_interrupted_write_leaves_what_it_stored(crew) -> None:
    """frames_written tells how far it came; the reader gets exactly that."""
    buffer = AudioBuffer(8, policy="block")
    reader = buffer.reader(guard=True)

    class Stop(Exception):
        pass

    def handle(number: int, frame: object) -> None:
        raise Stop

    def send() -> None:
        while buffer.frames_written < 8:  # from then on the write is on its way to sleep
            time.sleep(0.001)
        crew.wait_until_asleep(threading.main_thread())
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        crew.start(send)
        with pytest.raises(Stop):
            buffer.write(ramp(0, 20), timeout=LIMIT_S)
    finally:
        crew.join(LIMIT_S)
        signal.signal(signal.SIGUSR1, before)
    assert buffer.frames_written == 8
    assert np.array_equal(reader.read(100), ramp(0, 8))
    assert buffer.write(ramp(8, 16), timeout=0.0) == 8
    assert np.array_equal(reader.read(100), ramp(8, 16))
