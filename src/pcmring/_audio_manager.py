"""`AudioBufferManager`: streaming or into a file, and from one to the other in the middle of a recording."""

from __future__ import annotations

from typing import Any

from pcmring._file_manager import DISK_S, FileBasedAudioManager

__all__ = ["AudioBufferManager"]


class AudioBufferManager(FileBasedAudioManager):
    """Records from the selected device: the newest audio in memory, and in file mode all of it in a file too.

    Both modes are one recording with one ring, so a change between them loses no frame: the file begins, or ends,
    with the frame that is the newest at that moment. It begins in streaming mode.

    Parameters
    ----------
    device_manager, memory_monitor, format, subtype
        As for `FileBasedAudioManager`.
    """

    _writes_files = False

    @property
    def is_streaming(self) -> bool:
        """bool: whether it streams; else it records into a file too."""
        return not self._writes_files

    def set_capture_mode(self, streaming: bool) -> None:
        """Stream (True), or record into a file too (False), from this moment on.

        While recording, the change to a file begins a new one with the next frame to come. The change to streaming
        ends it with the newest frame: waits for the disk, 10 s at most.

        Parameters
        ----------
        streaming : bool

        Raises
        ------
        RecordingError, MissingPackage
            No file can be made. The mode is what it was, and the recording goes on.
        TypeError
            `streaming` is no bool.
        """
        if not isinstance(streaming, bool):
            raise TypeError(f"streaming must be True (in memory) or False (into a file), got {streaming!r}")
        with self._file_lock:
            session, recording = self._session, self._recording
            if streaming is self.is_streaming:
                return
            if not streaming and session is not None and session.is_recording:
                self._recording = self._record(session, session.buffer.frames_written)
                self._recorded = session
            self._writes_files = not streaming
        if streaming and recording is not None:
            recording.stop(DISK_S)

    def get_buffer_info(self) -> dict[str, Any]:
        """Return what there is now: as of `FileBasedAudioManager`, and ``capture_mode``, "streaming" or "file"."""
        return super().get_buffer_info() | {"capture_mode": "streaming" if self.is_streaming else "file"}
