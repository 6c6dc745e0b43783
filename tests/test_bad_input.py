"""Every wrong argument: a ValueError or TypeError that names it and what is legal, and nothing has changed.

Objects that fight back (an ``__index__`` that closes the buffer, an array that lies about its shape) run in a
process of their own: what they must not do is crash the interpreter or touch memory outside the ring.
"""

from __future__ import annotations

import array
import datetime
import decimal
import fractions
import subprocess
import sys
import textwrap

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pcmring
from pcmring import AudioBuffer, BufferClosed, FramesLost

DTYPES = ("int16", "int32", "float32", "float64")
MIRRORED = 20_000
FUZZ = settings(max_examples=150, deadline=None, derandomize=True)


def ramp(start: int, stop: int, channels: int = 1) -> np.ndarray:
    return ((np.arange(start, stop)[:, None] * 7 + np.arange(channels)) % 30_011 / 32_768).astype(np.float32)


def make(policy="overwrite", capacity=10, channels=1, **options) -> AudioBuffer:
    """A buffer that holds `capacity` frames, some read, with a loss, a gap and times."""
    buffer = AudioBuffer(capacity, channels, policy=policy, samplerate=16_000, **options)
    buffer.write(ramp(0, capacity - 3, channels))
    buffer.read(4)
    buffer.mark_gap(5, "paused")
    buffer.write(ramp(capacity - 3, capacity + 4, channels), timeout=0.0)
    return buffer


def state(buffer: AudioBuffer):
    """All that an argument could have changed."""
    statistics = buffer.statistics()
    audio = buffer.read_range(statistics.oldest, statistics.frames_written)
    return statistics, buffer.gaps(), buffer.losses(), buffer._stamps(), audio.tobytes()


@pytest.fixture(params=["overwrite", "drop", "block", "mirrored"])
def buffer(request):
    if request.param == "mirrored":
        return make(capacity=MIRRORED)
    return make(request.param)


def short(value: object) -> str:
    """An id for a parameter, not a line of zeros."""
    return (
        repr(value)
        if len(repr(value)) < 30 and " at 0x" not in repr(value)
        else type(value).__name__ + ("-" if str(value).startswith("-") else "+")
    )


def says(error: BaseException, *words: object) -> None:
    """The message has every word, in the order of your choice."""
    text = str(error)
    missing = [word for word in words if str(word) not in text]
    assert not missing, f"{text!r} does not say {missing}"


# ---- counts and positions ---------------------------------------------------------------------------

TOO_FAR = [-1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30]
NOT_INTS = [1.0, 2.5, float("nan"), "5", b"5", [3], (3,), {}, 3j, np.float64(2), np.array([1, 2]), object()]

COUNTS = {
    "read": lambda b, v: b.read(v),
    "get_latest": lambda b, v: b.get_latest(v),
    "latest_view": lambda b, v: b.latest_view(v),
    "read_range start": lambda b, v: b.read_range(v, 9),
    "read_range stop": lambda b, v: b.read_range(5, v),
    "view start": lambda b, v: b.view(v, 9),
    "view stop": lambda b, v: b.view(5, v),
    "reader start": lambda b, v: b.reader(v),
    "mark_gap": lambda b, v: b.mark_gap(v, "paused"),
    "time_of": lambda b, v: b.time_of(v),
    "reader.read": lambda b, v: b.reader("oldest").read(v),
    "blocks n": lambda b, v: b.reader("oldest").blocks(v),
    "blocks hop": lambda b, v: b.reader("oldest").blocks(5, v),
}
ARGUMENT = {
    "read": "num_samples", "get_latest": "num_samples", "latest_view": "num_samples", "read_range start": "start",
    "read_range stop": "stop", "view start": "start", "view stop": "stop", "reader start": "start",
    "mark_gap": "frames", "time_of": "position", "reader.read": "num_samples", "blocks n": "n", "blocks hop": "hop",
}  # fmt: skip


@pytest.mark.parametrize("call", COUNTS)
def test_a_count_or_position_out_of_range_is_a_value_error_that_names_it(buffer, call):
    for value in TOO_FAR:
        with buffer.reader("oldest"):  # so that a reader made by the call below changes nothing new
            before = state(buffer)
            with pytest.raises(ValueError) as caught:
                COUNTS[call](buffer, value)
            says(caught.value, ARGUMENT[call], value, "0", "2**63")
            assert state(buffer) == before


@pytest.mark.parametrize("call", COUNTS)
def test_a_count_or_position_that_is_no_integer_is_a_type_error_that_names_it(buffer, call):
    for value in [*NOT_INTS, None]:
        if (value is None and call == "blocks hop") or (isinstance(value, str) and call == "reader start"):
            continue
        with buffer.reader("oldest"):
            before = state(buffer)
            with pytest.raises(TypeError) as caught:
                COUNTS[call](buffer, value)
            says(caught.value, ARGUMENT[call], repr(value), "int")
            assert state(buffer) == before


@pytest.mark.parametrize("kind", [int, np.int8, np.uint64, np.int64, np.array])
def test_every_kind_of_integer_is_a_count(kind):
    buffer = make()
    assert len(buffer.get_latest(kind(3))) == 3
    assert len(buffer.read_range(kind(5), kind(9))) == 4
    assert len(buffer.read(kind(2))) == 2


def test_asking_for_more_than_there_is_is_no_error():
    buffer = make()
    for many in (11, 2**40, 2**62, 2**63 - 1):
        assert len(buffer.get_latest(many)) == 10
        assert len(buffer.latest_view(many)) == 10
        assert len(buffer.reader("oldest").read(many)) == 10
    assert len(buffer.read(2**63 - 1)) == 10


# ---- construction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, *TOO_FAR, 2**40, 2**61, 2**62, 2**62 + 1])
def test_a_capacity_that_cannot_be_is_a_value_error(value):
    for options in ({}, {"channels": 64, "dtype": "float64"}, {"policy": "drop"}):
        with pytest.raises(ValueError) as caught:
            AudioBuffer(value, **options)
        says(
            caught.value,
            "max_samples",
            value,
            "at least" if value == 0 else "at most" if value in range(2**63) else "0 to",
        )


@pytest.mark.parametrize("value", [*NOT_INTS, None])
def test_a_capacity_that_is_no_integer_is_a_type_error(value):
    with pytest.raises(TypeError) as caught:
        AudioBuffer(value)
    says(caught.value, "max_samples", repr(value), "int")


def test_an_integer_too_long_to_print_is_a_value_error():
    for call in (AudioBuffer, make().read, make().get_latest, make().reader):
        with pytest.raises(ValueError):
            call(10**5000)


@pytest.mark.parametrize("value", [0, -1, 65, 2**31, 2**32 + 1, 2**64 + 1])
def test_channels_out_of_range_are_a_value_error(value):
    with pytest.raises(ValueError) as caught:
        AudioBuffer(10, value)
    says(caught.value, "channels", value)


@pytest.mark.parametrize("value", [0, 65, 2**32 + 1])
def test_the_legal_channels_are_named(value):
    with pytest.raises(ValueError, match="1 to 64"):
        AudioBuffer(10, value)


@pytest.mark.parametrize("value", [*NOT_INTS, None])
def test_channels_that_are_no_integer_are_a_type_error(value):
    with pytest.raises(TypeError) as caught:
        AudioBuffer(10, value)
    says(caught.value, "channels", repr(value), "int")


