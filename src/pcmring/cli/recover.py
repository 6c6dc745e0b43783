"""``pcmring recover``: what programs that died had recorded."""

from __future__ import annotations

import os
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from pcmring._file_manager import FileBasedAudioManager
from pcmring._late import load
from pcmring.cli._common import fail, make_console, reason_of
from pcmring.devices import AudioDeviceManager

__all__ = ["recover"]


def recover(
    as_list: Annotated[bool, typer.Option("--list", help="List them, and save none. So it is without --to.")] = False,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Save all of them in this folder.")] = None,
) -> None:
    """Find the recordings of programs that died: after a crash, a kill -9, a power cut.

    Those of programs that still run are left alone. What was not saved in 30 days is deleted.

    \b
    Examples:
      pcmring recover
      pcmring recover --to ~/Music

    \b
    Exit codes: 0 listed or saved (also if there are none), 1 failed (what was not saved stays for the next time),
    2 wrong usage.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    if as_list and to is not None:
        raise typer.BadParameter("--list saves nothing: give one of the two", param_hint="--list, --to")
    if to is not None and not to.is_dir():
        fail(f"there is no folder {to}: mkdir -p '{to}'")
    manager = FileBasedAudioManager(AudioDeviceManager())
    found = manager.recover()
    console = make_console()
    if not found:
        console.print("no recording was left behind")
        return
    ended = {file.path: datetime.fromtimestamp(file.modified) for file in manager.resource_manager.get_temp_files()}
    table = Table("ended", "length", "size", "file", box=None, pad_edge=False)
    for path in found:
        length, size = _length(path), decimal(os.path.getsize(path))
        saved = path if to is None else _save(manager, path, to, f"{ended[path]:recording-%Y-%m-%d-%H%M%S}")
        table.add_row(f"{ended[path]:%Y-%m-%d %H:%M:%S}", length, size, saved)
    console.print(table)
    if to is None:
        console.print("\n'pcmring recover --to FOLDER' saves them")


def _length(path: str) -> str:
    soundfile = load("soundfile")
    try:
        return f"{soundfile.info(path).duration:.3f} s"
    except soundfile.LibsndfileError:
        return "unknown"


def _save(manager: FileBasedAudioManager, path: str, folder: Path, name: str) -> str:
    """Move a recording into the folder, under the first name that is free."""
    for number in count(1):
        target = folder / f"{name}{f'-{number}' if number > 1 else ''}{Path(path).suffix}"
        try:
            return manager.save_as(target, path)
        except FileExistsError:
            continue
        except OSError as error:
            fail(f"{target} cannot be written: {reason_of(error)}; it and those after it stay for the next time")
    raise AssertionError
