"""ResourceManager: what is deleted, what never is, and what a crash leaves behind. Real files, real processes."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcmring import MissingPackage, _tempfiles
from pcmring._tempfiles import TempFile
from pcmring.memory_manager import MemoryMonitor, ResourceManager
from virtual_mic import need

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and processes")
HEADER = b"RIFF" + bytes(40)  # as long as a WAV header
AUDIO = HEADER + bytes(1000)

Program = Callable[..., "subprocess.Popen[str]"]


class Owner:
    """Who holds a file."""


def finished(manager: ResourceManager, owner: object = None) -> TempFile:
    file = manager.create_temp_file(owner=owner)
    file.finish()
    return file


def released(manager: ResourceManager) -> TempFile:
    file = finished(manager)
    file.release()
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "own folder\n🎙"


@pytest.fixture
def manager(folder: Path) -> Iterator[ResourceManager]:
    with ResourceManager(directory=folder) as manager:
        yield manager


@pytest.fixture
def program(folder: Path) -> Iterator[Program]:
    """Start programs that have `manager`, `folder` and `say`; what still runs at the end is killed."""
    began: list[subprocess.Popen[str]] = []
    head = """
import json, os, signal, sys, time, warnings
from pcmring.memory_manager import MemoryMonitor, ResourceManager
from virtual_mic import need
folder = sys.argv[1]
manager = ResourceManager(directory=folder)
def say(word):
    print(json.dumps(word), flush=True)
def write(file, size=2000):
    with open(file.path, "r+b") as out:
        out.write(bytes(size))
def finished(owner=None):
    file = manager.create_temp_file(owner=owner)
    file.finish()
    return file
