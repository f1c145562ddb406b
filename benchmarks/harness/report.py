"""Results as JSON, as Markdown and as pictures."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import machine, pyplot

from benchmarks.harness.cells import Cell
from benchmarks.harness.environments import ROOT
from benchmarks.harness.measuring import Row

LOADED = 1.5
"""A mean load above this at the start or the end says that something else was at work: the harness itself makes one."""
PICTURES = ROOT / "docs" / "pictures"
OURS, THEIRS, FLOOR = "#3f51b5", "#9e9e9e", "#000000"


@dataclasses.dataclass
class Part:
    """The rows of a cell; none where it was `left_out`, for the reason given."""

    cell: Cell
    rows: list[Row]
    left_out: str = ""

    @property
    def right(self) -> list[Row]:
        return sorted((row for row in self.rows if row.counts and not row.floor), key=lambda row: row.seconds)


@dataclasses.dataclass
class Section:
    """The cells of a section, the load when it began and when it ended, and of which commit it was measured, when."""

    name: str
    title: str
    text: str
    parts: list[Part]
    load: tuple[float, float]
    seconds: float
    commit: str = ""
    date: str = ""


@dataclasses.dataclass
class Results:
    size: str
    sections: list[Section]
    versions: dict[str, dict[str, str]]
    card: str = ""
    """The card on which JAX ran, or "" on a CPU."""

    @property
    def loaded(self) -> list[Section]:
        return [section for section in self.sections if max(section.load) > LOADED]


def commit() -> str:
    """The commit, with a word where the tree differs from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "not in a repository"


