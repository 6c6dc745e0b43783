"""Recording: what a ring holds goes into a sound file, by a thread of its own.

Who owns what. A `Recording` owns its reader, its file and its thread; only the thread touches the file. The capture
knows nothing of it: the reader guards what the file has not got yet, so a slow disk fills the ring, and only then the
ring drops frames and notes it in its ledger.

What is on disk. A file is valid after every flush. A WAV is written here and not by libsndfile, which writes sizes when
it closes a file, and whose header that can grow past 4 GiB is one that many programs (Python's `wave` before 3.12) do
not read: a plain header with room for 64-bit sizes, as EBU Tech 3306 has it, becomes RF64 in place. A FLAC is encoded
by libsndfile, in blocks of 4,096 frames; its length is written into its header after each.
"""

from __future__ import annotations

import atexit
import errno
import logging
import math
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from pcmring._late import load
from pcmring._records import Gap
from pcmring._resample import REMEMBERED, ResamplingReader
from pcmring.errors import BufferClosed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMATS", "Recording", "RecordingError", "repair"]

logger = logging.getLogger(__name__)

#: File formats and encodings, by soundfile's names; the first encoding is the default.
FORMATS = {"WAV": ("PCM_16", "PCM_24", "FLOAT"), "FLAC": ("PCM_16", "PCM_24")}

#: The thread looks this often whether it shall stop. Also the length of a write.
STEP_S = 0.05
#: A header is at most so old. A quarter of what is promised: a FLAC at 8 kHz has a block of half a second on top.
FLUSH_S = 0.25
#: What recordings get to end when the interpreter does.
EXIT_S = 5.0

#: Format tag and bits per sample.
_WAV_SAMPLES = {"PCM_16": (1, 16), "PCM_24": (1, 24), "FLOAT": (3, 32)}
_LONGEST_WAV_HEADER = 92
_OUR_WAVS = ((b"RIFF", b"WAVEJUNK", b"fmt "), (b"RF64", b"WAVEds64", b"fmt "))
#: Where STREAMINFO tells a FLAC's length: the lower 36 bits of the 8 bytes from 18.
_FLAC_FRAMES = (1 << 36) - 1


class RecordingError(OSError):
    """A recording could not begin, or ended before it was stopped.

    Attributes
    ----------
    path : str
        The file. What is in it is valid.
    frames : int
        Safe in it.
    samplerate : int
        Hertz, of the file.
    reason : str
        What the system said.
    errno : int or None
        Its number: ENOSPC, EIO, EROFS …
    """

    def __init__(self, path: str, frames: int, samplerate: int, reason: str, errno: int | None = None) -> None:
        super().__init__(
            f"recording to {path!r} ended: {reason}; {frames} frames ({frames / samplerate:.3f} s) are safe in it"
        )
        self.path = path
        self.frames = frames
        self.samplerate = samplerate
        self.reason = reason
        self.errno = errno

    def __reduce__(self) -> tuple[type[RecordingError], tuple[str, int, int, str, int | None]]:
        return RecordingError, (self.path, self.frames, self.samplerate, self.reason, self.errno)


# ---- files -----------------------------------------------------------------------------------------------------------


def _to_integers(block: NDArray[np.float32], bits: int) -> NDArray[Any]:
    """Full scale ±1.0 as integers, rounded and saturated; 24 bits are the upper ones of 32. NaN is 0."""
    full = 2.0 ** (bits - 1)
    scaled = np.rint(np.nan_to_num(block, posinf=1.0, neginf=-1.0) * np.float32(full)).clip(-full, full - 1.0)
    integers: NDArray[Any] = scaled.astype(np.int16) if bits == 16 else scaled.astype(np.int32) << 8
    return integers


