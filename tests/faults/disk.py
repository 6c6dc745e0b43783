"""Disks that are full, fail, stall or vanish; names and links; two programs in one folder; kill -9."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile

from faults.account import Runs, require
from faults.campaign import Try, case
from faults.failing_libc import Failing, preload
from faults.positions import serials
from faults.python_rude import file_runs, is_prefix, own_folders
from microphones import Devices, Microphone
from native_support import unavailable
from patience import DEADLINE_S, until
from pcmring import FileBasedAudioManager, ResourceManager
from pcmring.buffer_manager import RecordingError
from test_recording import FORMATS, check_what_is_safe, fill

RATE = 16_000
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EINTR)


@contextmanager
def _small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "pcmring-faults", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        unavailable("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _record_until_it_fails(attempt: Try, folder: Path) -> None:
    """test_recording's: the error is told once, the file is valid and holds what was before."""
    format, subtype = attempt.random.choice(FORMATS)
    try:
        error, audio = fill(folder, format, subtype)
    except RecordingError as refused:
        require(refused.frames == 0 and os.listdir(folder) == [], refused, os.listdir(folder))
        attempt.counts["refused at the start"] += 1
        return
    # Of a FLAC without a frame nothing is promised: its header may be half, or say that the length is not known.
    if (format, error.frames) != ("FLAC", 0):
        check_what_is_safe(error, audio, least_bytes=0)
    attempt.counts.update(offered=error.frames, missing=0, delivered=error.frames, lost=0)
    attempt.counts["ended by the disk"] += 1


@case(tiny=2, short=24, long=240)
def a_full_disk_at_each_page(attempt: Try) -> None:
    with _small_disk(attempt.folder / "disk", f"size={4 * (attempt.number % 24 + 1)}k") as disk:
        _record_until_it_fails(attempt, disk)


