"""AudioBuffer: facts, writing, its own reader, accounting, life and memory, and what the incumbent got wrong.

Frames are coded by position, so that a lost, repeated, torn or reordered one shows.
"""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import importlib.util
import os
import pickle
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest

import pcmring
from pcmring import AudioBuffer, AudioBufferTracker, BufferClosed, BufferStatistics, FramesLost, Gap

MIRRORED = 20_000  # frames: 80 kB of mono float32, enough to be mirrored where the platform can
POLICIES = ("overwrite", "drop", "block")
DTYPES = ("int16", "int32", "float32", "float64")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def coded(start: int, stop: int, channels: int = 1, dtype: str = "float32") -> np.ndarray:
    """Frames that say where they belong: exact in every dtype, and no two neighbours are alike."""
    position = np.arange(start, stop)[:, None]
    values = (position * 7 + np.arange(channels)) % 30_011 + 1
    if dtype.startswith("float"):
        return (values / 32_768).astype(dtype)
    return values.astype(dtype)


def filled(capacity: int, written: int, channels: int = 1, dtype: str = "float32", **options) -> AudioBuffer:
    buffer = AudioBuffer(capacity, channels, dtype, **options)
    step = 7
    for start in range(0, written, step):
        buffer.write(coded(start, min(start + step, written), channels, dtype), timeout=0.0)
    return buffer


class FakeTracker:
    """What AudioBuffer expects of a tracker, and nothing else."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int | None]] = []

    def track_buffer(self, buffer, size_bytes):
        self.calls.append(("track", id(buffer), size_bytes))

    def untrack_buffer(self, buffer):
        self.calls.append(("untrack", id(buffer), None))


# ---- facts ------------------------------------------------------------------------------------------


def test_the_defaults_are_the_seeds():
    buffer = AudioBuffer(1600)
    assert (buffer.max_samples, buffer.capacity, buffer.channels, buffer.dtype) == (1600, 1600, 1, np.dtype("float32"))
    assert (buffer.samplerate, buffer.policy, buffer.name, buffer.closed) == (None, "overwrite", None, False)


def test_the_first_four_arguments_may_be_positional_and_the_others_not():
    tracker = FakeTracker()
    buffer = AudioBuffer(10, 2, np.int16, tracker, samplerate=8000, policy="drop", storage=None, name="mic")
    assert (buffer.capacity, buffer.channels, buffer.dtype, buffer.samplerate) == (10, 2, np.dtype("int16"), 8000)
    assert (buffer.policy, buffer.name) == ("drop", "mic")
    with pytest.raises(TypeError, match="positional"):
        AudioBuffer(10, 2, np.int16, tracker, 8000)


@pytest.mark.parametrize("dtype", [*DTYPES, np.float32, float, "f", "<i2" if sys.byteorder == "little" else ">i2"])
def test_a_dtype_may_be_given_in_any_of_numpys_ways(dtype):
    assert AudioBuffer(10, dtype=dtype).dtype == np.dtype(dtype)


def test_a_new_buffer_is_empty():
    buffer = AudioBuffer(16, 2)
    assert (buffer.frames_written, buffer.samples_written, buffer.oldest, buffer.fill) == (0, 0, 0, 0)
    assert buffer.get_fill_level() == 0.0
    assert buffer.gaps() == []
    assert buffer.losses() == []
    assert buffer.get_latest(5).shape == (0, 2)
    assert len(buffer.latest_view(5)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 7, 64])
def test_nbytes_is_the_audio_held_at_most(channels, dtype):
    assert AudioBuffer(31, channels, dtype).nbytes == 31 * channels * np.dtype(dtype).itemsize


def test_facts_cannot_be_set():
    buffer = AudioBuffer(16)
    for fact in ("capacity", "max_samples", "channels", "dtype", "samplerate", "policy", "name", "closed", "fill",
                 "frames_written", "samples_written", "oldest", "nbytes", "mirrored"):  # fmt: skip
        with pytest.raises(AttributeError):
            setattr(buffer, fact, 1)


def test_repr_says_what_it_is_and_whether_it_is_closed():
    buffer = AudioBuffer(16, 2, "int16", policy="drop", name="mic")
    assert repr(buffer) == "<AudioBuffer 'mic' 16 x 2 int16 drop>"
    reader = buffer.reader("oldest", name="vad")
    buffer.write(coded(0, 5, 2, "int16"))
    reader.read(3)
    assert repr(reader) == "<Reader 'vad' at 3, 0 frames lost>"
    assert repr(buffer.view(1, 4)) == "<AudioView of frames 1 to 4>"
    reader.close()
    buffer.close()
    assert repr(reader).endswith(", closed>")
    assert repr(buffer) == "<AudioBuffer 'mic' 16 x 2 int16 drop, closed>"
    assert repr(AudioBuffer(16)) == "<AudioBuffer 16 x 1 float32 overwrite>"


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_nothing_that_points_into_memory_can_be_pickled_or_copied(make):
    buffer = filled(16, 8)
    for thing in (buffer, buffer.reader(), buffer.latest_view(3)):
        with pytest.raises(TypeError):
            make(thing)


def test_readers_and_views_come_only_from_a_buffer():
    with pytest.raises(TypeError, match="reader"):
        pcmring.Reader()
    with pytest.raises(TypeError, match="view"):
        pcmring.AudioView()


UNMADE = """
from pcmring import AudioBuffer, AudioView, Reader
Blocks = type(AudioBuffer(4).reader().blocks(1))
calls = {
    Reader: ("read(1)", "read_into(None)", "blocks(1)", "available", "close()", "losses()", "closed", "start",
             "__exit__()"),
    AudioView: ("array", "intact", "copied", "__len__()", "__enter__()", "__exit__()", "start"),
    Blocks: ("__next__()", "_poll()", "_wait(0.0)", "_buffer", "_target", "timeout", "reader", "__iter__()"),
}
for kind, uses in calls.items():
    try:
        unmade = kind.__new__(kind)
    except TypeError:
        continue
    for use in (*uses, "__repr__()"):
        try:
            eval("unmade." + use)
        except (TypeError, ValueError, AttributeError, StopIteration):
            pass
