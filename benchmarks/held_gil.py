"""Frames lost while another thread holds the GIL: pcmring, a Python callback into a queue, rtmixer.

    python benchmarks/held_gil.py [--seconds 20] [--latency high]

For each row one process records with all three at once, each from a virtual microphone of its own, while the main
thread holds the GIL (usleep through ctypes.PyDLL) again and again, with 0.1 s between. The microphone's frame k is
the value k + 1 whether or not anybody fetched it, so the audio itself tells what is missing: the last value less the
frames there are. The row's last column is what pcmring's own ledger says, an estimate by the clock.

Does not show: a real sound card's buffer, other hosts than ALSA, or a machine whose audio threads have real-time
priority: here they compete with everything else, so a machine that stands still for longer than the device's buffer
(--latency: what PortAudio is asked for) makes C callbacks lose frames, too, whoever holds the GIL.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import queue
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from setting import machine, use_virtual_microphones

from pcmring import AudioConfig, AudioDeviceManager, StreamingAudioManager

RATES = (16000, 48000)
BLOCKS = (64, 256, 1024)
HOLDS_S = (0.1, 0.5, 2.0)
PAUSE_S = 0.1
MOST_SECONDS = 24  # with the start and the last hold less than the 31 s that the ring has
DEADLINE_S = 30.0


def missing(audio: np.ndarray) -> tuple[int, int]:
    """(frames lost, frames there were), from the first the microphone ever gave to the last one recorded."""
    values = np.rint(audio.astype(np.float64) * 2**23).astype(np.int64)
    assert np.all(np.diff(values) > 0), "a frame is there twice, or not in order"
    return int(values[-1]) - len(values), int(values[-1])


class Ours:
    def __init__(self, rate: int, block: int, latency: Any, stack: ExitStack) -> None:
        config = AudioConfig(sample_rate=rate, block_frames=block, latency=latency, device="mic-pcmring")
        self._manager = stack.enter_context(StreamingAudioManager(AudioDeviceManager(config)))
        self._manager.set_buffer_size(30)
        self.errors: list[str] = []
        self._manager.on_stream_error = lambda error: self.errors.append(str(error))
        assert self._manager.start_recording(), self._manager.last_error
        assert self._manager.wait_ready(DEADLINE_S)

    def frames(self) -> int:
        assert self._manager.buffer is not None
        return self._manager.buffer.frames_written

    def audio(self) -> np.ndarray:
        self._manager.stop_recording()
        self.ledger: int = sum(self._manager.get_buffer_info()["frames_lost"].values())
        return self._manager.get_latest_audio()[:, 0]


class PythonCallback:
    """What W4L does."""

    def __init__(self, rate: int, block: int, latency: Any, stack: ExitStack) -> None:
        import sounddevice

        self._blocks: queue.Queue[np.ndarray] = queue.Queue()
        self._stream = stack.enter_context(
            sounddevice.InputStream(
                device="mic-queue", samplerate=rate, blocksize=block, channels=1, latency=latency, callback=self._put
            )
        )

    def _put(self, data: np.ndarray, frames: int, when: Any, status: Any) -> None:
        self._blocks.put(data.copy())

    def frames(self) -> int:
        return sum(map(len, list(self._blocks.queue)))

    def audio(self) -> np.ndarray:
        self._stream.stop()
        return np.concatenate(list(self._blocks.queue))[:, 0]


class RtMixer:
    def __init__(self, rate: int, block: int, latency: Any, stack: ExitStack) -> None:
        import rtmixer

        self._ring = rtmixer.RingBuffer(4, 1 << (32 * rate).bit_length())
        self._stream = rtmixer.Recorder(
            device="mic-rtmixer", samplerate=rate, blocksize=block, channels=1, latency=latency
        )
        self._stream.record_ringbuffer(self._ring)  # before the start, so that no frame goes by
        stack.enter_context(self._stream)

    def frames(self) -> int:
        return int(self._ring.read_available)

    def audio(self) -> np.ndarray:
        self._stream.stop()
        audio = np.empty(self.frames(), np.float32)
        self._ring.readinto(audio)
        return audio


CONTENDERS = {"queue": PythonCallback, "rtmixer": RtMixer, "pcmring": Ours}


def measure(rate: int, block: int, hold_s: float, seconds: float, latency: Any, names: list[str]) -> dict[str, Any]:
    """One row, in a process of its own."""
    # sounddevice sets the shape of arrays, which NumPy 2.5 complains about
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="sounddevice")
    libc = ctypes.PyDLL(None)
    with ExitStack() as stack:
        streams = {name: CONTENDERS[name](rate, block, latency, stack) for name in names}
        deadline = time.monotonic() + DEADLINE_S
        while not all(stream.frames() for stream in streams.values()):
            assert time.monotonic() < deadline, "no audio"
            time.sleep(0.01)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            libc.usleep(int(hold_s * 1e6))
            time.sleep(PAUSE_S)
        # what was lost in the last hold is seen by the frames after it
        before = {name: stream.frames() for name, stream in streams.items()}
        while any(stream.frames() < before[name] + 2 * block for name, stream in streams.items()):
            assert time.monotonic() < end + DEADLINE_S, "no more audio"
            time.sleep(0.01)
        found: dict[str, Any] = {name: missing(stream.audio()) for name, stream in streams.items()}
        ours = streams["pcmring"]
        return found | {"ledger": ours.ledger, "errors": ours.errors}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=20, help=f"of each row, at most {MOST_SECONDS}")
    options.add_argument("--latency", default="high", help='"high" (sounddevice\'s default), "low" or seconds')
    options.add_argument("--row", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.row:
        print(json.dumps(measure(**json.loads(given.row))))
        return 0
    if not 0 < given.seconds <= MOST_SECONDS:
        options.error(f"--seconds must be more than 0 and at most {MOST_SECONDS}")
    latency = given.latency if given.latency in ("high", "low") else float(given.latency)

    names = list(CONTENDERS)
    try:
        import rtmixer  # noqa: F401
    except (ImportError, OSError) as error:
        names.remove("rtmixer")
        print(f"rtmixer is not measured: {error}")
    print(machine("sounddevice", *(["rtmixer"] if "rtmixer" in names else [])))
    print(f"{given.seconds:g} s a row, device latency {latency}; frames lost of those there were\n")
    print("| rate | block | GIL held | Python callback | rtmixer | pcmring | pcmring's ledger |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    total = 0
    with tempfile.TemporaryDirectory(prefix="pcmring-held-gil-") as folder:
        for rate in RATES:
            use_virtual_microphones(Path(folder), {f"mic-{name}": {"rate": rate} for name in CONTENDERS})
            for block in BLOCKS:
                for hold_s in HOLDS_S:
                    row = {"rate": rate, "block": block, "hold_s": hold_s, "seconds": given.seconds}
                    row |= {"latency": latency, "names": names}
                    command = [sys.executable, __file__, "--row", json.dumps(row)]
                    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
                    if done.returncode:
                        sys.exit(f"{row}: exit code {done.returncode}\n{done.stderr}")
                    found = json.loads(done.stdout.splitlines()[-1])
                    cells = [
                        f"{found[name][0]:,} ({100 * found[name][0] / found[name][1]:.2f} %)" if name in found else "–"
                        for name in CONTENDERS
                    ]
                    total += found["pcmring"][0]
                    cells += [f"{found['ledger']:,}"]
                    print(f"| {rate} | {block} | {hold_s:g} s | {' | '.join(cells)} |", flush=True)
                    for error in found["errors"]:
                        print(f"\npcmring reported: {error}\n")
    print(f"\nframes lost by pcmring in all: {total:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
