"""The capture callback, called the way PortAudio calls it: by address, from threads Python has never heard of."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import pcmring._capture
from native_support import CALLBACK, DEADLINE_S, Foreign, Times, python_environment, run, unavailable
from pcmring import AudioBuffer, BufferClosed, CaptureCallback, Gap

CONTINUE, COMPLETE = 0, 1
INPUT_UNDERFLOW, INPUT_OVERFLOW, OUTPUT_UNDERFLOW, OUTPUT_OVERFLOW, PRIMING = 1, 2, 4, 8, 16


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return Foreign(tmp_path_factory.mktemp("foreign"))


def direct(capture: CaptureCallback, block, *, frames=None, adc_s=None, flags=0) -> int:
    """One call of the callback from this thread."""
    frames = len(block) if frames is None else frames
    data = None if block is None else block.ctypes.data
    times = None if adc_s is None else ctypes.byref(Times(adc_s, adc_s + 0.01, 0.0))
    return CALLBACK(capture.address)(data, None, frames, times, flags, capture.userdata)


def coded(frames: int, channels: int = 1, dtype: str = "int32", start: int = 0) -> np.ndarray:
    """Audio whose every sample tells its position and channel (exactly, up to 24 bits)."""
    codes = np.arange(start * channels, (start + frames) * channels, dtype=np.int64) + 1
    scale = {"int16": 1, "int32": 1, "float32": 2.0**-24, "float64": 2.0**-24}[dtype]
    return (codes * scale).astype(dtype).reshape(frames, channels)


def until(condition) -> None:
    """Look again and again; fails when it takes absurdly long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.0005)


