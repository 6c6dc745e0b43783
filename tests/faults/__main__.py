"""python -m faults --short|--long [--seed N] [--only load,devices]"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import sys
import time

import numpy as np

from faults.campaign import CHAPTERS, FORMS, Outcome, run_chapter, run_tries


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m faults", description="The fault campaign.")
    form = options.add_mutually_exclusive_group()
    for name, what in zip(FORMS, ("seconds", "at most 5 minutes", "hours"), strict=True):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)
    options.add_argument("--seed", type=int, help="a new one each time if not given")
    options.add_argument("--only", default=",".join(CHAPTERS), help="chapters, with commas")
    options.add_argument("--case", help="one case, by its name")
    options.add_argument("--try", dest="only_try", type=int, help="one try of it, by its number")
    options.add_argument("--case-minutes", type=float, default=math.inf, help="of a case, at most, and its last try")
    options.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        chapter, name, child_form, seed, first, last, seconds = given.child
        run_tries(chapter, name, child_form, int(seed), int(first), int(last), float(seconds))
        return 0
    chapters = given.only.split(",")
    if unknown := set(chapters) - set(CHAPTERS):
        options.error(f"--only must be of {', '.join(CHAPTERS)}, got {', '.join(sorted(unknown))}")
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    begin = time.monotonic()
    print(f"fault campaign, {given.form or 'short'} form, seed {seed}")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}, {os.cpu_count()} cores")
    outcomes: list[Outcome] = []
    for chapter in chapters:
        seconds = given.case_minutes * 60
        outcomes += run_chapter(chapter, given.form or "short", seed, given.case, given.only_try, seconds)
    bad = [outcome.case.name for outcome in outcomes if outcome.is_bad]
    tried = sum(outcome.tried for outcome in outcomes)
    offered = sum(outcome.counts["offered"] for outcome in outcomes)
    print(
        f"\n{len(outcomes)} cases, {tried:,} tries, {offered:,} frames in {time.monotonic() - begin:.0f} s, seed {seed}"
    )
    print(f"failed: {', '.join(bad)}" if bad else "every frame is accounted for; nothing failed that is not known")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
