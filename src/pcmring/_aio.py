"""Waiting for frames inside an event loop.

A loop sleeps on a descriptor, which the producer writes to when the frames somebody waits for are there: no
thread per reader, no polling. One descriptor serves all the readers of one buffer in one loop. Where a loop
cannot watch descriptors (Windows), the wait takes a thread of the loop's executor.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcmring._buffer import AudioBuffer, Block, Blocks, Reader

__all__ = ["next_block"]

#: The listeners of each loop, by buffer.
_listeners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[AudioBuffer, _Listener]] = (
    weakref.WeakKeyDictionary()
)


#: ring.h wants listeners to be added and removed by one thread at a time; each loop has its own.
_changing = threading.Lock()


class _Listener:
    """One loop's ear on one buffer. Everything but `release` runs in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: AudioBuffer) -> None:
        self._loop = loop
        self._buffer = buffer
        self._sleepers: set[asyncio.Future[None]] = set()
        self._readers = 0
        if hasattr(os, "eventfd"):
            self._read_fd = self._write_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read_fd, self._write_fd = os.pipe()
            os.set_blocking(self._read_fd, False)
            os.set_blocking(self._write_fd, False)
        try:
            with _changing:
                buffer._add_listener(self._write_fd)
            loop.add_reader(self._read_fd, self._wake)
        except BaseException:
            self._close()
            raise

    def _wake(self) -> None:
        try:
            os.read(self._read_fd, 4096)
        except BlockingIOError:
            return
        self._wake_sleepers()

    def _wake_sleepers(self) -> None:
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, target: int, seconds: float | None) -> None:
        """Return when frames_written may have reached `target`, or the time is up."""
        sleeper = self._loop.create_future()
        self._sleepers.add(sleeper)
        try:
            if not self._buffer._arm(target):
                await asyncio.wait((sleeper,), timeout=seconds)
        finally:
            sleeper.cancel()
            self._sleepers.discard(sleeper)

    def attach(self) -> None:
        self._readers += 1

    def release(self) -> None:
        """A reader is done. Any thread."""
        if self._loop.is_closed():
            self._detach()
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop or not self._loop.is_running():
            self._detach()
        else:
            try:
                self._loop.call_soon_threadsafe(self._detach)
            except RuntimeError:  # the loop was closed this moment
                self._detach()

    def _detach(self) -> None:
        self._wake_sleepers()  # the reader that left may be one of them
        self._readers -= 1
        if self._readers == 0:
            _listeners.get(self._loop, weakref.WeakKeyDictionary()).pop(self._buffer, None)
            if not self._loop.is_closed():
                self._loop.remove_reader(self._read_fd)
            self._close()

    def _close(self) -> None:
        with _changing:
            self._buffer._remove_listener(self._write_fd)
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)


class _Hold:
    """A reader's hold on a listener, given back once: when the reader is closed, or forgotten."""

    def __init__(self, reader: Reader, listener: _Listener) -> None:
        self.listener = listener
        listener.attach()
        self.release = weakref.finalize(reader, listener.release)
        self.release.atexit = False


def _listener(blocks: Blocks) -> _Listener:
    """The running loop's listener on the buffer, held by the reader until it closes."""
    loop = asyncio.get_running_loop()
    reader = blocks.reader
    hold: _Hold | None = reader._listener
    if hold is not None and hold.listener._loop is loop:
        return hold.listener
    buffers = _listeners.setdefault(loop, weakref.WeakKeyDictionary())
    found = buffers.get(blocks._buffer)
    if found is None:
        found = buffers[blocks._buffer] = _Listener(loop, blocks._buffer)
    reader._listener = _Hold(reader, found)
    if hold is not None:
        hold.release()
    return found


async def next_block(blocks: Blocks) -> Block:
    """The next window of `blocks`; raises StopAsyncIteration at the end and TimeoutError."""
    loop = asyncio.get_running_loop()
    deadline = None if blocks.timeout is None else loop.time() + float(blocks.timeout)
    while True:
        block = blocks._poll()
        if block is False:
            raise StopAsyncIteration
        if block is not None:
            return block
        seconds = None if deadline is None else deadline - loop.time()
        if seconds is not None and seconds <= 0:
            raise TimeoutError(f"no window within {blocks.timeout} s")
        try:
            listener = _listener(blocks)
        except NotImplementedError:  # this loop watches no descriptors
            waiting = loop.run_in_executor(None, blocks._wait, seconds)
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                blocks._end_wait()  # the thread holds the reader until it returns
                await asyncio.wait((waiting,))
                blocks._may_wait()
                raise
        else:
            await listener.sleep(blocks._target, seconds)
