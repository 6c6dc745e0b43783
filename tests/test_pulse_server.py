"""A sound server that is killed, hangs, or loses its microphone while it is recorded from. Real PulseAudio."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from pulse_server import RATE, client_environment
from virtual_mic import call, need, unavailable

pytestmark = pytest.mark.native


def _processes_that_name(folder: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:  # ended meanwhile
            pass
    return found


@pytest.fixture
def on_pulse() -> Iterator[Callable[..., dict]]:
    """Call a function of children.py with a private folder for a server, which must not be left behind."""
    need("sounddevice")
    if platform.system() != "Linux":
        unavailable("ALSA is Linux's")
    if find_library("portaudio") is None:
        unavailable("PortAudio is not installed: apt-get install libportaudio2")
    for program, package in {"pulseaudio": "pulseaudio", "pactl": "pulseaudio-utils", "setpriv": "util-linux"}.items():
        if shutil.which(program) is None:
            unavailable(f"{program} is not installed: apt-get install {package}")
    folders = [folder for pattern in ("lib*/alsa-lib", "lib*/*/alsa-lib") for folder in Path("/usr").glob(pattern)]
    if not any((folder / "libasound_module_pcm_pulse.so").exists() for folder in folders):
        unavailable("ALSA's plug-in for PulseAudio is not installed: apt-get install libasound2-plugins")
    with tempfile.TemporaryDirectory(prefix="pcmring-pulse-") as folder:
        os.chmod(folder, 0o700)

        def on_pulse(function: str, timeout_s: float = 60.0, **arguments: object):
            return call(function, {"folder": folder, **arguments}, timeout_s, **client_environment(Path(folder)))

        yield on_pulse
        assert _processes_that_name(folder) == []


@pytest.mark.parametrize("how", ["killed", "removed", "hangs", "suspended"])
def test_what_a_server_loses_is_noticed_in_time_told_once_and_taken_up_again(on_pulse, how):
    got = on_pulse("pulse_recovers", how=how)
    assert got["noticed_s"] < 2.5  # 1 s, and what a crowded machine takes
    ((state, error),) = got["errors"]
    assert state == "recovering"
    assert ("the stream ended" if how in ("killed", "removed") else "no audio has come for") in error
    assert got["recovered"] == 1
    assert got["kept"]
    assert {cause for _, _, cause in got["gaps"]} == {"reopened"}
    gap_s = sum(frames for _, frames, _ in got["gaps"]) / RATE
    missing_s = sum(frames for _, frames in got["jumps"]) / RATE
    assert 0 < gap_s < got["away_s"] + 0.5
    # a suspended microphone can be opened: then it may be silent for another second, which no gap tells of
    assert gap_s == pytest.approx(missing_s, abs=0.5)
    assert got["delivered_and_lost"] == got["read_to"] == got["written"] == got["captured"]


@pytest.mark.parametrize("how", ["killed", "removed", "hangs", "suspended"])
def test_a_recording_is_stopped_at_once_while_the_server_is_lost_and_nothing_is_reopened(on_pulse, how):
    """PulseAudio's client library waits for a server that hangs for 30 s."""
    got = on_pulse("pulse_stops", how=how)
    assert got["stop_s"] < 4.0
    assert got["stop_again_s"] < 0.5
    assert got["state"] == "stopped"
    assert got["errors"] == 1
    assert got["streams"] == ""
    assert got["kept"]
    assert got["again"]


@pytest.mark.parametrize("lost_before", [False, True])
def test_a_program_ends_soon_while_its_server_hangs(on_pulse, lost_before):
    log = on_pulse("pulse_hangs_at_the_end", lost_before=lost_before, timeout_s=20.0)
    assert log[-1] == "default hangs while it is reopened: its thread is left behind"
    assert sum("hangs" in line for line in log) == 1


def test_without_a_server_the_start_fails_with_one_error(on_pulse):
    got = on_pulse("pulse_is_not_there")
    assert got["started"] is False
    (error,) = got["errors"]
    assert "no device to record from was found" in error
    assert got["log"] == [f"recording cannot start: {error}"]
    assert got["state"] == [False, error, []]
    assert got["again"]
