"""Any sequence of operations on a ring equals oracle.py's plain list model. One thread; threads are test_threads.py's.

Every step is followed by a comparison of everything that can be asked without consuming: positions, fill, counters,
the ledger, each reader's account, what is held, and the views that still claim to be intact.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oracle import ModelBlocks, ModelReader, ModelRing, samples
from pcmring import AudioBuffer, BufferClosed, FramesLost, Gap
from pcmring._records import CAUSES

DTYPES = ("int16", "int32", "float32", "float64")
POLICIES = ("overwrite", "drop", "block")
MOST_READERS = 4

#: Positions are 64 bits wide, some paths of the code 32; arguments are limited to 2**63 - 1.
STARTS = st.one_of(
    st.just(0),
    st.integers(1, 100),
    st.integers(2**32 - 60, 2**32 + 20),
    st.integers(2**63 - 2**24 - 60, 2**63 - 2**24),
)

AMOUNT = st.one_of(st.integers(0, 5), st.integers(0, 47))
WHICH = st.integers(0, 2 * MOST_READERS)
LAYOUTS = ("plain", "read-only", "strided", "fortran", "swapped", "flat", *DTYPES)


class CountingTracker:
    """What AudioBuffer expects of a tracker."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.untracked = 0

    def track_buffer(self, buffer: AudioBuffer, size_bytes: int) -> None:
        self.sizes.append(size_bytes)

    def untrack_buffer(self, buffer: AudioBuffer) -> None:
        self.untracked += 1


def laid_out(audio: np.ndarray, layout: str, serials: list[int]) -> np.ndarray:
    """The same frames in another form that `write` accepts."""
    if layout == "read-only":
        audio.setflags(write=False)
    elif layout == "strided":
        audio = np.repeat(audio, 2, axis=0)[::2]
    elif layout == "fortran":
        audio = np.asfortranarray(audio)
    elif layout == "swapped":
        audio = audio.astype(audio.dtype.newbyteorder())
    elif layout == "flat" and audio.shape[1] == 1:
        audio = audio[:, 0]
    elif layout in DTYPES:
        audio = samples(serials, audio.shape[1], layout)
    return audio


