"""``pcmring devices``, and what is so for every command."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from command import COMMAND, DEADLINE_S, Home, check_text, complaint, empty_home  # noqa: F401 - a fixture
from virtual_mic import VirtualMics, virtual_mics

MICS = {"default": {"rate": 48000, "channels": 2}, "desk mic": {"rate": 16000, "channels": 1}}


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


@pytest.fixture
def with_mics(mics, tmp_path) -> Home:
    mics.config(tmp_path / "asound.conf", MICS)
    return Home(tmp_path, ALSA_CONFIG_PATH=str(tmp_path / "asound.conf"))


def test_the_table_has_each_input_and_the_generators(with_mics):
    done = with_mics.run("devices")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    (default,) = [line for line in lines if "(default)" in line]
    assert default.startswith("*"), "what is recorded from is marked"
    assert "ALSA" in default
    assert any("desk mic" in line and "ALSA" in line for line in lines)
    assert {"tone", "noise", "silence"} <= {line.split()[0] for line in lines if line.split()}
    assert "sound file's path" in lines[-1]


def test_json_tells_programs_the_same(with_mics):
    done = with_mics.run("devices", "--json")
    found = {device["name"]: device for device in json.loads(done.stdout)}
    assert found["desk mic"]["hostapi"] == "ALSA"
    assert found["desk mic"]["kind"] == "device"
    assert [name for name, device in found.items() if device["is_selected"]] == ["default"]
    assert [name for name, device in found.items() if device["kind"] == "generator"] == ["tone", "noise", "silence"]


def test_what_the_settings_say_is_marked(with_mics):
    folder = with_mics.state.parent / "config" / "pcmring"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"device": "desk mic"}')
    done = with_mics.run("devices", "--json")
    assert [device["name"] for device in json.loads(done.stdout) if device["is_selected"]] == ["desk mic"]


def test_settings_that_cannot_be_read_are_one_line(home):
    folder = home.state.parent / "config" / "pcmring"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"sample_rate": "fast"}')
    done = home.run("devices")
    assert done.returncode == 1
    assert "sample_rate" in complaint(done)
    assert "config.json" in complaint(done)


def test_without_sounddevice_it_says_what_to_install_and_lists_the_generators(home):
    done = home.without("sounddevice", "devices")
    assert done.returncode == 0
    assert "pip install sounddevice" in complaint(done)
    assert "silence" in done.stdout


def test_without_portaudio_it_says_what_to_install_and_lists_the_generators(home, tmp_path):
    # what sounddevice raises where the library is missing
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    home.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), home.environment.get("PYTHONPATH", "")])
    done = home.run("devices")
    assert done.returncode == 0
    assert "apt-get install libportaudio2" in complaint(done)
    assert "silence" in done.stdout


# ---- every command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_packages_the_command_says_what_to_install(home, package):
    done = home.without(package, "devices")
    assert done.returncode == 1
    assert complaint(done) == f"pcmring: the command needs the package {package}: pip install 'pcmring[cli]'"


def test_every_command_has_help_with_examples_and_exit_codes(home):
    listed = home.run("--help").stdout
    commands = [line.split()[0] for line in listed.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    commands = commands[: commands.index("Exit")]
    assert "devices" in commands
    for command in commands:
        done = home.run(command, "--help")
        assert done.returncode == 0
        assert f"  pcmring {command}" in done.stdout.partition("Examples:")[2], command
        assert "Exit codes: 0 " in done.stdout, command


@pytest.mark.parametrize("words", [["devices", "--such"], ["such"]])
def test_wrong_usage_is_exit_code_2(home, words):
    assert home.run(*words).returncode == 2


@pytest.mark.parametrize("words", [["devices"], ["devices", "--json"], ["--help"]])
def test_a_pipe_that_is_closed_is_no_error_to_talk_about(home, words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *words], env=home.environment, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S
    )
    os.close(writing)
    assert done.returncode in (0, 1)
    assert not [line for line in done.stderr.splitlines() if not line.startswith("pcmring: no sound card")]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colour_gets_none(home, environment):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "devices"],
        env=home.environment | {"TERM": "xterm"} | environment,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    )
    os.close(terminal)
    text = b""
    try:
        while block := os.read(controller, 4096):
            text += block
    except OSError:  # Linux's way to say that the terminal is closed
        pass
    assert process.wait(DEADLINE_S) == 0
    assert b"silence" in text
    assert b"\x1b[3" not in text, "no colour"


def test_ascii_alone_is_enough_for_a_terminal(home):
    done = Home(home.state.parent, PYTHONIOENCODING="ascii:strict", LC_ALL="C").run("devices")
    assert done.returncode == 0
    check_text(done.stdout)
