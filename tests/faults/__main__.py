"""Has consumers, connections and brokers fail, and prints what was lost and repeated as a table in Markdown.

::

    python -m tests.faults [--transport NAME]... [--row NAME]... [--long] [--seed N] [--output FILE] [for pytest]
    python -m tests.faults --mutations

With ``--mutations`` workers make mistakes on purpose, and the rows must find them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from tests.faults.result import RESULT, Result


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
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options, rest = parser.parse_known_args()
    if options.long:
        os.environ["DISPYTCH_LONG"] = "1"
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    os.environ["DISPYTCH_FAULTS_SEED"] = str(seed)
    recorder = Recorder(options.transport, options.row)
    tests = Path(__file__).with_name("test_mutations.py" if options.mutations else "test_faults.py")
    code = pytest.main([str(tests), "-q", "--require-brokers", "-p", "no:cacheprovider", *rest], plugins=[recorder])
    passed = sum(passed for _, _, passed, _ in recorder.lines)
    seconds = sum(seconds for *_, seconds in recorder.lines)
    summary = f"{recorder.table()}\n\n{passed} of {len(recorder.lines)} passed, in {seconds:.0f} s. Seed {seed}.\n"
    print(f"\n{summary}")
    if options.output is not None:
        options.output.write_text(summary)
    return int(code)


sys.exit(main())
