"""Views: no copy, read-only, whole across the wrap, honest about being overtaken, and alive as long as their arrays."""

from __future__ import annotations

import gc
import math
import mmap
import os
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcmring
from pcmring import AudioBuffer, AudioView, BufferClosed, FramesLost

PLAIN = 100
MIRRORED = 20_000
CAN_MIRROR = sys.platform == "linux"
needs_mirror = pytest.mark.skipif(not CAN_MIRROR, reason="this platform maps memory once")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def coded(start: int, stop: int, channels: int = 1, dtype: str = "float32") -> np.ndarray:
    position = np.arange(start, stop)[:, None]
    values = (position * 7 + np.arange(channels)) % 30_011 + 1
    return (values / 32_768).astype(dtype) if dtype.startswith("float") else values.astype(dtype)


def slots_of(capacity: int, channels: int = 1, dtype: str = "float32") -> int:
    """Frames of memory: a mirrored ring fills whole pages and whole frames."""
    if not AudioBuffer(capacity, channels, dtype).mirrored:
        return capacity
    unit = math.lcm(mmap.PAGESIZE, channels * np.dtype(dtype).itemsize) // (channels * np.dtype(dtype).itemsize)
    return -(-capacity // unit) * unit


def address(view: AudioView) -> int:
    return view.array.ctypes.data


@pytest.fixture(params=[PLAIN, pytest.param(MIRRORED, marks=needs_mirror)], ids=["plain", "mirrored"])
def capacity(request) -> int:
    return request.param


# ---- no copy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_a_view_shows_the_frames_where_they_lie(capacity, channels, dtype):
    buffer = AudioBuffer(capacity, channels, dtype)
    buffer.write(coded(0, capacity, channels, dtype))
    frame_bytes = channels * np.dtype(dtype).itemsize
    whole = buffer.view(0, capacity)
    assert not whole.copied
    for start, stop in ((0, 1), (3, 50), (capacity - 1, capacity), (0, capacity)):
        view = buffer.view(start, stop)
        assert (view.start, view.stop, len(view), view.copied, view.intact) == (start, stop, stop - start, False, True)
        assert address(view) == address(whole) + start * frame_bytes
        assert np.shares_memory(view.array, whole.array)
        assert view.array.flags.c_contiguous
        assert view.array.flags.aligned
        np.testing.assert_array_equal(view.array, coded(start, stop, channels, dtype), strict=True)


def test_a_view_sees_what_the_producer_writes_over_it(capacity):
    """The proof that it is no copy: its numbers change."""
    buffer = AudioBuffer(capacity)
    slots = slots_of(capacity)
    buffer.write(coded(0, capacity))
    view = buffer.view(0, 10)
    before = view.array.copy()
    written = capacity
    while written < slots + 10:
        n = min(capacity, slots + 10 - written)
        buffer.write(np.full((n, 1), 0.75, np.float32))
        written += n
    assert not view.intact
    assert (view.array == 0.75).all()
    assert (before != 0.75).all()


@needs_mirror
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "float32"), (1, "int16"), (2, "float64"), (3, "float32"), (64, "int16")]
)
def test_a_mirrored_view_across_the_end_of_memory_is_one_stretch_and_no_copy(channels, dtype):
    frame_bytes = channels * np.dtype(dtype).itemsize
    unit = math.lcm(mmap.PAGESIZE, frame_bytes) // frame_bytes  # frames: no slack, so positions are addresses
    frames = -(-max(5000, 65_536 // frame_bytes) // unit) * unit
    buffer = AudioBuffer(frames, channels, dtype)
    assert buffer.mirrored
    buffer.write(coded(0, frames, channels, dtype))
    base = address(buffer.view(0, 1))
    buffer.write(coded(frames, frames + 1000, channels, dtype))
    view = buffer.view(frames - 500, frames + 500)
    assert not view.copied
    assert address(view) == base + (frames - 500) * frame_bytes
    np.testing.assert_array_equal(view.array, coded(frames - 500, frames + 500, channels, dtype), strict=True)
    # the second half of it is the same memory as the beginning of the ring, at another address
    behind = buffer.view(frames, frames + 500)
    assert address(behind) == base
    buffer.write(coded(frames + 1000, 2 * frames, channels, dtype))
    buffer.write(coded(2 * frames, 2 * frames + 500, channels, dtype))
    np.testing.assert_array_equal(view.array[500:], coded(2 * frames, 2 * frames + 500, channels, dtype))
    assert not view.intact


@needs_mirror
def test_every_window_of_a_mirrored_ring_is_uncopied():
    buffer = AudioBuffer(MIRRORED)
    slots = slots_of(MIRRORED)
    assert slots > MIRRORED
    written = 0
    base = None
    for n in (MIRRORED, 1, slots - MIRRORED, 777, MIRRORED // 2, 4096):
        buffer.write(coded(written, written + n))
        written += n
        for length in (1, 1000, MIRRORED):
            view = buffer.latest_view(length)
            base = address(view) if base is None else base
            start = written - min(length, written)
            assert not view.copied
            np.testing.assert_array_equal(view.array, coded(start, written))
    lowest = address(buffer.view(slots, slots + 1))
    for start in range(buffer.oldest, written, 613):
        assert address(buffer.view(start, start + 1)) == lowest + start % slots * 4


@pytest.mark.parametrize("channels", [1, 2])
def test_a_plain_view_across_the_end_of_memory_is_a_copy_and_says_so(channels):
    buffer = AudioBuffer(PLAIN, channels)
    assert not buffer.mirrored
    buffer.write(coded(0, 150, channels))
    for start, stop, copied in (
        (50, 100, False),
        (99, 100, False),
        (100, 150, False),
        (99, 101, True),
        (50, 150, True),
    ):
        view = buffer.view(start, stop)
        assert view.copied is copied
        np.testing.assert_array_equal(view.array, coded(start, stop, channels), strict=True)
        assert not view.array.flags.writeable
        assert np.shares_memory(view.array, buffer.view(start, start + 1).array) is not copied
    view = buffer.view(99, 101)
    buffer.write(coded(150, 450, channels))
    assert view.intact  # what was copied stays
    np.testing.assert_array_equal(view.array, coded(99, 101, channels))
    assert view.array is view.array


@given(st.integers(1, 40), st.lists(st.integers(0, 50), max_size=6), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_view_holds_exactly_what_a_copy_of_the_range_holds(capacity, writes, start, length):
    buffer = AudioBuffer(capacity, 2, "int16")
    written = 0
    for n in writes:
        buffer.write(coded(written, written + n, 2, "int16"))
        written += n
    oldest = max(0, written - capacity)
    start = min(oldest + start, written)
    stop = min(start + length, written)
    view = buffer.view(start, stop)
    np.testing.assert_array_equal(view.array, coded(start, stop, 2, "int16"), strict=True)
    np.testing.assert_array_equal(view.array, buffer.read_range(start, stop))
    assert view.copied == (stop > start and start // capacity != (stop - 1) // capacity)
    latest = buffer.latest_view(length)
    assert (latest.start, latest.stop) == (max(oldest, written - length), written)
    np.testing.assert_array_equal(latest.array, buffer.get_latest(length), strict=True)


# ---- read-only --------------------------------------------------------------------------------------


def test_a_view_cannot_be_written_through(capacity):
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, capacity + 50))
    for view in (buffer.latest_view(10), buffer.latest_view(60)):
        array = view.array
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        if not view.copied:  # a copy is nobody else's
            with pytest.raises(ValueError, match=r"WRITEABLE|writ"):
                array.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            array[2:5][:, 0] += 1
        with pytest.raises((ValueError, BufferError, TypeError)):
            memoryview(array)[0, 0] = 1.0
        with pytest.raises(AttributeError):
            view.array = array
    np.testing.assert_array_equal(buffer.get_latest(60), coded(capacity - 10, capacity + 50))


def test_the_facts_of_a_view_cannot_be_set():
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, 10))
    view = buffer.latest_view(5)
    for fact in ("start", "stop", "copied", "intact", "array"):
        with pytest.raises(AttributeError):
            setattr(view, fact, 0)


# ---- intact -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "channels", "dtype"), [
    (1, 1, "float32"), (PLAIN, 1, "float32"), (PLAIN, 7, "int16"),
    pytest.param(MIRRORED, 1, "float32", marks=needs_mirror),
    pytest.param(20_480, 1, "float32", marks=needs_mirror),
    pytest.param(6000, 3, "float32", marks=needs_mirror),
])  # fmt: skip
def test_intact_turns_false_with_the_first_frame_written_over(capacity, channels, dtype):
    """Not before: the slack of rounding to pages is memory that a view gains. Not after either."""
    slots = slots_of(capacity, channels, dtype)
    offsets = sorted({0, 1, capacity // 2, capacity - 1} & set(range(capacity)))
    buffer = AudioBuffer(capacity, channels, dtype)
    buffer.write(coded(0, capacity, channels, dtype))
    views = [(start, buffer.view(start, start + 1)) for start in offsets]
    written = capacity
    while written < 2 * slots + 1:
        for edge in (*(start + slots for start in offsets), 2 * slots + 1):
            for target in (edge, edge + 1):
                if written < target:
                    while written < target:
                        n = min(capacity, target - written)
                        buffer.write(coded(written, written + n, channels, dtype))
                        written += n
                    for start, view in views:
                        assert view.intact is (written <= start + slots), (start, written)
                        if view.intact:
                            np.testing.assert_array_equal(view.array, coded(start, start + 1, channels, dtype))


def test_intact_goes_by_the_first_frame_of_the_view():
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, PLAIN))
    whole, late = buffer.view(0, 100), buffer.view(50, 100)
    buffer.write(coded(100, 101))
    assert (whole.intact, late.intact) == (False, True)
    np.testing.assert_array_equal(whole.array[1:], coded(1, 100))
    buffer.write(coded(101, 151))
    assert not late.intact


