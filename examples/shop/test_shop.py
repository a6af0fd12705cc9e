"""Tests of the shop and of the service, with no broker.

    python -m pytest examples/shop

pytest has the fixtures from Dispytch itself; tests marked ``anyio`` run on asyncio and on trio.
"""

from __future__ import annotations

import pytest

from dispytch import Router
from dispytch.errors import EmitRejectedError
from dispytch.memory import MemoryBroker
from dispytch.testing import BlockingRecordingEmitter, Faults, RecordingEmitter, running, running_in_thread
from examples.shop.events import OrderPlaced, OrderShipped
from examples.shop.service import get_emitter, router
from examples.shop.site import Shop


@pytest.mark.anyio
async def test_the_service_ships_what_was_ordered(recording_emitter: RecordingEmitter) -> None:
    async with running(router, dependency_overrides={get_emitter: lambda: recording_emitter}) as app:
        await app.emit(OrderPlaced(order_id=1, item="lamp"))
        await app.emit(OrderPlaced(order_id=2, item="chair"))
    recording_emitter.assert_emitted(OrderShipped, times=2)
    recording_emitter.assert_emitted(OrderShipped, order_id=2, parcel="chair in a box")


@pytest.mark.anyio
async def test_a_shipment_that_could_not_be_told_is_told_again(
    recording_emitter: RecordingEmitter, broker_faults: Faults
) -> None:
    broker_faults.fail("reject")
    async with running(router, dependency_overrides={get_emitter: lambda: recording_emitter}) as app:
        await app.emit(OrderPlaced(order_id=1, item="lamp"))
    assert [type(one.error) for one in app.failed] == [EmitRejectedError]
    recording_emitter.assert_emitted(OrderShipped, order_id=1, times=1)


def test_the_view_places_an_order(blocking_recording_emitter: BlockingRecordingEmitter) -> None:
    assert Shop().order_view(blocking_recording_emitter, 1, "lamp") == "202 Accepted: order 1"
    blocking_recording_emitter.assert_emitted(OrderPlaced, item="lamp")
    assert blocking_recording_emitter.emissions[0].key == "1"


def test_the_site_notes_shipments() -> None:
    shop, shipments = Shop(), Router()
    shipments.handler(OrderShipped)(shop.note_shipment)
    with running_in_thread(shipments) as app:
        app.emit(OrderShipped(order_id=1, parcel="lamp in a box"))
        app.idle()
        assert shop.parcels == {1: "lamp in a box"}


def test_an_order_is_shipped_to_the_end(
    memory_broker: MemoryBroker,
    recording_emitter: RecordingEmitter,
    blocking_recording_emitter: BlockingRecordingEmitter,
) -> None:
    overrides = {get_emitter: lambda: recording_emitter}
    with running_in_thread(router, memory_broker, dependency_overrides=overrides) as service:
        Shop().order_view(blocking_recording_emitter, 1, "lamp")
        service.idle()
    recording_emitter.assert_emitted(OrderShipped, order_id=1)
