"""What the commands share: consoles, one-line errors, exit codes, signals, and the choice of a device."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from pcmring._file_manager import FileBasedAudioManager
from pcmring.devices import AudioConfig, AudioDeviceManager

__all__ = [
    "CHANNELS",
    "DEVICE",
    "EXIT_INTERRUPTED",
    "RATE",
    "fail",
    "interruption",
    "make_console",
    "make_device_manager",
    "reason_of",
    "save_recording",
    "usage_errors",
]

#: Beside 0, 1 (failed) and 2 (usage).
EXIT_INTERRUPTED = 130

#: Of a console that is no terminal: lines for programs are not wrapped.
PIPE_WIDTH = 1000

#: Options of several commands: ``Annotated[str | None, DEVICE]``, ``Annotated[int | None, RATE]`` …
DEVICE: Any = typer.Option(
    metavar="NAME|ID|FILE|tone",
    help="What to record from: a device's id, its name or a part of it, a sound file, or tone, noise, silence. "
    "The default input if not given.",
)
RATE: Any = typer.Option(metavar="HERTZ", help="Of the audio, whatever the device's own is.")
CHANNELS: Any = typer.Option(metavar="N", help="Of the audio. A mean makes one of several.")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: nothing is said any more, and the work is done all the same."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # for what Python flushes at its end

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal that was closed says, in the place of a broken pipe
                raise
            self.on_broken_pipe()


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that has colours and a terminal's width only where there is one, and prints in any encoding."""
    file = sys.stderr if stderr else sys.stdout
    if isinstance(file, TextIOWrapper):
        file.reconfigure(errors="backslashreplace")
    return _Console(stderr=stderr, width=None if file.isatty() else PIPE_WIDTH, highlight=False, markup=False)


def fail(message: str) -> NoReturn:
    """End the process with one line on stderr, and exit code 1."""
    raise SystemExit(f"pcmring: {message}")


def reason_of(error: Exception) -> str:
    """What happened, without Python's dress."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


@contextmanager
def usage_errors(option: str) -> Iterator[None]:
    """A ValueError in here means that `option` was given a wrong value: exit code 2."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


@contextmanager
def interruption(again: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set, instead of ending the process.

    The second of them sets `again`.
    """
    interrupted = threading.Event()

    def note(*_: object) -> None:
        if again is not None and interrupted.is_set():
            again.set()
        interrupted.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored: nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_device_manager(
    device: str | None = None, rate: int | None = None, channels: int | None = None
) -> AudioDeviceManager:
    """Return the saved settings' device manager, with what the command line says in their place."""
    try:
        config = AudioConfig.load()
    except ValueError as error:
        fail(f"the settings cannot be read: {error}")
    with usage_errors("--rate"):
        config.sample_rate = config.sample_rate if rate is None else rate
    with usage_errors("--channels"):
        config.channels = config.channels if channels is None else channels
    manager = AudioDeviceManager(config)
    if device is not None:
        try:
            manager.select_device(int(device) if device.isdecimal() else device)
        except ValueError as error:
            fail(str(error))
    return manager


def save_recording(manager: FileBasedAudioManager, out: Path, *, overwrite: bool = False) -> None:
    """Move the file to its place; where that fails leave it to `pcmring recover`, and say so."""
    info = manager.get_buffer_info()
    recorded = info["audio_file"]
    try:
        if info["file_frames"] == 0:
            manager.release_audio_file()
            fail(f"nothing was captured, so there is no {out}" + (f": {info['error']}" if info["error"] else ""))
        manager.save_as(out, overwrite=overwrite)
    except (OSError, RuntimeError) as error:
        manager.resource_manager.remove_temp_file(recorded)
        fail(
            f"{out} cannot be written: {reason_of(error)}; the audio is safe in {recorded}, and "
            "'pcmring recover --to FOLDER' saves it"
        )
