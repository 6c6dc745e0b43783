"""np-rw-buffer: NumPy's fancy indexing under an RLock; raises when full."""

from __future__ import annotations

import time

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "np-rw-buffer", frozenset({"write", "read", "stream"})
    keeps_unread = True
    is_flat = False

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from np_rw_buffer import RingBufferThreadSafe

        self._ring = ring = RingBufferThreadSafe(capacity, channels, np.float32)
        self.write, self.read, self.drain = ring.write, ring.read, ring.clear

    def put(self, block: Audio) -> None:
        while self._ring.get_available_space() < len(block):
            time.sleep(0)
        self._ring.write(block)

    def get_into(self, out: Audio) -> None:
        while not len(block := self._ring.read(len(out))):
            time.sleep(0)
        out[:] = block[:, 0]


class Overwriting(Contender):
    name, does = "np-rw-buffer", frozenset({"newest", "windows"})
    is_flat = False

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from np_rw_buffer import RingBufferThreadSafe

        self._ring = RingBufferThreadSafe(capacity, channels, np.float32)

    def write(self, block: Audio) -> None:
        self._ring.write(block, error=False)

    def newest(self, frames: int) -> Audio:
        return self._ring.get_data()[-frames:]
