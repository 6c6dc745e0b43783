"""Recordings: sound files that get what a ring holds."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pcmring import AudioBuffer
from pcmring._encoders import WAV_SAMPLES, make_encoder, repair, wav_header
from pcmring._recording import Recording, RecordingError
from pcmring.devices import GeneratorSource, ResamplingReader
from stalled_disk import StalledDisk
from virtual_mic import need, unavailable

need("psutil", "soundfile")
import psutil  # noqa: E402
import soundfile  # noqa: E402

from patience import DEADLINE_S, until  # noqa: E402

RATE = 16000
FORMATS = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")]
each_format = pytest.mark.parametrize(("format", "subtype"), FORMATS)


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Of all values that 16 bits have."""
    return np.random.default_rng(seed).integers(-(2**15), 2**15, (frames, channels)).astype(np.int16)


def ring(seconds: float = 10.0, channels: int = 1, dtype: str = "int16", samplerate: int = RATE) -> AudioBuffer:
    return AudioBuffer(int(seconds * samplerate), channels, dtype, samplerate=samplerate, policy="drop")


def recorded(path: Path) -> np.ndarray:
    """The file's frames as the int16 they were made of, which every format here holds exactly."""
    audio, _ = soundfile.read(path, dtype="float64", always_2d=True)
    assert np.array_equal(audio * 2**15, np.rint(audio * 2**15))
    return (audio * 2**15).astype(np.int16)


def record(
    buffer: AudioBuffer, path: Path, start="now", samplerate: int | None = None, channels: int | None = None, **settings
) -> Recording:
    rate = buffer.samplerate if samplerate is None else samplerate
    reader = ResamplingReader(buffer, rate, channels or buffer.channels, start=start, guard=True)
    try:
        return Recording(reader, path, **settings)
    except BaseException:
        reader.close()
        raise


@contextlib.contextmanager
def recording(buffer: AudioBuffer, path: Path, **settings) -> Iterator[Recording]:
    running = record(buffer, path, **settings)
    try:
        yield running
    finally:
        assert running.stop(DEADLINE_S)


# ---- what is in the file --------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_file_holds_what_the_ring_held_bit_for_bit(tmp_path, format, subtype, dtype, channels):
    audio = noise(20_011, channels)
    path = tmp_path / "audio"
    with ring(channels=channels, dtype=dtype) as buffer:
        with recording(buffer, path, format=format, subtype=subtype) as running:
            for block in np.array_split(audio, 37):
                buffer.write(block)
        assert (running.error, running.frames, running.active, running.gaps()) == (None, len(audio), False, [])
    about = soundfile.info(path)
    assert (about.frames, about.samplerate, about.channels) == (len(audio), RATE, channels)
    assert (about.format, about.subtype) == (format, subtype)
    np.testing.assert_array_equal(recorded(path), audio)


def test_a_new_file_is_its_users_alone(tmp_path):
    with ring() as buffer, recording(buffer, tmp_path / "a.wav"):
        assert stat.S_IMODE((tmp_path / "a.wav").stat().st_mode) == 0o600


def test_a_wav_is_one_that_pythons_wave_reads(tmp_path):
    audio = noise(1001)
    with ring() as buffer, recording(buffer, tmp_path / "a.wav"):
        buffer.write(audio)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        assert file.readframes(2000) == audio.tobytes()


