"""The documents of the applications of this repository."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from dispytch import EventDispatcher, HandlerGroup, Router, consumer_from_url
from dispytch.asyncapi import document
from dispytch.cli import _shop as shop
from examples.shop import events, service, site
from tests.asyncapi.showcase import showcase
from tests.test_examples import ROOT

ALL = ("kafka://broker", "amqp://broker", "redis://broker", "memory://documents")
STREAM = "redis+stream://broker"


def applications() -> dict[str, dict[str, Any]]:
    """The documents, by the name of the application."""
    on_sale = Router()
    on_sale.handler(events.OrderShipped)(site.Shop().note_shipment)
    found = {
        "showcase": showcase(),
        "demo": _of(shop.router, *ALL, emits=[shop.OrderPlaced, shop.OrderShipped]),
        "shop service": _of(service.router, *ALL, STREAM, emits=[events.OrderShipped]),
        "shop site": _of(on_sale, STREAM, emits=[events.OrderPlaced]),
    }
    with _seeds() as seeds:
        basic, router, group, emitting = (import_module(name) for name in seeds)
        found["seed basic"] = document(basic.dispatcher, title="Basic", version="1", emits=[basic.UserSeen])
        found["seed router"] = _of(router.router, *ALL, emits=[router.UserCreated, router.UserDeleted])
        found["seed group"] = _of(group.user_events, *ALL, emits=[emitting.UserRegistered])
    return found


def _of(handlers: Router | HandlerGroup, *urls: str, emits: Any) -> dict[str, Any]:
    dispatcher = EventDispatcher(*(consumer_from_url(url, "group") for url in urls))
    dispatcher.add_registry(handlers)
    return document(dispatcher, title="Example", version="1", emits=emits)


@contextmanager
def _seeds() -> Iterator[tuple[str, ...]]:
    """The programs that import each other by folder; forgotten afterwards, since their names are common."""
    folder = ROOT / "examples" / "seed"
    sys.path.insert(0, str(folder))
    try:
        yield "basic", "router", "handling", "emitting"
    finally:
        sys.path.remove(str(folder))
        for file in folder.glob("*.py"):
            sys.modules.pop(file.stem, None)