OTHER_ORDER = ">" if sys.byteorder == "little" else "<"
BAD_DTYPES = [
    complex, np.complex64, object, bool, "int8", "uint8", "uint16", np.uint32, "int64", "float16", np.longdouble, str,
    bytes, "U5", "S", "V8", "M8[s]", "m8", OTHER_ORDER + "f4", OTHER_ORDER + "i2", OTHER_ORDER + "f8", None, "nonsense",
    "", 5, -1, 2.5, [], {}, (), [("a", "f4")], ("f4", (2,)), "f4,f4", {"names": ["a"], "formats": []},
    [("a", "f4"), ("a", "f4")], ",", "f4,(2", "(", "2f4", np.ones(3), AudioBuffer, "\x00", "f4\n",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_DTYPES, ids=short)
def test_any_other_dtype_is_a_type_error_that_names_the_four(value):
    if isinstance(value, np.ndarray):
        value = value.astype("int8")
    with pytest.raises(TypeError) as caught:
        AudioBuffer(10, dtype=value)
    says(caught.value, "dtype", *DTYPES, repr(value))


@pytest.mark.parametrize("value", ["", "Overwrite", "keep", b"drop", None, 3, [], ["drop"], {"drop"}], ids=short)
def test_any_other_policy_is_an_error_that_names_the_three(value):
    with pytest.raises((ValueError, TypeError)) as caught:
        AudioBuffer(10, policy=value)
    says(caught.value, "policy", "overwrite", "drop", "block", repr(value))


def test_a_policy_may_be_any_string_equal_to_one():
    """A str from NumPy, or a member of an enum of strings."""
    import enum

    class Policy(str, enum.Enum):
        DROP = "drop"

    for policy in (np.str_("drop"), Policy.DROP):
        buffer = AudioBuffer(10, policy=policy)
        assert (buffer.policy, type(buffer.policy)) == ("drop", str)


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.001, float("nan"), float("inf"), float("-inf"), 10**400], ids=short)
def test_a_samplerate_that_cannot_be_is_a_value_error(value):
    with pytest.raises(ValueError) as caught:
        AudioBuffer(10, samplerate=value)
    says(caught.value, "samplerate", repr(value)[:30], "more than 0")


@pytest.mark.parametrize("value", ["16000", b"16000", True, [], [16000], {}, 1j, object(), np.array([1, 2])], ids=short)
def test_a_samplerate_that_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError) as caught:
        AudioBuffer(10, samplerate=value)
    says(caught.value, "samplerate", repr(value), "hertz")


def test_a_samplerate_is_asked_once_and_does_not_change_afterwards():
    class Wavers:
        asked = 0

        def __float__(self):
            self.asked += 1
            return [16_000.0, 16_000.0, float("inf"), float("nan")][min(self.asked - 1, 3)]

    wavers = Wavers()
    buffer = AudioBuffer(10, samplerate=wavers)
    assert buffer.samplerate == 16_000
    assert wavers.asked == 1
    shared = np.array(8000.0)
    buffer = AudioBuffer(10, samplerate=shared)
    shared[...] = -1
    assert buffer.samplerate == buffer.statistics().samplerate == 8000


@pytest.mark.parametrize("value", ["shared", "/tmp/x", b"", 5, 0, False, [], object()], ids=short)
def test_storage_other_than_private_memory_is_refused(value):
    with pytest.raises((ValueError, TypeError)) as caught:
        AudioBuffer(10, storage=value)
    says(caught.value, "storage", "None", repr(value))


@pytest.mark.parametrize("value", [5, b"mic", [], object(), np.array("x")], ids=short)
def test_a_name_that_is_no_string_is_a_type_error(value):
    buffer = make()
    before = state(buffer)
    for call in (lambda: AudioBuffer(10, name=value), lambda: buffer.reader(name=value)):
        with pytest.raises(TypeError) as caught:
            call()
        says(caught.value, "name", "str", repr(value))
    assert state(buffer) == before


class TracksOnly:
    def track_buffer(self, buffer, size_bytes):
        raise AssertionError("called")


class NotCallable:
    track_buffer = untrack_buffer = 5


@pytest.mark.parametrize("value", [5, "x", object(), [], NotCallable(), TracksOnly()], ids=lambda v: type(v).__name__)
def test_a_tracker_without_its_two_methods_is_a_type_error(value):
    """Also one that could not be told of the end: closing would fail."""
    with pytest.raises(TypeError) as caught:
        AudioBuffer(10, buffer_tracker=value)
    says(caught.value, "buffer_tracker", "track_buffer", repr(value))


@pytest.mark.parametrize("arguments", [{}, {"max_samples": 10, "size": 5}, {"max_samples": 10, "rate": 16_000}])
def test_missing_and_unknown_arguments_are_type_errors(arguments):
    with pytest.raises(TypeError):
        AudioBuffer(**arguments)
    with pytest.raises(TypeError):
        AudioBuffer(10, 1, "f4", None, 16_000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, of what it still understands
@given(
    st.one_of(
        st.text(max_size=12),
        st.text("fiucbOSUVMm,()0123456789<>=|[] ns", max_size=12),
        st.binary(max_size=5),
        st.integers(),
        st.floats(),
        hnp.scalar_dtypes(),
        hnp.array_dtypes(),
        st.recursive(st.none() | st.text("abf48,", max_size=4), lambda s: st.lists(s, max_size=3) | st.tuples(s, s)),
        st.dictionaries(st.sampled_from(["names", "formats", "offsets", "itemsize"]), st.lists(st.text(max_size=2))),
    )
)
@example("a")
@example("f4,(2")
@example({"names": ["a"], "formats": []})
@FUZZ
def test_whatever_is_given_as_a_dtype_is_taken_or_a_type_error(value):
    try:
        buffer = AudioBuffer(4, dtype=value)
    except TypeError as error:
        says(error, *DTYPES)
    else:
        assert buffer.dtype.name in DTYPES
        assert buffer.dtype.isnative


# ---- timeouts ---------------------------------------------------------------------------------------

TIMEOUTS = {
    "write": lambda b, v: b.write(ramp(0, 2), v),
    "read": lambda b, v: b.read(2, v),
    "read_into": lambda b, v: b.read_into(np.empty((2, 1), np.float32), v),
    "reader.read": lambda b, v: b.reader("oldest").read(2, v),
    "reader.read_into": lambda b, v: b.reader("oldest").read_into(np.empty((2, 1), np.float32), v),
    "blocks": lambda b, v: b.reader("oldest").blocks(2, timeout=v),
}


@pytest.mark.parametrize("call", TIMEOUTS)
@pytest.mark.parametrize("value", [-1, -0.001, -1e-300, float("nan"), float("-inf"), -(10**400)], ids=short)
def test_a_timeout_that_cannot_be_is_a_value_error(buffer, call, value):
    with buffer.reader("oldest"):
        before = state(buffer)
        with pytest.raises(ValueError) as caught:
            TIMEOUTS[call](buffer, value)
        says(caught.value, "timeout", "None", repr(value)[:30])
        assert state(buffer) == before


@pytest.mark.parametrize("call", TIMEOUTS)
@pytest.mark.parametrize("value", ["1", b"1", 1j, [], [1.0], {}, object(), np.array([1, 2])], ids=short)
def test_a_timeout_that_is_no_number_is_a_type_error(buffer, call, value):
    with buffer.reader("oldest"):
        before = state(buffer)
        with pytest.raises(TypeError) as caught:
            TIMEOUTS[call](buffer, value)
        says(caught.value, "timeout", "seconds", "None", repr(value))
        assert state(buffer) == before


@pytest.mark.parametrize("value", [0, 0.0, -0.0, 1, 0.5, 1e300, 10**400, float("inf"), True,
                                   np.float32(1), decimal.Decimal(1),
                                   fractions.Fraction(1, 3), None])  # fmt: skip
def test_every_other_number_of_seconds_is_a_timeout(value):
    for call in TIMEOUTS.values():
        buffer = make()
        buffer.reader()
        call(buffer, value)


# ---- causes, starts, times, windows -----------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "lost", "Paused", b"paused", None, 1, [], ["paused"], object()], ids=short)
def test_any_other_cause_of_a_gap_is_an_error_that_names_the_four(buffer, value):
    before = state(buffer)
    with pytest.raises((ValueError, TypeError)) as caught:
        buffer.mark_gap(3, value)
    says(caught.value, "cause", "device_overflow", "dropped", "reopened", "paused", repr(value))
    assert state(buffer) == before


@pytest.mark.parametrize("value", ["", "newest", "Now", b"now", None, 2.5], ids=short)
def test_a_reader_cannot_start_anywhere_else(buffer, value):
    before = state(buffer)
    with pytest.raises((ValueError, TypeError)) as caught:
        buffer.reader(value)
    says(caught.value, "start", repr(value))
    assert state(buffer) == before


def test_a_reader_cannot_start_in_the_future(buffer):
    before, written = state(buffer), buffer.frames_written
    with pytest.raises(ValueError) as caught:
        buffer.reader(written + 1)
    says(caught.value, "start", written, written + 1)
    assert state(buffer) == before


def test_a_guard_needs_a_policy_that_keeps():
    buffer = make()
    before = state(buffer)
    with pytest.raises(ValueError) as caught:
        buffer.reader(guard=True)
    says(caught.value, "guard", "drop", "block", "overwrite")
    assert state(buffer) == before


@pytest.mark.parametrize(("n", "hop", "words"), [
    (0, None, ("n must", "1 to the capacity", "10", "got 0")),
    (11, None, ("n must", "1 to the capacity", "10", "got 11")),
    (5, 0, ("hop", "1 to n", "got 0")), (5, 6, ("hop", "1 to n", "5", "got 6")),
])  # fmt: skip
def test_windows_fit_the_ring_and_hops_the_window(n, hop, words):
    buffer = make()
    reader = buffer.reader("oldest")
    with pytest.raises(ValueError) as caught:
        reader.blocks(n, hop)
    says(caught.value, *words)
    assert (reader.position, reader.lost) == (4, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400, 1e308, -1e308], ids=short)
