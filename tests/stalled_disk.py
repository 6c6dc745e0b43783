"""A disk that hangs, for a file that this process has open."""

from __future__ import annotations

import os


class StalledDisk:
    """A full pipe in the place of an open file: a write into it sleeps in the kernel, as one to a disk that hangs."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = os.dup(fd)
        self._taker, giver = os.pipe()
        os.set_blocking(giver, False)
        self._filling = 0
        try:
            while True:
                self._filling += os.write(giver, bytes(4096))
        except BlockingIOError:
            os.set_blocking(giver, True)
        os.dup2(giver, self._fd)
        os.close(giver)

    def end(self) -> bytes:
        """The disk is back. Return what sleeping writes had left to write before they go on into the file."""
        os.dup2(self._file, self._fd)
        os.close(self._file)
        os.set_blocking(self._taker, True)
        taken = b""
        while block := os.read(self._taker, 1 << 20):  # to the end: the sleeping write holds the pipe open
            taken += block
        os.close(self._taker)
        return taken[self._filling :]
