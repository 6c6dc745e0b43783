"""`FileBasedAudioManager`: recordings in files, from every kind of source, through every kind of accident."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcmring._file_manager import FileBasedAudioManager
from pcmring._recording import RecordingError
from pcmring.devices import AudioConfig, AudioDeviceManager, GeneratorSource
from pcmring.memory_manager import MemoryMonitor, ResourceManager
from stalled_disk import StalledDisk
from virtual_mic import VirtualMics, need, unavailable, virtual_mics

need("psutil", "soundfile", "platformdirs")
import psutil  # noqa: E402
import soundfile  # noqa: E402

from microphones import Devices  # noqa: E402
from patience import DEADLINE_S, until  # noqa: E402

RATE = 16000

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="temporary files need a POSIX system")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where temporary recordings lie: not in the user's own folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Path(ResourceManager().directory)


def devices(device: str = "noise", **settings: Any) -> AudioDeviceManager:
    return AudioDeviceManager(AudioConfig(device=device, **settings))


@pytest.fixture
def manager() -> Iterator[FileBasedAudioManager]:
    manager = FileBasedAudioManager(devices())
    yield manager
    manager.cleanup()


def record(manager: FileBasedAudioManager, frames: int = RATE // 10) -> str:
    """A recording of so many frames at least, and its path."""
    assert manager.start_recording() is True
    until(lambda: manager.get_buffer_info()["frames_written"] >= frames)
    manager.stop_recording()
    path = manager.get_audio_file()
    assert path is not None
    return path


def frames_of(path: str | os.PathLike[str]) -> np.ndarray:
    return soundfile.read(path, dtype="int16", always_2d=True)[0]


def noise(frames: int) -> np.ndarray:
    """The device "noise" as 16-bit integers."""
    from pcmring import AudioBuffer

    source = GeneratorSource("noise", speed=float("inf"))
    with AudioBuffer(frames + 2048, samplerate=RATE, policy="block") as buffer, source:
        source.start(buffer)
        return np.rint(buffer.read(frames, timeout=DEADLINE_S) * 2**15).astype(np.int16)


# ---- what is recorded -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")]
)
def test_d32_a_generator_is_recorded_bit_for_bit_from_its_first_frame(format, subtype):
    with FileBasedAudioManager(devices(), format=format, subtype=subtype) as manager:
        path = record(manager)
        about = soundfile.info(path)
        assert (about.format, about.subtype, about.samplerate, about.channels) == (format, subtype, RATE, 1)
        assert about.frames == manager.get_buffer_info()["frames_written"] == manager.get_buffer_info()["file_frames"]
        audio = soundfile.read(path, dtype="float64", always_2d=True)[0]
        latest = manager.get_latest_audio()
        if subtype == "PCM_16":
            np.testing.assert_array_equal(frames_of(path), noise(about.frames))
            latest = np.rint(latest * 2**15) / 2**15
        elif subtype == "PCM_24":
            latest = np.rint(latest * 2.0**23) / 2**23
        np.testing.assert_array_equal(audio, latest)


def test_d32_what_came_before_the_file_was_open_is_in_it():
    with FileBasedAudioManager(Devices(lambda: GeneratorSource("noise", speed=50))) as manager:
        got = frames_of(record(manager, RATE))
        np.testing.assert_array_equal(got, noise(len(got)))


def test_a_sound_file_is_recorded_at_the_wanted_rate_to_its_end(tmp_path):
    need("soxr")
    import soxr

    stereo = np.random.default_rng(1).integers(-(2**14), 2**14, (14_400, 2)).astype(np.int16)
    soundfile.write(tmp_path / "stereo.wav", stereo, 48_000)
    with FileBasedAudioManager(devices(str(tmp_path / "stereo.wav")), subtype="FLOAT") as manager:
        assert manager.start_recording()
        until(lambda: not manager.is_recording)
        manager.stop_recording()
        assert manager.last_error is None
        mono = (stereo / np.float32(2**15)).astype(np.float32).mean(axis=1, dtype=np.float32)
        got, rate = soundfile.read(manager.get_audio_file(), dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(got, soxr.resample(mono, 48_000, RATE, quality="HQ"))


PROGRAM = """
import json, os, sys, time
from pcmring._file_manager import FileBasedAudioManager
from pcmring.devices import AudioConfig, AudioDeviceManager
def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
"""


def child(program: str, *arguments: object, **environment: str) -> str:
    """Run `program` in a process of its own, and return the last line it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout.splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


