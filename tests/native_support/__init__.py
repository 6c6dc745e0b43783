"""C for the tests: finding a compiler, compiling, and calling PortAudio's kind of callback from foreign threads."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pcmring

HERE = Path(__file__).parent
PACKAGE_ROOT = Path(pcmring.__file__).parents[1]

#: Long enough for any step on a crowded machine; a test that meets it has failed.
DEADLINE_S = 30.0


#: Set by CI: what the tests need was installed there, so that a skip would hide a failure.
IS_REQUIRED = os.environ.get("PCMRING_REQUIRE_AUDIO") == "1"


def unavailable(reason: str) -> Any:
    """Skip the test for this reason, or fail it where everything is required."""
    if IS_REQUIRED:
        pytest.fail(f"PCMRING_REQUIRE_AUDIO=1, but {reason}", pytrace=False)
    return pytest.skip(reason, allow_module_level=True)


def python_environment(**extra: str) -> dict[str, str]:
    """Return the environment for child Pythons: they find the pcmring we test, under the same sanitizer."""
    environment = dict(os.environ)
    if "site-packages" not in PACKAGE_ROOT.parts:  # built in place
        paths = [str(PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment | extra


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the environment for compilers and programs that must not be watched: no sanitizer."""
    environment = python_environment()
    environment.pop("LD_PRELOAD", None)
    return environment | extra


def compiler(language: str = "c") -> list[str]:
    """Return the command of a C (or "c++") compiler, or skip the test."""
    if sys.platform == "win32":
        pytest.skip("the C parts of this test need POSIX threads")
    variable, names = {"c": ("CC", ["cc", "gcc", "clang"]), "c++": ("CXX", ["c++", "g++", "clang++"])}[language]
    for command in (os.environ.get(variable), sysconfig.get_config_var(variable), *names):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return unavailable(f"no {language} compiler is installed")


def run(command: list[object], **options: object) -> str:
    """Run a command; what it printed is the failure's message."""
    words = [str(word) for word in command]
    options = {"env": clean_environment(), "timeout": 120, **options}
    done = subprocess.run(words, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shared_library(source: str, folder: Path, *flags: str) -> Path:
    """Compile a C file of this folder into a shared library in `folder`."""
    library = folder / (Path(source).stem + ".so")
    include = f"-I{pcmring.get_include()}"
    command = [*compiler(), "-std=gnu11", "-O2", "-Wall", "-fPIC", "-shared", include, HERE / source]
    run([*command, "-o", library, "-lpthread", "-ldl", *flags])
    return library


class Times(ctypes.Structure):
    """PaStreamCallbackTimeInfo."""

    _fields_ = (
        ("input_adc", ctypes.c_double),
        ("current", ctypes.c_double),
        ("output_dac", ctypes.c_double),
    )


#: PaStreamCallback.
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.POINTER(Times),
    ctypes.c_ulong,
    ctypes.c_void_p,
)


class Foreign:
    """foreign.c: threads that Python has never heard of, calling a capture callback."""

    def __init__(self, folder: Path) -> None:
        path = shared_library("foreign.c", folder)
        self.library = ctypes.CDLL(str(path))
        self.with_the_gil = ctypes.PyDLL(str(path))
        pointer, u64, i64 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64
        signatures = {
            "foreign_call": (ctypes.c_int, [pointer, pointer, pointer, u64, pointer, ctypes.c_ulong]),
            "foreign_start": (pointer, [pointer, pointer, pointer, u64, u64, u64, i64]),
            "foreign_calls": (u64, [pointer]),
            "foreign_join": (ctypes.c_int, [pointer]),
            "foreign_hold": (u64, [pointer, i64, u64, i64]),
            "foreign_sleepers": (ctypes.c_uint32, [pointer]),
            "foreign_set_busy": (None, [pointer, ctypes.c_uint32]),
            "foreign_steady": (ctypes.c_int, [pointer, pointer, pointer, u64, u64, pointer, pointer]),
        }
        for name, (result, arguments) in signatures.items():
            for library in (self.library, self.with_the_gil):
                getattr(library, name).restype = result
                getattr(library, name).argtypes = arguments

    def call(self, capture, block, *, frames=None, adc_s=None, flags=0) -> int:
        """Call the callback once from a thread of its own; returns what PortAudio would be told."""
        frames = len(block) if frames is None else frames
        data = None if block is None else block.ctypes.data
        times = None if adc_s is None else ctypes.byref(Times(adc_s, adc_s + 0.01, 0.0))
        return self.library.foreign_call(capture.address, capture.userdata, data, frames, times, flags)

    def start(self, capture, audio: np.ndarray, block: int, period_s: float = 0.0) -> Stream:
        """Bring `audio` to the callback, `block` frames at a time and one block each `period_s`."""
        return Stream(self, capture, audio, block, period_s)

    def sleepers(self, capture) -> int:
        """Return how many threads sleep, or are about to, until frames come."""
        return self.library.foreign_sleepers(capture.userdata)

    def set_busy(self, capture, busy: bool) -> None:
        """Pretend that the callback is (not) at work at this moment."""
        self.library.foreign_set_busy(capture.userdata, int(busy))


class Stream:
    """A foreign thread at work. Leaving the context waits for its end."""

    def __init__(self, foreign: Foreign, capture, audio: np.ndarray, block: int, period_s: float) -> None:
        assert audio.flags.c_contiguous
        self._foreign, self._audio, self.result = foreign, audio, None
        frame_bytes = audio.nbytes // len(audio)
        self._handle = foreign.library.foreign_start(
            capture.address, capture.userdata, audio.ctypes.data, len(audio), frame_bytes, block, round(period_s * 1e9)
        )
        assert self._handle

    @property
    def calls(self) -> int:
        return self._foreign.library.foreign_calls(self._handle)

    def hold_the_gil(self, seconds: float, calls: int) -> int:
        """Keep the GIL this long and for this many callbacks; returns how many came meanwhile."""
        limit_ns = round(DEADLINE_S * 1e9)
        return self._foreign.with_the_gil.foreign_hold(self._handle, round(seconds * 1e9), calls, limit_ns)

    def join(self) -> int:
        """Return what the last call returned."""
        if self._handle is not None:
            self.result = self._foreign.library.foreign_join(self._handle)
            self._handle = None
        return self.result

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.join()
