"""``pcmring record``: from a device into a sound file.

The file grows in the folder of temporary recordings, where `pcmring recover` finds it after a crash, and is moved to
its place at the end. Whatever ends a recording, `save_recording` comes next.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.filesize import decimal
from rich.live import Live

from pcmring._file_manager import FileBasedAudioManager
from pcmring._recording import RecordingError
from pcmring.cli._common import (
    CHANNELS,
    DEVICE,
    EXIT_INTERRUPTED,
    RATE,
    fail,
    interruption,
    make_console,
    make_device_manager,
    save_recording,
    usage_errors,
)
from pcmring.cli._screen import level_db, meter
from pcmring.errors import BufferClosed

__all__ = ["record"]

#: Seconds between two looks at the level on a terminal, and two lines where there is none.
LEVEL_S = 0.1
LINE_S = 10.0


def record(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to make: .wav or .flac.")],
    device: Annotated[str | None, DEVICE] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="N", help="Record so much. Until Ctrl-C, or the end of FILE, if not given.")
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="WAV|FLAC", help="By OUT's ending if not given.")] = None,
    subtype: Annotated[
        str | None, typer.Option(metavar="PCM_16|PCM_24|FLOAT", help="PCM_16 if not given. FLOAT in a WAV only.")
    ] = None,
    rate: Annotated[int | None, RATE] = None,
    channels: Annotated[int | None, CHANNELS] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
) -> None:
    """Record into a file, until Ctrl-C, SIGTERM or --seconds: what was captured until then is saved.

    16 kHz and one channel unless the settings or the options say otherwise. After a crash or a kill -9
    'pcmring recover' has the audio.

    \b
    Examples:
      pcmring record meeting.wav
      pcmring record notes.flac --device "USB microphone" --seconds 60
      pcmring record stereo.wav --rate 48000 --channels 2 --subtype PCM_24
      pcmring record test.wav --device tone --seconds 3

    \b
    Exit codes: 0 saved, 1 failed (it says what is safe, and where), 2 wrong usage,
    130 interrupted, and the audio is saved.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise typer.BadParameter(f"more than 0 seconds are needed, got {seconds:g}", param_hint="--seconds")
    devices = make_device_manager(device, rate, channels)
    with usage_errors("OUT, --format or --subtype"):
        manager = FileBasedAudioManager(
            devices, format=(format or out.suffix[1:]).upper(), subtype=None if subtype is None else subtype.upper()
        )
    _check_target(out, force)
    with manager, interruption() as interrupted:
        if not manager.start_recording():
            fail(f"recording cannot start: {manager.last_error}; 'pcmring doctor' looks for the cause")
        is_lost = False
        try:
            is_lost = _watch(manager, out, seconds, interrupted)
        finally:
            manager.stop_recording()
            save_recording(manager, out, overwrite=force)
        _report(manager, out)
        _fail_if_cut_short(manager, out, is_lost and not interrupted.is_set())
        if interrupted.is_set():
            raise typer.Exit(EXIT_INTERRUPTED)


