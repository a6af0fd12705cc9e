"""The event that every contender sends, receives and validates: three fields, about 100 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from dispytch import EventBase


class OrderBody(BaseModel):
    order_id: int
    customer: str
    amount: float


class Structured(BaseModel):
    """What the body is wrapped in where the transport has no headers."""

    data: OrderBody


validate: Callable[[bytes], OrderBody] = TypeAdapter(OrderBody).validate_json
validate_structured: Callable[[bytes], Structured] = TypeAdapter(Structured).validate_json


def get_rate() -> float:
    """The one dependency that handlers have."""
    return 1.19


def order_event(topic: str) -> Callable[[int], EventBase]:
    """A function from a number to an event of the topic."""

    class Order(EventBase):
        __topic__ = topic

        order_id: int
        customer: str
        amount: float

    return lambda number: Order(**body(number))


def body(number: int, size: int = 0) -> dict[str, Any]:
    """The fields of an event; ``size`` is about how many bytes the body has, at least 100."""
    customer = f"customer {number} of the {'very ' * 6}long name"
    return {"order_id": number, "customer": customer.ljust(size - 50, "x"), "amount": number / 2}
