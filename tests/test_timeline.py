"""time_of and position_at: which clock, how exact, over drift, jitter, gaps and hosts that lie.

Device times come in by the capture callback's C function, called as PortAudio would. Arrival times are the real
clock's, so that the arithmetic on them is tested with a stand-in for the buffer, and the clock with bounds taken
round each call. Nothing sleeps.
"""

from __future__ import annotations

import ctypes
import itertools
import pickle
import time

import numpy as np
import pytest

from native_support import CALLBACK, Times
from patience import until
from pcmring import AudioBuffer, CaptureCallback, Gap, StreamTime
from pcmring._timeline import Timeline

RATE = 16_000
BLOCK = 160
OVERFLOW = 2  # paInputOverflow


class Device:
    """Calls the capture callback with times of our choice."""

    def __init__(self, buffer: AudioBuffer) -> None:
        self.capture = CaptureCallback(buffer)
        self.function = CALLBACK(self.capture.address)
        self.silence = np.zeros((100_000, buffer.channels), buffer.dtype)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.capture.close()

    def call(self, adc_s: float | None, frames: int = BLOCK, flags: int = 0, is_empty: bool = False) -> None:
        times = None if adc_s is None else ctypes.byref(Times(adc_s, adc_s + 0.01, 0.0))
        source = None if is_empty else self.silence.ctypes.data
        assert self.function(source, None, frames, times, flags, self.capture.userdata) == 0


class Stamps:
    """Stands in for an AudioBuffer: stamps and gaps of our choice."""

    samplerate = RATE

    def __init__(self, stamps, gaps=()) -> None:
        self.stamps, self.ledger = list(stamps), list(gaps)

    def _stamps(self):
        return self.stamps

    def gaps(self):
        return self.ledger


def arrivals(begin_s, blocks, *, rate=RATE, late=0.0, every=10, first=0, block=BLOCK):
    """Stamps without device times: block i's end arrives when it has been recorded, `late` seconds later."""
    late = np.broadcast_to(late, blocks)
    return [
        (first + i * block, block, 0.0, round((begin_s + (i + 1) * block / rate + late[i]) * 1e9))
        for i in range(0, blocks, every)
    ]


# ---- refusals ---------------------------------------------------------------------------------------


def test_without_a_samplerate_there_are_no_times():
    buffer = AudioBuffer(1000)
    buffer.write(np.zeros(10, np.float32))
    for call in (buffer.time_of, buffer.position_at):
        with pytest.raises(ValueError, match="samplerate"):
            call(5)
    assert buffer._stamps() == []


def test_before_the_first_block_there_are_no_times():
    buffer = AudioBuffer(1000, samplerate=RATE)
    for call in (buffer.time_of, buffer.position_at):
        with pytest.raises(LookupError, match="no block"):
            call(0)
    buffer.write(np.zeros(0, np.float32))
    with pytest.raises(LookupError):
        buffer.time_of(0)
    buffer.mark_gap(5, "paused")
    with pytest.raises(LookupError):
        buffer.time_of(0)


# ---- the device's clock -----------------------------------------------------------------------------


def test_the_devices_clock_is_used_where_it_is_believable():
    buffer = AudioBuffer(RATE * 5, samplerate=RATE)
    with Device(buffer) as device:
        for i in range(300):
            device.call(100.0 + i * BLOCK / RATE)
    for position in (0, 1, 159, 160, 24_000, 47_999, 48_000, 60_000):  # the last: still to come
        when = buffer.time_of(position)
        assert isinstance(when, StreamTime)
        assert when.clock == "adc"
        assert when == pytest.approx(100 + position / RATE, abs=1e-6)
        assert buffer.position_at(when) == buffer.position_at(float(when)) == position


def test_frames_no_longer_held_still_have_a_time():
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        for i in range(1000):
            device.call(50.0 + i * BLOCK / RATE)
    assert buffer.oldest == 144_000
    assert buffer.time_of(100) == pytest.approx(50 + 100 / RATE, abs=1e-6)
    assert buffer.position_at(50 + 100 / RATE) == 100


