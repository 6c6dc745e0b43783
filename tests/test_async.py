"""`async for` over a reader's windows: one descriptor per buffer and loop, no thread per reader, nothing left behind.

Every loop here runs under a limit, in a thread of a Crew where it could hang for good.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pytest

from pcmring import AudioBuffer, BufferClosed, CaptureCallback

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the loop watches descriptors")
LIMIT_S = 30.0


def ramp(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32).reshape(-1, 1)


def run(main: Coroutine, loop: asyncio.AbstractEventLoop | None = None) -> object:
    """asyncio.run, with a limit and a loop of one's choice."""

    async def limited() -> object:
        return await asyncio.wait_for(main, LIMIT_S)

    loop = loop or asyncio.new_event_loop()
    try:
        return loop.run_until_complete(limited())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class NoDescriptors(asyncio.SelectorEventLoop):
    """A loop as on Windows: it cannot watch descriptors."""

    def add_reader(self, fd, callback, *arguments):
        if getattr(callback, "__module__", "").startswith("asyncio"):
            return super().add_reader(fd, callback, *arguments)  # its own self-pipe
        raise NotImplementedError


LOOPS = [asyncio.SelectorEventLoop, NoDescriptors]
both_loops = pytest.mark.parametrize("new_loop", LOOPS, ids=["descriptor", "executor"])


def open_descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        pytest.skip("counts descriptors in /proc")


async def let_others_run(turns: int = 5) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def until_waiting(task: asyncio.Task) -> None:
    """Let `task` come as far as it can without frames."""
    await let_others_run(10)
    assert not task.done()


async def collect(reader, n: int, hop: int | None = None) -> list[tuple[int, int, int]]:
    """(start, frames, lost) of every window, whose audio is checked."""
    found = []
    async for block in reader.blocks(n, hop):
        assert np.array_equal(block.array, ramp(block.start, block.start + block.frames))
        found.append((block.start, block.frames, block.lost))
    return found


# ---- several readers ------------------------------------------------------------------------------------------


@both_loops
def test_readers_of_one_loop_get_their_own_windows(crew, new_loop) -> None:
    """Of different lengths and hops, from a producer in the loop."""
    buffer = AudioBuffer(64)
    shapes = [(1, 1), (7, 7), (16, 4)]

    async def main() -> list:
        tasks = [asyncio.ensure_future(collect(buffer.reader(), n, hop)) for n, hop in shapes]
        await let_others_run()
        for i in range(50):
            assert not any(task.done() for task in tasks)
            buffer.write(ramp(3 * i, 3 * i + 3))
            await asyncio.sleep(0.001)
        buffer.close()
        return await asyncio.gather(*tasks)

    results: list = []
    crew.start(lambda: results.extend(run(main(), new_loop())))
    crew.join(2 * LIMIT_S)
    for (n, hop), found in zip(shapes, results, strict=True):
        check_windows(found, n, hop, 150)


def check_windows(found: list[tuple[int, int, int]], n: int, hop: int, written: int) -> None:
    """Windows that account for every frame up to `written`."""
    start = end = 0
    for first, frames, lost in found:
        assert first >= start
        assert lost == max(0, first - end)
        assert frames == n or first + frames == written
        start, end = first + hop, first + frames
    assert end == written


