"""Every page's Python blocks, run in order as one program; on both backends where it starts a loop.

Blocks that begin with the name of a file are that file; where there are tests among them, pytest runs those, or Django
where they are a project.
"""

from __future__ import annotations

import inspect
import re
from ast import literal_eval
from importlib import import_module
from pathlib import Path

import pytest

from dispytch import EventDispatcher, EventEmitter, errors
from dispytch.redis import RedisStreamConsumer
from tests.test_examples import ROOT, run, start

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^```python\n(?!# [\w/]+\.py\n)(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```python\n# ([\w/]+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Has a page's `anyio.run(main)` run on the backend that the command line names.
_RUNNER = """
import functools, runpy, sys, anyio
backend, page = sys.argv[1:]
anyio.run = functools.partial(anyio.run, backend=backend)
runpy.run_path(page, run_name="__main__")
"""


def program(page: Path) -> str:
    return "\n".join(_BLOCK.findall(page.read_text()))


def files_of(page: Path) -> list[tuple[str, str]]:
    """The files of a page, by name."""
    return _FILE.findall(page.read_text())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "page", [page for page in PAGES if program(page)], ids=lambda page: str(page.relative_to(ROOT)).replace("/", "-")
)
def test_page(page: Path, backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = program(page)
    environment = {
        f"{name.upper()}_URL": request.getfixturevalue(f"{name}_url")
        for name in ("redis", "rabbitmq", "kafka")
        if f"{name.upper()}_URL" in text
    }
    file = tmp_path / "page.py"
    file.write_text(text)
    run("-c", _RUNNER, backend, str(file), **environment)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(name.startswith("test_") for name, _ in files_of(page))],
    ids=lambda page: str(page.relative_to(ROOT)).replace("/", "-"),
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tests_of_a_page(page: Path, backend: str, tmp_path: Path) -> None:
    for name, text in files_of(page):
        (tmp_path / name).write_text(text.replace('return "asyncio"', f'return "{backend}"'))
    out = run("-m", "pytest", "-W", "error", str(tmp_path))
    assert " passed" in out


def test_tests_of_a_django_project(tmp_path: Path) -> None:
    for name, text in files_of(ROOT / "docs" / "guide" / "django.md"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()  # as startproject and startapp make it
        file.write_text(text)
    command = ("-W", "error", "-m", "django", "test", "orders", "--settings", "shop.settings")
    done = start(*command, "--pythonpath", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)).replace("/", "-"))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_commands_of_the_readme_are_the_ones_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "tox run" in readme
    assert 'tox" run' in ci
    assert "--install-brokers" in readme
    assert "--install-brokers" in ci


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, or after a line that begins with a text."""
    after = (ROOT / "docs" / page).read_text().partition(f"\n{heading}")[2]
    rows = re.findall(r"^\|(.*)\|$", after.partition("\n\n|")[2].partition("\n\n")[0], re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]


def test_the_page_on_errors_has_every_error() -> None:
    named = {row[0].strip("`") for row in cells("guide/errors.md", "## What to do") if row[0].startswith("`")}
    assert named == {*errors.__all__} - {"DispytchError", "EmitError"}  # which are never raised themselves


def test_options_of_redis_streams_are_as_the_page_has_them() -> None:
    table = (ROOT / "docs" / "transports" / "redis-streams.md").read_text().partition("## Options\n")[2]
    shown = dict(re.findall(r"^\| `(\w+)=([^`]+)` \|", table, re.MULTILINE))
    actual = inspect.signature(RedisStreamConsumer).parameters
    assert {name: literal_eval(value) for name, value in shown.items()} == {
        name: actual[name].default for name in actual if name not in ("redis", "group_id")
    }


@pytest.mark.parametrize("command", ["run", "check", "emit", "tail", "doctor"])
def test_options_of_the_command_line_are_in_its_page(command: str) -> None:
    page = (ROOT / "docs" / "guide" / "command-line.md").read_text()
    found = import_module(f"dispytch.cli.{command}").command
    options = {name for parameter in found.params for name in parameter.opts if name.startswith("--")}
    assert {name for name in options if name not in page} == set()


def test_every_option_of_a_dispatcher_and_an_emitter_is_in_a_page() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    for kind in (EventDispatcher, EventEmitter):
        for name in inspect.signature(kind).parameters:
            if name not in ("consumers", "producer"):
                assert f"{name}=" in pages or f"`{name}`" in pages, f"{kind.__name__}({name}=)"
