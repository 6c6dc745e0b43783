"""Reading memory: of this process, of its cgroup, of the machine. All numbers are bytes.

psutil is loaded by the first reading, not by the import. Nothing is remembered between readings but psutil's handle
of this process: a limit may change, and a process may be moved, at any time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import psutil

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

_process: psutil.Process | None = None


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


def _load_psutil() -> Any:
    try:
        import psutil
    except ImportError as missing:
        raise ModuleNotFoundError(
            "psutil, which reads how much memory is in use, is not installed: pip install 'pcmring[monitor]'",
            name="psutil",
        ) from missing
    return psutil


def rss_bytes() -> int:
    """Return the resident set size of this process.

    Raises
    ------
    ModuleNotFoundError
        psutil is not installed.
    MemoryUnreadable
        The system did not tell.

    Notes
    -----
    Some 15 µs on Linux: psutil reads one line of ``/proc``.
    """
    global _process
    psutil = _load_psutil()
    try:
        if _process is None or _process.pid != os.getpid():  # psutil's handle names the process before a fork
            _process = psutil.Process()
        return int(_process.memory_info().rss)
    except (psutil.Error, OSError) as failure:
        _process = None
        raise MemoryUnreadable(f"the memory of process {os.getpid()} cannot be read: {failure!r}") from failure


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:  # no such level, controller or system
        return None


def _unescape(field: str) -> str:
    """A path of mountinfo, where space, tab, newline and backslash are written in octal."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field


def _levels(proc: str) -> Iterator[tuple[str, bool]]:
    """The folders of this process's cgroup with memory, the innermost first; and whether they are version 2."""
    groups = _read(f"{proc}/self/cgroup")
    mounts = _read(f"{proc}/self/mountinfo")
    if groups is None or mounts is None:
        return
    paths: dict[bool, str] = {}
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            paths[False] = path
        elif number == "0":
            paths[True] = path
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        version2 = kind == "cgroup2"
        if version2 not in paths or not (version2 or (kind == "cgroup" and "memory" in options.split(","))):
            continue
        root, top = (_unescape(field) for field in mount.split(" ")[3:5])
        inside = os.path.relpath(paths[version2], root)
        # A container may see a path of the host's; its own group is then what is mounted at the top.
        parts = [] if inside == "." or inside.startswith("..") else inside.split("/")
        while parts:
            yield "/".join([top, *parts]), version2
            parts.pop()
        yield top, version2


def cgroup_memory(proc: str = "/proc") -> CgroupMemory | None:
    """Return the memory limit of this process's cgroup, version 2 or 1, or None where there is none.

    Parameters
    ----------
    proc : str
        Where procfs is mounted.

    Notes
    -----
    A limit of any level above holds too, so all of them are read. Free is what is not used, and the inactive page
    cache, which the kernel drops before it kills.
    """
    limit = left = None
    for folder, version2 in _levels(proc):
        text = _read(f"{folder}/{'memory.max' if version2 else 'memory.limit_in_bytes'}")
        if text is None or not text.strip().isdigit() or int(text) >= _NO_LIMIT:
            continue
        limit = int(text) if limit is None else min(limit, int(text))
        used = _read(f"{folder}/{'memory.current' if version2 else 'memory.usage_in_bytes'}")
        here = int(text) - int(used or 0)
        for line in (_read(f"{folder}/memory.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name == ("inactive_file" if version2 else "total_inactive_file"):
                here += int(value)
        left = here if left is None else min(left, here)
    return None if limit is None or left is None else CgroupMemory(limit, max(0, left))


def machine_memory(proc: str = "/proc") -> MachineMemory:
    """Return what this process may use and what of it is left: the machine's, or its cgroup's where that is less.

    Raises
    ------
    ModuleNotFoundError
        psutil is not installed.
    MemoryUnreadable
        The system did not tell.
    """
    psutil = _load_psutil()
    try:
        memory = psutil.virtual_memory()
    except (psutil.Error, OSError) as failure:
        raise MemoryUnreadable(f"the machine's memory cannot be read: {failure!r}") from failure
    cgroup = cgroup_memory(proc)
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


def malloc_trim() -> bool:
    """Give free heap memory back to the system; return whether the C library can.

    What Python and NumPy freed stays with glibc's allocator until then: gc alone gave 0 bytes back where this gave
    1.3 GB (hypha#976). The GIL is released meanwhile.
    """
    function = _trim()
    if function is None:
        return False
    function(0)
    return True
