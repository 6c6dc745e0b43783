"""What `pcmring doctor` looks at beside the audio: permissions, limits, memory, disk, packages."""

from __future__ import annotations

import getpass
import glob
import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.filesize import decimal

from pcmring._late import PACKAGES, MissingPackage, load
from pcmring._memory import MB, MemoryUnreadable, cgroup_memory, machine_memory
from pcmring._resources import ResourceManager
from pcmring.cli._common import reason_of
from pcmring.memory_manager import DEFAULT_MEMORY_LIMIT_MB

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Check",
    "check_memory",
    "check_packages",
    "check_realtime",
    "check_recordings",
    "check_shared_memory",
    "check_sound_devices",
    "fix_of",
]

#: What JACK and PipeWire have for the group audio.
RTPRIO = 95
#: A ring of 100 MB, the largest there is unless asked for.
SHM_BYTES = 100 * MB
#: An hour of 48 kHz, 16 bit, two channels.
DISK_BYTES = 700 * MB

_SYSTEM_PACKAGES = {
    "apt-get": {"PortAudio": "libportaudio2", "libsndfile": "libsndfile1"},
    "dnf": {"PortAudio": "portaudio", "libsndfile": "libsndfile"},
    "zypper": {"PortAudio": "libportaudio2", "libsndfile": "libsndfile1"},
    "pacman": {"PortAudio": "portaudio", "libsndfile": "libsndfile"},
    "apk": {"PortAudio": "portaudio", "libsndfile": "libsndfile"},
    "brew": {"PortAudio": "portaudio", "libsndfile": "libsndfile"},
}
_INSTALL = {"pacman": "-S", "apk": "add"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "advice", "missing"]
    found: str
    fix: str = ""  #: the command, "" if there is none


def _as_root(command: str) -> str:
    return command if sys.platform == "win32" or os.geteuid() == 0 else f"sudo {command}"


def _in_container() -> bool:
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")


def fix_of(missing: MissingPackage) -> str:
    """The command that installs a package or its C library here."""
    if not missing.library:
        extra = PACKAGES[missing.name or ""].extra
        return f"{sys.executable} -m pip install 'pcmring[{extra}]'"
    for installer, packages in _SYSTEM_PACKAGES.items():
        if shutil.which(installer):
            command = f"{installer} {_INSTALL.get(installer, 'install')} {packages[missing.library]}"
            return command if installer == "brew" else _as_root(command)
    return PACKAGES[missing.name or ""].system


def check_sound_devices() -> Check:
    """Sound cards as the kernel shows them, and whether this user may record from them."""
    name = "sound cards"
    nodes = glob.glob("/dev/snd/pcmC*c")
    if not nodes:
        found = "the kernel shows no sound card with an input (/dev/snd)"
        if _in_container():
            return Check(
                name, "advice", f"{found} in this container", "docker run --device /dev/snd --group-add audio IMAGE"
            )
        return Check(name, "advice", f"{found}: plug one in; 'pcmring record --device tone' needs none")
    locked = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if not locked:
        return Check(name, "ok", ", ".join(nodes))
    import grp

    group = grp.getgrgid(os.stat(locked[0]).st_gid).gr_name
    fix = f"sudo usermod -aG {group} {getpass.getuser()}   # then log in again"
    return Check(name, "missing", f"you may not record from {', '.join(locked)}: that needs the group {group}", fix)


def check_realtime() -> Iterator[Check]:
    """Whether PortAudio's thread may come before all that is not real-time."""
    if sys.platform != "linux":
        return  # the system's own audio threads have it
    name = "realtime priority"
    if _may_be_realtime():
        yield Check(name, "ok", "the audio thread gets it")
        return
    file = "/etc/security/limits.d/95-audio.conf"
    fix = f"echo '@audio - rtprio {RTPRIO}' | {_as_root(f'tee {file}')}   # then log in again"
    if _in_container():
        fix = f"docker run --cap-add sys_nice --ulimit rtprio={RTPRIO} IMAGE"
    yield Check(name, "advice", "not allowed: on a busy machine the audio thread may come too late", fix)


def _may_be_realtime() -> bool:
    allowed = False

    def ask() -> None:
        nonlocal allowed
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            allowed = True

    thread = threading.Thread(target=ask)  # a thread's priority is its own
    thread.start()
    thread.join()
    return allowed


def check_shared_memory() -> Check:
    """Where named shared memory lies."""
    name, folder = "shared memory", "/dev/shm"
    if sys.platform != "linux":
        return Check(name, "ok", "the system keeps it")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return Check(
            name, "advice", f"{folder} is not there or not writable", _as_root("mount -t tmpfs tmpfs /dev/shm")
        )
    free = shutil.disk_usage(folder).free
    if free >= SHM_BYTES:
        return Check(name, "ok", f"{decimal(free)} free in {folder}")
    fix = "docker run --shm-size 512m IMAGE" if _in_container() else _as_root("mount -o remount,size=512m /dev/shm")
    return Check(name, "advice", f"{decimal(free)} free in {folder}", fix)


def check_memory() -> Check:
    """What this process may use: of the machine, and of its cgroup."""
    name = "memory"
    try:
        memory = machine_memory()
    except MissingPackage as missing:
        return Check(name, "advice", str(missing), fix_of(missing))
    except MemoryUnreadable as failure:
        return Check(name, "advice", reason_of(failure))
    cgroup = cgroup_memory()
    limit = "no cgroup limit" if cgroup is None else f"the cgroup's limit is {decimal(cgroup.limit)}"
    found = f"{decimal(memory.left)} of {decimal(memory.total)} left, {limit}"
    if memory.left >= DEFAULT_MEMORY_LIMIT_MB * MB:
        return Check(name, "ok", found)
    fix = "docker run --memory 2g IMAGE" if _in_container() else "systemd-run --user --scope -p MemoryMax=2G COMMAND"
    return Check(
        name, "advice", f"{found}: too little for the usual {DEFAULT_MEMORY_LIMIT_MB} MB", fix if cgroup else ""
    )


def check_recordings() -> Check:
    """The folder in which recordings grow."""
    name = "recordings"
    try:
        folder = Path(ResourceManager().directory)
    except MissingPackage as missing:
        return Check(name, "missing", str(missing), fix_of(missing))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(
            name, "missing", f"{there} is not writable", "export XDG_STATE_HOME=FOLDER   # one that you may write to"
        )
    free = shutil.disk_usage(there).free
    found = f"{decimal(free)} free for {folder}"
    if free >= DISK_BYTES:
        return Check(name, "ok", found)
    return Check(name, "advice", found, "export XDG_STATE_HOME=FOLDER   # on a disk with room")


def check_packages() -> Iterator[Check]:
    """The optional packages, by the extra that brings them."""
    for name, package in PACKAGES.items():
        if not package.extra or name == "tomllib":
            continue
        title = f"{name} [{package.extra}]"
        try:
            if package.library or find_spec(name) is None:
                load(name)
        except MissingPackage as missing:
            yield Check(title, "advice", f"not here, to {package.purpose}", fix_of(missing))
            continue
        try:
            yield Check(title, "ok", version(name))
        except PackageNotFoundError:  # installed under another name
            yield Check(title, "ok", "installed")
