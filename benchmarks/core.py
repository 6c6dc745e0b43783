"""write, read_into and the newest 30 s, beside the physical limit and peers, in one run.

    python benchmarks/core.py [--rounds 60]

Contenders take turns in short rounds, so that what else the machine does hits all of them alike. Each is checked
before it is timed. Figures are nanoseconds per call, the loop's own cost included; read the ratios. A peer that is
not installed is listed as such. Does not show: threads, wake-ups, the capture callback, or cost under load.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import queue
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

import pcmring

RATE = 16000
BLOCK = 160  # 10 ms
SECONDS = 30
CAPACITY = RATE * SECONDS
HOT = 16384  # a ring that stays in the cache

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def load_limit() -> Any:
    """Compile limit.c with the interpreter's own compiler and import it."""
    folder = tempfile.TemporaryDirectory(prefix="pcmring-limit-")
    target = Path(folder.name) / f"limit{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiler = os.environ.get("CC", "cc").split()
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{np.get_include()}"]
    source = str(Path(__file__).with_name("limit.c"))
    subprocess.run([*compiler, "-O3", "-shared", "-fPIC", *includes, source, "-o", str(target)], check=True)
    loader = importlib.machinery.ExtensionFileLoader("limit", str(target))
    spec = importlib.util.spec_from_file_location("limit", target, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    folder.cleanup()
    return module


class Peers:
    """What is installed, and what is not."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def get(self, module: str, package: str) -> Any:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:  # rtmixer without PortAudio raises OSError
            self.missing.append(f"{package} ({type(error).__name__}: {error})")
            return None


def writers(limit: Any, peers: Peers, capacity: int) -> dict[str, Call]:
    block = np.linspace(-1, 1, BLOCK, dtype=np.float32)
    ours = pcmring.AudioBuffer(capacity)
    ours.write(block)
    assert np.array_equal(ours.get_latest(BLOCK)[:, 0], block)
    calls: dict[str, Call] = {
        "limit: C method, one memcpy": (limit.Ring(capacity).write, (block,)),
        "pcmring": (ours.write, (block,)),
    }
    if numcircbuf := peers.get("numcircbuf", "numcircbuf"):
        peer = numcircbuf.OverwriteCircBuffer(capacity, "never", dtype=np.float32)
        peer.extend(block)
        assert np.array_equal(peer.view()[-BLOCK:], block)
        calls["numcircbuf extend"] = (peer.extend, (block,))
    if ring := peers.get("numpy_ringbuffer", "numpy-ringbuffer"):
        peer = ring.RingBuffer(capacity, np.float32)
        calls["numpy-ringbuffer extend"] = (peer.extend, (block,))
    fifo: queue.Queue[Any] = queue.Queue()

    def put_copy(block: Any) -> None:
        fifo.put(block.copy())
        fifo.get()

    calls["queue.Queue put(copy), get"] = (put_copy, (block,))
    return calls


def readers(limit: Any, peers: Peers, capacity: int) -> dict[str, Call]:
    """Each call writes a block and reads it back; the write alone is measured by `writers`."""
    block = np.linspace(-1, 1, BLOCK, dtype=np.float32)
    out = np.zeros_like(block)
    ours, bare = pcmring.AudioBuffer(capacity), limit.Ring(capacity)
    calls: dict[str, Call] = {}

    def both(write: Callable[..., Any], read: Callable[..., Any]) -> Callable[..., Any]:
        def call(_: Any) -> None:
            write(block)
            read(out)

        return call

    calls["limit: C method, one memcpy"] = (both(bare.write, bare.read_into), (None,))
    calls["pcmring"] = (both(ours.write, ours.read_into), (None,))
    if rtmixer := peers.get("rtmixer", "rtmixer (pa-ringbuffer)"):
        ring = rtmixer.RingBuffer(block.itemsize, 1 << (capacity - 1).bit_length())
        calls["pa-ringbuffer"] = (both(ring.write, ring.readinto), (None,))
    if numcircbuf := peers.get("numcircbuf", "numcircbuf"):
        peer = numcircbuf.BlockingCircBuffer(capacity, dtype=np.float32)
        calls["numcircbuf Blocking"] = (both(peer.write_extend, peer.read_into), (None,))
    for name, (call, args) in calls.items():
        out[:] = 0
        call(*args)
        assert np.array_equal(out, block), name
    return calls


def newest(limit: Any, peers: Peers) -> dict[str, Call]:
    """The newest 30 s as one array, lying across the end of memory."""
    audio = np.random.default_rng(1).random(CAPACITY + CAPACITY // 2, dtype=np.float32)
    ours = pcmring.AudioBuffer(CAPACITY)
    for at in range(0, len(audio), BLOCK):
        ours.write(audio[at : at + BLOCK])
    assert np.array_equal(ours.latest_view(CAPACITY).array[:, 0], audio[-CAPACITY:])
    assert not ours.latest_view(CAPACITY).copied

    def our_view(frames: int) -> Any:
        return ours.latest_view(frames).array

    calls: dict[str, Call] = {
        "limit: C method, ndarray over memory": (limit.Ring(CAPACITY).view, (CAPACITY,)),
        "pcmring latest_view": (ours.latest_view, (CAPACITY,)),
        "pcmring latest_view().array": (our_view, (CAPACITY,)),
        "pcmring get_latest (a copy)": (ours.get_latest, (CAPACITY,)),
        "numpy a[-n:].copy()": (audio[-CAPACITY:].copy, ()),
    }
    if arrays := peers.get("numpy_array_buffer", "numpy-array-buffer"):
        peer = arrays.RingBuffer(CAPACITY, 1, dtype=np.float32)
        for value in audio[-CAPACITY - 1000 :]:
            peer.append(value)
        assert np.array_equal(peer.get_array(), audio[-CAPACITY:])
        calls["numpy-array-buffer get_array"] = (peer.get_array, ())
    return calls


def measure(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Nanoseconds per call, one figure a round, contenders in turn."""
    numbers: dict[str, int] = {}
    for name, (call, args) in calls.items():
        number = 1
        while True:
            begin = time.perf_counter_ns()
            for _ in repeat(None, number):
                call(*args)
            if time.perf_counter_ns() - begin > 2_000_000:
                break
            number *= 2
        numbers[name] = number
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, args) in calls.items():
            number = numbers[name]
            begin = time.perf_counter_ns()
            for _ in repeat(None, number):
                call(*args)
            found[name].append((time.perf_counter_ns() - begin) / number)
    return found


