"""What users write: type checkers must find no error here but in the lines that say so, and must find those."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, assert_type

import pytest
from pydantic import BaseModel

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    EventHandlerContext,
    Middleware,
    NextCall,
    Router,
    SubscriptionParam,
    consumer_from_url,
    producer_from_url,
)
from dispytch.abc import EmitCall, EmitHook, EventRoute, Receipt
from dispytch.asyncapi import document, to_html, to_json, to_yaml
from dispytch.errors import DispytchError
from dispytch.health import keep_heartbeat, serve_health
from dispytch.logs import LogContext
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventConfig, MemoryEventSubscription, MemoryProducer
from dispytch.metrics import PrometheusHook, PrometheusMiddleware
from dispytch.middleware import FixedDelay, Retry, Timeout
from dispytch.sync import EventDispatcher as BlockingDispatcher
from dispytch.sync import EventEmitter as BlockingEmitter
from dispytch.telemetry import OpenTelemetryHook, OpenTelemetryMiddleware
from dispytch.testing import (
    BlockingRecordingEmitter,
    BlockingRunning,
    RecordingEmitter,
    Running,
    TransportSuite,
    Try,
    overriding,
    running,
    running_in_thread,
)


class Address(BaseModel):
    city: str


class OrderPlaced(EventBase):
    __topic__ = "shops.{shop}.orders"
    __key__ = "{order_id}"

    shop: str
    order_id: int
    address: Address


class Store:
    async def save(self, city: str) -> int:
        return len(city)


async def open_store() -> AsyncIterator[Store]:
    yield Store()


def count(event: Event[OrderPlaced]) -> int:
    return event.body.order_id


class Timed(Middleware):
    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        ctx.state["shop"] = ctx.params["shop"]
        assert_type(ctx.event, Mapping[str, Any])
        return await call_next(ctx)


broker = MemoryBroker()
dispatcher = EventDispatcher(MemoryConsumer(broker, group_id="billing"), middlewares=[Timed()])
router = Router(middlewares=[Retry(FixedDelay(retries=2, retry_on=[OSError]))])


@router.handler(OrderPlaced, middlewares=[Timeout(5)])
async def annotated(
    event: Event[OrderPlaced],
    store: Annotated[Store, Dependency(open_store, scope="app")],
    number: Annotated[int, Dependency(count)],
) -> int:
    assert_type(event.body, OrderPlaced)
    assert_type(event.body.address.city, str)
    assert_type(event.meta.attempt, int)
    event.body.wrong  # type: ignore[attr-defined]  # noqa: B018
    return await store.save(event.body.address.city) + number


@router.handler(topic="shops.{shop}.orders", event="OrderPlaced", concurrency=2)
def defaults(
    order: OrderPlaced,
    store: Store = Dependency(open_store),  # noqa: B008
    shop: str = SubscriptionParam(min_length=2),
) -> str:
    return f"{order.order_id} at {shop}"


@dispatcher.handler(MemoryEventSubscription(topic="shops.#"))
async def everything(event: Event, shop: str = "any") -> None:
    assert_type(event.body, dict[str, Any])
    print(event.body["shop"], shop)


async def emit() -> None:
    dispatcher.add_router(router)
    async with dispatcher.lifespan() as running, EventEmitter(MemoryProducer(broker)) as emitter:
        event = OrderPlaced(shop="oslo", order_id=1, address=Address(city="Oslo"))
        assert_type(running, EventDispatcher)
        assert_type(await emitter.emit(event), Receipt | None)
        assert_type(await emitter.emit_many([event, event]), list[Receipt | None])
        await emitter.emit({"shop": "oslo"})  # type: ignore[arg-type]
        await running.idle()


async def call() -> None:
    """The decorators leave the functions as they are."""
    event = OrderPlaced(shop="oslo", order_id=1, address=Address(city="Oslo"))
    assert_type(await annotated(Event(event), Store(), 1), int)
    assert_type(defaults(event, Store(), "oslo"), str)
    defaults("no order")  # type: ignore[arg-type]


def block() -> None:
    blocking = BlockingDispatcher(consumer_from_url("memory://shop", group_id="billing"), backend="trio")

    @blocking.handler(OrderPlaced)
    def handle(event: Event[OrderPlaced]) -> int:
        return event.body.order_id

    with blocking, BlockingEmitter(producer_from_url("memory://shop")) as emitter:
        event = OrderPlaced(shop="oslo", order_id=1, address=Address(city="Oslo"))
        assert_type(emitter.emit(event), Receipt | None)
    assert_type(handle(Event(event)), int)


async def test_handlers() -> None:
    """What a test of the program writes."""
    recording = RecordingEmitter(like=producer_from_url("memory://shop"))
    async with running(dispatcher, broker, dependency_overrides={open_store: Store}) as app:
        assert_type(app, Running)
        event = OrderPlaced(shop="oslo", order_id=1, address=Address(city="Oslo"))
        assert_type(await app.emit(event), Receipt)
        assert_type(app.handled, list[Try])
        await send(recording, event)
    assert_type(recording.assert_emitted(OrderPlaced, times=1, shop="oslo"), list[OrderPlaced])
    assert_type(recording.emitted(OrderPlaced), list[OrderPlaced])
    recording.assert_not_emitted(OrderPlaced, where=lambda order: order.order_id > 1)
    recording.assert_emitted(OrderPlaced, where=lambda order: order.wrong)  # type: ignore[attr-defined]
    recording.assert_emitted("OrderPlaced")  # type: ignore[arg-type]


async def send(emitter: EventEmitter, event: OrderPlaced) -> None:
    await emitter.emit(event)


def test_blocking(blocking: BlockingDispatcher) -> None:
    with overriding(blocking, {open_store: Store}), running_in_thread(blocking, backend="trio") as app:
        assert_type(app, BlockingRunning)
        emitter: BlockingEmitter = BlockingRecordingEmitter(broker=app.broker)
        assert_type(emitter.emit_many([]), list[Receipt | None])
        app.idle()


def documented(dispatcher: EventDispatcher, blocking: BlockingDispatcher, emitter: EventEmitter) -> None:
    api = document(
        dispatcher,
        title="Shop",
        version="1",
        emits=[OrderPlaced],
        emitter=emitter,
        servers={"main": "kafka://broker", "other": {"host": "broker", "protocol": "amqp"}},
    )
    assert_type(api, dict[str, Any])
    assert_type(document(blocking, title="Shop", version="1"), dict[str, Any])
    for write in (to_html, to_json, to_yaml):
        assert_type(write(api), str)
    Router(tags=["billing"])


class TestShop(TransportSuite):
    """A transport's own run of the conformance suite."""

    features = MemoryConsumer.features
    columns = ("asyncio", "blocking")
    leaves_out = ("drain",)
    patience = 5.0

    @pytest.fixture(autouse=True)
    def shop(self, tmp_path: Path) -> None:
        self.shop_broker = MemoryBroker.named(tmp_path.name)

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self.shop_broker)

    def consumer(self, group_id: str) -> MemoryConsumer:
        return MemoryConsumer(self.shop_broker, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> MemoryEventConfig:
        return MemoryEventConfig(headers=headers)

    @asynccontextmanager
    async def unwritable(self, route: EventRoute) -> AsyncGenerator[None, None]:
        yield


class Tenant(EmitHook):
    @contextmanager
    def around(self, call: EmitCall) -> Generator[None, None, None]:
        call.headers["x-tenant"] = "a"
        yield
        assert_type(call.outcomes, Sequence[Receipt | DispytchError])


async def observed() -> None:
    dispatcher = EventDispatcher(
        consumer_from_url("memory://typed"),
        middlewares=[LogContext(), PrometheusMiddleware(), OpenTelemetryMiddleware(correlation="parent")],
        on_lifespan=lambda dispatcher: serve_health(dispatcher, port=0),
    )
    hooks: list[EmitHook] = [Tenant(), PrometheusHook(), OpenTelemetryHook()]
    emitter = EventEmitter(producer_from_url("memory://typed"), hooks=hooks)
    BlockingEmitter(producer_from_url("memory://typed"), hooks=hooks)
    async with emitter, serve_health(dispatcher, port=0) as server, keep_heartbeat(dispatcher, file="alive"):
        assert_type(server.port, int)
    assert_type(dispatcher.health().consumers[0].lag, Mapping[str, int] | None)
    OpenTelemetryMiddleware(correlation="child")  # type: ignore[arg-type]
