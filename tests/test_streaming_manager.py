"""StreamingAudioManager: what was captured is there, once, in order, in the wanted form, whatever the program does.

Numbers like D5 are those of defects of W4L's own audio system, which this design exists to avoid.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
import warnings
import weakref

import numpy as np
import pytest

from microphones import Devices, Microphone, playing, ramp, ramp_file
from patience import DEADLINE_S, until
from pcmring import AudioBuffer
from pcmring._delivery import Delivery, StreamHandlers
from pcmring.buffer_manager import StreamingAudioManager
from pcmring.devices import (
    AudioConfig,
    AudioDeviceManager,
    FileSource,
    GeneratorSource,
    ResamplingReader,
    SourceError,
)
from pcmring.memory_manager import MemoryMonitor, MemoryUnreadable
from virtual_mic import call, need, virtual_mics

need("soundfile", "soxr", "psutil")
import soundfile  # noqa: E402
import soxr  # noqa: E402


def tone(**settings) -> AudioDeviceManager:
    return AudioDeviceManager(AudioConfig(device="tone", **settings))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A file of 1.5 s: 24,000 frames."""
    return ramp_file(tmp_path_factory.mktemp("audio") / "ramp.wav", 24_000)


# ---- what is recorded -----------------------------------------------------------------------------------


def test_a_slow_callback_gets_every_frame_also_those_captured_just_before_the_stop(second):
    """D5, D7: neither the first nor the last blocks are lost."""
    with StreamingAudioManager(playing(second)) as manager:
        got = []

        def slow(audio):
            time.sleep(0.003)
            got.append(audio)

        manager.on_audio_data = slow
        assert manager.start_recording()
        until(lambda: not manager.is_recording)
        manager.stop_recording()
        np.testing.assert_array_equal(np.concatenate(got), ramp(0, 24_000))


def test_asking_while_another_thread_starts_and_cleans_up_never_fails(crew):
    with StreamingAudioManager(tone()) as manager:
        over = threading.Event()

        def ask():
            while not over.is_set():
                manager.get_buffer_info()
                manager.get_latest_audio(0.1)

        def use():
            try:
                for _ in range(30):
                    assert manager.start_recording()
                    manager.wait_ready(DEADLINE_S)
                    manager.cleanup()
                    manager._audio_callback(np.zeros(160, np.float32))
                    manager.cleanup()
            finally:
                over.set()

        for task in (ask, ask, use):
            crew.start(task)
        crew.join(DEADLINE_S)


def test_how_a_recording_does_can_be_asked_at_any_time_and_follows_every_block():
    """D29: no report has to be waited for."""
    microphone = Microphone()
    with StreamingAudioManager(Devices(lambda: microphone)) as manager:
        manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)
        before = manager.get_buffer_info()
        until(lambda: microphone.counters.frames > before["frames_written"])
        now = manager.get_buffer_info()
        assert now["frames_written"] > before["frames_written"]
        assert now["fill_level"] > before["fill_level"]
        assert (now["state"], now["is_recording"], now["error"]) == ("capturing", True, None)
        assert (now["overflows"], now["gaps"]) == (0, 0)


def test_what_was_captured_before_the_stop_is_readable_after_it():
    """D5, D32: from the first frame on."""
    microphone = Microphone()
    with StreamingAudioManager(Devices(lambda: microphone)) as manager:
        manager.start_recording()
        reader = manager.reader(0)
        assert manager.wait_ready(DEADLINE_S)
        manager.stop_recording()
        captured = microphone.counters.frames
        assert captured
        np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, captured))
        np.testing.assert_array_equal(reader.read(captured + 1), ramp(0, captured))


def test_the_latest_audio_is_never_longer_than_the_buffer_and_has_no_frame_twice(second):
    """D1, D8: after more than a lap, by default and when more is asked for."""
    with StreamingAudioManager(playing(second, buffer_size_seconds=1)) as manager:
        manager.start_recording()
        until(lambda: not manager.is_recording)
        newest = ramp(8000, 16_000)
        np.testing.assert_array_equal(manager.get_latest_audio(), newest)
        np.testing.assert_array_equal(manager.get_latest_audio(seconds=25), newest)
        np.testing.assert_array_equal(manager.get_latest_audio(seconds=0.01), newest[-160:])
        assert manager.get_latest_audio(seconds=0).shape == (0, 1)


