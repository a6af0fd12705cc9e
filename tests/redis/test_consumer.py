"""Connections of the consumer: made, lost, made anew, handed in, and ended."""

from __future__ import annotations

import logging
import time
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio

from dispytch import Event, EventDispatcher
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.redis import RedisConsumer
from dispytch.redis.threads import ThreadLink
from tests.redis.helpers import (
    client_of,
    fake_server,
    is_trio,
    reader_threads,
    subscribe_only,
    subscription,
    swallow_all,
    unique,
    until,
)
from tests.support import CANARY, PATIENCE, at_best, closed_port, texts

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["default", "thread"])
def consumer(redis_url: str, request: pytest.FixtureRequest) -> RedisConsumer:
    """A consumer as the loop has it, and one that reads in a thread."""
    return RedisConsumer(redis_url, driver=None if request.param == "default" else "thread")


def collecting(consumer: RedisConsumer, *topics: str) -> tuple[EventDispatcher, list[Any]]:
    handled: list[Any] = []
    dispatcher = EventDispatcher(consumer)
    for topic in topics:

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[Any]) -> None:
            handled.append(event.body["n"])

    return dispatcher, handled


async def test_ready_means_subscribed(consumer: RedisConsumer, redis_url: str) -> None:
    names = [unique() for _ in range(300)]
    await consumer.start([subscription(name) for name in names] + [subscription(unique() + ".{x}")])
    with client_of(redis_url) as client:
        assert {count for _, count in client.pubsub_numsub(*names)} == {1}
        assert client.publish(names[-1], b"x") == 1
    (delivery,) = await consumer.receive(10)
    assert (delivery.source, delivery.payload, delivery.position) == (names[-1], b"x", None)
    assert abs(delivery.timestamp_ms / 1000 - time.time()) < 10
    await consumer.stop()


async def test_starting_again_changes_nothing(consumer: RedisConsumer, redis_url: str) -> None:
    name = unique()
    await consumer.start()
    await consumer.start([subscription(name)])
    link = consumer._link
    await consumer.start([subscription(name)])
    await consumer.start()
    assert consumer._link is link
    with client_of(redis_url) as client:
        assert client.publish(name, b"x") == 1
    assert len(await consumer.receive(1)) == 1
    await consumer.stop()
    await consumer.stop()
    assert reader_threads() == []


async def test_started_by_hand_before_the_dispatcher(consumer: RedisConsumer, redis_url: str) -> None:
    topic = unique()
    dispatcher, handled = collecting(consumer, topic)
    await consumer.start()
    async with dispatcher.lifespan():
        with client_of(redis_url) as client:
            assert client.publish(topic, b'{"n": 1}') == 1
        await until(lambda: handled)


async def test_not_started(redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="start"):
        await RedisConsumer(redis_url).receive(1)


async def test_receive_gives_what_was_asked_for(consumer: RedisConsumer, redis_url: str) -> None:
    name = unique()
    await consumer.start([subscription(name)])
    with client_of(redis_url) as client, client.pipeline(transaction=False) as pipeline:
        for number in range(500):
            pipeline.publish(name, b"%d" % number)
        pipeline.execute()
    found: list[bytes | None] = []
    while len(found) < 500:
        deliveries = await consumer.receive(7)
        assert 1 <= len(deliveries) <= 7
        found += [delivery.payload for delivery in deliveries]
    assert found == [b"%d" % number for number in range(500)]
    await consumer.stop()


async def test_a_cancelled_receive_loses_nothing(consumer: RedisConsumer, redis_url: str) -> None:
    name = unique()
    payload = b"x" * 300_000  # comes in pieces
    await consumer.start([subscription(name)])
    found: list[bytes | None] = []
    sent = 0
    with client_of(redis_url) as client:
        while len(found) < 30:
            if sent < 30:
                client.publish(name, payload)
                sent += 1
            with anyio.move_on_after(0.001):
                found += [delivery.payload for delivery in await consumer.receive(5)]
    assert found == [payload] * 30
    await consumer.stop()