"""

    def start(text: str, *arguments: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(
            [sys.executable, "-c", head + text, str(folder), *arguments],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        began.append(process)
        return process

    yield start
    for process in began:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """What the program says next."""
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        pytest.fail(f"the program ended: {process.communicate()[1]}")
    return str(json.loads(said))


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(100)
    assert process.returncode == -signal.SIGKILL


RECORD = """
file = manager.create_temp_file(suffix=".wav")
write(file)
say(file.path)
sys.stdin.read()
"""


# ---- the seed's calls ------------------------------------------------------------------------------------------------


def test_a_file_given_by_path_alone_is_deleted_by_the_next_cleanup(tmp_path: Path) -> None:
    path = tmp_path / "audio_123.wav"
    path.write_bytes(AUDIO)
    manager = ResourceManager()
    manager.add_temp_file(str(path))
    assert manager.get_resource_info()["temp_files_count"] == 1
    assert manager.cleanup() == 1
    assert not path.exists()
    assert manager.get_resource_info()["temp_files_count"] == 0


def test_resource_info_has_w4ls_keys_and_the_states(manager: ResourceManager, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(5))
    owner = Owner()
    manager.add_temp_file(tmp_path / "one")
    whole = finished(manager, owner)
    manager.create_temp_file(owner=owner)
    manager.add_weak_ref(owner)
    manager.add_cleanup_callback(print)
    assert manager.get_resource_info() == {
        "temp_files_count": 3,
        "weak_refs_count": 1,
        "cleanup_callbacks_count": 1,
        "memory_usage_mb": None,
        "memory_limit_mb": None,
        "temp_files_recording": 1,
        "temp_files_finished": 1,
        "temp_files_released": 1,
        "temp_files_bytes": 5,
    }
    assert whole in manager.get_temp_files()
    assert "finished" in repr(whole)
    assert "temp_files=3 watched=1" in repr(manager)
    manager.remove_cleanup_callback(print)


def test_resource_info_shows_the_monitors_memory() -> None:
    info = ResourceManager(MemoryMonitor(321)).get_resource_info()
    assert info["memory_limit_mb"] <= 321
    assert info["memory_usage_mb"] > 1


def test_a_file_taken_out_of_care_stays(manager: ResourceManager, tmp_path: Path) -> None:
    path = tmp_path / "kept.wav"
    path.write_bytes(AUDIO)
    manager.add_temp_file(path)
    made = finished(manager)
    assert manager.remove_temp_file(str(path))
    assert not manager.remove_temp_file(path)
    assert manager.remove_temp_file(made.path)
    made.release()
    assert made.state == "gone"
    assert manager.cleanup() == 0
    assert path.exists()
    assert Path(made.path).exists()
    assert os.listdir(os.path.dirname(made.path)) == [os.path.basename(made.path)]


def test_a_path_is_known_however_it_is_written(
    manager: ResourceManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a.wav").write_bytes(AUDIO)
    monkeypatch.chdir(tmp_path)
    manager.add_temp_file("a.wav")
    manager.add_temp_file(b"./link/a.wav")
    manager.add_temp_file(tmp_path / "link" / ".." / tmp_path.name / "a.wav")
    assert manager.get_resource_info()["temp_files_count"] == 1
    assert manager.remove_temp_file(tmp_path / "link" / "a.wav")


# ---- what is never deleted -------------------------------------------------------------------------------------------


def test_d15_a_file_being_recorded_survives_every_cleanup(manager: ResourceManager, folder: Path) -> None:
    owner = Owner()
    monitor = MemoryMonitor(1)  # always over its limit
    shared = ResourceManager(monitor, directory=folder)
    file = shared.create_temp_file(owner=owner)
    with open(file.path, "wb") as out:
        out.write(AUDIO)
        monitor.cleanup()
        monitor.cleanup(force=True)
        shared.cleanup()
        del owner  # not even its owner's death makes it whole
        gc.collect()
        monitor.cleanup(force=True)
        out.write(AUDIO)
    assert Path(file.path).read_bytes() == AUDIO + AUDIO
    assert file.state == "recording"
    file.finish()
    file.release()
    assert shared.cleanup() == 1


def test_d15_a_path_alone_is_not_deleted_while_this_process_writes_to_it(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("open files are known on Linux only")
    manager = ResourceManager()
    path = tmp_path / "naive.wav"
    with open(path, "wb") as out:
        manager.add_temp_file(path)
        assert manager.cleanup() == 0
        out.write(AUDIO)
    assert path.read_bytes() == AUDIO
    with open(path, "rb"):  # a reader does not mind
        assert manager.cleanup() == 1


def test_d16_one_managers_cleanup_spares_the_finished_recordings_of_others(folder: Path) -> None:
    monitor = MemoryMonitor(1)
    owner = Owner()
    one, two = ResourceManager(monitor, directory=folder), ResourceManager(monitor, directory=folder)
    file = one.create_temp_file(owner=owner)
    file.finish()
    two.cleanup()
    two.close()
    monitor.cleanup(force=True)
    del two
    gc.collect()
    assert Path(file.path).exists()
    one.cleanup()
    assert Path(file.path).exists()
    file.release()
    one.cleanup()
    assert not Path(file.path).exists()


def test_d16_a_manager_does_not_make_the_shared_monitor_clean_up(manager: ResourceManager) -> None:
    monitor = MemoryMonitor(1)
    shared = ResourceManager(monitor)
    shared.cleanup()
    shared.close()
    del shared
    assert monitor.get_statistics()["cleanups"] == 0


def test_d16_the_destructor_deletes_only_what_nobody_holds(folder: Path, tmp_path: Path) -> None:
    owner = Owner()
    manager = ResourceManager(directory=folder)
    held = finished(manager, owner)
    recording = manager.create_temp_file()
    ours = finished(manager)
    released(manager)
    stranger = Path(held.path).with_name("recording-of-someone-else.wav")
    stranger.write_bytes(AUDIO)
    del manager
    gc.collect()
    there = {name for name in os.listdir(folder) if not name.startswith(".")}
    assert there == {os.path.basename(file.path) for file in (held, recording, ours)} | {stranger.name}


def test_a_finished_file_whose_owner_died_is_deleted(manager: ResourceManager) -> None:
    owner = Owner()
    file = manager.create_temp_file(owner=owner)
    file.finish()
    file.finish()
    assert manager.cleanup() == 0
    del owner
    gc.collect()
    assert file.is_deletable
    assert manager.cleanup() == 1


def test_what_is_added_again_by_path_alone_stays_protected(manager: ResourceManager, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(AUDIO)
    owner = Owner()
    made = manager.create_temp_file()
    file = manager.add_temp_file(path, owner=owner)
    assert manager.add_temp_file(path) is file
    assert manager.add_temp_file(made.path) is made
    assert manager.cleanup() == 0
    with pytest.raises(ValueError, match="create_temp_file"):
        manager.add_temp_file(made.path, state="released")
    assert manager.add_temp_file(path, state="released") is not file
    assert manager.cleanup() == 1


def test_releasing_a_recording_is_refused(manager: ResourceManager) -> None:
    file = manager.create_temp_file()
    with pytest.raises(RuntimeError, match=r"finish\(\) it before"):
        file.release()
    file.finish()
    file.release()
    file.release()
    file.finish()  # no way back
    assert file.state == "released"
    manager.cleanup()
    file.release()
    assert file.state == "gone"


def test_d21_a_file_that_is_gone_is_no_longer_listed(manager: ResourceManager, tmp_path: Path) -> None:
    owner = Owner()
    plain, held = tmp_path / "plain.wav", tmp_path / "held.wav"
    for path in (plain, held):
        path.write_bytes(AUDIO)
    manager.add_temp_file(plain)
    manager.add_temp_file(held, owner=owner)
    manager.add_temp_file(tmp_path / "never.wav")
    manager.add_temp_file(tmp_path / "folder" / "never.wav")
    made = finished(manager)
    for path in (plain, held, Path(made.path)):
        path.unlink()
    assert made.size_bytes == 0
    assert manager.cleanup() == 0
    assert manager.get_resource_info()["temp_files_count"] == 0


def test_d22_a_second_recording_does_not_orphan_the_first(manager: ResourceManager) -> None:
    owner = Owner()
    files = [manager.create_temp_file(owner=owner) for _ in range(3)]
    for file in files:
        file.finish()
        file.release()
    assert len({file.path for file in files}) == 3
    assert manager.cleanup() == 3
    assert os.listdir(os.path.dirname(files[0].path)) == []


def test_what_cannot_be_deleted_is_logged_and_tried_again(
    manager: ResourceManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = [released(manager) for _ in range(2)]
    unlink = os.unlink

    def refuse(path: str, **where: Any) -> None:
        if path == os.path.basename(files[0].path):
            raise PermissionError(1, "not now", path)
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", refuse)
    assert manager.cleanup() == 1
    assert "tried again" in caplog.text
    monkeypatch.undo()
    assert manager.cleanup() == 1


# ---- attacks ---------------------------------------------------------------------------------------------------------


def test_a_symbolic_link_in_place_of_the_file_leads_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"gold")
    path, late = tmp_path / "audio.wav", tmp_path / "late.wav"
    path.write_bytes(AUDIO)
    manager = ResourceManager()
    manager.add_temp_file(path)
    manager.add_temp_file(late)  # not there yet
    path.unlink()
    path.symlink_to(treasure)
    late.symlink_to(treasure)
    assert manager.cleanup() == 0
    assert treasure.read_bytes() == b"gold"
    assert path.is_symlink()
    assert late.is_symlink()
    assert manager.get_resource_info()["temp_files_count"] == 0
    assert caplog.text.count("not the file that was registered") == 2


@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to"])
def test_what_takes_the_place_of_a_file_while_it_is_made_is_left_alone(
    manager: ResourceManager, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"gold")

    def swap_first(path: str, *arguments: Any) -> TempFile:
        getattr(tmp_path / "link", how)(treasure)
        os.replace(tmp_path / "link", path)
        return TempFile(path, *arguments)

    with monkeypatch.context() as attack:
        attack.setattr(_tempfiles, "TempFile", swap_first)
        file = manager.create_temp_file(".wav")
    file.finish()
    file.release()
    assert manager.cleanup() == 0
    assert os.listdir(folder) == [os.path.basename(file.path)]
    assert treasure.read_bytes() == b"gold"


def test_another_file_under_the_same_name_is_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "audio.wav", tmp_path / "other"
    path.write_bytes(AUDIO)
    other.write_bytes(b"theirs")
    manager = ResourceManager()
    manager.add_temp_file(path)
    os.replace(other, path)
    assert manager.cleanup() == 0
    assert path.read_bytes() == b"theirs"


def test_a_folder_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    inside, victim = tmp_path / "mine", tmp_path / "victim"
    for place in (inside, victim):
        place.mkdir()
        (place / "audio.wav").write_bytes(AUDIO)
    manager = ResourceManager()
    manager.add_temp_file(inside / "audio.wav")
    manager.add_temp_file(inside / "later.wav")
    (victim / "later.wav").write_bytes(AUDIO)
    inside.rename(tmp_path / "moved")
    inside.symlink_to(victim, target_is_directory=True)
    assert manager.cleanup() == 0
    assert sorted(os.listdir(victim)) == ["audio.wav", "later.wav"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make another user's file")
def test_another_users_file_is_left_alone(tmp_path: Path) -> None:
    manager = ResourceManager()
    path = tmp_path / "later.wav"
    manager.add_temp_file(path)
    path.write_bytes(AUDIO)
    os.chown(path, 12345, 12345)
    assert manager.cleanup() == 0
    assert path.exists()


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_what_is_no_regular_file_is_refused(manager: ResourceManager, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(ValueError, match="regular file"):
        manager.add_temp_file(path)
    assert manager.get_resource_info()["temp_files_count"] == 0


def test_a_folder_may_be_a_link_to_one_of_this_users_own_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    folder.symlink_to(tmp_path / "real", target_is_directory=True)
    with pytest.raises(PermissionError, match="mode 0755"):
        ResourceManager(directory=folder).create_temp_file()
    assert os.listdir(tmp_path / "real") == []
    (tmp_path / "real").chmod(0o700)
    file = ResourceManager(directory=folder).create_temp_file()
    assert os.path.dirname(file.path) == str(tmp_path / "real")


def test_a_folder_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o750)
    manager = ResourceManager(directory=folder)
    with pytest.raises(PermissionError, match="mode 0750"):
        manager.create_temp_file()
    with pytest.raises(PermissionError):
        manager.recover()
    assert os.listdir(folder) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    """Made beforehand in /tmp by whoever wants to read the recordings."""
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        ResourceManager(directory=folder).create_temp_file()


def test_files_and_folder_are_this_users_alone(manager: ResourceManager, folder: Path) -> None:
    mask = os.umask(0)
    try:
        file = manager.create_temp_file()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in os.listdir(folder):
        assert stat.S_IMODE(os.stat(folder / name).st_mode) == 0o600
    assert os.path.dirname(file.path) == os.path.realpath(folder)


def test_a_taken_name_is_never_reused(manager: ResourceManager, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = manager.create_temp_file()
    Path(first.path).write_bytes(AUDIO)
    token = os.path.basename(first.path)[-20:-4]
    monkeypatch.setattr(_tempfiles.secrets, "token_hex", lambda size: token[: 2 * size])
    with pytest.raises(FileExistsError):
        manager.create_temp_file()
    assert Path(first.path).read_bytes() == AUDIO


# ---- making files ----------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused_with_the_legal_ones(manager: ResourceManager, tmp_path: Path) -> None:
    for suffix in ("/x", "wav", ".w/../x", ".wav\0", "..", b".wav"):
        with pytest.raises(ValueError, match="suffix must be a dot, then letters and digits"):
            manager.create_temp_file(suffix=suffix)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="owner must be weakly referenceable, got 'me'"):
        manager.create_temp_file(owner="me")
    assert os.listdir(manager.directory) == []
    with pytest.raises(ValueError, match="'recording', 'finished', 'released', got 'done'"):
        manager.add_temp_file(tmp_path / "a", state="done")
    with pytest.raises(TypeError, match="owner"):
        manager.add_temp_file(tmp_path / "a", owner="me")
    with pytest.raises(TypeError):
        manager.add_temp_file(3)  # type: ignore[arg-type]
    for path in ("", "/", "nul\0"):
        with pytest.raises(ValueError, match=r"path|null"):
            manager.add_temp_file(path)
    with pytest.raises(TypeError, match="MemoryMonitor"):
        ResourceManager("monitor")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        manager.add_cleanup_callback(None)  # type: ignore[arg-type]
    assert manager.get_resource_info()["temp_files_count"] == 0


@pytest.mark.parametrize("calls_that_work", [0, 1])
def test_a_file_that_cannot_be_made_leaves_nothing_behind(
    manager: ResourceManager, folder: Path, monkeypatch: pytest.MonkeyPatch, calls_that_work: int
) -> None:
    manager.create_temp_file()
    before, fds = os.listdir(folder), len(_tempfiles._locks)
    real = os.fstat

    def full(fd: int) -> Any:
        nonlocal calls_that_work
        facts = real(fd)
        if stat.S_ISREG(facts.st_mode):
            if calls_that_work == 0:
                raise OSError(28, "No space left on device")
            calls_that_work -= 1
        return facts

    monkeypatch.setattr(os, "fstat", full)
    with pytest.raises(OSError, match="No space"):
        manager.create_temp_file()
    monkeypatch.undo()
    assert os.listdir(folder) == before
    assert len(manager.get_temp_files()) == 1
    assert len(_tempfiles._locks) == fds


def test_the_default_folder_is_the_users_own_and_survives_a_reboot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("platformdirs")
    if sys.platform != "linux":
        pytest.skip("the folder's name is Linux's")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    manager = ResourceManager()
    assert manager.directory == str(tmp_path / "pcmring" / "recordings")
    assert manager.create_temp_file().path.startswith(manager.directory)


def test_without_platformdirs_a_folder_must_be_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(MissingPackage, match="pip install platformdirs"):
        ResourceManager().create_temp_file()
    assert ResourceManager(directory=folder).create_temp_file().state == "recording"


def test_nothing_is_made_on_disk_before_it_is_needed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    manager = ResourceManager(directory=folder)
    manager.add_temp_file(tmp_path / "a")
    manager.get_resource_info()
    manager.cleanup()
    assert not folder.exists()


# ---- after a crash ---------------------------------------------------------------------------------------------------


def test_d22_a_recording_of_a_killed_process_is_recovered_at_the_next_start(folder: Path, program: Program) -> None:
    process = program(RECORD)
    path = line(process)
    manager = ResourceManager(directory=folder)
    assert manager.recover() == []  # it lives
    killed(process)
    (file,) = manager.recover()
    assert (file.path, file.state, file.recovered, file.size_bytes) == (path, "finished", True, 2000)
    assert time.time() - 100 < file.modified <= time.time()
    assert manager.recover() == []  # it is ours now
    assert manager.cleanup() == 0  # and held
    assert Path(path).exists()
    file.release()
    assert manager.cleanup() == 1
    assert os.listdir(folder) == []


def test_recovered_recordings_come_oldest_first(folder: Path, program: Program) -> None:
    made = []
    for _ in range(3):
        process = program(RECORD)
        made.append(line(process))
        killed(process)
    assert [file.path for file in ResourceManager(directory=folder).recover()] == made


def test_a_recovery_that_is_killed_too_is_recovered_by_the_next(folder: Path, program: Program) -> None:
    first = program(RECORD)
    path = line(first)
    killed(first)
    second = program("say([file.path for file in manager.recover()] and 'got it'); sys.stdin.read()")
    assert line(second) == "got it"
    manager = ResourceManager(directory=folder)
    assert manager.recover() == []
    killed(second)
    assert [file.path for file in manager.recover()] == [path]


def test_an_unreleased_recording_outlives_a_normal_exit(folder: Path, program: Program) -> None:
    process = program("a = finished(); write(a)\nb = finished(); write(b); b.release()\nsay(a.path)")
    path = line(process)
    assert process.wait(100) == 0
    assert os.listdir(folder) == [os.path.basename(path)]
    assert [file.path for file in ResourceManager(directory=folder).recover()] == [path]


def test_of_many_starters_exactly_one_recovers_each_recording(folder: Path, program: Program) -> None:
    for _ in range(5):
        process = program("write(manager.create_temp_file()); say('made'); sys.stdin.read()")
        line(process)
        killed(process)
    starters = [
        program(
            "say('ready'); sys.stdin.readline()\n"
            "for file in manager.recover(): say(file.path)\n"
            "say('.'); sys.stdin.read()"
        )
        for _ in range(6)
    ]
    for process in starters:
        assert line(process) == "ready"
    for process in starters:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = []
    for process in starters:
        rest: list[str] = []
        text = ""
        while text != ".":
            text = line(process)
            rest.append(text)
        found += rest[:-1]
    assert len(found) == 5
    assert len(set(found)) == 5
    assert len([name for name in os.listdir(folder) if name.endswith(".wav")]) == 5


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_recording_that_another_moved_meanwhile_is_left_to_it(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    """Between opening the file and locking it: another program recovered it and moved it away."""
    process = program(RECORD)
    path = line(process)
    killed(process)
    flock = _tempfiles.fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.undo()
        other = ResourceManager(directory=folder)
        assert [file.path for file in other.recover()] == [path]
        os.rename(path, f"{path}.kept")
        assert other.remove_temp_file(path)
        if is_replaced:
            Path(path).write_bytes(AUDIO)
        flock(fd, how)

    monkeypatch.setattr(_tempfiles.fcntl, "flock", late)
    assert ResourceManager(directory=folder).recover() == []
    assert os.path.exists(f"{path}.kept")
    assert os.path.exists(path) == is_replaced


def test_a_file_made_while_another_recovers_is_not_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making the file and locking it: another program takes it for empty and left behind."""
    flock = _tempfiles.fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.undo()
        assert ResourceManager(directory=folder).recover() == []
        assert os.listdir(folder) == []
        flock(fd, how)

    monkeypatch.setattr(_tempfiles.fcntl, "flock", late)
    file = ResourceManager(directory=folder).create_temp_file()
    assert os.listdir(folder) == [os.path.basename(file.path)]
    assert ResourceManager(directory=folder).recover() == []
    assert Path(file.path).exists()


