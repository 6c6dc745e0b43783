"""Positions and seconds: a line through the time stamps that blocks leave in the ring.

The device's own clock is used where it is believable, else the arrival times. Gaps break the line: between two
gaps frames are evenly spaced, across one they are not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pcmring._records import StreamTime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pcmring._buffer import AudioBuffer

__all__ = ["Timeline"]

#: A drift is fitted only from stamps this far apart, in seconds. Over less, jitter of a few milliseconds looks
#: like a drift of thousands of ppm; crystals have less than 100.
FIT_SPAN_S = 5.0

#: A fitted rate further from the nominal one than this is taken for jitter or a jump of the clock.
MAX_DRIFT = 1e-3


def _rate(positions: NDArray[np.float64], seconds: NDArray[np.float64], nominal: float) -> float:
    """Frames per second: the median slope between stamps half the table apart (Theil's estimator, thinned).

    A median ignores single late stamps, which a least-squares line follows.
    """
    half = len(positions) // 2
    if half == 0 or seconds[-1] - seconds[0] < FIT_SPAN_S:
        return nominal
    elapsed = seconds[half:] - seconds[: len(seconds) - half]
    frames = positions[half:] - positions[: len(positions) - half]
    rate = float(np.median(frames[elapsed > 0] / elapsed[elapsed > 0]))
    return rate if abs(rate / nominal - 1.0) <= MAX_DRIFT else nominal


class Timeline:
    """The lines of one buffer at one moment."""

    def __init__(self, buffer: AudioBuffer) -> None:
        if buffer.samplerate is None:
            raise ValueError("times need a samplerate: AudioBuffer(..., samplerate=16000)")
        self._nominal = float(buffer.samplerate)
        stamps = buffer._stamps()
        if not stamps:
            raise LookupError("no block has been written yet: there is no time to go by")
        breaks = np.array([gap.position for gap in buffer.gaps()], dtype=np.uint64)
        table = np.array([(p, n, 0, ns) for p, n, _, ns in stamps], dtype=np.uint64)
        # float64 counts frames exactly only to 2**53: go from the first stamp
        self._origin = stamps[0][0]
        first = (table[:, 0] - np.uint64(self._origin)).astype(np.float64)
        length = table[:, 1].astype(np.float64)
        adc_s = np.array([adc for _, _, adc, _ in stamps], dtype=np.float64)
        mono_s = table[:, 3].astype(np.float64) * 1e-9
        self._segment = np.searchsorted(breaks, table[:, 0], side="right")
        self._breaks = breaks
        self.clock = "adc" if self._believable(first, adc_s) else "monotonic"
        if self.clock == "adc":
            self._frames, self._seconds = first, adc_s
        else:
            # a block's arrival is the time of its end
            self._frames, self._seconds = first + length, mono_s

    def _believable(self, first: NDArray[np.float64], adc_s: NDArray[np.float64]) -> bool:
        """Hosts report 0, constants, or times that run backwards or at another speed."""
        if not np.all(np.isfinite(adc_s)) or np.any(adc_s <= 0.0):
            return False
        if np.any(np.diff(adc_s) <= 0.0):
            return False
        for segment in np.unique(self._segment):
            mine = self._segment == segment
            elapsed = adc_s[mine] - adc_s[mine][0]
            expected = (first[mine] - first[mine][0]) / self._nominal
            if np.any(np.abs(elapsed - expected) > 0.1 + 0.05 * expected):
                return False
        return True

    def _line(self, mine: NDArray[np.bool_]) -> tuple[float, float, float]:
        """(frames, seconds, rate): a point of the line and its slope."""
        frames, seconds = self._frames[mine], self._seconds[mine]
        rate = _rate(frames, seconds, self._nominal)
        lateness = seconds - (frames - frames[0]) / rate
        # Capture times scatter about the truth; arrivals are only ever late: take their early edge, the 10th
        # percentile, which one stray stamp does not move.
        offset = float(np.median(lateness) if self.clock == "adc" else np.percentile(lateness, 10))
        return float(frames[0]), offset, rate

    def time_of(self, position: int) -> StreamTime:
        segment = np.searchsorted(self._breaks, np.uint64(position), side="right")
        present = self._segment[np.argmin(np.abs(self._segment - segment))]
        frames, seconds, rate = self._line(self._segment == present)
        return StreamTime(seconds + (position - self._origin - frames) / rate, self.clock)

    def position_at(self, time: float) -> int:
        clock = getattr(time, "clock", self.clock)
        if clock != self.clock:
            raise ValueError(f"time must be on the {self.clock} clock that time_of reports, got {clock}")
        try:
            finite = math.isfinite(time)
        except TypeError:
            raise TypeError(f"time must be seconds, a StreamTime or a float, got {time!r}") from None
        except OverflowError:
            finite = False
        if not (finite and abs(time) < 1e12):
            raise ValueError(f"time must be finite seconds, got {time!r}")
        present = np.unique(self._segment)
        lines = [self._line(self._segment == segment) for segment in present]
        # the last segment that had begun by then, going by its line: single stamps are late or jitter
        first = [self._begin(segment) for segment in present]
        begins = [
            seconds + (begin - frames) / rate for begin, (frames, seconds, rate) in zip(first, lines, strict=False)
        ]
        chosen = max(i for i in range(len(begins)) if i == 0 or begins[i] <= float(time) + 0.5 / lines[i][2])
        frames, seconds, rate = lines[chosen]
        found = self._origin + round(frames + (time - seconds) * rate)
        if chosen + 1 < len(present):  # a time inside a gap: the first frame after it
            found = min(found, self._origin + int(first[chosen + 1]))
        return max(0, found)

    def _begin(self, segment: int) -> float:
        """The first frame of a segment, counted as the stamps are."""
        if segment == 0:
            return -float(self._origin)
        return float(int(self._breaks[segment - 1]) - self._origin)
