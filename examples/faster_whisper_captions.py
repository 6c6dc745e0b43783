"""A faster-whisper model of your own, fed utterance by utterance: python faster_whisper_captions.py MODEL [DEVICE]."""

import sys

from faster_whisper import WhisperModel

from pcmring import AudioConfig, AudioDeviceManager, StreamingAudioManager
from pcmring.pipeline import Segmenter


def main(model_name: str, device: str | None = None) -> None:
    model = WhisperModel(model_name, device="cpu", compute_type="int8")
    with StreamingAudioManager(AudioDeviceManager(AudioConfig(device=device))) as manager:
        if not manager.start_recording():
            sys.exit(str(manager.last_error))
        for utterance in Segmenter(manager.reader(0)):  # ends with the recording
            segments, _ = model.transcribe(utterance.audio)
            print(f"{utterance.start / 16000:.1f} s:", *(segment.text.strip() for segment in segments), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
