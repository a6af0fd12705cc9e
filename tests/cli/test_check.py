"""`dispytch check`: problems of wiring, the effective configuration, without a network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner, Result

from dispytch.cli.app import command
from tests.support import CANARY, unique

_GOOD = f"""
from dispytch import Event, EventDispatcher, consumer_from_url
from dispytch.kafka import KafkaConsumer
from dispytch.middleware import Timeout

kafka = KafkaConsumer("kafka://ada:{CANARY}@broker:9092", group_id="billing", config={{"fetch.min.bytes": 7}})
urls = [f"{{scheme}}://ada:{CANARY}@broker" for scheme in ("redis", "redis+stream", "amqp")]
dispatcher = EventDispatcher(kafka, *(consumer_from_url(url, "billing") for url in urls), middlewares=[Timeout(3)])


@dispatcher.handler(topic="orders", event="Paid")
def pay(event: Event) -> None: ...
"""

_BAD = """
from dispytch import Event, EventDispatcher, consumer_from_url
from dispytch.kafka import KafkaEventSubscription

dispatcher = EventDispatcher(consumer_from_url("redis+stream://broker", "billing"))
empty = EventDispatcher(consumer_from_url("memory://broker"))
idle = EventDispatcher(consumer_from_url("memory://broker"), consumer_from_url("redis://broker"))


@dispatcher.handler(topic="orders.*")
def pattern(event: Event) -> None: ...


@dispatcher.handler(KafkaEventSubscription("orders"))
def elsewhere(event: Event) -> None: ...


@dispatcher.handler(topic="orders", dead_letter="orders.dead")
def fine(event: Event) -> None: ...


@idle.handler(topic="orders", consumer=idle.consumers[0])
def one(event: Event) -> None: ...
"""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)


def check(folder: Path, text: str, attribute: str = "dispatcher") -> Result:
    name = unique("checked").replace("-", "_")
    (folder / f"{name}.py").write_text(text)
    return CliRunner().invoke(command, ["check", f"{name}:{attribute}", "--app-dir", str(folder)])


def test_what_is_right_is_shown_without_secrets(tmp_path: Path) -> None:
    done = check(tmp_path, _GOOD)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "ok: 1 handler on 4 consumers"
    for line in (
        "KafkaConsumer (kafka)",
        "  servers = broker:9092",
        "  fetch.min.bytes = 7",
        "  enable.auto.commit = False",
        "  sasl.password = ***",
        "RedisStreamConsumer (redis-stream)",
        "  claim_idle = 60.0",
        "RabbitMQConsumer (rabbitmq)",
        "  queue = billing",
        "RedisConsumer (redis)",
    ):
        assert line in lines
    assert sum("handler" in line and "pay: orders, event Paid, AckAfterProcessing" in line for line in lines) == 3
    assert "dead letters to orders.billing.dead" in done.stdout
    assert done.stderr.startswith("Warning: Timeout is left out for handlers that are plain functions")
    assert CANARY not in done.output


def test_each_problem_is_a_line(tmp_path: Path) -> None:
    done = check(tmp_path, _BAD)
    assert done.exit_code == 4
    first, second, last = done.stderr.splitlines()
    assert "pattern: 'orders.*' is a pattern, and Redis Streams have none" in first
    assert "elsewhere: no consumer of the dispatcher (RedisStreamConsumer) can serve" in second
    assert last.startswith("2 problems in ")
    assert not done.stdout


@pytest.mark.parametrize(
    ("attribute", "text"),
    [("empty", "no handler is registered"), ("idle", "no handler is for the consumer RedisConsumer")],
)
def test_problems_of_the_whole(tmp_path: Path, attribute: str, text: str) -> None:
    done = check(tmp_path, _BAD, attribute)
    assert done.exit_code == 4
    assert text in done.stderr
    assert "1 problem in" in done.stderr


def test_a_program_that_fails_to_register(tmp_path: Path) -> None:
    done = check(tmp_path, f"{_GOOD}\n@dispatcher.handler(topic='orders')\ndef bad(unknown: int) -> None: ...\n")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: Could not import module")
    assert "unknown" in line


def test_what_is_not_there_is_usage(tmp_path: Path) -> None:
    done = check(tmp_path, _GOOD, "absent")
    assert done.exit_code == 2
    assert "it has the dispatcher dispatcher" in done.stderr
