"""``pcmring listen`` as a process of its own: real speech, real engines, ended in every way there is.

What an engine does wrong is done by a plug in its place, in the process of the command.
"""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from command import COMMAND, DEADLINE_S, PYTHON, Home, check_text, complaint, empty_home  # noqa: F401 - a fixture
from native_support import unavailable
from patience import until
from speech_clips import TEXTS, clip, tiny_en, word_error_rate, words
from virtual_mic import need, virtual_mics

need("soundfile", "platformdirs", "psutil")
import soundfile  # noqa: E402

RATE = 16000
SHORT = "sense_and_sensibility_0930.flac"
#: What Whisper's own packages warn of is not ours.
WHISPER = [*COMMAND[:3], "-W", "default", *COMMAND[5:]]

#: An engine in the place of the real one: it says that it was called, then does what the test wants.
PLUG = """
import sys, threading
from patience import until
from pcmring import MemoryMonitor
from pcmring.cli import listen, main
from pcmring.pipeline import Transcript

class Plug:
    max_audio_s = 30.0
    def transcribe(self, audio, *, is_draft=False):
        print("called", file=sys.stderr, flush=True)
        {what}

listen.load_engine = lambda model, language: (Plug(), MemoryMonitor())
main()
"""


def plug(what: str) -> list[str]:
    return [*PYTHON, "-c", PLUG.format(what=what)]


#: Quick, and it hears the same in everything.
WORDS = plug("return Transcript('a draft' if is_draft else 'the words')")


@pytest.fixture
def sphinx() -> list[str]:
    need("pocketsphinx")
    return ["--model", "pocketsphinx"]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    check_text(out + err)
    return process.returncode, out, err


def next_caption(process: subprocess.Popen[str]) -> dict:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def speech_file(path: Path, *, clips: int = 1, seconds: float = 3.3) -> Path:
    """The short clip, or so much of it, so many times, with a pause after each."""
    samples = np.append(clip(SHORT)[: round(seconds * RATE)], np.zeros(round(0.8 * RATE)))
    soundfile.write(path, np.tile(samples, clips), RATE)
    return path


def cues(srt: Path) -> list[tuple[str, str, str]]:
    """(start, stop, text) of each cue, numbered from 1."""
    blocks = srt.read_text(encoding="utf-8").split("\n\n")
    assert blocks.pop() == ""
    found = []
    for number, block in enumerate(blocks, 1):
        first, times, text = block.split("\n")
        assert first == str(number)
        start, stop = re.fullmatch(r"(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})", times).groups()
        assert start < stop
        found.append((start, stop, text))
    return found


