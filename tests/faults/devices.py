"""Devices that misbehave: a software device that calls the real capture callback, a microphone, real PortAudio."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from faults.account import ReaderAccount, check_ledger, require, settle
from faults.campaign import Try, case, tests_environment
from faults.positions import frames
from microphones import Devices, Microphone, ramp
from native_support import CALLBACK, Times, unavailable
from patience import DEADLINE_S, until
from pcmring import AudioBuffer, CaptureCallback, Gap, StreamingAudioManager
from pulse_server import client_environment
from virtual_mic import call, virtual_mics

RATE = 16_000
CLOCKS = ("good", "zero", "constant", "backwards", "jumping", "jitter", "mad")
INPUT_UNDERFLOW, INPUT_OVERFLOW = 1, 2
NO_FLAGS_OF_INPUT = 4 | 8 | 16


# ---- a software device -----------------------------------------------------------------------------------------


@dataclass
class SoftwareDevice:
    """Calls a capture callback as PortAudio does, with any timing, flags and clock.

    Attributes
    ----------
    serial : int
        Of the next frame the device captures.
    skipped : list of (int, int)
        What it lost before it gave it to anybody: (frames stored so far, frames), of each overflow.
    """

    capture: CaptureCallback
    channels: int
    clock: str
    own: random.Random
    serial: int = 0
    skipped: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._function = CALLBACK(self.capture.address)

    def _adc_s(self) -> float:
        true_s = 1000.0 + self.serial / RATE
        return {
            "good": true_s,
            "zero": 0.0,
            "constant": 1000.0,
            "backwards": 1e6 - self.serial / RATE,
            "jumping": true_s + 3600.0 * (self.serial // 20_000 % 5),
            "jitter": true_s + self.own.uniform(-0.02, 0.02),
            "mad": self.own.choice([math.nan, math.inf, -math.inf, -1.0, 1e308, 5e-324, true_s]),
        }[self.clock]

    def deliver(self, count: int, flags: int = 0) -> None:
        data = frames(self.serial, count, self.channels, self.capture.dtype.name)
        times = Times(self._adc_s(), self._adc_s() + 0.01, 0.0)
        result = self._function(data.ctypes.data, None, count, times, flags, self.capture.userdata)
        require(result == 0, "the callback ended its stream")
        self.serial += count

    def deliver_nothing(self) -> None:
        """A call without frames, or without a buffer, or without times."""
        data = np.zeros(10, np.int32)
        pointer, count = self.own.choice([(data.ctypes.data, 0), (None, 0), (None, 160)])
        times = self.own.choice([None, Times(0.0, 0.0, 0.0)])
        require(self._function(pointer, None, count, times, 0, self.capture.userdata) == 0, "the stream has ended")

    def overflow(self, lost: int, count: int) -> None:
        self.skipped.append((self.capture.buffer.frames_written, lost))
        self.serial += lost
        self.deliver(count, INPUT_OVERFLOW | self.own.choice([0, INPUT_UNDERFLOW, NO_FLAGS_OF_INPUT]))


@case(tiny=14, short=280, long=100_000)
def calls_late_early_bursty_empty_overlong_and_flagged(attempt: Try) -> None:
    """With a believable clock the ledger has each overflow at its place with its length, to the frame."""
    own = attempt.random
    clock = CLOCKS[attempt.number % len(CLOCKS)]
    channels, capacity = own.choice([1, 2, 7]), own.choice([100, 997, 20_011])
    guarded = own.random() < 0.5
    with AudioBuffer(capacity, channels, "int32", samplerate=RATE, policy="drop") as buffer:
        account = ReaderAccount(buffer.reader(guard=guarded))
        dropped: list[tuple[int, int]] = []
        with CaptureCallback(buffer) as capture:
            device = SoftwareDevice(capture, channels, clock, own)
            for _ in range(100):
                kind = own.random()
                count = own.choice([1, 7, 160, 160, 160, 1024, capacity, capacity + 13, 3 * capacity])
                written, serial = buffer.frames_written, device.serial
                if kind < 0.05:
                    time.sleep(own.random() * 0.003)  # late; else early: nobody waits between the calls
                elif kind < 0.15:
                    device.deliver_nothing()
                    continue
                elif kind < 0.4:
                    account.add(account.reader.read(own.randint(0, 2 * capacity)))
                    continue
                if kind > 0.9 and serial:
                    device.overflow(own.randint(1, 1500), count)  # of 0.1 s, by which arrivals differ
                else:
                    device.deliver(count, own.choice([0, INPUT_UNDERFLOW]))
                if (refused := count - (buffer.frames_written - written)) > 0:
                    dropped.append((buffer.frames_written, refused))
            account.add(account.reader.read(capacity))
            require(capture.overflows == len(device.skipped), capture.overflows, "overflows counted")
        flagged = buffer.statistics().frames_lost["device_overflow"]
        truth = sorted(device.skipped + dropped)
        if clock == "good":
            require(flagged == sum(lost for _, lost in device.skipped), "the ledger says", flagged)
            settle(buffer, device.serial, [account], attempt.counts)
        else:  # the lengths are guesses; everything else is as exact
            account.settle()
            gaps = [Gap(position, lost, "", True) for position, lost in truth]
            check_ledger(account.runs, gaps, sum(gap.frames for gap in gaps))
            missing = sum(lost for _, lost in truth)
            require(buffer.frames_written + missing == device.serial, "frames were made up or swallowed")
            attempt.counts.update(offered=device.serial, missing=missing, delivered=account.delivered)
            attempt.counts["lost"] += account.reader.lost
        for position in (buffer.oldest, buffer.frames_written - 1, buffer.frames_written):
            require(math.isfinite(buffer.time_of(position)), "no finite time at", position)
    attempt.counts[f"with a {clock} clock"] += 1


@case(short=2, long=100)
def an_overflow_while_the_device_clock_jumps_an_hour(attempt: Try) -> None:
    """No more can be missing than time has passed."""
    with AudioBuffer(1000, dtype="int32", samplerate=RATE) as buffer, CaptureCallback(buffer) as capture:
        function, data = CALLBACK(capture.address), np.zeros(160, np.int32)
        begin = time.monotonic()
        for adc_s, flags in ((1000.0, 0), (4600.0 + attempt.random.random(), INPUT_OVERFLOW)):
            function(data.ctypes.data, None, 160, Times(adc_s, adc_s, 0.0), flags, capture.userdata)
        possible = (time.monotonic() - begin + 0.1) * RATE
        lost = buffer.statistics().frames_lost["device_overflow"]
        require(lost <= possible, lost, "frames told to be missing of", round(possible))


@case(tiny=4, short=40, long=4_000)
def samples_of_any_bits(attempt: Try) -> None:
    """NaN, infinities, denormals and noise: floats stay bit for bit, integers saturate, NaN becomes 0."""
    own = np.random.default_rng(attempt.random.randrange(2**32))
    data = own.integers(0, 2**32, (1000, 2), np.uint32).view(np.float32)
    special = [np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 0.0, -0.0, 3e38]
    data[own.integers(0, 1000, 200), 0] = own.choice(np.array(special, np.float32), 200)
    data[own.integers(0, 1000, 300), 1] = own.uniform(-1.1, 1.1, 300).astype(np.float32)
    for dtype in ("float32", "int16"):
        with AudioBuffer(1000, 2, dtype) as buffer:
            with CaptureCallback(buffer, "float32") as capture:
                CALLBACK(capture.address)(data.ctypes.data, None, 1000, None, 0, capture.userdata)
            got = buffer.read(1000)
        if dtype == "float32":
            require(got.tobytes() == data.tobytes(), "bits have changed")
        else:
            scaled = np.rint(np.nan_to_num(data.astype(np.float64), nan=0.0, posinf=2.0, neginf=-2.0) * 2**15)
            require(np.array_equal(got, np.clip(scaled, -(2**15), 2**15 - 1)), "other integers than expected")
    attempt.counts.update(offered=2000, missing=0, delivered=2000, lost=0)


# ---- a microphone under a manager --------------------------------------------------------------------------------


class ClockMicrophone(Microphone):
    """Its frame at second s of the clock is `s * 16000`, whether or not anybody fetched it; its channels may change."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.plan: list[int] = []  # channels at the next openings
        super().__init__()

    def open(self) -> None:
        super().open()
        if self.plan:
            self._channels = self.plan.pop(0)

    def _blocks(self) -> Iterator[np.ndarray]:
        return _from_now_on(self.plugged, round((time.monotonic() - self.began) * RATE), self._channels)


