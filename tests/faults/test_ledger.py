"""The ledger outlives its process, and its check finds each fault."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.ledger import Findings, Kind, Life, Record, check, read

EMITTED = "Ea1 Ca1 Ea2 Ca2 Eb1 Cb1"
"""Kind, key and sequence of each record; the event is named by the latter two."""

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.faults.ledger import Kind, Ledger
ledger = Ledger(Path(sys.argv[1]), "worker")
for number in range(1000):
    ledger.note(Kind.STARTED, f"e{number}", "k", number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def life(text: str, begin: float = 0.0, name: str = "worker") -> Life:
    records = [
        Record(begin + number, Kind(word[0]), word[1:], word[1], int(word[2:]))
        for number, word in enumerate(text.split())
    ]
    return Life(f"{name}-{begin}", 1, records)


def found(*workers: str, emitted: str = EMITTED) -> Findings:
    lives = [life(emitted, name="emitter"), *(life(text, 100.0 * n) for n, text in enumerate(workers, 1))]
    return check(lives)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert found("Sa1 Sb1 Fa1 Sa2 Fb1 Fa2") == Findings(3, 3, 3, frozenset(), 0, [], [], 0, 0)


@pytest.mark.parametrize(
    ("worker", "lost"),
    [
        ("Sa1 Fa1 Sa2 Fa2", {"b1"}),  # never began
        ("Sa1 Fa1 Sa2 Fa2 Sb1", {"b1"}),  # never came to its end
        ("Sa1 Fa1 Sa2 Fa2 Sb1 Xb1", {"b1"}),  # failed
        ("Sa1 Fa1 Sa2 Fa2 Sb1 Xb1 Db1", set()),  # failed, and is not lost
    ],
)
def test_what_was_confirmed_and_never_finished_is_lost(worker: str, lost: set[str]) -> None:
    assert found(worker).lost == lost


def test_what_was_not_confirmed_cannot_be_lost() -> None:
    nothing = found("Sa1 Fa1", emitted="Ea1 Ca1 Ea2")
    assert (nothing.emitted, nothing.confirmed, nothing.lost) == (2, 1, frozenset())


@pytest.mark.parametrize(
    ("workers", "repeated"),
    [
        (["Sa1 Fa1 Sa1 Fa1 Sa1 Fa1"], 2),
        (["Sa1 Fa1", "Sa1 Fa1"], 1),
        (["Sa1", "Sa1 Fa1"], 0),  # the first one was killed before it came to its end
        (["Sa1 Xa1 Sa1 Fa1"], 0),
    ],
)
def test_finishes_beyond_the_first_are_repeats(workers: Sequence[str], repeated: int) -> None:
    assert found(*workers).repeated == repeated


@pytest.mark.parametrize(
    ("workers", "disordered"),
    [
        (["Sa2 Fa2 Sa1 Fa1"], [("a2", "a1")]),
        (["Sa1 Fa1 Sa3 Fa3 Sa2 Fa2"], [("a3", "a2")]),
        (["Sa1 Fa1 Sa2 Fa2 Sa1 Fa1"], []),  # again, but its first handling was in order
        (["Sa1 Sb1", "Sa2 Fa2 Sa1 Fa1"], []),  # another process had begun with it
        (["Sa2 Fa2", "Sa1 Fa1"], []),  # each in order for itself
    ],
)
def test_first_handlings_of_a_key_are_in_order_within_a_process(
    workers: Sequence[str], disordered: Sequence[tuple[str, str]]
) -> None:
    assert found(*workers).disordered == disordered


@pytest.mark.parametrize(
    ("workers", "overlaps"),
    [
        (["Sa1 Sa2 Fa1 Fa2"], [("a1", "a2")]),
        (["Sa1 Sa1 Fa1 Fa1"], [("a1", "a1")]),
        (["Sa1 Xa1 Sa2 Fa2"], []),
        (["Sa1 Sb1 Fb1 Fa1"], []),  # two keys
        (["Sa1", "Sa2 Fa2"], []),  # two processes
    ],
)
def test_overlaps_of_a_key_within_a_process_are_found(
    workers: Sequence[str], overlaps: Sequence[tuple[str, str]]
) -> None:
    assert found(*workers).overlaps == overlaps


def test_dead_letters_are_counted() -> None:
    letters = found("Da1 Da1 Db1")
    assert (letters.dead_lettered, letters.letters) == (2, 3)


def test_a_killed_process_leaves_all_that_it_noted(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert child.wait(30) == -signal.SIGKILL
    (found,) = read(tmp_path)
    assert (found.pid, [record.sequence for record in found.records]) == (child.pid, list(range(1000)))


def test_half_a_line_was_never_written(tmp_path: Path) -> None:
    (tmp_path / "worker-7-1.ledger").write_text("1.0 S e1 k 1\n2.0 F e1")
    assert read(tmp_path) == [Life("worker-7-1", 7, [Record(1.0, Kind.STARTED, "e1", "k", 1)])]
