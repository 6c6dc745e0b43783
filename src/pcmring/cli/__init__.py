"""The command ``pcmring``: one module per command, see `_app`. It needs the extra ``cli``."""

from __future__ import annotations

import logging
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        from pcmring.cli._app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f"pcmring: the command needs the package {package}: pip install 'pcmring[cli]'")
    logging.getLogger("pcmring").addHandler(logging.NullHandler())  # the commands say themselves what happens
    run()
