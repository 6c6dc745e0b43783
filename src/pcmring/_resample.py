"""Reading a ring at another rate and with other channels: 16 kHz mono float32 from whatever the device gives.

Output positions run on the ring's own time line: output frame q is the audio of ring position
``q * ring rate / output rate``, and at equal rates both are the same number. soxr's filters are of linear phase
and it takes its delay out of the signal, so that delay costs waiting, never an offset.

Where the ring lost frames the resampler is run out before the loss and starts anew after it: it would else smear
one side into the other. The lost stretch appears as lost output positions. Its first frame after the loss is the
next whole output position, so the mapping within such a run may be off by up to one output frame; `ring_position`
knows by how much.

A call can be broken off anywhere, by a Ctrl-C or for want of memory. It has then done nothing, but for what it had
taken from the ring: nobody knows what the resampler made of that, so it counts as lost, as if the ring had lost it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast

import numpy as np

from pcmring._buffer import AudioBuffer
from pcmring._late import load
from pcmring._records import Block, StreamTime
from pcmring._sources import count, number, positive
from pcmring.errors import BufferClosed

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from numpy.typing import NDArray
    from typing_extensions import Self

    from pcmring._buffer import Blocks, Reader

__all__ = ["ResampledBlocks", "ResamplingReader"]

#: Runs and lost ranges remembered; older ones stay in the total.
REMEMBERED = 1024

#: Full scale of the ring's integers.
_SCALES = {"int16": 2.0**-15, "int32": 2.0**-31}


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    seconds = number(timeout, "timeout")
    if not seconds >= 0.0:
        raise ValueError(f"timeout must be 0 or more seconds, or None to wait without limit, got {timeout!r}")
    return time.monotonic() + seconds


class _NoResampling:
    """What soxr's stream is at equal rates."""

    @staticmethod
    def resample_chunk(block: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        return block

    @staticmethod
    def clear() -> None:
        pass

    @staticmethod
    def delay() -> float:
        return 0.0


class ResamplingReader:
    """A reader of `buffer` that gives float32 at any rate, with any channels.

    Belongs to one thread, or one task, at a time, as a `Reader` does. Always, in output frames,
    ``position - start == delivered + lost``. When nothing was lost, what it gives is bit for bit what
    ``soxr.resample`` makes of the whole signal; at the end of a closed buffer every frame comes out.

    Parameters
    ----------
    buffer : AudioBuffer
        With a samplerate.
    samplerate : float, optional
        Hertz, of what is read.
    channels : int, optional
        Of what is read: 1 is the mean of the ring's channels; a mono ring is repeated; else as many as the ring.
    start, guard, name : optional
        As for `AudioBuffer.reader`.
    quality : {"QQ", "LQ", "MQ", "HQ", "VHQ"}, optional
        soxr's. Higher ones hold back more: from 48 to 16 kHz, measured on 10 ms blocks, LQ 11 ms on average and 20 at
        most, HQ 21 and 37, VHQ 42 and 76.

    Raises
    ------
    ValueError, TypeError
        An argument has no meaning, or the buffer has no samplerate.
    MissingPackage
        The rates differ and soxr is not installed.
    """

    def __init__(
        self,
        buffer: AudioBuffer,
        samplerate: float = 16000,
        channels: int = 1,
        *,
        start: Literal["now", "oldest"] | SupportsIndex = "now",
        guard: bool = False,
        name: str | None = None,
        quality: str = "HQ",
    ) -> None:
        if not isinstance(buffer, AudioBuffer):
            raise TypeError(f"buffer must be an AudioBuffer, got {buffer!r}")
        if buffer.samplerate is None:
            raise ValueError("resampling needs the buffer's rate: AudioBuffer(..., samplerate=48000)")
        self._samplerate = positive(samplerate, "samplerate")
        self._channels = count(channels, "channels", 1, 64)
        if self._channels != buffer.channels and 1 not in (self._channels, buffer.channels):
            raise ValueError(f"channels must be 1 or the buffer's {buffer.channels}, got {channels}")
        self._buffer = buffer
        self._ratio = Fraction(self._samplerate) / Fraction(buffer.samplerate)
        # nothing to do: every call goes straight to the ring's reader
        self._is_plain = self._ratio == 1 and self._channels == buffer.channels and buffer.dtype == np.float32
        # a mix is made before the resampling, copies after it
        self._inner = min(self._channels, buffer.channels)
        self._stream: Any = _NoResampling()
        if self._ratio != 1:
            self._stream = load("soxr").ResampleStream(
                buffer.samplerate, self._samplerate, self._inner, dtype="float32", quality=quality
            )
        self._scale = _SCALES.get(buffer.dtype.name)
        self._calls: dict[object, None] = {}  # the first is the one whose turn it is
        # Waits are for so many ring frames at most: one that fills the ring would be overtaken.
        self._slice = max(1, buffer.capacity // 4)
        self._reader: Reader = buffer.reader(start, guard=guard, name=name)
        self._ring_end = self._reader.start  # ring position after the newest frame taken in
        self._start = self._position = self._end = self._scaled(self._reader.start)
        # what came out and was not yet read: the present run, and those after the losses that follow it
        self._run: NDArray[np.float32] = np.empty((0, self._channels), np.float32)
        self._runs: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._is_over = False
        self._is_broken = False  # nobody knows what the resampler holds
        self._lost = 0
        self._losses: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._segments: deque[tuple[int, int]] = deque([(self._start, self._reader.start)], maxlen=REMEMBERED)

    def _scaled(self, ring_position: int) -> int:
        return math.floor(ring_position * self._ratio + Fraction(1, 2))

    # ---- life and facts ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End the reader: a wait in it wakes at once. Idempotent; any thread."""
        self._reader.close()

    def finish(self) -> None:
        """Take nothing more from the ring: what the resampler holds can be read, then reads end as at a closed buffer.

        In the thread that reads.
        """
        if self._is_plain:
            self._reader.close()  # nothing is held
            return
        call = object()
        try:
            self._begin(call)
            if not self._is_over:
                self._end_all()
        finally:
            self._calls.pop(call, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<ResamplingReader to {self._samplerate:g} Hz, {self._channels} channels at {self.position}, "
            f"{self.lost} frames lost{', closed' if self.closed else ''}>"
        )

    @property
    def closed(self) -> bool:
        """bool: `close` was called."""
        return self._reader.closed

    @property
    def buffer(self) -> AudioBuffer:
        """AudioBuffer: what is read."""
        return self._buffer

    @property
    def name(self) -> str | None:
        """The name it was given."""
        return self._reader.name

    @property
    def samplerate(self) -> float:
        """float: hertz, of what is read."""
        return self._samplerate

    @property
    def channels(self) -> int:
        """int: of what is read."""
        return self._channels

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """dtype: float32."""
        return np.dtype(np.float32)

    @property
    def start(self) -> int:
        """int: the output position it was opened at."""
        return self._start

    @property
    def position(self) -> int:
        """int: the next output frame it gives."""
        return self._reader.position if self._is_plain else self._position

    @property
    def delivered(self) -> int:
        """int: output frames it gave. Overlapping windows count each frame once."""
        return self.position - self._start - self.lost

    @property
    def lost(self) -> int:
        """int: output frames that fell away because the ring had lost theirs."""
        return self._reader.lost if self._is_plain else self._lost

    @property
    def delay(self) -> float:
        """float: output frames that the resampler holds back just now. They come with the next input."""
        return float(self._stream.delay())

    def losses(self) -> list[tuple[int, int]]:
        """Return the output frames it lost, as a list of ``(first, last)``, half open; the newest 1,024 ranges."""
        return self._reader.losses() if self._is_plain else list(self._losses)

    def ring_position(self, position: float) -> float:
        """Return where in the ring the audio of an output position lies; it may lie between two frames."""
        output, ring = self._segments[0]
        for candidate in self._segments.copy():
            if candidate[0] <= position:
                output, ring = candidate
        return float(ring + (Fraction(position) - output) / self._ratio)

    def output_position(self, ring_position: float) -> float:
        """Return the output position that has the audio of a ring position; it may lie between two frames."""
        output, ring = self._segments[0]
        for candidate in self._segments.copy():
            if candidate[1] <= ring_position:
                output, ring = candidate
        return float(output + (Fraction(ring_position) - ring) * self._ratio)

    def time_of(self, position: float) -> StreamTime:
        """Return when the audio of an output frame was captured, as `AudioBuffer.time_of` does."""
        where = max(0.0, self.ring_position(position))
        whole = math.floor(where)
        time = self._buffer.time_of(whole)
        assert self._buffer.samplerate is not None
        return StreamTime(float(time) + (where - whole) / self._buffer.samplerate, time.clock)

    # ---- from the ring --------------------------------------------------------------------------------

    def _begin(self, call: object) -> None:
        """Make it this call's turn. The caller takes it out again, even if a Ctrl-C came right after this."""
        self._calls[call] = None
        if list(self._calls)[0] is not call:  # noqa: RUF015 - one step, also without the GIL
            raise RuntimeError("another thread is using this reader; open one for each")

    def _mixed(self, block: NDArray[Any]) -> NDArray[np.float32]:
        """Ring frames as float32, mixed to one channel if that is wanted."""
        if self._scale is not None:
            floats = block.astype(np.float32)
            floats *= np.float32(self._scale)
        else:
            floats = block.astype(np.float32, copy=False)
        if self._channels < floats.shape[1]:
            floats = floats.mean(axis=1, keepdims=True, dtype=np.float32)
        return floats

    def _spread(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Repeat a mono signal in all channels that are wanted."""
        return block if block.shape[1] == self._channels else np.repeat(block, self._channels, axis=1)

    def _append(self, output: NDArray[np.float32]) -> None:
        if len(output) == 0:
            return
        output = self._spread(output)
        if self._runs:
            first, run = self._runs[-1]
            self._runs[-1] = (first, np.concatenate((run, output)))
        else:
            self._run = np.concatenate((self._run, output)) if len(self._run) else output
        self._end += len(output)

    def _run_out(self) -> None:
        """What the resampler still holds comes out; it is then as new."""
        self._append(self._stream.resample_chunk(np.empty((0, self._inner), np.float32), last=True))
        self._stream.clear()

    def _end_all(self) -> None:
        before = self._state()
        try:
            if self._is_broken:
                self._mend()
            self._run_out()
            self._is_over = True
        except BaseException:
            self._undo(before, is_broken=True)
            raise

    def _state(self) -> tuple[Any, ...]:
        flags = self._is_broken, self._is_over
        return self._run, self._runs.copy(), self._end, self._position, self._lost, self._ring_end, flags

    def _undo(self, before: tuple[Any, ...], is_broken: bool) -> None:
        now_broken, now_over = self._is_broken, self._is_over
        self._run, self._runs, self._end, self._position, self._lost, self._ring_end, flags = before
        self._is_broken, self._is_over = flags
        self._is_broken |= is_broken or now_broken or now_over != self._is_over

    def _mend(self) -> None:
        """Give up what was taken from the ring, and go on after it."""
        self._stream.clear()
        self._ring_end = self._reader.position
        self._go_on_at(self._ring_end)
        self._is_broken = False

    def _skip_to(self, ring_position: int) -> None:
        """The ring lost what lies before `ring_position`."""
        self._run_out()
        self._go_on_at(ring_position)

    def _go_on_at(self, ring_position: int) -> None:
        first = max(self._end, self._scaled(ring_position))
        if first > self._end:
            self._runs.append((first, np.empty((0, self._channels), np.float32)))
            self._end = first
        self._segments.append((first, ring_position))

    def _next_run(self) -> None:
        first, self._run = self._runs.popleft()
        self._note_loss(first)

    def _note_loss(self, until: int) -> None:
        if until > self._position:
            if self._losses and self._losses[-1][1] >= self._position:  # ">": by a call that was broken off
                self._losses[-1] = (self._losses[-1][0], until)
            else:
                self._losses.append((self._position, until))
            self._lost += until - self._position
            self._position = until

    def _ring_frames(self, wanted: int) -> int:
        """Ring frames that may make the run `wanted` frames long."""
        return max(1, math.ceil((wanted - len(self._run)) / self._ratio))

    def _pump(self, wanted: int, deadline: float | None) -> None:
        """Take from the ring until the run has `wanted` frames, or ends in a loss, or all is over, or time is."""
        while True:
            before, taken = self._state(), self._reader.position
            try:
                if self._pump_once(wanted, deadline):
                    return
            except BufferClosed:
                raise
            except BaseException:
                self._undo(before, is_broken=self._reader.position != taken)
                raise

    def _pump_once(self, wanted: int, deadline: float | None) -> bool:
        """Return whether that was all."""
        if self._is_broken:
            self._mend()
        if len(self._run) == 0 and self._runs:
            self._next_run()
        if len(self._run) >= wanted or self._runs or self._is_over:
            return True
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            block = self._reader.read(min(self._ring_frames(wanted), self._slice), left)
        except BufferClosed:
            if self._reader.closed:
                raise
            self._end_all()
            return True
        first = self._reader.position - len(block)
        if first != self._ring_end:
            self._skip_to(first)
        self._ring_end = first + len(block)
        if len(block):
            self._append(self._stream.resample_chunk(self._mixed(block)))
        return len(block) == 0 and left == 0.0

    # ---- reading ----------------------------------------------------------------------------------------

    def read(self, num_samples: int, timeout: float | None = 0.0) -> NDArray[np.float32]:
        """Take the next output frames, in order.

        The frames of one read follow each other: one that meets a loss ends before it, and the next goes on
        after it.

        Parameters
        ----------
        num_samples : int
            Output frames wanted; may exceed what the ring holds.
        timeout : float or None, optional
            Seconds to wait until they are there: 0.0 takes what there is, None waits without limit. Closing the
            buffer or the reader ends the wait.

        Returns
        -------
        ndarray of float32, shape (n, channels), n <= num_samples

        Raises
        ------
        BufferClosed, RuntimeError
            The reader is closed, or the buffer is and was read to its end; another thread is in a call.
        """
        frames = count(num_samples, "num_samples", 0)
        if self._is_plain:
            return self._reader.read(frames, timeout)
        deadline = _deadline(timeout)
        call = object()
        try:
            self._begin(call)
            self._pump(frames, deadline)
            if frames and self._is_over and len(self._run) == 0:
                raise BufferClosed("the buffer is closed and read to its end")
            # a copy: what is left of the run must not keep all of it alive, nor be written to
            taken: NDArray[np.float32] = self._run[:frames].copy()
            position, rest = self._position + len(taken), self._run[len(taken) :]
            self._position, self._run = position, rest
            return taken
        finally:
            self._calls.pop(call, None)

    def read_into(self, out: NDArray[np.float32], timeout: float | None = 0.0) -> int:
        """Take the next output frames into `out` and return how many.

        Allocates only where it resamples or mixes.

        Parameters
        ----------
        out : ndarray of float32, shape (frames, channels) or (frames,) for mono
            Writable. Its first frames are filled.
        timeout : float or None, optional
            As for `read`.
        """
        if self._is_plain:
            return self._reader.read_into(out, timeout)
        if getattr(out, "dtype", None) != np.float32:
            raise TypeError(f"out must be an ndarray of float32, got {getattr(out, 'dtype', type(out).__name__)}")
        if not (out.shape[1:] == (self._channels,) or (out.ndim == 1 and self._channels == 1)):
            raise ValueError(f"out must have shape (frames, {self._channels}), got {out.shape}")
        if not out.flags.writeable:
            raise ValueError("out must be writable")
        block = self.read(len(out), timeout)
        out[: len(block)] = block if out.ndim == 2 else block[:, 0]
        return len(block)

    def blocks(self, n: int, hop: int | None = None, timeout: float | None = None) -> ResampledBlocks | Blocks:
        """Iterate over windows of `n` output frames, with ``for`` or ``async for``, as `Reader.blocks` does.

        A window has no loss in it: one that meets a loss begins anew after it, and what had come of it counts
        as lost. The last window at the end of a closed buffer may be shorter.

        Parameters
        ----------
        n : int
            Output frames in a window.
        hop : int, optional
            Output frames from one window to the next, 1 to `n`; `n` if not given.
        timeout : float or None, optional
            Seconds to wait for a window; then TimeoutError is raised, and the iteration can go on.
        """
        if self._is_plain:
            return self._reader.blocks(n, hop, timeout)
        frames = count(n, "n", 1)
        step = frames if hop is None else count(hop, "hop", 1, frames)
        _deadline(timeout)
        if self.closed:
            raise BufferClosed("the reader is closed")
        return ResampledBlocks(self, frames, step, timeout)


class ResampledBlocks:
    """Windows of a ResamplingReader: an iterator and an asynchronous iterator of `Block`, in output positions."""

    def __init__(self, source: ResamplingReader, frames: int, hop: int, timeout: float | None) -> None:
        self._source = source
        self._frames = frames
        self._hop = hop
        self.timeout = timeout
        self._end = source.position  # output position after the newest frame handed out
        self._lost_before = source.lost
        # for _aio.py
        self.reader = source._reader
        self._buffer = source._buffer

    def _next(self, deadline: float | None) -> Block | Literal[False] | None:
        """The next Block; None if it is not there in time; False at the end."""
        source = self._source
        if source.closed:
            return False
        call = object()
        try:
            source._begin(call)
            while True:
                source._pump(self._frames, deadline)
                got = len(source._run)
                if got < self._frames and source._runs:  # too short, and a loss follows: its new frames are lost, too
                    position = source._position + min(got, max(0, self._end - source._position))
                    source._position, source._run = position, source._run[got:]
                    continue
                break
            if got < self._frames and not source._is_over:
                return None
            frames = min(got, self._frames)
            first = source._position
            if frames == 0 or first + frames <= self._end:
                return False
            lost = source.lost
            block = Block(first, frames, source._run[:frames].copy(), lost - self._lost_before)
            step = min(self._hop, frames)
            source._position, source._run = first + step, source._run[step:]
            self._end, self._lost_before = first + frames, lost
            return block
        except BufferClosed:
            return False
        finally:
            source._calls.pop(call, None)

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        block = self._next(_deadline(self.timeout))
        if block is False:
            raise StopIteration
        if block is None:
            raise TimeoutError(f"no window of {self._frames} frames within {self.timeout} s")
        return block

    def _poll(self) -> Block | Literal[False] | None:
        return self._next(time.monotonic())

    @property
    def _target(self) -> int:
        """frames_written at which the next window may be there."""
        return self._source._ring_end + min(self._source._ring_frames(self._frames), self._source._slice)

    def _wait(self, seconds: float | None) -> None:
        """Sleep in this thread until the next window may be there."""
        if not self.reader.closed:
            self.reader.blocks(min(self._source._ring_frames(self._frames), self._source._slice))._wait(seconds)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Block]:
        from pcmring._aio import next_block

        return next_block(cast("Blocks", self))
