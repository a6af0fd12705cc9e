"""Mistakes that a worker can be told to make: each must be found by a row, or that row proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dispytch import EventDispatcher
from dispytch._core.messages import Receipt
from dispytch._core.tracker import Tracker
from dispytch._runtime.session import Session
from dispytch.abc import Message
from dispytch.ack import AckBeforeProcessing
from tests.faults.task import Mutation

__all__ = ["mutate"]


def mutate(name: Mutation) -> None:
    """Has this process make a mistake from now on."""
    _MUTATIONS[name]()


def _acknowledge_early() -> None:
    """Every event is acknowledged before it is handled."""
    made = EventDispatcher.__init__

    def make(self: EventDispatcher, *consumers: Any, **options: Any) -> None:
        made(self, *consumers, **{**options, "default_ack_policy": AckBeforeProcessing()})

    setattr(EventDispatcher, "__init__", make)  # noqa: B010 - it is no assignment that a type checker could like


def _commit_past_gap() -> None:
    """An event that is done takes all those before it for done."""

    def done(self: Tracker, positions: Iterable[int]) -> None:
        for position in self._open.intersection(positions):
            self._open.remove(position)
            self._reached = position if self._reached is None else max(position, self._reached)

    Tracker.done = done  # type: ignore[method-assign]  # it is a mutation


def _forget_letters() -> None:
    """Dead letters are taken for confirmed without being written."""
    from dispytch.kafka import KafkaProducer
    from dispytch.rabbitmq import RabbitMQProducer
    from dispytch.redis import RedisStreamProducer

    async def send(self: Any, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt]:
        return [Receipt(message.id, message.route.address) for message in messages]

    for kind in (KafkaProducer, RabbitMQProducer, RedisStreamProducer):
        kind.send = send  # type: ignore[method-assign]  # it is a mutation


def _no_drain() -> None:
    """A stop cancels at once what is in flight."""

    async def drain(self: Session) -> None:
        pass

    Session._drain = drain  # type: ignore[method-assign]  # it is a mutation


_MUTATIONS: Mapping[Mutation, Callable[[], None]] = {
    "acknowledge-early": _acknowledge_early,
    "commit-past-gap": _commit_past_gap,
    "forget-letters": _forget_letters,
    "no-drain": _no_drain,
}
