"""Instructions of the hot calls, counted by callgrind: a guard against regressions that needs no quiet machine.

    python benchmarks/instructions.py            # count, and compare with the baseline
    python benchmarks/instructions.py --renew    # write the baseline anew

The exit code is 1 if a count is off by more than 5 %, either way, and 77 where none can be compared: without valgrind
and its headers, or with another compiler, C library or Python than the baseline's.

One process runs each call 100 times and 1,100 times; a thousandth of the difference, less that of an empty loop, is
what one call executes, all of it: the extension, what it calls of NumPy and Python, memcpy, and the interpreter's way
to the call. Does not show: caches, stalls, or time. memcpy of more than some KiB is one instruction a
byte to callgrind (rep movsb), so the calls here move less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from timeit import Timer
from typing import Any

import numpy as np
from peers.limits import compiled

import pcmring

HERE = Path(__file__).parent
BASELINE = HERE / "instructions.json"
TOLERANCE = 0.05  # of the baseline's count: a change that is worth its while, or its price, is more than that
FEW, MANY = 100, 1100
OFF_BY_MORE, CANNOT_COMPARE = 1, 77  # exit codes

Run = Callable[[int], object]

#: Kept alive while callgrind counts.
_kept: list[Any] = []


def _loop(statement: str, **names: object) -> Run:
    setup = "; ".join(["pass", *(f"{name} = {name}_" for name in names)])
    return Timer(statement, setup, globals={f"{name}_": value for name, value in names.items()}).timeit


def _callback(address: int, userdata: int, frames: int) -> Run:
    """PortAudio's call, from C."""
    driver = compiled("callback_driver")
    return lambda calls: driver.call(address, userdata, frames, calls)


def hot() -> dict[str, Run]:
    """Return what is guarded, each a function of the number of calls."""
    block, out = np.zeros(160, np.float32), np.zeros((160, 1), np.float32)
    own, through, latest = (pcmring.AudioBuffer(480_000) for _ in range(3))
    reader = through.reader()
    latest.write(np.zeros(16_000, np.float32))
    write = "write(block)"
    found = {
        "write 160": _loop(write, write=pcmring.AudioBuffer(480_000).write, block=block),
        "write 160, with a samplerate": _loop(
            write, write=pcmring.AudioBuffer(480_000, samplerate=16_000).write, block=block
        ),
        "write 480 x 2": _loop(
            write, write=pcmring.AudioBuffer(480_000, 2).write, block=np.zeros((480, 2), np.float32)
        ),
        "write 160, int16 to float32": _loop(
            write, write=pcmring.AudioBuffer(480_000).write, block=np.zeros(160, np.int16)
        ),
        "write and read_into 160": _loop(
            "write(block); read_into(out)", write=own.write, block=block, read_into=own.read_into, out=out
        ),
        "write and Reader.read_into 160": _loop(
            "write(block); read_into(out)", write=through.write, block=block, read_into=reader.read_into, out=out
        ),
        "get_latest 160 into an array": _loop("get(160, out)", get=latest.get_latest, out=out),
        "latest_view 16,000": _loop("view(16_000)", view=latest.latest_view),
    }
    for frames in (64, 160, 1024):
        capture = pcmring.CaptureCallback(pcmring.AudioBuffer(480_000))
        _kept.append(capture)
        found[f"capture callback {frames}"] = _callback(capture.address, capture.userdata, frames)
    return found


def python_callbacks() -> dict[str, Run]:
    """Return what sounddevice makes of a Python callback, by its own functions, without a device.

    Raises
    ------
    ImportError, OSError
        There is no sounddevice, or no PortAudio for it.
    """
    import sounddevice

    def callback(store: Callable[..., object]) -> Run:
        @sounddevice._ffi.callback("PaStreamCallback", error=sounddevice._lib.paAbort)  # type: ignore[untyped-decorator]
        def given_to_portaudio(input_: Any, _: Any, frames: int, time: Any, status: int, __: Any) -> int:
            data = sounddevice._array(sounddevice._buffer(input_, frames, 1, 4), 1, "float32")
            return sounddevice._wrap_callback(store, data, frames, time, status)  # type: ignore[no-any-return]

        _kept.append(given_to_portaudio)
        return _callback(int(sounddevice._ffi.cast("uintptr_t", given_to_portaudio)), 0, 160)

    blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    return {
        "Python callback 160, empty": callback(lambda data, frames, time, status: None),
        "Python callback 160, queue.put(copy)": callback(lambda data, frames, time, status: blocks.put(data.copy())),
    }