def test_asking_for_more_than_there_is_gives_what_there_is(second):
    """D9: and nothing has the same shape and type as something."""
    manager = StreamingAudioManager(playing(second))
    nothing = manager.get_latest_audio(2)
    assert (nothing.shape, nothing.dtype) == ((0, 1), np.float32)
    manager.start_recording()
    until(lambda: not manager.is_recording)
    audio = manager.get_latest_audio(4)
    assert (audio.shape, audio.dtype) == ((24_000, 1), np.float32)
    manager.cleanup()
    assert manager.get_latest_audio(4).shape == (0, 1)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_senseless_length_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds must be 0 or more"):
        StreamingAudioManager(tone()).get_latest_audio(seconds)


def test_integers_arrive_as_floats_of_full_scale_one(tmp_path):
    """D3."""
    integers = np.array([0, 1, -1, 32767, -32768], np.int16).repeat(100)[:, None]
    soundfile.write(tmp_path / "int16.wav", integers, 16000, subtype="PCM_16")
    with StreamingAudioManager(playing(tmp_path / "int16.wav")) as manager:
        manager.start_recording()
        until(lambda: not manager.is_recording)
        np.testing.assert_array_equal(manager.get_latest_audio(), integers.astype(np.float32) / 32768)


def test_a_stereo_device_is_mixed_for_a_mono_program_and_kept_for_a_stereo_one(tmp_path):
    """D14."""
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16000, subtype="FLOAT")
    for channels, wanted in ((1, np.full((800, 1), 0.125, np.float32)), (2, stereo)):
        with StreamingAudioManager(playing(tmp_path / "stereo.wav", channels=channels)) as manager:
            manager.start_recording()
            until(lambda manager=manager: not manager.is_recording)
            np.testing.assert_array_equal(manager.get_latest_audio(), wanted)


@pytest.mark.parametrize("samplerate", [48_000, 44_100, 8000])
def test_audio_of_another_rate_is_resampled_without_an_edge_at_its_beginning(tmp_path, samplerate):
    audio = np.random.default_rng(7).uniform(-0.5, 0.5, (samplerate + 1, 1)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", audio, samplerate, subtype="FLOAT")
    whole = soxr.resample(audio, samplerate, 16000)
    with StreamingAudioManager(playing(tmp_path / "noise.wav")) as manager:
        got = []
        manager.on_audio_data = got.append
        manager.start_recording()
        until(lambda: not manager.is_recording)
        manager.stop_recording()
        np.testing.assert_array_equal(np.concatenate(got), whole)
        np.testing.assert_array_equal(manager.get_latest_audio(), whole)
        np.testing.assert_allclose(manager.get_latest_audio(0.25), whole[-4000:], atol=1e-5)


def test_a_new_recording_has_nothing_of_the_one_before(second):
    """D6: nor does its callback."""
    microphone = Microphone()
    sources = iter([FileSource(second, speed=20), microphone])
    with StreamingAudioManager(Devices(lambda: next(sources))) as manager:
        got = []
        manager.on_audio_data = got.append
        manager.start_recording()
        until(lambda: not manager.is_recording)
        manager.stop_recording()
        got.clear()
        manager.start_recording()
        assert len(manager.get_latest_audio()) < 24_000
        manager.wait_ready(DEADLINE_S)
        manager.stop_recording()
        np.testing.assert_array_equal(np.concatenate(got), ramp(0, microphone.counters.frames))
        np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, microphone.counters.frames))