def _write(file: IO[bytes], data: bytes) -> None:
    """All of `data`; an unbuffered write may take less."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _overwrite(file: IO[bytes], at: int, data: bytes) -> None:
    end = file.tell()
    file.seek(at)
    try:
        _write(file, data)
    finally:
        file.seek(end)


class _Encoder(Protocol):
    """A sound file being written. `frames` are those in it that its header tells of."""

    frames: int

    def append(self, block: NDArray[np.float32]) -> None: ...

    def flush(self) -> None:
        """Make the header tell of all that is in the file."""

    def finish(self) -> None:
        """Make the file whole; after a failure too, with what is in it."""


def _wav_header(samplerate: int, channels: int, subtype: str, frames: int) -> bytes:
    tag, bits = _WAV_SAMPLES[subtype]
    align = channels * bits // 8
    size = frames * align
    middle = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, samplerate, samplerate * align, align, bits)
    if tag != 1:
        middle += struct.pack("<4sII", b"fact", 4, min(frames, 0xFFFFFFFF))
    riff_size = 4 + 36 + len(middle) + 8 + size + size % 2
    if riff_size <= 0xFFFFFFFF:
        begin = struct.pack("<4sI4s4sI28x", b"RIFF", riff_size, b"WAVE", b"JUNK", 28)
    else:
        begin = struct.pack("<4sI4s4sI", b"RF64", 0xFFFFFFFF, b"WAVE", b"ds64", 28)
        begin += struct.pack("<QQQI", riff_size, size, frames, 0)
        size = 0xFFFFFFFF
    return begin + middle + struct.pack("<4sI", b"data", size)


class _Wav:
    def __init__(self, file: IO[bytes], samplerate: int, channels: int, subtype: str) -> None:
        self._file = file
        self._format = samplerate, channels, subtype
        self._bits = _WAV_SAMPLES[subtype][1]
        self._align = channels * self._bits // 8
        self.frames = 0
        header = _wav_header(*self._format, 0)
        self._begin = len(header)
        if file.seek(0, os.SEEK_END) < self._begin:
            file.seek(0)
            _write(file, header)

    def append(self, block: NDArray[np.float32]) -> None:
        if self._bits == 32:
            data = block.astype("<f4").tobytes()
        elif self._bits == 16:
            data = _to_integers(block, 16).astype("<i2").tobytes()
        else:
            data = _to_integers(block, 24).astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
        _write(self._file, data)

    def flush(self) -> None:
        frames = (self._file.seek(0, os.SEEK_END) - self._begin) // self._align
        _overwrite(self._file, 0, _wav_header(*self._format, frames))
        self.frames = frames

    def finish(self) -> None:
        self.flush()
        end = self._begin + self.frames * self._align
        self._file.truncate(end)  # a failed write may have left a part of a frame
        if end % 2:
            self._file.seek(end)
            _write(self._file, b"\0")


class _Flac:
    """What libsndfile encodes goes through this object into the file: libsndfile cannot pass an OSError on.

    It makes one write of each block, longer than the file was, and writes into its header at the end. So a write that
    failed looks to it like one that worked, and after it nothing is written that would make the file longer.
    """

    def __init__(self, file: IO[bytes], samplerate: int, channels: int, subtype: str) -> None:
        self._file = file
        self._bits = 16 if subtype == "PCM_16" else 24
        self._error: OSError | None = None
        self._end = self._blocks = self._taken = self.frames = 0
        self._encoder = load("soundfile").SoundFile(self, "w", samplerate, channels, subtype, format="FLAC")

    def append(self, block: NDArray[np.float32]) -> None:
        samples = _to_integers(block, self._bits)
        if self._taken == 0:
            self._encoder.write(samples[:1])  # the header comes with the first frame
            self._raise()
            self._read_header()
            samples = samples[1:]
        self._encoder.write(samples)
        self._raise()
        self._taken += len(block)

    def _read_header(self) -> None:
        self._file.seek(0)
        header = self._file.read(26)
        self._file.seek(self._end)
        self._blocks = 0
        self._block_frames = int.from_bytes(header[8:10], "big")
        self._format = int.from_bytes(header[18:26], "big") & ~_FLAC_FRAMES  # rate, channels, bits

    def flush(self) -> None:
        if self._taken:
            self._tell(self._blocks * self._block_frames)

    def finish(self) -> None:
        self._encoder.close()
        if self._error is None:
            self.frames = self._taken
            return
        self._file.truncate(self._end if self._taken else 0)
        self.flush()
        raise self._error

    def _tell(self, frames: int) -> None:
        _overwrite(self._file, 18, (self._format | frames).to_bytes(8, "big"))
        self.frames = frames

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # what libsndfile calls

    def write(self, data: bytes) -> int:
        try:
            is_longer = self._file.tell() + len(data) > self._end
            if self._error is None or not is_longer:
                _write(self._file, data)
                if is_longer:
                    self._end = self._file.tell()
                    self._blocks += 1
        except OSError as error:
            self._error = self._error or error
        return len(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def repair(path: str | os.PathLike[str]) -> int | None:
    """Make a recording that was cut short whole: its header then tells of every frame in the file.

    Without it a reader gets all up to the last flush. A FLAC needs no repair, and other files are left alone.

    Returns
    -------
    int or None
        Its frames, None if it is not one that was made here.

    Raises
    ------
    OSError
        The file is not there, or cannot be written to.
    """
    with open(path, "r+b", buffering=0) as file:
        header = file.read(_LONGEST_WAV_HEADER)
        if header[:4] == b"fLaC":
            return int.from_bytes(header[18:26], "big") & _FLAC_FRAMES
        if len(header) >= 80 and (header[:4], header[8:16], header[48:52]) in _OUR_WAVS:
            tag, channels, samplerate, _, _, bits = struct.unpack_from("<HHIIHH", header, 56)
            subtype = next((name for name, sample in _WAV_SAMPLES.items() if sample == (tag, bits)), None)
            if subtype is not None and channels:
                wav = _Wav(file, samplerate, channels, subtype)
                wav.finish()
                return wav.frames
    return None


# ---- the recording ---------------------------------------------------------------------------------------------------


def check_format(format: str, subtype: str | None) -> str:
    """The encoding, the format's default if none is given, or ValueError."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    if subtype is None:
        return FORMATS[format][0]
    if subtype not in FORMATS[format]:
        raise ValueError(f"subtype of {format} must be one of {', '.join(map(repr, FORMATS[format]))}, got {subtype!r}")
    return subtype


