"""Cases, their repetition in child processes, and the tables.

A case is a function of a `Try`. All tries of a case run in one child process, which may die: then that try has failed
and another child goes on with the next. A try's random numbers depend on the seed, the case and its number only, so
that any one of them can be run again.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from native_support import python_environment

CHAPTERS = ("load", "python_rude", "devices", "memory", "disk", "input_fuzz", "misuse", "leaks")
TESTS = Path(__file__).parents[1]
A_WEEK_S = 7 * 86_400.0
LAST_WORDS = 16_000  # bytes of what a process that died had to say

Form = Literal["tiny", "short", "long"]
FORMS: tuple[Form, ...] = ("tiny", "short", "long")
_Value = TypeVar("_Value")


@dataclass
class Try:
    """One run of a case.

    Attributes
    ----------
    random : Random
        Its own, seeded.
    folder : Path
        Empty, and deleted afterwards.
    counts : Counter
        "offered", "missing", "delivered", "lost" frames (see account.py), and whatever a case counts besides.
    """

    form: Form
    number: int
    random: random.Random
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)

    def by_form(self, tiny: _Value, short: _Value, long: _Value) -> _Value:
        return {"tiny": tiny, "short": short, "long": long}[self.form]


@dataclass(frozen=True)
class Case:
    """A kind of fault.

    Attributes
    ----------
    tries : dict
        How often, by form.
    limit_s : float
        A try that takes longer has failed.
    environment : callable, optional
        Of a folder: what the child's environment has besides, for a library to preload.
    known : str
        A fault that is not mended yet: its cause. Failures are shown, and do not fail the campaign.
    excused : str
        Of whose last words this pattern is a part has met a fault of Python's that docs/reliability.md names under what
        is not promised. It is counted, and is no failure.
    """

    name: str
    run: Callable[[Try], None]
    tries: dict[Form, int]
    limit_s: float
    environment: Callable[[Path], dict[str, str]] | None
    known: str
    excused: str = ""


def tests_environment() -> dict[str, str]:
    """For a child Python that imports what the tests do."""
    environment = python_environment()
    return environment | {"PYTHONPATH": f"{TESTS}{os.pathsep}{environment.get('PYTHONPATH', '')}"}


_cases: dict[str, list[Case]] = {}


def case(
    *,
    tiny: int = 1,
    short: int,
    long: int,
    limit_s: float = 60.0,
    environment: Callable[[Path], dict[str, str]] | None = None,
    known: str = "",
    excused: str = "",
) -> Callable[[Callable[[Try], None]], Callable[[Try], None]]:
    """Make a function a case of its module's chapter."""

    def register(function: Callable[[Try], None]) -> Callable[[Try], None]:
        tries: dict[Form, int] = {"tiny": tiny, "short": short, "long": long}
        name = function.__name__.replace("_", " ")
        chapter = function.__module__.rpartition(".")[2]
        _cases.setdefault(chapter, []).append(Case(name, function, tries, limit_s, environment, known, excused))
        return function

    return register


def cases_of(chapter: str) -> list[Case]:
    importlib.import_module(f"faults.{chapter}")
    return _cases[chapter]


# ---- in the child -------------------------------------------------------------------------------------------


def run_tries(chapter: str, name: str, form: Form, seed: int, first: int, last: int, seconds: float) -> None:
    """Run tries until the time is over, and print a line of JSON after each."""
    end = time.monotonic() + seconds
    (found,) = (case for case in cases_of(chapter) if case.name == name)
    for number in range(first, last):
        faulthandler.dump_traceback_later(found.limit_s, exit=True, file=sys.__stderr__)
        with tempfile.TemporaryDirectory(prefix="pcmring-faults-") as folder:
            own = random.Random(f"{seed} {chapter} {name} {number}")
            attempt = Try(form, number, own, Path(folder))
            failure = skipped = ""
            try:
                found.run(attempt)
            except pytest.skip.Exception as reason:
                skipped = str(reason)
            except BaseException:
                failure = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        line = {"try": number, "counts": attempt.counts, "failure": failure, "skipped": skipped}
        print(json.dumps(line), flush=True)
        if time.monotonic() > end:
            return


