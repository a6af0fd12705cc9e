"""What the shop tells."""

from __future__ import annotations

from dispytch import EventBase


class OrderPlaced(EventBase):
    __topic__ = "django_shop.orders"
    __key__ = "{order_id}"

    order_id: int
    item: str


class OrderShipped(EventBase):
    __topic__ = "django_shop.shipments"
    __key__ = "{order_id}"

    order_id: int
