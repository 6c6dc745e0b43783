"""Everyone in the races, each behind the same few methods: what a contender cannot do, it does not race in.

A contender's methods are the library's own bound methods wherever those fit, so that the adapter costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]

#: Not rivals but measures: bare compiled work, the least that Python with NumPy can do, or ourselves in another state.
LIMIT_KINDS = ("limit", "floor", "before")


class Unable(Exception):
    """The contender cannot do this case."""


class Contender:
    """A place for audio. float32, `capacity` frames, moved in blocks of `block` frames.

    What it `does`, of these: "write" (what was there before may be overwritten, or is drained between batches),
    "read" (a new array, oldest first), "read_into", "newest" (a new array, nothing consumed), "view" (the same, copied
    only where it must be), "stream" (`put` and `get_into` wait, in two threads), "wake" (the same without polling),
    "await" (`put` in a thread, `await get()` in a loop), "windows" (the newest of a running minute).
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "peer"  # or of LIMIT_KINDS, "idiom" (the standard library), "incumbent", "pcmring"
    does: ClassVar[frozenset[str]]
    is_flat: ClassVar[bool] = True  # takes interleaved samples, one-dimensional, where there is more than one channel
    reads_blocks: ClassVar[bool] = False  # `read` takes no argument and returns one block
    keeps_unread: ClassVar[bool] = False  # and is full, or grows, unless drained

    write: Callable[[Audio], object]
    read: Callable[..., Any]
    read_into: Callable[[Audio], object]
    newest: Callable[[int], Any]
    view: Callable[[int], Any]
    put: Callable[[Audio], object]
    get_into: Callable[[Audio], object]

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        raise NotImplementedError

    def drain(self) -> object:
        """Forget what was not read."""

    def close(self) -> None:
        pass


#: One module each; the order is that of the tables.
_MODULES = (
    "limits", "ours", "w4l", "idioms", "numcircbuf", "numpy_ringbuffer", "dvg_ringbuffer", "np_rw_buffer",
    "pa_ringbuffer", "numpy_array_buffer", "shm_ring_buffer", "membridge", "ringbuf", "pypcmringbuffer", "processes",
)  # fmt: skip


def able(what: str) -> list[type[Contender]]:
    """Return everyone who does this."""
    modules = [import_module(f"peers.{name}") for name in _MODULES]
    return [
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type)
        and issubclass(found, Contender)
        and found.__module__ == module.__name__
        and hasattr(found, "name")
        and what in found.does
    ]
