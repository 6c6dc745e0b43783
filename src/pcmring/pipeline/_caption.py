"""What an engine is given, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pcmring.pipeline._engines import Transcript, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pcmring._records import Gap, StreamTime
    from pcmring.pipeline._endpoints import Span

__all__ = ["Caption", "Piece", "caption_of"]


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


class Piece(NamedTuple):
    """What the engine is given."""

    span: Span
    utterances: int
    is_final: bool
    lost: int
    audio: NDArray[np.float32]


def caption_of(piece: Piece, transcript: Transcript, error: Exception | None) -> Caption:
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
