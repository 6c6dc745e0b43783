"""Utterances that wait for the engine, as ranges of positions, and the account of them."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from pcmring._records import StreamTime
from pcmring.pipeline._caption import Piece
from pcmring.pipeline._voice import SAMPLERATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pcmring.pipeline._endpoints import Span
    from pcmring.pipeline._segmenter import Segmenter

__all__ = ["Backlog"]

logger = logging.getLogger(__name__)

#: Lost ranges remembered; older ones stay in the total.
_REMEMBERED = 1024


class Backlog:
    """Not for several threads at once: its owner has the lock.

    Parameters
    ----------
    segmenter : Segmenter
        Its history has the audio.
    max_frames : int
        What the engine takes at most.
    """

    def __init__(self, segmenter: Segmenter, max_frames: int) -> None:
        self._segmenter = segmenter
        self._max_frames = max_frames
        self._audio = np.empty(max_frames, np.float32)  # the engine's, one piece at a time
        self.waiting: deque[Span] = deque()
        self.under_way: list[Span] = []
        self.is_behind = False
        self.losses: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self.added = self.transcribed = self.failed = self.lost = 0  # frames
        self._lost_before = 0  # `lost` when the latest piece was taken

    @property
    def pending(self) -> list[Span]:
        return [*self.under_way, *self.waiting]

    def add(self, span: Span) -> None:
        self.waiting.append(span)
        self.added += span.stop - span.start
        if len(self.waiting) > 1 and not self.is_behind:
            self.is_behind = True
            logger.warning(
                "speech recognition is behind: %d utterances wait. They are transcribed together, without drafts",
                len(self.waiting),
            )

    def forget_overwritten(self) -> None:
        """Count as lost what left the history before its turn came."""
        oldest = self._segmenter.oldest
        while self.waiting and self.waiting[0].start < oldest:
            span = self.waiting.popleft()
            last = min(span.stop, oldest)
            self._note_loss(span.start, last)
            if last < span.stop:
                time = span.time and StreamTime(span.time + (last - span.start) / SAMPLERATE, span.time.clock)
                speech_stop = max(last, span.speech_stop)
                self.waiting.appendleft(span._replace(start=last, overlap=0, speech_stop=speech_stop, time=time))

    def _note_loss(self, first: int, last: int) -> None:
        if self.lost == self._lost_before:
            logger.warning("speech from frame %d on is lost: it was overwritten before the engine had time", first)
        self.lost += last - first
        if self.losses and self.losses[-1][1] == first:
            self.losses[-1] = (self.losses[-1][0], last)
        else:
            self.losses.append((first, last))

    def take(self) -> Piece:
        """Put what waits under way, as much of it as the engine takes at once.

        Raises
        ------
        FramesLost
            It was overwritten this moment; nothing was done.
        """
        first = self.waiting[0]
        begin = max(first.start - first.overlap, self._segmenter.oldest)
        spans = [span for span in self.waiting if span.stop - begin <= self._max_frames]
        last = spans[-1]
        audio = self._copied(begin, last.stop)
        for _ in spans:
            self.waiting.popleft()
        self.under_way = spans
        self.is_behind = len(spans) > 1 or bool(self.waiting)
        lost, self._lost_before = self.lost - self._lost_before, self.lost
        whole = first._replace(
            stop=last.stop,
            overlap=first.start - begin,
            speech_stop=last.speech_stop,
            gaps=tuple(gap for span in spans for gap in span.gaps),
        )
        return Piece(whole, len(spans), True, lost, audio)

    def draft(self, span: Span) -> Piece:
        """An utterance that goes on, as far as it was heard."""
        return Piece(span._replace(overlap=0), 1, False, 0, self._copied(span.start, span.stop))

    def end(self, *, is_failed: bool) -> None:
        """What was under way is done."""
        frames = sum(span.stop - span.start for span in self.under_way)
        self.under_way = []
        if is_failed:
            self.failed += frames
        else:
            self.transcribed += frames

    def _copied(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._segmenter.audio(start, stop, self._audio[: stop - start])
