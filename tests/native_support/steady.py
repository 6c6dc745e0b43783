"""What calls cost in steady state. Run by test_steady_state.py, in a process of its own with preload_counter.so.

Prints a JSON object. For each scenario: what 10,000 further calls asked of the allocator and of syscall(), and the
minor page faults of all its calls. A scenario is a function of the number of calls and makes no objects itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from itertools import repeat
from pathlib import Path

import numpy as np

from native_support import Foreign
from pcmring import AudioBuffer, CaptureCallback

KINDS = ("malloc", "calloc", "realloc", "memalign", "free", "futex", "other_syscalls", "faults")
FEW, FURTHER = 1000, 10_000
RUNS = (FEW, FEW, FEW + FURTHER, FEW + FURTHER)  # the first one warms up


def frames(n: int, channels: int = 1, dtype: str = "float32") -> np.ndarray:
    return np.full((n, channels), 1, dtype)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


# ---- scenarios -------------------------------------------------------------------------------------


def writing(block: np.ndarray, *shape, **options):
    write = AudioBuffer(16_000, *shape, **options).write

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            write(block)

    return run


def reading(block: np.ndarray, buffer: AudioBuffer, read_into, timeout: float = 0.0):
    """A write and a read each turn."""
    write, out = buffer.write, np.zeros_like(block)

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            write(block)
            read_into(out, timeout)

    return run


def reading_own(block: np.ndarray, *shape, **options):
    buffer = AudioBuffer(16_000, *shape, **options)
    return reading(block, buffer, buffer.read_into)


def reading_through_a_reader(block: np.ndarray, timeout: float = 0.0):
    buffer = AudioBuffer(16_000)
    return reading(block, buffer, buffer.reader().read_into, timeout)


def reading_nothing():
    read_into, out = AudioBuffer(16_000).reader().read_into, frames(160)

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            read_into(out)

    return run


def getting_latest():
    buffer, out = AudioBuffer(16_000), frames(1024)
    buffer.write(frames(2048))
    get_latest = buffer.get_latest

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            get_latest(1024, out=out)

    return run


def reading_a_range():
    buffer, out = AudioBuffer(16_000), frames(1024)
    buffer.write(frames(2048))
    read_range = buffer.read_range

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            read_range(1000, 2024, out=out)

    return run


def writing_a_neighbour():
    """An array that lies just behind a small ring's memory is nobody's business."""
    buffer = AudioBuffer(16_000)
    with buffer.view(0, 0) as view:  # of no frames, but where they would begin
        behind = view.array.ctypes.data + buffer.nbytes
    blocks = [frames(160) for _ in range(2000)]
    near = [block for block in blocks if behind <= block.ctypes.data < behind + buffer.nbytes]
    if not near:
        return None
    write, block = buffer.write, near[0]

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            write(block)

    return run


def writing_changing_sizes():
    write, blocks = AudioBuffer(16_000).write, (frames(480), frames(512))

    def run(calls: int) -> None:
        for _ in repeat(None, calls // 2):
            write(blocks[0])
            write(blocks[1])

    return run


def allocating():
    def run(calls: int) -> None:
        for size in repeat(1000, calls):
            bytes(size)

    return run


def closing():
    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            AudioBuffer(16).close()

    return run


SCENARIOS = {
    "write 160": lambda: writing(frames(160)),
    "write 1024": lambda: writing(frames(1024)),
    "write 160, 1-D": lambda: writing(frames(160)[:, 0]),
    "write 160 x 2": lambda: writing(frames(160, 2), 2),
    "write 1024 x 7 int16": lambda: writing(frames(1024, 7, "int16"), 7, "int16"),
    "write 160, with a samplerate": lambda: writing(frames(160), samplerate=16_000),
    "write 160 into a full ring, drop": lambda: writing(frames(160), policy="drop"),
    "write 160, int16 to float32": lambda: writing(frames(160, 1, "int16")),
    "write 1024 x 2, float64 to int16": lambda: writing(frames(1024, 2, "float64"), 2, "int16"),
    "write 160 from just behind the ring": writing_a_neighbour,
    "write + read_into 160": lambda: reading_own(frames(160)),
    "write + read_into 1024 x 2, guarded": lambda: reading_own(frames(1024, 2), 2, policy="drop"),
    "write + Reader.read_into 160": lambda: reading_through_a_reader(frames(160)),
    "write + Reader.read_into 1024, timeout": lambda: reading_through_a_reader(frames(1024), 0.5),
    "Reader.read_into of an empty ring": reading_nothing,
    "get_latest(out=)": getting_latest,
    "read_range(out=)": reading_a_range,
    "write 480 and 512 by turns": writing_changing_sizes,
    "control: bytes(1000)": allocating,
    "control: close()": closing,
}


def beyond(costs: list[list[int]]) -> dict[str, int]:
    """What FURTHER more calls add, given the costs of runs of RUNS calls.

    Page faults: of the better of the two long runs; a busy kernel moves a page now and then.
    """
    found = dict(zip(KINDS, (b - a for a, b in zip(costs[1], costs[2], strict=True)), strict=True))
    return found | {"faults": max(min(costs[2][-1], costs[3][-1]) - costs[1][-1], 0)}


def further(scenario) -> dict[str, int]:
    count = ctypes.CDLL(None).preload_counts
    before, after = (ctypes.c_int64 * 8)(), (ctypes.c_int64 * 8)()
    costs = []
    for calls in RUNS:
        faults_before = faults()
        count(before)
        scenario(calls)
        count(after)
        before[7], after[7] = faults_before, faults()
        costs.append([b - a for a, b in zip(before, after, strict=True)])
    return beyond(costs)


# ---- the capture callback, in a C thread ---------------------------------------------------------------

CALLBACKS = {
    "callback 160": (frames(160), {}),
    "callback 1024 x 2": (frames(1024, 2), {}),
    "callback 160, with a samplerate": (frames(160), {"samplerate": 16_000}),
    "callback 160, int16 to float32": (frames(160, 1, "int16"), {}),
    "callback 160 into a full ring, drop": (frames(160), {"policy": "drop"}),
}


def in_a_c_thread(foreign: Foreign, block: np.ndarray, options: dict) -> dict[str, int]:
    """The same in a thread of C. Each run has a new ring that holds all its frames: it is a first pass, too."""
    count = ctypes.CDLL(None).preload_counts
    costs = []
    for calls in RUNS:
        found = (ctypes.c_int64 * 8)()
        capacity = 16_000 if "policy" in options else calls * len(block)
        with AudioBuffer(capacity, block.shape[1], **options) as buffer:
            with CaptureCallback(buffer, block.dtype) as capture:
                data = block.ctypes.data
                result = foreign.library.foreign_steady(
                    capture.address, capture.userdata, data, len(block), calls, count, found
                )
            assert (result, buffer.frames_written, capture.callbacks) == (0, capacity, calls)
        costs.append(list(found))
    return beyond(costs)


# ---- the first pass over a new ring -----------------------------------------------------------------------

RINGS = {
    "plain, 6 KB": (1600, 1, "float32", False),
    "plain, 325 KB": (666, 61, "float64", False),  # pages and frames of 488 bytes seldom meet
    "mirrored, 64 KB": (16_384, 1, "float32", True),
    "mirrored, 30 s": (480_000, 1, "float32", True),
    "mirrored, 7 channels": (100_000, 7, "float32", True),
}


def first_pass(capacity: int, channels: int, dtype: str, mirrored: bool) -> dict[str, int]:
    """Page faults of the writes that fill a new ring once and a half, and of reading it across its end."""
    block, out = frames(160, channels, dtype), frames(capacity, channels, dtype)
    passes = []
    for buffer in [AudioBuffer(capacity, channels, dtype) for _ in range(3)]:  # the first one warms up
        assert buffer.mirrored == mirrored
        write, get_latest, moments = buffer.write, buffer.get_latest, [faults(), 0, 0, 0]
        moments[0] = faults()
        for _ in repeat(None, capacity * 3 // 2 // 160 + 1):
            write(block)
        moments[1] = faults()
        get_latest(capacity, out=out)
        moments[2] = faults()
        if mirrored:
            with buffer.latest_view(capacity) as view:
                np.copyto(out, view.array)
        moments[3] = faults()
        passes.append([moments[i + 1] - moments[i] for i in range(3)])
    names = ("writing", "copying out", "viewing")
    return dict(zip(names, map(min, passes[1], passes[2]), strict=True))


# ---- for strace --------------------------------------------------------------------------------------------


def between_marks() -> None:
    """Writes and reads between two system calls that can be found in a trace."""
    scenarios = [SCENARIOS[name]() for name in ("write 160", "write 1024", "write + Reader.read_into 160")]
    for scenario in scenarios:
        scenario(10)
    for mark in ("/pcmring-begin", "/pcmring-end"):
        os.path.exists(mark)
        for scenario in scenarios:
            scenario(1000)
    os.path.exists("/pcmring-after")
    AudioBuffer(16).close()


def main(folder: str) -> None:
    foreign = Foreign(Path(folder))
    scenarios = {name: make() for name, make in SCENARIOS.items()}
    found = {name: further(run) for name, run in scenarios.items() if run is not None}
    found |= {name: in_a_c_thread(foreign, *how) for name, how in CALLBACKS.items()}
    passes = {name: first_pass(*ring) for name, ring in RINGS.items()}
    json.dump({"calls": found, "first pass": passes}, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "--between-marks":
        between_marks()
    else:
        main(sys.argv[1])
