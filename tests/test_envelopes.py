"""Events on the wire: what others can read of ours, what we read of theirs, and what travels along."""

from __future__ import annotations

import json
import pickle
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.abc import Delivery, Features, Message
from dispytch.errors import ConfigurationError, DecodeError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventConfig, MemoryProducer, Record
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
from tests.helpers import dispatcher_on, emit, errors, handle, headers_of, publish, run
from tests.support import examples

WITH_HEADERS = Features()
NO_HEADERS = Features(headers=False)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Paid(EventBase):
    __topic__ = "orders"
    __event_type__ = "order.paid"
    __key__ = "{order}"
    __backend_config__ = MemoryEventConfig(headers={"tenant": "größe"})

    order: str
    amount: float = 1.0
    when: datetime | None = None


class Foreign(BaseModel):
    order: str


class Wire:
    """A broker whose clients may be without headers, as those of Pub/Sub are, and what arrives."""

    def __init__(self, features: Features = WITH_HEADERS, **options: Any) -> None:
        self.broker = MemoryBroker()
        self.producer = MemoryProducer(self.broker)
        self.producer.features = features
        consumer = MemoryConsumer(self.broker)
        consumer.features = features
        self.dispatcher = EventDispatcher(consumer, max_deliveries=1, **options)
        self.seen: list[Event[Any]] = []

    def take(self, body: Any) -> None:
        async def take(event: Any) -> None:
            _ = event.meta
            self.seen.append(event)

        take.__annotations__["event"] = Event[body]
        self.dispatcher.handler(topic="orders")(take)

    async def deliver(self) -> Event[Any]:
        await run(self.dispatcher)
        assert errors(self.broker) == []
        (event,) = self.seen
        return event

    @property
    def record(self) -> Record:
        return self.broker.records("orders")[0]


# --- CloudEvents, binary


@pytest.mark.anyio
async def test_others_read_our_binary_cloudevents() -> None:
    broker = MemoryBroker()
    async with EventEmitter(MemoryProducer(broker), source="/shop") as emitter:
        await emitter.emit(Paid(order="17", when=datetime(2024, 1, 2, tzinfo=UTC)), id="event-1")
    (record,) = broker.records("orders")
    assert record.payload is not None
    theirs = kafka.from_binary_event(kafka.KafkaMessage(dict(record.headers), record.key, record.payload), JSONFormat())
    assert theirs.get_id() == "event-1"
    assert theirs.get_source() == "/shop"
    assert theirs.get_type() == "order.paid"
    assert theirs.get_specversion() == "1.0"
    assert theirs.get_datacontenttype() == "application/json"
    assert theirs.get_extension("partitionkey") == "17"
    assert theirs.get_data() == {"order": "17", "amount": 1.0, "when": "2024-01-02T00:00:00Z"}
    time = theirs.get_time()
    assert time is not None
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert headers_of(record)["tenant"] == "größe"


def theirs(**attributes: Any) -> CloudEvent:
    return CloudEvent(
        {
            "id": "their-1",
            "source": "/theirs",
            "type": "order.paid",
            "datacontenttype": "application/json",
            "time": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
            "partitionkey": "17",
            **attributes,
        },
        {"order": "17", "amount": 2.5},
    )


def check_theirs(event: Event[Any]) -> None:
    assert event.body == Paid(order="17", amount=2.5)
    assert event.meta.id == "their-1"
    assert event.meta.type == "order.paid"
    assert event.meta.timestamp == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert event.meta.key == "17"
    assert event.meta.headers["ce_source"] == "/theirs"
    assert event.meta.headers["ce_tenant"] == "acme"


@pytest.mark.anyio
@pytest.mark.parametrize("prefix", ["ce_", "ce-", "cloudEvents_", "cloudEvents:"])
async def test_we_read_binary_cloudevents_of_others(prefix: str) -> None:
    wire = Wire()
    wire.take(Paid)
    message = kafka.to_binary_event(theirs(tenant="acme"), JSONFormat())
    headers = [(name.replace("ce_", prefix), value) for name, value in message.headers.items()]
    publish(wire.broker, "orders", message.value, headers)
    event = await wire.deliver()
    if prefix == "ce_":
        check_theirs(event)
    assert event.meta.id == "their-1"
    assert event.meta.type == "order.paid"
    assert event.meta.key == "17"


