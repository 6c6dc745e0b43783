"""`FileBasedAudioManager`: what a device records goes into a file, besides what `StreamingAudioManager` does.

Threads: the file belongs to `Recording`'s thread, which reads the ring at the disk's pace. `_file_lock` makes one
recording of one session, and is never held while a program's function runs. What happens at a recording's end
(`_on_end`) does not refer to the manager, so that a forgotten one goes away and its file still ends well.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pcmring._delivery import StreamHandlers
from pcmring._encoders import check_format, repair
from pcmring._recording import Recording, RecordingError
from pcmring._session import CaptureSession
from pcmring._streaming import StreamingAudioManager

if TYPE_CHECKING:
    from pcmring._monitor import MemoryMonitor
    from pcmring._records import Gap
    from pcmring._tempfiles import TempFile
    from pcmring.devices import AudioDeviceManager

__all__ = ["FileBasedAudioManager"]

logger = logging.getLogger(__name__)

#: What the disk gets to take the rest at a stop. What it has not taken then goes on in the background.
DISK_S = 10.0


def _on_end(file: TempFile, session: CaptureSession, handlers: StreamHandlers, recording: Recording) -> None:
    """A recording has ended, and this is its thread."""
    file.finish()
    if recording.error is not None:
        session.stop()
        handlers.call("on_stream_error", recording.error)


def _move(source: str, target: str, overwrite: bool) -> None:
    """Rename, or across file systems copy; `target` is whole or not there."""
    is_ours, copy = False, f"{target}.{secrets.token_hex(4)}"
    try:
        if not overwrite:
            with open(target, "xb", opener=partial(os.open, mode=0o600)):  # or FileExistsError
                is_ours = True
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with open(source, "rb") as old, open(copy, "xb", opener=partial(os.open, mode=0o600)) as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(new.fileno())
            os.replace(copy, target)
            os.unlink(source)
    except BaseException:
        with suppress(OSError):
            os.unlink(copy)
        with suppress(FileNotFoundError):
            if is_ours and os.path.getsize(target) == 0:  # else it is the recording: a Ctrl-C came when it was moved
                os.unlink(target)
        raise


class FileBasedAudioManager(StreamingAudioManager):
    """Records from the selected device into a temporary file, from the first frame on.

    The file can be read at any moment, up to half a second or so before now, also after a crash (`recover`). It is
    kept while this manager lives, or until `release_audio_file`; then the next cleanup deletes it. `save_as` moves it
    to where it stays. A slow disk has as long as the ring; then frames are dropped and counted, and
    `on_buffer_full` is called. A disk that fails ends the recording: `on_stream_error` gets one RecordingError.

    Parameters
    ----------
    device_manager : AudioDeviceManager
    memory_monitor : MemoryMonitor, optional
        As for `StreamingAudioManager`.
    format : {"WAV", "FLAC"}, optional
        A WAV that grows past 4 GiB becomes RF64.
    subtype : {"PCM_16", "PCM_24", "FLOAT"}, optional
        soundfile's names; 16 bits if not given. "FLOAT" in a WAV only.

    Raises
    ------
    ValueError, TypeError
        An argument is not legal.

    Notes
    -----
    Files have mode 0600.
    """

    _writes_files = True

    def __init__(
        self,
        device_manager: AudioDeviceManager,
        memory_monitor: MemoryMonitor | None = None,
        *,
        format: str = "WAV",
        subtype: str | None = None,
    ) -> None:
        self._subtype = check_format(format, subtype)
        self._format = format
        super().__init__(device_manager, memory_monitor)
        self._file_lock = threading.Lock()
        self._file_error: RecordingError | None = None
        self._recording: Recording | None = None
        self._recorded: CaptureSession | None = None  # the session of _recording
        self._audio_files: dict[str, TempFile] = {}
        self._latest: str | None = None

    # ---- recording --------------------------------------------------------------------------------------------------

    def start_recording(self) -> bool:
        """Record from the selected device into a new file. Earlier files stay as they are.

        Returns
        -------
        bool
            True if it records, also if it did before. False if the device cannot be opened or no file be made: that
            is logged, `last_error` tells why, and `on_stream_error` is called.

        Raises
        ------
        MissingPackage
            A package that the device, the format or another rate needs is not installed.
        """
        if not super().start_recording():
            return False
        with self._file_lock:
            session = self._session
            if not self._writes_files or session is None or session is self._recorded:
                return session is not None
            self._file_error = None
            try:
                self._recording = self._record(session, 0)
                self._recorded = session
                return True
            except RecordingError as error:
                self._file_error = error
                session.stop()
            except BaseException:
                session.stop()
                raise
        logger.error("recording cannot start: %s", self._file_error)
        self._handlers.call("on_stream_error", self._file_error)
        return False

    def _record(self, session: CaptureSession, start: int) -> Recording:
        """Begin a file with the ring's frame `start`."""
        file: TempFile | None = None
        # First of all: who reads the ring of a source that ends right now, reads it to its end.
        reader = session.reader(start, guard=True, name="recording")
        try:
            file = self.resource_manager.create_temp_file(f".{self._format.lower()}", owner=self)
            recording = Recording(
                reader,
                file.path,
                format=self._format,
                subtype=self._subtype,
                on_end=partial(_on_end, file, session, self._handlers),
            )
        except BaseException as error:
            reader.close()
            path = self.resource_manager.directory
            if file is not None:
                path = file.path
                file.finish()
                file.release()
            if isinstance(error, OSError) and not isinstance(error, RecordingError):
                reason = error.strerror or str(error)
                raise RecordingError(path, 0, session.config.sample_rate, reason, error.errno) from error
            raise
        self._audio_files[file.path] = file
        self._latest = file.path
        return recording

    def stop_recording(self) -> None:
        """Stop. All that was captured until now is in the file, and was given to `on_audio_data`. Idempotent.

        Waits 10 s at most for the disk; what it has not taken then goes into the file in the background. Called by
        one of the `on_…` functions it does not wait for `on_audio_data`.
        """
        super().stop_recording()
        recording = self._recording
        if recording is not None and not recording.stop(DISK_S):
            logger.warning("the disk has not taken all of %r in %g s, and may still do so", recording.path, DISK_S)

    # ---- files ------------------------------------------------------------------------------------------------------

    def get_audio_file(self) -> str | None:
        """Return the path of the newest recording, which may be running; where it was saved; None if there is none."""
        return self._latest

    def get_audio_files(self) -> list[str]:
        """Return the paths of all recordings in this manager's care, the oldest first."""
        return [path for path, file in self._audio_files.copy().items() if file.is_ours]

    def _finished(self, audio_file: str | os.PathLike[str] | None) -> TempFile:
        path = self._latest if audio_file is None else os.fspath(audio_file)
        file = self._audio_files.get(path or "")
        if file is None or not file.is_ours:
            raise LookupError(f"audio_file must be one of {self.get_audio_files()}, got {path!r}")
        if file.state == "recording":
            raise RuntimeError(f"{path!r} is being recorded: stop_recording() first")
        return file

    def save_as(
        self,
        path: str | os.PathLike[str],
        audio_file: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> str:
        """Move a finished recording out of temporary care.

        Parameters
        ----------
        path : path-like
            Where to; on another file system it is copied. In a folder that is there.
        audio_file : path-like, optional
            Which one, of `get_audio_files`; the newest if not given.
        overwrite : bool, optional
            Replace a file that is there.

        Returns
        -------
        str
            The absolute path it has now.

        Raises
        ------
        RuntimeError
            It is being recorded.
        LookupError
            There is no such recording.
        FileExistsError, OSError
            There is a file already, or it cannot be written. The recording is where it was.
        """
        file = self._finished(audio_file)
        target = os.path.abspath(path)
        try:
            _move(file.path, target, overwrite)
        except Exception:
            raise
        except BaseException:
            if not os.path.lexists(file.path):  # a Ctrl-C came when it was moved
                self._give_away(file, target)
            raise
        self._give_away(file, target)
        logger.info("recording saved as %r", target)
        return target

    def _give_away(self, file: TempFile, target: str) -> None:
        self._audio_files.pop(file.path, None)
        self.resource_manager.remove_temp_file(file.path)
        if self._latest == file.path:
            self._latest = target

    def release_audio_file(self, audio_file: str | os.PathLike[str] | None = None) -> None:
        """Say that a recording is not needed any more: the next cleanup deletes it.

        Parameters
        ----------
        audio_file : path-like, optional
            Which one, of `get_audio_files`; the newest if not given.

        Raises
        ------
        RuntimeError
            It is being recorded.
        LookupError
            There is no such recording.
        """
        file = self._finished(audio_file)
        file.release()
        del self._audio_files[file.path]
        if self._latest == file.path:
            self._latest = None

    def recover(self) -> list[str]:
        """Take over the recordings of programs that died, each with every frame that is on the disk.

        They are then in this manager's care, for `save_as` or `release_audio_file`. Of programs that call this at the
        same time, one gets each. What is older than 30 days is deleted.

        Returns
        -------
        list of str
            Their paths, the oldest first.
        """
        found = []
        for file in self.resource_manager.recover():
            try:
                frames = repair(file.path)
            except OSError as error:
                logger.warning("%r is cut short, and cannot be repaired: %s", file.path, error)
                frames = None
            if frames == 0:
                file.release()
                continue
            self._audio_files[file.path] = file
            found.append(file.path)
        return found

    # ---- facts ------------------------------------------------------------------------------------------------------

    def file_gaps(self) -> list[Gap]:
        """Return what is missing in the newest recording, the newest 1,024 gaps.

        Positions and lengths are in frames of the file: a gap is just before the frame at its position.
        """
        recording = self._recording
        return [] if recording is None else recording.gaps()

    @property
    def last_error(self) -> Exception | None:
        """Exception or None: why the latest start failed, or what ended or befell the latest recording."""
        recording = self._recording
        return self._file_error or (None if recording is None else recording.error) or super().last_error

    def get_buffer_info(self) -> dict[str, Any]:
        """Return what there is now.

        Returns
        -------
        dict
            As of `StreamingAudioManager`, and ``audio_file`` (as `get_audio_file`), ``file_frames`` (those readable in
            the newest recording) and ``file_gaps`` (how many there are).
        """
        recording = self._recording
        return super().get_buffer_info() | {
            "audio_file": self._latest,
            "file_frames": 0 if recording is None else recording.frames,
            "file_gaps": len(self.file_gaps()),
        }
