"""Documents: what is in them, of what dispatchers and event classes say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, PlainValidator

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    EventSubscription,
    HandlerGroup,
    Router,
    SubscriptionParam,
    sync,
)
from dispytch.asyncapi import document, to_json
from dispytch.errors import ConfigurationError, RegistrationError
from dispytch.kafka import KafkaConsumer, KafkaEventRoute
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventConfig, MemoryProducer
from dispytch.rabbitmq import (
    RabbitMQConsumer,
    RabbitMQEventConfig,
    RabbitMQEventRoute,
    RabbitMQEventSubscription,
    RabbitMQProducer,
)
from dispytch.redis import RedisConsumer, RedisEventRoute, RedisStreamConsumer
from dispytch.serialization import (
    BareEnvelope,
    ClassicEnvelope,
    MessagePackDeserializer,
    MessagePackSerializer,
)
from tests.asyncapi.applications import applications
from tests.asyncapi.checks import check, check_page
from tests.asyncapi.showcase import showcase
from tests.support import CANARY
from tests.test_examples import ROOT, run


class Paid(EventBase):
    """Somebody has paid.

    More of it.
    """

    __topic__ = "shops.{shop}.paid"
    __key__ = "{shop}"
    shop: str = Field(serialization_alias="shopName", validation_alias="shopName")
    amount: int = 0


class Refunded(EventBase):
    __topic__ = "refunds"
    amount: int


def on(*consumers: Any, **options: Any) -> EventDispatcher:
    return EventDispatcher(*(consumers or (MemoryConsumer(MemoryBroker(), "billing"),)), **options)


def made(dispatcher: EventDispatcher | None = None, **options: Any) -> dict[str, Any]:
    return check(document(dispatcher, title="Test", version="1", **options))


def sole(things: dict[str, Any]) -> Any:
    (one,) = things.values()
    return one


# --- channels, operations


def test_the_showcase() -> None:
    found = check(showcase())
    assert list(found["channels"]) == sorted(found["channels"])
    assert found["info"]["tags"] == [{"name": one} for one in ("billing", "catalogue", "night shift", "warehouse")]
    orders = found["channels"]["shops.shop.orders"]
    assert orders["address"] == "shops.{shop}.orders"
    assert orders["parameters"]["shop"]["enum"] == ["berlin", "oslo"]
    assert orders["parameters"]["shop"]["location"] == "$message.payload#/shop"
    assert sorted(orders["messages"]) == ["OrderCancelled", "OrderPlaced-received", "OrderPlaced-sent"]
    charge = found["operations"]["tests.asyncapi.showcase.charge"]
    assert charge["action"] == "receive"
    assert charge["summary"] == "Charges the customer's card, or writes an invoice."
    assert charge["description"].startswith("A card that is declined is tried again for a day")
    assert charge["bindings"] == {"kafka": {"groupId": {"type": "string", "enum": ["shop"]}, "bindingVersion": "0.5.0"}}
    assert charge["x-dead-letter"] == {"address": "shop.dead"}
    assert found["operations"]["tests.asyncapi.showcase.refund"]["x-dead-letter"] == {"address": "refunds.failed"}
    count = found["operations"]["tests.asyncapi.showcase.count"]
    assert count["x-batch"] == {"size": 500, "wait": 0.5}
    assert found["components"]["messages"]["StockChanged"]["payload"] == {
        "anyOf": [{"$ref": "#/components/schemas/Stock"}, {"type": "null"}]
    }
    sent = found["operations"]["send.OrderShipped"]
    assert (sent["action"], sent["channel"]) == ("send", {"$ref": "#/channels/shipments"})
    shipped = found["components"]["messages"]["OrderShipped"]
    assert shipped["bindings"]["kafka"]["key"]["description"] == "Made by {order_id}"
    assert shipped["headers"]["allOf"][-1]["properties"] == {"team": {"type": "string"}}
    assert found["components"]["schemas"]["Page_Line_"]["title"] == "Page[Line]"
    assert found["servers"]["production"] == {"host": "kafka-1.example.com:9093", "protocol": "kafka-secure"}


def test_it_is_the_same_each_time() -> None:
    code = (
        "from tests.asyncapi.showcase import showcase\n"
        "from dispytch.asyncapi import to_json\n"
        "print(to_json(showcase()))"
    )
    said = {run("-c", code, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}", PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert said == {to_json(showcase()) + "\n"}


def test_there_is_one_channel_for_each_address() -> None:
    dispatcher = on()
    dispatcher.handler(topic="shops.{shop}.paid")(print_it)
    dispatcher.handler(topic="shops.{name}.paid", event="Other")(print_it)
    dispatcher.handler(topic="shops.*.paid")(note)
    found = made(dispatcher, emits=[Paid])
    channel = sole(found["channels"])
    assert channel["address"] == "shops.{shop}.paid"
    assert channel["parameters"]["shop"]["location"] == "$message.payload#/shopName"
    assert len(found["operations"]) == 4
    assert {one.get("x-pattern") for one in found["operations"].values()} == {
        None,
        "shops.{name}.paid",
        "shops.*.paid",
    }


async def print_it(event: Event) -> None: ...


def note(event: Event) -> None: ...


def test_the_order_of_registration_does_not_matter() -> None:
    def one(*numbers: int) -> dict[str, Any]:
        dispatcher = on()
        steps: list[Callable[[], object]] = [
            lambda: dispatcher.handler(topic="a.{x}")(print_it),
            lambda: dispatcher.handler(topic="a.{y}")(note),
            lambda: dispatcher.handler(topic="ä")(note),
            lambda: dispatcher.handler(topic="ö")(print_it),
            lambda: dispatcher.handler(Refunded)(print_it),
        ]
        for number in numbers:
            steps[number]()
        return made(dispatcher, emits=[Paid, Refunded])

    assert one(0, 1, 2, 3, 4) == one(4, 3, 2, 1, 0) == one(2, 0, 4, 1, 3)


def test_handlers_that_come_later_are_in_it_too() -> None:
    dispatcher, router, group = on(), Router(tags=["one"]), HandlerGroup("grouped", tags=["two"])
    dispatcher.add_router(router)
    dispatcher.add_handler_group(group)
    router.handler(topic="routed")(print_it)
    group.handler()(note)
    found = made(dispatcher)
    assert list(found["channels"]) == ["grouped", "routed"]
    assert [one["tags"] for one in found["operations"].values()] == [[{"name": "two"}], [{"name": "one"}]]


def test_wrong_tags_are_refused() -> None:
    with pytest.raises(RegistrationError, match="tags takes a list"):
        Router(tags="billing")
    with pytest.raises(RegistrationError, match="non-empty"):
        HandlerGroup(tags=[""])


@pytest.mark.parametrize(
    ("topic", "address", "names"),
    [
        ("orders", "orders", []),
        ("a.*.c.*", "a.{any}.c.{any-2}", ["any", "any-2"]),
        ("#", "{rest}", ["rest"]),
        ("a.#", "a.{rest}", ["rest"]),
        ("a:{user.id}/{naïve}", "a:{user_id}/{naive}", ["user_id", "naive"]),
        ("{Ж}.{Я}", "{segment}.{segment-2}", ["segment", "segment-2"]),
    ],
)
def test_addresses(topic: str, address: str, names: list[str]) -> None:
    dispatcher = on()
    dispatcher.handler(topic=topic)(print_it)
    channel = sole(made(dispatcher)["channels"])
    assert channel["address"] == address
    assert list(channel.get("parameters", {})) == names
    assert channel.get("x-pattern", address) == topic


def test_segments_say_what_they_may_be() -> None:
    dispatcher = on()

    @dispatcher.handler(topic="{kind}.{number}.{flag}")
    def handle(
        kind: Annotated[Literal["a", "b"], SubscriptionParam(description="Which of the two.", examples=["a"])],
        number: Annotated[int, SubscriptionParam(gt=3)],
        fixed: Annotated[Literal["yes"], SubscriptionParam(alias="flag")],
        event: Event,
    ) -> None: ...

    parameters = sole(made(dispatcher)["channels"])["parameters"]
    assert parameters["kind"] == {
        "description": "Which of the two.",
        "enum": ["a", "b"],
        "examples": ["a"],
        "x-schema": {"description": "Which of the two.", "enum": ["a", "b"], "examples": ["a"], "type": "string"},
    }
    assert parameters["number"]["x-schema"] == {"exclusiveMinimum": 3, "type": "integer"}
    assert parameters["flag"]["enum"] == ["yes"]


# --- transports


def test_rabbitmq() -> None:
    consumer = RabbitMQConsumer(f"amqp://ada:{CANARY}@broker/shop", queue="billing")
    dispatcher = on(consumer)
    dispatcher.handler(Refunded)(print_it)
    dispatcher.handler(RabbitMQEventSubscription(exchange="legacy", routing_key="a.*"))(note)
    dispatcher.handler(RabbitMQEventSubscription(queue="inbox"))(note)
    dispatcher.handler(RabbitMQEventSubscription(exchange="", queue="direct"))(note)

    class Urgent(EventBase):
        __route__ = RabbitMQEventRoute("urgent.{who}", exchange="alarms")
        __backend_config__ = RabbitMQEventConfig(
            priority=9, expiration=1.5, delivery_mode=1, type="urgent", content_encoding="gzip", headers={"team": "x"}
        )
        who: str

    class Direct(EventBase):
        __route__ = RabbitMQEventRoute("other-queue", exchange="")

    found = made(
        dispatcher, emits=[Urgent, Direct], servers={"main": f"amqps://ada:{CANARY}@broker:5671/shop?x={CANARY}"}
    )
    channels = found["channels"]
    assert channels["refunds"]["bindings"]["amqp"] == {
        "is": "routingKey",
        "exchange": {"name": "dispytch", "type": "topic", "durable": True, "autoDelete": False},
        "bindingVersion": "0.3.0",
    }
    assert channels["a.any"]["bindings"]["amqp"]["exchange"]["name"] == "legacy"
    for queue in ("inbox", "direct", "other-queue"):
        assert channels[queue]["address"] == queue
        assert channels[queue]["bindings"]["amqp"]["queue"]["name"] == queue
    assert channels["urgent.who"]["bindings"]["amqp"]["exchange"]["name"] == "alarms"
    sent = found["operations"]["send.Urgent"]["bindings"]["amqp"]
    assert sent == {"deliveryMode": 1, "priority": 9, "expiration": 1500, "bindingVersion": "0.3.0"}
    message = found["components"]["messages"]["Urgent"]
    assert message["bindings"]["amqp"] == {
        "contentEncoding": "gzip",
        "messageType": "urgent",
        "bindingVersion": "0.3.0",
    }
    assert message["headers"]["allOf"][1]["properties"] == {"ce-type": {"const": "Urgent"}}
    assert message["correlationId"]["location"] == "$message.header#/ce-correlationid"
    received = [one for one in found["operations"].values() if one["action"] == "receive"]
    assert all(one["bindings"]["amqp"] == {"ack": True, "bindingVersion": "0.3.0"} for one in received)
    assert {one["x-queue"] for one in received} == {"billing", "inbox", "direct"}
    assert {"address": "billing.dead", "exchange": ""} in [one["x-dead-letter"] for one in received]
    assert found["servers"] == {"main": {"host": "broker:5671", "protocol": "amqps", "pathname": "/shop"}}


def test_redis() -> None:
    dispatcher = on(
        RedisConsumer(f"redis://ada:{CANARY}@broker"), RedisStreamConsumer("redis://broker", group_id="billing")
    )
    dispatcher.handler(Refunded)(print_it)
    found = made(dispatcher, emits=[Refunded])
    assert list(found["channels"]) == ["refunds-redis", "refunds-redis-stream"]
    assert all(one["bindings"] == {"redis": {}} for one in found["channels"].values())
    assert all(one["bindings"] == {"redis": {}} for one in found["operations"].values())
    message = found["components"]["messages"]["Refunded-redis"]
    assert message["contentType"] == "application/cloudevents+json"
    assert message["payload"]["allOf"][0] == {"$ref": "#/components/schemas/CloudEvent"}
    assert message["payload"]["allOf"][1]["properties"]["data"] == {"$ref": "#/components/schemas/Refunded"}
    assert message["correlationId"]["location"] == "$message.payload#/correlationid"
    assert "headers" not in message
    other = found["components"]["messages"]["Refunded-redis-stream"]
    assert other["headers"]["allOf"][0] == {"$ref": "#/components/schemas/CloudEventHeaders-redis-stream"}


def test_several_transports_have_channels_of_their_own() -> None:
    dispatcher = on(
        KafkaConsumer("kafka://broker", group_id="one"),
        KafkaConsumer("kafka://elsewhere", group_id="two"),
        RabbitMQConsumer("amqp://broker", queue="three"),
    )
    dispatcher.handler(Paid)(print_it)
    found = made(
        dispatcher,
        emits=[Paid],
        servers={"k": "kafka://a,b:9092", "r": "amqp://c", "i": {"host": "x", "protocol": "in"}},
    )
    assert list(found["channels"]) == ["shops.shop.paid-kafka", "shops.shop.paid-rabbitmq"]
    assert found["channels"]["shops.shop.paid-kafka"]["servers"] == [{"$ref": "#/servers/k"}, {"$ref": "#/servers/k-2"}]
    groups = [one.get("x-group") for one in found["operations"].values()]
    assert sorted(filter(None, groups)) == ["one", "three", "two"]
    assert groups.count(None) == 2


# --- messages


def test_a_class_has_the_names_of_the_wire() -> None:
    dispatcher = on()
    dispatcher.handler(Paid)(print_it)
    found = made(dispatcher, emits=[Paid])
    schema = found["components"]["schemas"]["Paid"]
    assert list(schema["properties"]) == ["shopName", "amount"]
    message = sole(found["components"]["messages"])  # since the handler takes a dict, it is described by what is sent
    assert message["x-ordering-key"] == "{shop}"
    assert message["summary"] == "Somebody has paid."
    assert message["contentType"] == "application/json"


class Tree(BaseModel):
    children: list[Tree] = []
    size: int = 1


class Cat(BaseModel):
    kind: Literal["cat"]
    tree: Tree


class Dog(BaseModel):
    kind: Literal["dog"]


class Animals(EventBase):
    __topic__ = "animals"
    found: Annotated[Cat | Dog, Field(discriminator="kind", description="What it is.")]
    pair: tuple[int, str] = (1, "a")
    rest: tuple[int, ...] = ()
    strange: Annotated[object, PlainValidator(lambda value: value)] = None


def test_schemas_are_draft_07() -> None:
    dispatcher = on()

    @dispatcher.handler(Animals)
    def handle(event: Event[Animals]) -> None: ...

    schemas = made(dispatcher, emits=[Animals])["components"]["schemas"]
    animals = schemas["Animals"]["properties"]
    assert animals["found"]["x-discriminator"]["mapping"] == {
        "cat": "#/components/schemas/Cat",
        "dog": "#/components/schemas/Dog",
    }
    assert animals["pair"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert animals["rest"]["items"] == {"type": "integer"}
    # The same in both modes, so each class is there once.
    assert {"Animals", "Cat", "Dog", "Tree"} < schemas.keys()
    assert not [name for name in schemas if name.endswith(("-Input", "-Output"))]


def test_what_stands_beside_a_reference_is_kept() -> None:
    class Holder(EventBase):
        __topic__ = "holders"
        tree: Tree = Field(description="The one in the yard.")

    schema = made(None, emits=[Holder])["components"]["schemas"]["Holder"]
    assert schema["properties"]["tree"] == {
        "allOf": [{"$ref": "#/components/schemas/Tree"}],
        "description": "The one in the yard.",
    }


def test_classes_of_one_name_are_told_apart() -> None:
    def make(kind: Any) -> type[EventBase]:
        class Same(EventBase):
            __topic__ = f"same.{kind.__name__}"
            value: kind

        return Same

    found = made(None, emits=[make(int), make(str)])
    payloads = {one["payload"]["$ref"] for one in found["components"]["messages"].values()}
    assert len(payloads) == len(found["channels"]) == 2


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("annotation", "title", "payload"),
    [
        (Event, "any event", {"type": "object", "additionalProperties": True}),
        (Event[dict[str, Any]], "any event", {"type": "object", "additionalProperties": True}),
        (Event[Any], "any event", {}),
        (Event[Point], "Point", {"$ref": "#/components/schemas/Point"}),
        (Event[list[Point]], "list[Point]", {"items": {"$ref": "#/components/schemas/Point"}, "type": "array"}),
        (Event[int | None], "int", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (
            Event[Cat | Dog],
            "Cat or Dog",
            {"anyOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}]},
        ),
    ],
)
def test_bodies(annotation: Any, title: str, payload: dict[str, Any]) -> None:
    dispatcher = on()

    async def handle(event: Any) -> None: ...

    handle.__annotations__["event"] = annotation
    dispatcher.handler(topic="bodies")(handle)
    message = sole(made(dispatcher)["components"]["messages"])
    if message["payload"] == {"type": "object"}:  # which older pydantic says of a dict
        message["payload"]["additionalProperties"] = True
    assert (message["title"], message["payload"]) == (title, payload)


def test_bodies_of_dependencies_count_too() -> None:
    dispatcher = on()

    def provider(cat: Event[Cat]) -> int:
        return 1

    @dispatcher.handler(topic="pets", event="Pet")
    def handle(dog: Event[Dog], number: Annotated[int, Dependency(provider)]) -> None: ...

    @dispatcher.handler(topic="pets", event="Nothing")
    def nothing() -> None: ...

    messages = made(dispatcher)["components"]["messages"]
    assert len(messages["Pet"]["payload"]["allOf"]) == 2
    assert messages["Nothing"]["payload"] == {}


def test_what_nobody_describes_is_described_by_others_of_the_channel() -> None:
    dispatcher = on()

    @dispatcher.handler(Refunded)
    def typed(event: Refunded) -> None: ...

    @dispatcher.handler(topic="refunds", event="Refunded")
    def untyped(event: Event) -> None: ...

    found = made(dispatcher)
    assert list(found["components"]["messages"]) == ["Refunded"]
    assert {one["messages"][0]["$ref"] for one in found["operations"].values()} == {
        "#/channels/refunds/messages/Refunded"
    }


@pytest.mark.parametrize(
    ("envelope", "payload"),
    [
        (BareEnvelope(), {"$ref": "#/components/schemas/Refunded"}),
        (
            BareEnvelope("kind"),
            {
                "allOf": [
                    {"$ref": "#/components/schemas/Refunded"},
                    {"type": "object", "properties": {"kind": {"const": "Refunded"}}, "required": ["kind"]},
                ]
            },
        ),
        (ClassicEnvelope(), None),
    ],
)
def test_other_envelopes(envelope: Any, payload: Any) -> None:
    dispatcher = on(envelope=envelope, deserializer=MessagePackDeserializer())
    dispatcher.handler(Refunded)(print_it)
    found = made(dispatcher, emits=[Refunded])
    message = sole(found["components"]["messages"])
    assert message["contentType"] == "application/msgpack"
    if payload is None:
        assert message["payload"]["properties"]["body"] == {"$ref": "#/components/schemas/Refunded"}
        assert message["payload"]["properties"]["type"]["const"] == "Refunded"
    else:
        assert message["payload"] == payload
    assert message["headers"]["properties"]["content-type"] == {"const": "application/msgpack"}
    assert message["correlationId"]["location"] == "$message.header#/correlationid"


# --- emitting


@pytest.mark.parametrize("emitter", [EventEmitter, sync.EventEmitter])
def test_an_emitter_says_how_events_travel(emitter: Any) -> None:
    one = emitter(RabbitMQProducer("amqp://broker", exchange="own"), MessagePackSerializer(), envelope=BareEnvelope())
    found = made(emits=[Paid], emitter=one)
    channel = sole(found["channels"])
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "own"
    message = sole(found["components"]["messages"])
    assert message["contentType"] == "application/msgpack"
    with pytest.raises(ConfigurationError, match="takes RabbitMQEventRoute"):
        document(title="t", version="1", emits=[_OnKafka], emitter=one)


def test_bytes_inside_a_structured_event() -> None:
    from dispytch.redis import RedisProducer

    one = EventEmitter(RedisProducer("redis://broker"), MessagePackSerializer())
    message = sole(made(emits=[Refunded], emitter=one)["components"]["messages"])
    data = message["payload"]["allOf"][1]["properties"]["data_base64"]
    assert (data["contentEncoding"], data["contentMediaType"]) == ("base64", "application/msgpack")


class _OnKafka(EventBase):
    __route__ = KafkaEventRoute("topic")


class _OnMemory(EventBase):
    __topic__ = "configured"
    __backend_config__ = MemoryEventConfig(headers={"team": CANARY})


def test_names_of_own_headers_are_told_and_values_are_not() -> None:
    one = EventEmitter(MemoryProducer(MemoryBroker()))
    message = sole(made(emits=[_OnMemory], emitter=one)["components"]["messages"])
    assert message["headers"]["allOf"][-1] == {"type": "object", "properties": {"team": {"type": "string"}}}


def test_an_event_class_goes_where_it_can() -> None:
    dispatcher = on(KafkaConsumer("kafka://broker", group_id="one"), RedisStreamConsumer("redis://b", group_id="two"))
    dispatcher.handler(Refunded)(print_it)
    found = made(dispatcher, emits=[_OnKafka, Paid])  # a template, which Redis Streams take for emitting
    assert list(found["channels"]) == [
        "refunds-kafka",
        "refunds-redis-stream",
        "shops.shop.paid-kafka",
        "shops.shop.paid-redis-stream",
        "topic",
    ]

    class Elsewhere(EventBase):
        __route__ = RedisEventRoute("channel")

    with pytest.raises(ConfigurationError, match="for another transport"):
        document(dispatcher, title="t", version="1", emits=[Elsewhere])


class _Nowhere(EventBase):
    x: int


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "nothing to document"),
        ({"emits": Paid}, r"emits=\[Paid\]"),
        ({"emits": [int]}, "takes event classes"),
        ({"emits": [_Nowhere]}, "neither __topic__ nor __route__"),
        ({"emits": [Paid], "servers": {"a b": "kafka://x"}}, "no name for a server"),
        ({"emits": [Paid], "servers": {"a": "broker"}}, "no URL"),
        ({"emits": [Paid], "servers": {"a": "kafka:///"}}, "no host"),
        ({"emits": [Paid], "servers": {"a": {"host": "x"}}}, "neither a URL"),
        ({"dispatcher": Router()}, "no dispatcher"),
        ({"dispatcher": EventDispatcher(MemoryConsumer(MemoryBroker()))}, "no handler is registered"),
    ],
)
def test_mistakes(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        document(**{"title": "t", "version": "1", **options})


def test_a_dispatcher_for_blocking_code() -> None:
    dispatcher = sync.EventDispatcher(MemoryConsumer(MemoryBroker()))
    dispatcher.handler(Refunded)(note)
    assert list(check(document(dispatcher, title="t", version="1"))["channels"]) == ["refunds"]


@pytest.mark.anyio
async def test_inside_an_event_loop() -> None:
    dispatcher = on()
    dispatcher.handler(Refunded)(note)
    assert list(made(dispatcher)["channels"]) == ["refunds"]


# --- secrets, security


def test_secrets_in_defaults_and_descriptions_are_hidden() -> None:
    class Connected(EventBase):
        __topic__ = "connected"
        url: str = Field(f"redis://ada:{CANARY}@host:1/0", description=f"such as kafka://:{CANARY}@host")
        pattern: str = Field(f"https://{CANARY}@host", pattern="^https?://.*@.*$", examples=[f"amqp://a:/@{CANARY}@b"])

    @(dispatcher := on()).handler(topic="connected")
    def handle(event: Event[Connected]) -> None: ...

    handle.__doc__ = f"As amqp://x:{CANARY}@y says."
    found = made(dispatcher, description=f"https://u:{CANARY}@example.com", emits=[Connected])
    assert found["info"]["description"] == "https://***@example.com"
    assert found["components"]["schemas"]["Connected"]["properties"]["pattern"] == {
        "default": "https://***@host",
        "examples": ["amqp://***@b"],
        "pattern": "^https?://.*@.*$",
        "title": "Pattern",
        "type": "string",
    }


def test_security_is_there_if_it_is_given() -> None:
    scheme = {"scramSha512": {"type": "scramSha512", "description": "By SASL."}}
    found = made(emits=[Paid], servers={"a": "kafka://x"}, security=scheme)
    assert found["components"]["securitySchemes"] == scheme
    assert found["servers"]["a"]["security"] == [{"$ref": "#/components/securitySchemes/scramSha512"}]
    assert "security" not in str(made(emits=[Paid], servers={"a": "kafka://x"}))


def test_two_hundred_events() -> None:
    dispatcher = on(KafkaConsumer("kafka://broker", group_id="big"))
    events = []
    for number in range(200):
        kind = type(f"Event{number}", (EventBase,), {"__topic__": f"topic.{number}", "__annotations__": {"x": int}})
        events.append(kind)
        dispatcher.handler(EventSubscription(f"topic.{number}", f"Event{number}"))(note)
    found = made(dispatcher, emits=events)
    assert len(found["channels"]) == 200
    assert len(found["operations"]) == 400
    assert len(found["components"]["messages"]) == 200


@pytest.mark.parametrize("name", sorted(applications()))
def test_applications_of_this_repository(name: str) -> None:
    check_page(check(applications()[name]))
