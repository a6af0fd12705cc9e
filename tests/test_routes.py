"""What values may do in routes and keys: a value stays in its segment, whatever it is, or the event is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispytch import Event, EventBase, EventEmitter, EventRoute
from dispytch.errors import ConfigurationError, EmitRejectedError
from dispytch.memory import MemoryBroker, MemoryEventConfig, MemoryEventRoute, MemoryEventSubscription, MemoryProducer
from tests.helpers import dispatcher_on, errors, handle, run
from tests.support import examples


class Named(EventBase):
    __topic__ = "user.{name}"
    name: Any


class Nested(EventBase):
    __topic__ = "org.{org}.user.{name}"
    org: str
    name: str


class Dashed(EventBase):
    __route__ = MemoryEventRoute("user--{name}--{action}", delimiter="--")
    name: str
    action: str


class Slashed(EventBase):
    __route__ = MemoryEventRoute("user/{name}", delimiter="/")
    name: str


class Keyed(EventBase):
    __topic__ = "keyed"
    __key__ = "{key}"
    key: Any


async def emit(event: EventBase) -> str:
    receipt = await EventEmitter(MemoryProducer(MemoryBroker())).emit(event)
    assert receipt is not None
    return receipt.route


@pytest.mark.anyio
@pytest.mark.parametrize(
    "value",
    ["bob.deleted", "bob:deleted", "bob/deleted", ".", "a*", "*", "#", "bob smith", "a\tb", "a\nb", "a\u2003b", "a\0b"],
)
async def test_a_value_that_would_leave_its_segment_is_refused(value: str) -> None:
    with pytest.raises(EmitRejectedError, match=r"Named: the value of 'name'.*would leave its segment"):
        await emit(Named(name=value))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is empty"),
        (None, "is not a string"),
        ([1], "is not a string"),
        (b"raw", "is not a string"),
        ({"a": 1}, "is not a string"),
        (1.5, "holds '.'"),
        (datetime(2024, 1, 2, tzinfo=UTC), "holds ':'"),
    ],
)
async def test_a_value_that_is_no_segment_is_refused_by_name(value: Any, problem: str) -> None:
    with pytest.raises(EmitRejectedError) as caught:
        await emit(Named(name=value))
    assert "'name'" in str(caught.value)
    assert problem in str(caught.value)


class Level(Enum):
    HIGH = "high"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("ada", "ada"),
        ("a-b_c@d", "a-b_c@d"),
        ("{x}", "{x}"),
        ("größe", "größe"),
        (5, "5"),
        (-5, "-5"),
        (True, "true"),
        (Decimal("12"), "12"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2024, 1, 2).date(), "2024-01-02"),
        (Level.HIGH, "high"),
    ],
)
async def test_other_values_are_their_text(value: Any, segment: str) -> None:
    assert await emit(Named(name=value)) == f"user.{segment}"


@pytest.mark.anyio
async def test_a_value_that_is_missing_is_refused_by_name() -> None:
    class Deep(EventBase):
        __topic__ = "city.{user.city}"
        user: dict[str, str] | None = None

    for event in (Deep(), Deep(user={})):
        with pytest.raises(EmitRejectedError, match=r"Deep: the value of 'user\.city'.*is missing"):
            await emit(event)


@pytest.mark.anyio
async def test_an_own_delimiter_is_refused_in_place_of_the_three() -> None:
    assert await emit(Dashed(name="a.b:c/d", action="x-y")) == "user--a.b:c/d--x-y"
    assert await emit(Slashed(name="a.b:c")) == "user/a.b:c"
    for value in ("a--b", "a b", "a*", "#", ""):
        with pytest.raises(EmitRejectedError, match="'name'"):
            await emit(Dashed(name=value, action="x"))
    with pytest.raises(EmitRejectedError, match=r"'name'.*holds '/'"):
        await emit(Slashed(name="a/b"))


@pytest.mark.anyio
async def test_a_value_cannot_make_up_a_delimiter_with_what_surrounds_it() -> None:
    # "x-" before "--" reads as "x" and "-..." after it.
    with pytest.raises(EmitRejectedError, match=r"'name'.*would leave its segment"):
        await emit(Dashed(name="x-", action="y"))


def test_a_delimiter_that_cannot_be_one_is_refused_with_the_class_named() -> None:
    with pytest.raises(ConfigurationError, match=r"Odd.*Delimiter"):

        class Odd(EventBase):
            __route__ = MemoryEventRoute("a{x}", delimiter="")
            x: str


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("any text. at: all/ * # \0", b"any text. at: all/ * # \0"),
        ("", b""),
        ("größe", "größe".encode()),
        (7, b"7"),
        (1.5, b"1.5"),
        (datetime(2024, 1, 2, tzinfo=UTC), b"2024-01-02T00:00:00+00:00"),
        (None, None),
    ],
)
async def test_a_key_takes_any_text(value: Any, key: bytes | None) -> None:
    broker = MemoryBroker()
    await EventEmitter(MemoryProducer(broker)).emit(Keyed(key=value))
    (record,) = broker.records("keyed")
    assert record.key == key


@pytest.mark.anyio
async def test_a_key_of_several_parts_needs_them_all() -> None:
    class Parts(EventBase):
        __topic__ = "parts"
        __key__ = "{a}-{b}"
        a: str | None
        b: Any

    with pytest.raises(EmitRejectedError, match=r"Parts: the value of 'a'.*is NoneType"):
        await emit(Parts(a=None, b="x"))
    with pytest.raises(EmitRejectedError, match=r"Parts: the value of 'b'.*is list"):
        await emit(Parts(a="x", b=["secret"]))
    assert await emit(Parts(a="x", b="y")) == "parts"


@pytest.mark.anyio
async def test_a_key_without_utf8_is_refused_by_name() -> None:
    with pytest.raises(EmitRejectedError, match=r"Keyed.*'key'"):
        await emit(Keyed(key="\ud800"))


@pytest.mark.anyio
async def test_headers_of_an_event_class_travel() -> None:
    class Tagged(EventBase):
        __topic__ = "tagged"
        __backend_config__ = MemoryEventConfig(headers={"tenant": "acme", "raw": b"\xff"})

    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)
    seen: list[Event[Tagged]] = []

    @dispatcher.handler(Tagged)
    async def on_tagged(event: Event[Tagged]) -> None:
        seen.append(event)

    await handle(dispatcher, Tagged())
    assert seen[0].meta.headers["tenant"] == "acme"
    assert ("raw", b"\xff") in seen[0].meta.raw_headers


# --- whatever the value, it reaches its own subscription, or nothing at all

TRICKY = st.text(st.sampled_from("ab.:/*#{}-_ \t\0") | st.characters(codec="utf-8"), max_size=6)
OTHERS = (
    "user",
    "user.{name}.deleted",
    "user.*.*",
    "user:{name}",
    "user/{name}",
    "*",
    "*.*.*",
    "{a}.user.{b}",
    "admin.#",
)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(TRICKY, min_size=30, max_size=60))
@pytest.mark.anyio
async def test_no_value_reaches_another_subscription(values: list[str]) -> None:
    # given a subscription to the events' own template, and to all that their values might make of it
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker, ordering="none")
    own: list[str] = []
    elsewhere: list[str] = []

    @dispatcher.handler(Named)
    async def on_own(event: Event[Named]) -> None:
        assert event.meta.params == {"name": event.body.name}
        own.append(event.body.name)

    async def on_other(event: Event[Named]) -> None:
        elsewhere.append(event.meta.topic)

    for topic in OTHERS:
        dispatcher.handler(topic=topic)(on_other)
    # when events with any values are emitted
    accepted = await _emit_all(EventEmitter(MemoryProducer(broker)), [Named(name=value) for value in values])
    await run(dispatcher)
    # then each that was not refused came to its own subscription only, as it was
    assert errors(broker) == []
    assert elsewhere == []
    assert sorted(own) == sorted(event.name for event in accepted)


@settings(max_examples=examples(40), deadline=None)
@given(names=st.lists(st.text(st.sampled_from("ab-.")), min_size=30, max_size=60), action=st.sampled_from(["x", "-x"]))
@pytest.mark.anyio
async def test_no_value_leaves_its_segment_under_a_long_delimiter(names: list[str], action: str) -> None:
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker, ordering="none", route_delimiter="--")
    seen: list[tuple[str, str]] = []
    elsewhere: list[str] = []

    @dispatcher.handler(Dashed)
    async def on_dashed(event: Event[Dashed]) -> None:
        assert event.meta.params == {"name": event.body.name, "action": event.body.action}
        seen.append((event.body.name, event.body.action))

    @dispatcher.handler(MemoryEventSubscription("user--*--*--#"))
    @dispatcher.handler(MemoryEventSubscription("user"))
    async def on_other(event: Event[Dashed]) -> None:
        if event.meta.topic.count("--") != 2:
            elsewhere.append(event.meta.topic)

    accepted = await _emit_all(
        EventEmitter(MemoryProducer(broker)), [Dashed(name=name, action=action) for name in names]
    )
    await run(dispatcher)
    assert errors(broker) == []
    assert elsewhere == []
    assert sorted(seen) == sorted((event.name, event.action) for event in accepted)


async def _emit_all(emitter: EventEmitter, events: list[Any]) -> list[Any]:
    accepted: list[Any] = []
    refusals: list[str] = []
    for event in events:
        try:
            await emitter.emit(event)
        except EmitRejectedError as error:
            refusals.append(str(error))
        else:
            accepted.append(event)
    assert [refusal for refusal in refusals if "'name'" not in refusal] == []  # the field is named
    return accepted


def test_routes_are_values() -> None:
    assert MemoryEventRoute("a") == MemoryEventRoute("a")
    assert isinstance(MemoryEventRoute("a"), EventRoute)
    assert MemoryEventRoute("a.{b}").address == "a.{b}"
