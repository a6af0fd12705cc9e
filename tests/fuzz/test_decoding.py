"""Whatever comes is handled once or dead-lettered once, as it was; what comes after it is handled."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter

from dispytch import Event, EventDispatcher
from dispytch._core.deadletters import own_header
from dispytch.abc import Features
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.serialization import (
    BareEnvelope,
    ClassicEnvelope,
    CloudEventsEnvelope,
    Deserializer,
    Envelope,
    JSONDeserializer,
    JSONSerializer,
    MessagePackDeserializer,
    MessagePackSerializer,
)
from tests.fuzz.mutations import GOOD, LONG, Order, Wire, factory_of, mutated, orders
from tests.helpers import publish

pytestmark = pytest.mark.anyio

NUMBER = 2_500 * (40 if LONG else 1)
"""Inputs of each codec in each of the four envelopes: 10,000 a codec, on each loop."""

CODECS = {"json": (JSONSerializer, JSONDeserializer), "msgpack": (MessagePackSerializer, MessagePackDeserializer)}
ENVELOPES: dict[str, tuple[Envelope, Features]] = {
    "binary": (CloudEventsEnvelope(), Features()),
    "structured": (CloudEventsEnvelope(), Features(headers=False)),
    "classic": (ClassicEnvelope(), Features()),
    "bare": (BareEnvelope(), Features()),
}


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("codec", CODECS)
async def test_whatever_comes_is_handled_or_dead_lettered_once(codec: str, envelope: str) -> None:
    # given messages that are nearly right, each after a seed of its own, and a right one at the end
    serializer, deserializer = CODECS[codec]
    wrapping, features = ENVELOPES[envelope]
    wire_of = factory_of(serializer(), wrapping, features)
    chance = random.Random(f"{codec} {envelope}")
    events = orders(chance)
    sent = [_without_headers(mutated(chance, wire_of(next(events))), features) for _ in range(NUMBER)]
    sent.append(wire_of(GOOD))
    broker = MemoryBroker(retention=NUMBER + 1)
    for wire in sent:
        publish(broker, "orders", *wire)
    # when they are handled
    consumer = MemoryConsumer(broker)
    consumer.features = features
    dispatcher = EventDispatcher(consumer, max_deliveries=1, deserializer=deserializer(), envelope=wrapping)
    handled: list[tuple[int, Order]] = []

    @dispatcher.handler(topic="orders")
    async def on_order(event: Event[Order]) -> None:
        assert repr(event.meta)
        assert event.meta.timestamp.tzinfo is not None
        assert event.meta.attempt == 1
        handled.append((_offset(event.meta.message.position), event.body))

    async with dispatcher.lifespan():
        await dispatcher.idle()
        skipped = dispatcher.health().skipped_null
    # then each is where it belongs, once
    dead = {_offset(letter.dead_letter.position): letter for letter in broker.dead_letters if letter.dead_letter}
    taken = {offset for offset, _ in handled}
    assert (len(dead), len(taken)) == (len(broker.dead_letters), len(handled))
    assert not taken & dead.keys()
    null = set(range(len(sent))) - taken - dead.keys()
    assert skipped == len(null)
    assert all(_has_no_data(sent[offset]) for offset in null)
    assert (NUMBER, GOOD) in handled
    # and dead letters are the originals, with a reason that is no longer than 1 KiB and quotes nothing
    for offset, letter in dead.items():
        payload, headers, key = sent[offset]
        assert (letter.payload, letter.key) == (payload, key)
        kept = tuple(header for header in headers if not own_header(header[0]))
        assert tuple(letter.headers)[: len(kept)] == kept
        assert all(own_header(name) for name, _ in tuple(letter.headers)[len(kept) :])
        assert letter.dead_letter is not None
        assert letter.dead_letter.error.startswith("DecodeError: ")
        assert len(letter.dead_letter.error.encode()) <= 1024
        assert letter.dead_letter.source == "orders"
        assert letter.dead_letter.attempts == (0 if letter.dead_letter.handler is None else 1)
    # and where the payload is nothing but the body, those that validate were handled, and no others
    if envelope == "bare":
        expected = {offset for offset, wire in enumerate(sent) if _validates(deserializer(), wire.payload)}
        assert {offset for offset, _ in handled} == expected
    assert len(handled) > NUMBER / 20
    assert len(dead) > NUMBER / 20


def _without_headers(wire: Wire, features: Features) -> Wire:
    return wire if features.headers else Wire(wire.payload, (), wire.key)


def _has_no_data(wire: Wire) -> bool:
    """Whether it is null, or a structured CloudEvent of the same meaning."""
    if wire.payload is None:
        return True
    document = json.loads(wire.payload)
    return "specversion" in document and not {"data", "data_base64"} & document.keys()


def _offset(position: str | None) -> int:
    assert position is not None
    return int(position.rpartition("/")[2])


_ORDER: TypeAdapter[Order] = TypeAdapter(Order)


def _validates(codec: Deserializer, payload: bytes | None) -> bool:
    """What pydantic and the codec's own library say, without Dispytch."""
    if payload is None:
        return False
    read: Callable[[bytes], Any] = _ORDER.validate_json
    if isinstance(codec, MessagePackDeserializer):
        import msgpack

        def read(data: bytes) -> Any:
            return _ORDER.validate_python(msgpack.unpackb(data, strict_map_key=False))

    try:
        read(payload)
    except Exception:
        return False
    return True
