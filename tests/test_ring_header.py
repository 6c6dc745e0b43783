"""The installed ring.h: programs compile against it without a warning, and its own tests pass.

The long stress and the sanitizers are the Makefile's in tests/native.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pcmring

NATIVE = Path(__file__).resolve().parent / "native"
INCLUDE = Path(pcmring.get_include())
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]

# The C library, and what it takes to wait on each system.
ALLOWED_HEADERS = {
    *("errno.h", "limits.h", "math.h", "stddef.h", "stdint.h", "string.h", "time.h"),
    *("stdatomic.h", "atomic"),
    *("unistd.h", "linux/futex.h", "sys/syscall.h", "windows.h"),
    *("AvailabilityMacros.h", "os/os_sync_wait_on_address.h"),
}

# What another program does with it: open, write, wake, read, close.
USE_IT = """
#include "pcmring/ring.h"
#include "pcmring/ring.h"
int use(pcmring_ring *r, void *memory, const pcmring_config *config, float *block);
int use(pcmring_ring *r, void *memory, const pcmring_config *config, float *block)
{
    pcmring_reader reader;
    uint64_t first = 0;
    int wake = 0;
    if (pcmring_init(r, memory, config) != 0)
        return 1;
    pcmring_reader_open(&reader, pcmring_frames_written(r));
    pcmring_write(r, block, PCMRING_FLOAT32, 16, NULL, &wake);
    if (wake)
        pcmring_wake(r);
    pcmring_read(r, &reader, block, 16, PCMRING_NEVER, &first);
    pcmring_close(r);
    return (int)(first + pcmring_delivered(&reader));
}
"""

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(sys.platform == "win32", reason="the programs here need POSIX threads"),
]


def find_compiler(*names: str) -> list[str]:
    """Return the first of the commands that is there, or skip."""
    for name in names:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    pytest.skip(f"no compiler here: looked for {', '.join(filter(None, names))}")


def c_compiler() -> list[str]:
    return find_compiler(os.environ.get("CC", ""), "cc", "gcc", "clang")


def run(command: list[str], timeout_s: float = 110.0) -> str:
    """Run to the end and return what it printed; a failure shows all of it."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
    return done.stdout


def build(tmp_path: Path, sources: list[str], *options: str) -> str:
    program = str(tmp_path / "program")
    paths = [str(NATIVE / source) for source in sources]
    run(
        [
            *c_compiler(),
            *("-std=gnu11", "-O2", *STRICT, f"-I{INCLUDE}", *options),
            *paths,
            *("-o", program, "-pthread", "-lm"),
        ]
    )
    return program


@pytest.mark.parametrize("atomic_copy", [0, 1], ids=["memcpy", "atomic copy"])
def test_every_function_does_what_it_promises(tmp_path: Path, atomic_copy: int) -> None:
    program = build(tmp_path, ["unit.c", "unit_wakes.c"], f"-DPCMRING_ATOMIC_COPY={atomic_copy}")
    last = run([program]).splitlines()[-1]
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed", last)


@pytest.mark.stress
@pytest.mark.parametrize("atomic_copy", [0, 1], ids=["memcpy", "atomic copy"])
def test_threads_account_for_every_frame(tmp_path: Path, atomic_copy: int) -> None:
    program = build(tmp_path, ["stress.c"], f"-DPCMRING_ATOMIC_COPY={atomic_copy}")
    *_, totals, last = run([program, "--frames", "4e6"]).splitlines()
    assert totals.endswith("unaccounted 0")
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed", last)


@pytest.mark.parametrize("atomic_copy", [0, 1], ids=["memcpy", "atomic copy"])
@pytest.mark.parametrize("standard", ["c11", "gnu11", "c17"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiles_as_c_without_a_warning(tmp_path: Path, compiler: str, standard: str, atomic_copy: int) -> None:
    source = tmp_path / "use.c"
    source.write_text(USE_IT)
    output = ["-c", str(source), "-o", str(tmp_path / "use.o")]
    form = [f"-std={standard}", "-O2", f"-DPCMRING_ATOMIC_COPY={atomic_copy}"]
    run([*find_compiler(compiler), *form, *STRICT, f"-I{INCLUDE}", *output])


@pytest.mark.parametrize("atomic_copy", [0, 1], ids=["memcpy", "atomic copy"])
@pytest.mark.parametrize("standard", ["c++11", "c++17"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_compiles_as_cplusplus_without_a_warning(
    tmp_path: Path, compiler: str, standard: str, atomic_copy: int
) -> None:
    source = tmp_path / "use.cpp"
    source.write_text(USE_IT)
    output = ["-c", str(source), "-o", str(tmp_path / "use.o")]
    form = [f"-std={standard}", "-O2", f"-DPCMRING_ATOMIC_COPY={atomic_copy}"]
    run([*find_compiler(compiler), *form, *STRICT, f"-I{INCLUDE}", *output])


def test_includes_nothing_but_the_c_library_and_the_system() -> None:
    text = (INCLUDE / "pcmring" / "ring.h").read_text(encoding="utf-8")
    included = re.findall(r"^\s*#\s*include\s+(\S+)", text, re.M)
    assert included
    assert {name.strip("<>") for name in included} <= ALLOWED_HEADERS
    assert all(name.startswith("<") for name in included)


def test_depends_on_no_file_of_ours_but_itself(tmp_path: Path) -> None:
    source = tmp_path / "use.c"
    source.write_text(USE_IT)
    # -MM: what it includes, system headers left out
    rule = run([*c_compiler(), "-std=gnu11", "-MM", f"-I{INCLUDE}", str(source)])
    files = rule.replace("\\\n", " ").split(":", 1)[1].split()
    assert [Path(name).name for name in files] == ["use.c", "ring.h"]
