"""From frames to words: utterances, speech recognition, live captions.

    with Captioner(manager.reader(), WhisperTranscriber("tiny.en")) as captions:
        for caption in captions:
            print(caption.text)

Audio is 16 kHz, mono, float32; positions and counts are frames of the reader. Nothing of this package is loaded by
``import pcmring``.
"""

from __future__ import annotations

from pcmring.pipeline._caption import Caption
from pcmring.pipeline._captions import Captioner, CaptionerStatistics
from pcmring.pipeline._endpoints import SegmenterStatistics, Span
from pcmring.pipeline._engines import ModelError, Transcriber, Transcript, Word
from pcmring.pipeline._pocketsphinx import PocketsphinxTranscriber
from pcmring.pipeline._segmenter import Segmenter, Utterance
from pcmring.pipeline._voice import SileroVoice, VoiceDetector, WebRTCVoice
from pcmring.pipeline._whisper import WhisperTranscriber

__all__ = [
    "Caption",
    "Captioner",
    "CaptionerStatistics",
    "ModelError",
    "PocketsphinxTranscriber",
    "Segmenter",
    "SegmenterStatistics",
    "SileroVoice",
    "Span",
    "Transcriber",
    "Transcript",
    "Utterance",
    "VoiceDetector",
    "WebRTCVoice",
    "WhisperTranscriber",
    "Word",
]
