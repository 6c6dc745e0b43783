"""Reading memory: of this process, of its cgroup, of the machine. All numbers are bytes.

psutil is loaded by the first reading, not by the import. Nothing is remembered between readings: a limit may change,
and a process may be moved, at any time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pcmring._late import load

__all__ = [
    "MB",
    "CgroupMemory",
    "MachineMemory",
    "MemoryUnreadable",
    "cgroup_memory",
    "machine_memory",
    "malloc_trim",
    "rss_bytes",
]

#: Bytes. W4L's unit, and what is usually made of psutil's figures.
MB = 1024 * 1024

#: A limit from here up is cgroup v1's way to write "none" (LONG_MAX rounded down to pages).
_NO_LIMIT = 1 << 60


class MemoryUnreadable(OSError):
    """The memory in use could not be read. Nothing is known: neither that it is high nor that it is not."""


class CgroupMemory(NamedTuple):
    """What the kernel lets this process's cgroup use, the tightest of all levels above it."""

    limit: int  #: bytes
    left: int  #: bytes until the kernel kills, page cache that it would give up first counted as left


class MachineMemory(NamedTuple):
    """What this process may use: the machine's memory, or its cgroup's where that is less."""

    total: int  #: bytes
    left: int  #: bytes not in use


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> Any:
    """By its id: the child of a fork is another one."""
    return load("psutil").Process(pid)


def rss_bytes() -> int:
    """Return the resident set size of this process.

    Raises
    ------
    MissingPackage
        psutil is not installed.
    MemoryUnreadable
        The system did not tell.
    """
    psutil = load("psutil")
    try:
        return int(_process(os.getpid()).memory_info().rss)
    except (psutil.Error, OSError) as failure:
        raise MemoryUnreadable(f"the memory of process {os.getpid()} cannot be read: {failure!r}") from failure


def _read(path: Path) -> str:
    """What a file of the kernel says; "" where there is no such level, controller or system."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def cgroup_memory(root: str = "/") -> CgroupMemory | None:
    """Return the memory limit of this process's cgroup, version 2 or 1, or None where there is none.

    Parameters
    ----------
    root : str
        Where ``proc`` and ``sys`` lie.

    Notes
    -----
    A limit of any level above holds too, so all of them are read. A container that is told its group's path on the
    host finds only the top, which is its own group. Left is what is not used, and the inactive page cache, which the
    kernel drops before it kills.
    """
    limits, lefts = [], []
    for line in _read(Path(root, "proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, names = Path(root, "sys/fs/cgroup"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = Path(root, "sys/fs/cgroup/memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = Path(group).relative_to("/")
        for level in (inside, *inside.parents):
            most, used = (_read(top / level / name).strip() for name in names[:2])
            if not (most.isdigit() and used.isdigit()) or int(most) >= _NO_LIMIT:
                continue
            statistics = dict(line.split(" ", 1) for line in _read(top / level / "memory.stat").splitlines())
            limits.append(int(most))
            lefts.append(int(most) - int(used) + int(statistics.get(names[2], 0)))
    return CgroupMemory(min(limits), max(0, min(lefts))) if limits else None


def machine_memory() -> MachineMemory:
    """Return what this process may use and what of it is left: the machine's, or its cgroup's where that is less.

    Raises
    ------
    MissingPackage
        psutil is not installed.
    MemoryUnreadable
        The system did not tell.
    """
    psutil = load("psutil")
    try:
        memory = psutil.virtual_memory()
    except (psutil.Error, OSError) as failure:
        raise MemoryUnreadable(f"the machine's memory cannot be read: {failure!r}") from failure
    cgroup = cgroup_memory()
    if cgroup is None:
        return MachineMemory(int(memory.total), int(memory.available))
    return MachineMemory(min(int(memory.total), cgroup.limit), min(int(memory.available), cgroup.left))


@functools.cache
def _trim() -> Callable[[int], int] | None:
    import ctypes  # some ms that an import of ours should not cost

    try:
        function = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # only glibc has it; Windows has no "this program" to open
        return None
    function.argtypes, function.restype = (ctypes.c_size_t,), ctypes.c_int
    return function


def malloc_trim() -> None:
    """Give free heap memory back to the system, where the C library can. The GIL is released meanwhile.

    What Python and NumPy freed stays with glibc's allocator until then: gc alone gave 0 bytes back where this gave
    1.3 GB (hypha#976).
    """
    function = _trim()
    if function is not None:
        function(0)