@pytest.mark.anyio
async def test_ours_round_trip_in_binary_mode() -> None:
    wire = Wire()
    wire.take(Paid)
    async with EventEmitter(wire.producer) as emitter:
        await emitter.emit(Paid(order="17"), id="event-1")
    event = await wire.deliver()
    assert event.body == Paid(order="17")
    assert (event.meta.id, event.meta.type, event.meta.topic, event.meta.key) == (
        "event-1",
        "order.paid",
        "orders",
        "17",
    )


@pytest.mark.anyio
async def test_a_cloudevent_without_an_id_is_dead_lettered() -> None:
    wire = Wire()
    wire.take(Paid)
    publish(wire.broker, "orders", b"{}", [("ce_specversion", b"1.0"), ("ce_type", b"order.paid")])
    await run(wire.dispatcher)
    assert wire.seen == []
    (error,) = errors(wire.broker)
    assert "DecodeError" in error
    assert "no id" in error


# --- CloudEvents, structured


@pytest.mark.anyio
async def test_others_read_our_structured_cloudevents() -> None:
    wire = Wire(NO_HEADERS)
    async with EventEmitter(wire.producer, source="/shop") as emitter:
        await emitter.emit(Paid(order="17"), id="event-1")
    assert wire.record.headers == ()
    assert wire.record.payload is not None
    theirs = JSONFormat().read(CloudEvent, wire.record.payload)
    assert theirs.get_id() == "event-1"
    assert theirs.get_source() == "/shop"
    assert theirs.get_type() == "order.paid"
    assert theirs.get_datacontenttype() == "application/json"
    assert theirs.get_extension("partitionkey") == "17"
    assert theirs.get_data() == {"order": "17", "amount": 1.0, "when": None}


@pytest.mark.anyio
@pytest.mark.parametrize("features", [NO_HEADERS, WITH_HEADERS], ids=["payload alone", "with content type"])
async def test_we_read_structured_cloudevents_of_others(features: Features) -> None:
    wire = Wire(features)
    wire.take(Paid)
    message = kafka.to_structured_event(theirs(tenant="acme"), JSONFormat())
    publish(wire.broker, "orders", message.value, list(message.headers.items()) if features.headers else ())
    check_theirs(await wire.deliver())


@pytest.mark.anyio
async def test_ours_round_trip_in_structured_mode_with_their_own_headers() -> None:
    wire = Wire(NO_HEADERS)
    wire.take(Paid)
    async with EventEmitter(wire.producer) as emitter:
        await emitter.emit(Paid(order="17", amount=float("inf")), id="event-1")
    event = await wire.deliver()
    assert event.body == Paid(order="17", amount=float("inf"))
    assert (event.meta.id, event.meta.type, event.meta.key) == ("event-1", "order.paid", "17")
    assert event.meta.headers["tenant"] == "größe"
    assert event.meta.headers["ce_specversion"] == "1.0"


@pytest.mark.anyio
async def test_data_base64_is_decoded_by_the_consumer_s_codec() -> None:
    wire = Wire(NO_HEADERS)
    wire.take(Paid)
    document = {"specversion": "1.0", "id": "1", "source": "/s", "type": "order.paid"}
    data = b64encode(b'{"order": "17"}').decode()
    publish(wire.broker, "orders", json.dumps({**document, "data_base64": data}).encode())
    assert (await wire.deliver()).body == Paid(order="17")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "payload",
    [
        b"not json at all",
        b'{"specversion": "1.0"',
        b'{"specversion": "1.0", "id": "1"}',
        b'{"specversion": "1.0", "id": "", "type": "t"}',
        b'{"specversion": "1.0", "id": 5, "type": "t"}',
        b"[]",
        b"\xff\xfe",
        b'{"specversion": "1.0", "id": "1", "type": "t", "data_base64": "***"}',
        b"[" * 200_000,
        b'{"specversion": "1.0", "id": "1", "type": "t", "data": ' + b"1" * 5000 + b"}",
    ],
    ids=range(10),
)
async def test_a_malformed_structured_event_is_dead_lettered(payload: bytes) -> None:
    wire = Wire()
    wire.take(Paid)
    publish(wire.broker, "orders", payload, [("content-type", b"application/cloudevents+json; charset=utf-8")])
    await run(wire.dispatcher)
    assert wire.seen == []
    assert [error.partition(":")[0] for error in errors(wire.broker)] == ["DecodeError"]
    assert wire.broker.dead_letters[0].payload == payload


