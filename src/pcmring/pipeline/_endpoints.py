"""From "speech or not", block after block, to the ranges that are utterances. Positions only, no audio.

Everything known at one moment is published as two immutable objects, `open` and `statistics`: other threads may
read them at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pcmring._records import Gap, StreamTime

__all__ = ["Endpointer", "SegmenterStatistics", "Span"]


class Span(NamedTuple):
    """Where an utterance is.

    Attributes
    ----------
    start, stop : int
        Its own frames, positions of the reader, half open. No frame is in two utterances.
    overlap : int
        How many frames before `start`, which belong to the utterance before, should be heard with it: that one
        was cut at the maximum length.
    speech_stop : int
        Position after its last block with speech: what follows is hang-over.
    time : StreamTime or None
        When `start` was captured; None if the buffer does not know.
    gaps : tuple of Gap
        Frames missing inside it, positions of the reader. Cause "overrun": the reader lost them; these frames
        have positions. All other causes are the ring's ledger: these frames never had one.
    """

    start: int
    stop: int
    overlap: int
    speech_stop: int
    time: StreamTime | None = None
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class SegmenterStatistics:
    """Where every frame went. Always, ``position - start`` is the sum of the four counts of frames."""

    start: int
    position: int
    utterances: int
    frames_in_utterances: int
    frames_in_silence: int
    frames_lost: int  #: by the reader
    frames_undecided: int  #: of an utterance that has not ended, or that may yet be a pre-roll; 0 at the end


class Endpointer:
    """Finds utterances. All arguments are frames; see `Segmenter`."""

    def __init__(
        self, start: int, *, pre_roll: int, hang_over: int, max_utterance: int, overlap: int, min_speech: int
    ) -> None:
        self._pre_roll = pre_roll
        self._hang_over = hang_over
        self._max_utterance = max_utterance
        self._max_overlap = overlap
        self._min_speech = min_speech
        self._first = self.position = start
        self._earliest = start  # no utterance may begin before
        # the utterance that is open, or may become one
        self._start: int | None = None
        self._overlap = 0
        self._speech = 0  # frames judged speech
        self._speech_needed = min_speech
        self._speech_stop = start
        # the account: every frame before `_decided` is counted; losses after it
        self._decided = start
        self._holes: list[tuple[int, int]] = []
        self._utterances = self._in_utterances = self._in_silence = self._lost = 0
        self.open: Span | None = None
        self._publish()

    def hear(self, frames: int, is_speech: bool) -> Iterator[Span]:
        """Go on by a block; what ended with it is yielded. To be run to its end."""
        first = self.position
        self.position += frames
        if is_speech:
            if self._start is None:
                self._start = max(self._earliest, first - self._pre_roll)
                self._overlap, self._speech, self._speech_needed = 0, 0, self._min_speech
            self._speech += frames
            self._speech_stop = self.position
        while self._start is not None and self._next_end() <= self.position:
            end = self._next_end()
            is_cut = end < self._speech_stop + self._hang_over
            if is_cut:
                self._speech_needed = 0  # so long, it is no click
            yield from self._end(end)
            if is_cut:
                self._start, self._overlap = end, self._max_overlap
                self._speech, self._speech_needed = max(0, self._speech_stop - end), 1
        self._publish()

    def lose(self, frames: int) -> Iterator[Span]:
        """Go on by frames that were lost: silence, but none that could belong to an utterance's edge."""
        first = self.position
        self.position += frames
        self._lost += frames
        if self._start is not None and self._next_end() <= self.position:
            yield from self._end(first)
        self._holes.append((first, self.position))
        if self._start is None:
            self._earliest = self.position
        self._publish()

    def finish(self) -> Iterator[Span]:
        """End the utterance that is open."""
        if self._start is not None:
            is_hole_last = bool(self._holes) and self._holes[-1][1] == self.position
            yield from self._end(self._holes[-1][0] if is_hole_last else self.position)
        self._earliest = self.position
        self._publish()

    def _next_end(self) -> int:
        assert self._start is not None
        return min(self._speech_stop + self._hang_over, self._start + self._max_utterance)

    def _end(self, end: int) -> Iterator[Span]:
        start, self._start = self._start, None
        assert start is not None
        if self._speech < self._speech_needed:  # a click; with what follows it may be the pre-roll of speech
            if self._holes:
                self._earliest = self._holes[-1][1]
            return
        self._in_silence += self._settle(start)
        self._in_utterances += self._settle(end)
        self._utterances += 1
        self._earliest = end
        yield Span(start, end, self._overlap, min(self._speech_stop, end))

    def _settle(self, until: int) -> int:
        """Count the frames up to `until`, without those that were lost."""
        frames = until - self._decided
        while self._holes and self._holes[0][0] < until:
            first, last = self._holes.pop(0)
            frames -= last - first
        self._decided = until
        return frames

    def _publish(self) -> None:
        is_speech = self._start is not None and self._speech >= self._speech_needed
        undecided_from = max(self._earliest, self.position - self._pre_roll) if self._start is None else self._start
        self._in_silence += self._settle(undecided_from)
        undecided = self.position - self._decided - sum(last - first for first, last in self._holes)
        # assigned last: who sees them sees all of the above
        self.open = Span(undecided_from, self.position, self._overlap, self._speech_stop) if is_speech else None
        self.statistics = SegmenterStatistics(
            self._first,
            self.position,
            self._utterances,
            self._in_utterances,
            self._in_silence,
            self._lost,
            undecided,
        )
