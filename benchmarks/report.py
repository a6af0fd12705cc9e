"""``python -m benchmarks report``: results as Markdown, as JSON, and as plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.ours import LOOPS
from benchmarks.progress import missing, say
from benchmarks.results import Results, Row, number, spread

AIMS = {
    ("kafka", "consume", "asyncio"): ">= 0.35 x raw, >= 25 x FastStream",
    ("kafka", "consume", "trio"): ">= 0.30 x raw, >= 25 x FastStream",
    ("streams", "consume", "*"): ">= 0.5 x raw, >= 15 x FastStream",
    ("rabbitmq", "consume", "*"): ">= 0.8 x raw, >= 3 x FastStream",
    ("memory", "through", "asyncio"): ">= 200,000",
    ("memory", "through", "trio"): ">= 150,000",
    ("*", "emit", "*"): ">= 0.5 x raw",
    ("*", "emit-one", "*"): ">= 0.8 x raw-thread",
    ("*", "emit-one", "blocking"): ">= 0.8 x raw",
    ("*", "latency alone p50", "*"): "raw + <= 1,000 us",
    ("core", "handler that sleeps 5 ms at concurrency 100", "asyncio"): ">= 0.75",
    ("core", "handler that sleeps 5 ms at concurrency 100", "trio"): ">= 0.6",
    ("core", "one more dependency", "*"): "<= 3",
    ("core", "one more middleware", "*"): "<= 2",
    ("core", "1,000 other routes", "*"): "<= 1.05",
    ("core", "1,000 other routes, one event after the other", "*"): "<= 1.05",
    ("core", "import of all names of dispytch, beyond pydantic and anyio", "*"): "<= 60",
    ("core", "the same where a model of pydantic was made before, which loads the rest of it", "*"): "<= 60",
}
"""What the project wants to reach, the first that fits; in memory there is no client to hold emitting against."""
_RIVALS = ("raw", "raw-thread", "faststream")


def markdown(results: Results) -> str:
    """The results as tables."""
    return _compared(results) if results.command == "compare" else _scaled(results)


def _compared(results: Results) -> str:
    rivals = [rival for rival in _RIVALS if any(row.contender == rival for row in results.rows)]
    heads = ["", "measure", "contender", "median", "unit", "range", *(f"x {name}" for name in rivals), "MB", "aim"]
    lines = [heads, ["---"] * len(heads)]
    for row in _ordered(results.rows):
        against = []
        for rival in rivals:
            ratios = sorted(results.ratios(row, rival))
            against.append(number(_median(ratios)) if ratios else "")
        peak = f"{max(row.memory_mb):.0f}" if row.memory_mb else ""
        values = [row.subject, row.measure, row.contender, number(row.median), row.unit, spread(row.values)]
        lines.append([*values, *against, peak, _aim(row)])
    return _table(lines)


def _scaled(results: Results) -> str:
    """One line for each thing that grows and each loop, and what the largest costs against the smallest."""
    lines = []
    for subject in dict.fromkeys(row.subject for row in results.rows):
        rows = [row for row in results.rows if row.subject == subject]
        sizes = sorted({int(row.measure) for row in rows})
        heads = [f"{subject}, us/event", *(f"{size:,}" for size in sizes), "largest / smallest", "MB at the largest"]
        some = [heads, ["---"] * len(heads)]
        for contender in dict.fromkeys(row.contender for row in rows):
            found = [results.row(subject, str(size), contender) for size in sizes]
            known = [row for row in found if row is not None]
            ratio = number(known[-1].median / known[0].median) if len(known) > 1 else ""
            peak = f"{max(known[-1].memory_mb):.0f}" if known[-1].memory_mb else ""
            some.append([contender, *("" if row is None else number(row.median) for row in found), ratio, peak])
        lines.append(_table(some))
    return "\n\n".join(lines)


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """Rows of one measure beside each other."""
    order: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        order.setdefault((row.subject, row.measure), []).append(row)
    return [row for some in order.values() for row in some]


def _median(values: Sequence[float]) -> float:
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _aim(row: Row) -> str:
    if row.contender in _RIVALS or (row.subject == "memory" and row.measure != "through"):
        return ""
    for subject in (row.subject, "*"):
        for contender in (row.contender, "*"):
            if found := AIMS.get((subject, row.measure, contender)):
                return found
    return ""


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(many: Sequence[Results]) -> str:
    """Results with what they were measured on."""
    parts = []
    for results in many:
        known = results.environment
        versions = ", ".join(f"{name} {found}" for name, found in known["versions"].items())
        parts.append(f"## {results.command}, {known['time']}")
        parts.append(
            f"{known['system']}, {known['processors']} processors, load {known['load_before']:.1f} before. {versions}. "
            f"Medians of {results.options['rounds']} rounds; ratios are medians of the rounds' own."
        )
        parts.append(markdown(results))
        if known_settings := _settings(results):
            parts.append("How each was set:\n\n" + "\n".join(known_settings))
        if results.failures:
            parts.append("Failed:\n\n" + "\n".join(f"- {text.splitlines()[0]}" for text in results.failures))
        if results.notes:
            parts.append("\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(parts) + "\n"


def _settings(results: Results) -> list[str]:
    names: dict[str, list[str]] = {}
    for row in results.rows:
        if row.settings:
            name = "Dispytch" if row.contender in LOOPS else f"{row.contender} on {row.subject}"
            some = names.setdefault(row.settings, [])
            if name not in some:
                some.append(name)
    return [f"- {', '.join(some)}: {settings}" for settings, some in names.items()]


def plots(many: Sequence[Results], folder: Path) -> list[Path]:
    """One picture for each transport's measure, and one for each thing that grows; none without matplotlib."""
    if note := missing("matplotlib", "No plots"):
        say(note)
        return []
    import_module("matplotlib").use("Agg")
    made = []
    for results in many:
        draw = _bars if results.command == "compare" else _curves
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in results.rows:
            groups.setdefault((row.subject, row.measure if results.command == "compare" else ""), []).append(row)
        for (subject, measure), rows in groups.items():
            name = "-".join(f"{results.command} {subject} {measure}".replace(",", "").split())
            file = folder / f"{name}.png"
            _draw(file, f"{subject} {measure}".strip(), rows, draw)
            made.append(file)
    return made


def _draw(file: Path, title: str, rows: Sequence[Row], draw: Any) -> None:
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.set_title(title)
    draw(axes, rows)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """Medians as bars, ranges as lines on them."""
    names, medians = [row.contender for row in rows], [row.median for row in rows]
    below = [row.median - min(row.values) for row in rows]
    above = [max(row.values) - row.median for row in rows]
    axes.barh(names, medians, xerr=[below, above], capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(rows[0].unit)


def _curves(axes: Any, rows: Sequence[Row]) -> None:
    """A line for each loop, with the range of the rounds behind it."""
    for contender in dict.fromkeys(row.contender for row in rows):
        some = sorted((row for row in rows if row.contender == contender), key=lambda row: int(row.measure))
        sizes = [int(row.measure) for row in some]
        axes.plot(sizes, [row.median for row in some], marker="o", label=contender)
        axes.fill_between(sizes, [min(row.values) for row in some], [max(row.values) for row in some], alpha=0.2)
    if max(int(row.measure) for row in rows) > 20:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(rows[0].subject)
    axes.set_ylabel(rows[0].unit)
    axes.legend()
