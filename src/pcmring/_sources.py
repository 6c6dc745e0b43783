"""Where audio comes from: the protocol of a source, and the sources that need no sound card.

Life of a source: made (nothing is touched), `open` (its format is known), `start` (it writes into a buffer of
that format, as the buffer's producer), `stop`, `start` again with the same or another buffer, `close`.

Threads: `open`, `start`, `stop` and `close` may be called by any thread; a lock per source orders them. The
properties may be read by any thread at any time. A paced source (file, generator) owns one thread while it is
started, which alone writes to the buffer and sets what the properties report.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pcmring._late import load
from pcmring.errors import BufferClosed

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Self

    from pcmring._buffer import AudioBuffer

__all__ = ["GENERATORS", "FileSource", "GeneratorSource", "Source", "SourceCounters", "SourceError"]

logger = logging.getLogger(__name__)

#: What a `GeneratorSource` can make.
GENERATORS = ("tone", "noise", "silence")

#: A stopped source waits for a write under policy "block" at most this long. Under the other policies no write waits.
BLOCKED_WRITE_S = 0.02


class SourceError(OSError):
    """A device or file could not be opened, or failed while it ran.

    Attributes
    ----------
    source : str
        Its name.
    reason : str
        What the system or the library said.
    code : int or None
        PortAudio's error code where it gave one.
    """

    def __init__(self, source: str, reason: str, code: int | None = None) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason
        self.code = code

    def __reduce__(self) -> tuple[type[SourceError], tuple[str, str, int | None]]:
        return SourceError, (self.source, self.reason, self.code)


@dataclass(frozen=True)
class SourceCounters:
    """What a source did since its latest start."""

    blocks: int  #: blocks it brought
    frames: int  #: frames that reached the buffer
    overflows: int  #: blocks before which the device had lost frames
    underflows: int  #: blocks for which the device was late
    empty: int  #: calls without audio


class Source(Protocol):
    """Something that writes audio into an `AudioBuffer`, at the pace of a sound card.

    A context manager: entering opens, leaving stops and closes.
    """

    @property
    def name(self) -> str:
        """For people: the device's name, the file's path, the generator's kind."""

    @property
    def samplerate(self) -> float:
        """Hertz, of what it writes. Known once it is open."""

    @property
    def channels(self) -> int:
        """Known once it is open."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what it writes; a buffer of another dtype converts. Known once it is open."""

    def open(self) -> None:
        """Find out the format. Idempotent.

        Raises
        ------
        SourceError, FileNotFoundError, MissingPackage
            There is no such device or file, it cannot be used, or a package is missing. Nothing is held.
        """

    def start(self, buffer: AudioBuffer, *, missing_since_ns: int = 0) -> None:
        """Begin to write into `buffer`, as its producer; opens if need be.

        Parameters
        ----------
        buffer : AudioBuffer
        missing_since_ns : int, optional
            `time.monotonic_ns` of the last frame before an interruption: what is missing until the first block that
            now comes is entered into the ledger as "reopened".

        Raises
        ------
        ValueError
            The buffer has other channels or another samplerate.
        RuntimeError
            It is started already, or somebody else writes to the buffer.
        BufferClosed, SourceError
            As they say.
        """

    def stop(self) -> None:
        """When this returns nothing more will be written, and others may write. Idempotent; any thread."""

    def close(self) -> None:
        """Stop, and give back what `open` took. Idempotent; it can be opened again."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return True as soon as it is not `active`, False when `timeout` seconds have passed."""

    @property
    def active(self) -> bool:
        """It is started, and has neither finished nor failed."""

    @property
    def finished(self) -> bool:
        """It ended by itself since the latest start: end of file, device gone, failure."""

    @property
    def error(self) -> Exception | None:
        """Why it ended by itself, None if that was no failure."""

    @property
    def last_arrival_ns(self) -> int:
        """`time.monotonic_ns` when the latest block came, 0 before the first since the latest start."""

    @property
    def counters(self) -> SourceCounters:
        """What it did since the latest start."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


def check_format(source: Source, buffer: AudioBuffer) -> None:
    """Raise ValueError if `buffer` cannot hold what `source` writes."""
    if buffer.channels != source.channels:
        raise ValueError(f"the buffer must have {source.channels} channels, as {source.name}, got {buffer.channels}")
    if buffer.samplerate is not None and buffer.samplerate != source.samplerate:
        raise ValueError(
            f"the buffer's samplerate must be {source.samplerate:g} Hz, as that of {source.name}, "
            f"got {buffer.samplerate:g}"
        )


def log_start(source: Source, buffer: AudioBuffer) -> None:
    logger.info(
        "%s started: %g Hz, %d channels, %s, ring of %d frames",
        source.name,
        source.samplerate,
        source.channels,
        source.dtype,
        buffer.capacity,
    )


def number(value: object, what: str) -> float:
    """`value` as a float, or TypeError."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number, got {value!r}")
    return float(value)


