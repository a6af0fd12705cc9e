"""Deliveries cut out of what was read from a connection: what most of them are, in a fraction of pika's time.

Whatever is not plain (a body of several frames, a header that is no string, another method) is left to pika.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct, error
from typing import NamedTuple

__all__ = ["Found", "Take", "cut"]

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, 206
_BASIC = _DELIVER = 60
_LARGEST = 128 * 1024
"""A longer body comes in several frames: the broker's default for the size of one."""

_frame = Struct(">BHL").unpack_from
_method = Struct(">BHLHH").unpack_from
_header = Struct(">BHLHHQH").unpack_from
_long = Struct(">L").unpack_from
_long_long = Struct(">Q").unpack_from
_AROUND = 8  # bytes of a frame beside what it carries: its head, and the mark of its end
_METHOD_SIZE, _HEADER_SIZE = 11, 21  # bytes of the two before what is read one by one

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID, _TIMESTAMP = 1 << 10, 1 << 9, 1 << 8, 1 << 7, 1 << 6
_STRING, _BYTES = b"Sx"


class Found(NamedTuple):
    """What `cut` has found.

    Attributes:
        size: How many bytes the deliveries took.
        is_part: What follows is the beginning of another one, whose rest is still to come.
    """

    size: int
    is_part: bool


Take = Callable[[bytes, int, bytes, bytes, list[tuple[str, bytes]], bytes, int, bytes], bool]
"""From the consumer's tag, the delivery tag, exchange, routing key, headers (those that AMQP has as properties first),
message id, timestamp (seconds since the epoch; 0 for none) and body to whether it took the delivery."""


def cut(buffer: bytes, channel: int, take: Take) -> Found:
    """Hands on the deliveries at the beginning of what was read, up to the first that is not plain, or not complete.

    Args:
        channel: The number of the channel that they come by.
        take: Called with each.
    """
    at = 0
    length = len(buffer)
    while True:
        if length < at + _METHOD_SIZE:
            return Found(at, False)
        kind, number, size, class_id, method_id = _method(buffer, at)
        if kind != _METHOD or number != channel or class_id != _BASIC or method_id != _DELIVER:
            return Found(at, False)
        header_at = at + _AROUND + size
        if length < header_at + _HEADER_SIZE:
            return Found(at, size < _LARGEST and _may_be(buffer, header_at, _HEADER, channel))
        kind, number, size, _, _, body_size, flags = _header(buffer, header_at)
        if kind != _HEADER or number != channel or body_size > _LARGEST or flags & 1:
            return Found(at, False)
        body_at = header_at + _AROUND + size
        stop = body_at + _AROUND + body_size if body_size else body_at
        if length < stop:
            return Found(at, size < _LARGEST and _may_be(buffer, body_at, _BODY, channel, body_size))
        if body_size:
            kind, number, size = _frame(buffer, body_at)
            if kind != _BODY or number != channel or size != body_size:
                return Found(at, False)
        if not buffer[header_at - 1] == buffer[body_at - 1] == buffer[stop - 1] == _END:
            return Found(at, False)
        try:
            properties = _properties(buffer, header_at + _HEADER_SIZE, body_at - 1, flags)
            if properties is None:
                return Found(at, False)
            place = at + _METHOD_SIZE
            end = place + 1 + buffer[place]
            consumer = buffer[place + 1 : end]
            (tag,) = _long_long(buffer, end)
            place = end + 9  # after the tag there is a byte that tells whether it comes again
            end = place + 1 + buffer[place]
            exchange = buffer[place + 1 : end]
            key = buffer[end + 1 : end + 1 + buffer[end]]
        except (error, IndexError, UnicodeDecodeError):
            return Found(at, False)
        headers, message_id, timestamp = properties
        body = buffer[body_at + 7 : stop - 1] if body_size else b""
        if not take(consumer, tag, exchange, key, headers, message_id, timestamp, body):
            return Found(at, False)
        at = stop


def _may_be(buffer: bytes, at: int, kind: int, channel: int, size: int | None = None) -> bool:
    """Whether what has come of a frame begins as that one does; nothing else may wait for it."""
    if len(buffer) < at + _AROUND - 1:
        return True
    found = _frame(buffer, at)
    return found[:2] == (kind, channel) and size in (None, found[2])


def _properties(buffer: bytes, at: int, end: int, flags: int) -> tuple[list[tuple[str, bytes]], bytes, int] | None:
    """Headers, message id and timestamp; ``None`` if there is what must be read with more care."""
    found: list[tuple[str, bytes]] = []
    if flags & _CONTENT_TYPE:
        stop = at + 1 + buffer[at]
        found.append(("content-type", buffer[at + 1 : stop]))
        at = stop
    if flags & _CONTENT_ENCODING:
        stop = at + 1 + buffer[at]
        found.append(("content-encoding", buffer[at + 1 : stop]))
        at = stop
    first = second = at
    if flags & _HEADERS:
        first, second = at + 4, at + 4 + _long(buffer, at)[0]
        at = second
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _PRIORITY:
        at += 1
    if flags & _CORRELATION_ID:
        stop = at + 1 + buffer[at]
        found.append(("correlation-id", buffer[at + 1 : stop]))
        at = stop
    if flags & _REPLY_TO:
        stop = at + 1 + buffer[at]
        found.append(("reply-to", buffer[at + 1 : stop]))
        at = stop
    if flags & _EXPIRATION:
        at += 1 + buffer[at]
    message_id, timestamp = b"", 0
    if flags & _MESSAGE_ID:
        stop = at + 1 + buffer[at]
        message_id = buffer[at + 1 : stop]
        at = stop
    if flags & _TIMESTAMP:
        (timestamp,) = _long_long(buffer, at)
        at += 8
    if at > end:
        return None
    names = set()
    while first < second:
        kind_at = first + 1 + buffer[first]
        name = buffer[first + 1 : kind_at].decode()
        kind = buffer[kind_at]
        if (kind != _STRING and kind != _BYTES) or name in names:
            return None
        value_at = kind_at + 5
        first = value_at + _long(buffer, kind_at + 1)[0]
        names.add(name)
        found.append((name, buffer[value_at:first]))
    return (found, message_id, timestamp) if first == second else None