def test_a_time_that_no_frame_can_have_is_a_value_error(buffer, value):
    before = state(buffer)
    with pytest.raises(ValueError) as caught:
        buffer.position_at(value)
    says(caught.value, "time", "seconds", repr(value)[:30])
    assert state(buffer) == before


@pytest.mark.parametrize("value", ["1", b"1", None, [], 1j, object(), np.array([1.0, 2.0])], ids=short)
def test_a_time_that_is_no_number_is_a_type_error(buffer, value):
    before = state(buffer)
    with pytest.raises(TypeError) as caught:
        buffer.position_at(value)
    says(caught.value, "time", "seconds", repr(value))
    assert state(buffer) == before


def test_a_time_of_another_clock_is_a_value_error(buffer):
    before = state(buffer)
    with pytest.raises(ValueError, match=r"monotonic.*adc"):
        buffer.position_at(pcmring.StreamTime(1.0, "adc"))
    assert state(buffer) == before


# ---- ranges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["read_range", "view"])
def test_a_reversed_range_is_a_value_error(buffer, call):
    before = state(buffer)
    with pytest.raises(ValueError) as caught:
        getattr(buffer, call)(7, 6)
    says(caught.value, "start", "stop", 7, 6)
    assert state(buffer) == before


@pytest.mark.parametrize("call", ["read_range", "view"])
def test_a_range_beyond_what_was_written_is_a_value_error(buffer, call):
    before, written = state(buffer), buffer.frames_written
    for start, stop in ((written, written + 1), (written + 1, written + 1), (5, 2**63 - 1), (0, written + 1)):
        with pytest.raises(ValueError) as caught:
            getattr(buffer, call)(start, stop)
        says(caught.value, "stop", "frames_written", written, stop)
    assert state(buffer) == before


@pytest.mark.parametrize("call", ["read_range", "view"])
def test_a_range_no_longer_held_is_frames_lost_with_its_facts(call):
    buffer = make()
    before = state(buffer)
    oldest = buffer.oldest
    assert oldest == 4
    for start, stop, last in ((0, 9, 4), (3, 14, 4), (0, 2, 2), (3, 4, 4)):
        with pytest.raises(FramesLost) as caught:
            getattr(buffer, call)(start, stop)
        error = caught.value
        assert (error.start, error.stop, error.first, error.last, error.oldest) == (start, stop, start, last, oldest)
        says(error, start, stop, last, oldest)
        assert isinstance(error, LookupError)
    assert state(buffer) == before


# ---- data -------------------------------------------------------------------------------------------


def structured() -> np.ndarray:
    return np.zeros(5, [("left", "f4"), ("right", "f4")])


BAD_DTYPE_DATA = {
    "complex": lambda n: np.zeros((5, n), complex),
    "object": lambda n: np.full((5, n), 1.0, object),
    "bool": lambda n: np.zeros((5, n), bool),
    "int8": lambda n: np.zeros((5, n), np.int8),
    "uint8": lambda n: np.zeros((5, n), np.uint8),
    "uint16": lambda n: np.zeros((5, n), np.uint16),
    "uint32": lambda n: np.zeros((5, n), np.uint32),
    "int64": lambda n: np.zeros((5, n), np.int64),
    "str": lambda n: np.full((5, n), "1.0"),
    "bytes": lambda n: np.full((5, n), b"1.0"),
    "structured": lambda n: structured(),
    "datetime": lambda n: np.zeros((5, n), "M8[s]"),
    "timedelta": lambda n: np.zeros((5, n), "m8[s]"),
    "void": lambda n: np.zeros((5, n), "V4"),
    "Python ints": lambda n: [[1] * n] * 5,
    "Python complex": lambda n: [[1j] * n] * 5,
    "Python str": lambda n: "silence",
    "Python bytes": lambda n: b"\0\0\0\0" * n,
    "bytearray": lambda n: bytearray(4 * n),
    "None": lambda n: None,
    "dict": lambda n: {0: 1.0},
    "set": lambda n: {1.0},
    "generator": lambda n: (x for x in [1.0]),
    "object()": lambda n: object(),
    "type": lambda n: AudioBuffer,
    "datetime.date": lambda n: datetime.date(2025, 1, 1),
    "decimal": lambda n: [decimal.Decimal(1)],
    "new-style strings": lambda n: np.array(["a"], np.dtypes.StringDType()),
    "bytes memoryview": lambda n: memoryview(b"1234"),
    "int8 array.array": lambda n: array.array("b", [1, 2]),
}
if np.dtype(np.longdouble).itemsize > 8:
    BAD_DTYPE_DATA["longdouble"] = lambda n: np.zeros((5, n), np.longdouble)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", BAD_DTYPE_DATA)
