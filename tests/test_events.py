"""Event classes and what they declare; the event object that handlers receive; what of both survives the journey."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID, uuid4

import pytest
from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, computed_field, field_serializer
from pydantic.alias_generators import to_camel

from dispytch import Event, EventBase, EventEmitter
from dispytch._core.events import Meta
from dispytch.abc import EventConfig
from dispytch.errors import ConfigurationError, EmitRejectedError
from dispytch.memory import MemoryBroker, MemoryEventRoute, MemoryProducer
from tests.helpers import dispatcher_on, errors, handle, headers_of

T = TypeVar("T")


class Address(BaseModel):
    city: str


class User(BaseModel):
    name: str
    address: Address | None = None


class Registered(EventBase):
    __topic__ = "users"

    user: User
    timestamp: int = 0


@dataclass
class Invoice:
    number: int

    def label(self) -> str:
        return f"invoice {self.number}"


class Colour(Enum):
    RED = "red"


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def emitter(broker: MemoryBroker) -> EventEmitter:
    return EventEmitter(MemoryProducer(broker))


# --- declarations


async def topic_of(event: EventBase) -> str:
    receipt = await EventEmitter(MemoryProducer(MemoryBroker())).emit(event)
    assert receipt is not None
    return receipt.route


async def type_of(event: EventBase) -> str:
    broker = MemoryBroker()
    receipt = await EventEmitter(MemoryProducer(broker)).emit(event)
    assert receipt is not None
    (record,) = broker.records(receipt.route)
    return headers_of(record)["ce_type"]


def test_topic_and_route_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Both\b.*both __topic__ and __route__"):

        class Both(EventBase):
            __topic__ = "a"
            __route__ = MemoryEventRoute("b")


@pytest.mark.anyio
async def test_the_nearest_declaration_in_the_ancestry_wins() -> None:
    class Base(EventBase):
        __topic__ = "base"

    class Routed(Base):
        __route__ = MemoryEventRoute("routed")

    class Again(Routed):
        __topic__ = "again"

    class Inheriting(Again):
        pass

    assert await topic_of(Base()) == "base"
    assert await topic_of(Routed()) == "routed"
    assert await topic_of(Again()) == "again"
    assert await topic_of(Inheriting()) == "again"


@pytest.mark.anyio
async def test_a_mixin_may_declare_for_several_classes() -> None:
    class OnUsers:
        __topic__: ClassVar[str | None] = "users"
        __key__: ClassVar[str | None] = "{name}"

    class Named(OnUsers, EventBase):
        name: str

    assert await topic_of(Named(name="ada")) == "users"


@pytest.mark.anyio
async def test_a_base_without_a_route_is_fine_until_it_is_emitted(emitter: EventEmitter) -> None:
    class Nowhere(EventBase):
        x: int = 1

    class Somewhere(Nowhere):
        __topic__ = "somewhere"

    assert await topic_of(Somewhere()) == "somewhere"
    with pytest.raises(ConfigurationError, match=r"Nowhere has neither __topic__ nor __route__"):
        await emitter.emit(Nowhere())


@pytest.mark.anyio
async def test_the_type_is_the_class_name_and_is_not_inherited() -> None:
    class Named(EventBase):
        __topic__ = "t"
        __event_type__ = "named.v1"

    class Child(Named):
        pass

    class Plain(EventBase):
        __topic__ = "t"

    assert await type_of(Named()) == "named.v1"
    assert await type_of(Child()) == "Child"
    assert await type_of(Plain()) == "Plain"


@pytest.mark.anyio
async def test_a_parametrized_generic_is_its_generic_class() -> None:
    class Changed(EventBase, Generic[T]):
        __topic__ = "changes.{value}"
        __event_type__ = "changed"
        __key__ = "{value}"

        value: T

    class OwnName(Changed[int]):
        pass

    assert await type_of(Changed[int](value=1)) == "changed"
    assert await type_of(Changed[str](value="a")) == "changed"
    assert await type_of(OwnName(value=1)) == "OwnName"
    assert await topic_of(Changed[int](value=1)) == "changes.1"


@pytest.mark.anyio
async def test_an_annotated_declaration_is_no_field() -> None:
    class Annotated(EventBase):
        __topic__: ClassVar[str | None] = "annotated"

    assert set(Annotated.model_fields) == set()
    assert await topic_of(Annotated()) == "annotated"


def define(**namespace: Any) -> type[EventBase]:
    return type("Wrong", (EventBase,), {"__module__": __name__, "__qualname__": "Wrong", **namespace})


@pytest.mark.parametrize(
    ("namespace", "problem"),
    [
        ({"__topic__": ""}, "__topic__ must be a non-empty string"),
        ({"__topic__": 1}, "__topic__ must be a non-empty string"),
        ({"__route__": "users"}, "for a plain string use __topic__"),
        ({"__topic__": "t", "__event_type__": ""}, "__event_type__ must be a non-empty string"),
        ({"__topic__": "t", "__event_type__": 3}, "__event_type__ must be a non-empty string"),
        ({"__topic__": "t", "__key__": 3}, "__key__ must be str"),
        ({"__topic__": "t", "__backend_config__": {}}, "__backend_config__ must be EventConfig"),
        ({"__topic__": "t", "__key__": "{name"}, "do not pair up"),
        ({"__topic__": "t", "__key__": "{na me}"}, "not a field name"),
        ({"__topic__": "t", "__key__": "{}"}, "not a field name"),
        ({"__topic__": "t", "__key__": "{name}"}, "has no 'name'"),
        ({"__topic__": "t.{name}"}, "has no 'name'"),
        ({"__topic__": "t.{name"}, "do not pair up"),
        ({"__topic__": "t-{name}"}, "only a part of the segment"),
        ({"__topic__": "t.*"}, "wildcard"),
        ({"__topic__": "t.#"}, "wildcard"),
        ({"__topic__": "t.{name}.*"}, "wildcard"),
        ({"__topic__": "t*"}, "wildcard"),
        ({"__route__": MemoryEventRoute("t.{name}")}, "has no 'name'"),
        ({"__route__": MemoryEventRoute("t.x{name}")}, "only a part of the segment"),
    ],
)
def test_a_wrong_declaration_fails_with_the_class_named(namespace: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        define(**namespace)
    assert "Wrong" in str(caught.value)
    assert problem in str(caught.value)


def test_a_template_is_checked_along_its_dotted_path() -> None:
    with pytest.raises(
        ConfigurationError, match=r"Misspelt.*'user.nam'.*User has no 'nam' \(its fields: name, address\)"
    ):

        class Misspelt(EventBase):
            __topic__ = "users"
            __key__ = "{user.nam}"
            user: User


@pytest.mark.anyio
async def test_dotted_paths_reach_into_models_dicts_and_properties(broker: MemoryBroker, emitter: EventEmitter) -> None:
    class Deep(EventBase):
        __topic__ = "cities.{user.address.city}.{labels.size}"
        __key__ = "{initial}-{shout}"
        user: User
        labels: dict[str, str]

        @property
        def initial(self) -> str:
            return self.user.name[0]

        @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
        @property
        def shout(self) -> str:
            return self.user.name.upper()

    receipt = await emitter.emit(
        Deep(user=User(name="ada", address=Address(city="Rome")), labels={"size": "large"}), id="1"
    )
    assert receipt is not None
    assert receipt.route == "cities.Rome.large"
    assert broker.records("cities.Rome.large")[0].key == b"a-ADA"


@pytest.mark.anyio
async def test_a_template_may_name_what_an_open_model_takes_beside_its_fields() -> None:
    class Open(EventBase):
        model_config = ConfigDict(extra="allow")
        __topic__ = "tenants.{tenant}"

    assert await topic_of(Open.model_validate({"tenant": "acme"})) == "tenants.acme"


@pytest.mark.anyio
async def test_a_template_may_name_a_type_that_is_defined_later() -> None:
    assert await topic_of(BeforeItsUser(user=LaterUser(name="ada"))) == "later.ada"


class BeforeItsUser(EventBase):
    __topic__ = "later.{user.name}"
    user: LaterUser


class LaterUser(BaseModel):
    name: str


@pytest.mark.anyio
async def test_only_events_can_be_emitted(emitter: EventEmitter) -> None:
    with pytest.raises(ConfigurationError, match="derive it from EventBase"):
        await emitter.emit(User(name="ada"))  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.anyio
async def test_options_of_another_transport_are_refused(emitter: EventEmitter) -> None:
    @dataclass
    class OtherConfig(EventConfig):
        pass

    class Other(EventBase):
        __topic__ = "t"
        __backend_config__ = OtherConfig()

    with pytest.raises(ConfigurationError, match=r"Other.*OtherConfig.*MemoryProducer takes MemoryEventConfig"):
        await emitter.emit(Other())


# --- identity


@pytest.mark.anyio
async def test_an_event_keeps_its_id_across_emits(broker: MemoryBroker, emitter: EventEmitter) -> None:
    event = Registered(user=User(name="ada"))
    first, second = await emitter.emit(event), await emitter.emit(event)
    (third,) = await emitter.emit_many([event])
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.id == second.id == third.id
    assert {headers_of(record)["ce_id"] for record in broker.records("users")} == {first.id}
    assert UUID(first.id).version == 4


@pytest.mark.anyio
async def test_a_copy_is_an_event_of_its_own(emitter: EventEmitter) -> None:
    event = Registered(user=User(name="ada"))
    receipts = [
        await emitter.emit(item)
        for item in (event, event.model_copy(), event.model_copy(update={"timestamp": 2}), copy.deepcopy(event))
    ]
    assert len({receipt.id for receipt in receipts if receipt is not None}) == 4


@pytest.mark.anyio
async def test_emit_sets_the_id_that_it_is_given_and_the_event_keeps_it(emitter: EventEmitter) -> None:
    event = Registered(user=User(name="ada"))
    given = await emitter.emit(event, id="order-17")
    again = await emitter.emit(event)
    assert given is not None
    assert again is not None
    assert given.id == again.id == "order-17"
    with pytest.raises(EmitRejectedError, match="no id"):
        await emitter.emit(event, id="")


def test_the_id_is_no_part_of_the_event() -> None:
    event = Registered(user=User(name="ada"))
    assert event == Registered(user=User(name="ada"))
    assert set(event.model_dump()) == {"user", "timestamp"}


# --- the event in a handler's hands


def an_event(body: Any, **meta: Any) -> Any:
    """Any, as delegation is hidden from type checkers."""
    return Event(body, Meta(**meta))


def test_attributes_are_the_body_s_then_the_meta_s() -> None:
    event = an_event(Registered(user=User(name="ada"), timestamp=7), id="1", topic="users", attempt=3)
    assert event.user is event.body.user
    assert event.timestamp == 7  # the body's, though the meta has one too
    assert isinstance(event.meta.timestamp, datetime)
    assert event.id == "1"
    assert event.topic == "users"
    assert event.attempt == 3
    with pytest.raises(AttributeError, match=r"Registered.*'nothing'"):
        _ = event.nothing
    assert not hasattr(event, "nothing")


def test_without_one_in_the_body_the_timestamp_is_the_meta_s() -> None:
    moment = datetime(2024, 5, 1, tzinfo=UTC)
    assert an_event(User(name="ada"), timestamp=moment).timestamp == moment


def test_keys_of_a_dict_are_attributes() -> None:
    event = an_event({"kind": "new", "id": 5, "items": [1]}, id="meta")
    assert event.kind == "new"
    assert event.id == 5
    assert event.items == [1]
    assert event.meta.id == "meta"
    with pytest.raises(AttributeError):
        _ = event.pop  # a method of dicts, not one of the event's data


def test_methods_of_a_body_can_be_called() -> None:
    assert an_event(Invoice(3)).label() == "invoice 3"
    assert an_event(User(name="ada")).model_dump() == {"name": "ada", "address": None}
    assert an_event([1, 2, 2]).count(2) == 2


def test_dunder_names_are_not_delegated() -> None:
    event = an_event([1, 2])
    with pytest.raises(AttributeError):
        _ = event.__len__
    with pytest.raises(AttributeError):
        _ = an_event({"__secret__": 1}).__secret__
    with pytest.raises(TypeError):
        len(event)


def test_delegation_is_for_reading() -> None:
    event = an_event(User(name="ada"))
    with pytest.raises(AttributeError):
        event.name = "bob"
    assert event.body.name == "ada"


def test_an_event_without_a_body_yet_fails_as_any_object_does() -> None:
    with pytest.raises(AttributeError):
        _ = Event.__new__(Event).anything  # type: ignore[attr-defined]  # the mistake under test


@pytest.mark.parametrize("body", [Registered(user=User(name="ada")), Invoice(3), {"a": [1]}, [1, 2], None])
def test_events_copy_and_pickle(body: Any) -> None:
    event = an_event(body, id="1", type="T", topic="t", raw_headers=[("h", b"v")], params={"a": "b"}, attempt=2)
    for other in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):
        assert other == event
        assert other.body == body
        assert hash(other) == hash(event)
        assert (other.meta.id, other.meta.type, other.meta.topic, other.meta.attempt) == ("1", "T", "t", 2)
        assert dict(other.meta.headers) == {"h": "v"}
        assert dict(other.meta.params) == {"a": "b"}
        assert other.meta.timestamp == event.meta.timestamp
    assert copy.copy(event).body is body
    if body is not None:
        assert copy.deepcopy(event).body is not body


def test_meta_mappings_are_read_only() -> None:
    meta = an_event(None, raw_headers=[("a", b"1"), ("a", b"2"), ("b", b"\xff")], params={"x": "y"}).meta
    assert dict(meta.headers) == {"a": "2", "b": "�"}
    for mapping in (meta.headers, meta.params):
        with pytest.raises(TypeError):
            mapping["new"] = "value"


def test_an_event_made_by_hand_has_a_meta() -> None:
    event = Event(Invoice(3))
    assert UUID(event.meta.id)
    assert event.meta.id == event.meta.id
    assert event.meta.timestamp.tzinfo is UTC
    assert event.meta.attempt == 1
    assert event.meta.type is None
    assert event.meta.dead_letter is None
    assert "Invoice" in repr(event)
    assert "3" not in repr(event).partition("Meta")[0]


@pytest.mark.anyio
async def test_a_received_event_copies_and_pickles(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    seen: list[Event[Registered]] = []

    @dispatcher.handler(Registered)
    async def on_registered(event: Event[Registered]) -> None:
        for other in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):
            assert other.body == event.body
            assert other.meta.id == event.meta.id
            assert other.meta.message.payload == event.meta.message.payload
            seen.append(other)

    await handle(dispatcher, Registered(user=User(name="ada")))
    assert errors(broker) == []
    assert len(seen) == 3


# --- round trips


async def round_trip(event: EventBase) -> Any:
    """The event as a handler receives it that takes its class."""
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)
    received: list[Any] = []

    async def take(event: Any) -> None:
        received.append(event.body)

    take.__annotations__["event"] = Event[type(event)]  # type: ignore[misc]  # a type that only the test knows
    dispatcher.handler(type(event))(take)
    await handle(dispatcher, event)
    assert errors(broker) == []
    (body,) = received
    assert type(body) is type(event)
    return body


class Camel(EventBase):
    model_config = ConfigDict(alias_generator=AliasGenerator(to_camel))
    __topic__ = "aliases"

    first_name: str = Field(alias="givenName")
    last_name: str


class Numbers(EventBase):
    __topic__ = "numbers"
    a: float
    b: tuple[float, ...] = ()
    c: float | None = None


class Everything(EventBase):
    __topic__ = "everything"

    moment: datetime
    day: date
    span: timedelta
    id: UUID
    price: Decimal
    colour: Colour
    raw: bytes
    tags: set[str]
    pair: tuple[int, str]
    user: User
    by_id: dict[UUID, User]
    invoice: Invoice


@pytest.mark.anyio
async def test_aliases_round_trip(broker: MemoryBroker, emitter: EventEmitter) -> None:
    event = Camel.model_validate({"givenName": "Ada", "lastName": "Lovelace"})
    assert await round_trip(event) == event
    await emitter.emit(event)
    assert broker.records("aliases")[0].payload == b'{"givenName":"Ada","lastName":"Lovelace"}'


@pytest.mark.anyio
async def test_nan_and_infinity_round_trip() -> None:
    body = await round_trip(Numbers(a=math.nan, b=(math.inf, -math.inf, 1.5), c=math.nan))
    assert math.isnan(body.a)
    assert body.b == (math.inf, -math.inf, 1.5)
    assert math.isnan(body.c)


@pytest.mark.anyio
async def test_nan_is_refused_where_the_model_refuses_it(broker: MemoryBroker) -> None:
    class Strict(BaseModel):
        a: float = Field(allow_inf_nan=False)

    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(topic="numbers")
    async def on_number(event: Event[Strict]) -> None:
        raise AssertionError("not to be reached")

    await handle(dispatcher, Numbers(a=math.nan))
    (error,) = errors(broker)
    assert error.startswith("DecodeError")
    assert "a: " in error


@pytest.mark.anyio
async def test_rich_types_round_trip() -> None:
    user = User(name="Ada", address=Address(city="München"))
    event = Everything(
        moment=datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
        day=date(2024, 2, 29),
        span=timedelta(days=3, seconds=1),
        id=uuid4(),
        price=Decimal("12.340"),
        colour=Colour.RED,
        raw="grüße".encode(),
        tags={"a", "b"},
        pair=(1, "x"),
        user=user,
        by_id={uuid4(): user},
        invoice=Invoice(3),
    )
    body = await round_trip(event)
    assert body == event
    assert str(body.price) == "12.340"


@pytest.mark.anyio
async def test_what_has_no_form_is_refused_before_it_is_sent(broker: MemoryBroker, emitter: EventEmitter) -> None:
    class Handle(EventBase):
        __topic__ = "handles"
        file: Any

    with pytest.raises(EmitRejectedError, match=r"Handle.* cannot be written by JSONSerializer"):
        await emitter.emit_many([Handle(file="fine"), Handle(file=object())])
    assert broker.records("handles") == []


@pytest.mark.anyio
async def test_the_refusal_does_not_quote_the_event(emitter: EventEmitter) -> None:
    class Secretive(EventBase):
        __topic__ = "secrets"
        value: str

        @field_serializer("value")
        def refuse(self, value: str) -> str:
            raise ValueError(f"cannot write {value}")

    with pytest.raises(EmitRejectedError) as caught:
        await emitter.emit(Secretive(value="hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" in str(caught.value.__cause__)
