"""The benchmarks run, every contender is right, and the hot calls execute what they did. Nothing depends on time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from native_support import clean_environment, compiler

HERE = Path(__file__).parents[1] / "benchmarks"
CANNOT_COMPARE = 77

pytestmark = pytest.mark.native


def program(*command: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *(str(word) for word in command)]
    return subprocess.run(words, cwd=HERE, env=clean_environment(), capture_output=True, text=True, timeout=110)


def test_every_workload_runs_and_every_contender_that_is_installed_is_right():
    pytest.importorskip("pytest_benchmark")
    compiler()
    done = program("-m", "pytest", "-q", "--benchmark-disable")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_a_run_leaves_tables_and_plots(tmp_path):
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("matplotlib")
    compiler()
    done = program("run.py", "--quick", "-k", "tracked_total", "--results", tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    text = (tmp_path / "results.md").read_text()
    assert "| **pcmring** | pcmring |" in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "memory-tracked_total.svg",
        "memory-tracked_total.png",
    }


def test_the_hot_calls_execute_the_instructions_they_did():
    """Where that is intended: `python benchmarks/instructions.py --renew`."""
    compiler()
    done = program("instructions.py")
    if done.returncode == CANNOT_COMPARE:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
