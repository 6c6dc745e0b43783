"""``pcmring listen``: live captions."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcmring._encoders import check_format
from pcmring._file_manager import FileBasedAudioManager
from pcmring._sources import positive
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
from pcmring.cli._subtitles import RATE, Subtitles, as_json
from pcmring.pipeline import Captioner

if TYPE_CHECKING:
    from pcmring._resample import ResamplingReader

__all__ = ["SECONDS", "listen", "stopped_by"]


def _duration(seconds: float | None) -> float | None:
    with usage_errors("--seconds"):
        return None if seconds is None else min(positive(seconds, "N"), threading.TIMEOUT_MAX)


SECONDS: Any = typer.Option(metavar="N", callback=_duration, help="End after so long.")


def listen(
    device: Annotated[str | None, DEVICE] = None,
    model: Annotated[str, MODEL] = "tiny.en",
    language: Annotated[str | None, LANGUAGE] = None,
    seconds: Annotated[float | None, SECONDS] = None,
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
    devices.config.sample_rate, devices.config.channels = RATE, 1  # the engines', whatever the settings say
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
    console = make_console()
    in_a_hurry = threading.Event()
    with manager, interruption(in_a_hurry) as interrupted:
        if not manager.start_recording():
            fail(f"listening cannot start: {manager.last_error}; 'pcmring doctor' looks for the cause")
        _tell_of_losses(manager)
        failure: Exception | None = None
        try:
            with (
                Subtitles(srt, vtt) as subtitles,
                Captioner(_reader(manager), transcriber) as captioner,
                stopped_by(interrupted, seconds, in_a_hurry, manager, captioner),
                nullcontext() if json else CaptionScreen(console, manager, captioner) as screen,
            ):
                for caption in captioner:
                    subtitles.add(caption)
                    if screen is None:
                        console.out(as_json(caption), highlight=False)
                    else:
                        screen.show(caption)
                    failure = caption.error or failure
                    if console.quiet and not (save or srt or vtt):
                        break  # nobody reads, and nothing is kept
        finally:
            manager.stop_recording()
            if isinstance(manager, FileBasedAudioManager) and save is not None:
                save_recording(manager, save)
        if interrupted.is_set():
            raise typer.Exit(EXIT_INTERRUPTED)
        _fail_if_cut_short(manager, model, captioner, failure)


def _check_target(path: Path | None) -> None:
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        fail(f"there is no folder {folder}: mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        fail(f"no file can be made in {folder}: choose another folder")
    if os.path.lexists(path):
        fail(f"{path} is there already: choose another name")


def _fail_if_cut_short(
    manager: StreamingAudioManager, model: str, captioner: Captioner, failure: Exception | None
) -> None:
    if manager.state == "failed":
        fail(f"listening ended early: {manager.last_error}")
    if manager.get_buffer_info()["frames_written"] == 0:
        fail("no audio came: 'pcmring devices' lists what there is to listen to")
    if failure is not None:
        failed_s = captioner.statistics.frames_failed / RATE
        fail(f"{model} failed on {failed_s:.1f} s of speech, which have no captions: {failure}; try another --model")


def _tell_of_losses(manager: StreamingAudioManager) -> None:
    console = make_console(stderr=True)

    def lost(error: Exception) -> None:
        if manager.state == "recovering":  # else it is the end, and told there
            console.print(f"{error}: waiting for it to come back")

    manager.on_stream_error = lost
    manager.on_stream_recovered = lambda: console.print("the device is back, listening goes on")


def _reader(manager: StreamingAudioManager) -> ResamplingReader:
    try:
        return manager.reader(0)
    except RuntimeError:
        fail(f"no audio came: {manager.last_error or 'it was over at once'}")


@contextmanager
def stopped_by(
    interrupted: threading.Event,
    seconds: float | None,
    in_a_hurry: threading.Event,
    manager: StreamingAudioManager,
    captioner: Captioner,
) -> Iterator[None]:
    """Inside the block `interrupted`, or so many seconds, stop the recording; then `in_a_hurry` ends the captions."""

    def stop() -> None:
        interrupted.wait(seconds)
        manager.stop_recording()
        if captioner.statistics.frames_waiting:
            make_console(stderr=True).print("transcribing the last words; Ctrl-C now does not wait for them")
        in_a_hurry.wait()
        captioner.close()

    thread = threading.Thread(target=stop, name="pcmring stop")
    thread.start()
    try:
        yield
    finally:
        was_interrupted = interrupted.is_set()
        in_a_hurry.set()
        interrupted.set()
        thread.join()
        if not was_interrupted:
            interrupted.clear()
