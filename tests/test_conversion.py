"""Conversion at the door: all 16 pairs of dtypes against plain float64 arithmetic, bit for bit.

Full scale is ±1.0, rounding is half to even, integers saturate, NaN is 0 in integers and stays NaN in floats.
"""

from __future__ import annotations

import ctypes
import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pcmring import AudioBuffer, CaptureCallback

DTYPES = ("int16", "int32", "float32", "float64")
PAIRS = list(itertools.product(DTYPES, DTYPES))
STAGE_BYTES = 4096  # ring.h converts through a stage of this size


def reference(frames: np.ndarray, dtype: str) -> np.ndarray:
    """`frames` as `dtype`: the definition, in float64, where every step but the last rounding is exact."""
    wanted = np.dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32's range is infinite; NaNs may be signalling
        values = frames.astype(np.float64)
        if frames.dtype.kind == "i":
            values = values / 2.0 ** (8 * frames.dtype.itemsize - 1)
        if wanted.kind == "f":
            return values.astype(wanted)
        limits = np.iinfo(wanted)
        scaled = np.rint(values * 2.0 ** (limits.bits - 1))
        silent = np.where(np.isnan(scaled), 0.0, scaled)
        return np.clip(silent, limits.min, limits.max).astype(wanted)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal, also in the sign of zero; every NaN is like another."""
    np.testing.assert_array_equal(actual, expected, strict=True)
    if expected.dtype.kind == "f":
        zeros = expected == 0
        np.testing.assert_array_equal(np.signbit(actual[zeros]), np.signbit(expected[zeros]))


def converted(frames: np.ndarray, dtype: str) -> np.ndarray:
    frames = frames if frames.ndim == 2 else frames[:, None]
    buffer = AudioBuffer(max(1, len(frames)), frames.shape[1], dtype)
    assert buffer.write(frames) == len(frames)
    return buffer.read(len(frames))


def edges(dtype: str) -> np.ndarray:
    """The numbers where conversions go wrong, in `dtype`."""
    if dtype.startswith("int"):
        limits = np.iinfo(dtype)
        near = [0, 1, -1, 2, -2, 127, 128, 255, 256, 32_767, -32_767, -32_768, limits.max, limits.max - 1, limits.min,
                limits.min + 1, limits.max // 2, limits.max // 2 + 1, limits.min // 2]  # fmt: skip
        if limits.bits == 32:  # halves of an int16, and the last ones before saturation
            steps = [0, 1, 2, 3, -1, -2, -3, 16_383, -16_384, 32_766, 32_767, -32_767, -32_768]
            near += [k * 65_536 + d for k in steps for d in (0, 1, 32_767, 32_768, 32_769, 65_535)]
            near += [2**24, 2**24 + 1, 2**25 + 1, 2**25 + 3, 2**31 - 64, 2**31 - 65, -(2**24) - 1]
            near = [n for n in near if limits.min <= n <= limits.max]
        return np.array(near, dtype)
    kind = np.dtype(dtype).type
    info = np.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.2, -1.2, 2.0, -2.0, 1e-9, -1e-9, 1e9, -1e9, np.nan, np.inf, -np.inf,
              info.max, info.min, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 4194304.0,
              1e30]  # fmt: skip
    steps = np.array([0, 1, 2, 3, 4, -1, -2, -3, -4, 16_383, 32_765, 32_766, 32_767, 32_768, -32_767, -32_768, -32_769])
    values += [(k + half) / 32_768 for k in steps for half in (0, 0.25, 0.5, 0.75)]
    if dtype == "float64":
        large = np.array(
            [0, 1, 2, 3, -1, -2, -3, 2**31 - 3, 2**31 - 2, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, -(2**31) + 1]
        )
        values += [(k + half) / 2**31 for k in large for half in (0, 0.25, 0.5, 0.75)]
        values += [1e39, -1e39, 3.4028235677973366e38, 1e-46, 1e-40]  # about the ends of float32
    values = np.array(values, dtype)
    # NaNs with numbers in them, quiet and signalling, of both signs: their bits must not come through
    bits = [0x7FC1_2345, 0x7F81_2345, 0xFFC5_4321] if dtype == "float32" else [
        0x7FF8_0000_1234_5678, 0x7FF0_1234_5678_9ABC, 0xFFF8_4321_8765_4321
    ]  # fmt: skip
    nans = np.array(bits, f"u{values.itemsize}").view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([values, np.nextafter(values, kind(np.inf)), np.nextafter(values, kind(-np.inf)), nans])


def noise(n: int, channels: int, dtype: str, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.startswith("int"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, (n, channels), dtype, endpoint=True)
    return (rng.normal(0, 0.6, (n, channels))).astype(dtype)


# ---- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_every_pair_converts_the_edges_as_defined(source, dtype):
    frames = edges(source)[:, None]
    same(converted(frames, dtype), reference(frames, dtype))


@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_every_pair_converts_noise_as_defined(source, dtype):
    frames = noise(20_011, 3, source)
    same(converted(frames, dtype), reference(frames, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_int16_converts_as_defined(dtype):
    frames = np.arange(-32_768, 32_768).astype(np.int16)[:, None]
    same(converted(frames, dtype), reference(frames, dtype))


@pytest.mark.parametrize("source", ["float32", "float64", "int32"])
def test_every_quarter_step_of_an_int16_rounds_half_to_even(source):
    quarters = np.arange(-4 * 32_770, 4 * 32_770, dtype=np.float64)[:, None] / 4
    if source == "int32":
        frames = np.clip(quarters * 65_536, -(2**31), 2**31 - 1).astype(np.int32)
    else:
        frames = (quarters / 32_768).astype(source)
        np.testing.assert_array_equal(frames * 32_768, quarters)  # exact: the test means what it says
    actual = converted(frames, "int16")
    same(actual, reference(frames, "int16"))
    halves = converted(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]) / 32_768, "int16")
    assert halves[:, 0].tolist() == [0, 2, 2, 0, -2, -2]


def test_integers_saturate_and_do_not_wrap():
    for dtype in ("int16", "int32"):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        for source in ("float32", "float64"):
            loud = np.array([1.0, 1.2, 2.0, 1e30, np.inf, -1.0, -1.2, -2.0, -1e30, -np.inf], source)
            assert converted(loud, dtype)[:, 0].tolist() == [high] * 5 + [low] * 5
    assert converted(np.array([2**31 - 1, 2**31 - 32_768], np.int32), "int16")[:, 0].tolist() == [32_767, 32_767]


def test_nan_is_silence_in_integers_and_stays_nan_in_floats():
    for source in ("float32", "float64", "float16"):
        for dtype in DTYPES:
            frames = np.array([0.25, np.nan, -np.nan, 0.25], source)
            actual = converted(frames, dtype)[:, 0]
            if dtype.startswith("int"):
                assert actual[1] == actual[2] == 0
            else:
                assert np.isnan(actual[1:3]).all()
            assert actual[0] == actual[3] != 0


@pytest.mark.parametrize(("narrow", "wide"), [("int16", "int32"), ("int16", "float32"), ("int16", "float64"),
                                              ("int32", "float64"), ("float32", "float64")])  # fmt: skip
def test_there_and_back_changes_nothing(narrow, wide):
    frames = np.concatenate([edges(narrow)[:, None], noise(5000, 1, narrow)])
    same(converted(converted(frames, wide), narrow), frames)


# ---- the ways in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_float16_is_taken_as_the_float32_it_is(dtype):
    every = np.arange(65_536, dtype=np.uint16).view(np.float16)[:, None]
    with np.errstate(invalid="ignore"):  # NumPy's word about signalling NaNs
        same(converted(every, dtype), reference(every.astype(np.float32), dtype))


@pytest.mark.parametrize(("source", "dtype"), list(itertools.product((*DTYPES, "float16"), DTYPES)))
def test_byte_order_makes_no_difference(source, dtype):
    frames = noise(1000, 2, "float32").astype(source) if source == "float16" else noise(1000, 2, source)
    swapped = frames.astype(frames.dtype.newbyteorder())
    assert swapped.tobytes() != frames.tobytes()
    same(converted(swapped, dtype), converted(frames, dtype))


@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_strides_make_no_difference(source, dtype):
    frames = noise(700, 2, source)
    wide = np.zeros((1400, 6), source)
    wide[::2, 1:4:2] = frames
    column = np.asfortranarray(frames)
    backwards = frames[::-1].copy()[::-1]
    flipped = frames[:, ::-1].copy()[:, ::-1]
    records = np.zeros(700, [("a", "u1"), ("f", source, 2)])  # misaligned, with a hole
    records["f"] = frames
    expected = reference(frames, dtype)
    for odd in (wide[::2, 1:4:2], column, backwards, flipped, records["f"]):
        assert not odd.flags.c_contiguous
        same(converted(odd, dtype), expected)
    misaligned = np.frombuffer(b"\0" + frames.tobytes(), np.uint8)[1:].view(source).reshape(frames.shape)
    same(converted(misaligned, dtype), expected)
    same(converted(np.broadcast_to(frames[5], (9, 2)), dtype), np.repeat(expected[5:6], 9, axis=0))


@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_the_capture_callback_converts_alike(source, dtype):
    frames = np.ascontiguousarray(np.resize(edges(source), (300, 2)))
    buffer = AudioBuffer(1000, 2, dtype)
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
                                 ctypes.c_ulong, ctypes.c_void_p)  # fmt: skip
    with CaptureCallback(buffer, source) as capture:
        call = prototype(capture.address)
        for start in (0, 100, 200):
            assert call(frames[start:].ctypes.data, None, 100, None, 0, capture.userdata) == 0
    same(buffer.read(1000), reference(frames, dtype))


# ---- where it lands ---------------------------------------------------------------------------------


def sizes(frame_bytes: int) -> list[int]:
    stage = STAGE_BYTES // frame_bytes
    return sorted({0, 1, 2, stage - 1, stage, stage + 1, 2 * stage - 1, 2 * stage, 2 * stage + 1, 3 * stage + 7, 1009})


@pytest.mark.parametrize("channels", [1, 2, 7, 64])
@pytest.mark.parametrize(("source", "dtype"), [("int16", "float32"), ("float32", "int16"), ("float64", "float64"),
                                               ("float64", "int32"), ("int32", "int16"),
                                               ("float32", "float64")])  # fmt: skip
def test_blocks_about_the_size_of_the_stage_arrive_whole(source, dtype, channels):
    for n in sizes(channels * np.dtype(dtype).itemsize):
        frames = noise(n, channels, source, seed=n)
        same(converted(frames, dtype), reference(frames, dtype))


@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_a_converted_block_goes_round_the_end_of_the_ring(source, dtype, channels):
    stage = STAGE_BYTES // (channels * np.dtype(dtype).itemsize)
    for capacity in (17, stage - 1, stage, stage + 1, 2 * stage + 5):
        buffer = AudioBuffer(capacity, channels, dtype)
        reader = buffer.reader()
        frames = noise(4 * capacity, channels, source, seed=capacity)
        expected = reference(frames, dtype)
        position = 0
        for n in (capacity - 3, 5, capacity, capacity // 2, capacity // 2 + 2, 1):
            assert buffer.write(frames[position : position + n]) == n
            same(reader.read(capacity), expected[position : position + n])
            position += n
        assert reader.lost == 0


@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_of_an_over_long_block_the_end_is_converted(source, dtype):
    for capacity in (1, 17, 1024, 1031):
        for n in (capacity + 1, 2 * capacity, 3 * capacity + 7):
            buffer = AudioBuffer(capacity, 2, dtype)
            frames = noise(5 + n, 2, source, seed=n)
            buffer.write(frames[:5])
            assert buffer.write(frames[5:]) == n
            same(buffer.get_latest(capacity), reference(frames[-capacity:], dtype))
            assert buffer.oldest == 5 + n - capacity


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mirrored_ring_converts_alike(dtype):
    frames = noise(50_000, 2, "float64")
    buffer = AudioBuffer(20_000, 2, dtype)
    for start in range(0, 50_000, 7000):
        buffer.write(frames[start : start + 7000])
    same(buffer.latest_view(20_000).array, reference(frames[-20_000:], dtype))


def test_what_does_not_fit_goes_on_where_it_stopped():
    """Under "block" a converted block is stored in parts: each begins at the right sample of the source."""
    for source, dtype in PAIRS:
        buffer = AudioBuffer(10, 2, dtype, policy="block")
        frames = noise(33, 2, source)
        taken, got = 0, []
        while taken < 33:
            taken += buffer.write(frames[taken:], timeout=0.0)
            got.append(buffer.read(7))
        got.append(buffer.read(99))
        same(np.concatenate(got), reference(frames, dtype))


@pytest.mark.parametrize(("source", "dtype"), PAIRS)
def test_a_converted_block_that_waits_for_space_is_stored_in_parts(source, dtype, crew):
    """The rest begins at the right sample of the source, whatever a sample's size is there and here."""
    buffer = AudioBuffer(10, 2, dtype, policy="block")
    frames = noise(57, 2, source)
    got = [buffer.read(0)]

    def consume():
        while sum(map(len, got)) < 57:
            got.append(buffer.read(7, timeout=0.05))

    crew.start(consume)
    assert buffer.write(frames, timeout=30.0) == 57
    crew.join()
    same(np.concatenate(got), reference(frames, dtype))


@given(st.data(), st.sampled_from(PAIRS), st.integers(1, 7), st.integers(1, 60), st.integers(0, 70))
@settings(max_examples=300, deadline=None, derandomize=True)
@example(data=None, pair=("float64", "int16"), channels=1, capacity=1, before=0)
def test_any_numbers_land_as_defined_anywhere(data, pair, channels, capacity, before):
    source, dtype = pair
    if data is None:
        frames = edges(source)[:, None]
    else:
        elements = None
        if source.startswith("float"):
            bits = 8 * np.dtype(source).itemsize
            elements = st.floats(-1.5, 1.5, width=bits) | st.floats(width=bits)
        shape = (data.draw(st.integers(0, 90)), channels)
        frames = data.draw(hnp.arrays(source, shape, elements=elements))
    buffer = AudioBuffer(capacity, channels, dtype)
    buffer.write(np.zeros((before, channels), dtype))
    buffer.write(frames)
    kept = min(len(frames), capacity)
    same(buffer.get_latest(kept), reference(frames[len(frames) - kept :], dtype))
