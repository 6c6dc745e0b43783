"""Audio buffers: `AudioBuffer`, the ring that holds frames for any number of readers."""

from pcmring._buffer import AudioBuffer

__all__ = ["AudioBuffer"]
