"""Programs as people write them: mypy --strict must accept every line, and refuse those marked `type: ignore`.

Checked by test_typing.py, never run. An ignore that is no longer needed is an error too (warn_unused_ignores).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import pcmring
from pcmring import (
    AudioBuffer,
    AudioView,
    Block,
    BufferClosed,
    BufferStatistics,
    CaptureCallback,
    FramesLost,
    Gap,
    Reader,
    StreamTime,
)


class Tracker:
    """Any class of this shape may be a buffer_tracker."""

    def track_buffer(self, obj: AudioBuffer, size_bytes: int) -> None: ...

    def untrack_buffer(self, obj: AudioBuffer) -> bool:
        return True


class HalfATracker:
    def track_buffer(self, obj: AudioBuffer, size_bytes: int) -> None: ...


def construct(policy: Literal["overwrite", "drop", "block"], frames: np.int64) -> AudioBuffer:
    AudioBuffer(16000)
    AudioBuffer(frames, np.uint8(2), "int16")
    AudioBuffer(16000, 1, np.int16, Tracker(), samplerate=16000, policy=policy, storage=None, name="mic")
    AudioBuffer(16000, dtype=np.dtype(np.float64), samplerate=44100.0)
    AudioBuffer(16000, policy="keep")  # type: ignore[arg-type]
    AudioBuffer("16000")  # type: ignore[arg-type]
    AudioBuffer(16000, 1, np.int16, HalfATracker())  # type: ignore[arg-type]
    AudioBuffer(16000, 1, np.int16, None, 16000)  # type: ignore[call-arg]
    AudioBuffer(16000, samplerate="16 kHz")  # type: ignore[arg-type]
    AudioBuffer(16000, storage="shared")  # type: ignore[arg-type]
    return AudioBuffer(max_samples=16000, channels=2, policy="block")


def facts(buffer: AudioBuffer) -> None:
    assert_type(buffer.max_samples, int)
    assert_type(buffer.capacity, int)
    assert_type(buffer.channels, int)
    assert_type(buffer.dtype, np.dtype[Any])
    assert_type(buffer.samplerate, float | None)
    assert_type(buffer.policy, Literal["overwrite", "drop", "block"])
    assert_type(buffer.name, str | None)
    assert_type(buffer.nbytes, int)
    assert_type(buffer.frames_written, int)
    assert_type(buffer.samples_written, int)
    assert_type(buffer.oldest, int)
    assert_type(buffer.fill, int)
    assert_type(buffer.closed, bool)
    assert_type(buffer.mirrored, bool)
    assert_type(buffer.get_fill_level(), float)
    buffer.capacity = 3  # type: ignore[misc]
    construct(buffer.policy, np.int64(1))


def write(buffer: AudioBuffer, block: npt.NDArray[np.float32]) -> None:
    assert_type(buffer.write(block), int)
    buffer.write([0.0, 0.5], timeout=1)
    buffer.write(block.astype(np.int16), None)
    buffer.write(block, "soon")  # type: ignore[arg-type]
    buffer.mark_gap(160, "paused", exact=False)
    buffer.mark_gap(160, "lunch")  # type: ignore[arg-type]
    buffer.clear()


def read(buffer: AudioBuffer, out: npt.NDArray[np.float32], spectrum: npt.NDArray[np.complex64]) -> float:
    assert_type(buffer.read(160), npt.NDArray[Any])
    buffer.read(160, timeout=None)
    assert_type(buffer.read_into(out, 0.5), int)
    buffer.read_into(spectrum)  # type: ignore[arg-type]
    buffer.read_into([0.0])  # type: ignore[arg-type]
    assert_type(buffer.get_latest(160), npt.NDArray[Any])
    assert_type(buffer.get_latest(160, out=out), npt.NDArray[np.float32])
    assert_type(buffer.read_range(0, 160), npt.NDArray[Any])
    assert_type(buffer.read_range(0, 160, out), npt.NDArray[np.float32])
    with buffer.latest_view(160) as view:
        assert_type(view, AudioView)
        level = float(np.abs(view.array).max())
        if view.intact and not view.copied and len(view) == view.stop - view.start:
            return level
    return float(buffer.view(0, 160).array[0, 0])


def account(buffer: AudioBuffer) -> str:
    for first, last in buffer.losses():
        assert_type(first, int)
        assert_type(last, int)
    for gap in buffer.gaps():
        assert_type(gap, Gap)
    when = buffer.time_of(160)
    assert_type(when, StreamTime)
    assert_type(buffer.position_at(when + 1.0), int)
    statistics = buffer.statistics()
    assert_type(statistics, BufferStatistics)
    assert_type(statistics.frames_lost["dropped"], int)
    statistics.fill = 0  # type: ignore[misc]
    try:
        buffer.read_range(0, 160)
    except FramesLost as lost:
        assert_type(lost.oldest, int)
    except BufferClosed:
        pass
    return when.clock


def iterate(buffer: AudioBuffer) -> list[Block]:
    windows: Iterator[Block] = buffer.reader().blocks(400, hop=160, timeout=1.0)
    buffer.reader("late")  # type: ignore[arg-type]
    buffer.reader("now", True)  # type: ignore[call-arg]
    with buffer.reader("oldest", guard=True, name="words") as reader:
        assert_type(reader, Reader)
        assert_type(reader.available + reader.position + reader.start + reader.delivered + reader.lost, int)
        assert_type(reader.read(160, None), npt.NDArray[Any])
        assert_type(reader.read_into(np.empty((160, 1), buffer.dtype)), int)
        for block in reader.blocks(160):
            assert_type(block, Block)
        for start, frames, _array, lost in reader.blocks(160):
            assert_type(start + frames + lost, int)
    Reader(buffer)  # type: ignore[call-arg]
    return list(windows)


async def iterate_asynchronously(buffer: AudioBuffer) -> Block:
    windows: AsyncIterator[Block] = buffer.reader(0).blocks(400)
    async for block in windows:
        assert_type(block, Block)
    reader = buffer.reader()
    return await asyncio.wait_for(anext(reader.blocks(160)), 1.0)


def capture(buffer: AudioBuffer) -> tuple[int, int]:
    guard: AbstractContextManager[CaptureCallback] = CaptureCallback(buffer, "int16")
    CaptureCallback(None)  # type: ignore[arg-type]
    with guard as callback:
        assert_type(callback.callbacks + callback.overflows + callback.underflows + callback.empty_callbacks, int)
        assert_type(callback.last_call_ns, int)
        assert_type(callback.buffer, AudioBuffer)
        callback.stop()
        callback.close()
        assert_type(callback.closed, bool)
    return callback.address, callback.userdata


class Named(AudioBuffer):
    """Subclasses keep their type through `with`."""

    def hello(self) -> str:
        return f"{self.name} {pcmring.get_include()}"


def subclass() -> str:
    with Named(160, name="mine") as buffer:
        return buffer.hello()
