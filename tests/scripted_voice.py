"""A voice detector that reads its script off the audio: frames are a ramp, so each tells its position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def ramp(first: int, frames: int) -> np.ndarray:
    """Frame p has the value p, exact in float32."""
    return np.arange(first, first + frames, dtype=np.float32)


class ScriptedVoice:
    """Says speech for the blocks that touch one of `speech`, half-open ranges of positions.

    `feed` is called before each judgement: the place where a test writes what comes next, while nobody reads.
    """

    def __init__(
        self,
        speech: Sequence[tuple[int, int]],
        block_frames: int = 100,
        feed: Callable[[], object] = lambda: None,
    ) -> None:
        self.speech = speech
        self.block_frames = block_frames
        self.feed = feed
        self.heard: list[tuple[int, bool]] = []

    def is_speech(self, block: np.ndarray, /) -> bool:
        assert block.shape == (self.block_frames,)
        self.feed()
        start = int(block[0])
        found = any(start < stop and first < start + self.block_frames for first, stop in self.speech)
        self.heard.append((start, found))
        return found
