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
from typing import TYPE_CHECKING

from pcmring._sources import positive
from pcmring.errors import FramesLost
from pcmring.pipeline._backlog import Backlog
from pcmring.pipeline._caption import Caption, Piece, caption_of
from pcmring.pipeline._engines import Transcriber, Transcript
from pcmring.pipeline._segmenter import AnyReader, Segmenter
from pcmring.pipeline._voice import SAMPLERATE

if TYPE_CHECKING:
    from typing_extensions import Self

    from pcmring.pipeline._endpoints import Span

__all__ = ["Captioner", "CaptionerStatistics"]

logger = logging.getLogger(__name__)

#: Final captions that wait to be taken. While there are more, none is made: utterances then wait in the ring.
MAX_UNTAKEN = 64

#: Seconds that `close` waits for the engine to return. Long enough for most calls, short enough to be "at once".
CLOSE_S = 0.5


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
        max_frames = int(positive(transcriber.max_audio_s, "transcriber.max_audio_s") * SAMPLERATE)
        if not isinstance(source, Segmenter):
            source = Segmenter(source, max_utterance_s=min(28.0, transcriber.max_audio_s - 1.0))
        if source.max_frames > max_frames:
            raise ValueError(
                f"the segmenter's max_utterance_s + overlap_s must be at most {transcriber.max_audio_s:g} s, what the "
                f"engine takes, got {source.max_frames / SAMPLERATE:g} s"
            )
        self._segmenter = source
        self._transcriber = transcriber
        self._lock = threading.RLock()  # a log handler may ask how things are
        self._work_there = threading.Condition(self._lock)
        self._caption_there = threading.Condition(self._lock)
        self._sleepers: set[asyncio.Future[None]] = set()  # the same for tasks
        self._is_closed = False
        self._is_heard_out = False  # no more utterances will come
        self._is_over = False  # no more captions will come
        self._failure: Exception | None = None
        self._backlog = Backlog(source, max_frames)
        self._drafted = source.statistics.position  # up to here
        self._draft_cost_s = 0.0
        self._is_failing = False
        # what waits to be taken
        self._finals: deque[Caption] = deque()
        self._draft: Caption | None = None
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
        return self._backlog.is_behind

    @property
    def lag_s(self) -> float:
        """float: seconds of audio heard since the end of the oldest speech without its caption; 0 if there is none."""
        with self._lock:
            pending = self._backlog.pending
            position = self._segmenter.statistics.position
            return max(0, position - pending[0].speech_stop) / SAMPLERATE if pending else 0.0

    def losses(self) -> list[tuple[int, int]]:
        """Return the speech that was overwritten untranscribed, as ``(first, last)``, half open; the newest 1,024."""
        with self._lock:
            return list(self._backlog.losses)

    @property
    def statistics(self) -> CaptionerStatistics:
        """CaptionerStatistics: as of now."""
        with self._lock:
            backlog, pending = self._backlog, self._backlog.pending
            return CaptionerStatistics(
                backlog.added,
                backlog.transcribed,
                backlog.failed,
                backlog.lost,
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
                    self._backlog.forget_overwritten()
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
            self._backlog.add(span)
            self._drafted = span.stop
            self._work_there.notify()

    def _draft_due(self) -> Span | None:
        """The utterance that a draft is wanted of. With the lock."""
        speaking = self._segmenter.speaking
        if self._draft_every_s is None or self._backlog.waiting or speaking is None:
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

    def _next_piece(self) -> Piece | None:
        """Wait for something to transcribe; None at the end."""
        with self._lock:
            while not self._is_closed:
                self._backlog.forget_overwritten()
                try:
                    piece = self._choose()
                except FramesLost:  # overwritten this moment
                    continue
                if piece is not None:
                    return piece
                if self._is_heard_out and not self._backlog.waiting:
                    return None
                self._work_there.wait()
        return None

    def _choose(self) -> Piece | None:
        if len(self._finals) >= MAX_UNTAKEN:
            return None
        if self._backlog.waiting:
            return self._backlog.take()
        speaking = self._draft_due()
        if speaking is None:
            return None
        self._drafted = speaking.stop
        return self._backlog.draft(speaking)

    def _transcribed_piece(self, piece: Piece) -> Caption:
        begun = time.monotonic()
        try:
            transcript = self._transcriber.transcribe(piece.audio, is_draft=not piece.is_final)
            caption = caption_of(piece, transcript, None)
        except Exception as error:  # not our code, and the stream must go on: the caption carries it
            if not self._is_failing:
                logger.exception("the speech recognition engine failed; captions go on")
            self._is_failing = True
            return caption_of(piece, Transcript(""), error)
        self._is_failing = False
        if not piece.is_final:
            self._draft_cost_s = time.monotonic() - begun
        return caption

    def _deliver(self, caption: Caption) -> None:
        """With the lock."""
        if caption.is_final:
            self._backlog.end(is_failed=caption.error is not None)
            self._captions += 1
            self._finals.append(caption)
            self._draft = None
        elif caption.error is None and not self._backlog.waiting:
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


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