def test_an_over_long_block_overtakes_every_view():
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, PLAIN))
    view = buffer.latest_view(1)
    buffer.write(coded(100, 1000))
    assert not view.intact


def test_clearing_leaves_views_intact():
    """Clearing forgets frames, it writes over none."""
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, PLAIN))
    view = buffer.view(0, 10)
    buffer.clear()
    assert view.intact
    np.testing.assert_array_equal(view.array, coded(0, 10))
    with pytest.raises(FramesLost):
        buffer.view(0, 10)


def test_a_drop_policy_keeps_the_views_of_unread_audio_intact():
    buffer = AudioBuffer(PLAIN, policy="drop")
    buffer.write(coded(0, PLAIN))
    view = buffer.view(0, PLAIN)
    assert buffer.write(coded(100, 200)) == 0
    assert view.intact
    np.testing.assert_array_equal(view.array, coded(0, 100))


# ---- empty and latest -------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 40, 99, 100, 150])
def test_a_view_of_nothing_is_empty_and_always_intact(position):
    buffer = AudioBuffer(PLAIN, 2)
    buffer.write(coded(0, 150, 2))
    view = buffer.view(position, position)
    assert (len(view), view.array.shape, view.intact, view.copied) == (0, (0, 2), True, False)
    assert not view
    buffer.write(coded(150, 400, 2))
    assert view.intact


