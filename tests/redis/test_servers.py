"""Servers with TLS and with passwords: what is let in, what is not, and what is said about it."""

from __future__ import annotations

import gc
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch import sync as blocking
from dispytch.abc import Receipt
from dispytch.errors import BrokerError, BrokerUnreachableError, EmitRejectedError, EmitUnreachableError
from dispytch.redis import RedisStreamConsumer, RedisStreamProducer
from tests.certificates import Certificates
from tests.conftest import in_ci
from tests.redis import helpers
from tests.redis.helpers import blocking_until, client_of, reader_threads, unique, until
from tests.redis.streams import helpers as streams
from tests.support import CANARY, PATIENCE, closed_port, texts

SCHEMES = ["redis", "redis+stream"]
"""Pub/Sub and Streams."""


@contextmanager
def running(
    program: str, folder: Path, port: int, *arguments: str, context: ssl.SSLContext | None = None
) -> Iterator[None]:
    """A server of the test's own."""
    command = [program, "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + 10
            while not _answers(port, context):
                assert server.poll() is None, "the server does not start"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.02)
            yield
        finally:
            server.kill()


def _answers(port: int, context: ssl.SSLContext | None) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as plain:
        if context is None:
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            secure.sendall(b"PING\r\n")
            return secure.recv(1) == b"+"
    return False


class SecureServer(NamedTuple):
    port: int
    certificates: Certificates

    def url(self, scheme: str, *options: str, host: str = "localhost") -> str:
        return f"{scheme.replace('redis', 'rediss')}://{host}:{self.port}/0?" + "&".join(options)

    @property
    def authority(self) -> str:
        return f"ssl_ca_certs={self.certificates.authority}"

    @property
    def client(self) -> str:
        certificate = self.certificates.client
        return f"ssl_certfile={certificate}&ssl_keyfile={self.certificates.key(certificate)}"


def _secure(program: str, folder: Path, *, clients: str) -> Iterator[SecureServer]:
    if shutil.which("openssl") is None and not in_ci():
        pytest.skip("openssl is not installed")
    found = Certificates(folder)
    port = closed_port()
    arguments = [
        *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", clients),
        *("--tls-ca-cert-file", str(found.authority)),
        *("--tls-cert-file", str(found.server), "--tls-key-file", str(found.key(found.server))),
    ]
    context = ssl.create_default_context(cafile=str(found.authority))
    context.load_cert_chain(found.client, found.key(found.client))
    with running(program, folder, port, *arguments, context=context):
        yield SecureServer(port, found)


