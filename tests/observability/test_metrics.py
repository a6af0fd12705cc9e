"""Metrics for Prometheus: what is on the page, for one dispatcher and several, and the lag of every transport."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, Redeliver, Reject, sync
from dispytch.errors import ConfigurationError, EmitManyError, EmitRejectedError, EmitTimeoutError
from dispytch.health import serve_health
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.metrics import PrometheusHook, PrometheusMiddleware, exposition, merged, watch
from dispytch.testing import Faults
from tests.helpers import dispatcher_on, emit, run, until
from tests.observability.support import get
from tests.observability.test_tracing import ends
from tests.support import PATIENCE, unique
from tests.test_examples import environment

pytestmark = pytest.mark.anyio


class Order(EventBase):
    __topic__ = "orders"
    number: int = 0


class Templated(EventBase):
    __topic__ = "shops.{shop}.orders"
    shop: str


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(page: bytes) -> Values:
    """What a page has; that it can be parsed shows that no family comes twice."""
    families = list(text_string_to_metric_families(page.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


# --- dispatchers


async def test_a_dispatcher(broker: MemoryBroker, registry: CollectorRegistry) -> None:
    dispatcher = dispatcher_on(broker, group_id="billing", concurrency=1)
    go = anyio.Event()

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        if event.body.number == 1:
            raise ValueError("always")
        await go.wait()

    assert watch(dispatcher, registry=registry) == "1"
    assert watch(dispatcher, registry=registry) == "1"
    assert value(registry, "dispytch_state", dispatcher="1", state="stopped") == 1
    assert value(registry, "dispytch_handled_total", dispatcher="1") == 0
    await emit(broker, *(Order(number=number) for number in (1, 2, 3, 4, 5)))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().in_flight == 1)
        consumer = {
            "dispatcher": "1",
            "consumer": "<MemoryConsumer in group billing>",
            "system": "memory",
            "group": "billing",
        }
        for name, expected in {
            "handled_total": 1,  # dead-lettered, that is, so that it is done with
            "failed_total": 1,
            "dead_lettered_total": 1,
            "redelivered_total": 0,
            "in_flight": 1,
            "unhandled_total": 0,
        }.items():
            assert value(registry, f"dispytch_{name}", dispatcher="1") == expected, name
        assert value(registry, "dispytch_state", dispatcher="1", state="running") == 1
        assert value(registry, "dispytch_consumer_connected", **consumer) == 1
        # It holds one more beside the one that is handled, and the others wait.
        await until(lambda: value(registry, "dispytch_consumer_lag", **consumer, destination="orders") == 2)
        assert value(registry, "dispytch_consumer_unsettled", **consumer) == 2
        dispatcher.request_stop()
        assert value(registry, "dispytch_state", dispatcher="1", state="draining") == 1
        go.set()
    assert value(registry, "dispytch_consumer_connected", **consumer) is None
    async with dispatcher.lifespan():  # again, with the same registry
        await dispatcher.idle()
        assert value(registry, "dispytch_state", dispatcher="1", state="running") == 1


async def test_two_dispatchers_on_one_page(broker: MemoryBroker, registry: CollectorRegistry) -> None:
    one, other = dispatcher_on(broker, group_id="one"), dispatcher_on(broker, group_id="other")
    assert watch(one, registry=registry) == "1"
    assert watch(other, name="shipping", registry=registry) == "shipping"
    with pytest.raises(ConfigurationError, match="another dispatcher is watched by the name 'shipping'"):
        watch(dispatcher_on(broker), name="shipping", registry=registry)
    with pytest.raises(ConfigurationError, match="watched already, by the name '1'"):
        watch(one, name="billing", registry=registry)
    found = values_of(exposition(registry))
    assert {dict(labels)["dispatcher"] for name, labels in found if name == "dispytch_queued"} == {"1", "shipping"}
    del other
    found = values_of(exposition(registry))
    assert {dict(labels)["dispatcher"] for name, labels in found if name == "dispytch_queued"} == {"1"}


async def test_a_blocking_dispatcher(broker: MemoryBroker, registry: CollectorRegistry) -> None:
    dispatcher = sync.EventDispatcher(MemoryConsumer(broker))
    dispatcher.handler(Order)(lambda: None)
    watch(dispatcher, registry=registry)
    await anyio.to_thread.run_sync(dispatcher.start)
    assert value(registry, "dispytch_state", dispatcher="1", state="running") == 1
    await anyio.to_thread.run_sync(dispatcher.stop)


@pytest.mark.parametrize("transport", ["kafka", "rabbitmq", "redis+stream"])
async def test_lag(
    transport: str, request: pytest.FixtureRequest, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the broker, or of what its client knows, beside the loop, as long as somebody looks."""
    monkeypatch.setattr("dispytch.rabbitmq.gauge._EVERY", 0.1)
    monkeypatch.setattr("dispytch.kafka.watermarks._MEASURE_EVERY", 0.1)
    monkeypatch.setattr("dispytch.redis.streams.keeper._MEASURE_EVERY", 0.1)
    topic = unique("orders")

    class Placed(EventBase):
        __topic__ = topic
        number: int

    producer, consumer = ends(transport, request)
    consumer.prefetch = 1 if transport == "rabbitmq" else 0
    dispatcher = EventDispatcher(consumer, concurrency=1)
    go = anyio.Event()

    @dispatcher.handler(Placed)
    async def handle(event: Event[Placed]) -> None:
        await go.wait()

    watch(dispatcher, registry=registry)

    def lag() -> float | None:
        destination = consumer.group_id if transport == "rabbitmq" else topic
        found = values_of(exposition(registry))
        return next(
            (
                count
                for (name, labels), count in found.items()
                if name == "dispytch_consumer_lag" and ("destination", destination) in labels
            ),
            None,
        )

    async with dispatcher.lifespan(), EventEmitter(producer) as emitter:
        await emitter.emit_many([Placed(number=number) for number in range(7)])
        with anyio.fail_after(PATIENCE):
            # Kafka's is from what is done, and the others' from what was delivered.
            await _until(lambda: dispatcher.health().in_flight == 1 and lag() == (7 if transport == "kafka" else 6))
            go.set()
            await _until(lambda: lag() == 0)


