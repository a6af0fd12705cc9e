"""`dispytch emit`: what the command line says, validated, confirmed by a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dispytch.cli.app import command as dispytch
from tests.cli.support import command, environment, read_all
from tests.support import CANARY, PATIENCE, unique

_EVENTS = """
from datetime import date
from typing import Literal

from pydantic import Field

from dispytch import EventBase


class Ordered(EventBase):
    __topic__ = "TOPIC"
    number: int
    name: str = ""
    day: date | None = None
    tags: list[str] = []
    kind: Literal["new", "old"] = Field("new", alias="sort")


class Open(EventBase, extra="allow"):
    __topic__ = "TOPIC"


class Nowhere(EventBase):
    number: int


number = 3
"""


class Emitting:
    """Events of one module and topic, emitted to Redis Streams."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.topic = unique("ordered")
        self.module = self.topic.replace("-", "_")
        self.folder = folder
        self.url = redis_url.replace("redis://", "redis+stream://", 1)
        (folder / f"{self.module}.py").write_text(_EVENTS.replace("TOPIC", self.topic))

    def words(self, name: str, *fields: str, to: str | None = None) -> list[str]:
        return ["emit", f"{self.module}:{name}", *fields, "--to", to or self.url, "--app-dir", str(self.folder)]

    def __call__(self, name: str, *fields: str, to: str | None = None, stdin: str | None = None) -> Result:
        return CliRunner().invoke(dispytch, self.words(name, *fields, to=to), input=stdin)

    @property
    def emitted(self) -> list[dict[str, object]]:
        return [facts["body"] for facts in read_all(self.url, self.topic)]


@pytest.fixture
def emit(tmp_path: Path, redis_url: str) -> Emitting:
    return Emitting(tmp_path, redis_url)


def test_fields_by_name_are_validated_and_confirmed(emit: Emitting) -> None:
    done = emit("Ordered", "number=7", "name=5", "day=2026-11-25", 'tags:=["a", "b=c"]', "sort=old")
    assert done.exit_code == 0, done.output
    assert f" to {emit.topic}, offset " in done.stdout
    assert emit.emitted == [{"number": 7, "name": "5", "day": "2026-11-25", "tags": ["a", "b=c"], "sort": "old"}]


def test_one_json_object(emit: Emitting) -> None:
    done = emit("Ordered", '{"number": 1, "tags": ["x"]}', "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["route"] == emit.topic
    assert emit.emitted[0]["tags"] == ["x"]


def test_other_fields_where_the_class_allows_them(emit: Emitting) -> None:
    assert emit("Open", "whatever=1").exit_code == 0
    assert emit.emitted == [{"whatever": "1"}]


def test_lines_of_standard_input(emit: Emitting) -> None:
    lines = "".join(f'{{"number": {number}}}\n' for number in range(2500))
    done = emit("Ordered", "-", stdin=f'{lines}\n{{"number": 2500}}')
    assert done.exit_code == 0, done.output
    assert done.stderr == "2501 events emitted\n"
    assert not done.stdout
    assert [body["number"] for body in emit.emitted] == list(range(2501))


def test_receipts_of_lines(emit: Emitting) -> None:
    done = emit("Ordered", "-", "--json", stdin='{"number": 1}\n{"number": 2}\n')
    assert [json.loads(line)["route"] for line in done.stdout.splitlines()] == [emit.topic] * 2


def test_a_wrong_line_stops_there_and_says_so(emit: Emitting) -> None:
    done = emit("Ordered", "-", stdin='{"number": 1}\n{"number": 2}\n{"number": "x"}\n{"number": 4}\n')
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: line 3: no Ordered: number: Input should be a valid integer")
    assert done.stderr.endswith("2 events emitted, and nothing from line 3 on\n")
    assert [body["number"] for body in emit.emitted] == [1, 2]


@pytest.mark.parametrize(
    ("name", "fields", "code", "text"),
    [
        ("Ordered", [], 2, "no Ordered: number: Field required; its fields are number, name, day, tags, kind"),
        ("Ordered", ["number=x", "tags=1"], 2, "number: Input should be a valid integer, unable to parse"),
        ("Ordered", ["number=1", "nmae=x"], 2, "Ordered has no field nmae; its fields are"),
        ("Ordered", ["number"], 2, "'number' is no field; write name=value, name:=JSON"),
        ("Ordered", ["number=1", "number=2"], 2, "given twice"),
        ("Ordered", ["number:=x"], 2, "the value of number:= is no JSON"),
        ("Ordered", ["{"], 2, "Invalid JSON"),
        ("number", [], 2, "is no event class (its type is int)"),
        ("absent", [], 2, "it has the event classes Ordered, Open, Nowhere."),
        ("number.absent", [], 2, 'Attribute "number.absent" not found'),
        ("Nowhere", ["number=1"], 1, "has neither __topic__ nor __route__"),
    ],
)
def test_what_is_wrong_is_one_line(emit: Emitting, name: str, fields: list[str], code: int, text: str) -> None:
    done = emit(name, *fields)
    assert done.exit_code == code, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert text in line
    assert not emit.emitted


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://app", "memory:// is within one process"),
        (CANARY, "begins with its scheme"),
        (f"env:NO_SUCH_{CANARY[:6]}", "is not set"),
    ],
)
def test_what_is_no_url_of_a_broker_is_usage(emit: Emitting, url: str, text: str) -> None:
    done = emit("Ordered", "number=1", to=url)
    assert done.exit_code == 2
    assert text in done.stderr
    assert CANARY not in done.output


def test_the_url_may_be_in_the_environment(emit: Emitting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER", emit.url)
    assert emit("Ordered", "number=1", to="env:BROKER").exit_code == 0


def test_ctrl_c_while_standard_input_is_waited_for(emit: Emitting) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        command(*emit.words("Ordered", "-", "--json")),
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        os.write(writing, b'{"number": 1}\n')
        assert process.stdout is not None
        assert emit.topic in process.stdout.readline()  # at once, though there may be more to come
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.communicate()
        os.close(reading)
        os.close(writing)
