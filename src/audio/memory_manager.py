"""The import path `audio.memory_manager`, with the names of `pcmring.memory_manager`."""

from pcmring.memory_manager import AudioBufferTracker

__all__ = ["AudioBufferTracker"]
