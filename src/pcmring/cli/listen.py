"""``pcmring listen``: live captions."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from pcmring._encoders import check_format
from pcmring._file_manager import FileBasedAudioManager
from pcmring._streaming import StreamingAudioManager
from pcmring.cli._common import (
    DEVICE,
    EXIT_INTERRUPTED,
    fail,
    interruption,
    make_console,
    make_device_manager,
    save_recording,
    usage_errors,
)
from pcmring.cli._engine import LANGUAGE, MODEL, load_engine, model_errors
from pcmring.cli._screen import CaptionScreen
from pcmring.cli._subtitles import Subtitles, as_json
from pcmring.pipeline import Captioner

__all__ = ["listen", "stopped_by"]


def listen(
    device: Annotated[str | None, DEVICE] = None,
    model: Annotated[str, MODEL] = "tiny.en",
    language: Annotated[str | None, LANGUAGE] = None,
    seconds: Annotated[float | None, typer.Option(metavar="N", min=0.1, help="Listen so long.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="WAV|FLAC", help="Save the audio, too.")] = None,
    srt: Annotated[Path | None, typer.Option(metavar="FILE", help="Write SubRip subtitles.")] = None,
    vtt: Annotated[Path | None, typer.Option(metavar="FILE", help="Write WebVTT subtitles.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line, drafts too.")] = False,
) -> None:
    """Show live captions of a device, a sound file or a generator, until its end or Ctrl-C.

    An engine slower than the speaker is told of, and catches up: several utterances at once, without drafts. What it
    could not keep up with at all is said, with its length. A second Ctrl-C does not wait for the last words.

    \b
    Examples:
      pcmring listen
      pcmring listen --device "USB microphone" --model small --language de
      pcmring listen --save talk.wav --srt talk.srt
      pcmring listen --device talk.wav --json | jq -r 'select(.is_final).text'

    \b
    Exit codes: 0 listened to the end, 1 failed, 2 wrong usage, 130 interrupted with all that was captured saved.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    devices = make_device_manager(device)
    devices.config.sample_rate, devices.config.channels = 16000, 1  # the engines', whatever the settings say
    for path in (save, srt, vtt):
        _check_target(path)
    with usage_errors("--save"):
        subtype = None if save is None else check_format(save.suffix[1:].upper(), None)
    make_console(stderr=True).print(f"loading {model} …")
    with model_errors():
        transcriber, monitor = load_engine(model, language)
    manager = (
        StreamingAudioManager(devices, monitor)
        if save is None
        else FileBasedAudioManager(devices, monitor, format=save.suffix[1:].upper(), subtype=subtype)
    )
    with manager, Subtitles(srt, vtt) as subtitles, interruption(is_impatient=True) as interrupted:
        if not manager.start_recording():
            fail(f"listening cannot start: {manager.last_error}; 'pcmring doctor' looks for the cause")
        captioner = Captioner(manager.reader(0), transcriber)
        try:
            with captioner, stopped_by(manager, interrupted, seconds), suppress(KeyboardInterrupt):
                _print_json(captioner, subtitles) if json else _show(manager, captioner, subtitles)
        finally:
            manager.stop_recording()
            if save is not None and isinstance(manager, FileBasedAudioManager):
                save_recording(manager, save)
        if interrupted.is_set():
            raise typer.Exit(EXIT_INTERRUPTED)
        if manager.state == "failed":
            fail(f"listening ended early: {manager.last_error}")


def _check_target(path: Path | None) -> None:
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        fail(f"there is no folder {path.absolute().parent}: mkdir -p '{path.absolute().parent}'")
    if os.path.lexists(path):
        fail(f"{path} is there already: choose another name")


@contextmanager
def stopped_by(manager: StreamingAudioManager, interrupted: threading.Event, seconds: float | None) -> Iterator[None]:
    """Inside the block, the recording is stopped by the event, or after so many seconds: then the captions end, too."""

    def stop() -> None:
        interrupted.wait(seconds)
        manager.stop_recording()

    thread = threading.Thread(target=stop, name="pcmring stop")
    thread.start()
    try:
        yield
    finally:
        was_interrupted = interrupted.is_set()
        interrupted.set()
        thread.join()
        if not was_interrupted:
            interrupted.clear()


def _print_json(captioner: Captioner, subtitles: Subtitles) -> None:
    console = make_console()
    for caption in captioner:
        subtitles.add(caption)
        console.out(as_json(caption), highlight=False)


def _show(manager: StreamingAudioManager, captioner: Captioner, subtitles: Subtitles) -> None:
    with CaptionScreen(make_console(), manager, captioner) as screen:
        for caption in captioner:
            subtitles.add(caption)
            screen.show(caption)
