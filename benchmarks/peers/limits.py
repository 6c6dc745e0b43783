"""What nobody can beat: limit.c, compiled when a benchmark starts; and the floor, what Python with NumPy must spend."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from peers import Audio, Contender


@functools.cache
def compiled(source: str = "limit") -> Any:
    """Compile a C module of this folder with the interpreter's own compiler, and import it."""
    with tempfile.TemporaryDirectory(prefix="pcmring-limit-") as folder:
        target = Path(folder) / f"{source}{sysconfig.get_config_var('EXT_SUFFIX')}"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        includes = [f"-I{sysconfig.get_path('include')}", f"-I{np.get_include()}"]
        path = Path(__file__).parents[1] / f"{source}.c"
        subprocess.run([*compiler, "-O3", "-shared", "-fPIC", *includes, path, "-o", target, "-lpthread"], check=True)
        loader = importlib.machinery.ExtensionFileLoader(source, str(target))
        spec = importlib.util.spec_from_file_location(source, target, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    return module


class CMethod(Contender):
    name, kind, does = "limit: C method, one memcpy", "limit", frozenset({"write", "read_into"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        ring = compiled().Ring(capacity * channels)
        self.write, self.read_into = ring.write, ring.read_into
        self.drain = ring.rewind


class CView(Contender):
    name, kind, does = "limit: C method, ndarray over memory", "limit", frozenset({"view"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        ring = compiled().Ring(capacity)
        self.write, self.view = ring.write, ring.view


class CThreads(Contender):
    """Two threads without Python."""

    name, kind, does = "limit: two C threads", "limit", frozenset({"stream", "wake", "await"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self.stream, self.wake_pair = compiled().stream, compiled().wake_pair


class Slices(Contender):
    """A ring of NumPy slices with no lock and no check."""

    name, kind, does = "floor: NumPy slices", "floor", frozenset({"write", "newest", "windows"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._audio = np.zeros(capacity * channels, np.float32)
        self._at = 0

    def write(self, block: Audio) -> None:
        audio, at = self._audio, self._at
        end = at + len(block)
        if end <= len(audio):
            audio[at:end] = block
        else:
            room = len(audio) - at
            audio[at:] = block[:room]
            audio[: end - len(audio)] = block[room:]
        self._at = end % len(audio)

    def newest(self, frames: int) -> Audio:
        start = self._at - frames
        if start >= 0:
            return self._audio[start : self._at].copy()
        return np.concatenate((self._audio[start:], self._audio[: self._at]))


class Slice(Contender):
    name, kind, does = "floor: out[:] = array", "floor", frozenset({"read_into"})

    def __init__(self, capacity: int, channels: int = 1, block: int = 160) -> None:
        self._audio = np.zeros(block * channels, np.float32)

    def write(self, block: Audio) -> None:
        self._audio[:] = block

    def read_into(self, out: Audio) -> None:
        out[:] = self._audio
