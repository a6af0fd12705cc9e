"""What AsyncAPI says of single brokers: bindings, and ``x-`` fields where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dispytch.abc import Consumer, EventConfig, EventRoute, EventSubscription, ProducerBase

if TYPE_CHECKING:
    from dispytch._runtime.wiring import Bound
    from dispytch.asyncapi.traffic import Traffic

__all__ = ["PROTOCOLS", "channel_bindings", "message_bindings", "received_extras", "received_place", "sent_place"]

KAFKA, AMQP = "0.5.0", "0.3.0"
"""The versions of the bindings."""

PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "kafka": ("kafka", "kafka-secure"),
    "rabbitmq": ("amqp", "amqps"),
    "redis": ("redis", "rediss"),
    "redis-stream": ("redis", "rediss"),
}
"""The protocols of servers, by transport."""

_LONGEST = 255


def received_place(
    declared: EventSubscription | EventRoute, original: EventSubscription | EventRoute, consumer: Consumer
) -> tuple[str | None, str | None, str | None]:
    """Exchange, queue, and the address where it is not the pattern: of a queue that is consumed as it is bound."""
    if consumer.transport != "rabbitmq":
        return None, None, None
    exchange: str | None = getattr(declared, "exchange", None)
    queue: str | None = getattr(declared, "queue", None)
    if exchange == "":
        return None, queue, None
    named: str | None = getattr(original, "queue", None)
    if named is not None and exchange is None and getattr(declared, "topic", None) is None:
        return None, named, named
    return exchange or getattr(consumer, "exchange", None), None, None


def sent_place(route: EventRoute, client: ProducerBase | Consumer) -> tuple[str | None, str | None]:
    """Exchange and queue of what is sent."""
    if client.transport != "rabbitmq":
        return None, None
    exchange: str | None = getattr(route, "exchange", None)
    if exchange == "":
        return None, route.address
    return exchange or getattr(client, "exchange", None), None


def received_extras(bound: Bound, consumer: Consumer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bindings of an operation that receives, and its ``x-`` fields."""
    extras: dict[str, Any] = {"x-handler": bound.name, "x-acknowledgement": type(bound.policy).__name__}
    if consumer.features.consumer_groups:
        extras["x-group"] = consumer.group_id
    if bound.batching is not None:
        extras["x-batch"] = {"size": bound.batching.size, "wait": bound.batching.wait}
    if (letters := bound.dead_letter) is not None:
        extras["x-dead-letter"] = {"address": letters.address}
        if (exchange := getattr(letters, "exchange", None)) is not None:
            extras["x-dead-letter"]["exchange"] = exchange
    if consumer.transport == "kafka":
        group = {"type": "string", "enum": [consumer.group_id]}
        return {"kafka": {"groupId": group, "bindingVersion": KAFKA}}, extras
    if consumer.transport == "rabbitmq":
        extras["x-queue"] = getattr(bound.declared, "queue", None) or consumer.group_id
        return {"amqp": {"ack": True, "bindingVersion": AMQP}}, extras
    if consumer.transport in ("redis", "redis-stream"):
        return {"redis": {}}, extras
    return {}, extras


def sent_bindings(traffic: Traffic, config: EventConfig | None) -> dict[str, Any]:
    """The bindings of an operation that sends."""
    if traffic.wire.transport == "kafka":
        return {"kafka": {"bindingVersion": KAFKA}}
    if traffic.wire.transport == "rabbitmq":
        found: dict[str, Any] = {"deliveryMode": getattr(config, "delivery_mode", 2)}
        for name in ("priority", "mandatory"):
            if (value := getattr(config, name, None)) is not None:
                found[name] = value
        expiration = getattr(config, "expiration", None)
        if expiration is not None:
            seconds = expiration.total_seconds() if hasattr(expiration, "total_seconds") else expiration
            found["expiration"] = int(seconds * 1000)
        return {"amqp": {**found, "bindingVersion": AMQP}}
    return {"redis": {}} if traffic.wire.transport in ("redis", "redis-stream") else {}


def channel_bindings(traffic: Traffic) -> dict[str, Any]:
    """The bindings of a channel."""
    transport, place = traffic.wire.transport, traffic.place
    if transport == "kafka":
        topic = {"topic": traffic.pattern.source} if traffic.pattern.is_literal else {}
        return {"kafka": {**topic, "bindingVersion": KAFKA}}
    if transport == "rabbitmq":
        if place.queue is not None:
            queue = {"name": place.queue[:_LONGEST], "durable": True, "exclusive": False, "autoDelete": False}
            return {"amqp": {"is": "queue", "queue": queue, "bindingVersion": AMQP}}
        name = (place.exchange or "")[:_LONGEST]
        exchange = {"name": name, "type": "topic", "durable": True, "autoDelete": False}
        return {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": AMQP}}
    return {"redis": {}} if transport in ("redis", "redis-stream") else {}


def message_bindings(traffic: Traffic, key: str | None, config: EventConfig | None) -> dict[str, Any]:
    """The bindings of a message."""
    if traffic.wire.transport == "kafka" and key is not None:
        return {"kafka": {"key": {"type": "string", "description": f"Made by {key}"}, "bindingVersion": KAFKA}}
    if traffic.wire.transport == "rabbitmq":
        found = {
            name: value
            for name, attribute in (("contentEncoding", "content_encoding"), ("messageType", "type"))
            if isinstance(value := getattr(config, attribute, None), str)
        }
        return {"amqp": {**found, "bindingVersion": AMQP}} if found else {}
    return {}
