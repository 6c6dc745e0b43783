"""What processes do to rings: fork, spawn, exit, a second interpreter; and what importing the library loads."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings

import numpy as np
import pytest

import pcmring
from pcmring import AudioBuffer, BufferClosed, CaptureCallback

PLAIN, MIRRORED = 1000, 20_000
LIMIT_S = 30  # of anything here; a hang fails, it does not wait

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def coded(start: int, stop: int) -> np.ndarray:
    return ((np.arange(start, stop)[:, None] * 7) % 30_011 / 32_768).astype(np.float32)


def in_child(report) -> object:
    """Run `report` in a forked child; its answer. A child that raises, crashes or hangs fails the test."""
    read_fd, write_fd = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about fork beside threads: our subject
        child = os.fork()
    if child == 0:  # nothing of pytest's may run here
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT_S)
            os.write(write_fd, json.dumps(report()).encode())
            status = 0
        except BaseException:
            os.write(write_fd, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}: {answer.decode()}"
    return json.loads(answer)


def run(code: str, *arguments: str, cwd=None, path=(), interpreter_options=()) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter; it must end by itself and well."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *interpreter_options, "-c", textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=2 * LIMIT_S, cwd=cwd, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def outcome(name: str, call) -> str:
    """What `call` did but raise BufferClosed; empty if it did."""
    try:
        return f"{name} returned {call()!r}"
    except BufferClosed:
        return ""
    except Exception as error:
        return f"{name} raised {error!r}"


def refusals(buffer, reader, windows) -> list[str]:
    """The calls that did not raise BufferClosed, and what they did."""
    calls = {
        "write": lambda: buffer.write(coded(0, 5)),
        "write nothing": lambda: buffer.write(coded(0, 0)),
        "write waiting": lambda: buffer.write(coded(0, 5), timeout=None),
        "read": lambda: buffer.read(1),
        "read waiting": lambda: buffer.read(1, timeout=None),
        "read_into": lambda: buffer.read_into(np.empty((3, 1), np.float32)),
        "get_latest": lambda: buffer.get_latest(1),
        "read_range": lambda: buffer.read_range(0, 1),
        "view": lambda: buffer.view(0, 1),
        "latest_view": lambda: buffer.latest_view(1),
        "reader": lambda: buffer.reader(),
        "mark_gap": lambda: buffer.mark_gap(1, "paused"),
        "clear": lambda: buffer.clear(),
        "gaps": lambda: buffer.gaps(),
        "statistics": lambda: buffer.statistics(),
        "time_of": lambda: buffer.time_of(0),
        "fill": lambda: buffer.fill,
        "oldest": lambda: buffer.oldest,
        "get_fill_level": lambda: buffer.get_fill_level(),
        "with": lambda: buffer.__enter__(),
        "capture": lambda: CaptureCallback(buffer),
        "reader.read": lambda: reader.read(1),
        "reader.read waiting": lambda: reader.read(1, timeout=None),
        "reader.read_into": lambda: reader.read_into(np.empty((3, 1), np.float32)),
        "reader.blocks": lambda: reader.blocks(1),
    }
    wrong = [finding for name, call in calls.items() if (finding := outcome(name, call))]
    if list(windows):
        wrong.append("windows went on")
    if not (buffer.closed and reader.closed):
        wrong.append("closed is not True")
    return wrong


# ---- fork -------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("policy", ["overwrite", "drop", "block"])
@pytest.mark.parametrize("capacity", [PLAIN, MIRRORED])
def test_a_forked_child_finds_everything_closed_and_the_parent_notices_nothing(capacity, policy):
    buffer = AudioBuffer(capacity, samplerate=16_000, policy=policy)
    buffer.write(coded(0, 500))
    reader = buffer.reader("oldest", guard=policy != "overwrite")
    view = buffer.latest_view(100)
    windows = reader.blocks(10)
    next(windows)
    before = buffer.statistics()

    def child():
        wrong = refusals(buffer, reader, windows)
        if view.array.sum() != coded(400, 500).sum():
            wrong.append("the view changed")
        if (buffer.frames_written, reader.position, reader.available) != (500, 10, 0):
            wrong.append("facts changed")
        repr((buffer, reader, view, view.intact))
        reader.close()
        buffer.close()
        buffer.cleanup()
        return wrong

    assert in_child(child) == []
    assert not buffer.closed
    assert not reader.closed
    assert buffer.statistics() == before
    buffer.write(coded(500, 600))
    assert buffer.frames_written == 600
    np.testing.assert_array_equal(reader.read(1000), coded(10, 600))
    assert len(reader.read(1, timeout=0.001)) == 0  # no more there is not the end
    np.testing.assert_array_equal(view.array, coded(400, 500))


@needs_fork
@pytest.mark.parametrize("capacity", [PLAIN, MIRRORED])
def test_what_a_child_destroys_is_its_own(capacity):
    """Its readers' guards, views and mappings go at its end; the parent's stay, also in shared pages."""
    things = {"buffer": AudioBuffer(capacity, policy="drop")}
    things["buffer"].write(coded(0, capacity))
    things["reader"] = things["buffer"].reader("oldest", guard=True)
    things["array"] = things["buffer"].latest_view(100).array

    def child():
        for name in ("reader", "buffer", "array"):
            del things[name]
            gc.collect()
        return True

    assert in_child(child)
    buffer, reader = things["buffer"], things["reader"]
    assert buffer.write(coded(0, 10)) == 0  # still guarded
    np.testing.assert_array_equal(things["array"], coded(capacity - 100, capacity))
    np.testing.assert_array_equal(reader.read(capacity), coded(0, capacity))
    assert buffer.write(coded(0, 10)) == 10


@needs_fork
def test_a_child_can_have_rings_of_its_own():
    buffer = AudioBuffer(PLAIN)

    def child():
        mine = AudioBuffer(MIRRORED, policy="block", samplerate=16_000)
        got = []
        thread = threading.Thread(target=lambda: got.append(mine.read(100, timeout=None)))
        thread.start()
        mine.write(coded(0, 100))
        thread.join()
        nested = in_child(lambda: refusals(mine, mine_reader, ()))
        return [buffer.closed, mine.closed, np.array_equal(got[0], coded(0, 100)), nested]

    def child_with_reader():
        nonlocal mine_reader
        mine_reader = AudioBuffer(PLAIN, samplerate=16_000).reader()
        return child()

    mine_reader = None
    assert in_child(child_with_reader) == [True, False, True, []]
    assert not buffer.closed


@needs_fork
def test_a_child_forked_beside_a_waiting_reader_and_a_capture_is_refused_alike():
    """What another thread of the parent was in the middle of says nothing to the child."""
    buffer = AudioBuffer(PLAIN, samplerate=16_000)
    reader = buffer.reader()
    waits = [threading.Thread(target=wait, daemon=True) for wait in (
        lambda: buffer.read(1, timeout=LIMIT_S), lambda: reader.read(1, timeout=LIMIT_S)
    )]  # fmt: skip
    with CaptureCallback(buffer):
        for thread in waits:
            thread.start()
        for source in (buffer, reader):
            while "RuntimeError" not in outcome("read", lambda source=source: source.read(0)):
                pass  # until that thread is in its call
        assert in_child(lambda: refusals(buffer, reader, ())) == []
    buffer.write(coded(0, 1))
    for thread in waits:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@needs_fork
@pytest.mark.parametrize("capacity", [PLAIN, MIRRORED])
def test_forks_beside_a_writing_thread_lose_nothing(capacity):
    buffer = AudioBuffer(capacity, samplerate=16_000)
    reader = buffer.reader("oldest")
    stop = threading.Event()
    written = 0

    def produce():
        nonlocal written
        while not stop.is_set():
            written += buffer.write(coded(written, written + 97))

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        for _ in range(10):
            assert in_child(lambda: refusals(buffer, reader, ())) == []
            got = reader.read(capacity)
            np.testing.assert_array_equal(got, coded(reader.position - len(got), reader.position))
    finally:
        stop.set()
        thread.join(LIMIT_S)
    assert buffer.frames_written == written > 0
    np.testing.assert_array_equal(buffer.get_latest(capacity), coded(max(0, written - capacity), written))
    assert reader.position - reader.start == reader.delivered + reader.lost


@needs_fork
def test_a_child_forked_while_the_callback_runs_can_end_its_copy_of_the_capture():
    """The callback's thread is not in the child: nobody will ever leave the callback there."""
    frames = np.zeros((2_000_000, 1), np.float64)
    buffer = AudioBuffer(2_000_000, dtype="int16")
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
                                ctypes.c_ulong, ctypes.c_void_p)  # fmt: skip
    with CaptureCallback(buffer, "float64") as capture:
        call = function(capture.address)
        stop = threading.Event()
        source, userdata = frames.ctypes.data, capture.userdata

        def portaudio():
            while not stop.is_set():
                call(source, None, 2_000_000, None, 0, userdata)

        thread = threading.Thread(target=portaudio)
        thread.start()
        try:
            while capture.callbacks < 2:
                pass

            def child():
                capture.stop()
                capture.close()
                capture.close()
                return capture.closed

            for _ in range(5):
                assert in_child(child) is True
            assert not capture.closed
            before = capture.callbacks
            while capture.callbacks == before:  # it still runs
                assert thread.is_alive()
        finally:
            stop.set()
            thread.join(LIMIT_S)
    assert buffer.frames_written == 2_000_000 * capture.callbacks
    assert buffer.write(coded(0, 5)) == 5  # the producer's place is free again


