"""What no broker should be asked to take is refused before anything is sent, on every transport, in words that help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import pytest

from dispytch import Event, EventBase, EventEmitter
from dispytch import sync as blocking
from dispytch.abc import EventConfig, Message, Producer
from dispytch.errors import EmitRejectedError, EmitUnreachableError
from dispytch.kafka import KafkaEventConfig, KafkaProducer
from dispytch.memory import MemoryBroker, MemoryEventConfig, MemoryProducer
from dispytch.rabbitmq import RabbitMQEventConfig, RabbitMQProducer
from dispytch.redis import RedisEventConfig, RedisProducer, RedisStreamEventConfig, RedisStreamProducer
from tests.helpers import dispatcher_on, emit, publish, run
from tests.support import closed_port

Config = Callable[..., EventConfig]

NOWHERE = f"127.0.0.1:{closed_port()}"
TRANSPORTS: dict[str, tuple[Callable[[], Producer], Config]] = {
    "memory": (lambda: MemoryProducer(MemoryBroker()), MemoryEventConfig),
    "kafka": (lambda: KafkaProducer(NOWHERE), KafkaEventConfig),
    "rabbitmq": (lambda: RabbitMQProducer(f"amqp://{NOWHERE}"), RabbitMQEventConfig),
    "streams": (lambda: RedisStreamProducer(f"redis://{NOWHERE}"), RedisStreamEventConfig),
    "pubsub": (lambda: RedisProducer(f"redis://{NOWHERE}"), RedisEventConfig),
}
HEADERS: dict[str, Mapping[str, str | bytes]] = {
    "no name": {"": "x"},
    "NUL": {"a\0": "x"},
    "CR": {"a\r": "x"},
    "LF": {"a\nb": "x"},
    "129 bytes": {"ä" * 64 + "x": "x"},
    "lone surrogate": {"a\ud800": "x"},
    "lone surrogate as value": {"a": "\ud800"},
    "over 64 KiB": {"a": "x" * 32_768, "b": b"x" * 32_768},
    "pretends to be a dead letter": {"dispytch-dead-error": "x", "dispytch-dead-source": "x"},
}
everywhere = pytest.mark.parametrize("transport", TRANSPORTS)


def refusal(producer: Producer, event: EventBase, **options: Any) -> str:
    """What both worlds say, which is the same; none has tried to connect."""
    said: list[str] = []
    with pytest.raises(EmitRejectedError) as in_loop:
        anyio.run(partial(EventEmitter(producer).emit, event, **options))
    with pytest.raises(EmitRejectedError) as in_no_loop:
        blocking.EventEmitter(producer).emit(event, **options)
    for raised in (in_loop.value, in_no_loop.value):
        assert not isinstance(raised, EmitUnreachableError)
        said.append(str(raised))
    assert said[0] == said[1]
    assert len(said[0]) < 600
    return said[0]


@everywhere
@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_headers(transport: str, headers: Mapping[str, str | bytes]) -> None:
    producer, config = TRANSPORTS[transport]

    class Odd(EventBase):
        __topic__ = "orders"
        __backend_config__ = config(headers=headers)

    text = refusal(producer(), Odd())
    assert "header" in text
    assert "Odd" in text


@everywhere
def test_headers_that_can_go(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.kafka.trouble._PATIENCE", 0.2)
    producer, config = TRANSPORTS[transport]

    class Fine(EventBase):
        __topic__ = "orders"
        __backend_config__ = config(
            headers={"a b": "x" * 60_000, "ä" * 64: "\r\n\0", "x" * 128: "", "ce_tenant": "größe"}
        )

    emitter = blocking.EventEmitter(producer(), timeout=5)
    if transport == "memory":
        assert emitter.emit(Fine()) is not None
        return
    with pytest.raises(EmitUnreachableError):  # it came as far as the address where nobody listens
        emitter.emit(Fine())


@everywhere
@pytest.mark.parametrize(
    "value", ["", "bob.deleted", "bob:deleted", "bob/deleted", "*", "#", "a b", "a\n", "a\0", "\ud800", None, b"x", [1]]
)
def test_values_in_routes(transport: str, value: Any) -> None:
    producer, _ = TRANSPORTS[transport]

    class Odd(EventBase):
        __topic__ = "user.{name}"
        name: Any

    assert "'name'" in refusal(producer(), Odd(name=value))


@everywhere
def test_ids(transport: str) -> None:
    producer, _ = TRANSPORTS[transport]

    class Plain(EventBase):
        __topic__ = "orders"

    for id in ("", "\ud800"):
        assert "id" in refusal(producer(), Plain(), id=id)


@everywhere
def test_bodies_that_are_no_text(transport: str) -> None:
    producer, _ = TRANSPORTS[transport]

    class Text(EventBase):
        __topic__ = "orders"
        text: Any

    assert "secret" not in refusal(producer(), Text(text="secret \ud800"))
    assert "secret" not in refusal(producer(), Text(text=object()))


NAMES = {
    "kafka": ["größe", "a,b", "a@b", "x" * 250, "a\u2028b"],
    "rabbitmq": ["x" * 256, "ä" * 128],
    "streams": [],
    "pubsub": [],
    "memory": [],
}


@pytest.mark.parametrize(("transport", "value"), [(name, value) for name in NAMES for value in NAMES[name]])
def test_names_that_the_broker_does_not_take(transport: str, value: str) -> None:
    producer, _ = TRANSPORTS[transport]

    class Named(EventBase):
        __topic__ = "{name}"
        name: str

    assert refusal(producer(), Named(name=value))


@pytest.mark.parametrize(
    ("transport", "config"),
    [
        ("kafka", KafkaEventConfig(timestamp_ms="9" * 5000)),
        ("kafka", KafkaEventConfig(timestamp_ms="{text}")),
        ("kafka", KafkaEventConfig(timestamp_ms=2**63)),
        ("kafka", KafkaEventConfig(partition=2**31)),
        ("kafka", KafkaEventConfig(partition=10**5000)),
        ("kafka", KafkaEventConfig(partition="{text}")),
        ("rabbitmq", RabbitMQEventConfig(expiration=float("nan"))),
        ("rabbitmq", RabbitMQEventConfig(expiration=float("inf"))),
        ("rabbitmq", RabbitMQEventConfig(expiration=4_294_968)),
        ("rabbitmq", RabbitMQEventConfig(expiration=timedelta(days=50))),
        ("rabbitmq", RabbitMQEventConfig(expiration=timedelta(milliseconds=-1))),
        ("rabbitmq", RabbitMQEventConfig(priority=256)),
        ("rabbitmq", RabbitMQEventConfig(correlation_id="{text}")),
    ],
)
def test_options(transport: str, config: EventConfig) -> None:
    producer, _ = TRANSPORTS[transport]

    class Odd(EventBase):
        __topic__ = "orders"
        __backend_config__ = config
        text: str

    assert refusal(producer(), Odd(text="9" * 5000))


@pytest.mark.parametrize(("transport", "size"), [("kafka", 1_000_000), ("streams", 2**29 + 1), ("pubsub", 2**29 + 1)])
def test_sizes(transport: str, size: int) -> None:
    producer, _ = TRANSPORTS[transport]
    message = Message("id", producer().route_for("orders"), b"x" * size)
    with pytest.raises(EmitRejectedError, match="orders"):
        producer().check(message)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "correlationid"])
@pytest.mark.parametrize("value", [b"x" * 70_000, b"a\r\nb", b"\0", b"\xff\0"])
async def test_what_travels_along_is_no_reason_to_refuse(name: str, value: bytes) -> None:
    # given an event whose trace is nonsense that no broker would carry
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)
    ids: list[str] = []

    class Answer(EventBase):
        __topic__ = "answers"

    @dispatcher.handler(topic="questions")
    async def answer(event: Event[Any]) -> None:
        ids.append(event.meta.id)
        await emit(broker, Answer())

    publish(broker, "questions", b"{}", [(name, value)])
    await run(dispatcher)
    # then what its handler emits has a correlation, and none of the nonsense
    (record,) = broker.records("answers")
    headers = dict(record.headers)
    assert headers.get("ce_correlationid") == ids[0].encode()
    assert value not in headers.values()
