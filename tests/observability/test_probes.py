"""What probes are told of consumers on real brokers: quiet ones, and ones that are cut off."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, consumer_from_url
from dispytch.health import HealthServer, serve_health
from tests import brokers
from tests.faults.proxy import proxy_to
from tests.observability.support import get
from tests.support import closed_port, unique
from tests.test_examples import url_of

pytestmark = pytest.mark.anyio

POLL_TIMEOUT = 1.5


class Order(EventBase):
    __topic__ = "probed-orders"


def dispatcher_of(url: str) -> EventDispatcher:
    dispatcher = EventDispatcher(consumer_from_url(url, group_id=unique("probed")))

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None: ...

    return dispatcher


async def until_ready(server: HealthServer, status: int) -> list[str]:
    """Waits until readiness is told so; all the while it is alive."""
    with anyio.fail_after(60):  # a Kafka on a busy machine takes its time
        while (reply := await get(server.port, "/readyz")).status != status:
            assert (await get(server.port, "/livez")).status == 200
            await anyio.sleep(0.05)
    reasons: list[str] = reply.json["reasons"]
    return reasons


@pytest.mark.parametrize(
    ("transport", "anyio_backend"),
    [("kafka", "asyncio"), ("rabbitmq", "trio"), ("redis+stream", "trio"), ("redis", "asyncio"), ("redis", "trio")],
)
async def test_a_quiet_consumer_is_alive_and_ready(
    transport: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It polls all the same; here for as long as a consumer that does not would be found out."""
    monkeypatch.setattr("dispytch.redis.RedisConsumer._heartbeat", 0.3)
    dispatcher = dispatcher_of(url_of(transport, request))
    async with serve_health(dispatcher, port=0, poll_timeout=POLL_TIMEOUT) as server, dispatcher.lifespan():
        await until_ready(server, 200)
        end = time.monotonic() + 1.3 * POLL_TIMEOUT
        while time.monotonic() < end:
            assert (await get(server.port, "/livez")).status == 200
            await anyio.sleep(0.1)
        (consumer,) = dispatcher.health().consumers
        assert consumer.polled_ago is not None
        assert consumer.transport == {"redis+stream": "redis-stream"}.get(transport, transport)


@pytest.mark.parametrize(
    ("transport", "anyio_backend"), [("rabbitmq", "asyncio"), ("redis+stream", "asyncio"), ("redis", "trio")]
)
async def test_one_that_is_cut_off_is_alive_and_not_ready(transport: str, request: pytest.FixtureRequest) -> None:
    with proxy_to(url_of(transport, request)) as proxy:
        dispatcher = dispatcher_of(proxy.url)
        async with serve_health(dispatcher, port=0, poll_timeout=POLL_TIMEOUT) as server, dispatcher.lifespan():
            await until_ready(server, 200)
            proxy.refuses = True
            proxy.cut()
            (reason,) = await until_ready(server, 503)
            assert reason.endswith("is not connected")
            end = time.monotonic() + 1.3 * POLL_TIMEOUT
            while time.monotonic() < end:  # longer than a consumer that is connected may go without a poll
                assert (await get(server.port, "/livez")).status == 200
                assert (await get(server.port, "/readyz")).status == 503
                await anyio.sleep(0.1)
            proxy.refuses = False
            await until_ready(server, 200)
            assert dispatcher.health().connected


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_kafka_that_does_not_answer(tmp_path: Path, kafka_server: str) -> None:
    """Its client gets back by itself, so the dispatcher knows nothing of it; but it is not ready meanwhile."""
    listens, port = closed_port(), closed_port()
    with (
        proxy_to(brokers.Kafka().url(listens)) as proxy,
        brokers.started(brokers.Kafka((listens, proxy.port)), tmp_path, port),
    ):
        dispatcher = dispatcher_of(proxy.url)
        async with serve_health(dispatcher, port=0) as server, dispatcher.lifespan():
            await until_ready(server, 200)
            proxy.refuses = True
            proxy.cut()
            (reason,) = await until_ready(server, 503)
            assert reason.endswith("is not connected")
            proxy.refuses = False
            await until_ready(server, 200)
