"""PortAudio's callback: what it executes, and what is lost while Python is busy."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import held_gil
import instructions
from harness import UNTIMED, Calls, Effort, Round, race
from peers import Unable
from setting import use_virtual_microphones


class Callback:
    name: str
    kind: str
    scenario: str
    source: str


class OurCallback(Callback):
    name, kind, scenario, source = "pcmring", "pcmring", "capture callback 160", "hot"


class Empty(Callback):
    name, kind = "sounddevice, a Python callback that does nothing", "peer"
    scenario, source = "Python callback 160, empty", "python"


class PutCopy(Callback):
    name, kind = "sounddevice, a Python callback: SimpleQueue.put(copy)", "idiom"
    scenario, source = "Python callback 160, queue.put(copy)", "python"


CALLBACKS = [OurCallback, Empty, PutCopy]
counted = functools.cache(instructions.count)


@race(CALLBACKS, ["10 ms"], unit="instructions", most_rounds=1, goal="at least 50 x fewer than a Python callback")
def bench_callback_instructions(contender: type[Callback], case: str, effort: Effort) -> Round:
    """Instructions of one call with 160 frames, counted by callgrind, called from C as PortAudio does. sounddevice's
    are of the functions that it wraps round a Python callback. They do not show waiting for the GIL, nor what a thread
    new to Python pays on each call. One count: it does not vary.
    """
    if effort is UNTIMED:
        (instructions.hot() if contender.source == "hot" else instructions.python_callbacks())[contender.scenario](10)
        return lambda: [1.0]
    count = counted(contender.source)[contender.scenario]
    return lambda: [count]


@race(CALLBACKS, ["10 ms"])
def bench_callback(contender: type[Callback], case: str, effort: Effort) -> Round:
    """The same in time, nobody else wanting the GIL."""
    run = (instructions.hot() if contender.source == "hot" else instructions.python_callbacks())[contender.scenario]
    calls = effort.count(1000, 10)
    whole = Calls(run, (calls,), effort)
    return lambda: [whole()[0] / calls]


@functools.cache
def lost(hold_s: float, seconds: float) -> dict[str, Any]:
    """One row of held_gil.py: all record at once, each from a virtual microphone of its own."""
    names = list(held_gil.CONTENDERS)
    row = {"rate": 16_000, "block": 1024, "hold_s": hold_s, "seconds": seconds, "latency": "high", "names": names}
    with tempfile.TemporaryDirectory(prefix="pcmring-bench-") as folder, patch.dict(os.environ):
        try:
            use_virtual_microphones(Path(folder), {f"mic-{name}": {"rate": 16_000} for name in names})
        except SystemExit as reason:
            raise Unable(str(reason)) from None
        command = [sys.executable, held_gil.__file__, "--row", json.dumps(row)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    if done.returncode:
        raise Unable(done.stderr.splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Recorder:
    name: str
    kind: str
    key: str


class OurRecorder(Recorder):
    name, kind, key = "pcmring", "pcmring", "pcmring"


class QueueRecorder(Recorder):
    name, kind, key = "sounddevice, Python callback into a queue (W4L)", "incumbent", "queue"


class RtMixerRecorder(Recorder):
    name, kind, key = "rtmixer", "peer", "rtmixer"


@race([OurRecorder, QueueRecorder, RtMixerRecorder], [0.5, 2.0], unit="% lost", most_rounds=1, goal="0")
def bench_frames_lost(contender: type[Recorder], case: float, effort: Effort) -> Round:
    """Frames lost of those there were, in percent, while another thread holds the GIL for this many seconds again and
    again; 16 kHz, blocks of 1,024, a virtual microphone. Once per run; held_gil.py has more rates, blocks and holds.
    """
    is_untimed = effort is UNTIMED
    count, of = lost(0.1 if is_untimed else case, 0.1 if is_untimed else effort.count(10, 3))[contender.key]
    return lambda: [100.0 * count / of]
