"""What a consumer receives and settles, and its connections: made, lost, made anew, and ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from dispytch.abc import Outcome
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.redis import RedisStreamConsumer
from tests.faults.proxy import proxy_to
from tests.redis.helpers import client_of, fake_server, is_trio, reader_threads, unique, until
from tests.redis.streams.helpers import (
    GROUP,
    consumer_of,
    fill,
    leave_pending,
    message,
    names,
    nothing_comes,
    payloads,
    pending,
    settled,
    subscription,
    take,
)
from tests.support import CANARY, PATIENCE, at_best, closed_port, texts

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["default", "thread"])
def driver(request: pytest.FixtureRequest) -> Any:
    """The connections as the loop has them, and in threads."""
    return None if request.param == "default" else "thread"


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


async def test_receive_and_acknowledge(redis_url: str, client: Any, driver: Any) -> None:
    stream = unique()
    ids = fill(client, stream, 500)
    consumer = consumer_of(redis_url, driver=driver)
    await consumer.start([subscription(stream)])
    found = await take(consumer, 500, limit=70)
    assert payloads(found) == list(range(500))
    assert [found[0].position, found[0].source] == [ids[0].decode(), stream]
    assert found[0].timestamp_ms == int(ids[0].split(b"-")[0])
    assert pending(client, stream) == 500
    assert await consumer.settle(settled(found)) == []
    assert pending(client, stream) == 0
    assert names(client, stream) != []
    await consumer.stop()
    await consumer.stop()
    assert names(client, stream) == []  # a name of its own is not left behind
    assert reader_threads() == []


async def test_no_more_is_taken_than_was_asked_for(redis_url: str, client: Any) -> None:
    streams = [unique() for _ in range(4)]
    for stream in streams:
        fill(client, stream, 100)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream) for stream in streams])
    found = await take(consumer, 1, limit=8)
    assert sum(pending(client, stream) for stream in streams) == len(found) == 8
    await consumer.stop()


async def test_one_busy_stream_among_many(redis_url: str, client: Any) -> None:
    streams = [unique() for _ in range(10)]
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream) for stream in streams])
    fill(client, streams[3], 1000)
    found = await consumer.receive(100)
    assert len(found) == 100
    assert payloads([*found, *await take(consumer, 900)]) == list(range(1000))
    await consumer.stop()


async def test_many_streams(redis_url: str, client: Any, driver: Any) -> None:
    streams = [unique() for _ in range(20)]
    consumer = consumer_of(redis_url, driver=driver)
    await consumer.start([subscription(stream) for stream in streams])
    for stream in streams:
        fill(client, stream, 10)
    found = await take(consumer, 200, limit=7)
    for stream in streams:
        assert payloads([one for one in found if one.source == stream]) == list(range(10))
    assert await consumer.settle(settled(found)) == []
    assert all(pending(client, stream) == 0 for stream in streams)
    await consumer.stop()


async def test_a_cancelled_receive_loses_nothing(redis_url: str, client: Any, driver: Any) -> None:
    stream = unique()
    consumer = consumer_of(redis_url, driver=driver)
    await consumer.start([subscription(stream)])
    found: list[Any] = []
    sent = 0
    with anyio.fail_after(20):
        while len(found) < 200:
            if sent < 200:
                client.xadd(stream, {"data": sent, "padding": b"x" * 50_000})
                sent += 1
            with anyio.move_on_after(0.0005 * (sent % 7)):
                found += await consumer.receive(5)
    assert payloads(found) == list(range(200))
    await consumer.stop()
    assert pending(client, stream) == 200
    consumer = consumer_of(redis_url)  # what was received and not settled is there for others, at once
    await consumer.start([subscription(stream)])
    assert sorted(payloads(await take(consumer, 200, seconds=20))) == list(range(200))
    await consumer.stop()


async def test_a_waiting_receive_is_cancelled_promptly_and_takes_nothing_later(
    redis_url: str, client: Any, driver: Any
) -> None:
    stream = unique()
    consumer = consumer_of(redis_url, driver=driver)
    await consumer.start([subscription(stream)])

    async def receive() -> float:
        late: list[float] = []
        for _ in range(5):
            with anyio.move_on_after(0.02) as scope:
                await consumer.receive(10)
            assert scope.cancelled_caught
            late.append(anyio.current_time() - scope.deadline)
        return sorted(late)[2]

    await at_best(0.15, receive)
    client.xadd(stream, {"data": "1"})
    await anyio.sleep(0.05)  # long enough for a read that is still under way
    assert pending(client, stream) == 0
    await consumer.stop()


async def test_own_entries_come_back_after_a_crash(redis_url: str, client: Any, driver: Any) -> None:
    stream = unique()
    fill(client, stream, 260)
    leave_pending(client, stream, "me", 250)
    consumer = consumer_of(redis_url, consumer="me", driver=driver)
    await consumer.start([subscription(stream)])
    found = await take(consumer, 260)
    assert payloads(found) == list(range(260))
    assert await consumer.settle(settled(found)) == []
    assert pending(client, stream) == 0
    await consumer.stop()
    assert names(client, stream) == ["me"]  # a name that was given stays


async def test_a_lost_connection(redis_url: str, client: Any, driver: Any) -> None:
    """What is held here is not delivered twice; what was lost with the connection is delivered."""
    stream, name = unique(), unique("name")
    fill(client, stream, 10)
    consumer = consumer_of(f"{redis_url}?client_name={name}", consumer="me", driver=driver)
    await consumer.start([subscription(stream)])
    held = await take(consumer, 4, limit=4)
    leave_pending(client, stream, "me", 3)  # as if the reply had been lost
    for _ in range(2):
        client.client_kill_filter(_id=reader_id(client, name))
        with pytest.raises(BrokerUnreachableError):
            await consumer.receive(10)
        with pytest.raises(BrokerUnreachableError):
            await consumer.receive(10)
        await consumer.start([subscription(stream)])
    found = await take(consumer, 6)
    assert payloads(found) == [4, 5, 6, 7, 8, 9]
    assert await consumer.settle(settled([*held, *found])) == []
    assert pending(client, stream) == 0
    await consumer.stop()


def reader_id(client: Any, name: str) -> int:
    """The connection that reads; it is the one made last."""
    return max(int(found["id"]) for found in client.client_list() if found["name"] == name)


async def test_a_cut_during_a_read(redis_url: str, client: Any, driver: Any) -> None:
    stream, name = unique(), unique("name")
    consumer = consumer_of(f"{redis_url}?client_name={name}", driver=driver)
    await consumer.start([subscription(stream)])
    errors: list[BrokerError] = []

    async def receive() -> None:
        try:
            await consumer.receive(10)
        except BrokerError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        await until(lambda: "xreadgroup" in [c["cmd"] for c in client.client_list() if c["name"] == name])
        client.client_kill_filter(_id=reader_id(client, name))
    assert isinstance(errors[0], BrokerUnreachableError)
    await consumer.start([subscription(stream)])
    fill(client, stream, 3)
    assert payloads(await take(consumer, 3)) == [0, 1, 2]
    await consumer.stop()


async def test_acknowledging_heals_by_itself(redis_url: str, client: Any, driver: Any) -> None:
    stream, name = unique(), unique("name")
    fill(client, stream, 3)
    consumer = consumer_of(f"{redis_url}?client_name={name}", driver=driver)
    await consumer.start([subscription(stream)])
    for one in await take(consumer, 3):
        for found in client.client_list():
            if found["name"] == name:
                client.client_kill_filter(_id=found["id"])
        assert await consumer.settle(settled([one])) == []
    assert pending(client, stream) == 0
    await consumer.stop()


async def test_acknowledgements_that_do_not_arrive(redis_url: str, client: Any, monkeypatch: Any) -> None:
    stream = unique()
    dead = unique("dead")
    fill(client, stream, 2)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream, dead)])
    one, two = await take(consumer, 2)
    outcomes = settled([one], Outcome.DEAD_LETTER, [message(dead, b"0")]) + settled([two])
    control = consumer._control
    assert control is not None
    call = control.call

    async def broken(*commands: bytes, timeout: float) -> Any:
        raise BrokerUnreachableError("not now")

    monkeypatch.setattr(control, "call", broken)
    for _ in range(2):
        failed = await consumer.settle(outcomes)
        assert [(item, str(error)) for item, error in failed] == [(item, "not now") for item in outcomes]
    monkeypatch.setattr(control, "call", call)
    assert await consumer.settle(outcomes) == []
    assert pending(client, stream) == 0
    assert client.xlen(dead) == 1  # it was written, and is not written again
    await consumer.stop()


async def test_dead_letters_that_cannot_be_written(redis_url: str, client: Any) -> None:
    stream, dead = unique(), unique("dead")
    fill(client, stream, 2)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream, dead)])
    client.set(dead, "no stream")
    one, two = await take(consumer, 2)
    outcomes = settled([one], Outcome.DEAD_LETTER, [message(dead, b"0")]) + settled([two])
    ((item, error),) = await consumer.settle(outcomes)
    assert item is outcomes[0]
    assert "another name" in str(error)
    assert pending(client, stream) == 1
    client.delete(dead)
    assert await consumer.settle([item]) == []
    assert pending(client, stream) == 0
    assert [fields for _, fields in client.xrange(dead)] == [{b"data": b"0"}]
    await consumer.stop()


async def test_a_dead_letter_stream_that_is_none(redis_url: str, client: Any) -> None:
    dead = unique("dead")
    client.set(dead, "no stream")
    consumer = consumer_of(redis_url)
    with pytest.raises(BrokerError, match="dead_letter="):
        await consumer.start([subscription(unique(), dead)])
    await consumer.stop()
    assert reader_threads() == []


async def test_a_stream_that_is_none(redis_url: str, client: Any) -> None:
    stream = unique()
    client.set(stream, "no stream")
    consumer = consumer_of(redis_url)
    with pytest.raises(BrokerError, match="something else"):
        await consumer.start([subscription(stream)])
    client.delete(stream)
    await consumer.start([subscription(stream)])
    client.set(stream, "no stream")
    with pytest.raises(BrokerError) as raised:
        await take(consumer, 1)
    assert not isinstance(raised.value, BrokerUnreachableError)
    await consumer.stop()


@pytest.mark.parametrize("start_from", ["earliest", "latest"])
async def test_where_a_new_group_begins(redis_url: str, client: Any, start_from: Any) -> None:
    stream = unique()
    fill(client, stream, 3)
    consumer = consumer_of(redis_url, start_from=start_from)
    await consumer.start([subscription(stream)])
    client.xadd(stream, {"data": "3"})
    found = await take(consumer, 4 if start_from == "earliest" else 1)
    assert payloads(found) == ([0, 1, 2, 3] if start_from == "earliest" else [3])
    await consumer.stop()


async def test_starting_again_changes_nothing(redis_url: str, client: Any) -> None:
    stream = unique()
    consumer = consumer_of(redis_url)
    await consumer.start()
    with pytest.raises(ConfigurationError, match="subscriptions"):
        await consumer.receive(1)
    await consumer.start([subscription(stream)])
    reader = consumer._reader
    await consumer.start([subscription(stream)])
    await consumer.start()
    assert consumer._reader is reader
    fill(client, stream, 1)
    assert len(await take(consumer, 1)) == 1
    await consumer.stop()
    assert reader_threads() == []


async def test_not_started(redis_url: str) -> None:
    consumer = consumer_of(redis_url)
    with pytest.raises(ConfigurationError, match="start"):
        await consumer.receive(1)
    assert await consumer.settle([]) == []
    await consumer.stop()


async def test_used_again_after_a_stop(redis_url: str, client: Any) -> None:
    consumer = consumer_of(redis_url)
    stale: list[Any] = []
    for _ in range(3):
        stream = unique()
        fill(client, stream, 2)
        await consumer.start([subscription(stream)])
        assert await consumer.settle(settled(stale)) == []
        stale = await take(consumer, 2)
        await consumer.stop()
    assert await consumer.settle(settled(stale)) == []


async def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    consumer = consumer_of(f"redis://:{CANARY}@127.0.0.1:{port}")
    with pytest.raises(BrokerUnreachableError, match=str(port)) as raised:
        await consumer.start([subscription("x")])
    assert "check the address" in str(raised.value)
    assert CANARY not in texts(raised.value) + repr(consumer)
    await consumer.stop()
    assert reader_threads() == []


async def test_a_host_that_does_not_exist() -> None:
    consumer = consumer_of("redis://no-such-host.invalid")
    with anyio.fail_after(20), pytest.raises(BrokerUnreachableError, match=r"no-such-host\.invalid:6379"):
        await consumer.start([subscription("x")])
    await consumer.stop()


async def test_a_wrong_password(redis_url: str) -> None:
    consumer = consumer_of(redis_url.replace("redis://", f"redis://nobody:{CANARY}@"))
    with pytest.raises(BrokerError, match="password") as raised:
        await consumer.start([subscription("x")])
    assert not isinstance(raised.value, BrokerUnreachableError)
    assert CANARY not in texts(raised.value) + repr(consumer)
    await consumer.stop()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"-NOPERM no\r\n", BrokerError),
        (b"-NOAUTH Authentication required.\r\n", BrokerError),
        (b"-LOADING not yet\r\n", BrokerUnreachableError),
        (b"-MISCONF no disk\r\n", BrokerUnreachableError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", BrokerUnreachableError),
        (b"-ERR unknown command 'XPENDING', with args beginning with: 'x'\r\n", BrokerError),
    ],
)
async def test_what_a_server_may_say(reply: bytes, error: type[BrokerError], driver: Any) -> None:
    with fake_server(lambda command: reply) as server:
        consumer = consumer_of(server.url, driver=driver)
        with pytest.raises(BrokerError) as raised:
            await consumer.start([subscription("x")])
        assert type(raised.value) is error
        assert "beginning with" not in texts(raised.value)
        await consumer.stop()
    assert reader_threads() == []


def without_entries(command: list[bytes]) -> bytes | None:
    """A server with a group and nothing in it."""
    answers = {
        b"CLIENT": b":7\r\n",
        b"XPENDING": b"*4\r\n:0\r\n$-1\r\n$-1\r\n*-1\r\n",
        b"XAUTOCLAIM": b"*2\r\n$3\r\n0-0\r\n*0\r\n",
    }
    return answers.get(command[0], b"*-1\r\n")


async def test_a_connection_that_died_half_way(monkeypatch: pytest.MonkeyPatch, driver: Any) -> None:
    monkeypatch.setattr("dispytch.redis.streams.reading._PATIENCE", 0.1)
    monkeypatch.setattr("dispytch.redis.streams.reading.LOOK_EVERY", 0.05)

    def answer(command: list[bytes]) -> bytes | None:
        return None if b"BLOCK" in command else without_entries(command)

    with fake_server(answer) as server:
        consumer = consumer_of(server.url, driver=driver)
        await consumer.start([subscription("x")])
        with anyio.fail_after(PATIENCE), pytest.raises(BrokerUnreachableError, match="not answered"):
            await consumer.receive(1)
        await consumer.stop()
    assert reader_threads() == []


async def test_a_dead_connection_is_not_waited_for_once_more(
    redis_url: str, client: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has the reader's connection die half-way has that of the acknowledgements die too, most often."""
    monkeypatch.setattr("dispytch.redis.streams.reading._PATIENCE", 0.1)
    monkeypatch.setattr("dispytch.redis.streams.reading.LOOK_EVERY", 0.05)
    for module in ("consumer", "settling"):  # whoever waits for the other connection waits longer than the test
        monkeypatch.setattr(f"dispytch.redis.streams.{module}._TIMEOUT", 600.0)
    stream = unique()
    subscriptions = [subscription(stream, f"{stream}.dead")]
    with proxy_to(redis_url) as proxy:
        consumer = consumer_of(proxy.url, driver=driver)
        await consumer.start(subscriptions)
        proxy.swallow()
        with anyio.fail_after(PATIENCE), pytest.raises(BrokerUnreachableError, match="not answered"):
            await consumer.receive(1)
        monkeypatch.setattr("dispytch.redis.streams.reading._PATIENCE", PATIENCE)
        fill(client, stream, 1)
        with anyio.fail_after(PATIENCE):
            await consumer.start(subscriptions)
            assert not await consumer.settle(settled(await take(consumer, 1)))
        assert pending(client, stream) == 0
        await consumer.stop()


