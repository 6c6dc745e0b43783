"""One figure a race: lines where the cases are numbers, bars else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
from results import Results, Row, by_case, figure

matplotlib.use("agg")
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "pcmring"  # the same figures make the same file

from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import EngFormatter  # noqa: E402

COLOURS = {
    "pcmring": "#0b6e4f", "limit": "#222222", "floor": "#777777", "before": "#777777", "peer": "#4a7fb5",
    "idiom": "#d08c2b", "incumbent": "#b5442e",
}  # fmt: skip


def file_name(race: str) -> str:
    return re.sub(r"\W+", "-", race)


def draw(results: Results, folder: Path, suffixes: tuple[str, ...] = ("svg", "png")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for race, rows in results.groups():
        cases, title = by_case(rows), race.replace("_", " ")
        is_scaling = len(cases) > 2 and all(case.isdigit() for case, _ in cases)
        drawing = _lines(title, rows) if is_scaling else _bars(title, cases)
        for suffix in suffixes:
            path = folder / f"{file_name(race)}.{suffix}"
            drawing.savefig(path, metadata={"Date": None} if suffix == "svg" else None, dpi=110)
        pyplot.close(drawing)


def _lines(title: str, rows: list[Row]) -> Any:
    drawing, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = sorted((row for row in rows if row["contender"] == name), key=lambda row: int(row["case"]))
        is_plain = own[0]["kind"] in ("pcmring", "limit")
        axes.plot(
            [max(int(row["case"]), 0.5) for row in own], [row["median"] for row in own], "o-",
            label=name, color=COLOURS[own[0]["kind"]] if is_plain else None,
        )  # fmt: skip
    unit, medians = rows[0]["unit"], [row["median"] for row in rows]
    axes.set(xscale="log", title=title, ylabel=f"median, {unit}")
    if max(medians) > 20 * min(medians):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if unit == "s":
        axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.legend()
    axes.grid(alpha=0.3)
    return drawing


def _bars(title: str, cases: list[tuple[str, list[Row]]]) -> Any:
    unit = cases[0][1][0]["unit"]
    heights = [0.28 * len(rows) + 0.6 for _, rows in cases]
    drawing, grid = pyplot.subplots(
        len(cases), figsize=(9, sum(heights) + 0.5), height_ratios=heights, layout="constrained", squeeze=False
    )
    drawing.suptitle(title)
    for axes, (case, rows) in zip(grid[:, 0], cases, strict=True):
        upwards = rows[::-1]
        medians = [row["median"] for row in upwards]
        tails = [max(0.0, row["p99"] - row["median"]) for row in upwards]
        bars = axes.barh(
            [row["contender"] for row in upwards], medians, xerr=[[0] * len(upwards), tails],
            color=[COLOURS[row["kind"]] for row in upwards], error_kw={"lw": 0.8},
        )  # fmt: skip
        axes.bar_label(bars, [figure(value, unit) for value in medians], padding=3, fontsize=8)
        axes.set_title(case, fontsize=10, loc="left")
        if min(medians) > 0 and max(medians) > 20 * min(medians):
            axes.set_xscale("log")
        if unit == "s":
            axes.xaxis.set_major_formatter(EngFormatter("s"))
        axes.margins(x=0.12)
    drawing.supxlabel(f"median, whisker to p99{'' if unit == 's' else f'; {unit}'}", fontsize=9)
    return drawing
