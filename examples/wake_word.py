"""Wake up at a sound, with what was said before it was noticed: python wake_word.py [DEVICE].

A detector is sure of its word only at its end. The windows overlap: each brings a new hop, and all the pre-roll before
it, so what the recogniser is given begins before the word.
"""

import sys

import numpy as np

from pcmring import AudioConfig, AudioDeviceManager, BufferClosed, StreamingAudioManager

HOP, PRE_ROLL, COMMAND = 320, 8000, 32000  # frames: 20 ms, 0.5 s, 2 s


def is_wake_word(audio: np.ndarray) -> bool:
    return bool(np.abs(audio).max() > 0.1)  # a loud moment; here goes openWakeWord, Porcupine …


def main(device: str | None = None) -> None:
    with StreamingAudioManager(AudioDeviceManager(AudioConfig(sample_rate=16000, device=device))) as manager:
        if not manager.start_recording():
            sys.exit(str(manager.last_error))
        reader = manager.reader(0)
        try:
            for window in reader.blocks(PRE_ROLL + HOP, hop=HOP):
                if is_wake_word(window.array[-HOP:]):
                    begin = reader.position  # what was only looked at is read now
                    command = reader.read(PRE_ROLL + COMMAND, timeout=None)
                    print(f"awake: {len(command)} frames from frame {begin} on", flush=True)
        except BufferClosed:
            pass  # the recording is over


if __name__ == "__main__":
    main(*sys.argv[1:])
