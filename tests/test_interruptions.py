"""A Ctrl-C in the middle of a start: a stop ends what was begun, and the next start works."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from microphones import Devices, Microphone
from patience import DEADLINE_S, until
from pcmring import AudioBuffer, FileBasedAudioManager
from pcmring._session import CaptureSession
from virtual_mic import need

need("soundfile", "psutil")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name in ("TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))


def interrupt_after(monkeypatch, owner: type, name: str, when: Callable[[object], bool]) -> None:
    """A Ctrl-C comes when this method has done its work, and has not returned yet."""
    method = getattr(owner, name)

    def interrupted(self):
        method(self)
        if when(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pcmring")]


@pytest.mark.parametrize("moment", ["pcmring microphone", "pcmring watchdog", "pcmring recording", "the session runs"])
def test_a_start_that_was_interrupted_is_ended_by_a_stop(moment, monkeypatch):
    microphone = Microphone()
    with FileBasedAudioManager(Devices(lambda: microphone)) as manager:
        with monkeypatch.context() as patch:
            if moment == "the session runs":
                interrupt_after(patch, CaptureSession, "start", lambda session: True)
            else:
                interrupt_after(patch, threading.Thread, "start", lambda thread: thread.name == moment)
            with pytest.raises(KeyboardInterrupt):
                manager.start_recording()
        manager.stop_recording()
        until(lambda: not microphone.active and not ours())
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)


def test_a_source_whose_start_was_interrupted_writes_no_more(monkeypatch):
    with AudioBuffer(16_000, samplerate=16_000) as buffer, Microphone() as source:
        with monkeypatch.context() as patch:
            interrupt_after(patch, threading.Thread, "start", lambda thread: True)
            with pytest.raises(KeyboardInterrupt):
                source.start(buffer)
        until(lambda: not ours())
        source.start(buffer)
        assert source.active
