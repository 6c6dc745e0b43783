"""From the moment a frame is captured to the reader's hands: block 128, 48 kHz, idle and under load.

    python benchmarks/latency.py [--seconds 20]

A reader waits in read(128); when it returns, the clock less `time_of` the last frame it was given is the latency,
"capture to hands". It has in it: PortAudio's fetching of frames, which it does a period of the device's buffer at a
time (with the device latency "high" 512 frames, 10.7 ms, so that four blocks come at once; with "low" 128 frames) and
not in step with the blocks, so that half a period is spent even if nothing is ever late; its thread's wake-up and the
callback; and "callback to hands", which is shown by itself: the wake-up of the reader's thread, the GIL, one copy,
and, where the reader was late for the blocks before, the time the block waited for it. Not in it: the 2.67 ms that a
block's first frame waits for its last, converters and drivers (the microphone is a virtual one, which has a frame at
once), resampling. "callback to hands" is known of the blocks whose time stamp the ring keeps, every 15th or so.

The loads: two Python threads that never wait, so that the reader gets the GIL after switch intervals of 5 ms; a
busy process per core; both. Nothing here has real-time priority. What else the machine does is in the figures: see
its load in the first line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from setting import busy_threads, machine, use_virtual_microphones

from pcmring import AudioBuffer
from pcmring.devices import PortAudioSource

RATE = 48000
BLOCK = 128
CHUNK = 500  # blocks between two looks at the time stamps, 1.3 s: the ring keeps those of some seconds


@contextmanager
def busy_processes() -> Iterator[None]:
    program = "print(flush=True)\nwhile True: pass"
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.enter_context(process.stdout).readline()  # it runs
        yield


two_busy_threads = partial(busy_threads, 2)

LOADS = {
    "idle": (),
    "two busy threads": (two_busy_threads,),
    "a busy process per core": (busy_processes,),
    "both": (two_busy_threads, busy_processes),
}


@dataclass
class Found:
    """Seconds."""

    capture_to_hands: list[float] = field(default_factory=list)
    callback_to_hands: list[float] = field(default_factory=list)
    frames_lost: int = 0  # by the device: PortAudio's thread came too late
    clock: str = ""


def measure(seconds: float, latency: str) -> Found:
    found = Found()
    with (
        PortAudioSource(samplerate=RATE, block_frames=BLOCK, latency=latency) as source,
        AudioBuffer(10 * RATE, samplerate=RATE) as buffer,
    ):
        source.start(buffer)
        buffer.read(RATE, timeout=30)  # the time stamps settle
        while len(found.capture_to_hands) * BLOCK < seconds * RATE:
            returned: list[tuple[float, int]] = []
            with buffer.reader("now") as reader:
                reader.read(BLOCK, timeout=30)  # from now on it waits
                for _ in range(CHUNK):
                    frames = len(reader.read(BLOCK, timeout=30))
                    returned.append((time.monotonic(), reader.position))
                    assert frames == BLOCK, "no audio"
                assert reader.lost == 0, "the ring was too short"
            arrived_ns = {start + length: ns for start, length, _, ns in buffer._stamps()}
            found.callback_to_hands += [at - arrived_ns[end] * 1e-9 for at, end in returned if end in arrived_ns]
            found.capture_to_hands += [at - buffer.time_of(end - 1) for at, end in returned]
        found.clock = buffer.time_of(returned[-1][1]).clock
        source.stop()
        found.frames_lost = buffer.statistics().frames_lost["device_overflow"]
    return found


def milliseconds(seconds: list[float]) -> str:
    return " | ".join(f"{1000 * value:.2f}" for value in np.percentile(seconds, (50, 99, 100)))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=20, help="of each row")
    given = options.parse_args()
    print(machine("sounddevice"))
    print(f"block {BLOCK}, {RATE} Hz, {given.seconds:g} s a row; milliseconds\n")
    titles = "capture to hands: p50 | p99 | max | callback to hands: p50 | p99 | max"
    print(f"| device latency | load | {titles} | clock | lost |")
    print("|---|---|--:|--:|--:|--:|--:|--:|---|--:|")
    with tempfile.TemporaryDirectory(prefix="pcmring-latency-") as folder:
        use_virtual_microphones(Path(folder), {"default": {"rate": RATE}})
        for latency, (name, loads) in product(("high", "low"), LOADS.items()):
            with ExitStack() as stack:
                for load in loads:
                    stack.enter_context(load())
                found = measure(given.seconds, latency)
            cells = [latency, name, milliseconds(found.capture_to_hands), milliseconds(found.callback_to_hands)]
            print(f"| {' | '.join(cells)} | {found.clock} | {found.frames_lost:,} |", flush=True)
    print("\nlost: frames the device's buffer had no room for, since PortAudio's thread came too late")
    return 0


if __name__ == "__main__":
    sys.exit(main())
