"""The settings of audio capture, checked at every assignment, and the file they are kept in."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pcmring._late import load
from pcmring._sources import number as to_number

__all__ = ["MAX_BUFFER_SIZE_SECONDS", "MIN_BUFFER_SIZE_SECONDS", "AudioConfig"]

MAX_BUFFER_SIZE_SECONDS = 30
MIN_BUFFER_SIZE_SECONDS = 1

#: Hertz. From telephony's lowest to what the fastest converters do.
SAMPLE_RATES = (1000, 768000)


def _whole(value: object, what: str) -> int:
    number = to_number(value, what)
    if not number.is_integer():  # nor is infinity
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return int(number)


def _between(number: float, least: float, most: float, what: str) -> None:
    if not least <= number <= most:
        raise ValueError(f"{what} must be {least} to {most}, got {number:g}")


def _sample_rate(value: object) -> int:
    number = _whole(value, "sample_rate")
    _between(number, *SAMPLE_RATES, "sample_rate")
    return number


def _channels(value: object) -> int:
    number = _whole(value, "channels")
    _between(number, 1, 64, "channels")
    return number


def _buffer_size_seconds(value: object) -> float:
    number = to_number(value, "buffer_size_seconds")
    _between(number, MIN_BUFFER_SIZE_SECONDS, MAX_BUFFER_SIZE_SECONDS, "buffer_size_seconds")
    return int(number) if number.is_integer() else number


def _block_frames(value: object) -> int:
    number = _whole(value, "block_frames")
    _between(number, 0, 65536, "block_frames")
    return number


def _latency(value: object) -> str | float:
    if isinstance(value, str):
        if value not in ("low", "high"):
            raise ValueError(f"latency must be 'low', 'high' or seconds, got {value!r}")
        return value
    number = to_number(value, "latency")
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"latency must be 'low', 'high' or more than 0 seconds, got {value!r}")
    return number


def _device(value: object) -> int | str | None:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"device must be None, an id, a name or a path, got {value!r}")
    number = int(value.__index__())
    if number < 0:
        raise ValueError(f"device must be an id of 0 or more, got {number}")
    return number


_CHECKS = {
    "sample_rate": _sample_rate,
    "channels": _channels,
    "buffer_size_seconds": _buffer_size_seconds,
    "block_frames": _block_frames,
    "latency": _latency,
    "device": _device,
}


@dataclass
class AudioConfig:
    """Settings of audio capture. Every assignment is checked; a wrong one raises and changes nothing.

    Attributes
    ----------
    sample_rate : int
        Hertz, of the audio the program is given. The device may run at another rate.
    channels : int
        Of the audio the program is given, 1 to 64.
    buffer_size_seconds : float
        `MIN_BUFFER_SIZE_SECONDS` to `MAX_BUFFER_SIZE_SECONDS`.
    block_frames : int
        Frames a device delivers at a time, at `sample_rate`; 0 leaves it to the system.
    latency : {"high", "low"} or float
        What the device's own buffer is made for, in seconds.
    device : None, int or str
        The default device; an id; a device's name; a sound file's path; "tone", "noise" or "silence". Ids may
        change when devices come and go, so settings that are kept should have a name.
    """

    sample_rate: int = 16000
    channels: int = 1
    buffer_size_seconds: float = 5
    block_frames: int = 512
    latency: str | float = "high"
    device: int | str | None = None

    def __setattr__(self, name: str, value: object) -> None:
        check = _CHECKS.get(name)
        if check is None:
            raise AttributeError(f"AudioConfig has no setting {name!r}; there is {', '.join(_CHECKS)}")
        object.__setattr__(self, name, check(value))

    @staticmethod
    def default_path() -> Path:
        """Return where `save` writes: config.json in the platform's folder for settings.

        Raises
        ------
        MissingPackage
            platformdirs is not installed.
        """
        return Path(load("platformdirs").user_config_dir("pcmring", appauthor=False)) / "config.json"

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the settings as JSON, whole or not at all, and return where.

        Parameters
        ----------
        path : path-like, optional
            `default_path` if not given. Its folder is made.
        """
        target = self.default_path() if path is None else Path(path)
        if target.suffix.lower() == ".toml":
            raise ValueError(f"settings are written as JSON, TOML is only read; got {os.fspath(target)!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, indent=2) + "\n"
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):  # moved: a Ctrl-C came right then
                os.unlink(temporary)
            raise
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> AudioConfig:
        """Return settings read from a JSON or TOML file (by its suffix). What the file leaves out is the default.

        Parameters
        ----------
        path : path-like, optional
            If not given: `default_path`, or else config.toml beside it, or else the defaults.

        Raises
        ------
        FileNotFoundError
            `path` was given and is not there.
        ValueError
            The file is not JSON or TOML, has an unknown setting, or one with a wrong value; it says which.
        MissingPackage
            platformdirs is missing, or tomli for TOML before Python 3.11.
        """
        if path is None:
            standard = cls.default_path()
            found = [candidate for candidate in (standard, standard.with_suffix(".toml")) if candidate.exists()]
            if not found:
                return cls()
            source = found[0]
        else:
            source = Path(path)
        text = source.read_text(encoding="utf-8")
        try:
            settings = _parse_toml(text) if source.suffix.lower() == ".toml" else json.loads(text)
        except ValueError as error:  # json's and toml's own are ValueErrors
            raise ValueError(f"{source}: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{source}: a table of settings is needed, got {type(settings).__name__}")
        unknown = sorted(settings.keys() - _CHECKS.keys())
        if unknown:
            raise ValueError(f"{source}: unknown setting {', '.join(unknown)}; there is {', '.join(_CHECKS)}")
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error


def _parse_toml(text: str) -> Any:
    return load("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(text)
