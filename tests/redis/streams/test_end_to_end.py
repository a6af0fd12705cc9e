"""Emitting and handling through a real server, on every loop."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch.ack import AckBeforeProcessing
from dispytch.errors import RegistrationError
from dispytch.redis import (
    RedisStreamEventConfig,
    RedisStreamEventRoute,
    RedisStreamEventSubscription,
    RedisStreamProducer,
)
from dispytch.serialization import BareEnvelope, ClassicEnvelope, MessagePackDeserializer, MessagePackSerializer
from tests.redis.helpers import client_of, reader_threads, unique, until
from tests.redis.streams.helpers import GROUP, consumer_of, fill, names, pending

pytestmark = pytest.mark.anyio


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


class Body(BaseModel):
    order: str
    amount: int = 0


def event_class(topic: str) -> Any:
    class Paid(EventBase):
        __topic__ = topic
        __event_type__ = "paid"
        __key__ = "{order}"
        order: str
        amount: int = 0

    return Paid


async def test_emit_and_handle(redis_url: str, client: Any) -> None:
    topic = unique()
    paid = event_class(topic)
    handled: list[Any] = []
    dispatcher = EventDispatcher(consumer_of(redis_url))

    @dispatcher.handler(paid)
    async def handle(event: Event[dict[str, Any]]) -> None:
        meta = event.meta
        handled.append((event.body, meta.id, meta.type, meta.topic, meta.key, meta.message.position))

    async with dispatcher.lifespan(), EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        receipt = await emitter.emit(paid(order="ä1", amount=3))
        assert receipt is not None
        await until(lambda: handled)
    assert handled == [({"order": "ä1", "amount": 3}, receipt.id, "paid", topic, "ä1", receipt.offset)]
    ((id, fields),) = client.xrange(topic)
    assert id.decode() == receipt.offset
    assert fields[b"data"] == '{"order":"ä1","amount":3}'.encode()
    assert fields[b"ce_id"].decode() == receipt.id
    assert pending(client, topic) == 0
    assert reader_threads() == []


async def test_by_url_with_another_codec(redis_url: str) -> None:
    topic = unique()
    url = redis_url.replace("redis://", "redis+stream://")
    handled: list[Any] = []
    dispatcher = EventDispatcher(consumer_from_url(url, "billing"), deserializer=MessagePackDeserializer())

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        handled.append(event.body)

    with client_of(redis_url) as client:
        client.xadd(topic, {"order": "foreign"})  # fields are no payload of a codec
        async with (
            dispatcher.lifespan(),
            EventEmitter(producer_from_url(url), MessagePackSerializer()) as emitter,
        ):
            await emitter.emit(event_class(topic)(order="own"))
            await until(lambda: len(handled) == 2)
    assert handled == [{"order": "foreign"}, {"order": "own", "amount": 0}]


async def test_order_of_a_key_through_retries(redis_url: str) -> None:
    topic = unique()
    paid = event_class(topic)
    handled: dict[str, list[int]] = defaultdict(list)
    failed: set[int] = set()
    dispatcher = EventDispatcher(consumer_of(redis_url), concurrency=10)

    @dispatcher.handler(paid)
    async def handle(event: Event[Body]) -> None:
        if event.body.amount % 50 == 0 and event.body.amount not in failed:
            failed.add(event.body.amount)
            raise OSError("not now")
        await anyio.lowlevel.checkpoint()
        handled[event.body.order].append(event.body.amount)

    async with dispatcher.lifespan(), EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        await emitter.emit_many(paid(order=str(number % 16), amount=number) for number in range(1000))
        await until(lambda: sum(map(len, handled.values())) == 1000)
    assert handled == {str(key): list(range(key, 1000, 16)) for key in range(16)}


async def test_the_key_travels_with_every_envelope(redis_url: str) -> None:
    topic = unique()
    keys: list[Any] = []
    dispatcher = EventDispatcher(consumer_of(redis_url))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        keys.append((event.meta.key, event.body["order"]))

    emitter = EventEmitter(RedisStreamProducer(redis_url), envelope=BareEnvelope())
    async with dispatcher.lifespan(), emitter:
        await emitter.emit(event_class(topic)(order="7"))
        await until(lambda: keys)
    assert keys == [("7", "7")]


@pytest.mark.parametrize(("prefetch", "held"), [(None, 4), (0, 2), (50, 52)])
async def test_no_more_is_held_than_is_handled_and_prefetched(
    redis_url: str, client: Any, prefetch: int | None, held: int
) -> None:
    topic, go = unique(), anyio.Event()
    handled: list[int] = []
    fill(client, topic, 100)
    dispatcher = EventDispatcher(consumer_of(redis_url, prefetch=prefetch), concurrency=2)
    most = 0

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        nonlocal most
        most = max(most, pending(client, topic))
        await go.wait()
        handled.append(1)

    async with dispatcher.lifespan():
        await until(lambda: pending(client, topic) == held)
        await anyio.sleep(0.1)
        assert pending(client, topic) == held
        go.set()
        await until(lambda: len(handled) == 100)
    assert most <= held


async def test_two_groups(redis_url: str, client: Any) -> None:
    topic = unique()
    handled: Counter[str] = Counter()
    fill(client, topic, 50)

    def dispatcher_of(group: str) -> EventDispatcher:
        dispatcher = EventDispatcher(consumer_of(redis_url, group_id=group))

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[Any]) -> None:
            handled[group] += 1

        return dispatcher

    members = [dispatcher_of(group) for group in ("a", "a", "b")]
    async with members[0].lifespan(), members[1].lifespan(), members[2].lifespan():
        await until(lambda: handled == {"a": 50, "b": 50})


async def test_templates_are_for_emitting(redis_url: str) -> None:
    prefix = unique()
    paid = event_class(prefix + ".{order}.paid")
    handled: list[str] = []
    dispatcher = EventDispatcher(consumer_of(redis_url))

    @dispatcher.handler(topic=f"{prefix}.7.paid")
    async def handle(event: Event[Any]) -> None:
        handled.append(event.meta.topic)

    async with dispatcher.lifespan(), EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        await emitter.emit(paid(order="8"))
        await emitter.emit(paid(order="7"))
        await until(lambda: handled)
    assert handled == [f"{prefix}.7.paid"]


@pytest.mark.parametrize(
    "subscription",
    [
        {"topic": "a.*"},
        {"topic": "a.{name}"},
        {"topic": "#"},
        {"subscription_or_event": RedisStreamEventSubscription("a.#")},
        {"subscription_or_event": event_class("a.{order}")},
    ],
)
async def test_patterns_are_refused_before_anything_starts(subscription: dict[str, Any]) -> None:
    dispatcher = EventDispatcher(consumer_of("redis://no-such-host.invalid"))

    @dispatcher.handler(**subscription)
    async def handle(event: Event[Any]) -> None: ...

    with pytest.raises(RegistrationError, match=r"handle.*Redis Streams have none"):
        await dispatcher.start()


async def test_routes_with_a_delimiter_and_headers(redis_url: str) -> None:
    stream = unique()
    handled: list[Any] = []

    class Moved(EventBase):
        __route__ = RedisStreamEventRoute(stream, delimiter="|")
        __backend_config__ = RedisStreamEventConfig(headers={"tenant": "{name}", "raw": b"\xff"}, maxlen=1000)
        name: str

    dispatcher = EventDispatcher(consumer_of(redis_url))

    @dispatcher.handler(Moved)
    async def handle(event: Event[Moved]) -> None:
        handled.append(dict(event.meta.headers))

    @dispatcher.handler(RedisStreamEventSubscription(stream, "other"))
    async def other(event: Event[Moved]) -> None:
        raise AssertionError("another type")

    async with dispatcher.lifespan(), EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        await emitter.emit(Moved(name="a.b"))
        await until(lambda: handled)
    assert handled[0]["raw"] == "\N{REPLACEMENT CHARACTER}"
    assert "tenant" in handled[0]


async def test_foreign_entries(redis_url: str, client: Any) -> None:
    topic = unique()
    handled: list[Any] = []
    dispatcher = EventDispatcher(consumer_of(redis_url), max_deliveries=1)

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        handled.append((event.body, event.meta.id, event.meta.type))

    @dispatcher.handler(topic=topic, event="typed")
    async def typed(event: Event[Any]) -> None: ...

    ids = [
        client.xadd(topic, {"order": "1", "amount": "3"}),
        client.xadd(topic, {b"\xff": b"\xfe\x00", "": ""}),
        client.execute_command("XADD", topic, "*", "a", "1", "a", "2"),
        client.xadd(topic, {"data": '{"bare": true}'}),
        client.xadd(topic, {"ce_specversion": "1.0", "ce_id": "x", "ce_type": "untaken"}),
        client.xadd(topic, {"data": '{"its": 1}', "ce_specversion": "1.0", "ce_id": "own", "ce_type": "t"}),
    ]
    async with dispatcher.lifespan():
        await until(lambda: len(handled) == 6)
    assert [body for body, _, _ in handled] == [
        {"order": "1", "amount": "3"},
        {"\\xff": "\\xfe\x00", "": ""},
        {"a": "2"},
        {"bare": True},
        None,
        {"its": 1},
    ]
    assert [id for _, id, _ in handled] == [*(id.decode() for id in ids[:4]), "x", "own"]


async def test_foreign_entries_in_other_envelopes(redis_url: str, client: Any) -> None:
    """Fields are fields, whatever the codec and the envelope."""
    topic = unique()
    handled: list[Any] = []
    codec = MessagePackDeserializer()
    bare, classic = (
        EventDispatcher(consumer_of(redis_url, group_id=group), deserializer=codec, envelope=envelope)
        for group, envelope in (("bare", BareEnvelope(type_field="kind")), ("classic", ClassicEnvelope()))
    )

    @bare.handler(topic=topic, event="reading")
    async def of_bare(event: Event[dict[str, str]]) -> None:
        handled.append(event.body)

    @classic.handler(topic=topic, event="reading")
    async def of_classic(event: Event[str]) -> None:
        handled.append((event.meta.id, event.body))

    client.xadd(topic, {"kind": "reading", "type": "reading", "id": "7", "body": "text"})
    async with bare.lifespan(), classic.lifespan():
        await until(lambda: len(handled) == 2)
    assert {"kind": "reading", "type": "reading", "id": "7", "body": "text"} in handled
    assert ("7", "text") in handled


async def test_a_foreign_entry_fits_a_model(redis_url: str, client: Any) -> None:
    topic = unique()
    handled: list[Body] = []
    dispatcher = EventDispatcher(consumer_of(redis_url))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Body]) -> None:
        handled.append(event.body)

    client.xadd(topic, {"order": "1", "amount": "3"})
    client.xadd(topic, {"amount": "3"})
    async with dispatcher.lifespan():
        dead = f"{topic}.{GROUP}.dead"
        await until(lambda: client.xlen(dead) == 1)
        await until(lambda: handled)
    assert handled == [Body(order="1", amount=3)]
    ((_, letter),) = client.xrange(dead)
    assert b"data" not in letter  # as the original
    assert letter[b"amount"] == b"3"
    assert b"order" in letter[b"dispytch-dead-error"]


async def test_dead_letters_keep_the_original(redis_url: str, client: Any) -> None:
    topic = unique()
    paid = event_class(topic)
    letters: list[Any] = []
    dispatcher = EventDispatcher(consumer_of(redis_url), max_deliveries=2)

    @dispatcher.handler(paid)
    async def fail(event: Event[Body]) -> None:
        raise ValueError("no")

    @dispatcher.handler(topic=f"{topic}.{GROUP}.dead")
    async def bury(event: Event[Body]) -> None:
        letters.append((event.body, event.meta.key, event.meta.dead_letter))

    async with dispatcher.lifespan(), EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        receipt = await emitter.emit(paid(order="1", amount=2))
        assert receipt is not None
        await until(lambda: letters)
        await dispatcher.idle()
    ((body, key, letter),) = letters
    assert (body, key) == (Body(order="1", amount=2), "1")
    assert (letter.error, letter.attempts, letter.source) == ("ValueError: no", 2, topic)
    assert letter.position == receipt.offset
    (original, copy) = (client.xrange(name)[0][1] for name in (topic, f"{topic}.{GROUP}.dead"))
    assert copy.items() >= original.items()
    assert pending(client, topic) == 0


async def test_bad_entries_are_dead_lettered(redis_url: str, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = unique()
    handled: list[str] = []
    dispatcher = EventDispatcher(consumer_of(redis_url, max_payload_bytes=1000))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Body]) -> None:
        handled.append(event.body.order)

    bad = [b"{not json", b"\xff\xfe", b'{"amount": "secret"}', b"", b'"' + b"x" * 2000 + b'"']
    for payload in bad:
        client.xadd(topic, {"data": payload})
    client.xadd(topic, {"field": b"x" * 2000})
    client.xadd(topic, {"data": b"{}", "ce_specversion": "1.0"})
    client.xadd(topic, {"data": b'{"order": "good"}'})
    dead = f"{topic}.{GROUP}.dead"
    with caplog.at_level(logging.ERROR, "dispytch"):
        async with dispatcher.lifespan():
            await until(lambda: handled and client.xlen(dead) == 7)
            await dispatcher.idle()
    assert sorted(fields.get(b"data", b"?") for _, fields in client.xrange(dead)) == sorted([*bad, b"?", b"{}"])
    assert "secret" not in caplog.text
    assert pending(client, topic) == 0


async def test_acknowledging_first(redis_url: str, client: Any) -> None:
    topic = unique()
    seen: list[int] = []
    dispatcher = EventDispatcher(consumer_of(redis_url))
    fill(client, topic, 20)

    @dispatcher.handler(topic=topic, ack_policy=AckBeforeProcessing())
    async def handle(event: Event[int]) -> None:
        seen.append(pending(client, topic))

    async with dispatcher.lifespan():
        await until(lambda: len(seen) == 20)
    assert seen == [0] * 20


async def test_a_stop_is_prompt(redis_url: str) -> None:
    took: list[float] = []
    for _ in range(3):
        dispatcher = EventDispatcher(consumer_of(redis_url))

        @dispatcher.handler(topic=unique())
        async def handle(event: Event[Any]) -> None: ...

        async with dispatcher.lifespan():
            await anyio.sleep(0.1)
            start = time.monotonic()
            await dispatcher.stop()
            took.append(time.monotonic() - start)
    assert min(took) < 0.2
    assert reader_threads() == []


async def test_a_stop_in_full_run_repeats_nothing_and_loses_nothing(redis_url: str, client: Any) -> None:
    topic = unique()
    count = 3000
    fill(client, topic, count)
    handled: Counter[int] = Counter()
    for _ in range(30):
        dispatcher = EventDispatcher(consumer_of(redis_url), concurrency=20)

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[int]) -> None:
            await anyio.sleep(0.001)
            handled[event.body] += 1

        before = len(handled)
        async with dispatcher.lifespan():
            await until(lambda: len(handled) >= min(count, before + 150))  # noqa: B023 - awaited here
        if len(handled) == count:
            break
    assert handled == dict.fromkeys(range(count), 1)
    assert pending(client, topic) == 0
    assert names(client, topic) in ([], ["dispytch-handed-back"])


async def test_what_was_not_finished_in_time_goes_to_others(redis_url: str, client: Any) -> None:
    topic = unique()
    fill(client, topic, 5)
    handled: list[int] = []

    def dispatcher_of(seconds: float) -> EventDispatcher:
        dispatcher = EventDispatcher(consumer_of(redis_url), drain_timeout=0.1)

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[int]) -> None:
            await anyio.sleep(seconds)
            handled.append(event.body)

        return dispatcher

    other = dispatcher_of(0)
    async with dispatcher_of(60).lifespan():
        await until(lambda: pending(client, topic) == 5)
        async with other.lifespan():
            await anyio.sleep(0.1)
            assert handled == []
    start = time.monotonic()
    async with other.lifespan():
        await until(lambda: len(handled) == 5)
    assert time.monotonic() - start < 20  # and not after `claim_idle`
    assert sorted(handled) == list(range(5))


async def test_connections_that_break(redis_url: str, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic, name = unique(), unique("name")
    handled: Counter[int] = Counter()
    dispatcher = EventDispatcher(consumer_of(f"{redis_url}?client_name={name}", claim_idle=3), concurrency=20)

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[int]) -> None:
        await anyio.sleep(0.001)
        handled[event.body] += 1

    with caplog.at_level(logging.INFO, "dispytch"):
        async with dispatcher.lifespan():
            for round in range(5):
                with client.pipeline(transaction=False) as pipeline:
                    for number in range(400):
                        pipeline.xadd(topic, {"data": round * 400 + number})
                    pipeline.execute()
                await until(lambda: len(handled) > round * 400 + 50)  # noqa: B023 - awaited here
                for found in client.client_list():
                    if found["name"] == name:
                        client.client_kill_filter(_id=found["id"])
            await until(lambda: len(handled) == 2000)
            await dispatcher.idle()
    assert "connected again" in caplog.text
    assert sum(handled.values()) < 2000 + 5 * 40
    assert pending(client, topic) == 0


_MEMBER = """
import sys, anyio
from dispytch import Event, EventDispatcher
from dispytch.redis import RedisStreamConsumer

url, topic, backend = sys.argv[1:]
dispatcher = EventDispatcher(RedisStreamConsumer(url, group_id="group", claim_idle=0.5), concurrency=10)

@dispatcher.handler(topic=topic)
async def handle(event: Event[int]) -> None:
    await anyio.sleep(0.005)
    print(event.body, flush=True)

dispatcher.run(backend=backend)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_killed_consumers(redis_url: str, client: Any, backend: str) -> None:
    topic = unique()
    count = 1000
    fill(client, topic, count)
    handled: Counter[int] = Counter()

    def run(least: int) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", _MEMBER, redis_url, topic, backend], stdout=subprocess.PIPE, text=True
        ) as member:
            assert member.stdout is not None
            for new, line in enumerate(member.stdout, 1):
                handled[int(line)] += 1
                if new == least and len(handled) < count:
                    member.send_signal(signal.SIGKILL)
                if len(handled) == count:
                    member.terminate()

    for least in (200, 200, 200, 0):
        run(least)
    assert len(handled) == count
    assert sum(handled.values()) <= count + 3 * 20
    assert pending(client, topic) == 0