def _from_now_on(plugged, first: int, channels: int) -> Iterator[np.ndarray]:
    while plugged.is_set():
        yield np.repeat(ramp(first, 160), channels, axis=1)
        first += 160
    raise OSError("unplugged")


#: How far a gap by the clock may be from the truth.
CLOCK_FRAMES = RATE // 2


@case(short=6, long=600)
def unplugged_and_back_with_other_channels(attempt: Try) -> None:
    """What has other channels than the ring is not taken; what then fits is; the gap is as long as it was."""
    own, microphone = attempt.random, ClockMicrophone()
    with StreamingAudioManager(Devices(lambda: microphone)) as manager:
        require(manager.start_recording(), manager.last_error)
        require(manager.wait_ready(DEADLINE_S), "no audio")
        account = ReaderAccount(manager.reader(0))
        account.add(account.reader.read(own.randint(1, 1600), DEADLINE_S))
        times = own.randint(1, 3)
        for _ in range(times):
            microphone.plan = [own.choice([2, 3, 8]) for _ in range(own.randint(0, 3))] + [1]
            microphone.plugged.clear()
            until(lambda: manager.state == "recovering")
            time.sleep(own.random() * 0.2)
            microphone.plugged.set()
            until(lambda: manager.state == "capturing")
            account.add(account.reader.read(own.randint(1, 1600), DEADLINE_S))
        manager.stop_recording()
        written = manager.buffer.frames_written
        while account.reader.position < written:
            account.add(account.reader.read(written - account.reader.position))
        account.settle()
        lost = manager.get_buffer_info()["frames_lost"]
        missing = account.runs[-1][1] - account.runs[-1][0] - (account.runs[0][1] - account.runs[0][0])
        require(manager.get_buffer_info()["gaps"] == len(account.runs) - 1 == times, account.runs)
        require(abs(lost["reopened"] - missing) < CLOCK_FRAMES * times, lost, "in the ledger, missing", missing)
        attempt.counts.update(offered=written + missing, missing=missing, delivered=account.delivered)
        attempt.counts["lost"] += account.reader.lost


