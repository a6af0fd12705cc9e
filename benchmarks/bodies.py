"""The event that every contender sends, receives and validates: three fields, about 100 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from dispytch import EventBase


class OrderBody(BaseModel):
    order_id: int
    customer: str
    amount: float


def order_event(topic: str) -> Callable[[int], EventBase]:
    """A function from a number to an event of the topic."""

    class Order(EventBase):
        __topic__ = topic

        order_id: int
        customer: str
        amount: float

    return lambda number: Order(**body(number))


def body(number: int) -> dict[str, Any]:
    return {"order_id": number, "customer": f"customer {number} of the {'very ' * 6}long name", "amount": number / 2}
