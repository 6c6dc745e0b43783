"""Audio between a sound card and a speech model: a lock-free ring in preallocated memory.

Importing needs NumPy only, and loads the ring only; every other name is loaded when it is first used. Counts are
frames unless the name says otherwise.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from pcmring._buffer import AudioBuffer, AudioView, Reader
from pcmring._capture import CaptureCallback
from pcmring._records import Block, Gap, StreamTime
from pcmring._tracker import AudioBufferTracker
from pcmring.errors import BufferClosed, FramesLost

# A name loaded late stands three times: here for type checkers, in __all__, and in _LATE with its module.
if TYPE_CHECKING:
    from pcmring._late import MissingPackage
    from pcmring._statistics import BufferStatistics
    from pcmring.buffer_manager import (
        AudioBufferManager,
        FileBasedAudioManager,
        RecordingError,
        StreamHandlers,
        StreamingAudioManager,
    )
    from pcmring.devices import (
        MAX_BUFFER_SIZE_SECONDS,
        MIN_BUFFER_SIZE_SECONDS,
        AudioConfig,
        AudioDevice,
        AudioDeviceManager,
        FileSource,
        GeneratorSource,
        PortAudioSource,
        ResamplingReader,
        Source,
        SourceCounters,
        SourceError,
    )
    from pcmring.memory_manager import (
        BUFFER_CLEANUP_INTERVAL_SECONDS,
        DEFAULT_BUFFER_MEMORY_LIMIT_MB,
        DEFAULT_MEMORY_LIMIT_MB,
        MEMORY_CHECK_INTERVAL_SECONDS,
        MemoryMonitor,
        MemorySample,
        MemoryUnreadable,
        ResourceManager,
        StreamLease,
        TempFile,
    )
    from pcmring.model_memory import MODEL_GUESSES, ModelGuess, ModelMemoryWarning, W4LMemoryManager

__all__ = [
    "BUFFER_CLEANUP_INTERVAL_SECONDS",
    "DEFAULT_BUFFER_MEMORY_LIMIT_MB",
    "DEFAULT_MEMORY_LIMIT_MB",
    "MAX_BUFFER_SIZE_SECONDS",
    "MEMORY_CHECK_INTERVAL_SECONDS",
    "MIN_BUFFER_SIZE_SECONDS",
    "MODEL_GUESSES",
    "AudioBuffer",
    "AudioBufferManager",
    "AudioBufferTracker",
    "AudioConfig",
    "AudioDevice",
    "AudioDeviceManager",
    "AudioView",
    "Block",
    "BufferClosed",
    "BufferStatistics",
    "CaptureCallback",
    "FileBasedAudioManager",
    "FileSource",
    "FramesLost",
    "Gap",
    "GeneratorSource",
    "MemoryMonitor",
    "MemorySample",
    "MemoryUnreadable",
    "MissingPackage",
    "ModelGuess",
    "ModelMemoryWarning",
    "PortAudioSource",
    "Reader",
    "RecordingError",
    "ResamplingReader",
    "ResourceManager",
    "Source",
    "SourceCounters",
    "SourceError",
    "StreamHandlers",
    "StreamLease",
    "StreamTime",
    "StreamingAudioManager",
    "TempFile",
    "W4LMemoryManager",
    "get_include",
]

_LATE = {
    "_late": ("MissingPackage",),
    "_statistics": ("BufferStatistics",),
    "buffer_manager": (
        "AudioBufferManager",
        "FileBasedAudioManager",
        "RecordingError",
        "StreamHandlers",
        "StreamingAudioManager",
    ),
    "devices": (
        "MAX_BUFFER_SIZE_SECONDS",
        "MIN_BUFFER_SIZE_SECONDS",
        "AudioConfig",
        "AudioDevice",
        "AudioDeviceManager",
        "FileSource",
        "GeneratorSource",
        "PortAudioSource",
        "ResamplingReader",
        "Source",
        "SourceCounters",
        "SourceError",
    ),
    "memory_manager": (
        "BUFFER_CLEANUP_INTERVAL_SECONDS",
        "DEFAULT_BUFFER_MEMORY_LIMIT_MB",
        "DEFAULT_MEMORY_LIMIT_MB",
        "MEMORY_CHECK_INTERVAL_SECONDS",
        "MemoryMonitor",
        "MemorySample",
        "MemoryUnreadable",
        "ResourceManager",
        "StreamLease",
        "TempFile",
    ),
    "model_memory": ("MODEL_GUESSES", "ModelGuess", "ModelMemoryWarning", "W4LMemoryManager"),
}
_MODULES = {name: module for module, names in _LATE.items() for name in names}


def get_include() -> str:
    """Return the folder with ``pcmring/ring.h``, for C and Cython programs that write into a ring."""
    return os.path.join(os.path.dirname(__file__), "include")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 10 ms that few programs need

        return version("pcmring")
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
