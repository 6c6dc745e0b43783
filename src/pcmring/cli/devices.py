"""``pcmring devices``: what can be recorded from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from pcmring._late import MissingPackage
from pcmring._portaudio import inputs
from pcmring.cli._common import make_console, make_device_manager

__all__ = ["devices"]


def devices(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: a list, with all there is to know.")] = False,
) -> None:
    """List what can be recorded from: sound cards, then generators.

    A sound file's path can be given wherever a device is asked for, too: it is played at its own pace.

    \b
    Examples:
      pcmring devices
      pcmring devices --json | jq '.[] | select(.is_default).name'

    \b
    Exit codes: 0 listed (also if there are only generators), 1 failed, 2 wrong usage.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    manager = make_device_manager()
    current = manager.get_current_device()
    found = manager.get_available_devices()
    console = make_console()
    if as_json:
        console.out(json.dumps([asdict(device) | {"is_selected": device == current} for device in found], indent=2))
    else:
        table = Table("", "id", "name", "host API", "channels", "rate", box=None, pad_edge=False)
        for device in found:
            mark = "*" if device == current else ""
            rate = f"{device.samplerate:.0f}" if device.kind == "device" else "any"
            channels = str(device.channels) if device.kind == "device" else "any"
            default = " (default)" if device.is_default else ""
            hostapi = device.hostapi or device.kind
            table.add_row(mark, str(device.id), device.name + default, hostapi, channels, rate)
        console.print(table)
        console.print("\n* is recorded from unless --device says otherwise; --device also takes a sound file's path")
    if not any(device.kind == "device" for device in found):
        try:
            inputs()
            why = "none has an input: 'pcmring doctor' tells more"
        except MissingPackage as missing:
            why = str(missing)
        typer.echo(f"pcmring: no sound card can be used: {why}", err=True)