class Recording:
    """A sound file that gets what a reader reads, until `stop` or the end of the ring.

    Parameters
    ----------
    reader : ResamplingReader
        Its own from now on; at a whole samplerate. A guarded one of a ring with policy "drop" has the ring keep what
        the file has not got yet; what then finds no place is in the ring's ledger.
    path : path-like
        A new or an empty file.
    format : {"WAV", "FLAC"}, optional
        A WAV that grows past 4 GiB becomes RF64.
    subtype : {"PCM_16", "PCM_24", "FLOAT"}, optional
        "FLOAT" in a WAV only. Integers are rounded and saturated.
    ledger : callable, optional
        Returns the ring's gaps, where that outlives the ring; `AudioBuffer.gaps` if not given.
    on_end : callable, optional
        Called once with this object, in the writing thread, when the file is closed. `error` tells how it ended.

    Raises
    ------
    RecordingError
        The file cannot be made or written to; one that was made is gone again. The reader is left open.
    FileExistsError
        There is something in it already.
    ValueError, TypeError
        An argument has no meaning.
    MissingPackage
        soundfile is needed for FLAC.

    Notes
    -----
    Frames that never came are left out of the file; `gaps` tells where.
    """

    def __init__(
        self,
        reader: ResamplingReader,
        path: str | os.PathLike[str],
        *,
        format: str = "WAV",
        subtype: str | None = None,
        ledger: Callable[[], list[Gap]] | None = None,
        on_end: Callable[[Recording], object] | None = None,
    ) -> None:
        self.format = format
        self.subtype = check_format(format, subtype)
        if not reader.samplerate.is_integer():
            raise ValueError(f"reader must be a ResamplingReader at a whole samplerate, got {reader!r}")
        self.path = os.path.abspath(path)
        self._reader = reader
        self._buffer = reader.buffer
        self.samplerate = int(reader.samplerate)
        self.channels = reader.channels
        self.error: RecordingError | None = None
        self._ledger = ledger or self._buffer.gaps
        self._on_end = on_end
        self._pid = os.getpid()
        self._stop_at = -1
        self._gaps: dict[int, Gap] = {}
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._encoder = self._open()
        self._thread = threading.Thread(target=self._work, daemon=True, name="pcmring recording")
        self._thread.start()
        _live.add(self)
        logger.info("recording to %r: %d Hz, %d channels, %s", self.path, self.samplerate, self.channels, self.subtype)

    def _open(self) -> _Encoder:
        is_new = not os.path.lexists(self.path)
        try:
            self._file: Any = open(  # noqa: SIM115 - the thread closes it
                os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600), "r+b", buffering=0
            )
        except OSError as error:
            raise self._failed(0, error) from error
        try:
            if os.fstat(self._file.fileno()).st_size:
                raise FileExistsError(errno.EEXIST, "there is something in it already", self.path)
            return (_Wav if self.format == "WAV" else _Flac)(self._file, self.samplerate, self.channels, self.subtype)
        except BaseException as error:
            self._file.close()
            if is_new:
                os.unlink(self.path)
            if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, FileExistsError):
                raise self._failed(0, error) from error
            raise

    def __repr__(self) -> str:
        return f"<Recording {self.path!r}, {self.frames} frames{', active' if self.active else ''}>"

    @property
    def frames(self) -> int:
        """int: readable in the file now; some more are on their way into it."""
        return self._encoder.frames

    @property
    def active(self) -> bool:
        """bool: it has not ended, by `stop`, with the buffer, or by a failure."""
        return not self._ended.is_set() and self._pid == os.getpid()

    def gaps(self) -> list[Gap]:
        """Return what is missing in the file, the newest 1,024 gaps; positions and lengths in frames of the file."""
        return sorted(self._gaps.copy().values())

    def stop(self, timeout: float | None = None) -> bool:
        """Write all that was captured until now, and close the file.

        Again, or after the end, does nothing. What a stuck disk keeps from being written goes on being written when
        the time is up.

        Parameters
        ----------
        timeout : float or None, optional
            Seconds to wait for that, None without limit.

        Returns
        -------
        bool
            Whether the file is whole and closed. `error` tells if something went wrong.
        """
        if self._pid != os.getpid():
            return True  # the child of a fork has no such thread
        if not self._stopping.is_set():
            self._stop_at = self._buffer.frames_written
            self._stopping.set()
        if self._thread is threading.current_thread():
            return self._ended.is_set()
        return self._ended.wait(timeout)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _failed(self, frames: int, cause: OSError | RuntimeError) -> RecordingError:
        reason = getattr(cause, "strerror", None) or str(cause)
        error = RecordingError(self.path, frames, self.samplerate, reason, getattr(cause, "errno", None))
        error.__cause__ = cause
        return error

    def _work(self) -> None:
        failure = None
        try:
            for step in (self._copy, self._note_gaps, self._encoder.finish, self._sync, self._file.close):
                error = self._failure_of(step)
                failure = failure or error
        finally:
            self._reader.close()
            if failure is not None:
                self.error = self._failed(self.frames, failure)
                logger.warning("%s", self.error)
            else:
                logger.info("recorded %d frames to %r", self.frames, self.path)
            self._ended.set()
            _live.discard(self)
            if self._on_end is not None:
                self._on_end(self)

    @staticmethod
    def _failure_of(step: Callable[[], object]) -> OSError | RuntimeError | None:
        try:
            step()
        except (OSError, RuntimeError) as error:  # soundfile's are RuntimeErrors
            return error
        return None

    def _sync(self) -> None:
        os.fsync(self._file.fileno())  # some disks and networks tell only now that they are full

    def _copy(self) -> None:
        reader = self._reader
        step = max(1, int(reader.samplerate * STEP_S))
        flush_at = math.inf  # nothing to flush
        while True:
            is_stopping = self._stopping.is_set()
            try:
                block = reader.read(step, 0.0 if is_stopping else STEP_S)
            except BufferClosed:
                return
            until_end = len(block)
            if self._stopping.is_set():
                until_end = round(reader.output_position(self._stop_at)) - (reader.position - len(block))
                block = block[: max(0, until_end)]
            if len(block):
                self._encoder.append(block)
                flush_at = min(flush_at, time.monotonic() + FLUSH_S)
            elif is_stopping and until_end <= 0:
                return
            elif is_stopping:
                reader.finish()
            if time.monotonic() >= flush_at:
                self._encoder.flush()
                self._note_gaps()
                flush_at = math.inf

    def _note_gaps(self) -> None:
        """The ring's ledger forgets; what it tells of this file is remembered."""
        reader = self._reader
        losses = reader.losses()
        for first, last in losses:
            self._add_gap(first, Gap(first, last - first, "dropped", True), losses)
        ratio = reader.samplerate / (self._buffer.samplerate or 1.0)
        with suppress(BufferClosed):
            for gap in self._ledger():
                at = round(reader.output_position(gap.position))
                if reader.start < at <= reader.position:
                    self._add_gap(at, gap._replace(frames=round(gap.frames * ratio)), losses)

    def _add_gap(self, at: int, gap: Gap, losses: list[tuple[int, int]]) -> None:
        lost_before = sum(last - first for first, last in losses if last <= at)
        self._gaps[at] = gap._replace(position=at - self._reader.start - lost_before)
        if len(self._gaps) > REMEMBERED:
            del self._gaps[min(self._gaps)]


_live: weakref.WeakSet[Recording] = weakref.WeakSet()


def _stop_all() -> None:
    """End what is being recorded, at the end of the interpreter."""
    for recording in list(_live):
        recording.stop(EXIT_S)


atexit.register(_stop_all)
