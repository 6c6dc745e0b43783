"""``pcmring demo``: recorded speech, live through the whole path, with the account at its end."""

from __future__ import annotations

import ctypes
import importlib.resources
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pcmring._late import MissingPackage, load
from pcmring._streaming import StreamingAudioManager
from pcmring.cli._common import DEVICE, EXIT_INTERRUPTED, fail, interruption, make_console, make_device_manager
from pcmring.cli._engine import MODEL, TimedTranscriber, load_engine, model_errors
from pcmring.cli._screen import CaptionScreen
from pcmring.cli._subtitles import RATE
from pcmring.cli.listen import SECONDS, stopped_by
from pcmring.pipeline import Caption, Captioner, ModelError, Transcriber

if TYPE_CHECKING:
    from pcmring._monitor import MemoryMonitor

__all__ = ["demo"]

#: Silence after each sentence: longer than what ends an utterance.
PAUSE_S = 0.9
#: With --hostile, how long the GIL is held at a time, and let go.
HOLD_S, LET_GO_S = 0.5, 0.1


def demo(
    device: Annotated[str | None, DEVICE] = None,
    model: Annotated[str, MODEL] = "tiny.en",
    hostile: Annotated[
        bool, typer.Option("--hostile", help="Another thread holds the GIL for half a second at a time.")
    ] = False,
    seconds: Annotated[float | None, SECONDS] = None,
) -> None:
    """Transcribe recorded speech at the pace at which it was spoken, and account for every frame and word.

    The speech comes with pcmring: five sentences that were read for LibriVox. It needs no sound card and no network;
    where Whisper is not installed PocketSphinx does. With --device it is your microphone, until Ctrl-C.

    \b
    Examples:
      pcmring demo
      pcmring demo --hostile
      pcmring demo --device "USB microphone"

    \b
    Exit codes: 0 all was accounted for, 1 failed, 2 wrong usage, 130 interrupted.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    console = make_console()
    in_a_hurry = threading.Event()
    with tempfile.TemporaryDirectory(prefix="pcmring-demo-") as folder:
        spoken = "" if device is not None else _speech(Path(folder) / "speech.wav")
        devices = make_device_manager(device or str(Path(folder) / "speech.wav"))
        devices.config.sample_rate, devices.config.channels = RATE, 1
        console.print(f"loading {model} …")
        engine, monitor = _engine(model, console)
        with StreamingAudioManager(devices, monitor) as manager, interruption(in_a_hurry) as interrupted:
            run = _Run(manager, TimedTranscriber(engine), console)
            with _held_gil() if hostile else nullcontext():
                run.listen(interrupted, seconds, in_a_hurry)
            # the words of what was not played to its end are not known
            is_whole = run.report(spoken if manager.state == "finished" else "", hostile)
            if interrupted.is_set():
                raise typer.Exit(EXIT_INTERRUPTED)
            if not is_whole:
                fail("the account does not add up: this is a defect of pcmring, please report it")


def _engine(model: str, console: Console) -> tuple[Transcriber, MemoryMonitor]:
    try:
        return load_engine(model)
    except (MissingPackage, ModelError) as error:
        if model == "pocketsphinx":
            fail(str(error))
        console.print(f"{error}\nPocketSphinx takes its place", soft_wrap=True)
    with model_errors():
        return load_engine("pocketsphinx")


def _speech(path: Path) -> str:
    """Make one sound file of all sentences; return what is spoken in it."""
    soundfile = load("soundfile")
    clips = importlib.resources.files("pcmring.cli") / "speech"
    texts = json.loads((clips / "texts.json").read_text())
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as out:
        for name in texts:
            with (clips / name).open("rb") as file:
                out.write(soundfile.read(file, dtype="int16")[0])
            out.write(np.zeros(round(PAUSE_S * RATE), np.int16))
    return " ".join(texts.values())


@contextmanager
def _held_gil() -> Iterator[None]:
    """Another thread holds the GIL nearly all the time."""
    hold = ctypes.PyDLL(None).usleep
    over = threading.Event()

    def work() -> None:
        while not over.wait(LET_GO_S):
            hold(round(HOLD_S * 1e6))

    thread = threading.Thread(target=work, daemon=True, name="pcmring demo: hostile")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Taken(NamedTuple):
    """A caption, and when it was there, seconds of `time.monotonic`."""

    caption: Caption
    at_s: float

    @property
    def latency_s(self) -> float | None:
        """From the last word's capture."""
        if self.caption.time is None:
            return None
        return self.at_s - (self.caption.time + (self.caption.speech_stop - self.caption.start) / RATE)


