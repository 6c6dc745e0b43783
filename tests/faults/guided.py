"""Coverage-guided: atheris looks for the arguments, and the order of calls, that reach new code.

    python -m faults.guided --seconds N [folder of what led to new code | file that a failure left]

Needs ``pip install atheris``. docs/reliability.md has how compiled code guides it too, under ASan.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pcmring"]):
    from hypothesis import HealthCheck, given, settings

    from faults.disk import in_a_child
    from faults.input_fuzz import CHECKS
    from faults.python_rude import own_folders


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m faults.guided", description="Coverage-guided fuzzing.")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("path", nargs="?", help="a folder: of what led to new code; a file: run once")
    chosen = options.parse_args()
    tests = [
        settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))(given(*strategies)(check))
        for check, strategies in CHECKS
    ]

    def call(data: bytes) -> None:
        if data:
            tests[data[0] % len(tests)].hypothesis.fuzz_one_input(data[1:])

    def fuzz() -> None:
        limits = [f"-max_total_time={chosen.seconds}", "-max_len=4096", "-timeout=60", "-rss_limit_mb=8192"]
        artifacts = f"-artifact_prefix={tempfile.gettempdir()}/pcmring-"
        atheris.Setup([sys.argv[0], *limits, artifacts, *filter(None, [chosen.path])], call)
        with tempfile.TemporaryDirectory() as folder:
            own_folders(Path(folder))
            atheris.Fuzz()

    warnings.simplefilter("ignore")
    return abs(in_a_child(fuzz))  # libFuzzer ends its process itself


if __name__ == "__main__":
    sys.exit(main())