# ---- what it stores -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_frames_from_a_foreign_thread_arrive_bit_for_bit(foreign, dtype, channels):
    audio = coded(2003, channels, dtype)
    with AudioBuffer(701, channels, dtype) as buffer, CaptureCallback(buffer) as capture:
        with foreign.start(capture, audio, block=97) as stream:
            assert stream.join() == CONTINUE
        assert buffer.frames_written == len(audio)
        np.testing.assert_array_equal(buffer.get_latest(701), audio[-701:])
        assert capture.callbacks == -(-2003 // 97)


def test_a_mirrored_ring_takes_blocks_across_its_end(foreign):
    with AudioBuffer(20_000, 2, "float32") as buffer, CaptureCallback(buffer) as capture:
        assert buffer.mirrored == sys.platform.startswith("linux")
        audio = coded(50_021, 2, "float32")
        with foreign.start(capture, audio, block=1009):
            pass
        np.testing.assert_array_equal(buffer.get_latest(20_000), audio[-20_000:])


def test_calls_by_address_through_ctypes_do_the_same():
    audio = coded(64, 2, "int16")
    with AudioBuffer(64, 2, "int16") as buffer, CaptureCallback(buffer) as capture:
        assert [direct(capture, audio[at : at + 16]) for at in range(0, 64, 16)] == [CONTINUE] * 4
        np.testing.assert_array_equal(buffer.read(64), audio)


INTEGERS = np.array([-(2**15), -(2**15) + 1, -1, 0, 1, 2**14, 2**15 - 1])
FLOATS = np.array([-2.0, -1.0, -0.5, 0.0, 0.5 / 2**15, 1.5 / 2**15, 0.25, 1.0, 3.0, np.inf, -np.inf, np.nan])
AS_INT16 = np.array([-(2**15), -(2**15), -(2**14), 0, 0, 2, 2**13, 2**15 - 1, 2**15 - 1, 2**15 - 1, -(2**15), 0])


@pytest.mark.parametrize(
    ("device", "ring", "given", "stored"),
    [
        ("int16", "float32", INTEGERS, INTEGERS / 2**15),
        ("int16", "float64", INTEGERS, INTEGERS / 2**15),
        ("int16", "int32", INTEGERS, INTEGERS * 2**16),
        ("int32", "float32", INTEGERS * 2**16, INTEGERS / 2**15),
        ("int32", "int16", INTEGERS * 2**16, INTEGERS),
        ("float32", "int16", FLOATS, AS_INT16),
        ("float64", "int16", FLOATS, AS_INT16),
        ("float64", "float32", FLOATS, FLOATS),
        ("float32", "float64", INTEGERS / 2**15, INTEGERS / 2**15),
    ],
)
def test_the_device_format_is_converted_to_the_ring_format(foreign, device, ring, given, stored):
    with AudioBuffer(100, dtype=ring) as buffer, CaptureCallback(buffer, device) as capture:
        assert capture.dtype == np.dtype(device)
        assert foreign.call(capture, given.astype(device)) == CONTINUE
        np.testing.assert_array_equal(buffer.read(100)[:, 0], stored.astype(ring))


def test_a_block_longer_than_the_ring_leaves_its_last_frames(foreign):
    audio = coded(251)
    with AudioBuffer(100, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        assert foreign.call(capture, audio) == CONTINUE
        assert (buffer.frames_written, buffer.oldest) == (251, 151)
        np.testing.assert_array_equal(buffer.read(251), audio[151:])
        assert buffer.losses() == [(0, 151)]


@pytest.mark.parametrize(("given", "frames"), [(None, 160), (coded(1), 0), (None, 0)])
def test_a_call_without_frames_stores_nothing_and_is_counted(given, frames):
    with AudioBuffer(160, dtype="int32", samplerate=16000) as buffer, CaptureCallback(buffer) as capture:
        assert direct(capture, given, frames=frames, adc_s=1.0) == CONTINUE
        assert (buffer.frames_written, buffer.statistics().blocks, buffer.gaps()) == (0, 0, [])
        assert (capture.callbacks, capture.empty_callbacks) == (1, 1)
        assert capture.last_call_ns > 0  # the device lives
        direct(capture, coded(160))
        assert (capture.callbacks, capture.empty_callbacks) == (2, 1)
        np.testing.assert_array_equal(buffer.read(160), coded(160))


def test_what_a_guarded_reader_keeps_out_is_in_the_ledger(foreign):
    with (
        AudioBuffer(100, dtype="int32", policy="drop") as buffer,
        CaptureCallback(buffer) as capture,
        buffer.reader(guard=True) as reader,
    ):
        assert foreign.call(capture, coded(70)) == CONTINUE
        assert foreign.call(capture, coded(70, start=70)) == CONTINUE
        assert buffer.gaps() == [Gap(100, 40, "dropped", True)]
        np.testing.assert_array_equal(reader.read(100), coded(100))


def test_under_block_no_captured_frame_goes_unaccounted():
    """A device cannot wait: what does not fit is lost, and every lost frame is in the ledger."""
    with AudioBuffer(100, dtype="int32", policy="block") as buffer:
        try:
            capture = CaptureCallback(buffer)
        except ValueError:
            return  # refusing such a buffer is as good
        with capture:
            direct(capture, coded(130))
            assert buffer.frames_written == 100
            assert sum(buffer.statistics().frames_lost.values()) == 30


# ---- what PortAudio says beside the frames -----------------------------------------------------------


def overflow_after(first: dict, second: dict, samplerate: float | None = 16000) -> Gap:
    """The gap that the second of two blocks, of 160 and 80 frames, leaves when it carries the overflow flag."""
    with AudioBuffer(1600, dtype="int32", samplerate=samplerate) as buffer, CaptureCallback(buffer) as capture:
        direct(capture, coded(160), **first)
        assert buffer.gaps() == []
        direct(capture, coded(80), flags=INPUT_OVERFLOW, **second)
        assert (capture.overflows, capture.underflows) == (1, 0)
        assert buffer.frames_written == 240
        (gap,) = buffer.gaps()
        assert (gap.position, gap.cause, gap.exact) == (160, "device_overflow", False)
        assert buffer.statistics().frames_lost["device_overflow"] == gap.frames
        return gap


@pytest.mark.parametrize("missing", [1, 480, 1500])
def test_an_overflow_is_a_gap_as_long_as_the_device_clock_says(missing):
    assert overflow_after({"adc_s": 5.0}, {"adc_s": 5.0 + (160 + missing) / 16000}).frames == missing


@pytest.mark.parametrize("adc_s", [5.01, 5.0, 1.0, 6.0, 1e14, 1e300, float("inf"), float("nan")])
def test_an_overflow_without_a_believable_length_is_still_in_the_ledger(adc_s):
    assert overflow_after({"adc_s": 5.0}, {"adc_s": adc_s}).frames == 0


def test_an_overflow_without_samplerate_has_no_length():
    assert overflow_after({"adc_s": 5.0}, {"adc_s": 6.0}, samplerate=None).frames == 0


@pytest.mark.parametrize(
    ("first", "second"), [({}, {}), ({"adc_s": 0.0}, {"adc_s": 0.0}), ({"adc_s": 7.0}, {"adc_s": 0.0})]
)
def test_without_a_device_clock_the_arrival_times_say_how_long(first, second):
    """At 1 GHz a frame is a nanosecond: the estimate lies within what the clock read around the calls."""
    with AudioBuffer(1600, dtype="int32", samplerate=1e9) as buffer, CaptureCallback(buffer) as capture:
        moments = [time.monotonic_ns()]
        direct(capture, coded(160), **first)
        moments.append(time.monotonic_ns())
        until(lambda: time.monotonic_ns() - moments[1] > 300_000)
        moments.append(time.monotonic_ns())
        direct(capture, coded(200_000), flags=INPUT_OVERFLOW, **second)
        moments.append(time.monotonic_ns())
        (gap,) = buffer.gaps()
        assert moments[2] - moments[1] - 200_000 <= gap.frames <= moments[3] - moments[0] - 200_000
        assert not gap.exact


def test_an_overflow_at_the_first_block_is_in_the_ledger():
    with AudioBuffer(1600, dtype="int32", samplerate=16000) as buffer, CaptureCallback(buffer) as capture:
        direct(capture, coded(160), flags=INPUT_OVERFLOW, adc_s=5.0)
        assert buffer.gaps() == [Gap(0, 0, "device_overflow", False)]


def test_a_stream_that_goes_on_after_an_interruption_has_it_in_the_ledger_before_its_first_block():
    """At 1 GHz a frame is a nanosecond."""
    with AudioBuffer(1600, dtype="int32", samplerate=1e9) as buffer:
        buffer.write(coded(50))
        ended = time.monotonic_ns()
        with CaptureCallback(buffer, missing_since_ns=ended) as capture:
            direct(capture, None, frames=160)  # brings nothing
            assert buffer.gaps() == []
            before = time.monotonic_ns()
            direct(capture, coded(160))
            after = time.monotonic_ns()
            direct(capture, coded(160))
        ((position, frames, cause, exact),) = buffer.gaps()
        assert (position, cause, exact) == (50, "reopened", False)
        assert before - ended - 160 <= frames <= after - ended - 160


@pytest.mark.parametrize(("samplerate", "since_s"), [(None, 10), (16000, -10), (16000, 0.001)])
def test_an_interruption_of_no_known_length_is_in_the_ledger_all_the_same(samplerate, since_s):
    with AudioBuffer(1600, dtype="int32", samplerate=samplerate) as buffer:
        since_ns = time.monotonic_ns() - round(since_s * 1e9)
        with CaptureCallback(buffer, missing_since_ns=since_ns) as capture:
            direct(capture, coded(1600))
        assert buffer.gaps() == [Gap(0, 0, "reopened", False)]


def test_an_overflow_reported_twice_is_counted_once():
    """640 frames are missing before the second block; the call between brought the flag and no frames."""
    with AudioBuffer(1600, dtype="int32", samplerate=16000) as buffer, CaptureCallback(buffer) as capture:
        direct(capture, coded(160), adc_s=5.0)
        direct(capture, None, frames=160, flags=INPUT_OVERFLOW, adc_s=5.0 + (160 + 480) / 16000)
        direct(capture, coded(160), flags=INPUT_OVERFLOW, adc_s=5.0 + (160 + 640) / 16000)
        assert buffer.gaps() == [Gap(160, 640, "device_overflow", False)]


def test_underflows_are_counted_and_leave_no_gap():
    with AudioBuffer(1600, dtype="int32", samplerate=16000) as buffer, CaptureCallback(buffer) as capture:
        direct(capture, coded(160), flags=INPUT_UNDERFLOW)
        direct(capture, coded(160), flags=INPUT_UNDERFLOW | INPUT_OVERFLOW)
        direct(capture, coded(160), flags=OUTPUT_UNDERFLOW | OUTPUT_OVERFLOW | PRIMING)
        assert (capture.underflows, capture.overflows, len(buffer.gaps())) == (2, 1, 1)
        assert buffer.frames_written == 480


def test_capture_times_reach_the_timeline():
    with AudioBuffer(16000, samplerate=16000) as buffer, CaptureCallback(buffer) as capture:
        for block in range(10):
            direct(capture, coded(160, dtype="float32"), adc_s=5.0 + block * 0.01)
        when = buffer.time_of(800)
        assert (when, when.clock) == (pytest.approx(5.05), "adc")
        assert buffer.position_at(when) == 800


@pytest.mark.parametrize("adc_s", [None, 0.0])
def test_without_capture_times_the_arrival_is_the_time(adc_s):
    with AudioBuffer(16000, samplerate=16000) as buffer, CaptureCallback(buffer) as capture:
        before = time.monotonic_ns()
        direct(capture, coded(160, dtype="float32"), adc_s=adc_s)
        after = time.monotonic_ns()
        when = buffer.time_of(160)  # the frame behind the block arrives when the block does
        assert when.clock == "monotonic"
        assert before * 1e-9 - 1e-6 <= when <= after * 1e-9 + 1e-6


def test_last_call_ns_is_the_moment_of_the_last_call():
    with AudioBuffer(160, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        assert capture.last_call_ns == 0
        for _ in range(3):
            before = time.monotonic_ns()
            direct(capture, coded(16))
            assert before <= capture.last_call_ns <= time.monotonic_ns()


# ---- its life ---------------------------------------------------------------------------------------


def test_after_stop_the_stream_is_complete_and_nothing_is_stored(foreign):
    with AudioBuffer(160, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        foreign.call(capture, coded(16))
        seen = capture.last_call_ns
        capture.stop()
        capture.stop()
        assert foreign.call(capture, coded(16), flags=INPUT_OVERFLOW) == COMPLETE
        assert direct(capture, coded(16), flags=INPUT_UNDERFLOW) == COMPLETE
        assert buffer.frames_written == 16
        assert (capture.callbacks, capture.overflows, capture.underflows) == (1, 0, 0)
        assert (capture.last_call_ns, buffer.gaps(), capture.closed) == (seen, [], False)
        with pytest.raises(RuntimeError):  # until close() it may be called: it stays the producer
            buffer.write(coded(16))


def test_a_stream_ends_itself_after_stop(foreign):
    with AudioBuffer(160, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        with foreign.start(capture, coded(200_000), block=16, period_s=0.0005) as stream:
            until(lambda: stream.calls > 3)
            capture.stop()
            written = buffer.frames_written
            assert stream.join() == COMPLETE
        assert buffer.frames_written == written == 16 * capture.callbacks


def test_the_stream_of_a_closed_buffer_is_complete(foreign):
    buffer = AudioBuffer(160, dtype="int32")
    with CaptureCallback(buffer) as capture:
        foreign.call(capture, coded(16))
        reader = buffer.reader(0)
        buffer.close()
        assert foreign.call(capture, coded(16)) == COMPLETE
        np.testing.assert_array_equal(reader.read(160), coded(16))
        with pytest.raises(BufferClosed):
            reader.read(1)
        reader.close()
        assert foreign.call(capture, coded(16)) == COMPLETE  # the capture alone keeps the memory
    assert buffer.frames_written == 16


def test_a_capture_is_the_one_producer():
    with AudioBuffer(160, dtype="int32") as buffer:
        with CaptureCallback(buffer) as capture:
            for refused in (
                lambda: buffer.write(coded(16)),
                lambda: buffer.mark_gap(1, "paused"),
                lambda: CaptureCallback(buffer),
            ):
                with pytest.raises(RuntimeError, match="one producer"):
                    refused()
            direct(capture, coded(16))
        assert capture.closed
        assert buffer.write(coded(16, start=16)) == 16
        with CaptureCallback(buffer) as capture:
            direct(capture, coded(16, start=32))
        np.testing.assert_array_equal(buffer.read(160), coded(48))
        assert buffer.gaps() == []


def test_close_is_idempotent_and_ends_the_context():
    with AudioBuffer(160, dtype="int32") as buffer:
        capture = CaptureCallback(buffer)
        for _ in range(3):
            capture.close()
            capture.stop()
        assert direct(capture, coded(16)) == COMPLETE  # the object still lives
        with pytest.raises(BufferClosed):
            capture.__enter__()
        assert "closed" in repr(capture)
        other = CaptureCallback(buffer)
        capture.close()  # not its claim any more
        with pytest.raises(RuntimeError):
            buffer.write(coded(16))
        other.close()


def test_a_forgotten_capture_is_reported_and_gives_the_buffer_back():
    def forget() -> None:
        CaptureCallback(buffer)
        gc.collect()

    with AudioBuffer(160, dtype="int32") as buffer:
        with pytest.warns(ResourceWarning, match=r"CaptureCallback.*was not closed"):
            forget()
        assert buffer.write(coded(16)) == 16
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CaptureCallback(buffer).close()
            gc.collect()


def test_the_buffer_lives_as_long_as_its_capture(foreign):
    capture = CaptureCallback(AudioBuffer(160, dtype="int32"))
    gc.collect()
    assert foreign.call(capture, coded(16)) == CONTINUE
    np.testing.assert_array_equal(capture.buffer.read(16), coded(16))
    capture.close()


@pytest.mark.parametrize("dtype", ["complex64", "uint8", object, ">f4", "no such dtype", "i4,i4"])
def test_a_wrong_dtype_is_named_with_the_legal_ones_and_changes_nothing(dtype):
    with AudioBuffer(160, dtype="int32") as buffer:
        with pytest.raises(TypeError, match="int16, int32, float32") as raised:
            CaptureCallback(buffer, dtype)
        assert repr(dtype) in str(raised.value)
        assert buffer.write(coded(16)) == 16  # nobody else is the producer


@pytest.mark.parametrize("buffer", [None, "buffer", 3, object()])
def test_only_an_audio_buffer_can_be_captured_into(buffer):
    with pytest.raises(TypeError):
        CaptureCallback(buffer)


def test_a_closed_buffer_cannot_be_captured_into():
    buffer = AudioBuffer(160)
    buffer.close()
    with pytest.raises(BufferClosed):
        CaptureCallback(buffer)


def test_two_threads_that_close_at_once_give_the_buffer_back_once(foreign):
    """Both must be inside close(), waiting for a callback at work, when that callback ends."""
    with AudioBuffer(160, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        foreign.set_busy(capture, True)
        closers = [threading.Thread(target=capture.close, daemon=True) for _ in range(2)]
        for closer in closers:
            closer.start()

        def inside(closer: threading.Thread) -> bool:
            try:
                clock = time.pthread_getcpuclockid(closer.ident)
                return time.clock_gettime(clock) > 0.02  # starting a thread takes less
            except OSError:
                return not closer.is_alive()

        try:
            until(lambda: all(not closer.is_alive() or inside(closer) for closer in closers))
        finally:
            foreign.set_busy(capture, False)
        for closer in closers:
            closer.join(DEADLINE_S)
        assert not buffer.closed
        assert buffer.write(coded(16)) == 16


FORKED = """
import os, signal, sys
from pathlib import Path
from native_support import Foreign
from pcmring import AudioBuffer, CaptureCallback
foreign = Foreign(Path(sys.argv[1]))
capture = CaptureCallback(AudioBuffer(160))
foreign.set_busy(capture, True)  # at the moment of the fork the audio thread is in the callback
child = os.fork()
if child == 0:  # ... and it does not exist here
    signal.alarm(5)
    capture.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
foreign.set_busy(capture, False)
capture.close()
print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else "closed")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_the_parents_callback(tmp_path):
    environment = python_environment()
    tests = str(Path(__file__).parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, environment.get("PYTHONPATH")]))
    printed = run([sys.executable, "-c", FORKED, tmp_path], env=environment)
    assert printed.strip() == "closed", f"the child's close() hung: signal {signal.Signals(int(printed)).name}"


# ---- who waits for it ---------------------------------------------------------------------------------


class Waiter(threading.Thread):
    """A Python thread in a reader's call; `found` is what it was given."""

    def __init__(self, call) -> None:
        super().__init__(daemon=True)
        self.call, self.found = call, None
        self.start()

    def run(self) -> None:
        self.found = self.call()


@pytest.mark.parametrize("through", ["read", "read_into", "blocks", "own"])
def test_a_sleeping_reader_is_woken_by_the_callback(foreign, through):
    with AudioBuffer(160, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        reader = buffer.reader()
        out = np.zeros((48, 1), np.int32)
        calls = {
            "read": lambda: reader.read(48, DEADLINE_S),
            "read_into": lambda: (reader.read_into(out, None), out)[1],
            "blocks": lambda: next(reader.blocks(48)).array,
            "own": lambda: buffer.read(48, None),
        }
        waiter = Waiter(calls[through])
        until(lambda: foreign.sleepers(capture) == 1)
        with foreign.start(capture, coded(48), block=16):
            pass
        waiter.join(DEADLINE_S)
        np.testing.assert_array_equal(waiter.found, coded(48))
        assert foreign.sleepers(capture) == 0
        reader.close()


def test_an_event_loop_is_woken_by_the_callback(foreign):
    async def listen(buffer, capture):
        with buffer.reader() as reader:
            waiting = asyncio.ensure_future(anext(reader.blocks(48)))
            await asyncio.sleep(0)  # it looks, finds nothing and waits
            with foreign.start(capture, coded(48), block=16):
                return await asyncio.wait_for(waiting, DEADLINE_S)

    with AudioBuffer(160, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        block = asyncio.run(listen(buffer, capture))
        np.testing.assert_array_equal(block.array, coded(48))


def test_a_reader_that_slept_through_a_held_gil_finds_every_frame_after_it(foreign):
    """The wake-up comes while another thread has the GIL; it must not be the one that gets lost."""
    with AudioBuffer(1600, dtype="int32") as buffer, CaptureCallback(buffer) as capture:
        reader = buffer.reader()
        waiter = Waiter(lambda: reader.read(1600, DEADLINE_S))
        until(lambda: foreign.sleepers(capture) == 1)
        with foreign.start(capture, coded(1600), block=16, period_s=0.0005) as stream:
            stream.hold_the_gil(0.02, calls=90)
            stream.join()
        waiter.join(DEADLINE_S)
        np.testing.assert_array_equal(waiter.found, coded(1600))
        reader.close()


def test_no_frame_is_lost_while_the_gil_is_held_for_a_second(foreign):
    """16 kHz in real time, a ring longer than the hold, and a reader that can do nothing meanwhile."""
    block, blocks, start = 16, 1200, 12_345  # 1.2 s; the start makes the frames cross the end of memory
    audio = coded(block * blocks, start=start)
    with AudioBuffer(block * blocks, dtype="int32", _first_position=start) as buffer:
        with CaptureCallback(buffer) as capture, buffer.reader() as reader:
            found = []

            def consume():
                for window in reader.blocks(160, timeout=DEADLINE_S):
                    found.append(window)
                    if window.start + window.frames == start + block * blocks:
                        return

            waiter = Waiter(consume)
            with foreign.start(capture, audio, block, period_s=0.001) as stream:
                until(lambda: len(found) >= 2)
                called = stream.hold_the_gil(1.0, calls=600)
            waiter.join(DEADLINE_S)
            assert not waiter.is_alive()
            assert called >= 600, f"only {called} callbacks got through while the GIL was held"
            assert (reader.lost, buffer.gaps(), capture.callbacks) == (0, [], blocks)
            assert reader.delivered == len(audio)
        np.testing.assert_array_equal(np.concatenate([window.array for window in found]), audio)
        assert [window.start for window in found] == list(range(start, start + len(audio), 160))


# ---- the machine code -----------------------------------------------------------------------------------

#: All that the callback may call outside itself: copying, the clock, and the two ways to wake somebody.
ALLOWED = {"memcpy", "memmove", "memset", "clock_gettime", "syscall", "write", "__stack_chk_fail"}
ALLOWED |= {"__memcpy_chk", "__memmove_chk"}
ALLOWED |= {"sched_getscheduler", "sched_get_priority_min", "sched_setscheduler"}  # the first call only

HEADER = re.compile(r"^([0-9a-f]+) <(.+)>:$")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(?:(?:notrack|bnd)\s+)*(\S+)\s*(.*)$")
TARGET = re.compile(r"<([^>+]+)(?:\+0x[0-9a-f]+)?>")
BRANCH = re.compile(r"^(call|j\w+|bl?|br|blr|b\.\w+|cbn?z|tbn?z)[qwl]?$")


class Disassembly:
    """The functions of a library, and what each of them calls."""

    def __init__(self, library: str) -> None:
        self.lines: dict[str, list[tuple[str, str]]] = {}
        self.addresses: dict[int, str] = {}
        for line in run(["objdump", "-d", "--no-show-raw-insn", library]).splitlines():
            if header := HEADER.match(line):
                self.addresses[int(header[1], 16)] = header[2]
                body = self.lines.setdefault(header[2], [])
            elif match := LINE.match(line):
                body.append((match[2], match[3]))
        # where calls go through the global offset table the instruction names only the table's entry
        self.table: dict[int, str] = {}
        for line in run(["objdump", "-R", library]).splitlines():
            words = line.split()
            if len(words) == 3 and re.fullmatch("[0-9a-f]+", words[0]):
                self.table[int(words[0], 16)] = re.split(r"[@+]", words[2])[0]

    def calls(self, function: str) -> set[str]:
        """What this function alone calls or jumps to; "name@plt" is outside."""
        found = set()
        for mnemonic, operands in self.lines[function]:
            entry = re.search(r"#\s*([0-9a-f]+)", operands)
            imported = self.table.get(int(entry[1], 16)) if entry else None
            if imported is not None:  # an import is looked at, or called
                found.add(f"{imported}@plt")
            elif BRANCH.match(mnemonic):
                target = TARGET.search(operands)
                if target:
                    found.add(target[1])
                elif mnemonic.startswith("call") or mnemonic == "blr":
                    found.add(f"indirect call {operands}")
        return found

    def outside(self, function: str) -> set[str]:
        """What this function and all that it calls inside the library call outside of it."""
        seen, todo, outside = set(), [function], set()
        while todo:
            now = todo.pop()
            if now in seen:
                continue
            seen.add(now)
            for name in self.calls(now):
                base = name.split("@")[0]
                if "@" in name or name not in self.lines:
                    outside.add(base)
                else:
                    todo.append(name)
        return outside


@pytest.mark.native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps and ELF")
def test_the_compiled_callback_references_no_python_no_allocator_and_no_lock():
    if shutil.which("objdump") is None:
        unavailable("objdump is not installed")
    library = pcmring._capture.__file__
    code = Disassembly(library)
    with AudioBuffer(160) as buffer, CaptureCallback(buffer) as capture:
        address = capture.address
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line.split() for line in lines if line.endswith(library)]
    base = min(int(fields[0].split("-")[0], 16) - int(fields[2], 16) for fields in maps if fields[2] == "00000000")
    function = code.addresses.get(address - base)  # the very function that PortAudio is given
    if function is None:
        pytest.skip("the library was stripped of its symbols")
    assert "pcmring_capture_callback" in function
    assert {"memcpy", "clock_gettime"} <= code.outside(function) <= ALLOWED
    # the disassembly does show what we look for where it is
    assert any(name.startswith("Py") for name in code.outside("PyInit__capture"))
