"""Other people's clients on the same brokers: kcat, plain pika, redis-cli. They read what is emitted, and are handled.

Their messages come in three kinds: CloudEvents with the attributes in headers, or in the payload where there are no
headers, and bare payloads.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio.to_thread
import pika
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from tests import brokers
from tests.conftest import missing_server
from tests.support import unique, until

pytestmark = pytest.mark.anyio

ATTRIBUTES = {
    "specversion": "1.0",
    "id": "from-elsewhere-1",
    "source": "/elsewhere",
    "type": "paid",
    "time": "2026-01-02T03:04:05Z",
}


class Paid(BaseModel):
    amount: float


def paid_event(topic: str) -> type[Any]:
    class PaidEvent(EventBase):
        __topic__ = topic
        __event_type__ = "paid"
        __key__ = "k{amount}"
        amount: float

    return PaidEvent


Seen = list[tuple[str | None, float, str | None]]


@asynccontextmanager
async def handling(url: str, topic: str, seen: Seen) -> Any:
    dispatcher = EventDispatcher(consumer_from_url(url, unique("interop")))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Paid]) -> None:
        seen.append((event.meta.type, event.body.amount, event.meta.key))

    async with dispatcher.lifespan():
        yield
        await until(lambda: dispatcher.health().unsettled == 0)


async def emit(url: str, event: EventBase) -> str:
    async with EventEmitter(producer_from_url(url), source="/shop") as emitter:
        receipt = await emitter.emit(event)
    assert receipt is not None
    return receipt.id


async def call(*command: str, input: str | None = None) -> str:
    def run() -> str:
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await anyio.to_thread.run_sync(run)


def is_cloud_event(attributes: dict[str, str], id: str) -> bool:
    found = {name: attributes[name] for name in ("specversion", "id", "source", "type")}
    assert found == {"specversion": "1.0", "id": id, "source": "/shop", "type": "paid"}
    assert attributes["time"].endswith("Z")
    return True


# --- kcat


@pytest.fixture
def kcat(pytestconfig: pytest.Config) -> str:
    return tool(pytestconfig, "kcat")


def tool(config: pytest.Config, program: str) -> str:
    try:
        return brokers.tool(program, install=config.getoption("--install-brokers"))
    except brokers.MissingServerError as error:
        missing_server(config, error)


async def test_kcat(kcat: str, kafka_url: str) -> None:
    topic, seen = unique("interop"), Seen()
    host = kafka_url.removeprefix("kafka://")
    headers = [f"-Hce_{name}={value}" for name, value in ATTRIBUTES.items()]
    async with handling(kafka_url, topic, seen):
        await call(kcat, "-P", "-b", host, "-t", topic, "-K", "=", *headers, input='kim={"amount": 1.5}\n')
        await call(kcat, "-P", "-b", host, "-t", topic, input='{"amount": 2.5}\n')
        await until(lambda: len(seen) == 2)
        id = await emit(kafka_url, paid_event(topic)(amount=3.5))
        await until(lambda: len(seen) == 3)
    assert seen == [("paid", 1.5, "kim"), (None, 2.5, None), ("paid", 3.5, "k3.5")]
    last = await call(kcat, "-C", "-b", host, "-t", topic, "-o", "-1", "-e", "-q", "-J")
    message = json.loads(last)
    names = message["headers"][::2]
    attributes = dict(zip(names, message["headers"][1::2], strict=True))
    assert attributes["content-type"] == "application/json"
    assert is_cloud_event({name.removeprefix("ce_"): value for name, value in attributes.items()}, id)
    assert (message["key"], json.loads(message["payload"])) == ("k3.5", {"amount": 3.5})


# --- pika


async def test_pika(rabbitmq_url: str) -> None:
    topic, seen = unique("interop"), Seen()
    queue = unique("elsewhere")
    got: list[Any] = []

    def with_channel(use: Callable[[Any], None]) -> Callable[[], None]:
        def work() -> None:
            connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
            use(connection.channel())
            connection.close()

        return work

    def publish(channel: Any) -> None:
        headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items()}
        properties = pika.BasicProperties(content_type="application/json", headers=headers)
        channel.basic_publish("dispytch", topic, b'{"amount": 1.5}', properties)
        channel.basic_publish("dispytch", topic, b'{"amount": 2.5}')

    def bind(channel: Any) -> None:
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "dispytch", topic)

    def get(channel: Any) -> None:
        got.extend(channel.basic_get(queue, auto_ack=True))
        channel.queue_delete(queue)

    async with handling(rabbitmq_url, topic, seen):
        await anyio.to_thread.run_sync(with_channel(publish))
        await until(lambda: len(seen) == 2)
        await anyio.to_thread.run_sync(with_channel(bind))
        id = await emit(rabbitmq_url, paid_event(topic)(amount=3.5))
        await until(lambda: len(seen) == 3)
    assert sorted(seen, key=lambda one: one[1]) == [("paid", 1.5, None), (None, 2.5, None), ("paid", 3.5, "k3.5")]
    await anyio.to_thread.run_sync(with_channel(get))
    method, properties, payload = got
    assert (method.exchange, method.routing_key) == ("dispytch", topic)
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert is_cloud_event({name.removeprefix("ce-"): value for name, value in properties.headers.items()}, id)
    assert json.loads(payload) == {"amount": 3.5}


# --- redis-cli


@pytest.fixture
def redis_cli(pytestconfig: pytest.Config, redis_url: str) -> tuple[str, ...]:
    return tool(pytestconfig, "redis-cli"), "-u", redis_url


async def test_redis_cli_on_streams(redis_cli: tuple[str, ...], redis_url: str) -> None:
    stream, seen = unique("interop"), Seen()
    url = redis_url.replace("redis://", "redis+stream://", 1)
    headers = [text for name, value in ATTRIBUTES.items() for text in (f"ce_{name}", value)]
    async with handling(url, stream, seen):
        await call(*redis_cli, "XADD", stream, "*", "data", '{"amount": 1.5}', *headers)
        await call(*redis_cli, "XADD", stream, "*", "data", '{"amount": 2.5}')
        await call(*redis_cli, "XADD", stream, "*", "amount", "2.75", "colour", "red")  # the fields are the body
        id = await emit(url, paid_event(stream)(amount=3.5))
        await until(lambda: len(seen) == 4)
    assert sorted(seen, key=lambda one: one[1]) == [
        ("paid", 1.5, None),
        (None, 2.5, None),
        (None, 2.75, None),
        ("paid", 3.5, "k3.5"),
    ]
    lines = (await call(*redis_cli, "XREVRANGE", stream, "+", "-", "COUNT", "1")).splitlines()
    fields = dict(zip(lines[1::2], lines[2::2], strict=True))
    assert is_cloud_event({name.removeprefix("ce_"): value for name, value in fields.items()}, id)
    assert json.loads(fields["data"]) == {"amount": 3.5}


async def test_redis_cli_on_pubsub(redis_cli: tuple[str, ...], redis_url: str) -> None:
    channel, seen = unique("interop"), Seen()
    structured = {**ATTRIBUTES, "datacontenttype": "application/json", "data": {"amount": 1.5}}
    lines: list[str] = []
    async with handling(redis_url, channel, seen), _subscriber(redis_cli, channel, lines):
        await call(*redis_cli, "PUBLISH", channel, json.dumps(structured))
        await call(*redis_cli, "PUBLISH", channel, '{"amount": 2.5}')
        id = await emit(redis_url, paid_event(channel)(amount=3.5))
        await until(lambda: len(seen) == 3 and any("3.5" in line for line in lines))
    assert sorted(seen, key=lambda one: one[1]) == [("paid", 1.5, None), (None, 2.5, None), ("paid", 3.5, "k3.5")]
    message = json.loads(next(line for line in lines if "3.5" in line))
    assert is_cloud_event(message, id)
    assert message["data"] == {"amount": 3.5}


def _subscriber(redis_cli: tuple[str, ...], channel: str, lines: list[str]) -> AbstractAsyncContextManager[None]:
    @asynccontextmanager
    async def subscribed() -> Any:
        process = await anyio.open_process([*redis_cli, "SUBSCRIBE", channel])
        assert process.stdout is not None
        async with anyio.create_task_group() as group:

            async def read(stream: Any) -> None:
                rest = b""
                async for data in stream:
                    *whole, rest = (rest + data).split(b"\n")
                    lines.extend(line.decode() for line in whole)

            group.start_soon(read, process.stdout)
            await until(lambda: "1" in lines)  # the confirmation of the subscription
            yield
            process.terminate()
            await process.wait()
            group.cancel_scope.cancel()
            await checkpoint()
        await process.aclose()

    return subscribed()
