"""numcircbuf: compiled; one dimension. Its view() aliases live memory where the audio lies in one piece."""

from __future__ import annotations

import numpy as np

from peers import Audio, Contender


class Overwrite(Contender):
    name, does = "numcircbuf Overwrite", frozenset({"write", "view", "windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from numcircbuf import OverwriteCircBuffer

        # "never" recalculates the sums that it keeps
        self._ring = OverwriteCircBuffer(capacity * channels, "never", dtype=np.float32)
        self.write = self._ring.extend

    def view(self, frames: int) -> Audio:
        return self._ring.view()[-frames:]


class Blocking(Contender):
    name, does = "numcircbuf Blocking", frozenset({"read", "read_into", "stream", "wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from numcircbuf import BlockingCircBuffer

        self._ring = ring = BlockingCircBuffer(capacity * channels, dtype=np.float32)
        self.write = self.put = ring.write_extend
        self.read, self.read_into, self.drain = ring.read, ring.read_into, ring.clear

    def get_into(self, out: Audio) -> None:
        self._ring.read_into(out, -1, False)