"""


def test_an_unmade_reader_or_view_is_an_error_and_not_a_crash():
    """`__new__` passes `__init__` by; what it leaves has no buffer behind it."""
    done = subprocess.run([sys.executable, "-c", UNMADE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- writing ----------------------------------------------------------------------------------------


def lengths(capacity: int) -> list[int]:
    return [0, 1, capacity - 1, capacity, capacity + 1, 3 * capacity + 1, 13, 7919]


@pytest.mark.parametrize("capacity", [1, 2, 17, MIRRORED])
@pytest.mark.parametrize("channels", [1, 2, 7, 64])
def test_the_newest_frames_are_held_whatever_the_lengths_written(capacity, channels):
    channels = channels if capacity < MIRRORED else min(channels, 2)
    for n in lengths(capacity):
        if n < 0:
            continue
        buffer = AudioBuffer(capacity, channels, "int16")
        written = 0
        for length in (n, 3, n):
            assert buffer.write(coded(written, written + length, channels, "int16")) == length
            written += length
            held = min(written, capacity)
            assert (buffer.frames_written, buffer.oldest, buffer.fill) == (written, written - held, held)
            np.testing.assert_array_equal(
                buffer.get_latest(2 * capacity), coded(written - held, written, channels, "int16"), strict=True
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_written_is_read_once_and_in_order(policy, dtype):
    buffer = AudioBuffer(17, 2, dtype, policy=policy)
    position = 0
    for n in (1, 16, 17, 5, 0, 12, 11, 17, 3):
        assert buffer.write(coded(position, position + n, 2, dtype)) == n
        first = buffer.read(n // 2)
        rest = buffer.read(100)
        np.testing.assert_array_equal(
            np.concatenate([first, rest]), coded(position, position + n, 2, dtype), strict=True
        )
        position += n
    assert len(buffer.read(1)) == 0
    assert buffer.losses() == []
    assert buffer.statistics().frames_delivered == position


@pytest.mark.parametrize("n", [16, 17, 18, 33, 34, 35, 51, 100, 101])
def test_of_a_block_longer_than_the_ring_the_end_stays_and_the_rest_counts_as_overwritten(n):
    buffer = filled(17, 5)
    assert buffer.write(coded(5, 5 + n)) == n
    end = 5 + n
    assert buffer.oldest == end - 17
    np.testing.assert_array_equal(buffer.read(100), coded(end - 17, end))
    assert buffer.statistics().frames_overrun == end - 17
    assert buffer.losses() == [(0, end - 17)]


def test_mono_may_be_one_dimensional_everywhere():
    buffer = AudioBuffer(8)
    assert buffer.write(coded(0, 5)[:, 0]) == 5
    out = np.empty(3, np.float32)
    assert buffer.read_into(out) == 3
    np.testing.assert_array_equal(out, coded(0, 3)[:, 0])
    assert buffer.read(9).shape == (2, 1)
    np.testing.assert_array_equal(buffer.get_latest(3, out), coded(2, 5)[:, 0])
    np.testing.assert_array_equal(buffer.read_range(1, 4, out), coded(1, 4)[:, 0])


@pytest.mark.parametrize(
    "data",
    [
        [0.5, -0.25, 0.125],
        [[0.5], [-0.25], [0.125]],
        (0.5, -0.25, 0.125),
        memoryview(np.array([0.5, -0.25, 0.125])),
        np.array([0.125, -0.25, 0.5])[::-1],
        np.array([[0.5, 9], [-0.25, 9], [0.125, 9]], np.float32)[:, :1],
        np.array([0.5, -0.25, 0.125], ">f8"),
        np.ma.array([0.5, -0.25, 0.125]),
    ],
    ids=["list", "nested list", "tuple", "memoryview", "reversed", "column", "byte-swapped", "subclass"],
)
def test_anything_array_like_of_the_right_shape_is_accepted(data):
    buffer = AudioBuffer(4)
    assert buffer.write(data) == 3
    np.testing.assert_array_equal(buffer.read(4)[:, 0], np.array([0.5, -0.25, 0.125], np.float32))


def test_a_written_block_may_be_reused_at_once():
    buffer = AudioBuffer(8)
    block = coded(0, 4)
    buffer.write(block)
    block[:] = 9
    np.testing.assert_array_equal(buffer.read(8), coded(0, 4))


def test_what_read_returns_is_the_callers_own():
    buffer = filled(8, 8)
    taken = buffer.read(4)
    taken[:] = 9
    buffer.write(coded(8, 16))
    assert (taken == 9).all()
    assert taken.base is None or taken.base.flags.owndata
    np.testing.assert_array_equal(buffer.get_latest(8), coded(8, 16))


def test_drop_keeps_unread_audio_and_puts_what_does_not_fit_into_the_ledger():
    buffer = AudioBuffer(10, policy="drop")
    assert buffer.write(coded(0, 8)) == 8
    assert buffer.write(coded(8, 13)) == 2
    assert buffer.write(coded(10, 14)) == 0
    assert buffer.gaps() == [Gap(10, 7, "dropped", True)]
    np.testing.assert_array_equal(buffer.read(4), coded(0, 4))
    assert buffer.write(coded(10, 13)) == 3
    np.testing.assert_array_equal(buffer.read(99), coded(4, 13))
    statistics = buffer.statistics()
    assert statistics.frames_lost == {"device_overflow": 0, "dropped": 7, "reopened": 0, "paused": 0}
    assert (statistics.frames_written, statistics.frames_overrun, statistics.gaps) == (13, 0, 1)


def test_block_leaves_the_rest_with_the_caller():
    buffer = AudioBuffer(10, policy="block")
    assert buffer.write(coded(0, 13), timeout=0.0) == 10
    assert buffer.write(coded(10, 13), timeout=0) == 0
    assert buffer.write(coded(10, 13), timeout=0.001) == 0
    np.testing.assert_array_equal(buffer.read(2), coded(0, 2))
    assert buffer.write(coded(10, 13), timeout=0.0) == 2
    np.testing.assert_array_equal(buffer.read(99), coded(2, 12))
    assert buffer.gaps() == []
    assert sum(buffer.statistics().frames_lost.values()) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_positions_count_on_beyond_32_and_up_to_63_bits(policy):
    for first in (2**32 - 5, 2**53 - 5, 2**63 - 50):
        buffer = AudioBuffer(8, policy=policy, _first_position=first)
        assert (buffer.frames_written, buffer.oldest, buffer.fill) == (first, first, 0)
        for start in range(0, 21, 7):
            assert buffer.write(coded(start, start + 7)) == 7
            np.testing.assert_array_equal(buffer.read(99), coded(start, start + 7))
        assert buffer.frames_written == first + 21
        np.testing.assert_array_equal(buffer.read_range(first + 15, first + 21), coded(15, 21))


# ---- the buffer's own reader, and guards ------------------------------------------------------------


def test_the_own_reader_starts_at_the_first_frame():
    """Nothing written before the first read is missed while it fits the ring."""
    buffer = filled(16, 10)
    np.testing.assert_array_equal(buffer.read(100), coded(0, 10))


def test_the_own_reader_reports_what_was_overwritten_as_ranges():
    buffer = filled(10, 4)
    np.testing.assert_array_equal(buffer.read(2), coded(0, 2))
    buffer.write(coded(4, 17))
    np.testing.assert_array_equal(buffer.read(5), coded(7, 12))
    buffer.write(coded(17, 24))
    np.testing.assert_array_equal(buffer.read(99), coded(14, 24))
    assert buffer.losses() == [(2, 7), (12, 14)]
    statistics = buffer.statistics()
    assert (statistics.frames_overrun, statistics.frames_delivered) == (7, 17)
    assert statistics.frames_delivered + statistics.frames_overrun == 24


def test_read_into_reports_what_was_overwritten_as_ranges():
    buffer = AudioBuffer(8)
    reader = buffer.reader()
    buffer.write(coded(0, 5))
    buffer.write(coded(5, 11))
    for source in (buffer, reader):
        assert source.read_into(np.empty((8, 1), np.float32)) == 8
        assert source.losses() == [(0, 3)]


def test_adjoining_losses_are_one_range():
    buffer = filled(10, 20)
    out = np.empty((0, 1), np.float32)
    assert buffer.read_into(out) == 0
    buffer.write(coded(20, 25))
    assert buffer.read_into(out) == 0
    assert buffer.losses() == [(0, 15)]


def test_read_into_fills_the_beginning_of_out_and_leaves_the_rest():
    buffer = filled(10, 4)
    out = np.full((9, 1), 5, np.float32)
    assert buffer.read_into(out) == 4
    np.testing.assert_array_equal(out[:4], coded(0, 4))
    assert (out[4:] == 5).all()
    assert buffer.read_into(out) == 0
    assert (out[4:] == 5).all()


def test_peeks_consume_nothing():
    buffer = filled(10, 8)
    for _ in range(2):
        np.testing.assert_array_equal(buffer.get_latest(3), coded(5, 8))
        np.testing.assert_array_equal(buffer.read_range(2, 6), coded(2, 6))
        np.testing.assert_array_equal(buffer.latest_view(3).array, coded(5, 8))
    assert buffer.fill == 8
    np.testing.assert_array_equal(buffer.read(99), coded(0, 8))


@pytest.mark.parametrize("policy", ["drop", "block"])
def test_the_own_reader_is_guarded_until_another_is_opened_without_its_use(policy):
    buffer = filled(10, 6, policy=policy)
    assert buffer.write(coded(6, 13), timeout=0.0) == 4
    buffer.reader()
    assert buffer.write(coded(10, 13), timeout=0.0) == 3
    assert buffer.oldest == 3
    np.testing.assert_array_equal(buffer.read(99), coded(3, 13))
    assert buffer.losses() == [(0, 3)]


@pytest.mark.parametrize("policy", ["drop", "block"])
def test_the_own_reader_stays_guarded_once_it_was_used(policy):
    buffer = filled(10, 6, policy=policy)
    buffer.read(1)
    buffer.reader()
    assert buffer.write(coded(6, 20), timeout=0.0) == 5
    np.testing.assert_array_equal(buffer.read(99), coded(1, 11))
    assert buffer.losses() == []


@pytest.mark.parametrize("policy", ["drop", "block"])
def test_what_a_guarded_reader_has_not_read_is_kept(policy):
    buffer = AudioBuffer(10, policy=policy)
    slow = buffer.reader(guard=True)
    fast = buffer.reader()
    assert (slow.guard, fast.guard) == (True, False)
    assert buffer.write(coded(0, 25), timeout=0.0) == 10
    np.testing.assert_array_equal(fast.read(99), coded(0, 10))
    np.testing.assert_array_equal(slow.read(3), coded(0, 3))
    assert buffer.fill == 7
    assert buffer.write(coded(10, 25), timeout=0.0) == 3
    np.testing.assert_array_equal(slow.read(99), coded(3, 13))
    assert (slow.lost, slow.delivered, slow.position) == (0, 13, 13)
    slow.close()
    assert buffer.write(coded(13, 33), timeout=0.0) == 20
    np.testing.assert_array_equal(fast.read(99), coded(23, 33))
    assert fast.losses() == [(10, 23)]  # unguarded: nothing was kept for it


def test_the_slowest_of_several_guards_decides():
    buffer = AudioBuffer(10, policy="drop")
    readers = [buffer.reader(guard=True) for _ in range(3)]
    buffer.write(coded(0, 10))
    for reader, n in zip(readers, (9, 4, 6), strict=True):
        reader.read(n)
    assert buffer.fill == 6
    assert buffer.write(coded(10, 20)) == 4
    readers[1].close()
    assert buffer.fill == 8
    assert buffer.write(coded(14, 20)) == 2


def test_there_is_room_for_64_guards_and_the_65th_is_refused():
    buffer = AudioBuffer(10, policy="drop")
    readers = [buffer.reader(guard=True) for _ in range(64)]
    before = buffer.statistics()
    with pytest.raises(ValueError, match="64"):
        buffer.reader(guard=True)
    assert buffer.statistics() == before
    readers[5].close()
    buffer.reader(guard=True).close()
    buffer.reader()  # unguarded ones need no place


def test_a_dropped_guarded_reader_gives_its_guard_back():
    buffer = AudioBuffer(10, policy="drop")
    reader = buffer.reader(guard=True)
    assert buffer.write(coded(0, 12)) == 10
    del reader
    gc.collect()
    assert buffer.write(coded(10, 22)) == 12


@pytest.mark.parametrize(
    ("start", "position", "lost"),
    [("now", 25, 0), ("oldest", 15, 0), (15, 15, 0), (20, 20, 0), (25, 25, 0), (3, 3, 12)],
)
def test_a_reader_starts_at_now_the_oldest_or_a_position(start, position, lost):
    buffer = filled(10, 25)
    reader = buffer.reader(start)
    assert (reader.start, reader.position, reader.lost, reader.delivered) == (position, position, 0, 0)
    begin = max(position, 15)
    assert reader.available == 25 - begin
    np.testing.assert_array_equal(reader.read(99), coded(begin, 25))
    assert reader.lost == lost
    assert reader.losses() == ([(3, 15)] if lost else [])
    buffer.write(coded(25, 28))
    np.testing.assert_array_equal(reader.read(99), coded(25, 28))
    assert reader.position - reader.start == reader.delivered + reader.lost


def test_readers_are_independent_of_each_other_and_of_the_own_reader():
    buffer = filled(10, 5)
    a, b = buffer.reader("oldest"), buffer.reader("oldest")
    np.testing.assert_array_equal(a.read(2), coded(0, 2))
    np.testing.assert_array_equal(b.read(4), coded(0, 4))
    np.testing.assert_array_equal(buffer.read(1), coded(0, 1))
    np.testing.assert_array_equal(a.read(9), coded(2, 5))
    np.testing.assert_array_equal(b.read(9), coded(4, 5))
    np.testing.assert_array_equal(buffer.read(9), coded(1, 5))


def test_a_reader_accounts_for_every_frame_whatever_is_read_and_written():
    rng = np.random.default_rng(20_250_101)
    buffer = AudioBuffer(13, 2, "int32")
    reader = buffer.reader()
    got, written = [], 0
    for _ in range(400):
        n = int(rng.integers(0, 20))
        buffer.write(coded(written, written + n, 2, "int32"))
        written += n
        before, taken = reader.position, reader.read(int(rng.integers(0, 9)))
        start = reader.position - len(taken)
        np.testing.assert_array_equal(taken, coded(start, reader.position, 2, "int32"))
        got.extend(range(start, reader.position))
        assert reader.position - reader.start == reader.delivered + reader.lost
        assert before <= start
    gone = [position for first, last in reader.losses() for position in range(first, last)]
    assert sorted(got + gone) == list(range(reader.position))
    assert (len(got), len(gone)) == (reader.delivered, reader.lost)


# ---- the ledger, counters, clear --------------------------------------------------------------------


def test_mark_gap_enters_what_is_missing_before_the_next_frame():
    buffer = filled(16, 5)
    buffer.mark_gap(100, "reopened")
    buffer.mark_gap(7, "paused", exact=False)
    buffer.write(coded(5, 6))
    buffer.mark_gap(0, "device_overflow", False)
    assert buffer.gaps() == [
        Gap(5, 100, "reopened", True),
        Gap(5, 7, "paused", False),
        Gap(6, 0, "device_overflow", False),
    ]
    assert buffer.statistics().frames_lost == {"device_overflow": 0, "dropped": 0, "reopened": 100, "paused": 7}
    assert (buffer.frames_written, buffer.oldest) == (6, 0)  # a gap stores nothing


def test_reports_of_one_kind_at_one_position_are_one_entry():
    buffer = AudioBuffer(16)
    for n in (3, 4):
        buffer.mark_gap(n, "paused")
    buffer.mark_gap(5, "paused", exact=False)
    assert buffer.gaps() == [Gap(0, 7, "paused", True), Gap(0, 5, "paused", False)]
    assert buffer.statistics().gaps == 2


@pytest.mark.parametrize(("capacity", "kept"), [(16, 8), (160 * 20, 20), (160 * 1000, 256)])
def test_the_ledger_is_bounded_and_the_totals_keep_what_falls_out(capacity, kept):
    buffer = AudioBuffer(capacity, dtype="int16")
    frame = np.zeros((1, 1), np.int16)
    for i in range(300):
        buffer.mark_gap(i + 1, "paused")
        buffer.write(frame)
    gaps = buffer.gaps()
    assert gaps == [Gap(i, i + 1, "paused", True) for i in range(300 - kept, 300)]
    statistics = buffer.statistics()
    assert statistics.gaps == 300
    assert statistics.frames_lost["paused"] == 300 * 301 // 2


def test_statistics_say_everything_at_once():
    buffer = AudioBuffer(10, 2, "int16", samplerate=8000, policy="drop")
    buffer.write(coded(0, 7, 2, "int16"))
    buffer.write(coded(7, 8, 2, "int16"))
    buffer.write(coded(8, 8, 2, "int16"))
    buffer.read(4)
    buffer.write(coded(8, 20, 2, "int16"))
    statistics = buffer.statistics()
    assert isinstance(statistics, BufferStatistics)
    assert statistics.memory_bytes > statistics.nbytes == 40
    assert statistics == BufferStatistics(
        capacity=10, channels=2, dtype="int16", samplerate=8000, policy="drop", mirrored=False, nbytes=40,
        memory_bytes=statistics.memory_bytes, frames_written=14, oldest=4, fill=10, peak_fill=10, blocks=3, min_block=1,
        max_block=7,
        frames_lost={"device_overflow": 0, "dropped": 6, "reopened": 0, "paused": 0}, gaps=1, frames_delivered=4,
        frames_overrun=0,
    )  # fmt: skip
    with pytest.raises(AttributeError):
        statistics.fill = 0  # frozen


def test_min_and_max_block_are_of_the_frames_stored_per_write():
    buffer = AudioBuffer(10)
    for n in (0, 4, 9, 2, 23):
        buffer.write(coded(0, n))
    statistics = buffer.statistics()
    assert (statistics.blocks, statistics.min_block, statistics.max_block) == (4, 2, 23)


def test_peak_fill_is_the_high_water_mark():
    buffer = AudioBuffer(10)
    peaks = []
    for write, read in ((3, 3), (7, 2), (1, 6), (2, 2)):
        buffer.write(coded(0, write))
        buffer.read(read)
        peaks.append((buffer.statistics().peak_fill, buffer.fill))
    assert peaks == [(3, 0), (7, 5), (7, 0), (7, 0)]
    buffer.write(coded(0, 25))
    assert buffer.statistics().peak_fill == 10


def test_opening_a_guarded_reader_does_not_lower_the_high_water_mark():
    buffer = AudioBuffer(10, policy="drop")
    buffer.reader().close()  # nobody guards: what fills it is the own reader's
    buffer.write(coded(0, 8))
    newest = buffer.reader(guard=True)
    assert (buffer.fill, buffer.statistics().peak_fill) == (0, 8)
    newest.close()


def test_clearing_does_not_lower_the_high_water_mark():
    """A high-water mark is the largest fill since the beginning, also of audio that nobody read."""
    buffer = filled(10, 8)
    buffer.clear()
    assert (buffer.fill, buffer.statistics().peak_fill) == (0, 8)


@pytest.mark.parametrize("policy", POLICIES)
def test_clear_forgets_the_frames_and_goes_on_counting(policy):
    buffer = filled(10, 8, policy=policy)
    reader = buffer.reader("oldest")
    np.testing.assert_array_equal(reader.read(3), coded(0, 3))
    buffer.clear()
    assert (buffer.frames_written, buffer.oldest, buffer.fill, buffer.get_fill_level()) == (8, 8, 0, 0.0)
    assert buffer.get_latest(5).shape == (0, 1)
    with pytest.raises(FramesLost):
        buffer.read_range(7, 8)
    assert buffer.write(coded(8, 18), timeout=0.0) == 10  # all the space is there again
    np.testing.assert_array_equal(reader.read(99), coded(8, 18))
    assert reader.losses() == [(3, 8)]
    assert reader.position - reader.start == reader.delivered + reader.lost
    np.testing.assert_array_equal(buffer.read(99), coded(8, 18))
    buffer.clear()
    buffer.clear()
    assert buffer.oldest == 18


def test_the_fill_level_is_a_share_of_the_capacity():
    buffer = AudioBuffer(8)
    levels = []
    for write, read in ((2, 0), (4, 1), (9, 0), (0, 2), (0, 9)):
        buffer.write(coded(0, write))
        buffer.read(read)
        levels.append(buffer.get_fill_level())
    assert levels == [0.25, 0.625, 1.0, 0.75, 0.0]
    assert all(type(level) is float for level in levels)


def test_a_range_is_given_by_position_or_named_as_lost():
    buffer = filled(10, 25)
    for start in range(15, 26):
        for stop in range(start, 26):
            np.testing.assert_array_equal(buffer.read_range(start, stop), coded(start, stop))
    with pytest.raises(FramesLost) as caught:
        buffer.read_range(12, 20)
    assert (caught.value.start, caught.value.stop, caught.value.oldest) == (12, 20, 15)
    assert (caught.value.first, caught.value.last) == (12, 15)
    assert isinstance(caught.value, LookupError)
    np.testing.assert_array_equal(buffer.read_range(caught.value.oldest, 20), coded(15, 20))
    with pytest.raises(FramesLost) as caught:
        buffer.read_range(2, 5)
    assert (caught.value.first, caught.value.last) == (2, 5)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.first, again.last, again.oldest, str(again)) == (2, 5, 15, str(caught.value))
    assert len(buffer.read_range(3, 3)) == 0  # of nothing, nothing is lost


# ---- the end, and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "cleanup"])
def test_closing_is_idempotent_and_keeps_the_facts(end):
    buffer = filled(10, 25, name="mic")
    for _ in range(3):
        getattr(buffer, end)()
    assert buffer.closed
    assert (buffer.frames_written, buffer.samples_written, buffer.capacity, buffer.nbytes) == (25, 25, 10, 40)
    assert (buffer.max_samples, buffer.channels, buffer.dtype, buffer.name) == (10, 1, np.float32, "mic")


def test_a_with_block_closes_also_after_an_error():
    with AudioBuffer(10) as buffer:
        buffer.write(coded(0, 3))
        assert not buffer.closed
    assert buffer.closed
    with pytest.raises(KeyError), AudioBuffer(10) as buffer:
        raise KeyError
    assert buffer.closed
    with pytest.raises(BufferClosed), buffer:
        pass


def test_a_closed_buffer_is_read_to_its_end_through_its_readers():
    buffer = filled(10, 25)
    reader, other = buffer.reader("oldest"), buffer.reader("now")
    view = buffer.latest_view(4)
    buffer.close()
    np.testing.assert_array_equal(reader.read(6, timeout=None), coded(15, 21))
    np.testing.assert_array_equal(reader.read(6, timeout=None), coded(21, 25))
    assert reader.available == 0
    with pytest.raises(BufferClosed):
        reader.read(1)
    with pytest.raises(BufferClosed):
        reader.read_into(np.empty((3, 1), np.float32), timeout=None)
    with pytest.raises(BufferClosed):
        other.read(1)
    np.testing.assert_array_equal(view.array, coded(21, 25))
    assert view.intact


def test_windows_of_a_closed_buffer_end_with_the_rest():
    buffer = filled(10, 10)
    windows = buffer.reader("oldest").blocks(4)
    buffer.close()
    assert [(block.start, block.frames, block.lost) for block in windows] == [(0, 4, 0), (4, 4, 0), (8, 2, 0)]


def mappings() -> list[str]:
    with open("/proc/self/maps") as file:
        return [line for line in file if "pcmring" in line and ".so" not in line]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def address_is_mapped(address: int) -> bool:
    with open("/proc/self/maps") as file:
        for line in file:
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if low <= address < high:
                return True
    return False


@linux_only
def test_close_unmaps_a_mirrored_ring_at_once():
    before = mappings()
    buffer = AudioBuffer(MIRRORED)
    assert buffer.mirrored
    buffer.write(coded(0, 10))
    address = buffer.view(0, 1).array.ctypes.data
    assert len(mappings()) == len(before) + 2  # the frames, and the frames once more
    assert address_is_mapped(address)
    buffer.close()
    assert mappings() == before
    assert not address_is_mapped(address)


@linux_only
@pytest.mark.parametrize("holder", ["reader", "view", "array"])
def test_memory_goes_with_the_last_that_needs_it_when_the_buffer_was_closed(holder):
    before = mappings()
    buffer = AudioBuffer(MIRRORED)
    buffer.write(coded(0, 10))
    held = {
        "reader": lambda: buffer.reader(),
        "view": lambda: buffer.view(0, 5),
        "array": lambda: buffer.view(0, 5).array,
    }[holder]()
    buffer.close()
    assert len(mappings()) == len(before) + 2
    del held
    gc.collect()
    assert mappings() == before


@linux_only
@pytest.mark.parametrize("channels", [1, 3])
def test_close_gives_the_memory_back_to_the_system(channels):
    """64 MiB appear at construction, without a write, and go at close. 3 channels: mirrored too, 7 pages a unit."""
    gc.collect()
    before = resident_bytes()
    frames = 64 * 1024 * 1024 // (4 * channels)
    buffer = AudioBuffer(frames, channels)
    nbytes = buffer.nbytes
    assert resident_bytes() - before > 0.95 * nbytes
    buffer.close()
    assert resident_bytes() - before < 0.05 * nbytes


@linux_only
@pytest.mark.parametrize("capacity", [16, 16_000, MIRRORED])
@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_thousand_buffers_leave_no_descriptor_and_no_mapping(capacity, end):
    gc.collect()
    fds, maps = sorted(os.listdir("/proc/self/fd")), mappings()
    frame = coded(0, 3)
    for _ in range(1000):
        buffer = AudioBuffer(capacity)
        buffer.write(frame)
        if end == "close":
            buffer.close()
    del buffer
    assert mappings() == maps
    assert sorted(os.listdir("/proc/self/fd")) == fds


@linux_only
def test_hundreds_of_large_buffers_grow_nothing():
    """300 rings of 1 MiB, one after the other: what stays resident is less than a few of them."""
    AudioBuffer(1 << 18).close()
    before = resident_bytes()
    for _ in range(300):
        AudioBuffer(1 << 18).close()
    assert resident_bytes() - before < 8 << 20


def test_a_small_ring_is_not_mirrored_and_a_large_one_is_where_the_platform_can():
    small, large = AudioBuffer(1000), AudioBuffer(MIRRORED)
    assert not small.mirrored
    assert large.mirrored == (sys.platform == "linux")
    assert large.statistics().mirrored == large.mirrored


def test_a_dropped_buffer_dies_at_once():
    """No cycle and no registry keeps it: weak references go with the last strong one."""
    for capacity in (16, MIRRORED):
        buffer = filled(capacity, 5)
        reference = weakref.ref(buffer)
        buffer.read(2)
        buffer.view(0, 1)
        del buffer
        assert reference() is None


def test_a_plain_buffer_is_dropped_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer = filled(16, 5)
        del buffer
        gc.collect()


def test_the_tracker_is_told_of_the_memory_once_when_it_comes_and_once_when_it_goes():
    tracker = FakeTracker()
    buffer = AudioBuffer(100, 2, "int16", tracker)
    assert tracker.calls == [("track", id(buffer), 400)]
    reader = buffer.reader()
    buffer.close()
    buffer.close()
    assert len(tracker.calls) == 1  # the reader still needs the memory
    reader.close()
    assert tracker.calls[1:] == [("untrack", id(buffer), None)]


@linux_only
def test_a_tracker_that_refuses_leaves_no_buffer():
    class Refuses(FakeTracker):
        def track_buffer(self, buffer, size_bytes):
            raise KeyError("full")

    before = mappings()
    with pytest.raises(KeyError, match="full"):
        AudioBuffer(MIRRORED, buffer_tracker=Refuses())
    gc.collect()
    assert mappings() == before


@linux_only
def test_a_tracker_that_fails_at_the_end_does_not_keep_the_memory():
    class Fails(FakeTracker):
        def untrack_buffer(self, buffer):
            raise KeyError("gone")

    before = mappings()
    buffer = AudioBuffer(MIRRORED, buffer_tracker=Fails())
    with pytest.raises(KeyError, match="gone"):
        buffer.close()
    assert mappings() == before
    buffer.close()
    assert buffer.closed


def test_a_buffer_can_be_subclassed():
    class Named(AudioBuffer):
        extra = 1

    with Named(8, name="mine") as buffer:
        buffer.write(coded(0, 3))
        np.testing.assert_array_equal(buffer.read(9), coded(0, 3))
        buffer.extra = 2


# ---- the seed's own words ---------------------------------------------------------------------------

SEED_TRACKER = """
from audio.memory_manager import AudioBufferTracker

