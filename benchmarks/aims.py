"""What is aimed at, and whether a run shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from results import Results

LIMIT = "limit: C method, one memcpy"
QUEUE, SIMPLE_QUEUE = "queue.Queue of copies", "queue.SimpleQueue of copies"
ACROSS = "s, across the end of memory"


@dataclass(frozen=True)
class Aim:
    text: str
    goal: float
    measure: Callable[[Results], float]
    is_least: bool = False  # more is better


def _of(key: str, race: str, case: str, contender: str = "pcmring") -> Callable[[Results], float]:
    return lambda results: results.row(race, case, contender)[key]


def _against(key: str, race: str, case: str, rival: str) -> Callable[[Results], float]:
    """Ours in units of the rival's."""
    return lambda results: results.row(race, case)[key] / results.row(race, case, rival)[key]


def _best_package(results: Results) -> float:
    ours = results.row("ring: read_into", "10 ms")
    meant = ("ring: read_into", "10 ms", "peer")
    medians = [row["median"] for row in results.rows if (row["group"], row["case"], row["kind"]) == meant]
    if not medians:
        raise LookupError("no package was measured")
    return float(min(medians) / ours["median"])


def _size_matters(results: Results) -> float:
    thirty, one = (results.row("ring: newest_view", f"{s} {ACROSS}", "pcmring latest_view") for s in (30, 1))
    return thirty["median"] / one["median"]


AIMS = (
    Aim("write, 10 ms: × the limit", 1.25, _of("x_limit", "ring: write", "10 ms")),
    Aim("the same, ring in the cache: × the limit", 1.25, _of("x_limit", "ring: write", "10 ms, ring in the cache")),
    Aim("read_into, 10 ms: × the limit", 1.5, _of("x_limit", "ring: read_into", "10 ms")),
    Aim("read_into, 10 ms: times faster than the best package", 12, _best_package, is_least=True),
    Aim(
        "newest 30 s across the end, as a view: × the limit", 2,
        _of("x_limit", "ring: newest_view", f"30 {ACROSS}", "pcmring latest_view"),
    ),
    Aim("the same: × the newest 1 s", 1.2, _size_matters),
    Aim(
        "two threads: times as fast as queue.SimpleQueue", 1.5,
        lambda results: 1 / _against("median", "threads: two_threads", "10 ms blocks", SIMPLE_QUEUE)(results),
        is_least=True,
    ),
    Aim("wake-up, idle, p50: × queue.Queue", 0.4, _against("median", "threads: wakeup", "idle", QUEUE)),
    Aim("wake-up, idle, p99: × queue.Queue", 0.6, _against("p99", "threads: wakeup", "idle", QUEUE)),
    Aim(
        "wake-up while a third thread burns Python, p90: switch intervals", 1.1,
        lambda results: results.row("threads: wakeup", "a third thread burns Python")["p90"] / 0.005,
    ),
    Aim(
        "a 10 ms write's p99.9: × the limit's", 2, _against("p99.9", "ring: write_tail", "a ring written before", LIMIT)
    ),
    Aim("the same on the first pass", 2, _against("p99.9", "ring: write_tail", "the first pass", LIMIT)),
    Aim(
        "overhead per small buffer, bytes", 200,
        _of("median", "memory: memory_per_buffer", "10,000 buffers of 1,024 frames"),
    ),
    Aim(
        "import beyond numpy, ms", 5, lambda results: 1000 * results.row("memory: import", "after numpy")["median"]
    ),
    Aim(
        "import beyond numpy, MB", 1,
        lambda results: results.row("memory: import_memory", "after numpy")["median"] / 2**20,
    ),
    Aim(
        "track and untrack with 100,000 live buffers: × with 10", 1.5,
        lambda results: results.row("memory: track_and_untrack", "100000")["median"]
        / results.row("memory: track_and_untrack", "10")["median"],
    ),
    Aim(
        "the callback: times fewer instructions than a Python callback that does nothing", 50,
        lambda results: 1 / results.row("capture: callback_instructions", "10 ms")["x_best_peer"], is_least=True,
    ),
    Aim("frames lost while the GIL is held for 2 s, %", 0, _of("median", "capture: frames_lost", "2.0")),
    Aim(
        "the millionth second: × the first, write and read_into", 1.1,
        _of("x_limit", "drift: drift", "write, read_into", "the millionth second"),
    ),
)  # fmt: skip


def table(results: Results) -> str:
    """Return the aims in Markdown."""
    lines = ["| aim | goal | measured | |", "|---|--:|--:|---|"]
    for aim in AIMS:
        goal = f"{'≥' if aim.is_least else '≤'} {aim.goal:g}"
        try:
            value = aim.measure(results)
        except LookupError:
            lines.append(f"| {aim.text} | {goal} | – | not measured |")
            continue
        is_met = value >= aim.goal if aim.is_least else value <= aim.goal
        lines.append(f"| {aim.text} | {goal} | {value:,.2f} | {'met' if is_met else '**not met**'} |")
    return "\n".join(lines)
