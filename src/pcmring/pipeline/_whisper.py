"""Whisper through faster-whisper."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcmring._late import load
from pcmring.pipeline._engines import ModelError, Transcript, Word
from pcmring.pipeline._voice import SAMPLERATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WhisperTranscriber"]

#: What Whisper was trained on. Shorter audio is followed by silence up to here, as in its training: with tiny.en on
#: the clips of `pcmring demo` that halves the errors against shorter windows.
WINDOW_S = 30

#: The encoder's work is that of the window, whatever is in it: a draft has a third of the latency with this one.
DRAFT_WINDOW_S = 10

#: Speech up to a window's very end makes the decoder repeat itself.
_MARGIN_S = 0.5

#: Of the encoder's input, per second.
_MEL_FRAMES = 100

#: Probability that there is no speech from which the text is left away: it is invented. With tiny.en 0.89 and more
#: for noise and silence, up to 0.65 for speech, also noisy and of half a second.
_NO_SPEECH = 0.8

_FILES = ("model.bin", "config.json", "tokenizer.json", "vocabulary.*")


def _folder(model: str | Path, package: Any) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        missing = [name for name in _FILES if not any(path.glob(name))]
        if missing:  # without tokenizer.json, faster-whisper would go to the network
            raise ModelError(f"{path} is no CTranslate2 Whisper model: it has no {', '.join(missing)}")
        return path
    names = package.available_models()
    if str(model) not in names:
        raise ModelError(f"there is no folder {str(model)!r}, and no Whisper model of that name: {', '.join(names)}")
    try:
        return Path(package.download_model(str(model), local_files_only=True))
    except OSError:  # not yet on this machine
        pass
    try:
        return Path(package.download_model(str(model)))
    except Exception as error:  # the Hub's client and its HTTP library have many
        raise ModelError(
            f"the Whisper model {str(model)!r} is not on this machine and cannot be downloaded ({error}): "
            "give the folder of a CTranslate2 model, or try again with a network"
        ) from error


def _load(model: Path, package: Any, **settings: Any) -> Any:
    class Windowed(package.WhisperModel):  # type: ignore[misc]
        """Encodes windows of the length that is set; faster-whisper itself knows 30 s only."""

        window_s = WINDOW_S

        def encode(self, features: NDArray[np.float32]) -> Any:
            return super().encode(features[..., : self.window_s * _MEL_FRAMES])

    try:
        return Windowed(str(model), local_files_only=True, **settings)
    except Exception as error:  # RuntimeError of CTranslate2, plain Exception of tokenizers, JSON's ValueError
        raise ModelError(f"the Whisper model in {model} cannot be loaded: {error}") from error


class WhisperTranscriber:
    """Whisper, offline. A call transcribes one window in one pass, in the same memory each time.

    Any thread may call it; calls wait for each other.

    Parameters
    ----------
    model : str or Path
        A folder with a CTranslate2 model, never downloaded; or a name such as "tiny.en", "base", "large-v3": it is
        taken from the Hugging Face cache, or downloaded once if it is not there.
    language : str, optional
        Such as "en". Found out for each window if not given, unless the model speaks English only.
    device, compute_type, cpu_threads : optional
        faster-whisper's.

    Raises
    ------
    MissingPackage
        faster-whisper is not installed.
    ModelError
        The model is missing, incomplete or corrupt.
    """

    max_audio_s = WINDOW_S - _MARGIN_S

    def __init__(
        self,
        model: str | Path,
        *,
        language: str | None = None,
        device: str = "auto",
        compute_type: str = "int8",
        cpu_threads: int = 0,
    ) -> None:
        package = load("faster_whisper")
        self._model = _load(
            _folder(model, package), package, device=device, compute_type=compute_type, cpu_threads=cpu_threads
        )
        known = self._model.supported_languages
        if language is not None and language not in known:
            raise ValueError(f"language must be one that the model knows, {', '.join(known)}, got {language!r}")
        self._language = language if self._model.model.is_multilingual else "en"
        self._windows = {
            length_s: np.zeros(length_s * SAMPLERATE, np.float32) for length_s in (WINDOW_S, DRAFT_WINDOW_S)
        }
        self._busy = threading.Lock()

    def transcribe(self, audio: NDArray[np.float32], *, is_draft: bool = False) -> Transcript:
        """See `Transcriber`. A draft has no words."""
        if len(audio) > self.max_audio_s * SAMPLERATE:
            raise ValueError(f"audio must be at most {self.max_audio_s:g} s, got {len(audio) / SAMPLERATE:g} s")
        is_short = is_draft and len(audio) <= (DRAFT_WINDOW_S - _MARGIN_S) * SAMPLERATE
        window_s = DRAFT_WINDOW_S if is_short else WINDOW_S
        with self._busy:
            window = self._windows[window_s]
            window[: len(audio)] = audio
            window[len(audio) :] = 0
            self._model.window_s = window_s
            segments, _ = self._model.transcribe(
                window,
                language=self._language,
                chunk_length=window_s,
                beam_size=1 if is_draft else 5,
                temperature=0.0,  # the same audio, the same words
                without_timestamps=True,  # one segment: the whole window
                word_timestamps=not is_draft,
                condition_on_previous_text=False,
                no_speech_threshold=_NO_SPEECH,
                log_prob_threshold=None,
            )
            # the first is all of it; going on could encode the silence after the last word once more
            segment = next(segments, None)
        if segment is None:
            return Transcript("")
        words = tuple(
            Word(word.word.strip(), round(word.start * SAMPLERATE), min(round(word.end * SAMPLERATE), len(audio)))
            for word in segment.words or ()
        )
        return Transcript(segment.text.strip(), words)
