"""``pcmring bench``: the short benchmark."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pcmring.cli._common import fail

__all__ = ["bench"]


def bench(
    benchmarks: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The benchmarks of a checkout of pcmring.")
    ] = Path("benchmarks"),
    results: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the results as JSON, tables and plots.")
    ] = None,
) -> None:
    """Run the short benchmark, about a minute, and show its tables: pcmring, the physical limit, and its peers.

    Figures to look at, not to quote: those are made by 'make bench'. The benchmarks are in the source and not in what
    pip installs, and they compile the limits: git clone, cd pcmring, pcmring bench.

    \b
    Examples:
      pcmring bench
      pcmring bench ~/pcmring/benchmarks --results /tmp/results

    \b
    Exit codes: 0 every contender was right, 1 failed, 2 wrong usage.
    """  # noqa: D301 - click's mark for a paragraph that is not wrapped
    program = benchmarks / "run.py"
    if not program.is_file():
        fail(f"there are no benchmarks in {benchmarks.absolute()}: go to a checkout of pcmring, or give its folder")
    for package in ("pytest_benchmark", "matplotlib"):
        if find_spec(package) is None:
            fail(f"the benchmarks need the package {package}: pip install 'pcmring[bench]'")
    with tempfile.TemporaryDirectory(prefix="pcmring-bench-") as folder:
        command = [sys.executable, str(program), "--quick", "--results", str(results or folder)]
        if subprocess.run(command, check=False).returncode:
            fail("a benchmark failed: see above")