def test_data_of_any_other_type_is_a_type_error_that_names_the_legal_ones(kind, channels):
    for policy in ("overwrite", "drop", "block"):
        buffer = make(policy, channels=channels)
        before = state(buffer)
        with pytest.raises(TypeError) as caught:
            buffer.write(BAD_DTYPE_DATA[kind](channels))
        says(caught.value, "data", *DTYPES, "float16")
        assert state(buffer) == before


BAD_SHAPES = [
    (1, ()), (1, (5, 2)), (1, (1, 5)), (1, (5, 0)), (1, (0, 0)), (1, (0, 2)), (1, (5, 1, 1)), (1, (1, 5, 1)),
    (1, (0, 0, 0)),
    (2, ()), (2, (5,)), (2, (0,)), (2, (2,)), (2, (5, 1)), (2, (2, 5)), (2, (5, 3)), (2, (0, 1)), (2, (5, 2, 1)),
    (7, (7,)), (7, (5, 6)), (7, (7, 8)), (64, (64,)), (64, (1, 63)),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "shape"), BAD_SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_data_of_another_shape_is_a_value_error_that_names_both(channels, shape, dtype):
    buffer = make(channels=channels)
    before = state(buffer)
    cases = [np.zeros(shape, dtype)]
    if dtype == "float32" and cases[0].size:  # lists of float64; empty ones have no shape to speak of
        cases.append(cases[0].tolist())
    for data in cases:
        with pytest.raises(ValueError) as caught:
            buffer.write(data)
        says(caught.value, "shape", f"(frames, {channels})", np.shape(data))
        if channels == 1:
            says(caught.value, "(frames,)")
    assert state(buffer) == before


@pytest.mark.parametrize("data", [[[1.0, 2.0], [3.0]], [1.0, [2.0]], [[[1.0]], [2.0]]])
def test_ragged_data_is_a_value_error(data):
    for channels in (1, 2):
        buffer = make(channels=channels)
        before = state(buffer)
        with pytest.raises((ValueError, TypeError)):
            buffer.write(data)
        assert state(buffer) == before


@pytest.mark.parametrize("channels", [1, 2, 64])
def test_an_array_of_2_to_the_40_frames_of_no_memory_is_an_error(channels):
    """Rows of stride 0 have any number: what cannot be copied is refused, and what has another shape too."""
    frame = np.zeros(64, np.float32)
    strided = np.lib.stride_tricks.as_strided
    buffer = make(channels=channels)
    before = state(buffer)
    for huge in (strided(frame, (2**45, channels), (0, 4)), strided(frame.astype("f8"), (2**44, channels), (0, 8))):
        with pytest.raises((MemoryError, ValueError)):
            buffer.write(huge)
    with pytest.raises(ValueError, match="shape"):
        buffer.write(strided(frame, (2**40, channels + 1), (0, 4)))
    with pytest.raises(ValueError, match="shape"):
        buffer.write(strided(frame, (channels, 2**40), (0, 0)))
    with pytest.raises(TypeError, match="int8"):
        buffer.write(strided(frame.view("i1"), (2**40, channels), (0, 0)))
    assert state(buffer) == before


@pytest.mark.parametrize("change", ["broadcast", "negative", "negative rows and columns", "read-only", "misaligned",
                                    "fortran", "every other", "subclass", "masked", "memmap"])  # fmt: skip
def test_an_odd_array_is_stored_as_the_frames_it_shows(change, tmp_path):
    frames = ramp(0, 8, 2)
    spaced = np.zeros((16, 4), np.float32)
    spaced[::2, ::2] = frames
    shifted = np.zeros(8 * 8 + 1, np.uint8)[1:].view(np.float32).reshape(8, 2)
    shifted[:] = frames

    class Sub(np.ndarray):
        pass

    mapped = np.memmap(tmp_path / "frames", np.float32, "w+", shape=(8, 2))
    mapped[:] = frames
    read_only = frames.copy()
    read_only.flags.writeable = False
    odd = {
        "broadcast": np.broadcast_to(frames[3], (8, 2)),
        "negative": frames[::-1],
        "negative rows and columns": frames[::-1, ::-1],
        "read-only": read_only,
        "misaligned": shifted,
        "fortran": np.asfortranarray(frames),
        "every other": spaced[::2, ::2],
        "subclass": frames.view(Sub),
        "masked": np.ma.masked_array(frames, frames > 0.001),
        "memmap": mapped,
    }[change]
    for dtype in ("float32", "float64"):
        buffer = AudioBuffer(10, 2, dtype)
        buffer.write(ramp(0, 5, 2))
        assert buffer.write(odd) == 8
        np.testing.assert_array_equal(buffer.get_latest(8), np.array(odd, dtype))


# ---- out --------------------------------------------------------------------------------------------

OUTS = {
    "read_into": lambda b, out: b.read_into(out),
    "read_into waiting": lambda b, out: b.read_into(out, 1e-9),
    "get_latest": lambda b, out: b.get_latest(5, out),
    "read_range": lambda b, out: b.read_range(5, 10, out),
    "reader.read_into": lambda b, out: b.reader("oldest").read_into(out),
}


def bad_outs(channels: int) -> dict[str, tuple[object, type, tuple]]:
    good = np.full((5, channels), 7, np.float32)
    frozen = good.copy()
    frozen.flags.writeable = False
    shifted = np.zeros(5 * channels * 4 + 1, np.uint8)[1:].view(np.float32).reshape(5, channels)
    same = np.lib.stride_tricks.as_strided(good.copy(), (5, channels), (0, 4))
    outs = {
        "list": ([[0.0] * channels] * 5, TypeError, ("ndarray", "float32", "list")),
        "None, a number": (3, TypeError, ("ndarray", "float32", "int")),
        "str": ("x", TypeError, ("ndarray", "float32", "str")),
        "bytearray": (bytearray(20), TypeError, ("ndarray", "float32", "bytearray")),
        "bytes": (bytes(20), TypeError, ("ndarray", "float32", "bytes")),
        "memoryview": (memoryview(good), TypeError, ("ndarray", "float32", "memoryview")),
        "array.array": (array.array("f", [0] * 5), TypeError, ("ndarray", "float32", "array")),
        "float64": (good.astype("f8"), TypeError, ("float32", "float64")),
        "int16": (good.astype("i2"), TypeError, ("float32", "int16")),
        "int32": (good.astype("i4"), TypeError, ("float32", "int32")),
        "bytes array": (good.view("u1"), TypeError, ("float32", "uint8")),
        "object": (good.astype(object), TypeError, ("float32", "object")),
        "byte-swapped": (good.astype(OTHER_ORDER + "f4"), TypeError, ("float32", OTHER_ORDER)),
        "structured": (np.zeros((5, channels), [("a", "f4")]), TypeError, ("float32", "'a'")),
        "a channel more": (np.zeros((5, channels + 1), "f4"), ValueError, (f"(frames, {channels})", (5, channels + 1))),
        "transposed": (np.zeros((channels, 5), "f4"), ValueError, (f"(frames, {channels})", (channels, 5))),
        "no channels": (np.zeros((5, 0), "f4"), ValueError, (f"(frames, {channels})", (5, 0))),
        "3-D": (np.zeros((5, channels, 1), "f4"), ValueError, (f"(frames, {channels})", (5, channels, 1))),
        "0-D": (np.zeros((), "f4"), ValueError, (f"(frames, {channels})", ())),
        "read-only": (frozen, ValueError, ("writable",)),
        "broadcast": (np.broadcast_to(np.float32(0), (5, channels)), ValueError, ("C-contiguous",)),
        "every other": (np.zeros((10, channels), "f4")[::2], ValueError, ("C-contiguous",)),
        "reversed": (good.copy()[::-1], ValueError, ("C-contiguous",)),
        "misaligned": (shifted, ValueError, ("aligned",)),
        "rows of stride 0": (same, ValueError, ("C-contiguous",)),
    }  # fmt: skip
    if channels > 1:
        outs["1-D"] = (np.zeros(5 * channels, "f4"), ValueError, (f"(frames, {channels})", (5 * channels,)))
        outs["fortran"] = (np.asfortranarray(good), ValueError, ("C-contiguous",))
        outs["wide"] = (np.zeros((5, channels + 1), "f4")[:, :channels], ValueError, ("C-contiguous",))
    return outs


