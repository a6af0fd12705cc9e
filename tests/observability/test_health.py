"""Health over HTTP: what is told when, and what clients may do to the server."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from dispytch import Event, EventBase, EventDispatcher, sync
from dispytch.errors import ConfigurationError
from dispytch.health import (
    ConsumerHealth,
    Health,
    HealthServer,
    liveness,
    readiness,
    serve_health,
    serve_health_in_thread,
)
from dispytch.memory import MemoryBroker, MemoryConsumer
from tests.helpers import dispatcher_on, emit, until
from tests.observability.support import get, read_reply, request
from tests.support import closed_port

pytestmark = pytest.mark.anyio


class Job(EventBase):
    __topic__ = "jobs"
    number: int = 0


class Gate:
    """A dispatcher whose handler waits until it is told to go on."""

    def __init__(self, broker: MemoryBroker, **options: Any) -> None:
        self.began = anyio.Event()
        self.go = anyio.Event()
        self.dispatcher = dispatcher_on(broker, **options)

        @self.dispatcher.handler(Job)
        async def handle(event: Event[Job]) -> None:
            self.began.set()
            await self.go.wait()


@asynccontextmanager
async def served(*dispatchers: EventDispatcher, **options: Any) -> AsyncIterator[HealthServer]:
    with anyio.fail_after(30):
        async with serve_health(*dispatchers, port=0, **options) as server:
            yield server


# --- what is told


async def test_before_during_and_after_a_run(broker: MemoryBroker) -> None:
    gate = Gate(broker)
    async with served(gate.dispatcher) as server:
        reply = await get(server.port, "/readyz")
        assert (reply.status, reply.json["reasons"]) == (503, ["the dispatcher is not started"])
        assert (await get(server.port, "/livez")).status == 200
        async with gate.dispatcher.lifespan():
            reply = await get(server.port, "/readyz")
            assert (reply.status, reply.json["status"], reply.json["reasons"]) == (200, "ok", [])
            assert reply.headers["content-type"] == "application/json"
            await emit(broker, Job())
            await gate.began.wait()
            gate.dispatcher.request_stop()
            reply = await get(server.port, "/readyz")
            assert (reply.status, reply.json["reasons"]) == (503, ["the dispatcher is draining"])
            assert reply.json["dispatchers"][0]["in_flight"] == 1
            assert (await get(server.port, "/livez")).status == 200
            gate.go.set()
        assert (await get(server.port, "/readyz")).json["reasons"] == ["the dispatcher is not started"]


async def test_within_on_lifespan_it_answers_from_before_the_start_until_after_the_drain(broker: MemoryBroker) -> None:
    servers: list[HealthServer] = []

    def lifespan(dispatcher: EventDispatcher) -> HealthServer:
        servers.append(serve_health(dispatcher, port=0))
        return servers[-1]

    gate = Gate(broker, on_lifespan=lifespan)
    for _ in range(2):  # a dispatcher may be started again, and so may its server
        async with gate.dispatcher.lifespan():
            assert (await get(servers[-1].port, "/readyz")).status == 200
        with pytest.raises(OSError, match=r".+"):
            await get(servers[-1].port, "/readyz")


async def test_two_dispatchers_are_ready_when_both_are(broker: MemoryBroker) -> None:
    one, other = Gate(broker, group_id="one").dispatcher, Gate(broker, group_id="other").dispatcher
    async with served(one, other) as server, one.lifespan():
        assert (await get(server.port, "/readyz")).json["reasons"] == ["dispatcher 2 is not started"]
        async with other.lifespan():
            assert (await get(server.port, "/readyz")).status == 200


async def test_what_the_block_raises_goes_on_as_it_is(broker: MemoryBroker) -> None:
    with pytest.raises(ValueError, match="of the block"):
        async with served(Gate(broker).dispatcher):
            raise ValueError("of the block")
    with anyio.move_on_after(0.01) as scope:
        async with serve_health(Gate(broker).dispatcher, port=0):
            await anyio.sleep_forever()
    assert scope.cancelled_caught


CONSUMER = ConsumerHealth("<C>", True, 0, False, 1.0, ("a[0]",))
RUNNING = Health("running", connected=True)


@pytest.mark.parametrize(
    ("changed", "alive"),
    [
        ({}, True),
        ({"polled_ago": 61.0}, False),
        ({"polled_ago": 61.0, "is_full": True}, True),
        ({"polled_ago": 61.0, "connected": False}, True),  # the broker's trouble, which a new process would not mend
        ({"polled_ago": None}, True),
    ],
)
def test_alive_is_who_polls_or_need_not(changed: dict[str, Any], alive: bool) -> None:
    health = replace(RUNNING, consumers=(CONSUMER, replace(CONSUMER, **changed)))
    assert liveness([health], 60.0).ok is alive
    assert liveness([replace(health, state="draining")], 60.0).ok


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"connected": False}, "<C> is not connected"),
        ({"is_receiving": False, "assignment": ()}, "<C> has no partitions assigned yet"),
    ],
)
def test_ready_is_who_receives(changed: dict[str, Any], reason: str) -> None:
    assert readiness([replace(RUNNING, consumers=(CONSUMER,))]).ok
    assert readiness(
        [replace(RUNNING, consumers=(replace(CONSUMER, assignment=()),))]
    ).ok  # more members than partitions
    assert readiness([replace(RUNNING, consumers=(replace(CONSUMER, **changed),))]).reasons == [reason]


async def test_a_consumer_that_rests_is_full_until_it_is_asked_again(broker: MemoryBroker) -> None:
    """It is asked again when half of what it held is settled, so it polls for nothing while it holds three quarters."""
    go = [anyio.Event() for _ in range(20)]
    began: list[int] = []
    dispatcher = EventDispatcher(MemoryConsumer(broker), concurrency=4)

    @dispatcher.handler(Job)
    async def handle(event: Event[Job]) -> None:
        began.append(event.body.number)
        await go[event.body.number].wait()

    async with dispatcher.lifespan():
        await emit(broker, *(Job(number=number) for number in range(20)))
        await until(lambda: len(began) == 4)
        (consumer,) = dispatcher.health().consumers
        assert (consumer.unsettled, consumer.is_full) == (8, True)
        go[0].set()
        await until(lambda: dispatcher.health().unsettled == 7)
        assert dispatcher.health().consumers[0].is_full
        for one in go:
            one.set()
        await until(lambda: dispatcher.health().handled == 20)
        assert not dispatcher.health().consumers[0].is_full


# --- what clients do


async def test_methods_and_pages(broker: MemoryBroker) -> None:
    async with served(Gate(broker).dispatcher) as server:
        assert (await get(server.port, "/livez/?verbose=1")).status == 200
        reply = await get(server.port, "/livez", "HEAD")
        assert (reply.status, reply.body) == (200, b"")
        assert int(reply.headers["content-length"]) > 0
        reply = await get(server.port, "/livez", "POST")
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
        reply = await get(server.port, "/")
        assert (reply.status, reply.body) == (404, b"There are /livez, /readyz, /metrics.\n")


async def test_a_connection_is_kept(broker: MemoryBroker) -> None:
    async with served(Gate(broker).dispatcher) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            reader = BufferedByteReceiveStream(stream)
            for _ in range(3):
                await stream.send(request("/livez"))
                assert (await read_reply(reader)).status == 200
            await stream.send(request("/livez", "GET", "connection: close"))
            assert (await read_reply(reader)).headers["connection"] == "close"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        # Two requests at once, one of them with a body that never comes.
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            reader = BufferedByteReceiveStream(stream)
            await stream.send(request("/livez") + request("/nowhere", "POST", "content-length: 10"))
            assert (await read_reply(reader)).status == 200
            assert (await read_reply(reader)).status == 404
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),  # TLS
        (request("/livez", "GET", "x: " + 40_000 * "a"), 431),
        (b"GET /" + 40_000 * b"a", 431),
    ],
)
async def test_what_is_no_request(broker: MemoryBroker, sent: bytes, status: int) -> None:
    async with served(Gate(broker).dispatcher) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(sent)
            assert (await read_reply(BufferedByteReceiveStream(stream))).status == status
        assert (await get(server.port, "/livez")).status == 200


async def test_slow_clients_are_cut_off(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.health.http._PATIENCE", 0.2)
    monkeypatch.setattr("dispytch.health.http._IDLE", 0.4)
    async with served(Gate(broker).dispatcher) as server:
        began = time.monotonic()
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                for byte in request("/livez", "GET", "x: " + 500 * "a"):
                    await stream.send(bytes([byte]))
                    await anyio.sleep(0.005)
                await stream.receive()
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:  # and between two requests
            await stream.send(request("/livez"))
            await read_reply(BufferedByteReceiveStream(stream))
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        assert time.monotonic() - began < 5


async def test_who_says_nothing_does_not_keep_others_out(broker: MemoryBroker) -> None:
    async with served(Gate(broker).dispatcher, max_connections=3) as server:
        silent = [await anyio.connect_tcp("127.0.0.1", server.port) for _ in range(5)]
        assert (await get(server.port, "/livez")).status == 200
        for stream in silent[:2]:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        for stream in silent:
            await stream.aclose()


async def test_a_client_that_leaves_at_once(broker: MemoryBroker) -> None:
    async with served(Gate(broker).dispatcher) as server:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                client.send(request("/livez"))
        assert (await get(server.port, "/livez")).status == 200


# --- where it listens

# anyio 4.6 leaves a socket that could not be bound to the garbage collector, which is to come by while that is borne.
bears_sockets = pytest.mark.filterwarnings(r"ignore:[\s\S]*unclosed <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collects() -> Iterator[None]:
    yield
    gc.collect()


def leaves_sockets(test: Any) -> Any:
    return bears_sockets(pytest.mark.usefixtures("collects")(test))


@leaves_sockets
async def test_a_port_in_use(broker: MemoryBroker) -> None:
    dispatcher = Gate(broker).dispatcher
    async with served(dispatcher) as server:
        with pytest.raises(ConfigurationError, match=f"127.0.0.1, port {server.port}: it is in use; choose another"):
            async with serve_health(dispatcher, port=server.port):
                raise AssertionError("it is entered")
        assert (await get(server.port, "/livez")).status == 200


@leaves_sockets
async def test_other_addresses(broker: MemoryBroker) -> None:
    dispatcher = Gate(broker).dispatcher
    async with served(dispatcher, host="::1") as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert (await get(server.port, "/livez", host="::1")).status == 200
    with pytest.raises(ConfigurationError, match="an address of this machine"):
        async with serve_health(dispatcher, host="192.0.2.1", port=closed_port()):
            raise AssertionError("it is entered")
    with pytest.raises(ConfigurationError, match="65535"):
        serve_health(dispatcher, port=65536)
    with pytest.raises(ConfigurationError, match="no dispatcher"):
        serve_health()
    with pytest.raises(ConfigurationError, match="it has no health"):
        serve_health("dispatcher")  # type: ignore[arg-type]  # what a user may do


# --- without an event loop


@leaves_sockets
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the client's
async def test_a_blocking_program(broker: MemoryBroker, backend: Any) -> None:
    dispatcher = sync.EventDispatcher(MemoryConsumer(broker), backend=backend)
    stuck, go = threading.Event(), threading.Event()

    @dispatcher.handler(Job)
    async def handle(event: Event[Job]) -> None:
        stuck.set()
        go.wait(20)  # which no async handler may do

    def blocking(*calls: Any) -> Any:
        return anyio.to_thread.run_sync(lambda: [call() for call in calls])

    with serve_health_in_thread(dispatcher, port=0) as server:
        assert server.url.endswith(f":{server.port}")
        assert (await get(server.port, "/readyz")).json["reasons"] == ["the dispatcher is not started"]
        assert (await get(server.port, "/livez")).status == 200
        await blocking(dispatcher.start)
        assert (await get(server.port, "/readyz")).status == 200
        assert (await get(server.port, "/livez")).status == 200
        await emit(broker, Job())
        await blocking(stuck.wait)
        reply = await get(server.port, "/livez")
        assert (reply.status, reply.json["reasons"]) == (503, ["the dispatcher's event loop did not turn for 2 s"])
        go.set()
        await blocking(dispatcher.stop)
        assert (await get(server.port, "/livez")).status == 200
        with pytest.raises(ConfigurationError, match="in use"):
            serve_health_in_thread(dispatcher, port=server.port).__enter__()


async def test_a_dispatcher_of_a_loop_is_not_served_from_a_thread(broker: MemoryBroker) -> None:
    with pytest.raises(ConfigurationError, match=r"is served in its own event loop: .*on_lifespan="):
        serve_health_in_thread(Gate(broker).dispatcher, port=0)


async def test_a_blocking_dispatcher_has_it_in_its_own_loop_too(broker: MemoryBroker) -> None:
    servers: list[HealthServer] = []

    def lifespan(inner: EventDispatcher) -> HealthServer:
        servers.append(serve_health(inner, port=0))
        return servers[-1]

    dispatcher = sync.EventDispatcher(MemoryConsumer(broker), on_lifespan=lifespan)
    dispatcher.handler(Job)(lambda: None)
    await anyio.to_thread.run_sync(dispatcher.start)
    try:
        assert (await get(servers[0].port, "/readyz")).status == 200
    finally:
        await anyio.to_thread.run_sync(dispatcher.stop)
