"""membridge: messages of bytes in shared memory, in Rust; does not wait."""

from __future__ import annotations

import os
import time

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, does = "membridge Spsc", frozenset({"write", "read", "stream"})
    keeps_unread = True
    reads_blocks = True

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from membridge import SharedMemory

        # a message has four bytes more
        needed = (block * channels * 4 + 4) * (capacity // block + 1)
        self._name = f"/pcmring-bench-{os.getpid()}-{id(self)}"
        self._memory = SharedMemory.create(self._name, (1 << (needed - 1).bit_length()) + 24)
        self._ring = self._memory.spsc()

    def write(self, block: Audio) -> bool:
        return self._ring.push(block.tobytes())

    def read(self) -> Audio:
        return np.frombuffer(self._ring.pop(), np.float32)

    def drain(self) -> None:
        while self._ring.pop() is not None:
            pass

    def put(self, block: Audio) -> None:
        while not self._ring.push(block.tobytes()):
            time.sleep(0)

    def get_into(self, out: Audio) -> None:
        while (found := self._ring.pop()) is None:
            time.sleep(0)
        out[:] = np.frombuffer(found, np.float32)

    def close(self) -> None:
        self._memory.remove(self._name)