@pytest.mark.parametrize("call", OUTS)
@pytest.mark.parametrize(("channels", "kind"), [(channels, kind) for channels in (1, 2) for kind in bad_outs(channels)])
def test_an_out_that_cannot_be_filled_is_an_error_and_stays_as_it_was(kind, call, channels):
    out, expected, words = bad_outs(channels)[kind]
    buffer = make(channels=channels)
    with buffer.reader("oldest"):
        before, content = state(buffer), repr(out)
        with pytest.raises(expected) as caught:
            OUTS[call](buffer, out)
        says(caught.value, "out", *words)
        assert (state(buffer), repr(out)) == (before, content)


def test_an_out_is_required_by_read_into_alone():
    buffer = make()
    for call in (buffer.read_into, buffer.reader("oldest").read_into):
        with pytest.raises(TypeError, match=r"ndarray.*NoneType"):
            call(None)
    buffer.get_latest(3, None)
    buffer.read_range(5, 6, None)


@pytest.mark.parametrize("n", [0, 4, 6, 100])
def test_an_out_of_another_length_is_a_value_error(n):
    buffer = make()
    out = np.full((n, 1), 7, np.float32)
    before = state(buffer)
    for call in ("get_latest", "read_range"):
        with pytest.raises(ValueError) as caught:
            OUTS[call](buffer, out)
        says(caught.value, "out", "5 frames", n)
    assert (out == 7).all()
    assert state(buffer) == before


def test_a_view_of_the_ring_cannot_be_an_out():
    for buffer in (make(), make(capacity=MIRRORED)):
        before = state(buffer)
        for call in OUTS.values():
            with pytest.raises(ValueError, match="writable"):
                call(buffer, buffer.view(5, 10).array)
        assert state(buffer) == before


def test_subclasses_of_ndarray_are_filled(tmp_path):
    buffer = make()
    mapped = np.memmap(tmp_path / "out", np.float32, "w+", shape=(5, 1))

    class Sub(np.ndarray):
        pass

    for out in (mapped, np.zeros((5, 1), np.float32).view(Sub)):
        assert buffer.get_latest(5, out) is out
        np.testing.assert_array_equal(np.asarray(out), ramp(9, 14))


# ---- after the end ----------------------------------------------------------------------------------

AFTER_CLOSE = {
    "write": lambda b: b.write(ramp(0, 1)),
    "read": lambda b: b.read(1),
    "read_into": lambda b: b.read_into(np.empty((1, 1), np.float32)),
    "get_latest": lambda b: b.get_latest(1),
    "read_range": lambda b: b.read_range(5, 6),
    "view": lambda b: b.view(5, 6),
    "latest_view": lambda b: b.latest_view(1),
    "reader": lambda b: b.reader(),
    "mark_gap": lambda b: b.mark_gap(1, "paused"),
    "clear": lambda b: b.clear(),
    "get_fill_level": lambda b: b.get_fill_level(),
    "fill": lambda b: b.fill,
}
#: Told as long as a reader or a view keeps the memory.
TOLD_BY_MEMORY = {
    "gaps": lambda b: b.gaps(),
    "statistics": lambda b: b.statistics(),
    "time_of": lambda b: b.time_of(5),
    "position_at": lambda b: b.position_at(1.0),
    "oldest": lambda b: b.oldest,
}
STAYS_TRUE = {"capacity", "max_samples", "channels", "dtype", "samplerate", "policy", "name", "nbytes", "closed",
              "frames_written", "samples_written", "mirrored", "losses", "close", "cleanup"}  # fmt: skip


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_nothing_public_is_missing_from_the_tables_here():
    assert public(AudioBuffer) == AFTER_CLOSE.keys() | TOLD_BY_MEMORY.keys() | STAYS_TRUE
    assert public(pcmring.Reader) == READER_AFTER_CLOSE.keys() | READER_STAYS_TRUE
    assert public(pcmring.AudioView) == {"array", "copied", "intact", "start", "stop"}


@pytest.mark.parametrize("call", AFTER_CLOSE)
@pytest.mark.parametrize("held", [False, True], ids=["", "with a reader and a view"])
def test_a_closed_buffer_refuses(buffer, call, held):
    keep = (buffer.reader(), buffer.latest_view(3)) if held else None
    buffer.close()
    for _ in range(2):
        with pytest.raises(BufferClosed, match="closed"):
            AFTER_CLOSE[call](buffer)
    del keep


@pytest.mark.parametrize("call", TOLD_BY_MEMORY)
def test_a_closed_buffer_whose_memory_is_gone_refuses(buffer, call):
    buffer.close()
    for _ in range(2):
        with pytest.raises(BufferClosed, match="closed"):
            TOLD_BY_MEMORY[call](buffer)


@pytest.mark.parametrize("name", sorted(STAYS_TRUE))
def test_a_fact_stays_true_after_close(buffer, name):
    def value():
        found = getattr(buffer, name)
        return found() if callable(found) else found

    if name in ("close", "cleanup"):
        buffer.close()
    before = value()
    buffer.close()
    assert value() == (True if name == "closed" else before)


def test_a_wrong_argument_is_wrong_also_after_close():
    buffer = make()
    buffer.close()
    with pytest.raises(TypeError):
        buffer.read("5")
    with pytest.raises(TypeError):
        buffer.write(b"")


READER_AFTER_CLOSE = {
    "read": lambda r: r.read(1),
    "read_into": lambda r: r.read_into(np.empty((1, 1), np.float32)),
    "blocks": lambda r: r.blocks(2),
}
READER_STAYS_TRUE = {
    "position",
    "start",
    "lost",
    "losses",
    "delivered",
    "available",
    "guard",
    "name",
    "close",
    "closed",
}


@pytest.mark.parametrize("call", READER_AFTER_CLOSE)
def test_a_closed_reader_refuses_and_the_buffer_does_not(buffer, call):
    reader = buffer.reader("oldest")
    windows = reader.blocks(2)
    next(windows)
    reader.close()
    reader.close()
    with pytest.raises(BufferClosed, match="closed"):
        READER_AFTER_CLOSE[call](reader)
    assert list(windows) == []
    assert reader.available == 0
    assert (reader.position - reader.start, reader.lost, reader.closed) == (2, 0, True)
    assert len(buffer.read(2)) == 2


def test_a_left_view_refuses_its_array_and_its_arrays_go_on():
    buffer = make()
    with buffer.latest_view(3) as view:
        kept = view.array
    with pytest.raises(BufferClosed, match="left"):
        _ = view.array
    np.testing.assert_array_equal(kept, ramp(11, 14))
    assert (view.start, view.stop, len(view), view.intact, view.copied) == (11, 14, 3, True, view.copied)


# ---- objects that fight back ------------------------------------------------------------------------

