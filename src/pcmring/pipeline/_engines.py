"""What a speech recognition engine is to the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ModelError", "Transcriber", "Transcript", "Word"]


class ModelError(ValueError):
    """An engine's model or grammar is missing, incomplete or corrupt; the message says what to do."""


class Word(NamedTuple):
    """A word, and where it was spoken.

    In a `Transcript`, `start` and `stop` are frames from the audio's first; in a `Caption`, positions of the reader.
    """

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Transcript:
    """What an engine made of one piece of audio; `words` is empty if it does not tell where they are."""

    text: str
    words: tuple[Word, ...] = ()


class Transcriber(Protocol):
    """A speech recognition engine."""

    @property
    def max_audio_s(self) -> float:
        """float: seconds of audio that it takes at most."""
        ...

    def transcribe(self, audio: NDArray[np.float32], *, is_draft: bool = False) -> Transcript:
        """Return what is spoken.

        Parameters
        ----------
        audio : ndarray of float32, shape (frames,)
            At 16 kHz, full scale ±1.0. Only until it returns: the memory is then used again.
        is_draft : bool, optional
            The speaker has not ended and a better result will replace this one: it should rather be quick.
        """
        ...
