"""The outbox: events are part of the transaction, and come to the broker in order, whoever is killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import InterfaceError, OperationalError, transaction
from django.test.utils import override_settings

from dispytch import EventBase, producer_from_url
from dispytch.abc import Message, Receipt
from dispytch.django import emit_on_commit
from dispytch.django.checks import check
from dispytch.django.outbox.management.commands import dispytch_outbox
from dispytch.django.outbox.messages import pack, unpack
from dispytch.django.outbox.models import OutboxEvent, OutboxLease
from dispytch.django.outbox.relay import Relay
from dispytch.django.testing import recording
from dispytch.errors import ConfigurationError, DispytchError, EmitTimeoutError, EmitUnreachableError
from dispytch.kafka import KafkaEventConfig, KafkaEventRoute, KafkaProducer
from dispytch.memory import MemoryBroker
from dispytch.rabbitmq import RabbitMQEventConfig, RabbitMQEventRoute, RabbitMQProducer
from dispytch.redis import RedisStreamEventConfig, RedisStreamEventRoute
from dispytch.sync import EventEmitter
from dispytch.testing import BlockingRecordingEmitter, Faults
from tests.cli.support import read_all
from tests.frameworks.project import Placed, changed
from tests.support import unique


@pytest.fixture(scope="module", autouse=True)
def tables() -> None:
    call_command("migrate", verbosity=0)


@pytest.fixture(autouse=True)
def outbox() -> Iterator[None]:
    OutboxEvent.objects.all().delete()
    OutboxLease.objects.all().delete()
    with changed(OUTBOX=True):
        yield


def numbers(emitted: BlockingRecordingEmitter) -> list[int]:
    return [int(one.payload.split(b":")[1].rstrip(b"}")) for one in messages_of(emitted)]


def messages_of(emitted: BlockingRecordingEmitter) -> list[Any]:
    """What came to the broker of a recording emitter: messages of the outbox have no event to note."""
    return list(emitted.producer.broker.records("placed"))  # type: ignore[attr-defined]  # it is one in memory


class Undo(Exception):
    pass


def test_events_are_part_of_the_transaction() -> None:
    with suppress(Undo), transaction.atomic():
        emit_on_commit(Placed(n=1))
        raise Undo
    with transaction.atomic():
        emit_on_commit(Placed(n=2), Placed(n=3))
        with suppress(Undo), transaction.atomic():
            emit_on_commit(Placed(n=4))
            raise Undo
        emit_on_commit(Placed(n=5))
    emit_on_commit(Placed(n=6))
    assert OutboxEvent.objects.count() == 4
    with recording() as emitted:
        call_command("dispytch_outbox", once=True, verbosity=0)
        assert numbers(emitted) == [2, 3, 5, 6]
    assert not OutboxEvent.objects.exists()


def test_an_event_leaves_as_it_was_made() -> None:
    emit_on_commit(event := Placed(n=1))
    row = OutboxEvent.objects.get()
    assert str(row) == f"Placed {row.event_id} to placed"
    with recording() as emitted:
        emitted.emit(event)
        call_command("dispytch_outbox", once=True, verbosity=0)
        usual, relayed = messages_of(emitted)
    assert relayed.payload == usual.payload
    usual_headers, headers = dict(usual.headers), dict(relayed.headers)
    time = datetime.fromisoformat(headers.pop("ce_time").decode())
    assert time <= row.created_at  # when it was emitted, and not when it left
    assert usual_headers.pop("ce_time")
    assert headers == usual_headers


class OnKafka(EventBase):
    __route__ = KafkaEventRoute("orders.{n}")
    __backend_config__ = KafkaEventConfig(partition_key="{n}", timestamp_ms="{n}", headers={"a": "b", "c": b"\xff"})
    n: int


class OnRabbitMQ(EventBase):
    __route__ = RabbitMQEventRoute("orders.{n}", exchange="shop")
    __backend_config__ = RabbitMQEventConfig(priority=3, expiration=timedelta(seconds=1.5), headers={"a": "é"})
    n: int


class OnStreams(EventBase):
    __route__ = RedisStreamEventRoute("orders")
    __backend_config__ = RedisStreamEventConfig(maxlen=1000)
    __key__ = "{n}"
    n: int


@pytest.mark.parametrize(
    ("event", "producer"),
    [
        (OnKafka(n=7), KafkaProducer("127.0.0.1:1")),
        (OnRabbitMQ(n=7), RabbitMQProducer("amqp://127.0.0.1:1")),
        (OnStreams(n=7), producer_from_url("redis+stream://127.0.0.1:1")),
        (Placed(n=7), KafkaProducer("127.0.0.1:1")),
    ],
)
def test_messages_of_all_transports_are_kept_whole(event: EventBase, producer: Any) -> None:
    (message,) = EventEmitter(producer)._factory.make_many([event])
    OutboxEvent.objects.create(event_id=message.id, payload=message.payload, message=pack(message))
    row = OutboxEvent.objects.get()
    again = unpack(row.event_id, row.payload, row.message)
    assert (again.id, again.route, again.key, again.config) == (message.id, message.route, message.key, message.config)
    assert (again.payload, list(again.headers)) == (message.payload, list(message.headers))


def test_what_cannot_be_kept() -> None:
    (message,) = EventEmitter(producer_from_url("memory://x"))._factory.make_many([Placed(n=1)])
    message.key = object()  # type: ignore[assignment]  # as a transport of one's own may have options of any kind
    with pytest.raises(ConfigurationError, match="type object cannot be kept in the outbox"):
        pack(message)
    for name in ("nowhere:Route", "dispytch.kafka:Nothing", "os:system"):
        with pytest.raises(ConfigurationError, match=name):
            unpack("id", None, {"route": {"class": name, "fields": {}}, "config": None, "headers": [], "key": None})


def test_a_refused_event_waits_and_is_given_up(caplog: Any) -> None:
    faults = Faults()
    emit_on_commit(Placed(n=1), Placed(n=2))
    with recording(broker=MemoryBroker(faults=faults)) as emitted:
        for tries in range(1, 11):
            faults.fail("reject")
            Relay("default").run_once()
            row = OutboxEvent.objects.get()
            assert row.tries == tries
            assert (row.due_at is None) is (tries == 10)
            OutboxLease.objects.all().delete()
            OutboxEvent.objects.filter(due_at__isnull=False).update(due_at=row.created_at)
        assert numbers(emitted) == [2]
        assert row.error.startswith("EmitRejectedError: ")
        assert "is given up; manage.py dispytch_outbox --retry" in caplog.records[-1].getMessage()
        call_command("dispytch_outbox", once=True, verbosity=0)
        assert OutboxEvent.objects.exists()
        call_command("dispytch_outbox", once=True, retry=True, verbosity=0)
        assert numbers(emitted) == [2, 1]
    assert not OutboxEvent.objects.exists()


def test_a_message_that_the_emitter_does_not_take_any_more() -> None:
    emit_on_commit(Placed(n=1))
    with changed(URL="kafka://127.0.0.1:1"):
        assert Relay("default").run_once() == 0
    assert "ConfigurationError" in OutboxEvent.objects.get().error


def test_an_unknown_outcome_keeps_the_event() -> None:
    faults = Faults()
    emit_on_commit(Placed(n=1))
    with recording(broker=MemoryBroker(faults=faults)) as emitted:
        faults.fail("lose_reply")
        relay = Relay("default")
        with pytest.raises(EmitTimeoutError):
            relay.run_once()
        relay.release()
        assert OutboxEvent.objects.get().tries == 0
        call_command("dispytch_outbox", once=True, verbosity=0)
        assert numbers(emitted) == [1, 1]


def test_one_broker_that_is_down_does_not_keep_others_from_theirs() -> None:
    emit_on_commit(Placed(n=1), emitter="audit")
    emit_on_commit(Placed(n=2))
    faults = Faults()
    faults.fail("lose_reply", times=1)
    with recording("audit", broker=MemoryBroker(faults=faults)), recording() as emitted:
        with pytest.raises(EmitTimeoutError):
            Relay("default").run_once()
        assert numbers(emitted) == [2]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "kafka"])
def test_real_brokers(broker: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{broker}_url").replace("redis://", "redis+stream://", 1)

    class Kept(EventBase):
        __topic__ = unique("kept")
        n: int

    with changed(URL=url, TIMEOUT=20.0):
        emit_on_commit(*[Kept(n=n) for n in range(3)])
        done = Relay("default").run_once()
        if broker == "rabbitmq":  # where nobody listens, so that it is refused, and waits
            assert done == 0
            assert [row.tries for row in OutboxEvent.objects.all()] == [1, 1, 1]
            assert "EmitRejectedError" in OutboxEvent.objects.all()[0].error
        else:
            assert done == 3
            assert not OutboxEvent.objects.exists()
    if broker == "redis":
        assert [entry["body"]["n"] for entry in read_all(url, Kept.__topic__)] == [0, 1, 2]


def test_a_broker_that_is_down_with_a_long_queue() -> None:
    for n in range(7):
        emit_on_commit(Placed(n=n), emitter="audit")
    emit_on_commit(Placed(n=7), Placed(n=8), Placed(n=9))
    faults = Faults()
    faults.fail("unreachable", times=100)
    with recording("audit", broker=MemoryBroker(faults=faults)), recording() as emitted:
        with pytest.raises(EmitUnreachableError):
            Relay("default", batch=2).run_once()
        assert numbers(emitted) == [7, 8, 9]
    assert [row.tries for row in OutboxEvent.objects.all()] == [0] * 7


def test_clocks_that_differ() -> None:
    """What comes from a host whose clock is ahead, or from one that keeps another time zone, is not overtaken."""
    emit_on_commit(Placed(n=1))
    OutboxEvent.objects.update(due_at=datetime.now(UTC) + timedelta(hours=9))
    emit_on_commit(Placed(n=2))
    with recording() as emitted:
        assert Relay("default").run_once() == 2
    assert numbers(emitted) == [1, 2]


def test_a_clock_of_the_database_that_was_put_back() -> None:
    """A lease, or a pause, that began by the old time lasts no longer than it would have."""
    emit_on_commit(Placed(n=1), Placed(n=2))
    later = datetime.now(UTC) + timedelta(hours=1)
    OutboxEvent.objects.filter(pk=OutboxEvent.objects.earliest("id").pk).update(due_at=later, tries=3)
    OutboxLease.objects.create(name="relay", owner="one that was killed", until=later)
    with recording() as emitted:
        assert Relay("default").run_once() == 2
    assert numbers(emitted) == [1, 2]


def test_time_without_zones() -> None:
    """SQLite's clock is UTC, and Django writes what the clock on the wall says."""
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        emit_on_commit(Placed(n=1))
        with recording() as emitted:
            assert Relay("default").run_once() == 1
    assert numbers(emitted) == [1]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"route": {"class": "dispytch:EventRoute", "fields": {"gone": 1}}, "config": None, "headers": [], "key": None},
    ],
)
def test_a_row_that_cannot_be_read(message: dict[str, Any]) -> None:
    """Written by another version of the code."""
    emit_on_commit(Placed(n=1), Placed(n=2))
    OutboxEvent.objects.filter(pk=OutboxEvent.objects.first().pk).update(message=message)
    with recording() as emitted:
        assert Relay("default").run_once() == 1
    assert numbers(emitted) == [2]
    assert OutboxEvent.objects.get().error.startswith("ConfigurationError: ")