PREAMBLE = """
import gc, sys
import numpy as np
from pcmring import AudioBuffer, BufferClosed

def ramp(start, stop, channels=1):
    return ((np.arange(start, stop)[:, None] * 7 + np.arange(channels)) % 30_011 / 32_768).astype(np.float32)

def make(channels=1, capacity=100_000, written=50_000, **options):
    buffer = AudioBuffer(capacity, channels, samplerate=16_000, **options)
    buffer.write(ramp(0, written, channels))
    return buffer

def refused(kinds, call, *arguments):
    try:
        result = call(*arguments)
    except kinds as error:
        return error
    raise AssertionError(f"accepted: {result!r}")
"""

HOSTILE = {
    "an __index__ that closes the buffer, as a reader's start": """
        class Closes:
            def __index__(self):
                buffer.close()
                return 0
        for capacity in (1000, 100_000):
            buffer = make(capacity=capacity, written=900)
            try:
                reader = buffer.reader(Closes())
            except BufferClosed:
                continue
            np.testing.assert_array_equal(reader.read(10), ramp(0, 10))
            reader.close()
        assert buffer.closed
    """,
    "a __bool__ that closes the buffer, as guard": """
        class Closes:
            asked = 0
            def __bool__(self):
                self.asked += 1
                if self.asked > closes_at:
                    buffer.close()
                return True
        for closes_at in (0, 1, 2):
            buffer = make(policy="drop")
            try:
                reader = buffer.reader("oldest", guard=Closes())
            except BufferClosed:
                continue
            np.testing.assert_array_equal(reader.read(10), ramp(0, 10))
            reader.close()
    """,
    "a str that closes the buffer when compared, as a reader's start": """
        class Closes(str):
            asked = 0
            def __eq__(self, other):
                self.asked += 1
                if self.asked > closes_at:
                    buffer.close()
                return str(self) == other
            __hash__ = str.__hash__
        for closes_at in range(5):
            buffer = make()
            try:
                reader = buffer.reader(Closes("oldest"))
            except BufferClosed:
                continue
            np.testing.assert_array_equal(reader.read(10), ramp(0, 10))
            reader.close()
    """,
    "an __index__ that closes the buffer, everywhere else": """
        class Closes:
            def __index__(self):
                buffer.close()
                return 3
        calls = [lambda v: buffer.read(v), lambda v: buffer.get_latest(v), lambda v: buffer.latest_view(v),
                 lambda v: buffer.read_range(0, v), lambda v: buffer.view(0, v), lambda v: buffer.mark_gap(v, "paused")]
        for call in calls:
            buffer = make()
            refused(BufferClosed, call, Closes())
        buffer = make()
        reader = buffer.reader("oldest")
        assert len(reader.read(Closes())) == 3  # a reader reads on
    """,
    "a __float__ that closes the buffer": """
        class Closes:
            def __float__(self):
                buffer.close()
                return 0.0
        out = np.empty((5, 1), np.float32)
        for call in (lambda v: buffer.read(5, v), lambda v: buffer.read_into(out, v),
                     lambda v: buffer.write(ramp(0, 5), v)):
            buffer = make()
            refused(BufferClosed, call, Closes())
    """,
    "a __float__ that closes the reader": """
        class Closes:
            def __float__(self):
                reader.close()
                return 0.0
        out = np.empty((5, 1), np.float32)
        for call in (lambda v: reader.read(5, v), lambda v: reader.read_into(out, v),
                     lambda v: reader.blocks(5, timeout=v)):
            buffer = make()
            reader = buffer.reader("oldest")
            refused(BufferClosed, call, Closes())
    """,
    "a __float__ that reshapes the out it stands beside": """
        class Reshapes:
            def __float__(self):
                change(out)
                return 0.0
        def to_column(out): out.shape = (200_000, 1)
        def to_flat(out): out.shape = (200_000,)
        def to_bytes(out): out.dtype = np.uint8
        def to_nothing(out): out.resize((1, 2), refcheck=False)
        for change in (to_column, to_flat, to_bytes, to_nothing):
            for source in (make(2, 200_000, 200_000), make(2, 200_000, 200_000).reader("oldest")):
                out = np.zeros((100_000, 2), np.float32)
                try:
                    got = source.read_into(out, Reshapes())
                except (TypeError, ValueError):
                    continue
                assert got * 2 <= out.size, (change, got, out.shape)
    """,
    "a __float__ that reshapes the data it stands beside": """
        class Reshapes:
            def __float__(self):
                change(data)
                return 0.0
        def to_column(data): data.shape = (200_000, 1)
        def to_flat(data): data.shape = (200_000,)
        def to_nothing(data): data.resize((1, 2), refcheck=False)
        for change in (to_column, to_flat, to_nothing):
            data = np.zeros((100_000, 2), np.float32)
            buffer = make(2, 200_000, 0)
            try:
                accepted = buffer.write(data, Reshapes())
            except (TypeError, ValueError):
                assert buffer.frames_written == 0
                continue
            assert accepted * 2 <= data.size, (change, accepted, data.shape)
    """,
    "a subclass that lies about its shape, dtype and flags, as out": """
        real = np.zeros(40_000, np.int8)
        class Flags:
            c_contiguous = aligned = writeable = True
        lies = {"dtype": np.dtype("f4"), "ndim": 2, "shape": (40_000, 2), "flags": Flags(), "size": 80_000}
        for told in (("dtype", "ndim", "shape", "flags"), ("dtype",), ("shape",), ("ndim", "shape"), ("flags",)):
            Liar = type("Liar", (np.ndarray,), {name: property(lambda self, name=name: lies[name]) for name in told})
            for honest in (real, real.view("f4"), real.view("f4").reshape(-1, 2)[::2], real.view("f4").reshape(-1, 4),
                           np.zeros((), "f4"), np.zeros(10_000, "f8").reshape(-1, 2)):
                out = honest.view(Liar)
                for source in (make(2), make(2).reader("oldest")):
                    refused((TypeError, ValueError), source.read_into, out)
                refused((TypeError, ValueError), make(2).get_latest, 20_000, out)
                refused((TypeError, ValueError), make(2).read_range, 0, 20_000, out)
    """,
    "a subclass that lies, as data": """
        class Liar(np.ndarray):
            dtype = property(lambda self: np.dtype("f4"))
            ndim = property(lambda self: 2)
            shape = property(lambda self: (2**40, 1))
        buffer = make()
        assert buffer.write(ramp(0, 5).view(Liar)) == 5
        refused(TypeError, buffer.write, np.zeros((5, 1), np.int8).view(Liar))
        refused(ValueError, buffer.write, np.zeros((5, 2), np.float32).view(Liar))
        assert buffer.frames_written == 50_005
    """,
    "a finalizer that closes the buffer while a view or a reader is made": """
        class Closes:
            def __init__(self):
                self.me = self
            def __del__(self):
                buffer.close()
        for make_it in (lambda: buffer.latest_view(100), lambda: buffer.view(0, 100), lambda: buffer.reader("oldest"),
                        lambda: buffer.read(100)):
            kept = [make_it]
            buffer = None
            buffer = make()
            gc.collect()
            gc.disable()
            for _ in range(10):
                Closes()
            gc.set_threshold(1, 1, 1)
            def go():
                gc.enable()
                kept.append(make_it())
            try:
                go()
            except BufferClosed:
                pass
            finally:
                gc.set_threshold(700, 10, 10)
            for thing in kept[1:]:
                frames = thing.read(100) if hasattr(thing, "read") else getattr(thing, "array", thing)
                assert len(frames) == 100
                frames.sum()
            thing = frames = kept = None
    """,
    "an __array__ that closes the buffer": """
        class Closes:
            def __array__(self, dtype=None, copy=None):
                buffer.close()
                return ramp(0, 5)
        buffer = make()
        refused(BufferClosed, buffer.write, Closes())
    """,
    "an __array__ that writes into the buffer, reads from it and clears it": """
        class Meddles:
            def __array__(self, dtype=None, copy=None):
                buffer.write(ramp(50_000, 50_003))
                buffer.read(10)
                buffer.clear()
                return ramp(50_003, 50_008)
        buffer = make()
        assert buffer.write(Meddles()) == 5
        np.testing.assert_array_equal(buffer.read(99), ramp(50_003, 50_008))
    """,
    "an __array__ that raises, or returns garbage": """
        def raises():
            raise KeyError("mine")
        wrong = (TypeError, ValueError)
        for what, kinds in ((raises, KeyError), (lambda: 5, wrong), (lambda: None, wrong), (lambda: "x", wrong),
                            (lambda: [1.0], wrong),
                            (lambda: np.zeros((2, 3, 4)), ValueError), (lambda: np.array([None]), TypeError)):
            class Array:
                def __array__(self, dtype=None, copy=None):
                    return what()
            buffer = make()
            before = buffer.statistics()
            refused(kinds, buffer.write, Array())
            assert buffer.statistics() == before
            buffer.write(ramp(0, 1))  # the producer's place is free
    """,
    "an __array__ that returns a view of this ring": """
        class Array:
            def __array__(self, dtype=None, copy=None):
                return buffer.view(0, 50_000).array
        buffer = make()
        assert buffer.write(Array()) == 50_000
        np.testing.assert_array_equal(buffer.read(100_000), np.concatenate([ramp(0, 50_000)] * 2))
    """,
    "a sequence that changes or fails while it is converted": """
        class Sequence:
            def __len__(self):
                return 5
            def __getitem__(self, i):
                buffer.clear()
                if i >= 5:
                    raise IndexError
                if i == 3 and fails:
                    raise KeyError("mine")
                return 0.5
        for fails in (True, False):
            buffer = make()
            try:
                buffer.write(Sequence())
            except (KeyError, TypeError, ValueError):
                assert buffer.frames_written == 50_000
    """,
    "an __index__ that raises, or returns what is no count": """
        class Index:
            def __index__(self):
                return what()
        def raises():
            raise KeyError("mine")
        class Odd(int):
            __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: False
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        for what, kinds in ((raises, KeyError), (lambda: "5", TypeError), (lambda: 2.0, TypeError),
                            (lambda: 2**63, ValueError),
                            (lambda: 10**30, ValueError), (lambda: -1, ValueError),
                            (lambda: Odd(-1), ValueError), (lambda: Odd(2**63), ValueError),
                            (lambda: Odd(2**64 - 1), ValueError), (lambda: Odd(10**30), ValueError)):
            buffer = make()
            before = buffer.statistics()
            refused(kinds, AudioBuffer, Index())
            refused(kinds, AudioBuffer, 10, Index())
            for call in (lambda v: buffer.read_range(0, v), lambda v: buffer.view(0, v), buffer.reader):
                refused(kinds, call, Index())
            for call in (buffer.read, buffer.get_latest, buffer.latest_view):
                try:
                    call(Index())
                except kinds:
                    assert buffer.statistics() == before
    """,
    "a __float__ that raises, or returns what is no time": """
        class Float:
            def __float__(self):
                return what()
        def raises():
            raise KeyError("mine")
        for what, kinds in ((raises, KeyError), (lambda: "5", TypeError), (lambda: float("nan"), ValueError),
                            (lambda: -1.0, ValueError)):
            buffer = make()
            before = buffer.statistics()
            for call in (lambda v: buffer.read(1, v), lambda v: buffer.write(ramp(0, 1), v),
                         lambda v: AudioBuffer(1, samplerate=v), lambda v: buffer.read_into(np.empty((1, 1), "f4"), v),
                         lambda v: buffer.reader("oldest").blocks(5, timeout=v)):
                refused(kinds, call, Float())
            assert buffer.statistics() == before
    """,
    "a cause or an exactness that meddles": """
        class Closes:
            def __eq__(self, other):
                buffer.close()
                return other == "paused"
            def __bool__(self):
                buffer.close()
                return True
        for arguments in ((1, Closes()), (1, "paused", Closes())):
            buffer = make()
            try:
                buffer.mark_gap(*arguments)
            except BufferClosed:
                pass
            assert buffer.closed
        class Fickle:
            asked = 0
            def __eq__(self, other):
                self.asked += 1
                return self.asked == 1
        buffer = make()
        try:
            buffer.mark_gap(1, Fickle())
        except (ValueError, TypeError):
            assert buffer.gaps() == []
        buffer.write(ramp(0, 1))
        class Raises:
            def __bool__(self):
                raise KeyError("mine")
        refused(KeyError, buffer.mark_gap, 1, "paused", Raises())
        buffer.write(ramp(0, 1))
    """,
    "a tracker that closes the buffer, and one that uses it at its end": """
        class Closes:
            def track_buffer(self, buffer, size_bytes):
                buffer.close()
            def untrack_buffer(self, buffer):
                pass
        buffer = AudioBuffer(100_000, buffer_tracker=Closes())
        refused(BufferClosed, buffer.write, ramp(0, 1))
        class Uses:
            def track_buffer(self, buffer, size_bytes):
                buffer.write(ramp(0, 10))
            def untrack_buffer(self, buffer):
                refused(BufferClosed, buffer.write, ramp(0, 1))
                refused(BufferClosed, buffer.statistics)
                assert buffer.frames_written == 10 and buffer.closed
                buffer.close()
        for held in (False, True):
            buffer = AudioBuffer(100_000, buffer_tracker=Uses())
            view = buffer.latest_view(5) if held else None
            buffer.close()
            del view
    """,
    "__init__ called again, and other ways round the constructor": """
        buffer = make()
        buffer.__init__(5)
        assert (buffer.capacity, buffer.frames_written) == (100_000, 50_000)
        refused(TypeError, AudioBuffer.__new__, AudioBuffer)
        refused(TypeError, object.__new__, AudioBuffer)
        refused((TypeError, ValueError), AudioBuffer.__new__, AudioBuffer, 0)
        made = AudioBuffer.__new__(AudioBuffer, 10)
        assert made.write(ramp(0, 3)) == 3
    """,
    "methods called on other things": """
        from pcmring import Reader, AudioView
        for thing in (None, 5, object(), make().reader(), make().latest_view(3), np.zeros(3)):
            for name in ("write", "read", "read_into", "get_latest", "latest_view", "close", "reader"):
                refused(TypeError, getattr(AudioBuffer, name), thing, 1)
        for name in ("read", "read_into", "blocks"):
            refused(TypeError, getattr(Reader, name), make(), 1)
    """,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_the_interpreter_survives(what):
    code = PREAMBLE + textwrap.dedent(HOSTILE[what])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-3000:]


