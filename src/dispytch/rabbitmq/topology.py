"""What exchanges, queues and bindings a consumer or a producer needs, and how they come to be.

The steps are generators that yield requests and never wait; the drivers carry them out.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dispytch.abc import Subscription
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.rabbitmq.bindings import binding_key
from dispytch.rabbitmq.routes import RabbitMQEventRoute, RabbitMQEventSubscription

__all__ = ["Refused", "Request", "Steps", "Topology", "ensure_exchange", "is_passing"]

logger: logging.Logger = logging.getLogger("dispytch")

NOT_FOUND, ACCESS_REFUSED, PRECONDITION_FAILED = 404, 403, 406


class Request(NamedTuple):
    """A method of a channel, by the name that it has in both clients."""

    method: str
    arguments: Mapping[str, Any]


class Refused(Exception):
    """The broker closed the channel instead of doing what was asked."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code: int = code
        self.text: str = text


Steps = Generator[Request, None, None]


def is_passing(text: str) -> bool:
    """Whether something was "not found" because a node of a cluster is away: it will be there again."""
    return "is down or inaccessible" in text


def ensure_exchange(name: str, declare: bool = True) -> Steps:
    """A durable topic exchange of this name, or whatever has the name already."""
    if not name:
        return
    exists = yield from _exists(Request("exchange_declare", {"exchange": name, "passive": True}))
    if not exists and (not declare or name.startswith("amq.")):
        raise BrokerError(f"there is no exchange {name!r}; declare it, or allow declare=True")
    if declare and not name.startswith("amq."):
        arguments = {"exchange": name, "exchange_type": "topic", "durable": True}
        yield from _declare(Request("exchange_declare", arguments), f"the exchange {name!r}", exists)


def _ensure_queue(name: str, arguments: Mapping[str, Any], declare: bool) -> Steps:
    exists = yield from _exists(Request("queue_declare", {"queue": name, "passive": True}))
    if not exists and not declare:
        raise BrokerError(f"there is no queue {name!r}; declare it, or allow declare=True")
    if declare:
        wanted = {"queue": name, "durable": True, "arguments": dict(arguments)}
        yield from _declare(Request("queue_declare", wanted), f"the queue {name!r}", exists)


def _exists(request: Request) -> Generator[Request, None, bool]:
    try:
        yield request
    except Refused as refused:
        if refused.code != NOT_FOUND:
            raise
        if is_passing(refused.text):
            raise BrokerUnreachableError(f"RabbitMQ cannot use it at the moment: {refused.text}") from refused
        return False
    return True


def _declare(request: Request, what: str, exists: bool) -> Steps:
    """Declares actively, which is how the broker tells whether what exists is what was asked for."""
    try:
        yield request
    except Refused as refused:
        if exists and refused.code == PRECONDITION_FAILED:
            logger.warning(
                "RabbitMQ has %s with other properties than Dispytch gives it, and it is kept: %s", what, refused.text
            )
        elif not exists or refused.code != ACCESS_REFUSED:
            raise


@dataclass
class Topology:
    """What a consumer needs.

    Attributes:
        queues: The queues to consume.
        bindings: Queue, exchange and binding key.
        letter_queues: Queues for dead letters.
        letter_bindings: The same for dead letters that go to an exchange.
        queue_arguments: Those of queues that are declared.
        declare: Whether what does not exist is created.
    """

    queue_arguments: Mapping[str, Any]
    declare: bool
    queues: dict[str, None] = field(default_factory=dict)
    bindings: dict[tuple[str, str, str], None] = field(default_factory=dict)
    letter_queues: dict[str, None] = field(default_factory=dict)
    letter_bindings: dict[tuple[str, str, str], None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        subscriptions: Sequence[Subscription],
        exchange: str,
        queue: str,
        queue_arguments: Mapping[str, Any],
        declare: bool,
    ) -> Topology:
        """The least that gives the subscriptions what they are to receive."""
        found = cls(queue_arguments, declare)
        for item in subscriptions:
            declared = item.declared
            if not isinstance(declared, RabbitMQEventSubscription):
                raise ConfigurationError(f"RabbitMQConsumer cannot serve {declared!r}")
            name = declared.queue or queue
            found.queues[name] = None
            only_the_queue = declared.exchange == "" or (
                name != queue and declared.exchange is None and declared.topic is None
            )
            if not only_the_queue:
                found.bindings[name, declared.exchange or exchange, binding_key(item.pattern)] = None
            for letter in item.dead_letters:
                if isinstance(letter, RabbitMQEventRoute):
                    found.letter_queues[letter.routing_key] = None
                    if letter.exchange != "":
                        key = letter.routing_key
                        found.letter_bindings[key, letter.exchange or exchange, key] = None
        if not found.queues:
            found.queues[queue] = None
        return found

    def steps(self) -> Steps:
        """What has it all exist. Raises BrokerError where it cannot."""
        try:
            for exchange in dict.fromkeys(name for _, name, _ in (*self.bindings, *self.letter_bindings)):
                yield from ensure_exchange(exchange, self.declare)
            routed_elsewhere = {queue for queue, _, _ in self.letter_bindings}
            for queue in {**self.queues, **self.letter_queues}:
                is_needed = self.declare or queue in self.queues or queue not in routed_elsewhere
                if is_needed:
                    yield from _ensure_queue(queue, self.queue_arguments, self.declare)
            yield from _bind(self.bindings)
            if self.declare:
                yield from _bind(self.letter_bindings)
        except Refused as refused:
            raise BrokerError(f"RabbitMQ refused to set up exchanges and queues: {refused.text}") from refused

    def check_letters(self) -> Steps:
        """Whether dead letters have somewhere to go, where nothing is to be declared. Raises BrokerError if not."""
        try:
            for queue in self.letter_queues:
                if not (yield from _exists(Request("queue_declare", {"queue": queue, "passive": True}))):
                    raise BrokerError(
                        f"there is no queue {queue!r} for dead letters, and beside ready-made queues nothing is "
                        "declared; declare it, name another one with dead_letter=, or drop what fails with "
                        "dead_letter=None"
                    )
        except Refused as refused:
            raise BrokerError(f"RabbitMQ refused to tell of the queue for dead letters: {refused.text}") from refused


def _bind(bindings: Iterable[tuple[str, str, str]]) -> Steps:
    for queue, exchange, key in bindings:
        yield Request("queue_bind", {"queue": queue, "exchange": exchange, "routing_key": key})