def test_looking_takes_nothing_away_and_the_fill_level_says_how_much_there_is(second):
    """D10."""
    with StreamingAudioManager(playing(second, buffer_size_seconds=2)) as manager:
        assert manager.get_buffer_info()["fill_level"] == 0.0
        manager.start_recording()
        until(lambda: not manager.is_recording)
        first, again = manager.get_latest_audio(), manager.get_latest_audio()
        np.testing.assert_array_equal(first, again)
        assert manager.get_buffer_info()["fill_level"] == 0.75
        manager.set_buffer_size(1)
        assert manager.get_buffer_info()["fill_level"] == 1.0


# ---- the buffer's size ----------------------------------------------------------------------------------


def test_changing_the_size_while_recording_loses_no_frame_and_keeps_the_history():
    """D13."""
    microphone = Microphone(speed=10)
    with StreamingAudioManager(Devices(lambda: microphone, buffer_size_seconds=2)) as manager:
        manager.start_recording()
        reader = manager.reader(0, guard=True)
        for seconds in (1, 30, 3.5, 20):
            before = microphone.counters.frames
            manager.set_buffer_size(seconds)
            until(lambda before=before: microphone.counters.frames > before + 3200)
        manager.stop_recording()
        captured = microphone.counters.frames
        np.testing.assert_array_equal(reader.read(captured), ramp(0, captured))
        np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, captured)[-320_000:])
        manager.set_buffer_size(1)
        np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, captured)[-16_000:])


@pytest.mark.parametrize("seconds", [0, 0.5, 31, float("nan")])
def test_a_size_outside_one_to_thirty_seconds_is_refused(seconds):
    """D35, D36."""
    manager = StreamingAudioManager(tone())
    with pytest.raises(ValueError, match="buffer_size_seconds must be 1 to 30"):
        manager.set_buffer_size(seconds)
    assert manager.buffer_size_seconds == 5


# ---- functions of the program ---------------------------------------------------------------------------


def test_a_callback_that_never_returns_loses_only_for_itself_and_is_bounded(tmp_path):
    """D30, D35: the ring goes on, and on_buffer_full tells once."""
    path = ramp_file(tmp_path / "long.wav", 40 * 16_000)
    with StreamingAudioManager(playing(path, speed=float("inf"), buffer_size_seconds=30)) as manager:
        stuck, go_on, got, full = threading.Event(), threading.Event(), [], []

        def callback(audio):
            got.append(audio)
            stuck.set()
            assert go_on.wait(DEADLINE_S)

        manager.on_audio_data = callback
        manager.on_buffer_full = lambda: full.append(threading.current_thread())
        manager.start_recording()
        assert stuck.wait(DEADLINE_S)
        until(lambda: not manager.is_recording)
        np.testing.assert_array_equal(manager.get_latest_audio(), ramp(10 * 16_000, 30 * 16_000))
        go_on.set()
        manager.stop_recording()
        lost = manager.get_buffer_info()["callback_frames_lost"]
        assert lost > 0
        assert sum(map(len, got)) + lost == 40 * 16_000
        np.testing.assert_array_equal(np.concatenate(got)[-16_000:], ramp(39 * 16_000, 16_000))


def test_a_callback_that_takes_nothing_after_the_stop_is_told_of(monkeypatch, caplog):
    monkeypatch.setattr("pcmring._streaming.DRAIN_S", 0.05)
    with StreamingAudioManager(tone()) as manager:
        stuck, go_on = threading.Event(), threading.Event()

        def callback(audio):
            stuck.set()
            assert go_on.wait(DEADLINE_S)

        manager.on_audio_data = callback
        manager.start_recording()
        assert stuck.wait(DEADLINE_S)
        manager.stop_recording()
        go_on.set()
    assert caplog.text.count("on_audio_data has not taken all audio") == 1


def test_a_delivery_that_ends_while_it_waits_calls_with_no_empty_block(crew):
    handlers, got = StreamHandlers(), []
    handlers.on_audio_data = got.append
    with AudioBuffer(1600, samplerate=16_000) as buffer:
        delivery = Delivery(ResamplingReader(buffer, start=0), handlers, 512)
        crew.wait_until_asleep(delivery.thread)
        assert delivery.close()
        delivery.thread.join(DEADLINE_S)
    assert got == []


