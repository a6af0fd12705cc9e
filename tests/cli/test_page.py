"""The console blocks of the page on the command line, run one after the other against a real Redis."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.support import Running, command, environment, running
from tests.support import blocking_until, unique
from tests.test_docs import files_of
from tests.test_examples import ROOT

_PAGE = ROOT / "docs" / "guide" / "command-line.md"
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_URL = "redis+stream://localhost:6379"
_VARYING = (
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([,.]\d+)?(\+00:00|Z)?", "TIME"),
    (r"\b\d{13}-\d+\b", "ENTRY"),
    (r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "ID"),
    (r"(localhost|127\.0\.0\.1):\d+", "HOST"),
    (r"Redis [\d.]+ at", "Redis VERSION at"),
    (
        r"(?m)^(emit, one after the other|the same, until handled|emit_many of 1,000|handle what waits) .*",
        r"\1 FIGURES",
    ),
    (r"\bdispytch-bench-[0-9a-f]{8}\b", "TOPIC"),
    (r"Python [\d.]+, \d+ cores", "MACHINE"),
    (r" +", " "),
)
_LASTING = ("run", "tail")


def alike(text: str) -> list[str]:
    """The lines of an output, without what differs from run to run."""
    for pattern, name in _VARYING:
        text = re.sub(pattern, name, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def steps() -> list[tuple[str, str]]:
    """The commands, each with what the page shows of its output."""
    found: list[tuple[str, str]] = []
    for block in _CONSOLE.findall(_PAGE.read_text()):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = step.partition("\n")
            found.append((line, output))
    return found


def until_shown(one: Running, lines: list[str]) -> None:
    blocking_until(lambda: set(lines) <= set(alike(one.said)))


def test_what_the_page_shows_is_what_happens(tmp_path: Path, redis_url: str) -> None:
    url = redis_url.replace("redis://", "redis+stream://", 1)
    topic = unique("orders")

    def own(text: str) -> str:
        """With this test's broker and topic."""
        return re.sub(r"\borders\b", topic, text.replace(_URL, url))

    for name, text in files_of(_PAGE):
        (tmp_path / name).write_text(own(text))
    for line, output in steps():
        words = shlex.split(own(line))
        assert "dispytch" in words, line
        if words[1] in _LASTING:
            with running(tmp_path, *words[1:]) as one:
                until_shown(one, alike(own(output)))
                one.signal(signal.SIGTERM)
            continue
        done = subprocess.run(
            own(line).replace("dispytch ", f"{shlex.join(command())} ", 1),
            shell=True,
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert alike(done.stdout) == alike(own(output)), line


def test_every_command_is_on_the_page() -> None:
    from dispytch.cli.app import _COMMANDS

    text = _PAGE.read_text()
    for name in _COMMANDS:
        assert f"## {name}\n" in text
    shown = {re.sub(r".*\bdispytch ", "", line).split()[0] for line, _ in steps()}
    assert shown == _COMMANDS.keys()


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_it_can_be_found(name: str) -> None:
    assert "dispytch run" in (ROOT / name).read_text()
