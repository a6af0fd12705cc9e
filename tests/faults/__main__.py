"""Has consumers, connections and brokers fail, and prints what was lost and repeated as a table in Markdown.

::

    python -m tests.faults [--transport NAME]... [--row NAME]... [--long] [--seed N] [--output FILE] [for pytest]
    python -m tests.faults --mutations
    python -m tests.faults [--soak SECONDS] [--backlog EVENTS] [--transport NAME]...

With ``--mutations`` workers make mistakes on purpose, and the rows must find them. ``--soak`` has random faults happen
for so long, ``--backlog`` puts so many events before a slow handler; both watch what the worker's process holds.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.result import RESULT, Result
from tests.tables import refuse_workers

if TYPE_CHECKING:
    from tests.faults.rig import Rig
    from tests.faults.task import Transport


class Recorder:
    """A plugin of pytest: runs what was asked for, and keeps what came of it."""

    def __init__(self, transports: Sequence[str], rows: Sequence[str]) -> None:
        self.transports = set(transports)
        self.rows = set(rows)
        self.lines: list[tuple[str, Result | None, bool, float]] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if self._is_asked_for(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def _is_asked_for(self, item: pytest.Item) -> bool:
        assert isinstance(item, pytest.Function)
        params = item.callspec.params
        is_row = not self.rows or item.callspec.id.removesuffix(f"-{params['transport']}") in self.rows
        return is_row and (not self.transports or params["transport"] in self.transports)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "call" or not report.passed:
            assert isinstance(item, pytest.Function)
            name = item.callspec.id
            self.lines.append((name, item.stash.get(RESULT, None), report.passed, report.duration))
        return report

    def table(self) -> str:
        """A line for each row and transport."""
        lines = [_HEADS, ["---"] * len(_HEADS)]
        for name, result, passed, seconds in self.lines:
            word = "pass" if passed else "**FAIL**"
            if result is None:
                lines.append([name, *[""] * (len(_HEADS) - 3), word, f"{seconds:.1f}"])
            else:
                lines.append([*_cells(result), word, f"{seconds:.1f}"])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_HEADS = ["row", "transport", "events", "faults", "lost", "repeated", "bound", "note", "", "seconds"]


def _cells(result: Result) -> list[str]:
    bound = "" if result.bound is None else str(result.bound)
    numbers = (result.events, result.faults, result.lost, result.repeated)
    return [result.row, result.transport, *map(str, numbers), bound, result.note]


def _watch(
    recorder: Recorder, transports: Sequence[Transport], seconds: float | None, events: int | None, seed: int
) -> None:
    """Soaks, and puts a queue before a worker, for each transport."""
    # Not before pytest has had its chance to rewrite the assertions of what these import.
    from tests.faults.broker import running
    from tests.faults.rig import Rig
    from tests.faults.soak import backlog, soak

    def watch(transport: Transport, run: Callable[[Rig], Result]) -> None:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, running(transport, Path(folder, "broker")) as broker:
            (ledgers := Path(folder, "ledgers")).mkdir()
            rig = Rig(broker, ledgers, seed)
            with ExitStack() as closing:  # which keeps what went wrong first
                closing.callback(rig.close)
                result = run(rig)
        print("\n".join(result.problems))
        recorder.lines.append((result.row, result, not result.problems, time.monotonic() - began))

    for transport in transports:
        if seconds is not None:
            watch(transport, lambda rig: soak(rig, seconds))
        if events is not None:
            watch(transport, lambda rig: backlog(rig, events))


def main() -> int:
    """Runs it; the exit code is 0 if everything passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="What is lost when something fails.")
    parser.add_argument(
        "--transport", action="append", default=[], choices=("kafka", "rabbitmq", "redis"), help="only this one"
    )
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only this one, such as killed")
    parser.add_argument("--long", action="store_true", help="100,000 events, as DISPYTCH_LONG=1 has it")
    parser.add_argument("--seed", type=int, help="decides on all that is random; printed at the end")
    parser.add_argument("--mutations", action="store_true", help="only the mistakes that rows must find")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="random faults for so long, for each transport")
    parser.add_argument("--backlog", type=int, metavar="EVENTS", help="so many events before a slow handler")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options, rest = parser.parse_known_args()
    refuse_workers(parser, rest)
    if options.long:
        os.environ["DISPYTCH_LONG"] = "1"
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    os.environ["DISPYTCH_FAULTS_SEED"] = str(seed)
    recorder = Recorder(options.transport, options.row)
    if options.soak is not None or options.backlog is not None:
        _watch(recorder, options.transport or ("kafka", "rabbitmq", "redis"), options.soak, options.backlog, seed)
        code = not all(passed for _, _, passed, _ in recorder.lines)
    else:
        tests = Path(__file__).with_name("test_mutations.py" if options.mutations else "test_faults.py")
        code = bool(
            pytest.main([str(tests), "-q", "--require-brokers", "-p", "no:cacheprovider", *rest], plugins=[recorder])
        )
    passed = sum(passed for _, _, passed, _ in recorder.lines)
    seconds = sum(seconds for *_, seconds in recorder.lines)
    summary = f"{recorder.table()}\n\n{passed} of {len(recorder.lines)} passed, in {seconds:.0f} s. Seed {seed}.\n"
    print(f"\n{summary}")
    if options.output is not None:
        options.output.write_text(summary)
    return int(code)


sys.exit(main())
