"""AudioBufferTracker: weak, by identity, exact."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref

import numpy as np
import pytest

from pcmring import AudioBuffer, AudioBufferTracker


class Buffer:
    """Hostile to anyone who compares, hashes or measures it."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("the tracker compared")

    def __hash__(self) -> int:
        raise AssertionError("the tracker hashed")

    def __bool__(self) -> bool:
        raise AssertionError("the tracker asked for truth")


class Monitor:
    """Holds its callbacks weakly."""

    def __init__(self) -> None:
        self.callbacks: list[weakref.WeakMethod] = []

    def add_cleanup_callback(self, callback) -> None:
        self.callbacks.append(weakref.WeakMethod(callback))


def counted(tracker: AudioBufferTracker) -> tuple[int, int]:
    info = tracker.get_buffer_info()
    assert info["total_memory_bytes"] == tracker.get_total_buffer_memory()
    return info["buffer_count"], info["total_memory_bytes"]


def test_info_has_the_seeds_keys_and_units():
    tracker = AudioBufferTracker()
    assert tracker.get_buffer_info() == {
        "buffer_count": 0,
        "total_memory_mb": 0.0,
        "total_memory_bytes": 0,
        "average_buffer_size_kb": 0.0,
    }
    buffers = [Buffer(), Buffer()]
    tracker.track_buffer(buffers[0], 1024 * 1024)
    tracker.track_buffer(buffers[1], size_bytes=3 * 1024 * 1024)
    info = tracker.get_buffer_info()
    assert (info["total_memory_mb"], info["average_buffer_size_kb"]) == (4.0, 2048.0)


def test_two_equal_arrays_are_two_buffers():
    """W4L looked for an array in a list, which raises for the second one."""
    tracker = AudioBufferTracker()
    arrays = [np.zeros((16000, 1), np.float32) for _ in range(3)]
    for array in arrays:
        tracker.track_buffer(array, array.nbytes)
    assert counted(tracker) == (3, 192000)
    assert tracker.untrack_buffer(arrays[1])
    assert not tracker.untrack_buffer(arrays[1])
    assert counted(tracker) == (2, 128000)


def test_a_dead_buffer_leaves_the_count_by_itself():
    """W4L held what it tracked: nothing ever died."""
    tracker = AudioBufferTracker()
    buffer = Buffer()
    tracker.track_buffer(buffer, 10)
    del buffer
    assert counted(tracker) == (0, 0)
    cycle = Buffer()
    cycle.itself = cycle
    tracker.track_buffer(cycle, 10)
    del cycle
    gc.collect()
    assert counted(tracker) == (0, 0)


def test_tracking_again_replaces_the_size():
    tracker, buffer = AudioBufferTracker(), Buffer()
    tracker.track_buffer(buffer, 10)
    tracker.track_buffer(buffer, 7)
    assert counted(tracker) == (1, 7)
    del buffer
    assert counted(tracker) == (0, 0)


def test_an_untracked_buffer_leaves_nothing_behind():
    tracker, buffer = AudioBufferTracker(), Buffer()
    tracker.track_buffer(buffer, 10)
    tables = [table for table in gc.get_referents(tracker) if isinstance(table, dict)]
    assert [len(table) for table in tables] == [1, 1]
    assert tracker.untrack_buffer(buffer)
    assert tables == [{}, {}]


def test_an_audio_buffer_is_tracked_until_its_memory_goes():
    tracker = AudioBufferTracker()
    buffer = AudioBuffer(max_samples=16000 * 5, channels=1, dtype=np.float32, buffer_tracker=tracker)
    assert counted(tracker) == (1, 320000)
    reader = buffer.reader()
    buffer.close()
    assert counted(tracker) == (1, 320000)  # the reader can still read
    reader.close()
    assert counted(tracker) == (0, 0)
    other = AudioBuffer(100, buffer_tracker=tracker)
    assert counted(tracker) == (1, 400)
    del other
    assert counted(tracker) == (0, 0)


def test_cleanup_frees_what_owners_give_and_forgets_nothing_else():
    """W4L's cleanup dropped list entries: nothing was freed and the count was wrong from then on."""
    tracker = AudioBufferTracker()
    kept, given = Buffer(), Buffer()
    tracker.track_buffer(kept, 100)
    tracker.track_buffer(given, 50, on_evict=tracker.untrack_buffer)
    assert tracker._cleanup_buffers() == 50
    assert counted(tracker) == (1, 100)


@pytest.mark.parametrize("wanted", [7, 12])
def test_eviction_asks_the_longest_tracked_first_and_stops_when_it_has_enough(wanted):
    tracker = AudioBufferTracker()
    buffers = {name: Buffer() for name in "abc"}
    asked: list[str] = []
    for name, buffer in buffers.items():

        def give(obj, name=name):
            asked.append(name)
            tracker.track_buffer(obj, 4)

        tracker.track_buffer(buffer, 10, give)
    assert tracker.evict(wanted) == 12
    assert asked == ["a", "b"]


