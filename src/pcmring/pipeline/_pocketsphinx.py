"""PocketSphinx: small, offline, its English model in its package."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcmring._late import load
from pcmring.pipeline._engines import ModelError, Transcript, Word
from pcmring.pipeline._voice import SAMPLERATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PocketsphinxTranscriber"]

#: Of the decoder's own time axis, in frames.
_HOP = SAMPLERATE // 100

#: "<s>", "<sil>", "[NOISE]": no words; "and(2)" is the second pronunciation of "and".
_NO_WORD = re.compile(r"[<\[].*[>\]]$")
_PRONUNCIATION = re.compile(r"\(\d+\)$")


class PocketsphinxTranscriber:
    """PocketSphinx, English. Free dictation has many errors; short commands with a grammar are exact and cheap.

    It keeps the GIL while it decodes, a fifth of the audio's length or so: other Python threads stand still, capture
    does not. Any thread may call it; calls wait for each other.

    Parameters
    ----------
    grammar : str or Path, optional
        A JSGF file with all that can be said.

    Raises
    ------
    MissingPackage
        pocketsphinx is not installed.
    ModelError
        The grammar is missing or has an error, or a word that the dictionary does not know; or the package's
        model is damaged.
    """

    max_audio_s = 30.0

    def __init__(self, grammar: str | Path | None = None) -> None:
        package = load("pocketsphinx")
        settings: dict[str, Any] = {}
        if grammar is not None:
            if not Path(grammar).is_file():
                raise ModelError(f"there is no grammar file {str(grammar)!r}")
            settings = {"lm": None, "jsgf": str(grammar)}
        try:
            self._decoder = package.Decoder(samprate=SAMPLERATE, loglevel="FATAL", **settings)
        except RuntimeError as error:
            culprit = "its model; install pocketsphinx again" if grammar is None else f"the grammar {str(grammar)!r}"
            raise ModelError(f"PocketSphinx cannot use {culprit} ({error})") from error
        self._busy = threading.Lock()

    def transcribe(self, audio: NDArray[np.float32], *, is_draft: bool = False) -> Transcript:
        """See `Transcriber`. A draft is no different."""
        if len(audio) == 0:
            return Transcript("")
        pcm = np.clip(audio * 32768.0, -32768, 32767).astype(np.int16)
        with self._busy:
            self._decoder.start_utt()
            try:
                # all at once: levels are then fitted to this utterance, not to those before
                self._decoder.process_raw(pcm.tobytes(), full_utt=True)
            finally:
                self._decoder.end_utt()
            found = [] if self._decoder.hyp() is None else list(self._decoder.seg())
        words = tuple(
            Word(
                _PRONUNCIATION.sub("", segment.word),
                segment.start_frame * _HOP,
                min((segment.end_frame + 1) * _HOP, len(audio)),
            )
            for segment in found
            if not _NO_WORD.match(segment.word)
        )
        return Transcript(" ".join(word.text for word in words), words)