def test_a_view_is_true_when_it_has_frames():
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, 5))
    assert buffer.latest_view(3)
    assert not buffer.latest_view(0)


def test_the_latest_view_is_of_what_is_held(capacity):
    buffer = AudioBuffer(capacity)
    assert len(buffer.latest_view(10)) == 0
    buffer.write(coded(0, 7))
    view = buffer.latest_view(10)
    assert (view.start, view.stop) == (0, 7)
    buffer.write(coded(7, capacity + 7))
    view = buffer.latest_view(10 * capacity)
    assert (view.start, view.stop) == (7, capacity + 7)
    buffer.clear()
    view = buffer.latest_view(5)
    assert (view.start, view.stop) == (capacity + 7, capacity + 7)


def test_the_newest_seconds_across_the_wrap_cost_the_same_whatever_their_number():
    """A view is made without touching the frames: 1 and 200,000 of them, it is the same object and no memory."""
    buffer = AudioBuffer(200_000)
    if not buffer.mirrored:
        pytest.skip("this platform maps memory once")
    buffer.write(np.zeros((300_000, 1), np.float32))
    small, large = buffer.latest_view(1), buffer.latest_view(200_000)
    assert sys.getsizeof(small) == sys.getsizeof(large) <= 120
    assert not large.copied
    assert not large.array.flags.owndata


