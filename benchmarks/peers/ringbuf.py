"""ringbuf: Boost's spsc_queue in Cython; does not wait."""

from __future__ import annotations

import time

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "ringbuf", frozenset({"write", "read", "stream"})
    keeps_unread = True

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from ringbuf import RingBuffer

        self._ring = ring = RingBuffer(format="f", capacity=capacity * channels)
        self.write, self.drain = ring.push, ring.reset

    def read(self, frames: int) -> Audio:
        return np.asarray(self._ring.pop(frames))

    def put(self, block: Audio) -> None:
        while self._ring.write_available < len(block):
            time.sleep(0)
        self._ring.push(block)

    def get_into(self, out: Audio) -> None:
        while self._ring.read_available < len(out):
            time.sleep(0)
        out[:] = self._ring.pop(len(out))