@pytest.fixture(scope="module")
def secure(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    yield from _secure(redis_server, tmp_path_factory.mktemp("tls"), clients="no")


@pytest.fixture(scope="module")
def mutual(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """One that lets in only who shows a certificate."""
    yield from _secure(redis_server, tmp_path_factory.mktemp("mutual"), clients="yes")


@pytest.fixture(scope="module")
def guarded(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with a password."""
    port = closed_port()
    with running(redis_server, tmp_path_factory.mktemp("guarded"), port, "--port", str(port), "--requirepass", CANARY):
        yield port


def numbered(topic: str) -> Any:
    class Numbered(EventBase):
        __topic__ = topic
        number: int
        padding: str = ""

    return Numbered


def dispatcher_for(url: str, topic: str, handled: list[int], kind: Any = EventDispatcher) -> Any:
    dispatcher: EventDispatcher = kind(consumer_from_url(url, "group"))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        handled.append(event.body["number"])

    return dispatcher


def subscription_for(scheme: str, name: str) -> Any:
    return (streams if "stream" in scheme else helpers).subscription(name)


def message_for(scheme: str, name: str) -> Any:
    return (streams if "stream" in scheme else helpers).message(name)


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_tls(secure: SecureServer, scheme: str) -> None:
    url, topic = secure.url(scheme, secure.authority), unique()
    handled: list[int] = []
    event = numbered(topic)
    async with dispatcher_for(url, topic, handled).lifespan(), EventEmitter(producer_from_url(url)) as emitter:
        await emitter.emit(event(number=0))
        await emitter.emit_many(event(number=number, padding="x" * 5_000) for number in range(1, 200))
        await until(lambda: len(handled) == 200)
    assert sorted(handled) == list(range(200))
    assert reader_threads() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tls_from_blocking_code(secure: SecureServer, scheme: str, backend: Any) -> None:
    url, topic = secure.url(scheme, secure.authority), unique()
    handled: list[int] = []
    event = numbered(topic)
    dispatcher = dispatcher_for(url, topic, handled, partial(blocking.EventDispatcher, backend=backend))
    with dispatcher, blocking.EventEmitter(producer_from_url(url)) as emitter:
        emitter.emit_many(event(number=number, padding="x" * 5_000) for number in range(200))
        blocking_until(lambda: len(handled) == 200)
    assert sorted(handled) == list(range(200))


@pytest.mark.parametrize("use_uvloop", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tls_in_a_loop_that_ends_with_the_stop(secure: SecureServer, scheme: str, use_uvloop: bool) -> None:
    url, name = secure.url(scheme, secure.authority), unique()

    async def run() -> None:
        producer, consumer = producer_from_url(url), consumer_from_url(url, "group")
        await consumer.start([subscription_for(scheme, name)])
        await producer.send([message_for(scheme, name)], 5)
        with anyio.fail_after(PATIENCE):
            await consumer.receive(10)
        await producer.stop()
        await consumer.stop()

    for _ in range(5):
        anyio.run(run, backend_options={"use_uvloop": use_uvloop})
        gc.collect()  # tells of connections that are still open


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wrong", ["no authority", "another authority", "another host", "no TLS"])
async def test_tls_that_does_not_hold(secure: SecureServer, mutual: SecureServer, scheme: str, wrong: str) -> None:
    url = {
        "no authority": secure.url(scheme),
        "another authority": secure.url(scheme, mutual.authority),
        "another host": secure.url(scheme, secure.authority, host="127.0.0.1"),
        "no TLS": f"{scheme}://localhost:{secure.port}",
    }[wrong].replace("://", f"://:{CANARY}@")
    await refused(url, scheme, EmitUnreachableError, BrokerUnreachableError, "TLS")


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_tls_where_there_is_none(redis_url: str, scheme: str) -> None:
    url = redis_url.replace("redis://", f"{scheme.replace('redis', 'rediss')}://") + "?socket_connect_timeout=0.2"
    await refused(url, scheme, EmitUnreachableError, BrokerUnreachableError, "TLS")


async def refused(url: str, scheme: str, outcome: type[Exception], error: type[Exception], text: str) -> None:
    """Neither side of either world is let in, and all say why, without the password."""
    producer, consumer = producer_from_url(url), consumer_from_url(url, "group")
    told: list[BaseException | None] = []
    for found in (
        *await producer.send([message_for(scheme, "x")], 5),
        *await anyio.to_thread.run_sync(producer.blocking().send, [message_for(scheme, "x")], 5),
    ):
        assert type(found) is outcome, found
        told.append(found)
    with pytest.raises(error, match=text) as raised:
        await consumer.start([subscription_for(scheme, "x")])
    assert type(raised.value) is error
    with pytest.raises(error, match=text) as raised_too:
        await producer.start()
    told += [raised.value, raised_too.value]
    assert CANARY not in "".join(map(texts, told)) + repr(producer) + repr(consumer)
    assert all(text in str(one) for one in told)
    await producer.stop()
    await consumer.stop()
    assert reader_threads() == []


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_asks_for_certificates(mutual: SecureServer, scheme: str) -> None:
    url = mutual.url(scheme, mutual.authority, mutual.client)
    producer, consumer, name = producer_from_url(url), consumer_from_url(url, "group"), unique()
    await consumer.start([subscription_for(scheme, name)])
    (outcome,) = await producer.send([message_for(scheme, name)], 5)
    assert isinstance(outcome, Receipt)
    with anyio.fail_after(PATIENCE):
        assert len(await consumer.receive(10)) == 1
    await producer.stop()
    await consumer.stop()
    url = mutual.url(scheme, mutual.authority)
    producer, consumer = producer_from_url(url), consumer_from_url(url, "group")
    (outcome,) = await producer.send([message_for(scheme, name)], 5)
    assert isinstance(outcome, Exception)
    with pytest.raises(BrokerUnreachableError):
        await consumer.start([subscription_for(scheme, name)])
    await producer.stop()
    await consumer.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_passwords(guarded: int, scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    url, topic = f"{scheme}://:{CANARY}@127.0.0.1:{guarded}", unique()
    handled: list[int] = []
    with caplog.at_level("DEBUG"):
        async with dispatcher_for(url, topic, handled).lifespan(), EventEmitter(producer_from_url(url)) as emitter:
            await emitter.emit(numbered(topic)(number=1))
            await until(lambda: handled)
        await refused(
            url.replace(":" + CANARY, f"default:{CANARY}-wrong"), scheme, EmitRejectedError, BrokerError, "password"
        )
        no_password = f"{scheme}://127.0.0.1:{guarded}"
        producer = producer_from_url(no_password)
        (outcome,) = await producer.send([message_for(scheme, topic)], 5)
        assert isinstance(outcome, EmitRejectedError)
        assert "give user and password in the URL" in str(outcome)
        await producer.stop()
        consumer = consumer_from_url(no_password, "group")
        with pytest.raises(BrokerError, match="give user and password in the URL") as raised:
            await consumer.start([subscription_for(scheme, topic)])
        assert not isinstance(raised.value, BrokerUnreachableError)
        await consumer.stop()
    assert CANARY not in caplog.text


@pytest.mark.anyio
async def test_a_server_that_is_killed_and_comes_back(redis_server: str, tmp_path: Path) -> None:
    """Nothing that was confirmed is lost, as far as the server itself keeps it."""
    port, topic = closed_port(), unique()
    arguments = ("--port", str(port), "--appendonly", "yes", "--appendfsync", "always")
    url = f"redis://127.0.0.1:{port}"
    handled: list[int] = []
    dispatcher = EventDispatcher(RedisStreamConsumer(url, group_id="group", claim_idle=2))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        handled.append(event.body["number"])

    event = numbered(topic)
    async with AsyncExitStack() as stack:
        with running(redis_server, tmp_path, port, *arguments):
            await stack.enter_async_context(dispatcher.lifespan())
            async with EventEmitter(RedisStreamProducer(url)) as emitter:
                for number in range(100):
                    await emitter.emit(event(number=number))
        with running(redis_server, tmp_path, port, *arguments):
            async with EventEmitter(RedisStreamProducer(url)) as emitter:
                await emitter.emit_many(event(number=number) for number in range(100, 200))
            await until(lambda: set(handled) == set(range(200)))
            await stack.aclose()
            with client_of(url) as client:
                assert client.xpending(topic, "group")["pending"] == 0
