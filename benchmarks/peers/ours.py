"""pcmring."""

from __future__ import annotations

import numpy as np

from pcmring import AudioBuffer
from peers import Audio, Contender


class Ring(Contender):
    name, kind = "pcmring", "pcmring"
    does = frozenset({"write", "read", "read_into", "newest", "windows"})
    is_flat = False

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self.ring = ring = AudioBuffer(capacity, channels)
        self.write, self.read, self.read_into, self.newest = ring.write, ring.read, ring.read_into, ring.get_latest
        self._rest = np.empty((capacity, channels), np.float32)

    def drain(self) -> None:
        self.ring.read_into(self._rest)

    def close(self) -> None:
        self.ring.close()


class View(Ring):
    name, does = "pcmring latest_view", frozenset({"view"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        super().__init__(capacity, channels, block)
        self.view = self.ring.latest_view


class ViewArray(Ring):
    name, does = "pcmring latest_view().array", frozenset({"view", "windows"})

    def view(self, frames: int) -> Audio:
        return self.ring.latest_view(frames).array


class Blocking(Contender):
    """Nothing is lost: the producer waits for room."""

    name, kind, does = "pcmring", "pcmring", frozenset({"stream", "wake", "await"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self.ring = AudioBuffer(capacity, channels, policy="block")
        self.put = self.ring.write
        self._block = block

    def get_into(self, out: Audio) -> None:
        self.ring.read_into(out, None)

    def start_awaiting(self) -> None:
        self._windows = self.ring.reader(guard=True).blocks(self._block)

    async def get(self) -> Audio:
        return (await anext(self._windows)).array

    def close(self) -> None:
        self.ring.close()
