"""What a run left: pytest-benchmark's JSON, by race and case, and how its figures are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """One run."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.machine, self.commit, self.time = data["machine_info"], data["commit_info"], data["datetime"]
        self.rows: list[Row] = [
            {**found["extra_info"], "group": found["group"], "median": found["stats"]["median"]}
            for found in data["benchmarks"]
        ]

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Return (race, its rows), in the order in which they ran."""
        for name, rows in groupby(self.rows, key=lambda row: row["group"]):
            yield name, list(rows)

    def row(self, race: str, case: str, contender: str = "pcmring") -> Row:
        """Return one contender's figures; LookupError where they are not there."""
        wanted = (race, case, contender)
        for row in self.rows:
            if (row["group"], row["case"], row["contender"]) == wanted:
                return row
        raise LookupError(f"no {contender} in {race}, {case}")


def by_case(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Return (case, its rows, the fastest first)."""
    return [
        (case, sorted((row for row in rows if row["case"] == case), key=lambda row: row["median"]))
        for case in dict.fromkeys(row["case"] for row in rows)
    ]


def figure(value: float, unit: str) -> str:
    from matplotlib.ticker import EngFormatter

    if unit == "s":
        return EngFormatter("s", places=0 if 1e-7 < value < 1e-6 else 1)(value).replace("\N{MICRO SIGN}", "µ")
    return f"{value:,.1f}" if unit.startswith("%") else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:,.0f} ×" if ratio >= 100 else f"{ratio:.2f} ×"