@pytest.mark.anyio
async def test_a_structured_event_s_body_that_does_not_fit_names_the_field() -> None:
    wire = Wire(NO_HEADERS)
    wire.take(Paid)
    document = {"specversion": "1.0", "id": "1", "source": "/s", "type": "order.paid", "data": {"amount": "secret"}}
    publish(wire.broker, "orders", json.dumps(document).encode())
    await run(wire.dispatcher)
    (error,) = errors(wire.broker)
    assert "order: Field required" in error
    assert "amount: " in error
    assert "secret" not in error
    assert "data." not in error


# --- foreign bare payloads, in the default envelope


@pytest.mark.anyio
@pytest.mark.parametrize("features", [NO_HEADERS, WITH_HEADERS], ids=["without headers", "with headers"])
async def test_a_foreign_bare_payload_is_taken(features: Features) -> None:
    wire = Wire(features)
    wire.take(Foreign)
    publish(wire.broker, "orders", b'{"order": "17"}', key=b"k")
    event = await wire.deliver()
    assert event.body == Foreign(order="17")
    assert event.meta.id == "orders/0"  # the broker's position
    assert event.meta.type is None
    assert event.meta.key == "k"
    assert abs((datetime.now(UTC) - event.meta.timestamp).total_seconds()) < 60


# --- the other envelopes


@pytest.mark.anyio
@pytest.mark.parametrize("features", [NO_HEADERS, WITH_HEADERS], ids=["without headers", "with headers"])
async def test_bare_is_the_payload_alone(features: Features) -> None:
    wire = Wire(features, envelope=BareEnvelope())
    wire.take(Paid)
    async with EventEmitter(wire.producer, envelope=BareEnvelope()) as emitter:
        await emitter.emit(Paid(order="17"))
    assert wire.record.payload == b'{"order":"17","amount":1.0,"when":null}'
    event = await wire.deliver()
    assert event.body == Paid(order="17")
    assert event.meta.type is None
    assert event.meta.id == "orders/0"


@pytest.mark.anyio
async def test_bare_may_tell_the_type_by_a_field() -> None:
    broker = MemoryBroker()
    envelope = BareEnvelope(type_field="kind")
    dispatcher = dispatcher_on(broker, envelope=envelope)
    seen: list[tuple[str | None, str]] = []

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        seen.append((event.meta.type, event.body.order))

    @dispatcher.handler(topic="orders", event="other")
    async def on_other(event: Event[dict[str, Any]]) -> None:
        seen.append((event.meta.type, event.body["order"]))

    await emit(broker, Paid(order="1"), envelope=envelope)
    assert json.loads(broker.records("orders")[0].payload or b"")["kind"] == "order.paid"
    publish(broker, "orders", b'{"kind": "other", "order": "2"}')
    publish(broker, "orders", b'{"kind": 5, "order": "3"}')
    publish(broker, "orders", b"[1]")
    publish(broker, "orders", b"{")
    await run(dispatcher)
    assert sorted(seen, key=str) == [("order.paid", "1"), ("other", "2")]
    assert len(errors(broker)) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("features", [NO_HEADERS, WITH_HEADERS], ids=["without headers", "with headers"])
async def test_classic_round_trips(features: Features) -> None:
    wire = Wire(features, envelope=ClassicEnvelope())
    wire.take(Paid)
    async with EventEmitter(wire.producer, envelope=ClassicEnvelope()) as emitter:
        await emitter.emit(Paid(order="17", amount=float("inf")), id="event-1")
    document = json.loads(wire.record.payload or b"")
    assert set(document) == {"id", "type", "body", "timestamp"}
    assert document["type"] == "order.paid"
    event = await wire.deliver()
    assert event.body == Paid(order="17", amount=float("inf"))
    assert event.meta.id == "event-1"
    assert event.meta.type == "order.paid"
    assert event.meta.timestamp == datetime.fromtimestamp(document["timestamp"] / 1000, UTC)


