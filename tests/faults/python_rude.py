"""Python that is rude: nothing it does may cost a captured frame, or a recording that was made before."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import soundfile

from conftest import Crew
from faults.account import ReaderAccount, Runs, require, settle
from faults.campaign import Try, case, tests_environment
from faults.load import BLOCK, LIMIT_S, RATE, read_all
from faults.positions import frames
from microphones import Devices, Microphone
from native_support import PACKAGE_ROOT, Foreign
from patience import DEADLINE_S, until
from pcmring import AudioBuffer, BufferClosed, CaptureCallback, FileBasedAudioManager

# ---- the GIL is held, and worse ----------------------------------------------------------------------------------


def _hold_in_python(hold_s: float, own: random.Random) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(hold_s)
    end = time.monotonic() + hold_s
    while time.monotonic() < end:
        pass
    sys.setswitchinterval(before)


def _hold_in_c(hold_s: float, own: random.Random) -> None:
    ctypes.PyDLL(None).usleep(int(hold_s * 1e6))


def _collect_garbage(hold_s: float, own: random.Random) -> None:
    """Of a million objects, where that is not longer than it should take by far."""
    objects = [[None] for _ in range(int(1e6 * min(1.0, 0.6 + hold_s)))]
    for one in objects:
        one[0] = objects
    del objects, one
    gc.collect()


def _sort(hold_s: float, own: random.Random) -> None:
    sorted(own.random() for _ in range(int(4e5 * hold_s)))


def _burn(hold_s: float, own: random.Random) -> None:
    end = time.monotonic() + hold_s

    def burn() -> None:
        while time.monotonic() < end:
            pass

    threads = [threading.Thread(target=burn) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _recurse(hold_s: float, own: random.Random) -> None:
    def deeper() -> None:
        deeper()

    end = time.monotonic() + hold_s
    while time.monotonic() < end:
        with suppress(RecursionError):
            deeper()


def _signals(hold_s: float, own: random.Random) -> None:
    """A handler every ms, which beside its work now and then raises into a wait."""

    class Raised(Exception):
        pass

    def handler(*_: object) -> None:
        sum(range(own.randint(1, 1000)))
        if own.random() < 0.01:
            raise Raised

    with AudioBuffer(10) as nothing:
        reader, end = nothing.reader(), time.monotonic() + hold_s
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        while time.monotonic() < end:
            with suppress(Raised):
                reader.read(1, timeout=0.05)
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_IGN)  # the default ends the process, at one that is late
                break
            except Raised:
                pass


def _fork(hold_s: float, own: random.Random) -> None:
    end = time.monotonic() + hold_s
    while time.monotonic() < end:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


RUDE: tuple[Callable[[float, random.Random], None], ...] = (
    _hold_in_python,
    _hold_in_c,
    _collect_garbage,
    _sort,
    _burn,
    _recurse,
    _signals,
    _fork,
)


@case(tiny=4, short=16, long=800)
def rude_while_a_device_captures(attempt: Try) -> None:
    """Every frame of a C thread's 10 ms blocks arrives, whatever Python does for 10 ms to 5 s."""
    own = attempt.random
    rude = RUDE[attempt.number % len(RUDE)]
    longest_s = attempt.by_form(0.1, 0.4, 5.0)
    hold_s = longest_s if attempt.number < len(RUDE) else own.uniform(0.01, longest_s)
    audio = frames(0, round((hold_s + 0.3) * RATE), 2, "int32")
    crew, foreign = Crew(), Foreign(attempt.folder)
    with AudioBuffer(len(audio), 2, "int32", samplerate=RATE) as buffer:
        account = ReaderAccount(buffer.reader())
        with CaptureCallback(buffer) as capture, foreign.start(capture, audio, BLOCK, BLOCK / RATE) as stream:
            crew.start(read_all, account, BLOCK)
            until(lambda: stream.calls > 3)
            rude(hold_s, own)
            require(stream.join() == 0, "the callback ended its stream")
        buffer.close()
        crew.join(LIMIT_S)
        settle(buffer, len(audio), [account], attempt.counts)
        require(account.delivered == len(audio), account.reader, "lost frames to", rude.__name__)
    attempt.counts[rude.__name__.strip("_").replace("_", " ")] += 1