def test_the_program_is_told_again_when_frames_are_lost_again():
    with StreamingAudioManager(Devices(lambda: GeneratorSource("noise", speed=200))) as manager:
        full = []
        manager.on_buffer_full = lambda: full.append(1)
        manager.start_recording()
        for times in range(1, 3):
            with manager.reader(guard=True):
                until(lambda times=times: len(full) == times)
            until(lambda: not manager._session._is_losing)


def test_the_program_is_told_once_when_a_guarded_reader_fills_the_ring():
    """D35."""
    with StreamingAudioManager(Devices(lambda: GeneratorSource("noise", speed=200))) as manager:
        full = []
        manager.on_buffer_full = lambda: full.append(1)
        manager.start_recording()
        reader = manager.reader(0, guard=True)
        until(lambda: full)
        for _ in range(2):  # it looks again, and more is lost
            known = manager._session._lost
            until(lambda known=known: manager._session._lost > known)
        manager.stop_recording()
        assert full == [1]
        assert len(reader.read(32 * 16_000)) == manager.get_buffer_info()["frames_written"] == 31 * 16_000


def test_a_callback_that_raises_is_logged_once_and_gets_all_further_audio(second, caplog):
    """D27."""
    with StreamingAudioManager(playing(second)) as manager:
        got = []

        def faulty(audio):
            got.append(audio)
            if len(got) != 20:
                raise ZeroDivisionError("the program's own")

        manager.on_audio_data = faulty
        manager.start_recording()
        until(lambda: not manager.is_recording)
        manager.stop_recording()
        np.testing.assert_array_equal(np.concatenate(got), ramp(0, 24_000))
        failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.exc_info[0] for record in failures] == [ZeroDivisionError] * 2  # and again after a success


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_wants_to_end_the_program_ends_the_delivery_and_says_so(caplog):
    with StreamingAudioManager(tone()) as manager:
        got = []

        def end(audio):
            got.append(audio)
            raise SystemExit

        manager.on_audio_data = end
        manager.start_recording()
        until(lambda: "on_audio_data raised SystemExit: no more calls" in caplog.text)
        before = manager.get_buffer_info()["frames_written"]
        until(lambda: manager.get_buffer_info()["frames_written"] > before)
        manager.stop_recording()
        assert len(got) == 1


def test_stopping_inside_a_callback_works_and_the_rest_is_still_delivered():
    """D25: no deadlock, and the device is released."""
    microphone = Microphone()
    with StreamingAudioManager(Devices(lambda: microphone)) as manager:
        got, stopped = [], threading.Event()

        def stop(audio):
            got.append(audio)
            manager.stop_recording()
            assert not microphone.active
            stopped.set()

        manager.on_audio_data = stop
        manager.start_recording()
        assert stopped.wait(DEADLINE_S)
        manager.stop_recording()
        assert not manager.is_recording
        until(lambda: sum(map(len, got)) == microphone.counters.frames)
        np.testing.assert_array_equal(np.concatenate(got), ramp(0, microphone.counters.frames))


def test_a_stop_that_is_interrupted_can_be_done_again():
    class Interrupted(GeneratorSource):
        times = 1

        def close(self) -> None:
            if self.times:
                self.times -= 1
                raise KeyboardInterrupt
            super().close()

    source = Interrupted("tone")
    with StreamingAudioManager(Devices(lambda: source)) as manager:
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)
        with pytest.raises(KeyboardInterrupt):
            manager.stop_recording()
        manager.stop_recording()
        assert (manager.state, source.active) == ("stopped", False)
        assert len(manager.get_latest_audio()) == manager.buffer.frames_written > 0


def test_all_may_stop_at_once(crew):
    """D25: several threads and the callback, in the middle of each other."""
    for _ in range(10):
        manager = StreamingAudioManager(tone(block_frames=64))
        barrier = threading.Barrier(4)

        def stop(manager=manager, barrier=barrier):
            barrier.wait(DEADLINE_S)
            manager.stop_recording()
            assert not manager.is_recording

        once = [stop]
        manager.on_audio_data = lambda audio, once=once: once.pop()() if once else None
        manager.start_recording()
        for _ in range(3):
            crew.start(stop)
        crew.join()
        manager.cleanup()


