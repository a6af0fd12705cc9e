"""Publishing through pika: one connection with its thread, shared by everybody in the process who emits."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dispytch.errors import BrokerError, BrokerUnreachableError, UnconfirmedError
from dispytch.rabbitmq.batches import Batch, Sent, missing_exchange, surely_refused
from dispytch.rabbitmq.properties import properties_of, target_of
from dispytch.rabbitmq.routes import RabbitMQEventConfig
from dispytch.rabbitmq.source import Source, closed_error, import_pika
from dispytch.rabbitmq.topology import ensure_exchange
from dispytch.rabbitmq.wire import Wire, carry_out

__all__ = ["Outlet"]

_MOST_IN_FLIGHT = 2000
_MOST_BYTES_IN_FLIGHT = 8 * 1024 * 1024
"""More than this is not written before some of it is confirmed, so that little is in doubt when a connection breaks."""
_FLUSH_TIMEOUT = 5.0
_END_TIMEOUT = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
"""Seconds between attempts to connect that fail."""


class _Publisher:
    """One connection that publishes. Except where it says otherwise, methods run in the wire's thread."""

    def __init__(
        self, source: Source, mandatory: bool, delay: float, on_end: Callable[[_Publisher, bool], Sequence[Batch]]
    ) -> None:
        self.is_open: bool = False
        self._source = source
        self._mandatory = mandatory
        self._tell_end = on_end
        self._channel: Any = None
        self._queue: deque[Batch] = deque()
        self._known: set[str] = {""}
        self._asking = False
        self._in_flight: dict[int, Sent] = {}
        self._bytes = 0
        self._oldest = self._next = 1
        self._ids: dict[str, int] = {}
        self._returned: set[int] = set()
        self._obstacle: str | None = None
        self._waiting: list[Callable[[BrokerError | None], None]] = []
        self._wire = Wire(source, "rabbitmq publisher", self._opened, self._ended, delay)
        self._wire.start()

    # --- from any thread

    def submit(self, batch: Batch) -> bool:
        return self._wire.post(lambda: self._take(batch))

    def when_open(self, call: Callable[[BrokerError | None], None]) -> bool:
        return self._wire.post(lambda: call(None) if self.is_open else self._waiting.append(call))

    def close(self) -> None:
        self._wire.close()

    def join(self, timeout: float) -> None:
        self._wire.join(timeout)

    @property
    def is_alive(self) -> bool:
        return self._wire.is_alive

    @property
    def closing(self) -> bool:
        return self._wire.closing or self._wire.ended

    # --- the channel

    def _opened(self) -> None:
        connection = self._wire.connection
        connection.add_on_connection_blocked_callback(self._blocked)
        connection.add_on_connection_unblocked_callback(self._unblocked)
        self._open_channel()

    def _open_channel(self) -> None:
        self._wire.connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._oldest = self._next = 1
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._ready(channel))

    def _ready(self, channel: Any) -> None:
        self._channel = channel
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(None)
        self._pump()

    def _channel_closed(self, channel: Any, reason: BaseException) -> None:
        self._channel = None
        code, text = getattr(reason, "reply_code", None), getattr(reason, "reply_text", "")
        connection = self._wire.connection
        if self._wire.closing or connection is None or not connection.is_open or code is None:
            return  # `_ended` follows
        in_flight = list(self._in_flight.values())
        self._forget_in_flight()
        if (missing := missing_exchange(text)) is not None:
            self._known.discard(missing)
        refused = surely_refused(in_flight, text)
        cause = BrokerUnreachableError(f"RabbitMQ at {self._source.address} closed the channel ({text})")
        cause.__cause__ = reason
        for sent in in_flight:
            if sent is refused:
                sent.batch.reject(sent.number, f"RabbitMQ at {self._source.address} refused the event: {text}", reason)
            else:
                sent.batch.lose(sent.number, cause)
        self._open_channel()

    def _forget_in_flight(self) -> None:
        self._in_flight.clear()
        self._ids.clear()
        self._returned.clear()
        self._bytes = 0

    def _blocked(self, connection: Any, method: Any) -> None:
        reason = getattr(getattr(method, "method", None), "reason", "") or "no reason given"
        obstacle = f"it has blocked publishing: {reason}"
        self._obstruct(obstacle)

    def _unblocked(self, connection: Any, method: Any) -> None:
        self._obstruct(None)
        self._pump()

    def _obstruct(self, obstacle: str | None) -> None:
        self._obstacle = obstacle
        for batch in {*self._queue, *(sent.batch for sent in self._in_flight.values())}:
            batch.obstacle = obstacle

    def _ended(self, error: BrokerError | None) -> None:
        cause = error or BrokerUnreachableError(f"the connection to RabbitMQ at {self._source.address} was closed")
        lost = closed_error(cause, self._source) if isinstance(cause, BrokerUnreachableError) else cause
        in_flight = list(self._in_flight.values())
        self._forget_in_flight()
        left = self._tell_end(self, error is not None and not self.is_open)
        for sent in in_flight:
            sent.batch.lose(sent.number, lost)
        for batch in left:
            batch.refuse_rest(cause)
        for call in self._waiting:
            call(cause)

    # --- publishing

    def _take(self, batch: Batch) -> None:
        batch.obstacle = self._obstacle
        self._queue.append(batch)
        self._pump()

    def _pump(self) -> None:
        """Writes what may be written, in order."""
        channel = self._channel
        if channel is None or self._asking or self._obstacle is not None:
            return
        pika_properties = import_pika().BasicProperties
        queue, in_flight, ids = self._queue, self._in_flight, self._ids
        while queue:
            batch = queue[0]
            if batch.is_done:
                queue.popleft()
                continue
            if len(in_flight) >= _MOST_IN_FLIGHT or self._bytes >= _MOST_BYTES_IN_FLIGHT:
                return
            index = batch.handed_over
            message = batch.messages[index]
            if message.id in ids:
                return  # what is returned is told by its id: two of one id are never in flight at once
            exchange, key = target_of(message, batch.exchange)
            if exchange not in self._known:
                self._ensure(exchange)
                return
            if not batch.hand_over():
                continue
            config = message.config
            mandatory = config.mandatory if isinstance(config, RabbitMQEventConfig) else None
            body = message.payload or b""
            try:
                channel.basic_publish(
                    exchange,
                    key,
                    body,
                    pika_properties(**properties_of(message)),
                    self._mandatory if mandatory is None else mandatory,
                )
            except Exception as error:
                if not channel.is_open:
                    batch.reject(index, f"the channel to RabbitMQ at {self._source.address} is closing", error)
                    return
                # What the client cannot write has not been written in part: it makes all frames first.
                batch.reject(index, f"the event cannot be written as AMQP ({type(error).__name__})", error)
                continue
            size = len(body)
            in_flight[self._next] = Sent(batch, index, exchange, size)
            ids[message.id] = self._next
            self._next += 1
            self._bytes += size

    def _ensure(self, exchange: str) -> None:
        self._asking = True

        def done(error: BrokerError | None) -> None:
            self._asking = False
            if error is None:
                self._known.add(exchange)
            else:
                self._refuse(exchange, error)
            self._pump()

        carry_out(self._wire, ensure_exchange(exchange), done)

    def _refuse(self, exchange: str, error: BrokerError) -> None:
        """The first message in the queue cannot go, since there is no exchange for it."""
        batch = self._queue[0]
        index = batch.handed_over
        if not batch.is_done and batch.hand_over():
            batch.reject(index, f"RabbitMQ has no exchange {exchange!r} for the event: {error}", error)

    def _on_return(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tag = self._ids.get(properties.message_id)
        if tag is not None:
            self._returned.add(tag)

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tag, is_ack = method.delivery_tag, method.NAME == "Basic.Ack"
        if method.multiple:
            for one in range(self._oldest, tag + 1):
                self._confirmed(one, is_ack)
            self._oldest = tag + 1
        else:
            self._confirmed(tag, is_ack)
        self._pump()

    def _confirmed(self, tag: int, is_ack: bool) -> None:
        sent = self._in_flight.pop(tag, None)
        if sent is None:
            return
        batch, index = sent.batch, sent.number
        self._ids.pop(batch.messages[index].id, None)
        self._bytes -= sent.size
        if tag in self._returned:
            self._returned.discard(tag)
            batch.reject_unroutable(index)
        elif is_ack:
            batch.confirm(index)
        else:
            batch.reject_nacked(index)


class Outlet:
    """Publishes batches from any thread; connects when there is something to publish, and again after a loss.

    It is for one process: a forked child makes its own.
    """

    def __init__(self, source: Source, mandatory: bool) -> None:
        self.pid: int = os.getpid()
        self._source = source
        self._mandatory = mandatory
        self._condition = threading.Condition()
        self._publisher: _Publisher | None = None
        self._ending: list[_Publisher] = []
        self._under_way: set[Batch] = set()
        self._failures = 0
        self._not_before = 0.0

    def submit(self, batch: Batch) -> None:
        """Has a batch published; it is notified when all is known."""
        with self._condition:
            while True:
                publisher = self._current()
                batch.carrier = publisher
                if publisher.submit(batch):
                    self._under_way.add(batch)
                    return
                self._publisher = None

    def done(self, batch: Batch) -> None:
        """The caller has the batch's outcomes."""
        with self._condition:
            self._under_way.discard(batch)
            self._condition.notify_all()

    def connect(self, call: Callable[[BrokerError | None], None]) -> None:
        """Connects, unless there is a connection, and calls from the connection's thread with what went wrong."""
        with self._condition:
            while not self._current().when_open(call):
                self._publisher = None

    def stop(self) -> None:
        """Waits for what is under way, and disconnects; it may be used again.

        Raises:
            UnconfirmedError: confirmations were missing still.
        """
        with self._condition:
            publisher = self._publisher
            last = set(self._under_way)
            self._condition.wait_for(lambda: not last & self._under_way, _FLUSH_TIMEOUT)
            count = sum(batch.unconfirmed for batch in last & self._under_way)
            if self._publisher is publisher:
                self._publisher = None
            ending = [*self._ending, publisher] if publisher is not None else self._ending
            self._ending = []
        if publisher is not None:
            publisher.close()
        for one in ending:
            one.join(_END_TIMEOUT)
        if count:
            raise UnconfirmedError(
                f"{count} events were sent to RabbitMQ at {self._source.address} and not confirmed before the close",
                count,
            )

    def _current(self) -> _Publisher:
        publisher = self._publisher
        if publisher is None or publisher.closing:
            delay = max(0.0, self._not_before - time.monotonic())
            publisher = self._publisher = _Publisher(self._source, self._mandatory, delay, self._on_end)
        return publisher

    def _on_end(self, publisher: _Publisher, failed: bool) -> Sequence[Batch]:
        with self._condition:
            if self._publisher is publisher:
                self._publisher = None
            self._ending = [one for one in (*self._ending, publisher) if one.is_alive]
            if failed:
                pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
                self._not_before = time.monotonic() + pause * (0.5 + random.random() / 2)  # noqa: S311 - no secret
                self._failures = min(self._failures + 1, 10)
            else:
                self._failures = 0
                self._not_before = 0.0
            return [batch for batch in self._under_way if batch.carrier is publisher]
