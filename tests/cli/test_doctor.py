"""`dispytch doctor`: what real brokers say, and what is missing there."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from click.testing import CliRunner, Result

from dispytch import EventBase, consumer_from_url, producer_from_url
from dispytch.cli.app import command as dispytch
from dispytch.sync import EventDispatcher, EventEmitter
from tests.brokers import KAFKA_USERS
from tests.kafka.helpers import Cluster
from tests.support import CANARY, blocking_until, unique
from tests.test_examples import BROKERS, url_of


class Doctor:
    """The command, about a dispatcher of one topic and one group."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.topic, self.group = unique("examined"), unique("patient")
        self.module = self.topic.replace("-", "_")
        self.folder = folder
        (folder / f"{self.module}.py").write_text(
            "from dispytch import EventDispatcher, consumer_from_url\n"
            f"dispatcher = EventDispatcher(consumer_from_url({url!r}, {self.group!r}))\n"
            f"dispatcher.handler(topic={self.topic!r})(print)\n"
        )

    def __call__(self, *more: str, url: str | None = None) -> Result:
        words = ["doctor", url or self.url, f"{self.module}:dispatcher", "--app-dir", str(self.folder), *more]
        return CliRunner().invoke(dispytch, words)

    def texts(self, level: str) -> list[str]:
        done = self("--json")
        found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.exit_code == 4 * any(finding["level"] == "problem" for finding in found), done.output
        return [finding["text"] for finding in found if finding["level"] == level]

    def begin(self) -> None:
        """Has the dispatcher make what it needs, and three events come that it does not handle."""
        topic = self.topic

        class Coming(EventBase):
            __topic__ = topic

        dispatcher = EventDispatcher(consumer_from_url(self.url, self.group))
        dispatcher.handler(topic=self.topic)(lambda: None)
        with dispatcher:
            pass
        with EventEmitter(producer_from_url(self.url)) as emitter:
            emitter.emit_many([Coming(), Coming(), Coming()])


@pytest.mark.parametrize("broker", ["redis+stream", "rabbitmq", "kafka"])
def test_what_there_is(tmp_path: Path, broker: str, request: pytest.FixtureRequest) -> None:
    doctor = Doctor(tmp_path, url_of(broker, request))
    missing = " ".join(doctor.texts("warning"))
    assert "there is no " in missing
    assert doctor.topic in missing or doctor.group in missing
    assert doctor.texts("warning") == doctor.texts("warning")  # nothing was made by asking
    doctor.begin()
    fine = doctor.texts("ok")
    assert any(name in fine[0] for name in ("Redis ", "RabbitMQ 3", "Kafka at "))
    assert any("3" in text and doctor.group in text for text in fine[1:]), fine
    assert not doctor.texts("problem")
    assert not any("there is no " in text and "append" not in text for text in doctor.texts("warning"))


@pytest.mark.parametrize("broker", BROKERS)
def test_without_a_dispatcher(broker: str, request: pytest.FixtureRequest) -> None:
    done = CliRunner().invoke(dispytch, ["doctor", url_of(broker, request)])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("ok       ")


def test_subscribers_of_pub_sub(tmp_path: Path, redis_url: str) -> None:
    doctor = Doctor(tmp_path, redis_url)
    assert f"channel {doctor.topic}: 0 subscribers" in doctor.texts("ok")


def test_something_else_has_the_name_of_the_stream(tmp_path: Path, redis_url: str) -> None:
    doctor = Doctor(tmp_path, redis_url.replace("redis://", "redis+stream://", 1))
    client: Any = redis.Redis.from_url(redis_url)
    client.set(doctor.topic, "text")
    assert doctor.texts("problem") == [f"{doctor.topic} is a string and no stream; choose another name"]


def test_what_an_acl_of_redis_forbids(tmp_path: Path, redis_url: str) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    user = unique("user")
    client.execute_command("ACL", "SETUSER", user, "on", f">{CANARY}", "~*", "+@read", "+info", "+acl")
    try:
        url = redis_url.replace("redis://", f"redis+stream://{user}:{CANARY}@", 1)
        doctor = Doctor(tmp_path, url)
        first, second = doctor.texts("problem")
        assert f"the user {user} may not XREADGROUP: " in first
        assert f"the user {user} may not XADD: " in second
        assert CANARY not in doctor().output
    finally:
        client.execute_command("ACL", "DELUSER", user)


def test_what_an_acl_of_kafka_forbids(tmp_path: Path, kafka_url: str) -> None:
    cluster = Cluster(kafka_url)
    listeners = cluster.listeners()
    if "SASL_PLAINTEXT" not in listeners:
        pytest.skip("this Kafka has no listener for users")
    url = f"kafka://bob:{quote(KAFKA_USERS['bob'])}@{listeners['SASL_PLAINTEXT']}"
    doctor = Doctor(tmp_path, url)
    cluster.create(doctor.topic)
    assert doctor.texts("problem") == []
    with cluster.allowing("bob", "TOPIC", doctor.topic, "DESCRIBE"):
        blocking_until(lambda: doctor.texts("problem"))
        assert doctor.texts("problem")[0] == f"this user may not READ the topic {doctor.topic}; allow it by an ACL"


def test_a_rabbitmq_that_is_mute() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"amqp://ada:{CANARY}@127.0.0.1:{server.getsockname()[1]}?connection_timeout=0.5"
        done = CliRunner().invoke(dispytch, ["doctor", url])
    assert done.exit_code == 3, done.output
    (line,) = done.stderr.splitlines()
    assert "did not answer within 0.5 s" in line
    assert CANARY not in done.output


def test_a_dispatcher_of_another_transport(tmp_path: Path, redis_url: str) -> None:
    done = Doctor(tmp_path, redis_url)(url="amqp://localhost")
    assert done.exit_code == 2
    assert "is of the transport of this URL (rabbitmq)" in done.stderr
