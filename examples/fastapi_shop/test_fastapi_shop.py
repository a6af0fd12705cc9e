"""Tests of the shop, with no broker and no server.

    python -m pytest examples/fastapi_shop

Tests marked ``anyio`` run on asyncio and on trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from httpx import ASGITransport, AsyncClient

from dispytch.testing import Faults, RecordingEmitter, running
from examples.fastapi_shop.app import app, dispatcher, lifespan
from examples.fastapi_shop.events import OrderPlaced, OrderShipped
from examples.fastapi_shop.handlers import router
from examples.fastapi_shop.shop import Orders, get_emitter, get_orders


@pytest.fixture
def orders(recording_emitter: RecordingEmitter) -> Iterator[Orders]:
    """The application with orders of the test's own, and an emitter that notes what it emits."""
    orders = Orders()
    overrides = {get_emitter: lambda: recording_emitter, get_orders: lambda: orders}
    app.dependency_overrides.update(overrides)
    yield orders
    app.dependency_overrides.clear()


@pytest.fixture
async def client(orders: Orders) -> AsyncIterator[AsyncClient]:
    """Requests to the application; nothing is started, so no event is handled."""
    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        yield client


@pytest.mark.anyio
async def test_an_order_is_told(client: AsyncClient, orders: Orders, recording_emitter: RecordingEmitter) -> None:
    response = await client.post("/orders", json={"order_id": 1, "item": "lamp"})
    assert response.status_code == 202
    assert orders.items == {1: "lamp"}
    recording_emitter.assert_emitted(OrderPlaced, order_id=1, item="lamp", times=1)


@pytest.mark.anyio
async def test_an_order_that_cannot_be_told_is_not_taken(
    client: AsyncClient, orders: Orders, broker_faults: Faults
) -> None:
    broker_faults.fail("reject")
    response = await client.post("/orders", json={"order_id": 1, "item": "lamp"})
    assert response.status_code == 503
    assert not orders.items


@pytest.mark.anyio
async def test_it_is_not_ready_before_it_is_started(client: AsyncClient) -> None:
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/livez")).status_code == 503


@pytest.mark.anyio
async def test_what_is_ordered_is_shipped(recording_emitter: RecordingEmitter) -> None:
    """The handlers alone, without the application around them."""
    orders = Orders()
    overrides = {get_emitter: lambda: recording_emitter, get_orders: lambda: orders}
    async with running(router, dependency_overrides=overrides) as events:
        await events.emit(OrderPlaced(order_id=1, item="lamp"))
        await events.emit(OrderShipped(order_id=2, parcel="chair in a box"))
    recording_emitter.assert_emitted(OrderShipped, order_id=1, parcel="lamp in a box")
    assert orders.parcels == {2: "chair in a box"}


@pytest.mark.anyio
async def test_the_whole_application() -> None:
    """With its lifespan: on memory://, unless BROKER_URL says otherwise, so emitter and handlers are the real ones."""
    transport = ASGITransport(app)
    async with lifespan(app), AsyncClient(transport=transport, base_url="http://shop") as client:
        assert (await client.get("/readyz")).json() == {"state": "running", "connected": True, "in_flight": 0}
        await client.post("/orders", json={"order_id": 7, "item": "table"})
        await dispatcher.idle()
        assert (await client.get("/orders/7")).json() == {"item": "table", "parcel": "table in a box"}
