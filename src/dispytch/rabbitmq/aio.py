"""Publishing through aio-pika, on asyncio: with a connection of our own, or by exchanges that were handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel

from dispytch._bridge import was_cancelled
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, UnconfirmedError
from dispytch.rabbitmq.batches import Batch, Sent, surely_refused
from dispytch.rabbitmq.properties import properties_of, target_of
from dispytch.rabbitmq.routes import RabbitMQEventConfig
from dispytch.rabbitmq.source import Source, closed_error, connect_error, import_aio_pika
from dispytch.rabbitmq.topology import Refused, Steps, ensure_exchange

__all__ = ["AioPikaOutlet", "carry_out", "client_errors", "close_quietly", "connect", "exchanges_of", "refused"]

_MOST_IN_FLIGHT = 500
_FLUSH_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 2.0
_GRACE = 0.1
"""Seconds after the end of a channel in which the client tells those who wait for it."""
_CODES = {
    "ChannelAccessRefused": 403,
    "ChannelNotFoundEntity": 404,
    "ChannelLockedResource": 405,
    "ChannelPreconditionFailed": 406,
}


def client_errors() -> tuple[type[Exception], ...]:
    """What aio-pika raises when something is wrong with a channel or a connection."""
    errors = import_aio_pika().exceptions
    return (errors.AMQPError, errors.ChannelInvalidStateError, OSError, RuntimeError, EOFError, ValueError)


def refused(error: BaseException) -> Refused | None:
    """The broker's word, if it was the broker who closed a channel."""
    for kind in type(error).__mro__:
        if (code := _CODES.get(kind.__name__)) is not None:
            return Refused(code, str(error.args[-1] if error.args else error))
    return None


async def connect(source: Source, name: str) -> Any:
    """A connection.

    Raises:
        BrokerError: none could be made.
    """
    try:
        with anyio.fail_after(source.connect_timeout):
            return await source.connect_aio_pika(name)
    except asyncio.CancelledError as error:
        if await was_cancelled():
            raise
        problem = connect_error(ConnectionResetError(str(error) or "the connection broke off"), source)
    except Exception as error:  # some of what it raises is not its own
        problem = connect_error(error, source)
    raise problem