# ---- life -------------------------------------------------------------------------------------------


def mapped(where: int) -> bool:
    with open("/proc/self/maps") as file:
        return any(
            low <= where < high for low, high in ([int(n, 16) for n in line.split()[0].split("-")] for line in file)
        )


@pytest.mark.parametrize("end", ["close", "del"])
def test_an_array_outlives_the_view_and_the_buffer(capacity, end):
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, capacity + 50))
    array = buffer.latest_view(10).array
    part = buffer.latest_view(60).array[5:20:3, 0]
    assert isinstance(array.base, AudioView)
    if end == "close":
        buffer.close()
    del buffer
    gc.collect()
    np.testing.assert_array_equal(array, coded(capacity + 40, capacity + 50))
    np.testing.assert_array_equal(part, coded(capacity - 10, capacity + 50)[5:20:3, 0])
    if sys.platform == "linux" and capacity == MIRRORED:
        where = array.ctypes.data
        assert mapped(where)
        del array, part
        gc.collect()
        assert not mapped(where)


def test_a_view_keeps_the_memory_and_not_the_buffer_open(capacity):
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, 50))
    view = buffer.latest_view(10)
    buffer.close()
    assert buffer.closed
    np.testing.assert_array_equal(view.array, coded(40, 50))
    assert view.intact
    assert (view.start, view.stop, len(view)) == (40, 50, 10)
    with pytest.raises(BufferClosed):
        buffer.latest_view(10)
    if sys.platform == "linux" and capacity == MIRRORED:
        where = address(view)
        assert mapped(where)
        del view
        assert not mapped(where)  # though the buffer is still there


def test_a_view_and_its_array_in_a_cycle_are_collected(capacity):
    class Holder:
        pass

    holder = Holder()
    holder.buffer = AudioBuffer(capacity)
    holder.buffer.write(coded(0, 50))
    holder.view = holder.buffer.latest_view(10)
    holder.array = holder.view.array
    holder.me = holder
    reference, buffer_reference = weakref.ref(holder), weakref.ref(holder.buffer)
    del holder
    gc.collect()
    assert reference() is None
    assert buffer_reference() is None


def test_leaving_a_with_block_ends_the_use_of_the_view(capacity):
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, capacity + 50))
    for n in (10, 60):
        with buffer.latest_view(n) as view:
            kept = view.array
        with pytest.raises(BufferClosed, match="left"):
            _ = view.array
        np.testing.assert_array_equal(kept, coded(capacity + 50 - n, capacity + 50))
        assert len(view) == n
    with pytest.raises(KeyError), buffer.latest_view(5) as view:
        raise KeyError
    with pytest.raises(BufferClosed):
        _ = view.array


