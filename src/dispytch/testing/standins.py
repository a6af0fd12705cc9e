"""In-process consumers in the place of those that a dispatcher was made with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from dispytch._core.handlers import Handler
from dispytch._core.messages import Delivery, Outcome, Settlement
from dispytch._runtime.dispatcher import EventDispatcher
from dispytch.abc import Consumer, EventRoute, EventSubscription, Features, Middleware, Subscription
from dispytch.memory import MemoryBroker, MemoryConsumer

__all__ = ["in_memory"]

_LONGEST_DRAIN = 1.0
"""Seconds. What a test has left behind is not worth more; what it waits for, it waits for before the stop."""


class StandIn(MemoryConsumer):
    """Consumes from an in-process broker what another consumer would consume from its own.

    It takes the subscriptions and names that the other takes, and refuses those that the other refuses. Where the other
    has no acknowledgements, a delivery is gone as soon as it is received.
    """

    def __init__(self, original: Consumer, broker: MemoryBroker) -> None:
        super().__init__(
            broker,
            original.group_id,
            start_from="latest" if getattr(original, "start_from", "earliest") == "latest" else "earliest",
            max_payload_bytes=original.max_payload_bytes,
        )
        self.original: Consumer = original
        self.features: Features = replace(MemoryConsumer.features, acknowledges=original.features.acknowledges)

    def __repr__(self) -> str:
        return f"<in-process stand-in for {self.original!r}>"

    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        return self.original.subscription_for(declared)

    def dead_letter_route(self, topic: str) -> EventRoute | None:
        return self.original.dead_letter_route(topic)

    def default_dead_letter(self, subscription: Subscription) -> EventRoute | None:
        return self.original.default_dead_letter(subscription)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries = await super().receive(limit)
        if not self.features.acknowledges:
            await super().settle([Settlement(delivery, Outcome.ACK) for delivery in deliveries])
        return deliveries


@contextmanager
def in_memory(dispatcher: EventDispatcher, broker: MemoryBroker, outermost: Middleware) -> Iterator[None]:
    """Has a dispatcher that is not started consume from an in-process broker, for the length of a block.

    Args:
        outermost: What is put around all of its middleware meanwhile.
    """
    consumers, middlewares, tuning = dispatcher.consumers, dispatcher.middlewares, dispatcher._tuning
    stand_ins = {id(one): StandIn(one, broker) for one in consumers}
    with ExitStack() as stack:
        for registry in (dispatcher, *dispatcher._registries):
            stack.enter_context(_moved(registry.handlers, stand_ins))
        dispatcher.consumers = tuple(stand_ins.values())
        dispatcher.middlewares = (outermost, *middlewares)
        dispatcher._tuning = replace(tuning, drain_timeout=min(tuning.drain_timeout, _LONGEST_DRAIN))
        try:
            yield
        finally:
            dispatcher.consumers, dispatcher.middlewares, dispatcher._tuning = consumers, middlewares, tuning


@contextmanager
def _moved(handlers: list[Handler], stand_ins: dict[int, StandIn]) -> Iterator[None]:
    """Has handlers that are for one of the consumers listen to its stand-in."""
    before = list(handlers)
    handlers[:] = [
        replace(one, consumer=stand_ins[id(one.consumer)]) if id(one.consumer) in stand_ins else one for one in before
    ]
    try:
        yield
    finally:
        handlers[:] = before