class _Run:
    """One demonstration: what it took, and the account of it."""

    def __init__(self, manager: StreamingAudioManager, transcriber: TimedTranscriber, console: Console) -> None:
        self._manager = manager
        self._transcriber = transcriber
        self._console = console
        self._captioner: Captioner | None = None
        self._finals: list[_Taken] = []
        self._drafts: list[_Taken] = []

    def listen(self, interrupted: threading.Event, seconds: float | None, in_a_hurry: threading.Event) -> None:
        if not self._manager.start_recording():
            fail(f"recording cannot start: {self._manager.last_error}; 'pcmring doctor' looks for the cause")
        self._captioner = Captioner(self._manager.reader(0), self._transcriber)
        with (
            self._captioner,
            stopped_by(interrupted, seconds, in_a_hurry, self._manager, self._captioner),
            CaptionScreen(self._console, self._manager, self._captioner) as screen,
        ):
            for caption in self._captioner:
                taken = _Taken(caption, time.monotonic())
                (self._finals if caption.is_final else self._drafts).append(taken)
                screen.show(caption)

    def report(self, spoken: str, hostile: bool) -> bool:
        """Print the summary; return whether every frame is accounted for."""
        assert self._captioner is not None
        info = self._manager.get_buffer_info()
        heard, done = self._captioner.segmenter.statistics, self._captioner.statistics
        lost_before = sum(info["frames_lost"].values())
        delivered = heard.frames_in_utterances + heard.frames_in_silence + heard.frames_undecided
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("frames captured", f"{info['frames_written']} at {info['device_sample_rate']:.0f} Hz")
        table.add_row(
            "  at 16 kHz", f"{heard.position - heard.start} = {delivered} delivered + {heard.frames_lost} lost"
        )
        table.add_row("  never captured", f"{lost_before}")
        table.add_row(
            "frames of speech",
            f"{done.frames_in_utterances} = {done.frames_transcribed} transcribed + {done.frames_failed} failed + "
            f"{done.frames_lost} too late + {done.frames_waiting} waiting",
        )
        found = " ".join(taken.caption.text for taken in self._finals if taken.caption.text)
        table.add_row("words", _words(spoken, found))
        table.add_row("end of speech to its caption", _percentiles(self._finals))
        table.add_row("speech to its draft", _percentiles(self._drafts))
        calls = [call for call in self._transcriber.calls if not call.is_draft]
        if calls:
            busy_s = sum(call.ended_s - call.began_s for call in calls)
            table.add_row("engine", f"{busy_s / sum(call.audio_s for call in calls):.3f} of real time, without drafts")
        usage, limit = info["memory_usage_mb"], self._manager.memory_monitor.max_memory_mb
        table.add_row("memory", f"{usage:.0f} of {limit:.0f} MB")
        if hostile:
            table.add_row("the GIL", f"was held for {HOLD_S:g} s at a time, with pauses of {LET_GO_S:g} s")
        self._console.print()
        self._console.print(table)
        return heard.position - heard.start == delivered + heard.frames_lost and (
            done.frames_in_utterances
            == done.frames_transcribed + done.frames_failed + done.frames_lost + done.frames_waiting
        )


def _words(spoken: str, found: str) -> str:
    count = f"{len(found.split())}"
    if not spoken:
        return count
    jiwer = load("jiwer")
    normalised = jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.SubstituteRegexes({r"mr\.": "mister", "-": " "}),
            jiwer.RemovePunctuation(),
            jiwer.RemoveMultipleSpaces(),
            jiwer.Strip(),
        ]
    )
    rate = jiwer.wer(normalised(spoken), normalised(found))
    return f"{count}, word error rate {rate:.1%} of the {len(spoken.split())} spoken"


def _percentiles(taken: list[_Taken]) -> str:
    latencies = [one.latency_s for one in taken if one.latency_s is not None]
    if not latencies:
        return "none"
    p50, p99 = np.percentile(latencies, (50, 99))
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, of {len(latencies)}"
