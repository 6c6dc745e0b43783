"""What counting, watching, constructing and importing cost."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from harness import UNTIMED, Calls, Effort, Round, race
from peers import Unable, w4l

import pcmring


class Buffer:
    """Something to be tracked, as small as can be."""

    __slots__ = ("__weakref__",)


class Tracker:
    name: str
    kind = "idiom"

    def track(self, buffer: Buffer) -> None:
        raise NotImplementedError

    def total(self) -> int:
        raise NotImplementedError

    def track_and_untrack(self, buffer: Buffer) -> None:
        raise NotImplementedError


class OurTracker(Tracker):
    name, kind = "pcmring", "pcmring"

    def __init__(self) -> None:
        self._tracker = pcmring.AudioBufferTracker()
        self.total = self._tracker.get_total_buffer_memory

    def track(self, buffer: Buffer) -> None:
        self._tracker.track_buffer(buffer, 640)

    def track_and_untrack(self, buffer: Buffer) -> None:
        self._tracker.track_buffer(buffer, 640)
        self._tracker.untrack_buffer(buffer)


class W4LTracker(OurTracker):
    name, kind = "W4L", "incumbent"

    def __init__(self) -> None:
        self._tracker = w4l.Tracker()  # type: ignore[assignment]
        self.total = self._tracker.get_total_buffer_memory


class DictTracker(Tracker):
    """Buffers are held, so a forgotten one never leaves."""

    name = "dict by identity"

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[Buffer, int]] = {}
        self._total = 0

    def track(self, buffer: Buffer) -> None:
        self._sizes[id(buffer)] = (buffer, 640)
        self._total += 640

    def track_and_untrack(self, buffer: Buffer) -> None:
        self.track(buffer)
        self._total -= self._sizes.pop(id(buffer))[1]

    def total(self) -> int:
        return self._total


class WeakTracker(Tracker):
    name = "dict of weak references"

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[weakref.ref[Buffer], int]] = {}
        self._total = 0

    def track(self, buffer: Buffer) -> None:
        def gone(_: object, key: int = id(buffer)) -> None:
            self._total -= self._sizes.pop(key)[1]

        self._sizes[id(buffer)] = (weakref.ref(buffer, gone), 640)
        self._total += 640

    def track_and_untrack(self, buffer: Buffer) -> None:
        self.track(buffer)
        self._total -= self._sizes.pop(id(buffer))[1]

    def total(self) -> int:
        return self._total


TRACKERS = [DictTracker, OurTracker, W4LTracker, WeakTracker]
LIVE = [10, 1_000, 100_000]


def _filled(tracker: type[Tracker], live: int) -> tuple[Tracker, Buffer, list[Buffer]]:
    made, kept = tracker(), [Buffer() for _ in range(live)]
    for buffer in kept:
        made.track(buffer)
    extra = Buffer()
    made.track_and_untrack(extra)
    assert made.total() == 640 * live
    return made, extra, kept


@race(TRACKERS, LIVE, goal="flat from 10 to 100,000")
def bench_track_and_untrack(contender: type[Tracker], case: int, effort: Effort) -> Round:
    """One buffer in and out of a tracker that has this many live ones. The plain dict keeps its buffers alive."""
    tracker, extra, kept = _filled(contender, effort.count(case, 10))

    def call(buffer: Buffer, keep: list[Buffer] = kept) -> None:
        tracker.track_and_untrack(buffer)

    return Calls(call, (extra,), effort)


@race(TRACKERS, LIVE, goal="flat from 10 to 100,000")
def bench_tracked_total(contender: type[Tracker], case: int, effort: Effort) -> Round:
    """The bytes of all live buffers."""
    tracker, _, kept = _filled(contender, effort.count(case, 10))

    def call(keep: list[Buffer] = kept) -> None:
        tracker.total()

    return Calls(call, (), effort)


class Sample:
    """A way to read this process's resident memory, in bytes."""

    name: str
    kind: str

    def read(self) -> float:
        raise NotImplementedError


