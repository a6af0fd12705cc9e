"""The cost of an event as something grows: handlers, captured segments, middleware, dependencies, and so on."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated, Any

from benchmarks import ours
from benchmarks.bodies import OrderBody, body
from benchmarks.core import TOPIC, Pass, Register, Took, add_routes, handler_with, seconds_of
from benchmarks.plans import Count, Plan, consuming
from benchmarks.results import peak_mb
from dispytch import Event, EventBase, EventDispatcher, SubscriptionParam

VALUES = {
    "handlers": (1, 10, 100, 1000, 10_000),
    "captures": (0, 1, 2, 4, 8),
    "middleware": (0, 1, 2, 5, 10),
    "dependencies": (0, 1, 2, 5, 10),
    "body": (100, 1000, 10_000, 100_000),
    "concurrency": (1, 10, 100, 1000),
    "backlog": (1000, 10_000, 100_000, 1_000_000),
}
SHORT = {"handlers": (1, 1000), "backlog": (1000, 10_000)}
"""What the short mode tries of those that take long."""
MEANS = {
    "handlers": "handlers, each of a topic of its own",
    "captures": "segments of the topic that the handler captures",
    "middleware": "middlewares around the handler",
    "dependencies": "dependencies of the handler",
    "body": "bytes of the body",
    "concurrency": "concurrency of the dispatcher",
    "backlog": "events that wait before the dispatcher starts",
}
_TURNS = 3
_CAPTURED = 100
"""How many values a captured segment takes."""


def values(what: str, is_short: bool) -> tuple[int, ...]:
    chosen = VALUES[what]
    return SHORT.get(what, (chosen[0], chosen[-1])) if is_short else chosen


def job(what: str, value: int, loop: str, total: int) -> dict[str, Any]:
    """Microseconds per event with one value, and the most memory that the process had."""
    if what == "backlog":
        found = _backlog(loop, value)
    else:
        register, events, concurrency = _case(what, value, total)
        found = [ours.run_on(loop, seconds_of, register, events, concurrency) / total for _ in range(_TURNS)]
    return {"value": statistics.median(found) * 1e6, "memory_mb": peak_mb()}


def _backlog(loop: str, total: int) -> list[float]:
    count = Count(total)
    plan = Plan("memory", "memory://backlog", TOPIC, "backlog", False, total, count, consuming(), prefill=True)
    ours.run(plan, loop)
    count.check()
    return [(count.end - count.begin) / total]


def _case(what: str, value: int, total: int) -> tuple[Register, list[Any], int]:
    """What to register, what to emit, and the concurrency."""
    topic = TOPIC if what != "captures" else ".".join([TOPIC, *(f"{{{name}}}" for name in _names(value))])
    event_type = _event_type(topic, _names(value) if what == "captures" else [])
    events = [event_type(number, value if what == "body" else 0) for number in range(total)]
    concurrency = value if what == "concurrency" else 100

    def register(dispatcher: EventDispatcher, took: Took) -> None:
        if what == "captures":
            dispatcher.handler(topic=topic)(_capturing(_names(value), took))
            return
        wrapped = [Pass() for _ in range(value)] if what == "middleware" else []
        handler = handler_with(value if what == "dependencies" else 0, took)
        dispatcher.handler(topic=TOPIC, middlewares=wrapped)(handler)
        if what == "handlers":
            add_routes(dispatcher, value - 1)

    return register, events, concurrency


def _names(number: int) -> list[str]:
    return [f"part{index}" for index in range(number)]


def _event_type(topic: str, names: list[str]) -> Callable[[int, int], EventBase]:
    namespace: dict[str, Any] = {
        "__topic__": topic,
        "__module__": __name__,
        "__annotations__": {"order_id": int, "customer": str, "amount": float, **dict.fromkeys(names, str)},
    }
    event_type: Any = type("Order", (EventBase,), namespace)
    return lambda number, size: event_type(**body(number, size), **dict.fromkeys(names, f"at{number % _CAPTURED}"))


def _capturing(names: list[str], took: Took) -> Callable[..., Any]:
    """A handler that takes captured segments."""
    namespace: dict[str, Any] = {"Event": Event, "OrderBody": OrderBody, "took": took}
    namespace["Part"] = Annotated[str, SubscriptionParam()]
    arguments = "".join(f", {name}: Part" for name in names)
    text = f"async def handle(event: Event[OrderBody]{arguments}): took(event.body.order_id)"
    exec(text, namespace)  # noqa: S102 - the text above
    handler: Callable[..., Any] = namespace["handle"]
    return handler