class RingMachine(RuleBasedStateMachine):
    """Tiny rings in plain memory."""

    capacities = st.integers(1, 17)
    all_dtypes = st.sampled_from(DTYPES)
    all_channels = st.integers(1, 3)

    @initialize(data=st.data(), policy=st.sampled_from(POLICIES), first=STARTS)
    def construct(self, data: st.DataObject, policy: str, first: int) -> None:
        capacity = data.draw(self.capacities, label="capacity")
        channels = data.draw(self.all_channels, label="channels")
        dtype = data.draw(self.all_dtypes, label="dtype")
        self.tracker = CountingTracker()
        self.buffer = AudioBuffer(
            capacity,
            channels,
            dtype,
            self.tracker,
            policy=policy,
            samplerate=data.draw(st.sampled_from((None, 100)), label="samplerate"),
            _first_position=first,
        )
        self.model = ModelRing(capacity, channels, dtype, policy, first)
        self.readers: list[tuple[object, ModelReader]] = []
        self.iterations: list[tuple[object, ModelBlocks]] = []
        self.views: list[tuple[object, list[int]]] = []
        self.next_serial = 0
        assert self.tracker.sizes == [self.buffer.nbytes]

    # ---- helpers ------------------------------------------------------------------------------

    def amount(self, number: int) -> int:
        """A count of frames; the mirrored machine has larger ones in mind."""
        return number

    def new_serials(self, frames: int) -> list[int]:
        serials = list(range(self.next_serial, self.next_serial + frames))
        self.next_serial += frames
        return serials

    def check_audio(self, found: np.ndarray, serials: list[int]) -> None:
        assert found.dtype == self.buffer.dtype
        assert found.shape == (len(serials), self.model.channels)
        assert np.array_equal(found, self.model.audio(serials))

    def new_out(self, frames: int) -> np.ndarray:
        return np.full((frames, self.model.channels), 77, self.model.dtype)

    def refused(self, call, *arguments, **options) -> bool:
        """Whether the buffer is closed; then checks that the call says so."""
        if not self.model.closed:
            return False
        with pytest.raises(BufferClosed):
            call(*arguments, **options)
        return True

    # ---- the producer ---------------------------------------------------------------------------

    @rule(number=AMOUNT, layout=st.sampled_from(LAYOUTS))
    def write(self, number: int, layout: str) -> None:
        serials = self.new_serials(self.amount(number))
        audio = laid_out(self.model.audio(serials), layout, serials)
        if not self.refused(self.buffer.write, audio, timeout=0.0):
            assert self.buffer.write(audio, timeout=0.0) == self.model.write(serials)

    @precondition(lambda self: self.views)
    @rule(which=WHICH)
    def write_what_a_view_of_this_ring_shows(self, which: int) -> None:
        view, serials = self.views[which % len(self.views)]
        if not self.model.closed and view.intact:
            assert self.buffer.write(view.array, timeout=0.0) == self.model.write(serials)

    @rule(frames=st.integers(1, 5), cause=st.sampled_from(CAUSES), exact=st.booleans())
    def mark_gap(self, frames: int, cause: str, exact: bool) -> None:
        if not self.refused(self.buffer.mark_gap, frames, cause, exact):
            self.buffer.mark_gap(frames, cause, exact)
            self.model.add_gap(frames, cause, exact)

    @rule()
    def clear(self) -> None:
        if not self.refused(self.buffer.clear):
            self.buffer.clear()
            self.model.clear()

    # ---- the buffer's own reader ------------------------------------------------------------------

    @rule(number=AMOUNT)
    def read(self, number: int) -> None:
        if not self.refused(self.buffer.read, self.amount(number)):
            self.check_audio(self.buffer.read(self.amount(number)), self.model.own.take(self.amount(number)))

    @rule(number=AMOUNT)
    def read_into(self, number: int) -> None:
        out = self.new_out(self.amount(number))
        if not self.refused(self.buffer.read_into, out):
            serials = self.model.own.take(len(out))
            assert self.buffer.read_into(out) == len(serials)
            self.check_audio(out[: len(serials)], serials)
            assert np.all(out[len(serials) :] == 77)

    # ---- readers ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.readers) < MOST_READERS)
    @rule(
        start=st.one_of(st.sampled_from(("now", "oldest")), st.integers(0, 40)),
        guard=st.booleans(),
    )
    def open_reader(self, start: str | int, guard: bool) -> None:
        if isinstance(start, int):  # so many frames back, also to before the oldest
            start = max(self.model.written - self.amount(start), 0)
        if self.model.policy == "overwrite" and guard:
            with pytest.raises(ValueError, match="guard=True"):
                self.buffer.reader(start, guard=True)
        elif not self.refused(self.buffer.reader, start, guard=guard):
            reader = self.buffer.reader(start, guard=guard)
            self.readers.append((reader, self.model.open_reader(start, guard)))

    @precondition(lambda self: self.readers)
    @rule(which=WHICH, number=AMOUNT)
    def read_reader(self, which: int, number: int) -> None:
        reader, model = self.readers[which % len(self.readers)]
        frames = self.amount(number)
        if frames and self.model.closed and model.available == 0:
            with pytest.raises(BufferClosed):
                reader.read(frames)
            model.take(frames)
        else:
            self.check_audio(reader.read(frames), model.take(frames))

    @precondition(lambda self: self.readers)
    @rule(which=WHICH, number=AMOUNT)
    def read_reader_into(self, which: int, number: int) -> None:
        reader, model = self.readers[which % len(self.readers)]
        out = self.new_out(self.amount(number))
        serials = model.take(len(out))
        if len(out) and self.model.closed and not serials:
            with pytest.raises(BufferClosed):
                reader.read_into(out)
        else:
            assert reader.read_into(out) == len(serials)
        self.check_audio(out[: len(serials)], serials)
        assert np.all(out[len(serials) :] == 77)

    @precondition(lambda self: self.readers)
    @rule(which=WHICH)
    def close_reader(self, which: int) -> None:
        reader, model = self.readers.pop(which % len(self.readers))
        before = (reader.position, reader.delivered, reader.lost, reader.losses())
        reader.close()
        reader.close()
        model.closed = True
        assert reader.closed
        assert reader.available == 0
        assert not reader.guard
        assert (reader.position, reader.delivered, reader.lost, reader.losses()) == before
        for call in (lambda: reader.read(1), lambda: reader.read_into(self.new_out(1)), lambda: reader.blocks(1)):
            with pytest.raises(BufferClosed):
                call()

    @precondition(lambda self: len(self.iterations) < MOST_READERS)
    @rule(which=WHICH, frames=AMOUNT, hop=AMOUNT)
    def iterate_blocks(self, which: int, frames: int, hop: int) -> None:
        if not self.readers:
            if self.model.closed:
                return
            self.open_reader("oldest", False)
        reader, model = self.readers[which % len(self.readers)]
        frames = self.amount(frames) % self.model.capacity + 1
        hop = self.amount(hop) % frames + 1
        blocks = reader.blocks(frames, hop, timeout=0.0)
        self.iterations.append((blocks, ModelBlocks(model, frames, hop)))

    @precondition(lambda self: self.iterations)
    @rule(which=WHICH, most=st.integers(1, 4), fed=AMOUNT)
    def next_blocks(self, which: int, most: int, fed: int) -> None:
        blocks, model = self.iterations[which % len(self.iterations)]
        self.write(fed, "plain")
        self.model.note()
        for _ in range(most):
            try:
                expected = model.next()
            except StopIteration:
                with pytest.raises(StopIteration):
                    next(blocks)
                self.iterations.remove((blocks, model))
                return
            if expected is None:
                with pytest.raises(TimeoutError):
                    next(blocks)
                return
            start, serials, lost = expected
            block = next(blocks)
            assert (block.start, block.frames, block.lost) == (start, len(serials), lost)
            self.check_audio(block.array, serials)

    # ---- history ------------------------------------------------------------------------------------

    @rule(number=AMOUNT, into=st.booleans())
    def get_latest(self, number: int, into: bool) -> None:
        frames = self.amount(number)
        out = self.new_out(frames) if into else None
        if not self.refused(self.buffer.get_latest, frames, out):
            start = max(self.model.written - frames, self.model.oldest)
            found = self.buffer.get_latest(frames, out)
            self.check_audio(found, self.model.serials(start, self.model.written))
            assert out is None or np.shares_memory(found, out) or len(found) == 0

    def a_range(self, back: int, length: int) -> tuple[int, int]:
        """`length` frames that begin `back` before the end; may be older than what is held."""
        start = max(self.model.written - self.amount(back), self.model.first)
        return start, min(start + self.amount(length), self.model.written)

    def check_frames_lost(self, start: int, stop: int, call) -> bool:
        if start >= self.model.oldest or start == stop:
            return False
        with pytest.raises(FramesLost) as caught:
            call(start, stop)
        found = caught.value
        assert (found.start, found.stop, found.oldest) == (start, stop, self.model.oldest)
        assert (found.first, found.last) == (start, min(stop, self.model.oldest))
        return True

    @rule(back=AMOUNT, length=AMOUNT, into=st.booleans())
    def read_range(self, back: int, length: int, into: bool) -> None:
        start, stop = self.a_range(back, length)
        if self.refused(self.buffer.read_range, start, stop):
            return
        if not self.check_frames_lost(start, stop, self.buffer.read_range):
            out = self.new_out(stop - start) if into else None
            found = self.buffer.read_range(start, stop, out)
            self.check_audio(found, self.model.serials(start, stop))
            assert out is None or found is out

    @rule(beyond=st.integers(1, 20))
    def ranges_that_never_were(self, beyond: int) -> None:
        written = self.model.written
        for call in (self.buffer.read_range, self.buffer.view):
            with pytest.raises(ValueError):
                call(written, written + beyond)
            with pytest.raises(ValueError):
                call(written + beyond, written)

    def keep_view(self, view, start: int, stop: int) -> None:
        assert (view.start, view.stop, len(view)) == (start, stop, stop - start)
        crosses = start % self.model.capacity + stop - start > self.model.capacity
        assert view.copied == (crosses and not self.buffer.mirrored)
        assert not view.array.flags.writeable
        self.views.append((view, self.model.serials(start, stop)))

    @precondition(lambda self: len(self.views) < MOST_READERS)
    @rule(back=AMOUNT, length=AMOUNT)
    def view(self, back: int, length: int) -> None:
        start, stop = self.a_range(back, length)
        if self.refused(self.buffer.view, start, stop):
            return
        if not self.check_frames_lost(start, stop, self.buffer.view):
            self.keep_view(self.buffer.view(start, stop), start, stop)

    @precondition(lambda self: len(self.views) < MOST_READERS)
    @rule(number=AMOUNT)
    def latest_view(self, number: int) -> None:
        frames = self.amount(number)
        if not self.refused(self.buffer.latest_view, frames):
            start = max(self.model.written - frames, self.model.oldest)
            self.keep_view(self.buffer.latest_view(frames), start, self.model.written)

    @precondition(lambda self: self.views)
    @rule(which=WHICH)
    def drop_view(self, which: int) -> None:
        view, _ = self.views.pop(which % len(self.views))
        with view:
            pass
        with pytest.raises(BufferClosed):
            _ = view.array

    # ---- the end ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.written - self.model.first > self.model.capacity)
    @rule(really=st.integers(0, 3))
    def close(self, really: int) -> None:
        if really == 0:
            self.buffer.close()
            self.buffer.cleanup()
            self.model.closed = True

    @precondition(lambda self: self.model.closed)
    @rule()
    def drain(self) -> None:
        """Every reader of a closed buffer gets the rest, then BufferClosed."""
        for reader, model in self.readers:
            serials = model.take(self.model.capacity)
            if serials:
                self.check_audio(reader.read(self.model.capacity, timeout=None), serials)
            with pytest.raises(BufferClosed):
                reader.read(1, timeout=None)

    # ---- after every step ---------------------------------------------------------------------------------

    @invariant()
    def positions_and_counters_equal_the_model(self) -> None:
        buffer, model = self.buffer, self.model
        assert buffer.frames_written == buffer.samples_written == model.written
        assert buffer.closed == model.closed
        assert buffer.losses() == model.own.losses
        if model.closed:
            for tell in (lambda: buffer.fill, buffer.get_fill_level):
                with pytest.raises(BufferClosed):
                    tell()
            if not self.views and all(reader.closed for reader, _ in self.readers):  # its memory is gone
                for tell in (buffer.statistics, buffer.gaps, lambda: buffer.oldest):
                    with pytest.raises(BufferClosed):
                        tell()
                return
        else:
            assert buffer.fill == model.fill
            assert buffer.get_fill_level() == model.fill / model.capacity
        assert buffer.oldest == model.oldest
        assert buffer.gaps() == [Gap(*entry) for entry in model.ledger]
        found = buffer.statistics()
        assert found.frames_written == model.written
        assert (found.oldest, found.fill) == (model.oldest, model.fill)
        assert found.blocks == len(model.blocks)
        assert found.min_block == min(model.blocks, default=0)
        assert found.max_block == max(model.blocks, default=0)
        assert found.frames_lost == model.lost_by_cause
        assert found.gaps == len(model.gaps)
        assert found.frames_delivered == model.own.delivered
        assert found.frames_overrun == model.own.lost
        own = model.own
        assert own.position - own.start == found.frames_delivered + found.frames_overrun

    @invariant()
    def peak_fill_is_the_high_water_mark_of_fill(self) -> None:
        if not self.model.closed:
            self.model.note()
            assert self.buffer.statistics().peak_fill == self.model.peak_fill

    @invariant()
    def what_was_offered_is_written_or_dropped(self) -> None:
        model = self.model
        assert model.written - model.first + model.refused == model.offered
        if model.policy != "block" and not model.closed:
            marked = sum(frames for _, frames, cause, _ in model.gaps if cause == "dropped") - model.refused
            written = self.buffer.frames_written - model.first
            dropped = self.buffer.statistics().frames_lost["dropped"] - marked
            assert written + dropped == model.offered

    @invariant()
    def readers_account_for_every_frame(self) -> None:
        for reader, model in self.readers:
            assert reader.start == model.start
            assert reader.position == model.position
            assert (reader.delivered, reader.lost) == (model.delivered, model.lost)
            assert reader.position - reader.start == reader.delivered + reader.lost
            assert reader.losses() == model.losses
            assert reader.guard == model.guard
            assert reader.available == model.available
            assert not reader.closed

    @invariant()
    def what_is_held_is_what_was_stored(self) -> None:
        model = self.model
        if not model.closed:
            found = self.buffer.read_range(model.oldest, model.written)
            self.check_audio(found, model.serials(model.oldest, model.written))

    @invariant()
    def intact_views_show_what_they_were_made_of(self) -> None:
        for view, serials in self.views:
            if view.intact:
                self.check_audio(view.array, serials)
            kept = view.start >= self.model.written - self.model.capacity
            if view.copied or view.start == view.stop or kept:
                assert view.intact
            elif not self.buffer.mirrored:  # one that is has up to a page more memory than its capacity
                assert not view.intact

    @invariant()
    def memory_goes_with_the_last_who_needs_it(self) -> None:
        needed = not self.model.closed or self.readers or self.views
        assert self.tracker.untracked == (0 if needed else 1)

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        for reader, _ in self.readers:
            reader.close()
        self.iterations.clear()
        self.readers.clear()
        self.views.clear()
        self.buffer.close()
        assert self.tracker.untracked == 1
        assert self.buffer.frames_written == self.model.written