class KeptDescriptor(Sample):
    name, kind = "floor: os.pread of a kept statm", "floor"

    def __init__(self) -> None:
        self._fd, self._page = os.open("/proc/self/statm", os.O_RDONLY), os.sysconf("SC_PAGE_SIZE")

    def read(self) -> float:
        return int(os.pread(self._fd, 100, 0).split()[1]) * self._page

    def close(self) -> None:
        os.close(self._fd)


class OurMonitor(Sample):
    name, kind = "pcmring MemoryMonitor.get_memory_usage", "pcmring"

    def __init__(self) -> None:
        self._monitor = pcmring.MemoryMonitor()

    def read(self) -> float:
        return self._monitor.get_memory_usage() * 2**20


class OurCheck(OurMonitor):
    """Says whether memory is high: the cgroup's limit is read, too."""

    name = "pcmring MemoryMonitor.is_memory_high"

    def read(self) -> float:
        self._monitor.is_memory_high()
        return 0.0


class KeptPsutil(Sample):
    name, kind = "psutil, Process kept", "peer"

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()

    def read(self) -> float:
        return float(self._process.memory_info().rss)


class FreshPsutil(Sample):
    name, kind = "W4L: psutil, Process made each time", "incumbent"

    def read(self) -> float:
        import psutil

        return float(psutil.Process().memory_info().rss)


@race([KeptDescriptor, OurMonitor, OurCheck, KeptPsutil, FreshPsutil], ["resident memory"])
def bench_monitor_sample(contender: type[Sample], case: str, effort: Effort) -> Round:
    """One look at this process's memory. W4L looks with every block, pcmring every 30 s in a thread of its own."""
    sample, expected = contender(), KeptDescriptor()
    found = sample.read()
    assert found == 0.0 or abs(found / expected.read() - 1) < 0.1, found
    return Calls(sample.read, (), effort)


#: What defines `make`, which makes a buffer of so many float32 frames; `f32` is numpy.float32.
CONSTRUCTORS = {
    "floor: np.zeros": "import numpy; make = lambda n: numpy.zeros(n, f32)",
    "pcmring": "import pcmring; make = pcmring.AudioBuffer",
    "W4L": "from peers.w4l import Ring as make",
    "numcircbuf Overwrite": "import numcircbuf as m; make = lambda n: m.OverwriteCircBuffer(n, 'never', dtype=f32)",
    "numcircbuf Blocking": "import numcircbuf as m; make = lambda n: m.BlockingCircBuffer(n, dtype=f32)",
    "numpy-ringbuffer": "from numpy_ringbuffer import RingBuffer as B; make = lambda n: B(n, f32)",
    "dvg-ringbuffer": "from dvg_ringbuffer import RingBuffer as B; make = lambda n: B(n, f32)",
    "np-rw-buffer": "from np_rw_buffer import RingBuffer as B; make = lambda n: B(n, 1, f32)",
    "pa-ringbuffer (rtmixer's)": "import rtmixer; make = lambda n: rtmixer.RingBuffer(4, 1 << (n - 1).bit_length())",
    "ringbuf": "from ringbuf import RingBuffer as B; make = lambda n: B(format='f', capacity=n)",
    "pypcmringbuffer": "from pypcmringbuffer import PyPcmRingQueue as B; make = lambda n: B(n, f32)",
}


def _kind(name: str) -> str:
    return {"pcmring": "pcmring", "W4L": "incumbent"}.get(name, "floor" if name.startswith("floor") else "peer")


class Constructor:
    name: str
    kind: str
    program: str


def _constructors() -> list[type[Constructor]]:
    return [
        type("Made", (Constructor,), {"name": name, "kind": _kind(name), "program": program})
        for name, program in CONSTRUCTORS.items()
    ]


FRAMES = 1024  # a power of two, which some need


