"""The consumer of RabbitMQ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import anyio
import anyio.lowlevel

from dispytch._core.patterns import Pattern
from dispytch.abc import (
    Consumer,
    Delivery,
    EventRoute,
    EventSubscription,
    Features,
    Message,
    Outcome,
    Progress,
    Receipt,
    Settlement,
    Subscription,
)
from dispytch.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    DispytchError,
)
from dispytch.rabbitmq.aio import AioPikaOutlet
from dispytch.rabbitmq.aio_intake import AioPikaIntake, QueuesIntake, queues_of
from dispytch.rabbitmq.batches import Batch
from dispytch.rabbitmq.bindings import binding_key, check_name
from dispytch.rabbitmq.intake import Intake, PikaIntake
from dispytch.rabbitmq.producer import DEFAULT_EXCHANGE, FEATURES, Driver, RabbitMQProducer, check_driver, refuse_trio
from dispytch.rabbitmq.properties import fitted, with_exchange
from dispytch.rabbitmq.routes import RabbitMQEventRoute, RabbitMQEventSubscription, Scope
from dispytch.rabbitmq.source import Source
from dispytch.rabbitmq.topology import Topology

__all__ = ["RabbitMQConsumer", "RabbitMQObserver"]

_LETTER_TIMEOUT = 5.0
_MOST_PREFETCH = 65535
_FORGOTTEN_AFTER = 60
"""Seconds after which the broker removes the queue of an observer that is gone."""
_UNLIMITED = 1_000_000_000
"""For quorum queues, which by themselves drop what was handed back 20 times: failures are counted elsewhere."""


class RabbitMQConsumer(Consumer):
    """Receives from queues of RabbitMQ, and acknowledges each event when it has been handled.

    Consumers of one queue share its events; every queue gets all that it is bound to. At the start the exchange
    (durable, topic), the queue (durable) and one binding for each subscription are declared, and the queue for dead
    letters, ``<queue>.dead``. What exists is kept, also where it differs, with a warning.

    Args:
        connection: A URL, see `RabbitMQProducer`; or ready-made queues of aio-pika (on asyncio only), on whose
            channels nothing is declared, bound or limited, and which are not closed.
        queue: The queue to consume: the consumer group. Required with a URL.
        exchange: What the queue is bound to, for subscriptions that name no exchange.
        prefetch: How many events may be unacknowledged at once, for each queue; by default twice the concurrency of the
            dispatcher.
        declare: Whether exchanges and queues that do not exist are created; bindings are made in any case.
        queue_type: ``"classic"``, or ``"quorum"`` for queues that are replicated.
        max_payload_bytes: Larger payloads are dead-lettered without being decoded.
        driver: ``"pika"`` for pika in a thread of its own, ``"aio-pika"`` on asyncio; with ``None`` pika.

    Raises:
        ConfigurationError: the URL or another argument is wrong.
        MissingExtraError: a client library is not installed.
    """

    transport: ClassVar[str] = "rabbitmq"
    features: Features = FEATURES

    def __init__(
        self,
        *connection: Any,
        queue: str | None = None,
        exchange: str = DEFAULT_EXCHANGE,
        prefetch: int | None = None,
        declare: bool = True,
        queue_type: Literal["classic", "quorum"] = "classic",
        max_payload_bytes: int = 1024 * 1024,
        driver: Driver | None = None,
    ) -> None:
        check_driver(driver)
        if prefetch is not None and not 0 < prefetch <= _MOST_PREFETCH:
            raise ConfigurationError(f"prefetch={prefetch} is not from 1 to {_MOST_PREFETCH}")
        if queue_type not in ("classic", "quorum"):
            raise ConfigurationError(f"queue_type={queue_type!r}: choose 'classic' or 'quorum'")
        self._queues: dict[str, Any] = {}
        self._source: Source | None = None
        if connection and isinstance(connection[0], str):
            if len(connection) > 1:
                raise ConfigurationError("RabbitMQConsumer takes one URL; give each broker a consumer of its own")
            self._source = Source(connection[0])
            if not queue:
                raise ConfigurationError("RabbitMQConsumer needs queue=, the name of the queue to consume")
        else:
            self._queues = queues_of(connection)
            if queue is not None or driver is not None:
                raise ConfigurationError("queue= and driver= are for a URL; ready-made queues bring their own")
            queue = next(iter(self._queues))
        if not exchange:
            raise ConfigurationError("the default exchange '' cannot be bound to; leave exchange= out, or name another")
        check_name(exchange, "exchange's name")
        check_name(f"{queue}.dead", "dead-letter queue's name")
        self.group_id = queue
        self.exchange: str = exchange
        self.prefetch = prefetch
        self.max_payload_bytes = max_payload_bytes
        self._declare = declare
        self._arguments = {"x-queue-type": "quorum", "x-delivery-limit": _UNLIMITED} if queue_type == "quorum" else {}
        self._driver = driver
        self._letters = None if self._source is None else RabbitMQProducer(self._source, exchange, driver=driver)
        self._outlet: AioPikaOutlet | None = None
        self._subscriptions: tuple[Subscription, ...] | None = None
        self._intake: Intake | None = None

    def __repr__(self) -> str:
        where = f" at {self._source.address}" if self._source is not None else ""
        return f"<RabbitMQConsumer of {self.group_id!r}{where}>"

    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        exchange: str | None = None
        queue: str | None = None
        kind: str | None = None
        if isinstance(declared, EventRoute):
            if not isinstance(declared, RabbitMQEventRoute):
                return None
            topic: str | None = declared.address
            exchange = declared.exchange
        elif declared.transport not in (None, self.transport):
            return None
        else:
            topic, kind = declared.topic, declared.event
            if isinstance(declared, RabbitMQEventSubscription):
                exchange, queue = declared.exchange, declared.queue
        return self._subscription(exchange, queue, topic, kind, declared.delimiter)

    def _subscription(
        self, exchange: str | None, queue: str | None, topic: str | None, kind: str | None, delimiter: str | None
    ) -> RabbitMQEventSubscription:
        for name, what in ((exchange, "exchange's name"), (queue, "queue's name"), (topic, "routing key")):
            if name is not None:
                check_name(name, what)
                if what != "routing key" and ("{" in name or "}" in name):
                    raise ConfigurationError(f"the {what} {name!r} is a template, and a subscription needs one name")
        pattern = None if topic is None else Pattern.parse(topic, delimiter)
        if exchange == "":
            if pattern is not None and not pattern.is_literal:
                raise ConfigurationError(
                    f"the default exchange has no patterns such as {topic!r}: its routing keys are the names of queues"
                )
            if queue is None:
                queue = topic
            if queue is None or topic not in (None, queue):
                raise ConfigurationError(
                    "nothing can be bound to the default exchange: its routing keys are the names of queues; give "
                    "exchange='' with the name of a queue, or another exchange"
                )
            topic = queue  # literal, so that it also matches where the queue is one for dead letters
        elif pattern is not None:
            check_name(binding_key(pattern), "binding key")
        if queue is None and not self._queues:
            queue = self.group_id
        if self._queues and queue is not None and queue not in self._queues:
            raise ConfigurationError(
                f"the consumer was given the queues {', '.join(map(repr, self._queues))}, and {queue!r} is none of them"
            )
        return RabbitMQEventSubscription(exchange, queue, topic, kind, delimiter=delimiter)

    def dead_letter_route(self, topic: str) -> EventRoute | None:
        return RabbitMQEventRoute(topic, self.exchange)

    def default_dead_letter(self, subscription: Subscription) -> EventRoute | None:
        declared = subscription.declared
        queue = declared.queue if isinstance(declared, RabbitMQEventSubscription) else None
        return RabbitMQEventRoute(f"{queue or self.group_id}.dead", "")

    def dead_letter_source(self, topic: str) -> EventRoute | None:
        return RabbitMQEventRoute(topic, "")  # the queue, however it is bound

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        await anyio.lowlevel.checkpoint()
        wanted = tuple(subscriptions) or self._subscriptions or ()
        if self._intake is not None and self._intake.error is None and wanted == self._subscriptions:
            return
        if self._source is None:
            refuse_trio("a queue of aio-pika")
        elif self._driver == "aio-pika":
            refuse_trio("driver='aio-pika'")
        await self._close()
        intake = self._make_intake(wanted)
        await intake.open()
        self._intake = intake
        self._subscriptions = wanted

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await anyio.lowlevel.checkpoint()
        if self._intake is None:
            if self._subscriptions is None:
                raise ConfigurationError("the consumer is not started; call start() first")
            raise BrokerUnreachableError("there is no connection to RabbitMQ")
        return await self._intake.read(limit)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        intake = self._intake
        acknowledged: list[int] = []
        released: list[int] = []
        with_letters: list[tuple[Settlement, int | None]] = []
        for settlement in settlements:
            owner, tag = settlement.delivery.token or (None, 0)
            if owner is not intake or intake is None:  # of an earlier channel: the broker has put it back already
                if settlement.is_acknowledged and settlement.dead_letters:  # or has not
                    with_letters.append((settlement, None))
                continue
            if settlement.outcome is Outcome.RELEASE:
                released.append(tag)
            elif settlement.outcome is Outcome.DEAD_LETTER and settlement.dead_letters:
                with_letters.append((settlement, tag))
            else:
                acknowledged.append(tag)
        if intake is not None and (acknowledged or released):
            await intake.settle(acknowledged, released)
        failed: dict[Settlement, DispytchError] = {}
        if with_letters:
            failed = await self._write_letters([settlement for settlement, _ in with_letters])
            written = [tag for settlement, tag in with_letters if tag is not None and settlement not in failed]
            if intake is not None and written:
                await intake.settle(written, [])
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return list(failed.items())

    def is_stale(self, delivery: Delivery) -> bool:
        # Of a channel that is lost: the broker has put it back already.
        intake = self._intake
        return intake is None or intake.error is not None or delivery.token[0] is not intake

    async def stop(self) -> None:
        self._subscriptions = None
        await self._close()
        if self._letters is not None:
            await self._letters.stop()

    def configuration(self) -> Mapping[str, object]:
        found: dict[str, object] = {"queue": self.group_id, "exchange": self.exchange}
        if self._source is not None:
            found["server"] = self._source.address
            found["heartbeat"] = self._source.heartbeat
            found["prefetch"] = self.prefetch or "by the dispatcher's concurrency"
            found["queue_type"] = self._arguments.get("x-queue-type", "classic")
            found["declare"] = self._declare
            found["driver"] = self._driver or "pika"
        return found

    def destination(self, delivery: Delivery) -> str:
        scope = delivery.scope
        return f"{scope.exchange}:{delivery.source}:{scope.queue}" if isinstance(scope, Scope) else delivery.source

    def progress(self) -> Progress:
        intake = self._intake
        if intake is None:
            return Progress()
        return Progress(None if intake.ran_at is None else time.monotonic() - intake.ran_at, lag=intake.lag)

    def backlog(self) -> int | None:
        intake = self._intake
        return None if intake is None or intake.error is not None else len(intake.inbox) or None

    @property
    def most_unsettled(self) -> int | None:
        return self.prefetch or _MOST_PREFETCH

    async def _close(self) -> None:
        intake, self._intake = self._intake, None
        if intake is not None:
            await intake.close()

    def _make_intake(self, wanted: Sequence[Subscription]) -> Intake:
        limit = min(self.window if self.prefetch is None else self.prefetch, _MOST_PREFETCH)
        topology = Topology.of(wanted, self.exchange, self.group_id, self._arguments, self._declare)
        if self._source is None:
            channel = next(iter(self._queues.values())).channel
            self._outlet = AioPikaOutlet(None, lambda exchange: channel, mandatory=True)
            return QueuesIntake(self._queues, topology)
        if self._driver == "aio-pika":
            return AioPikaIntake(self._source, topology, limit)
        return PikaIntake(self._source, topology, limit)

    async def _write_letters(self, settlements: Sequence[Settlement]) -> dict[Settlement, DispytchError]:
        """Writes dead letters, and returns the settlements whose letters are not all confirmed."""
        letters: list[Message] = []
        owners: list[Settlement] = []
        for settlement in settlements:
            scope = settlement.delivery.scope
            letters += [fitted(with_exchange(letter, scope)) for letter in settlement.dead_letters]
            owners += [settlement] * len(settlement.dead_letters)
        failed: dict[Settlement, DispytchError] = {}
        outcomes = await self._send(letters)
        for settlement, outcome in zip(owners, outcomes, strict=True):
            if isinstance(outcome, DispytchError):
                failed.setdefault(settlement, outcome)
        return failed

    async def _send(self, letters: Sequence[Message]) -> Sequence[Receipt | DispytchError]:
        if self._letters is not None:
            return await self._letters.send(letters, _LETTER_TIMEOUT)
        batch = Batch(letters, self.exchange, "its connection", _LETTER_TIMEOUT, lambda: None)
        if self._outlet is not None:
            with anyio.move_on_after(_LETTER_TIMEOUT):
                await self._outlet.send(batch)
        return batch.outcomes()


class RabbitMQObserver(RabbitMQConsumer):
    """Receives by a queue of its own, which the broker removes a minute after its last consumer has gone.

    Args:
        connection: The URL; see `RabbitMQProducer`.
        queue: The queue's name, which nobody else may have.
    """

    def __init__(self, connection: str, *, queue: str) -> None:
        super().__init__(connection, queue=queue)
        self._arguments = {"x-expires": _FORGOTTEN_AFTER * 1000}