_STOPPED = """
import json, sys, time
from faults.account import ReaderAccount
from faults.devices import ClockMicrophone
from microphones import Devices
from pcmring import BufferClosed, StreamingAudioManager
with StreamingAudioManager(Devices(ClockMicrophone)) as manager:
    errors = []
    manager.on_stream_error = lambda error: errors.append(str(error))
    assert manager.start_recording() and manager.wait_ready(30)
    account = ReaderAccount(manager.reader(0))
    print("ready", flush=True)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        account.add(account.reader.read(800, 1.0))
    manager.stop_recording()
    try:
        while True:
            account.add(account.reader.read(800, 1.0))
    except BufferClosed:
        pass
    account.settle()
    print(json.dumps([errors, account.runs, manager.buffer.frames_written, account.delivered, account.reader.lost]))
"""


@case(short=3, long=100, limit_s=90)
def a_process_that_is_stopped_and_goes_on(attempt: Try) -> None:
    """SIGSTOP, for 10 s in the long form. What was due meanwhile comes at once; the device is not taken for gone."""
    own, longest_s = attempt.random, attempt.by_form(0.5, 2.0, 10.0)
    times = attempt.number % 3 + 1
    away_s = longest_s if times == 1 else own.uniform(0.1, longest_s)
    child = subprocess.Popen(
        [sys.executable, "-c", _STOPPED, str(away_s + 1.0)],
        env=tests_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    require(child.stdout.readline() == "ready\n", "the child did not begin")
    for _ in range(times):
        time.sleep(own.random() * 0.1)
        child.send_signal(signal.SIGSTOP)
        time.sleep(away_s / times)
        child.send_signal(signal.SIGCONT)
    output, complaints = child.communicate(timeout=DEADLINE_S)
    require(child.returncode == 0, complaints[-2000:])
    errors, runs, written, delivered, lost = json.loads(output.splitlines()[-1])
    require(errors == [] and len({serial - position for position, serial, _ in runs}) == 1, errors, runs)
    require(delivered + lost == written, delivered, lost, written)
    require(lost == 0 or away_s > 4.0, lost, "frames lost within what the ring holds")
    attempt.counts.update(offered=written, missing=0, delivered=delivered, lost=lost)


# ---- real PortAudio ----------------------------------------------------------------------------------------------


@case(tiny=0, short=2, long=100, limit_s=90)
def portaudio_in_a_process_that_is_stopped(attempt: Try) -> None:
    stop_s = attempt.random.uniform(0.2, attempt.by_form(0.5, 2.0, 10.0))
    got = virtual_mics().call("manager_is_stopped_by_a_signal", mics={"default": {}}, stop_s=stop_s)
    require(got == {"errors": [], "state": "capturing"}, got)


@case(tiny=0, short=4, long=200, limit_s=90)
def a_sound_server_that_is_killed_hangs_or_loses_its_microphone(attempt: Try) -> None:
    """PulseAudio, reached through PortAudio and ALSA: told once, reopened, the gap in the ledger."""
    for program in ("pulseaudio", "pactl", "setpriv"):
        if shutil.which(program) is None:
            unavailable(f"{program} is not installed")
    how = ("killed", "removed", "hangs", "suspended")[attempt.number % 4]
    with tempfile.TemporaryDirectory(prefix="pcmring-pulse-") as folder:
        os.chmod(folder, 0o700)
        got = call("pulse_recovers", {"folder": folder, "how": how}, 60.0, **client_environment(Path(folder)))
    missing = sum(frames for _, frames in got["jumps"])
    told = sum(frames for _, frames, _ in got["gaps"])
    require(len(got["errors"]) == got["recovered"] == 1 and got["kept"], got)
    require(abs(missing - told) < CLOCK_FRAMES, "missing", missing, "told", got["gaps"])
    require(got["delivered_and_lost"] == got["read_to"] == got["written"] == got["captured"], got)
    attempt.counts.update(offered=got["written"] + missing, missing=missing, delivered=got["captured"], lost=0)
    attempt.counts[f"server or microphone {how}"] += 1
