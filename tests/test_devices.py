"""Choosing what to record from, and the settings."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from native_support import python_environment
from pcmring import AudioBuffer
from pcmring._portaudio import AudioDevice, match
from pcmring.devices import (
    MAX_BUFFER_SIZE_SECONDS,
    MIN_BUFFER_SIZE_SECONDS,
    AudioConfig,
    AudioDeviceManager,
    FileSource,
    GeneratorSource,
    MissingPackage,
    PortAudioSource,
    SourceError,
)
from virtual_mic import VirtualMics, call, need, virtual_mics


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


# ---- settings -------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_speech_recognition():
    assert AudioConfig() == AudioConfig(
        sample_rate=16000, channels=1, buffer_size_seconds=5, block_frames=512, latency="high", device=None
    )
    assert (MIN_BUFFER_SIZE_SECONDS, MAX_BUFFER_SIZE_SECONDS) == (1, 30)


WRONG = [
    ("sample_rate", 999, ValueError),
    ("sample_rate", 768001, ValueError),
    ("sample_rate", 16000.5, ValueError),
    ("sample_rate", float("inf"), ValueError),
    ("sample_rate", "16000", TypeError),
    ("channels", 0, ValueError),
    ("channels", 65, ValueError),
    ("channels", True, TypeError),
    ("buffer_size_seconds", 0.99, ValueError),
    ("buffer_size_seconds", 30.01, ValueError),
    ("buffer_size_seconds", float("nan"), ValueError),
    ("buffer_size_seconds", None, TypeError),
    ("block_frames", -1, ValueError),
    ("block_frames", 65537, ValueError),
    ("latency", "medium", ValueError),
    ("latency", 0.0, ValueError),
    ("latency", float("inf"), ValueError),
    ("device", -1, ValueError),
    ("device", 1.5, TypeError),
    ("device", True, TypeError),
    ("device", "", TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
def test_a_wrong_setting_is_refused_with_its_name_and_value(name, value, error):
    with pytest.raises(error, match=f"{name} must be"):
        AudioConfig(**{name: value})
    config = AudioConfig()
    with pytest.raises(error, match=f"{name} must be"):
        setattr(config, name, value)
    assert config == AudioConfig(), "nothing was changed"


@pytest.mark.parametrize("seconds", [1, 1.5, 30])
def test_buffer_sizes_from_the_least_to_the_most_are_taken(seconds):
    assert AudioConfig(buffer_size_seconds=seconds).buffer_size_seconds == seconds


def test_numpy_numbers_become_plain_ones():
    config = AudioConfig(sample_rate=np.int64(48000), buffer_size_seconds=np.float32(2.5), device=np.int32(3))
    assert [type(getattr(config, name)) for name in ("sample_rate", "buffer_size_seconds", "device")] == [
        int,
        float,
        int,
    ]


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(AttributeError, match="no setting 'samplerate'"):
        AudioConfig().samplerate = 16000


def test_settings_are_saved_and_loaded(tmp_path):
    config = AudioConfig(48000, 2, 2.5, 0, 0.05, "Röde NT-USB")
    path = config.save(tmp_path / "deep" / "config.json")
    assert AudioConfig.load(path) == config
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"], "no temporary file is left"


def test_toml_is_read(tmp_path):
    if sys.version_info < (3, 11):
        need("tomli")
    path = tmp_path / "config.toml"
    path.write_text('device = "tone"\nbuffer_size_seconds = 3\n')
    assert AudioConfig.load(path) == AudioConfig(device="tone", buffer_size_seconds=3)
    with pytest.raises(ValueError, match="written as JSON"):
        AudioConfig().save(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting property name"),
        ("[]", "a table of settings is needed"),
        ('{"sample_rat": 1}', "unknown setting sample_rat"),
        ('{"buffer_size_seconds": 31}', "buffer_size_seconds must be 1 to 30, got 31"),
        ('{"latency": []}', "latency must be"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, text, complaint):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        AudioConfig.load(path)
    assert str(path) in str(caught.value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = AudioConfig(channels=2).save(tmp_path / "config.json")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        AudioConfig().save(path)
    assert AudioConfig.load(path).channels == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_the_platforms_folder_is_used(tmp_path, monkeypatch):
    need("platformdirs")
    monkeypatch.setattr("platformdirs.user_config_dir", lambda name, appauthor: str(tmp_path / name))
    assert AudioConfig.load() == AudioConfig(), "nothing was saved yet"
    (tmp_path / "pcmring").mkdir()
    if sys.version_info >= (3, 11):
        (tmp_path / "pcmring" / "config.toml").write_text("channels = 3\n")
        assert AudioConfig.load().channels == 3
    assert AudioConfig(channels=2).save() == tmp_path / "pcmring" / "config.json"
    assert AudioConfig.load().channels == 2
    assert json.loads((tmp_path / "pcmring" / "config.json").read_text()) == dataclasses.asdict(AudioConfig(channels=2))


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        AudioConfig.load(tmp_path / "config.json")


# ---- names ----------------------------------------------------------------------------------------------


def device(index, name, hostapi="MME", is_default=False):
    return AudioDevice(index, name, hostapi, 1, 48000.0, is_default, "device")


WINDOWS = [
    device(0, "USB Mic", is_default=True),
    device(1, "Line In"),
    device(2, "USB Mic", "Windows WASAPI"),
    device(3, "Line In", "Windows WASAPI"),
    device(4, "Webcam USB", "Windows WASAPI"),
    device(5, "Twin"),
    device(6, "Twin"),
]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (3, 3),
        ("USB Mic", 0),  # in the default device's host API
        ("usb mic", 0),
        ("USB", 0),
        ("USB Mic, Windows WASAPI", 2),
        ("webcam", 4),
        ("WASAPI", None),
        ("Twin", None),
        ("Bluetooth", None),
        (9, None),
    ],
)
def test_a_name_finds_one_device_or_none(wanted, index):
    if index is not None:
        assert match(WINDOWS, wanted).id == index
    else:
        with pytest.raises(ValueError, match=repr(wanted)) as caught:
            match(WINDOWS, wanted)
        assert ("5: Twin, MME; 6: Twin, MME" in str(caught.value)) == (wanted != "WASAPI")


# ---- the manager, without a sound card --------------------------------------------------------------------


def test_generators_and_files_are_chosen_like_devices(tmp_path):
    need("soundfile")
    import soundfile

    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros((100, 2)), 44100)
    manager = AudioDeviceManager(AudioConfig(sample_rate=8000, channels=2))
    chosen = manager.select_device("noise")
    assert (chosen.id, chosen.kind, chosen.channels, chosen.samplerate) == ("noise", "generator", 2, 8000.0)
    assert manager.get_current_device() == chosen
    source = manager.create_source()
    assert isinstance(source, GeneratorSource)
    assert (source.samplerate, source.channels) == (8000.0, 2)
    for given in (path, str(path)):
        chosen = manager.select_device(given)
        assert (chosen.id, chosen.name, chosen.kind, chosen.channels, chosen.samplerate) == (
            str(path), "speech.wav", "file", 2, 44100.0,
        )  # fmt: skip
        assert manager.config.device == str(path)
        assert isinstance(manager.create_source(), FileSource)
    path.unlink()
    assert manager.get_current_device() is None
    assert isinstance(manager.create_source(), PortAudioSource), "by now it can only be a device's name"
    with pytest.raises(ValueError, match="nor is there a file"):
        manager.select_device(path)


def test_what_is_not_there_is_refused_and_the_choice_stays(tmp_path):
    manager = AudioDeviceManager()
    manager.select_device("tone")
    with pytest.raises(ValueError, match="tone, noise, silence; nor is there a file 'no such'"):
        manager.select_device("no such")
    (tmp_path / "a.wav").write_text("not audio")
    need("soundfile")
    with pytest.raises(SourceError, match="not a sound file"):
        manager.select_device(tmp_path / "a.wav")
    assert manager.config.device == "tone"


def test_the_config_is_the_callers():
    config = AudioConfig()
    AudioDeviceManager(config).select_device("tone")
    assert config.device == "tone"
    with pytest.raises(TypeError, match="config must be"):
        AudioDeviceManager({"device": "tone"})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"samplerate": -1}, ValueError),
        ({"channels": 0}, ValueError),
        ({"dtype": "float64"}, ValueError),
        ({"latency": "lowest"}, ValueError),
        ({"latency": -0.1}, ValueError),
        ({"block_frames": -1}, ValueError),
    ],
)
def test_wrong_arguments_of_a_sound_card_are_refused(arguments, error):
    with pytest.raises(error, match="must be"):
        PortAudioSource(**arguments)


def test_importing_loads_nothing_but_numpy():
    program = (
        "import sys, pcmring.devices; "
        "print([m for m in ('sounddevice', 'soundfile', 'soxr', 'platformdirs', 'cffi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=python_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# ---- machines that lack something -------------------------------------------------------------------------

PACKAGES = ["sounddevice", "soundfile", "soxr", "platformdirs"]


def test_without_packages_generators_work_and_each_error_names_what_to_install():
    got = call("missing", {"block": PACKAGES})
    assert got["devices"] == ["tone", "noise", "silence"]
    assert got["current"] is None
    assert got["tone"] == 1000
    (warning,) = got["warnings"]
    assert "pip install sounddevice" in warning
    for trial, package in {
        "open": "sounddevice", "id": "sounddevice", "file": "soundfile", "save": "platformdirs", "resample": "soxr"
    }.items():  # fmt: skip
        assert got[trial][0] == "MissingPackage"
        assert f"the package {package} is needed to" in got[trial][1]
        assert f"pip install {package} or pip install 'pcmring[audio]'" in got[trial][1]
    assert got["select"][0] == "ValueError"
    assert "tone, noise, silence" in got["select"][1]
    assert "pip install sounddevice" in got["select"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere sounddevice brings PortAudio along")
def test_without_portaudio_the_error_names_the_systems_package():
    need("sounddevice")
    got = call("missing", {"block": [], "library": True})
    assert got["devices"] == ["tone", "noise", "silence"]
    assert got["open"][0] == "MissingPackage"
    assert "not PortAudio" in got["open"][1]
    assert "apt-get install libportaudio2" in got["open"][1]
    assert got["tone"] == 1000


def test_a_package_that_itself_lacks_one_is_not_called_missing(monkeypatch):
    from pcmring import _late

    def broken(name):
        raise ModuleNotFoundError("No module named 'pycparser'", name="pycparser")

    monkeypatch.setattr(_late.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="pycparser") as caught:
        _late.load("sounddevice")
    assert not isinstance(caught.value, MissingPackage)


# ---- the manager, with microphones --------------------------------------------------------------------------


@pytest.mark.native
def test_devices_are_listed_and_chosen(mics):
    microphones = {
        "USB mic": {"rate": 48000, "channels": 2},
        "USB webcam": {"rate": 44100},
        "default": {"rate": 16000},
    }
    wanted = [None, "USB webcam", "webcam", "usb MIC", "USB", 1, 7, "tone", "Bluetooth"]
    got = mics.call("choose", mics=microphones, wanted=wanted)
    assert [(d["id"], d["name"], d["hostapi"], d["channels"], d["samplerate"], d["is_default"], d["kind"])
            for d in got["devices"]] == [
        (0, "USB mic", "ALSA", 2, 48000.0, False, "device"),
        (1, "USB webcam", "ALSA", 1, 44100.0, False, "device"),
        (2, "default", "ALSA", 1, 16000.0, True, "device"),
        ("tone", "tone", "", 1, 16000.0, False, "generator"),
        ("noise", "noise", "", 1, 16000.0, False, "generator"),
        ("silence", "silence", "", 1, 16000.0, False, "generator"),
    ]  # fmt: skip
    assert got["current"] == "default"
    chosen = got["chosen"]
    assert chosen[:4] == [
        ["default", None, True],
        ["USB webcam", "USB webcam", True],
        ["USB webcam", "USB webcam", True],
        ["USB mic", "USB mic", True],
    ]
    assert chosen[4][0] == "ValueError"
    assert "ambiguous, it may be 0: USB mic, ALSA; 1: USB webcam, ALSA" in chosen[4][1]
    assert chosen[5] == ["USB webcam", 1, True]
    assert "no device 7; there is 0: USB mic" in chosen[6][1]
    assert chosen[7] == ["tone", "tone", True]
    assert "no device 'Bluetooth'; there is 0: USB mic" in chosen[8][1]


@pytest.mark.native
def test_a_machine_without_microphones_has_no_current_device(mics):
    got = mics.call("choose", mics={}, wanted=[None])
    assert [device["kind"] for device in got["devices"]] == ["generator"] * 3
    assert got["current"] is None
    assert got["chosen"] == [[None, None, True]]


@pytest.mark.native
@pytest.mark.parametrize("name", [None, "stereo", 0])
def test_a_chosen_device_is_recorded_as_16_khz_mono(mics, name):
    microphones = {"stereo": {"rate": 48000, "channels": 2}, "default": {"rate": 44100}}
    got = mics.call("record", mics=microphones, device=name, frames=4000, block_frames=160)
    assert got["kind"] == "PortAudioSource"
    assert got["native"] == ([44100.0, 1, "float32"] if name is None else [48000.0, 1, "float32"])
    assert got["name"] == ("default" if name is None else "stereo")
    assert (got["shape"], got["dtype"]) == ([4000, 1], "float32")
    assert got["largest_block"] == (441 if name is None else 480)


@pytest.mark.native
@pytest.mark.parametrize("name", ["tone", "silence"])
def test_a_generator_is_recorded_the_same_way(mics, name):
    got = mics.call("record", mics={}, device=name, frames=1600)
    assert (got["kind"], got["shape"], got["dtype"]) == ("GeneratorSource", [1600, 1], "float32")


def test_the_managers_way_works_on_a_file(tmp_path):
    need("soundfile", "soxr")
    import soundfile

    from pcmring.devices import ResamplingReader

    audio = np.random.default_rng(1).uniform(-0.5, 0.5, (9600, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, 48000, subtype="FLOAT")
    manager = AudioDeviceManager()
    manager.select_device(tmp_path / "a.wav")
    with manager.create_source() as source:
        buffer = AudioBuffer(48000, source.channels, source.dtype, samplerate=source.samplerate)
        with buffer, ResamplingReader(buffer) as reader:
            source.start(buffer)
            assert source.wait(30.0)
            buffer.close()
            got = reader.read(10_000, timeout=None)
    import soxr

    np.testing.assert_array_equal(got, soxr.resample(audio.mean(axis=1, keepdims=True), 48000, 16000))
