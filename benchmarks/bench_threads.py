"""Two threads and more: how much goes through, and how long a sleeping reader takes to have its block."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from harness import Effort, Round, race
from peers import Audio, Contender, able
from setting import busy_threads

from pcmring import AudioBuffer

BLOCK = 160
RING = 409 * BLOCK  # 4 s
ROWS = 4096
DEADLINE_S = 60.0

#: Each row tells its number.
NUMBERED = list(np.repeat(np.arange(ROWS, dtype=np.float32)[:, None], BLOCK, axis=1))


@contextmanager
def threads(*work: Callable[[], object]) -> Iterator[None]:
    """Run these; what one raises is raised here, and so is that one does not end."""
    failures: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as failure:
            failures.append(failure)

    started = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in started:
        thread.start()
    yield
    deadline = time.monotonic() + DEADLINE_S
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in started), "a reader hangs: a block was lost"


def check(rows: list[Audio], blocks: int) -> None:
    for at in range(max(0, blocks - ROWS), blocks):
        assert rows[at % ROWS][0] == rows[at % ROWS][-1] == at % ROWS, f"block {at} is another"


def transfer(put: Callable[[Audio], object], getters: list[Callable[[Audio], object]], blocks: int) -> list[float]:
    """Return the seconds a block, until every getter has all of them; afterwards they are checked."""
    outs = [list(np.full((min(ROWS, blocks), BLOCK), -1, np.float32)) for _ in getters]

    def reader(get_into: Callable[[Audio], object], rows: list[Audio]) -> Callable[[], None]:
        def run() -> None:
            for at in range(blocks):
                get_into(rows[at % ROWS])

        return run

    begin = time.perf_counter()
    with threads(*(reader(get, rows) for get, rows in zip(getters, outs, strict=True))):
        for at in range(blocks):
            put(NUMBERED[at % ROWS])
    seconds = time.perf_counter() - begin
    for rows in outs:
        check(rows, blocks)
    return [seconds / blocks]


@race(able("stream"), ["10 ms blocks"], is_long=True, goal="at least 1.5 x as fast as queue.SimpleQueue, and bounded")
def bench_two_threads(contender: type[Contender], case: str, effort: Effort) -> Round:
    """As many blocks as go from one thread to another, in order, none lost: seconds a block. Who cannot wait yields
    and looks again. Rings hold 4 s and make their writer wait; the standard library's queues take all there is.
    """
    blocks = effort.count(20_000, 50)

    def round_() -> list[float]:
        place = contender(RING)
        if hasattr(place, "stream"):
            return [place.stream(blocks, BLOCK)]
        samples = transfer(place.put, [place.get_into], blocks)
        place.close()
        return samples

    return round_


class Many:
    """A producer's put, and one get_into for each reader."""

    name: str
    kind = "idiom"

    def __init__(self, readers: int) -> None:
        raise NotImplementedError

    put: Callable[[Audio], object]
    getters: list[Callable[[Audio], object]]


class OurReaders(Many):
    name, kind = "pcmring", "pcmring"

    def __init__(self, readers: int) -> None:
        ring = AudioBuffer(RING, policy="block")
        self.put = ring.write

        def getter() -> Callable[[Audio], object]:
            reader = ring.reader(guard=True)
            return lambda out: reader.read_into(out, None)

        self.getters = [getter() for _ in range(readers)]


class _QueueEach(Many):
    queue_type: type[queue.Queue[Audio] | queue.SimpleQueue[Audio]]

    def __init__(self, readers: int) -> None:
        queues = [self.queue_type() for _ in range(readers)]

        def put(block: Audio) -> None:
            copy = block.copy()
            for each in queues:
                each.put(copy)

        def getter(own: Any) -> Callable[[Audio], object]:
            def get_into(out: Audio) -> None:
                out[:] = own.get()

            return get_into

        self.put, self.getters = put, [getter(each) for each in queues]


class QueueEach(_QueueEach):
    name, queue_type = "a queue.Queue each, one copy", queue.Queue


