"""pypcmringbuffer: memory of twice the length, so that what is taken lies in one piece; raises when full."""

from __future__ import annotations

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "pypcmringbuffer", frozenset({"write", "read"})
    keeps_unread = True

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from pypcmringbuffer import PyPcmRingQueue

        self._ring = PyPcmRingQueue(capacity * channels, np.float32)
        self.write, self.drain = self._ring.enqueue, self._ring.discard_all

    def read(self, frames: int) -> Audio:
        found = self._ring.dequeue(frames).copy()
        self._ring.discard(frames)
        return found
