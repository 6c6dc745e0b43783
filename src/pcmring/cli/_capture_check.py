"""Whether audio comes: `pcmring doctor` records for a moment."""

from __future__ import annotations

import time

import numpy as np

from pcmring._late import MissingPackage
from pcmring._portaudio import inputs, load_sounddevice
from pcmring._streaming import StreamingAudioManager
from pcmring.cli._common import make_device_manager
from pcmring.cli._machine import Check, fix_of

__all__ = ["check_capture", "check_portaudio"]

#: What a device gets to bring its first audio: Bluetooth takes seconds.
FIRST_AUDIO_S = 5.0
#: Listened to for a level.
LISTEN_S = 0.3


def check_portaudio() -> Check:
    """PortAudio, its host APIs and the inputs it sees."""
    try:
        sounddevice = load_sounddevice()
        names = [device.name for device in inputs()]
    except MissingPackage as missing:
        return Check("PortAudio", "missing", str(missing), fix_of(missing))
    hostapis = ", ".join(api["name"] for api in sounddevice.query_hostapis()) or "none"
    portaudio = sounddevice.get_portaudio_version()[1].partition(",")[0]
    found = f"{portaudio}; host APIs: {hostapis}; inputs: {', '.join(names) or 'none'}"
    return Check("PortAudio", "ok" if names else "missing", found)


def check_capture(portaudio: Check) -> Check:
    """Record for a moment from what is selected."""
    name = "capture"
    try:
        manager = StreamingAudioManager(make_device_manager())
        began = time.monotonic()
        is_started = manager.start_recording()
    except MissingPackage as missing:
        return Check(name, "missing", str(missing), fix_of(missing))
    with manager:
        if not is_started or not manager.wait_ready(FIRST_AUDIO_S):
            fix = "" if portaudio.state == "missing" else "pcmring devices   # then record with --device NAME"
            return Check(name, "missing", str(manager.last_error or f"no audio came in {FIRST_AUDIO_S:g} s"), fix)
        waited_s = time.monotonic() - began
        samplerate = manager.device_manager.config.sample_rate
        with manager.reader(0) as reader:
            audio = reader.read(round(LISTEN_S * samplerate), timeout=2 * LISTEN_S)
        device = manager.get_buffer_info()["device"]
    found = f"{device}: the first audio came after {waited_s:.2f} s"
    if not np.any(audio):
        return Check(name, "advice", f"{found}, but only digital silence: muted, or the system keeps it from programs")
    return Check(name, "ok", found)
