"""Programs of others: built against the installed headers and .pxd, writing into a ring without the GIL."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import threading
from pathlib import Path

import numpy as np
import pytest

import pcmring
from native_support import DEADLINE_S, clean_environment, compiler, run
from pcmring import AudioBuffer, BufferClosed, CaptureCallback
from virtual_mic import need

pytestmark = pytest.mark.native

HERE = Path(__file__).parent
MODULES = ["cython_producer", "c_producer"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def coded(start: int, frames: int, channels: int) -> np.ndarray:
    """What frames.h writes at these positions."""
    samples = np.arange(start * channels + 1, (start + frames) * channels + 1, dtype=np.int32)
    return samples.reshape(frames, channels)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both modules, built as a stranger would."""
    compiler()
    need("Cython", "setuptools")
    folder = tmp_path_factory.mktemp("downstream") / "project"
    shutil.copytree(HERE / "downstream", folder)
    run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder)
    return folder


@pytest.fixture(scope="module", params=MODULES)
def module(request: pytest.FixtureRequest, built: Path):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    spec = importlib.util.spec_from_file_location(request.param, built / f"{request.param}{suffix}")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_doors_are_installed():
    include = Path(pcmring.get_include())
    for header in ("ring.h", "api.h", "capture.h"):
        assert (include / "pcmring" / header).is_file()
    assert (Path(pcmring.__file__).parent / "_buffer.pxd").is_file()


@pytest.mark.parametrize("foreign", [False, True], ids=["c_loop", "foreign_thread"])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_frames_written_without_the_gil_are_read_in_python(module, channels, foreign):
    with AudioBuffer(701, channels, "int32") as buffer, buffer.reader() as reader:
        producer = module.Producer(buffer)
        assert producer.latest() == (0, None)
        assert producer.write(600, 97, foreign) == 600
        assert (buffer.frames_written, buffer.statistics().blocks) == (600, 7)
        np.testing.assert_array_equal(reader.read(1000), coded(0, 600, channels))
        assert producer.write(1400, 97, foreign) == 1400  # round the ring twice
        assert (buffer.frames_written, buffer.oldest) == (2000, 1299)
        assert producer.latest() == (1999, 1999 * channels + 1)
        np.testing.assert_array_equal(reader.read(1000), coded(1299, 701, channels))
        assert reader.losses() == [(600, 1299)]
        producer.release()


def test_samples_of_another_format_are_converted(module):
    with AudioBuffer(100, 1, "float64") as buffer:
        producer = module.Producer(buffer)
        producer.write(100, 50)
        producer.release()
        np.testing.assert_array_equal(buffer.read(100), coded(0, 100, 1) / 2.0**31)


def test_python_cannot_write_meanwhile(module):
    with AudioBuffer(100, 1, "int32") as buffer:
        producer = module.Producer(buffer)
        for refused in (
            lambda: buffer.write(coded(0, 1, 1)),
            lambda: buffer.mark_gap(1, "paused"),
            lambda: module.Producer(buffer),
            lambda: CaptureCallback(buffer),
        ):
            with pytest.raises(RuntimeError, match="one producer"):
                refused()
        assert buffer.frames_written == 0
        producer.write(10, 10)  # the refused ones took nothing away from the one
        producer.release()
        assert buffer.write(coded(10, 10, 1)) == 10
        np.testing.assert_array_equal(buffer.read(100), coded(0, 20, 1))


def test_a_released_buffer_can_be_acquired_again(module):
    with AudioBuffer(100, 1, "int32") as buffer:
        for round_ in range(5):
            producer = module.Producer(buffer)
            assert producer.write(10, 3) == 10
            producer.release()
            assert buffer.frames_written == 10 * (round_ + 1)
        np.testing.assert_array_equal(buffer.read(100), coded(0, 50, 1))


