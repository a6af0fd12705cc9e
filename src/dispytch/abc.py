"""What a transport implements, and the values that it exchanges with the rest.

Reading `dispytch.memory` beside this file should be enough to write another. Transports carry bytes: they know no
serializer and no handler. They raise errors of `dispytch.errors`, with the client library's own as ``__cause__``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import anyio
import anyio.lowlevel

from dispytch._core.codec import Deserializer, Serializer
from dispytch._core.context import Middleware
from dispytch._core.deadletters import dead_letter_topic
from dispytch._core.deduplication import Claim, Store
from dispytch._core.envelope import Envelope
from dispytch._core.hooks import EmitCall, EmitHook
from dispytch._core.messages import DeadLetter, Delivery, Features, Headers, Message, Outcome, Receipt, Settlement
from dispytch._core.patterns import Pattern
from dispytch._core.routes import EventConfig, EventRoute, EventSubscription
from dispytch.errors import ConfigurationError, DispytchError

__all__ = [
    "BlockingProducer",
    "Claim",
    "Clock",
    "Consumer",
    "DeadLetter",
    "Delivery",
    "Deserializer",
    "EmitCall",
    "EmitHook",
    "Envelope",
    "EventConfig",
    "EventRoute",
    "EventSubscription",
    "Features",
    "Headers",
    "Message",
    "Middleware",
    "Outcome",
    "Producer",
    "ProducerBase",
    "Progress",
    "Receipt",
    "Serializer",
    "Settlement",
    "Store",
    "Subscription",
]


class Clock(Protocol):
    """Where the dispatcher has the time from; tests put their own in its place."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits. May be cancelled."""
        ...


class SystemClock:
    """The real time."""

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


class ProducerBase(ABC):
    """What producers of both worlds know of their transport."""

    transport: ClassVar[str]
    """The transport's name, for messages."""

    features: Features
    route_type: ClassVar[type[EventRoute]]
    config_type: ClassVar[type[EventConfig]]

    @abstractmethod
    def route_for(self, topic: str) -> EventRoute:
        """This transport's route for a portable topic, which may be a template."""

    def route_back(self, source: str, scope: str | None) -> EventRoute:
        """This transport's route to where a dead letter came from; see `DeadLetter`."""
        return self.route_for(source)

    def destination(self, route: EventRoute) -> str:
        """What telemetry calls the place that a route leads to: the topic, channel or stream."""
        return route.address

    def accepts(self, route: EventRoute, config: EventConfig | None) -> str | None:
        """Why events with such a route and options cannot go this way; ``None`` if they can."""
        if not isinstance(route, self.route_type):
            return (
                f"its __route__ is a {type(route).__name__}, but the emitter's producer is {type(self).__name__}, "
                f"which takes {self.route_type.__name__}; declare __topic__ instead, or emit it elsewhere"
            )
        if config is not None and not isinstance(config, self.config_type):
            return (
                f"its __backend_config__ is a {type(config).__name__}, but {type(self).__name__} takes "
                f"{self.config_type.__name__}"
            )
        return None

    @abstractmethod
    def check(self, message: Message) -> None:
        """Raises EmitRejectedError if the broker's rules on names or sizes refuse the message. Without I/O."""


