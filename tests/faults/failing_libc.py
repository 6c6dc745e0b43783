"""The n-th allocation, mapping or write of this process fails; failing_libc.c does it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from native_support import shared_library

KINDS = ("allocate", "map", "write")
WHOM = ("all", "me", "others")


def preload(folder: Path) -> dict[str, str]:
    """What a child's environment needs for it. Python's own allocator would hide most allocations."""
    library = shared_library(str(Path(__file__).with_suffix(".c")), folder)
    return {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "PCMRING_FAULTS_LIBC": str(library)}


class Failing:
    """What has happened since it was armed."""

    def __init__(self, kind: str) -> None:
        self._kind, self._library = KINDS.index(kind), ctypes.CDLL(None)
        self._library.faults_seen.restype = self._library.faults_failed.restype = ctypes.c_long
        self._arm = self._library.faults_arm
        self._arm.argtypes = [ctypes.c_int, ctypes.c_long, *[ctypes.c_int] * 3, ctypes.c_long]

    @property
    def failed(self) -> int:
        return int(self._library.faults_failed(self._kind))

    @contextmanager
    def at(
        self,
        n: int,
        error: int,
        *,
        always: bool = False,
        whom: Literal["all", "me", "others"] = "all",
        stall_s: float = 0,
    ) -> Iterator[None]:
        """Within the context the n-th call fails with this errno (0: a write takes half), or stalls."""
        arguments = (self._kind, n, always, error, WHOM.index(whom), round(stall_s * 1000))
        disarm, kind = self._library.faults_disarm, self._kind
        self._arm(*arguments)
        try:
            yield
        finally:
            disarm(kind)
