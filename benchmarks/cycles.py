"""What 1,000 start/stop cycles of StreamingAudioManager leave behind.

    python benchmarks/cycles.py [--cycles 1000]

Each cycle starts, waits for the first audio, reads, and stops; every other one with a manager of its own. Counted
are, of this process: threads, descriptors and mappings as the system has them, files in a folder that is all there
is for temporary files and recordings, and resident memory, after a garbage collection: before the first cycle, after
the first 100 (by then libraries and pools are loaded), and at the end. The exit code is 1 if there is more at the
end than after the first 100; of memory, 1 MB more, and of mappings, four.

glibc keeps stacks of threads that have ended, and opens further arenas whenever threads happen to allocate at once:
some mappings, now and then, up to a limit. So that one mapping that leaks is seen, the program runs itself with both
switched off.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

from setting import machine, use_virtual_microphones

from pcmring import AudioConfig, AudioDeviceManager, StreamingAudioManager

SETTLED = 100
NOISE = {"RSS KB": 1024, "mappings": 4}  # Python's own pools grow by one now and then
MICROPHONE = "a microphone of the benchmark"
DEADLINE_S = 30.0
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.pthread.stack_cache_size=0"}


def counts(folder: Path) -> dict[str, int]:
    gc.collect()
    mappings = Path("/proc/self/maps").read_bytes().count(b"\n")
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "fds": len(os.listdir("/proc/self/fd")),
        "mappings": mappings,
        "temp files": sum(path.is_file() for path in folder.rglob("*")),
        "RSS KB": resident_pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    }


def cycle(manager: StreamingAudioManager) -> None:
    assert manager.start_recording(), manager.last_error
    assert manager.wait_ready(DEADLINE_S), "no audio"
    manager.stop_recording()
    assert len(manager.get_latest_audio()) > 0


def run(device: str, cycles: int, folder: Path) -> list[dict[str, int]]:
    """Return the counts before, after the first 100 cycles, and after all."""
    devices = AudioDeviceManager(AudioConfig(block_frames=128))
    devices.select_device(device)
    found = [counts(folder)]
    with StreamingAudioManager(devices) as kept:
        for done in range(1, cycles + 1):
            if done % 2:
                cycle(kept)
            else:
                with StreamingAudioManager(devices) as manager:
                    cycle(manager)
            if done in (SETTLED, cycles):
                found.append(counts(folder))
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cycles", type=int, default=1000, help=f"of each device, more than {SETTLED}")
    cycles = options.parse_args().cycles
    if cycles <= SETTLED:
        options.error(f"--cycles must be more than {SETTLED}")
    if sys.platform != "linux":
        sys.exit("threads, descriptors and mappings are counted in Linux's /proc")
    if not os.environ.items() >= ALLOCATOR.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ALLOCATOR})
    print(machine("sounddevice"))
    has_grown = False
    with tempfile.TemporaryDirectory(prefix="pcmring-cycles-") as name:
        folder, own = Path(name), Path(name) / "own"
        own.mkdir()
        os.environ |= {"TMPDIR": str(own), "XDG_STATE_HOME": str(own), "XDG_RUNTIME_DIR": str(own)}
        use_virtual_microphones(folder, {MICROPHONE: {}, "default": {}})
        for device in (MICROPHONE, "tone"):
            begin = time.monotonic()
            before, settled, after = run(device, cycles, own)
            print(f"\n{device}, {cycles:,} cycles, {(time.monotonic() - begin) / cycles * 1000:.0f} ms each\n")
            print(f"| | before | after {SETTLED} | after {cycles:,} |\n|---|--:|--:|--:|")
            for what, most in settled.items():
                is_more = after[what] > most + NOISE.get(what, 0)
                has_grown |= is_more
                verdict = " **grew**" if is_more else ""
                print(f"| {what} | {before[what]:,} | {most:,} | {after[what]:,}{verdict} |", flush=True)
    return int(has_grown)


if __name__ == "__main__":
    sys.exit(main())
