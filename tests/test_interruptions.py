"""A Ctrl-C in the middle of anything: a stop ends what was begun, and the next start works."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from ctrl_c import CtrlC
from microphones import Devices, Microphone, ramp
from patience import DEADLINE_S, until
from pcmring import AudioBuffer, AudioBufferManager, AudioConfig, BufferClosed, FileBasedAudioManager, MemoryMonitor
from pcmring._resample import ResamplingReader
from pcmring._session import CaptureSession
from virtual_mic import need, virtual_mics

need("soundfile", "soxr", "psutil")
import soundfile  # noqa: E402
import soxr  # noqa: E402

# A result that is lost on the way to its variable is closed by its finalizer.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name in ("TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))


def interrupt_after(monkeypatch, owner: type, name: str, when: Callable[[object], bool]) -> None:
    """A Ctrl-C comes when this method has done its work, and has not returned yet."""
    method = getattr(owner, name)

    def interrupted(self):
        method(self)
        if when(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pcmring")]


@pytest.mark.parametrize("moment", ["pcmring microphone", "pcmring watchdog", "pcmring recording", "the session runs"])
def test_a_start_that_was_interrupted_is_ended_by_a_stop(moment, monkeypatch):
    microphone = Microphone()
    with FileBasedAudioManager(Devices(lambda: microphone)) as manager:
        with monkeypatch.context() as patch:
            if moment == "the session runs":
                interrupt_after(patch, CaptureSession, "start", lambda session: True)
            else:
                interrupt_after(patch, threading.Thread, "start", lambda thread: thread.name == moment)
            with pytest.raises(KeyboardInterrupt):
                manager.start_recording()
        manager.stop_recording()
        until(lambda: not microphone.active and not ours())
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)


def test_a_source_whose_start_was_interrupted_writes_no_more(monkeypatch):
    with AudioBuffer(16_000, samplerate=16_000) as buffer, Microphone() as source:
        with monkeypatch.context() as patch:
            interrupt_after(patch, threading.Thread, "start", lambda thread: True)
            with pytest.raises(KeyboardInterrupt):
                source.start(buffer)
        until(lambda: not ours())
        source.start(buffer)
        assert source.active


@pytest.mark.parametrize(
    "work", ["start_recording", "stop_recording", "save_as", "save_as over another", "set_buffer_size", "cleanup"]
)
def test_a_ctrl_c_at_any_moment_harms_neither_the_file_nor_the_next_recording(work, tmp_path, caplog):
    microphones: list[Microphone] = []
    saved, left_empty = tmp_path / "saved.wav", []

    def plug_in() -> Microphone:
        microphones.append(Microphone())
        return microphones[-1]

    def interrupt(moment: int) -> bool:
        """Whether there is such a moment."""
        if work != "start_recording":
            assert manager.start_recording()
            assert manager.wait_ready(DEADLINE_S)
        if work.startswith("save_as"):
            manager.stop_recording()
        call = {
            "start_recording": manager.start_recording,
            "stop_recording": manager.stop_recording,
            "save_as": lambda: manager.save_as(saved),
            "save_as over another": lambda: manager.save_as(saved, overwrite=True),
            "set_buffer_size": lambda: manager.set_buffer_size(2),
            "cleanup": lambda: manager.memory_monitor.cleanup(force=True),
        }[work]
        with CtrlC(moment) as ctrl_c:
            call()
        if work in ("set_buffer_size", "cleanup"):
            assert manager.is_recording
        manager.stop_recording()
        assert not manager.is_recording
        until(lambda: not ours())
        assert not any(microphone.active for microphone in microphones)
        microphones.clear()
        files = [path for path in (*manager.get_audio_files(), saved) if os.path.exists(path) and os.path.getsize(path)]
        left_empty.extend(path for path in (saved,) if path.exists() and path not in files)
        assert files or work == "start_recording"
        for path in files:
            samples, _ = soundfile.read(path, dtype="float32")
            assert np.array_equal(samples[:, None], ramp(0, len(samples)))
        saved.unlink(missing_ok=True)
        for path in manager.get_audio_files():
            manager.release_audio_file(path)
        manager.resource_manager.cleanup()
        return ctrl_c.has_come

    with FileBasedAudioManager(Devices(plug_in), subtype="FLOAT") as manager:
        moment = 0
        while interrupt(moment):
            moment += 1
        assert moment > 20
        assert len(left_empty) <= 1  # its name was just made
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)
    assert caplog.messages == []


@pytest.mark.parametrize("streaming", [True, False])
def test_a_ctrl_c_at_any_moment_of_a_change_of_mode_leaves_a_recording_that_goes_on(streaming, caplog):
    moment, has_come = 0, True
    while has_come:
        microphone = Microphone()
        with AudioBufferManager(Devices(lambda: microphone)) as manager:  # noqa: B023
            manager.set_capture_mode(streaming=not streaming)
            assert manager.start_recording()
            assert manager.wait_ready(DEADLINE_S)
            with CtrlC(moment) as ctrl_c:
                manager.set_capture_mode(streaming=streaming)
            before = microphone.counters.frames
            until(lambda: microphone.counters.frames > before)  # noqa: B023
            manager.set_capture_mode(streaming=True)
            assert manager.is_recording
            manager.stop_recording()
            for path in manager.get_audio_files():
                assert soundfile.info(path).frames <= manager.get_buffer_info()["frames_written"]
        until(lambda: not ours())
        moment, has_come = moment + 1, ctrl_c.has_come
    assert moment > 10
    assert caplog.messages == []


def test_a_ctrl_c_at_any_moment_of_saving_settings_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "settings.json"
    moment, has_come = 0, True
    while has_come:
        AudioConfig(device="old").save(path)
        with CtrlC(moment) as ctrl_c:
            AudioConfig(device="new").save(path)
        assert AudioConfig.load(path).device in ("old", "new")
        assert len(list(tmp_path.iterdir())) <= 2  # one whose name was lost with the result
        for left in tmp_path.glob(".settings*"):
            left.unlink()
        moment, has_come = moment + 1, ctrl_c.has_come
    assert moment > 10


def test_a_ctrl_c_at_any_moment_of_a_hold_lets_cleanups_run_again():
    monitor = MemoryMonitor(max_memory_mb=1)
    moment, has_come = 0, True
    while has_come:
        with CtrlC(moment) as ctrl_c, monitor.hold():
            pass
        cleanups = monitor.get_statistics()["cleanups"]
        monitor._acted_at = -math.inf  # the pause between two is over
        monitor.cleanup()
        assert monitor.get_statistics()["cleanups"] == cleanups + 1
        moment, has_come = moment + 1, ctrl_c.has_come
    assert moment > 2


BLOCK = 480
SIGNAL = np.random.default_rng(1).standard_normal((20 * BLOCK, 2)).astype(np.float32)
MONO = SIGNAL.mean(axis=1, keepdims=True, dtype=np.float32)


def read_with_one_broken_off(call, samplerate: int, break_off, when: str = "in time"):
    """Read 10 ms blocks as they come, one under `break_off`; return (position, frames) of each, and the reader.

    If that is "late", the ring has lost some by then; at the "end" it is closed.
    """
    with AudioBuffer(4 * BLOCK if when == "late" else len(SIGNAL), 2, samplerate=48_000) as buffer:
        reader = ResamplingReader(buffer, samplerate, start=0)
        came = []

        def read() -> None:
            position = reader.position
            frames = call(reader)
            came.append((reader.position - len(frames), frames))
            assert came[-1][0] >= position

        for number, block in enumerate(np.split(SIGNAL, 20)):
            buffer.write(block)
            if number == 10 and when != "end":
                with break_off(reader):
                    read()
            elif not (when == "late" and 5 <= number < 10):
                read()
        buffer.close()
        with suppress(BufferClosed, StopIteration):
            if when == "end":
                with break_off(reader):
                    read()
            while True:
                read()
        return came, reader


def read(reader):
    return reader.read(BLOCK)


def read_into(reader):
    out = np.empty((BLOCK, 1), np.float32)
    return out[: reader.read_into(out)]


def window(reader):
    with suppress(TimeoutError):
        return next(reader.blocks(BLOCK // 4, timeout=0.0)).array
    return np.empty((0, 1), np.float32)


@pytest.mark.parametrize(
    ("samplerate", "when"),
    [(48_000, "in time"), (48_000, "late"), (48_000, "end"), (16_000, "in time"), (16_000, "end")],
)
@pytest.mark.parametrize("call", [read, read_into, window])
def test_a_ctrl_c_at_any_moment_of_a_read_loses_nothing_untold(call, samplerate, when):
    whole = MONO if samplerate == 48_000 else soxr.resample(MONO, 48_000, samplerate)
    moment, lost_results = 0, 0
    while True:
        ctrl_c = CtrlC(moment)
        came, reader = read_with_one_broken_off(call, samplerate, lambda reader: ctrl_c, when)  # noqa: B023
        losses = reader.losses()
        assert reader.position - reader.start == reader.delivered + reader.lost
        assert sum(stop - start for start, stop in losses) == reader.lost
        assert reader.position == len(whole)  # to the very end, whatever happened
        # a call whose work is done when the Ctrl-C comes has delivered: the result is lost on the way to the caller
        lost_results += reader.delivered != sum(len(frames) for _, frames in came)
        for position, frames in came:
            if samplerate == 48_000 or not losses or position < losses[0][0]:  # after a loss it begins anew
                assert np.array_equal(frames, whole[position : position + len(frames)])
        if not ctrl_c.has_come:
            break
        moment += 1
    assert moment > 20
    assert lost_results <= 5


def test_a_read_after_the_close_of_a_reader_takes_no_loss_back():
    with AudioBuffer(4 * BLOCK, 2, samplerate=48_000) as buffer:
        reader = ResamplingReader(buffer, 16_000, start=0)
        for block in np.split(SIGNAL, 20)[:8]:
            buffer.write(block)
            reader.read(1)
        for block in np.split(SIGNAL, 20)[8:]:
            buffer.write(block)
        reader.read(8 * BLOCK)
        reader.close()
        with pytest.raises(BufferClosed):
            reader.read(BLOCK)
        assert reader.lost > 0
        assert sum(stop - start for start, stop in reader.losses()) == reader.lost


def test_a_reader_in_use_refuses_a_second_thread_and_goes_on(crew):
    with AudioBuffer(4 * BLOCK, 2, samplerate=48_000) as buffer:
        reader, came = ResamplingReader(buffer, 16_000, start=0), []
        waiting = crew.start(lambda: came.append(reader.read(100, timeout=DEADLINE_S)))
        crew.wait_until_asleep(waiting)
        for again in (lambda: reader.read(1), reader.finish, lambda: next(reader.blocks(1))):
            with pytest.raises(RuntimeError, match="another thread is using this reader"):
                again()
        buffer.write(SIGNAL[: 4 * BLOCK])
        crew.join()
        assert len(came[0]) == 100
        assert len(reader.read(100)) == 100


@contextmanager
def no_memory(reader):
    class Full:
        def __getattr__(self, name):
            raise MemoryError

    stream, reader._stream = reader._stream, Full()
    with pytest.raises(MemoryError):
        yield
    reader._stream = stream


def test_a_reader_that_was_broken_off_and_is_finished_ends_with_what_it_had():
    with AudioBuffer(len(SIGNAL), 2, samplerate=48_000) as buffer:
        reader = ResamplingReader(buffer, 16_000, start=0)
        buffer.write(SIGNAL[: 8 * BLOCK])
        before = reader.read(len(SIGNAL))
        buffer.write(SIGNAL[8 * BLOCK : 10 * BLOCK])
        with no_memory(reader):
            reader.read(BLOCK)
        with no_memory(reader):
            reader.finish()
        reader.finish()
        with pytest.raises(BufferClosed):
            reader.read(1)
        assert reader.losses() == [(len(before), 10 * BLOCK // 3)]
        assert reader.delivered == len(before)


def test_a_read_for_whose_resampler_there_is_no_memory_loses_nothing_untold():
    came, reader = read_with_one_broken_off(read, 16_000, no_memory)
    assert reader.lost > 0
    assert reader.delivered == sum(len(frames) for _, frames in came)
    assert reader.position == len(SIGNAL) // 3
    assert sum(stop - start for start, stop in reader.losses()) == reader.lost


@pytest.mark.native
@pytest.mark.parametrize(("work", "every"), [("start_recording", 1), ("stop_recording", 5)])
def test_a_ctrl_c_at_any_moment_leaves_a_sound_card_that_can_be_stopped_and_started(work, every):
    got = virtual_mics().call("manager_is_interrupted", mics={"mic": {"rate": 16000}}, work=work, every=every)
    assert got["moments"] > 50
    assert got["log"] == []
    assert got["state"] == "capturing"
