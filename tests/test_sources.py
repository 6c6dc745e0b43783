"""Sources: a sound card through PortAudio, sound files, generators; and reading them at another rate."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import math
import threading
import time
import warnings
from unittest.mock import ANY  # equals anything

import numpy as np
import pytest

from native_support import IS_REQUIRED
from patience import until
from pcmring import AudioBuffer, BufferClosed
from pcmring.devices import FileSource, GeneratorSource, ResamplingReader, Source, SourceError
from virtual_mic import VirtualMics, need, virtual_mics

DEADLINE_S = 30.0

needs_soxr = pytest.mark.skipif(
    importlib.util.find_spec("soxr") is None and not IS_REQUIRED, reason="soxr is not installed"
)


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


#: One microphone, the default.
MIC = {"default": {"rate": 16000}}


def fast(speed: int = 10) -> dict[str, dict[str, object]]:
    return {"default": {"rate": 16000, "speed": speed}}


# ---- the sound card -------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_captured_audio_is_the_devices_bit_for_bit(mics, dtype):
    # 10 times real time, with 1 s of device buffer to be late in
    got = mics.call("capture", mics=fast(), frames=160_000, dtype=dtype, block_frames=1024)
    assert (got["first"], got["jumps"], got["gaps"]) == (1, [], [])
    assert (got["frames"], got["dtype"], got["samplerate"], got["channels"]) == (160_000, dtype, 16000, 1)
    assert got["running"] == [True, False]
    assert got["after"] == [False, False, None]
    assert got["arrival_ok"]
    assert got["counted"]
    assert got["counters"]["overflows"] == got["counters"]["empty"] == 0
    assert got["largest_block"] == 1024


@pytest.mark.native
def test_every_channel_of_a_stereo_device_keeps_its_place(mics):
    got = mics.call(
        "capture", mics={"default": {"rate": 48000, "channels": 2}}, frames=24_000, channels=2, samplerate=48000
    )
    assert (got["first"], got["jumps"], got["channel_steps"]) == (1, [], [1])


@pytest.mark.native
def test_a_recorded_file_comes_out_of_the_microphone_bit_for_bit(mics, tmp_path):
    audio = np.random.default_rng(5).integers(-(2**15), 2**15, 3001).astype(np.int16)
    audio.tofile(tmp_path / "audio.raw")
    microphone = {"default": {"rate": 16000, "infile": str(tmp_path / "audio.raw")}}
    got = mics.call("infile_capture", mics=microphone, path=str(tmp_path / "audio.raw"), frames=8000)
    assert got == {"int16": True, "float32": True}


@pytest.mark.native
def test_a_device_that_refuses_the_rate_is_opened_at_its_own(mics):
    got = mics.call("capture", mics={"default": {"rate": 44100, "channels": 2}}, frames=4410, block_frames=160)
    assert got["samplerate"] == 44100
    assert (got["first"], got["jumps"]) == (1, [])
    assert got["largest_block"] == 441  # 10 ms as before


@pytest.mark.native
def test_holding_the_gil_loses_no_frame(mics):
    got = mics.call("capture_while_the_gil_is_held", mics=MIC, hold_s=0.5, times=6)
    assert (got["first"], got["jumps"], got["gaps"], got["overflows"]) == (1, [], 0, 0)
    assert min(got["during"]) >= 0.25 * 16000, "frames came while no Python could run"


@pytest.mark.native
def test_a_python_callback_loses_frames_under_the_same_conditions(mics):
    """Else the test above would prove nothing."""
    got = mics.call("capture_with_a_python_callback", mics=MIC, hold_s=0.5, times=6)
    assert got["missing"] > 0.1 * got["frames"]


@pytest.mark.native
@pytest.mark.parametrize("privileged", [True, False])
def test_portaudios_thread_alone_comes_before_all_that_is_not_realtime_where_the_system_allows_it(mics, privileged):
    got = mics.call("priorities", mics=MIC, privileged=privileged)
    assert got["realtime"] == got["fifo"] == (privileged and got["allowed"])
    assert not got["before"]
    assert not got["main_is_realtime"]
    assert got["jumps"] == []


@pytest.mark.native
def test_portaudio_is_not_asked_about_a_stream_whose_close_was_interrupted(mics):
    got = mics.call("stop_interrupted_in_close", mics=MIC)
    assert got["was_raised"]
    assert got["frames"] == got["counted"] > 0


@pytest.mark.native
def test_an_overflow_in_the_device_is_a_gap_in_the_ledger(mics):
    stalled = {"default": {"rate": 16000, "stall_at": 8000, "stall_frames": 8000}}
    got = mics.call("overflow", mics=stalled)
    ((at, missing),) = got["jumps"]
    assert {(gap["cause"], gap["exact"]) for gap in got["gaps"]} == {("device_overflow", False)}
    # PortAudio cuts the device's frames into blocks: some from before the gap may share its first block. It may
    # also flag the block after, where the clock shows nothing missing any more.
    gap = got["gaps"][0]
    assert gap["position"] <= at < gap["position"] + 256
    assert abs(gap["frames"] - missing) <= 256
    assert got["lost"] == sum(gap["frames"] for gap in got["gaps"]) == pytest.approx(missing, abs=512)
    assert got["counters"]["overflows"] == len(got["gaps"])


@pytest.mark.native
def test_frames_have_the_time_at_which_they_were_captured(mics):
    got = mics.call("times_of_frames", mics=MIC)
    assert got["clock"] == "adc"
    # Between the beginning and the end of the start call, give and take a block's time.
    assert got["early"] < 0.05
    assert got["late"] < 0.05
    assert got["span"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.native
def test_starting_and_stopping_leaves_nothing_behind(mics):
    got = mics.call("cycles", mics=fast(), count=50)
    before, after = got["before"], got["after"]
    assert after["threads"] == before["threads"]
    assert after["fds"] == before["fds"]
    assert after["mappings"] <= before["mappings"] + 4  # the heap may grow; a leak would be 50


@pytest.mark.native
def test_wrong_moments_are_refused_and_the_next_start_works(mics):
    got = mics.call("misuse", mics=MIC)
    assert "must have 1 channels" in got.pop("channels")
    assert "must be 16000 Hz" in got.pop("samplerate")
    assert got.pop("closed").startswith("BufferClosed")
    assert "started already" in got.pop("twice")
    assert "one producer at a time" in got.pop("writer")
    assert "one producer at a time" in got.pop("two producers")
    assert "is not open" in got.pop("not open")
    assert got == {"again": None, "reopened": None, "converted": None}


@pytest.mark.native
def test_closing_the_buffer_ends_the_stream_without_an_error(mics):
    assert mics.call("buffer_closed_first", mics=MIC) == [True, False, True, None]


@pytest.mark.native
def test_after_stop_nothing_is_written_whoever_stopped_it(mics):
    assert mics.call("stop_from_many_threads", mics=MIC) == [1, 1]


@pytest.mark.native
def test_a_forgotten_source_warns_and_stops(mics):
    assert mics.call("forgotten", mics=MIC) == ["ResourceWarning"]


@pytest.mark.native
def test_an_interpreter_may_end_while_streaming(mics):
    assert mics.call("exit_while_streaming", mics=MIC) == [0, "", ""]


@pytest.mark.native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_no_stream_and_does_not_disturb_the_parents(mics):
    got = mics.call("fork_while_streaming", mics=MIC)
    assert got == {"child": [False, "default belongs to the parent process"], "jumps": []}


@pytest.mark.native
def test_a_device_that_fails_is_noticed_and_can_be_opened_when_it_is_back(mics, tmp_path):
    control = str(tmp_path / "control")
    got = mics.call("died", mics={"mic": {"rate": 16000, "control": control}}, control=control)
    assert "stop the sources first" in got["refresh"][1]
    assert got["ended"]
    assert got["state"] == [False, True, "SourceError"]
    assert got["stopped"] == [False, True, "mic: the stream ended: the device is gone or failed"]
    assert got["kept"] == []
    assert got["log"] == ["mic ended by itself"]
    assert "no device 'mic'" in got["gone"][1]
    assert got["back"] == [True, False, None]


@pytest.mark.native
@pytest.mark.parametrize(("how", "comes_back"), [("silent", True), ("unplugged", True), ("unplugged", False)])
def test_a_device_that_delivers_nothing_more_can_be_stopped_all_the_same(mics, tmp_path, how, comes_back):
    """PortAudio calls such a stream active. On ALSA its thread waits for minutes, or restarts for ever."""
    control = str(tmp_path / "control")
    got = mics.call(
        "stops_delivering",
        mics={"default": {"rate": 16000, "control": control}},
        control=control,
        how=how,
        comes_back=comes_back,
    )
    assert got["state"] == [True, False]
    assert got["stop_s"] < 5.0
    assert not got["hogs_a_core"]  # it errs without end
    left_behind = ["PortAudio does not give up a device that is gone: its thread is left behind"]
    assert got["log"] == (left_behind if how == "unplugged" else [])
    if not comes_back:  # and the process has ended, which PortAudio would not have let it
        assert "PortAudio hangs" in got["refresh"][1]


# ---- files ----------------------------------------------------------------------------------------------


def write_file(path, audio, samplerate=16000, **options):
    need("soundfile")
    import soundfile

    soundfile.write(path, audio, samplerate, **options)
    return path


def play(source, **ring):
    """All that a source delivers, through a ring that makes it wait."""
    with source:
        ring = {"policy": "block", "samplerate": source.samplerate, **ring}
        with AudioBuffer(4096, source.channels, source.dtype, **ring) as buffer:
            reader = buffer.reader(guard=True)
            source.start(buffer)
            parts = []
            while not source.wait(0.0) or reader.available:
                parts.append(reader.read(1000, timeout=0.05))
            source.stop()
            return np.concatenate(parts) if parts else None


@pytest.mark.parametrize(
    ("suffix", "subtype", "channels", "samplerate", "dtype"),
    [
        ("wav", "PCM_U8", 1, 8000, "int16"),
        ("wav", "PCM_16", 1, 16000, "int16"),
        ("wav", "PCM_16", 2, 48000, "int16"),
        ("wav", "PCM_24", 1, 44100, "int32"),
        ("wav", "PCM_32", 7, 16000, "int32"),
        ("wav", "FLOAT", 2, 16000, "float32"),
        ("wav", "DOUBLE", 1, 16000, "float64"),
        ("flac", "PCM_16", 1, 16000, "int16"),
        ("flac", "PCM_24", 2, 48000, "int32"),
        ("aiff", "PCM_16", 2, 22050, "int16"),
    ],
)
def test_a_file_is_delivered_bit_for_bit_in_its_own_format(tmp_path, suffix, subtype, channels, samplerate, dtype):
    noise = np.random.default_rng(3).uniform(-0.9, 0.9, (20_011, channels))
    path = write_file(tmp_path / f"a.{suffix}", noise, samplerate, subtype=subtype)
    import soundfile

    expected, _ = soundfile.read(path, dtype=dtype, always_2d=True)
    source = FileSource(path, speed=math.inf)
    with source:
        assert (source.samplerate, source.channels, source.dtype) == (samplerate, channels, np.dtype(dtype))
        assert source.frames == len(noise)
    np.testing.assert_array_equal(play(source), expected)
    assert (source.finished, source.error, source.active) == (True, None, False)
    assert source.counters.frames == len(noise)


def test_a_ring_of_another_dtype_converts(tmp_path):
    path = write_file(tmp_path / "a.wav", np.array([-32768, 0, 16384], np.int16))
    with FileSource(path, speed=math.inf) as source, AudioBuffer(100) as buffer:
        source.start(buffer)
        assert source.wait(DEADLINE_S)
        np.testing.assert_array_equal(buffer.read(3)[:, 0], np.float32([-1.0, 0.0, 0.5]))


def test_a_file_without_frames_ends_at_once(tmp_path):
    path = write_file(tmp_path / "a.wav", np.empty((0, 1)))
    with FileSource(path) as source, AudioBuffer(100) as buffer:
        source.start(buffer)
        assert source.wait(DEADLINE_S)
        assert (source.finished, source.error, buffer.frames_written) == (True, None, 0)


def test_a_truncated_wav_is_delivered_as_far_as_it_goes(tmp_path):
    audio = np.random.default_rng(3).integers(-(2**15), 2**15, (5000, 1)).astype(np.int16)
    path = write_file(tmp_path / "a.wav", audio)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 3000])
    np.testing.assert_array_equal(play(FileSource(path, speed=math.inf)), audio[:3000])


def test_a_truncated_flac_keeps_what_came_before(tmp_path):
    audio = np.random.default_rng(3).integers(-(2**15), 2**15, (50_000, 1)).astype(np.int16)
    path = write_file(tmp_path / "a.flac", audio)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = FileSource(path, speed=math.inf)
    got = play(source)
    assert 4096 < len(got) < 50_000
    np.testing.assert_array_equal(got, audio[: len(got)])
    assert source.finished


@pytest.mark.parametrize("content", [b"", b"not audio", b"RIFF\x24\x00\x00\x00WAVEfmt ", bytes(1000)])
def test_a_file_that_is_not_audio_is_refused_with_its_name(tmp_path, content):
    need("soundfile")
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.wav: not a sound file") as caught:
        FileSource(path).open()
    assert caught.value.source == str(path)


def test_a_headerless_file_is_refused(tmp_path):
    need("soundfile")
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(SourceError, match="does not tell its format"):
        FileSource(tmp_path / "a.raw").open()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    need("soundfile")
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "a.wav").open()
    with pytest.raises(SourceError):
        FileSource(tmp_path).open()


def test_a_file_that_breaks_while_it_plays_ends_with_an_error(tmp_path):
    path = write_file(tmp_path / "a.wav", np.zeros(100))
    with FileSource(path, speed=math.inf) as source, AudioBuffer(1000) as buffer:

        class Broken:
            def seekable(self):
                return False

            def read(self, frames, dtype, always_2d):
                raise RuntimeError("bad sector")

        source._file.close()
        source._file, whole = Broken(), source._file
        source.start(buffer)
        assert source.wait(DEADLINE_S)
        source.stop()
        source._file = whole
        assert isinstance(source.error, SourceError)
        assert str(source.error) == f"{path}: bad sector"
        assert source.finished


# ---- pacing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1.0, 4.0])
def test_frames_arrive_when_a_device_would_have_delivered_them(speed):
    """By the stamps: never before their time, and the median within a few milliseconds of it."""
    source = GeneratorSource("silence", block_frames=160, speed=speed)
    with source, AudioBuffer(16000, samplerate=16000) as buffer:
        source.start(buffer)
        buffer.read(8000, timeout=DEADLINE_S)
        source.stop()
        stamps = buffer._stamps()
    due_ns = np.array([source.begin_ns + (at + frames) / (16000 * speed) * 1e9 for at, frames, _, _ in stamps])
    late_ms = (np.array([ns for *_, ns in stamps]) - due_ns) / 1e6
    assert len(stamps) >= 20  # they are thinned
    assert late_ms.min() >= -0.001
    assert np.median(late_ms) < 10.0


def test_the_times_of_a_paced_source_are_those_of_capture():
    with GeneratorSource("silence", block_frames=160) as source, AudioBuffer(16000, samplerate=16000) as buffer:
        source.start(buffer)
        buffer.read(8000, timeout=DEADLINE_S)
        source.stop()
        for position in (0, 4000, 8000):
            time_s = buffer.time_of(position)
            assert time_s.clock == "monotonic"
            assert time_s == pytest.approx(source.begin_ns * 1e-9 + position / 16000, abs=0.02)


def test_what_was_due_during_a_stall_comes_at_once(monkeypatch):
    """The deadlines are absolute: after a late block the next ones are not late by as much."""
    now = [10**12]
    waits = []
    monkeypatch.setattr("pcmring._sources.time.monotonic_ns", lambda: now[0])

    class Stopping(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            now[0] += round(timeout * 1e9)
            if len(waits) == 3:
                now[0] += 1_000_000_000  # woken a second late
            return len(waits) == 6

    from pcmring import _sources

    with AudioBuffer(100_000) as buffer:
        source = GeneratorSource("silence", block_frames=1600)
        run = _sources._Run("x", source._blocks(), buffer, 16000.0)
        run.stopping = Stopping()
        run._work()
    assert waits == pytest.approx([0.1] * 6)
    # 3 on time, with the third a second late 10 more that were due, 2 more on time; stopped before the next
    assert run.frames == 1600 * (3 + 10 + 2)
    assert not run.finished


# ---- generators -----------------------------------------------------------------------------------------


def generated(kind, frames=3000, **options):
    source = GeneratorSource(kind, speed=math.inf, **options)
    with AudioBuffer(frames, source.channels, source.dtype, policy="block", samplerate=source.samplerate) as buffer:
        source.start(buffer)
        got = buffer.read(frames, timeout=DEADLINE_S)
        source.stop()
    return got


def test_a_tone_is_the_sine_it_should_be():
    got = generated("tone", frequency=1000.0, amplitude=0.25, channels=2)
    expected = 0.25 * np.sin(2 * np.pi * 1000 / 16000 * np.arange(3000))
    np.testing.assert_allclose(got, np.stack([expected] * 2, axis=1), atol=1e-6)


def test_a_tone_in_integers_uses_full_scale():
    got = generated("tone", frequency=4000.0, amplitude=1.0, dtype="int16")
    assert got[:4, 0].tolist() == [0, 32767, 0, -32767]


def test_noise_is_the_same_for_the_same_seed_and_any_block():
    noise = generated("noise", seed=7, channels=2, amplitude=0.5)
    np.testing.assert_array_equal(noise, generated("noise", seed=7, channels=2, block_frames=37))
    assert not np.array_equal(noise, generated("noise", seed=8, channels=2))
    assert 0.49 < np.abs(noise).max() <= 0.5
    assert abs(float(np.corrcoef(noise.T)[0, 1])) < 0.1


def test_silence_is_silent():
    assert not generated("silence", dtype="int32").any()


def test_each_start_brings_the_same_signal_from_its_beginning():
    source = GeneratorSource("noise", speed=math.inf)
    found = []
    for _ in range(2):
        with AudioBuffer(1000, policy="block") as buffer:
            source.start(buffer)
            found.append(buffer.read(1000, timeout=DEADLINE_S))
            source.stop()
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"kind": "sine"}, ValueError),
        ({"kind": ANY}, ValueError),
        ({"kind": "noise", "seed": "7"}, TypeError),
        ({"kind": "noise", "seed": -1}, ValueError),
        ({"kind": "tone", "samplerate": 0}, ValueError),
        ({"kind": "tone", "samplerate": math.inf}, ValueError),
        ({"kind": "tone", "samplerate": "16000"}, TypeError),
        ({"kind": "tone", "channels": 65}, ValueError),
        ({"kind": "tone", "channels": 1.0}, TypeError),
        ({"kind": "tone", "dtype": "int8"}, TypeError),
        ({"kind": "tone", "amplitude": 1.1}, ValueError),
        ({"kind": "tone", "amplitude": math.nan}, ValueError),
        ({"kind": "tone", "frequency": -1.0}, ValueError),
        ({"kind": "tone", "block_frames": 0}, ValueError),
        ({"kind": "tone", "speed": 0.0}, ValueError),
        ({"kind": "tone", "speed": math.nan}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_with_their_value(arguments, error):
    wrong = str(list(arguments.values())[-1])
    with pytest.raises(error, match="must be") as caught:
        GeneratorSource(**arguments)
    assert wrong in str(caught.value)


# ---- the life of a paced source -------------------------------------------------------------------------


def test_all_sources_follow_the_protocol(tmp_path):
    from pcmring.devices import PortAudioSource

    for source in (GeneratorSource("tone"), FileSource("a.wav"), PortAudioSource()):
        assert Source in type(source).__mro__
        assert (source.active, source.finished, source.error, source.last_arrival_ns) == (False, False, None, 0)
        assert source.counters.frames == 0
        assert source.wait(0.0)
        source.stop()
        source.close()


def test_stop_returns_at_once_and_nothing_is_written_after_it():
    """A block lasts a minute: a thread that slept it out would be seen."""
    with GeneratorSource("tone", block_frames=16000 * 60) as source, AudioBuffer(1000) as buffer:
        source.start(buffer)
        begin = time.monotonic()
        source.stop()
        assert time.monotonic() - begin < 20.0
        assert (source.active, source.finished, buffer.frames_written) == (False, False, 0)
        buffer.write(np.zeros(1, np.float32))


def test_stop_ends_a_write_that_waits_for_space():
    with GeneratorSource("tone", speed=math.inf) as source, AudioBuffer(1000, policy="block") as buffer:
        source.start(buffer)
        buffer.read(1, timeout=DEADLINE_S)
        source.stop()
        assert not source.active
        assert source.counters.frames == buffer.frames_written


def test_a_full_ring_under_drop_is_accounted_for():
    source = GeneratorSource("tone", speed=math.inf, block_frames=300)
    with AudioBuffer(1000, policy="drop") as buffer:
        source.start(buffer)
        while source.counters.blocks < 10:
            time.sleep(0.001)
        source.stop()
        statistics = buffer.statistics()
        assert source.counters.frames == buffer.frames_written == 1000
        assert statistics.frames_lost["dropped"] == 300 * source.counters.blocks - 1000


def test_a_source_that_is_out_of_memory_ends_with_an_error():
    class Hungry(GeneratorSource):
        def _blocks(self):
            yield np.zeros((160, 1), np.float32)
            raise MemoryError

    with Hungry("silence", speed=100) as source, AudioBuffer(1000, samplerate=16000) as buffer:
        source.start(buffer)
        assert source.wait(DEADLINE_S)
        assert source.finished
        assert isinstance(source.error, SourceError)
        assert "MemoryError" in str(source.error)
        assert buffer.frames_written == 160


def test_a_closed_buffer_ends_the_source_without_an_error():
    source = GeneratorSource("tone", speed=math.inf)
    buffer = AudioBuffer(1000, policy="block")
    source.start(buffer)
    buffer.read(1, timeout=DEADLINE_S)
    buffer.close()
    assert source.wait(DEADLINE_S)
    assert (source.active, source.finished, source.error) == (False, True, None)
    source.stop()


def test_another_producer_is_refused_before_anything_starts():
    with AudioBuffer(1000) as buffer, GeneratorSource("tone") as source:
        from pcmring import CaptureCallback

        with CaptureCallback(buffer), pytest.raises(RuntimeError, match="one producer"):
            source.start(buffer)
        assert not source.active
        source.start(buffer)
        with pytest.raises(RuntimeError, match="started already"):
            source.start(buffer)


def test_a_producer_that_comes_in_between_ends_the_source_with_an_error():
    from pcmring import CaptureCallback

    source = GeneratorSource("tone", block_frames=1600)
    with AudioBuffer(1000) as buffer:
        source.start(buffer)
        with CaptureCallback(buffer):
            assert source.wait(DEADLINE_S)
        assert "one producer" in str(source.error)
        source.stop()


def test_a_buffer_of_another_format_is_refused():
    source = GeneratorSource("tone")
    with AudioBuffer(1000, 2) as buffer, pytest.raises(ValueError, match="must have 1 channels"):
        source.start(buffer)
    with AudioBuffer(1000, samplerate=8000) as buffer, pytest.raises(ValueError, match="must be 16000 Hz"):
        source.start(buffer)


def test_a_ring_that_waits_for_its_reader_gets_every_frame():
    wanted = np.random.default_rng(0).uniform(-0.5, 0.5, (10_000, 1)).astype(np.float32)
    with AudioBuffer(1000, samplerate=16_000, policy="block") as buffer:
        reader = buffer.reader(0, guard=True)
        source = GeneratorSource("noise", block_frames=1600, speed=math.inf)
        source.start(buffer)
        until(lambda: source.counters.frames == 1000)  # a write has given up waiting
        got = np.concatenate([reader.read(500, DEADLINE_S) for _ in range(20)])
        source.stop()
    np.testing.assert_array_equal(got, wanted)


def test_an_interruption_is_as_long_as_the_time_that_no_frame_is_of():
    with AudioBuffer(32_000, samplerate=16_000) as buffer:
        source = GeneratorSource("tone", block_frames=16_000, speed=math.inf)
        source.start(buffer, missing_since_ns=time.monotonic_ns() - 2_000_000_000)
        until(lambda: source.counters.blocks)
        source.stop()
        (gap,) = buffer.gaps()
    assert (gap.position, gap.cause, gap.exact) == (0, "reopened", False)
    assert 16_000 <= gap.frames < 28_000  # two seconds, one of which is the block's


def test_an_ended_source_can_be_started_again_without_a_stop(tmp_path):
    path = write_file(tmp_path / "a.wav", np.zeros(100))
    with FileSource(path, speed=math.inf) as source, AudioBuffer(1000) as buffer:
        for round in (1, 2, 3):
            source.start(buffer)
            assert source.wait(DEADLINE_S)
            assert (buffer.frames_written, source.counters.frames) == (100 * round, 100)


def test_a_forgotten_paced_source_warns_and_stops():
    buffer = AudioBuffer(1000)
    source = GeneratorSource("tone", block_frames=16)
    source.start(buffer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del source
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    written = buffer.frames_written
    buffer.write(np.zeros(1, np.float32))
    assert buffer.frames_written == written + 1


def test_starts_and_stops_leave_no_thread():
    before = threading.active_count()
    with AudioBuffer(1000) as buffer:
        source = GeneratorSource("tone", block_frames=16)
        for _ in range(100):
            source.start(buffer)
            source.stop()
    assert threading.active_count() == before


# ---- reading at another rate ------------------------------------------------------------------------------


def noise(frames, channels=1, dtype="float32", seed=1):
    audio = np.random.default_rng(seed).uniform(-0.9, 0.9, (frames, channels))
    return audio.astype(dtype) if dtype.startswith("float") else (audio * np.iinfo(dtype).max).astype(dtype)


def offline(audio, samplerate, target):
    need("soxr")
    import soxr

    floats = audio.astype(np.float32)
    if audio.dtype.kind == "i":
        floats /= np.float32(np.iinfo(audio.dtype).max + 1)
    return soxr.resample(floats, samplerate, target)


@pytest.mark.parametrize(
    ("samplerate", "target"), [(48000, 16000), (44100, 16000), (22050, 16000), (8000, 16000), (16000, 44100)]
)
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_stream_read_in_any_pieces_equals_offline_resampling(samplerate, target, dtype):
    audio = noise(30_011, dtype=dtype)
    expected = offline(audio, samplerate, target)
    sizes = np.random.default_rng(2)
    with AudioBuffer(len(audio), dtype=dtype, samplerate=samplerate) as buffer:
        reader = ResamplingReader(buffer, target)
        parts, at = [], 0
        while at < len(audio):
            step = int(sizes.integers(1, 3000))
            buffer.write(audio[at : at + step])
            at += step
            parts.append(reader.read(int(sizes.integers(0, 2000))))
        buffer.close()
        with contextlib.suppress(BufferClosed):
            while True:
                parts.append(reader.read(777, timeout=None))
    got = np.concatenate(parts)
    np.testing.assert_array_equal(got, expected)
    assert reader.position - reader.start == reader.delivered + reader.lost == len(expected)
    assert reader.lost == 0
    reader.close()


def test_stereo_is_mixed_to_the_mean_before_it_is_resampled():
    audio = noise(9001, 2)
    expected = offline(audio.mean(axis=1, keepdims=True), 48000, 16000)
    with AudioBuffer(10_000, 2, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
        buffer.write(audio)
        buffer.close()
        np.testing.assert_array_equal(reader.read(5000, timeout=None), expected)


@needs_soxr
def test_stereo_stays_stereo_and_mono_is_repeated():
    stereo = noise(9001, 2)
    with AudioBuffer(10_000, 2, samplerate=48000) as buffer, ResamplingReader(buffer, 16000, 2) as reader:
        buffer.write(stereo)
        buffer.close()
        np.testing.assert_array_equal(reader.read(5000, timeout=None), offline(stereo, 48000, 16000))
    mono = noise(9001)
    with AudioBuffer(10_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000, 3) as reader:
        buffer.write(mono)
        buffer.close()
        np.testing.assert_array_equal(reader.read(5000, None), np.repeat(offline(mono, 48000, 16000), 3, axis=1))


def test_equal_rates_need_no_soxr_and_go_straight_to_the_ring(monkeypatch):
    monkeypatch.setattr("pcmring._resample.load", lambda name: pytest.fail(f"{name} was loaded"))
    audio = noise(1000)
    with AudioBuffer(1000, samplerate=16000) as buffer, ResamplingReader(buffer) as reader:
        buffer.write(audio)
        np.testing.assert_array_equal(reader.read(400), audio[:400])
        out = np.empty(300, np.float32)
        assert reader.read_into(out) == 300
        np.testing.assert_array_equal(out, audio[400:700, 0])
        assert next(iter(reader.blocks(100))).start == 700
        assert (reader.position, reader.delivered, reader.lost, reader.delay) == (800, 800, 0, 0.0)
        assert reader.ring_position(5) == reader.output_position(5) == 5.0


def test_equal_rates_with_integers_and_stereo_only_convert_and_mix():
    audio = noise(1000, 2, "int16")
    with AudioBuffer(1000, 2, "int16", samplerate=16000) as buffer, ResamplingReader(buffer) as reader:
        buffer.write(audio)
        expected = (audio.astype(np.float32) / 32768).mean(axis=1, keepdims=True)
        np.testing.assert_array_equal(reader.read(600), expected[:600])
        np.testing.assert_array_equal(next(iter(reader.blocks(400))).array, expected[600:])
        assert reader.position == 1000


@needs_soxr
def test_a_read_waits_until_enough_came_through(crew):
    audio = noise(48_000)
    with AudioBuffer(48_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
        got = []
        thread = crew.start(lambda: got.append(reader.read(10_000, timeout=DEADLINE_S)))
        crew.wait_until_asleep(thread)
        for at in range(0, 48_000, 480):
            buffer.write(audio[at : at + 480])
        crew.join()
        np.testing.assert_array_equal(got[0], offline(audio, 48000, 16000)[:10_000])


@needs_soxr
def test_a_read_ends_when_the_time_is_up_with_what_there_is():
    with AudioBuffer(48_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
        assert reader.read(100, timeout=0.01).shape == (0, 1)
        buffer.write(noise(4800))
        assert 0 < len(reader.read(1600, timeout=0.01)) < 1600
        assert reader.delay > 0


@needs_soxr
def test_closing_the_reader_wakes_its_wait(crew):
    with AudioBuffer(48_000, samplerate=48000) as buffer:
        reader = ResamplingReader(buffer, 16000)

        def wait() -> None:
            with pytest.raises(BufferClosed):
                reader.read(100, timeout=None)

        crew.wait_until_asleep(crew.start(wait))
        reader.close()
        crew.join()
        assert reader.closed


def test_a_long_read_takes_from_the_ring_before_it_is_full(crew):
    with AudioBuffer(1000, dtype="int16", samplerate=16000, policy="drop") as buffer:
        reader = ResamplingReader(buffer, guard=True)
        crew.start(reader.read, 1000, None)
        buffer.write(np.zeros(250, np.int16))
        until(lambda: buffer.fill == 0)
        buffer.close()
        crew.join()


@needs_soxr
def test_more_than_the_ring_holds_can_be_read_at_once(crew):
    """The wait is for slices of the ring, which is emptied meanwhile."""
    audio = noise(96_000)
    got = []
    with (
        AudioBuffer(9600, samplerate=48000, policy="block") as buffer,
        ResamplingReader(buffer, 16000, guard=True) as reader,
    ):
        crew.start(lambda: got.append(reader.read(30_000, timeout=DEADLINE_S)))
        crew.start(lambda: buffer.write(audio, timeout=DEADLINE_S))
        crew.join()
    np.testing.assert_array_equal(got[0], offline(audio, 48000, 16000)[:30_000])


@needs_soxr
def test_positions_map_to_the_ring_and_back():
    with AudioBuffer(48_000, samplerate=48000) as buffer:
        buffer.write(noise(3000))
        with ResamplingReader(buffer, 16000) as reader:
            assert (reader.start, reader.position) == (1000, 1000)
            assert reader.ring_position(1000) == 3000.0
            assert reader.output_position(3001) == pytest.approx(1000 + 1 / 3)
            buffer.write(noise(3000))
            assert reader.time_of(1500) == pytest.approx(buffer.time_of(4500), abs=1e-6)
            assert reader.time_of(1500).clock == buffer.time_of(4500).clock


@needs_soxr
def test_an_impulse_comes_out_where_it_went_in():
    """The filter's delay is in no position."""
    audio = np.zeros((48_000, 1), np.float32)
    audio[24_000] = 1.0
    with AudioBuffer(48_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
        buffer.write(audio)
        buffer.close()
        got = reader.read(16_000, timeout=None)
    assert reader.ring_position(int(np.argmax(np.abs(got)))) == 24_000


@needs_soxr
def test_a_loss_restarts_the_resampler_and_is_lost_in_output_positions():
    audio = noise(12_000)
    with AudioBuffer(3000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000, start="oldest") as reader:
        buffer.write(audio[:3000])
        first = reader.read(400)
        assert len(first) == 400
        taken = reader._ring_end  # what the resampler has swallowed
        buffer.write(audio[3000:9000])
        second = reader.read(5000)
        third = reader.read(5000)
        buffer.close()
        fourth = reader.read(5000)
        before = offline(audio[:taken], 48000, 16000)
        after = offline(audio[6000:9000], 48000, 16000)
        np.testing.assert_array_equal(np.concatenate((first, second)), before)
        np.testing.assert_array_equal(np.concatenate((third, fourth)), after)
        assert reader.losses() == [(len(before), 2000)]
        assert reader.lost == 2000 - len(before)
        assert reader.position - reader.start == reader.delivered + reader.lost == 3000
        assert reader.ring_position(2000) == 6000.0
        assert reader.ring_position(10) == 30.0
        assert reader.output_position(6003) == 2001.0


@needs_soxr
def test_many_small_losses_keep_the_time_line():
    """No drift from rounding: every run starts within a frame of where it belongs."""
    rng = np.random.default_rng(4)
    with AudioBuffer(500, samplerate=44100) as buffer, ResamplingReader(buffer, 16000) as reader:
        for _ in range(300):
            buffer.write(noise(int(rng.integers(1, 900)), seed=int(rng.integers(1000))))
            while len(reader.read(1000)):
                pass
            assert reader.position - reader.start == reader.delivered + reader.lost
        for output, ring in reader._segments:
            assert abs(output - ring * 16000 / 44100) <= 1.5
        assert reader.lost > 0
        assert sum(last - first for first, last in reader.losses()) == reader.lost


def test_windows_overlap_and_the_last_is_shorter():
    audio = noise(9000)
    expected = offline(audio, 48000, 16000)
    with AudioBuffer(10_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
        buffer.write(audio)
        buffer.close()
        blocks = []
        for block in reader.blocks(1000, hop=400):
            blocks.append(block._replace(array=block.array.copy()))
            block.array[:] = 9.0  # it is the caller's own
        assert [(block.start, block.frames, block.lost) for block in blocks] == [
            (at, min(1000, 3000 - at), 0) for at in range(0, 2400, 400)
        ]
        for block in blocks:
            np.testing.assert_array_equal(block.array, expected[block.start : block.start + block.frames])


@needs_soxr
def test_the_first_frame_after_a_loss_has_its_place_in_both_directions():
    with AudioBuffer(4000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000, start=0) as reader:
        for _ in range(2):
            buffer.write(noise(3000))
        assert buffer.oldest == 2000  # between two output frames
        while len(reader.read(1000)):
            pass
        ((_, last),) = reader.losses()
        assert last == 667
        assert reader.ring_position(last) == 2000
        assert reader.output_position(2000) == last


@needs_soxr
def test_a_window_has_no_loss_in_it():
    with AudioBuffer(6000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000, start="oldest") as reader:
        blocks = reader.blocks(900, timeout=0.0)
        buffer.write(noise(6000))
        assert next(blocks).start == 0
        with pytest.raises(TimeoutError):
            next(blocks)  # the ring is empty, and the resampler holds some back
        buffer.write(noise(12_000))
        assert [(block.start, block.frames, block.lost) for block in (next(blocks), next(blocks))] == [
            (900, 900, 0),  # completed by what the resampler gave up at the loss
            (4000, 900, 2200),  # the 200 frames that came after it are no window
        ]
        assert reader.losses() == [(1800, 4000)]
        assert reader.position - reader.start == reader.delivered + reader.lost == 4900


@needs_soxr
def test_a_frame_that_a_window_had_is_not_lost_when_the_next_window_meets_a_loss():
    with AudioBuffer(6000, samplerate=32000) as buffer, ResamplingReader(buffer, 16000, start="oldest") as reader:
        windows, had = reader.blocks(400, hop=100, timeout=0.0), set()
        for _ in range(3):
            buffer.write(noise(9000))
            with contextlib.suppress(TimeoutError):
                for block in windows:
                    had |= set(range(block.start, block.start + block.frames))
        lost = {position for first, last in reader.losses() for position in range(first, last)}
        assert lost
        assert not had & lost
        assert len(lost) == reader.lost


def test_windows_come_in_an_event_loop():
    audio = noise(9600)
    expected = offline(audio, 48000, 16000)

    async def listen(reader):
        return [block async for block in reader.blocks(500)]

    async def scene():
        with AudioBuffer(10_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
            task = asyncio.create_task(listen(reader))
            for at in range(0, 9600, 480):
                buffer.write(audio[at : at + 480])
                await asyncio.sleep(0)
            buffer.close()
            return await asyncio.wait_for(task, DEADLINE_S)

    blocks = asyncio.run(scene())
    np.testing.assert_array_equal(np.concatenate([block.array for block in blocks]), expected)


@needs_soxr
def test_two_threads_in_one_reader_are_refused(crew):
    with AudioBuffer(48_000, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:

        def wait() -> None:
            with pytest.raises(BufferClosed):
                reader.read(100, timeout=None)

        crew.wait_until_asleep(crew.start(wait))
        with pytest.raises(RuntimeError, match="another thread"):
            reader.read(1)
        reader.close()
        crew.join()


@pytest.mark.parametrize(
    ("ring", "arguments", "message"),
    [
        ({}, {}, "needs the buffer's rate"),
        ({"samplerate": 48000}, {"samplerate": 0}, "samplerate must be more than 0"),
        ({"samplerate": 48000, "channels": 4}, {"channels": 2}, "must be 1 or the buffer's 4"),
        ({"samplerate": 16000}, {"channels": 0}, "channels must be 1 to 64"),
    ],
)
def test_what_cannot_be_resampled_is_refused(ring, arguments, message):
    with AudioBuffer(100, **ring) as buffer, pytest.raises(ValueError, match=message):
        ResamplingReader(buffer, **arguments)


@pytest.mark.parametrize("buffer", [None, 5, "ring", np.zeros(5)])
def test_only_an_audio_buffer_can_be_resampled(buffer):
    with pytest.raises(TypeError, match="must be an AudioBuffer"):
        ResamplingReader(buffer)


@needs_soxr
def test_wrong_reads_are_refused():
    with AudioBuffer(100, samplerate=48000) as buffer, ResamplingReader(buffer, 16000) as reader:
        with pytest.raises(TypeError, match="float32"):
            reader.read_into(np.empty(10, np.int16))
        with pytest.raises(ValueError, match="shape"):
            reader.read_into(np.empty((10, 2), np.float32))
        fixed = np.empty(10, np.float32)
        fixed.flags.writeable = False
        with pytest.raises(ValueError, match="writable"):
            reader.read_into(fixed)
        for timeout in (-1.0, math.nan):
            with pytest.raises(ValueError, match="timeout"):
                reader.read(1, timeout=timeout)
        with pytest.raises(TypeError, match="timeout"):
            reader.read(1, timeout="1")
        with pytest.raises(ValueError, match="num_samples"):
            reader.read(-1)
        with pytest.raises(ValueError, match="hop"):
            reader.blocks(10, hop=11)