async def test_nobody_collects(redis_url: str) -> None:
    """The thread stops reading, so that what waits stays at the server and in the socket."""
    name = unique()
    consumer = RedisConsumer(redis_url, driver="thread")
    await consumer.start([subscription(name)])
    link = consumer._link
    assert isinstance(link, ThreadLink)
    with client_of(redis_url) as client:
        for _ in range(60):
            client.publish(name, b"x" * 200_000)
        await until(lambda: len(link._batches) == 16)
        with anyio.move_on_after(0.2):  # it stays so
            await until(lambda: len(link._batches) != 16)
        assert len(link._batches) == 16
        count = 0
        while count < 60:
            count += len(await consumer.receive(1000))
        await consumer.stop()

        async def stop() -> float:
            """While it waits for room."""
            await consumer.start([subscription(name)])
            link: Any = consumer._link
            for _ in range(60):
                client.publish(name, b"x" * 200_000)
            await until(lambda: len(link._batches) == 16)
            start = time.monotonic()
            await consumer.stop()
            return time.monotonic() - start

        await at_best(0.2, stop)
    assert reader_threads() == []


async def test_a_lost_connection_is_made_anew(
    consumer: RedisConsumer, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = unique()
    dispatcher, handled = collecting(consumer, f"{prefix}.literal", f"{prefix}.by.{{name}}")
    consumer._source._options = {**consumer._source._options, "client_name": prefix}
    with caplog.at_level(logging.INFO, "dispytch"), client_of(redis_url) as client:
        async with dispatcher.lifespan():
            for number in range(3):
                client.publish(f"{prefix}.literal", b'{"n": 1}')
                await until(lambda: len(handled) == 2 * number + 1)  # noqa: B023 - awaited here
                (ours,) = [found for found in client.client_list(_type="pubsub") if found["name"] == prefix]
                client.client_kill_filter(_id=ours["id"])
                await until(
                    lambda: client.pubsub_numsub(f"{prefix}.literal")[0][1] == 1 and dispatcher.health().connected
                )
                client.publish(f"{prefix}.by.name", b'{"n": 2}')
                await until(lambda: len(handled) == 2 * number + 2)  # noqa: B023 - awaited here
    assert handled == [1, 2] * 3
    gaps = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert [record.levelno for record in gaps] == [logging.WARNING] * 3
    assert all(f"{prefix}.literal" in record.getMessage() for record in gaps)
    assert "closed the connection" in caplog.text
    assert reader_threads() == []


async def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    consumer = RedisConsumer(f"redis://:{CANARY}@127.0.0.1:{port}")
    dispatcher, _ = collecting(consumer, unique())
    with pytest.raises(BrokerUnreachableError, match=str(port)) as raised:
        await dispatcher.start()
    assert "check the address" in str(raised.value)
    assert CANARY not in texts(raised.value)
    assert reader_threads() == []


async def test_a_server_that_goes_away_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    with fake_server(subscribe_only) as server:
        consumer = RedisConsumer(server.url)
        await consumer.start([subscription("x")])
        server.close()
        with pytest.raises(BrokerUnreachableError):
            await consumer.receive(1)
        with pytest.raises(BrokerUnreachableError):
            await consumer.receive(1)
        with pytest.raises(BrokerUnreachableError):
            await consumer.start([subscription("x")])
    assert "is lost" not in caplog.text
    await consumer.stop()
    assert reader_threads() == []


async def test_a_connection_that_died_half_way() -> None:
    with fake_server(subscribe_only) as server:
        consumer = RedisConsumer(server.url)
        consumer._heartbeat = 0.1
        await consumer.start([subscription("x")])
        with anyio.fail_after(PATIENCE), pytest.raises(BrokerUnreachableError, match="PING"):
            await consumer.receive(1)
        assert len(server.named(b"PING")) == 1
        await consumer.stop()


async def test_a_quiet_server_is_not_given_up(redis_url: str) -> None:
    name = unique()
    consumer = RedisConsumer(redis_url)
    consumer._heartbeat = 0.02
    await consumer.start([subscription(name)])
    with anyio.move_on_after(0.3):
        await consumer.receive(1)
    with client_of(redis_url) as client:
        client.publish(name, b"x")
    assert len(await consumer.receive(1)) == 1
    await consumer.stop()


async def test_subscriptions_that_are_never_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.redis.links.CONNECT_TIMEOUT", 0.1)
    monkeypatch.setattr("dispytch.redis.threads.CONNECT_TIMEOUT", 0.1)
    with fake_server(swallow_all) as server:
        consumer = RedisConsumer(server.url)
        with pytest.raises(BrokerUnreachableError, match="confirm"):
            await consumer.start([subscription("x")])
        await consumer.stop()
    assert reader_threads() == []


async def test_a_cancelled_start_leaves_nothing() -> None:
    with fake_server(swallow_all) as server:
        consumer = RedisConsumer(server.url)
        with anyio.move_on_after(0.1) as scope:
            await consumer.start([subscription("x")])
        assert scope.cancelled_caught
        await consumer.stop()
    assert reader_threads() == []


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"-NOPERM no\r\n", BrokerError),
        (b"-LOADING not yet\r\n", BrokerUnreachableError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", BrokerUnreachableError),
        (b"-ERR unknown command 'SUBSCRIBE', with args beginning with: 'x'\r\n", BrokerError),
    ],
)
async def test_what_a_server_may_say_to_subscribing(reply: bytes, error: type[BrokerError]) -> None:
    with fake_server(lambda command: reply) as server:
        consumer = RedisConsumer(server.url)
        with pytest.raises(BrokerError) as raised:
            await consumer.start([subscription("x")])
        assert type(raised.value) is error
        assert "beginning with" not in texts(raised.value)
        await consumer.stop()


