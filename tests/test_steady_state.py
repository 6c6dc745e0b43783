"""Nothing allocates, nothing faults, nothing calls the system: counted, not read.

One child process runs native_support/steady.py with an LD_PRELOADed counter and PYTHONMALLOC=malloc, so that every
Python object and every C allocation of the calling thread is seen. What N+10,000 calls cost beyond N calls is exact.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from native_support import HERE, clean_environment, run, shared_library, unavailable

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc",
        reason="the counters are preloaded into glibc",
    ),
]

ALLOCATIONS = ("malloc", "calloc", "realloc", "memalign", "free")

#: Every call that promises to allocate nothing.
CALLS = [
    "write 160",
    "write 1024",
    "write 160, 1-D",
    "write 160 x 2",
    "write 1024 x 7 int16",
    "write 160, with a samplerate",
    "write 160 into a full ring, drop",
    "write 160 from just behind the ring",
    "write 160, int16 to float32",
    "write 1024 x 2, float64 to int16",
    "write + read_into 160",
    "write + read_into 1024 x 2, guarded",
    "write + Reader.read_into 160",
    "write + Reader.read_into 1024, timeout",
    "Reader.read_into of an empty ring",
    "get_latest(out=)",
    "read_range(out=)",
    "callback 160",
    "callback 1024 x 2",
    "callback 160, with a samplerate",
    "callback 160, int16 to float32",
    "callback 160 into a full ring, drop",
]

RINGS = ["plain, 6 KB", "plain, 325 KB", "mirrored, 64 KB", "mirrored, 30 s", "mirrored, 7 channels"]


def child_environment(**extra: str) -> dict[str, str]:
    """For a child that runs steady.py: it imports native_support from tests/."""
    environment = clean_environment(**extra)
    paths = filter(None, [str(HERE.parent), environment.get("PYTHONPATH")])
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("steady")
    extra = {"LD_PRELOAD": str(shared_library("preload_counter.c", folder))}
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):  # a free-threaded Python has its own allocator
        extra["PYTHONMALLOC"] = "malloc"
    script = HERE / "steady.py"
    printed = run([sys.executable, script, folder], env=child_environment(**extra))
    return json.loads(printed)


def test_the_counters_see_allocations_and_system_calls(measured):
    """Else the zeros below would mean nothing."""
    calls = measured["calls"]
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        allocated = calls["control: bytes(1000)"]
        assert allocated["malloc"] + allocated["calloc"] == allocated["free"] == 10_000
    assert calls["control: close()"]["memalign"] == 10_000
    assert calls["control: close()"]["futex"] == 10_000


@pytest.mark.parametrize("name", CALLS)
def test_steady_calls_ask_nothing_of_the_allocator(measured, name):
    """D31, for the capture callback."""
    if name not in measured["calls"]:
        pytest.skip("no array came to lie there")
    cost = measured["calls"][name]
    assert {kind: cost[kind] for kind in ALLOCATIONS if cost[kind]} == {}, "in 10,000 calls"


@pytest.mark.parametrize("name", CALLS)
def test_steady_calls_meet_no_page_fault_and_call_no_futex(measured, name):
    if name not in measured["calls"]:
        pytest.skip("no array came to lie there")
    cost = measured["calls"][name]
    others = ("futex", "other_syscalls", "faults")
    assert {kind: cost[kind] for kind in others if cost[kind]} == {}, "in 10,000 calls"


@pytest.mark.parametrize("name", RINGS)
def test_the_first_pass_over_a_ring_meets_no_page_fault(measured, name):
    """Memory was touched at construction, both halves of a mirrored ring, too."""
    cost = measured["first pass"][name]
    assert (cost["writing"], cost["copying out"], cost["viewing"]) == (0, 0, 0)


def test_steady_calls_make_no_system_call_at_all(tmp_path):
    """By strace: also those that do not go through syscall(), such as the GIL's, the allocator's or the clock's."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed; futex calls are counted above")
    trace = tmp_path / "trace"
    if subprocess.run(["strace", "-o", trace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    script = HERE / "steady.py"
    strace = ["strace", "-f", "-o", trace, sys.executable, script, "--between-marks"]
    run(strace, env=child_environment())
    lines = Path(trace).read_text().splitlines()
    begin, end, after = (
        next(at for at, line in enumerate(lines) if mark in line)
        for mark in ("/pcmring-begin", "/pcmring-end", "/pcmring-after")
    )
    assert lines[begin + 1 : end] == [], "in 4,000 calls"
    assert lines[end + 1 : after] == [], "in 4,000 calls"
    assert any(re.search("futex.*WAKE", line) for line in lines[after:])  # of close(): it would be seen