def test_an_owner_that_fails_is_logged_once_and_the_others_are_asked(caplog):
    tracker = AudioBufferTracker()
    first, second = Buffer(), Buffer()
    tracker.track_buffer(first, 10, lambda buffer: 1 / 0)
    tracker.track_buffer(second, 10, tracker.untrack_buffer)
    with caplog.at_level(logging.ERROR):
        assert tracker.evict() == 10
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_owner_is_not_asked_while_it_is_being_asked():
    tracker, buffer = AudioBufferTracker(), Buffer()
    asked = []

    def give(obj):
        asked.append(obj)
        tracker.evict()

    tracker.track_buffer(buffer, 10, give)
    tracker.evict()
    tracker.evict()
    assert len(asked) == 2


def test_a_buffers_own_method_does_not_keep_it_alive():
    class Owner:
        def give(self, _obj: object) -> None:
            tracker.untrack_buffer(self)

    tracker, owner = AudioBufferTracker(), Owner()
    tracker.track_buffer(owner, 10, owner.give)
    del owner
    assert counted(tracker) == (0, 0)
    owner = Owner()
    tracker.track_buffer(owner, 10, owner.give)
    assert tracker.evict() == 10


def test_a_monitor_can_hold_the_tracker_weakly():
    """W4L's monitor and tracker kept each other, and every manager, alive."""
    monitor = Monitor()
    tracker = AudioBufferTracker(monitor)
    buffer = Buffer()
    tracker.track_buffer(buffer, 10, tracker.untrack_buffer)
    (callback,) = monitor.callbacks
    assert callback()() == 10
    gone = weakref.ref(tracker)
    del tracker
    gc.collect()
    assert gone() is None
    assert callback() is None


@pytest.mark.parametrize("size", [-1, 1 << 62, 10**30])
def test_a_size_out_of_range_is_refused_and_changes_nothing(size):
    tracker, buffer = AudioBufferTracker(), Buffer()
    tracker.track_buffer(buffer, 5)
    with pytest.raises(ValueError, match=str(size)):
        tracker.track_buffer(buffer, size)
    assert counted(tracker) == (1, 5)


@pytest.mark.parametrize("size", [True, 1.0, "1", None])
def test_a_size_that_is_no_int_is_refused(size):
    tracker = AudioBufferTracker()
    with pytest.raises(TypeError, match="size_bytes must be an int"):
        tracker.track_buffer(Buffer(), size)
    assert counted(tracker) == (0, 0)


def test_wrong_objects_callbacks_and_monitors_are_refused():
    tracker = AudioBufferTracker()
    with pytest.raises(TypeError, match="a bytes cannot be tracked"):
        tracker.track_buffer(b"audio", 5)
    with pytest.raises(TypeError, match="on_evict must be callable or None, got 3"):
        tracker.track_buffer(Buffer(), 5, 3)
    with pytest.raises(TypeError, match="monitor must have add_cleanup_callback"):
        AudioBufferTracker(object())
    with pytest.raises(TypeError, match="wanted_bytes must be an int"):
        tracker.evict("all")
    with pytest.raises(ValueError, match="-1"):
        tracker.evict(-1)
    assert counted(tracker) == (0, 0)


def test_any_sequence_equals_a_plain_dict():
    chance = random.Random(20)
    tracker = AudioBufferTracker()
    alive: dict[int, Buffer] = {}
    sizes: dict[int, int] = {}
    for step in range(20_000):
        if chance.random() < 0.5 or not alive:
            alive[step] = Buffer()
            sizes[step] = chance.randrange(1000)
            tracker.track_buffer(alive[step], sizes[step])
        else:
            name = chance.choice(list(alive))
            what = chance.randrange(3)
            if what == 0:
                sizes[name] = chance.randrange(1000)
                tracker.track_buffer(alive[name], sizes[name])
            elif what == 1:
                assert tracker.untrack_buffer(alive[name]) == (sizes.pop(name, None) is not None)
            else:
                sizes.pop(name, None)
                del alive[name]
        assert counted(tracker) == (len(sizes), sum(sizes.values()))
        if len(alive) > 50:
            alive.clear()
            sizes.clear()


def test_threads_leave_an_exact_count():
    tracker = AudioBufferTracker()
    start = threading.Barrier(4)
    kept: list[Buffer] = []
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            start.wait(10)
            for _ in range(5_000):
                buffer = Buffer()
                tracker.track_buffer(buffer, chance.randrange(100))
                if chance.random() < 0.3:
                    tracker.untrack_buffer(buffer)
            kept.append(buffer := Buffer())
            tracker.track_buffer(buffer, 1)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failed
    assert counted(tracker) == (4, 4)
