"""What is done because of events."""

from __future__ import annotations

from typing import Annotated

from dispytch import Dependency, Event, EventEmitter, Router
from examples.fastapi_shop.events import OrderPlaced, OrderShipped
from examples.fastapi_shop.shop import Orders, get_emitter, get_orders

router = Router()


@router.handler(OrderPlaced)
async def ship(event: Event[OrderPlaced], emitter: Annotated[EventEmitter, Dependency(get_emitter)]) -> None:
    order = event.body
    await emitter.emit(OrderShipped(order_id=order.order_id, parcel=f"{order.item} in a box"))


@router.handler(OrderShipped)
def note(event: Event[OrderShipped], orders: Annotated[Orders, Dependency(get_orders)]) -> None:
    orders.parcels[event.body.order_id] = event.body.parcel