def processor() -> str:
    """The model of the processor, as Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def as_json(results: Results) -> str:
    def part(found: Part) -> dict[str, Any]:
        rows = [dataclasses.asdict(row) for row in found.rows]
        accept, name = found.cell.accept, found.cell.error_name
        problem = {"problem": found.cell.problem, "accepted_error": accept, "error": name, "rows": rows}
        return problem | ({"left_out": found.left_out} if found.left_out else {})

    def section(found: Section) -> dict[str, Any]:
        facts = {"commit": found.commit, "date": found.date, "load": found.load, "seconds": found.seconds}
        return facts | {"problems": [part(one) for one in found.parts]}

    top = {"machine": machine(), "processor": processor(), "size": results.size, "versions": results.versions}
    top |= {"card": results.card} if results.card else {}
    return json.dumps(top | {"sections": {each.name: section(each) for each in results.sections}}, indent=1) + "\n"


def restored(name: str, title: str, text: str, cells: Iterable[Cell], found: dict[str, Any]) -> Section:
    """A section as `as_json` wrote it: of the cells as they are now, those that were measured then."""
    known = {cell.problem: cell for cell in cells}
    parts = [
        Part(known[one["problem"]], [Row(**row) for row in one["rows"]], one.get("left_out", ""))
        for one in found["problems"]
        if one["problem"] in known
    ]
    begun, ended = found["load"]
    return Section(name, title, text, parts, (begun, ended), found["seconds"], found["commit"], found["date"])


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s"


def _line(row: Row, best: float | None, cell: Cell) -> str:
    name = f"**{row.method}**" if row.ours else row.method
    if row.failed:
        return f"| {name} | {row.failed} | | | | | | | |"
    error = f"{row.error:.0e}" if row.error is not None else ""
    if not row.cpu:
        return f"| {name} | does not reach it | | | | {row.first:.1f} s | | | {error} at best |"
    low, high = np.quantile(row.laps, [0.25, 0.75])
    times = "" if best is None or row.wrong else f"{row.seconds / best:.2f}"
    clock = _time(float(np.median(row.wall)))
    cells = [name, _time(row.seconds), f"{_time(low)} to {_time(high)}", clock, times, f"{row.first:.1f} s"]
    cells += [
        f"{(row.memory or 0) / 1e6:.1f}",
        f"{row.resident / 1e6:.0f}",
        f"{error}, **{cell.verdict}**" if row.wrong else error,
    ]
    return f"| {' | '.join(cells)} |"


def verdict(part: Part) -> str:
    """Who is fastest among those that are right, in a sentence."""
    if part.left_out:
        return f"Left out: {part.left_out}."
    ours, theirs = ([row for row in part.right if row.ours is which] for which in (True, False))
    if not ours:
        return "hyprax has no right answer here."
    if not theirs:
        return "No other method has a right answer here."
    ratio = theirs[0].seconds / ours[0].seconds
    if ratio >= 1:
        return f"{ours[0].method} is the fastest; the next, {theirs[0].method}, takes {ratio:.2g} times as long."
    return f"**hyprax is not the fastest**: {theirs[0].method} takes {ratio:.2f} of the time of {ours[0].method}."


def _table(part: Part) -> list[str]:
    right, cell = part.right, part.cell
    if part.left_out:
        return [f"\n### {cell.problem}\n", verdict(part)]
    best = right[0].seconds if right else None
    lines = [f"\n### {cell.problem}\n"]
    titles = "time", "quartiles", "clock", "/ fastest", "first call", "memory, MB", "process, MB", "error"
    lines += [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    lines += [_line(row, best, cell) for row in part.rows]
    notes = [f"{row.method}: {row.note}." for row in part.rows if row.note]
    laps = max((len(row.cpu) for row in part.rows), default=0)
    accepted = f"at most {cell.accept:.0e} is right" if cell.accept else "only 0 is right"
    said = [verdict(part), f"Error: {cell.error_name}; {accepted}.", f"Laps: {laps}.", *notes]
    return [*lines, "", " ".join(said)]


HOW = """Every method gets the same arrays, in a process that stays alive, on one core and one thread, and methods take
turns. *Time* is the median of the processor's time of a lap, *quartiles* those of the laps, *clock* the median by the
clock, *first call* what the first one took beyond that (compilation, and imports where the method is the first of its
library), *memory* the growth of the process in a lap, *process* the most it held. *Error* is the distance to an answer
computed in float64 by other means: a faster wrong answer is marked, and is never the fastest."""


ON_CARD = """On a card *time* and its quartiles are by the clock, memory is the card's, and each method has a process of
its own."""


def as_markdown(results: Results) -> str:
    lines = [f"Written by `make bench{'-full' if results.size == 'full' else ''}` (`benchmarks/harness`).\n"]
    if results.size == "quick":
        lines.append("**A quick run, which shows that everything runs: its figures say nothing.**\n")
    for section in results.loaded:
        start, end = section.load
        lines.append(
            f"**MEASURED UNDER LOAD: `{section.name}`, load {start:.1f} at the start and {end:.1f} at the end. "
            "Other work ran beside it: its figures must be measured again.**\n"
        )
    lines.append(f"- {f'{results.card}, beside ' * bool(results.card)}{processor()}, {machine()}")
    for environment, found in results.versions.items():
        lines.append(f"- {environment}: {', '.join(f'{name} {version}' for name, version in found.items())}")
    for section in results.sections:
        begun, ended = section.load
        when = f"commit {section.commit}, {section.date}"
        lines.append(f"- `{section.name}`: {when}, {section.seconds:.0f} s, load {begun:.1f} to {ended:.1f}")
    lines += ["", HOW, *([ON_CARD] if results.card else [])]
    for section in results.sections:
        lines += [f"\n## {section.title}\n", section.text]
        for part in section.parts:
            lines += _table(part)
    return "\n".join(lines) + "\n"


def _dots(plt: Any, section: Section) -> Any:
    parts = [part for part in section.parts if not part.cell.curve]
    rows = sum(len(part.right) + 1 for part in parts)
    figure, axes = plt.subplots(figsize=(7.5, 0.8 + 0.2 * rows), layout="constrained")
    at, names, places = 0.0, list[str](), list[float]()
    for part in parts:
        names.append(part.cell.problem)
        places.append(at)
        at += 1
        for row in part.right:
            axes.plot(row.seconds, at, "o", color=OURS if row.ours else THEIRS)
            names.append(row.method)
            places.append(at)
            at += 1
    axes.set(yticks=places, yticklabels=names, xscale="log", xlabel="seconds; blue is hyprax; wrong answers left out")
    axes.tick_params(axis="y", labelsize=7, length=0)
    for label in axes.get_yticklabels():
        if label.get_text() in {part.cell.problem for part in parts}:
            label.set_fontweight("bold")
    axes.set_ylim(at - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _searches(plt: Any, section: Section) -> Any:
    parts = [part for part in section.parts if any(row.trace for row in part.rows)]
    height = -(-len(parts) // 2)  # two beside each other, so that a phone shows them
    figure, axes = plt.subplots(height, 2, figsize=(7.5, 3 * height), layout="constrained", squeeze=False)
    for each, part in zip(axes.flat, parts, strict=False):
        styles = iter(("--", ":", "-."))
        for row in part.rows:
            if row.trace:
                style = "-" if row.ours else next(styles)
                color = OURS if row.ours else THEIRS
                seconds, losses = row.trace["trace_cpu"], row.trace["trace_test"]
                each.plot(seconds, losses, style, color=color, label=row.method, drawstyle="steps-post")
        each.set(xscale="log", title=part.cell.problem, xlabel="seconds")
        each.title.set_fontsize(8)
        each.axhline(part.cell.target, color=FLOOR, lw=0.7)
    for each in axes.flat[len(parts) :]:
        each.set_axis_off()
    axes[0][0].set_ylabel("test loss; the line is the target")
    axes[0][0].legend(fontsize=7)
    return figure


def _curves(plt: Any, section: Section) -> Any:
    names = list(dict.fromkeys(part.cell.curve for part in section.parts if part.cell.curve))
    height = -(-len(names) // 3)
    figure, axes = plt.subplots(height, 3, figsize=(10, 3 * height), layout="constrained", squeeze=False)
    for each, name in zip(axes.flat, names, strict=False):
        parts = [part for part in section.parts if part.cell.curve == name]
        methods = dict.fromkeys(row.method for part in parts for row in part.rows)
        for method in methods:
            found = [(part.cell.x, row) for part in parts for row in part.rows if row.method == method and row.counts]
            if not found:
                continue
            floor = found[0][1].floor
            style = {"color": FLOOR, "ls": "--"} if floor else {"marker": "o", "ms": 3}
            each.plot([x for x, _ in found], [row.seconds for _, row in found], label=method, **style)
        each.set(xscale="log", yscale="log", title=name, xlabel=parts[0].cell.xlabel, ylabel="seconds")
        each.title.set_fontsize(9)
        each.legend(fontsize=6)
    for each in axes.flat[len(names) :]:
        each.set_axis_off()
    return figure


def pictures(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw what there is to draw; the names of the files, with what they show."""
    plt = pyplot()
    plt.rcParams["svg.hashsalt"], plt.rcParams["svg.fonttype"] = "hyprax", "none"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for section in results.sections:
        drawn = [("times", _dots, section.title)]
        if any(part.cell.curve for part in section.parts):
            drawn = [("curves", _curves, f"{section.title}: seconds, and floors (dashed)")]
        elif any(row.trace for part in section.parts for row in part.rows):
            drawn = [("searches", _searches, f"{section.title}: test loss by seconds of computation")]
        for kind, draw, alt in drawn:
            figure = draw(plt, section)
            name = f"benchmarks-{section.name}-{kind}.svg"
            figure.savefig(folder / name, metadata={"Date": None})
            plt.close(figure)
            made.append((name, alt))
    return made


def write(results: Results, folder: Path, drawings: Path) -> None:
    """RESULTS.md and PICTURES.md, as docs/benchmarks.md includes them, and results.json in a folder; the drawings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(as_json(results))
    (folder / "RESULTS.md").write_text(as_markdown(results))
    made: Iterable[tuple[str, str]] = pictures(results, drawings)
    (folder / "PICTURES.md").write_text("\n\n".join(f"![{alt}](pictures/{name})" for name, alt in made) + "\n")


def load() -> float:
    """The mean load of the last minute."""
    return os.getloadavg()[0]
