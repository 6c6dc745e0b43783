"""Live captions: an engine that may be slow, behind a stream that may not wait.

Two threads. The *listener* alone reads: it segments at once, and audio goes into the segmenter's history, a ring of
fixed size. Utterances wait as ranges of positions. The *worker* alone calls the engine, one piece at a time: waiting
utterances first, several as one where they fit, drafts of the open one only when none waits. What the ring overwrote
before its turn came is lost, and is told by position. `_lock` guards everything that several threads use.

No memory here grows: ranges that left the ring leave the queue, and while nobody takes captions none is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pcmring._records import StreamTime
from pcmring._sources import positive
from pcmring.errors import FramesLost
from pcmring.pipeline._engines import Transcriber, Transcript, Word
from pcmring.pipeline._segmenter import AnyReader, Segmenter
from pcmring.pipeline._voice import SAMPLERATE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from pcmring._records import Gap
    from pcmring.pipeline._endpoints import Span

__all__ = ["Caption", "Captioner", "CaptionerStatistics"]

logger = logging.getLogger(__name__)

#: Final captions that wait to be taken. While there are more, none is made: utterances then wait in the ring.
MAX_UNTAKEN = 64

#: Seconds that `close` waits for the engine to return. Long enough for most calls, short enough to be "at once".
CLOSE_S = 0.5

#: Lost ranges remembered; older ones stay in the total.
_REMEMBERED = 1024


@dataclass(frozen=True)
class Caption:
    """What was said.

    Attributes
    ----------
    text : str
    start, stop : int
        The frames it is about, positions of the reader, half open. No frame is in two final captions.
    speech_stop : int
        Position after its last block with speech; `stop` is later by the hang-over.
    is_final : bool
        False for a draft of an utterance that goes on: the next caption replaces it.
    words : tuple of Word
        With positions of the reader; empty if the engine does not tell.
    utterances : int
        How many it is made of: more than one if the engine was behind.
    lost : int
        Frames of speech, just before it, that were overwritten before the engine had time for them.
    time : StreamTime or None
        When `start` was captured.
    gaps : tuple of Gap
        Frames missing inside it; see `Span`.
    error : Exception or None
        What the engine raised; there is no text then.
    """

    text: str
    start: int
    stop: int
    speech_stop: int
    is_final: bool
    words: tuple[Word, ...]
    utterances: int
    lost: int
    time: StreamTime | None
    gaps: tuple[Gap, ...]
    error: Exception | None


@dataclass(frozen=True)
class CaptionerStatistics:
    """Where the frames of all utterances went. Always, `frames_in_utterances` is the sum of the other four."""

    frames_in_utterances: int
    frames_transcribed: int
    frames_failed: int  #: the engine raised
    frames_lost: int  #: overwritten before the engine had time for them
    frames_waiting: int  #: also those under way
    utterances_waiting: int
    captions: int  #: final ones made
    drafts: int


class Captioner:
    """Captions of a stream, as it goes on: an iterator and an asynchronous iterator of `Caption`.

    It begins at once. It ends when the stream has ended and all was transcribed, or at `close`. Captions are taken
    by one thread, or one task; everything else is any thread's.

    Parameters
    ----------
    source : Reader, ResamplingReader or Segmenter
        A reader as `Segmenter` wants it, or a Segmenter with settings of its own. Nobody else may use it.
    transcriber : Transcriber
        Such as `WhisperTranscriber` or `PocketsphinxTranscriber`.
    draft_every_s : float or None, optional
        A draft is made when there are so many more seconds of speech; None for no drafts. They are made less often
        where they would take more than half of the engine's time, and not at all while an utterance waits.

    Raises
    ------
    ValueError, TypeError, MissingPackage
        As for `Segmenter`; or its longest utterance, with overlap, is more than the engine takes.
    """

    def __init__(
        self, source: AnyReader | Segmenter, transcriber: Transcriber, *, draft_every_s: float | None = 1.0
    ) -> None:
        self._draft_every_s = None if draft_every_s is None else positive(draft_every_s, "draft_every_s")
        self._max_frames = int(positive(transcriber.max_audio_s, "transcriber.max_audio_s") * SAMPLERATE)
        if not isinstance(source, Segmenter):
            source = Segmenter(source, max_utterance_s=min(28.0, transcriber.max_audio_s - 1.0))
        if source.max_frames > self._max_frames:
            raise ValueError(
                f"the segmenter's max_utterance_s + overlap_s must be at most {transcriber.max_audio_s:g} s, what the "
                f"engine takes, got {source.max_frames / SAMPLERATE:g} s"
            )
        self._segmenter = source
        self._transcriber = transcriber
        self._audio = np.empty(self._max_frames, np.float32)  # the worker's
        self._lock = threading.RLock()  # a log handler may ask how things are
        self._work_there = threading.Condition(self._lock)
        self._caption_there = threading.Condition(self._lock)
        self._sleepers: set[asyncio.Future[None]] = set()  # the same for tasks
        self._is_closed = False
        self._is_heard_out = False  # no more utterances will come
        self._is_over = False  # no more captions will come
        self._failure: Exception | None = None
        # what waits for the engine, and what it is at
        self._waiting: deque[Span] = deque()
        self._under_way: list[Span] = []
        self._is_behind = False
        self._drafted = source.statistics.position  # up to here
        self._draft_cost_s = 0.0
        self._is_failing = False
        # what waits to be taken
        self._finals: deque[Caption] = deque()
        self._draft: Caption | None = None
        # the account
        self._losses: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self._in_utterances = self._transcribed = self._failed = self._lost = 0
        self._lost_before = 0  # `_lost` when the engine was given its latest piece
        self._captions = self._drafts = 0
        self._threads = (
            threading.Thread(target=self._listen, daemon=True, name="pcmring captions listener"),
            threading.Thread(target=self._work, daemon=True, name="pcmring captions worker"),
        )
        for thread in self._threads:
            thread.start()

    # ---- any thread ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all, and the reader: waits wake at once, captions already made can be taken. Idempotent.

        The engine has half a second to end its call; a call that hangs is left behind, with its thread, and what it
        may yet return is dropped.
        """
        with self._lock:
            self._is_closed = True
            self._work_there.notify()
            self._wake_takers()
        self._segmenter.close()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    @property
    def segmenter(self) -> Segmenter:
        """Segmenter: for its `statistics` and `speaking`."""
        return self._segmenter

    @property
    def is_behind(self) -> bool:
        """bool: utterances come faster than the engine transcribes them."""
        return self._is_behind

    @property
    def lag_s(self) -> float:
        """float: seconds of audio heard since the end of the oldest speech without its caption; 0 if there is none."""
        with self._lock:
            pending = self._under_way or list(self._waiting)
            position = self._segmenter.statistics.position
            return max(0, position - pending[0].speech_stop) / SAMPLERATE if pending else 0.0

    def losses(self) -> list[tuple[int, int]]:
        """Return the speech that was overwritten untranscribed, as ``(first, last)``, half open; the newest 1,024."""
        with self._lock:
            return list(self._losses)

    @property
    def statistics(self) -> CaptionerStatistics:
        """CaptionerStatistics: as of now."""
        with self._lock:
            pending = [*self._under_way, *self._waiting]
            return CaptionerStatistics(
                self._in_utterances,
                self._transcribed,
                self._failed,
                self._lost,
                sum(span.stop - span.start for span in pending),
                len(pending),
                self._captions,
                self._drafts,
            )

    # ---- the listener -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            for block in self._segmenter._blocks:
                for span in self._segmenter._hear(block):
                    self._add(span)
                with self._lock:
                    self._forget_overwritten()
                    if self._draft_due() is not None:
                        self._work_there.notify()
        except Exception as error:  # noqa: BLE001 - the voice detector's; raised where captions are taken
            self._failure = error
        for span in self._segmenter._finish():
            self._add(span)
        self._segmenter.close()
        with self._lock:
            self._is_heard_out = True
            self._work_there.notify()

    def _add(self, span: Span) -> None:
        with self._lock:
            self._waiting.append(span)
            self._in_utterances += span.stop - span.start
            self._drafted = span.stop
            if len(self._waiting) > 1 and not self._is_behind:
                self._is_behind = True
                logger.warning(
                    "speech recognition is behind: %d utterances wait. They are transcribed together, without drafts",
                    len(self._waiting),
                )
            self._work_there.notify()

    def _forget_overwritten(self) -> None:
        """Count what left the history before its turn came. With the lock."""
        oldest = self._segmenter.oldest
        while self._waiting and self._waiting[0].start < oldest:
            span = self._waiting.popleft()
            last = min(span.stop, oldest)
            if self._lost == self._lost_before:
                logger.warning(
                    "speech from frame %d on is lost: it was overwritten before the engine had time", span.start
                )
            self._lost += last - span.start
            if self._losses and self._losses[-1][1] == span.start:
                self._losses[-1] = (self._losses[-1][0], last)
            else:
                self._losses.append((span.start, last))
            if last < span.stop:
                time = span.time and StreamTime(span.time + (last - span.start) / SAMPLERATE, span.time.clock)
                speech_stop = max(last, span.speech_stop)
                self._waiting.appendleft(span._replace(start=last, overlap=0, speech_stop=speech_stop, time=time))

    def _draft_due(self) -> Span | None:
        """The utterance that a draft is wanted of. With the lock."""
        speaking = self._segmenter.speaking
        if self._draft_every_s is None or self._waiting or speaking is None:
            return None
        every = max(self._draft_every_s, 2 * self._draft_cost_s) * SAMPLERATE
        is_due = speaking.speech_stop - max(self._drafted, speaking.start) >= every
        # in a pause the final caption may be near
        return speaking if is_due and speaking.speech_stop == speaking.stop else None

    # ---- the worker ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                caption = self._transcribed_piece(piece)
                with self._lock:
                    if self._is_closed:
                        return
                    self._deliver(caption)
        finally:
            with self._lock:
                self._is_over = True
                self._wake_takers()

    def _next_piece(self) -> _Piece | None:
        """Wait for something to transcribe; None at the end."""
        with self._lock:
            while not self._is_closed:
                self._forget_overwritten()
                try:
                    piece = self._choose()
                except FramesLost:  # overwritten this moment
                    continue
                if piece is not None:
                    return piece
                if self._is_heard_out and not self._waiting:
                    return None
                self._work_there.wait()
        return None

    def _choose(self) -> _Piece | None:
        if len(self._finals) >= MAX_UNTAKEN:
            return None
        if not self._waiting:
            speaking = self._draft_due()
            if speaking is None:
                return None
            self._drafted = speaking.stop
            return _Piece(speaking._replace(overlap=0), 1, False, 0, self._copied(speaking.start, speaking.stop))
        first = self._waiting[0]
        begin = max(first.start - first.overlap, self._segmenter.oldest)
        spans = [span for span in self._waiting if span.stop - begin <= self._max_frames]
        last = spans[-1]
        audio = self._copied(begin, last.stop)
        for _ in spans:
            self._waiting.popleft()
        self._under_way = spans
        self._is_behind = len(spans) > 1 or bool(self._waiting)
        lost, self._lost_before = self._lost - self._lost_before, self._lost
        whole = first._replace(
            stop=last.stop,
            overlap=first.start - begin,
            speech_stop=last.speech_stop,
            gaps=tuple(gap for span in spans for gap in span.gaps),
        )
        return _Piece(whole, len(spans), True, lost, audio)

    def _copied(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._segmenter.audio(start, stop, self._audio[: stop - start])

    def _transcribed_piece(self, piece: _Piece) -> Caption:
        begun = time.monotonic()
        try:
            transcript = self._transcriber.transcribe(piece.audio, is_draft=not piece.is_final)
            caption = _caption(piece, transcript, None)
        except Exception as error:  # not our code, and the stream must go on: the caption carries it
            if not self._is_failing:
                logger.exception("the speech recognition engine failed; captions go on")
            self._is_failing = True
            return _caption(piece, Transcript(""), error)
        self._is_failing = False
        if not piece.is_final:
            self._draft_cost_s = time.monotonic() - begun
        return caption

    def _deliver(self, caption: Caption) -> None:
        """With the lock."""
        if caption.is_final:
            frames = sum(span.stop - span.start for span in self._under_way)
            self._under_way = []
            if caption.error is None:
                self._transcribed += frames
            else:
                self._failed += frames
            self._captions += 1
            self._finals.append(caption)
            self._draft = None
        elif caption.error is None and not self._waiting:
            self._drafts += 1
            self._draft = caption
        self._wake_takers()

    # ---- who takes captions -------------------------------------------------------------------------------------

    def _wake_takers(self) -> None:
        """With the lock."""
        self._caption_there.notify_all()
        for sleeper in self._sleepers:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                sleeper.get_loop().call_soon_threadsafe(_wake, sleeper)

    def _take(self) -> Caption | None:
        """The next caption, if it is there. With the lock."""
        if self._finals:
            self._work_there.notify()  # there is room for one more
            return self._finals.popleft()
        draft, self._draft = self._draft, None
        return draft

    def _is_at_end(self) -> bool:
        """Whether nothing more will come; raises what ended it, once. With the lock."""
        if not self._is_over and not self._is_closed:
            return False
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Caption:
        with self._lock:
            while True:
                caption = self._take()
                if caption is not None:
                    return caption
                if self._is_at_end():
                    raise StopIteration
                self._caption_there.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Caption:
        while True:
            with self._lock:
                caption = self._take()
                if caption is not None:
                    return caption
                if self._is_at_end():
                    raise StopAsyncIteration
                sleeper = asyncio.get_running_loop().create_future()
                self._sleepers.add(sleeper)
            try:
                await sleeper
            finally:
                with self._lock:
                    self._sleepers.discard(sleeper)


class _Piece(NamedTuple):
    """What the engine is given."""

    span: Span
    utterances: int
    is_final: bool
    lost: int
    audio: NDArray[np.float32]


def _caption(piece: _Piece, transcript: Transcript, error: Exception | None) -> Caption:
    span = piece.span
    begin = span.start - span.overlap
    words = tuple(Word(word.text, begin + word.start, begin + word.stop) for word in transcript.words)
    text = transcript.text
    if span.overlap and words:  # the overlap was heard before
        words = tuple(word for word in words if word.start + word.stop >= 2 * span.start)
        text = " ".join(word.text for word in words)
    return Caption(
        text,
        span.start,
        span.stop,
        span.speech_stop,
        piece.is_final,
        words,
        piece.utterances,
        piece.lost,
        span.time,
        span.gaps,
        error,
    )


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
