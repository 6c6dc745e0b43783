"""AudioBufferManager: both modes, and the change between them in the middle of a recording; and the names.

Numbers like D32 are those of defects of W4L's own audio system, which this design exists to avoid.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from microphones import Devices, Microphone, ramp
from patience import DEADLINE_S, until
from pcmring.memory_manager import MemoryMonitor, ResourceManager
from virtual_mic import need

need("soundfile", "soxr", "psutil", "platformdirs")
import soundfile  # noqa: E402

from pcmring.buffer_manager import AudioBufferManager, RecordingError  # noqa: E402


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Temporary recordings do not lie in the user's own folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Path(ResourceManager().directory)


@pytest.fixture
def microphone() -> Microphone:
    return Microphone(speed=5)


@pytest.fixture
def manager(microphone) -> Iterator[AudioBufferManager]:
    with AudioBufferManager(Devices(lambda: microphone, buffer_size_seconds=30), subtype="FLOAT") as manager:
        yield manager


def more(microphone: Microphone, frames: int = 1600) -> None:
    before = microphone.counters.frames
    until(lambda: microphone.counters.frames >= before + frames)


def frames_of(path: str | None) -> np.ndarray:
    assert path is not None
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


def test_it_streams_at_first_and_makes_no_file(manager, microphone, folder):
    assert manager.is_streaming
    assert manager.start_recording()
    assert manager.start_recording()
    more(microphone)
    manager.stop_recording()
    np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, microphone.counters.frames))
    assert manager.get_audio_file() is None
    assert not folder.exists() or not list(folder.glob("*.wav"))


def test_in_file_mode_the_file_has_every_frame_from_the_first_to_the_last(manager, microphone):
    """D32: and the newest audio is at hand as well."""
    manager.set_capture_mode(False)
    assert manager.get_buffer_info()["capture_mode"] == "file"
    assert manager.start_recording()
    assert manager.start_recording()
    more(microphone)
    manager.stop_recording()
    whole = ramp(0, microphone.counters.frames)
    np.testing.assert_array_equal(frames_of(manager.get_audio_file()), whole)
    np.testing.assert_array_equal(manager.get_latest_audio(), whole)
    assert len(manager.get_buffer_info()["frames_lost"]) == 4
    assert not any(manager.get_buffer_info()["frames_lost"].values())


def test_changing_the_mode_while_recording_loses_no_frame_and_starts_no_new_recording(manager, microphone):
    manager.start_recording()
    got = []
    manager.on_audio_data = got.append
    ring = manager.buffer
    files, lengths = [], []
    for _ in range(3):
        more(microphone)
        before = ring.frames_written
        manager.set_capture_mode(False)
        after = ring.frames_written
        assert manager.start_recording()
        more(microphone)
        files.append(manager.get_audio_file())
        manager.set_capture_mode(True)
        lengths.append((before, after, ring.frames_written))
        assert manager.buffer is ring
    more(microphone)
    manager.stop_recording()
    captured = microphone.counters.frames
    np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, captured)[-480_000:])
    assert len(set(files)) == 3
    for path, (before, after, end) in zip(files, lengths, strict=True):
        audio = frames_of(path)
        first = round(float(audio[0, 0]) * 2**23) - 1
        assert before <= first <= after  # the frame that came next
        np.testing.assert_array_equal(audio, ramp(first, len(audio)))
        assert first + len(audio) <= end
    delivered = np.concatenate(got)
    np.testing.assert_array_equal(delivered, ramp(0, captured)[-len(delivered) :])


def test_a_file_under_way_at_the_stop_has_all_to_the_end(manager, microphone):
    manager.start_recording()
    more(microphone)
    manager.set_capture_mode(False)
    more(microphone)
    manager.stop_recording()
    audio = frames_of(manager.get_audio_file())
    np.testing.assert_array_equal(audio, ramp(0, microphone.counters.frames)[-len(audio) :])


def test_the_mode_may_be_changed_inside_a_callback(manager, microphone):
    done = threading.Event()

    def change(audio):
        if not done.is_set():
            manager.set_capture_mode(False)
            manager.set_capture_mode(True)
            manager.set_capture_mode(False)
            done.set()

    manager.on_audio_data = change
    manager.start_recording()
    assert done.wait(DEADLINE_S)
    more(microphone)
    manager.stop_recording()
    assert len(frames_of(manager.get_audio_file())) >= 1600


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mode_that_is_set_while_the_recording_starts_counts_for_it(microphone, streaming):
    def make() -> Microphone:
        manager.set_capture_mode(streaming)
        return microphone

    with AudioBufferManager(Devices(make), subtype="FLOAT") as manager:
        manager.set_capture_mode(not streaming)
        assert manager.start_recording()
        more(microphone)
        manager.stop_recording()
        path = manager.get_audio_file()
        assert (path is None) is streaming
        if path is not None:
            np.testing.assert_array_equal(frames_of(path), ramp(0, microphone.counters.frames))


def test_where_no_file_can_be_made_the_mode_stays_and_the_recording_goes_on(manager, microphone, folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    manager.start_recording()
    more(microphone)
    with pytest.raises(RecordingError) as failure:  # kept, as a program may keep it
        manager.set_capture_mode(False)
    assert manager.is_streaming
    written = manager.buffer.frames_written
    assert manager.buffer.fill >= written, f"a guard is left, held by {failure.value!r}"
    more(microphone)
    manager.stop_recording()
    np.testing.assert_array_equal(manager.get_latest_audio(), ramp(0, microphone.counters.frames))


def test_a_lost_device_is_a_gap_in_the_file_too(microphone):
    with AudioBufferManager(Devices(lambda: microphone), subtype="FLOAT") as manager:
        manager.set_capture_mode(False)
        recovered = threading.Event()
        manager.on_stream_recovered = recovered.set
        manager.start_recording()
        more(microphone)
        microphone.plugged.clear()
        until(lambda: manager.state == "recovering")
        before = manager.buffer.frames_written
        microphone.plugged.set()
        assert recovered.wait(DEADLINE_S)
        more(microphone)
        manager.stop_recording()
        audio = frames_of(manager.get_audio_file())
        np.testing.assert_array_equal(audio[:before], ramp(0, before))
        np.testing.assert_array_equal(audio[before:], ramp(0, len(audio) - before))
        assert manager.get_buffer_info()["file_gaps"] == 1


@pytest.mark.parametrize("mode", [0, "file", None])
def test_a_mode_that_is_no_bool_is_refused(manager, mode):
    with pytest.raises(TypeError, match="streaming must be True"):
        manager.set_capture_mode(mode)


def test_cleaning_up_keeps_another_managers_file(tmp_path):
    """D15, D16: nor does it force a cleanup of the monitor both share."""
    monitor = MemoryMonitor()
    one, other = (AudioBufferManager(Devices(lambda: Microphone(speed=5)), monitor) for _ in range(2))
    for manager in (one, other):
        manager.set_capture_mode(False)
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
    other.stop_recording()
    one.cleanup()
    monitor.cleanup(force=True)
    assert len(frames_of(other.get_audio_file()))
    other.cleanup()


def test_both_import_paths_give_the_same_classes():
    import audio.buffer_manager
    import pcmring
    import pcmring.buffer_manager

    for name in ("AudioBuffer", "AudioBufferManager", "FileBasedAudioManager", "StreamingAudioManager"):
        assert getattr(audio.buffer_manager, name) is getattr(pcmring.buffer_manager, name) is getattr(pcmring, name)
