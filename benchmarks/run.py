"""Run the races and report.

    python benchmarks/run.py [--quick] [--results build/benchmarks] [-k write] [--docs docs/benchmarks.md]

Leaves results.json, results.md and plots in the folder. The exit code is pytest's: 0 if every contender that is
installed was right.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(
    *, quick: bool = False, results: Path = Path("build/benchmarks"), select: str = "", docs: Path | None = None
) -> int:
    """Run what `select` names (pytest's -k; all by default), print the tables, and return pytest's exit code."""
    results.mkdir(parents=True, exist_ok=True)
    json_path = (results / ("quick.json" if quick else "results.json")).resolve()
    command = [sys.executable, "-m", "pytest", "-q", str(HERE), f"--benchmark-json={json_path}"]
    command += [*(["--quick"] if quick else []), *(["-k", select] if select else [])]
    exit_code = subprocess.run(command, check=False).returncode
    if json_path.exists():
        import report

        report.report([json_path], results, docs)
    return exit_code


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="about a minute; figures to look at, not to quote")
    options.add_argument("--results", type=Path, default=Path("build/benchmarks"))
    options.add_argument("--docs", type=Path, help="write the results into this page, too")
    options.add_argument("-k", dest="select", default="", help="pytest's -k")
    given = options.parse_args()
    return run(quick=given.quick, results=given.results, select=given.select, docs=given.docs)


if __name__ == "__main__":
    sys.exit(main())