def _check_target(out: Path, force: bool) -> None:
    """Refuse before the recording what would fail after it."""
    folder = out.absolute().parent
    if not folder.is_dir():
        fail(f"there is no folder {folder}: mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        fail(f"no file can be made in {folder}: choose another folder")
    if os.path.lexists(out):
        if not out.is_file():
            fail(f"{out} is no regular file: choose another name")
        if not force:
            fail(f"{out} is there already: choose another name, or --force to replace it")


# ---- while it runs ---------------------------------------------------------------------------------------------------


def _watch(manager: FileBasedAudioManager, out: Path, seconds: float | None, interrupted: threading.Event) -> bool:
    """Show how it goes until it shall end; return whether the device was away then."""
    console = make_console(stderr=True)
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    samplerate = manager.device_manager.config.sample_rate
    wanted = sys.maxsize if seconds is None else max(1, round(seconds * samplerate))
    began = time.monotonic()
    is_lost = False
    peak, line_at = 0.0, -math.inf
    try:
        console.print(f"recording {manager.get_buffer_info()['device']} into {out}; Ctrl-C ends and saves it")
        with live or nullcontext():
            reader = manager.reader(0, name="level meter")
            while not interrupted.is_set() and reader.position < wanted:
                audio = reader.read(min(round(LEVEL_S * samplerate), wanted - reader.position), timeout=2 * LEVEL_S)
                peak = max(peak, float(np.abs(audio).max(initial=0.0)))
                was_lost, is_lost = is_lost, manager.state == "recovering"
                if is_lost and seconds is not None and time.monotonic() - began >= seconds:
                    break
                if is_lost and not was_lost:
                    console.print(f"{manager.last_error}: waiting for it to come back; Ctrl-C saves what was captured")
                elif was_lost and not is_lost:
                    console.print("the device is back, the recording goes on")
                if live is not None:
                    live.update(meter(peak, _line(manager, out, reader.position / samplerate, peak)), refresh=True)
                elif time.monotonic() - line_at >= LINE_S:
                    console.print(_line(manager, out, reader.position / samplerate, peak))
                    line_at = time.monotonic()
                else:
                    continue
                peak = 0.0
    except (BufferClosed, RuntimeError):
        pass  # the source, or the disk, came to its end
    return is_lost


def _line(manager: FileBasedAudioManager, out: Path, seconds: float, peak: float) -> str:
    info = manager.get_buffer_info()
    ring = manager.buffer
    fill = 0.0 if ring is None else ring.fill / ring.capacity
    folders = {os.path.dirname(info["audio_file"]), out.absolute().parent}
    left = min(shutil.disk_usage(folder).free for folder in folders)
    return (
        f"{timedelta(seconds=int(seconds))}  {level_db(peak):5.1f} dBFS  fill {fill:.0%}  "
        f"lost {sum(info['frames_lost'].values())}  {decimal(os.path.getsize(info['audio_file']))}  "
        f"disk {decimal(left)} left"
    )


# ---- at its end ------------------------------------------------------------------------------------------------------


def _report(manager: FileBasedAudioManager, out: Path) -> None:
    info = manager.get_buffer_info()
    lost = {cause: frames for cause, frames in info["frames_lost"].items() if frames}
    causes = f" ({', '.join(f'{cause} {frames}' for cause, frames in lost.items())})" if lost else ""
    samplerate, channels = info["sample_rate"], info["channels"]
    console = make_console()
    console.print(
        f"{info['device']}: {info['frames_written']} frames captured at {info['device_sample_rate']:.0f} Hz, "
        f"{sum(lost.values())} lost{causes}",
        soft_wrap=True,
    )
    console.print(
        f"{out}: {info['file_frames']} frames ({info['file_frames'] / samplerate:.3f} s) at {samplerate} Hz, "
        f"{channels} channel{'s' if channels > 1 else ''}, {decimal(out.stat().st_size)}, "
        f"{info['file_gaps'] or 'no'} gap{'' if info['file_gaps'] == 1 else 's'}",
        soft_wrap=True,
    )
    for gap in manager.file_gaps():
        console.print(
            f"  {'' if gap.exact else 'about '}{gap.frames} frames missing before frame {gap.position} "
            f"({gap.position / samplerate:.3f} s): {gap.cause}",
            soft_wrap=True,
        )


def _fail_if_cut_short(manager: FileBasedAudioManager, out: Path, is_lost: bool) -> None:
    error = manager.last_error
    if isinstance(error, RecordingError):
        reason = f"{error.reason}: make room in {manager.resource_manager.directory}, where recordings grow"
    elif is_lost or manager.state == "failed":
        reason = f"{error}: see to the device"
    else:
        return
    fail(f"the recording ended early, what was captured is safe in {out}; {reason}, and record on")
