"""Runs the conformance suite over all transports, and prints one table in Markdown.

::

    python -m tests.conformance [--transport NAME]... [--column NAME]... [--output FILE] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tables import refuse_workers

if TYPE_CHECKING:
    from tests.conformance.test_transports import OwnSuite


class Recorder:
    """A plugin of pytest: runs what was asked for, and keeps what came of it.

    Args:
        transports: The titles of those to run; none for all.
        columns: The columns to run; none for all.
    """

    def __init__(self, transports: Sequence[str], columns: Sequence[str]) -> None:
        self.transports = {name.lower() for name in transports}
        self.columns = set(columns)
        self.outcomes: dict[tuple[str, str, str], bool] = {}
        """Whether it passed, by the names of the test, the transport and the column."""
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.servers: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if self._is_asked_for(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def _is_asked_for(self, item: pytest.Item) -> bool:
        suite, column = _cell(item)
        return (not self.transports or suite.title.lower() in self.transports) and (
            not self.columns or column in self.columns
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        suite, column = _cell(item)
        assert isinstance(item, pytest.Function)
        cell = (item.originalname, suite.title, column)
        self.outcomes[cell] = self.outcomes.get(cell, True) and report.passed
        self.seconds[suite.title, column] += report.duration
        if report.when == "call" and report.passed and suite.title not in self.servers:
            self.servers[suite.title] = suite.server()
        return report

    def table(self) -> str:
        """Rows by transports and columns."""
        # Not before pytest has been told to rewrite the assertions of the rows.
        from dispytch.testing.conformance.rows import COLUMNS
        from dispytch.testing.conformance.suite import TABLE

        titles = dict.fromkeys(title for _, title, _ in self.outcomes)
        heads = [(title, column) for title in titles for column in COLUMNS if (title, column) in self.seconds]
        lines = [["", *(f"{title}, {column}" for title, column in heads)], ["---"] * (len(heads) + 1)]
        for row in TABLE:
            found = [self.outcomes.get((row.test, *head)) for head in heads]
            if any(outcome is not None for outcome in found):
                lines.append([row.name, *(_WORDS[outcome] for outcome in found)])
        lines.append(["**passed**", *(self._count(*head) for head in heads)])
        lines.append(["**seconds**", *(f"{self.seconds[head]:.1f}" for head in heads)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _count(self, title: str, column: str) -> str:
        found = [passed for (_, *head), passed in self.outcomes.items() if head == [title, column]]
        return f"{sum(found)} of {len(found)}"

    def summary(self) -> str:
        """The table, the servers and the total."""
        servers = "\n".join(f"- {title}: {server}" for title, server in self.servers.items())
        passed, total = sum(self.outcomes.values()), len(self.outcomes)
        seconds = sum(self.seconds.values())
        return (
            f"{self.table()}\n\n{servers}\n\n{passed} of {total} passed, in {seconds:.0f} s. {_NONE}: does not apply.\n"
        )


_NONE = "\N{EN DASH}"
_WORDS = {True: "pass", False: "**FAIL**", None: _NONE}


def _cell(item: pytest.Item) -> tuple[OwnSuite, str]:
    assert isinstance(item, pytest.Function)
    suite: OwnSuite = item.instance
    return suite, str(item.callspec.params["column"])


def main() -> int:
    """Runs it; the exit code is 0 if everything passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="The conformance table.")
    parser.add_argument("--transport", action="append", default=[], help="only this one, such as memory")
    parser.add_argument("--column", action="append", default=[], help="only asyncio, uvloop, trio or blocking")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options, rest = parser.parse_known_args()
    refuse_workers(parser, rest)
    recorder = Recorder(options.transport, options.column)
    suites = str(Path(__file__).with_name("test_transports.py"))
    code = pytest.main([suites, "-q", "--require-brokers", "-p", "no:cacheprovider", *rest], plugins=[recorder])
    summary = recorder.summary()
    print(f"\n{summary}")
    if options.output is not None:
        options.output.write_text(summary)
    return int(code)


sys.exit(main())