# ---- functions of the program that fail --------------------------------------------------------------------------


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("an exception that cannot be printed")


class _Own(BaseException):
    pass


FAILURES = (ValueError, MemoryError, RecursionError, _Unprintable, _Own, KeyboardInterrupt, SystemExit, GeneratorExit)
HANDLERS = ("on_audio_data", "on_stream_error", "on_stream_recovered", "on_buffer_full")


def own_folders(folder: Path) -> None:
    """Temporary files and recordings of this process go there."""
    os.environ |= {"TMPDIR": str(folder), "XDG_STATE_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}


def file_runs(path: str | os.PathLike[str]) -> Runs:
    """What is in a sound file of `microphones.ramp`, proven to be in order and nothing twice."""
    with open(path, "rb") as file:  # soundfile takes no name that is not UTF-8
        audio, _ = soundfile.read(file, dtype="float32", always_2d=True)
    runs = Runs()
    runs.add(0, audio)
    return runs


def is_prefix(runs: Runs) -> bool:
    """Frame 0 and all that follow it, without a hole."""
    return len(runs.runs) <= 1 and all(run[:2] == (0, 0) for run in runs.runs)


@case(tiny=2, short=16, long=320)
def exceptions_in_every_handler(attempt: Try) -> None:
    """What was recorded before is kept, a stop works, and so does the next start."""
    own_folders(attempt.folder)
    failing = HANDLERS[attempt.number % len(HANDLERS)]
    kind = FAILURES[
        (attempt.number // 4 + 2 * attempt.number) % len(FAILURES)
    ]  # 16 tries have each kind, 32 every pair
    microphone = Microphone(speed=100 if failing == "on_buffer_full" else 1)
    raised = threading.Event()

    def fail(*_: object) -> None:
        raised.set()
        raise kind("of the program")

    threading.excepthook = lambda _: None  # what ends a thread would be printed
    with FileBasedAudioManager(Devices(lambda: microphone), subtype="FLOAT") as manager:
        for _ in range(2):
            raised.clear()
            setattr(manager, failing, fail)
            require(manager.start_recording(), manager.last_error)
            require(manager.wait_ready(DEADLINE_S), "no audio")
            guarded = manager.reader(guard=True) if failing == "on_buffer_full" else None
            if failing in ("on_stream_error", "on_stream_recovered"):
                microphone.plugged.clear()
                until(lambda: manager.state != "capturing")
                microphone.plugged.set()
            require(raised.wait(DEADLINE_S), failing, "was never called")
            manager.stop_recording()
            written = manager.buffer.frames_written
            if guarded is not None:
                guarded.close()
            runs = file_runs(manager.get_audio_file()).runs
            length = runs[-1][0] + runs[-1][2]
            require(length == written, length, "frames in the file,", written, "captured")
            gaps = sum(manager.get_buffer_info()["frames_lost"].values())
            attempt.counts.update(offered=written + gaps, missing=gaps, delivered=length, lost=0)
            setattr(manager, failing, None)
    attempt.counts[f"{kind.__name__.strip('_')} in {failing}"] += 2


@case(short=8, long=80)
def exceptions_in_every_cleanup_function(attempt: Try) -> None:
    """The others still run, and a recording goes on."""
    own_folders(attempt.folder)
    kind = FAILURES[attempt.number % len(FAILURES)]
    called: list[str] = []
    sys.unraisablehook = lambda _: None  # a weak reference's function cannot raise to anybody

    def fail(name: str) -> Callable[..., int]:
        def function(*_: object) -> int:
            called.append(name)
            raise kind("of the program")

        return function

    with FileBasedAudioManager(Devices(Microphone), subtype="FLOAT") as manager:
        monitor, buffer = manager.memory_monitor, AudioBuffer(100)
        functions = [fail("monitor"), fail("resources"), fail("size")]
        monitor.add_source("model", functions[2])
        monitor.add_cleanup_callback(functions[0])
        manager.resource_manager.add_cleanup_callback(functions[1])
        manager.buffer_tracker.track_buffer(buffer, buffer.nbytes, on_evict=fail("evict"))
        require(manager.start_recording(), manager.last_error)
        require(manager.wait_ready(DEADLINE_S), "no audio")
        for work, wanted in (
            (partial(monitor.cleanup, force=True), ["evict", "monitor", "resources"]),
            (monitor.sample, ["size"]),
        ):
            called.clear()
            try:
                work()
            except BaseException as error:
                require(type(error) is kind and not issubclass(kind, Exception), work, "raised", repr(error))
            else:
                require(issubclass(kind, Exception), kind, "was swallowed")
                require(sorted(called) == wanted, "called were only", called)
        watched = AudioBuffer(1)
        manager.resource_manager.add_weak_ref(watched, fail("weak reference"))
        del watched
        require(called[-1] == "weak reference", "called were only", called)
        monitor.remove_source(functions[2])
        monitor.remove_cleanup_callback(functions[0])
        manager.resource_manager.remove_cleanup_callback(functions[1])
        manager.buffer_tracker.untrack_buffer(buffer)
        monitor.cleanup(force=True)
        manager.stop_recording()
        written = manager.buffer.frames_written
        runs = file_runs(manager.get_audio_file())
        require(is_prefix(runs) and runs.runs[0][2] == written, runs.runs, "in the file,", written, "captured")
        attempt.counts.update(offered=written, missing=0, delivered=written, lost=0)


class _RudeMicrophone(Microphone):
    """A device of the program's own that raises at the n-th use of anything a `Source` has."""

    USES = ("open", "start", "stop", "close", "wait", "active", "finished", "error", "last_arrival_ns", "counters")
    USES += ("name", "samplerate", "channels", "dtype")

    def __init__(self, uses: int, kind: type[BaseException]) -> None:
        super().__init__()
        self.raised = threading.Event()
        self.left, self.kind = uses, kind

    def __getattribute__(self, name: str) -> object:
        if name in _RudeMicrophone.USES and "left" in self.__dict__:
            self.left -= 1
            if self.left == 0:
                self.raised.set()
                raise self.kind("of the device")
        return super().__getattribute__(name)


@case(tiny=4, short=40, long=2000)
def exceptions_in_every_use_of_a_device(attempt: Try) -> None:
    """What was recorded before is kept, a stop ends it, the next start works, and no thread is left."""
    own_folders(attempt.folder)
    kind = FAILURES[attempt.number % len(FAILURES)]
    rude = _RudeMicrophone(attempt.random.randint(1, 40), kind)
    microphones: list[Microphone] = [rude]
    threading.excepthook = lambda _: None
    threads = threading.active_count()
    devices = Devices(lambda: microphones.pop() if microphones else Microphone())
    with FileBasedAudioManager(devices, subtype="FLOAT") as manager:
        with suppress(kind):
            if manager.start_recording():
                rude.raised.wait(0.5)
        for _ in range(2):
            with suppress(kind):
                manager.stop_recording()
        require(not manager.is_recording, manager, "records after a stop")
        for path in manager.get_audio_files():
            soundfile.read(path)  # opened again, this microphone counts anew
            manager.release_audio_file(path)
        microphones.clear()
        require(manager.start_recording() and manager.wait_ready(DEADLINE_S), kind, rude.left, manager.last_error)
        manager.stop_recording()
        written = manager.buffer.frames_written
        runs = file_runs(manager.get_audio_file())
        require(is_prefix(runs) and runs.runs[0][2] == written, runs.runs, "in the file,", written, "captured")
        attempt.counts.update(offered=written, missing=0, delivered=written, lost=0)
    until(lambda: threading.active_count() <= threads)
    attempt.counts["raised" if rude.raised.is_set() else "came to its end before"] += 1


def _interrupt(work: Callable[[], object], after_s: float) -> bool:
    """Do it, with a Ctrl-C on the way; whether it came before the end.

    In pcmring's code, or while it waits. Python's own that takes a lock (threading, logging) can leave it locked.
    """
    is_over = False

    def handler(number: int, frame: FrameType | None) -> None:
        code = None if frame is None else frame.f_code
        ours = PACKAGE_ROOT / "pcmring"
        if is_over:
            return
        if code is threading.Condition.wait.__code__ or (code and Path(code.co_filename).is_relative_to(ours)):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 2e-5)

    signal.signal(signal.SIGALRM, handler)  # and it stays: one that is late would end the process
    try:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        work()
    except KeyboardInterrupt:
        return True
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


@case(short=4, long=200, limit_s=120)
def ctrl_c_at_any_moment_of_a_start_or_a_stop(attempt: Try) -> None:
    """A stop then ends it, whatever was done by then: no thread is left, and the next recording is whole."""
    own_folders(attempt.folder)
    own, threads = attempt.random, threading.active_count()
    longest_s = {"start": 0.004, "stop": 0.004}
    with FileBasedAudioManager(Devices(Microphone), subtype="FLOAT") as manager:
        for _ in range(attempt.by_form(10, 100, 500)):
            what = own.choice(("start", "stop"))
            if what == "stop":
                require(manager.start_recording() and manager.wait_ready(DEADLINE_S), manager.last_error)
            work = manager.start_recording if what == "start" else manager.stop_recording
            is_interrupted = _interrupt(work, own.uniform(1e-5, longest_s[what]))
            longest_s[what] *= 1.1 if is_interrupted else 0.9
            attempt.counts[f"{what} interrupted"] += is_interrupted
            manager.stop_recording()
            require(not manager.is_recording, manager, "records after a stop")
            until(lambda: threading.active_count() <= threads)
            for path in manager.get_audio_files():
                require(is_prefix(file_runs(path)), path)
                manager.release_audio_file(path)
            manager.resource_manager.cleanup()
        require(manager.start_recording() and manager.wait_ready(DEADLINE_S), manager.last_error)
        manager.stop_recording()
        written = manager.buffer.frames_written
        runs = file_runs(manager.get_audio_file())
        require(is_prefix(runs) and runs.runs[0][2] == written, runs.runs, "in the file,", written, "captured")
        attempt.counts.update(offered=written, missing=0, delivered=written, lost=0)


# ---- the end of the interpreter ----------------------------------------------------------------------------------

_PREAMBLE = """
import atexit, os, sys, threading, time
import numpy as np
from microphones import Devices, Microphone
from patience import until
from pcmring import AudioBuffer, BufferClosed, FileBasedAudioManager, StreamingAudioManager
manager = FileBasedAudioManager(Devices(Microphone), subtype="FLOAT")
began = threading.Event()
def start():
    assert manager.start_recording() and manager.wait_ready(30)
def daemon(work):
    def run():
        began.set()
        work()
    threading.Thread(target=run, daemon=True).start()
    assert began.wait(30)
"""

#: (what, program, exit code); the recording of each is whole afterwards.
ENDS = (
    ("returns", "start()", 0),
    ("sys.exit", "start(); sys.exit(3)", 3),
    ("an exception", "start(); raise SystemExit(4)", 4),
    (
        "sys.exit in on_audio_data",
        "def f(_):\n    began.set(); sys.exit(5)\nmanager.on_audio_data = f\nstart(); began.wait(30)",
        0,
    ),
    ("sys.exit at exit", "atexit.register(lambda: manager.get_latest_audio()); start(); sys.exit(6)", 6),
    ("a daemon waits in a read", "start(); r = manager.reader(); daemon(lambda: r.read(10**6, None))", 0),
    ("a daemon loops over blocks", "start(); r = manager.reader()\ndaemon(lambda: list(r.blocks(512)))", 0),
    (
        "a daemon writes and another reads",
        "start(); b = AudioBuffer(1000, policy='block'); r = b.reader(guard=True)\n"
        "def w():\n    while True: b.write(np.zeros(700, np.float32))\n"
        "def d():\n    while True: r.read(300, None)\ndaemon(w); daemon(d)",
        0,
    ),
    (
        "daemons look and copy",
        "start(); b = AudioBuffer(100_000); b.write(np.zeros(200_000, np.float32))\n"
        "def w():\n    while True: b.get_latest(90_000); b.latest_view(50_000).array.sum()\ndaemon(w); daemon(w)",
        0,
    ),
    (
        "a daemon starts and stops",
        "start()\ndef w():\n    while True: manager.stop_recording(); manager.start_recording()\ndaemon(w)",
        0,
    ),
    ("an atexit function stops", "atexit.register(manager.stop_recording); start()", 0),
    ("a cycle keeps it", "start(); manager.me = manager; del manager", 0),
)


@case(tiny=1, short=len(ENDS), long=20 * len(ENDS))
def the_interpreter_ends_while_recording(attempt: Try) -> None:
    """In time, quietly, with its own exit code, and with a whole file."""
    own_folders(attempt.folder)
    what, program, code = ENDS[attempt.number % len(ENDS)]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _PREAMBLE + program],
        env=tests_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    require(done.returncode == code, what, "ended with", done.returncode, done.stderr[-2000:])
    complaints = [line for line in done.stderr.splitlines() if "ResourceWarning" not in line]
    require(not any("Fatal" in line or "Traceback" in line for line in complaints), what, done.stderr[-2000:])
    for path in attempt.folder.rglob("recording-*.wav"):
        runs = file_runs(path)
        require(is_prefix(runs), what, "left a file with", runs.runs)
        length = sum(run[2] for run in runs.runs)
        attempt.counts.update(offered=length, missing=0, delivered=length, lost=0)
    attempt.counts["ended by: " + what] += 1