def test_a_callback_may_start_the_next_recording_and_gets_it_after_the_last_of_this_one(second):
    """D6, D25."""
    with StreamingAudioManager(playing(second)) as manager:
        got, restarted = [], threading.Event()

        def restart(audio):
            got.append(audio)
            time.sleep(0.0005)  # long enough for another thread to come between
            if len(got) == 1:
                until(lambda: not manager.is_recording)
                assert manager.start_recording()
                restarted.set()

        manager.on_audio_data = restart
        manager.start_recording()
        assert restarted.wait(DEADLINE_S)
        until(lambda: not manager.is_recording)
        manager.stop_recording()
        np.testing.assert_array_equal(np.concatenate(got), np.tile(ramp(0, 24_000), (2, 1)))


def test_a_callback_set_while_recording_gets_what_comes_from_then_on():
    microphone = Microphone()
    with StreamingAudioManager(Devices(lambda: microphone)) as manager:
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        before, got = microphone.counters.frames, []
        manager.on_audio_data = got.append
        until(lambda: got)
        manager.stop_recording()
        audio = np.concatenate(got)
        np.testing.assert_array_equal(audio, ramp(0, microphone.counters.frames)[-len(audio) :])
        assert len(audio) <= microphone.counters.frames - before


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="on_audio_data must be a callable or None"):
        StreamingAudioManager(tone()).on_audio_data = 3


# ---- starts and stops -----------------------------------------------------------------------------------


def test_starting_and_stopping_again_does_nothing():
    with StreamingAudioManager(tone()) as manager:
        manager.stop_recording()
        assert manager.start_recording()
        buffer = manager.buffer
        assert manager.start_recording()
        assert manager.buffer is buffer
        assert manager.is_recording  # D32: at once
        manager.stop_recording()
        manager.stop_recording()
        assert not manager.is_recording
        manager.cleanup()
        manager.cleanup()
        assert manager.buffer is None
        assert manager.start_recording()


def test_a_loop_over_a_reader_ends_with_the_recording(crew):
    with StreamingAudioManager(tone()) as manager:
        manager.start_recording()
        reader = manager.reader(0)
        got = []
        crew.start(lambda: got.extend(block.frames for block in reader.blocks(512)))
        until(lambda: got)
        manager.stop_recording()
        crew.join()
        assert sum(got) == manager.get_buffer_info()["frames_written"]
        with pytest.raises(RuntimeError, match="nothing is being recorded"):
            manager.reader()


def test_a_device_that_cannot_be_opened_is_an_error_told_once_and_the_next_start_works(tmp_path, caplog):
    path = tmp_path / "later.wav"
    manager = StreamingAudioManager(Devices(lambda: FileSource(path)))
    errors = []
    manager.on_stream_error = errors.append
    assert manager.start_recording() is False
    assert [type(error) for error in errors] == [FileNotFoundError]
    assert manager.last_error is errors[0]
    assert caplog.text.count("recording cannot start") == 1
    assert not manager.is_recording
    ramp_file(path, 1000)
    assert manager.start_recording()
    assert manager.last_error is None
    manager.cleanup()


def test_a_device_that_fails_at_the_start_is_closed_and_its_ring_given_back(second):
    class Busy(FileSource):
        def start(self, buffer, **settings) -> None:
            raise SourceError(self.name, "busy")

    source = Busy(second)
    with StreamingAudioManager(Devices(lambda: source)) as manager:
        assert not manager.start_recording()
        with pytest.raises(RuntimeError, match="not open"):
            _ = source.samplerate
        assert manager.buffer_tracker.get_total_buffer_memory() == 0


