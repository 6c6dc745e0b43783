"""Memory accounting of live audio buffers.

`AudioBufferTracker` counts the bytes of live buffers by identity, weakly. The module knows no
audio: whatever has a size can be tracked.
"""

from pcmring._tracker import AudioBufferTracker

__all__ = ["AudioBufferTracker"]
