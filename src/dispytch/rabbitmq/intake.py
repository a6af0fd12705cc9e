"""Receiving through pika: a connection whose thread collects deliveries for the loop, and acknowledges them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from dispytch._bridge import Waker
from dispytch.abc import Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.rabbitmq.gauge import Gauge
from dispytch.rabbitmq.properties import delivery_of, plain_delivery, text_of
from dispytch.rabbitmq.routes import Scope
from dispytch.rabbitmq.source import Source, refusal
from dispytch.rabbitmq.tags import Tags
from dispytch.rabbitmq.topology import Topology, is_passing
from dispytch.rabbitmq.wire import Wire, carry_out

__all__ = ["Intake", "PikaIntake", "cancelled_error", "channel_error"]

logger: logging.Logger = logging.getLogger("dispytch")

_STOP_TIMEOUT = 5.0
_PERMANENT = (403, 404, 530)
"""Reply codes that trying again does not mend."""
_MOST_KNOWN = 1000
"""Of what is remembered to save time, since routing keys may be any number."""


def channel_error(text: str, address: str) -> BrokerUnreachableError:
    return BrokerUnreachableError(f"RabbitMQ at {address} closed the channel: {text}")


def cancelled_error(queue: str, address: str) -> BrokerUnreachableError:
    return BrokerUnreachableError(
        f"RabbitMQ at {address} ended the subscription to the queue {queue!r}: it was deleted, or its node went down"
    )


class Intake(ABC):
    """One connection that receives; tokens of its deliveries are it and their tags."""

    def __init__(self) -> None:
        self.inbox: deque[Delivery] = deque()
        self.error: BrokerError | None = None
        self.ended: bool = False
        self._waker: Waker
        self._scopes: dict[tuple[str, str], Scope] = {}

    @abstractmethod
    async def open(self) -> None:
        """Connects, sets up what is missing, and consumes; afterwards nothing published is missed.

        Raises:
            BrokerError: it did not work; it is closed.
        """

    @abstractmethod
    async def settle(self, acknowledged: Sequence[int], released: Sequence[int]) -> None:
        """Acknowledges and hands back tags; does nothing once the connection is gone."""

    @property
    def ran_at(self) -> float | None:
        """When the thread that serves it last ran; ``None`` without one."""
        return None

    @property
    def lag(self) -> Mapping[str, int] | None:
        """How many messages wait in the queues, as last known; ``None`` if it does not look. To ask has it look."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything; what is not settled goes back to its queue. Idempotent."""

    async def read(self, limit: int) -> list[Delivery]:
        """At most ``limit`` deliveries; waits for one. May be cancelled without a loss.

        Raises:
            BrokerError: the connection, the channel or the subscription has ended.
        """
        inbox = self.inbox
        while True:
            if self.error is not None:
                # What came on a channel that is closed comes again on the next one.
                inbox.clear()
                raise self.error
            if inbox:
                return [inbox.popleft() for _ in range(min(limit, len(inbox)))]
            await self._waker.wait()

    def _note(self, error: BrokerError | None) -> None:
        """The first thing that went wrong is what `read` tells."""
        if self.error is None:
            self.error = error
        self._waker.wake()

    def _scope(self, exchange: str, queue: str) -> Scope:
        scope = self._scopes.get((exchange, queue))
        if scope is None:
            if len(self._scopes) > _MOST_KNOWN:
                self._scopes.clear()
            scope = self._scopes[exchange, queue] = Scope(text_of(exchange), queue)
        return scope


