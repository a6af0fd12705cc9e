"""What adding to a stream writes, and what it tells when things go wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio

from dispytch import consumer_from_url, producer_from_url
from dispytch.abc import Receipt
from dispytch.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
)
from dispytch.redis import (
    RedisConsumer,
    RedisProducer,
    RedisStreamConsumer,
    RedisStreamEventConfig,
    RedisStreamProducer,
)
from tests.redis.helpers import client_of, fake_server, is_trio, unique, until
from tests.redis.streams.helpers import consumer_of, message, subscription, take
from tests.support import CANARY, closed_port, texts

pytestmark = pytest.mark.anyio


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


def swallow_xadd(command: list[bytes]) -> bytes | None:
    return None if command[0] == b"XADD" else b"+OK\r\n"


async def test_receipts_are_aligned_and_in_order(redis_url: str, client: Any) -> None:
    stream = unique()
    producer = RedisStreamProducer(redis_url)
    sent = [message(stream, b"%d" % number) for number in range(2345)]
    outcomes = await producer.send(sent, 10)
    entries = client.xrange(stream)
    assert [fields for _, fields in entries] == [{b"data": b"%d" % number} for number in range(2345)]
    assert outcomes == [Receipt(one.id, stream, offset=id.decode()) for one, (id, _) in zip(sent, entries, strict=True)]
    assert await producer.send([], 10) == []
    await producer.stop()


async def test_what_an_entry_holds(redis_url: str, client: Any) -> None:
    stream = unique("ä\0 \r\n")
    producer = RedisStreamProducer(redis_url)
    headers = [("ce_id", b"1"), ("Ünï", b"\xff\0"), ("twice", b"a"), ("twice", b"b"), ("empty", b"")]
    outcomes = await producer.send(
        [
            message(stream, b"\x00\xff", headers, b"key"),
            message(stream, None, [("ce_id", b"2")]),
            message(stream, b"", [("ce_partitionkey", b"own")], b"other"),
        ],
        10,
    )
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    entries = [fields for _, fields in client.xrange(stream)]
    assert entries[0][b"data"] == b"\x00\xff"
    assert entries[0]["Ünï".encode()] == b"\xff\0"
    assert entries[0][b"ce_partitionkey"] == b"key"
    assert entries[1:] == [{b"ce_id": b"2"}, {b"ce_partitionkey": b"own", b"data": b""}]
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream)])
    first, *_ = await take(consumer, 3)
    assert sorted(first.headers) == sorted([*headers, ("ce_partitionkey", b"key")])
    assert first.key == b"key"
    await consumer.stop()
    await producer.stop()


async def test_maxlen(redis_url: str, client: Any) -> None:
    stream = unique()
    producer = RedisStreamProducer(redis_url)
    sent = [message(stream) for _ in range(1000)]
    for one in sent:
        one.config = RedisStreamEventConfig(maxlen=100)
    assert all(isinstance(outcome, Receipt) for outcome in await producer.send(sent, 10))
    assert 100 <= client.xlen(stream) < 300
    await producer.stop()
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ConfigurationError, match="maxlen"):
            RedisStreamEventConfig(maxlen=wrong)  # type: ignore[arg-type]  # that is the point


async def test_nothing_is_sent_twice(anyio_backend: tuple[str, Any]) -> None:
    kind: Any = redis.Redis if is_trio(anyio_backend) else redis.asyncio.Redis
    with fake_server(swallow_xadd) as server:
        for given in (server.url, kind.from_url(server.url, socket_timeout=0.05)):
            server.commands.clear()
            producer = RedisStreamProducer(given)
            start = time.monotonic()
            (outcome,) = await producer.send([message("x")], 0.3)
            assert 0.25 < time.monotonic() - start < 1.5
            assert isinstance(outcome, EmitTimeoutError)
            assert len(server.named(b"XADD")) == 1
            await producer.stop()


async def test_a_connection_that_is_reset_before_the_reply() -> None:
    with fake_server(swallow_xadd) as server:
        producer = RedisStreamProducer(server.url)
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.extend(await producer.send([message("x"), message("y")], None))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until(lambda: len(server.named(b"XADD")) == 2)
            server.cut()
        assert [type(outcome) for outcome in outcomes] == [EmitTimeoutError] * 2
        assert len(server.named(b"XADD")) == 2
        await producer.stop()


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        ("READONLY You can't write against a read only replica.", "primary"),
        ("NOAUTH Authentication required.", "user:password"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "trim its streams"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "another name"),
        ("MISCONF Redis is configured to save RDB snapshots", "disk"),
        ("NOPERM this user has no permissions to run the 'xadd' command", "ACL"),
    ],
)
async def test_what_the_server_refuses(reply: str, advice: str) -> None:
    def answer(command: list[bytes]) -> bytes:
        return f"-{reply}\r\n".encode() if command[0] == b"XADD" else b"+OK\r\n"

    with fake_server(answer) as server:
        producer = RedisStreamProducer(server.url)
        outcomes = await producer.send([message("x"), message("y")], 5)
        assert [type(outcome) for outcome in outcomes] == [EmitRejectedError] * 2
        assert advice in str(outcomes[0])
        await producer.stop()


async def test_a_full_server_and_a_key_of_another_kind(redis_url: str, client: Any) -> None:
    stream, other = unique(), unique()
    client.set(other, "text")
    producer = RedisStreamProducer(redis_url)
    done, refused = await producer.send([message(stream), message(other)], 5)
    assert isinstance(done, Receipt)
    assert isinstance(refused, EmitRejectedError)
    client.config_set("maxmemory", "1")
    try:
        (refused,) = await producer.send([message(stream)], 5)
    finally:
        client.config_set("maxmemory", "0")
    assert isinstance(refused, EmitRejectedError)
    assert "trim its streams" in str(refused)
    assert isinstance((await producer.send([message(stream)], 5))[0], Receipt)
    await producer.stop()


async def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    producer = RedisStreamProducer(f"redis://:{CANARY}@127.0.0.1:{port}")
    (outcome,) = await producer.send([message("x")], 5)
    assert isinstance(outcome, EmitUnreachableError)
    assert f"127.0.0.1:{port}" in str(outcome)
    with pytest.raises(BrokerUnreachableError, match=str(port)) as raised:
        await producer.start()
    assert CANARY not in texts(outcome) + texts(raised.value) + repr(producer)
    await producer.stop()


async def test_what_answers_is_no_stream() -> None:
    with fake_server(lambda command: b":1\r\n") as server:
        producer = RedisStreamProducer(server.url)
        (outcome,) = await producer.send([message("x")], 5)
        assert isinstance(outcome, EmitTimeoutError)
        await producer.stop()


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (message("", b""), "empty"),
        (message("\ud800", b""), "surrogate"),
        (message("x", None), "null"),
        (message("x", b"", [("data", b"1")]), "'data'"),
    ],
)
async def test_what_is_refused_before_it_is_sent(sent: Any, text: str) -> None:
    with pytest.raises(EmitRejectedError, match=text):
        RedisStreamProducer("redis://127.0.0.1").check(sent)


async def test_clients_of_the_wrong_world(redis_url: str, anyio_backend: tuple[str, Any]) -> None:
    producer = RedisStreamProducer(redis.asyncio.Redis.from_url(redis_url, decode_responses=True))
    with pytest.raises(ConfigurationError, match="give RedisStreamProducer a URL"):
        producer.blocking()
    if is_trio(anyio_backend):
        with pytest.raises(ConfigurationError, match="give RedisStreamProducer a URL"):
            await producer.start()
    else:
        assert isinstance((await producer.send([message(unique())], 5))[0], Receipt)
        await producer.stop()
    with pytest.raises(ConfigurationError, match="RedisStreamProducer takes"):
        RedisStreamProducer(7)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_urls(scheme: str) -> None:
    url = f"{scheme}+stream://user:{CANARY}%40@host:1234/7"
    for made in (producer_from_url(url), RedisStreamProducer(url)):
        assert isinstance(made, RedisStreamProducer)
        assert "host:1234" in repr(made)
        assert CANARY not in repr(made)
        assert made._source.blocking().__class__.__name__ == ("Connection" if scheme == "redis" else "SSLConnection")
    consumer = consumer_from_url(url, "billing")
    assert isinstance(consumer, RedisStreamConsumer)
    assert consumer.group_id == "billing"
    assert CANARY not in repr(consumer) + repr(vars(consumer))
    assert isinstance(producer_from_url(f"{scheme}://host"), RedisProducer)
    assert isinstance(consumer_from_url(f"{scheme}://host"), RedisConsumer)
    for kind in (RedisProducer, RedisConsumer):
        with pytest.raises(ConfigurationError) as raised:
            kind(url)
        assert CANARY not in texts(raised.value)


@pytest.mark.parametrize("url", [f"redis+stream://:{CANARY}@host:port", f"rediss+stream://:{CANARY}#@host", CANARY, ""])
async def test_malformed_urls(url: str) -> None:
    for make in (RedisStreamProducer, consumer_of):
        with pytest.raises(ConfigurationError) as raised:
            make(url)
        assert CANARY not in texts(raised.value)
