"""What a RabbitMQ says when it is asked; blocking, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dispytch._core.findings import Finding
from dispytch.abc import Subscription
from dispytch.rabbitmq.producer import DEFAULT_EXCHANGE
from dispytch.rabbitmq.routes import RabbitMQEventSubscription
from dispytch.rabbitmq.source import Source, connect_error, import_pika

__all__ = ["diagnose"]


def diagnose(url: str, subscriptions: Sequence[Subscription], group: str | None) -> Iterator[Finding]:
    """What there is of the subscriptions of a queue, and what is not.

    Raises:
        BrokerError, ConfigurationError: it cannot be asked.
    """
    source = Source(url)
    pika = import_pika()
    from pika.adapters.utils.connection_workflow import (
        AMQPConnectorException,
    )  # no AMQPError, for a broker that is mute

    try:
        connection = pika.BlockingConnection(source.pika_parameters("dispytch doctor"))
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError) as error:
        raise connect_error(error, source) from error
    try:
        told = connection._impl.server_properties or {}
        product, version = told.get("product", "an AMQP broker"), told.get("version", "without a version")
        yield Finding("ok", f"{product} {version} at {source.address}")
        for exchange in _exchanges(subscriptions):
            yield _ask(connection, f"exchange {exchange}", "exchange_declare", exchange=exchange, passive=True)
        for queue in _queues(subscriptions, group):
            yield _ask(connection, f"queue {queue}", "queue_declare", queue=queue, passive=True)
        yield Finding(
            "ok", "what this user may write and configure shows when it is done: RabbitMQ does not tell before"
        )
    finally:
        if connection.is_open:
            connection.close()


def _exchanges(subscriptions: Sequence[Subscription]) -> Iterator[str]:
    found: dict[str, None] = {}
    for item in subscriptions:
        declared = item.declared
        if isinstance(declared, RabbitMQEventSubscription) and declared.exchange != "":
            found[declared.exchange or DEFAULT_EXCHANGE] = None
    return iter(found)


def _queues(subscriptions: Sequence[Subscription], group: str | None) -> Iterator[str]:
    found: dict[str, None] = {}
    for item in subscriptions:
        queue = item.declared.queue if isinstance(item.declared, RabbitMQEventSubscription) else None
        if queue or group:
            found[queue or group or ""] = None
    for item in subscriptions:
        found.update((route.address, None) for route in item.dead_letters)
    return iter(found)


def _ask(connection: Any, what: str, method: str, **arguments: Any) -> Finding:
    """Declares passively, on a channel of its own, since a refusal closes it."""
    pika = import_pika()
    channel = connection.channel()
    try:
        reply = getattr(channel, method)(**arguments).method
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == 404:
            return Finding("warning", f"there is no {what}; a start declares it, unless declare=False")
        return Finding("problem", f"{what}: {error.reply_text}; check the user's permissions")
    channel.close()
    if method != "queue_declare":
        return Finding("ok", what)
    return Finding("ok", f"{what}: {reply.message_count} messages wait, {reply.consumer_count} consumers")