tracker = AudioBufferTracker(monitor)

# Track a buffer
import numpy as np
buffer_data = np.zeros((16000, 1), dtype=np.float32)
tracker.track_buffer(buffer_data, buffer_data.nbytes)

# Get buffer statistics
info = tracker.get_buffer_info()
print(f"Total buffer memory: {info['total_memory_mb']:.1f}MB")

# Untrack when done
tracker.untrack_buffer(buffer_data)
"""

SEED_BUFFER = """
from audio.buffer_manager import AudioBuffer
from audio.memory_manager import AudioBufferTracker

tracker = AudioBufferTracker(monitor)

# Create buffer with tracking
buffer = AudioBuffer(
    max_samples=16000 * 5,  # 5 seconds at 16kHz
    channels=1,
    dtype=np.float32,
    buffer_tracker=tracker
)

# Buffer is automatically tracked
# When cleanup is needed, tracker will handle it
"""

SEED_FLOW = """
# 1. Audio data comes in
audio_data = np.random.randn(16000, 1)  # 1 second of audio
# 3. Data goes to AudioBuffer
buffer.write(audio_data)
"""


def is_installed() -> bool:
    try:
        importlib.metadata.distribution("pcmring")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run_seed(snippet: str, path: str) -> dict:
    """Run a snippet of the seed. A build in place may lack parts of the library; an installed one never does."""
    if not is_installed():
        if path == "audio" and importlib.util.find_spec("audio") is None:
            pytest.skip("src/audio is not in this build")
        if not hasattr(AudioBufferTracker, "track_buffer"):
            pytest.skip("the tracker is not in this build")
    if path == "pcmring":
        snippet = snippet.replace("from audio.buffer_manager", "from pcmring")
        snippet = snippet.replace("from audio.memory_manager", "from pcmring")
    names = {"monitor": None, "np": np}
    exec(snippet, names)
    return names


@pytest.mark.parametrize("path", ["audio", "pcmring"])
def test_the_seeds_tracker_snippet_runs_verbatim(path, capsys):
    names = run_seed(SEED_TRACKER, path)
    assert capsys.readouterr().out == "Total buffer memory: 0.1MB\n"
    assert names["info"]["buffer_count"] == 1
    assert names["info"]["total_memory_bytes"] == 64_000
    assert names["tracker"].get_buffer_info()["buffer_count"] == 0


@pytest.mark.parametrize("path", ["audio", "pcmring"])
def test_the_seeds_buffer_snippet_runs_verbatim(path):
    names = run_seed(SEED_BUFFER + SEED_FLOW, path)
    buffer, tracker = names["buffer"], names["tracker"]
    assert type(buffer) is AudioBuffer
    assert tracker.get_buffer_info()["buffer_count"] == 1
    assert tracker.get_total_buffer_memory() == buffer.nbytes == 320_000
    np.testing.assert_array_equal(buffer.read(16_000), names["audio_data"].astype(np.float32))
    buffer.cleanup()
    assert tracker.get_total_buffer_memory() == 0


# ---- what the incumbent got wrong ---------------------------------------------------------------------


def test_asking_for_more_than_is_held_never_repeats_audio():
    """D1: after 10 s into a 5 s ring its get_latest_audio gave the same 5 s twice."""
    buffer = AudioBuffer(16_000 * 5)
    for start in range(0, 160_000, 1600):
        buffer.write(coded(start, start + 1600))
    expected = coded(80_000, 160_000)
    for asked in (buffer.samples_written, 80_001, 80_000):
        np.testing.assert_array_equal(buffer.get_latest(asked), expected)
    np.testing.assert_array_equal(buffer.read(160_000), expected)
    small = filled(1600, 3200)
    assert small.read(4000).shape == (1600, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_write_that_does_not_fit_corrupts_nothing(policy):
    """D2: its write overwrote the tail, raised, left the index and lost the block."""
    buffer = filled(10, 8, policy=policy)
    accepted = buffer.write(coded(8, 33), timeout=0.0)
    assert accepted == (25 if policy == "overwrite" else 2)
    end = 8 + accepted
    np.testing.assert_array_equal(buffer.read_range(end - 10, end), coded(end - 10, end))
    np.testing.assert_array_equal(buffer.read(99), coded(end - 10, end))


def test_int16_into_a_float_buffer_is_scaled_to_full_scale():
    """D3: its float32 ring held the recorder's int16 numbers as they were, up to 32766."""
    buffer = AudioBuffer(10)
    buffer.write(np.array([-32768, -16384, -1, 0, 1, 16384, 32767], np.int16))
    expected = np.array([-1, -0.5, -1 / 32768, 0, 1 / 32768, 0.5, 32767 / 32768], np.float32)
    np.testing.assert_array_equal(buffer.read(10)[:, 0], expected)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_floats_beyond_full_scale_saturate_in_integers(dtype):
    """D4: its conversion wrapped, 1.2 became -26216 and 2.0 became -2."""
    buffer = AudioBuffer(10, dtype=dtype)
    buffer.write(np.array([1.2, 2.0, -1.2, -2.0, np.inf, -np.inf, np.nan, 1.0, -1.0], np.float32))
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    assert buffer.read(10)[:, 0].tolist() == [high, high, low, low, high, low, 0, high, low]


