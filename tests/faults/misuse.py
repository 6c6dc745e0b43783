"""Several threads where one belongs, and a close in the middle of everything: refused or done, never a crash."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np

from conftest import Crew
from faults.account import Unaccounted, require
from faults.campaign import TESTS, Try, case
from faults.positions import frames, serials
from faults.python_rude import own_folders
from microphones import Devices, Microphone
from native_support import python_environment
from pcmring import AudioBuffer, BufferClosed, CaptureCallback, FileBasedAudioManager, FramesLost

#: What a call at the wrong moment, or beside another, may raise.
REFUSALS = (RuntimeError, BufferClosed, FramesLost, ValueError, LookupError)


@case(tiny=0, short=1, long=50, limit_s=300)
def the_tests_of_threads_with_another_seed(attempt: Try) -> None:
    """tests/test_threads.py: two writers, shared readers, close during any call."""
    environment = python_environment() | {"PCMRING_TEST_SEED": str(attempt.random.randrange(2**32))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_threads.py"]
    words = ["-k", "two_writers or shared or close or looking"] if attempt.form == "short" else []
    done = subprocess.run([*command, *words], cwd=TESTS, env=environment, capture_output=True, text=True)
    require(done.returncode == 0, done.stdout[-3000:])
    attempt.counts["tests"] += done.stdout.count(".")


@case(tiny=3, short=30, long=3_000)
def threads_that_call_anything_on_one_ring(attempt: Try) -> None:
    """Of every writer what was accepted is there; what a shared reader gave is in order, once; then all is closed."""
    own, crew = attempt.random, Crew()
    policy = ("overwrite", "drop", "block")[attempt.number % 3]
    buffer = AudioBuffer(own.choice([64, 1_000, 40_009]), 2, "int32", samplerate=16_000, policy=policy)
    shared = buffer.reader(guard=policy != "overwrite")
    accepted, delivered = [0] * 2, [0] * 2
    is_over = threading.Event()
    end = time.monotonic() + attempt.by_form(0.1, 0.3, 1.0)

    def write(me: int, own: random.Random) -> None:
        while not is_over.is_set():
            with suppress(*REFUSALS):
                accepted[me] += buffer.write(frames(0, own.randint(0, 50), 2), timeout=0.01)

    def read(me: int, own: random.Random) -> None:
        while not is_over.is_set():
            with suppress(RuntimeError, BufferClosed):
                got = shared.read(own.randint(0, 40), timeout=0.005)
                delivered[me] += len(got)
                require(not len(got) or (np.diff(got, axis=1) == 12_289).all(), "torn frames")

    def call(own: random.Random) -> None:
        kept: list[Any] = []
        while not is_over.is_set():
            with suppress(*REFUSALS):
                position = max(buffer.oldest, buffer.frames_written - own.randint(0, 60))
                one = own.randrange(9)
                if one == 0:
                    kept.append(buffer.reader(own.choice(["now", "oldest", position])))
                elif one == 1 and kept:
                    kept.pop(own.randrange(len(kept))).close()
                elif one == 2 and kept:
                    own.choice(kept).read(own.randint(0, 100), timeout=0.001)
                elif one == 3:
                    buffer.get_latest(own.randint(0, 60))
                elif one == 4:
                    buffer.view(position, buffer.frames_written).array.sum()
                elif one == 5:
                    buffer.statistics(), buffer.gaps(), buffer.losses(), repr(buffer), repr(shared)
                elif one == 6:
                    float(buffer.time_of(position))
                elif one == 7:
                    CaptureCallback(buffer).close()
                else:
                    buffer.clear()

    for me in range(2):
        crew.start(write, me, random.Random(own.random()))
        crew.start(read, me, random.Random(own.random()))
        crew.start(call, random.Random(own.random()))
    is_over.wait(max(0.0, end - time.monotonic()))
    if own.random() < 0.5:
        buffer.close()
    is_over.set()
    crew.join(60.0)
    require(buffer.frames_written == sum(accepted), buffer, "accepted", accepted)
    require(shared.delivered == sum(delivered), shared, "delivered", delivered)
    require(shared.delivered + shared.lost == shared.position - shared.start, shared)
    buffer.close()
    attempt.counts.update(offered=sum(accepted), missing=0, delivered=sum(delivered), lost=shared.lost)


@case(short=8, long=400)
def threads_that_call_anything_on_one_manager(attempt: Try) -> None:
    """At the end it can still record, and every file it made is valid."""
    own, crew = attempt.random, Crew()
    own_folders(attempt.folder)
    is_over = threading.Event()
    manager = FileBasedAudioManager(Devices(lambda: Microphone(speed=5)), subtype="FLOAT")

    def call(own: random.Random) -> None:
        calls = [
            manager.start_recording,
            manager.stop_recording,
            lambda: manager.get_latest_audio(own.random()),
            manager.get_buffer_info,
            lambda: manager.set_buffer_size(own.randint(1, 30)),
            lambda: manager.reader(0).read(100, 0.01),
            lambda: manager.wait_ready(0.01),
            lambda: manager.memory_monitor.cleanup(force=True),
            manager.release_audio_file,
            lambda: manager.save_as(attempt.folder / f"{own.randrange(10**9)}.wav"),
            manager.file_gaps,
            manager.recover,
            lambda: manager.buffer.close() if own.random() < 0.1 else None,
            lambda: manager.cleanup() if own.random() < 0.3 else None,
            lambda: setattr(manager, "on_audio_data", own.choice([None, lambda audio: None])),
        ]
        while not is_over.is_set():
            with suppress(*REFUSALS, FileNotFoundError, AttributeError):
                own.choice(calls)()
                attempt.counts["calls"] += 1

    for _ in range(4):
        crew.start(call, random.Random(own.random()))
    is_over.wait(attempt.by_form(0.3, 1.0, 5.0))
    is_over.set()
    crew.join(60.0)
    manager.stop_recording()
    require(manager.start_recording() and manager.wait_ready(30.0), manager.last_error)
    manager.cleanup()
    import soundfile

    for path in [*attempt.folder.rglob("*.wav")]:
        if os.path.getsize(path):
            audio, _ = soundfile.read(path, dtype="float32", always_2d=True)
            with suppress(IndexError):
                found = serials(audio, 0)
                if len(found) and not (found[0] == 0 and (np.diff(found) == 1).all()):
                    raise Unaccounted(f"{path} has a hole")
            attempt.counts["files"] += 1