def record_microphone(mics: VirtualMics, tmp_path: Path, settings: dict[str, object], enough: str) -> dict[str, Any]:
    mics.config(tmp_path / "asound.conf", {"default": {"rate": RATE, **settings}})
    program = f"""
config = AudioConfig(device="default", block_frames=256)
with FileBasedAudioManager(AudioDeviceManager(config)) as manager:
    assert manager.start_recording(), manager.last_error
    until(lambda: {enough})
    manager.stop_recording()
    manager.save_as(sys.argv[1])
    info = manager.get_buffer_info()
    info["where"] = [tuple(gap) for gap in manager.file_gaps()]
    print(json.dumps(info))
"""
    return json.loads(child(program, tmp_path / "saved.wav", ALSA_CONFIG_PATH=str(tmp_path / "asound.conf")))


@pytest.mark.native
def test_d32_a_microphone_is_recorded_from_its_first_frame_without_a_jump(mics, tmp_path):
    info = record_microphone(mics, tmp_path, {}, 'manager.get_buffer_info()["frames_written"] > 8000')
    ramp = frames_of(tmp_path / "saved.wav")[:, 0].astype(np.int64) & 0xFFFF
    assert len(ramp) == info["frames_written"]
    # the float32 device's ramp is (k + 1) / 2**23: 256 of its steps are one of 16 bits
    np.testing.assert_array_equal(ramp, np.rint(np.arange(1, len(ramp) + 1) / 2**8))


@pytest.mark.native
def test_d11_an_overflow_of_the_device_counts_in_file_mode_and_has_its_place_in_the_file(mics, tmp_path):
    stalled = {"stall_at": 8000, "stall_frames": 8000}
    enough = 'manager.get_buffer_info()["overflows"] and manager.get_buffer_info()["frames_written"] > 12_000'
    info = record_microphone(mics, tmp_path, stalled, enough)
    assert info["overflows"] >= 1
    assert info["file_gaps"] >= 1
    ramp = frames_of(tmp_path / "saved.wav")[:, 0].astype(np.int64)
    jump = int(np.argmax(np.diff(ramp)))
    position, missing, cause, exact = info["where"][0]
    assert (cause, exact) == ("device_overflow", False)
    assert abs(position - jump) <= 1024
    assert missing == pytest.approx((ramp[jump + 1] - ramp[jump]) * 2**8, abs=1024)


