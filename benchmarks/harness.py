"""Races: contenders for one piece of work take turns in short rounds, so that whatever else the machine does hits all.

A race is a function that prepares one contender for one case, checks that it does the work rightly, and returns its
round: a callable that returns samples. `race` makes one test of each contender and case of it. pytest selects, skips
who is not installed and fails who is wrong; pytest-benchmark keeps the samples, the machine and the commit as JSON.
It would time one contender after the other, so it is handed what was measured here.

Samples are seconds, or what the race's unit says.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from timeit import Timer
from typing import Any

import numpy as np
import pytest
from peers import LIMIT_KINDS, Unable

Round = Callable[[], list[float]]


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    name: str
    rounds: int
    round_s: float  # of calls that are timed together
    scale: float  # of counts, where a round is long in itself
    long_rounds: int

    def count(self, full: int, least: int = 1) -> int:
        return max(least, round(full * self.scale))


FULL = Effort("full", rounds=100, round_s=0.002, scale=1.0, long_rounds=15)
QUICK = Effort("quick", rounds=15, round_s=0.0005, scale=0.1, long_rounds=3)
UNTIMED = Effort("untimed", rounds=1, round_s=0.0, scale=0.001, long_rounds=1)


class Calls:
    """A round of calls timed together, seconds per call.

    Each contender has a Timer, and with it byte code, of its own: the interpreter specialises a call site for what
    is called there. Timer also switches the garbage collector off.
    """

    def __init__(
        self, call: Callable[..., object], arguments: tuple[object, ...], effort: Effort,
        prepare: Callable[[], object] = int, most: int = 1 << 20,
    ) -> None:  # fmt: skip
        names = {"given": (call, *arguments), "prepare": prepare}
        words = [f"a{at}" for at in range(len(arguments))]
        setup = f"prepare(); {', '.join(['call', *words])}, = given"
        self._timer = Timer(f"call({', '.join(words)})", setup, globals=names)
        self._round_s, self._number = effort.round_s, 1
        while self._number < most and self._timer.timeit(self._number) < effort.round_s:
            self._number = min(2 * self._number, most)

    def __call__(self) -> list[float]:
        seconds, calls = 0.0, 0
        while calls == 0 or seconds < self._round_s:
            seconds += self._timer.timeit(self._number)
            calls += self._number
        return [seconds / calls]


def each_call(call: Callable[[Any], object], argument: object, number: int) -> list[float]:
    """Return the seconds of every single call, the clock's own 30 ns or so included."""
    clock = time.perf_counter_ns
    edges = [0] * (2 * number)
    for at in range(0, 2 * number, 2):
        edges[at] = clock()
        call(argument)
        edges[at + 1] = clock()
    seconds: list[float] = ((np.array(edges[1::2]) - edges[::2]) * 1e-9).tolist()
    return seconds


_edges: deque[float] = deque()


def replayed_clock() -> float:
    """The clock that pytest-benchmark reads."""
    return _edges.popleft()


def _keep(benchmark: Any, samples: Sequence[float]) -> None:
    for sample in samples:
        _edges.extend((0.0, sample))
    benchmark.pedantic(int, rounds=len(samples))


def _ratio(samples: list[float], base: list[float], is_by_round: bool) -> float | None:
    """Round by round where a round is one sample: what disturbs one round disturbs both."""
    if min(base) <= 0:
        return None
    if is_by_round:
        return statistics.median(own / other for own, other in zip(samples, base, strict=True))
    return statistics.median(samples) / statistics.median(base)


def _run(
    build: Callable[[type[Any], Any, Effort], Round], contenders: Sequence[type[Any]], case: Any,
    effort: Effort, rounds: int,
) -> dict[str, list[float] | Exception]:  # fmt: skip
    found: dict[str, list[float] | Exception] = {}
    ready: dict[str, Round] = {}
    for contender in contenders:
        try:
            ready[contender.name] = build(contender, case, effort)
            found[contender.name] = []
        except Exception as error:  # the others still race; its own test tells what went wrong
            found[contender.name] = error
    order = list(ready)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            samples = found[name]
            if isinstance(samples, list):
                try:
                    samples.extend(ready[name]())
                except Exception as error:
                    found[name] = error
    return found


def race(
    contenders: Sequence[type[Any]], cases: Sequence[Any], *, unit: str = "s", is_long: bool = False,
    most_rounds: int = 1000, is_of_calls: bool = False, goal: str = "",
) -> Callable[[Callable[[type[Any], Any, Effort], Round]], Callable[..., None]]:  # fmt: skip
    """Make a benchmark of a function that prepares and checks one contender for one case.

    Parameters
    ----------
    contenders : sequence of types
        With a `name` and a `kind`; most are a `Contender`.
    cases : sequence
        Whatever the function takes; `str` names it.
    unit : str
        Of the samples.
    is_long : bool
        A round is long in itself: there are fewer.
    most_rounds : int
        Where the figure hardly varies.
    is_of_calls : bool
        Samples are of single calls, not of rounds: their percentiles mean something.
    goal : str
        What is aimed at, for the report.
    """

    def decorate(build: Callable[[type[Any], Any, Effort], Round]) -> Callable[..., None]:
        @functools.cache
        def measured(case: Any, effort: Effort) -> dict[str, list[float] | Exception]:
            rounds = effort.long_rounds if is_long else effort.rounds
            return _run(build, contenders, case, effort, min(rounds, most_rounds))

        @pytest.mark.benchmark(timer=replayed_clock)
        @pytest.mark.parametrize("contender", contenders, ids=lambda contender: contender.name)
        @pytest.mark.parametrize("case", cases, ids=str)
        def bench(contender: type[Any], case: Any, benchmark: Any, effort: Effort) -> None:
            found = measured(case, UNTIMED if benchmark.disabled else effort)
            samples = found[contender.name]
            if isinstance(samples, Unable | ImportError | OSError):
                benchmark.skipped = True
                pytest.skip(f"{contender.name}: {samples}")
            if isinstance(samples, Exception):
                benchmark.skipped = True
                raise samples
            benchmark.group = f"{build.__module__.removeprefix('bench_')}: {build.__name__.removeprefix('bench_')}"
            found_ones = {name: value for name, value in found.items() if isinstance(value, list)}
            kinds = {other.name: other.kind for other in contenders}
            limit = next((name for name in found_ones if kinds[name] in LIMIT_KINDS), None)
            rivals = [name for name in found_ones if kinds[name] not in (*LIMIT_KINDS, "pcmring")]
            best = min(rivals, key=lambda name: statistics.median(found_ones[name]), default=None)
            benchmark.extra_info |= {
                "case": str(case),
                "contender": contender.name,
                "kind": contender.kind,
                "unit": unit,
                "goal": goal,
                "effort": effort.name,
                "about": (build.__doc__ or "").strip(),
                "p90": float(np.percentile(samples, 90)),
                "p99": float(np.percentile(samples, 99)),
                "p99.9": float(np.percentile(samples, 99.9)),
                "is_of_calls": is_of_calls,
                "x_limit": _ratio(samples, found_ones[limit], not is_of_calls) if limit else None,
                "limit": limit,
                "best_peer": best,
                "x_best_peer": _ratio(samples, found_ones[best], not is_of_calls) if best else None,
            }
            _keep(benchmark, samples)

        bench.__name__ = bench.__qualname__ = build.__name__
        bench.__doc__, bench.__module__ = build.__doc__, build.__module__
        return bench

    return decorate
