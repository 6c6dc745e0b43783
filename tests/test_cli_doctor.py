"""``pcmring doctor``: what it finds on machines that have, and have not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

import pytest

from command import COMMAND, Home, empty_home  # noqa: F401 - a fixture
from virtual_mic import VirtualMics, need, virtual_mics

need("soundfile", "platformdirs", "psutil")


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


@pytest.fixture
def with_mic(mics, tmp_path) -> Home:
    mics.config(tmp_path / "asound.conf", {"default": {"control": str(tmp_path / "control")}})
    return Home(tmp_path, ALSA_CONFIG_PATH=str(tmp_path / "asound.conf"))


def facts(text: str) -> tuple[bool, dict[str, dict[str, Any]]]:
    report = json.loads(text)
    return report["can_capture"], {check["name"]: check for check in report["checks"]}


def settings(home: Home, **values: object) -> None:
    folder = home.state.parent / "config" / "pcmring"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))


def test_with_a_microphone_audio_can_be_captured(with_mic):
    done = with_mic.run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    can_capture, checks = facts(done.stdout)
    assert can_capture
    assert checks["PortAudio"]["state"] == checks["capture"]["state"] == "ok"
    assert "ALSA" in checks["PortAudio"]["found"]
    assert "default" in checks["PortAudio"]["found"]
    assert "the first audio came after" in checks["capture"]["found"]


def test_a_microphone_that_cannot_be_opened_is_exit_code_1(with_mic, tmp_path):
    (tmp_path / "control").write_text("unplugged")
    done = with_mic.run("doctor")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "audio cannot be captured"


def test_a_microphone_that_brings_nothing_is_exit_code_1(with_mic, tmp_path):
    (tmp_path / "control").write_text("silent")
    can_capture, checks = facts(with_mic.run("doctor", "--json").stdout)
    assert not can_capture
    assert "no audio" in checks["capture"]["found"]
    assert checks["capture"]["fix"].startswith("pcmring devices")


def test_digital_silence_is_pointed_out(home):
    settings(home, device="silence")
    can_capture, checks = facts(home.run("doctor", "--json").stdout)
    assert can_capture
    assert checks["capture"]["state"] == "advice"
    assert "only digital silence" in checks["capture"]["found"]


def test_the_table_has_every_check_and_then_each_fix(home):
    settings(home, device="tone")
    done = home.run("doctor")
    assert done.returncode == 0
    _, checks = facts(home.run("doctor", "--json").stdout)
    for name, check in checks.items():
        assert name in done.stdout
        assert check["fix"] in done.stdout
    assert {"memory", "recordings", "soundfile [audio]", "psutil [monitor]"} <= checks.keys()
    assert done.stdout.splitlines()[-1] == "audio can be captured"


@pytest.mark.parametrize(
    ("package", "check", "extra"), [("sounddevice", "capture", "audio"), ("psutil", "memory", "monitor")]
)
def test_a_missing_package_has_the_command_that_installs_it(home, package, check, extra):
    done = home.without(package, "doctor", "--json")
    can_capture, checks = facts(done.stdout)
    assert not can_capture
    assert done.returncode == 1
    for name in (check, f"{package} [{extra}]"):
        assert checks[name]["fix"] == f"{sys.executable} -m pip install 'pcmring[{extra}]'"


def test_without_platformdirs_it_still_reports(home):
    done = home.without("platformdirs", "doctor", "--json")
    assert done.returncode == 1
    _, checks = facts(done.stdout)
    assert checks["recordings"]["state"] == "missing"
    assert "pip install" in checks["recordings"]["fix"]


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="the command is that of Debian")
def test_a_missing_portaudio_has_the_command_that_installs_it(home, tmp_path):
    # what sounddevice raises where the library is missing
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    home.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), home.environment.get("PYTHONPATH", "")])
    done = home.run("doctor", "--json")
    assert done.returncode == 1
    _, checks = facts(done.stdout)
    assert checks["PortAudio"]["fix"].endswith("apt-get install libportaudio2")


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_a_realtime_priority_that_is_not_allowed_has_the_command_that_allows_it(home):
    settings(home, device="tone")
    without_right = ["setpriv", "--bounding-set=-sys_nice"] if os.geteuid() == 0 else []
    command = [*without_right, "sh", "-c", 'ulimit -r 0; exec "$@"', "sh", *COMMAND]
    _, checks = facts(home.run("doctor", "--json", command=command).stdout)
    assert checks["realtime priority"]["state"] == "advice"
    assert checks["realtime priority"]["found"].startswith("not allowed")
    assert "rtprio" in checks["realtime priority"]["fix"]