@pytest.mark.parametrize("gil", ["held", "released", "never taken"])
def test_a_producer_in_another_thread_wakes_every_loop(crew, gil: str) -> None:
    """Three loops in three threads, two readers each; blocks written with the GIL, without it, by the C callback."""
    long = 66_000  # frames of float32: more than 256 KiB, copied without the GIL
    frames = {"held": 80, "released": long, "never taken": 80}[gil]
    blocks = {"held": 300, "released": 40, "never taken": 300}[gil]
    buffer = AudioBuffer(8 * frames, policy="drop")
    total = frames * blocks
    n = frames + frames // 2
    readers = [(buffer.reader(guard=True), buffer.reader(guard=True)) for _ in range(3)]
    results: dict[int, list] = {}

    async def follow(reader) -> tuple[int, int]:
        end = count = 0
        async for block in reader.blocks(n):
            assert (block.start, block.lost) == (end, 0)
            assert block.array[0, 0] == np.float32(block.start % 1_000_003)
            assert block.array[-1, 0] == np.float32((block.start + block.frames - 1) % 1_000_003)
            end, count = block.start + block.frames, count + 1
        return end, count

    async def main(i: int) -> None:
        results[i] = await asyncio.gather(*(follow(reader) for reader in readers[i]))

    def produce() -> None:
        # exact in float32, and another number for each frame of a ring
        audio = (np.arange(total) % 1_000_003).astype(np.float32).reshape(-1, 1)
        capture = CaptureCallback(buffer) if gil == "never taken" else None
        if capture is not None:
            prototype = ctypes.CFUNCTYPE(
                ctypes.c_int, *(ctypes.c_void_p,) * 2, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p
            )
            callback = prototype(capture.address)
        deadline = time.monotonic() + LIMIT_S
        for start in range(0, total, frames):
            while buffer.capacity - buffer.fill < frames:  # so that nothing is dropped
                assert time.monotonic() < deadline, "the readers do not wake"
                time.sleep(0)
            block = audio[start : start + frames]
            if capture is None:
                assert buffer.write(block) == frames
            else:
                callback(block.ctypes.data, None, frames, None, 0, capture.userdata)
        if capture is not None:
            capture.close()
        buffer.close()

    for i in range(3):
        crew.start(lambda i=i: run(main(i)))
    crew.start(produce)
    crew.join(2 * LIMIT_S)
    whole = -(-total // n)
    assert results == {i: [(total, whole)] * 2 for i in range(3)}


def test_no_thread_and_one_descriptor_for_all_readers_of_a_loop() -> None:
    buffer = AudioBuffer(64)

    async def main() -> None:
        threads, descriptors = threading.active_count(), open_descriptors()
        tasks = [asyncio.ensure_future(collect(buffer.reader(), 8)) for _ in range(20)]
        await let_others_run()
        assert open_descriptors() == descriptors + 1
        assert threading.active_count() == threads
        buffer.write(ramp(0, 8))
        await let_others_run()
        buffer.close()
        assert await asyncio.gather(*tasks) == [[(0, 8, 0)]] * 20

    run(main())


def test_eight_loops_can_wait_for_a_buffer_and_the_ninth_is_told(crew) -> None:
    """And when one of the eight is done there is room again."""
    buffer = AudioBuffer(64)
    readers = [buffer.reader() for _ in range(10)]
    waiting = threading.Barrier(9)
    ended: dict[int, str] = {}

    async def follow(i: int) -> None:
        task = asyncio.ensure_future(collect(readers[i], 4))
        await until_waiting(task)
        await asyncio.get_running_loop().run_in_executor(None, waiting.wait, LIMIT_S)
        ended[i] = str(await task)

    for i in range(8):
        crew.start(lambda i=i: run(follow(i)))
    waiting.wait(LIMIT_S)
    before = open_descriptors()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="at most 8 event loops"):
            run(collect(readers[8], 4))
    assert open_descriptors() == before
    assert not readers[8].closed
    readers[0].close()

    deadline = time.monotonic() + LIMIT_S
    while 0 not in ended and time.monotonic() < deadline:
        time.sleep(0.001)
    crew.start(lambda: ended.update({9: str(run(collect(readers[9], 4)))}))
    while buffer.frames_written < 8 and time.monotonic() < deadline:
        buffer.write(ramp(buffer.frames_written, buffer.frames_written + 4))
        time.sleep(0.001)
    buffer.close()
    crew.join(LIMIT_S)
    assert ended[0] == "[]"
    assert all(ended[i] == "[(0, 4, 0), (4, 4, 0)]" for i in range(1, 8))
    assert 9 in ended


def test_loops_that_begin_to_wait_at_the_same_moment_are_all_woken(crew) -> None:
    """Each has its own place among the ring's listeners."""
    for _ in range(20):
        buffer = AudioBuffer(16)
        barrier = threading.Barrier(8)
        got: list = []

        async def follow(reader, barrier=barrier, got=got) -> None:
            await asyncio.sleep(0)
            barrier.wait(LIMIT_S)
            got.append(await collect(reader, 4))

        threads = [crew.start(lambda r=buffer.reader(): run(follow(r))) for _ in range(8)]
        for thread in threads:
            crew.wait_until_asleep(thread)
        buffer.write(ramp(0, 4))
        buffer.close()
        crew.join(LIMIT_S)
        assert got == [[(0, 4, 0)]] * 8


# ---- timeouts and cancelling ------------------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("timeout", [0.0, 0.01, Decimal("0.01")], ids=str)
def test_windows_go_on_after_a_timeout(crew, new_loop, timeout) -> None:
    buffer = AudioBuffer(16)
    reader = buffer.reader()

    async def main() -> None:
        blocks = reader.blocks(6, hop=4, timeout=timeout)
        found = []
        for i in range(20):  # one frame at a time: most turns time out
            buffer.write(ramp(i, i + 1))
            began = time.monotonic()
            try:
                found.append(await blocks.__anext__())
            except TimeoutError:  # asyncio.TimeoutError is another class before Python 3.11, and not meant
                assert time.monotonic() - began >= float(timeout) * 0.9  # the loop's clock is coarse
        assert [block.start for block in found] == [0, 4, 8, 12]
        assert all(np.array_equal(block.array, ramp(block.start, block.start + 6)) for block in found)
        assert reader.lost == 0

    crew.start(lambda: run(main(), new_loop()))
    crew.join(2 * LIMIT_S)


