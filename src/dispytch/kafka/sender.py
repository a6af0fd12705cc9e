"""A confluent producer with the thread that serves its delivery reports; any number of threads and tasks hand over."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from dispytch._core.messages import new_receipt
from dispytch.abc import EventRoute, Message, Receipt
from dispytch.errors import DispytchError, EmitRejectedError, UnconfirmedError
from dispytch.kafka.batches import Batch, finish_all, report_error
from dispytch.kafka.routes import KafkaEventConfig
from dispytch.kafka.settings import Settings, import_confluent
from dispytch.kafka.topics import missing_topics
from dispytch.kafka.trouble import Trouble, reach

__all__ = ["FLUSH_TIMEOUT", "Sender"]

logger: logging.Logger = logging.getLogger("dispytch")

FLUSH_TIMEOUT = 5.0
"""Seconds that a stop waits for confirmations that are under way."""
_END_TIMEOUT = 5.0
"""Seconds that it waits for the thread then; a thread in the client must not run on while the interpreter ends."""

_IDLE_WAIT = 0.25
"""Seconds between two looks at an idle client, which has callbacks of its own."""
_BUSY_WAIT = 0.1

_OWN = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 0,
}


class Sender:
    """One client. It lives in one process: a forked child must make another, and leave this one alone.

    Args:
        client: A ready-made confluent producer; otherwise one is made.
        message_timeout: After how many seconds the client gives a message up; ``None`` for never.

    Raises:
        ConfigurationError: librdkafka does not take the settings.
    """

    def __init__(self, settings: Settings, message_timeout: float | None, client: Any = None) -> None:
        self.pid: int = os.getpid()
        self.message_timeout: float | None = message_timeout
        self.is_used: bool = False
        self.is_closed: bool = False
        self.trouble: Trouble = Trouble(settings)
        self._settings = settings
        self._is_ours = client is None
        if client is None:
            milliseconds = 0 if message_timeout is None else max(int(message_timeout * 1000), 1)
            own = {name: value for name, value in _OWN.items() if settings.get(name) is None}
            own["error_cb"] = self.trouble.note
            if settings.get("message.timeout.ms") is None and settings.get("delivery.timeout.ms") is None:
                own["message.timeout.ms"] = milliseconds
            client = settings.make("Producer", own)
        self._client: Any = client
        self._known: set[str] = set()
        self._open: set[Batch] = set()
        self._looking = 0
        self._finished: list[Batch] = []
        self._work = threading.Event()
        self._changed = threading.Condition()
        self._purging = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="dispytch kafka producer", daemon=True)
        self._thread.start()
        _senders.add(self)

    # --- connecting

    def connect(self, timeout: float) -> None:
        """Waits until a broker has answered. Blocks.

        Raises:
            BrokerUnreachableError: none did.
        """
        if not self._known or self.trouble.are_down:
            with self._attention():
                reach(self._client, self.trouble, timeout, is_stopped=lambda: self.is_closed)

    def unknown(self, messages: Collection[Message]) -> set[str]:
        """The topics of messages that are to be looked up before anything is handed over."""
        routes = {id(message.route): message.route for message in messages}  # mostly one, for all of a class
        topics = {route.address for route in routes.values()}
        return topics if self.trouble.are_down else topics - self._known

    def look_up(self, topics: Collection[str], timeout: float) -> dict[str, DispytchError]:
        """Sees to it that topics exist; why messages to some cannot go. Blocks.

        Raises:
            BrokerUnreachableError: no broker answered.
        """
        with self._attention():
            missing = missing_topics(
                self._client,
                self._settings,
                self.trouble,
                topics,
                timeout,
                creates="us" if self._is_ours else "broker",
                is_stopped=lambda: self.is_closed,
            )
        self._known.update(set(topics) - missing.keys())
        address = self._settings.address
        return {
            name: EmitRejectedError(f"the topic {name} of Kafka at {address} cannot be used: {why}")
            for name, why in missing.items()
        }

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Has the thread serve the client's errors at once."""
        self._looking += 1
        self._wake()
        try:
            yield
        finally:
            self._looking -= 1

    # --- sending

    def produce(self, batch: Batch, most: int, refused: dict[str, DispytchError]) -> bool:
        """Hands over at most so many more of a batch's messages; False if the client has no room for the next one.

        Args:
            refused: Errors of topics that cannot be sent to.
        """
        confluent = import_confluent()
        produce, report, messages = self._client.produce, self._report, batch.messages
        route: EventRoute | None = None
        topic = ""
        self.is_used = True
        if batch not in self._open:
            with self._purging:  # which it comes after, or stops
                self._open.add(batch)
        for number in range(batch.next, min(batch.next + most, len(messages))):
            message = messages[number]
            if message.route is not route:
                route = message.route
                topic = route.address
            problem: DispytchError | None = refused.get(topic) if refused else None
            if problem is None:
                if self.is_closed:
                    problem = EmitRejectedError("the producer was stopped before the event was sent")
                else:
                    on_delivery = partial(report, batch, number, message.id, topic)
                    try:
                        headers = _headers(message)
                        if not isinstance(config := message.config, KafkaEventConfig):
                            produce(topic, message.payload, message.key, headers=headers, on_delivery=on_delivery)
                        else:
                            key, more = _options(config, message.key)
                            produce(topic, message.payload, key, headers=headers, on_delivery=on_delivery, **more)
                    except BufferError:
                        self._wake()
                        return False
                    except confluent.KafkaException as error:
                        code = error.args[0]
                        words = self.trouble.words(code)
                        problem = report_error(code, self._settings.address, self.trouble.text, words)
                        if not isinstance(problem, EmitRejectedError):
                            problem = EmitRejectedError(f"the event could not be handed over: {words}")
                    except (AttributeError, TypeError, ValueError) as error:  # it may quote what it does not like
                        problem = EmitRejectedError(
                            f"the event for {topic} holds what Kafka cannot carry, such as a header's name that is no "
                            f"text ({type(error).__name__})"
                        )
            batch.next = number + 1
            if problem is not None:
                batch.refuse(number, problem)
        self._wake()
        if batch.is_complete:
            self._finish(batch)
        return True

    def give_up(self, batch: Batch) -> None:
        """Nobody waits for a batch any more; what is queued of it does not go if that can be helped."""
        batch.is_given_up = True
        with self._purging:
            if self._is_ours and not self.is_closed and all(one.is_given_up for one in list(self._open)):
                self._client.purge(in_queue=True, in_flight=False, blocking=False)
        self._wake()

    def close(self, timeout: float) -> None:
        """Waits for what is under way, and ends. Blocks. Idempotent.

        Raises:
            UnconfirmedError: confirmations were missing still.
        """
        with self._changed:
            if self.is_closed:
                return
            self._changed.wait_for(lambda: not self._awaited(), timeout)
            self.is_closed = True
            late = self._awaited()
        count = sum(batch.unconfirmed for batch in late)
        if self._is_ours and self._open:
            self._client.purge(in_queue=True, in_flight=True, blocking=False)
        self._wake()
        self._thread.join(_END_TIMEOUT)
        for batch in late:
            batch.finish()
        _senders.discard(self)
        if count:
            raise UnconfirmedError(
                f"{count} events were handed over for Kafka at {self._settings.address} and not confirmed before the "
                "close",
                count,
            )

    def abandon(self) -> None:
        """Leaves a client of another process alone, for ever: its threads are not in this one."""
        _senders.discard(self)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._client))

    # --- in the thread

    def _serve(self) -> None:
        poll = self._client.poll
        while not self.is_closed:
            if self._open or self._looking:
                poll(_BUSY_WAIT)
            else:
                poll(0)
                self._work.wait(_IDLE_WAIT)
                self._work.clear()
            self._hand_over()
        end = time.monotonic() + 1.0
        while self._is_ours and self._open and time.monotonic() < end:
            poll(0.01)  # the reports of what was purged
        self._hand_over()
        if self._is_ours:
            self._client = None

    def _report(self, batch: Batch, number: int, id: str, topic: str, error: Any, message: Any) -> None:
        if error is None:
            outcome: Receipt | DispytchError = new_receipt(
                Receipt, (id, topic, message.partition(), message.offset(), None)
            )
            if self.trouble.since is not None:
                self.trouble.clear()
        else:
            why, text = self.trouble.text, self.trouble.words(error)
            outcome = report_error(error, self._settings.address, why, text)
            self._known.discard(topic)
        if batch.report(number, outcome):
            self._finished.append(batch)

    def _hand_over(self) -> None:
        if self._finished:
            finished, self._finished = self._finished, []
            self._open.difference_update(finished)
            finish_all(finished)
            with self._changed:
                self._changed.notify_all()

    # --- in any

    def _finish(self, batch: Batch) -> None:
        self._open.discard(batch)
        batch.finish()
        with self._changed:
            self._changed.notify_all()

    def _awaited(self) -> list[Batch]:
        return [batch for batch in list(self._open) if not batch.is_given_up]

    def _wake(self) -> None:
        if not self._work.is_set():
            self._work.set()


def _headers(message: Message) -> list[tuple[str, bytes]]:
    """The headers as the client wants them; a name that cannot be encoded would crash it."""
    headers = list(message.headers)
    for name, _ in headers:
        if not name.isascii():
            name.encode()
    return headers


def _options(config: KafkaEventConfig, key: bytes | None) -> tuple[bytes | None, dict[str, Any]]:
    more: dict[str, Any] = {}
    if config.partition_key is not None:
        key = config.partition_key.encode()
    if config.partition is not None:
        more["partition"] = int(config.partition)
    if config.timestamp_ms is not None:
        more["timestamp"] = int(config.timestamp_ms)
    return key, more


_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


def _close_all() -> None:
    for sender in list(_senders):
        if sender.pid == os.getpid():
            try:
                sender.close(FLUSH_TIMEOUT)
            except DispytchError as error:
                logger.warning("A producer was not closed before the exit: %s", error)


atexit.register(_close_all)