@pytest.mark.parametrize("wrong", [None, 3, "buffer", object(), np.zeros(3)], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_audio_buffer_is_a_type_error(module, wrong):
    with pytest.raises(TypeError, match="AudioBuffer"):
        module.Producer(wrong)


def test_a_closed_buffer_has_no_producer(module):
    buffer = AudioBuffer(100, 1, "int32")
    buffer.close()
    with pytest.raises(BufferClosed):
        module.Producer(buffer)


def test_a_buffer_closed_meanwhile_keeps_its_memory_for_the_producer(module):
    buffer = AudioBuffer(100_000, 1, "int32")
    producer = module.Producer(buffer)
    producer.write(10, 10)
    buffer.close()
    producer.write(100_000, 1000, True)  # stored where nobody looks; nothing crashes
    producer.release()
    assert buffer.closed


def test_a_sleeping_python_reader_is_woken(module):
    with AudioBuffer(100, 1, "int32") as buffer:
        reader, found = buffer.reader(), []
        waiter = threading.Thread(target=lambda: found.append(reader.read(50, DEADLINE_S)), daemon=True)
        waiter.start()
        producer = module.Producer(buffer)
        producer.write(50, 10, True)
        waiter.join(DEADLINE_S)
        producer.release()
        np.testing.assert_array_equal(found[0], coded(0, 50, 1))
        reader.close()


def test_policies_hold_for_c_producers_too(module):
    with AudioBuffer(100, 1, "int32", policy="drop") as buffer:
        producer = module.Producer(buffer)
        assert producer.write(130, 130) == 100
        producer.release()
        assert [tuple(gap) for gap in buffer.gaps()] == [(100, 30, "dropped", True)]


@pytest.mark.parametrize("name", MODULES)
def test_the_modules_work_in_a_fresh_interpreter(built, name):
    """Importing the C module alone must bring pcmring in."""
    script = (
        f"import {name}, sys\nfrom pcmring import AudioBuffer\nbuffer = AudioBuffer(10, 1, 'int32')\n"
        f"producer = {name}.Producer(buffer)\nproducer.write(5, 5, True)\nproducer.release()\n"
        "print(buffer.read(10)[:, 0].tolist(), getattr(sys, '_is_gil_enabled', lambda: True)())"
    )
    environment = clean_environment()
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(built), environment.get("PYTHONPATH")]))
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    assert run([sys.executable, "-c", script], env=environment).strip() == f"[1, 2, 3, 4, 5] {gil}"


# ---- the headers in C++ ---------------------------------------------------------------------------


@pytest.mark.parametrize("standard", ["c++11", "c++17", "c++20"])
def test_ring_h_and_capture_h_work_in_cpp(tmp_path, standard):
    program = tmp_path / "ring_alone"
    include = f"-I{pcmring.get_include()}"
    source = HERE / "downstream" / "ring_alone.cpp"
    command = [*compiler("c++"), f"-std={standard}", "-O2", *WARNINGS, include, source]
    run([*command, "-o", program, "-lpthread"])
    assert run([program]) == "900 frames\n"


@pytest.mark.parametrize(("language", "standard"), [("c", "c11"), ("c", "c17"), ("c++", "c++11"), ("c++", "c++20")])
def test_a_module_with_api_h_compiles_in_c_and_cpp(tmp_path, language, standard):
    """Without a warning; Python's own headers are not ours to judge."""
    python = sysconfig.get_path("include")
    source = HERE / "downstream" / "c_producer.c"
    words = [*compiler(language), "-x", language, f"-std={standard}", "-fPIC", *WARNINGS]
    words += ["-Wno-missing-field-initializers", f"-I{pcmring.get_include()}", "-isystem", python]
    run([*words, "-c", source, "-o", tmp_path / "c_producer.o"])


@pytest.mark.parametrize(("language", "standard"), [("c", "c11"), ("c++", "c++11")])
@pytest.mark.parametrize("header", ["ring.h", "capture.h"])
def test_a_header_compiles_alone_without_a_warning(tmp_path, header, language, standard):
    """Also for a program that uses only a part of it."""
    source = tmp_path / "alone.txt"
    source.write_text(f'#include "pcmring/{header}"\nint pcmring_is_compiled = 1;\n')
    words = [*compiler(language), "-x", language, f"-std={standard}", "-pedantic", *WARNINGS]
    run([*words, f"-I{pcmring.get_include()}", "-c", source, "-o", tmp_path / "alone.o"])
