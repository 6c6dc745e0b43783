"""A device that goes away: it is noticed, told once, reopened, and what is missing is written down.

Numbers like D26 are those of defects of W4L's own audio system, which this design exists to avoid.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from microphones import Devices, Microphone, playing, ramp, ramp_file
from patience import DEADLINE_S, until
from pcmring._session import CaptureSession
from pcmring._sources import SourceCounters
from pcmring.buffer_manager import StreamingAudioManager
from pcmring.devices import SourceError
from virtual_mic import VirtualMics, virtual_mics


@pytest.fixture(scope="module")
def mics() -> VirtualMics:
    return virtual_mics()


class Losing:
    """A manager whose microphone can be unplugged, and what it is told."""

    def __init__(self, **settings) -> None:
        self.microphone = Microphone()
        self.manager = StreamingAudioManager(Devices(lambda: self.microphone, **settings))
        self.errors: list[Exception] = []
        self.recovered: list[str] = []
        self.manager.on_stream_error = self.errors.append
        self.manager.on_stream_recovered = lambda: self.recovered.append(self.manager.state)

    def begin(self) -> None:
        assert self.manager.start_recording()
        assert self.manager.wait_ready(DEADLINE_S)

    def lose(self) -> None:
        self.microphone.plugged.clear()
        until(lambda: self.manager.state == "recovering")


@pytest.fixture
def losing():
    losing = Losing()
    with losing.manager:
        yield losing


# ---- noticing, telling, reopening -----------------------------------------------------------------------


def test_a_lost_device_is_told_once_and_reopened_and_the_gap_has_its_length(losing, caplog):
    """D28, D33: and nothing captured before is lost."""
    losing.begin()
    reader = losing.manager.reader(0)
    losing.lose()
    lost_at = time.monotonic()
    before = losing.manager.buffer.frames_written
    until(lambda: losing.microphone.opened >= 3)
    assert losing.manager.is_recording
    losing.microphone.plugged.set()
    until(lambda: losing.recovered)
    back_at = time.monotonic()
    assert losing.recovered == ["capturing"]
    until(lambda: losing.manager.buffer.frames_written >= before + 1600)
    losing.manager.stop_recording()
    assert [(type(error), "unplugged" in str(error)) for error in losing.errors] == [(SourceError, True)]
    ((position, frames, cause, exact),) = losing.manager._session.buffer.gaps()
    assert (position, cause, exact) == (before, "reopened", False)
    # from the last block before to the first after, which was taken in some time before we were told
    assert 0 < frames <= (back_at - lost_at + 1.5) * 16_000
    assert losing.manager.get_buffer_info()["frames_lost"]["reopened"] == frames
    np.testing.assert_array_equal(reader.read(before), ramp(0, before))
    np.testing.assert_array_equal(reader.read(1600), ramp(0, 1600))  # this microphone counts anew
    assert len([record for record in caplog.records if "is lost" in record.message]) == 1


def test_the_length_of_a_gap_is_that_by_the_clock(losing):
    losing.begin()
    losing.lose()
    last_ns = losing.microphone.last_arrival_ns
    until(lambda: time.monotonic_ns() - last_ns > 300_000_000)
    losing.microphone.plugged.set()
    until(lambda: losing.recovered)
    gap = losing.manager._session.buffer.gaps()[0]
    missing_s = (losing.microphone.begin_ns - last_ns) * 1e-9
    assert gap.frames == pytest.approx(missing_s * 16_000, abs=800)  # 50 ms for a crowded machine


def test_a_device_is_lost_and_found_again_and_again(losing):
    losing.begin()
    for times in range(1, 4):
        losing.lose()
        losing.microphone.plugged.set()
        until(lambda times=times: len(losing.recovered) == times)
    assert len(losing.errors) == 3
    assert losing.manager.get_buffer_info()["gaps"] == 3
    assert losing.manager.state == "capturing"


def test_overflows_of_a_device_count_on_when_it_is_reopened(losing):
    class Overflowing(Microphone):
        @property
        def counters(self) -> SourceCounters:
            return replace(super().counters, overflows=3)

    losing.microphone = Overflowing()
    losing.begin()
    losing.lose()
    losing.microphone.plugged.set()
    until(lambda: losing.recovered)
    assert losing.manager.get_buffer_info()["overflows"] == 6


def test_a_silent_device_is_noticed_also_where_every_sleep_is_too_long_and_the_silence_is_in_the_gap():
    class Late(Microphone):
        goes_on = threading.Event()

        def _blocks(self):
            yield ramp(0, 160)
            assert self.goes_on.wait(DEADLINE_S)

        def wait(self, timeout: float | None = None) -> bool:
            time.sleep(timeout + 0.3)  # what such a machine does
            return not self.active

    losing = Losing()
    losing.microphone = Late()
    with losing.manager:
        losing.begin()
        try:
            until(lambda: losing.manager.state == "recovering", 10.0)
        finally:
            losing.microphone.goes_on.set()
        until(lambda: losing.recovered)
        assert losing.manager.buffer.gaps()[0].frames >= 16_000  # a second, after which it was noticed


def test_a_device_with_long_blocks_may_be_silent_for_ten_of_them():
    assert CaptureSession(Devices(Microphone, block_frames=8000)).silence_limit_s == 5.0
    assert CaptureSession(Devices(Microphone)).silence_limit_s == 1.0


def test_handlers_that_raise_do_not_end_the_recovery(losing, caplog):
    """D27."""

    def faulty(*_):
        raise ZeroDivisionError

    losing.manager.on_stream_error = losing.manager.on_stream_recovered = faulty
    losing.begin()
    losing.lose()
    losing.microphone.plugged.set()
    until(lambda: losing.manager.state == "capturing")
    losing.manager.stop_recording()
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [failure.split()[0] for failure in failures] == ["on_stream_error", "on_stream_recovered"]


def test_a_file_that_was_played_to_its_end_is_finished_and_no_error(tmp_path):
    with StreamingAudioManager(playing(ramp_file(tmp_path / "a.wav", 3200))) as manager:
        errors = []
        manager.on_stream_error = errors.append
        manager.start_recording()
        until(lambda: not manager.is_recording)
        assert (manager.state, manager.last_error, errors) == ("finished", None, [])
        assert manager.buffer.closed


# ---- never after a stop ---------------------------------------------------------------------------------


def test_stop_ends_the_wait_for_a_lost_device_at_once_and_it_is_never_reopened(losing):
    """D26."""
    losing.begin()
    losing.lose()
    until(lambda: losing.microphone.opened >= 5)  # the pauses are 0.8 s and longer now
    began = time.monotonic()
    losing.manager.stop_recording()
    assert time.monotonic() - began < 0.4
    opened = losing.microphone.opened
    losing.microphone.plugged.set()
    assert not [thread for thread in threading.enumerate() if thread.name == "pcmring watchdog"]
    assert (losing.microphone.opened, losing.microphone.active, losing.recovered) == (opened, False, [])
    assert losing.manager.state == "stopped"
    assert losing.manager.start_recording()


def test_stopping_inside_on_stream_error_works_and_nothing_is_reopened(losing):
    """D25, D26."""
    stopped = threading.Event()

    def stop(error):
        losing.microphone.plugged.set()  # it could be opened
        losing.manager.stop_recording()
        stopped.set()

    losing.manager.on_stream_error = stop
    losing.begin()
    opened = losing.microphone.opened
    losing.microphone.plugged.clear()
    assert stopped.wait(DEADLINE_S)
    losing.manager.stop_recording()
    assert not losing.manager.is_recording
    assert (losing.microphone.opened, losing.microphone.active) == (opened, False)


def test_cleaning_up_inside_on_stream_error_works(losing):
    """D25: the audio is given up while the watchdog still runs."""
    watchdog = []

    def clean_up(error):
        losing.manager.cleanup()
        watchdog.append(threading.current_thread())

    losing.manager.on_stream_error = clean_up
    losing.begin()
    losing.microphone.plugged.clear()
    until(lambda: watchdog)
    watchdog[0].join(DEADLINE_S)  # an exception in it fails the test
    assert not watchdog[0].is_alive()
    assert losing.manager.state == "idle"
    losing.microphone.plugged.set()
    assert losing.manager.start_recording()


def test_stopping_inside_on_stream_recovered_works(losing):
    """D25."""
    stopped = threading.Event()

    def stop():
        losing.manager.stop_recording()
        stopped.set()

    losing.manager.on_stream_recovered = stop
    losing.begin()
    losing.lose()
    losing.microphone.plugged.set()
    assert stopped.wait(DEADLINE_S)
    losing.manager.cleanup()
    assert not losing.microphone.active


def test_a_stop_that_meets_a_reopening_wins(losing, crew):
    """D26: the watchdog had already decided to open the device."""
    told, go_on = threading.Event(), threading.Event()

    def on_error(error):
        told.set()
        assert go_on.wait(DEADLINE_S)

    losing.manager.on_stream_error = on_error
    losing.begin()
    session = losing.manager._session
    losing.microphone.plugged.clear()
    assert told.wait(DEADLINE_S)
    losing.microphone.plugged.set()
    opened = losing.microphone.opened
    with session._source_lock:
        go_on.set()
        crew.wait_until_asleep(session._thread)  # at the lock
        stopper = crew.start(losing.manager.stop_recording)
        crew.wait_until_asleep(stopper)
    crew.join()
    assert (losing.microphone.opened, losing.microphone.active) == (opened, False)


def test_stops_and_recoveries_that_meet_leave_nothing_running(crew):
    """D26: a stop at any moment of a recovery."""
    for turn in range(10):
        losing = Losing()
        losing.begin()
        losing.lose()
        crew.start(losing.microphone.plugged.set)
        until(lambda losing=losing, turn=turn: losing.microphone.opened >= 1 + turn % 3)
        losing.manager.stop_recording()
        crew.join()
        assert not losing.microphone.active
        assert not losing.manager.is_recording
        losing.manager.cleanup()


# ---- the sound card -------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.parametrize("how", ["dead", "silent", "unplugged"])
def test_a_sound_card_that_is_gone_is_noticed_in_time_and_taken_up_again(mics, tmp_path, how):
    """D28: also where PortAudio says for ever that all is well."""
    control = tmp_path / "control"
    got = mics.call(
        "manager_recovers", mics={"mic": {"control": str(control)}}, control=str(control), how=how, device="mic"
    )
    assert got["noticed_s"] < 4.0  # 1 s, and what a crowded machine takes
    assert got["errors"] == 1
    assert got["recovered"] == 1
    assert got["first"] == 1
    assert got["jumps_at"] == [got["gap_at"]]  # opened anew this microphone counts anew
    assert got["cause"] == "reopened"
    assert got["gap_s"] == pytest.approx(got["gap_by_the_stamps_s"], abs=0.3)


@pytest.mark.native
def test_a_recording_whose_sound_card_is_gone_can_be_stopped(mics, tmp_path):
    """D26, D28: soon, and nothing is captured when the device comes back."""
    control = tmp_path / "control"
    got = mics.call("manager_stops_without_device", mics={"mic": {"control": str(control)}}, control=str(control))
    assert got["stop_s"] < 4.0
    assert got["capturing"] == []
    assert got["written_after"] == got["written"]
    assert got["again"]


@pytest.mark.native
@pytest.mark.parametrize("allowed", [False, True])
def test_the_default_device_takes_over_only_if_that_is_allowed(mics, tmp_path, allowed):
    control = tmp_path / "control"
    two = {"mic": {"control": str(control)}, "default": {}}
    got = mics.call("manager_falls_back", mics=two, control=str(control), allowed=allowed)
    assert got["device"].startswith("default" if allowed else "mic")
    assert got["state"] == ("capturing" if allowed else "recovering")


@pytest.mark.native
@pytest.mark.parametrize("stop_s", [1.0, 1.05, 1.6])  # about as long as a device may be silent, and longer
def test_a_process_that_was_stopped_does_not_take_its_device_for_gone(mics, stop_s):
    got = mics.call("manager_is_stopped_by_a_signal", mics={"default": {}}, stop_s=stop_s)
    assert got["errors"] == []
    assert got["state"] == "capturing"