async def test_a_wrong_password(redis_url: str) -> None:
    consumer = RedisConsumer(redis_url.replace("redis://", f"redis://nobody:{CANARY}@"))
    with pytest.raises(BrokerError, match="password") as raised:
        await consumer.start([subscription("x")])
    assert not isinstance(raised.value, BrokerUnreachableError)
    assert CANARY not in texts(raised.value) + repr(consumer)
    await consumer.stop()


async def seconds_of_a_stop(dispatcher: EventDispatcher) -> float:
    async with dispatcher.lifespan():
        start = time.monotonic()
        await dispatcher.stop()
        return time.monotonic() - start


async def test_a_stop_is_prompt(consumer: RedisConsumer) -> None:
    await at_best(0.2, lambda: seconds_of_a_stop(collecting(consumer, unique())[0]))
    assert reader_threads() == []


async def test_used_again_after_a_stop(consumer: RedisConsumer, redis_url: str) -> None:
    for _ in range(2):
        topic = unique()
        dispatcher, handled = collecting(consumer, topic)
        async with dispatcher.lifespan():
            with client_of(redis_url) as client:
                client.publish(topic, b'{"n": 1}')
            await until(lambda: handled)  # noqa: B023 - awaited here


# --- ready-made clients


async def test_an_asyncio_pubsub(redis_url: str, anyio_backend: tuple[str, Any]) -> None:
    prefix = unique()
    if is_trio(anyio_backend):
        dispatcher, _ = collecting(RedisConsumer(redis.asyncio.Redis.from_url(redis_url).pubsub()), prefix)
        with pytest.raises(ConfigurationError, match="asyncio only"):
            await dispatcher.start()
        return
    async with redis.asyncio.Redis.from_url(redis_url) as client, client.pubsub() as pubsub:
        consumer = RedisConsumer(pubsub)
        dispatcher, handled = collecting(consumer, f"{prefix}.a", f"{prefix}.{{name}}.b")
        with pytest.raises(ConfigurationError, match="no subscriptions"):
            await dispatcher.start()
        await pubsub.subscribe(f"{prefix}.a")
        await pubsub.psubscribe(f"{prefix}.*", f"{prefix}.*.b")
        async with dispatcher.lifespan():
            await client.publish(f"{prefix}.a", b'{"n": 1}')
            await client.publish(f"{prefix}.x.b", b'{"n": 2}')
            await until(lambda: len(handled) >= 2)
            await client.publish(f"{prefix}.a", b'{"n": 3}')
            await until(lambda: len(handled) >= 3)
        assert handled == [1, 2, 3]
        await client.publish(f"{prefix}.a", b"still open")
        with anyio.fail_after(PATIENCE):
            while (found := await pubsub.get_message(timeout=1)) is None or found["data"] != b"still open":
                pass


