"""Audio in buffers: `AudioBuffer`, the ring, and the manager that fills one from a device."""

from pcmring._buffer import AudioBuffer
from pcmring._delivery import StreamHandlers
from pcmring._streaming import StreamingAudioManager

__all__ = ["AudioBuffer", "StreamHandlers", "StreamingAudioManager"]
