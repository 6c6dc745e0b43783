"""pa-ringbuffer: PortAudio's ring through cffi, as rtmixer compiles it; powers of two; does not wait."""

from __future__ import annotations

import time

from peers import Audio, Contender


class Ring(Contender):
    name, does = "pa-ringbuffer (rtmixer's)", frozenset({"write", "read_into", "stream"})
    keeps_unread = True

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        from rtmixer import RingBuffer

        self._ring = ring = RingBuffer(4, 1 << (capacity * channels - 1).bit_length())
        self.write, self.read_into = ring.write, ring.readinto
        self.drain = ring.flush

    def put(self, block: Audio) -> None:
        while self._ring.write_available < len(block):
            time.sleep(0)
        self._ring.write(block)

    def get_into(self, out: Audio) -> None:
        while self._ring.read_available < len(out):
            time.sleep(0)
        self._ring.readinto(out)