@linux_only
@pytest.mark.rss
@pytest.mark.parametrize("size", [PLAIN, MIRRORED])
def test_a_hundred_thousand_views_leak_nothing(size):
    buffer = AudioBuffer(size)
    buffer.write(coded(0, size + 50))

    def use(times):
        for _ in range(times):
            buffer.latest_view(60).array  # noqa: B018

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    use(1000)
    gc.collect()
    objects, before = sys.getallocatedblocks(), resident()
    use(100_000)
    gc.collect()
    assert sys.getallocatedblocks() - objects < 100
    assert resident() - before < 2 << 20
    buffer.close()
    with pytest.raises(BufferClosed):
        buffer.latest_view(1)


@linux_only
def test_many_views_at_once_need_one_mapping(capacity):
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, capacity))

    def count() -> int:
        with open("/proc/self/maps") as file:
            return sum("pcmring" in line and ".so" not in line for line in file)

    gc.collect()  # what earlier tests left behind goes now
    before = count()
    views = [buffer.latest_view(10) for _ in range(1000)]
    arrays = [view.array for view in views]
    assert count() == before
    assert len({array.ctypes.data for array in arrays}) == 1


def test_a_view_is_not_a_door_to_the_ring():
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, 10))
    view = buffer.latest_view(5)
    assert {name for name in dir(view) if not name.startswith("_")} == {"array", "copied", "intact", "start", "stop"}
    assert type(view) is pcmring.AudioView


# ---- a view written back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_view_of_the_ring_can_be_written_into_it(capacity, dtype):
    """The producer would overwrite what it copies from: the numbers must be those from before the write."""
    for start, n in ((0, 10), (1, capacity - 1), (0, capacity), (capacity // 2, capacity // 2)):
        for more in (0, 1, capacity // 2):
            buffer = AudioBuffer(capacity, dtype=dtype)
            buffer.write(coded(0, capacity + more, dtype=dtype))
            first = more + start
            last = min(first + n, capacity + more)
            assert buffer.write(buffer.view(first, last).array) == last - first
            expected = np.concatenate([coded(0, capacity + more, dtype=dtype), coded(first, last, dtype=dtype)])
            np.testing.assert_array_equal(buffer.get_latest(capacity), expected[-capacity:], strict=True)


@pytest.mark.parametrize("odd", [lambda a: a[::-1], lambda a: a[::3], lambda a: a.astype("f8"), lambda a: a[5:]])
def test_a_changed_view_of_the_ring_can_be_written_into_it(capacity, odd):
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, capacity))
    expected = np.concatenate([coded(0, capacity), odd(coded(0, capacity))])[-capacity:]
    buffer.write(odd(buffer.view(0, capacity).array))
    np.testing.assert_array_equal(buffer.get_latest(capacity), expected)


def test_a_view_taken_for_shorter_samples_can_be_written_into_it(capacity):
    """What is stored grows faster than what is read, from the same memory."""
    buffer = AudioBuffer(capacity)
    buffer.write(coded(0, capacity))
    samples = buffer.view(0, capacity // 2).array.reshape(-1).view("int16")
    expected = samples.astype("float32")[:, np.newaxis] / 2**15
    buffer.write(samples)
    np.testing.assert_array_equal(buffer.get_latest(len(expected)), expected)


def test_a_view_of_one_ring_can_be_written_into_another(capacity):
    one, other = AudioBuffer(capacity), AudioBuffer(capacity, dtype="float64")
    one.write(coded(0, capacity))
    other.write(one.latest_view(50).array)
    np.testing.assert_array_equal(other.read(99), coded(capacity - 50, capacity).astype("float64"))


# ---- errors -----------------------------------------------------------------------------------------


def test_a_view_of_what_is_gone_names_it():
    buffer = AudioBuffer(PLAIN)
    buffer.write(coded(0, 150))
    with pytest.raises(FramesLost) as caught:
        buffer.view(40, 60)
    assert (caught.value.first, caught.value.last, caught.value.oldest) == (40, 50, 50)