class SimpleQueueEach(_QueueEach):
    name, queue_type = "a queue.SimpleQueue each, one copy", queue.SimpleQueue


class DequeEach(Many):
    name = "a deque each, one copy, polled"

    def __init__(self, readers: int) -> None:
        deques: list[deque[Audio]] = [deque() for _ in range(readers)]

        def put(block: Audio) -> None:
            copy = block.copy()
            for each in deques:
                each.append(copy)

        def getter(own: deque[Audio]) -> Callable[[Audio], object]:
            def get_into(out: Audio) -> None:
                while not own:
                    time.sleep(0)
                out[:] = own.popleft()

            return get_into

        self.put, self.getters = put, [getter(each) for each in deques]


@race([OurReaders, QueueEach, SimpleQueueEach, DequeEach], [1, 2, 4, 8], is_long=True)
def bench_readers(contender: type[Many], case: int, effort: Effort) -> Round:
    """One producer and this many readers in threads of their own, each of which gets every block: seconds a block until
    the last has the last. Queues hand all readers the same copy, which a reader must not change.
    """
    blocks = effort.count(5_000, 20)

    def round_() -> list[float]:
        many = contender(case)
        return transfer(many.put, many.getters, blocks)

    return round_


LOADS = {"idle": nullcontext, "a third thread burns Python": lambda: busy_threads(1)}
PAUSE_S = 0.002


def produce(put: Callable[[Audio], object], count: int, written_at: list[float]) -> None:
    block = NUMBERED[1]
    for at in range(count):
        time.sleep(PAUSE_S)
        written_at[at] = time.perf_counter()
        put(block)


@race(
    able("wake"), list(LOADS), is_long=True, is_of_calls=True,
    goal="p50 at most 0.4 x, p99 at most 0.6 x queue.Queue's; under load p90 at most 1.1 switch intervals (5.5 ms)",
)  # fmt: skip
def bench_wakeup(contender: type[Contender], case: str, effort: Effort) -> Round:
    """From just before the write of a 10 ms block to the reader, who slept, holding it: blocks come every 2 ms. The
    limit is a futex between C threads, which nobody who has to take the GIL reaches.
    """
    count = effort.count(50, 3)

    def round_() -> list[float]:
        place = contender(RING)
        with LOADS[case]():
            if hasattr(place, "wake_pair"):
                found: list[float] = place.wake_pair(count, round(PAUSE_S * 1e9))
                return found
            written_at, had_at = [0.0] * count, [0.0] * count
            out = np.zeros(BLOCK, np.float32)

            def read() -> None:
                for at in range(count):
                    place.get_into(out)
                    had_at[at] = time.perf_counter()

            with threads(read):
                produce(place.put, count, written_at)
        assert out[0] == out[-1] == 1
        place.close()
        return [had - written for had, written in zip(had_at, written_at, strict=True)]

    return round_


@race(able("await"), list(LOADS), is_long=True, is_of_calls=True)
def bench_wakeup_asyncio(contender: type[Contender], case: str, effort: Effort) -> Round:
    """The same where the reader is a coroutine and the producer a thread."""
    count = effort.count(50, 3)

    def round_() -> list[float]:
        place = contender(RING)
        if hasattr(place, "wake_pair"):
            found: list[float] = place.wake_pair(count, round(PAUSE_S * 1e9))
            return found
        written_at, had_at = [0.0] * count, [0.0] * count

        async def read() -> Audio:
            place.start_awaiting()
            producer = asyncio.to_thread(produce, place.put, count, written_at)
            task = asyncio.ensure_future(producer)
            for at in range(count):
                block: Audio = await asyncio.wait_for(place.get(), DEADLINE_S) if at == 0 else await place.get()
                had_at[at] = time.perf_counter()
            await task
            return block.reshape(-1)

        with LOADS[case]():
            block = asyncio.run(read())
        assert block[0] == block[-1] == 1
        place.close()
        return [had - written for had, written in zip(had_at, written_at, strict=True)]

    return round_
