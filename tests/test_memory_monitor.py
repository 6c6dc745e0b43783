"""MemoryMonitor: readings, the edge, callbacks, the thread, samples."""

from __future__ import annotations

import ast
import gc
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pcmring
from pcmring import _memory, _monitor
from pcmring._memory import MB, CgroupMemory, _process, cgroup_memory, machine_memory
from pcmring.memory_manager import (
    BUFFER_CLEANUP_INTERVAL_SECONDS,
    DEFAULT_BUFFER_MEMORY_LIMIT_MB,
    DEFAULT_MEMORY_LIMIT_MB,
    MEMORY_CHECK_INTERVAL_SECONDS,
    AudioBufferTracker,
    MemoryMonitor,
    MemoryUnreadable,
    StreamLease,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Usage:
    """A process whose memory a test sets."""

    def __init__(self, mb: float = 0.0) -> None:
        self.mb = mb
        self.failure: Exception | None = None
        self.readings = 0

    def __call__(self) -> int:
        self.readings += 1
        if self.failure is not None:
            raise self.failure
        return int(self.mb * MB)


def monitor_of(usage: Callable[[], int], max_memory_mb: float = 512) -> MemoryMonitor:
    """A monitor that reads `usage`, and whose thread does."""
    monitor = MemoryMonitor(max_memory_mb)
    monitor._read_usage = usage  # type: ignore[method-assign]
    return monitor


class Owner:
    """Counts the calls of its method."""

    def __init__(self) -> None:
        self.calls = 0

    def cleanup(self) -> None:
        self.calls += 1


def run(program: str, *arguments: str) -> None:
    """Run a program with this test's pcmring in a process of its own; it must end well and in silence."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """time.monotonic as the monitor sees it; set its only element."""
    now = [1000.0]
    fake = type("time", (), {"monotonic": staticmethod(lambda: now[0]), "time": staticmethod(time.time)})
    monkeypatch.setattr(_monitor, "time", fake)
    return now


# ---- readings --------------------------------------------------------------------------------------------------------


def test_constants_are_w4ls() -> None:
    assert (DEFAULT_MEMORY_LIMIT_MB, DEFAULT_BUFFER_MEMORY_LIMIT_MB) == (512, 100)
    assert (MEMORY_CHECK_INTERVAL_SECONDS, BUFFER_CLEANUP_INTERVAL_SECONDS) == (30, 60)
    assert MemoryMonitor().max_memory_mb == 512


@pytest.mark.rss
def test_usage_is_this_process_resident_memory_in_mb() -> None:
    """128 MB are touched and given back; whatever else the process does is far less."""
    run("""
import numpy as np, psutil
from pcmring.memory_manager import MemoryMonitor
monitor = MemoryMonitor()
before = monitor.get_memory_usage()
block = np.ones(128 << 20, dtype=np.uint8)
with_block = monitor.get_memory_usage()
assert 120 < with_block - before < 160, (before, with_block)
assert abs(with_block - psutil.Process().memory_info().rss / 1024**2) < 32
del block
assert abs(monitor.get_memory_usage() - before) < 32
assert monitor.get_statistics()["peak_memory_mb"] == with_block
""")


@linux_only
@pytest.mark.rss
def test_d17_cleaned_means_measurably_freed() -> None:
    """W4L forgot list entries and said that memory was freed. What cleanup returns is what the kernel has back."""
    run("""
import numpy as np
from pcmring.memory_manager import AudioBufferTracker, MemoryMonitor
MB = 1 << 20
def dirty():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty"))
monitor = MemoryMonitor()
tracker = AudioBufferTracker(monitor)
blocks = {}
for name in ("kept", "given back"):
    blocks[name] = np.ones(128 * MB, dtype=np.uint8)
    tracker.track_buffer(blocks[name], 128 * MB, on_evict=tracker.untrack_buffer)
before = dirty()
assert monitor.cleanup(force=True) < 32 * MB  # forgotten by the tracker, held by their owner: nothing is free
assert tracker.get_total_buffer_memory() == 0
assert abs(before - dirty()) < 32 * MB
monitor.add_cleanup_callback(lambda: blocks.pop("given back"))
assert 96 * MB < monitor.cleanup(force=True) < 160 * MB
assert 96 * MB < before - dirty() < 160 * MB
assert monitor.get_statistics()["last_cleanup"]["freed_bytes"] > 96 * MB
""")


@linux_only
@pytest.mark.rss
def test_a_cleanup_gives_back_what_the_c_library_keeps() -> None:
    run("""
import ctypes, sys
from pcmring.memory_manager import MemoryMonitor
if not hasattr(ctypes.CDLL(None), "malloc_trim"):
    sys.exit()
blocks = [bytearray(64 << 10) for _ in range(2000)]
last = blocks.pop()  # it lies on top of what is freed, which malloc then keeps
blocks.clear()
assert MemoryMonitor().cleanup(force=True) > 100 << 20
""")


@linux_only
@pytest.mark.rss
def test_over_the_limit_while_recording_cleanup_runs_once_and_loses_nothing(tmp_path: Path) -> None:
    """Both modes at once: a ring being written and read, and a file being recorded, beside a pool that gives back."""
    run(
        """
import sys, numpy as np
from pcmring import AudioBuffer
from pcmring.memory_manager import AudioBufferTracker, MemoryMonitor, ResourceManager, StreamLease
MB = 1 << 20
monitor = MemoryMonitor()
tracker, resources = AudioBufferTracker(monitor), ResourceManager(monitor, directory=sys.argv[1])
ring = AudioBuffer(16000 * 5, buffer_tracker=tracker, policy="drop")
reader = ring.reader(guard=True)
recording, pool = resources.create_temp_file(), [np.ones(128 * MB, dtype=np.uint8)]
monitor.add_cleanup_callback(pool.clear, stage="pools")
monitor.max_memory_mb = monitor.get_memory_usage() + 64
with open(recording.path, "wb") as file, StreamLease():
    for number in range(40):
        if number == 10:
            pool.append(np.ones(128 * MB, dtype=np.uint8))  # the limit is crossed here
        block = np.full((1600, 1), number, dtype=np.float32)
        ring.write(block)
        file.write(block)
        file.flush()
        monitor.cleanup()
statistics = monitor.get_statistics()
assert statistics["cleanups"] == 1, statistics
assert not statistics["last_cleanup"]["collected_garbage"]
assert statistics["last_cleanup"]["freed_bytes"] > 192 * MB, statistics
expected = np.repeat(np.arange(40, dtype=np.float32), 1600)
assert (reader.read(64000)[:, 0] == expected).all()
assert (np.fromfile(recording.path, dtype=np.float32) == expected).all()
assert reader.lost == 0 and recording.state == "recording"
assert tracker.get_total_buffer_memory() == ring.nbytes
""",
        str(tmp_path / "recordings"),
    )


@linux_only
def test_d24_a_failing_reading_is_an_error_and_never_not_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = MemoryMonitor()
    monitor.get_memory_usage()
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/nonexistent")
    _process.cache_clear()
    with pytest.raises(MemoryUnreadable, match="cannot be read"):
        monitor.get_memory_usage()
    with pytest.raises(OSError):
        monitor.is_memory_high()
    with pytest.raises(MemoryUnreadable):
        monitor.cleanup()
    with pytest.raises(MemoryUnreadable):
        monitor.start_monitoring()
    with pytest.raises(MemoryUnreadable, match="machine"):
        machine_memory()
    assert not monitor.monitoring
    statistics = monitor.get_statistics()
    assert statistics["memory_usage_mb"] is None
    assert statistics["is_high"] is None
    assert statistics["failed_readings"] == 5
    monkeypatch.undo()
    assert monitor.get_memory_usage() > 1


def test_d24_a_failing_reading_is_logged_once_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    usage = Usage(1)
    monitor = monitor_of(usage)
    for _ in range(2):
        usage.failure = MemoryUnreadable("no")
        for _ in range(3):
            with pytest.raises(MemoryUnreadable):
                monitor.get_memory_usage()
        usage.failure = None
        monitor.get_memory_usage()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_forced_cleanup_runs_though_memory_cannot_be_read() -> None:
    usage = Usage()
    usage.failure = MemoryUnreadable("no")
    owner = Owner()
    monitor = monitor_of(usage)
    monitor.add_cleanup_callback(owner.cleanup)
    assert monitor.cleanup(force=True) is None
    assert owner.calls == 1
    assert monitor.get_statistics()["last_cleanup"]["freed_bytes"] is None


def test_without_psutil_the_first_reading_says_what_to_install() -> None:
    run("""
import sys
sys.modules["psutil"] = None
from audio.memory_manager import MemoryMonitor, ResourceManager
from pcmring import MissingPackage
monitor = MemoryMonitor(max_memory_mb=200)
assert ResourceManager(monitor).get_resource_info()["memory_usage_mb"] is None
for call in (monitor.get_memory_usage, monitor.is_memory_high, monitor.start_monitoring, monitor.cleanup):
    try:
        call()
    except MissingPackage as error:
        assert "pip install 'pcmring[monitor]'" in str(error) and error.name == "psutil", error
    else:
        raise AssertionError(call)
assert monitor.cleanup(force=True) is None
assert not monitor.monitoring
""")


def test_importing_loads_no_psutil() -> None:
    run("import sys, audio.memory_manager, pcmring.model_memory; assert 'psutil' not in sys.modules")


def test_the_monitor_imports_nothing_that_knows_audio() -> None:
    """Arrows run one way: the monitor knows readings and callables."""
    package = Path(pcmring.__file__).parent
    allowed = {
        "_monitor": {"pcmring._callbacks", "pcmring._late", "pcmring._memory"},
        "_memory": {"pcmring._late"},
        "_callbacks": set(),
        "_late": set(),
    }
    for module, ours in allowed.items():
        found = set()
        for node in ast.walk(ast.parse((package / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found.update(name.name for name in node.names)
        assert {name for name in found if name and name.startswith(("pcmring", "numpy"))} <= ours


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_an_impossible_limit_is_refused_by_name(limit: float) -> None:
    with pytest.raises(ValueError, match=r"max_memory_mb must be a finite number of MB above 0, got"):
        MemoryMonitor(limit)
    with pytest.raises(ValueError, match="interval_seconds"):
        MemoryMonitor().start_monitoring(limit)


@pytest.mark.parametrize("limit", [None, "512", True, [], 10**400])
def test_a_limit_that_is_no_number_is_refused(limit: Any) -> None:
    with pytest.raises(TypeError, match="max_memory_mb"):
        MemoryMonitor(limit)


def test_an_interval_beyond_what_a_wait_can_take_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        MemoryMonitor().start_monitoring(1e300)


def test_the_limit_can_be_changed_at_any_time() -> None:
    monitor = monitor_of(Usage(150), 100)
    assert monitor.is_memory_high()
    monitor.max_memory_mb = 200
    assert not monitor.is_memory_high()
    with pytest.raises(ValueError):
        monitor.max_memory_mb = 0
    assert monitor.max_memory_mb == 200


# ---- cgroups ---------------------------------------------------------------------------------------------------------


def cgroup_tree(root: Path, *, version: int, path: str, files: dict[str, str]) -> str:
    """Files as procfs and a cgroup mount show them."""
    (root / "proc" / "self").mkdir(parents=True, exist_ok=True)
    lines = ["12:cpuset:/other", f"4:cpu,memory:{path}", "0::/"] if version == 1 else [f"0::{path}"]
    (root / "proc" / "self" / "cgroup").write_text("\n".join(lines) + "\n")
    top = root / "sys" / "fs" / "cgroup" / ("memory" if version == 1 else "")
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return str(root)


def test_the_tightest_cgroup_v2_level_is_the_limit(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "1\n",
        "a/memory.max": f"{1000 * MB}\n",
        "a/memory.current": f"{400 * MB}\n",
        "a/memory.stat": f"anon 5\ninactive_file {100 * MB}\nactive_file 7\n",
        "memory.stat": "anon 0\n",
    }
    root = cgroup_tree(tmp_path, version=2, path="/a/b", files=files)
    assert cgroup_memory(root) == CgroupMemory(1000 * MB, 700 * MB)
    cgroup_tree(tmp_path, version=2, path="/a/b", files={"memory.max": f"{900 * MB}", "memory.current": f"{500 * MB}"})
    assert cgroup_memory(root) == CgroupMemory(900 * MB, 400 * MB)


def test_the_monitor_acts_before_the_cgroup_kills(tmp_path: Path) -> None:
    files = {"a/memory.max": f"{1000 * MB}\n", "a/memory.current": "0\n"}
    root = cgroup_tree(tmp_path, version=2, path="/a", files=files)
    for limit, expected in ((4096, 900), (512, 512)):
        monitor = monitor_of(Usage(950), limit)
        monitor._root = root
        assert monitor.get_memory_limit() == expected
        assert monitor.is_memory_high()


def test_a_container_told_of_its_group_on_the_host_finds_its_own(tmp_path: Path) -> None:
    """What the host calls /docker/7f is the top here."""
    files = {"memory.max": f"{300 * MB}\n", "memory.current": f"{400 * MB}\n"}
    assert cgroup_memory(cgroup_tree(tmp_path, version=2, path="/docker/7f", files=files)) == (300 * MB, 0)
    assert cgroup_memory(cgroup_tree(tmp_path, version=2, path="/../elsewhere", files=files)) == (300 * MB, 0)


def test_cgroup_v1_counts_too_and_its_no_limit_is_none(tmp_path: Path) -> None:
    files = {
        "a/memory.limit_in_bytes": "9223372036854771712\n",
        "a/memory.usage_in_bytes": "1\n",
        "memory.limit_in_bytes": f"{100 * MB}\n",
        "memory.usage_in_bytes": f"{50 * MB}\n",
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MB}\n",
    }
    root = cgroup_tree(tmp_path, version=1, path="/a", files=files)
    assert cgroup_memory(root) == CgroupMemory(100 * MB, 60 * MB)
    cgroup_tree(tmp_path, version=1, path="/a", files={"memory.limit_in_bytes": "9223372036854771712\n"})
    assert cgroup_memory(root) is None


def test_this_machines_own_memory_is_readable() -> None:
    own = cgroup_memory()
    assert own is None or 0 <= own.left <= own.limit
    assert cgroup_memory("/nonexistent") is None
    machine = machine_memory()
    assert 0 < machine.left <= machine.total <= psutil.virtual_memory().total


def test_the_machine_is_no_larger_than_its_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "cgroup_memory", lambda: CgroupMemory(50 * MB, 30 * MB))
    assert machine_memory() == (50 * MB, 30 * MB)


def test_a_c_library_without_malloc_trim_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    _memory._trim.cache_clear()
    try:
        _memory.malloc_trim()
    finally:
        _memory._trim.cache_clear()


# ---- the edge --------------------------------------------------------------------------------------------------------


def test_d20_over_the_limit_cleanup_runs_once_not_with_every_block() -> None:
    usage, owner = Usage(600), Owner()
    monitor = monitor_of(usage, 512)
    monitor.add_cleanup_callback(owner.cleanup)
    for _ in range(100):
        if monitor.is_memory_high():
            monitor.cleanup()
    assert owner.calls == 1
    assert monitor.get_statistics()["cleanups"] == 1


def test_cleanup_runs_again_only_after_usage_fell_below_90_percent() -> None:
    usage, owner = Usage(1), Owner()
    monitor = monitor_of(usage, 100)
    monitor.add_cleanup_callback(owner.cleanup)
    expected = {50: 0, 100: 0, 101: 1, 99: 1, 102: 1, 90: 1, 103: 1, 89.9: 1, 100.5: 2, 104: 2}
    for mb, calls in expected.items():
        usage.mb = mb
        monitor.cleanup()
        assert owner.calls == calls, mb


def test_cleanup_runs_again_after_a_pause_though_usage_never_fell(clock: list[float]) -> None:
    owner = Owner()
    monitor = monitor_of(Usage(101), 100)
    monitor.add_cleanup_callback(owner.cleanup)
    for seconds, calls in ((0, 1), (59.9, 1), (60, 2), (100, 2), (120, 3)):
        clock[0] = 1000.0 + seconds
        monitor.cleanup()
        assert owner.calls == calls, seconds


def test_forced_cleanup_runs_whatever_the_usage_and_counts_as_the_edge() -> None:
    usage, owner = Usage(1), Owner()
    monitor = monitor_of(usage, 100)
    monitor.add_cleanup_callback(owner.cleanup)
    assert monitor.cleanup(force=True) == 0
    usage.mb = 200
    monitor.cleanup(force=True)
    monitor.cleanup()  # has been acted on
    assert owner.calls == 2


def test_a_cleanup_that_brought_usage_down_rearms_by_itself() -> None:
    usage = Usage(150)
    monitor = monitor_of(usage, 100)
    monitor.add_cleanup_callback(lambda: setattr(usage, "mb", 20))
    assert monitor.cleanup() == 130 * MB
    usage.mb = 150
    assert monitor.cleanup() == 130 * MB


def test_nothing_runs_while_held() -> None:
    owner = Owner()
    monitor = monitor_of(Usage(200), 100)
    monitor.add_cleanup_callback(owner.cleanup)
    with monitor.hold(), monitor.hold():
        monitor.cleanup()
        assert owner.calls == 0
    monitor.cleanup()
    assert owner.calls == 1


def collections() -> int:
    return gc.get_stats()[2]["collections"]


def test_no_garbage_collection_while_a_stream_runs_unless_forced() -> None:
    monitor = monitor_of(Usage(200), 100)
    gc.disable()
    try:
        with StreamLease(), StreamLease():
            before = collections()
            monitor.cleanup()
            assert collections() == before
            assert monitor.get_statistics()["streams"] == 2
            monitor.cleanup(force=True)
            assert collections() == before + 1
        assert monitor.get_statistics()["streams"] == 0
        second = monitor_of(Usage(200), 100)
        second.cleanup()
        assert collections() == before + 2
    finally:
        gc.enable()


def test_a_stream_that_was_forgotten_no_longer_counts() -> None:
    monitor = MemoryMonitor()
    lease = StreamLease()
    lease.close()
    lease.close()
    kept = StreamLease()
    assert monitor.get_statistics()["streams"] == 1
    del kept
    gc.collect()
    assert monitor.get_statistics()["streams"] == 0


# ---- callbacks -------------------------------------------------------------------------------------------------------


def test_every_callback_runs_though_another_raises_and_each_failure_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = monitor_of(Usage(1))
    ran = []

    def bad() -> None:
        ran.append("bad")
        raise ZeroDivisionError("on purpose")

    monitor.add_cleanup_callback(lambda: ran.append("first"))
    monitor.add_cleanup_callback(bad)
    monitor.add_cleanup_callback(lambda: ran.append("last"))
    monitor.cleanup(force=True)
    assert ran == ["first", "bad", "last"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert "bad" in errors[0].getMessage()
    assert monitor.get_statistics()["failed_callbacks"] == 1


def test_keyboard_interrupt_ends_a_cleanup_and_the_next_one_works() -> None:
    monitor = monitor_of(Usage(1))

    def interrupted() -> None:
        raise KeyboardInterrupt

    monitor.add_cleanup_callback(interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.cleanup(force=True)
    monitor.max_memory_mb = 0.5
    assert monitor.cleanup() == 0  # it counts as the edge all the same
    monitor.remove_cleanup_callback(interrupted)
    assert monitor.cleanup(force=True) == 0


def test_callbacks_run_by_stage_then_in_order_then_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = monitor_of(Usage(1))
    order: list[str] = []
    monitor.add_cleanup_callback(lambda: order.append("file"), stage="files")
    monitor.add_cleanup_callback(lambda: order.append("buffer 1"))
    monitor.add_cleanup_callback(lambda: order.append("buffer 2"), stage="buffers")
    monitor.add_cleanup_callback(lambda: order.append("pool"), stage="pools")
    monkeypatch.setattr(_monitor.gc, "collect", lambda: order.append("gc"))
    monkeypatch.setattr(_monitor, "malloc_trim", lambda: order.append("trim"))
    monitor.cleanup(force=True)
    assert order == ["pool", "buffer 1", "buffer 2", "file", "gc", "trim"]


def test_d19_a_bound_method_keeps_no_owner_alive() -> None:
    monitor = monitor_of(Usage(1))
    owners = [Owner() for _ in range(10)]
    for owner in owners:
        monitor.add_cleanup_callback(owner.cleanup)
    alive = [weakref.ref(owner) for owner in owners]
    monitor.cleanup(force=True)
    assert [owner.calls for owner in owners] == [1] * 10
    del owner, owners
    assert [ref() for ref in alive] == [None] * 10
    assert monitor.get_statistics()["cleanup_callbacks"] == 0


def test_functions_lambdas_and_closures_do_not_vanish() -> None:
    """The seed hands over a local function; nobody else holds it."""
    monitor = monitor_of(Usage(1))
    ran = []

    class Tool:
        def __call__(self) -> None:
            ran.append("object")

    def register() -> None:
        def my_cleanup() -> None:
            ran.append("function")

        monitor.add_cleanup_callback(my_cleanup)
        monitor.add_cleanup_callback(lambda: ran.append("lambda"))
        monitor.add_cleanup_callback(Tool())

    register()
    gc.collect()
    monitor.cleanup(force=True)
    assert ran == ["function", "lambda", "object"]


def test_a_method_of_what_cannot_be_weakly_referenced_is_held() -> None:
    class Slim:
        __slots__ = ("calls",)

        def __init__(self, calls: list[int]) -> None:
            self.calls = calls

        def cleanup(self) -> None:
            self.calls.append(1)

    calls: list[int] = []
    monitor = monitor_of(Usage(1))
    monitor.add_cleanup_callback(Slim(calls).cleanup)
    gc.collect()
    monitor.cleanup(force=True)
    assert calls == [1]


def test_a_callback_registered_twice_runs_once_and_is_removed_at_once() -> None:
    owner = Owner()
    monitor = monitor_of(Usage(1))
    monitor.add_cleanup_callback(owner.cleanup)
    monitor.add_cleanup_callback(owner.cleanup, stage="files")
    monitor.cleanup(force=True)
    assert owner.calls == 1
    assert monitor.remove_cleanup_callback(owner.cleanup)
    assert not monitor.remove_cleanup_callback(owner.cleanup)
    monitor.cleanup(force=True)
    assert owner.calls == 1


def test_owners_are_told_apart_by_identity_never_compared() -> None:
    """Whose == is ambiguous, as an array's, breaks a lookup by equality."""

    class Odd(Owner):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __call__ = Owner.cleanup

    monitor = monitor_of(Usage(1))
    one, two = Odd(), Odd()
    monitor.add_cleanup_callback(one.cleanup)
    monitor.add_cleanup_callback(two.cleanup)
    assert monitor.remove_cleanup_callback(one.cleanup)
    monitor.cleanup(force=True)
    assert (one.calls, two.calls) == (0, 1)
    monitor.add_cleanup_callback(one)
    monitor.add_cleanup_callback(two)
    assert monitor.remove_cleanup_callback(one)
    monitor.cleanup(force=True)
    assert (one.calls, two.calls) == (0, 3)


@pytest.mark.parametrize("callback", [None, 3, "cleanup"])
def test_what_cannot_be_called_is_refused(callback: Any) -> None:
    with pytest.raises(TypeError, match="must be a callable"):
        MemoryMonitor().add_cleanup_callback(callback)


def test_an_unknown_stage_is_refused_with_the_legal_ones() -> None:
    monitor = monitor_of(Usage(1))
    with pytest.raises(ValueError, match="'pools', 'buffers', 'files', got 'cache'"):
        monitor.add_cleanup_callback(print, stage="cache")
    assert monitor.get_statistics()["cleanup_callbacks"] == 0


def test_a_callback_may_ask_for_cleanup_add_and_remove() -> None:
    monitor = monitor_of(Usage(1))
    ran: list[str] = []

    def late() -> None:
        ran.append("late")

    def nested() -> None:
        ran.append("nested")
        assert monitor.cleanup(force=True) == 0
        monitor.add_cleanup_callback(late)
        monitor.remove_cleanup_callback(nested)

    monitor.add_cleanup_callback(nested)
    monitor.cleanup(force=True)
    monitor.cleanup(force=True)
    assert ran == ["nested", "late"]


def test_an_owner_that_dies_during_the_cleanup_is_skipped() -> None:
    monitor = monitor_of(Usage(1))
    owners = [Owner()]
    monitor.add_cleanup_callback(owners.clear)
    monitor.add_cleanup_callback(owners[0].cleanup)
    monitor.cleanup(force=True)
    assert monitor.get_statistics()["failed_callbacks"] == 0


def test_a_second_thread_does_not_clean_up_at_the_same_time(crew: Any) -> None:
    monitor = monitor_of(Usage(200), 100)
    inside, go_on = threading.Event(), threading.Event()
    calls = itertools.count(1)
    seen: list[int] = []

    def slow() -> None:
        seen.append(next(calls))
        inside.set()
        assert go_on.wait(100)

    monitor.add_cleanup_callback(slow)
    crew.start(monitor.cleanup)
    assert inside.wait(100)
    monitor._armed = True  # even if it were due again
    assert monitor.cleanup() == 0
    assert seen == [1]
    forced = crew.start(lambda: monitor.cleanup(force=True))
    crew.wait_until_asleep(forced)
    assert seen == [1]
    go_on.set()
    crew.join()
    assert seen == [1, 2]


def test_d23_callbacks_may_come_and_go_while_cleanups_run(crew: Any) -> None:
    monitor = monitor_of(Usage(1))
    ran: list[int] = []
    monitor.add_cleanup_callback(lambda: ran.append(1))
    barrier = threading.Barrier(3)

    def churn() -> None:
        barrier.wait(100)
        for _ in range(2000):
            owner = Owner()
            monitor.add_cleanup_callback(owner.cleanup)
            monitor.add_cleanup_callback(owner.cleanup, stage="pools")

    def clean() -> None:
        barrier.wait(100)
        for _ in range(300):
            for callback in monitor._callbacks.live():
                callback.call(logging.getLogger(), "test")

    for work in (churn, churn, clean):
        crew.start(work)
    crew.join()
    assert len(ran) == 300
    assert monitor.get_statistics()["cleanup_callbacks"] == 1


# ---- the thread ------------------------------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pcmring-memory-monitor"]


def ended(threads: Iterable[threading.Thread]) -> bool:
    """Whether all of them end in time."""
    deadline = time.monotonic() + 30
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


class Steps:
    """Readings that a test can wait for."""

    def __init__(self, mb: float = 1.0) -> None:
        self.mb = mb
        self.failure: Exception | None = None
        self._done = threading.Semaphore(0)

    def __call__(self) -> int:
        if threading.current_thread() in threads():
            self._done.release()
        if self.failure is not None:
            raise self.failure
        return int(self.mb * MB)

    def wait(self, readings: int = 1) -> None:
        for _ in range(readings):
            assert self._done.acquire(timeout=100)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Any:
    yield
    assert ended(threads())


def test_monitoring_cleans_up_without_being_asked() -> None:
    steps = Steps(200)
    monitor = monitor_of(steps, 100)
    cleaned = threading.Event()
    monitor.add_cleanup_callback(cleaned.set)
    monitor.start_monitoring(interval_seconds=3600)
    assert cleaned.wait(100)
    monitor.stop_monitoring()


def test_monitoring_goes_on_at_its_interval() -> None:
    steps = Steps()
    monitor = monitor_of(steps, 100)
    monitor.start_monitoring(interval_seconds=0.001)
    steps.wait(20)  # a decision and a sample each time
    monitor.stop_monitoring()
    assert len(monitor.get_history()) >= 9


def test_d23_stop_returns_within_50_ms_and_the_thread_is_gone(crew: Any) -> None:
    times = []
    for _ in range(20):
        steps = Steps()
        monitor = monitor_of(steps)
        monitor.start_monitoring(interval_seconds=3600)
        (thread,) = threads()
        steps.wait(2)
        crew.wait_until_asleep(thread)
        began = time.perf_counter()
        monitor.stop_monitoring()
        times.append(time.perf_counter() - began)
        assert ended([thread])  # a busy machine may have kept it longer than stop() waits
        assert not monitor.monitoring
    assert min(times) < 0.05, times


def test_d23_starting_twice_or_after_a_stop_leaves_one_thread() -> None:
    monitor = monitor_of(Steps())
    seen = set()
    for _ in range(100):
        for interval in (3600, 1800):
            monitor.start_monitoring(interval)
            seen.update(threads())
    last = monitor._thread
    assert ended(seen - {last})
    assert threads() == [last]
    assert monitor.get_statistics()["interval_seconds"] == 1800
    monitor.stop_monitoring()
    monitor.stop_monitoring()


def test_d23_a_thread_busy_in_a_callback_is_not_waited_for_and_ends_with_it() -> None:
    steps = Steps(200)
    monitor = monitor_of(steps, 100)
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go_on.wait(100)

    monitor.add_cleanup_callback(slow)
    monitor.start_monitoring(3600)
    assert inside.wait(100)
    (busy,) = threads()
    monitor.stop_monitoring()  # would hang here
    monitor.start_monitoring(7200)
    assert monitor._thread is not busy
    go_on.set()
    busy.join(100)
    assert not busy.is_alive()
    assert monitor.monitoring
    monitor.stop_monitoring()


def test_stop_works_from_inside_a_callback() -> None:
    monitor = monitor_of(Steps(200), 100)
    stopped = threading.Event()

    def stop() -> None:
        monitor.stop_monitoring()
        stopped.set()

    monitor.add_cleanup_callback(stop)
    monitor.start_monitoring(3600)
    thread = threads()
    assert stopped.wait(100)
    for one in thread:
        one.join(100)
        assert not one.is_alive()


def test_threads_that_start_and_stop_at_once_leave_one_state(crew: Any) -> None:
    monitor = monitor_of(Steps())
    barrier = threading.Barrier(4)

    def toggle() -> None:
        barrier.wait(100)
        for _ in range(100):
            monitor.start_monitoring(3600)
            monitor.stop_monitoring()

    for _ in range(4):
        crew.start(toggle)
    crew.join()
    monitor.stop_monitoring()
    for thread in threads():
        thread.join(100)
    assert not monitor.monitoring


def test_the_thread_survives_readings_that_fail() -> None:
    steps, cleaned = Steps(), threading.Event()
    monitor = monitor_of(steps, 100)
    monitor.add_cleanup_callback(cleaned.set)
    monitor.start_monitoring(0.001)
    steps.wait()
    steps.failure = MemoryUnreadable("for a while")
    while monitor.get_statistics()["failed_readings"] < 5:  # its own readings fail too, and count
        steps.wait()
    assert not cleaned.is_set()
    steps.failure = None
    steps.mb = 200
    assert cleaned.wait(100)
    monitor.stop_monitoring()


def test_a_forgotten_monitor_ends_with_its_thread() -> None:
    steps = Steps()
    monitor = monitor_of(steps)
    monitor.start_monitoring(3600)
    thread = threads()[0]
    steps.wait(2)
    alive = weakref.ref(monitor)
    del monitor
    thread.join(100)  # once it lets go of the monitor, which it holds only while it looks
    assert not thread.is_alive()
    assert alive() is None


def test_with_monitors_inside_the_block() -> None:
    with monitor_of(Steps()) as monitor:
        assert monitor.monitoring
        assert "monitoring=True" in repr(monitor)
    assert not monitor.monitoring
    monitor.start_monitoring(1800)
    with monitor:
        assert monitor.get_statistics()["interval_seconds"] == 1800
    assert not monitor.monitoring


@pytest.mark.parametrize("interval", [3600, 0.0001])
def test_the_interpreter_exits_while_monitoring(interval: float) -> None:
    program = """
import sys
from pcmring.memory_manager import MemoryMonitor
monitor = MemoryMonitor(1)
monitor.add_cleanup_callback(lambda: None)
monitor.start_monitoring(float(sys.argv[1]))
"""
    run(program, str(interval))  # which has a time limit


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_has_no_thread_and_can_start_its_own() -> None:
    """Forked from inside a cleanup: its lock is held by a thread the child does not have."""
    program = """
import os, threading
from pcmring.memory_manager import MemoryMonitor, StreamLease
monitor = MemoryMonitor(1)
inside, go_on = threading.Event(), threading.Event()
def slow():
    inside.set()
    go_on.wait(100)
monitor.add_cleanup_callback(slow)
lease = StreamLease()
monitor.start_monitoring(3600)
assert inside.wait(100)
pid = os.fork()
if pid == 0:
    monitor.remove_cleanup_callback(slow)
    assert not monitor.monitoring
    assert monitor.get_statistics()["streams"] == 0
    assert monitor.get_memory_usage() > 0
    monitor.cleanup(force=True)
    monitor.start_monitoring(3600)
    assert monitor.monitoring
    monitor.stop_monitoring()
    os._exit(7)
go_on.set()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert monitor.monitoring
monitor.stop_monitoring()
"""
    run("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + program)


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_tells_memory_by_kind() -> None:
    monitor = monitor_of(Usage(300), 512)
    monitor.add_source("tracked", lambda: 10 * MB)
    monitor.add_source("tracked", lambda: np.int64(5 * MB))  # type: ignore[arg-type, return-value]
    monitor.add_source("model", lambda: 100 * MB)
    before = time.time()
    sample = monitor.sample()
    assert sample[1:] == (300 * MB, 15 * MB, 0, 100 * MB, 185 * MB, 512 * MB)
    assert before <= sample.time <= time.time()
    assert monitor.get_history() == [sample]


def test_other_memory_is_never_negative() -> None:
    monitor = monitor_of(Usage(10), 512)
    monitor.add_source("pooled", lambda: 50 * MB)
    assert monitor.sample().other == 0


def test_the_history_is_bounded() -> None:
    monitor = monitor_of(Usage(10), 512)
    for _ in range(_monitor.HISTORY_LENGTH + 10):
        monitor.sample()
    assert len(monitor.get_history()) == _monitor.HISTORY_LENGTH


def test_a_source_that_raises_counts_as_0_and_is_logged_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([1, ZeroDivisionError(), ZeroDivisionError(), 2, ZeroDivisionError()])

    def source() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monitor = monitor_of(Usage(10), 512)
    monitor.add_source("tracked", source)
    assert [monitor.sample().tracked for _ in range(5)] == [1, 0, 0, 2, 0]
    assert len([record for record in caplog.records if record.exc_info]) == 2


@pytest.mark.parametrize("answer", [None, 1.5, "many"])
def test_a_source_that_returns_no_bytes_counts_as_0(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    monitor = monitor_of(Usage(10), 512)
    monitor.add_source("model", lambda: answer)
    assert [monitor.sample().model for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1


def test_sources_are_held_as_callbacks_are_and_can_be_removed() -> None:
    class Pool:
        def nbytes(self) -> int:
            return MB

    pool = Pool()
    monitor = monitor_of(Usage(10), 512)
    monitor.add_source("pooled", pool.nbytes)
    assert monitor.sample().pooled == MB
    assert monitor.remove_source(pool.nbytes)
    assert not monitor.remove_source(pool.nbytes)
    monitor.add_source("pooled", pool.nbytes)
    del pool
    assert monitor.sample().pooled == 0
    with pytest.raises(ValueError, match="'tracked', 'pooled', 'model', got 'audio'"):
        monitor.add_source("audio", lambda: 1)


def test_a_tracker_registers_itself_as_callback_and_source_and_goes_by_itself() -> None:
    monitor = monitor_of(Usage(200), 100)
    tracker = AudioBufferTracker(monitor)
    buffers = [np.zeros((16000, 1), dtype=np.float32) for _ in range(2)]
    for buffer in buffers:
        tracker.track_buffer(buffer, buffer.nbytes, on_evict=tracker.untrack_buffer)
    assert monitor.sample().tracked == 2 * 64000
    monitor.cleanup()
    assert monitor.sample().tracked == 0
    tracker.track_buffer(buffer, buffer.nbytes)
    del tracker
    gc.collect()
    assert monitor.sample().tracked == 0
    assert monitor.get_statistics()["cleanup_callbacks"] == 0


@pytest.mark.parametrize("package", ["audio", "pcmring"])
def test_the_seeds_snippets_of_monitor_and_resources_run(package: str, tmp_path: Path) -> None:
    program = """
from audio.memory_manager import MemoryMonitor

# Create monitor with 200MB threshold
monitor = MemoryMonitor(max_memory_mb=200)

# Get current memory usage
usage = monitor.get_memory_usage()  # Returns MB

# Check if memory usage is high
if monitor.is_memory_high():
    monitor.cleanup()

# Add cleanup callback
def my_cleanup():
    # Custom cleanup logic
    pass

monitor.add_cleanup_callback(my_cleanup)

# Start automatic monitoring
monitor.start_monitoring(interval_seconds=30.0)

from audio.memory_manager import ResourceManager

resource_mgr = ResourceManager(monitor)

# Add temporary file for cleanup
resource_mgr.add_temp_file("/tmp/audio_123.wav")

# Add cleanup callback
def cleanup_audio():
    # Clean up audio resources
    pass

resource_mgr.add_cleanup_callback(cleanup_audio)

# Get resource information
info = resource_mgr.get_resource_info()
"""
    program = program.replace("/tmp/audio_123.wav", str(tmp_path / "audio_123.wav")).replace(
        "audio.mem", f"{package}.mem"
    )
    run(program + "assert info['temp_files_count'] == 1 and info['memory_limit_mb'] == 200, info")
