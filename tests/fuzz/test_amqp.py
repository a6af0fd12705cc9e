"""Headers and properties of AMQP that no client library would write: each message is handled, or dead-lettered."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pika
import pytest

from dispytch import Event, EventDispatcher
from dispytch.rabbitmq import RabbitMQConsumer
from tests.fuzz.mutations import LONG
from tests.rabbitmq.helpers import Names, channel_to, drain
from tests.support import until

pytestmark = pytest.mark.anyio

NUMBER = 5_000 if LONG else 150


@pytest.fixture
def names(rabbitmq_url: str) -> Iterator[Names]:
    names = Names(rabbitmq_url)
    yield names
    names.delete()


def field(chance: random.Random, depth: int = 0) -> bytes:
    """A value of a header: its type, and something that is of that type, if only just."""
    kind = chance.choice(b"tbBuIiLlfdDsSTVxAF" if depth < 3 else b"tIdDSTVx")
    code = bytes([kind])
    match code:
        case b"t" | b"b" | b"B":
            return code + chance.randbytes(1)
        case b"u" | b"s":
            return code + chance.randbytes(2)
        case b"I" | b"i" | b"f":
            return code + chance.randbytes(4)
        case b"L" | b"l" | b"d":
            return code + chance.choice([chance.randbytes(8), b"\x7f\xf8" + b"\0" * 6, b"\xff" * 8])
        case b"T":
            return code + struct.pack(">Q", chance.choice([0, 1_700_000_000, 253_402_300_800, 2**63 - 1]))
        case b"D":
            return code + chance.choice([b"\0", b"\x02", b"\xff"]) + chance.randbytes(4)
        case b"S" | b"x":
            return code + _long(chance.choice([b"", b"text", b"\xff\xfe", b"\xed\xa0\x80", b"\0\r\n", b"x" * 3000]))
        case b"A":
            return code + _long(b"".join(field(chance, depth + 1) for _ in range(chance.randrange(3))))
        case b"F":
            return code + table(chance, depth + 1)
        case _:
            return code


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _name(chance: random.Random) -> bytes:
    return chance.choice(
        [b"plain", b"", b"\xff\xfe", b"a\0b", b"\r\n", b"k" * 255, b"dispytch-dead-error", b"ce-specversion", b"ce-id"]
    )


def table(chance: random.Random, depth: int = 0) -> bytes:
    """A table of such."""
    entries = b""
    for _ in range(chance.randrange(4)):
        name = _name(chance)
        entries += bytes([len(name)]) + name + field(chance, depth)
    return _long(entries)


def deep(levels: int, in_tables: bool) -> bytes:
    """A table whose only value is nested that deep."""
    value = b"V"
    for _ in range(levels):
        value = b"F" + _long(b"\x01a" + value) if in_tables else b"A" + _long(value)
    return _long(b"\x01h" + value)


TABLES = [
    _long(b"\x01t" + b"F" + _long(b"\x02\xff\xfe" + b"V")),
    _long(b"\x01t" + b"A" + _long(b"F" + _long(b"\x01\xff" + b"V"))),
    *(deep(levels, in_tables) for levels in (50, 300, 480, 700, 970, 3000) for in_tables in (False, True)),
]
"""What has ended connections, again and again."""


async def test_odd_headers(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(NUMBER)
    tables = [*TABLES, *(table(chance) for _ in range(NUMBER))]
    consumer = RabbitMQConsumer(names.url, queue=names.queue, exchange=names.exchange)
    dispatcher = EventDispatcher(consumer, max_deliveries=1)
    handled: Counter[int] = Counter()

    @dispatcher.handler(topic="k")
    async def handle(event: Event[int]) -> None:
        assert repr(event.meta)
        assert all(isinstance(name, str) for name, _ in event.meta.raw_headers)
        handled[event.body] += 1

    async with dispatcher.lifespan():
        taken = _publish(names, tables, monkeypatch)
        with channel_to(names.url) as channel:
            channel.basic_publish(names.exchange, "k", b"-1")
        await until(lambda: handled[-1])
        await until(lambda: dispatcher.health().unsettled == 0)
    letters = Counter(json.loads(body) for _, _, body in drain(names.url, f"{names.queue}.dead"))
    assert handled + letters == Counter([-1, *taken])
    assert len(taken) > NUMBER / 2


def _publish(names: Names, tables: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Publishes one message with each table; the numbers of those that the broker took."""
    taken: list[int] = []

    def encode(pieces: list[bytes], headers: dict[str, Any]) -> int:
        pieces.append(tables[headers["number"]])
        return len(pieces[-1])

    numbers = list(range(len(tables)))
    with monkeypatch.context() as patch:
        while numbers:
            try:
                with channel_to(names.url) as channel:
                    channel.confirm_delivery()
                    patch.setattr("pika.data.encode_table", encode)
                    while numbers:
                        number = numbers.pop(0)
                        properties = pika.BasicProperties(headers={"number": number}, content_type="application/json")
                        channel.basic_publish(names.exchange, "k", b"%d" % number, properties)
                        taken.append(number)
            except pika.exceptions.AMQPError:
                pass  # the broker reads some tables, and breaks off at those that it cannot read
            finally:
                patch.undo()
    return taken


@pytest.mark.parametrize("key", [b"k.\xff", b"k.\xed\xa0\x80", b"k.\0", b"k." + b"x" * 253])
async def test_routing_keys_and_ids(names: Names, key: bytes) -> None:
    consumer = RabbitMQConsumer(names.url, queue=names.queue, exchange=names.exchange)
    dispatcher = EventDispatcher(consumer, max_deliveries=1)
    seen: list[tuple[str, int]] = []

    @dispatcher.handler(topic="k.{rest}")
    async def handle(event: Event[int]) -> None:
        seen.append((event.meta.params["rest"], event.body))

    async with dispatcher.lifespan():
        with channel_to(names.url) as channel:
            for body in (b"1", b"nonsense"):
                channel.basic_publish(names.exchange, key, body, pika.BasicProperties(message_id=key))
            channel.basic_publish(names.exchange, "k.good", b"2")
        await until(lambda: ("good", 2) in seen)
        await until(lambda: dispatcher.health().unsettled == 0)
    rest = key[2:].decode("utf-8", "backslashreplace")
    assert sorted(seen) == sorted([(rest, 1), ("good", 2)])
    assert [body for _, _, body in drain(names.url, f"{names.queue}.dead")] == [b"nonsense"]
