"""The README's programs do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.split("\n", 1)[0])
def test_a_program_of_the_readme_runs_and_prints_what_its_comments_say(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for printed in re.findall(r"print\(.*\)  # (.*)", program):
        assert printed in done.stdout


def test_there_is_a_program_for_the_ring_and_one_for_a_device():
    assert [("AudioBuffer(" in program, "AudioDeviceManager(" in program) for program in PROGRAMS] == [
        (False, True),
        (True, False),
    ]