@both_loops
def test_a_cancelled_task_loses_nothing(crew, new_loop) -> None:
    """And leaves the reader free for the next one at once, although nothing came that would wake it."""
    buffer = AudioBuffer(64)
    reader = buffer.reader()
    done: list[str] = []

    async def main() -> None:
        blocks = reader.blocks(4)
        for i in range(10):
            task = asyncio.ensure_future(blocks.__anext__())
            await asyncio.sleep(0.002)
            buffer.write(ramp(4 * i, 4 * i + 3))
            await until_waiting(task)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert reader.position == 4 * i
            buffer.write(ramp(4 * i + 3, 4 * i + 4))
            block = await blocks.__anext__()
            assert np.array_equal(block.array, ramp(4 * i, 4 * i + 4))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(blocks.__anext__(), 0.01)
        assert (reader.position, reader.lost) == (40, 0)

    def whole() -> None:
        run(main(), new_loop())  # with the end of its executor
        done.append("loop ended")

    crew.start(whole)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not done and time.monotonic() < deadline:
            time.sleep(0.001)
        assert done == ["loop ended"]
    finally:
        buffer.close()  # wakes a thread that was left behind
        crew.join(LIMIT_S)


@both_loops
def test_a_task_cancelled_when_its_window_has_just_come_loses_nothing(crew, new_loop) -> None:
    """Cancelled between the wake-up and its turn."""
    buffer = AudioBuffer(64)
    reader = buffer.reader()

    async def main() -> None:
        blocks = reader.blocks(4)
        start = 0
        for turns in range(12):
            task = asyncio.ensure_future(blocks.__anext__())
            await let_others_run(10)
            written = buffer.frames_written
            buffer.write(ramp(written, written + 4))
            await let_others_run(turns % 4)
            task.cancel()
            with suppress(asyncio.CancelledError):
                block = await task
                assert block.start == start
                start += 4
        while start < buffer.frames_written:
            block = await blocks.__anext__()
            assert block.start == start
            assert np.array_equal(block.array, ramp(start, start + 4))
            start += 4
        assert (start, reader.lost) == (48, 0)

    crew.start(lambda: run(main(), new_loop()))
    crew.join(2 * LIMIT_S)


# ---- the end ----------------------------------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("closes", ["buffer", "reader"])
@pytest.mark.parametrize("where", ["same loop", "other thread"])
def test_closing_ends_the_iteration(crew, new_loop, closes: str, where: str) -> None:
    buffer = AudioBuffer(64)
    reader = buffer.reader()
    other = buffer.reader()
    buffer.write(ramp(0, 6))

    async def main() -> None:
        mine = asyncio.ensure_future(collect(reader, 4))
        others = asyncio.ensure_future(collect(other, 4))
        await asyncio.sleep(0.005)
        await until_waiting(mine)
        close = (buffer if closes == "buffer" else reader).close
        if where == "same loop":
            close()
        else:
            threading.Thread(target=close).start()
        rest = [(4, 2, 0)] if closes == "buffer" else []
        assert await mine == [(0, 4, 0), *rest]
        if closes == "reader":
            await until_waiting(others)
            buffer.close()
        assert await others == [(0, 4, 0), (4, 2, 0)]
        with pytest.raises(BufferClosed):
            reader.read(1)

    crew.start(lambda: run(main(), new_loop()))
    crew.join(2 * LIMIT_S)


@both_loops
def test_a_reader_goes_on_in_a_new_loop(crew, new_loop) -> None:
    """asyncio.run twice on one reader, and once more on the same windows."""
    buffer = AudioBuffer(64)
    before = open_descriptors()
    reader = buffer.reader()
    blocks = reader.blocks(4)

    async def one() -> int:
        task = asyncio.ensure_future(blocks.__anext__())
        await until_waiting(task)
        written = buffer.frames_written
        buffer.write(ramp(written, written + 4))
        return (await task).start

    async def end() -> None:
        task = asyncio.ensure_future(collect(reader, 4))
        await until_waiting(task)
        reader.close()
        assert await task == []

    def whole() -> None:
        assert [run(one(), new_loop()) for _ in range(12)] == list(range(0, 48, 4))
        run(end(), new_loop())

    crew.start(whole)
    crew.join(2 * LIMIT_S)
    assert open_descriptors() == before


def leave_by_break(buffer: AudioBuffer) -> None:
    async def main() -> None:
        windows = 0
        async for _ in buffer.reader().blocks(4, timeout=5.0):
            windows += 1
            if windows == 2:
                break

    async def feed_late() -> None:
        task = asyncio.ensure_future(main())
        await until_waiting(task)
        buffer.write(ramp(0, 8))
        await task

    run(feed_late())


