"""The commands, put together."""

from __future__ import annotations

import typer

from pcmring._late import MissingPackage
from pcmring.cli._common import fail, reason_of
from pcmring.cli.bench import bench
from pcmring.cli.demo import demo
from pcmring.cli.devices import devices
from pcmring.cli.doctor import doctor
from pcmring.cli.listen import listen
from pcmring.cli.record import record
from pcmring.cli.recover import recover

__all__ = ["app", "run"]

# Plain help: it reads the same in a pipe, without colour, and in any encoding.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted with the audio saved.",
)
for command in (demo, devices, listen, record, doctor, recover, bench):
    app.command()(command)


@app.callback()
def pcmring() -> None:
    """Audio between a sound card and a speech model: nothing lost that could be kept, and a word for what was."""


def run() -> None:
    """Run the command line; an expected error is one line and exit code 1."""
    try:
        app(prog_name="pcmring")
    except (OSError, MissingPackage) as error:
        fail(reason_of(error))