# ---- spawn ------------------------------------------------------------------------------------------

SPAWN = """
import multiprocessing
import numpy as np
from pcmring import AudioBuffer

def work(queue):
    with AudioBuffer(20_000) as buffer:
        buffer.write(np.arange(5, dtype=np.float32))
        queue.put(buffer.read(9)[:, 0].tolist())

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    buffer = AudioBuffer(100)
    for thing in (buffer, buffer.reader(), buffer.latest_view(1)):
        process = context.Process(target=print, args=(thing,))
        try:
            process.start()
        except TypeError as error:
            print("refused:", type(thing).__name__)
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    print(queue.get(timeout=30))
    process.join(30)
    print(process.exitcode)
"""


def test_a_spawned_process_has_rings_of_its_own_and_is_given_none(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWN)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=2 * LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused: AudioBuffer", "refused: Reader", "refused: AudioView",
                                        "[0.0, 1.0, 2.0, 3.0, 4.0]", "0"]  # fmt: skip


# ---- the end of the interpreter ---------------------------------------------------------------------

EXIT = """
import asyncio, atexit, sys, threading
import numpy as np
from pcmring import AudioBuffer

plain, mirrored, full = AudioBuffer(100), AudioBuffer(20_000), AudioBuffer(10, policy="block")
full.write(np.zeros(10, np.float32))

async def first(blocks):
    async for block in blocks:
        return block

waits = [
    lambda: plain.read(1, timeout=None),
    lambda: mirrored.read_into(np.empty((5, 1), np.float32), timeout=None),
    lambda: plain.reader().read(1, timeout=None),
    lambda: mirrored.reader().read(1, timeout=None),
    lambda: next(mirrored.reader().blocks(10)),
    lambda: full.write(np.zeros(20, np.float32)),
    lambda: asyncio.run(first(plain.reader().blocks(10))),
]
entered = threading.Barrier(len(waits) + 1)
threading.excepthook = lambda args: None  # a buffer that closes is news to who waits for it
for wait in waits:
    threading.Thread(target=lambda wait=wait: (entered.wait(), wait()), daemon=True).start()
if sys.argv[1] == "close":
    for buffer in (plain, mirrored, full):
        atexit.register(buffer.close)
elif sys.argv[1] == "write":
    atexit.register(plain.write, np.zeros(10, np.float32))
    atexit.register(mirrored.write, np.zeros(10, np.float32))
    atexit.register(full.read, 5)
entered.wait()
print("end")
"""