async def close_quietly(connection: Any) -> None:
    """Closes something of aio-pika that may be broken already."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_TIMEOUT), suppress(*client_errors()):
        await connection.close()


def _is_lost(connection: Any) -> bool:
    """Whether it has ended; ``is_closed`` tells only whether somebody closed it."""
    transport = connection.transport
    return transport is None or transport.connection.is_closed


async def carry_out(connection: Any, steps: Steps) -> None:
    """Carries out requests one after the other, on a channel of their own.

    Raises:
        BrokerError: the broker refused one, and that is not expected.
    """
    channel: Any = None
    answer: Refused | None = None
    try:
        while True:
            try:
                request = next(steps) if answer is None else steps.throw(answer)
            except StopIteration:
                return
            except Refused as unexpected:
                raise BrokerError(f"RabbitMQ refused: {unexpected.text}") from unexpected
            answer = None
            if channel is None:
                channel = connection.channel(publisher_confirms=False)
                await channel.initialize()
            underlay = await channel.get_underlay_channel()
            try:
                await getattr(underlay, request.method)(**request.arguments)
            except client_errors() as error:
                answer = refused(error)
                if answer is None:
                    raise
                channel = None
    finally:
        if channel is not None:
            await close_quietly(channel)


def exchanges_of(given: Any) -> dict[str, Any]:
    """Ready-made exchanges by name."""
    aio_pika = import_aio_pika()
    several = list(given) if isinstance(given, list | tuple) else [given]
    found: dict[str, Any] = {}
    for exchange in several:
        if not isinstance(exchange, aio_pika.abc.AbstractExchange):
            raise ConfigurationError(
                f"RabbitMQProducer takes a URL such as 'amqp://localhost', or exchanges of aio-pika, not "
                f"{type(exchange).__name__}"
            )
        found[exchange.name] = exchange
    if not found:
        raise ConfigurationError("RabbitMQProducer was given no exchange; give at least one, or a URL")
    return found


class AioPikaOutlet:
    """Publishes batches, for one event loop.

    Args:
        source: Where to connect; ``None`` for channels that were handed in.
        channel_of: The ready-made channel for an exchange, or ``None``.
        mandatory: Whether an event that no queue takes is an error.
    """

    def __init__(self, source: Source | None, channel_of: Callable[[str], Any], mandatory: bool) -> None:
        self._source = source
        self._channel_of = channel_of
        self._mandatory = mandatory
        self._connection: Any = None
        self._channel: Any = None
        self._known: set[str] = {""}
        self._lock = anyio.Lock()
        self._slots = anyio.Semaphore(_MOST_IN_FLIGHT)
        self._ids: dict[str, anyio.Event] = {}
        self._unanswered: WeakKeyDictionary[Any, list[Sent]] = WeakKeyDictionary()
        self._under_way: set[Batch] = set()
        self._done = anyio.Event()

    async def start(self) -> None:
        if self._source is not None:
            async with self._lock:
                await self._open("", self._source)
        else:
            await anyio.lowlevel.checkpoint()

    async def send(self, batch: Batch) -> None:
        self._under_way.add(batch)
        try:
            async with anyio.create_task_group() as group:
                for index, message in enumerate(batch.messages):
                    exchange, _ = target_of(message, batch.exchange)
                    try:
                        underlay = await self._underlay(exchange)
                    except BrokerUnreachableError as error:
                        batch.refuse_rest(error)
                        break
                    except BrokerError as error:
                        if batch.hand_over():
                            batch.reject(index, f"RabbitMQ has no exchange {exchange!r} for the event: {error}", error)
                        continue
                    await self._slots.acquire()
                    # What is returned is told by its id: two of one id are never in flight at once.
                    while (other := self._ids.get(message.id)) is not None:
                        self._slots.release()
                        await other.wait()
                        await self._slots.acquire()
                    if not batch.hand_over():
                        self._slots.release()
                        break
                    self._ids[message.id] = anyio.Event()
                    group.start_soon(self._publish, underlay, batch, index)
        finally:
            self._under_way.discard(batch)
            self._done.set()
            self._done = anyio.Event()

    async def stop(self) -> None:
        last = set(self._under_way)
        with anyio.move_on_after(_FLUSH_TIMEOUT):
            while last & self._under_way:
                await self._done.wait()
        count = sum(batch.unconfirmed for batch in last & self._under_way)
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await close_quietly(connection)
        if count:
            raise UnconfirmedError(f"{count} events were sent to RabbitMQ and not confirmed before the close", count)

    async def _underlay(self, exchange: str) -> Any:
        """The channel that an exchange's messages go by."""
        if self._source is None:
            channel = self._channel_of(exchange)
            if channel is None:
                raise BrokerError("the producer was not given that exchange")
            try:
                underlay = await channel.get_underlay_channel()
            except client_errors() as error:
                raise BrokerUnreachableError(f"the channel of the exchange {exchange!r} is closed") from error
            if underlay.is_closed:
                raise BrokerUnreachableError(f"the channel of the exchange {exchange!r} is closed")
            if not underlay.publisher_confirms:
                raise BrokerError("its channel has no publisher confirms; make it with publisher_confirms=True")
            return underlay
        channel = self._channel
        if channel is not None and not channel.is_closed and exchange in self._known:
            return channel
        async with self._lock:
            return await self._open(exchange, self._source)

    async def _open(self, exchange: str, source: Source) -> Any:
        try:
            if self._connection is None or _is_lost(self._connection):
                self._connection = await connect(source, "dispytch publisher")
                self._channel = None
                self._known = {""}
            if exchange not in self._known:
                await carry_out(self._connection, ensure_exchange(exchange))
                self._known.add(exchange)
            if self._channel is None or self._channel.is_closed:
                channel = self._connection.channel(publisher_confirms=True, on_return_raises=True)
                await channel.initialize()
                self._channel = await channel.get_underlay_channel()
        except asyncio.CancelledError as error:
            if await was_cancelled():
                raise
            raise closed_error(ConnectionResetError(str(error)), source) from None
        except client_errors() as error:
            raise closed_error(error, source) from error
        return self._channel

    async def _publish(self, underlay: Any, batch: Batch, index: int) -> None:
        message = batch.messages[index]
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:

            def closed(_: object) -> None:
                # The client tells most of those that wait, and forgets those that began at that very moment.
                loop.call_later(_GRACE, scope.cancel)

            underlay.closing.add_done_callback(closed)
            try:
                await self._publish_one(underlay, batch, index)
            finally:
                underlay.closing.remove_done_callback(closed)
                self._slots.release()
                self._ids.pop(message.id).set()
        if scope.cancelled_caught:
            batch.lose(index, BrokerUnreachableError("the connection to RabbitMQ broke off"))

    async def _publish_one(self, underlay: Any, batch: Batch, index: int) -> None:
        import aiormq

        message = batch.messages[index]
        exchange, key = target_of(message, batch.exchange)
        config = message.config
        mandatory = config.mandatory if isinstance(config, RabbitMQEventConfig) else None
        properties = properties_of(message)
        if "type" in properties:
            properties["message_type"] = properties.pop("type")
        headers = properties["headers"]
        properties["headers"] = {
            name: bytearray(value) if isinstance(value, bytes) else value for name, value in headers.items()
        }
        unanswered = self._unanswered.setdefault(underlay, [])
        unanswered.append(sent := Sent(batch, index, exchange, len(message.payload or b"")))
        try:
            answer = await underlay.basic_publish(
                message.payload or b"",
                exchange=exchange,
                routing_key=key,
                properties=aiormq.spec.Basic.Properties(**properties),
                mandatory=self._mandatory if mandatory is None else mandatory,
                wait=False,
            )
        except aiormq.exceptions.DeliveryError as error:  # not the cause: it may quote the message
            unanswered.remove(sent)
            if isinstance(error, aiormq.exceptions.PublishError):
                batch.reject_unroutable(index)
            else:
                batch.reject_nacked(index)
        except asyncio.CancelledError as error:
            # The client cancels what waits for an answer when a connection dies; nobody else would hear of it.
            if await was_cancelled():
                raise
            batch.lose(index, BrokerUnreachableError(f"the connection to RabbitMQ broke off ({error})"))
        except (TypeError, ValueError) as error:  # the client could not write it
            unanswered.remove(sent)
            batch.reject(index, f"the event cannot be written as AMQP ({type(error).__name__})", error)
        except client_errors() as error:
            if (word := refused(error)) is not None:
                self._known.discard(exchange)
                # Those that the same refusal concerns stay in the list until the channel is forgotten.
                if surely_refused(unanswered, word.text) is sent:
                    batch.reject(index, f"RabbitMQ refused the event: {word.text}", error)
                else:
                    batch.lose(index, BrokerUnreachableError(f"RabbitMQ closed the channel ({word.text})"))
            else:
                batch.lose(index, BrokerUnreachableError(f"the connection to RabbitMQ broke off ({error})"))
        else:
            unanswered.remove(sent)
            if isinstance(answer, aiormq.spec.Basic.Ack):
                batch.confirm(index)
            else:
                batch.reject_unroutable(index)
