"""What sending tells when things go wrong: nothing is sent twice, and what may have gone is called so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
import redis
import redis.asyncio

from dispytch.abc import Message, Receipt
from dispytch.errors import (
    BrokerError,
    BrokerUnreachableError,
    ConfigurationError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
    UnconfirmedError,
)
from dispytch.redis import RedisEventRoute, RedisProducer
from tests.redis.helpers import client_of, fake_server, is_trio, message, swallow_all, swallow_publish, unique, until
from tests.support import CANARY, PATIENCE, at_best, closed_port, texts

pytestmark = pytest.mark.anyio


@pytest.fixture
def limited_user(redis_url: str) -> Iterator[str]:
    """The URL of a user who may publish to ``allowed`` only."""
    name = unique("user")
    with client_of(redis_url) as client:
        client.execute_command("ACL", "SETUSER", name, "on", f">{CANARY}", "+@all", "&allowed")
        yield redis_url.replace("redis://", f"redis://{name}:{CANARY}@")
        client.execute_command("ACL", "DELUSER", name)


async def test_receipts_are_aligned(redis_url: str) -> None:
    producer = RedisProducer(redis_url)
    sent = [message(unique()) for _ in range(2345)]
    outcomes = await producer.send(sent, 10)
    assert outcomes == [Receipt(one.id, one.route.address, receivers=0) for one in sent]
    assert await producer.send([], 10) == []
    await producer.stop()
    await producer.stop()


async def test_concurrent_tasks_share_few_connections(redis_url: str) -> None:
    producer = RedisProducer(redis_url)
    channel = unique()
    outcomes: list[Any] = []

    async def send() -> None:
        outcomes.extend(await producer.send([message(channel)], 10))

    with client_of(redis_url) as client:
        before = len(client.client_list())
        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(send)
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        assert len(outcomes) == 300
        assert len(client.client_list()) <= before + 16
    await producer.stop()


async def test_max_connections_of_the_url(redis_url: str) -> None:
    producer = RedisProducer(redis_url + "?max_connections=2")
    with client_of(redis_url) as client:
        before = len(client.client_list())
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(producer.send, [message(unique())], 10)
        assert len(client.client_list()) <= before + 2
    await producer.stop()


async def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    producer = RedisProducer(f"redis://:{CANARY}@127.0.0.1:{port}")
    start = time.monotonic()
    (outcome,) = await producer.send([message("x")], 5)
    assert time.monotonic() - start < 2
    assert isinstance(outcome, EmitUnreachableError)
    assert f"127.0.0.1:{port}" in str(outcome)
    assert "check the address" in str(outcome)
    assert isinstance(outcome.__cause__, redis.ConnectionError)
    assert CANARY not in texts(outcome)
    with pytest.raises(BrokerUnreachableError, match=str(port)) as raised:
        await producer.start()
    assert CANARY not in texts(raised.value)
    await producer.stop()


async def test_a_host_that_does_not_exist() -> None:
    producer = RedisProducer("redis://no-such-host.invalid")
    with anyio.fail_after(20):
        (outcome,) = await producer.send([message("x")], 5)
    assert isinstance(outcome, EmitUnreachableError)
    assert "no-such-host.invalid:6379" in str(outcome)
    await producer.stop()


async def test_a_server_that_never_answers() -> None:
    with fake_server(swallow_all) as server:
        producer = RedisProducer(server.url)
        start = time.monotonic()
        (outcome,) = await producer.send([message("x")], 0.3)
        assert 0.25 < time.monotonic() - start < 1.5
        assert isinstance(outcome, EmitTimeoutError)
        assert "may have gone" in str(outcome)
        assert "0.3 s" in str(outcome)
        assert str(server.port) in str(outcome)
        assert len(server.named(b"PUBLISH")) <= 1
        await producer.stop()


async def test_a_server_that_hangs_before_it_lets_in() -> None:
    with fake_server(swallow_all) as server:
        producer = RedisProducer(f"redis://:{CANARY}@127.0.0.1:{server.port}")
        start = time.monotonic()
        (outcome,) = await producer.send([message("x")], 0.3)
        assert time.monotonic() - start < 1.5
        assert isinstance(outcome, EmitUnreachableError)  # known not to have gone
        assert server.named(b"PUBLISH") == []
        assert CANARY not in texts(outcome)
        await producer.stop()


@pytest.mark.parametrize("ready_made", [False, True])
async def test_a_lost_reply_is_never_followed_by_another_try(anyio_backend: tuple[str, Any], ready_made: bool) -> None:
    with fake_server(swallow_publish) as server:
        client: Any = None
        if ready_made:  # such a client retries ten times by itself
            kind = redis.Redis if is_trio(anyio_backend) else redis.asyncio.Redis
            client = kind.from_url(server.url, socket_timeout=0.05)
        producer = RedisProducer(client or server.url)
        (outcome,) = await producer.send([message("x")], 0.4)
        assert isinstance(outcome, EmitTimeoutError)
        assert len(server.named(b"PUBLISH")) == 1
        await producer.stop()


async def test_a_connection_that_is_reset_before_the_reply() -> None:
    with fake_server(swallow_publish) as server:
        producer = RedisProducer(server.url)
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.extend(await producer.send([message("x"), message("y")], None))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until(lambda: len(server.named(b"PUBLISH")) == 2)
            server.cut()
        assert [type(outcome) for outcome in outcomes] == [EmitTimeoutError] * 2
        assert "broke off" in str(outcomes[0])
        assert len(server.named(b"PUBLISH")) == 2
        await producer.stop()


async def test_what_has_an_answer_and_what_has_not() -> None:
    def answer(command: list[bytes]) -> bytes | None:
        if command[0] != b"PUBLISH":
            return b"+OK\r\n"
        return {b"good": b":3\r\n", b"bad": b"-OOM command not allowed\r\n"}.get(command[1])

    with fake_server(answer) as server:
        producer = RedisProducer(server.url)
        sent = [message(name) for name in ("good", "bad", "good", "lost", "lost")]
        sent += [message("later", b"x" * 1_200_000), message("never", b"x" * 1_200_000)]
        outcomes = await producer.send(sent, 0.5)
        assert [type(outcome) for outcome in outcomes] == [
            Receipt,
            EmitRejectedError,
            Receipt,
            EmitTimeoutError,
            EmitTimeoutError,
            EmitUnreachableError,
            EmitUnreachableError,
        ]
        assert isinstance(outcomes[0], Receipt)
        assert outcomes[0].receivers == 3
        assert "not allowed" in str(outcomes[1])
        assert "not sent" in str(outcomes[5])
        assert server.named(b"PUBLISH")[-1][1] == b"lost"
        await producer.stop()


@pytest.mark.parametrize(
    "reply",
    [
        "READONLY You can't write against a read only replica.",
        "NOAUTH Authentication required.",
        "LOADING Redis is loading the dataset in memory",
        "ERR max number of clients reached",
        "NOPERM no",
        "OOM command not allowed",
    ],
)
async def test_what_the_server_refuses(reply: str) -> None:
    def answer(command: list[bytes]) -> bytes:
        return f"-{reply}\r\n".encode() if command[0] == b"PUBLISH" else b"+OK\r\n"

    with fake_server(answer) as server:
        producer = RedisProducer(server.url)
        outcomes = await producer.send([message("x"), message("y")], 5)
        assert [type(outcome) for outcome in outcomes] == [EmitRejectedError] * 2
        assert "refused" in str(outcomes[0])
        await producer.stop()


async def test_replies_that_quote_are_cut() -> None:
    def answer(command: list[bytes]) -> bytes:
        return b"-ERR unknown command '%b', with args beginning with: '%b' \r\n" % (command[0], command[-1])

    with fake_server(answer) as server:
        producer = RedisProducer(server.url)
        (outcome,) = await producer.send([message("x", CANARY.encode())], 5)
        assert isinstance(outcome, EmitRejectedError)
        assert "unknown command" in str(outcome)
        assert CANARY not in texts(outcome)
        await producer.stop()
        producer = RedisProducer(f"redis://:{CANARY}@127.0.0.1:{server.port}")
        (outcome,) = await producer.send([message("x")], 5)
        assert isinstance(outcome, EmitRejectedError)
        assert CANARY not in texts(outcome)
        with pytest.raises(BrokerError) as raised:
            await producer.start()
        assert CANARY not in texts(raised.value)
        await producer.stop()


async def test_a_start_with_a_server_that_never_answers() -> None:
    with fake_server(swallow_all) as server:
        producer = RedisProducer(f"{server.url}?socket_connect_timeout=0.3")
        for start in (producer.start, partial(anyio.to_thread.run_sync, producer.blocking().start)):
            begin = time.monotonic()
            with pytest.raises(BrokerUnreachableError, match=r"did not answer in time; check the address"):
                await start()
            assert time.monotonic() - begin < 1.5
        await producer.stop()


@pytest.mark.parametrize("reply", [b"+PONG\r\n", b"-NOPERM this user may not ping\r\n"])
async def test_a_start_is_content_with_any_answer(reply: bytes) -> None:
    with fake_server(lambda command: reply) as server:
        producer = RedisProducer(server.url)
        await producer.start()
        await producer.stop()


async def test_what_answers_is_not_redis() -> None:
    with fake_server(lambda command: b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        producer = RedisProducer(server.url)
        (outcome,) = await producer.send([message("x")], 5)
        assert isinstance(outcome, EmitTimeoutError)
        with pytest.raises(BrokerUnreachableError, match="check the address"):
            await producer.start()
        await producer.stop()


async def test_a_wrong_password(limited_user: str) -> None:
    producer = RedisProducer(limited_user.replace(CANARY, CANARY + "-wrong"))
    (outcome,) = await producer.send([message("allowed")], 5)
    assert isinstance(outcome, EmitRejectedError)
    assert not isinstance(outcome, BrokerUnreachableError)
    assert "password" in str(outcome)
    assert CANARY not in texts(outcome) + repr(producer)
    with pytest.raises(BrokerError, match="password"):
        await producer.start()
    await producer.stop()


async def test_a_user_who_may_not(limited_user: str) -> None:
    producer = RedisProducer(limited_user)
    refused, done = await producer.send([message("forbidden"), message("allowed")], 5)
    assert isinstance(refused, EmitRejectedError)
    assert isinstance(done, Receipt)
    await producer.stop()


async def test_connections_that_the_server_has_closed_are_not_used(redis_url: str) -> None:
    name = unique("idle")
    producer = RedisProducer(f"{redis_url}?client_name={name}")
    assert isinstance((await producer.send([message("x")], 5))[0], Receipt)
    with client_of(redis_url) as client:
        for _ in range(3):
            (ours,) = [found for found in client.client_list() if found["name"] == name]
            client.client_kill_filter(_id=ours["id"])
            (outcome,) = await producer.send([message("x")], 5)
            assert isinstance(outcome, Receipt)
    await producer.stop()


async def test_cancelled_sends_leave_nothing_behind() -> None:
    with fake_server(swallow_publish) as server:
        producer = RedisProducer(server.url)
        with anyio.move_on_after(0.1) as scope:
            await producer.send([message("x")], None)
        assert scope.cancelled_caught
        server.answer = lambda command: b":1\r\n"
        (outcome,) = await producer.send([message("y")], 5)
        assert isinstance(outcome, Receipt)  # not the reply to what was cancelled

        async def stop() -> float:
            await producer.send([message("z")], PATIENCE)
            start = time.monotonic()
            await producer.stop()
            return time.monotonic() - start

        await at_best(1, stop)


async def test_a_stop_waits_for_confirmations() -> None:
    with fake_server(swallow_publish) as server:
        producer = RedisProducer(server.url)
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.extend(await producer.send([message("x")], 0.3))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until(lambda: server.named(b"PUBLISH"))
            await producer.stop()
            await until(lambda: outcomes)
        assert isinstance(outcomes[0], EmitTimeoutError)


async def test_a_stop_tells_what_is_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.redis.blocking._FLUSH_TIMEOUT", 0.1)
    monkeypatch.setattr("dispytch.redis.loops._FLUSH_TIMEOUT", 0.1)
    with fake_server(swallow_publish) as server:
        producer = RedisProducer(server.url)
        outcomes: list[Any] = []

        async def send() -> None:
            outcomes.extend(await producer.send([message("x"), message("y")], 60))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until(lambda: len(server.named(b"PUBLISH")) == 2)
            with pytest.raises(UnconfirmedError, match="2 events") as raised:
                await producer.stop()
            assert raised.value.count == 2
        assert [type(outcome) for outcome in outcomes] == [EmitTimeoutError] * 2


async def test_waiting_for_a_connection_counts() -> None:
    with fake_server(swallow_publish) as server:
        producer = RedisProducer(server.url + "?max_connections=1")
        async with anyio.create_task_group() as group:
            group.start_soon(producer.send, [message("x")], 60)
            await until(lambda: server.named(b"PUBLISH"))
            (outcome,) = await producer.send([message("y")], 0.2)
            group.cancel_scope.cancel()
        assert isinstance(outcome, EmitUnreachableError)
        assert len(server.named(b"PUBLISH")) == 1
        await producer.stop()


async def test_an_asyncio_client(redis_url: str, anyio_backend: tuple[str, Any]) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    producer = RedisProducer(client)
    if is_trio(anyio_backend):
        with pytest.raises(ConfigurationError, match="asyncio only"):
            await producer.send([message("x")], 5)
        with pytest.raises(ConfigurationError, match="asyncio only"):
            await producer.start()
        return
    assert isinstance((await producer.send([message("x")], 5))[0], Receipt)
    await producer.stop()
    assert await client.ping()
    await client.aclose()
    with pytest.raises(ConfigurationError, match="blocking code"):
        producer.blocking()


async def test_a_blocking_client_works_on_every_loop(redis_url: str) -> None:
    with client_of(redis_url) as client:
        producer = RedisProducer(client)
        assert isinstance((await producer.send([message("x")], 5))[0], Receipt)
        await producer.stop()
        assert client.ping()


async def test_a_blocking_client_at_a_closed_port_does_not_try_for_long() -> None:
    async def send() -> float:
        producer = RedisProducer(client_of(f"redis://127.0.0.1:{closed_port()}"))
        start = time.monotonic()
        (outcome,) = await producer.send([message("x")], 5)
        assert isinstance(outcome, EmitUnreachableError)
        took = time.monotonic() - start
        await producer.stop()
        return took

    await at_best(1, send)


def test_loops_one_after_the_other(redis_url: str) -> None:
    producer = RedisProducer(redis_url)

    async def emit() -> None:
        assert isinstance((await producer.send([message("x")], 5))[0], Receipt)
        await producer.stop()

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(emit, backend=backend)


@pytest.mark.parametrize(
    ("channel", "payload", "text"),
    [("", b"", "empty"), ("\ud800", b"", "surrogate"), ("x", None, "null")],
)
async def test_what_is_refused_before_it_is_sent(channel: str, payload: bytes | None, text: str) -> None:
    producer = RedisProducer("redis://127.0.0.1")
    with pytest.raises(EmitRejectedError, match=text):
        producer.check(Message("id", RedisEventRoute(channel), payload))