def test_empty_leftovers_are_deleted(folder: Path, program: Program) -> None:
    process = program(
        "keep = [manager.create_temp_file() for _ in range(4)]\n"
        "write(keep[1], 44); write(keep[2], 45); os.unlink(keep[3].path)\n"
        "say(os.path.basename(keep[2].path)); sys.stdin.read()"
    )
    full = line(process)
    killed(process)
    assert [os.path.basename(file.path) for file in ResourceManager(directory=folder).recover()] == [full]
    assert os.listdir(folder) == [full]


def test_an_old_leftover_is_deleted_and_a_younger_one_kept(folder: Path, program: Program) -> None:
    process = program(
        "files = []\n"
        "for age in (31, 29):\n"
        "    file = manager.create_temp_file(); write(file); files.append(file)\n"
        "    then = time.time() - age * 24 * 3600; os.utime(file.path, (then, then))\n"
        "say(os.path.basename(file.path)); sys.stdin.read()"
    )
    young = line(process)
    killed(process)
    manager = ResourceManager(directory=folder)
    (file,) = manager.recover()
    assert os.path.basename(file.path) == young
    assert [name for name in os.listdir(folder) if name.endswith(".wav")] == [young]


def test_what_create_temp_file_did_not_make_is_never_touched(manager: ResourceManager, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    strangers = [
        "notes.txt",
        "recording.wav",
        "recording-1-0123456789abcdef.wav.bak",
        "recording-1-0123456789ABCDEF.wav",
        "my recording-1-0123456789abcdef.wav",
        ".recording-1-0123456789abcdef.wav",
    ]
    old = time.time() - 365 * 24 * 3600
    for name in strangers:
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (old, old))
    (folder / "recording-2-0123456789abcdef").mkdir()
    os.mkfifo(folder / "recording-3-0123456789abcdef")
    names = set(os.listdir(folder))
    assert manager.recover() == []
    assert set(os.listdir(folder)) == names