@pytest.mark.parametrize("text", [False, True])
async def test_a_blocking_pubsub(redis_url: str, text: bool) -> None:
    prefix = unique()
    with client_of(redis_url, decode_responses=text) as client, client.pubsub() as pubsub:
        consumer = RedisConsumer(pubsub)
        dispatcher, handled = collecting(consumer, f"{prefix}.a", f"{prefix}.{{name}}.b")
        with pytest.raises(ConfigurationError, match="no subscriptions"):
            await dispatcher.start()
        pubsub.subscribe(f"{prefix}.a")
        pubsub.psubscribe(f"{prefix}.*")
        async with dispatcher.lifespan():
            client.publish(f"{prefix}.a", b'{"n": 1}')
            client.publish(f"{prefix}.x.b", b'{"n": 2}')
            await until(lambda: len(handled) >= 2)
        assert handled == [1, 2]
        assert reader_threads() == []

        await at_best(0.2, lambda: seconds_of_a_stop(dispatcher))
        assert reader_threads() == []
        client.publish(f"{prefix}.a", "still open")
        found: list[Any] = []

        def still_open() -> bool:
            message = pubsub.get_message()
            found.append(message and message["data"])
            return found[-1] in ("still open", b"still open")

        await until(still_open)


async def test_a_pubsub_that_reconnects_by_itself(
    redis_url: str, anyio_backend: tuple[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    topic = unique()
    kind: Any = redis.Redis if is_trio(anyio_backend) else redis.asyncio.Redis
    client = kind.from_url(redis_url, client_name=topic)
    pubsub = client.pubsub()
    subscribing = pubsub.subscribe(topic)
    if subscribing is not None:
        await subscribing
    dispatcher, handled = collecting(RedisConsumer(pubsub), topic)
    with client_of(redis_url) as admin:
        async with dispatcher.lifespan():
            (ours,) = [found for found in admin.client_list(_type="pubsub") if found["name"] == topic]
            admin.client_kill_filter(_id=ours["id"])
            await until(lambda: topic in caplog.text and "is lost" in caplog.text)
            await until(lambda: admin.pubsub_numsub(topic)[0][1] == 1)
            admin.publish(topic, b'{"n": 1}')
            await until(lambda: handled)
    assert caplog.text.count("is lost") == 1
    if is_trio(anyio_backend):
        pubsub.close()
        client.close()
    else:
        await pubsub.aclose()
        await client.aclose()


async def test_a_pubsub_that_is_subscribed_to_something_else(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    name = unique()
    with client_of(redis_url) as client, client.pubsub() as pubsub:
        pubsub.subscribe(unique())
        consumer = RedisConsumer(pubsub)
        await consumer.start([subscription(name)])
        await consumer.stop()
    assert f"not subscribed to {name}" in caplog.text


async def test_a_driver_that_the_loop_cannot_run(redis_url: str, anyio_backend: tuple[str, Any]) -> None:
    consumer = RedisConsumer(redis_url, driver="asyncio")
    if is_trio(anyio_backend):
        with pytest.raises(ConfigurationError, match="trio"):
            await consumer.start()
    else:
        await consumer.start()
    await consumer.stop()


def test_what_is_no_pubsub(redis_url: str) -> None:
    with client_of(redis_url) as client:
        with pytest.raises(ConfigurationError, match=r"RedisConsumer\(client\.pubsub\(\)\)"):
            RedisConsumer(client)
        with client.pubsub() as pubsub, pytest.raises(ConfigurationError, match="driver"):
            RedisConsumer(pubsub, driver="thread")
    with pytest.raises(ConfigurationError, match="not int"):
        RedisConsumer(3)
    with pytest.raises(ConfigurationError, match="driver"):
        RedisConsumer(redis_url, driver="curio")  # type: ignore[arg-type]  # the mistake
