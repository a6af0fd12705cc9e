"""What was emitted, confirmed and handled, as far as it got: a ledger that a killed process leaves complete.

Each process appends to a file of its own, a line for each record, written at once by one call to the system: what a
process has noted is there, however it ended. `check` then compares what all of them have noted.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

__all__ = ["Findings", "Kind", "Ledger", "Life", "Record", "check", "read"]


class Kind(StrEnum):
    """What happened to an event."""

    EMITTED = "E"
    """It was given to an emitter."""
    CONFIRMED = "C"
    """The broker has said that it has it."""
    STARTED = "S"
    """A handler began with it."""
    FINISHED = "F"
    """That handler returned."""
    FAILED = "X"
    """That handler raised."""
    DEAD_LETTERED = "D"
    """It was found at the dead-letter destination."""


class Record(NamedTuple):
    """One line of a ledger. ``time`` is in seconds, by a clock that all processes of the machine share."""

    time: float
    kind: Kind
    event: str
    key: str
    sequence: int


@dataclass(frozen=True)
class Life:
    """All that one process has noted, in order."""

    name: str
    pid: int
    records: Sequence[Record]


class Ledger:
    """Writes what this process sees of events. For all threads.

    Args:
        folder: Where the ledgers of one run are.
        role: What this process does, for the name of the file.
    """

    def __init__(self, folder: Path, role: str) -> None:
        name = f"{role}-{os.getpid()}-{time.monotonic_ns()}.ledger"
        self._file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind: Kind, event: str, key: str, sequence: int) -> None:
        """Appends a record. Neither ``event`` nor ``key`` may hold white space."""
        os.write(self._file, f"{time.monotonic():.6f} {kind} {event} {key} {sequence}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def read(folder: Path) -> list[Life]:
    """The ledgers in a folder, the oldest process first; a line that is not complete was never written."""
    lives = []
    for file in folder.glob("*.ledger"):
        whole, _, _ = file.read_text().rpartition("\n")
        records = [_parsed(line) for line in whole.split("\n") if line]
        lives.append(Life(file.stem, int(file.stem.split("-")[-2]), records))
    return sorted(lives, key=lambda life: life.records[0].time if life.records else 0.0)


def _parsed(line: str) -> Record:
    at, kind, event, key, sequence = line.split(" ")
    return Record(float(at), Kind(kind), event, key, int(sequence))


@dataclass(frozen=True)
class Findings:
    """What is wrong, and how much there was of everything.

    Attributes:
        emitted: How many events were given to emitters.
        confirmed: Those that the broker has confirmed.
        handled: Those that a handler has finished, once or more often.
        lost: Those that were confirmed, and neither finished nor dead-lettered.
        repeated: How often a handler finished beyond the first time, over all events.
        disordered: Pairs of events of a key whose first handlings began in the wrong order within one process: the one
            that came too early, and the one that came too late. Events that an earlier process had begun do not count.
        overlaps: Pairs of events of one key that were handled at the same time by one process.
        dead_lettered: Those found at the dead-letter destination.
        letters: How many dead letters there are.
    """

    emitted: int
    confirmed: int
    handled: int
    lost: frozenset[str]
    repeated: int
    disordered: Sequence[tuple[str, str]]
    overlaps: Sequence[tuple[str, str]]
    dead_lettered: int
    letters: int


def check(lives: Iterable[Life]) -> Findings:
    """Compares what the processes have noted."""
    lives = list(lives)
    events: defaultdict[Kind, list[str]] = defaultdict(list)
    for life in lives:
        for record in life.records:
            events[record.kind].append(record.event)
    finished, dead = events[Kind.FINISHED], set(events[Kind.DEAD_LETTERED])
    handled = set(finished)
    first_lives = _first_lives(lives)
    return Findings(
        emitted=len(set(events[Kind.EMITTED])),
        confirmed=len(set(events[Kind.CONFIRMED])),
        handled=len(handled),
        lost=frozenset(set(events[Kind.CONFIRMED]) - handled - dead),
        repeated=len(finished) - len(handled),
        disordered=[pair for life in lives for pair in _disordered(life, first_lives)],
        overlaps=[pair for life in lives for pair in _overlaps(life)],
        dead_lettered=len(dead),
        letters=len(events[Kind.DEAD_LETTERED]),
    )


def _first_lives(lives: Iterable[Life]) -> Mapping[str, str]:
    """The process that first began with each event."""
    begun: dict[str, tuple[float, str]] = {}
    for life in lives:
        for record in life.records:
            if record.kind is Kind.STARTED:
                begun[record.event] = min(begun.get(record.event, (record.time, life.name)), (record.time, life.name))
    return {event: name for event, (_, name) in begun.items()}


def _disordered(life: Life, first_lives: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    highest: dict[str, Record] = {}
    seen: set[str] = set()
    for record in life.records:
        if record.kind is not Kind.STARTED or record.event in seen or first_lives[record.event] != life.name:
            continue
        seen.add(record.event)
        before = highest.get(record.key)
        if before is not None and before.sequence > record.sequence:
            yield before.event, record.event
        else:
            highest[record.key] = record


def _overlaps(life: Life) -> Iterable[tuple[str, str]]:
    running: defaultdict[str, list[str]] = defaultdict(list)
    for record in life.records:
        if record.kind is Kind.STARTED:
            for other in running[record.key]:
                yield other, record.event
            running[record.key].append(record.event)
        elif record.kind in (Kind.FINISHED, Kind.FAILED) and record.event in running[record.key]:
            running[record.key].remove(record.event)