def test_a_ring_that_nobody_reads_goes_on_from_its_first_frame_on(second):
    class Eager(FileSource):
        """Brings more than the ring holds before anybody else has a turn."""

        def start(self, buffer, **settings) -> None:
            buffer.write(np.zeros(40 * 16_000, np.float32))
            super().start(buffer, **settings)

    with StreamingAudioManager(Devices(lambda: Eager(second, speed=math.inf))) as manager:
        assert manager.start_recording()
        until(lambda: not manager.is_recording)
        assert manager.get_buffer_info()["frames_lost"]["dropped"] == 0
        np.testing.assert_array_equal(manager.get_latest_audio(1.5), ramp(0, 24_000))


def test_who_waits_for_audio_that_never_comes_is_told_when_the_recording_ends(tmp_path):
    with StreamingAudioManager(playing(ramp_file(tmp_path / "empty.wav", 0))) as manager:
        assert manager.start_recording()
        assert not manager.wait_ready()
        assert manager.state == "finished"


def test_a_source_that_fails_for_good_ends_the_recording(second):
    """D33."""

    class Damaged(FileSource):
        def _blocks(self):
            yield ramp(0, 1000)
            raise OSError("bad sector")

    with StreamingAudioManager(Devices(lambda: Damaged(second))) as manager:
        errors = []
        manager.on_stream_error = errors.append
        manager.start_recording()
        until(lambda: not manager.is_recording)
        assert manager.state == "failed"
        assert ["bad sector" in str(error) for error in errors] == [True]
        np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, 1000))


def test_a_forgotten_recording_is_complained_about_and_ends():
    microphone = Microphone()
    manager = StreamingAudioManager(Devices(lambda: microphone))
    manager.start_recording()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del manager
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    until(lambda: not microphone.active)


def test_hundreds_of_recordings_leave_nothing_behind():
    def resources() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    manager = StreamingAudioManager(tone(block_frames=64))
    manager.on_audio_data = len
    for round_ in range(200):
        manager.start_recording()
        manager.stop_recording()
        assert not manager.is_recording
        if round_ == 10:
            before = resources()
    assert resources() == before
    manager.cleanup()
    assert manager.buffer_tracker.get_buffer_info()["buffer_count"] == 0


# ---- memory ---------------------------------------------------------------------------------------------


def test_managers_that_are_forgotten_go_away_though_their_monitor_stays():
    """D19."""
    monitor = MemoryMonitor()
    managers = [StreamingAudioManager(tone(), monitor) for _ in range(5)]
    for manager in managers:
        manager.on_audio_data = len
        manager.start_recording()
        manager.cleanup()
    gone = [weakref.ref(manager) for manager in managers]
    trackers = [manager.buffer_tracker for manager in managers]
    gone += [weakref.ref(tracker) for tracker in trackers]
    del manager, managers, trackers
    gc.collect()
    assert [reference() for reference in gone] == [None] * 10


def test_cleaning_one_manager_up_leaves_the_other_and_the_shared_monitor_alone():
    """D16."""
    monitor = MemoryMonitor(max_memory_mb=100_000)
    with StreamingAudioManager(tone(), monitor) as one, StreamingAudioManager(tone(), monitor) as other:
        one.start_recording()
        other.start_recording()
        other.wait_ready(DEADLINE_S)
        one.cleanup()
        assert other.is_recording
        other.stop_recording()
        assert len(other.get_latest_audio())
        assert monitor.get_statistics()["cleanups"] == 0


def test_memory_over_the_limit_while_recording_is_cleaned_up_once_and_no_audio_is_lost():
    """D20."""
    monitor = MemoryMonitor()
    monitor.max_memory_mb = monitor.get_memory_usage() + 64
    calls = []
    monitor.add_cleanup_callback(lambda: calls.append(1))
    microphone = Microphone()
    with StreamingAudioManager(Devices(lambda: microphone), monitor) as manager:
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        memory = np.ones(128 * 2**20, np.uint8)
        until(lambda: calls)
        before = microphone.counters.frames
        until(lambda: microphone.counters.frames > before + 24_000)  # the watchdog has looked again
        manager.stop_recording()
        del memory
        assert calls == [1]
        np.testing.assert_array_equal(manager.get_latest_audio(30), ramp(0, microphone.counters.frames))