def test_a_link_in_place_of_a_recording_is_not_recovered(folder: Path, program: Program, tmp_path: Path) -> None:
    process = program(RECORD)
    path = Path(line(process))
    killed(process)
    secret = tmp_path / "secret"
    secret.write_bytes(AUDIO)
    path.unlink()
    path.symlink_to(secret)
    assert ResourceManager(directory=folder).recover() == []
    assert secret.read_bytes() == AUDIO
    assert path.is_symlink()


def test_a_pid_that_is_used_again_protects_nothing(folder: Path, program: Program) -> None:
    """In a container the next start has the same pid as the one that died."""
    process = program(RECORD)
    path = Path(line(process))
    killed(process)
    own = path.with_name(path.name.replace(str(process.pid), str(os.getpid())))
    path.rename(own)
    assert [file.path for file in ResourceManager(directory=folder).recover()] == [str(own)]


def test_a_program_that_lives_is_known_without_its_pid(folder: Path, program: Program) -> None:
    """As between containers that share the folder and do not see each other's processes."""
    process = program(RECORD)
    path = Path(line(process))
    hidden = path.with_name(path.name.replace(str(process.pid), str(2**22 + 1)))
    path.rename(hidden)
    manager = ResourceManager(directory=folder)
    assert manager.recover(max_age_seconds=0) == []
    killed(process)
    assert [file.path for file in manager.recover()] == [str(hidden)]