# ---- to the end -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heard(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A folder with all files that there can be of one clip, and the JSON objects of its captions."""
    need("pocketsphinx")
    folder = tmp_path_factory.mktemp("heard")
    speech_file(folder / "speech.wav")
    done = Home(folder).run(
        *["listen", "--device", folder / "speech.wav", "--model", "pocketsphinx", "--json"],
        *["--srt", folder / "a.srt", "--vtt", folder / "a.vtt", "--save", folder / "a.wav"],
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "loading pocketsphinx …\n"
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def test_json_has_drafts_and_one_final_caption_with_the_places_of_its_words(heard):
    *drafts, final = heard[1]
    assert [draft["is_final"] for draft in drafts] == [False] * len(drafts)
    assert final["is_final"] is True
    assert word_error_rate(TEXTS[SHORT], final["text"]) < 0.5
    assert " ".join(word for word, _, _ in final["words"]) == final["text"]
    edges = [edge for _, *edges in final["words"] for edge in edges]
    assert edges == sorted(edges)
    assert 0 <= final["start_s"] <= edges[0] < edges[-1] <= final["stop_s"] <= 4.5
    assert (final["utterances"], final["frames_lost_before"], final["gaps"], final["error"]) == (1, 0, [], None)


def test_subtitles_have_the_final_captions(heard):
    folder, captions = heard
    (cue,) = cues(folder / "a.srt")
    assert cue[2] == captions[-1]["text"]
    assert cue[0] == "00:00:00,000"
    assert "00:00:02,500" < cue[1] < "00:00:04,000"
    times = f"{cue[0]} --> {cue[1]}".replace(",", ".")
    assert (folder / "a.vtt").read_text() == f"WEBVTT\n\n{times}\n{cue[2]}\n\n"


def test_saved_audio_is_what_was_heard_bit_for_bit(heard):
    folder, _ = heard
    np.testing.assert_array_equal(soundfile.read(folder / "a.wav")[0], soundfile.read(folder / "speech.wav")[0])
    assert list((folder / "state" / "pcmring" / "recordings").iterdir()) == [], "nothing temporary is left"


def test_whisper_hears_the_words_and_they_are_plain_lines_in_a_pipe(home, tmp_path):
    done = home.run("listen", "--device", speech_file(tmp_path / "a.wav"), "--model", tiny_en(), command=WHISPER)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("0:00:00  ")
    assert words(line.partition("  ")[2]) == words(TEXTS[SHORT])


def test_speech_from_a_microphone_is_heard_until_its_seconds_are_over(sphinx, tmp_path):
    mics = virtual_mics()
    pcm = np.concatenate([clip(SHORT), np.zeros(60 * RATE, np.float32)]) * 32767
    pcm.astype("<i2").tofile(tmp_path / "speech.raw")
    mics.config(
        tmp_path / "asound.conf", {"mic": {"rate": RATE, "channels": 1, "infile": str(tmp_path / "speech.raw")}}
    )
    home = Home(tmp_path, ALSA_CONFIG_PATH=str(tmp_path / "asound.conf"))
    done = home.run("listen", "--device", "mic", "--seconds", 4.5, "--save", tmp_path / "a.flac", *sphinx)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert word_error_rate(TEXTS[SHORT], line) < 0.5
    assert soundfile.info(str(tmp_path / "a.flac")).frames >= 4 * RATE


def test_a_microphone_that_is_lost_is_waited_for(tmp_path):
    control = tmp_path / "control"
    mics = virtual_mics()
    mics.config(tmp_path / "asound.conf", {"mic": {"rate": RATE, "channels": 1, "control": str(control)}})
    home = Home(tmp_path, ALSA_CONFIG_PATH=str(tmp_path / "asound.conf"))
    engine = plug("return Transcript('')")
    with home.started("listen", "--device", "mic", "--save", tmp_path / "a.wav", command=engine) as process:
        until(lambda: any(file.stat().st_size > 8000 for file in home.recordings.glob("recording-*")))
        control.write_text("dead")
        until(lambda: "waiting for it to come back" in process.stderr.readline())
        control.unlink()
        until(lambda: "the device is back" in process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 130
    assert soundfile.info(str(tmp_path / "a.wav")).frames > 4000


FORMATS = {
    "8 bit": {"subtype": "PCM_U8"},
    "µ-law": {"subtype": "ULAW"},
    "24 bit": {"subtype": "PCM_24"},
    "6 channels at 48 kHz": {"subtype": "FLOAT"},
    "truncated": {"subtype": "PCM_16"},
}


@pytest.fixture(scope="module")
def heard_formats(tmp_path_factory) -> dict[str, tuple[int, str, np.ndarray]]:
    """How it ended, what was shown and what was saved of the same speech in each format; all at the same time."""
    folder = tmp_path_factory.mktemp("formats")
    home = Home(folder)
    with ExitStack() as stack:
        processes = {}
        for name, options in FORMATS.items():
            path = folder / f"{name}.wav"
            samples, rate = clip(SHORT), RATE
            if "channels" in name:
                samples, rate = np.repeat(samples, 3)[:, None] * np.ones(6), 3 * RATE
            soundfile.write(path, samples, rate, **options)
            if name == "truncated":
                os.truncate(path, path.stat().st_size * 3 // 4 + 1)
            command = ["listen", "--device", path, "--save", folder / f"{name}.flac"]
            processes[name] = stack.enter_context(home.started(*command, command=WORDS))
        found = {name: ended(process) for name, process in processes.items()}
    return {name: (code, out, soundfile.read(folder / f"{name}.flac")[0]) for name, (code, out, _) in found.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_sound_file_is_heard(heard_formats, name):
    code, out, saved = heard_formats[name]
    assert (code, out) == (0, "0:00:00  the words\n")
    whole = clip(SHORT)
    assert len(saved) == pytest.approx(len(whole) * (0.75 if name == "truncated" else 1), abs=50)
    assert np.corrcoef(saved, whole[: len(saved)])[0, 1] > 0.98


# ---- ended before its end -------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_with_the_audio_saved_and_the_last_words_in_the_subtitles(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", clips=9)
    words = ["listen", "--device", device, "--json", "--save", tmp_path / "a.wav", "--srt", tmp_path / "a.srt"]
    with home.started(*words, command=WORDS) as process:
        captions = [next_caption(process)]
        while not captions[-1]["is_final"]:
            captions.append(next_caption(process))
        captions.append(next_caption(process))
        assert not captions[-1]["is_final"], "somebody speaks now"
        process.send_signal(signal.SIGINT)
        code, out, _ = ended(process)
    assert code == 130
    captions += map(json.loads, out.splitlines())
    first, last = [caption for caption in captions if caption["is_final"]]
    assert first["stop_s"] <= last["start_s"] < last["stop_s"], "what was being said is captioned"
    assert [text for _, _, text in cues(tmp_path / "a.srt")] == ["the words", "the words"]
    saved, spoken = soundfile.read(tmp_path / "a.wav")[0], soundfile.read(device)[0]
    assert last["stop_s"] * RATE == pytest.approx(len(saved), abs=1)
    np.testing.assert_array_equal(saved, spoken[: len(saved)])


def test_a_second_ctrl_c_does_not_wait_for_an_engine_that_hangs(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", clips=9)
    words = ["listen", "--device", device, "--save", tmp_path / "a.wav"]
    with home.started(*words, command=plug("threading.Event().wait()")) as process:
        until(lambda: process.stderr.readline() == "called\n")
        process.send_signal(signal.SIGINT)
        until(lambda: "Ctrl-C now does not wait" in process.stderr.readline())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert ended(process)[:2] == (130, "")
    assert soundfile.info(str(tmp_path / "a.wav")).frames > RATE


def test_after_kill_9_the_subtitles_have_what_was_final_and_the_audio_is_recovered(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", clips=9)
    files = ["--save", tmp_path / "a.wav", "--srt", tmp_path / "a.srt", "--vtt", tmp_path / "a.vtt"]
    with home.started("listen", "--device", device, *files, command=WORDS) as process:
        text = process.stdout.readline().rstrip().partition("  ")[2]
        process.kill()
        process.wait(DEADLINE_S)
    assert text == "the words"
    assert [cue[2] for cue in cues(tmp_path / "a.srt")] == [text]
    assert (tmp_path / "a.vtt").read_text().endswith(f"\n{text}\n\n")
    assert not (tmp_path / "a.wav").exists()
    assert home.run("recover", "--to", tmp_path).returncode == 0
    (saved,) = tmp_path.glob("recording-*.wav")
    samples, spoken = soundfile.read(saved)[0], soundfile.read(device)[0]
    assert len(samples) > 3 * RATE
    np.testing.assert_array_equal(samples, spoken[: len(samples)])


def test_a_pipe_that_is_closed_ends_it_where_nothing_is_kept(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", clips=90, seconds=1)
    with home.started("listen", "--device", device, command=plug("return Transcript('word')")) as process:
        process.stdout.close()
        assert (process.wait(DEADLINE_S), process.stderr.readlines()[-1]) == (0, "called\n")


def test_a_pipe_that_is_closed_costs_no_subtitles(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", clips=2, seconds=1)
    words = ["listen", "--device", device, "--srt", tmp_path / "a.srt"]
    with home.started(*words, command=plug("return Transcript('word')")) as process:
        process.stdout.close()
        assert (process.wait(DEADLINE_S), process.stderr.readlines()[-1]) == (0, "called\n")
    assert [text for _, _, text in cues(tmp_path / "a.srt")] == ["word", "word"]


# ---- engines and disks that fail ------------------------------------------------------------------------------------


def test_an_engine_that_raises_costs_its_words_only_and_is_exit_code_1(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", seconds=1.3)
    files = ["--save", tmp_path / "a.wav", "--srt", tmp_path / "a.srt"]
    done = home.run("listen", "--device", device, *files, command=plug("raise RuntimeError('boom')"))
    assert done.returncode == 1
    assert done.stdout == "0:00:00  [boom]\n"
    last = done.stderr.splitlines()[-1]
    assert re.search(r"tiny\.en failed on [12]\.\d s of speech", last)
    assert "boom; try another --model" in last
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav")[0], soundfile.read(device)[0])
    assert cues(tmp_path / "a.srt") == []


def test_a_disk_that_takes_no_more_subtitles_is_told_with_the_file(home, tmp_path):
    device = speech_file(tmp_path / "speech.wav", seconds=1.3)
    done = home.run(
        *["listen", "--device", device, "--srt", tmp_path / "a.srt", "--save", tmp_path / "a.wav"],
        command=plug("return Transcript('more than there is room for ' * 10_000)"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"pcmring: File too large: {tmp_path / 'a.srt'}"
    saved = soundfile.read(tmp_path / "a.wav")[0]
    assert len(saved) > RATE
    np.testing.assert_array_equal(saved, soundfile.read(device)[0][: len(saved)])


def test_captions_are_shown_in_any_encoding(tmp_path):
    home = Home(tmp_path, PYTHONIOENCODING="ascii")
    device = speech_file(tmp_path / "speech.wav", seconds=1.3)
    engine = plug("return Transcript('gr\\u00fc\\u00df <b> & 語')")
    done = home.run("listen", "--device", device, "--vtt", tmp_path / "a.vtt", command=engine)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0:00:00  gr\\xfc\\xdf <b> & \\u8a9e\n"
    assert "\ngrüß &lt;b&gt; &amp; 語\n" in (tmp_path / "a.vtt").read_text(encoding="utf-8")


# ---- refused at the door --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (["--seconds", 0], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--save", "a.mp3"], "--save"),
        (["--save", "a"], "--save"),
    ],
)
def test_a_wrong_value_is_exit_code_2_and_names_the_option(home, tmp_path, options, option):
    done = home.run("listen", "--device", "tone", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert option in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("option", ["--save", "--srt", "--vtt"])
def test_a_file_that_is_there_is_never_replaced(home, tmp_path, option):
    out = tmp_path / "mine.wav"
    out.write_text("mine")
    done = home.run("listen", "--device", "tone", option, out)
    assert done.returncode == 1
    assert complaint(done) == f"pcmring: {out} is there already: choose another name"
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("device", "srt", "expected"),
    [
        ("no such thing", "a.srt", "no device 'no such thing'"),
        ("text.txt", "a.srt", "not a sound file"),
        ("empty.wav", "a.srt", "no audio came"),
        ("tone", "missing/a.srt", "mkdir -p"),
    ],
)
def test_what_cannot_be_heard_is_one_line(home, tmp_path, device, srt, expected):
    (tmp_path / "text.txt").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.empty(0), RATE)
    device = str(tmp_path / device) if "." in device else device
    done = home.run("listen", "--device", device, "--srt", tmp_path / srt, command=plug("return Transcript('')"))
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize("model", ["/no/such/folder", "no such model", "corrupt", "incomplete", "small"])
def test_a_model_that_cannot_be_used_is_one_line_and_nothing_is_begun(tmp_path, model):
    need("faster_whisper")
    home = Home(tmp_path, HF_HUB_OFFLINE="1")
    if model in ("corrupt", "incomplete"):
        shutil.copytree(tiny_en(), tmp_path / model)
        if model == "corrupt":
            os.truncate(tmp_path / model / "model.bin", 1 << 20)
        else:
            (tmp_path / model / "tokenizer.json").unlink()
        model = str(tmp_path / model)
    done = home.run("listen", "--device", "tone", "--model", model, "--srt", tmp_path / "a.srt", command=WHISPER)
    assert done.returncode == 1
    loading, error = done.stderr.splitlines()
    assert loading == f"loading {model} …"
    assert error.startswith("pcmring: ")
    assert model in error
    assert not (tmp_path / "a.srt").exists()


def test_a_language_that_the_model_does_not_know_is_one_line_with_those_it_does(home):
    done = home.run("listen", "--device", "tone", "--model", tiny_en(), "--language", "xx", command=WHISPER)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "pcmring: language must be one that the model knows, en, got 'xx'"


def test_a_missing_engine_says_what_to_install(home):
    done = home.without("pocketsphinx", "listen", "--device", "tone", "--model", "pocketsphinx")
    assert done.returncode == 1
    assert "pip install pocketsphinx" in done.stderr.splitlines()[-1]


# ---- terminals ------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> tuple[int, int]:
    """Who looks at it, and who shows something; the test closes both."""
    return pty.openpty()


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_a_terminal_shows_draft_level_and_lag_and_colour_unless_told_not_to(home, tmp_path, terminal, no_colour):
    controller, side = terminal
    words = ["listen", "--device", speech_file(tmp_path / "a.wav", seconds=1.3)]
    process = subprocess.Popen(
        [*WORDS, *words],
        env=home.environment | {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": no_colour},
        stdout=side,
        stderr=subprocess.DEVNULL,
    )
    os.close(side)
    shown = b""
    try:
        while piece := os.read(controller, 65536):
            shown += piece
    except OSError:  # the other side was closed
        os.close(controller)
    assert process.wait(DEADLINE_S) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for what in ("a draft", "0:00:00  the words", "dBFS", "lag ", "lost 0", " MB"):
        assert what in text
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-9]", shown)) == (not no_colour)


def test_a_terminal_that_is_closed_costs_neither_audio_nor_subtitles(home, tmp_path, terminal):
    if shutil.which("setsid") is None:
        unavailable("there is no setsid, which gives a process a terminal of its own")
    controller, side = terminal
    device = speech_file(tmp_path / "speech.wav", clips=9)
    words = ["listen", "--device", device, "--save", tmp_path / "a.wav", "--srt", tmp_path / "a.srt"]
    process = subprocess.Popen(
        ["setsid", "--ctty", *WORDS, *words],
        env=home.environment | {"TERM": "xterm"},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    shown = b""
    while b"a draft" not in shown:
        shown += os.read(controller, 65536)
    os.close(controller)
    assert process.wait(DEADLINE_S) == 130
    assert [text for _, _, text in cues(tmp_path / "a.srt")] == ["the words"]
    assert soundfile.info(str(tmp_path / "a.wav")).frames > RATE


def test_the_help_has_examples(home):
    done = home.run("listen", "--help")
    assert done.returncode == 0
    assert "pcmring listen --save talk.wav --srt talk.srt" in done.stdout


if not hasattr(os, "fork"):
    unavailable("these tests send signals and open terminals, which are POSIX's")
