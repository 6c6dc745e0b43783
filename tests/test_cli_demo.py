"""``pcmring demo`` as a process of its own. It takes the time that its speech takes."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from command import COMMAND, DEADLINE_S, PYTHON, Home, check_text, empty_home  # noqa: F401 - a fixture
from speech_clips import TEXTS, clip
from virtual_mic import need

need("soundfile", "psutil", "jiwer", "pocketsphinx")

#: What Whisper's own packages warn of is not ours.
DEMO = [*COMMAND[:3], "-W", "default", *COMMAND[5:], "demo"]
#: Of all sentences, with a pause after each.
SPEECH_FRAMES = sum(len(clip(name)) + round(0.9 * 16000) for name in TEXTS)

#: The demo with an engine that is quick, and hears the same in everything.
PLUG = """
from pcmring import MemoryMonitor
from pcmring.cli import demo, main
from pcmring.pipeline import Transcript

class Plug:
    max_audio_s = 30.0
    def transcribe(self, audio, *, is_draft=False):
        return Transcript("some words")

demo.load_engine = lambda model: (Plug(), MemoryMonitor())
main()
"""


class Shown(NamedTuple):
    """What a demo that ended by itself wrote."""

    captions: list[str]
    summary: dict[str, str]
    progress: list[str]


def shown(process: subprocess.Popen[str], code: int = 0) -> Shown:
    out, err = process.communicate(timeout=DEADLINE_S)
    check_text(out + err)
    assert process.returncode == code, err
    above, first, below = out.partition("frames captured")
    summary = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in (first + below).splitlines())
    lines = above.splitlines()
    captions = [line for line in lines if re.match(r"\d:\d\d:\d\d  ", line)]
    return Shown(captions, summary, [line for line in lines if line not in captions])


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One demo that runs in peace and one that does not. They take half a minute, while the first tests run."""
    home = Home(tmp_path_factory.mktemp("home"), HF_HUB_OFFLINE="1")
    with ExitStack() as stack:
        yield {
            option: stack.enter_context(home.started(*[option] if option else [], command=DEMO))
            for option in ("", "--hostile")
        }


@pytest.fixture(scope="module")
def demos(running) -> dict[str, Shown]:
    return {option: shown(process) for option, process in running.items()}


def test_ctrl_c_ends_with_the_summary_and_does_not_judge_words_that_were_cut(home):
    with home.started("demo", command=[*PYTHON, "-c", PLUG]) as process:
        assert process.stdout.readline() == "loading tiny.en …\n"
        assert process.stdout.readline() == "0:00:00  some words\n"
        process.send_signal(signal.SIGINT)
        summary = shown(process, 130).summary
    captured, _ = numbers(summary["frames captured"])
    heard, delivered, lost = numbers(summary["at 16 kHz"])
    assert captured == heard == delivered
    assert lost == 0
    assert 7 * 16000 < captured < SPEECH_FRAMES
    assert summary["words"] == "2"


def test_a_device_that_is_not_there_is_one_line_before_a_model_is_loaded(home):
    done = home.run("--device", "no such thing", command=DEMO)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no device 'no such thing'" in line
    assert done.stdout == ""


def test_without_whisper_pocketsphinx_takes_its_place(home):
    done = home.without("faster_whisper", "demo", "--seconds", 0.5)
    assert done.returncode == 0, done.stderr
    assert "pip install faster-whisper" in done.stdout
    assert "PocketSphinx takes its place" in done.stdout
    assert "frames captured" in done.stdout


@pytest.mark.parametrize("option", ["", "--hostile"])
def test_every_frame_of_the_speech_is_captured_and_delivered(demos, option):
    summary = demos[option].summary
    assert summary["frames captured"] == f"{SPEECH_FRAMES} at 16000 Hz"
    assert summary["at 16 kHz"] == f"{SPEECH_FRAMES} = {SPEECH_FRAMES} delivered + 0 lost"
    assert summary["never captured"] == "0"


@pytest.mark.parametrize("option", ["", "--hostile"])
def test_every_frame_of_speech_is_transcribed(demos, option):
    total, transcribed, failed, late, waiting = numbers(demos[option].summary["frames of speech"])
    assert (total, failed, late, waiting) == (transcribed, 0, 0, 0)
    assert total > 0.8 * SPEECH_FRAMES


@pytest.mark.parametrize("option", ["", "--hostile"])
def test_the_words_are_found_and_counted_against_those_spoken(demos, option):
    is_whisper = "PocketSphinx takes its place" not in demos[option].progress
    found, rate, spoken = re.fullmatch(
        r"(\d+), word error rate ([\d.]+)% of the (\d+) spoken", demos[option].summary["words"]
    ).groups()
    assert int(spoken) == len(" ".join(TEXTS.values()).split())
    assert float(rate) < (10 if is_whisper else 70)
    assert int(found) == sum(
        len(caption.partition("  ")[2].partition("  [")[0].split()) for caption in demos[option].captions
    )


def test_the_summary_has_latencies_of_every_final_caption_and_memory(demos):
    summary = demos[""].summary
    shown = re.fullmatch(r"p50 ([\d.]+) s, p99 ([\d.]+) s, of (\d+)", summary["end of speech to its caption"])
    p50, p99, count = map(float, shown.groups())
    assert 0.6 <= p50 <= p99, "the hang-over is part of it"
    assert count == len(demos[""].captions)
    used, limit = numbers(summary["memory"])
    assert 0 < used < limit


def test_what_was_done_to_it_is_in_the_hostile_summary(demos):
    assert demos["--hostile"].summary["the GIL"].startswith("was held for 0.5 s at a time")
    assert "the GIL" not in demos[""].summary