def test_on_a_file_system_without_locks_nothing_is_taken_for_left_behind(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = program(RECORD)
    path = line(process)
    killed(process)

    def unsupported(fd: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(_tempfiles.fcntl, "flock", unsupported)
    manager = ResourceManager(directory=folder)
    assert manager.recover(max_age_seconds=0) == []
    assert "Operation not supported" in caplog.text
    assert os.path.exists(path)
    assert os.path.exists(manager.create_temp_file().path)


def test_a_folder_that_disappears_is_no_error(manager: ResourceManager, folder: Path, tmp_path: Path) -> None:
    import shutil

    file = finished(manager)
    shutil.rmtree(folder)
    file.release()
    assert manager.cleanup() == 0
    assert manager.get_temp_files() == []
    assert manager.recover() == []


# ---- fork ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_deletes_nothing_of_its_parents(folder: Path, program: Program, tmp_path: Path) -> None:
    process = program(
        """
warnings.simplefilter("ignore", DeprecationWarning)
plain = os.path.join(sys.argv[2], "plain.wav")
open(plain, "wb").close()
manager.add_temp_file(plain)
file = finished(); write(file)
file.release()
recording = manager.create_temp_file(); write(recording)
pid = os.fork()
if pid == 0:
    assert manager.cleanup() == 0
    assert manager.get_temp_files() == []
    assert not manager.remove_temp_file(plain)
    assert not file.is_deletable and not file.delete()
    mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]  # numbers that the parent's locks had
    recording.finish(); file.forget()
    for fd in mine:
        os.fstat(fd)
    own = finished(); own.release()
    assert manager.cleanup() == 1
    manager.close()
    sys.exit(7)   # a normal exit, with finalizers
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert os.path.exists(plain) and os.path.exists(file.path) and os.path.exists(recording.path)
assert manager.cleanup() == 2
say("ok")
""",
        str(tmp_path),
    )
    assert line(process) == "ok"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_that_lives_on_keeps_no_lock_of_a_killed_parent(folder: Path, program: Program) -> None:
    process = program(
        """
warnings.simplefilter("ignore", DeprecationWarning)
file = manager.create_temp_file(); write(file)
if os.fork() == 0:
    say(str(os.getpid()))  # only now it is known to have let go
    signal.pause()
signal.pause()
"""
    )
    child = int(line(process))
    try:
        assert ResourceManager(directory=folder).recover() == []  # but the parent has not
        killed(process)
        assert len(ResourceManager(directory=folder).recover()) == 1
    finally:
        os.kill(child, signal.SIGKILL)


# ---- weak references and callbacks -----------------------------------------------------------------------------------


def test_d35_a_weak_reference_means_something(manager: ResourceManager) -> None:
    """Counted while it lives; when it dies, what belonged to it is given back, once."""
    given_back: list[str] = []
    owner: Owner | None = Owner()
    manager.add_weak_ref(owner, lambda: given_back.append("handle"))
    assert manager.get_resource_info()["weak_refs_count"] == 1
    manager.cleanup()
    assert given_back == []
    owner = None
    gc.collect()
    assert given_back == ["handle"]
    assert manager.get_resource_info()["weak_refs_count"] == 0


def test_what_is_alive_when_the_program_ends_has_not_died(program: Program) -> None:
    process = program(
        """
class Owner: pass
owner = Owner()
manager.add_weak_ref(owner, lambda: say("died"))
say("ends")
"""
    )
    assert process.communicate(timeout=100) == ('"ends"\n', "")


def test_d35_a_manager_is_a_context_manager(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(AUDIO)
    calls: list[int] = []
    with ResourceManager() as manager:
        manager.add_temp_file(path)
        manager.add_cleanup_callback(lambda: calls.append(1))
    assert not path.exists()
    assert calls == [1]
    manager.close()
    assert calls == [1]


def test_a_closed_manager_is_not_called_by_its_monitor() -> None:
    monitor, calls = MemoryMonitor(), []
    manager = ResourceManager(monitor)
    manager.add_cleanup_callback(lambda: calls.append(1))
    manager.close()
    monitor.cleanup(force=True)
    assert calls == [1]  # by `close`
    assert monitor.get_statistics()["cleanup_callbacks"] == 0


def test_d18_arrays_are_told_apart_by_identity(manager: ResourceManager) -> None:
    """W4L compared them: the second equal array raised "truth value is ambiguous"."""
    arrays = [np.zeros((16000, 1), dtype=np.float32) for _ in range(3)]
    for array in arrays:
        manager.add_weak_ref(array)
        manager.add_temp_file(f"/nonexistent/{id(array)}.wav", owner=array)
    assert manager.get_resource_info()["weak_refs_count"] == 3
    del array, arrays[0]
    assert manager.get_resource_info()["weak_refs_count"] == 2


def test_d19_nothing_keeps_a_manager_or_what_it_watches_alive() -> None:
    monitor = MemoryMonitor(1)
    managers = [ResourceManager(monitor) for _ in range(5)]
    owner = Owner()
    for manager in managers:
        manager.add_weak_ref(owner, print)
        manager.add_weak_ref(Owner())
    alive = [weakref.ref(one) for one in (*managers, owner)]
    del manager, managers
    assert [ref() for ref in alive[:5]] == [None] * 5
    assert monitor.get_statistics()["cleanup_callbacks"] == 0
    del owner
    assert alive[5]() is None


def test_a_callback_for_a_dead_object_that_raises_is_logged(
    manager: ResourceManager, caplog: pytest.LogCaptureFixture
) -> None:
    def bad() -> None:
        raise ZeroDivisionError

    owner = Owner()
    manager.add_weak_ref(owner, bad)
    del owner
    gc.collect()
    (record,) = caplog.records
    assert record.exc_info is not None


def test_a_closed_manager_calls_back_for_nothing(manager: ResourceManager) -> None:
    called: list[int] = []
    owner = Owner()
    manager.add_weak_ref(owner, lambda: called.append(1))
    manager.close()
    assert manager.get_resource_info()["weak_refs_count"] == 0
    del owner
    gc.collect()
    assert called == []


def test_what_cannot_be_watched_is_refused(manager: ResourceManager) -> None:
    with pytest.raises(TypeError, match="type int"):
        manager.add_weak_ref(5)
    with pytest.raises(TypeError, match="callable"):
        manager.add_weak_ref(Owner(), 5)  # type: ignore[arg-type]
    assert manager.get_resource_info()["weak_refs_count"] == 0


def test_every_callback_runs_and_the_files_are_cleaned_though_one_raises(
    manager: ResourceManager, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    def bad() -> None:
        raise ZeroDivisionError("on purpose")

    manager.add_cleanup_callback(bad)
    manager.add_cleanup_callback(lambda: ran.append("good"))
    released(manager)
    assert manager.cleanup() == 1
    assert ran == ["good"]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert manager.remove_cleanup_callback(bad)
    assert not manager.remove_cleanup_callback(bad)


def test_the_monitor_has_files_cleaned_after_buffers(tmp_path: Path) -> None:
    monitor = MemoryMonitor(1)
    order: list[str] = []
    manager = ResourceManager(monitor)
    manager.add_cleanup_callback(lambda: order.append("files"))
    monitor.add_cleanup_callback(lambda: order.append("buffers"))
    path = tmp_path / "a.wav"
    path.write_bytes(AUDIO)
    manager.add_temp_file(path)
    monitor.cleanup()
    assert order == ["buffers", "files"]
    assert not path.exists()


def test_threads_that_clean_up_at_once_delete_each_file_once(manager: ResourceManager, crew: Any) -> None:
    files = [released(manager) for _ in range(50)]
    deleted: list[int] = []
    for _ in range(4):
        crew.start(lambda: deleted.append(manager.cleanup()))
    crew.join()
    assert sum(deleted) == 50
    manager.cleanup()  # a file another thread was deleting may still have been listed
    assert manager.get_temp_files() == []
    assert not any(os.path.exists(file.path) for file in files)


def test_no_descriptor_stays_open_after_many_files(manager: ResourceManager) -> None:
    if sys.platform != "linux":
        pytest.skip("counts /proc/self/fd")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        file = manager.create_temp_file()
        file.finish()
        file.release()
        assert manager.cleanup() == 1
    assert len(os.listdir("/proc/self/fd")) == before
    lost = manager.create_temp_file()
    assert isinstance(lost, TempFile)
    assert manager.remove_temp_file(lost.path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.rss
def test_the_guided_run_goes_as_it_should() -> None:
    script = Path(__file__).parents[1] / "scripts" / "test_memory_management.py"
    need("platformdirs", "soundfile", "soxr")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all went as it should\n")