@pytest.mark.anyio
async def test_classic_is_what_earlier_versions_write_and_read() -> None:
    """As 0.10.1 printed it; its timestamps are milliseconds."""
    wire = Wire(envelope=ClassicEnvelope())
    wire.take(Paid)
    written = (
        b'{"id": "449ccafb", "type": "order.paid", "body": {"order": "17", "amount": 3}, "timestamp": 1795651194416}'
    )
    publish(wire.broker, "orders", written)
    event = await wire.deliver()
    assert event.body == Paid(order="17", amount=3)
    assert event.meta.timestamp == datetime(2026, 11, 25, 23, 59, 54, 416_000, UTC)
    before = datetime.now(UTC)
    async with EventEmitter(wire.producer, envelope=ClassicEnvelope()) as emitter:
        await emitter.emit(Paid(order="18"))
    written_by_us = json.loads(wire.broker.records("orders")[-1].payload or b"")
    assert isinstance(written_by_us["timestamp"], int)
    assert abs(written_by_us["timestamp"] - before.timestamp() * 1000) < 30_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"[]",
        b'{"id": "1"}',
        b"nonsense",
        b'{"body": 5}',
        b'{"id": ' + b"1" * 5000 + b', "body": {"order": "1"}}',
    ],
    ids=range(6),
)
async def test_what_is_no_classic_envelope_is_dead_lettered(payload: bytes) -> None:
    wire = Wire(envelope=ClassicEnvelope())
    wire.take(Paid)
    publish(wire.broker, "orders", payload)
    await run(wire.dispatcher)
    assert [error.partition(":")[0] for error in errors(wire.broker)] == ["DecodeError"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "timestamp", ["5", "1" + "0" * 400, '"2024-01-02T00:00:00"', "1e300", "null", '"yesterday"', "[]", "NaN"]
)
async def test_an_odd_timestamp_is_no_reason_to_refuse_an_event(timestamp: str) -> None:
    wire = Wire(envelope=ClassicEnvelope())
    wire.take(Paid)
    publish(wire.broker, "orders", b'{"body": {"order": "1"}, "timestamp": ' + timestamp.encode() + b"}")
    event = await wire.deliver()
    assert event.meta.timestamp.tzinfo is UTC


class Failing(Envelope):
    """An envelope of a user's own, with a mistake in it."""

    def sealer(self, sealing: Any) -> Any:
        return CloudEventsEnvelope().sealer(sealing)

    def opener(self, codec: Deserializer, features: Features) -> Callable[[Delivery], Any]:
        def fail(delivery: Delivery) -> Any:
            raise KeyError("secret")

        return fail


@pytest.mark.anyio
async def test_an_envelope_that_fails_does_not_end_the_dispatcher() -> None:
    wire = Wire(envelope=Failing())
    wire.take(Paid)
    await emit(wire.broker, Paid(order="1"), Paid(order="2"))
    await run(wire.dispatcher)
    assert len(errors(wire.broker)) == 2
    assert "secret" not in errors(wire.broker)[0]


# --- codecs


class Rich(EventBase):
    __topic__ = "orders"
    raw: bytes
    when: datetime
    amount: float
    tags: set[str]
    by_number: dict[int, str]


RICH = Rich(
    raw=b"\x00\xff",
    when=datetime(2024, 1, 2, tzinfo=UTC),
    amount=float("-inf"),
    tags={"a"},
    by_number={1: "one"},
)


@pytest.mark.anyio
@pytest.mark.parametrize("features", [NO_HEADERS, WITH_HEADERS], ids=["without headers", "with headers"])
@pytest.mark.parametrize("envelope", [CloudEventsEnvelope(), BareEnvelope(), BareEnvelope("kind"), ClassicEnvelope()])
async def test_messagepack_end_to_end(envelope: Envelope, features: Features) -> None:
    wire = Wire(features, deserializer=MessagePackDeserializer(), envelope=envelope)
    wire.take(Rich)
    async with EventEmitter(wire.producer, MessagePackSerializer(), envelope=envelope) as emitter:
        await emitter.emit(RICH)
    event = await wire.deliver()
    assert event.body == RICH
    if features.headers:
        assert dict(wire.record.headers)["content-type"] == b"application/msgpack"


@pytest.mark.anyio
async def test_structured_mode_carries_other_codecs_in_data_base64() -> None:
    wire = Wire(NO_HEADERS)
    async with EventEmitter(wire.producer, MessagePackSerializer()) as emitter:
        await emitter.emit(RICH)
    theirs = JSONFormat().read(CloudEvent, wire.record.payload or b"")
    assert theirs.get_datacontenttype() == "application/msgpack"
    assert isinstance(data := theirs.get_data(), bytes)
    assert MessagePackDeserializer().deserialize(data)["raw"] == b"\x00\xff"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 100_000, b"\x01\x02"],
    ids=["empty", "unused", "4 GiB array", "4 GiB map", "deep", "trailing"],
)
async def test_malformed_messagepack_is_dead_lettered(payload: bytes) -> None:
    wire = Wire(deserializer=MessagePackDeserializer())
    wire.take(Rich)
    publish(wire.broker, "orders", payload)
    await run(wire.dispatcher)
    assert [error.partition(":")[0] for error in errors(wire.broker)] == ["DecodeError"]


