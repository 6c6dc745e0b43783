"""What W4L does, in our words: a lock, a NumPy ring whose read returns the newest frames, a list of all buffers."""

from __future__ import annotations

import queue
import threading

import numpy as np

from peers import Audio, Contender


class Ring(Contender):
    name, kind, does = "W4L", "incumbent", frozenset({"write", "newest", "windows"})
    is_flat = False

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._audio = np.zeros((capacity, channels), np.float32)
        self._lock = threading.Lock()
        self._at = self._frames_written = 0

    def write(self, block: Audio) -> None:
        with self._lock:
            if block.ndim == 1:
                block = block.reshape(-1, 1)
            capacity, frames = len(self._audio), len(block)
            end = self._at + frames
            if end <= capacity:
                self._audio[self._at : end] = block
            else:
                room = capacity - self._at
                self._audio[self._at :] = block[:room]
                self._audio[: frames - room] = block[room:]
            self._at = end % capacity
            self._frames_written += frames

    def newest(self, frames: int) -> Audio:
        with self._lock:
            if self._frames_written < frames:
                return np.array([])
            start = (self._at - frames) % len(self._audio)
            if start + frames <= len(self._audio):
                return self._audio[start : start + frames].copy()
            room = len(self._audio) - start
            return np.vstack([self._audio[start:], self._audio[: frames - room]])


class Pipeline(Contender):
    """A queue to the thread that writes into the ring."""

    name, kind, does = "W4L: queue and ring", "incumbent", frozenset({"stream", "wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._queue: queue.Queue[Audio] = queue.Queue()
        self._ring = Ring(capacity, channels, block)

    def put(self, block: Audio) -> None:
        self._queue.put(block.copy())

    def get_into(self, out: Audio) -> None:
        while True:
            try:
                block = self._queue.get(timeout=0.1)
                break
            except queue.Empty:
                continue
        self._ring.write(block)
        out[:] = block


class Tracker:
    """Every buffer in one list, searched from its start."""

    def __init__(self) -> None:
        self._buffers: list[tuple[object, int]] = []

    def track_buffer(self, obj: object, size_bytes: int) -> None:
        self._buffers.append((obj, size_bytes))

    def untrack_buffer(self, obj: object) -> None:
        self._buffers = [(other, size) for other, size in self._buffers if other is not obj]

    def get_total_buffer_memory(self) -> int:
        return sum(size for _, size in self._buffers)