@pytest.mark.parametrize("at_exit", ["nothing", "close", "write"])
@pytest.mark.parametrize("time", [1, 2, 3])
def test_the_interpreter_exits_beside_waiting_threads(at_exit, time):
    """Readers of every kind and a writer, that sleep, are about to, or are woken while it shuts down."""
    done = run(EXIT, at_exit)
    assert (done.stdout, done.stderr) == ("end\n", "")


def test_everything_may_still_be_open_at_exit():
    done = run("""
        import builtins
        import numpy as np
        from pcmring import AudioBuffer
        buffer = AudioBuffer(20_000, policy="drop")
        buffer.write(np.zeros(10, np.float32))
        reader, view = buffer.reader(guard=True), buffer.latest_view(5)
        array, blocks = view.array, reader.blocks(5)
        builtins.kept = [buffer, reader, view, array, blocks]
        builtins.kept.append(builtins.kept)
    """)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("where", ["in the module", "in a cycle", "kept by builtins"])
def test_a_capture_forgotten_at_exit_is_a_resource_warning_and_no_more(where):
    keep = {"in the module": "", "in a cycle": "loop = [capture]; loop.append(loop); del capture",
            "kept by builtins": "import builtins; builtins.kept = capture"}[where]  # fmt: skip
    done = run(f"""
        from pcmring import AudioBuffer, CaptureCallback
        capture = CaptureCallback(AudioBuffer(20_000, samplerate=16_000))
        {keep}
    """, interpreter_options=("-W", "default"))  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("ResourceWarning") <= 1