# ---- anything at all --------------------------------------------------------------------------------

any_dtype = st.one_of(
    st.sampled_from(["i2", "i4", "f2", "f4", "f8", ">i2", "<i4", ">f4", "<f8", "i1", "u2", "i8", "c8", "?", "O", "U1"]),
    hnp.scalar_dtypes(),
)


@st.composite
def any_array(draw) -> np.ndarray:
    """An array of any dtype and shape, laid out in any way."""
    dtype = np.dtype(draw(any_dtype))
    shape = draw(
        st.one_of(
            st.tuples(st.integers(0, 40), st.integers(1, 3)),
            st.tuples(st.integers(0, 40)),
            st.lists(st.integers(0, 4), max_size=4).map(tuple),
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.integers(-3, 4, shape)
    made = values.astype(dtype) if dtype.kind not in "Mm" else values.astype("i8").view(dtype.kind + "8[s]")
    how = draw(st.sampled_from(["as is", "reversed", "every other", "fortran", "read-only", "misaligned", "broadcast",
                                "subclass", "transposed"]))  # fmt: skip
    if how == "reversed" and made.ndim:
        return made[::-1]
    if how == "every other" and made.ndim:
        return np.repeat(made, 2, axis=0)[::2]
    if how == "fortran":
        return np.asfortranarray(made)
    if how == "read-only":
        made.flags.writeable = False
    if how == "misaligned" and not dtype.hasobject:
        return np.frombuffer(bytearray(made.nbytes + 1), np.uint8)[1:].view(made.dtype).reshape(made.shape)
    if how == "broadcast":
        return np.broadcast_to(made, (3, *made.shape) if made.ndim < 2 else made.shape)
    if how == "subclass":
        return np.ma.masked_array(made) if not dtype.names else made.view(np.recarray)
    if how == "transposed":
        return made.T
    return made


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 30),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400]),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.sampled_from(["now", "oldest", "paused", "dropped"]),
    st.binary(max_size=9),
    st.decimals(),
    st.fractions(),
    st.dates(),
    st.lists(st.floats() | st.integers() | st.none(), max_size=4),
    st.lists(st.lists(st.floats(), max_size=3), max_size=4),
    st.dictionaries(st.integers(), st.integers(), max_size=2),
    st.builds(object),
    st.builds(memoryview, st.binary(max_size=8)),
    st.builds(bytearray, st.binary(max_size=8)),
    st.builds(array.array, st.just("f"), st.lists(st.floats(width=32), max_size=4)),
    any_array(),
)


