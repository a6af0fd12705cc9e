"""The producers of Kafka."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from dispytch._bridge import Loop
from dispytch.abc import BlockingProducer, EventConfig, EventRoute, Features, Message, Producer, ProducerBase, Receipt
from dispytch.errors import BrokerError, ConfigurationError, DispytchError, EmitRejectedError, EmitTimeoutError
from dispytch.kafka.batches import Batch, BlockingBatch, LoopBatch, unreachable
from dispytch.kafka.routes import KafkaEventConfig, KafkaEventRoute, topic_problem
from dispytch.kafka.sender import FLUSH_TIMEOUT, Sender
from dispytch.kafka.settings import Settings, import_confluent
from dispytch.kafka.trouble import CONNECT_TIMEOUT

__all__ = ["FEATURES", "BlockingKafkaProducer", "KafkaProducer"]

FEATURES = Features()

_CHUNK = 1000
"""Messages that are handed over before others of the loop have their turn."""
_FULL_WAIT = 0.01
_USUAL_TIMEOUT = 30.0
_FOR_EVER = 365 * 24 * 3600.0
_OVERHEAD = 64
_MOST_OF_HEADERS = 128 * 1024
"""Bytes of a message beside key, payload and headers, at most."""
_LIBRARY_MAX_BYTES = 1_000_000

_BLOCKED = anyio.lowlevel.RunVar[anyio.CapacityLimiter]("dispytch_kafka_limiter")
_LOOP = anyio.lowlevel.RunVar[Loop]("dispytch_kafka_loop")


class _Sender(ProducerBase):
    transport: ClassVar[str] = "kafka"
    features = FEATURES
    route_type: ClassVar[type[EventRoute]] = KafkaEventRoute
    config_type: ClassVar[type[EventConfig]] = KafkaEventConfig

    def __init__(self, kafka: Any, config: Mapping[str, Any] | None = None) -> None:
        self._client: Any = None
        if isinstance(kafka, _Description):
            self._settings, self._client = kafka.settings, kafka.client
        elif isinstance(kafka, Settings):
            self._settings = kafka
        elif isinstance(kafka, str):
            self._settings = Settings.of(kafka, config, "producer")
        else:
            self._client = _ready_made(kafka, type(self).__name__)
            if config is not None:
                raise ConfigurationError("config= is for addresses; a ready-made producer has its own")
            self._settings = Settings("a ready-made producer's address", {})
        self._max_bytes = int(self._settings.get("message.max.bytes", _LIBRARY_MAX_BYTES))
        self._sound: EventRoute | None = None
        """The last route whose topic was looked at; those of a class are one."""
        self._sender: Sender | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self._settings.address}>"

    def route_for(self, topic: str) -> EventRoute:
        return KafkaEventRoute(topic)

    def check(self, message: Message) -> None:
        if message.route is not self._sound:
            topic = message.route.address
            if (problem := topic_problem(topic)) is not None:
                raise EmitRejectedError(f"the topic {topic[:300]!r} {problem}; rename it")
            self._sound = message.route
        size = _OVERHEAD + len(message.payload or b"") + len(message.key or b"")
        if size > self._max_bytes - _MOST_OF_HEADERS:  # adding up its headers takes longer than making the event
            size += sum(len(name) + len(value) + 10 for name, value in message.headers)
        if isinstance(config := message.config, KafkaEventConfig):
            _check_config(config, message)
            size += len(config.partition_key or "")
        if size > self._max_bytes:
            raise EmitRejectedError(
                f"the event for {message.route.address} has {size} bytes with its headers, and message.max.bytes is "
                f"{self._max_bytes}: raise that in config= and at the broker (the topic's max.message.bytes), or send "
                "less"
            )

    def _here(self, timeout: float | None) -> Sender:
        """The client of this process, whose messages live about as long as somebody waits for them."""
        with self._lock:
            sender = self._sender
            if self._pid != os.getpid():
                self._forget()
                sender = None
            if sender is not None and not sender.is_closed and sender.trouble.fatal is None:
                if self._client is not None or sender.message_timeout == timeout:
                    return sender
                lives = sender.message_timeout
                if sender.is_used and (lives is None or (timeout is not None and timeout <= lives)):
                    return sender
                # It was opened for others, who wait less long: it is left to finish what it has.
                threading.Thread(
                    target=_retire, args=(sender, lives), name="dispytch kafka retirement", daemon=True
                ).start()
            self._sender = Sender(self._settings, timeout, self._client)
            return self._sender

    def _forget(self) -> None:
        """After a fork: the client stays with the parent."""
        sender, self._sender, self._pid = self._sender, None, os.getpid()
        if sender is not None:
            sender.abandon()
        if self._client is not None:
            raise ConfigurationError(
                "the process was forked, and a ready-made producer stays with its parent; give KafkaProducer the "
                "addresses, or make the producer after the fork"
            )

    def _finished(self, batch: Batch, sender: Sender, timeout: float | None) -> Sequence[Receipt | DispytchError]:
        address = self._settings.address
        in_time = "in time" if timeout is None else f"within {timeout:g} s"
        why = "" if sender.trouble.text is None else f" ({sender.trouble.text})"
        if sender.is_closed:
            in_time = "before the producer was stopped"
        unknown = EmitTimeoutError(f"Kafka at {address} did not confirm the event {in_time}{why}: it may have gone")
        unsent = EmitRejectedError(
            f"the event was not sent {in_time}, since too many wait for Kafka at {address} already{why}; "
            "emit less at once, or raise queue.buffering.max.messages"
        )
        return batch.outcomes(unknown, unsent)


class KafkaProducer(_Sender, Producer):
    """Sends to Kafka topics, from an event loop, or by `blocking` from blocking code.

    An emit is confirmed when all in-sync replicas have the event, and it is in the log once (``acks=all`` and
    ``enable.idempotence``). A topic that is missing is created, with the broker's own defaults, where that is allowed.

    Args:
        kafka: ``"host:9092"``, several separated by commas, a URL ``kafka://user:password@host:9092`` (``kafka+ssl://``
            for TLS with verification; options are librdkafka's settings), or a ready-made ``confluent_kafka.Producer``,
            which is not closed, and whose settings are its owner's affair.
        config: Settings of librdkafka.

    Raises:
        ConfigurationError: an address or a setting is wrong.
        MissingExtraError: confluent-kafka is not installed.
    """

    async def start(self) -> None:
        sender = self._here(_USUAL_TIMEOUT if self._sender is None else self._sender.message_timeout)
        await _in_thread(partial(sender.connect, CONNECT_TIMEOUT))

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        if not messages:
            await anyio.lowlevel.checkpoint()
            return []
        end = anyio.current_time() + (_FOR_EVER if timeout is None else timeout)
        sender = self._here(timeout)
        batch = LoopBatch(messages, _current_loop())
        refused: dict[str, DispytchError] = {}
        if topics := sender.unknown(messages):
            try:
                refused = await _in_thread(partial(sender.look_up, topics, end - anyio.current_time()))
            except BrokerError as error:
                await anyio.lowlevel.checkpoint()
                return [unreachable(error)] * len(messages)
        try:
            with anyio.CancelScope(deadline=end):
                while batch.next < len(messages):
                    if not sender.produce(batch, _CHUNK, refused):
                        await anyio.sleep(_FULL_WAIT)
                    elif batch.next < len(messages):
                        await anyio.lowlevel.checkpoint()
                await batch.done.wait()
        finally:
            if not batch.is_complete:
                sender.give_up(batch)
        return self._finished(batch, sender, timeout)

    async def stop(self) -> None:
        sender, self._sender = self._sender, None
        if sender is None or sender.pid != os.getpid():
            await anyio.lowlevel.checkpoint()
            return
        await anyio.to_thread.run_sync(sender.close, FLUSH_TIMEOUT, limiter=_limiter())

    def blocking(self) -> BlockingKafkaProducer:
        return BlockingKafkaProducer(_Description(self._settings, self._client))


class BlockingKafkaProducer(_Sender, BlockingProducer):
    """Sends to Kafka topics from blocking code; any number of threads may share one.

    Args:
        kafka: See `KafkaProducer`.
        config: Settings of librdkafka.

    Raises:
        ConfigurationError, MissingExtraError: see `KafkaProducer`.
    """

    def start(self) -> None:
        self._here(_USUAL_TIMEOUT if self._sender is None else self._sender.message_timeout).connect(CONNECT_TIMEOUT)

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        if not messages:
            return []
        end = time.monotonic() + (_FOR_EVER if timeout is None else timeout)
        sender = self._here(timeout)
        batch = BlockingBatch(messages)
        refused: dict[str, DispytchError] = {}
        if topics := sender.unknown(messages):
            try:
                refused = sender.look_up(topics, end - time.monotonic())
            except BrokerError as error:
                return [unreachable(error)] * len(messages)
        try:
            while batch.next < len(messages) and time.monotonic() < end:
                if not sender.produce(batch, _CHUNK, refused):
                    time.sleep(_FULL_WAIT)
            batch.done.wait(min(max(end - time.monotonic(), 0.0), threading.TIMEOUT_MAX))
        finally:
            if not batch.is_complete:
                sender.give_up(batch)
        return self._finished(batch, sender, timeout)

    def stop(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None and sender.pid == os.getpid():
            sender.close(FLUSH_TIMEOUT)

    def abandon(self) -> None:
        self._lock = threading.Lock()  # a thread of the parent may have held the other one
        sender, self._sender = self._sender, None
        self._pid = os.getpid() if self._client is None else self._pid
        if sender is not None:
            sender.abandon()


class _Description:
    """What a producer and its blocking side have in common."""

    def __init__(self, settings: Settings, client: Any) -> None:
        self.settings: Settings = settings
        self.client: Any = client


def _ready_made(client: Any, asked_by: str) -> Any:
    confluent = import_confluent()
    if not isinstance(client, confluent.cimpl.Producer):
        raise ConfigurationError(
            f"{asked_by} takes addresses such as 'localhost:9092', a URL such as 'kafka://localhost:9092', or a "
            f"confluent_kafka.Producer, not {type(client).__name__}"
        )
    if isinstance(client, confluent.SerializingProducer):
        raise ConfigurationError(
            f"{asked_by} sends bytes, which a SerializingProducer would serialize again; give it a "
            "confluent_kafka.Producer, or the addresses"
        )
    return client


def _check_config(config: KafkaEventConfig, message: Message) -> None:
    for name, least, most in (("partition", 0, 2**31 - 1), ("timestamp_ms", 1, 2**63 - 1)):
        value = getattr(config, name)
        if value is not None and not _is_within(value, least, most):
            raise EmitRejectedError(
                f"the event for {message.route.address}: {name} is no whole number from {least} to {most}"
            )


def _is_within(value: int | str, least: int, most: int) -> bool:
    if isinstance(value, str):
        return re.fullmatch("[0-9]{1,19}", value) is not None and least <= int(value) <= most
    return isinstance(value, int) and least <= value <= most


def _retire(sender: Sender, timeout: float | None) -> None:
    with suppress(DispytchError):  # each of its events has been told of
        sender.close(_FOR_EVER if timeout is None else timeout + 1)


def _current_loop() -> Loop:
    try:
        return _LOOP.get()
    except LookupError:
        _LOOP.set(loop := Loop())
        return loop


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _BLOCKED.get()
    except LookupError:
        _BLOCKED.set(limiter := anyio.CapacityLimiter(16))
        return limiter


async def _in_thread(call: Any) -> Any:
    """Calls what blocks for a while, and can be left to itself when nobody waits for it any more."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=_limiter())
