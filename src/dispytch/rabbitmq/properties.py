"""Between messages and what AMQP has: properties, a table of headers, and the body."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dispytch._core.deadletters import DEAD, SCOPE
from dispytch.abc import Delivery, Message
from dispytch.errors import EmitRejectedError
from dispytch.rabbitmq.bindings import LONGEST_NAME
from dispytch.rabbitmq.routes import RabbitMQEventConfig, RabbitMQEventRoute, Scope

__all__ = [
    "LARGEST_HEADERS",
    "check_message",
    "check_route",
    "delivery_of",
    "fitted",
    "plain_delivery",
    "properties_of",
    "target_of",
    "text_of",
    "with_exchange",
]

LARGEST_HEADERS = 64 * 1024
"""Bytes. The broker breaks off the whole connection where they do not fit into a frame, which is 128 KiB."""

_LONGEST_HEADER_NAME = 128
_LONGEST_EXPIRATION = 2**32 - 1
"""Milliseconds; the broker closes the channel at more."""
_AS_PROPERTIES = {
    "content-type": "content_type",
    "content-encoding": "content_encoding",
    "correlation-id": "correlation_id",
    "reply-to": "reply_to",
}
"""Headers that have a place of their own in AMQP."""
_BROKERS_OWN = frozenset({"CC", "BCC", "x-death"})
"""Headers by which the broker routes, or counts: copied, they would send a message elsewhere, or close the channel."""
_DELIVERY_COUNT = "x-delivery-count"
"""Where a quorum queue tells how often it has delivered a message; of a copy it would tell something untrue."""
_SHORT = ("correlation_id", "reply_to", "content_type", "content_encoding", "type", "user_id", "app_id")
_DEFAULTS = RabbitMQEventConfig()
_MILLISECONDS = timedelta(milliseconds=1)


def target_of(message: Message, exchange: str) -> tuple[str, str]:
    """The exchange and the routing key of a message."""
    route = message.route
    if isinstance(route, RabbitMQEventRoute):
        return exchange if route.exchange is None else route.exchange, route.routing_key
    return exchange, route.address


def check_route(message: Message, exchange: str) -> None:
    """Raises EmitRejectedError for a route that the broker would refuse."""
    name, key = target_of(message, exchange)
    if not key and name in ("", exchange):
        raise EmitRejectedError("the routing key is empty; give the event a topic")
    _check_short(key, "routing key")
    _check_short(name, "exchange's name")


def check_message(message: Message) -> None:
    """Raises EmitRejectedError for what the broker would refuse, or break off at, whatever the route is."""
    _check_short(message.id, "event's id")
    if message.payload is None:
        raise EmitRejectedError(f"the message for {message.route.address} is null, which RabbitMQ cannot send")
    config = message.config
    if isinstance(config, RabbitMQEventConfig):
        for field in _SHORT:
            if (text := getattr(config, field)) is not None:
                _check_short(text, field)
        if config.priority is not None and not 0 <= config.priority <= 255:
            raise EmitRejectedError(f"priority={config.priority} is not from 0 to 255")
        if config.delivery_mode not in (1, 2):
            raise EmitRejectedError(f"delivery_mode={config.delivery_mode} is neither 1 nor 2 (persistent)")
        if config.expiration is not None and not _is_expiration(config.expiration):
            raise EmitRejectedError(
                f"expiration is not from 0 to {_LONGEST_EXPIRATION // 1000} seconds; give the seconds after which the "
                "message is dropped"
            )
    size = 0
    for header, value in message.headers:
        length = len(header.encode("utf-8", "replace"))
        size += length + len(value) + 6
        if length > _LONGEST_HEADER_NAME or not header or not header.isprintable():
            raise EmitRejectedError(
                f"the header {header[:50]!r} cannot be sent: names are printable and have 1 to {_LONGEST_HEADER_NAME} "
                "bytes"
            )
        if header in _BROKERS_OWN:
            raise EmitRejectedError(f"the header {header!r} tells the broker where to route; use a route for that")
        if header in _AS_PROPERTIES and len(value) > LONGEST_NAME:
            raise EmitRejectedError(f"the header {header!r} has {len(value)} bytes, and AMQP takes {LONGEST_NAME}")
    if size > LARGEST_HEADERS:
        raise EmitRejectedError(
            f"the headers for {message.route.address} have {size} bytes, and {LARGEST_HEADERS} are the most that is "
            "sent; put what is large into the body"
        )


def _check_short(text: str, what: str) -> None:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise EmitRejectedError(f"the {what} holds half a surrogate pair; give proper text") from None
    if size > LONGEST_NAME:
        raise EmitRejectedError(
            f"the {what} {text[:50]!r}... has {size} bytes, and RabbitMQ takes {LONGEST_NAME} at most; shorten it"
        )


def _is_expiration(value: float | timedelta) -> bool:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return 0 <= seconds * 1000 <= _LONGEST_EXPIRATION  # false for what is no number, too


def _expiration(value: float | timedelta) -> str:
    """AMQP has it as text, in milliseconds."""
    return str(value // _MILLISECONDS if isinstance(value, timedelta) else int(value * 1000))


def properties_of(message: Message) -> dict[str, Any]:
    """The properties of AMQP, by the names that both clients give them."""
    headers: dict[str, Any] = {}
    found: dict[str, Any] = {"message_id": message.id, "delivery_mode": 2, "headers": headers}
    for name, value in message.headers:
        try:
            text: str | bytes = value.decode()
        except UnicodeDecodeError:
            text = value
        field = _AS_PROPERTIES.get(name)
        if field is None:
            if name not in _BROKERS_OWN and name != _DELIVERY_COUNT:
                headers[name] = text
        elif isinstance(text, str):
            found[field] = text
    config = message.config
    if isinstance(config, RabbitMQEventConfig) and config is not _DEFAULTS:
        found["delivery_mode"] = int(config.delivery_mode)
        if config.priority is not None:
            found["priority"] = config.priority
        if config.expiration is not None:
            found["expiration"] = _expiration(config.expiration)
        for field in _SHORT:
            if (given := getattr(config, field)) is not None:
                found[field] = given
    return found


def with_exchange(letter: Message, scope: Hashable) -> Message:
    """A dead letter that tells by which exchange its original came, since the routing key alone leads nowhere."""
    names = {name for name, _ in letter.headers}
    if not isinstance(scope, Scope) or DEAD not in names or SCOPE in names:
        return letter
    headers = (*letter.headers, (SCOPE, scope.exchange.encode()))
    return Message(letter.id, letter.route, letter.payload, headers, letter.key, letter.config)


def fitted(message: Message) -> Message:
    """The message of a dead letter, with no more headers than fit: those of the letter, then the smallest others."""
    sized = [(len(name.encode("utf-8", "replace")) + len(value) + 6, name, value) for name, value in message.headers]
    if sum(size for size, _, _ in sized) <= LARGEST_HEADERS:
        return message
    room = LARGEST_HEADERS
    kept: set[int] = set()
    order = sorted(range(len(sized)), key=lambda i: (not sized[i][1].startswith("dispytch-"), sized[i][0]))
    for i in order:
        if sized[i][0] <= room:
            room -= sized[i][0]
            kept.add(i)
    headers = [(name, value) for i, (_, name, value) in enumerate(sized) if i in kept]
    return Message(message.id, message.route, message.payload, headers, message.key, message.config)


def delivery_of(scope: Scope, routing_key: str, properties: Any, body: bytes, token: Any) -> Delivery:
    """A message as it came, with properties as either client gives them."""
    unreadable: str | None = None
    headers = [
        (name, _bytes(value))
        for name, field in _AS_PROPERTIES.items()
        if (value := getattr(properties, field)) is not None
    ]
    try:
        headers += [
            (
                name if type(name) is str else text_of(name),
                value.encode("utf-8", "surrogatepass") if type(value) is str else _bytes(value),
            )
            for name, value in (properties.headers or {}).items()
        ]
    except Exception as error:  # whatever a foreign program has put there, the connection must outlive it
        unreadable = f"one of its headers cannot be told ({type(error).__name__})"
    count = (properties.headers or {}).get(_DELIVERY_COUNT)
    return Delivery(
        text_of(routing_key),
        body,
        headers,
        timestamp_ms=_milliseconds(properties.timestamp),
        position=text_of(properties.message_id) if properties.message_id else None,
        scope=scope,
        deliveries=count if isinstance(count, int) else 0,  # pika has an int of its own
        unreadable=unreadable,
        token=token,
    )


def plain_delivery(
    where: tuple[str, Scope],
    headers: list[tuple[str, bytes]],
    message_id: bytes,
    timestamp: int,
    body: bytes,
    token: Any,
) -> Delivery:
    """The same of what `deliveries.cut` finds, whose headers are strings alone.

    Args:
        where: Routing key and scope.
    """
    key, scope = where
    position = message_id.decode("utf-8", "backslashreplace") if message_id else None
    return Delivery(key, body, headers, _milliseconds(timestamp), None, position, None, token, scope=scope)


def text_of(name: str | bytes) -> str:
    """A name; pika gives bytes where it is not UTF-8, which show as escapes."""
    return name if type(name) is str else bytes(name).decode("utf-8", "backslashreplace")  # type: ignore[arg-type]  # bytes


def _milliseconds(timestamp: Any) -> int:
    if isinstance(timestamp, datetime):
        return int(timestamp.timestamp() * 1000)
    if isinstance(timestamp, int) and 0 < timestamp < 253_402_300_800:
        return timestamp * 1000
    return int(time.time() * 1000)


def _bytes(value: Any) -> bytes:
    """The value of a header that somebody else wrote, which may be anything that AMQP has."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if value is None:
        return b""
    if isinstance(value, datetime):
        return value.isoformat().encode()
    if isinstance(value, Mapping | Sequence):
        return json.dumps(_plain(value)).encode()
    return str(value).encode()


def _plain(value: Any) -> Any:
    """What is nested in a header, as JSON has it."""
    if isinstance(value, Mapping):
        return {text_of(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return _bytes(value).decode("utf-8", "replace")