def test_a_container_of_messagepack_is_bounded() -> None:
    packed = MessagePackSerializer().serialize([{}] * 1000)
    assert len(MessagePackDeserializer().deserialize(packed)) == 1000
    assert len(MessagePackDeserializer(max_items=1000).deserialize(packed)) == 1000
    with pytest.raises(ValueError, match="max_array_len"):
        MessagePackDeserializer(max_items=999).deserialize(packed)
    with pytest.raises(ConfigurationError, match="max_items"):
        MessagePackDeserializer(max_items=0)


ODD = st.sampled_from(
    [
        "",
        "1.0",
        "a",
        "\0",
        "AAAA",
        '[["a", "b"]]',
        "2024-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        1e308,
        10**19,
        -1,
    ]
)
MEMBERS = st.sampled_from(
    ["specversion", "id", "type", "time", "timestamp", "data", "data_base64", "body", "partitionkey", "dispytchheaders"]
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.floats() | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=8),
    max_leaves=8,
)
PAYLOADS = st.none() | st.binary(max_size=12) | DOCUMENTS.map(lambda value: json.dumps(value).encode())
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["ce_specversion", "ce_id", "ce_type", "ce_time", "content-type", "traceparent", "\ud800", ""])
        | st.sampled_from(["dispytch-dead-error", "dispytch-dead-source", "dispytch-dead-attempts"]),
        st.sampled_from([b"1.0", b"application/cloudevents+json", b"9" * 30, b"\xc2\xb2"]) | st.binary(max_size=5),
    ),
    max_size=6,
)


@settings(max_examples=examples(14), deadline=None)  # over the loops and envelopes: 10,000 inputs for each codec
@given(messages=st.lists(st.tuples(PAYLOADS, HEADERS, st.none() | st.binary(max_size=3)), min_size=40, max_size=80))
@pytest.mark.anyio
@pytest.mark.parametrize("codec", [JSONDeserializer, MessagePackDeserializer])
@pytest.mark.parametrize(
    ("envelope", "features"),
    [
        (CloudEventsEnvelope(), WITH_HEADERS),
        (CloudEventsEnvelope(), NO_HEADERS),
        (BareEnvelope("type"), WITH_HEADERS),
        (ClassicEnvelope(), WITH_HEADERS),
    ],
    ids=["binary", "structured", "bare", "classic"],
)
async def test_whatever_comes_is_handled_or_dead_lettered(
    codec: Callable[[], Deserializer],
    envelope: Envelope,
    features: Features,
    messages: list[tuple[bytes | None, list[tuple[str, bytes]], bytes | None]],
) -> None:
    wire = Wire(features, deserializer=codec(), envelope=envelope)
    wire.take(dict[str, Any] | None)
    for payload, headers, key in messages:
        publish(wire.broker, "orders", payload, headers if features.headers else (), key)
    await run(wire.dispatcher)
    kinds = [error.partition(":")[0] for error in errors(wire.broker)]
    assert len(wire.seen) + len(kinds) == len(messages)
    assert set(kinds) <= {"DecodeError"}
    for event in wire.seen:
        pickle.dumps(event)
        assert repr(event.meta.dead_letter or event.meta.headers)
        assert event.meta.timestamp.tzinfo is UTC


@pytest.mark.anyio
async def test_the_codec_is_the_consumer_s_choice_never_the_message_s() -> None:
    wire = Wire()
    wire.take(Foreign)
    publish(
        wire.broker,
        "orders",
        MessagePackSerializer().serialize({"order": "1"}),
        [("content-type", b"application/msgpack")],
    )
    publish(wire.broker, "orders", b'{"order": "2"}', [("content-type", b"application/x-python-pickle")])
    await run(wire.dispatcher)
    assert [event.body.order for event in wire.seen] == ["2"]
    assert len(errors(wire.broker)) == 1


@pytest.mark.anyio
async def test_an_oversize_payload_is_not_decoded() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker, max_payload_bytes=100))
    seen: list[str] = []

    @dispatcher.handler(topic="orders")
    async def on_order(event: Event[Foreign]) -> None:
        seen.append(event.body.order)

    publish(broker, "orders", json.dumps({"order": "x" * 100}).encode())
    publish(broker, "orders", b'{"order": "fits"}')
    await run(dispatcher)
    assert seen == ["fits"]
    assert "larger than max_payload_bytes" in errors(broker)[0]