async def _until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - a broker is asked
        await anyio.sleep(0.05)


# --- calls


async def test_handlers(broker: MemoryBroker, registry: CollectorRegistry) -> None:
    measuring = PrometheusMiddleware(registry)
    dispatcher = dispatcher_on(broker, group_id="g", middlewares=[measuring], max_deliveries=2)

    @dispatcher.handler(topic="shops.{shop}.orders")
    async def handle(event: Event[Templated]) -> None:
        if event.body.shop == "rejected":
            raise Reject("no use")
        if event.body.shop == "redelivered" and event.meta.attempt == 1:
            raise Redeliver(delay=0)
        if event.body.shop == "failed":
            raise ValueError("always")

    @dispatcher.handler(Order, batch=3, batch_wait=0.01)
    async def batched(events: list[Event[Order]]) -> None: ...

    shops = ("fine", "rejected", "redelivered", "failed")
    await emit(broker, *(Templated(shop=shop) for shop in shops), *(Order() for _ in range(3)))
    await run(dispatcher)
    single = {
        "system": "memory",
        "destination": "shops.{shop}.orders",  # and not each shop's
        "group": "g",
        "handler": f"{__name__}.test_handlers.<locals>.handle",
    }
    for outcome, count in {"ok": 2, "rejected": 1, "redelivered": 1, "failed": 2}.items():
        labels = {**single, "outcome": outcome}
        assert value(registry, "messaging_process_duration_seconds_count", **labels) == count, outcome
        assert value(registry, "messaging_client_consumed_messages_total", **labels) == count, outcome
    batch = {
        **single,
        "destination": "orders",
        "handler": f"{__name__}.test_handlers.<locals>.batched",
        "outcome": "ok",
    }
    assert value(registry, "messaging_process_duration_seconds_count", **batch) == 1
    assert value(registry, "messaging_client_consumed_messages_total", **batch) == 3
    values_of(exposition(registry))


async def test_a_handler_that_is_cut_off(broker: MemoryBroker, registry: CollectorRegistry) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[PrometheusMiddleware(registry)], drain_timeout=0)
    began = anyio.Event()

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        began.set()
        await anyio.sleep_forever()

    await emit(broker, Order())
    async with dispatcher.lifespan():
        await began.wait()
    found = values_of(exposition(registry))
    (outcome,) = {
        dict(labels)["outcome"] for name, labels in found if name == "messaging_client_consumed_messages_total"
    }
    assert outcome == "cancelled"