def test_a_time_before_the_first_frame_is_position_0():
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(50.0)
    assert buffer.position_at(1.0) == 0


@pytest.mark.parametrize("ppm", [-50, 50, 500])
def test_the_devices_drift_is_followed(ppm):
    """Over 30 s, 50 ppm are 24 frames."""
    rate = RATE * (1 + ppm * 1e-6)
    buffer = AudioBuffer(RATE * 30, samplerate=RATE)
    with Device(buffer) as device:
        for i in range(4000):
            device.call(1000 + i * BLOCK / rate)
    for position in range(buffer.oldest, buffer.frames_written, 9973):
        assert abs(buffer.time_of(position) - (1000 + position / rate)) * rate < 0.5
        assert abs(buffer.position_at(1000 + position / rate) - position) <= 1
    nominal = 1000 + buffer.frames_written / RATE
    assert abs(buffer.time_of(buffer.frames_written) - nominal) * RATE > 24  # it would have failed without


def test_jitter_of_the_devices_clock_is_smoothed():
    rng = np.random.default_rng(7)
    buffer = AudioBuffer(RATE * 30, samplerate=RATE)
    rate = RATE * (1 + 50e-6)
    with Device(buffer) as device:
        for i in range(3000):
            device.call(1000 + i * BLOCK / rate + (0.005 if i == 0 else rng.normal(0, 0.001)))
    errors = [buffer.time_of(p) - (1000 + p / rate) for p in range(0, 480_000, 4801)]
    assert buffer.time_of(0).clock == "adc"
    assert np.abs(errors).max() < 0.0005  # half of a block's jitter, a tenth of the first one's


def test_blocks_of_any_size_make_one_line():
    rng = np.random.default_rng(8)
    buffer = AudioBuffer(RATE * 5, samplerate=RATE)
    position = 0
    with Device(buffer) as device:
        while position < RATE * 8:
            n = int(rng.integers(1, 700))
            device.call(20 + position / RATE, n)
            position += n
    for p in range(0, position, 1237):
        assert buffer.time_of(p) == pytest.approx(20 + p / RATE, abs=1e-6)


@pytest.mark.parametrize("blocks", [3, 50])
def test_large_positions_lose_no_precision(blocks):
    """float64 counts single frames only to 2**53; at 2**60 it steps by 256."""
    first = 2**60 + 3
    buffer = AudioBuffer(RATE, samplerate=RATE, _first_position=first)
    with Device(buffer) as device:
        for i in range(blocks):
            device.call(20 + i * BLOCK / RATE)
    for p in range(first, first + 8000, 77):
        assert buffer.time_of(p) == pytest.approx(20 + (p - first) / RATE, abs=1e-6)
        assert buffer.position_at(buffer.time_of(p)) == p


# ---- hosts that lie ---------------------------------------------------------------------------------

