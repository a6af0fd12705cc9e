"""What was measured: rows of values, one for each round, with what else has to be known to read them."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "dispytch",
    "faststream",
    "anyio",
    "pydantic",
    "trio",
    "uvloop",
    "confluent-kafka",
    "pika",
    "aio-pika",
    "redis",
    "hiredis",
)


@dataclass
class Row:
    """The values of one contender.

    Attributes:
        subject: The transport, ``core``, or what grows.
        measure: What was measured, or the size that it was measured with.
        contender: Who was measured.
        unit: The unit of the values.
        values: One for each round.
        memory_mb: The most memory that the process had, for each round.
        settings: How the contender was set.
    """

    subject: str
    measure: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    settings: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Results:
    """The rows of one run of a command.

    Attributes:
        command: ``compare`` or ``scale``.
        environment: Versions, processors, load, and when it was.
        options: What the command was given.
        notes: What was left out, and why.
        failures: What was to be measured and failed.
    """

    command: str
    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def row(self, subject: str, measure: str, contender: str) -> Row | None:
        for row in self.rows:
            if (row.subject, row.measure, row.contender) == (subject, measure, contender):
                return row
        return None

    def add(
        self,
        subject: str,
        measure: str,
        contender: str,
        unit: str,
        value: float,
        memory_mb: float | None,
        settings: str,
    ) -> None:
        """Adds the value of one round."""
        row = self.row(subject, measure, contender)
        if row is None:
            row = Row(subject, measure, contender, unit, settings=settings)
            self.rows.append(row)
        row.values.append(value)
        if memory_mb is not None:
            row.memory_mb.append(memory_mb)

    def ratios(self, row: Row, other: str) -> list[float]:
        """A row's values over those of another contender, round by round; none if that was not measured."""
        rival = self.row(row.subject, row.measure, other)
        if rival is None or other == row.contender:
            return []
        return [value / against for value, against in zip(row.values, rival.values, strict=False) if against]

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(file: Path) -> Results:
    """What `Results.write` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        found = json.loads(file.read_text())
        return Results(**{**found, "rows": [Row(**row) for row in found["rows"]]})
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} holds no results of `python -m benchmarks compare` or `scale`") from error


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    found = {"python": platform.python_version(), "implementation": sys.implementation.name}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "versions": found,
    }


def peak_mb() -> float:
    """The most memory that this process has had."""
    with suppress(OSError):  # elsewhere than on Linux
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # getrusage() would count the parent's, from before this program began
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def number(value: float) -> str:
    """A number with two or three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def spread(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""