def show(title: str, found: dict[str, list[float]], goal: str) -> None:
    base = next(name for name in found if name.startswith("limit"))
    print(f"\n{title}   (goal: {goal})")
    print(f"  {'':38}{'median ns':>11}{'p99 ns':>11}{'x limit':>9}")
    for name, times in found.items():
        ratio = statistics.median(t / b for t, b in zip(times, found[base], strict=True))
        print(f"  {name:38}{statistics.median(times):11.1f}{np.percentile(times, 99):11.1f}{ratio:9.2f}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=60)
    rounds = options.parse_args().rounds
    limit, peers = load_limit(), Peers()
    print(
        f"pcmring {pcmring.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rounds} rounds"
    )
    for title, capacity in (("30 s ring", CAPACITY), ("hot ring", HOT)):
        show(f"write, 10 ms, {title}", measure(writers(limit, peers, capacity), rounds), "1.25 x the limit")
    for title, capacity in (("30 s ring", CAPACITY), ("hot ring", HOT)):
        show(f"write + read_into, 10 ms, {title}", measure(readers(limit, peers, capacity), rounds), "1.5 x the limit")
    show("newest 30 s across the wrap", measure(newest(limit, peers), rounds), "2 x the limit, whatever the size")
    for line in dict.fromkeys(peers.missing):
        print(f"not measured: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