LIES = {
    "no times at all": lambda i: None,
    "zero": lambda i: 0.0,
    "constant": lambda i: 5.0,
    "negative": lambda i: -5.0 + i * 0.01,
    "backwards": lambda i: 100 - i * 0.01,
    "one step back": lambda i: 100 + i * 0.01 - (3 if i >= 150 else 0),
    "nan": lambda i: float("nan"),
    "nan in the middle": lambda i: float("nan") if i == 160 else 100 + i * 0.01,
    "infinite": lambda i: float("inf"),
    "zero in the middle": lambda i: 0.0 if i == 160 else 100 + i * 0.01,
    "twice as fast": lambda i: 100 + i * 0.02,
    "half as fast": lambda i: 100 + i * 0.005,
    "a jump": lambda i: 100 + i * 0.01 + (5 if i >= 150 else 0),
    "milliseconds": lambda i: 100_000 + i * 10,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_clock_that_cannot_be_believed_is_replaced_by_the_arrivals(lie):
    buffer = AudioBuffer(RATE * 5, samplerate=RATE)
    with Device(buffer) as device:
        for i in range(320):
            before = time.monotonic()
            device.call(LIES[lie](i))
    assert len(buffer._stamps()) == 160
    when = buffer.time_of(buffer.frames_written)
    assert when.clock == "monotonic"
    # 3.2 s of audio came in an instant; the line goes by its early edge, the 10th percentile
    assert before - 0.1 < when < time.monotonic() + 0.4
    assert buffer.time_of(0).clock == "monotonic"
    assert buffer.time_of(0) == pytest.approx(when - 3.2, abs=1e-6)


def test_a_constant_clock_is_not_believed_because_gaps_lie_between():
    buffer = AudioBuffer(RATE * 5, samplerate=RATE)
    with Device(buffer) as device:
        for _ in range(5):
            device.call(5.0, flags=OVERFLOW)
    assert buffer.time_of(0).clock == "monotonic"


def test_a_clock_that_starts_anew_when_the_device_was_reopened_is_not_believed():
    """Two frames would have one time."""
    stamps = arrivals(5000.0, 100) + arrivals(5003.0, 100, first=16_000)
    with_adc = [
        (position, n, begin + i / 10, ns) for begin, half in ((100.0, stamps[:10]), (0.5, stamps[10:]))
        for i, (position, n, _, ns) in enumerate(half)
    ]  # fmt: skip
    timeline = Timeline(Stamps(with_adc, [Gap(16_000, 32_000, "reopened", False)]))
    assert timeline.clock == "monotonic"
    times = [timeline.time_of(position) for position in range(0, 32_000, 100)]
    assert times == sorted(times)


def test_one_block_written_from_python_is_timed_by_its_arrival():
    buffer = AudioBuffer(1000, samplerate=RATE)
    before = time.monotonic()
    buffer.write(np.zeros(100, np.float32))
    after = time.monotonic()
    end = buffer.time_of(100)
    assert end.clock == "monotonic"
    assert before - 1e-6 <= end <= after + 1e-6  # the block had arrived with its last frame
    assert buffer.time_of(0) == pytest.approx(end - 100 / RATE, abs=1e-9)
    assert buffer.position_at(end) == 100


@pytest.mark.parametrize("ppm", [-50, 0, 50])
def test_drift_is_followed_in_arrivals_too(ppm):
    rate = RATE * (1 + ppm * 1e-6)
    timeline = Timeline(Stamps(arrivals(5000.0, 3000, rate=rate)))
    for position in range(0, 480_000, 9973):
        assert abs(timeline.time_of(position) - (5000 + position / rate)) * rate < 0.5


def test_late_arrivals_do_not_move_the_line():
    """Arrivals are only ever late: exponentially, by 3 ms in the mean, and now and then by 200."""
    rng = np.random.default_rng(9)
    late = rng.exponential(0.003, 3000)
    late[::50] += 0.2
    timeline = Timeline(Stamps(arrivals(5000.0, 3000, late=late)))
    errors = np.array([timeline.time_of(p) - (5000 + p / RATE) for p in range(0, 480_000, 4801)])
    assert timeline.clock == "monotonic"
    assert np.abs(errors).max() < 0.003


def test_too_little_is_no_ground_for_a_rate():
    """Over a second, half a millisecond of lateness would look like 500 ppm."""
    late = np.linspace(0, 0.0005, 100)
    timeline = Timeline(Stamps(arrivals(5000.0, 100, late=late)))
    assert timeline.time_of(160_000) - timeline.time_of(0) == pytest.approx(10.0, abs=1e-9)


def test_a_rate_no_crystal_has_is_taken_for_a_jump_of_the_clock():
    timeline = Timeline(Stamps(arrivals(5000.0, 3000, rate=RATE * 1.05)))
    assert timeline.time_of(160_000) - timeline.time_of(0) == pytest.approx(10.0, abs=1e-9)


# ---- gaps -------------------------------------------------------------------------------------------


def with_gaps(jitter_s: float = 0.0) -> tuple[AudioBuffer, list[tuple[int, int, float]]]:
    """A buffer of three stretches of 2 s, and (first, last, time of first) of each."""
    rng = np.random.default_rng(10)
    buffer = AudioBuffer(RATE * 30, samplerate=RATE)
    stretches, position, now = [], 0, 200.0
    with Device(buffer) as device:
        for missing_s in (0.0, 0.09, 0.03):
            now += missing_s
            stretches.append((position, position + 200 * BLOCK, now))
            for i in range(200):
                device.call(now + rng.normal(0, jitter_s), flags=OVERFLOW if missing_s and i == 0 else 0)
                now += BLOCK / RATE
            position += 200 * BLOCK
    return buffer, stretches


def test_a_gap_breaks_the_line():
    buffer, stretches = with_gaps()
    for first, last, begin in stretches:
        for position in (first, first + 1, first + BLOCK, last - 1):
            when = buffer.time_of(position)
            assert when.clock == "adc"
            assert when == pytest.approx(begin + (position - first) / RATE, abs=1e-6)
            assert buffer.position_at(when) == position
    assert [(gap.position, gap.frames) for gap in buffer.gaps()] == [(32_000, 1440), (64_000, 480)]


@pytest.mark.parametrize("jitter_s", [0.0, 0.0005])
def test_position_to_time_and_back_is_the_same_frame_within_one(jitter_s):
    for seed_shift in range(3):
        buffer, stretches = with_gaps(jitter_s * (1 + seed_shift))
        edges = [edge for first, last, _ in stretches for edge in (first, last - 1)]
        positions = {max(0, edge + d) for edge in edges for d in range(-400, 401, 31)} | set(range(0, 96_000, 3989))
        wrong = [p for p in sorted(positions) if p < 96_000 and abs(buffer.position_at(buffer.time_of(p)) - p) > 1]
        assert wrong == []


def test_position_to_time_and_back_holds_about_gaps_in_arrivals():
    """The first block after a gap began before it arrived."""
    stamps = arrivals(100.0, 100) + arrivals(104.0, 100, first=16_000) + arrivals(107.5, 100, first=32_000)
    timeline = Timeline(Stamps(stamps, [Gap(16_000, 48_000, "paused", True), Gap(32_000, 40_000, "reopened", False)]))
    assert timeline.clock == "monotonic"
    wrong = [p for p in range(0, 48_000, 53) if abs(timeline.position_at(timeline.time_of(p)) - p) > 1]
    assert wrong == []
    for position, expected in ((0, 100.0), (15_999, 100.999_937_5), (16_000, 104.0), (32_000, 107.5)):
        assert timeline.time_of(position) == pytest.approx(expected, abs=1e-6)


def test_a_single_block_after_a_gap_has_its_own_time():
    stamps = arrivals(100.0, 100) + arrivals(104.0, 1, first=16_000)
    timeline = Timeline(Stamps(stamps, [Gap(16_000, 48_000, "paused", True)]))
    assert timeline.time_of(16_000) == pytest.approx(104.0, abs=1e-6)
    assert timeline.time_of(15_999) == pytest.approx(101.0 - 1 / RATE, abs=1e-6)


def test_a_time_inside_a_gap_is_that_of_the_first_frame_after_it():
    buffer, stretches = with_gaps()
    (_, end, begin), (after, _, resumed), _ = stretches
    assert end == after
    for when in (begin + 2.0, begin + 2.01, begin + 2.08, resumed):
        assert buffer.position_at(when) == after
    assert buffer.position_at(begin + 2.0 - 10 / RATE) == end - 10


def test_times_grow_with_positions_across_gaps():
    buffer, _ = with_gaps()
    times = [buffer.time_of(p) for p in range(0, 96_000, 101)]
    assert times == sorted(times)


def test_a_gap_at_the_very_beginning_is_no_trouble():
    buffer = AudioBuffer(RATE, samplerate=RATE)
    buffer.mark_gap(100, "paused")
    with Device(buffer) as device:
        for i in range(10):
            device.call(10 + i * 0.01)
    assert buffer.time_of(0) == pytest.approx(10)
    assert buffer.position_at(10.05) == 800


# ---- the stamps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [10, 1000, 1600, 41_000, RATE * 30])
@pytest.mark.parametrize("block", [1, 160, 512, 1777])
def test_the_stamps_span_the_capacity_however_the_blocks_fall(capacity, block):
    block = max(block, capacity // 1000)
    buffer = AudioBuffer(capacity, dtype="int16", samplerate=RATE)
    frames = np.zeros(block, np.int16)
    slots = min(256, max(8, capacity // 160))
    interval = capacity // (slots - 1) + 1  # with the newest stamp at the end, the others span the ring
    for _ in range(3 * capacity // block + 10):
        buffer.write(frames)
        if buffer.statistics().blocks % 23 == 1:
            stamps = buffer._stamps()
            positions = [position for position, *_ in stamps]
            assert positions[0] <= buffer.oldest
            assert positions[-1] >= buffer.frames_written - interval - block
            assert all(b - a >= min(interval, block) for a, b in itertools.pairwise(positions))
            assert len(stamps) <= slots
            assert {n for _, n, _, _ in stamps} == {block}


def test_the_block_after_a_gap_is_stamped():
    buffer = AudioBuffer(RATE * 30, samplerate=RATE)
    for _ in range(3):
        buffer.write(np.zeros(100, np.float32))
    buffer.mark_gap(50, "paused")
    buffer.write(np.zeros(100, np.float32))
    assert [position for position, *_ in buffer._stamps()] == [0, 300]


def test_a_stamp_holds_what_the_callback_was_told():
    buffer = AudioBuffer(RATE, samplerate=RATE)
    before = time.monotonic_ns()
    with Device(buffer) as device:
        device.call(12.5, 77)
    after = time.monotonic_ns()
    ((position, frames, adc_s, mono_ns),) = buffer._stamps()
    assert (position, frames, adc_s) == (0, 77, 12.5)
    assert before <= mono_ns <= after


# ---- how long a device overflow was -----------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1, 100, 1500])
def test_the_length_of_an_overflow_is_estimated_from_the_devices_clock(missing):
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(10.0)
        device.call(10.01, 320)
        device.call(10.03 + missing / RATE, flags=OVERFLOW)
    assert buffer.gaps() == [Gap(480, missing, "device_overflow", False)]
    assert buffer.statistics().frames_lost["device_overflow"] == missing
    assert buffer.frames_written == 640


def test_an_overflow_shorter_than_no_time_is_of_no_frames():
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(10.0)
        device.call(10.005, flags=OVERFLOW)
    assert buffer.gaps() == [Gap(160, 0, "device_overflow", False)]


def test_an_overflow_is_no_longer_than_the_time_that_passed():
    """The device's clock jumps ahead a minute while 0.2 s pass."""
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(10.0)
        begin = time.monotonic()
        until(lambda: time.monotonic() > begin + 0.2)
        device.call(70.0, flags=OVERFLOW)
        elapsed = time.monotonic() - begin
    ((_, missing, _, _),) = buffer.gaps()
    assert 0.2 * RATE <= missing + BLOCK <= (elapsed + 0.1) * RATE


def test_an_overflow_in_audio_that_comes_late_is_as_long_as_the_devices_clock_says():
    """Nothing comes for 0.5 s, then a burst: in the middle of it 0.3 s are missing."""
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(10.0)
        begin = time.monotonic()
        until(lambda: time.monotonic() > begin + 0.5)
        for block in range(1, 6):
            device.call(10.0 + block * BLOCK / RATE)
        device.call(10.3 + 6 * BLOCK / RATE, flags=OVERFLOW)
    assert buffer.gaps() == [Gap(6 * BLOCK, 3 * RATE // 10, "device_overflow", False)]


def test_what_a_stream_lost_long_ago_without_a_word_is_not_part_of_an_overflow_now():
    """0.3 s without a word, then 2.2 s that come in time; the device has no clock."""
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(0.0)
        due = time.monotonic() + 0.3
        for _ in range(110):
            due += 0.02
            until(lambda due=due: time.monotonic() > due)
            device.call(0.0, RATE // 50)
        device.call(0.0, flags=OVERFLOW)
    ((_, missing, _, _),) = buffer.gaps()
    assert missing < RATE // 10


def test_a_callback_without_frames_between_does_not_shorten_the_estimate():
    buffer = AudioBuffer(RATE, samplerate=RATE)
    with Device(buffer) as device:
        device.call(10.0)
        device.call(10.03, is_empty=True)
        device.call(10.06, flags=OVERFLOW)
    assert buffer.gaps() == [Gap(160, RATE // 20, "device_overflow", False)]


USELESS = {
    "no times": (None, None),
    "zero": (0.0, 0.0),
    "constant": (5.0, 5.0),
    "backwards": (7.0, 6.0),
    "nan": (float("nan"), float("nan")),
    "first unknown": (0.0, 6.0),
    "then unknown": (6.0, 0.0),
    "infinite": (float("inf"), float("inf")),
    "suddenly infinite": (1.0, float("inf")),
}


@pytest.mark.parametrize("times", USELESS)
def test_without_a_useful_clock_the_arrivals_give_the_length_of_an_overflow(times):
    """At 1 GHz a frame is a nanosecond: what lies between two calls is measured from outside."""
    first, second = USELESS[times]
    buffer = AudioBuffer(1000, samplerate=1e9)
    with Device(buffer) as device:
        t0 = time.monotonic_ns()
        device.call(first, 50)
        t1 = t2 = time.monotonic_ns()
        while t2 - t1 < 6_000_000:  # busy: 6 ms are 6 million frames
            t2 = time.monotonic_ns()
        device.call(second, 4_000_000, flags=OVERFLOW, is_empty=True)
        t3 = time.monotonic_ns()
    ((position, frames, cause, exact),) = buffer.gaps()
    assert (position, cause, exact) == (50, "device_overflow", False)
    assert t2 - t1 - 4_000_000 <= frames <= t3 - t0 - 4_000_000


def test_an_overflow_before_the_first_frame_or_without_a_rate_has_no_length():
    for samplerate in (RATE, None):
        buffer = AudioBuffer(1000, samplerate=samplerate)
        with Device(buffer) as device:
            device.call(1e6, flags=OVERFLOW)
            if samplerate is None:
                device.call(2e6, flags=OVERFLOW)
        assert {(gap.frames, gap.cause) for gap in buffer.gaps()} == {(0, "device_overflow")}


# ---- the record -------------------------------------------------------------------------------------


def test_a_stream_time_is_a_float_that_names_its_clock():
    when = StreamTime(1.5, "adc")
    assert when == 1.5
    assert when + 1 == 2.5
    assert repr(when) == "StreamTime(1.5, clock='adc')"
    again = pickle.loads(pickle.dumps(when))
    assert (again, again.clock, type(again)) == (1.5, "adc", StreamTime)


def test_a_time_of_the_other_clock_is_refused_both_ways():
    by_device = AudioBuffer(RATE, samplerate=RATE)
    with Device(by_device) as device:
        device.call(10.0)
    by_arrival = AudioBuffer(RATE, samplerate=RATE)
    by_arrival.write(np.zeros(10, np.float32))
    with pytest.raises(ValueError, match=r"adc clock.*got monotonic"):
        by_device.position_at(by_arrival.time_of(0))
    with pytest.raises(ValueError, match=r"monotonic clock.*got adc"):
        by_arrival.position_at(by_device.time_of(0))