def is_storable(data: np.ndarray, channels: int) -> bool:
    right_shape = (data.ndim == 2 and data.shape[1] == channels) or (data.ndim == 1 and channels == 1)
    return right_shape and (data.dtype.kind, data.dtype.itemsize) in {("i", 2), ("i", 4), ("f", 2), ("f", 4), ("f", 8)}


@given(any_array(), st.integers(1, 3), st.sampled_from(DTYPES), st.sampled_from(["overwrite", "drop", "block"]))
@FUZZ
def test_any_array_is_stored_or_refused(data, channels, dtype, policy):
    buffer = AudioBuffer(10, channels, dtype, policy=policy)
    buffer.write(ramp(0, 7, channels))
    before = state_of_untimed(buffer)
    if is_storable(data, channels):
        accepted = buffer.write(data, timeout=0.0)
        assert accepted == (len(data) if policy == "overwrite" else min(len(data), 3))
        assert buffer.frames_written == 7 + accepted
    else:
        with pytest.raises((TypeError, ValueError)):
            buffer.write(data, timeout=0.0)
        assert state_of_untimed(buffer) == before


def state_of_untimed(buffer):
    statistics = buffer.statistics()
    return statistics, buffer.gaps(), buffer.read_range(statistics.oldest, statistics.frames_written).tobytes()


@given(any_array(), st.integers(1, 3), st.sampled_from(DTYPES))
@FUZZ
def test_any_array_is_filled_or_refused(out, channels, dtype):
    buffer = AudioBuffer(10, channels, dtype)
    buffer.write(ramp(0, 17, channels))
    held = buffer.get_latest(10)
    before, content = state_of_untimed(buffer), out.tolist()
    n = out.shape[0] if out.ndim else 0
    right_shape = (out.ndim == 2 and out.shape[1] == channels) or (out.ndim == 1 and channels == 1)
    flags = out.flags
    fillable = right_shape and out.dtype == np.dtype(dtype) and flags.c_contiguous and flags.aligned and flags.writeable
    calls = {
        "latest": lambda: len(buffer.get_latest(n, out)),
        "range": lambda: len(buffer.read_range(17 - min(n, 10), 17, out)),
        "read": lambda: buffer.read_into(out),
    }
    for name, call in calls.items():
        if fillable and not (name == "range" and n > 10):
            got = call()
            assert got == min(n, 10)
            expected = held[10 - got :] if name != "read" else held[:got]
            np.testing.assert_array_equal(np.asarray(out)[:got].reshape(got, channels), expected)
            out[...] = 0
        else:
            with pytest.raises((TypeError, ValueError)):
                call()
            if not fillable:
                assert (state_of_untimed(buffer), out.tolist()) == (before, content)


ANYWHERE = {
    "write": lambda b, v: b.write(v, 0.0),
    "write timeout": lambda b, v: b.write(ramp(0, 1), v),
    "read": lambda b, v: b.read(v),
    "read timeout": lambda b, v: b.read(1, v),
    "read_into": lambda b, v: b.read_into(v),
    "get_latest": lambda b, v: b.get_latest(v),
    "get_latest out": lambda b, v: b.get_latest(3, v),
    "read_range": lambda b, v: b.read_range(v, 9),
    "read_range stop": lambda b, v: b.read_range(4, v),
    "read_range out": lambda b, v: b.read_range(4, 7, v),
    "view": lambda b, v: b.view(v, 9),
    "view stop": lambda b, v: b.view(4, v),
    "latest_view": lambda b, v: b.latest_view(v),
    "reader": lambda b, v: b.reader(v),
    "reader name": lambda b, v: b.reader(name=v),
    "mark_gap": lambda b, v: b.mark_gap(v, "paused"),
    "mark_gap cause": lambda b, v: b.mark_gap(1, v),
    "time_of": lambda b, v: b.time_of(v),
    "position_at": lambda b, v: b.position_at(v),
    "blocks": lambda b, v: b.reader("oldest").blocks(v),
    "blocks hop": lambda b, v: b.reader("oldest").blocks(3, v),
    "blocks timeout": lambda b, v: b.reader("oldest").blocks(3, timeout=v),
    "channels": lambda b, v: AudioBuffer(5, v),
    "samplerate": lambda b, v: AudioBuffer(5, samplerate=v),
    "policy": lambda b, v: AudioBuffer(5, policy=v),
    "storage": lambda b, v: AudioBuffer(5, storage=v),
    "name": lambda b, v: AudioBuffer(5, name=v),
    "tracker": lambda b, v: AudioBuffer(5, buffer_tracker=v),
}


@pytest.mark.parametrize("call", ANYWHERE)
@given(value=anything)
@settings(FUZZ, max_examples=40)
@example(value=10**400)
@example(value=1e308)
@example(value=np.array([1.0, 2.0]))
@example(value=np.array(["a", "b"]))
def test_anything_anywhere_is_taken_or_refused_and_a_refusal_changes_nothing(call, value):
    buffer = make()
    buffer.reader()
    before = state(buffer)
    try:
        ANYWHERE[call](buffer, value)
    except (TypeError, ValueError, FramesLost):
        assert state(buffer) == before
    buffer.write(ramp(0, 1))  # no claim was left behind
    buffer.read(1)
