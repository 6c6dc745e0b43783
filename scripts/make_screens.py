#!/usr/bin/env python3
"""Make the screens of docs/screens from real runs: python scripts/make_screens.py [NAME …].

Each command runs on a terminal of its own, in an empty home, with the microphones of the tests and recorded speech.
What that terminal shows at a moment, or at the end, becomes an SVG. Needs the extra "demo", pyte, PortAudio and a C
compiler.
"""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyte
import soundfile
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
SCREENS = ROOT / "docs" / "screens"
sys.path.insert(0, str(ROOT / "tests"))

from native_support import python_environment  # noqa: E402
from speech_clips import clip  # noqa: E402
from virtual_mic import virtual_mics  # noqa: E402

COLUMNS = 110
#: Of the speech that is listened to.
SENTENCES = ("0880", "0870")
#: pyte's names of the sixteen colours, where rich has others.
COLOURS = {"brown": "yellow", "default": None}


class Screen(NamedTuple):
    """A command, and how many seconds after its first output it is looked at; at its end if None."""

    command: str
    rows: int
    after_s: float | None = None


SHOWN = {
    "demo": Screen("pcmring demo", 22),
    "listen": Screen("pcmring listen --device speech.wav", 8, 10.0),
    "devices": Screen("pcmring devices", 10),
    "doctor": Screen("pcmring doctor", 44),
}


def output_of(screen: Screen, home: Path, environment: dict[str, str]) -> pyte.Screen:
    """Run it; return what its terminal shows."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.rows, COLUMNS, 0, 0))
    words = [sys.executable, "-m", "pcmring.cli", *screen.command.split()[1:]]
    process = subprocess.Popen(
        words, cwd=home, env=environment, stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL
    )
    os.close(terminal)
    output, first_at = b"", math.inf
    try:
        while piece := os.read(controller, 65536):
            output += piece
            first_at = min(first_at, time.monotonic())
            if screen.after_s is not None and time.monotonic() - first_at >= screen.after_s:
                break
    except OSError:  # it has ended
        pass
    process.kill()
    process.wait()
    os.close(controller)
    shown = pyte.Screen(COLUMNS, screen.rows)
    pyte.ByteStream(shown).feed(output.replace(bytes(home), b"~"))
    return shown


def style_of(character: pyte.screens.Char) -> Style:
    """Return rich's name for pyte's: a colour's, or its six hexadecimal digits."""
    colour = COLOURS.get(character.fg, character.fg)
    if colour is not None and re.fullmatch("[0-9a-f]{6}", colour):
        colour = f"#{colour}"
    return Style(color=colour, bold=character.bold, italic=character.italics, reverse=character.reverse)


def save(name: str, screen: Screen, shown: pyte.Screen) -> None:
    """Write the SVG, and print what is in it."""
    lines = [Text(f"$ {screen.command}")]
    for row in range(screen.rows):
        cells = [shown.buffer[row][column] for column in range(COLUMNS)]
        runs = groupby(cells, style_of)
        lines.append(Text.assemble(*(("".join(cell.data for cell in run), style) for style, run in runs)))
        lines[-1].rstrip()
    while not lines[-1].plain:
        lines.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(*lines, sep="\n", no_wrap=True, crop=True)
    SCREENS.mkdir(exist_ok=True)
    console.save_svg(str(SCREENS / f"{name}.svg"), title="pcmring", unique_id=f"pcmring-{name}")
    print(*(line.plain for line in lines), sep="\n", end="\n\n")


def main(names: list[str]) -> None:
    """Make these screens, or all."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        microphones = {"USB microphone": {"rate": 48000, "channels": 2}, "default": {"rate": 48000}}
        virtual_mics().config(home / "asound.conf", microphones)
        sentences = [np.append(clip(f"sense_and_sensibility_{number}.flac"), np.zeros(16000)) for number in SENTENCES]
        soundfile.write(home / "speech.wav", np.concatenate(sentences), 16000)
        environment = python_environment(
            HOME=folder, ALSA_CONFIG_PATH=str(home / "asound.conf"), TERM="xterm-256color", HF_HUB_OFFLINE="1"
        )
        for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "NO_COLOR", "COLUMNS"):
            environment.pop(variable, None)
        for name in names or SHOWN:
            save(name, SHOWN[name], output_of(SHOWN[name], home, environment))


if __name__ == "__main__":
    main(sys.argv[1:])