async def test_emitters(registry: CollectorRegistry) -> None:
    faults = Faults()
    broker = MemoryBroker(faults=faults)
    hook = PrometheusHook(registry)
    async with EventEmitter(MemoryProducer(broker), hooks=[hook]) as emitter:
        await emitter.emit(Order())
        await emitter.emit_many([Order(), Order(), Templated(shop="oslo")])
        faults.fail("reject")
        with pytest.raises(EmitRejectedError):
            await emitter.emit(Order())
        faults.fail("lose_reply")
        with pytest.raises(EmitTimeoutError):
            await emitter.emit(Order())
        faults.fail("reject", 2)
        with pytest.raises(EmitManyError):
            await emitter.emit_many([Order(), Order()])
        with pytest.raises(EmitRejectedError):
            await emitter.emit(Templated(shop="a.b"))
    blocking = sync.EventEmitter(
        MemoryProducer(broker), hooks=[PrometheusHook(registry)]
    )  # the registry has one already
    await anyio.to_thread.run_sync(blocking.emit, Order())

    def sent(destination: str, operation: str, outcome: str) -> float | None:
        labels = {"system": "memory", "destination": destination, "operation": operation, "outcome": outcome}
        seconds = value(registry, "messaging_client_operation_duration_seconds_count", **labels)
        assert seconds is not None
        return value(registry, "messaging_client_sent_messages_total", **labels)

    assert sent("orders", "emit", "ok") == 2
    assert sent("orders", "emit_many", "ok") == 2
    assert sent("shops.{shop}.orders", "emit_many", "ok") == 1
    assert sent("orders", "emit", "failed") == 1
    assert sent("orders", "emit", "timeout") == 1
    assert sent("orders", "emit_many", "failed") == 2
    assert sent("shops.{shop}.orders", "emit", "failed") == 1


# --- pages


async def test_the_page_of_the_server(broker: MemoryBroker, registry: CollectorRegistry) -> None:
    Counter("own", "The program's own.", registry=registry).inc()
    dispatcher = dispatcher_on(broker)
    dispatcher.handler(Order)(lambda: None)
    async with serve_health(dispatcher, port=0, registry=registry) as server:
        reply = await get(server.port, "/metrics")
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = values_of(reply.body)
        assert found["own_total", frozenset()] == 1
        assert found["dispytch_state", frozenset({"dispatcher": "1", "state": "stopped"}.items())] == 1
        assert (await get(server.port, "/metrics", "HEAD")).body == b""


async def test_a_collector_that_fails_costs_its_page_only(
    broker: MemoryBroker, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> Iterator[Any]:
            raise ValueError("of the program")

    registry.register(Failing())
    async with serve_health(dispatcher_on(broker), port=0, registry=registry) as server:
        assert (await get(server.port, "/metrics")).status == 500
        assert (await get(server.port, "/livez")).status == 200
    assert "The page /metrics could not be made." in caplog.text


async def test_pages_of_several_processes() -> None:
    pages: dict[str, bytes] = {}
    for worker in ("1", "2"):
        registry = CollectorRegistry()
        Counter("own", "The program's own.", ["kind"], registry=registry).labels('a\n"b').inc(int(worker))
        PrometheusHook(registry)
        pages[worker] = exposition(registry)
    found = values_of(merged(pages))
    for worker in ("1", "2"):
        assert found["own_total", frozenset({"kind": 'a\n"b', "worker": worker}.items())] == int(worker)
    assert merged({}) == b""


_MULTIPROCESS = """
import sys
from dispytch import EventBase, EventDispatcher
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.metrics import PrometheusHook, exposition, watch
from dispytch.sync import EventEmitter

class Order(EventBase):
    __topic__ = "orders"

broker = MemoryBroker()
with EventEmitter(MemoryProducer(broker), hooks=[PrometheusHook()]) as emitter:
    emitter.emit(Order())
dispatcher = EventDispatcher(MemoryConsumer(broker))
watch(dispatcher)
sys.stdout.buffer.write(exposition(all_processes=sys.argv[1] == "all"))
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # has no loop
async def test_multiprocess_mode(tmp_path: Path) -> None:
    """What all processes have measured, or one alone; and the dispatchers of the one that is asked."""

    def page(which: str) -> Values:
        done = subprocess.run(
            [sys.executable, "-c", _MULTIPROCESS, which],
            env=environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path)),
            capture_output=True,
            check=True,
        )
        return values_of(done.stdout)

    labels = {"system": "memory", "destination": "orders", "operation": "emit", "outcome": "ok"}
    sent = ("messaging_client_sent_messages_total", frozenset(labels.items()))
    state = ("dispytch_state", frozenset({"dispatcher": "1", "state": "stopped"}.items()))
    assert page("all")[sent] == 1
    second = page("all")
    assert (second[sent], second[state]) == (2, 1)
    assert page("own")[sent] == 1


def test_without_prometheus_there_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')")
    code = (
        "from dispytch.health.sources import page_of\n"
        "assert page_of([], None) is None\n"
        "try:\n"
        "    import dispytch.metrics\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=path), capture_output=True, text=True, check=True
    )
    assert done.stdout == 'prometheus-client is not installed: pip install "dispytch[metrics]"\n'
