"""``pcmring record`` and ``pcmring recover``: real recordings, ended in every way there is."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command import COMMAND, DEADLINE_S, Home, check_text, complaint, empty_home  # noqa: F401 - a fixture
from patience import until
from virtual_mic import VirtualMics, need, virtual_mics

need("soundfile", "platformdirs", "psutil")
import soundfile  # noqa: E402


def growing(home: Home) -> Path | None:
    """The recording that grows now, once some audio is in it."""
    files = list(home.recordings.glob("recording-*")) if home.recordings.is_dir() else []
    return next((file for file in files if file.stat().st_size > 8000), None)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    check_text(out + err)
    return process.returncode, out, err


def leave_a_recording_behind(home: Home, folder: Path) -> Path:
    """The program is killed."""
    with home.started("record", folder / "never.wav", "--device", "tone") as process:
        until(lambda: growing(home))
        process.kill()
        process.wait(DEADLINE_S)
    assert not (folder / "never.wav").exists()
    (left,) = home.recordings.iterdir()
    return left


# ---- to the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "subtype"),
    [("a.wav", [], "PCM_16"), ("a.flac", [], "PCM_16"), ("a.wav", ["--subtype", "float"], "FLOAT")],
)
def test_so_many_seconds_are_recorded_and_accounted_for(home, tmp_path, name, options, subtype):
    out = tmp_path / name
    done = home.run("record", out, "--device", "tone", "--seconds", 0.5, *options)
    assert done.returncode == 0, done.stderr
    info = soundfile.info(str(out))
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, subtype)
    assert info.frames >= 8000
    assert f"tone: {info.frames} frames captured at 16000 Hz, 0 lost" in done.stdout
    assert f"{info.frames} frames ({info.frames / 16000:.3f} s)" in done.stdout
    assert "no gaps" in done.stdout
    assert list(home.recordings.iterdir()) == [], "nothing temporary is left"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_without_a_terminal_progress_is_a_plain_line_on_stderr(home, tmp_path):
    done = home.run("record", tmp_path / "a.wav", "--device", "tone", "--seconds", 0.3)
    begin, line = done.stderr.splitlines()
    assert begin.startswith("recording tone into ")
    for what in ("-6.0 dBFS", "fill ", "lost 0", "disk ", " left"):
        assert what in line


def test_a_file_is_recorded_to_its_end_at_the_rate_and_channels_asked_for(home, tmp_path):
    audio = np.linspace(-0.5, 0.5, 12_000, dtype=np.float32)[:, None]
    soundfile.write(tmp_path / "in.wav", audio, 24_000, subtype="FLOAT")
    done = home.run(
        *["record", tmp_path / "out.wav", "--device", tmp_path / "in.wav"],
        *["--rate", 24_000, "--channels", 2, "--subtype", "FLOAT"],
    )
    assert done.returncode == 0, done.stderr
    recorded, samplerate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert samplerate == 24_000
    np.testing.assert_array_equal(recorded, np.repeat(audio, 2, axis=1))


# ---- ended by a signal or a pipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_the_audio_saved(home, tmp_path, number):
    out = tmp_path / "a.wav"
    with home.started("record", out, "--device", "tone") as process:
        until(lambda: growing(home))
        process.send_signal(number)
        code, text, _ = ended(process)
    assert code == 130
    info = soundfile.info(str(out))
    assert info.frames > 4000
    assert f"tone: {info.frames} frames captured at 16000 Hz, 0 lost" in text
    audio, _ = soundfile.read(out)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.01)


def test_a_terminal_that_is_closed_ends_it_with_the_audio_saved(home, tmp_path):
    if shutil.which("setsid") is None:
        pytest.skip("there is no setsid, which gives a process a terminal of its own")
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *COMMAND, "record", tmp_path / "a.wav", "--device", "tone"],
        env=home.environment | {"TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    until(lambda: growing(home))
    assert b"dBFS" in os.read(controller, 65536)
    os.close(controller)
    process.wait(DEADLINE_S)
    assert soundfile.info(str(tmp_path / "a.wav")).frames > 4000


def test_a_display_that_nobody_reads_any_more_costs_no_audio(home, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    words = ["record", tmp_path / "a.wav", "--device", "tone", "--seconds", "0.5"]
    done = subprocess.run([*COMMAND, *words], env=home.environment, stdout=writing, stderr=writing, timeout=DEADLINE_S)
    os.close(writing)
    assert done.returncode == 0
    assert soundfile.info(str(tmp_path / "a.wav")).frames >= 8000


# ---- refused at the door --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (["--rate", 5], "--rate"),
        (["--channels", 0], "--channels"),
        (["--seconds", 0], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--format", "mp3"], "--format"),
        (["--subtype", "ulaw"], "--subtype"),
        (["--format", "flac", "--subtype", "float"], "--subtype"),
    ],
)
def test_a_wrong_value_is_exit_code_2_and_names_the_option(home, tmp_path, options, option):
    done = home.run("record", tmp_path / "a.wav", "--device", "tone", *options)
    assert done.returncode == 2
    assert option in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a.wav").exists()


def test_a_file_that_is_there_is_replaced_only_if_asked_for(home, tmp_path):
    out = tmp_path / "a.wav"
    out.write_text("mine")
    done = home.run("record", out, "--device", "tone", "--seconds", 0.2)
    assert done.returncode == 1
    assert "--force" in complaint(done)
    assert out.read_text() == "mine"
    assert home.run("record", out, "--device", "tone", "--seconds", 0.2, "--force").returncode == 0
    assert soundfile.info(str(out)).frames >= 3200


@pytest.mark.parametrize(
    ("out", "device", "words"),
    [
        ("missing/a.wav", "tone", "mkdir -p"),
        ("a.wav", "no such thing", "no device 'no such thing'"),
        ("a.wav", "text.txt", "text.txt"),
        ("a.wav", "empty.wav", "nothing was captured"),
        ("/dev/null", "tone", "no regular file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(home, tmp_path, out, device, words):
    (tmp_path / "text.txt").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.empty(0), 16000)
    device = str(tmp_path / device) if "." in device else device
    done = home.run("record", tmp_path / out, "--device", device, "--force", "--format", "wav")
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a.wav").exists()
    assert not home.recordings.exists() or list(home.recordings.iterdir()) == []


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "pcmring-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_ends_the_recording_with_what_it_took_saved(small_disk, tmp_path):
    out = tmp_path / "a.wav"
    home = Home(tmp_path, XDG_STATE_HOME=str(small_disk))
    done = home.run("record", out, "--device", "noise", "--rate", 96_000)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert str(out) in done.stderr.splitlines()[-1]
    assert soundfile.info(str(out)).frames > 20_000


def test_a_full_target_leaves_the_recording_safe_until_it_is_recovered(home, small_disk, tmp_path):
    done = home.run("record", small_disk / "a.wav", "--device", "noise", "--rate", 96_000, "--seconds", 1)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert "No space left on device" in message
    assert "pcmring recover --to" in message
    assert list(small_disk.iterdir()) == []
    done = home.run("recover", "--to", tmp_path)
    assert done.returncode == 0, done.stderr
    (saved,) = tmp_path.glob("recording-*.wav")
    assert soundfile.info(str(saved)).frames >= 96_000


# ---- microphones ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


@pytest.fixture
def with_mic(mics, tmp_path) -> Home:
    microphone = {"rate": 16000, "channels": 1, "control": str(tmp_path / "control")}
    mics.config(tmp_path / "asound.conf", {"mic": microphone})
    return Home(tmp_path, ALSA_CONFIG_PATH=str(tmp_path / "asound.conf"))


def test_a_microphone_is_recorded_frame_for_frame(with_mic, tmp_path):
    done = with_mic.run("record", tmp_path / "a.wav", "--device", "mic", "--seconds", 1, "--subtype", "FLOAT")
    assert done.returncode == 0, done.stderr
    audio, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert len(audio) >= 16_000
    values = np.rint(audio * 2**23).astype(np.int64)
    np.testing.assert_array_equal(np.diff(values), 1)


def test_a_lost_device_is_waited_for_and_the_gap_is_in_the_summary(with_mic, tmp_path):
    control, out = tmp_path / "control", tmp_path / "a.wav"
    with with_mic.started("record", out, "--device", "mic") as process:
        until(lambda: growing(with_mic))
        control.write_text("dead")
        until(lambda: "waiting for it to come back" in process.stderr.readline())
        control.unlink()
        until(lambda: "the device is back" in process.stderr.readline())
        process.send_signal(signal.SIGINT)
        code, text, _ = ended(process)
    assert code == 130
    assert "(reopened " in text
    assert "1 gap\n" in text
    assert "frames missing before frame " in text
    assert soundfile.info(str(out)).frames > 4000


def test_a_device_that_stays_away_ends_with_its_time_and_what_came_is_saved(with_mic, tmp_path):
    out = tmp_path / "a.wav"
    with with_mic.started("record", out, "--device", "mic", "--seconds", 3) as process:
        until(lambda: growing(with_mic))
        (tmp_path / "control").write_text("dead")
        code, _, errors = ended(process)
    assert code == 1
    assert f"safe in {out}" in errors.splitlines()[-1]
    assert soundfile.info(str(out)).frames > 4000


# ---- after a crash --------------------------------------------------------------------------------------------------


def test_a_killed_recording_is_listed_with_its_length_and_saved(home, tmp_path):
    left = leave_a_recording_behind(home, tmp_path)
    listed = [home.run(*words) for words in (["recover"], ["recover", "--list"])]
    frames = soundfile.info(str(left)).frames  # its header tells of all now
    assert frames > 3900
    for done in listed:
        assert done.returncode == 0, done.stderr
        assert f"{frames / 16000:.3f} s" in done.stdout
        assert str(left) in done.stdout
    done = home.run("recover", "--to", tmp_path)
    assert done.returncode == 0, done.stderr
    (saved,) = tmp_path.glob("recording-*.wav")
    assert str(saved) in done.stdout
    assert soundfile.info(str(saved)).frames == frames
    assert home.run("recover").stdout == "no recording was left behind\n"


def test_recovering_replaces_no_file(home, tmp_path):
    left = leave_a_recording_behind(home, tmp_path)
    folder = tmp_path / "to"
    folder.mkdir()
    stamp = left.stat().st_mtime
    mine = folder / time.strftime("recording-%Y-%m-%d-%H%M%S.wav", time.localtime(stamp))
    mine.write_text("mine")
    assert home.run("recover", "--to", folder).returncode == 0
    assert mine.read_text() == "mine"
    assert sorted(file.name for file in folder.iterdir()) == [f"{mine.stem}-2.wav", mine.name]


def test_a_running_recording_is_nobody_elses(home, tmp_path):
    with home.started("record", tmp_path / "a.wav", "--device", "tone") as process:
        until(lambda: growing(home))
        assert home.run("recover", "--to", tmp_path).stdout == "no recording was left behind\n"
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 130
    assert soundfile.info(str(tmp_path / "a.wav")).frames > 4000


@pytest.mark.parametrize(("words", "code"), [(["--to", "/no/such/folder"], 1), (["--list", "--to", "."], 2)])
def test_recover_refuses_what_it_cannot_do(home, words, code):
    done = home.run("recover", *words)
    assert done.returncode == code
    assert words[-1] in done.stderr or "--list" in done.stderr
