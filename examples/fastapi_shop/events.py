"""What the parts of the shop tell each other."""

from __future__ import annotations

from dispytch import EventBase


class OrderPlaced(EventBase):
    __topic__ = "fastapi_shop.orders"
    __key__ = "{order_id}"

    order_id: int
    item: str


class OrderShipped(EventBase):
    __topic__ = "fastapi_shop.shipments"
    __key__ = "{order_id}"

    order_id: int
    parcel: str