class PikaIntake(Intake):
    """A connection of pika. Methods with a leading underscore run in its thread."""

    def __init__(self, source: Source, topology: Topology, prefetch: int) -> None:
        super().__init__()
        self._source = source
        self._topology = topology
        self._prefetch = prefetch
        self._channel: Any = None
        self._tags = Tags()
        self._queues = {_consumer_tag(number).encode(): queue for number, queue in enumerate(topology.queues)}
        self._sources: dict[tuple[bytes, bytes, bytes], tuple[str, Scope]] = {}
        self._consuming = 0
        self._is_open = False
        self._gauge = Gauge(topology.queues)
        self._wire: Wire

    @property
    def ran_at(self) -> float | None:
        return self._wire.ran_at

    @property
    def lag(self) -> Mapping[str, int] | None:
        if self._is_open and self._gauge.is_due():
            self._wire.post(lambda: self._gauge.measure(self._wire.connection))
        return self._gauge.found

    async def open(self) -> None:
        self._waker = Waker()
        self._wire = Wire(self._source, "rabbitmq consumer", self._opened, self._ended)
        self._wire.start()
        try:
            while not self._is_open and self.error is None and not self.ended:
                await self._waker.wait()
        except BaseException:
            await self.close()
            raise
        if self.error is not None:
            await self.close()
            raise self.error

    async def settle(self, acknowledged: Sequence[int], released: Sequence[int]) -> None:
        self._wire.post(partial(self._settle, acknowledged, released))
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def close(self) -> None:
        self._wire.close()
        with anyio.move_on_after(_STOP_TIMEOUT, shield=True):
            while not self.ended:
                await self._waker.wait()
        if self.ended:
            self._wire.join(_STOP_TIMEOUT)
        else:
            logger.warning("The thread that receives from RabbitMQ at %s does not return.", self._source.address)

    def _opened(self) -> None:
        carry_out(self._wire, self._topology.steps(), self._set_up)

    def _set_up(self, error: BrokerError | None) -> None:
        if error is not None:
            self._fail(error)
        else:
            self._wire.connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        self._wire.connection.plain = (channel.channel_number, self._take)
        self._wire.connection.after_read = self._pass_on
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_cancel_callback(self._cancelled)
        channel.basic_qos(prefetch_count=self._prefetch, callback=self._consume)

    def _consume(self, _: Any) -> None:
        for number, queue in enumerate(self._topology.queues):
            self._channel.basic_consume(
                queue, partial(self._deliver, queue), consumer_tag=_consumer_tag(number), callback=self._consumed
            )

    def _consumed(self, _: Any) -> None:
        self._consuming += 1
        if self._consuming == len(self._topology.queues):
            self._is_open = True
            self._waker.wake()

    def _deliver(self, queue: str, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tag = method.delivery_tag
        self._tags.add(tag)
        self.inbox.append(
            delivery_of(self._scope(method.exchange, queue), method.routing_key, properties, body, (self, tag))
        )

    def _take(
        self,
        consumer: bytes,
        tag: int,
        exchange: bytes,
        key: bytes,
        headers: list[tuple[str, bytes]],
        message_id: bytes,
        timestamp: int,
        body: bytes,
    ) -> bool:
        """See `Take`: the same as `_deliver`, for what pika has not looked at."""
        where = self._sources.get((consumer, exchange, key))
        if where is None:
            if consumer not in self._queues:
                return False
            if len(self._sources) > _MOST_KNOWN:
                self._sources.clear()
            scope = self._scope(text_of(exchange), self._queues[consumer])
            where = self._sources[consumer, exchange, key] = (text_of(key), scope)
        self._tags.add(tag)
        self.inbox.append(plain_delivery(where, headers, message_id, timestamp, body, (self, tag)))
        return True

    def _pass_on(self) -> None:
        if self.inbox:
            self._waker.wake()

    def _settle(self, acknowledged: Sequence[int], released: Sequence[int]) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        verdict = self._tags.settle(acknowledged, released)
        for tag in verdict.release:
            channel.basic_nack(tag, requeue=True)
        if verdict.up_to is not None:
            channel.basic_ack(verdict.up_to, multiple=True)
        for tag in verdict.single:
            channel.basic_ack(tag)

    def _cancelled(self, frame: Any) -> None:
        self._fail(cancelled_error(self._queues[frame.method.consumer_tag.encode()], self._source.address))

    def _channel_closed(self, channel: Any, reason: BaseException) -> None:
        self._channel = None
        code, connection = getattr(reason, "reply_code", None), self._wire.connection
        if not self._wire.closing and code is not None and connection is not None and connection.is_open:
            text = getattr(reason, "reply_text", "")
            if code in _PERMANENT and not self._is_open and not is_passing(text):
                self._fail(refusal(code, text, self._source))
            else:
                self._fail(channel_error(text, self._source.address))

    def _fail(self, error: BrokerError) -> None:
        self._note(error)
        self._wire.fail(error)

    def _ended(self, error: BrokerError | None) -> None:
        self.ended = True
        self._note(error)


def _consumer_tag(number: int) -> str:
    return f"dispytch-{number}"
