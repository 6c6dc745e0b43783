"""`AudioBufferManager`: streaming or into a file, and from one to the other in the middle of a recording."""

from __future__ import annotations

from typing import Any

from pcmring._file_manager import DISK_S, FileBasedAudioManager
from pcmring._streaming import StreamingAudioManager

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

    _is_streaming = True

    @property
    def is_streaming(self) -> bool:
        """bool: whether it streams; else it records into a file too."""
        return self._is_streaming

    def start_recording(self) -> bool:
        """Record from the selected device, in file mode into a new file.

        Returns
        -------
        bool
            True if it records, also if it did before. False if it cannot: see `last_error`.

        Raises
        ------
        MissingPackage
            A package that is needed is not installed.
        """
        return StreamingAudioManager.start_recording(self) if self._is_streaming else super().start_recording()

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
            if streaming is self._is_streaming:
                return
            if not streaming and session is not None and session.is_recording:
                self._recording = self._record(session, session.buffer.frames_written)
                self._recorded = session
            self._is_streaming = streaming
        if streaming and recording is not None:
            recording.stop(DISK_S)

    def get_buffer_info(self) -> dict[str, Any]:
        """Return what there is now: as of `FileBasedAudioManager`, and ``capture_mode``, "streaming" or "file"."""
        return super().get_buffer_info() | {"capture_mode": "streaming" if self._is_streaming else "file"}
