"""`dispytch docs`: the document on standard output or in a file, and whether a file is still true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from dispytch.cli.app import command
from tests.asyncapi.checks import check
from tests.support import CANARY, unique

_APP = f"""
from dispytch import Event, EventBase, EventDispatcher, consumer_from_url
from dispytch.middleware import Timeout

class OrderPlaced(EventBase):
    __topic__ = "orders"
    number: int
    note: str = "grüße"

class OrderShipped(EventBase):
    __topic__ = "shipments"

class Unaddressed(EventBase):
    pass

EMITS = [OrderPlaced, OrderShipped]
dispatcher = EventDispatcher(consumer_from_url("kafka://ada:{CANARY}@broker", "billing"), middlewares=[Timeout(3)])

@dispatcher.handler(OrderPlaced)
def charge(event: Event[OrderPlaced]) -> None:
    '''Charges the customer.'''

def make():
    return dispatcher

bad = EventDispatcher(consumer_from_url("redis+stream://broker", "billing"))
bad.handler(topic="orders.*")(charge)
"""


class Program:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = unique("documented").replace("-", "_")
        (folder / f"{self.name}.py").write_text(_APP)

    def __call__(self, *words: str) -> Result:
        given = [f"{self.name}{word}" if word.startswith(":") else word for word in words]
        return CliRunner().invoke(command, ["docs", *given, "--app-dir", str(self.folder)])


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_yaml_on_standard_output(program: Program) -> None:
    done = program(":dispatcher", "--emits", ":OrderShipped", "--server", f"main=kafka://ada:{CANARY}@broker:9092")
    assert done.exit_code == 0, done.output
    found = check(yaml.safe_load(done.stdout))
    assert found["info"] == {"title": program.name, "version": "1.0.0"}
    assert list(found["channels"]) == ["orders", "shipments"]
    assert found["servers"] == {"main": {"host": "broker:9092", "protocol": "kafka"}}
    assert "grüße" in done.stdout
    assert CANARY not in done.output
    assert done.stderr.startswith("Warning: Timeout is left out")


def test_what_it_is_called(program: Program) -> None:
    done = program(":make", "--factory", "--title", "Shop", "--api-version", "2.1", "--description", "Sells lamps.")
    found = yaml.safe_load(done.stdout)
    assert found["info"] == {"title": "Shop", "version": "2.1", "description": "Sells lamps."}


def test_events_alone_and_lists_of_them(program: Program) -> None:
    done = program("--emits", ":EMITS", "--format", "json")
    found = check(json.loads(done.stdout))
    assert sorted(found["operations"]) == ["send.OrderPlaced", "send.OrderShipped"]


@pytest.mark.parametrize(
    ("name", "options", "start"),
    [
        ("api.json", [], "{\n"),
        ("api.yml", [], "asyncapi:"),
        ("api.yaml", ["--format", "json"], "{\n"),
        ("api.html", [], "<!doctype html>"),
        ("api", [], "asyncapi:"),
    ],
)
def test_files(program: Program, name: str, options: list[str], start: str) -> None:
    file = program.folder / name
    done = program(":dispatcher", "-o", str(file), *options)
    assert done.exit_code == 0, done.output
    assert not done.stdout
    assert done.stderr.splitlines()[-1] == f"{file}: 1 channel, 1 operation"
    assert file.read_text("utf-8").startswith(start)
    done = program(":dispatcher", "-o", str(file), "--check", *options)
    assert (done.exit_code, done.stdout) == (0, f"ok: {file} is what the program says\n")


def test_a_file_that_is_no_longer_true(program: Program) -> None:
    file = program.folder / "api.yaml"
    assert program(":dispatcher", "-o", str(file)).exit_code == 0
    before = file.read_text()
    file.write_text(before.replace("address: orders", "address: \x1b[31morders", 1))
    done = program(":dispatcher", "-o", str(file), "--check")
    assert done.exit_code == 4
    lines = done.stdout.splitlines()
    assert "-    address: \\x1b[31morders" in lines
    assert "+    address: orders" in lines
    assert len(lines) < 12
    assert "write it anew without --check" in done.stderr
    assert file.read_text() != before
    file.write_text("")
    done = program(":dispatcher", "-o", str(file), "--check")
    assert done.exit_code == 4
    assert done.stdout.splitlines()[-1].startswith("... and ")
    file.unlink()
    done = program(":dispatcher", "-o", str(file), "--check")
    assert (done.exit_code, done.stdout) == (4, f"{file} does not exist\n")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "nothing to document"),
        ([":dispatcher", "--check"], 2, "name it with -o"),
        ([":absent"], 2, "not found in module"),
        ([":dispatcher", "--emits", ":dispatcher"], 2, "is no event class"),
        ([":dispatcher", "--emits", ":Unaddressed"], 2, "neither __topic__ nor __route__"),
        ([":dispatcher", "--server", f"kafka://ada:{CANARY}@broker"], 2, "takes a name and a URL"),
        ([":dispatcher", "--server", f"a=ada:{CANARY}@broker"], 2, "is no URL"),
        ([":dispatcher", "--format", "xml"], 2, "xml"),
        ([":bad"], 4, "Redis Streams have none"),
        ([":dispatcher", "-o", "/absent/folder/api.yaml"], 1, "make its folder"),
    ],
)
def test_what_is_wrong_is_one_line(program: Program, words: list[str], code: int, text: str) -> None:
    done = program(*words)
    assert done.exit_code == code, done.output
    assert text in done.stderr
    assert CANARY not in done.output
    if "xml" not in words:
        assert done.stderr.splitlines()[-1].startswith("Error: ")
