"""Memory watched, resources cleaned up, buffers counted. None of it knows audio.

`MemoryMonitor` notices when the process uses too much memory and asks for some back. `ResourceManager` looks after
temporary files and other things that must be cleaned up. `AudioBufferTracker` counts the bytes of live buffers by
identity, weakly.
"""

from pcmring._memory import MemoryUnreadable
from pcmring._monitor import (
    BUFFER_CLEANUP_INTERVAL_SECONDS,
    DEFAULT_MEMORY_LIMIT_MB,
    MEMORY_CHECK_INTERVAL_SECONDS,
    MemoryMonitor,
    MemorySample,
    StreamLease,
)
from pcmring._resources import ResourceManager
from pcmring._tempfiles import TempFile
from pcmring._tracker import AudioBufferTracker

__all__ = [
    "BUFFER_CLEANUP_INTERVAL_SECONDS",
    "DEFAULT_BUFFER_MEMORY_LIMIT_MB",
    "DEFAULT_MEMORY_LIMIT_MB",
    "MEMORY_CHECK_INTERVAL_SECONDS",
    "AudioBufferTracker",
    "MemoryMonitor",
    "MemorySample",
    "MemoryUnreadable",
    "ResourceManager",
    "StreamLease",
    "TempFile",
]

#: W4L's number. What audio buffers may take of the memory a model leaves.
DEFAULT_BUFFER_MEMORY_LIMIT_MB = 100