@race(_constructors(), [FRAMES, 480_000])
def bench_construct(contender: type[Constructor], case: int, effort: Effort) -> Round:
    """A buffer of this many frames, made and dropped. Memory comes zeroed and untouched from the system except where
    the constructor touches it: pcmring's does, so that the audio thread never meets a page fault.
    """
    names: dict[str, Any] = {"f32": np.float32}
    exec(contender.program, names)
    return Calls(names["make"], (case,), effort)


PER_BUFFER = """
from numpy import float32 as f32
{program}
import gc

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * {page}

make(1024)
count = {count}
kept = [None] * count
gc.collect()
before = resident()
for at in range(count):
    kept[at] = make({frames})
gc.collect()
print((resident() - before) / count)
"""


def child(program: str) -> float:
    """Run it in a process of its own; what it prints last is the figure."""
    here, package = str(Path(__file__).parent), str(Path(pcmring.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((here, package)), "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise Unable(done.stderr.splitlines()[-1])
    return float(done.stdout.split()[-1])


@race(
    _constructors(),
    [f"10,000 buffers of {FRAMES:,} frames"],
    unit="bytes",
    is_long=True,
    most_rounds=3,
    goal="at most 200 bytes",
)
def bench_memory_per_buffer(contender: type[Constructor], case: str, effort: Effort) -> Round:
    """Resident memory a buffer beyond its audio, of 10,000 live ones, in a process of its own. Audio that the
    constructor did not touch is not resident: a negative figure says so.
    """
    count = effort.count(10_000, 20)
    program = PER_BUFFER.format(program=contender.program, frames=FRAMES, count=count, page=os.sysconf("SC_PAGE_SIZE"))
    return lambda: [child(program) - 4 * FRAMES]


IMPORTS = {
    "pcmring": ("pcmring", "pcmring"),
    "numcircbuf": ("numcircbuf", "peer"),
    "numpy-ringbuffer": ("numpy_ringbuffer", "peer"),
    "dvg-ringbuffer": ("dvg_ringbuffer", "peer"),
    "np-rw-buffer": ("np_rw_buffer", "peer"),
    "rtmixer": ("rtmixer", "peer"),
    "sounddevice": ("sounddevice", "peer"),
    "psutil": ("psutil", "peer"),
    "queue": ("queue", "idiom"),
    "multiprocessing": ("multiprocessing", "idiom"),
    "asyncio": ("asyncio", "idiom"),
}

IMPORT = """
import os, time
import numpy
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * {page}
memory, begin = resident(), time.perf_counter()
import {module}
end = time.perf_counter()
print(end - begin if {is_time} else resident() - memory)
"""


class Module:
    name: str
    kind: str
    module: str


def _modules() -> list[type[Module]]:
    return [
        type("Imported", (Module,), {"name": name, "kind": kind, "module": module})
        for name, (module, kind) in IMPORTS.items()
    ]


def _import(contender: type[Module], is_time: bool, effort: Effort) -> Round:
    if importlib.util.find_spec(contender.module) is None:
        raise Unable(f"No module named {contender.module!r}")
    program = IMPORT.format(module=contender.module, page=os.sysconf("SC_PAGE_SIZE"), is_time=is_time)
    if is_time and effort is not UNTIMED:
        child(program)  # the byte code is written
    return lambda: [child(program)]


@race(_modules(), ["after numpy"], is_long=True, goal="at most 5 ms")
def bench_import(contender: type[Module], case: str, effort: Effort) -> Round:
    """Importing in a fresh interpreter that has imported numpy. What pcmring loads late (sounddevice, psutil,
    soundfile) is not in its figure.
    """
    return _import(contender, is_time=True, effort=effort)


@race(_modules(), ["after numpy"], unit="bytes", most_rounds=3, goal="at most 1 MB")
def bench_import_memory(contender: type[Module], case: str, effort: Effort) -> Round:
    """Resident memory that the same import adds."""
    return _import(contender, is_time=False, effort=effort)
