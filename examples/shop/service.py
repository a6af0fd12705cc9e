"""The asynchronous service: it ships what was ordered, and says so.

    python -m examples.shop.service --url redis+stream://localhost:6379 --loop trio

It runs until SIGINT or SIGTERM, then finishes what is in flight.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator
from typing import Annotated

from dispytch import (
    Dependency,
    Event,
    EventDispatcher,
    EventEmitter,
    Router,
    consumer_from_url,
    producer_from_url,
)
from examples.shop.events import OrderPlaced, OrderShipped

router = Router()


async def get_emitter() -> AsyncIterator[EventEmitter]:
    """One emitter for the whole service, connected before the first order comes."""
    async with EventEmitter(producer_from_url(options.url), source="shipping") as emitter:
        yield emitter


@router.handler(OrderPlaced)
async def ship(
    event: Event[OrderPlaced], emitter: Annotated[EventEmitter, Dependency(get_emitter, scope="app")]
) -> None:
    order = event.body
    await emitter.emit(OrderShipped(order_id=order.order_id, parcel=f"{order.item} in a box"))
    print(f"shipped: order {order.order_id}", flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", required=True, help="the broker")
parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")

if __name__ == "__main__":
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)  # says when the service is ready
    dispatcher = EventDispatcher(consumer_from_url(options.url, group_id="shipping"))
    dispatcher.add_router(router)
    dispatcher.run(
        backend="trio" if options.loop == "trio" else "asyncio",
        use_uvloop=options.loop == "uvloop",
    )
