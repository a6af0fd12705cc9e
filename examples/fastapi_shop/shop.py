"""What requests and handlers share: an emitter, and what would be a database.

These functions are dependencies of FastAPI's routes and of Dispytch's handlers alike.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dispytch import EventEmitter, producer_from_url

BROKER_URL = os.environ.get("BROKER_URL", "memory://fastapi_shop")

emitter = EventEmitter(producer_from_url(BROKER_URL), source="fastapi_shop", timeout=5.0)


@dataclass
class Orders:
    """All orders, and the parcels of those that were shipped."""

    items: dict[int, str] = field(default_factory=dict)
    parcels: dict[int, str] = field(default_factory=dict)


orders = Orders()


def get_emitter() -> EventEmitter:
    return emitter


def get_orders() -> Orders:
    return orders
