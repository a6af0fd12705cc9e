"""The quickstart, followed to the letter in an empty folder, by somebody who has the wheel and nothing else."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import blocking_until

from .conftest import ROOT

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
# Files to save and commands to type, in the order of the page. Other blocks would be passed over, so there may be none.
STEPS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

# What differs from one time to the next.
_VARIES = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", "<now>"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>"),
    (r"\d{13}-\d+", "<offset>"),
    (r"passed in [\d.]+s", "passed in <time>"),
    (r"localhost:\d+", "localhost:<port>"),
]


def alike(text: str) -> str:
    for pattern, name in _VARIES:
        text = re.sub(pattern, name, text)
    return text


class Terminal:
    """Does what the page says; pip gets the wheel, and in the place of Docker there is a server of the tests."""

    def __init__(self, folder: Path, wheel: Path, broker: str) -> None:
        self.folder = folder
        self.wheel = wheel
        self.broker = broker
        self.variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BROKER_URL")}
        self.service: subprocess.Popen[str] | None = None
        self.log = folder / "service.log"

    def type(self, command: str, expected: str) -> None:
        command = command.replace("redis+stream://localhost:6379", self.broker)
        if command.startswith("docker run"):
            return
        if command == "python3 -m venv .venv":
            command = f"uv venv --quiet --python {shlex.quote(sys.executable)} .venv"
        elif command == ". .venv/bin/activate":
            self.variables["PATH"] = f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
            self.variables["VIRTUAL_ENV"] = str(self.folder / ".venv")
            return
        elif command.startswith("pip install"):
            assert '"dispytch[' in command
            command = f"uv {command.replace('dispytch[', f'{self.wheel}[')} --quiet"
        elif command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.variables[name] = value
            return
        if command.startswith("dispytch run"):
            self.start(command)
            said = self.log.read_text()
        else:
            said = self.run(command)
        assert alike(said) == alike(expected)

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            env=self.variables,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        assert not done.stderr, done.stderr
        return done.stdout

    def start(self, command: str) -> None:
        program = self.folder / ".venv" / "bin" / "dispytch"
        with self.log.open("w") as output:
            self.service = subprocess.Popen(
                [program, *shlex.split(command)[1:]],
                stdout=output,
                stderr=output,
                text=True,
                cwd=self.folder,
                env=self.variables,
            )
        service = self.service
        blocking_until(lambda: self.log.read_text().endswith("\n") or service.poll() is not None)


@pytest.fixture
def terminal(tmp_path: Path, wheel: Path, redis_url: str) -> Iterator[Terminal]:
    broker = redis_url.replace("redis://127.0.0.1", "redis+stream://localhost")
    terminal = Terminal(tmp_path, wheel, broker)
    yield terminal
    if terminal.service is not None:
        terminal.service.kill()
        terminal.service.wait()


def test_the_quickstart(terminal: Terminal) -> None:
    assert {language for language, _ in STEPS} == {"python", "console"}
    for language, text in STEPS:
        if language == "python":
            name, _, _ = text.removeprefix("# ").partition("\n")
            (terminal.folder / name).write_text(text)
            continue
        for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            terminal.type(*step.split("\n", 1))
    service = terminal.service
    assert service is not None
    blocking_until(lambda: "a welcome to grace@example.org\n" in terminal.log.read_text())
    service.send_signal(signal.SIGINT)
    assert service.wait(30) == 0, terminal.log.read_text()
