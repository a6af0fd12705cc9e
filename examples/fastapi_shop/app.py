"""The application.

    BROKER_URL=redis+stream://localhost:6379 uvicorn examples.fastapi_shop.app:app

SIGTERM ends it: requests are answered, then events in flight are handled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Response
from pydantic import BaseModel

from dispytch import EventDispatcher, EventEmitter, consumer_from_url
from dispytch.errors import EmitError
from examples.fastapi_shop.events import OrderPlaced
from examples.fastapi_shop.handlers import router
from examples.fastapi_shop.shop import BROKER_URL, Orders, emitter, get_emitter, get_orders

dispatcher = EventDispatcher(consumer_from_url(BROKER_URL, group_id="fastapi_shop"))
dispatcher.add_router(router)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The emitter is the outer one: handlers emit while the dispatcher drains.
    async with emitter, dispatcher.lifespan():
        yield


app = FastAPI(title="Shop", lifespan=lifespan)


class NewOrder(BaseModel):
    order_id: int
    item: str


@app.post("/orders", status_code=202)
async def place_order(
    order: NewOrder,
    orders: Annotated[Orders, Depends(get_orders)],
    emitter: Annotated[EventEmitter, Depends(get_emitter)],
) -> dict[str, str]:
    try:
        receipt = await emitter.emit(OrderPlaced(order_id=order.order_id, item=order.item))
    except EmitError as error:
        raise HTTPException(503, "orders cannot be taken at the moment; try again later") from error
    orders.items[order.order_id] = order.item
    return {"event": receipt.id if receipt else ""}


@app.get("/orders/{order_id}")
def show_order(order_id: int, orders: Annotated[Orders, Depends(get_orders)]) -> dict[str, str | None]:
    if order_id not in orders.items:
        raise HTTPException(404, f"there is no order {order_id}")
    return {"item": orders.items[order_id], "parcel": orders.parcels.get(order_id)}


@app.get("/livez")
def live(response: Response) -> dict[str, str]:
    """Whether the process is to go on; not if an error that nothing mends has ended the dispatcher."""
    health = dispatcher.health()
    if health.state == "stopped":
        response.status_code = 503
    return {"state": health.state}


@app.get("/readyz")
def ready(response: Response) -> dict[str, str | bool | int]:
    """Whether events are handled at the moment."""
    health = dispatcher.health()
    if health.state != "running" or not health.connected:
        response.status_code = 503
    return {"state": health.state, "connected": health.connected, "in_flight": health.in_flight}
