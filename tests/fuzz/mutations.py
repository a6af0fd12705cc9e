"""Messages that are nearly right: what an emitter writes, with some of its bytes and headers changed at random."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic import BaseModel, Field

from dispytch import EventBase
from dispytch._core.emitting import MessageFactory
from dispytch.abc import Features, Headers
from dispytch.memory import MemoryBroker, MemoryEventConfig, MemoryProducer
from dispytch.serialization import Envelope, Serializer

LONG = os.environ.get("DISPYTCH_LONG") == "1"
"""Whether the numbers are large."""


class Line(BaseModel):
    sku: str
    count: int


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order.paid"
    __key__ = "{order}"
    __backend_config__ = MemoryEventConfig(headers={"tenant": "größe"})

    order: str
    amount: float
    lines: list[Line] = Field(default_factory=list)
    note: str | None = None
    tags: dict[str, int] = Field(default_factory=dict)


GOOD = Order(order="good", amount=0.0)
"""What comes after the bad ones, and must be handled."""


class Wire(NamedTuple):
    """A message as bytes."""

    payload: bytes | None
    headers: Headers
    key: bytes | None


def factory_of(serializer: Serializer, envelope: Envelope, features: Features) -> Callable[[EventBase], Wire]:
    """A function from events to what an emitter would send."""
    producer = MemoryProducer(MemoryBroker())
    producer.features = features
    numbers = iter(range(10**9))
    made = MessageFactory(
        producer,
        serializer,
        envelope,
        "/fuzz",
        lambda: 1_700_000_000.25,
        lambda count: [f"id-{next(numbers)}" for _ in range(count)],
    )

    def wire_of(event: EventBase) -> Wire:
        message = made.make(event)
        return Wire(message.payload, message.headers, message.key)

    return wire_of


def orders(chance: random.Random) -> Iterator[Order]:
    """Events without end."""
    while True:
        yield Order(
            order=_text(chance),
            amount=chance.choice([0.0, -1.5, 1e308, float("inf"), float("nan"), chance.random()]),
            lines=[Line(sku=_text(chance), count=chance.getrandbits(40)) for _ in range(chance.randrange(3))],
            note=chance.choice([None, _text(chance)]),
            tags={_text(chance): chance.randrange(300) for _ in range(chance.randrange(3))},
        )


def _text(chance: random.Random) -> str:
    return "".join(chance.choices('abc\0\n"\\{}é\U0001f600 .:/*#', k=chance.randrange(1, 9)))


_TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\u",
        b"\\ud800",
        b"null",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 400,
    ),
    *(b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc1", b"\xc0", b"\x80", b"\x90"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\x7f\xff\xff\xff"),
    *(b"\xc7\x0c\xff" + b"\xff" * 12, b"\xd6\xff\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf8" + b"\0" * 6),
    *(b'"body":', b'"data":', b'"id":', b'"specversion":"1.0",', b'"data_base64":"!"', b'"dispytchheaders":"[["'),
]
"""What means something to one of the codecs."""


def mutated(chance: random.Random, wire: Wire) -> Wire:
    """The message with some of it changed; now and then as it was."""
    payload, headers, key = wire
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 8])):
        part = chance.randrange(10)
        if part < 7:
            payload = None if chance.random() < 0.01 else mutated_bytes(chance, payload or b"")
        elif part < 9:
            headers = _mutated_headers(chance, headers)
        else:
            key = chance.choice([None, b"", b"\xff\xfe", mutated_bytes(chance, key or b"k")])
    return Wire(payload, headers, key)


def mutated_bytes(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, inserted, left out, repeated, or swapped with what another codec would understand."""
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.randrange(1, 12))
    match chance.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[at:]
        case 2:
            return data[:at] + data[to:]
        case 3:
            return data[:at] + data[at:to] * chance.randrange(2, 40) + data[at:]
        case 4:
            return data[:at] + chance.choice(_TOKENS) + data[at:]
        case 5:
            return data[:at] + chance.choice(_TOKENS) + data[to:]
        case 6:
            return data[:at] + chance.randbytes(to - at) + data[to:]
        case _:
            flipped = bytearray(data or b"\0")
            flipped[at % len(flipped)] ^= 1 << chance.randrange(8)
            return bytes(flipped)


_NAMES = [
    *("ce_specversion", "ce_id", "ce_type", "ce_time", "ce_partitionkey", "ce-specversion", "cloudEvents:id"),
    *("content-type", "content_type", "traceparent", "tracestate", "correlationid", "ce_traceparent", "data"),
    *("dispytch-dead-error", "dispytch-dead-source", "dispytch-dead-attempts", "dispytch-attempt", "dispytch-"),
    *("", "\0", "a\r\nb", "x" * 129, "größe", "\ud800", "\\xff"),
]
_VALUES = [
    *(b"", b"1.0", b"order.paid", b"application/cloudevents+json", b"9" * 5000, "²".encode(), b"-1", b"\0\r\n"),
    *(b"\xff\xfe", b"\xed\xa0\x80", b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59", b"x" * 70_000),
]


def _mutated_headers(chance: random.Random, headers: Headers) -> Headers:
    found = list(headers)
    match chance.randrange(4):
        case 0 if found:
            del found[chance.randrange(len(found))]
        case 1 if found:
            at = chance.randrange(len(found))
            name, value = found[at]
            found[at] = (name, mutated_bytes(chance, value))
        case 2 if found:
            found[chance.randrange(len(found))] = (chance.choice(_NAMES), chance.choice(_VALUES))
        case _:
            found.insert(chance.randrange(len(found) + 1), (chance.choice(_NAMES), chance.choice(_VALUES)))
    return tuple(found)
