"""pika by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, ClassVar

from benchmarks.bodies import validate
from benchmarks.plans import Message

_EXCHANGE = "dispytch"
_ACK_EVERY = 250


class Rabbitmq:
    consuming: ClassVar[str] = f"pika BlockingConnection, prefetch 500, one multiple ack for {_ACK_EVERY} messages"
    emitting: ClassVar[str] = (
        "many: pika SelectConnection in a thread, confirms counted; one: BlockingConnection with confirms; "
        "persistent, mandatory"
    )

    def __init__(self, url: str, topic: str) -> None:
        self._url = url
        self._topic = topic
        self._pipeline: _Pipeline | None = None
        self._connection: Any = None
        self._channel: Any = None
        self._stopping = threading.Event()

    def one(self, message: Message) -> None:
        import pika

        if self._channel is None:
            self._connection = pika.BlockingConnection(pika.URLParameters(self._url))
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        payload, headers = message
        properties = pika.BasicProperties(headers=dict(headers), delivery_mode=2)
        self._channel.basic_publish(_EXCHANGE, self._topic, payload, properties, mandatory=True)

    def many(self, messages: Sequence[Message]) -> None:
        if self._pipeline is None:
            self._pipeline = _Pipeline(self._url, self._topic)
        self._pipeline.send(messages)

    def receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        import pika

        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=2 * _ACK_EVERY)
        last = acknowledged = 0

        def on_message(channel: Any, method: Any, properties: Any, payload: bytes) -> None:
            nonlocal last, acknowledged
            took(validate(payload).order_id)
            last = method.delivery_tag
            if last % _ACK_EVERY == 0:
                channel.basic_ack(last, multiple=True)
                acknowledged = last

        channel.basic_consume(group, on_message)
        ready()
        while not self._stopping.is_set():
            connection.process_data_events(time_limit=0.1)
        if last > acknowledged:
            channel.basic_ack(last, multiple=True)
        connection.close()

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
        if self._connection is not None:
            self._connection.close()


class _Pipeline:
    """A connection with an I/O loop in a thread, which publishes without waiting for each confirmation."""

    def __init__(self, url: str, topic: str) -> None:
        import pika

        self._topic = topic
        self._properties: Any = pika.BasicProperties
        self._channel: Any = None
        self._sent = self._refused = 0
        self._unconfirmed: dict[int, None] = {}
        self._all = threading.Event()
        self._connection: Any = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )
        self._thread = threading.Thread(target=self._connection.ioloop.start)
        self._thread.start()
        self._all.wait()

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._all.set())

    def _on_confirm(self, frame: Any) -> None:
        tag, unconfirmed = frame.method.delivery_tag, self._unconfirmed
        if frame.method.NAME != "Basic.Ack":
            self._refused += 1
        if frame.method.multiple:
            for covered in list(takewhile(lambda sent: sent <= tag, unconfirmed)):
                del unconfirmed[covered]
        else:
            unconfirmed.pop(tag, None)
        if not unconfirmed:
            self._all.set()

    def send(self, messages: Sequence[Message]) -> None:
        self._all.clear()

        def publish() -> None:
            self._unconfirmed.update(dict.fromkeys(range(self._sent + 1, self._sent + len(messages) + 1)))
            self._sent += len(messages)
            for payload, headers in messages:
                properties = self._properties(headers=dict(headers), delivery_mode=2)
                self._channel.basic_publish(_EXCHANGE, self._topic, payload, properties, mandatory=True)

        self._connection.ioloop.add_callback_threadsafe(publish)
        self._all.wait()
        if self._refused:
            raise RuntimeError(f"{self._refused} messages were refused")

    def close(self) -> None:
        self._connection.ioloop.add_callback_threadsafe(self._connection.close)
        self._thread.join()