# ---- forks -------------------------------------------------------------------------------------------------------


@case(short=3, long=30)
def forks_in_the_middle_of_everything(attempt: Try) -> None:
    """A child has nothing open of its parent's and can make its own; the parent's reader goes on."""
    own, crew = attempt.random, Crew()
    total = attempt.by_form(100_000, 1_000_000, 10_000_000)
    buffer = AudioBuffer(40_009, dtype="int32", policy="block")
    account = ReaderAccount(buffer.reader(guard=True))
    keep = []

    def write(own: random.Random) -> None:
        serial = 0
        while serial < total:
            block = min(own.randint(1, 30_000), total - serial)
            buffer.write(frames(serial, block), timeout=LIMIT_S)
            serial += block
        keep.append(buffer.latest_view(1))
        buffer.close()

    def child() -> None:
        try:
            account.reader.read(1)
        except BufferClosed:
            ring = AudioBuffer(40_009)
            ring.write(np.ones(50_000, np.float32))
            os._exit(0 if len(ring.read(50_000)) == 40_009 else 2)
        os._exit(1)

    writer = crew.start(write, random.Random(own.random()))
    crew.start(read_all, account, 20_000)
    for forks in itertools.count():
        if forks and not writer.is_alive():
            break
        pid = os.fork()
        if pid == 0:
            child()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        require(status == 0, "a child ended with", status)
    crew.join(LIMIT_S)
    settle(buffer, total, [account], attempt.counts)
    require(account.delivered == total, account.reader)
    attempt.counts["forks"] += forks
