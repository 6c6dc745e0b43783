#!/usr/bin/env python3
"""A guided run of the whole system: what is measured, what is cleaned up, and what a crash leaves behind.

Needs pcmring with its extras "audio" and "monitor"; no sound card. Everything happens in a folder that is deleted at
the end. Exit code 0 if every step went as it should.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pcmring import (
    AudioBuffer,
    AudioBufferManager,
    AudioBufferTracker,
    AudioDeviceManager,
    MemoryMonitor,
    ResourceManager,
    W4LMemoryManager,
)

MB = 1024 * 1024


failed: list[str] = []


def check(is_so: bool, what: str) -> None:
    """Print whether `what` is so, and remember it if not."""
    print(f"    {'yes' if is_so else 'NO '}  {what}")
    if not is_so:
        failed.append(what)


def tone() -> AudioDeviceManager:
    """Record from a generator."""
    devices = AudioDeviceManager()
    devices.select_device("tone")
    return devices


def watch_memory(folder: Path) -> None:
    """The monitor reads real memory, and acts once when a limit is crossed."""
    monitor = MemoryMonitor()
    before = monitor.get_memory_usage()
    print(f"    this process takes {before:.0f} MB")
    pool = [np.ones(128 * MB, dtype=np.uint8)]
    check(monitor.get_memory_usage() - before > 100, "128 MB more are seen")
    monitor.add_cleanup_callback(pool.clear, stage="pools")
    monitor.max_memory_mb = before + 64
    check(monitor.is_memory_high(), f"with a limit of {monitor.max_memory_mb:.0f} MB memory is high")
    freed = [monitor.cleanup() or 0 for _ in range(100)]
    check(monitor.get_statistics()["cleanups"] == 1, "asked 100 times, it cleans up once")
    check(freed[0] > 96 * MB, f"that gave {freed[0] / MB:.0f} MB back to the system")


def stop_monitoring(folder: Path) -> None:
    """The monitor's thread stops at once."""
    monitor = MemoryMonitor()
    monitor.start_monitoring(interval_seconds=3600)
    began = time.perf_counter()
    monitor.stop_monitoring()
    check(not monitor.monitoring, f"stopped after {(time.perf_counter() - began) * 1000:.1f} ms")


def count_buffers(folder: Path) -> None:
    """The tracker counts buffers that live, and only those."""
    tracker = AudioBufferTracker()
    buffer = AudioBuffer(16000 * 5, buffer_tracker=tracker)
    check(tracker.get_total_buffer_memory() == buffer.nbytes == 320_000, "5 s of audio are 320,000 bytes")
    del buffer
    gc.collect()
    check(tracker.get_buffer_info()["buffer_count"] == 0, "a dead buffer counts no more")


def spare_what_is_in_use(folder: Path) -> None:
    """Memory high while recording, from streaming into a file: nothing recorded is lost."""
    monitor = MemoryMonitor(max_memory_mb=1)  # high from the first moment on
    with AudioBufferManager(tone(), monitor) as manager:
        check(manager.start_recording(), "streaming")
        check(manager.wait_ready(10), "the first audio is there")
        monitor.cleanup(force=True)
        manager.set_capture_mode(False)
        monitor.cleanup(force=True)
        deadline = time.monotonic() + 30
        info = manager.get_buffer_info()
        while info["file_frames"] < 16000 and time.monotonic() < deadline:
            time.sleep(0.1)
            info = manager.get_buffer_info()
        monitor.cleanup(force=True)
        manager.stop_recording()
        path = manager.get_audio_file()
        check(path is not None and os.path.getsize(path) > 32000, f"1 s recorded into {os.path.basename(path or '-')}")
        check(info["frames_lost"]["dropped"] == 0, "nothing that was captured was dropped")
        monitor.cleanup(force=True)
        check(path is not None and os.path.exists(path), "the finished recording is still there")
        print(f"    memory {info['memory_usage_mb']:.0f} MB, fill {info['fill_level']:.0%}")
    check(monitor.get_statistics()["cleanups"] >= 4, f"{monitor.get_statistics()['cleanups']} cleanups")


def clean_temporary_files(folder: Path) -> None:
    """Temporary files: the released go, those in use stay."""
    resources = ResourceManager(directory=folder / "files")
    recording, finished, released = (resources.create_temp_file() for _ in range(3))
    finished.finish()
    released.finish()
    released.release()
    check(resources.cleanup() == 1, "one of three files was deleted")
    check(not os.path.exists(released.path), "the released one")
    check(
        os.path.exists(recording.path) and os.path.exists(finished.path), "not one being recorded, nor a finished one"
    )


def recover_after_kill(folder: Path) -> None:
    """A program is killed while it records: the next one finds the recording."""
    program = """
import sys, time
from pcmring import ResourceManager
file = ResourceManager(directory=sys.argv[1]).create_temp_file()
with open(file.path, "wb") as out:
    out.write(bytes(32000))
    out.flush()
    print(file.path, flush=True)
    time.sleep(600)
"""
    place = folder / "crash"
    process = subprocess.Popen([sys.executable, "-c", program, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path = process.stdout.readline().strip()
    check(ResourceManager(directory=place).recover() == [], "while it lives, its file is left alone")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = ResourceManager(directory=place).recover()
    check([file.path for file in found] == [path], f"found {os.path.basename(path)} of the killed process")
    check(found[0].size_bytes == 32000, "with all that it had written")


def plan_for_a_model(folder: Path) -> None:
    """A speech model's memory is measured round its load, and never makes audio pay."""
    manager = W4LMemoryManager()
    with manager.loading("tiny"):
        weights = np.ones(160 * MB, dtype=np.uint8)
    check(manager.measured, f"the stand-in for tiny takes {manager.model_memory_mb:.0f} MB")
    assert manager.memory_monitor is not None
    check(not manager.memory_monitor.is_memory_high(), f"the limit is {manager.memory_monitor.max_memory_mb:.0f} MB")
    seconds = manager.get_optimal_buffer_seconds()
    check(1 <= seconds <= 30, f"an audio buffer may be {seconds:.0f} s long")
    del weights


STEPS: list[Callable[[Path], None]] = [
    watch_memory,
    stop_monitoring,
    count_buffers,
    spare_what_is_in_use,
    clean_temporary_files,
    recover_after_kill,
    plan_for_a_model,
]


def main() -> int:
    """Run all steps and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_STATE_HOME"] = name  # recordings made here do not lie with the user's own
        for number, step in enumerate(STEPS, 1):
            print(f"{number}. {step.__doc__}")
            step(Path(name))
            print()
    print(f"not as it should be: {'; '.join(failed)}" if failed else "all went as it should")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