async def test_a_loop_that_is_held_up_is_not_taken_for_a_lost_connection(
    redis_url: str, client: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.redis.streams.reading._PATIENCE", 0.01)
    monkeypatch.setattr("dispytch.redis.streams.reading.LOOK_EVERY", 0.1)
    stream = unique()
    consumer = consumer_of(redis_url, driver=driver)
    await consumer.start([subscription(stream)])
    found: list[Any] = []

    async def receive() -> None:
        found.extend(await consumer.receive(10))

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        await until(lambda: consumer._reader is not None and consumer._reader._understand is not None)
        await anyio.sleep(0.02)
        time.sleep(0.3)  # noqa: ASYNC251 - that is the point
        fill(client, stream, 1)
    assert payloads(found) == [0]
    await consumer.stop()


async def test_a_cancelled_start_leaves_nothing() -> None:
    with fake_server(lambda command: None) as server:
        consumer = consumer_of(server.url)
        with anyio.move_on_after(0.1) as scope:
            await consumer.start([subscription("x")])
        assert scope.cancelled_caught
        await consumer.stop()
    assert reader_threads() == []


async def test_a_server_that_is_gone_at_the_stop(redis_url: str, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    def answer(command: list[bytes]) -> bytes | None:
        if b">" in command:
            return b"*1\r\n*2\r\n$1\r\nx\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$4\r\ndata\r\n$1\r\n7\r\n"
        return without_entries(command)

    async def stop() -> float:
        with fake_server(answer) as server:
            consumer = consumer_of(server.url)
            await consumer.start([subscription("x")])
            assert payloads(await take(consumer, 1)) == [7]
            server.close()
            start = time.monotonic()
            await consumer.stop()
            return time.monotonic() - start

    await at_best(1, stop)
    assert "could not be handed back" in caplog.text
    assert reader_threads() == []


async def test_a_server_that_is_silent_at_an_idle_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dispytch.redis.streams.reading._UNBLOCK_TIMEOUT", 0.1)
    monkeypatch.setattr("dispytch.redis.streams.consumer._STOP_TIMEOUT", 0.1)
    silent = False
    with fake_server(lambda command: None if silent else without_entries(command)) as server:
        consumer = consumer_of(server.url)
        await consumer.start([subscription("x")])
        await nothing_comes(consumer, 0.05)
        silent = True
        await nothing_comes(consumer, 0.05)
        await consumer.stop()
    assert caplog.records == []  # nothing was held


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"group_id": ""}, "group_id"),
        ({"consumer": ""}, "consumer"),
        ({"claim_idle": 0}, "claim_idle"),
        ({"claim_idle": float("nan")}, "claim_idle"),
        ({"start_from": "middle"}, "start_from"),
        ({"prefetch": -1}, "prefetch"),
        ({"prefetch": "all"}, "prefetch"),
        ({"driver": "uvloop"}, "driver"),
    ],
)
async def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        consumer_of("redis://localhost", **options)


