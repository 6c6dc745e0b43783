"""Recording: what a ring holds goes into a sound file, by a thread of its own.

Who owns what. A `Recording` owns its reader, its file and its thread; only the thread touches the file. The capture
knows nothing of it: the reader guards what the file has not got yet, so a slow disk fills the ring, and only then the
ring drops frames and notes it in its ledger.

What is on disk. A file is valid after every flush; `_encoders` has the formats.
"""

from __future__ import annotations

import atexit
import errno
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from pcmring._encoders import Encoder, check_format, make_encoder
from pcmring._records import Gap
from pcmring._resample import REMEMBERED, ResamplingReader
from pcmring.errors import BufferClosed

__all__ = ["Recording", "RecordingError"]

logger = logging.getLogger(__name__)

#: The thread looks this often whether it shall stop. Also the length of a write.
STEP_S = 0.05
#: A header is at most so old. A quarter of what is promised: a FLAC at 8 kHz has a block of half a second on top.
FLUSH_S = 0.25
#: What recordings get to end when the interpreter does.
EXIT_S = 5.0


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

    def _open(self) -> Encoder:
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
            return make_encoder(self._file, self.format, self.samplerate, self.channels, self.subtype)
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

    def _failed(self, frames: int, cause: OSError | RuntimeError | MemoryError) -> RecordingError:
        reason = getattr(cause, "strerror", None) or str(cause) or repr(cause)
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
    def _failure_of(step: Callable[[], object]) -> OSError | RuntimeError | MemoryError | None:
        try:
            step()
        except (OSError, RuntimeError, MemoryError) as error:  # soundfile's are RuntimeErrors
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
        for gap in self._buffer.gaps():
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