def test_a_forgotten_capture_warns_and_frees_the_producers_place():
    buffer = AudioBuffer(PLAIN)
    capture = CaptureCallback(buffer)
    with pytest.raises(RuntimeError):
        buffer.write(coded(0, 1))
    with pytest.warns(ResourceWarning, match="not closed"):
        del capture
    assert buffer.write(coded(0, 1)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_capture_frees_the_producers_place_also_where_warnings_are_errors():
    buffer = AudioBuffer(PLAIN)
    capture = CaptureCallback(buffer)
    unraised = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: unraised.append(args.exc_type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del capture
            gc.collect()
    finally:
        sys.unraisablehook = hook
    assert unraised == [ResourceWarning]
    assert buffer.write(coded(0, 1)) == 1


# ---- an import that fails ---------------------------------------------------------------------------

RETRIED = """
import collections, importlib.machinery, importlib.util, os, signal, sys, threading, types
import _testcapi
import numpy
package = types.ModuleType("pcmring")
package.__path__ = [folder := sys.argv[1]]
sys.modules["pcmring"] = package
import pcmring._records, pcmring.errors
path = importlib.machinery.PathFinder.find_spec("pcmring._buffer", [folder]).origin
loader = importlib.machinery.ExtensionFileLoader("pcmring._buffer", path)
spec = importlib.util.spec_from_file_location("pcmring._buffer", path, loader=loader)

def load(failing):
    module = importlib.util.module_from_spec(spec)
    if failing:
        _testcapi.set_nomemory(failing, failing + 1)
    try:
        loader.exec_module(module)
    finally:
        _testcapi.remove_mem_hooks()
    return module

def retry(failing):
    try:
        load(failing)
    except BaseException:
        pass
    else:
        return 0
    try:
        module = load(0)
    except ImportError:  # Cython does not begin again
        return 4
    buffer = module.AudioBuffer(10)
    buffer.write([1.0] * 3)
    return 3 if buffer.read(3).sum() == 3 else 1

def attempt(failing):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(retry(failing))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 3, 4), (failing, code)
    return code

last = next(failing for failing in range(6000, 0, -20) if attempt(failing))  # nearly the last of an import
print(sum(attempt(failing) == 3 for failing in range(max(1, last - 60), last + 20)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork for each attempt")
def test_what_an_import_without_memory_left_behind_does_no_harm_to_the_next():
    pytest.importorskip("_testcapi")
    assert int(run(RETRIED, os.path.dirname(pcmring.__file__)).stdout) > 0


# ---- a second interpreter ---------------------------------------------------------------------------

SECOND = """
import sys, textwrap, warnings
warnings.simplefilter("ignore")
code = textwrap.dedent('''
    import sys, warnings
    sys.path[:] = {path!r}
    warnings.simplefilter("ignore")
    try:
        import numpy as np
    except Exception:  # NumPy's own refusals are many
        np = None
    try:
        import pcmring
    except ImportError:
        np = None
    except RuntimeError:
        if np is not None:
            raise
    if np is not None:
        buffer = pcmring.AudioBuffer(20_000)
        buffer.write(np.ones(5, np.float32))
        assert buffer.read(9).sum() == 5
        buffer.close()
''').format(path=sys.path)
if sys.argv[1] == "imported before":
    import numpy as np
    import pcmring
    buffer = pcmring.AudioBuffer(20_000)
    buffer.write(np.ones(7, np.float32))
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    def execute(interpreter):
        failed = interpreters.exec(interpreter, code)
        assert failed is None, failed
else:
    import _xxsubinterpreters as interpreters
    def execute(interpreter):
        interpreters.run_string(interpreter, code)
for _ in range(2):
    interpreter = interpreters.create()
    execute(interpreter)
    interpreters.destroy(interpreter)
if sys.argv[1] == "imported before":
    assert buffer.read(9).sum() == 7
print("survived")
"""


@pytest.mark.parametrize("when", ["imported before", "imported there only"])
def test_a_second_interpreter_works_or_cannot_import(when):
    assert run(SECOND, when).stdout == "survived\n"


# ---- importing --------------------------------------------------------------------------------------

#: Modules that `import pcmring` may load beyond NumPy's: seven of its own, Cython's, and small ones of the standard
#: library (threading); 10 with Python 3.11 and NumPy 2.4. Counted, because time on a shared machine says little.
MODULES_BEYOND_NUMPY = 20


@pytest.fixture(scope="module")
def loaded_beyond_numpy() -> set[str]:
    done = run("""
        import sys
        import numpy
        before = set(sys.modules)
        import pcmring
        print(*sorted(set(sys.modules) - before))
    """)
    return set(done.stdout.split())


def test_importing_loads_little_beyond_numpy(loaded_beyond_numpy):
    assert "pcmring._buffer" in loaded_beyond_numpy
    assert len(loaded_beyond_numpy) <= MODULES_BEYOND_NUMPY, sorted(loaded_beyond_numpy)


def test_importing_loads_no_optional_package(loaded_beyond_numpy):
    late = {"sounddevice", "psutil", "soundfile", "soxr", "asyncio", "multiprocessing", "pcmring._aio",
            "pcmring._timeline", "importlib.metadata"}  # fmt: skip
    assert loaded_beyond_numpy & late == set()


@pytest.mark.parametrize("module", ["pcmring.buffer_manager", "pcmring.pipeline"])
def test_what_threads_report_is_loaded_before_they_run(module):
    assert run(f"import sys, {module}; print('pcmring._statistics' in sys.modules)").stdout == "True\n"


def test_importing_prints_nothing_starts_no_thread_and_leaves_signals_alone():
    done = run("""
        import signal, threading, warnings
        warnings.simplefilter("error")
        import numpy
        before = [signal.getsignal(number) for number in signal.valid_signals()]
        import pcmring
        assert [signal.getsignal(number) for number in signal.valid_signals()] == before
        assert threading.active_count() == 1
    """)
    assert (done.stdout, done.stderr) == ("", "")


def is_installed() -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.distribution("pcmring"))
    return False


def test_the_version_is_the_distributions():
    if not is_installed():
        pytest.skip("a build in place has no version")
    assert pcmring.__version__ == importlib.metadata.version("pcmring")
    assert pcmring.__version__[0].isdigit()


def test_every_public_name_is_there_and_no_other_is_made_up():
    for name in pcmring.__all__:
        assert getattr(pcmring, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pcmring.nonsense


def test_get_include_is_the_folder_of_the_headers():
    folder = pathlib.Path(pcmring.get_include())
    assert folder.is_absolute()
    for header in ("ring.h", "capture.h", "api.h"):
        text = (folder / "pcmring" / header).read_text(encoding="utf-8")
        assert "#ifndef PCMRING_" in text
    assert pathlib.Path(pcmring.__file__).parent in folder.parents


# ---- the seed's import path -------------------------------------------------------------------------


def portions_of_audio() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("audio")
    if spec is None and not is_installed():
        pytest.skip("src/audio is not in this build")
    assert spec is not None
    assert spec.origin is None  # a namespace: no file of its own
    return [pathlib.Path(folder) for folder in spec.submodule_search_locations]


def test_audio_is_a_namespace_portion_of_two_small_modules():
    ours = [folder for folder in portions_of_audio() if (folder / "buffer_manager.py").exists()]
    assert ours
    for folder in ours:
        assert sorted(path.name for path in folder.glob("*.py")) == ["buffer_manager.py", "memory_manager.py"]


def test_the_seeds_imports_work_from_an_empty_folder(tmp_path):
    portions_of_audio()
    done = run("""
        from audio.memory_manager import AudioBufferTracker
        from audio.buffer_manager import AudioBuffer
        import pcmring
        print(AudioBuffer is pcmring.AudioBuffer, AudioBufferTracker is pcmring.AudioBufferTracker)
    """, cwd=tmp_path)  # fmt: skip
    assert done.stdout == "True True\n"


@pytest.mark.parametrize("order", ["before ours", "behind ours"])
def test_an_applications_own_audio_package_wins(tmp_path, order):
    portions_of_audio()
    package = tmp_path / "audio"
    package.mkdir()
    (package / "__init__.py").write_text("mine = 5\n")
    (package / "player.py").write_text("from pcmring import AudioBuffer\n")
    code = """
        import sys
        if sys.argv[1] == "behind ours":
            sys.path.remove(sys.argv[2])
            sys.path.append(sys.argv[2])
        import audio
        from audio.player import AudioBuffer
        print(audio.mine, AudioBuffer(5).capacity)
        try:
            import audio.buffer_manager
        except ImportError:
            print("theirs alone")
    """
    done = run(code, order, str(tmp_path), cwd=package, path=[tmp_path])
    assert done.stdout == "5 5\ntheirs alone\n"