def test_a_cleared_buffer_delivers_nothing_of_the_recording_before():
    """D6: blocks of the last recording were delivered into the next."""
    buffer = filled(100, 50)
    buffer.clear()
    buffer.write(coded(50, 60))
    np.testing.assert_array_equal(buffer.read(99), coded(50, 60))
    np.testing.assert_array_equal(buffer.get_latest(99), coded(50, 60))


def test_the_start_of_speech_is_there_for_a_reader_that_comes_later():
    """D7: what came before its flag was set was dropped."""
    buffer = filled(100, 30)
    np.testing.assert_array_equal(buffer.reader("oldest").read(99), coded(0, 30))
    np.testing.assert_array_equal(buffer.read(99), coded(0, 30))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_frames_than_asked_come_in_the_same_shape_and_dtype(channels, dtype):
    """D9: asked for 200 with 100 there it gave nothing, as one-dimensional float64."""
    buffer = AudioBuffer(1000, channels, dtype)
    buffer.write(coded(0, 100, channels, dtype))
    for taken, n in (
        (buffer.get_latest(200), 100),
        (buffer.read(200), 100),
        (buffer.read(200), 0),
        (buffer.read(0), 0),
        (buffer.get_latest(0), 0),
        (buffer.read_range(5, 5), 0),
        (buffer.reader().read(9), 0),
        (buffer.view(3, 3).array, 0),
    ):
        assert (taken.shape, taken.dtype) == ((n, channels), np.dtype(dtype))


