"""Receiving through aio-pika, on asyncio: with a connection of our own, or from queues that were handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from dispytch._bridge import Waker, was_cancelled
from dispytch.abc import Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.rabbitmq.aio import carry_out, client_errors, close_quietly, connect, refused
from dispytch.rabbitmq.intake import Intake, cancelled_error, channel_error
from dispytch.rabbitmq.properties import delivery_of
from dispytch.rabbitmq.source import Source, closed_error, import_aio_pika
from dispytch.rabbitmq.tags import Tags
from dispytch.rabbitmq.topology import Topology

__all__ = ["AioPikaIntake", "QueuesIntake", "queues_of"]

_CLOSE_TIMEOUT = 2.0
_LOOK_EVERY = 1.0
"""Seconds between looks at whether the subscriptions are still there: not every version of the client says so."""


def queues_of(given: Sequence[Any]) -> dict[str, Any]:
    """Ready-made queues by name."""
    if not given:
        raise ConfigurationError("RabbitMQConsumer was given neither a URL nor a queue")
    aio_pika = import_aio_pika()
    found: dict[str, Any] = {}
    for queue in given:
        if not isinstance(queue, aio_pika.abc.AbstractQueue):
            raise ConfigurationError(
                f"RabbitMQConsumer takes a URL such as 'amqp://localhost', or queues of aio-pika, not "
                f"{type(queue).__name__}"
            )
        found[queue.name] = queue
    return found


class _Consumed:
    """A queue that is consumed, the channel that it is consumed on, and what is open there."""

    def __init__(self, queue: str, underlay: Any, tags: Tags) -> None:
        self.queue = queue
        self.underlay = underlay
        self.tags = tags
        self.consumer_tag = ""


class _AioIntake(Intake):
    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._consumed: list[_Consumed] = []

    async def settle(self, acknowledged: Sequence[Any], released: Sequence[Any]) -> None:
        by_queue: dict[int, tuple[list[int], list[int]]] = {}
        for which, tokens in enumerate((acknowledged, released)):
            for number, tag in tokens:
                by_queue.setdefault(number, ([], []))[which].append(tag)
        with suppress(*client_errors()):  # the channel is gone, and all of its tags with it
            for number, (acks, releases) in by_queue.items():
                one = self._consumed[number]
                if not one.underlay.is_closed:
                    await self._tell(one, acks, releases)
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def _tell(self, one: _Consumed, acks: list[int], releases: list[int]) -> None:
        verdict = one.tags.settle(acks, releases)
        underlay = one.underlay
        for tag in verdict.release:
            await underlay.basic_nack(tag, requeue=True, wait=False)
        if verdict.up_to is not None:
            await underlay.basic_ack(verdict.up_to, multiple=True, wait=False)
        for tag in verdict.single:
            await underlay.basic_ack(tag, wait=False)

    async def read(self, limit: int) -> list[Delivery]:
        while self.error is None and not self.inbox:
            for one in self._consumed:
                if one.consumer_tag not in one.underlay.consumers:
                    self._fail(cancelled_error(one.queue, self._address))
            with anyio.move_on_after(_LOOK_EVERY):
                return await super().read(limit)
        return await super().read(limit)

    async def _consume(self, queue: str, underlay: Any, tags: Tags) -> None:
        one = _Consumed(queue, underlay, tags)
        number = len(self._consumed)
        self._consumed.append(one)
        answer = await underlay.basic_consume(queue, partial(self._deliver, number))
        one.consumer_tag = answer.consumer_tag
        underlay.closing.add_done_callback(self._closed)

    async def _deliver(self, number: int, message: Any) -> None:
        one = self._consumed[number]
        method = message.delivery
        tag = method.delivery_tag
        one.tags.add(tag)
        scope = self._scope(method.exchange, one.queue)
        self.inbox.append(
            delivery_of(scope, method.routing_key, message.header.properties, message.body, (self, (number, tag)))
        )
        self._waker.wake()

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        text = str(error) if error is not None else "the connection broke off"
        self._fail(channel_error(text, self._address))

    def _fail(self, error: BrokerError) -> None:
        if not self.ended:
            self._note(error)


class AioPikaIntake(_AioIntake):
    """A connection of aio-pika of our own."""

    def __init__(self, source: Source, topology: Topology, prefetch: int) -> None:
        super().__init__(source.address)
        self._source = source
        self._topology = topology
        self._prefetch = prefetch
        self._connection: Any = None

    async def open(self) -> None:
        self._waker = Waker()
        try:
            self._connection = await connect(self._source, "dispytch consumer")
            await self._set_up()
        except asyncio.CancelledError as error:
            cancelled = await was_cancelled()
            await self.close()
            if cancelled:
                raise
            raise closed_error(ConnectionResetError(str(error)), self._source) from None
        except client_errors() as error:
            await self.close()
            word = refused(error)
            if word is not None:
                raise BrokerError(f"RabbitMQ at {self._source.address} refused: {word.text}") from error
            raise closed_error(error, self._source) from error
        except BaseException:
            await self.close()
            raise

    async def _set_up(self) -> None:
        await carry_out(self._connection, self._topology.steps())
        channel = self._connection.channel(publisher_confirms=False)
        await channel.initialize()
        underlay = await channel.get_underlay_channel()
        await underlay.basic_qos(prefetch_count=self._prefetch)
        tags = Tags()
        for queue in self._topology.queues:
            await self._consume(queue, underlay, tags)

    async def close(self) -> None:
        self.ended = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_quietly(connection)


class QueuesIntake(_AioIntake):
    """Queues that were handed in, on channels which are their owner's."""

    def __init__(self, queues: Mapping[str, Any], topology: Topology) -> None:
        super().__init__("the connection that was handed in")
        self._queues = queues
        self._topology = topology

    async def open(self) -> None:
        self._waker = Waker()
        # A channel of our own, since the broker closes the one on which it is asked for what does not exist.
        connection = getattr(next(iter(self._queues.values())).channel, "_connection", None)
        if connection is not None and not connection.is_closed:
            try:
                await carry_out(connection, self._topology.check_letters())
            except client_errors() as error:
                raise BrokerUnreachableError(f"the connection that was handed in cannot be used: {error}") from error
        tags: dict[Any, Tags] = {}
        for name, queue in self._queues.items():
            try:
                underlay = await queue.channel.get_underlay_channel()
                await self._consume(name, underlay, tags.setdefault(underlay, Tags(ranges=False)))
            except client_errors() as error:
                await self.close()
                is_robust = hasattr(queue.channel, "restore")
                kind: Callable[[str], BrokerError] = BrokerUnreachableError if is_robust else BrokerError
                raise kind(f"the channel of the queue {name!r} cannot be used: {error}") from error

    async def close(self) -> None:
        self.ended = True
        for one in self._consumed:
            one.underlay.closing.remove_done_callback(self._closed)
        with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):  # its owner may not have noticed that it is dead
            for one in self._consumed:
                if one.underlay.is_closed:
                    continue
                with suppress(*client_errors()):
                    if one.consumer_tag:
                        await one.underlay.basic_cancel(one.consumer_tag)
                    await self._tell(one, [], one.tags.open())
