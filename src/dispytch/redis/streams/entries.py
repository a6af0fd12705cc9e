"""Between messages and the entries of a stream.

The payload is the field ``data``; the other fields are the headers. An entry of somebody else's without that field is
the mapping of its fields.
"""

from __future__ import annotations

import json
from typing import Any

from dispytch._core.deadletters import own_header
from dispytch.abc import Delivery, Message, Receipt
from dispytch.redis.batches import Command
from dispytch.redis.source import import_redis
from dispytch.redis.streams.routes import RedisStreamEventConfig

__all__ = ["DATA", "XADD", "delivery_of", "restored"]

DATA = "data"
"""The field that holds the payload."""
_KEY = "ce_partitionkey"
_VERSION, _PAYLOAD = b"ce_specversion", b"data"
_MOST_CACHED = 1024
_MOST_FIELDS = 64
"""Entries of more are of as many shapes as there are entries, where names are data."""
_LATEST = 253_402_300_799_000
"""The end of the year 9999 in milliseconds: ids may be any number, dates may not."""


class _Bulks(dict[str, bytes]):
    """Field names as they go over the wire."""

    def __missing__(self, name: str) -> bytes:
        if len(self) >= _MOST_CACHED:
            self.clear()  # names may be without number: start over rather than grow
        raw = name.encode("utf-8", "surrogatepass")
        bulk = self[name] = b"$%d\r\n%b\r\n" % (len(raw), raw)
        return bulk


_bulks = _Bulks()


def _pack(message: Message) -> bytes:
    stream, payload, config = message.route.address.encode(), message.payload, message.config
    parts: list[bytes] = [b"$%d\r\n%b\r\n" % (len(stream), stream)]
    words = 3
    if isinstance(config, RedisStreamEventConfig) and config.maxlen is not None:
        limit = b"%d" % config.maxlen
        parts.append(b"$6\r\nMAXLEN\r\n$1\r\n~\r\n$%d\r\n%b\r\n" % (len(limit), limit))
        words += 3
    parts.append(b"$1\r\n*\r\n")
    lacks_key = message.key is not None
    for name, value in message.headers:
        parts += (_bulks[name], b"$%d\r\n%b\r\n" % (len(value), value))
        lacks_key = lacks_key and name != _KEY
    words += 2 * len(message.headers)
    if lacks_key and message.key is not None:  # some envelopes have no place for it
        parts += (_bulks[_KEY], b"$%d\r\n%b\r\n" % (len(message.key), message.key))
        words += 2
    if payload is not None:
        parts.append(b"$4\r\ndata\r\n$%d\r\n%b\r\n" % (len(payload), payload))
        words += 2
    return b"*%d\r\n$4\r\nXADD\r\n%b" % (words, b"".join(parts))


def _receipt(message: Message, reply: Any) -> Receipt:
    if not isinstance(reply, bytes):
        raise import_redis().exceptions.InvalidResponse("the reply to XADD is no entry id")
    return Receipt(message.id, message.route.address, offset=reply.decode("ascii", "replace"))


XADD = Command(_pack, _receipt)


class _Shape:
    """Which fields an entry has. Those of a stream are mostly of a few shapes, so each is looked at once."""

    __slots__ = ("fields", "key_at", "names", "payload_at", "version")

    def __init__(self, fields: tuple[bytes, ...]) -> None:
        self.fields: list[bytes] = [*fields]
        headers = [name for name in fields if name != _PAYLOAD]
        self.names: list[str] = [name.decode("utf-8", "backslashreplace") for name in headers]
        found = [at for at, name in enumerate(fields) if name == _PAYLOAD]
        self.payload_at: int | None = found[-1] if found else None
        self.version: bool = _VERSION in fields
        found = [at for at, name in enumerate(fields) if name == _KEY.encode()]
        self.key_at: int | None = found[-1] if found else None


class _Shapes(dict[tuple[bytes, ...], _Shape]):
    def __missing__(self, fields: tuple[bytes, ...]) -> _Shape:
        shape = _Shape(fields)
        if len(fields) <= _MOST_FIELDS:
            if len(self) >= _MOST_CACHED:
                self.clear()
            self[fields] = shape
        return shape


_shapes = _Shapes()
_last_shape = _Shape(())


def delivery_of(source: str, id: bytes, fields: list[bytes], token: object) -> Delivery:
    """An entry as a delivery."""
    global _last_shape
    names, values = fields[::2], fields[1::2]
    shape = _last_shape
    if names != shape.fields:  # to compare costs less than to hash
        shape = _last_shape = _shapes[tuple(names)]
    key = None if shape.key_at is None else values[shape.key_at]
    payload: bytes | None = None
    if shape.payload_at is not None:
        payload = values[shape.payload_at]
        if len(names) == len(shape.names) + 1:
            del values[shape.payload_at]
        else:  # somebody has written several, of which the last counts
            values = [value for name, value in zip(names, values, strict=True) if name != _PAYLOAD]
    headers = list(zip(shape.names, values, strict=True))
    as_json = payload is None and not shape.version
    if as_json:
        mapping = {name: _text(value) for name, value in headers if not own_header(name)}
        payload = json.dumps(mapping, ensure_ascii=False).encode()
    return Delivery(
        source,
        payload,
        headers,
        min(int(id.partition(b"-")[0]), _LATEST),
        key,
        id.decode(),
        None,
        token,
        as_json=as_json,
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def restored(letter: Message, delivery: Delivery) -> Message:
    """A dead letter that has the fields of its original: no payload, where that had none."""
    if not delivery.as_json:
        return letter
    return Message(letter.id, letter.route, None, letter.headers, letter.key, letter.config)