@case(tiny=3, short=40, long=4_000)
def a_file_that_may_not_grow_at_each_byte(attempt: Try) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = attempt.random.choice([attempt.number % 100, attempt.random.randint(0, 100_000)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        _record_until_it_fails(attempt, attempt.folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@case(tiny=3, short=60, long=6_000, environment=preload)
def an_error_at_each_write(attempt: Try) -> None:
    """Of every kind, once or from then on."""
    own, failing = attempt.random, Failing("write")
    error = ERRORS[attempt.number % len(ERRORS)]
    if error == errno.EINTR:  # the system's way to say "again"
        error = errno.ENODEV
    with failing.at(own.choice([1, 2, 3, own.randint(1, 12)]), error, always=own.random() < 0.5):
        _record_until_it_fails(attempt, attempt.folder)


def file_manager(microphone: Microphone | None = None, **settings) -> FileBasedAudioManager:
    microphone = microphone or Microphone()
    return FileBasedAudioManager(Devices(lambda: microphone), **{"subtype": "PCM_24", **settings})


def start(manager: FileBasedAudioManager) -> None:
    require(manager.start_recording(), manager.last_error)
    require(manager.wait_ready(DEADLINE_S), "no audio")


def check_whole(attempt: Try, manager: FileBasedAudioManager, path: str | None = None) -> None:
    """The newest recording is in its file, from the first frame to the last."""
    written = manager.buffer.frames_written
    runs = file_runs(path or manager.get_audio_file())
    length = sum(run[2] for run in runs.runs)
    require(is_prefix(runs) and length == written, runs.runs, "in the file,", written, "captured")
    attempt.counts.update(offered=written, missing=0, delivered=length, lost=0)


@case(tiny=1, short=8, long=800, environment=preload)
def writes_that_take_half(attempt: Try) -> None:
    own_folders(attempt.folder)
    with file_manager(format=attempt.random.choice(["WAV", "FLAC"])) as manager:
        with Failing("write").at(attempt.random.randint(1, 5), 0, always=True):
            start(manager)
            until(lambda: manager.buffer.frames_written > 8000)
            manager.stop_recording()
        require(manager.last_error is None, manager.last_error)
        check_whole(attempt, manager)


@case(tiny=0, short=2, long=50, limit_s=90, environment=preload)
def a_disk_that_stalls(attempt: Try) -> None:
    """For up to 10 s: the ring has it meanwhile."""
    own, failing = attempt.random, Failing("write")
    stall_s = attempt.by_form(0.3, 2.0, 10.0)
    own_folders(attempt.folder)
    with file_manager(format=own.choice(["WAV", "FLAC"])) as manager:
        start(manager)
        with failing.at(own.randint(1, 10), 0, stall_s=stall_s):
            until(lambda: failing.failed)
        written = manager.buffer.frames_written
        until(lambda: manager.buffer.frames_written > written + stall_s * RATE / 2)
        begin = time.monotonic()
        manager.stop_recording()
        require(time.monotonic() - begin < 10.0 + 2.0, "a stop waited too long")
        check_whole(attempt, manager)


@case(short=4, long=100)
def a_folder_that_vanishes(attempt: Try) -> None:
    """Deleted, or renamed, while it is recorded into: nothing breaks, and the next start makes a new one."""
    own_folders(attempt.folder)
    with file_manager() as manager:
        start(manager)
        folder = manager.resource_manager.directory
        if attempt.number % 2:
            os.rename(folder, attempt.folder / "renamed")
        else:
            shutil.rmtree(folder)
        written = manager.buffer.frames_written
        until(lambda: manager.buffer.frames_written > written + 800)
        manager.stop_recording()
        if attempt.number % 2:
            (left,) = (attempt.folder / "renamed").glob("*.wav")
            check_whole(attempt, manager, str(left))
        manager.memory_monitor.cleanup(force=True)
        start(manager)
        manager.stop_recording()
        check_whole(attempt, manager)


@case(short=2, long=20)
def a_read_only_file_system(attempt: Try) -> None:
    """A start fails, told once, and works when it can."""
    with _small_disk(attempt.folder / "disk", "size=10m,ro") as disk:
        own_folders(disk)
        errors: list[Exception] = []
        with file_manager() as manager:
            manager.on_stream_error = errors.append
            require(not manager.start_recording() and not manager.is_recording, "it records")
            (error,) = errors
            require(isinstance(error, RecordingError) and error.errno == errno.EROFS, repr(error))
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            start(manager)
            manager.stop_recording()
            check_whole(attempt, manager)


@case(short=2, long=20)
def a_folder_one_may_not_write_to(attempt: Try) -> None:
    """EACCES, as another user: a start fails, told once, and works when it may; files that are there are left alone."""
    if os.getuid() != 0:
        unavailable("only root may become another user")
    theirs = attempt.folder / "theirs"
    theirs.mkdir(mode=0o755)

    def record() -> None:
        os.setgroups([])
        os.setresuid(65534, 65534, 0)
        os.environ |= {"TMPDIR": str(theirs), "XDG_STATE_HOME": str(theirs), "XDG_RUNTIME_DIR": str(theirs)}
        errors: list[Exception] = []
        with file_manager() as manager:
            manager.on_stream_error = errors.append
            require(not manager.start_recording() and not manager.is_recording, "it records")
            (error,) = errors
            require(isinstance(error, RecordingError) and error.errno == errno.EACCES, repr(error))
            require(list(theirs.iterdir()) == [], "something was made")
            os.seteuid(0)
            os.chown(theirs, 65534, 65534)
            os.seteuid(65534)
            start(manager)
            manager.stop_recording()
            check_whole(attempt, manager)

    attempt.folder.chmod(0o711)
    require(in_a_child(record) == 0, "the child failed")


NAMES = (
    "a b",
    " leading and trailing ",
    "new\nline",
    "tab\tand \\ and \"quotes' and %s {}",
    "🎤 émoji 録音",
    "-rf",
    "x" * 251,
    os.fsdecode(b"not \xff utf-8"),
    "$(touch pwned)",
    "..a",
)


@case(tiny=1, short=len(NAMES), long=len(NAMES))
def names_of_any_characters(attempt: Try) -> None:
    """Of the folder, and of what a recording is saved as."""
    name = NAMES[attempt.number % len(NAMES)]
    own_folders(attempt.folder / name)
    with file_manager() as manager:
        start(manager)
        manager.stop_recording()
        saved = manager.save_as(attempt.folder / f"{name}.wav")
        require(os.listdir(attempt.folder).count(f"{name}.wav") == 1, os.listdir(attempt.folder))
        check_whole(attempt, manager, saved)
        str(manager), repr(manager.get_buffer_info())


def in_a_child(program: Callable[..., object], *arguments: object) -> int:
    """Run in a forked child, and return what it ended with."""
    return ended(fork(program, *arguments))


def fork(program: Callable[..., object], *arguments: object) -> int:
    """Run in a forked child, and return its number."""
    pid = os.fork()
    if pid == 0:
        try:
            program(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- other people's files ----------------------------------------------------------------------------------------


@case(short=3, long=200)
def links_and_swaps_in_the_folder(attempt: Try) -> None:
    """Somebody swaps files, links and folders as fast as he can: nothing outside is written to or deleted."""
    own = attempt.random
    own_folders(attempt.folder / "mine")
    logging.getLogger("pcmring").setLevel(logging.CRITICAL)  # each swapped file is told of
    victims, precious = attempt.folder / "victims", set[Path]()
    victims.mkdir(parents=True)
    shared = attempt.folder / "shared"
    shared.mkdir()
    content = b"precious" * 1000
    is_over, registering = threading.Event(), threading.Lock()
    swaps = 0

    def attack(own: random.Random) -> None:
        nonlocal swaps
        while not is_over.is_set():
            for path in [*shared.iterdir(), *Path(manager.resource_manager.directory).glob("recording-*")]:
                with suppress(OSError):
                    victim = victims / path.name
                    if victim not in precious:
                        with victim.open("xb") as file:
                            file.write(content)
                        precious.add(victim)
                    (victims / "link").symlink_to(victim)
                    os.replace(victims / "link", path)
                    swaps += 1
            with suppress(OSError), registering:  # a path leads where it led when it was registered
                if own.random() < 0.3:
                    os.rename(shared, attempt.folder / "away")
                    os.symlink(victims, shared)
                    time.sleep(0.0005)
                    os.unlink(shared)
                    os.rename(attempt.folder / "away", shared)

    with file_manager() as manager, ResourceManager() as resources:
        start(manager)  # makes the folder
        manager.stop_recording()
        attacker = threading.Thread(target=attack, args=(random.Random(own.random()),))
        attacker.start()
        try:
            end = time.monotonic() + attempt.by_form(0.5, 2.0, 5.0)
            while time.monotonic() < end:
                path = shared / f"{own.randrange(10**9)}.tmp"
                with suppress(OSError, ValueError), registering:  # swapped before it was registered
                    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
                    os.write(fd, b"temporary")
                    os.close(fd)
                    resources.add_temp_file(path)
                if own.random() < 0.5:
                    resources.cleanup()
                if own.random() < 0.1 and manager.start_recording():
                    manager.stop_recording()
                    with suppress(LookupError):
                        manager.release_audio_file()
                    manager.resource_manager.cleanup()
                    attempt.counts["recordings"] += 1
                with suppress(OSError):
                    manager.recover()
        finally:
            is_over.set()
            attacker.join()
    for victim in precious:
        require(victim.exists() and victim.read_bytes() == content, victim.name, "was touched")
    attempt.counts["swaps"] += swaps


@case(short=2, long=60, limit_s=120)
def programs_that_share_a_folder(attempt: Try) -> None:
    """They record, die and recover at random: no recording is taken from one that lives, lost, or given to two."""
    own_folders(attempt.folder)
    children, rounds = 3, attempt.by_form(2, 4, 20)
    (attempt.folder / "saved").mkdir()

    def program(own: random.Random) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            manager = file_manager()
            for _ in range(rounds):
                start(manager)
                time.sleep(own.random() * 0.05)
                taken = manager.recover()
                for path in taken:
                    manager.save_as(attempt.folder / "saved" / f"recovered-{os.path.basename(path)}", path)
                path = manager.get_audio_file()
                require(os.path.exists(path), path, "was taken away")
                (attempt.folder / f"made-{os.path.basename(path)}").touch()
                if own.random() < 0.3:
                    until(lambda: manager.get_buffer_info()["file_frames"] > 0)
                    os._exit(9)  # no clean-up: it died
                manager.stop_recording()
                manager.save_as(attempt.folder / "saved" / os.path.basename(path), path)

    seeds = [attempt.random.random() for _ in range(children)]
    pids = [fork(program, random.Random(seed)) for seed in seeds]
    codes = [ended(pid) for pid in pids]
    require(set(codes) <= {0, 9}, "a program ended with", codes)
    with file_manager() as manager:
        for path in manager.recover():
            manager.save_as(attempt.folder / "saved" / f"recovered-{os.path.basename(path)}", path)
    made = {path.name.removeprefix("made-") for path in attempt.folder.glob("made-*")}
    saved = [path.name.removeprefix("recovered-") for path in (attempt.folder / "saved").iterdir()]
    require(sorted(saved) == sorted(made), set(made).symmetric_difference(saved))
    for path in (attempt.folder / "saved").iterdir():
        require(is_prefix(file_runs(path)), path)
    attempt.counts["recordings"] += len(made)
    attempt.counts["programs that died"] += codes.count(9)


# ---- kill -9 -----------------------------------------------------------------------------------------------------


def _record_until_killed(folder: Path, report: int, own: random.Random) -> None:
    """Recordings, one after the other, each saved at its end; tells how far each one is."""
    for number in range(10**6):
        format = own.choice(["WAV", "FLAC"])
        with file_manager(format=format) as manager:
            start(manager)
            end = time.monotonic() + own.uniform(0.0, 1.5)
            while time.monotonic() < end:
                os.write(report, f"{number} {manager.buffer.frames_written}\n".encode())
                time.sleep(0.002)
            manager.stop_recording()
            manager.save_as(folder / f"{number}.{format.lower()}")


@case(tiny=1, short=20, long=1000)
def killed_at_a_random_moment(attempt: Try) -> None:
    """Every file is valid, and has all but the last second at most; what was saved is whole."""
    own_folders(attempt.folder)
    saved = attempt.folder / "saved"
    saved.mkdir()
    reader, report = os.pipe()
    pid = fork(_record_until_killed, saved, report, random.Random(attempt.random.random()))
    os.close(report)
    time.sleep(attempt.random.uniform(0.0, attempt.by_form(0.4, 1.0, 3.0)))
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    with open(reader) as lines:
        reports = [line.split() for line in lines.read().splitlines()]
    captured: dict[str, int] = {}
    for number, frames in reports:
        captured[number] = int(frames)
    lengths: dict[str, int] = {}
    for path in saved.iterdir():
        if path.stat().st_size == 0:
            attempt.counts["names taken, not yet filled"] += 1
            continue
        lengths[path.stem] = file_length(path)
    with file_manager() as manager:
        recovered = manager.recover()
        require(len(recovered) <= 1, recovered)
        for path in recovered:
            length = file_length(path)
            number = reports[-1][0] if reports else "0"
            lengths[number] = max(length, lengths.get(number, 0))
            attempt.counts["recovered"] += 1
            manager.release_audio_file(path)
    for number, frames in captured.items():
        have = lengths.get(number, 0)
        require(frames - have <= RATE, f"of recording {number} {have} frames are left, {frames} were captured")
        attempt.counts.update(offered=max(frames, have), missing=max(0, frames - have), delivered=have, lost=0)
    attempt.counts["saved"] += len(lengths)


def file_length(path: str | Path) -> int:
    """Frames of a file, which must be a prefix of the ramp."""
    runs: Runs = file_runs(path)
    require(is_prefix(runs), path, "has", runs.runs)
    return sum(run[2] for run in runs.runs)


@case(tiny=0, short=2, long=100)
def killed_where_a_wav_grows_past_4_gib(attempt: Try) -> None:
    """The file, with a hole for most of it, is valid before and behind, and has all but the last second."""
    own_folders(attempt.folder)
    own, speed = attempt.random, 20
    room = own.randint(0, 2 * speed * RATE)  # until the boundary
    reader, report = os.pipe()

    def record() -> None:
        with file_manager(Microphone(speed=speed), subtype="FLOAT") as manager:
            start(manager)
            until(lambda: manager.get_buffer_info()["file_frames"])
            os.truncate(manager.get_audio_file(), 2**32 - 4 * room)
            until(lambda: manager.get_buffer_info()["file_frames"] > 2**30 - room + RATE)
            while True:
                os.write(report, b"%d\n" % manager.buffer.frames_written)
                time.sleep(0.002)

    pid = fork(record)
    os.close(report)
    with open(reader) as lines:
        require(lines.readline(), "it did not record")
        time.sleep(own.uniform(0.0, 2.0))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        captured = int(lines.read().split()[-1])
    with file_manager() as manager:
        (path,) = manager.recover()
    with soundfile.SoundFile(path) as file:
        require(file.frames * 4 < os.path.getsize(path) <= file.frames * 4 + 100, file, os.path.getsize(path))
        file.seek(file.frames - 3 * speed * RATE)
        audio = file.read(dtype="float32", always_2d=True)
        attempt.counts[file.format] += 1
    behind = audio[int(np.argmax(audio != 0)) :]
    have = serials(behind, 0)
    require((np.diff(have) == 1).all(), path, "has a hole that nobody made")
    require(captured - have[-1] <= speed * RATE, captured, "captured, the last in the file is", have[-1])
