"""The producer and the consumer of the in-process broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import anyio.lowlevel

from dispytch._bridge import Waker
from dispytch.abc import (
    BlockingProducer,
    Clock,
    Consumer,
    Delivery,
    EventConfig,
    EventRoute,
    EventSubscription,
    Features,
    Message,
    Producer,
    ProducerBase,
    Progress,
    Receipt,
    Settlement,
    Subscription,
)
from dispytch.errors import ConfigurationError, DispytchError, EmitRejectedError
from dispytch.memory.broker import MemoryBroker
from dispytch.memory.groups import Member
from dispytch.memory.routes import MemoryEventConfig, MemoryEventRoute

__all__ = ["BlockingMemoryProducer", "MemoryConsumer", "MemoryProducer"]


class _Sender(ProducerBase):
    transport: ClassVar[str] = "memory"
    features: Features = Features()
    route_type: ClassVar[type[EventRoute]] = MemoryEventRoute
    config_type: ClassVar[type[EventConfig]] = MemoryEventConfig

    def __init__(self, broker: MemoryBroker) -> None:
        if not isinstance(broker, MemoryBroker):
            raise ConfigurationError(
                f"{type(self).__name__} needs the MemoryBroker that its consumers use, not "
                f"{type(broker).__name__}; for a URL use producer_from_url('memory://name')"
            )
        self.broker: MemoryBroker = broker

    def route_for(self, topic: str) -> EventRoute:
        return MemoryEventRoute(topic)

    def check(self, message: Message) -> None:
        if not message.route.address:
            raise EmitRejectedError("the topic is empty; give the event a topic")


class MemoryProducer(_Sender, Producer):
    """Emits to a broker in this process.

    Args:
        broker: The broker.
    """

    async def start(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        outcomes = self.broker.publish(messages)
        await anyio.lowlevel.cancel_shielded_checkpoint()  # they are published: too late to be cancelled
        return outcomes

    async def stop(self) -> None:
        await anyio.lowlevel.checkpoint()

    def blocking(self) -> BlockingMemoryProducer:
        return BlockingMemoryProducer(self.broker)


class BlockingMemoryProducer(_Sender, BlockingProducer):
    """Emits to a broker in this process, from blocking code."""

    def start(self) -> None: ...

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        return self.broker.publish(messages)

    def stop(self) -> None: ...


class MemoryConsumer(Consumer):
    """Consumes from a broker in this process.

    Args:
        broker: The broker.
        group_id: Consumers of one group share the events; every group gets all.
        start_from: Where a new group begins: with what the broker keeps, or with what comes next.
        max_payload_bytes: Larger payloads are dead-lettered without being decoded.
    """

    transport: ClassVar[str] = "memory"
    features: Features = Features()

    def __init__(
        self,
        broker: MemoryBroker,
        group_id: str = "default",
        *,
        start_from: Literal["earliest", "latest"] = "earliest",
        max_payload_bytes: int = 1024 * 1024,
    ) -> None:
        if not isinstance(broker, MemoryBroker):
            raise ConfigurationError(
                f"MemoryConsumer needs the MemoryBroker that its producers use, not {type(broker).__name__}; for a URL "
                "use consumer_from_url('memory://name', group_id=...)"
            )
        if start_from not in ("earliest", "latest"):
            raise ConfigurationError(f"start_from={start_from!r}: choose 'earliest' or 'latest'")
        self.broker: MemoryBroker = broker
        self.group_id: str = group_id
        self.start_from: Literal["earliest", "latest"] = start_from
        self.max_payload_bytes: int = max_payload_bytes
        self.clock: Clock = broker.clock
        self._member: Member | None = None
        self._waker: Waker | None = None

    def __repr__(self) -> str:
        return f"<MemoryConsumer in group {self.group_id}>"

    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        if isinstance(declared, EventRoute):
            return declared if isinstance(declared, MemoryEventRoute) else None
        return declared if declared.transport in (None, self.transport) else None

    def dead_letter_route(self, topic: str) -> EventRoute | None:
        return MemoryEventRoute(topic)

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        await anyio.lowlevel.checkpoint()
        self._waker = Waker()
        self._member = self.broker.join(
            self.group_id, self._member, subscriptions, self._waker.wake, self.start_from == "earliest"
        )

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await anyio.lowlevel.checkpoint()
        if self._member is None or self._waker is None:
            raise ConfigurationError("the consumer is not started; call start() first")
        while not (deliveries := self.broker.fetch(self._member, limit)):
            await self._waker.wait()
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        if self._member is None:
            return []
        return self.broker.settle(self._member, settlements)

    async def stop(self) -> None:
        if self._member is not None:
            self.broker.leave(self._member)
            self._member = None
        await anyio.lowlevel.checkpoint()

    def configuration(self) -> Mapping[str, object]:
        return {"group": self.group_id, "start_from": self.start_from}

    def progress(self) -> Progress:
        return Progress(lag=None if self._member is None else self.broker.lag(self._member))

    def backlog(self) -> int | None:
        return None if self._member is None else self.broker.backlog(self._member)