async def test_ready_made_clients(redis_url: str, client: Any) -> None:
    import redis.asyncio

    with pytest.raises(ConfigurationError, match="takes a URL or a"):
        RedisStreamConsumer(redis.asyncio.Redis(), group_id=GROUP)
    with pytest.raises(ConfigurationError, match="driver"):
        RedisStreamConsumer(client, group_id=GROUP, driver="asyncio")
    stream = unique()
    fill(client, stream, 3)
    consumer = RedisStreamConsumer(client, group_id=GROUP)
    await consumer.start([subscription(stream)])
    assert payloads(await take(consumer, 3)) == [0, 1, 2]
    await consumer.stop()
    assert client.ping()


async def test_the_driver_of_the_other_loop(redis_url: str, anyio_backend: tuple[str, Any]) -> None:
    consumer = consumer_of(redis_url, driver="asyncio")
    if is_trio(anyio_backend):
        with pytest.raises(ConfigurationError, match="asyncio only"):
            await consumer.start([subscription("x")])
    else:
        await consumer.start([subscription(unique())])
    await consumer.stop()


async def test_no_password_in_the_log(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        consumer = consumer_of(redis_url.replace("redis://", f"redis://nobody:{CANARY}@"))
        with pytest.raises(BrokerError) as raised:
            await consumer.start([subscription("x")])
        logging.getLogger("dispytch").error("failed", exc_info=raised.value)
        await consumer.stop()
    assert "refused" in caplog.text
    assert CANARY not in caplog.text
