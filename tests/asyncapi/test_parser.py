"""The official parser finds nothing wrong, in dangling references and the like above all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from tests.asyncapi.applications import applications
from tests.asyncapi.generated import documents
from tests.conftest import in_ci, tool_of

_SOURCE = Path(__file__).parent / "parser"
_ERROR, _WARNING = 0, 1


class Parser:
    """``@asyncapi/parser``, in a folder of its own."""

    def __init__(self, folder: Path, npm: str) -> None:
        self._folder = folder
        shutil.copytree(_SOURCE, folder, dirs_exist_ok=True)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode != 0:
            fail = pytest.fail if in_ci() else pytest.skip
            fail(f"npm cannot install the parser: {done.stderr[-1000:]}")

    def problems(self, found: list[dict[str, Any]]) -> list[str]:
        """What it says of documents, errors and warnings."""
        done = subprocess.run(
            ["node", "validate.mjs"],
            cwd=self._folder,
            input=json.dumps(found),
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        problems = []
        for number, one in enumerate(json.loads(done.stdout)):
            if not one["parsed"]:
                problems.append(f"document {number} was not parsed")
            for say in one["diagnostics"]:
                if say["severity"] in (_ERROR, _WARNING):
                    problems.append(f"document {number}: {say['code']} at {say['path']}: {say['message']}")
        return problems


@pytest.fixture(scope="module")
def parser(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Parser:
    return Parser(tmp_path_factory.mktemp("parser"), tool_of(pytestconfig, "npm"))


def test_applications_of_this_repository(parser: Parser) -> None:
    assert parser.problems(list(applications().values())) == []


def test_generated_applications(parser: Parser) -> None:
    found: list[dict[str, Any]] = []

    @given(documents())
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    def collect(one: dict[str, Any]) -> None:
        assume('"$ref": {' not in json.dumps(one))  # a field of that name, which the parser takes for a reference
        found.append(one)

    collect()
    assert parser.problems(found) == []


def test_it_finds_what_is_wrong(parser: Parser) -> None:
    found = applications()["shop site"]
    found["components"]["messages"]["OrderPlaced"]["payload"] = {"$ref": "#/components/schemas/Absent"}
    assert "'#/components/schemas/Absent' does not exist" in "\n".join(parser.problems([found]))
