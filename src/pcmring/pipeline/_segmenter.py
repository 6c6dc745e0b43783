"""A stream of frames cut into utterances."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

import pcmring._statistics  # noqa: F401 - not in a thread: a fork in the middle of an import spoils the child's
from pcmring._buffer import AudioBuffer, Reader
from pcmring._records import Gap
from pcmring._resample import ResamplingReader
from pcmring._sources import number, positive
from pcmring.errors import BufferClosed
from pcmring.pipeline._endpoints import Endpointer, SegmenterStatistics, Span
from pcmring.pipeline._voice import SAMPLERATE, VoiceDetector, best_voice

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from pcmring._records import Block, StreamTime

__all__ = ["AnyReader", "Segmenter", "Utterance"]

AnyReader: TypeAlias = Reader | ResamplingReader

_SILENCE = np.zeros(SAMPLERATE, np.float32)

#: Losses remembered for the utterances they fall into.
_REMEMBERED = 1024


@dataclass(frozen=True, eq=False)
class Utterance:
    """One stretch of speech, with its audio.

    Attributes
    ----------
    start, stop, overlap, speech_stop, time, gaps
        See `Span`.
    audio : ndarray of float32, shape (overlap + stop - start,)
        At 16 kHz; the caller's own. The frame at position p is ``audio[overlap + p - start]``. Frames that the
        reader lost are silence.
    """

    start: int
    stop: int
    overlap: int
    speech_stop: int
    time: StreamTime | None
    gaps: tuple[Gap, ...]
    audio: NDArray[np.float32]


def _frames(seconds: object, name: str) -> int:
    if not 0 <= number(seconds, name) <= 3600:
        raise ValueError(f"{name} must be 0 to 3600 seconds, got {seconds!r}")
    return round(number(seconds, name) * SAMPLERATE)


class Segmenter:
    """Cuts what a reader reads into utterances: an iterator and an asynchronous iterator of `Utterance`.

    It ends with the ring, or at `close`; an utterance that is open then comes as the last one. Belongs to one
    thread, or one task, at a time; `close`, `statistics`, `speaking` and `history` are any thread's.

    Parameters
    ----------
    reader : Reader or ResamplingReader
        Of 16 kHz, mono, float32: a `ResamplingReader` makes that of any ring. Nobody else may read from it.
    voice : VoiceDetector, optional
        `SileroVoice`, or `WebRTCVoice` where that is not installed.
    pre_roll_s : float, optional
        Seconds before the first block with speech that belong to the utterance; less where another one ends.
    hang_over_s : float, optional
        Seconds without speech that end an utterance; they belong to it.
    max_utterance_s : float, optional
        Longer ones are cut.
    overlap_s : float, optional
        Seconds before such a cut that the next utterance's audio repeats, so that no word is heard in halves only.
    min_speech_s : float, optional
        Less speech than this is no utterance: a click.
    history_s : float, optional
        Seconds of audio that `history` keeps.

    Raises
    ------
    ValueError, TypeError
        The reader gives other audio, or a duration has no meaning.
    MissingPackage
        No voice detector is installed.
    """

    def __init__(
        self,
        reader: AnyReader,
        *,
        voice: VoiceDetector | None = None,
        pre_roll_s: float = 0.3,
        hang_over_s: float = 0.6,
        max_utterance_s: float = 28.0,
        overlap_s: float = 1.0,
        min_speech_s: float = 0.1,
        history_s: float = 60.0,
    ) -> None:
        if not isinstance(reader, (Reader, ResamplingReader)):
            raise TypeError(f"reader must be a Reader or a ResamplingReader, got {reader!r}")
        pre_roll, hang_over, overlap = (
            _frames(pre_roll_s, "pre_roll_s"),
            _frames(hang_over_s, "hang_over_s"),
            _frames(overlap_s, "overlap_s"),
        )
        self._voice = best_voice() if voice is None else voice
        block_frames = self._voice.block_frames
        self.max_frames = _frames(max_utterance_s, "max_utterance_s") + overlap
        least_s = (max(pre_roll + hang_over, overlap) + block_frames) / SAMPLERATE
        if not max_utterance_s >= least_s:
            raise ValueError(
                f"max_utterance_s must be at least {least_s:g}, for pre-roll, hang-over and one block, and for the "
                f"overlap, got {max_utterance_s!r}"
            )
        # once an utterance ended its audio is wanted before the next block is written
        least_s = (self.max_frames + pre_roll + 2 * block_frames) / SAMPLERATE
        if not positive(history_s, "history_s") >= least_s:
            raise ValueError(f"history_s must be at least {least_s:g}, for the longest utterance, got {history_s!r}")
        self._blocks = reader.blocks(block_frames)
        self._buffer: AudioBuffer = self._blocks._buffer
        facts = reader if isinstance(reader, ResamplingReader) else self._buffer
        if (facts.samplerate or SAMPLERATE, facts.channels, facts.dtype) != (SAMPLERATE, 1, np.dtype(np.float32)):
            raise ValueError(
                f"reader must give 16000 Hz, 1 channel, float32: ResamplingReader(buffer) does; this one gives "
                f"{facts.samplerate:g} Hz, {facts.channels} channels, {facts.dtype}"
            )
        self._reader = reader
        self._first = reader.position
        self._endpointer = Endpointer(
            self._first,
            pre_roll=pre_roll,
            hang_over=hang_over,
            max_utterance=self.max_frames - overlap,
            overlap=overlap,
            min_speech=_frames(min_speech_s, "min_speech_s"),
        )
        self._history = AudioBuffer(_frames(history_s, "history_s"), samplerate=SAMPLERATE)
        self._utterances: deque[Utterance] = deque()
        self._speaking: Span | None = None
        self._is_over = False
        # times and gaps are the buffer's; they must be asked for before it is closed
        self._known: tuple[int, StreamTime] | None = None
        self._gap_count = 0
        self._ledger: list[Gap] = []
        self._overruns: deque[Gap] = deque(maxlen=_REMEMBERED)
        self._time_of(self._first)
        self._look_for_gaps()

    # ---- any thread ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the iteration, and the reader with it: a wait wakes at once. Idempotent."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    @property
    def statistics(self) -> SegmenterStatistics:
        """SegmenterStatistics: where every frame went until now."""
        return self._endpointer.statistics

    @property
    def speaking(self) -> Span | None:
        """Span or None: the utterance that is open now, as far as it was heard."""
        return self._speaking

    @property
    def oldest(self) -> int:
        """int: position of the oldest frame that `audio` can give."""
        return self._first + self._history.oldest

    def audio(self, start: int, stop: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Copy frames that were heard, by position.

        Parameters
        ----------
        start, stop : int
            Positions of the reader, half open.
        out : ndarray of float32, shape (stop - start,), optional
            Filled instead of a new array.

        Raises
        ------
        FramesLost
            Too old, that is before `oldest`.
        """
        if out is None:
            out = np.empty(stop - start, np.float32)
        return self._history.read_range(start - self._first, stop - self._first, out)

    # ---- the thread that iterates -------------------------------------------------------------------------------

    def _hear(self, block: Block) -> Iterator[Span]:
        """Take a block in; the utterances that ended with it. Their audio is there until the next step."""
        lost = block.start - self._endpointer.position
        samples: NDArray[np.float32] = block.array.reshape(-1)
        if len(samples) < self._voice.block_frames:  # the stream's last
            samples = np.pad(samples, (0, self._voice.block_frames - len(samples)))
        # first: a detector that raises leaves a block that counts as lost
        is_speech = self._voice.is_speech(samples)
        self._look_for_gaps()
        if lost:
            yield from self._lose(lost)
        self._history.write(block.array)
        yield from map(self._described, self._endpointer.hear(block.frames, is_speech))
        speaking = self._endpointer.open
        if speaking is not None:
            before = self._speaking
            if before is not None and before.start == speaking.start:
                speaking = speaking._replace(time=before.time)
            else:
                speaking = speaking._replace(time=self._time_of(speaking.start))
        self._speaking = speaking

    def _lose(self, lost: int) -> Iterator[Span]:
        position = self._endpointer.position + lost
        self._overruns.append(Gap(position, lost, "overrun", True))
        yield from map(self._described, self._endpointer.lose(lost))
        for done in range(0, lost, len(_SILENCE)):
            self._history.write(_SILENCE[: lost - done])

    def _finish(self) -> Iterator[Span]:
        """What the end of the stream ends."""
        if not self._is_over:
            self._is_over = True
            lost = self._reader.position - self._endpointer.position
            if lost:
                yield from self._lose(lost)
            yield from map(self._described, self._endpointer.finish())
            self._speaking = None

    def _described(self, span: Span) -> Span:
        return span._replace(time=self._time_of(span.start), gaps=self._gaps_inside(span.start, span.stop))

    def _time_of(self, position: int) -> StreamTime | None:
        if self._buffer.samplerate is None:
            return None
        source = self._reader if isinstance(self._reader, ResamplingReader) else self._buffer
        try:
            time = source.time_of(position)
        except LookupError:  # nothing was written yet
            return None
        except BufferClosed:
            if self._known is None:
                return None
            where, then = self._known
            return type(then)(then + (position - where) / SAMPLERATE, then.clock)
        self._known = position, time
        return time

    def _look_for_gaps(self) -> None:
        try:
            count = self._buffer.statistics().gaps
            if count != self._gap_count:
                self._ledger = self._buffer.gaps()
                self._gap_count = count
        except BufferClosed:
            return

    def _gaps_inside(self, start: int, stop: int) -> tuple[Gap, ...]:
        gaps = [*self._overruns, *map(self._in_our_frames, self._ledger)]
        return tuple(sorted(gap for gap in gaps if start < gap.position < stop))

    def _in_our_frames(self, gap: Gap) -> Gap:
        if not isinstance(self._reader, ResamplingReader) or not self._buffer.samplerate:
            return gap
        return gap._replace(
            position=round(self._reader.output_position(gap.position)),
            frames=round(gap.frames * SAMPLERATE / self._buffer.samplerate),
        )

    def _keep(self, spans: Iterator[Span]) -> None:
        for span in spans:
            self._utterances.append(Utterance(*span, self.audio(span.start - span.overlap, span.stop)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Utterance:
        while not self._utterances:
            block = next(self._blocks, None)
            if block is None:
                self._keep(self._finish())
                break
            self._keep(self._hear(block))
        if not self._utterances:
            raise StopIteration
        return self._utterances.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Utterance:
        while not self._utterances:
            try:
                block = await self._blocks.__anext__()
            except StopAsyncIteration:
                self._keep(self._finish())
                break
            self._keep(self._hear(block))
        if not self._utterances:
            raise StopAsyncIteration
        return self._utterances.popleft()
