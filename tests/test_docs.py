"""Every page's Python blocks, run in order as one program; on both backends where it starts a loop.

Blocks that begin with the name of a file are that file; where there are tests among them, pytest runs those, or Django
where they are a project.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