def test_a_read_consumes_and_the_fill_level_falls():
    """D10: its read never moved, two reads gave the same samples, and the fill was 1.0 for ever after a lap."""
    buffer = filled(100, 250)
    np.testing.assert_array_equal(buffer.read(30), coded(150, 180))
    np.testing.assert_array_equal(buffer.read(30), coded(180, 210))
    assert buffer.get_fill_level() == 0.4
    buffer.read(40)
    assert buffer.get_fill_level() == 0.0


def test_an_overrun_is_told_with_its_positions_to_each_consumer():
    """D10, D12: there was no overrun detection; elsewhere a counter that said neither where nor how much."""
    buffer = filled(100, 50)
    fast, slow = buffer.reader("oldest"), buffer.reader("oldest")
    fast.read(50)
    buffer.write(coded(50, 180))
    fast.read(99)
    slow.read(99)
    assert fast.losses() == [(50, 80)]
    assert slow.losses() == [(0, 80)]
    buffer.mark_gap(42, "device_overflow", exact=False)
    assert buffer.gaps() == [Gap(180, 42, "device_overflow", False)]


def test_a_closed_buffer_still_tells_what_was_while_a_reader_or_a_view_keeps_its_memory():
    buffer = AudioBuffer(100, samplerate=16000)
    buffer.write(coded(0, 50))
    buffer.mark_gap(7, "paused")
    buffer.write(coded(50, 120))
    before = (
        buffer.gaps(),
        buffer.statistics(),
        buffer.oldest,
        buffer.time_of(60),
        buffer.position_at(buffer.time_of(60)),
    )
    reader, view = buffer.reader(), buffer.latest_view(3)
    buffer.close()
    assert (buffer.gaps(), buffer.statistics(), buffer.oldest, buffer.time_of(60)) == before[:4]
    assert buffer.position_at(buffer.time_of(60)) == before[4]
    reader.close()
    assert buffer.gaps() == before[0]
    del view
    for tell in (buffer.gaps, buffer.statistics, lambda: buffer.oldest, lambda: buffer.time_of(60)):
        with pytest.raises(BufferClosed, match="its memory gone"):
            tell()


