"""shm-ring-buffer: slots of one block, in pure Python."""

from __future__ import annotations

import time

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "shm-ring-buffer NumpyRingBuffer", frozenset({"write", "read_into", "stream"})
    keeps_unread = True

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from ring_buffer.numpy import NumpyRingBuffer

        self._ring = NumpyRingBuffer(capacity // block + 1, np.dtype(np.float32), (block * channels,))
        self.write = self._ring.write

    def read_into(self, out: Audio) -> None:
        out[:] = self._ring.read()
        self._ring.release()

    def drain(self) -> None:
        while self._ring.release():
            pass

    def put(self, block: Audio) -> None:
        while not self._ring.write(block):
            time.sleep(0)

    def get_into(self, out: Audio) -> None:
        while (block := self._ring.read()) is None:
            time.sleep(0)
        out[:] = block
        self._ring.release()