# ---- in the parent ------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    case: Case
    tried: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    skipped: str = ""

    @property
    def is_bad(self) -> bool:
        """It failed unexpectedly, or did not fail though it is known to."""
        return bool(self.tried) and bool(self.failures) != bool(self.case.known)

    def take(self, line: dict[str, Any]) -> None:
        if line["skipped"]:
            self.skipped = line["skipped"]
            return
        self.tried += 1
        self.counts.update(line["counts"])
        if line["failure"]:
            self.failures.append((line["try"], line["failure"]))


def run_case(
    chapter: str, case: Case, form: Form, seed: int, only_try: int | None = None, seconds: float = math.inf
) -> Outcome:
    outcome = Outcome(case)
    begin = time.monotonic()
    first, last = (0, case.tries[form]) if only_try is None else (only_try, only_try + 1)
    with tempfile.TemporaryDirectory(prefix="pcmring-faults-") as folder:
        extra = case.environment(Path(folder)) if case.environment else {}
        while first < last:
            words = [chapter, case.name, form, seed, first, last, begin + seconds - time.monotonic()]
            command = [sys.executable, "-X", "faulthandler", "-m", "faults", "--child", *map(str, words)]
            with tempfile.TemporaryFile("w+", errors="replace") as complaints:  # may be many
                child = subprocess.Popen(
                    command,
                    cwd=TESTS,
                    env=python_environment(**extra),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                try:
                    output, _ = child.communicate(timeout=min(case.limit_s * (last - first) + 30.0, A_WEEK_S))
                except subprocess.TimeoutExpired:
                    child.kill()
                    output, _ = child.communicate()
                finally:
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)  # what a case left behind
                complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - LAST_WORDS))
                last_words = complaints.read()
            for line in output.splitlines():
                if line.startswith('{"try"'):
                    outcome.take(json.loads(line))
                    first += 1
            if outcome.skipped or (child.returncode == 0 and time.monotonic() > begin + seconds):
                break
            if first < last:
                outcome.tried += 1
                if case.excused and re.search(case.excused, last_words):
                    outcome.counts["ended by a fault of Python's"] += 1
                else:
                    outcome.failures.append((first, f"died with code {child.returncode}\n{last_words}"))
                first += 1
    outcome.seconds = time.monotonic() - begin
    return outcome


SHOWN = ("offered", "missing", "delivered", "lost")
HEADER = "| case | tried | frames offered | missing, told | delivered | lost, told | unaccounted | failed | s |"


def row(outcome: Outcome) -> str:
    cells = [outcome.case.name]
    if outcome.skipped:
        return f"| {outcome.case.name} | – | | | | | | skipped: {outcome.skipped} | |"
    cells += [f"{outcome.tried:,}"]
    cells += [f"{outcome.counts[name]:,}" if outcome.counts["offered"] else "" for name in SHOWN]
    cells += ["0" if not outcome.failures else "?"] if outcome.counts["offered"] else [""]
    cells += [f"{len(outcome.failures):,}{' (known)' if outcome.failures and outcome.case.known else ''}"]
    cells += [f"{outcome.seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def run_chapter(
    chapter: str,
    form: Form,
    seed: int,
    name: str | None = None,
    only_try: int | None = None,
    seconds: float = math.inf,
) -> list[Outcome]:
    """Run a chapter, each case for so long at most, or the try during which that is over; and print its table."""
    print(f"\n## {chapter}\n\n{HEADER}\n|---|{'--:|' * 8}", flush=True)
    outcomes = []
    for case in cases_of(chapter):
        if name not in (None, case.name) or not (case.tries[form] or name):
            continue
        outcome = run_case(chapter, case, form, seed, only_try, seconds)
        outcomes.append(outcome)
        print(row(outcome), flush=True)
    for outcome in outcomes:
        rest = {key: n for key, n in sorted(outcome.counts.items()) if key not in SHOWN}
        if rest:
            print(f"\n{outcome.case.name}: " + ", ".join(f"{n:,} {key}" for key, n in rest.items()))
    for outcome in outcomes:
        if outcome.case.known:
            print(f"\nknown, not mended: {outcome.case.name}: {outcome.case.known}")
        for number, failure in outcome.failures[:3]:
            words = (
                f"python -m faults --{form} --seed {seed} --only {chapter} --case '{outcome.case.name}' --try {number}"
            )
            print(f"\nFAILED {outcome.case.name}, try {number}\n{failure}\nagain: {words}")
        if outcome.is_bad and not outcome.failures:
            print(f"\nmended? {outcome.case.name} did not fail: take its `known` away")
    return outcomes