def leave_by_closing_the_reader_after_the_loop(buffer: AudioBuffer) -> None:
    reader = buffer.reader()
    wait_in_vain(reader)
    reader.close()


def leave_by_closing_the_buffer_after_the_loop(buffer: AudioBuffer) -> None:
    wait_in_vain(buffer.reader())
    buffer.close()


def leave_by_cancelling(buffer: AudioBuffer) -> None:
    wait_in_vain(buffer.reader())


def wait_in_vain(reader) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(reader.blocks(4).__anext__())
        await until_waiting(task)
        task.cancel()
        await asyncio.wait([task])

    run(main())


def leave_by_closing_inside_the_loop(buffer: AudioBuffer) -> None:
    async def main() -> None:
        with buffer.reader() as reader:
            task = asyncio.ensure_future(collect(reader, 4))
            await until_waiting(task)
        assert await task == []

    run(main())


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_cancelling,
        leave_by_closing_inside_the_loop,
        leave_by_closing_the_reader_after_the_loop,
        leave_by_closing_the_buffer_after_the_loop,
    ],
)
def test_nothing_is_left_of_an_iteration(leave: Callable[[AudioBuffer], None]) -> None:
    """No descriptor, no thread, and nobody who holds the buffer; also when nothing was closed."""
    for _ in range(2):  # once for what the first use of asyncio leaves
        gc.collect()
        descriptors, threads = open_descriptors(), threading.active_count()
        buffer = AudioBuffer(64)
        buffer_ref = weakref.ref(buffer)
        for _ in range(3 if leave is not leave_by_closing_the_buffer_after_the_loop else 1):
            leave(buffer)
        del buffer
        gc.collect()
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads
    assert buffer_ref() is None


@both_loops
def test_two_tasks_on_one_reader_share_its_windows(crew, new_loop) -> None:
    """Each window goes to one of them. (Where the wait takes a thread, the reader is that thread's.)"""
    buffer = AudioBuffer(64)
    reader = buffer.reader()

    async def main() -> None:
        tasks = [asyncio.ensure_future(collect(reader, 4)) for _ in range(2)]
        await let_others_run()
        for i in range(20):
            buffer.write(ramp(4 * i, 4 * i + 4))
            await asyncio.sleep(0.001)
        buffer.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if new_loop is NoDescriptors:
            refused = [result for result in results if isinstance(result, RuntimeError)]
            assert all("another thread is using this reader" in str(error) for error in refused)
            results = [result for result in results if not isinstance(result, RuntimeError)]
        windows = sorted(window[:2] for result in results for window in result)
        assert windows == [(4 * i, 4) for i in range(20)]

    crew.start(lambda: run(main(), new_loop()))
    crew.join(2 * LIMIT_S)


def test_the_loop_is_not_woken_for_each_block() -> None:
    """A window of 1,000 frames, written one by one: one wake-up."""
    woken = [0]

    class CountingLoop(asyncio.SelectorEventLoop):
        def add_reader(self, fd, callback, *arguments):
            def counted(*arguments: object) -> None:
                woken[0] += 1
                callback(*arguments)

            own = getattr(callback, "__module__", "").startswith("asyncio")
            return super().add_reader(fd, callback if own else counted, *arguments)

    buffer = AudioBuffer(1024)
    reader = buffer.reader()

    async def main() -> None:
        task = asyncio.ensure_future(reader.blocks(1000).__anext__())
        await until_waiting(task)
        for i in range(1000):
            buffer.write(ramp(i, i + 1))
            await asyncio.sleep(0)
        assert (await task).frames == 1000
        reader.close()

    run(main(), CountingLoop())
    assert 1 <= woken[0] <= 2


def test_a_reader_closed_while_its_loop_ends_in_another_thread(crew) -> None:
    """Whichever is first, close() does not fail and nothing is left."""
    gc.collect()
    before = open_descriptors()
    buffer = AudioBuffer(16)
    for i in range(60):
        reader = buffer.reader()
        waits = threading.Event()

        async def main(reader=reader, waits=waits) -> None:
            task = asyncio.ensure_future(collect(reader, 4))
            await until_waiting(task)
            waits.set()
            task.cancel()
            await asyncio.wait([task])

        def close(turns: int, reader=reader, waits=waits) -> None:
            waits.wait(LIMIT_S)
            for _ in range(turns):
                time.sleep(0)
            reader.close()

        crew.start(lambda main=main: run(main()))
        crew.start(close, i)
        crew.join(LIMIT_S)
        del reader, main, close
    gc.collect()
    assert open_descriptors() == before
