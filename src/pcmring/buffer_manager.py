"""Audio in buffers: `AudioBuffer`, the ring, and the managers that fill one from a device."""

from pcmring._audio_manager import AudioBufferManager
from pcmring._buffer import AudioBuffer
from pcmring._delivery import StreamHandlers
from pcmring._file_manager import FileBasedAudioManager
from pcmring._recording import RecordingError
from pcmring._streaming import StreamingAudioManager

__all__ = [
    "AudioBuffer",
    "AudioBufferManager",
    "FileBasedAudioManager",
    "RecordingError",
    "StreamHandlers",
    "StreamingAudioManager",
]
