"""Memory that runs out: each allocation, each mapping, the address space, the limit of a monitor."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.account import ReaderAccount, require, settle
from faults.campaign import Try, case, tests_environment
from faults.disk import RATE, check_whole, file_length, file_manager, in_a_child, start
from faults.failing_libc import Failing, preload
from faults.positions import frames
from faults.python_rude import file_runs, is_prefix, own_folders
from patience import until
from pcmring import AudioBuffer, AudioBufferTracker, CaptureCallback, MemoryMonitor, ResourceManager

#: More allocations than any call here makes.
MOST = 3_000

PLAIN, MIRRORED = 1_000, 20_011


def _make(capacity: int) -> tuple[AudioBuffer, ReaderAccount]:
    buffer = AudioBuffer(capacity, 2, "int32", samplerate=16_000)
    account = ReaderAccount(buffer.reader())
    buffer.write(frames(0, capacity // 2, 2))
    return buffer, account


#: What is called while allocations fail: a function of (buffer, its reader's account).
CALLS: dict[str, Callable[[AudioBuffer, ReaderAccount], Any]] = {
    "AudioBuffer": lambda buffer, account: AudioBuffer(buffer.capacity, 2, "int32").close(),
    "AudioBuffer with a tracker": lambda buffer, account: AudioBuffer(9, buffer_tracker=AudioBufferTracker()).close(),
    "reader": lambda buffer, account: buffer.reader("oldest", name="one more").close(),
    "read": lambda buffer, account: account.reader.read(1),
    "blocks": lambda buffer, account: next(buffer.reader("oldest").blocks(10, timeout=0.0)),
    "write": lambda buffer, account: buffer.write(_next(buffer)),
    "write of another dtype": lambda buffer, account: buffer.write(_SILENCE),
    "get_latest": lambda buffer, account: buffer.get_latest(500),
    "read_range": lambda buffer, account: buffer.read_range(buffer.oldest, buffer.frames_written),
    "latest_view": lambda buffer, account: buffer.latest_view(500).array,
    "statistics": lambda buffer, account: (buffer.statistics(), buffer.gaps(), buffer.losses()),
    "time_of": lambda buffer, account: buffer.position_at(buffer.time_of(buffer.oldest)),
    "a refused read": lambda buffer, account: buffer.read(-1),
    "a refused write": lambda buffer, account: buffer.write(_WRONG),
    "a refused range": lambda buffer, account: buffer.read_range(0, 10**9),
}


_SILENCE, _WRONG = np.zeros((0, 2)), np.zeros((3, 3))
_BLOCKS: dict[int, np.ndarray] = {}


def _next(buffer: AudioBuffer) -> np.ndarray:
    """Ten frames, made where no allocation fails: NumPy is not under test."""
    return _BLOCKS[buffer.frames_written]


@case(tiny=4, short=2 * len(CALLS), long=2 * len(CALLS), limit_s=120, environment=preload)
def each_allocation_of_a_call_fails(attempt: Try) -> None:
    """MemoryError, nothing half-done, and the same call works afterwards."""
    name = list(CALLS)[attempt.number % len(CALLS)]
    buffer, account = _make((PLAIN, MIRRORED)[attempt.number // len(CALLS) % 2])
    call, failing = CALLS[name], Failing("allocate")
    _BLOCKS[buffer.frames_written] = frames(buffer.frames_written, 10, 2)
    if name != "read":
        with suppress(ValueError):
            call(buffer, account)  # what is made once
    gc.collect()
    for n in range(1, MOST):
        before, got = buffer.frames_written, None
        _BLOCKS.clear()
        _BLOCKS.update({at: frames(at, 10, 2) for at in (before, before + 10)})
        # SystemError: NumPy's, where its ufuncs forget to say that there was no memory
        with suppress(MemoryError, ValueError, SystemError), failing.at(n, errno.ENOMEM, whom="me"):
            got = call(buffer, account)
        if name == "read" and got is not None:
            account.add(got)
        if not failing.failed:
            break
        require(name.startswith("write") or buffer.frames_written == before, "a failure changed the buffer")
        require(buffer.frames_written - before in (0, 10), "a failed write left half a block")
        attempt.counts["failed allocations"] += 1
        with suppress(ValueError):
            got = call(buffer, account)  # nothing was left behind that would refuse it
        if name == "read":
            account.add(got)
    require(n < MOST - 1, name, "allocates without end")
    account.add(account.reader.read(buffer.capacity))
    settle(buffer, buffer.frames_written, [account], attempt.counts)


@case(short=1, long=2, environment=preload)
def each_allocation_of_a_capture_fails(attempt: Try) -> None:
    """A capture that could not be made leaves the buffer to others."""
    failing = Failing("allocate")
    with AudioBuffer(PLAIN, dtype="int32") as buffer:
        for n in range(1, MOST):
            capture = None
            with suppress(MemoryError), failing.at(n, errno.ENOMEM, whom="me"):
                capture = CaptureCallback(buffer)
            if capture is not None:
                capture.close()
            buffer.write(frames(0, 1))
            if not failing.failed:
                return


@case(tiny=1, short=2, long=20, environment=preload)
def each_mapping_of_a_ring_fails(attempt: Try) -> None:
    """Without a mirror a ring is a plain one."""
    failing, kinds = Failing("map"), set()
    for n in range(1, 100):
        with failing.at(n, errno.ENOMEM, whom="me", always=attempt.number % 2 == 1):
            try:
                buffer, account = _make(200_000)
            except MemoryError:
                attempt.counts["MemoryError"] += 1
                continue
            finally:
                failed = failing.failed
        kinds.add(buffer.mirrored)
        account.add(account.reader.read(200_000))
        settle(buffer, buffer.frames_written, [account], attempt.counts)
        buffer.close()
        if not failed:
            break
    require(True in kinds and False in kinds, "mirrored:", kinds)


@case(short=2, long=20, limit_s=240, environment=preload)
def each_allocation_of_a_start_fails(attempt: Try) -> None:
    """It holds nothing then, and the next one works."""
    own_folders(attempt.folder)
    failing, threads = Failing("allocate"), threading.active_count()
    first, step = attempt.random.randint(1, 20), attempt.by_form(200, 20, 1)
    with file_manager() as manager:
        start(manager)
        manager.stop_recording()
        for n in range(first, MOST, step):
            # RuntimeError: "can't start new thread"
            with suppress(MemoryError, RuntimeError), failing.at(n, errno.ENOMEM, whom="me"):
                manager.start_recording()
            failed = failing.failed
            manager.stop_recording()
            start(manager)
            manager.stop_recording()
            check_whole(attempt, manager)
            for path in manager.get_audio_files():
                manager.release_audio_file(path)
            manager.resource_manager.cleanup()
            attempt.counts["failed allocations"] += failed
            if not failed:
                break
    until(lambda: threading.active_count() <= threads)


@case(tiny=1, short=20, long=400, limit_s=90, environment=preload)
def each_allocation_of_a_stop_fails(attempt: Try) -> None:
    """What was recorded is on the disk all the same. (Python's own locks may stay locked, so this process is over.)"""
    own_folders(attempt.folder)

    def record() -> None:
        failing = Failing("allocate")
        manager = file_manager()
        start(manager)
        until(lambda: manager.get_buffer_info()["file_frames"] > 0)
        # RuntimeError: "can't allocate lock"
        with suppress(MemoryError, RuntimeError), failing.at(attempt.number + 1, errno.ENOMEM, whom="me"):
            manager.stop_recording()
        os._exit(3 if failing.failed else 0)

    code = in_a_child(record)
    require(code in (0, 3), "the child ended with", code)
    attempt.counts["failed allocations"] += code == 3
    with file_manager() as manager:
        (path,) = manager.recover()
        runs = file_runs(path)
        require(is_prefix(runs) and bool(runs.runs), path, "has", runs.runs)
        attempt.counts.update(offered=runs.runs[0][2], missing=0, delivered=runs.runs[0][2], lost=0)


#: A thread that waits for a lock of Python's own which another left locked, for want of the memory to release it.
LEFT_LOCKED = (
    r'\(most recent call first\):\n  File "[^"]*(threading|logging/__init__)\.py", line \d+ in (__enter__|acquire)\n'
)


@case(tiny=1, short=6, long=600, limit_s=30, environment=preload, excused=LEFT_LOCKED)
def an_allocation_of_the_threads_fails_while_they_record(attempt: Try) -> None:
    """Told once, with what was recorded before kept; or nothing happened; and the next recording works.

    In a WAV, which is written by us: libsndfile's FLAC encoder can crash.
    """
    own_folders(attempt.folder)
    failing, own = Failing("allocate"), attempt.random
    errors: list[Exception] = []
    threading.excepthook = lambda _: None
    with file_manager() as manager:
        manager.on_stream_error = errors.append
        start(manager)
        n = attempt.by_form(own.randint(1, 400), own.randint(1, 400), attempt.number + 1)
        with failing.at(n, errno.ENOMEM, whom="others"), suppress(AssertionError):
            until(lambda: failing.failed, 1.0)
        before = manager.buffer.frames_written
        with suppress(AssertionError):
            until(lambda: manager.buffer.frames_written > before + 1600 or not manager.is_recording, 3.0)
        was_recording = manager.is_recording
        manager.stop_recording()
        written = manager.buffer.frames_written
        runs = file_runs(manager.get_audio_file())
        length = sum(run[2] for run in runs.runs)
        told = errors or manager.last_error
        require(was_recording or told, "the recording has ended, and nobody said why")
        require(is_prefix(runs) or errors, runs.runs)  # opened again, this microphone counts anew
        require(length == written or told, f"{written - length} frames are not in the file, and nobody said so")
        require(len(errors) <= 1, errors)
        attempt.counts.update(offered=written, missing=written - length, delivered=length, lost=0)
        attempt.counts["ended early, told" if told else "nothing lost"] += 1
        start(manager)
        manager.stop_recording()
        check_whole(attempt, manager)


@case(short=3, long=100)
def the_address_space_is_limited(attempt: Try) -> None:
    """RLIMIT_AS: rings until there is no room, each refused whole; those there are go on."""
    megabytes = attempt.random.randint(20, 200)
    seconds = attempt.random.choice([1, 30])

    def work() -> None:
        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
        limit = pages * mmap.PAGESIZE + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        rings: list[AudioBuffer] = []
        with suppress(MemoryError):
            while True:
                rings.append(AudioBuffer(seconds * 16_000, 2, "int32"))
        for ring in rings:
            ring.write(frames(0, 1000, 2))
        for _ in range(100):
            with suppress(MemoryError):
                rings.append(AudioBuffer(seconds * 16_000, 2, "int32"))
        for ring in rings[:5]:
            account = ReaderAccount(ring.reader(0))
            account.add(account.reader.read(1000))
            settle(ring, ring.frames_written, [account], attempt.counts)
        rings.pop(0).close()
        AudioBuffer(seconds * 16_000, 2, "int32")

    code = in_a_child(work)
    require(code == 0, "the child ended with", code)


@case(tiny=0, short=1, long=10)
def no_more_mappings_are_to_be_had(attempt: Try) -> None:
    """vm.max_map_count: a ring is refused or a plain one; afterwards it is mirrored again."""
    most = int(open("/proc/sys/vm/max_map_count").read())  # noqa: SIM115
    if most > 300_000:
        pytest.skip(f"vm.max_map_count is {most}")

    def work() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        size = ctypes.c_size_t
        library.mmap.argtypes = [size, size, *[ctypes.c_int] * 3, size]
        kept = []
        while True:  # neighbours of other protection are not joined
            at = library.mmap(0, mmap.PAGESIZE, len(kept) % 2, 0x22, -1, 0)
            if at in (None, 2**64 - 1):
                break
            kept.append(at)
        for _ in range(3):
            with suppress(MemoryError):
                _, account = _make(200_000)
                account.add(account.reader.read(100_000))
                account.settle()
        library.munmap.argtypes = [size, size]
        for at in kept:
            library.munmap(at, mmap.PAGESIZE)
        assert AudioBuffer(200_000).mirrored

    code = in_a_child(work)
    require(code == 0, "the child ended with", code)


@case(short=4, long=200)
def the_limit_is_crossed_at_any_moment_of_a_recording(attempt: Try) -> None:
    """Cleanups, forced ones and automatic ones, again and again: no frame, reader or file is touched."""
    own_folders(attempt.folder)
    own, is_over = attempt.random, threading.Event()

    def press(monitor: MemoryMonitor) -> None:
        while not is_over.wait(0.002):
            monitor.max_memory_mb = own.choice([1, 10_000])
            monitor.cleanup(force=own.random() < 0.3)
            attempt.counts["cleanups"] += 1

    with file_manager() as manager, ResourceManager(manager.memory_monitor):
        presser = threading.Thread(target=press, args=(manager.memory_monitor,))
        presser.start()
        try:
            for _ in range(attempt.by_form(1, 3, 30)):
                start(manager)
                reader = manager.reader(0)
                account = ReaderAccount(reader)
                for _ in range(own.randint(1, 10)):
                    account.add(reader.read(own.randint(1, 1600), 1.0))
                manager.stop_recording()
                check_whole(attempt, manager)
                account.settle()
                require(reader.lost == 0, reader)
        finally:
            is_over.set()
            presser.join()


@case(short=1, long=20)
def nothing_may_be_locked_in_memory(attempt: Try) -> None:
    """RLIMIT_MEMLOCK of 0, which is what refuses mlock: pcmring locks nothing, so nothing changes."""
    own_folders(attempt.folder)

    def record() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        if os.getuid() == 0:  # who may lock all the same
            os.setgroups([])
            os.chown(attempt.folder, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        require(ctypes.CDLL(None, use_errno=True).mlockall(1) == -1, "memory was locked")
        with file_manager() as manager:
            start(manager)
            require(manager.buffer.mirrored, manager.buffer)
            manager.stop_recording()
            check_whole(attempt, manager)

    code = in_a_child(record)
    require(code == 0, "the child ended with", code)


# ---- a cgroup ----------------------------------------------------------------------------------------------------

#: By controllers, as /proc/self/cgroup has them.
LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def _limited_group(limit_bytes: int) -> Path:
    """Make a cgroup in the one of this process, version 1 or 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, ours = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        group = Path("/sys/fs/cgroup", controllers, ours.lstrip("/"), f"pcmring-faults-{os.getpid()}")
        with suppress(OSError):
            group.mkdir()
            with suppress(OSError), (group / LIMIT_FILES[controllers]).open("r+") as limit:
                limit.write(str(limit_bytes))
                limit.flush()
                return group
            group.rmdir()
    pytest.skip("this process may not make a cgroup whose memory is limited")


_HOG = """
import sys
from faults.disk import file_manager, start
from patience import until
hog, gives_back, cleanups = [], 3, 0
def clean():
    global cleanups
    cleanups += 1
    if cleanups <= gives_back:
        hog.clear()
with file_manager(format=sys.argv[1]) as manager:
    monitor = manager.memory_monitor
    start(manager)
    monitor.add_cleanup_callback(clean)
    monitor.start_monitoring(0.005)
    while True:
        seen = monitor.get_history()[-1:]
        hog.append(b"x" * 2**20)
        until(lambda: monitor.get_history()[-1:] != seen)
        print(cleanups, manager.buffer.frames_written, flush=True)
"""


@case(tiny=0, short=1, long=20)
def a_cgroup_at_whose_limit_the_kernel_kills(attempt: Try) -> None:
    """Who gives memory back when asked is not killed; who does not leaves a valid file, up to the last second."""
    own_folders(attempt.folder)
    group = _limited_group(attempt.random.randint(120, 200) * 2**20)
    command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), sys.executable, "-c", _HOG]
    command.append(attempt.random.choice(["WAV", "FLAC"]))
    try:
        done = subprocess.run(command, env=tests_environment(), capture_output=True, text=True)
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
    require(done.returncode == -signal.SIGKILL, "it ended with", done.returncode, done.stderr[-2000:])
    cleanups, captured = map(int, done.stdout.splitlines()[-1].split())
    require(cleanups == 4, cleanups, "cleanups, the last in vain")
    with file_manager() as manager:
        (path,) = manager.recover()
        have = file_length(path)
    require(captured - have <= RATE, f"{have} frames are left, {captured} were captured")
    attempt.counts.update(offered=max(captured, have), missing=max(0, captured - have), delivered=have, lost=0)
    attempt.counts["cleanups before the kernel killed"] += cleanups
