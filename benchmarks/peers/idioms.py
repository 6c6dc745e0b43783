"""What people write with the standard library and NumPy."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections import deque

import numpy as np

from peers import Audio, Contender


class Deque(Contender):
    """Copies of blocks; the oldest fall out."""

    name, kind = "collections.deque of copies", "idiom"
    does = frozenset({"write", "read", "newest", "windows", "stream"})
    is_flat = False
    reads_blocks = True

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._blocks: deque[Audio] = deque(maxlen=capacity // block)
        self._block = block
        self.read, self.drain = self._blocks.popleft, self._blocks.clear

    def write(self, block: Audio) -> None:
        self._blocks.append(block.copy())

    def newest(self, frames: int) -> Audio:
        count = frames // self._block
        return np.concatenate(list(self._blocks)[-count:])

    def put(self, block: Audio) -> None:
        while len(self._blocks) == self._blocks.maxlen:
            time.sleep(0)
        self._blocks.append(block.copy())

    def get_into(self, out: Audio) -> None:
        while not self._blocks:
            time.sleep(0)
        out[:] = self._blocks.popleft()


class _Queue(Contender):
    kind = "idiom"
    does = frozenset({"write", "read", "read_into", "stream", "wake"})
    keeps_unread = True
    is_flat = False
    reads_blocks = True
    queue_type: type[queue.Queue[Audio] | queue.SimpleQueue[Audio]]

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._queue = self.queue_type()
        self.read = self._queue.get

    def write(self, block: Audio) -> None:
        self._queue.put(block.copy())

    put = write

    def read_into(self, out: Audio) -> None:
        out[:] = self._queue.get()

    get_into = read_into

    def drain(self) -> None:
        while not self._queue.empty():
            self._queue.get()


class Queue(_Queue):
    name, queue_type = "queue.Queue of copies", queue.Queue


class SimpleQueue(_Queue):
    name, queue_type = "queue.SimpleQueue of copies", queue.SimpleQueue


class List(Contender):
    """A list that grows; all of it concatenated at each window."""

    name, kind, does = "list.append, np.concatenate(all)[-n:]", "idiom", frozenset({"windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._blocks: list[Audio] = []
        self._most = capacity // block

    def write(self, block: Audio) -> None:
        self._blocks.append(block.copy())
        if len(self._blocks) > self._most:
            del self._blocks[0]

    def newest(self, frames: int) -> Audio:
        return np.concatenate(self._blocks)[-frames:]


class Roll(Contender):
    """An array of one window, moved on by np.roll with every block."""

    name, kind, does = "np.roll per block", "idiom", frozenset({"windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._audio = np.zeros(16_000, np.float32)

    def write(self, block: Audio) -> None:
        self._audio = np.roll(self._audio, -len(block))
        self._audio[-len(block) :] = block

    def newest(self, frames: int) -> Audio:
        return self._audio[-frames:].copy()


class Condition(Contender):
    name, kind, does = "threading.Condition and deque", "idiom", frozenset({"wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._blocks: deque[Audio] = deque()
        self._changed = threading.Condition()

    def put(self, block: Audio) -> None:
        with self._changed:
            self._blocks.append(block.copy())
            self._changed.notify()

    def get_into(self, out: Audio) -> None:
        with self._changed:
            while not self._blocks:
                self._changed.wait()
            out[:] = self._blocks.popleft()


class Eventfd(Contender):
    name, kind, does = "os.eventfd and deque", "idiom", frozenset({"wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._blocks: deque[Audio] = deque()
        if not hasattr(os, "eventfd"):
            raise OSError("os.eventfd is there on Linux, from Python 3.10")
        self._fd = os.eventfd(0)

    def put(self, block: Audio) -> None:
        self._blocks.append(block.copy())
        os.eventfd_write(self._fd, 1)

    def get_into(self, out: Audio) -> None:
        while not self._blocks:
            os.eventfd_read(self._fd)
        out[:] = self._blocks.popleft()

    def close(self) -> None:
        os.close(self._fd)


class Polling(Contender):
    name, kind, does = "deque, polled with sleep(0.001)", "idiom", frozenset({"wake"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._blocks: deque[Audio] = deque()

    def put(self, block: Audio) -> None:
        self._blocks.append(block.copy())

    def get_into(self, out: Audio) -> None:
        while not self._blocks:
            time.sleep(0.001)
        out[:] = self._blocks.popleft()


class AsyncQueue(Contender):
    name, kind, does = "asyncio.Queue, call_soon_threadsafe", "idiom", frozenset({"await"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        pass

    def start_awaiting(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Audio] = asyncio.Queue()

    def put(self, block: Audio) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, block.copy())

    async def get(self) -> Audio:
        return await self._queue.get()


class ExecutorQueue(Contender):
    name, kind, does = "queue.Queue, asyncio.to_thread", "idiom", frozenset({"await"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._queue: queue.Queue[Audio] = queue.Queue()

    def start_awaiting(self) -> None:
        pass

    def put(self, block: Audio) -> None:
        self._queue.put(block.copy())

    async def get(self) -> Audio:
        return await asyncio.to_thread(self._queue.get)