def test_an_emitter_that_is_there_no_more() -> None:
    with changed(EMITTERS={"gone": {"URL": "memory://gone"}}):
        emit_on_commit(Placed(n=1), emitter="gone")
    emit_on_commit(Placed(n=2))
    with recording() as emitted:
        assert Relay("default").run_once() == 1
    assert numbers(emitted) == [2]
    row = OutboxEvent.objects.get()
    assert (row.tries, "there is no emitter 'gone'" in row.error) == (1, True)


def test_batches_that_the_broker_does_not_confirm_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a batch comes again that was not confirmed, so the next one is smaller."""
    emit_on_commit(*[Placed(n=n) for n in range(13)])
    sizes: list[int] = []
    with recording() as emitted:
        send = emitted.producer.send

        def slow(messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
            sizes.append(len(messages))
            late = EmitTimeoutError("too much at once")
            return [late] * len(messages) if len(messages) > 2 else send(messages, timeout)

        monkeypatch.setattr(emitted.producer, "send", slow)
        relay = Relay("default", batch=8)
        for _ in range(2):
            with pytest.raises(EmitTimeoutError):
                relay.run_once()
        assert relay.run_once() == 2
        monkeypatch.undo()
        assert [relay.run_once() for _ in range(3)] == [4, 7, 0]
    assert sizes == [8, 4, 2]
    assert numbers(emitted) == list(range(13))


def test_one_relay_at_a_time() -> None:
    first, second = Relay("default"), Relay("default")
    emit_on_commit(Placed(n=1))
    with recording() as emitted:
        assert (first.run_once(), second.run_once()) == (1, None)
        with pytest.raises(CommandError, match="another process empties the outbox"):
            call_command("dispytch_outbox", once=True, verbosity=0)
    assert numbers(emitted) == [1]
    emit_on_commit(Placed(n=2))
    OutboxLease.objects.update(until=datetime(2026, 1, 1, tzinfo=UTC))  # the first one has died
    with recording() as emitted:
        assert (second.run_once(), first.run_once()) == (1, None)
        second.release()
        assert first.run_once() == 0
    assert numbers(emitted) == [2]


def test_a_database_that_goes_away(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Drivers tell of lost connections by errors of either kind; the relay waits, and ends when it is told to."""
    monkeypatch.setattr(dispytch_outbox, "_FIRST_PAUSE", 0.001)
    errors: list[Exception] = [InterfaceError("connection already closed"), OperationalError("server closed it")]

    def run_once(relay: Relay) -> int:
        if errors:
            raise errors.pop()
        signal.raise_signal(signal.SIGTERM)
        return 0

    def release(relay: Relay) -> None:
        raise InterfaceError("connection already closed")

    monkeypatch.setattr(Relay, "run_once", run_once)
    monkeypatch.setattr(Relay, "release", release)
    call_command("dispytch_outbox", verbosity=0)
    said = [record.getMessage() for record in caplog.records]
    assert sum("The outbox stays as it is" in one for one in said) == 2
    assert any("lease" in one for one in said)


@pytest.mark.parametrize("poll", ["0", "-1", "nan", "soon"])
def test_a_poll_that_would_not_rest(poll: str) -> None:
    with pytest.raises(CommandError, match="--poll"):
        call_command("dispytch_outbox", f"--poll={poll}", once=True)


def test_the_check_of_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.django.checks.apps.is_installed", lambda name: False)
    assert "dispytch.E009" in [one.id for one in check()]
