"""The programs of ``examples/``, as a reader would run them, on a sound file."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from native_support import python_environment
from speech_clips import TEXTS, clip, tiny_en, word_error_rate
from virtual_mic import need

need("soundfile", "platformdirs", "psutil")
import soundfile  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = "sense_and_sensibility_0930.flac"
RATE = 16000
DEADLINE_S = 60.0


def command(name: str, *arguments: object) -> dict:
    words = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return {"args": words, "env": python_environment(HF_HUB_OFFLINE="1"), "text": True, "stdout": subprocess.PIPE}


def lines_of(name: str, *arguments: object, typed: bytes = b"") -> list[str]:
    """What an example prints until it ends by itself, at a keyboard where this was typed."""
    keyboard, keys = os.pipe()
    os.write(keys, typed)
    try:
        done = subprocess.run(
            **command(name, *arguments), stderr=subprocess.PIPE, stdin=keyboard, timeout=DEADLINE_S, check=False
        )
    finally:
        os.close(keys)
        os.close(keyboard)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def speech(tmp_path) -> Path:
    """Half a second of silence, a sentence, and the pause that ends it."""
    soundfile.write(tmp_path / "speech.wav", np.pad(clip(SHORT), (RATE // 2, RATE * 7 // 10)), RATE)
    return tmp_path / "speech.wav"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_fits_on_a_page_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert f"python {path.name} " in ast.get_docstring(ast.parse(text))


def test_faster_whisper_is_fed_utterance_by_utterance(speech):
    (line,) = lines_of("faster_whisper_captions.py", tiny_en(), speech)
    start, _, text = line.partition(" s: ")
    assert float(start) == pytest.approx(0.4, abs=0.3)
    assert word_error_rate(TEXTS[SHORT], text) < 0.2


def test_the_recogniser_gets_what_was_before_the_wake_word(tmp_path):
    quiet, loud = np.full(RATE, 0.01, np.float32), np.full(RATE // 10, 0.5, np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([quiet, loud, quiet, quiet, quiet]), RATE)
    (line,) = lines_of("wake_word.py", tmp_path / "a.wav")
    frames, begin = map(int, re.fullmatch(r"awake: (\d+) frames from frame (\d+) on", line).groups())
    assert RATE // 4 <= RATE - begin <= RATE // 2, "it begins before the loud moment"
    assert frames == 8000 + 32000


def test_captions_a_file_and_a_level_meter_come_from_one_recording(speech, tmp_path):
    (line,) = lines_of("three_consumers.py", tiny_en(), tmp_path / "out.wav", speech)
    assert word_error_rate(TEXTS[SHORT], line) < 0.2
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav")[0], soundfile.read(speech)[0])


def test_audio_goes_through_a_web_socket_and_captions_come_back(speech):
    need("websockets")
    with subprocess.Popen(**command("websocket_server.py", tiny_en(), 0)) as server:
        try:
            port = server.stdout.readline().split()[-1]
            (line,) = lines_of("websocket_client.py", f"ws://localhost:{port}", speech)
        finally:
            server.kill()
    assert word_error_rate(TEXTS[SHORT], line) < 0.2


def test_dictation_ends_with_the_audio_and_types_the_words(speech):
    (line,) = lines_of("dictation.py", tiny_en(), speech)
    assert word_error_rate(TEXTS[SHORT], line) < 0.2


def test_dictation_ends_with_return():
    assert lines_of("dictation.py", tiny_en(), "silence", typed=b"\n") == []