def test_a_recording_goes_on_though_memory_cannot_be_read():
    monitor, failures = MemoryMonitor(), []

    def fail() -> int:
        failures.append(1)
        raise MemoryUnreadable("no /proc")

    with StreamingAudioManager(tone(), monitor) as manager:
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)
        monitor._read_usage = fail
        until(lambda: len(failures) > 1)
        assert (manager.state, manager.last_error) == ("capturing", None)


def test_the_tracker_counts_the_ring_until_it_is_given_back():
    with StreamingAudioManager(tone()) as manager:
        manager.start_recording()
        assert manager.buffer_tracker.get_total_buffer_memory() == manager.buffer.nbytes
        info = manager.get_buffer_info()
        assert info["buffer_memory_mb"] == manager.buffer.nbytes / 2**20
        assert info["memory_usage_mb"] > info["buffer_memory_mb"]
        manager.cleanup()
        assert manager.buffer_tracker.get_total_buffer_memory() == 0


# ---- audio from the program -----------------------------------------------------------------------------


def test_the_program_can_push_audio_of_its_own_while_nothing_is_recorded():
    with StreamingAudioManager(tone()) as manager:
        audio = np.random.default_rng(1).uniform(-1, 1, (16_000, 1))
        manager._audio_callback(audio, ...)
        np.testing.assert_array_equal(manager.get_latest_audio(), audio.astype(np.float32))
        manager.cleanup()
        got = []
        manager.on_audio_data = got.append
        manager._audio_callback(np.stack([audio[:, 0], -audio[:, 0]], axis=1), ...)  # D14: stereo into mono
        np.testing.assert_array_equal(manager.get_latest_audio(), np.zeros((16_000, 1), np.float32))
        np.testing.assert_array_equal(got[0], np.zeros((16_000, 1), np.float32))
        manager._audio_callback(np.full((10, 2), 16384, np.int16), ...)  # D3
        np.testing.assert_array_equal(got[1], np.full((10, 1), 0.5, np.float32))
        manager.start_recording()
        with pytest.raises(RuntimeError, match="a device is being recorded"):
            manager._audio_callback(audio, ...)
        manager.stop_recording()
        manager._audio_callback(audio, ...)
        np.testing.assert_array_equal(manager.get_latest_audio(), audio.astype(np.float32))


# ---- processes ------------------------------------------------------------------------------------------


def test_a_program_that_ends_while_recording_ends_at_once_and_quietly():
    assert call("manager_exits", {"device": "tone"}, timeout_s=30.0) == [0, "", []]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_child_of_a_fork_has_no_part_in_the_recording_and_can_make_its_own():
    got = call("manager_forks", {})
    assert got == {"child": [False, 0, True, True], "state": "capturing"}


# ---- the sound card -------------------------------------------------------------------------------------


@pytest.mark.native
def test_a_program_that_ends_while_a_sound_card_records_ends_at_once_and_quietly():
    got = virtual_mics().call("manager_exits", mics={"default": {}}, device=None)
    assert got == [0, "", []]


def test_a_missing_package_is_named_when_the_recording_starts():
    got = call("manager_without_packages", {"block": ["sounddevice"]})
    assert got[0] == "MissingPackage"
    assert "sounddevice" in got[1]


@pytest.mark.native
def test_a_sound_card_is_recorded_bit_for_bit_from_its_first_frame_to_its_last():
    got = virtual_mics().call("manager_records", mics={"default": {"rate": 16000}}, frames=16_000)
    assert got["first"] == 1
    assert got["jumps"] == got["callback_jumps"] == []
    assert got["frames"] == got["callback_frames"] == got["written"] >= 16_000
    assert got["ready"]
    assert got["device"].startswith("default")


@pytest.mark.native
def test_an_overflow_is_counted_and_placed_and_the_stream_stays_sound():
    """D12, D34."""
    stalled = {"default": {"rate": 16000, "stall_at": 8000, "stall_frames": 8000}}
    got = virtual_mics().call("manager_overflows", mics=stalled)
    assert got["overflows"] >= 1
    assert got["frames_lost"] > 0
    assert (got["state"], got["errors"]) == ("capturing", [])
