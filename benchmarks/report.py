"""Tables and plots of a run, and how far two runs differ.

    python benchmarks/report.py results.json [other.json] [--folder build/benchmarks] [--docs docs/benchmarks.md]

--docs replaces what stands between the two markers of that page, and puts the plots into a folder beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import aims
import plots
from harness import FULL
from results import Results, Row, by_case, figure, times

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def facts(results: Results) -> str:
    machine = results.machine
    cpu = machine.get("cpu", {}).get("brand_raw", machine["machine"])
    before, after = (f"{load[0]:.1f}" for load in (machine["load_before"], machine["load_after"]))
    efforts = {row["effort"] for row in results.rows}
    commit = f"{results.commit.get('id', 'unknown')[:12]}{' with changes' if results.commit.get('dirty') else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    missing = ", ".join(name for name, version in machine["versions"].items() if not version)
    lines = [
        f"- {results.time[:16]} UTC, commit {commit}, effort: {', '.join(efforts)}",
        f"- {cpu}, {machine['cores']} cores, {machine['system']} {machine['kernel']}, {machine['libc']}, huge pages: "
        f"{machine['transparent_hugepage']}, governor: {machine['governor']}",
        f"- load {before} before and {after} after; the run itself is a load of 1 to 2",
        f"- {machine['python_implementation']} {machine['python_version']}, {machine['python_compiler']}; {versions}",
        f"- not installed, so not measured: {missing or 'none'}",
    ]
    if machine["load_before"][0] > 0.5:
        lines.append("- **the machine was shared: other work ran at the same time**")
    if efforts != {FULL.name}:
        lines.append("- **measured briefly: to look at, not to quote**")
    return "\n".join(lines)


def table(case: str, rows: list[Row]) -> str:
    unit, is_of_calls = rows[0]["unit"], rows[0]["is_of_calls"]
    limit = next((row for row in rows if row["contender"] == row["limit"]), None)
    has_rivals = any(row["best_peer"] for row in rows)
    percentiles = ["p90", "p99", "p99.9"] if is_of_calls else ["p99"]
    titles = [f"{case}{'' if unit == 's' else f', {unit}'}", "", "median"]
    titles += percentiles if is_of_calls else ["p99 of rounds"]
    if limit:
        base = limit["contender"].partition(":")[0]
        titles += [f"× {base}"] + [f"p99.9 × {base}'s"] * is_of_calls
    titles += ["× best rival"] * has_rivals
    lines = ["| " + " | ".join(titles) + " |", "|---|---|" + "--:|" * (len(titles) - 2)]
    for row in rows:
        name = f"**{row['contender']}**" if row["kind"] == "pcmring" else row["contender"]
        cells = [name, row["kind"], *(figure(row[key], unit) for key in ("median", *percentiles))]
        if limit:
            cells += [times(row["x_limit"])] + [times(row["p99.9"] / limit["p99.9"])] * is_of_calls
        cells += [times(row["x_best_peer"])] * has_rivals
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scaling(results: Results) -> str:
    """pcmring's medians in the races whose cases are numbers: what is flat, and what is not."""
    lines = ["| pcmring | from | to | median at first | at last | grows |", "|---|--:|--:|--:|--:|--:|"]
    for race, rows in results.groups():
        own = [row for row in rows if row["contender"] == "pcmring" and row["case"].isdigit()]
        if len(own) > 2:
            first, last = (min(own, key=lambda row: int(row["case"])), max(own, key=lambda row: int(row["case"])))
            cells = [race.replace("_", " "), f"{int(first['case']):,}", f"{int(last['case']):,}"]
            cells += [figure(row["median"], row["unit"]) for row in (first, last)]
            lines.append("| " + " | ".join([*cells, times(last["median"] / first["median"])]) + " |")
    return "\n".join(lines)


def page(results: Results, images: str | None = None) -> Iterator[str]:
    """Markdown, a paragraph at a time; `images` is the folder of the plots, if they are to be shown."""
    yield facts(results)
    yield "### Aims"
    yield aims.table(results)
    yield "### Scaling"
    yield scaling(results)
    for race, rows in results.groups():
        yield f"### {race.replace('_', ' ')}"
        if images is not None:
            yield f"![{race}]({images}/{plots.file_name(race)}.svg)"
        yield " ".join(rows[0]["about"].split())
        if goal := rows[0]["goal"]:
            yield f"Goal: {goal}."
        for case, ranked in by_case(rows):
            yield table(case, ranked)


def difference(one: Results, other: Results) -> str:
    """How far two runs differ: the medians and, what should differ less, the ratios."""
    titles = ("race", "case", "contender", "median 1", "median 2", "off by", "× limit 1", "× limit 2", "off by")
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|" + "--:|" * (len(titles) - 3)]
    for row in one.rows:
        try:
            again = other.row(row["group"], row["case"], row["contender"])
        except LookupError:
            continue
        if row["kind"] != "pcmring" or not row["median"]:
            continue
        cells = [row["group"], row["case"], row["contender"], figure(row["median"], row["unit"])]
        cells += [figure(again["median"], row["unit"]), f"{again['median'] / row['median'] - 1:+.0%}"]
        cells += [times(row["x_limit"]), times(again["x_limit"])]
        cells += [f"{again['x_limit'] / row['x_limit'] - 1:+.0%}" if row["x_limit"] and again["x_limit"] else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(paths: list[Path], folder: Path, docs: Path | None = None) -> None:
    """Print the tables, or how two runs differ, and leave them in `folder` with the plots; write a page of the docs."""
    found = [Results(path) for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    if len(found) == 2:
        text = difference(*found)
        (folder / "difference.md").write_text(text + "\n")
        print(text)
        return
    (results,) = found
    text = "\n\n".join(page(results, "plots"))
    (folder / "results.md").write_text(text + "\n")
    print("\n\n".join(page(results)))
    plots.draw(results, folder / "plots")
    if docs is not None:
        before, begin, rest = docs.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"{docs} must have the lines {BEGIN} and {END}")
        images = docs.with_suffix("")
        plots.draw(results, images, ("svg",))
        docs.write_text(f"{before}{begin}\n\n" + "\n\n".join(page(results, images.name)) + f"\n\n{end}{after}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", type=Path, nargs="+", metavar="JSON", help="one run, or two to compare")
    options.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="for tables and plots")
    options.add_argument("--docs", type=Path)
    given = options.parse_args()
    if len(given.results) > 2:
        options.error("one run, or two to compare")
    report(given.results, given.folder, given.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
