"""A signal that describes itself: every sample tells the serial number of its frame.

A serial counts the frames that were offered to a ring, whether or not it took them. So any consumer can prove order,
loss and duplication, and that what a ledger says is missing is what is missing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Serials come again after so many frames: what the dtype tells apart exactly, floats within ±1.
PERIODS = {"int16": 2**16, "int32": 2**32, "float32": 2**23, "float64": 2**23}
#: A channel is this far ahead of the one before it: swapped or torn channels show.
CHANNEL_STEP = 12_289


class Unaccounted(AssertionError):
    """The books do not balance."""


def frames(first: int, count: int, channels: int = 1, dtype: str = "int32") -> NDArray:
    """The frames of serials `first` to `first + count`. The first channel is microphones.ramp in floats."""
    code = np.arange(first + 1, first + count + 1, dtype=np.int64)[:, None] + np.arange(channels) * CHANNEL_STEP
    if dtype.startswith("int"):
        return code.astype(dtype)  # wraps
    return (code % PERIODS[dtype] / PERIODS[dtype]).astype(dtype)


def serials(audio: NDArray, after: int) -> NDArray[np.int64]:
    """The serials of `audio`, whose first frame is at `after` or within a period behind it."""
    period = PERIODS[audio.dtype.name]
    scaled = audio if audio.dtype.kind == "i" else audio * np.float64(period)
    code = scaled.astype(np.int64)
    if audio.dtype.kind == "f" and not np.array_equal(code, scaled):
        raise Unaccounted("a sample is none that was offered")
    torn = (code - code[:, :1] - np.arange(code.shape[1]) * CHANNEL_STEP) % period
    if torn.any():
        raise Unaccounted(f"torn frames, the first at serial {after} + {int(torn.any(axis=1).argmax())}")
    code = code[:, 0]
    steps = np.diff(code, prepend=code[:1]) % period
    if not steps[1:].all():
        raise Unaccounted(f"a frame is there twice, near serial {after}")
    return after + (code[0] - 1 - after) % period + np.cumsum(steps)
