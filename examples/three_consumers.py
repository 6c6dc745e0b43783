"""Captions, a WAV file and a level meter from one microphone: python three_consumers.py MODEL OUT.wav [DEVICE]."""

import sys
import threading

import numpy as np

from pcmring import AudioConfig, AudioDeviceManager, FileBasedAudioManager
from pcmring.pipeline import Captioner, WhisperTranscriber


def print_captions(captions: Captioner) -> None:
    for caption in captions:
        if caption.is_final:
            print(caption.text, flush=True)


def main(model: str, out: str, device: str | None = None) -> None:
    whisper = WhisperTranscriber(model)
    with FileBasedAudioManager(AudioDeviceManager(AudioConfig(device=device))) as manager:
        if not manager.start_recording():
            sys.exit(str(manager.last_error))
        with Captioner(manager.reader(0), whisper) as captions:
            printing = threading.Thread(target=print_captions, args=[captions])
            printing.start()
            try:
                for block in manager.reader(0).blocks(8000):
                    level = "#" * int(40 * np.abs(block.array).max())
                    print(f"{level:40} {block.start / 16000:.1f} s", file=sys.stderr)
            except KeyboardInterrupt:
                pass
            manager.stop_recording()  # the captions then end by themselves
            printing.join()
        manager.save_as(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
