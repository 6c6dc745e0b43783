"""What is made for processes, here between two threads."""

from __future__ import annotations

import multiprocessing

import numpy as np

from peers import Audio, Contender


class Pipe(Contender):
    name, kind, does = "multiprocessing.Pipe, bytes", "idiom", frozenset({"stream", "wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._read_end, self._write_end = multiprocessing.Pipe(duplex=False)
        self.put, self.get_into = self._write_end.send_bytes, self._read_end.recv_bytes_into

    def close(self) -> None:
        self._read_end.close()
        self._write_end.close()


class Queue(Contender):
    name, kind, does = "multiprocessing.Queue", "idiom", frozenset({"stream", "wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._queue: multiprocessing.Queue[Audio] = multiprocessing.Queue()
        self.put = self._queue.put

    def get_into(self, out: Audio) -> None:
        np.copyto(out, self._queue.get())

    def close(self) -> None:
        self._queue.close()
        self._queue.join_thread()
