"""Hours of speech through the pipeline, faster than it was spoken: does anything grow, is anything lost?

    python benchmarks/soak.py [--minutes 60] [--speed 8] [--model tiny.en]

The sentences of `pcmring demo`, again and again, go into a ring at --speed times their pace, from there through voice
activity detection into Whisper. Each row is a minute of the clock.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import numpy as np
import psutil
from captions import MB, PAUSE, RATE, Producer, clips
from setting import machine

from pcmring import AudioBuffer
from pcmring.cli._engine import load_engine
from pcmring.pipeline import Captioner


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=60, help="of speech")
    options.add_argument("--speed", type=float, default=8)
    options.add_argument("--model", default="tiny.en")
    options.add_argument("--every", type=float, default=60, help="seconds between two rows")
    given = options.parse_args()
    engine, _ = load_engine(given.model)
    samples = np.concatenate([piece for clip in clips().values() for piece in (clip, PAUSE)])
    loops = max(1, round(given.minutes * 60 * RATE / len(samples)))
    process = psutil.Process()
    print(machine())
    print(f"{loops * len(samples) / RATE / 60:.1f} minutes of speech at {given.speed:g} times its pace\n")
    print("| minute | RSS MB | threads | utterances waiting | lag s | unread frames | lost | captions |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    with AudioBuffer(60 * RATE, samplerate=RATE) as ring:
        reader = ring.reader(0)
        with Captioner(reader, engine) as captioner:
            over = threading.Event()

            def row() -> None:
                heard, done = captioner.segmenter.statistics, captioner.statistics
                cells = [
                    f"{(time.monotonic() - begin) / 60:.1f}",
                    f"{process.memory_info().rss / MB:.1f}",
                    process.num_threads(),
                    done.utterances_waiting,
                    f"{captioner.lag_s:.1f}",
                    ring.frames_written - heard.position,
                    heard.frames_lost + done.frames_lost,
                    done.captions,
                ]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)

            def watch() -> None:
                while not over.wait(given.every):
                    row()

            begin = time.monotonic()
            producer = Producer(ring, samples, given.speed, loops)
            watcher = threading.Thread(target=watch)
            producer.start()
            watcher.start()
            merged = sum(caption.utterances > 1 for caption in captioner if caption.is_final)
            over.set()
            watcher.join()
            producer.join()
            row()
            heard, done = captioner.segmenter.statistics, captioner.statistics
    print(f"\nframes written {loops * len(samples)} = {heard.frames_in_utterances} in utterances + ", end="")
    print(f"{heard.frames_in_silence} in silence + {heard.frames_lost} lost; of those in utterances ", end="")
    print(f"{done.frames_transcribed} were transcribed, {done.frames_lost} came too late; {merged} captions of several")
    is_whole = heard.frames_in_utterances + heard.frames_in_silence == loops * len(samples)
    return 0 if is_whole and done.frames_transcribed == done.frames_in_utterances else 1


if __name__ == "__main__":
    sys.exit(main())