@pytest.mark.parametrize(
    ("format", "subtype", "bits"), [("WAV", "PCM_16", 16), ("WAV", "PCM_24", 24), ("FLAC", "PCM_16", 16)]
)
def test_d3_d4_floats_become_integers_of_the_right_scale_and_saturate(tmp_path, format, subtype, bits):
    full = 2 ** (bits - 1)
    values = [0.0, 0.5, -0.5, 1.0, 1.2, 2.0, 1e30, np.inf, -1.0, -1.2, -1e30, -np.inf, np.nan, 1.4 / full, 1.6 / full]
    wanted = [0, full // 2, -full // 2, *[full - 1] * 5, *[-full] * 4, 0, 1, 2]
    with ring(dtype="float32") as buffer, recording(buffer, tmp_path / "a", format=format, subtype=subtype):
        buffer.write(np.array(values, np.float32))
    got, _ = soundfile.read(tmp_path / "a", dtype="int32")
    assert (got >> (32 - bits)).tolist() == wanted


def test_a_wav_of_an_odd_number_of_bytes_is_padded(tmp_path):
    with ring() as buffer, recording(buffer, tmp_path / "a.wav", subtype="PCM_24"):
        buffer.write(noise(1001))
    riff = (tmp_path / "a.wav").read_bytes()
    assert len(riff) % 2 == 0
    assert int.from_bytes(riff[4:8], "little") == len(riff) - 8
    assert len(recorded(tmp_path / "a.wav")) == 1001


def test_float_files_keep_what_is_louder_than_full_scale(tmp_path):
    values = np.array([[1.5], [-3.0], [1e-20]], np.float32)
    with ring(dtype="float32") as buffer, recording(buffer, tmp_path / "a", subtype="FLOAT"):
        buffer.write(values)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a", dtype="float32", always_2d=True)[0], values)


def test_another_rate_and_a_down_mix_lose_not_even_what_the_resampler_holds_back(tmp_path):
    need("soxr")
    import soxr

    audio = np.random.default_rng(3).uniform(-0.9, 0.9, (48_000, 2)).astype(np.float32)
    path = tmp_path / "a.wav"
    settings = {"samplerate": RATE, "channels": 1, "subtype": "FLOAT"}
    with ring(channels=2, dtype="float32", samplerate=48_000) as buffer, recording(buffer, path, **settings):
        for block in np.array_split(audio, 50):
            buffer.write(block)
    wanted = soxr.resample(audio.mean(axis=1, dtype=np.float32), 48_000, RATE, quality="HQ")
    got, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(got, wanted)


def test_a_recording_begins_where_it_is_told_and_ends_with_the_buffer(tmp_path):
    audio = noise(3000)
    buffer = ring()
    buffer.write(audio)
    late = record(buffer, tmp_path / "late.wav", start=1234)
    whole = record(buffer, tmp_path / "whole.wav", start="oldest")
    buffer.close()
    until(lambda: not late.active and not whole.active)
    assert late.stop() is True
    np.testing.assert_array_equal(recorded(tmp_path / "late.wav"), audio[1234:])
    np.testing.assert_array_equal(recorded(tmp_path / "whole.wav"), audio)


def test_what_comes_after_stop_is_not_in_the_file(tmp_path):
    with ring(60.0) as buffer, GeneratorSource("noise", dtype="int16", speed=50) as source:
        running = record(buffer, tmp_path / "a.wav")
        source.start(buffer)
        until(lambda: buffer.frames_written > 20_000)
        before = buffer.frames_written
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        until(lambda: running._stopping.is_set())
        after = buffer.frames_written
        stopping.join(DEADLINE_S)
        source.stop()
        assert before <= running.frames <= after
        np.testing.assert_array_equal(recorded(tmp_path / "a.wav"), buffer.read_range(0, running.frames))


@pytest.mark.parametrize("samplerate", [RATE, 8000])
def test_gaps_are_left_out_and_reported_by_their_place_in_the_file(tmp_path, samplerate):
    need("soxr")
    with ring() as buffer:
        buffer.write(noise(100))
        buffer.mark_gap(7, "paused")  # before the file
        with recording(buffer, tmp_path / "a.wav", samplerate=samplerate) as running:
            buffer.write(noise(1000))
            buffer.mark_gap(480, "device_overflow", False)
            buffer.write(noise(1000))
    scale = RATE // samplerate
    assert running.frames == 2000 // scale
    assert running.gaps() == [(1000 // scale, 480 // scale, "device_overflow", False)]


def test_gaps_that_the_ledger_forgot_are_still_those_of_the_file(tmp_path):
    with ring() as buffer, recording(buffer, tmp_path / "a.wav") as running:
        for gaps in (200, 400):  # the ledger keeps 256
            for _ in range(200):
                buffer.write(noise(10))
                buffer.mark_gap(5, "paused")
            buffer.write(noise(10))
            until(lambda gaps=gaps: len(running.gaps()) == gaps)


def test_what_a_ring_overwrote_before_it_was_in_the_file_is_a_gap_too(tmp_path):
    with AudioBuffer(1000, 1, "int16", samplerate=RATE) as buffer:
        reader = ResamplingReader(buffer)
        for block in np.array_split(noise(3000), 10):
            buffer.write(block)
        buffer.mark_gap(50, "paused")
        buffer.write(noise(500))
        running = Recording(reader, tmp_path / "a.wav")
        assert running.stop(DEADLINE_S)
    assert running.frames == 1000
    assert running.gaps() == [(0, 2500, "dropped", True), (500, 50, "paused", True)]


# ---- the file at any moment -----------------------------------------------------------------------------


@each_format
def test_a_running_recording_can_be_read_up_to_its_last_flush(tmp_path, format, subtype):
    audio = noise(3 * RATE)
    with ring() as buffer, recording(buffer, tmp_path / "a", format=format, subtype=subtype) as running:
        buffer.write(audio)
        until(lambda: running.frames > 2 * RATE)
        shutil.copy(tmp_path / "a", tmp_path / "copy")
        got = recorded(tmp_path / "copy")
        assert len(got) > 2 * RATE
        np.testing.assert_array_equal(got, audio[: len(got)])


@each_format
def test_what_comes_after_a_flush_goes_behind_what_was_there(tmp_path, format, subtype):
    audio = noise(20_000)
    with ring() as buffer, recording(buffer, tmp_path / "a", format=format, subtype=subtype) as running:
        buffer.write(audio[:9000])
        until(lambda: running.frames > 8000)
        buffer.write(audio[9000:])
    np.testing.assert_array_equal(recorded(tmp_path / "a"), audio)


@pytest.mark.parametrize("subtype", list(WAV_SAMPLES))
def test_repair_makes_a_header_tell_of_every_whole_frame(tmp_path, subtype):
    audio = noise(1003, 2)
    path = tmp_path / "a.wav"
    with ring(channels=2) as buffer, recording(buffer, path, subtype=subtype):
        buffer.write(audio)
    frame_bytes = 2 * WAV_SAMPLES[subtype][1] // 8
    whole = path.read_bytes()
    header = wav_header(RATE, 2, subtype, 10)  # as the last flush may have left it
    path.write_bytes(header + whole[len(header) : len(header) + 1001 * frame_bytes + frame_bytes // 2])
    np.testing.assert_array_equal(recorded(path), audio[:10])
    repair(path)
    np.testing.assert_array_equal(recorded(path), audio[:1001])
    before = path.read_bytes()
    assert len(before) == len(header) + 1001 * frame_bytes, "half a frame is gone"
    repair(path)
    assert path.read_bytes() == before


def test_repair_leaves_other_files_alone(tmp_path):
    for name, content in {
        "empty": b"",
        "text": b"text" * 100,
        "cut": wav_header(RATE, 1, "PCM_16", 5)[:79],
        "mad": wav_header(RATE, 0, "PCM_16", 5),
    }.items():
        (tmp_path / name).write_bytes(content)
        repair(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    soundfile.write(tmp_path / "b.wav", noise(100), RATE, "PCM_16")
    before = (tmp_path / "b.wav").read_bytes()
    repair(tmp_path / "b.wav")
    assert (tmp_path / "b.wav").read_bytes() == before


def test_a_wav_that_grows_past_4_gib_becomes_rf64_in_place(tmp_path):
    path = tmp_path / "a.wav"
    first, last = noise(100), noise(100, seed=1)
    frames = (2**32 - 1 - 72) // 2
    path.write_bytes(wav_header(RATE, 1, "PCM_16", 100) + first.tobytes())
    for extra, wanted in ((0, "WAV"), (1, "RF64")):
        try:
            os.truncate(path, 80 + 2 * (frames + extra))  # a hole: it takes no place on the disk
        except OSError as error:
            pytest.skip(f"no file of 4 GiB here: {error}")
        with path.open("r+b") as file:
            file.seek(-len(last) * 2, os.SEEK_END)
            file.write(last.tobytes())
        repair(path)
        with soundfile.SoundFile(path) as file:
            assert (file.format, file.frames) == (wanted, frames + extra)
            np.testing.assert_array_equal(file.read(100, dtype="int16"), first[:, 0])
            file.seek(frames + extra - 100)
            np.testing.assert_array_equal(file.read(dtype="int16"), last[:, 0])


def test_a_program_that_ends_without_stop_leaves_a_whole_file(tmp_path):
    program = """
import sys, numpy as np
from pcmring import AudioBuffer
from pcmring._recording import Recording
from pcmring.devices import ResamplingReader
buffer = AudioBuffer(50_000, 1, "int16", samplerate=16000, policy="drop")
recording = Recording(ResamplingReader(buffer, guard=True), sys.argv[1])
buffer.write(np.arange(-15_000, 15_000).astype(np.int16))
"""
    child(program, tmp_path / "a.wav")
    np.testing.assert_array_equal(recorded(tmp_path / "a.wav")[:, 0], np.arange(-15_000, 15_000))


# ---- the disk ---------------------------------------------------------------------------------------------


def child(program: str, *arguments: object) -> str:
    """Run `program` in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill(folder: Path, format: str, subtype: str) -> tuple[RecordingError, np.ndarray]:
    """Record into `folder` until that fails; the error, and what was fed."""
    audio = noise(4 * RATE)
    ends: list[Recording] = []
    with ring() as buffer:
        running = record(buffer, folder / "a", format=format, subtype=subtype, on_end=ends.append)
        buffer.write(audio)
        until(lambda: ends)
        assert ends == [running]
        assert not running.active
        assert running.stop() is True
        # the ring is not guarded any more: it goes on, and keeps the newest
        buffer.write(noise(buffer.capacity, seed=1))
        np.testing.assert_array_equal(buffer.get_latest(buffer.capacity), noise(buffer.capacity, seed=1))
    assert running.error is not None
    return running.error, audio


def check_what_is_safe(error: RecordingError, audio: np.ndarray, least_bytes: int) -> None:
    path = Path(error.path)
    got = recorded(path)
    assert len(got) == error.frames < len(audio)
    assert path.stat().st_size >= least_bytes, "what fitted was kept"
    np.testing.assert_array_equal(got, audio[: len(got)])
    assert f"{error.frames} frames ({error.frames / RATE:.3f} s) are safe" in str(error)
    assert repr(str(path)) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.errno, copy.frames) == (str(error), error.errno, error.frames)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "pcmring-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        unavailable("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@each_format
def test_a_full_disk_ends_the_recording_once_and_keeps_what_fitted(small_disk, format, subtype):
    error, audio = fill(small_disk, format, subtype)
    assert (error.errno, error.reason) == (28, "No space left on device")
    check_what_is_safe(error, audio, least_bytes=40_000)


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_24"), ("FLAC", "PCM_16")])
def test_a_file_that_may_not_grow_ends_the_recording_once_and_keeps_what_fitted(tmp_path, format, subtype):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # Python ignores SIGXFSZ
    try:
        error, audio = fill(tmp_path, format, subtype)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.reason == "File too large"
    check_what_is_safe(error, audio, least_bytes=35_000)


@each_format
def test_a_thread_that_is_out_of_memory_ends_the_recording_once_and_keeps_what_was_written(tmp_path, format, subtype):
    class Hungry(ResamplingReader):
        def read(self, frames: int, timeout: float | None = 0.0) -> np.ndarray:
            if self.position > 2 * RATE:
                raise MemoryError
            return super().read(frames, timeout)

    ends: list[Recording] = []
    audio = noise(3 * RATE)
    with ring() as buffer:
        reader = Hungry(buffer, guard=True)
        running = Recording(reader, tmp_path / "a", format=format, subtype=subtype, on_end=ends.append)
        buffer.write(audio)
        until(lambda: ends)
        assert running.error is not None
        assert running.error.reason == "MemoryError()"
        assert running.frames > 2 * RATE
        np.testing.assert_array_equal(recorded(tmp_path / "a"), audio[: running.frames])


def test_a_flac_has_nothing_after_a_block_that_could_not_be_written(tmp_path):
    """Also where the disk works again."""

    class Disk(io.FileIO):
        fails = False

        def write(self, data) -> int:
            if self.fails:
                self.fails = False
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(data)

    audio = noise(12_000)
    block = audio.astype(np.float32) / 2**15
    with Disk(tmp_path / "a.flac", "w+") as disk:
        encoder = make_encoder(disk, "FLAC", RATE, 1, "PCM_16")
        encoder.append(block[:5000])
        disk.fails = True
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            encoder.append(block[5000:])
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            encoder.finish()
    np.testing.assert_array_equal(recorded(tmp_path / "a.flac"), audio[: encoder.frames])
    assert encoder.frames == 4096


def test_a_disk_without_room_for_a_header_refuses_the_recording(small_disk):
    (small_disk / "b").write_bytes(b"")
    with contextlib.suppress(OSError):
        (small_disk / "full").write_bytes(bytes(100_000))
    with ring() as buffer:
        for name in "ab":
            with pytest.raises(RecordingError, match="0 frames") as failure:
                record(buffer, small_disk / name)
            assert failure.value.errno == 28
    assert sorted(os.listdir(small_disk)) == ["b", "full"]
    assert (small_disk / "b").stat().st_size == 0


def test_a_read_only_folder_refuses_the_recording(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with ring() as buffer, pytest.raises(RecordingError, match="Read-only file system") as failure:
        record(buffer, small_disk / "a")
    assert failure.value.errno == 30
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_missing_folder_refuses_the_recording_and_leaves_no_reader(tmp_path):
    with ring(1.0) as buffer:
        with pytest.raises(RecordingError, match="No such file or directory") as failure:
            record(buffer, tmp_path / "missing" / "a.wav")
        assert isinstance(failure.value.__cause__, FileNotFoundError)
        buffer.write(noise(buffer.capacity))
        assert buffer.write(noise(100)) == 100, "no guard was left"


def test_a_file_with_something_in_it_is_refused_and_untouched(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"mine")
    with ring() as buffer, pytest.raises(FileExistsError):
        record(buffer, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == b"mine"


def test_a_stalled_disk_never_reaches_the_capture(tmp_path):
    path = tmp_path / "a.wav"
    with ring(2.0) as buffer, GeneratorSource("noise", dtype="int16", speed=20) as source:
        running = record(buffer, path)
        disk = StalledDisk(running._file.fileno())
        source.start(buffer)
        # what exceeds the ring is dropped and in the ledger; the capture goes on
        until(lambda: buffer.frames_written >= buffer.capacity and buffer.statistics().frames_lost["dropped"] > RATE)
        assert running.active
        assert running.stop(0.0) is False, "stop can be told not to wait"
        source.stop()
        written = disk.end()
        assert running.stop(DEADLINE_S)
        assert running.error is None
        written += path.read_bytes()[80:]
        assert len(written) == 2 * buffer.frames_written
        assert written.endswith(buffer.read_range(buffer.oldest, buffer.frames_written).tobytes())


# ---- life ---------------------------------------------------------------------------------------------------


def test_arguments_are_checked_at_the_door(tmp_path):
    with ring() as buffer:
        for wrong, message in (
            ({"format": "MP3"}, "'WAV', 'FLAC', got 'MP3'"),
            ({"subtype": "PCM_8"}, "'PCM_16', 'PCM_24', 'FLOAT', got 'PCM_8'"),
            ({"format": "FLAC", "subtype": "FLOAT"}, "subtype of FLAC"),
            ({"samplerate": 22_050.5}, "whole samplerate"),
        ):
            with pytest.raises(ValueError, match=message):
                record(buffer, tmp_path / "a.wav", **wrong)
    assert os.listdir(tmp_path) == []


def test_stop_from_inside_the_callback_at_the_end_does_not_wait_for_itself(small_disk):
    answers = []
    with ring() as buffer:
        record(buffer, small_disk / "a", on_end=lambda recording: answers.append(recording.stop()))
        buffer.write(noise(4 * RATE))
        until(lambda: answers)
    assert answers == [True]


def test_recordings_leave_no_threads_descriptors_or_guards(tmp_path):
    def cycle(number: int) -> None:
        with ring(0.5) as buffer:
            buffer.write(noise(10))
            running = record(buffer, tmp_path / str(number), start=0, format=("WAV", "FLAC")[number % 2])
            assert running.stop(DEADLINE_S)
            assert len(recorded(tmp_path / str(number))) == 10

    cycle(0)
    cycle(1)
    threads, fds = threading.active_count(), psutil.Process().num_fds()
    for number in range(2, 22):
        cycle(number)
    until(lambda: threading.active_count() <= threads)
    assert psutil.Process().num_fds() == fds


def test_a_forked_child_neither_waits_for_the_recording_nor_disturbs_it(tmp_path):
    program = """
import os, sys, warnings, numpy as np
from pcmring import AudioBuffer
from pcmring._recording import Recording
from pcmring.devices import ResamplingReader
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
buffer = AudioBuffer(50_000, 1, "int16", samplerate=16000, policy="drop")
recording = Recording(ResamplingReader(buffer, guard=True), sys.argv[1])
buffer.write(np.arange(1000, dtype=np.int16))
pid = os.fork()
if pid == 0:
    assert not recording.active and recording.stop()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0 and recording.active
buffer.write(np.arange(1000, 2000, dtype=np.int16))
assert recording.stop(30)
"""
    child(program, tmp_path / "a.wav")
    np.testing.assert_array_equal(recorded(tmp_path / "a.wav")[:, 0], np.arange(2000))


@pytest.mark.parametrize(("format", "least_s"), [("WAV", 1.0), ("FLAC", 1.0)])
def test_after_kill_9_the_file_ends_less_than_a_second_before_the_kill(tmp_path, format, least_s):
    """Without any repair."""
    program = """
import sys, time
from pcmring import AudioBuffer
from pcmring._recording import Recording
from pcmring.devices import ResamplingReader
from pcmring.devices import GeneratorSource
with GeneratorSource("noise", dtype="int16") as source:
    buffer = AudioBuffer(80_000, 1, "int16", samplerate=16000, policy="drop")
    recording = Recording(ResamplingReader(buffer, guard=True), sys.argv[1], format=sys.argv[2])
    source.start(buffer)
    while True:
        print(buffer.frames_written, flush=True)
        time.sleep(0.005)
"""
    path = tmp_path / "a"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path), format], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        captured = 0
        while captured < (least_s + 0.7) * RATE:
            captured = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        captured = max([captured, *map(int, process.stdout.read().split("\n")[:-1])])
    got = recorded(path)
    assert captured - len(got) <= RATE
    with ring() as buffer, GeneratorSource("noise", dtype="int16", speed=1000) as source:
        source.start(buffer)
        np.testing.assert_array_equal(got, buffer.read(len(got), timeout=DEADLINE_S))