class Producer(ProducerBase):
    """Sends messages from an event loop. Made without I/O, under no loop."""

    @abstractmethod
    async def start(self) -> None:
        """Connects. Idempotent; `send` does it on first use.

        Raises:
            BrokerUnreachableError: no connection could be made.
        """

    @abstractmethod
    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        """Sends messages in order, and waits for all confirmations.

        Args:
            timeout: Seconds for connecting, sending and confirming; ``None`` waits for ever.

        Returns:
            The outcomes, aligned with the messages. What has no answer in time is an EmitTimeoutError; an error per
            message is returned, never raised. Several tasks may call at once. If it is cancelled, the messages may have
            gone.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Flushes and disconnects. Idempotent. Clients that were handed in ready-made stay open.

        Raises:
            UnconfirmedError: some messages were not confirmed, with their count.
        """

    def blocking(self) -> BlockingProducer:
        """The same producer for blocking code; it shares nothing with this one but the description.

        Raises:
            ConfigurationError: this transport has no blocking side.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot be used from blocking code; use dispytch.EventEmitter in an event loop"
        )


class BlockingProducer(ProducerBase):
    """Sends messages from blocking code. All methods may be called from several threads at once."""

    @abstractmethod
    def start(self) -> None:
        """See `Producer.start`."""

    @abstractmethod
    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        """See `Producer.send`."""

    @abstractmethod
    def stop(self) -> None:
        """See `Producer.stop`."""

    def abandon(self) -> None:
        """Forgets connections that a forked child has inherited, without a word to the broker."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One thing that a consumer is to receive.

    Attributes:
        pattern: The address pattern, parsed.
        declared: The subscription as the handler declared it, or as the consumer made it from a portable one.
        dead_letters: Where failures of its handlers go: destinations that must exist before consuming starts.
    """

    pattern: Pattern
    declared: EventSubscription | EventRoute
    dead_letters: tuple[EventRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """What a consumer tells of itself without asking its broker.

    Attributes:
        polled_ago: Seconds since it last asked its broker, or heard from it; ``None`` if it has no such rhythm.
        assignment: The partitions that are its own, such as ``"orders[3]"``; ``None`` where nothing is assigned.
        lag: How many messages its group has not got yet, by topic, as it last knew; ``None`` if that cannot be told.
            A consumer that has to ask its broker for it does so by itself, as long as somebody wants to know.
        is_cut_off: It has lost its broker, and its client is trying to get back by itself.
    """

    polled_ago: float | None = None
    assignment: tuple[str, ...] | None = None
    lag: Mapping[str, int] | None = None
    is_cut_off: bool = False


class Consumer(ABC):
    """Receives messages and settles them, for one dispatcher at a time. Made without I/O, under no loop.

    Attributes:
        group_id: The consumer group; names the default dead-letter destination.
        prefetch: How many deliveries may be held beside those that are running; ``None`` for as many as may run.
        window: How many deliveries are asked for before some are settled; the dispatcher sets it before `start`.
        max_payload_bytes: Larger payloads are dead-lettered without being decoded.
        clock: The time that back-offs go by.
        acknowledges_in_order: An acknowledgement takes effect once everything before it in its partition has been
            acknowledged too.
    """

    transport: ClassVar[str]
    features: Features
    group_id: str
    prefetch: int | None = None
    window: int = 200
    max_payload_bytes: int = 1024 * 1024
    clock: Clock = SYSTEM_CLOCK
    acknowledges_in_order: ClassVar[bool] = False

    @abstractmethod
    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        """This transport's form of a subscription; ``None`` if it is another transport's.

        Raises:
            ConfigurationError: the broker cannot name or serve it.
        """

    @abstractmethod
    def dead_letter_route(self, topic: str) -> EventRoute | None:
        """The route of a dead-letter topic; ``None`` if the transport keeps no dead letters."""

    def default_dead_letter(self, subscription: Subscription) -> EventRoute | None:
        """Where failures of a subscription's handlers go if nobody said; ``None`` if the transport keeps none."""
        pattern = subscription.pattern
        return self.dead_letter_route(dead_letter_topic(pattern.source, pattern.is_literal, self.group_id))

    def dead_letter_source(self, topic: str) -> EventRoute | None:
        """Where the dead letters of a dead-letter topic are received; ``None`` if the transport keeps none."""
        return self.dead_letter_route(topic)

    @abstractmethod
    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        """Connects, and declares and subscribes what is asked for; afterwards nothing published is missed.

        Idempotent, and called again after `receive` has raised BrokerUnreachableError: then it connects anew.

        Raises:
            BrokerUnreachableError: no connection could be made.
            ConfigurationError: the client that was handed in cannot run under this event loop.
        """

    @abstractmethod
    async def receive(self, limit: int) -> Sequence[Delivery]:
        """The next deliveries, at most ``limit``; waits until there is one.

        May be cancelled at any point: nothing that it had taken is lost, it comes again.

        Raises:
            BrokerUnreachableError: the connection was lost; the dispatcher calls `start` again with a back-off.
            BrokerError: what trying again does not mend; it ends the dispatcher.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        """Carries out the outcomes: acknowledges, hands back, or writes dead letters and then acknowledges.

        A dead letter is confirmed before its source is acknowledged. A settlement that is stale, since the connection
        is another one by now, is ignored, save for the dead letters of one that is acknowledged already.

        Returns:
            Those that could not be carried out, with the reason; the dispatcher tries them again.
        """

    def is_stale(self, delivery: Delivery) -> bool:
        """Whether a delivery has become somebody else's while it waited: then it is neither handled nor settled.

        Asked before each delivery is handled, so it must be quick.
        """
        return False

    def overtaken(self, waiting: Sequence[Delivery], begun: Sequence[Delivery]) -> Sequence[Delivery]:
        """Those that wait and would have others come again, if they were handed back.

        That is so where an acknowledgement takes effect only with all before it. Asked once, at a stop: these are
        handled before it.

        Args:
            waiting: Deliveries that no handler has been called for.
            begun: Deliveries that are being handled, or are handled and not settled yet.
        """
        return ()

    async def flush(self) -> None:
        """Waits until what was settled so far has reached the broker; where `settle` sees to that, nothing is left.

        The dispatcher calls it before it handles what is acknowledged first.

        Raises:
            BrokerUnreachableError: the connection was lost; what had not arrived comes again.
            BrokerError: it did not work, and may if it is tried again.
        """
        await anyio.lowlevel.checkpoint()

    @abstractmethod
    async def stop(self) -> None:
        """Disconnects; what was received and not settled goes to others. Idempotent."""

    def destination(self, delivery: Delivery) -> str:
        """What telemetry calls the place that a delivery came from: the topic, channel or stream."""
        return delivery.source

    def progress(self) -> Progress:
        """Signs of life, for `EventDispatcher.health`. Called in the loop's thread; must be quick."""
        return Progress()

    def configuration(self) -> Mapping[str, object]:
        """What it goes by, by name, for people to read: nothing secret. Without I/O."""
        return {"group": self.group_id}

    def backlog(self) -> int | None:
        """How many messages wait to be received; ``None`` if that cannot be told."""
        return None

    def is_receiving(self) -> bool:
        """Whether what there is comes; False while a group has not told a new member its share yet."""
        return True

    def is_caught_up(self) -> bool | None:
        """Whether all has come that the broker was known to hold when nothing came any more.

        ``None`` if that cannot be told, and False while it is not known yet.
        """
        return None

    @property
    def most_unsettled(self) -> int | None:
        """After how many deliveries that are not settled none comes any more; ``None`` if there is no such limit."""
        return None
