"""Audio between a sound card and a speech model: a lock-free ring in preallocated memory.

Importing needs NumPy only. Counts are frames unless the name says otherwise.
"""

from __future__ import annotations

import os
from typing import Any

from pcmring._buffer import AudioBuffer, AudioView, Reader
from pcmring._capture import CaptureCallback
from pcmring._records import Block, BufferStatistics, Gap, StreamTime
from pcmring._tracker import AudioBufferTracker
from pcmring.errors import BufferClosed, FramesLost

__all__ = [
    "AudioBuffer",
    "AudioBufferTracker",
    "AudioView",
    "Block",
    "BufferClosed",
    "BufferStatistics",
    "CaptureCallback",
    "FramesLost",
    "Gap",
    "Reader",
    "StreamTime",
    "get_include",
]


def get_include() -> str:
    """Return the folder with ``pcmring/ring.h``, for C and Cython programs that write into a ring."""
    return os.path.join(os.path.dirname(__file__), "include")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 10 ms that few programs need

        return version("pcmring")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