def test_codecs_by_hand() -> None:
    assert JSONDeserializer().deserialize(JSONSerializer().serialize({"a": [1, None]})) == {"a": [1, None]}
    assert JSONSerializer().serialize({"f": float("nan"), "m": Foreign(order="1")}) == b'{"f":"NaN","m":{"order":"1"}}'
    assert MessagePackDeserializer().deserialize(MessagePackSerializer().serialize(Foreign(order="1"))) == {
        "order": "1"
    }


def test_an_emitter_needs_a_source() -> None:
    with pytest.raises(ConfigurationError, match="source"):
        EventEmitter(MemoryProducer(MemoryBroker()), source="")


# --- what travels from an event to those emitted while it is handled


class First(EventBase):
    __topic__ = "first"


class Second(EventBase):
    __topic__ = "second"


def attributes(broker: MemoryBroker, topic: str) -> list[tuple[str | None, str | None]]:
    found = [headers_of(record) for record in broker.records(topic)]
    return [(headers.get("ce_traceparent"), headers.get("ce_correlationid")) for headers in found]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["ce_traceparent", "traceparent"])
async def test_trace_and_correlation_travel_with_what_a_handler_emits(name: str) -> None:
    # given a chain of events, the first of which has a trace of its own
    broker = MemoryBroker()
    emitter = EventEmitter(MemoryProducer(broker))
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(First)
    async def on_first(event: Event[First]) -> None:
        await emitter.emit(Second(), id="second-1")

    @dispatcher.handler(Second)
    async def on_second(event: Event[Second]) -> None:
        await emitter.emit_many([Third(), Third()])

    publish(
        broker,
        "first",
        b"{}",
        [("ce_specversion", b"1.0"), ("ce_id", b"first-1"), ("ce_type", b"First"), (name, TRACE.encode())],
    )
    # when they are handled
    await run(dispatcher)
    # then the trace went all the way, and the correlation is the first one's id
    assert errors(broker) == []
    assert attributes(broker, "second") == [(TRACE, "first-1")]
    assert attributes(broker, "third") == [(TRACE, "first-1")] * 2
    # and nothing of it stays behind
    await emitter.emit(First())
    assert attributes(broker, "first")[-1] == (None, None)


class Third(EventBase):
    __topic__ = "third"


@pytest.mark.anyio
async def test_they_travel_from_def_handlers_too() -> None:
    broker = MemoryBroker()
    producer = MemoryProducer(broker).blocking()
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(First)
    def on_first(event: Event[First]) -> None:
        from dispytch.sync import EventEmitter as BlockingEmitter

        with BlockingEmitter(producer) as emitter:
            emitter.emit(Second())

    await handle(dispatcher, First())
    assert errors(broker) == []
    (first,) = broker.records("first")
    assert attributes(broker, "second") == [(None, headers_of(first)["ce_id"])]


@pytest.mark.anyio
async def test_they_travel_where_there_are_no_headers() -> None:
    wire = Wire(NO_HEADERS)
    emitter = EventEmitter(wire.producer)

    @wire.dispatcher.handler(First)
    async def on_first(event: Event[First]) -> None:
        await emitter.emit(Second())

    document = {"specversion": "1.0", "id": "1", "source": "/", "type": "First", "data": {}, "traceparent": TRACE}
    publish(wire.broker, "first", json.dumps(document).encode())
    await run(wire.dispatcher)
    (record,) = wire.broker.records("second")
    sent = json.loads(record.payload or b"")
    assert (sent["traceparent"], sent["correlationid"]) == (TRACE, "1")


@pytest.mark.anyio
async def test_they_do_not_mix_between_events_that_are_handled_at_once() -> None:
    broker = MemoryBroker()
    emitter = EventEmitter(MemoryProducer(broker))
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        await emitter.emit(Second(), id=f"after {event.meta.id}")

    await handle(dispatcher, *(Paid(order=str(number)) for number in range(50)))
    for record in broker.records("second"):
        headers = headers_of(record)
        assert headers["ce_id"] == f"after {headers['ce_correlationid']}"
    assert len(broker.records("second")) == 50


def test_what_is_sent_has_no_payload_in_its_repr() -> None:
    message = Message("1", MemoryProducer(MemoryBroker()).route_for("t"), b"hunter2")
    assert "hunter2" not in repr(message)
    assert "hunter2" not in repr(Delivery("t", b"hunter2", (), timestamp_ms=0))
    assert issubclass(DecodeError, Exception)
