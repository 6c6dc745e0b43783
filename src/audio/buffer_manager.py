"""The import path `audio.buffer_manager`, with the names of `pcmring.buffer_manager`."""

from pcmring.buffer_manager import AudioBuffer

__all__ = ["AudioBuffer"]
