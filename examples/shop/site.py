"""The web shop, in the style of Django: blocking code and threads, with no event loop of its own.

    python -m examples.shop.site --url redis+stream://localhost:6379

It places three orders by calling its view, as three requests would, and waits until all are shipped. Start
``examples.shop.service`` first.
"""

from __future__ import annotations

import argparse
import threading

from dispytch import Event, consumer_from_url, producer_from_url
from dispytch.sync import EventDispatcher, EventEmitter
from examples.shop.events import OrderPlaced, OrderShipped


class Shop:
    """What Django would keep in its database."""

    def __init__(self) -> None:
        self.parcels: dict[int, str] = {}
        self.all_shipped = threading.Event()

    def order_view(self, emitter: EventEmitter, order_id: int, item: str) -> str:
        """A view: it returns when the broker has confirmed the event."""
        emitter.emit(OrderPlaced(order_id=order_id, item=item))
        return f"202 Accepted: order {order_id}"

    def note_shipment(self, event: Event[OrderShipped]) -> None:
        """A handler; being a plain function, it runs in a worker thread."""
        self.parcels[event.body.order_id] = event.body.parcel
        if len(self.parcels) == 3:
            self.all_shipped.set()


def main(url: str) -> None:
    shop = Shop()
    dispatcher = EventDispatcher(consumer_from_url(url, group_id="site"))
    dispatcher.handler(OrderShipped)(shop.note_shipment)
    with dispatcher, EventEmitter(producer_from_url(url), source="site") as emitter:
        for order_id, item in enumerate(["lamp", "chair", "table"], start=1):
            print(shop.order_view(emitter, order_id, item))
        if not shop.all_shipped.wait(timeout=30):
            raise SystemExit("not everything was shipped within 30 s: does examples.shop.service run?")
    for order_id, parcel in sorted(shop.parcels.items()):
        print(f"order {order_id}: {parcel}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the broker")
    main(parser.parse_args().url)