def test_frames_are_in_the_file_while_it_records(manager):
    assert manager.start_recording()
    until(lambda: manager.get_buffer_info()["file_frames"] > RATE // 10)
    path = manager.get_audio_file()
    assert os.stat(path).st_mode & 0o777 == 0o600
    got = frames_of(path)
    np.testing.assert_array_equal(got, noise(len(got)))
    assert manager.is_recording


# ---- who may delete -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_d15_memory_over_the_limit_while_recording_deletes_nothing_and_cleans_up_once(format):
    with MemoryMonitor(max_memory_mb=1) as monitor:
        monitor.start_monitoring(interval_seconds=0.02)
        with FileBasedAudioManager(devices(), monitor, format=format) as manager:
            assert monitor.is_memory_high()
            path = record(manager, RATE // 2)
            until(lambda: len(monitor.get_history()) > 10)
            statistics = monitor.get_statistics()
            assert statistics["cleanups"] == 1
            assert isinstance(statistics["last_cleanup"]["freed_bytes"], int), "measured"
            monitor.cleanup(force=True)
            assert manager.get_audio_file() == path
            np.testing.assert_array_equal(frames_of(path), noise(len(frames_of(path))))


def test_d15_a_forced_cleanup_while_recording_deletes_nothing(manager):
    assert manager.start_recording()
    assert manager.wait_ready(DEADLINE_S)
    manager.memory_monitor.cleanup(force=True)
    manager.resource_manager.cleanup()
    until(lambda: manager.get_buffer_info()["file_frames"])
    manager.stop_recording()
    got = frames_of(manager.get_audio_file())
    np.testing.assert_array_equal(got, noise(len(got)))


def test_d16_cleanup_and_death_of_another_manager_delete_no_finished_recording(manager):
    path = record(manager)
    for _ in range(2):
        other = FileBasedAudioManager(devices(), manager.memory_monitor)
        record(other)
        other.cleanup()
        del other
        gc.collect()
    manager.memory_monitor.cleanup(force=True)
    manager.cleanup()
    assert len(frames_of(path)) > 0
    assert manager.get_audio_file() == path


def test_cleanup_deletes_what_was_released_and_nothing_else(manager):
    first, second = record(manager), record(manager)
    manager.release_audio_file(first)
    assert manager.get_audio_files() == [second]
    manager.cleanup()
    assert not os.path.exists(first)
    assert os.path.exists(second)
    manager.release_audio_file()
    assert (manager.get_audio_file(), manager.get_audio_files()) == (None, [])
    manager.memory_monitor.cleanup(force=True)
    assert not os.path.exists(second)


def test_temporary_recordings_go_with_their_manager(folder):
    manager = FileBasedAudioManager(devices())
    path = record(manager)
    kept = manager.save_as(folder.parent / "kept.wav")
    path = record(manager)
    assert os.path.exists(path)
    manager.cleanup()
    assert os.path.exists(path)
    del manager
    gc.collect()
    assert os.listdir(folder) == []
    assert os.path.exists(kept)


def test_d22_a_second_recording_does_not_orphan_the_first(manager, tmp_path):
    first, second = record(manager), record(manager)
    assert first != second
    assert manager.get_audio_files() == [first, second]
    assert manager.get_audio_file() == second
    audio = frames_of(first)
    assert manager.save_as(tmp_path / "first.wav", first) == str(tmp_path / "first.wav")
    np.testing.assert_array_equal(frames_of(tmp_path / "first.wav"), audio)
    assert manager.get_audio_files() == [second]
    assert manager.get_audio_file() == second


# ---- save_as --------------------------------------------------------------------------------------------


@pytest.fixture(params=["same", "other"])
def place(request, tmp_path) -> Iterator[Path]:
    """A folder on the file system of the recordings, or on another."""
    if request.param == "same":
        yield tmp_path
        return
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system")
    place = Path("/dev/shm") / f"pcmring-test-{os.getpid()}"
    place.mkdir()
    yield place
    shutil.rmtree(place)


def test_a_saved_recording_is_out_of_care(manager, folder, place):
    path = record(manager)
    audio = frames_of(path)
    saved = manager.save_as(place / "saved.wav")
    assert saved == manager.get_audio_file() == str(place / "saved.wav")
    assert stat.S_IMODE(os.stat(saved).st_mode) == 0o600
    assert (os.listdir(folder), manager.get_audio_files()) == ([], [])
    assert manager.resource_manager.get_temp_files() == []
    manager.cleanup()
    manager.memory_monitor.cleanup(force=True)
    np.testing.assert_array_equal(frames_of(saved), audio)
    with pytest.raises(LookupError):
        manager.save_as(place / "again.wav")
    assert sorted(file.name for file in place.glob("*.wav*")) == ["saved.wav"]


def test_a_file_that_is_there_is_replaced_only_on_request(manager, place):
    path = record(manager)
    (place / "mine.wav").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        manager.save_as(place / "mine.wav")
    assert (place / "mine.wav").read_bytes() == b"mine"
    assert manager.get_audio_file() == path
    audio = frames_of(path)
    manager.save_as(place / "mine.wav", overwrite=True)
    np.testing.assert_array_equal(frames_of(place / "mine.wav"), audio)


def test_a_recording_that_is_out_of_reach_when_it_is_saved_stays_listed_and_can_be_saved_again(manager, place):
    path = record(manager)
    folder = Path(path).parent
    away = folder.with_name("away")
    (place / "mine.wav").write_bytes(b"mine")
    folder.rename(away)
    with pytest.raises(FileNotFoundError):
        manager.save_as(place / "mine.wav", overwrite=True)
    with pytest.raises(FileNotFoundError):
        manager.save_as(place / "new.wav")
    assert not (place / "new.wav").exists()
    away.rename(folder)
    assert manager.get_audio_file() == path
    assert manager.get_audio_files() == [path]
    assert (place / "mine.wav").read_bytes() == b"mine"
    manager.save_as(place / "new.wav")
    assert not os.path.exists(path)


def test_what_cannot_be_saved_stays_where_it_is(manager, place):
    assert manager.start_recording()
    assert manager.wait_ready(DEADLINE_S)
    with pytest.raises(RuntimeError, match="stop_recording"):
        manager.save_as(place / "running.wav")
    manager.stop_recording()
    path = manager.get_audio_file()
    for target, error in ((place / "missing" / "a.wav", FileNotFoundError), (place, FileExistsError)):
        with pytest.raises(error):
            manager.save_as(target)
    with pytest.raises(LookupError, match=r"recording-.*got '/etc/passwd'"):
        manager.save_as(place / "a.wav", "/etc/passwd")
    assert manager.get_audio_files() == [path]
    assert list(place.glob("*.wav*")) == []
    assert len(frames_of(path)) > 0


def test_a_full_disk_under_save_as_leaves_nothing_there(manager, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "pcmring-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        unavailable("this process may not mount a file system")
    try:
        path = record(manager, RATE // 2)
        with pytest.raises(OSError, match="No space left"):
            manager.save_as(place / "a.wav")
        assert os.listdir(place) == []
        assert len(frames_of(path)) > 0
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# ---- accidents ------------------------------------------------------------------------------------------


def test_d33_a_disk_that_fails_ends_the_recording_once_and_the_next_start_works(manager):
    resource = pytest.importorskip("resource")
    errors: list[Exception] = []
    manager.on_stream_error = errors.append
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # Python ignores SIGXFSZ
    try:
        assert manager.start_recording()
        until(lambda: errors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not manager.is_recording
    assert manager.state == "stopped"
    manager.stop_recording()
    (error,) = errors
    assert isinstance(error, RecordingError)
    assert manager.last_error is error
    path = manager.get_audio_file()
    assert (error.path, error.frames, error.reason) == (path, (20_000 - 80) // 2, "File too large")
    np.testing.assert_array_equal(frames_of(path), noise(error.frames))
    assert len(manager.get_latest_audio()) >= error.frames, "the ring still has what the file has not"
    second = record(manager)
    assert manager.last_error is None
    assert manager.get_audio_files() == [path, second]


def test_a_new_file_that_somebody_has_filled_fails_the_start_and_is_left_alone(manager, monkeypatch):
    errors: list[Exception] = []
    manager.on_stream_error = errors.append
    create = manager.resource_manager.create_temp_file

    def create_and_fill(*arguments, **options):
        file = create(*arguments, **options)
        Path(file.path).write_text("not audio")
        return file

    with monkeypatch.context() as patch:
        patch.setattr(manager.resource_manager, "create_temp_file", create_and_fill)
        assert not manager.start_recording()
    (error,) = errors
    assert isinstance(error, RecordingError)
    assert (error.errno, error.frames, manager.last_error) == (errno.EEXIST, 0, error)
    assert Path(error.path).read_text() == "not audio"
    assert record(manager)


def test_a_stalled_disk_has_as_long_as_the_ring_then_new_frames_are_dropped_and_told_of():
    is_full = threading.Event()
    fast = Devices(lambda: GeneratorSource("noise", speed=100))
    with FileBasedAudioManager(fast) as manager:
        manager.on_buffer_full = is_full.set
        assert manager.start_recording()
        path = manager.get_audio_file()
        disk = StalledDisk(manager._recording._file.fileno())
        assert is_full.wait(DEADLINE_S)
        info = manager.get_buffer_info()
        assert info["is_recording"]
        assert info["frames_written"] >= 30 * RATE
        assert info["frames_lost"]["dropped"] > 0
        manager._session.stop()
        in_the_pipe = np.frombuffer(disk.end(), np.int16)
        manager.stop_recording()
        info = manager.get_buffer_info()
        got = np.frombuffer(Path(path).read_bytes()[80:], np.int16)
        assert info["file_gaps"] >= 1
        assert len(got) + len(in_the_pipe) == info["frames_written"]
        # up to the first drop it is the device's audio
        (first, *_) = manager.file_gaps()
        at = first.position - len(in_the_pipe)
        wanted = noise(first.position)[:, 0]
        start = int(np.argmax(np.append(got[:at] != wanted[:at], True)))
        np.testing.assert_array_equal(np.concatenate([got[:start], in_the_pipe, got[start:at]]), wanted)


def test_without_a_folder_nothing_starts_and_the_reason_is_told_once(manager, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    errors: list[Exception] = []
    manager.on_stream_error = errors.append
    assert manager.start_recording() is False
    assert not manager.is_recording
    assert errors == [manager.last_error]
    assert isinstance(errors[0], RecordingError)
    assert "Not a directory" in str(errors[0])
    assert manager.get_audio_file() is None


def test_a_device_that_is_not_there_leaves_no_file(folder):
    with FileBasedAudioManager(devices("no such microphone")) as manager:
        assert manager.start_recording() is False
        assert manager.last_error is not None
        assert (manager.get_audio_file(), manager.get_audio_files()) == (None, [])
    assert not folder.exists() or os.listdir(folder) == []


KILLED = """
with FileBasedAudioManager(AudioDeviceManager(AudioConfig(device="noise")), format=sys.argv[1]) as manager:
    assert manager.start_recording()
    while True:
        print(manager.get_buffer_info()["frames_written"], flush=True)
        time.sleep(0.005)
"""


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_after_kill_9_the_next_process_recovers_all_but_the_last_second(folder, tmp_path, format):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + KILLED, format], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        captured = 0
        while captured < 1.7 * RATE:
            captured = int(process.stdout.readline())
        with FileBasedAudioManager(devices()) as manager:
            assert manager.recover() == [], "its owner lives"
        process.send_signal(signal.SIGKILL)
        captured = max([captured, *map(int, process.stdout.read().split("\n")[:-1])])
    (left,) = (file.name for file in folder.iterdir() if not file.name.startswith("."))
    program = """
with FileBasedAudioManager(AudioDeviceManager()) as manager:
    (path,) = manager.recover()
    assert manager.get_audio_files() == [path] and manager.recover() == []
    print(manager.save_as(sys.argv[1], path))
"""
    assert child(program, tmp_path / "rescued") == str(tmp_path / "rescued")
    assert left not in os.listdir(folder)
    got = frames_of(tmp_path / "rescued")
    assert captured - len(got) <= RATE
    np.testing.assert_array_equal(got, noise(len(got)))


def test_recover_tells_of_frames_after_the_last_flush_and_drops_what_is_empty(folder):
    program = """
import signal
from pcmring._encoders import wav_header
manager = FileBasedAudioManager(AudioDeviceManager())
for header, data in ((3, 1000), (0, 0)):
    file = manager.resource_manager.create_temp_file(".wav")
    with open(file.path, "r+b") as stream:
        stream.write(wav_header(16000, 1, "PCM_16", header) + bytes(2 * data + 1))
from pcmring import AudioBuffer
from pcmring._recording import Recording
from pcmring.devices import ResamplingReader
flac = manager.resource_manager.create_temp_file(".flac")
buffer = AudioBuffer(8000, 1, "int16", samplerate=16000, policy="drop")
recording = Recording(ResamplingReader(buffer, guard=True), flac.path, format="FLAC")
buffer.write([[0.5]] * 1000)  # less than a block
until(lambda: flac.size_bytes > 80)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with FileBasedAudioManager(devices()) as manager:
        (path,) = manager.recover()
        assert len(frames_of(path)) == 1000
        manager.release_audio_file(path)
        manager.cleanup()
    assert os.listdir(folder) == []


def test_what_recover_cannot_repair_is_kept_as_it_is(folder):
    program = """
import signal
file = FileBasedAudioManager(AudioDeviceManager()).resource_manager.create_temp_file(".ogg")
with open(file.path, "r+b") as stream:
    stream.write(b"OggS" * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with FileBasedAudioManager(devices()) as manager:
        (path,) = manager.recover()
        manager.cleanup()
        assert Path(path).read_bytes() == b"OggS" * 100


def test_a_program_that_ends_while_recording_leaves_a_whole_file(folder):
    program = """
manager = FileBasedAudioManager(AudioDeviceManager(AudioConfig(device="noise")))
assert manager.start_recording()
until(lambda: manager.get_buffer_info()["frames_written"] > 3000)
"""
    child(program)
    with FileBasedAudioManager(devices()) as manager:
        (path,) = manager.recover()
        got = frames_of(path)
        assert len(got) > 3000
        np.testing.assert_array_equal(got, noise(len(got)))


# ---- life -----------------------------------------------------------------------------------------------


def test_a_forgotten_manager_warns_and_stops_and_its_file_is_whole():
    manager = FileBasedAudioManager(devices())
    assert manager.start_recording()
    assert manager.wait_ready(DEADLINE_S)
    recording = manager._recording
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del manager
        gc.collect()
    (warning,) = caught
    assert warning.category is ResourceWarning
    assert recording.stop(DEADLINE_S)
    got = frames_of(recording.path)
    assert len(got) == recording.frames > 0
    np.testing.assert_array_equal(got, noise(len(got)))


def test_stop_from_inside_its_own_callbacks_does_not_wait_for_itself(manager):
    stopped = threading.Event()

    def stop(_: object) -> None:
        manager.stop_recording()
        stopped.set()

    manager.on_audio_data = stop
    assert manager.start_recording()
    assert stopped.wait(DEADLINE_S)
    until(lambda: manager.get_audio_files() and manager._audio_files[manager.get_audio_file()].state == "finished")
    got = frames_of(manager.get_audio_file())
    assert len(got) > 0


def test_starting_and_stopping_twice_changes_nothing(manager):
    manager.stop_recording()
    assert manager.start_recording()
    path = manager.get_audio_file()
    assert manager.start_recording()
    assert manager.get_audio_file() == path
    assert manager.wait_ready(DEADLINE_S)
    manager.stop_recording()
    manager.stop_recording()
    assert manager.get_audio_files() == [path]


def test_wrong_formats_are_refused_at_the_door():
    with pytest.raises(ValueError, match="got 'MP3'"):
        FileBasedAudioManager(devices(), format="MP3")
    with pytest.raises(ValueError, match="subtype of FLAC"):
        FileBasedAudioManager(devices(), format="FLAC", subtype="FLOAT")


def test_many_recordings_leave_no_threads_descriptors_or_files(folder):
    def cycle(manager: FileBasedAudioManager) -> None:
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)
        manager.stop_recording()
        manager.release_audio_file()
        manager.cleanup()

    with FileBasedAudioManager(devices()) as manager:
        cycle(manager)
        gc.collect()
        threads, fds = threading.active_count(), psutil.Process().num_fds()
        for _ in range(20):
            cycle(manager)
        gc.collect()
        until(lambda: threading.active_count() <= threads)
        assert psutil.Process().num_fds() == fds
        assert os.listdir(folder) == []