def _counted(what: str) -> None:
    """In the child, under callgrind."""
    switches, limit = compiled("callgrind"), compiled()
    runs = {"": _loop("pass")} | (hot() if what == "hot" else python_callbacks())
    if what == "hot":
        block = np.zeros(160, np.float32)
        runs["limit: write 160"] = _loop("write(block)", write=limit.Ring(480_000).write, block=block)
    warnings.simplefilter("ignore")  # sounddevice sets the shape of arrays
    switches.start()
    for name, run in runs.items():
        run(MANY)  # the interpreter specialises
        for calls in (FEW, MANY):
            switches.zero()
            run(calls)
            switches.dump(f"{name}|{calls}")


def environment() -> dict[str, str]:
    """Return what the counts depend on."""
    compiler = subprocess.run([*os.environ.get("CC", "cc").split(), "--version"], capture_output=True, text=True)
    return {
        "machine": platform.machine(),
        "python": f"{platform.python_version()}, {platform.python_compiler()}",
        "libc": " ".join(platform.libc_ver()),
        "compiler": compiler.stdout.splitlines()[0] if compiler.returncode == 0 else "none",
    }


def unavailable() -> str | None:
    """Return why nothing can be counted here, or None."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if not any(Path(folder, "valgrind/callgrind.h").exists() for folder in ("/usr/include", "/usr/local/include")):
        return "valgrind's headers are not installed"
    if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
        return "no C compiler is installed"
    return None


def count(what: str = "hot") -> dict[str, float]:
    """Return the instructions of one call of each scenario: of the "hot" ones, or of "python" callbacks.

    Raises
    ------
    OSError
        There is no valgrind, or no compiler.
    """
    if reason := unavailable():
        raise OSError(reason)
    with tempfile.TemporaryDirectory(prefix="pcmring-callgrind-") as name:
        folder = Path(name)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts"]
        paths = [str(HERE), str(Path(pcmring.__file__).parents[1])]
        environment_ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
        environment_.pop("LD_PRELOAD", None)
        done = subprocess.run(
            [*command, sys.executable, __file__, "--counted", what], capture_output=True, text=True, env=environment_
        )
        if done.returncode:
            raise RuntimeError(f"callgrind ended with {done.returncode}\n{done.stderr}")
        totals: dict[tuple[str, int], int] = {}
        for path in folder.glob("counts.*"):
            text = path.read_text()
            trigger = re.search(r"^desc: Trigger: Client Request: (.*)\|(\d+)$", text, re.MULTILINE)
            total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
            if trigger and total:
                totals[trigger[1], int(trigger[2])] = int(total[1])
    counts = {name: (totals[name, MANY] - few) / (MANY - FEW) for (name, calls), few in totals.items() if calls == FEW}
    loop = counts.pop("")
    return {name: counts[name] - loop * ("callback" not in name) for name in sorted(counts)}


def compare(found: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """Return a line for each count that is off by more than the tolerance, either way, or is not there."""
    lines = [f"{name}: in the baseline, not counted" for name in sorted(baseline.keys() - found.keys())]
    for name, now in found.items():
        before = baseline.get(name)
        if before is None:
            lines.append(f"{name}: {now:.0f}, not in the baseline")
        elif abs(now - before) > TOLERANCE * before:
            lines.append(f"{name}: {before:.0f} in the baseline, now {now:.0f} ({now / before - 1:+.0%})")
    return lines


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--renew", action="store_true", help=f"write {BASELINE.name}")
    options.add_argument("--counted", choices=("hot", "python"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.counted:
        _counted(given.counted)
        return 0
    here = environment()
    if reason := unavailable():
        print(reason)
        return CANNOT_COMPARE
    found = count()
    if given.renew:
        rounded = {name: round(value) for name, value in found.items()}
        BASELINE.write_text(json.dumps({"environment": here, "instructions": rounded}, indent=1) + "\n")
    baseline = json.loads(BASELINE.read_text())
    for name, value in found.items():
        before = baseline["instructions"].get(name)
        print(f"{name:40}{value:10.0f}{'' if before is None else f'  baseline {before:6}  {value / before - 1:+.1%}'}")
    if others := {what: value for what, value in baseline["environment"].items() if value != here[what]}:
        print(f"not to be compared: the baseline is for {others}, this is { ({what: here[what] for what in others}) }")
        return CANNOT_COMPARE
    off = compare(found, baseline["instructions"])
    for line in off:
        print(f"off by more than {TOLERANCE:.0%}: {line}")
    return OFF_BY_MORE if off else 0


if __name__ == "__main__":
    sys.exit(main())
