"""numpy-ringbuffer: NumPy alone; what is taken is unwrapped as a whole; one sample at a time is consumed."""

from __future__ import annotations

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "numpy-ringbuffer", frozenset({"write", "newest", "windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from numpy_ringbuffer import RingBuffer

        self._ring = RingBuffer(capacity * channels, np.float32)
        self.write = self._ring.extend

    def newest(self, frames: int) -> Audio:
        return self._ring[-frames:]
