"""The whole way of an event: typed events out, validated bodies and injected dependencies in.

``dispytch demo`` runs it, on the broker in the process or on the one of a URL; ``dispytch demo --source`` prints it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from pydantic import BaseModel

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    Router,
    SubscriptionParam,
    consumer_from_url,
    producer_from_url,
)
from dispytch.middleware import ExponentialBackoffWithFullJitter, Filter, Retry


class Item(BaseModel):
    name: str
    price: float


class OrderPlaced(EventBase):
    __topic__ = "shops.{shop}.orders"
    __key__ = "{order_id}"

    shop: str
    order_id: int
    item: Item
    test: bool = False


class OrderShipped(EventBase):
    __topic__ = "shops.{shop}.shipments"

    shop: str
    order_id: int


def say(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # one write, since lines come from threads too


class Ledger:
    """Something that handlers share; made once, before the first event."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        say(line)
        self.lines.append(line)


async def open_ledger() -> AsyncIterator[Ledger]:
    print("ledger: opened")
    yield ledger
    print("ledger: closed")


router = Router(
    middlewares=[Retry(ExponentialBackoffWithFullJitter(retries=3, retry_on=[ConnectionError], base_delay_sec=0.01))]
)
LedgerOfApp = Annotated[Ledger, Dependency(open_ledger, scope="app")]


@router.handler(OrderPlaced, middlewares=[Filter(lambda ctx: not ctx.event["test"])])
async def charge(event: Event[OrderPlaced], book: LedgerOfApp) -> None:
    """An async handler. Its first try fails, and the router's Retry makes another."""
    if event.meta.attempt == 1:
        raise ConnectionError("the bank is busy")
    book.write(f"charge:  {event.body.item.price:7.2f} for order {event.body.order_id} (try {event.meta.attempt})")


@router.handler(topic="shops.{shop}.orders", event="OrderPlaced")
def pack(shop: Annotated[str, SubscriptionParam(min_length=2)], order: OrderPlaced, book: LedgerOfApp) -> None:
    """A plain function: it runs in a worker thread. The shop comes from the topic, the order is the body itself."""
    in_main = threading.current_thread() is threading.main_thread()
    book.write(f"pack:    {order.item.name} at {shop} (in {'the main' if in_main else 'a worker'} thread)")


@router.handler(topic="shops.*.*")
async def audit(event: Event[dict[str, Any]], book: LedgerOfApp) -> None:
    """Whatever happens in any shop, not looked into."""
    book.write(f"audit:   {event.meta.type} on {event.meta.topic}")


async def main(url: str) -> None:
    dispatcher = EventDispatcher(consumer_from_url(url, group_id="demo"))
    dispatcher.add_router(router)
    async with EventEmitter(producer_from_url(url), source="demo") as emitter, dispatcher.lifespan():
        receipt = await emitter.emit(OrderPlaced(shop="berlin", order_id=1, item=Item(name="a lamp", price=49.9)))
        say(f"emitted: {receipt.route if receipt else 'nothing'}")
        await emitter.emit_many(
            [
                OrderPlaced(shop="oslo", order_id=2, item=Item(name="a chair", price=120)),
                OrderPlaced(shop="oslo", order_id=3, item=Item(name="nothing", price=0), test=True),
                OrderShipped(shop="berlin", order_id=1),
            ]
        )
        with anyio.fail_after(10):
            while len(ledger.lines) < 9:  # noqa: ASYNC110 - lines come from threads too
                await anyio.sleep(0.01)
            while dispatcher.health().unsettled:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        say(f"done:    {dispatcher.health().handled} events handled")


ledger = Ledger()

if __name__ == "__main__":
    anyio.run(main, "memory://demo")
