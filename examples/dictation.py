"""W4L's dictation: hold a key, speak, let go, and the words are typed: python dictation.py MODEL_FOLDER [DEVICE].

Return stands for letting go. Audio has what the model leaves of the memory, and the monitor sees that it stays so.
"""

import sys
import threading

from pcmring import AudioBufferManager, AudioConfig, AudioDeviceManager, W4LMemoryManager
from pcmring.pipeline import Captioner, WhisperTranscriber


def main(model: str, device: str | None = None) -> None:
    memory = W4LMemoryManager()
    with memory.loading("tiny-int8"):  # measures what the model takes
        whisper = WhisperTranscriber(model)
    devices = AudioDeviceManager(AudioConfig(device=device))
    with memory.memory_monitor, AudioBufferManager(devices, memory.memory_monitor) as manager:
        manager.set_buffer_size(memory.get_optimal_buffer_seconds())
        manager.on_stream_error = lambda error: print(error, file=sys.stderr)
        if not manager.start_recording():
            sys.exit(1)
        reader = manager.reader(0)
        threading.Thread(target=lambda: (sys.stdin.readline(), manager.stop_recording()), daemon=True).start()
        with Captioner(reader, whisper, draft_every_s=None) as captions:
            for caption in captions:
                print(caption.text, flush=True)
        info = manager.get_buffer_info()
        print(f"{info['memory_usage_mb']:.0f} of {memory.memory_monitor.max_memory_mb:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
