"""Devices for tests of the managers: audio that tells its place, at any pace, and a microphone one can unplug."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pcmring.devices import AudioConfig, AudioDeviceManager, FileSource, GeneratorSource, Source, SourceError
from virtual_mic import need

need("soundfile")
import soundfile  # noqa: E402


def ramp(first: int, frames: int) -> np.ndarray:
    """Frame k of a ramp is k + 1 in units of 2**-23: any stretch tells where it is from."""
    return ((np.arange(first, first + frames) + 1) / 2**23).astype(np.float32)[:, None]


def ramp_file(path: Path, frames: int, samplerate: int = 16000) -> Path:
    soundfile.write(path, ramp(0, frames), samplerate, subtype="FLOAT")
    return path


class Devices(AudioDeviceManager):
    """Gives the sources that `make` makes."""

    def __init__(self, make: Callable[[], Source], **settings) -> None:
        super().__init__(AudioConfig(**settings))
        self._make = make

    def create_source(self) -> Source:
        return self._make()


def playing(path: Path, speed: float = 20.0, **settings) -> Devices:
    """A sound file, faster than real time."""
    return Devices(lambda: FileSource(path, speed=speed, block_frames=320), **settings)


class Microphone(GeneratorSource):
    """A device whose frames are a ramp, counted on over unplugging and plugging in again."""

    def __init__(self, **settings) -> None:
        super().__init__("silence", block_frames=160, **settings)
        self.plugged = threading.Event()
        self.plugged.set()
        self.opened = 0

    @property
    def name(self) -> str:
        return "microphone"

    def open(self) -> None:
        self.opened += 1
        if not self.plugged.is_set():
            raise SourceError(self.name, "not plugged in")

    def _blocks(self) -> Iterator[np.ndarray]:
        return _plugged_blocks(self.plugged)


def _plugged_blocks(plugged: threading.Event) -> Iterator[np.ndarray]:
    first = 0
    while plugged.is_set():
        yield ramp(first, 160)
        first += 160
    raise OSError("unplugged")