class MirroredMachine(RingMachine):
    """Rings of 64 KiB and more, whose frames are mapped twice; most steps meet the end of the memory."""

    # 16,384 mono float32 fill their pages; 16,385 leave all but one frame of the last page unused
    capacities = st.sampled_from((16_384, 16_385, 17_001, 40_000))
    all_dtypes = st.sampled_from(("float32", "float64", "int32"))
    all_channels = st.sampled_from((1, 3))

    def amount(self, number: int) -> int:
        capacity = self.model.capacity
        to_wrap = capacity - self.model.written % capacity
        page = 4096 // self.buffer.channels // self.buffer.dtype.itemsize
        slots = -(-capacity // page) * page
        to_end = slots - self.model.written % slots
        half = capacity // 2
        lengths = (0, 1, 7, half, to_wrap, to_end, to_wrap - 1, to_end + 1, capacity - 1, capacity, capacity + 1)
        lengths += (2 * capacity + 3, 4099, slots, slots + 1, half + 1)
        return lengths[number % len(lengths)]

    @invariant()
    def it_is_mirrored_where_the_platform_can(self) -> None:
        assert self.buffer.mirrored == (sys.platform == "linux")


TestTinyRings = RingMachine.TestCase
TestTinyRings.settings = settings(max_examples=200, stateful_step_count=50)

TestMirroredRings = MirroredMachine.TestCase
TestMirroredRings.settings = settings(max_examples=40, stateful_step_count=25)