def test_a_write_into_a_closed_buffer_is_never_silently_dropped():
    """D13: its write returned without a word when the buffer was gone."""
    buffer = filled(100, 50)
    buffer.close()
    for n in (0, 5):
        with pytest.raises(BufferClosed):
            buffer.write(coded(0, n))


@pytest.mark.parametrize("policy", POLICIES)
def test_stereo_into_mono_is_refused_at_the_door_and_the_next_block_is_stored(policy):
    """D14: it raised in the worker thread and the block was lost with a log line."""
    buffer = filled(100, 50, policy=policy)
    before = buffer.statistics()
    with pytest.raises(ValueError, match=r"\(frames, 1\).*\(160, 2\)"):
        buffer.write(np.zeros((160, 2), np.float32))
    assert buffer.statistics() == before
    assert buffer.write(coded(50, 60)) == 10
    np.testing.assert_array_equal(buffer.read(99), coded(0, 60))


@linux_only
def test_cleaning_up_frees_the_bytes_it_says():
    """D17: its cleanup forgot list entries, 73 MB less on paper and 0 MB freed."""
    gc.collect()
    before = resident_bytes()
    buffer = AudioBuffer(16 << 20)
    with_buffer = resident_bytes()
    buffer.cleanup()
    assert with_buffer - resident_bytes() > 0.95 * (64 << 20)
    assert resident_bytes() - before < 4 << 20


def test_memory_is_bounded_however_far_the_consumer_falls_behind():
    """D30: 128 s were queued behind a stalled consumer."""
    buffer = AudioBuffer(1600)
    size = buffer.statistics().memory_bytes
    block = coded(0, 1600)
    for _ in range(1280):
        buffer.write(block)
    assert buffer.statistics().memory_bytes == size
    assert buffer.fill == 1600


def test_buffers_and_readers_and_views_are_context_managers():
    """D35: the seed promised context managers, the code had none."""
    with AudioBuffer(10) as buffer:
        buffer.write(coded(0, 5))
        with buffer.reader("oldest") as reader:
            np.testing.assert_array_equal(reader.read(9), coded(0, 5))
        assert reader.closed
        with buffer.latest_view(2) as view:
            np.testing.assert_array_equal(view.array, coded(3, 5))
    assert buffer.closed


@pytest.mark.parametrize("max_samples", [0, -1])
def test_a_buffer_of_no_frames_is_refused_at_construction(max_samples):
    """D36: AudioBuffer(0) was made, and get_fill_level divided by zero."""
    with pytest.raises(ValueError, match=f"max_samples.*got {max_samples}"):
        AudioBuffer(max_samples)
