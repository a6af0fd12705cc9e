"""`dispytch dead`: letters of real brokers, listed, shown, replayed and dropped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dispytch import Event, EventBase, consumer_from_url, producer_from_url
from dispytch.cli.app import command as dispytch
from dispytch.sync import EventDispatcher, EventEmitter
from tests.cli.support import command, environment
from tests.kafka.helpers import Cluster
from tests.rabbitmq.helpers import exists
from tests.redis.helpers import client_of
from tests.support import CANARY, PATIENCE, blocking_until, closed_port, unique
from tests.test_examples import url_of

_KEEPING = ["redis+stream", "rabbitmq", "kafka"]


class Numbered(EventBase):
    __topic__ = "{topic}"
    topic: str
    number: int


class Letters:
    """Three dead letters of a topic of their own, of the numbers 0, 1 and 2."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.source = unique("numbered")
        self.group = unique("billing")
        self.topic = f"{self.group}.dead" if url.startswith("amqp") else f"{self.source}.{self.group}.dead"
        self.fails = True
        self.handled: list[int] = []
        self.dispatcher = EventDispatcher(consumer_from_url(url, self.group), max_deliveries=1)
        self.dispatcher.handler(topic=self.source)(self.handle)
        self.given_up = 0
        with self.dispatcher, EventEmitter(producer_from_url(url)) as emitter:
            emitter.emit_many([Numbered(topic=self.source, number=number) for number in range(3)])
            blocking_until(lambda: self.dispatcher.health().dead_lettered == 3)

    def handle(self, event: Event) -> None:
        if self.fails:
            raise ValueError(f"number {event.body['number']}")
        self.handled.append(event.body["number"])

    def words(self, verb: str, *more: str) -> list[str]:
        return ["dead", verb, self.url, self.topic, *more, "--idle", "0.3"]

    def __call__(self, verb: str, *more: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(dispytch, self.words(verb, *more), input=stdin)

    def listed(self, *more: str) -> list[dict[str, Any]]:
        done = self("list", "--json", *more)
        assert done.exit_code == 0, done.output
        return sorted(map(json.loads, done.stdout.splitlines()), key=lambda facts: facts["body"]["number"])

    @property
    def numbers(self) -> list[int]:
        return [facts["body"]["number"] for facts in self.listed()]


@pytest.fixture(params=_KEEPING)
def letters(request: pytest.FixtureRequest) -> Letters:
    return Letters(url_of(request.param, request))


@pytest.fixture
def streamed(request: pytest.FixtureRequest) -> Letters:
    return Letters(url_of("redis+stream", request))


def test_list_show_replay_and_drop(letters: Letters) -> None:
    done = letters("list")
    assert done.exit_code == 0, done.output
    assert done.stderr == "3 letters\n"
    first = letters.listed()[0]
    assert any(
        line.endswith(f"{first['id']} from {letters.source}, {first['handler']}, 1 try: ValueError: number 0")
        for line in done.stdout.splitlines()
    )

    shown = letters("show", first["id"])
    assert shown.exit_code == 0, shown.output
    assert re.search(rf"^source: +{letters.source}$", shown.stdout, re.MULTILINE)
    assert '"number": 0' in shown.stdout

    assert letters("replay", "--dry-run").stdout == "3 letters would be replayed, 0 kept, 0 failed\n"
    letters.fails = False
    with letters.dispatcher:
        done = letters("replay", "--error", "NUMBER 1")
        assert done.stdout == "1 letter replayed, 2 kept, 0 failed\n", done.output
        blocking_until(lambda: letters.handled == [1])
    assert letters.numbers == [0, 2]

    done = letters("drop", "--id", first["id"], stdin="y\n")
    assert "Drop 1 letter of" in done.stderr
    assert done.stdout.startswith("1 letter dropped, ")
    assert done.exit_code == 0
    assert letters.numbers == [2]
    assert letters("drop", "--yes").exit_code == 0
    assert letters.numbers == []


def test_filters(streamed: Letters) -> None:
    handler = streamed.listed()[0]["handler"]
    later = streamed.listed()[-1]["failed_at"]
    assert len(streamed.listed("--handler", handler)) == 3
    assert streamed.listed("--handler", "nobody") == []
    assert len(streamed.listed("--source", streamed.source)) == 3
    assert streamed.listed("--source", "elsewhere") == []
    assert len(streamed.listed("--since", "2020-01-01", "--before", "2999-01-01T00:00:00+01:00")) == 3
    assert streamed.listed("--before", "2020-01-01") == []
    assert len(streamed.listed("--since", later)) >= 1
    done = streamed("list", "--limit", "1")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == "1 letter; there may be more, see --limit\n"
    done = streamed("list", "--since", "yesterday")
    assert done.exit_code == 2
    assert "'yesterday' is no moment; write 2026-11-25" in done.output


def test_nothing_is_dropped_without_a_yes(streamed: Letters) -> None:
    done = streamed("drop", stdin="n\n")
    assert done.exit_code == 1
    assert "Nothing was dropped." in done.stderr
    done = streamed("drop", stdin="")
    assert done.exit_code == 1
    assert "nobody answered, and nothing was dropped; give --yes where nobody can" in done.stderr
    done = streamed("drop", "--dry-run")
    assert done.stdout == "3 letters would be dropped, 0 kept, 0 failed\n"
    done = streamed("drop", "--error", "no such", stdin="y\n")
    assert done.stdout == "0 letters would be dropped, 3 kept, 0 failed\n"
    assert streamed.numbers == [0, 1, 2]


def test_a_limit_bounds_what_is_done(streamed: Letters) -> None:
    assert streamed("drop", "--limit", "2", "--yes").stdout.startswith("2 letters dropped")
    assert streamed.numbers == [2]


def test_ctrl_c_at_the_question(streamed: Letters) -> None:
    process = subprocess.Popen(
        command(*streamed.words("drop")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stderr is not None
        said = b""
        while not said.endswith(b"Drop 3"):
            said += (letter := process.stderr.read(1))
            assert letter, said
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.communicate()
    assert streamed.numbers == [0, 1, 2]


def test_everyone_gets_what_is_replayed_for_everyone(streamed: Letters) -> None:
    others: list[int] = []
    other = EventDispatcher(consumer_from_url(streamed.url, unique("others")))

    @other.handler(topic=streamed.source)
    def note(event: Event) -> None:
        others.append(event.body["number"])

    with other:
        blocking_until(lambda: sorted(others) == [0, 1, 2])
        assert streamed("replay", "--limit", "1").exit_code == 0  # for the handler that failed, and nobody else
        blocking_until(lambda: other.health().not_addressed == 1)
        assert streamed("replay", "--everyone", "--limit", "1").exit_code == 0
        blocking_until(lambda: len(others) == 4)


def test_an_id_that_is_not_there(streamed: Letters) -> None:
    done = streamed("show", "nothing")
    assert done.exit_code == 1
    assert "no letter of the event 'nothing' is among the 3 letters of" in done.stderr


def test_what_cannot_be_replayed_is_told_and_stays(kafka_url: str) -> None:
    cluster, topic = Cluster(kafka_url), unique("foreign.dead")
    cluster.create(topic)
    cluster.produce(topic, b"{}")
    done = CliRunner().invoke(dispytch, ["dead", "replay", kafka_url, topic, "--idle", "0.5"])
    assert done.exit_code == 1
    assert "it is no dead letter of Dispytch" in done.stderr
    assert done.stdout == "0 letters replayed, 0 kept, 1 failed\n"
    done = CliRunner().invoke(dispytch, ["dead", "list", kafka_url, topic, "--idle", "0.5"])
    assert "is no dead letter of Dispytch" in done.stdout


@pytest.mark.parametrize("words", [["list"], ["replay"], ["drop", "--yes"]], ids=" ".join)
@pytest.mark.parametrize("broker", _KEEPING)
def test_a_topic_that_was_mistyped_is_not_created(
    broker: str, words: list[str], request: pytest.FixtureRequest
) -> None:
    url, topic = url_of(broker, request), unique("mistyped")
    verb, *more = words
    for _ in range(2):
        done = CliRunner().invoke(dispytch, ["dead", verb, url, topic, *more, "--idle", "0.3"])
        assert done.exit_code == 2, done.output
        assert not done.stdout
        (line,) = filter(None, done.stderr.splitlines())  # an older rich ends its progress with an empty one
        assert topic in line
        assert re.search("there is no (queue|stream) |it does not exist", line)
        assert "check its name" in line
        assert "declare" not in line  # there is no such option
    assert not is_there(url, topic)


def is_there(url: str, topic: str) -> bool:
    """Whether a broker has a topic, stream or queue."""
    if url.startswith("amqp"):
        return exists(url, queue=topic)
    if url.startswith("kafka"):
        return Cluster(url).exists(topic)
    with client_of(url.replace("redis+stream://", "redis://", 1)) as client:
        return bool(client.exists(topic))


def test_what_has_no_letters() -> None:
    done = CliRunner().invoke(dispytch, ["dead", "list", f"redis://ada:{CANARY}@127.0.0.1:{closed_port()}", "orders"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "receives no dead letters" in line
    assert CANARY not in done.output
