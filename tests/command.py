"""The command ``pcmring``, run as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from native_support import python_environment

for package in ("typer", "rich"):
    pytest.importorskip(package, reason="the command needs the extra cli")

DEADLINE_S = 60.0
PYTHON = [sys.executable, "-X", "faulthandler", "-W", "error"]
COMMAND = [*PYTHON, "-m", "pcmring.cli"]


class Home:
    """A user's folders, and the commands run there."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.state = folder / "state"
        self.recordings = self.state / "pcmring" / "recordings"
        folders = {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(self.state),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }
        self.environment = python_environment(**folders | environment)
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
            if name not in environment:
                self.environment.pop(name, None)

    def run(self, *words: object, command: list[str] = COMMAND, **options: object) -> subprocess.CompletedProcess[str]:
        """Run the command to its end. What it says is free of tracebacks and colour, whatever its exit code."""
        done = subprocess.run(
            [*command, *map(str, words)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
            **options,
        )
        check_text(done.stdout + done.stderr)
        return done

    def without(self, package: str, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the command where a Python package is not installed."""
        program = f"import sys; sys.modules[{package!r}] = None; from pcmring.cli import main; main()"
        return self.run(*words, command=[*PYTHON, "-c", program])

    @contextmanager
    def started(self, *words: object, command: list[str] = COMMAND) -> Iterator[subprocess.Popen[str]]:
        """The command while it runs; killed if it still does at the end."""
        process = subprocess.Popen(
            [*command, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def check_text(text: str) -> None:
    assert "Traceback" not in text, text
    assert "\x1b" not in text, text


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that failed."""
    lines = [line for line in done.stderr.splitlines() if "src/hostapi/alsa/" not in line]  # PortAudio's own
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(name="home")
def empty_home(tmp_path: Path) -> Home:
    """A user who has nothing."""
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home")