def positive(value: object, what: str, *, infinite: bool = False) -> float:
    """`value` as a float above 0, or an error."""
    found = number(value, what)
    if not found > 0 or (math.isinf(found) and not infinite):
        raise ValueError(f"{what} must be more than 0, got {value!r}")
    return found


def count(value: object, what: str, least: int = 1, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`, or an error."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, got {value!r}")
    found = int(value.__index__())
    if found < least or (most is not None and found > most):
        raise ValueError(f"{what} must be {f'at least {least}' if most is None else f'{least} to {most}'}, got {value}")
    return found


#: Sources that are started, of all kinds. Stopped before the interpreter ends: afterwards threads cannot be joined,
#: and PortAudio's would go on to call into memory that is gone.
live: weakref.WeakSet[Any] = weakref.WeakSet()


def stop_all() -> None:
    """Stop what is started, at the end of the interpreter."""
    for source in list(live):
        source.stop()


atexit.register(stop_all)


#: How long a start that failed waits for its thread, which may have begun, before others close what it reads.
INTERRUPTED_START_S = 0.25


class _Run:
    """One start of a paced source. The thread holds this and not the source, so that a forgotten source is seen."""

    def __init__(
        self,
        name: str,
        blocks: Iterator[NDArray[Any]],
        buffer: AudioBuffer,
        frames_per_second: float,
        missing_since_ns: int = 0,
    ) -> None:
        self.name = name
        self.source_blocks = blocks
        self.buffer = buffer
        self.frames_per_second = frames_per_second
        self.missing_since_ns = missing_since_ns
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.finished = False
        self.error: Exception | None = None
        self.last_arrival_ns = self.blocks = self.frames = 0
        self.begin_ns = time.monotonic_ns()
        # a daemon: one that is forgotten must not keep the interpreter from ending
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"pcmring {name}")

    def _work(self) -> None:
        try:
            self._play()
        except BufferClosed:
            self.finished = True
        except (OSError, RuntimeError, MemoryError) as error:  # soundfile's are RuntimeErrors; another producer is one
            self.error = SourceError(self.name, str(error) or repr(error))
            self.error.__cause__ = error
            self.finished = True
            logger.warning("%s ended after %d frames: %s", self.name, self.frames, error)
        finally:
            self.ended.set()

    def _play(self) -> None:
        due_frames = 0
        for block in self.source_blocks:
            due_frames += len(block)
            wait_s = (self.begin_ns - time.monotonic_ns()) * 1e-9 + due_frames / self.frames_per_second
            if self.stopping.wait(wait_s) if wait_s > 0 else self.stopping.is_set():
                return
            if self.missing_since_ns:
                missing_s = (time.monotonic_ns() - self.missing_since_ns) * 1e-9
                missing = round(missing_s * (self.buffer.samplerate or self.frames_per_second)) - len(block)
                self.buffer.mark_gap(max(0, missing), "reopened", exact=False)
                self.missing_since_ns = 0
            rest = block
            while len(rest):
                accepted = self.buffer.write(rest, timeout=BLOCKED_WRITE_S)
                self.frames += accepted
                if self.buffer.policy != "block":  # what did not fit is lost, and in the ledger
                    break
                rest = rest[accepted:]
                if len(rest) and self.stopping.is_set():
                    return
            self.blocks += 1
            self.last_arrival_ns = time.monotonic_ns()
        self.finished = True


class _PacedSource(Source):
    """A source with a thread that writes each block when a device would have delivered it.

    The block that ends with frame n is written at ``begin + n / (samplerate * speed)`` on the monotonic clock.
    The deadlines are absolute: a late block does not delay those after it, and after a stall what is due comes
    at once. So `AudioBuffer.time_of`, which goes by the arrivals, gives at speed 1 the time at which a frame
    would have been captured.
    """

    _samplerate: float
    _channels: int
    _dtype: np.dtype[Any]

    def __init__(self, block_frames: int, speed: float) -> None:
        self._block_frames = count(block_frames, "block_frames")
        self._speed = positive(speed, "speed", infinite=True)
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._is_started = False
        self._pid = os.getpid()

    def __del__(self) -> None:
        if getattr(self, "_is_started", False) and self._pid == os.getpid() and not sys.is_finalizing():
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{', active' if self.active else ''}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    @property
    def samplerate(self) -> float:
        return self._samplerate

    @property
    def channels(self) -> int:
        return self._channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def active(self) -> bool:
        run = self._run
        return run is not None and not run.ended.is_set() and self._pid == os.getpid()

    @property
    def finished(self) -> bool:
        return self._run is not None and self._run.finished

    @property
    def error(self) -> Exception | None:
        return None if self._run is None else self._run.error

    @property
    def last_arrival_ns(self) -> int:
        return 0 if self._run is None else self._run.last_arrival_ns

    @property
    def begin_ns(self) -> int:
        """int: `time.monotonic_ns` at which frame 0 of the latest start would have been captured, 0 before."""
        return 0 if self._run is None else self._run.begin_ns

    @property
    def counters(self) -> SourceCounters:
        run = self._run
        return SourceCounters(0, 0, 0, 0, 0) if run is None else SourceCounters(run.blocks, run.frames, 0, 0, 0)

    def wait(self, timeout: float | None = None) -> bool:
        run = self._run
        return run is None or not self.active or run.ended.wait(timeout)

    def start(self, buffer: AudioBuffer, *, missing_since_ns: int = 0) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(f"{self.name} belongs to the parent process")
        self.open()
        check_format(self, buffer)
        with self._lock:
            if self._is_started and self.active:
                raise RuntimeError(f"{self.name} is started already")
            # refused here if somebody else writes, or the buffer is closed
            buffer.write(np.empty((0, self.channels), self.dtype), timeout=0.0)
            self._run = _Run(self.name, self._blocks(), buffer, self.samplerate * self._speed, missing_since_ns)
            try:
                self._run.thread.start()
            except BaseException:  # a Ctrl-C in its wait for the thread, which may run then
                self._run.stopping.set()
                self._run.ended.wait(INTERRUPTED_START_S)
                self._run.ended.set()
                raise
            self._is_started = True
            live.add(self)
        log_start(self, buffer)

    def stop(self) -> None:
        if self._pid != os.getpid():
            return  # the child of a fork has no such thread
        with self._lock:
            run = self._run
            if run is None or not self._is_started:
                return
            run.stopping.set()
            if run.thread is not threading.current_thread():
                run.thread.join()
            self._is_started = False
            live.discard(self)
        logger.info("%s stopped after %d frames", self.name, run.frames)

    def close(self) -> None:
        self.stop()
        if self._pid == os.getpid():
            with self._lock:
                self._release()

    def _blocks(self) -> Iterator[NDArray[Any]]:
        """The blocks from the beginning, for one run. Must not refer to the source."""
        raise NotImplementedError

    def _release(self) -> None:
        """Give back what `open` took."""


class GeneratorSource(_PacedSource):
    """A signal for machines without a microphone: "tone", "noise" or "silence".

    Each start brings the same signal from its beginning. It does not depend on `block_frames`.

    Parameters
    ----------
    kind : {"tone", "noise", "silence"}
        A sine, white noise evenly spread over ±amplitude, or zeros.
    samplerate : float, optional
        Hertz.
    channels : int, optional
        All the same for a tone; independent for noise.
    dtype : dtype, optional
        Of the blocks, int16, int32, float32 or float64.
    frequency : float, optional
        Of the tone, hertz.
    amplitude : float, optional
        Peak, full scale is 1.0.
    seed : int, optional
        Of the noise.
    block_frames : int, optional
        Frames per block.
    speed : float, optional
        Times real time; ``math.inf`` does not wait at all.
    """

    def __init__(
        self,
        kind: str,
        *,
        samplerate: float = 16000,
        channels: int = 1,
        dtype: DTypeLike = np.float32,
        frequency: float = 440.0,
        amplitude: float = 0.5,
        seed: int = 0,
        block_frames: int = 512,
        speed: float = 1.0,
    ) -> None:
        if type(kind) is not str or kind not in GENERATORS:  # not what only claims to be one
            raise ValueError(f"kind must be one of {', '.join(GENERATORS)}, got {kind!r}")
        super().__init__(block_frames, speed)
        self._kind = kind
        self._samplerate = positive(samplerate, "samplerate")
        self._channels = count(channels, "channels", 1, 64)
        self._dtype = np.dtype(dtype)
        if self._dtype.name not in ("int16", "int32", "float32", "float64"):
            raise TypeError(f"dtype must be int16, int32, float32 or float64, got {dtype!r}")
        self._frequency = positive(frequency, "frequency")
        if not 0.0 <= amplitude <= 1.0:
            raise ValueError(f"amplitude must be 0.0 to 1.0, got {amplitude!r}")
        self._amplitude = float(amplitude)
        self._seed = count(seed, "seed", 0)

    @property
    def name(self) -> str:
        return self._kind

    def open(self) -> None:
        pass

    def _blocks(self) -> Iterator[NDArray[Any]]:
        shape = (self._block_frames, self.channels)
        if self._kind == "silence":
            return itertools.repeat(np.zeros(shape, self.dtype))
        if self._kind == "noise":
            return _in_dtype(_noise(shape, self._amplitude, self._seed), self.dtype)
        return _in_dtype(_tone(shape, self._amplitude, self._frequency / self.samplerate), self.dtype)


def _noise(shape: tuple[int, int], amplitude: float, seed: int) -> Iterator[NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    while True:
        yield random.uniform(-amplitude, amplitude, shape)


def _tone(shape: tuple[int, int], amplitude: float, turns_per_frame: float) -> Iterator[NDArray[np.float64]]:
    for position in itertools.count(0, shape[0]):
        # the phase in turns, reduced before it is multiplied: exact after hours too
        turns = np.arange(position, position + shape[0]) * turns_per_frame % 1.0
        tone = amplitude * np.sin(2.0 * np.pi * turns)
        yield np.repeat(tone[:, np.newaxis], shape[1], axis=1)


def _in_dtype(signal: Iterator[NDArray[np.float64]], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for block in signal:
        yield np.rint(block * np.iinfo(dtype).max).astype(dtype) if dtype.kind == "i" else block.astype(dtype)


#: What each of libsndfile's encodings is read as: the ring's smallest type that holds it exactly. Others, all
#: lossy or wider ones, are read as float32.
_FILE_DTYPES = {
    "PCM_S8": "int16",
    "PCM_U8": "int16",
    "PCM_16": "int16",
    "ALAW": "int16",
    "ULAW": "int16",
    "ALAC_16": "int16",
    "DPCM_8": "int16",
    "DPCM_16": "int16",
    "IMA_ADPCM": "int16",
    "MS_ADPCM": "int16",
    "PCM_24": "int32",
    "PCM_32": "int32",
    "ALAC_20": "int32",
    "ALAC_24": "int32",
    "ALAC_32": "int32",
    "DOUBLE": "float64",
}


class FileSource(_PacedSource):
    """A sound file played at the pace of a sound card.

    Each start plays from the beginning. At the end of the file it has `finished`; the buffer is left open.
    Frames before a damaged place are delivered, then `error` tells.

    Parameters
    ----------
    path : path-like
        Whatever soundfile reads: WAV, FLAC, OGG, MP3, AIFF …
    block_frames : int, optional
        Frames per block.
    speed : float, optional
        Times real time; ``math.inf`` does not wait at all.
    """

    def __init__(self, path: str | os.PathLike[str], *, block_frames: int = 512, speed: float = 1.0) -> None:
        super().__init__(block_frames, speed)
        self._path = os.fspath(path)
        if not isinstance(self._path, str):
            raise TypeError(f"path must be a str or PathLike of str, got {path!r}")
        self._file: Any = None

    @property
    def name(self) -> str:
        return self._path

    @property
    def samplerate(self) -> float:
        self._need_open()
        return self._samplerate

    @property
    def channels(self) -> int:
        self._need_open()
        return self._channels

    @property
    def dtype(self) -> np.dtype[Any]:
        self._need_open()
        return self._dtype

    @property
    def frames(self) -> int:
        """int: length of the file as its header and size tell. Known once it is open."""
        self._need_open()
        return int(self._file.frames)

    def _need_open(self) -> None:
        if self._file is None:
            raise RuntimeError(f"{self._path} is not open")

    def open(self) -> None:
        soundfile = load("soundfile")
        with self._lock:
            if self._file is not None:
                return
            os.stat(self._path)  # FileNotFoundError, PermissionError: soundfile says "System error" to both
            try:
                file = soundfile.SoundFile(self._path)
            except RuntimeError as error:
                raise SourceError(self._path, f"not a sound file that soundfile reads ({error})") from error
            except TypeError as error:  # a .raw file has no header
                raise SourceError(self._path, f"the file does not tell its format ({error})") from error
            if not 1 <= file.channels <= 64:
                file.close()
                raise SourceError(self._path, f"it has {file.channels} channels; 1 to 64 can be held")
            self._file = file
            self._samplerate = float(file.samplerate)
            self._channels = int(file.channels)
            self._dtype = np.dtype(_FILE_DTYPES.get(file.subtype, "float32"))

    def _blocks(self) -> Iterator[NDArray[Any]]:
        if self._file.seekable():
            self._file.seek(0)
        return _file_blocks(self._file, self._block_frames, self._dtype.name)

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _file_blocks(file: Any, frames: int, dtype: str) -> Iterator[NDArray[Any]]:
    while len(block := file.read(frames, dtype=dtype, always_2d=True)):
        yield block
