"""The usage of W4L's audio memory system, as its description shows it, fence by fence.

The description is not part of this project: without it beside the checkout (or at $PCMRING_SEED) these tests skip.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import pcmring
from virtual_mic import need

need("psutil", "soundfile", "platformdirs")

FOLDER = Path(os.environ.get("PCMRING_SEED", Path(__file__).resolve().parents[2] / "shared" / "seed"))
TEXTS = sorted(FOLDER.glob("*.txt"))

pytestmark = pytest.mark.skipif(not TEXTS, reason="W4L's description is not here; PCMRING_SEED names its folder")


def fences() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", TEXTS[0].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(params=["audio", "pcmring"])
def after_all_fences(request, tmp_path, monkeypatch):
    """The namespace in which all of them ran, in order, with what they take for granted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    devices = pcmring.AudioDeviceManager(pcmring.AudioConfig(device="tone"))
    names = {
        "device_manager": devices,
        "device_mgr": devices,
        "buffer_obj": np.zeros(256_000, np.float32),
        "np": np,
        "AudioBufferManager": importlib.import_module(f"{request.param}.buffer_manager").AudioBufferManager,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, text in enumerate(fences()):
            text = re.sub(r"^from audio\.", f"from {request.param}.", text, flags=re.MULTILINE)
            exec(compile(text, f"fence {number}", "exec"), names)
        yield names
        for name in ("streaming_mgr", "file_mgr", "buffer_mgr"):
            names[name].cleanup()
        names["monitor"].stop_monitoring()


def test_every_fence_runs_verbatim_and_means_what_it_says(after_all_fences):
    names = after_all_fences
    assert len(fences()) >= 16
    assert isinstance(names["usage"], float)
    assert names["usage"] > 0
    assert {"buffer_count", "total_memory_mb", "total_memory_bytes", "average_buffer_size_kb"} <= set(names["info"])
    assert names["tracker"].get_buffer_info()["buffer_count"] >= 2  # `buffer` and `buffer_obj`
    assert names["buffer"].get_latest(16000) == pytest.approx(names["audio_data"].astype(np.float32))
    assert names["streaming_mgr"].get_latest_audio() == pytest.approx(names["audio_data"].astype(np.float32))
    assert names["W4LMemoryManager"]().memory_monitor is None
    assert names["DEFAULT_MEMORY_LIMIT_MB"] == pcmring.DEFAULT_MEMORY_LIMIT_MB


def test_its_last_recording_is_in_a_file(after_all_fences):
    import soundfile

    manager = after_all_fences["buffer_mgr"]
    assert manager.is_recording
    assert manager.wait_ready(30.0)
    manager.stop_recording()
    audio, samplerate = soundfile.read(manager.get_audio_file())
    assert samplerate == 16000
    assert len(audio) > 0
    assert soundfile.info(manager.get_audio_file()).subtype == "PCM_16"
