"""The suite itself: it runs outside of this project, it can fail, and its page says what it does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest

import dispytch
from dispytch.abc import Features
from dispytch.errors import ConfigurationError
from dispytch.testing import TransportSuite
from dispytch.testing.conformance.rows import COLUMNS, INSTALLED, Row
from dispytch.testing.conformance.suite import TABLE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "own-transport.md"

FAILS = {
    "TestAcknowledgesEarly": {"cancel", "commit gap", "fail then succeed", "drain timeout"},
    "TestStopsSlowly": {"prompt stop"},
    "TestLosesOnCancel": {"close and reopen"},
    "TestHandsNothingBack": {"cancel", "dead letter"},
    "TestOutOfOrder": {"order per key", "no settle no next"},
    "TestIgnoresTheLimit": {"backpressure"},
    "TestOneGroup": {"two groups"},
    "TestEndsItsGroup": {"concurrent close"},
    "TestIdleMembers": {"many at once"},
    "TestWaitsForAll": {"same key two topics and null keys"},
    "TestGivesAgain": {"redeliver on error"},
    "TestTwoLetters": {"dead letter"},
    "TestUnwrittenLetter": {"dead letter unwritable"},
    "TestConfirmsTooMuch": {"publish subscribe", "emitter close"},
    "TestSendsTwice": {"many topics", "templated topics", "drain"},
    "TestNotThreadSafe": {"blocking facade"},
    "TestLosesHeaders": {"publish subscribe"},
    "TestKnownGroups": {"unroutable"},
    "TestUndeclared": {"publish subscribe"},
}


def run_elsewhere(folder: Path) -> list[ElementTree.Element]:
    """What pytest reports of a folder that has no configuration, with no other plugin than anyio's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DISPYTCH_"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment["PYTHONPATH"] = str(Path(dispytch.__file__).parents[1])
    # Native tracebacks: for its own pytest parses sources, and Python 3.11.7 breaks down if it cleans up meanwhile.
    options = ["-p", "anyio", "-p", "no:cacheprovider", "--rootdir=.", "--tb=native", "--junitxml=report.xml"]
    command = ["-m", "pytest", "-q", *options]
    subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={
            **environment,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(Path(dispytch.__file__).parents[1]),
        },
        capture_output=True,
        timeout=110,
        check=False,
    )
    return [*ElementTree.parse(folder / "report.xml").iter("testcase")]


def test_it_runs_outside_of_this_project(tmp_path: Path) -> None:
    blocks = re.findall(r'^```python title="(\w+\.py)"\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["parcels.py", "test_parcels.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    reported = run_elsewhere(tmp_path)
    assert [case.get("name") for case in reported if len(case)] == []
    expected = {
        f"{row.test}[{column}]"
        for row in TABLE
        for column in INSTALLED
        if row.name not in ("unroutable", "dead letter unwritable") and column in row.columns
    }
    assert {case.get("name") for case in reported} == expected


def test_it_can_fail(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("faulty.py"), tmp_path / "test_faulty.py")
    failed: dict[str, set[str]] = {}
    passed: dict[str, set[str]] = {}
    names = {row.test: row.name for row in TABLE}
    for case in run_elsewhere(tmp_path):
        name = names[case.get("name", "").partition("[")[0]]
        (failed if len(case) else passed).setdefault(case.get("classname", "").rpartition(".")[2], set()).add(name)
    assert failed == FAILS
    # Each of the others has a row that its mistake does not concern.
    assert passed.keys() == FAILS.keys() - {"TestConfirmsTooMuch", "TestUndeclared"}
    assert len(passed["TestKnownGroups"]) == len(TABLE) - 2  # all but the blocking facade and what fails


def test_the_command_prints_one_table(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    chosen = ["--transport=Memory", "--column=trio", f"--output={output}", "-k", "group or cancel"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance", *chosen], cwd=ROOT, capture_output=True, text=True, check=True
    )
    head, _, *rows, passed, seconds = output.read_text().partition("\n\n")[0].splitlines()
    assert head == "|  | memory, trio |"
    assert rows == ["| two groups | pass |", "| cancel | pass |"]
    assert passed == "| **passed** | 2 of 2 |"
    assert re.fullmatch(r"\| \*\*seconds\*\* \| \d+\.\d \|", seconds)
    assert "- memory: in the process, dispytch " in output.read_text()
    assert output.read_text() in done.stdout


@pytest.mark.parametrize("command", ["conformance", "faults"])
@pytest.mark.parametrize("arguments", [["-n", "2"], ["-nauto"], ["--dist=load"]], ids=" ".join)
def test_a_table_is_not_made_by_several_processes(command: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{command}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{arguments[0]}: the tests must run in this process, or the table is empty" in done.stderr
    assert done.stdout == ""


def test_rows_that_do_not_apply_are_no_tests() -> None:
    class Little(TransportSuite):
        features = Features(acknowledges=False, consumer_groups=False, persistent=False, patterns=False)
        columns = ("asyncio", "trio")
        leaves_out: ClassVar[Sequence[str]] = ("many topics",)

    class More(Little):
        features = Features(acknowledges=False, consumer_groups=False, persistent=False)
        leaves_out = ()

    def rows(suite: type[TransportSuite]) -> set[str]:
        return {row.name for row in TABLE if getattr(suite, row.test) is not None}

    assert rows(Little) == {"publish subscribe", "emitter close", "prompt stop"}
    assert rows(More) == rows(Little) | {"many topics", "templated topics"}
    assert rows(TransportSuite) == {row.name for row in TABLE}


def test_a_row_that_is_none_cannot_be_left_out() -> None:
    with pytest.raises(ConfigurationError, match=r"leaves_out has \['drains'\]; the rows are publish subscribe, "):

        class Mistaken(TransportSuite):
            leaves_out = ("drains",)


def test_nothing_but_the_suite_needs_pytest() -> None:
    code = """if True:
        import sys
        sys.modules["pytest"] = None
        import dispytch.testing
        from dispytch.testing import Faults, TestClock
        try:
            dispytch.testing.TransportSuite
        except ImportError as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "MissingExtraError TransportSuite is a suite of pytest, which is not installed: pip install pytest\n"
    )


def line(row: Row) -> str:
    """The row as the page has it."""
    where = [*(f"`{feature}`" for feature in row.needs), *(f"without `{feature}`" for feature in row.lacks)]
    if row.hook is not None:
        where.append(f"`{row.hook}()`")
    if row.columns != COLUMNS:
        where.append(f"in {' '.join(row.columns)}")
    return f"| {row.name} | {row.says} | {', '.join(where) or 'all'} |"


def test_the_page_has_the_rows() -> None:
    text = PAGE.read_text()
    table = "\n".join(["| Row | What is kept | Where |", "|---|---|---|", *map(line, TABLE)])
    assert table in text
    mistakes = text.partition("| Mistake | Rows that fail |\n|---|---|\n")[2].splitlines()
    told = {frozenset(row.split(" | ")[1].removesuffix(" |").split(", ")) for row in mistakes}
    assert told == {frozenset(rows) for suite, rows in FAILS.items() if suite != "TestUndeclared"}
