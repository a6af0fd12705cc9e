"""Deliveries cut out of what was read: the same as pika would have made of it, in the same order, however it came."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from dispytch.rabbitmq.deliveries import cut
from dispytch.rabbitmq.frames import connection_type
from dispytch.rabbitmq.properties import delivery_of, plain_delivery
from dispytch.rabbitmq.routes import Scope

CHANNEL = 3
SCOPE = Scope("events", "orders")

short = st.text(max_size=60).filter(lambda text: len(text.encode()) < 256)
tables = st.dictionaries(
    short, st.one_of(short, st.binary(max_size=40), st.integers(-5, 2**31 - 1), st.booleans(), st.none()), max_size=8
)
strings = st.dictionaries(short, st.one_of(short, st.text(max_size=300)), max_size=8)
properties = st.builds(
    pika.BasicProperties,
    content_type=st.none() | short,
    content_encoding=st.none() | short,
    headers=st.none() | strings | tables,
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | short,
    reply_to=st.none() | short,
    expiration=st.none() | short,
    message_id=st.none() | short,
    timestamp=st.integers(1, 2**33),  # without one it is the time of receipt
    type=st.none() | short,
    user_id=st.none() | short,
    app_id=st.none() | short,
    cluster_id=st.none() | short,
)
messages = st.tuples(properties, st.binary(max_size=200), short, st.booleans())


def encoded(tag: int, given: pika.BasicProperties, body: bytes, key: str = "orders.new", parts: int = 1) -> bytes:
    """A delivery as the broker sends it."""
    method = spec.Basic.Deliver("dispytch-0", tag, tag % 2 == 0, SCOPE.exchange, key)
    step = max(1, -(-len(body) // parts))
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    frames = [
        frame.Method(CHANNEL, method),
        frame.Header(CHANNEL, len(body), given),
        *(frame.Body(CHANNEL, piece) for piece in pieces),
    ]
    return b"".join(one.marshal() for one in frames)


def split(data: bytes) -> list[bytes]:
    """The frames of it."""
    found = []
    while data:
        size, _ = frame.decode_frame(data)
        found.append(data[:size])
        data = data[size:]
    return found


class Reader:
    """A connection of ours without a socket: what it takes itself, and what it leaves to pika, in order."""

    def __init__(self) -> None:
        kind = connection_type()
        self.connection: Any = kind.__new__(kind)
        self.connection._frame_buffer = b""
        self.connection.bytes_received = 0
        self.connection.plain = (CHANNEL, self.take)
        self.connection._process_frame = self.process
        self.found: list[tuple[int, Any]] = []
        self.others: list[Any] = []
        self.took = 0
        self._assembler = pika.channel.ContentFrameAssembler()

    def take(
        self,
        consumer: bytes,
        tag: int,
        exchange: bytes,
        key: bytes,
        headers: list[tuple[str, bytes]],
        message_id: bytes,
        timestamp: int,
        body: bytes,
    ) -> bool:
        assert (consumer, exchange) == (b"dispytch-0", SCOPE.exchange.encode())
        self.took += 1
        where = (key.decode(), SCOPE)
        self.found.append((tag, state(plain_delivery(where, headers, message_id, timestamp, body, None))))
        return True

    def process(self, one: Any) -> None:
        if isinstance(one, frame.Heartbeat):
            self.others.append(one)
        elif isinstance(one, frame.Method) and not isinstance(one.method, spec.Basic.Deliver):
            self.others.append(one.method)
        elif (made := self._assembler.process(one)) is not None:
            method, header, body = made
            delivery = delivery_of(SCOPE, method.method.routing_key, header.properties, body, None)
            self.found.append((method.method.delivery_tag, state(delivery)))


def state(delivery: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = delivery.__getstate__()
    return found


@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 400), max_size=30))
def test_the_same_as_pika_makes_of_it_wherever_the_reads_end(
    several: list[tuple[pika.BasicProperties, bytes, str, bool]], sizes: list[int]
) -> None:
    data = b"".join(
        encoded(tag, given, body, key, 2 if is_parted else 1)
        for tag, (given, body, key, is_parted) in enumerate(several, 1)
    )
    by_pika = Reader()
    by_pika.connection.plain = None
    by_pika.connection._on_data_available(data)
    assert [tag for tag, _ in by_pika.found] == list(range(1, len(several) + 1))

    ours = Reader()
    rest = data
    for size in sizes:
        ours.connection._on_data_available(rest[:size])
        rest = rest[size:]
    ours.connection._on_data_available(rest)
    assert ours.found == by_pika.found
    assert ours.connection._frame_buffer == b""
    assert ours.connection.bytes_received == len(data)


def test_ordinary_events_never_reach_pika() -> None:
    given = pika.BasicProperties("application/json", headers={"ce-id": "1", "ce-type": "Order"}, message_id="1")
    data = b"".join(encoded(tag, given, b"{}") for tag in range(1, 101))
    reader = Reader()
    for at in range(0, len(data), 1000):
        reader.connection._on_data_available(data[at : at + 1000])
    assert reader.took == len(reader.found) == 100
    assert reader.connection.bytes_received == len(data)


def test_what_is_no_delivery_is_left_to_pika_in_its_place() -> None:
    given = pika.BasicProperties(timestamp=1)
    close = frame.Method(CHANNEL, spec.Basic.Cancel("dispytch-0")).marshal()
    reader = Reader()
    reader.connection._on_data_available(encoded(1, given, b"a") + close + encoded(2, given, b"b"))
    assert [tag for tag, _ in reader.found] == [1, 2]
    assert [type(one) for one in reader.others] == [spec.Basic.Cancel]
    assert reader.took == 2


def test_what_is_of_another_channel_or_consumer_is_left_to_pika() -> None:
    data = encoded(1, pika.BasicProperties(timestamp=1), b"a")
    assert cut(data, CHANNEL + 1, Reader().take) == (0, False)
    assert cut(data, CHANNEL, lambda *_: False) == (0, False)


@pytest.mark.parametrize("length", range(1, 60))
def test_half_a_delivery_is_waited_for(length: int) -> None:
    data = encoded(1, pika.BasicProperties(headers={"a": "b"}, timestamp=1), b"x" * 20)
    reader = Reader()
    reader.connection._on_data_available(data[:length])
    reader.connection._on_data_available(data[length:])
    assert reader.took == 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("other", [frame.Heartbeat(), frame.Method(CHANNEL, spec.Channel.Close(404, "gone", 0, 0))])
def test_what_comes_within_a_delivery_does_not_wait_for_its_end(count: int, other: Any) -> None:
    method, header, _ = split(encoded(1, pika.BasicProperties(timestamp=1), b"x" * 40))
    reader = Reader()
    reader.connection._on_data_available(b"".join([method, header][:count]) + other.marshal())
    assert [one.NAME for one in reader.others] == [getattr(other, "method", other).NAME]


@pytest.mark.parametrize("size", [1, 40])
def test_a_body_of_several_frames_is_not_waited_for(size: int) -> None:
    data = encoded(1, pika.BasicProperties(timestamp=1), b"x" * 80, parts=80 // size)
    reader = Reader()
    reader.connection._on_data_available(data[:-1])
    assert len(reader.connection._frame_buffer) == size + 7
    reader.connection._on_data_available(data[-1:])
    assert [tag for tag, _ in reader.found] == [1]


@given(st.binary(max_size=300), st.integers(0, 200))
def test_malformed_frames_are_left_to_pika(noise: bytes, at: int) -> None:
    data = bytearray(encoded(1, pika.BasicProperties(headers={"a": "b"}, message_id="1", timestamp=1), b"x" * 20))
    data[at : at + len(noise)] = noise
    cut(bytes(data), CHANNEL, lambda *_: True)  # raises nothing, and ends
