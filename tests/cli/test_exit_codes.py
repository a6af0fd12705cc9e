"""What the commands exit with; 130 and 143 are with the signals, in `test_run` and `test_tail`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dispytch._core.findings import Finding
from dispytch.cli import doctor
from dispytch.cli.app import command as dispytch
from dispytch.cli.errors import CheckFailed, CommandError, UsageProblem, exit_code
from dispytch.errors import (
    BrokerError,
    BrokerUnreachableError,
    EmitManyError,
    EmitTimeoutError,
    EmitUnreachableError,
    MissingExtraError,
)
from tests.cli.support import run
from tests.support import CANARY, closed_port, unique

_APP = """
from dispytch import EventBase, EventDispatcher, consumer_from_url

class Ordered(EventBase):
    __topic__ = "orders"

good = EventDispatcher(consumer_from_url("redis+stream://broker", "billing"))
good.handler(topic="orders")(print)
bad = EventDispatcher(consumer_from_url("redis+stream://broker", "billing"))
bad.handler(topic="orders.*")(print)
empty = EventDispatcher(consumer_from_url("redis+stream://broker", "billing"))
"""
_MOST = 13.0
"""Seconds for a command whose broker is not there: ten for connecting, and what imports take on a busy machine."""


class Program:
    """A module with events and dispatchers, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.name = unique("program").replace("-", "_")
        self.folder = folder
        (folder / f"{self.name}.py").write_text(_APP)

    def __call__(self, *words: str) -> Result:
        """Runs a command; ``:x`` in it is ``x`` of the module."""
        given = [f"{self.name}{word}" if word.startswith(":") else word for word in words]
        folder = ["--app-dir", str(self.folder)] if given != list(words) else []
        return CliRunner().invoke(dispytch, [*given, *folder])


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_0_fine(program: Program) -> None:
    assert program("check", ":good").exit_code == 0


def test_1_any_other_failure(program: Program) -> None:
    done = run(program.folder, "run", f"{program.name}:empty")
    assert done.returncode == 1
    assert "no handler is registered" in done.stderr


def test_2_usage_and_import(program: Program) -> None:
    assert program("check", ":absent").exit_code == 2
    assert program("check", "absent:good").exit_code == 2
    assert program("check", "--nonsense").exit_code == 2
    (program.folder / f"{program.name}_raising.py").write_text("raise ValueError('out of luck')")
    assert program("check", ":good".replace(":", "_raising:")).exit_code == 2


_NETWORK = {
    "emit": ("emit", ":Ordered", "--timeout", "5", "--to", "URL"),
    "tail": ("tail", "URL", "orders"),
    "dead": ("dead", "list", "URL", "orders.billing.dead"),
    "doctor": ("doctor", "URL"),
    "doctor --json": ("doctor", "URL", "--json"),
}


@pytest.mark.parametrize("words", _NETWORK.values(), ids=_NETWORK)
@pytest.mark.parametrize("scheme", ["redis", "redis+stream", "amqp", "kafka"])
def test_3_nobody_listens(program: Program, words: tuple[str, ...], scheme: str) -> None:
    if scheme == "redis" and words[0] == "dead":
        pytest.skip("there are no dead letters on Redis Pub/Sub")
    url = f"{scheme}://ada:{CANARY}@127.0.0.1:{closed_port()}"
    began = time.monotonic()
    done = program(*(url if word == "URL" else word for word in words))
    assert time.monotonic() - began < _MOST
    assert done.exit_code == 3, done.output
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: cannot connect to ")
    assert "127.0.0.1:" in line
    assert CANARY not in done.output


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that takes every connection, and says nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with suppress(OSError):  # closed at the end of the test
                while True:
                    taken.append(server.accept()[0])

        taker = threading.Thread(target=take)
        taker.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        taker.join()
    for connection in taken:
        connection.close()


@pytest.mark.parametrize("lines", [None, '{"number": 1}\n'], ids=["event", "lines"])
@pytest.mark.parametrize("scheme", ["redis", "redis+stream", "amqp", "kafka"])
def test_3_a_broker_that_says_nothing(program: Program, silent_port: int, scheme: str, lines: str | None) -> None:
    url = f"{scheme}://{'' if scheme.startswith('redis') else f'ada:{CANARY}@'}127.0.0.1:{silent_port}"
    words = ["emit", f"{program.name}:Ordered", *(["-"] if lines else [])]
    began = time.monotonic()
    options = ["--to", url, "--timeout", "0.7", "--app-dir", str(program.folder)]
    done = CliRunner().invoke(dispytch, [*words, *options], input=lines)
    assert 0.6 < time.monotonic() - began < 5
    assert done.exit_code == 3, done.output
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line == (
        f"Error: cannot connect to 127.0.0.1:{silent_port}: no answer came within 0.7 s; check the address, that the "
        "server is running, and TLS, or give it more --timeout"
    )


def test_3_for_lines_of_standard_input(program: Program) -> None:
    words = ["emit", f"{program.name}:Ordered", "-", "--app-dir", str(program.folder)]
    url = f"redis+stream://127.0.0.1:{closed_port()}"
    assert CliRunner().invoke(dispytch, [*words, "--to", url], input="{}\n{}\n").exit_code == 3


def test_4_a_check_that_failed(program: Program) -> None:
    assert program("check", ":bad").exit_code == 4
    done = program("doctor", "redis+stream://127.0.0.1:1", ":bad")  # which does not get as far as to connect
    assert done.exit_code == 4
    assert "dispytch check" in done.stderr


@pytest.mark.parametrize("level", ["ok", "warning", "problem"])
def test_4_a_doctor_that_found_problems(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    def found(*arguments: object) -> Iterator[Finding]:
        yield Finding("ok", "it answers")
        yield Finding(level, "\x1b[31mred")  # type: ignore[arg-type]  # one of its levels, which a parameter is not

    monkeypatch.setattr(doctor, "diagnose", found)
    for more in ([], ["--json"]):
        done = CliRunner().invoke(dispytch, ["doctor", "redis://host", *more])
        assert done.exit_code == (4 if level == "problem" else 0)
        first, second = done.stdout.splitlines()
        if more:
            assert json.loads(second) == {"level": level, "text": "\x1b[31mred"}
        else:
            assert first == "ok       it answers"
            assert "\x1b" not in second


_AWAY = BrokerUnreachableError("away")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(), 1),
        (BrokerError("it refuses"), 1),
        (CommandError(), 1),
        (EmitTimeoutError("it may have gone"), 1),
        (UsageProblem(), 2),
        (MissingExtraError("install it"), 2),
        (_AWAY, 3),
        (EmitUnreachableError("away"), 3),
        (CheckFailed(), 4),
        (ExceptionGroup("two", [_AWAY, ExceptionGroup("one", [_AWAY])]), 3),
        (ExceptionGroup("two", [_AWAY, ValueError()]), 1),
        (EmitManyError("none went", [EmitUnreachableError("away"), None]), 3),
        (EmitManyError("some went", [EmitUnreachableError("away"), EmitTimeoutError("?")]), 1),
    ],
)
def test_codes_of_errors(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_the_page_and_the_help_name_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guide" / "command-line.md").read_text()
    table = page[page.index("## Exit codes") :]
    shown = CliRunner().invoke(dispytch, ["--help"]).output
    for code in ("0", "1", "2", "3", "4", "130, 143"):
        assert f"\n| {code} |" in table
    assert "130 or 143" in " ".join(shown.split())
