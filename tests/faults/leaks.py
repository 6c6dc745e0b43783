"""What is left behind: threads, descriptors, mappings, memory, objects, files."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from faults.account import require
from faults.campaign import TESTS, Try, case
from faults.python_rude import own_folders
from native_support import clean_environment
from pcmring import AudioBuffer, AudioBufferTracker, CaptureCallback, MemoryMonitor, ResourceManager

#: glibc keeps stacks of threads that have ended, and opens arenas: so that one mapping that leaks is seen.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.pthread.stack_cache_size=0"}
NOISE_KB = 1024


def _allocator(folder: Path) -> dict[str, str]:
    return ALLOCATOR


def _counts(folder: Path) -> dict[str, int]:
    gc.collect()
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": Path("/proc/self/maps").read_bytes().count(b"\n"),
        "RSS KB": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
        "Python blocks": sys.getallocatedblocks(),
        "files": sum(path.is_file() for path in folder.rglob("*")),
    }


@case(tiny=0, short=1, long=1, limit_s=7200)
def starts_and_stops(attempt: Try) -> None:
    """benchmarks/cycles.py: a sound card and a generator, counted after 100 cycles and at the end."""
    cycles = attempt.by_form(0, 150, 10_000)
    program = TESTS.parent / "benchmarks" / "cycles.py"
    command = [sys.executable, str(program), "--cycles", str(cycles)]
    done = subprocess.run(command, cwd=program.parent, env=clean_environment(), capture_output=True, text=True)
    require(done.returncode == 0, done.stdout, done.stderr[-2000:])
    attempt.counts["cycles"] += 2 * cycles


def _views(buffer: AudioBuffer) -> None:
    with buffer.latest_view(100) as view:
        view.array.sum()
    buffer.view(buffer.oldest, buffer.frames_written)


def _readers(buffer: AudioBuffer) -> None:
    with buffer.reader("oldest", name="one") as reader:
        reader.read(10)
        next(reader.blocks(5, timeout=0.0))
    buffer.reader("oldest").read(3)  # forgotten


def _buffers(buffer: AudioBuffer) -> None:
    tracker = AudioBufferTracker()
    for capacity in (100, 20_000):
        with AudioBuffer(capacity, 2, "int16", tracker, samplerate=8000) as one:
            one.write(np.ones((50, 2), np.int16))
            with CaptureCallback(one):
                pass
        AudioBuffer(capacity, 2, "int16", tracker)


def _temporary_files(buffer: AudioBuffer) -> None:
    with ResourceManager() as resources:
        for _ in range(3):
            file = resources.create_temp_file(".wav")
            Path(file.path).write_bytes(b"audio")
            file.finish()
            file.release()
        resources.cleanup()


def _refusals(buffer: AudioBuffer) -> None:
    """An exception on every path that has one."""
    wrong: list[Callable[[], object]] = [
        lambda: AudioBuffer(-1),
        lambda: AudioBuffer(10, dtype="int8"),
        lambda: AudioBuffer(10, policy="none"),
        lambda: AudioBuffer(2**60),
        lambda: buffer.write(np.zeros((3, 3))),
        lambda: buffer.write("no audio"),
        lambda: buffer.write(np.zeros(5, complex)),
        lambda: buffer.read(-1),
        lambda: buffer.read(5, "soon"),
        lambda: buffer.read_into(np.zeros(5, np.int8)),
        lambda: buffer.read_range(0, 5),
        lambda: buffer.read_range(10**9, 10**9 + 1),
        lambda: buffer.view(0, 5),
        lambda: buffer.reader("tomorrow"),
        lambda: buffer.reader(guard=True),
        lambda: buffer.mark_gap(1, "moon"),
        lambda: buffer.get_latest(5, np.zeros(4)),
        lambda: buffer.time_of(-1),
        lambda: CaptureCallback(buffer, "int8"),
        lambda: ResourceManager().add_temp_file("/"),
        lambda: MemoryMonitor(-1),
    ]
    for call in wrong:
        with suppress(TypeError, ValueError, LookupError, MemoryError, OSError):
            call()
            raise AssertionError(f"accepted, number {wrong.index(call)}")


@case(tiny=5, short=5, long=5, limit_s=3600, environment=_allocator)
def again_and_again(attempt: Try) -> None:
    """1,000,000 views, readers, buffers, exceptions in the long form."""
    work = (_views, _readers, _buffers, _refusals, _temporary_files)[attempt.number % 5]
    times = attempt.by_form(1_000, 20_000, 1_000_000) // {_views: 1, _temporary_files: 100}.get(work, 10)
    own_folders(attempt.folder)
    buffer = AudioBuffer(1_000, samplerate=16_000)
    buffer.write(np.zeros(5_000, np.float32))
    for _ in range(times // 4):
        work(buffer)
    before = _counts(attempt.folder)
    for _ in range(times):
        work(buffer)
    after = _counts(attempt.folder)
    for what, most in before.items():
        noise = {"RSS KB": NOISE_KB, "mappings": 4, "Python blocks": 150}.get(what, 0)
        require(
            after[what] <= most + noise, f"{work.__name__}: {what} grew from {most} to {after[what]} in {times} times"
        )
    attempt.counts[work.__name__.strip("_")] += times
