"""``pcmring doctor``: what this machine lacks, and the command that changes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pcmring.cli import _machine
from pcmring.cli._capture_check import check_capture, check_portaudio
from pcmring.cli._common import make_console
from pcmring.cli._machine import Check

__all__ = ["doctor"]

_STYLES = {"ok": "green", "advice": "yellow", "missing": "red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say whether audio can be captured here, what is missing, and the command that fixes it.

    It records for a moment from what 'pcmring record' would record from, and keeps nothing of it. "missing" takes
    something away, "advice" may make it better.

    \b
    Examples:
      pcmring doctor
      pcmring doctor --json | jq -r '.checks[].fix | select(. != "")'

    \b
    Exit codes: 0 audio can be captured, 1 it cannot, 2 wrong usage.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    portaudio = check_portaudio()
    capture = check_capture(portaudio)
    can_capture = capture.state != "missing"
    checks = [portaudio, capture, *_checks_of_the_machine()]
    console = make_console()
    if as_json:
        console.out(json.dumps({"can_capture": can_capture, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        table = Table("", "what", "found", box=None, pad_edge=False)
        for check in checks:
            table.add_row(Text(check.state, _STYLES[check.state]), check.name, check.found)
        console.print(table)
        for check in checks:
            if check.fix:
                console.print(f"\n{check.name}:\n  {check.fix}", soft_wrap=True)
        console.print("\naudio can be captured" if can_capture else "\naudio cannot be captured")
    raise typer.Exit(0 if can_capture else 1)


def _checks_of_the_machine() -> Iterator[Check]:
    if sys.platform == "linux":
        yield _machine.check_sound_devices()
    if sys.platform != "win32":
        yield from _machine.check_realtime()
        yield _machine.check_shared_memory()
    yield _machine.check_memory()
    yield _machine.check_recordings()
    yield from _machine.check_packages()
