"""dvg-ringbuffer: numpy-ringbuffer with the unwrapped copy at a fixed address."""

from __future__ import annotations

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "dvg-ringbuffer", frozenset({"write", "view", "windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from dvg_ringbuffer import RingBuffer

        self._ring = RingBuffer(capacity * channels, np.float32)
        self.write = self._ring.extend

    def view(self, frames: int) -> Audio:
        return self._ring[-frames:]
