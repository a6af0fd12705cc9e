"""Dead letters as an API, on real brokers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch._core.patterns import Pattern
from dispytch.abc import Consumer, EventConfig, EventSubscription, Message, Producer, Receipt, Subscription
from dispytch.deadletters import DeadLetters, Letter, Report
from dispytch.errors import DispytchError, EmitRejectedError
from dispytch.kafka import KafkaConsumer, KafkaEventConfig, KafkaProducer
from dispytch.rabbitmq import (
    RabbitMQConsumer,
    RabbitMQEventConfig,
    RabbitMQEventRoute,
    RabbitMQEventSubscription,
    RabbitMQProducer,
)
from dispytch.redis import RedisStreamConsumer, RedisStreamEventConfig, RedisStreamProducer
from tests.rabbitmq.helpers import channel_to
from tests.redis.helpers import client_of
from tests.support import unique, until

pytestmark = pytest.mark.anyio

HEADERS = {"tenant": "acme"}


@pytest.fixture(params=["asyncio", "trio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The loops of this module; the logic is tested on all of them beside the memory broker."""
    return request.param


class Place:
    """A transport, and a topic of its own there."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self.topic = unique("jobs")
        self.billing, self.audit = unique("billing"), unique("audit")
        self.reader = unique("letters")

    def consumer(self, group: str) -> Consumer:
        if self.name == "kafka":
            return KafkaConsumer(self.url, group_id=group, config={"topic.metadata.refresh.interval.ms": 500})
        if self.name == "rabbitmq":
            return RabbitMQConsumer(self.url, queue=group)
        return RedisStreamConsumer(self.url, group_id=group, claim_idle=2.0)

    def producer(self) -> Producer:
        if self.name == "kafka":
            return KafkaProducer(self.url)
        if self.name == "rabbitmq":
            return RabbitMQProducer(self.url)
        return RedisStreamProducer(self.url)

    @property
    def any_url(self) -> str:
        """The same with the scheme by which a transport is found."""
        scheme = {"kafka": "kafka", "rabbitmq": "amqp", "streams": "redis+stream"}[self.name]
        return f"{scheme}://{self.url.rpartition('://')[2]}"

    @property
    def url_of_mortals(self) -> str:
        """The same for a program that will be killed: its group does not wait for long until others get its share."""
        return f"{self.any_url}?session.timeout.ms=2000" if self.name == "kafka" else self.any_url

    @property
    def config(self) -> EventConfig:
        if self.name == "kafka":
            return KafkaEventConfig(headers=HEADERS)
        return RabbitMQEventConfig(headers=HEADERS) if self.name == "rabbitmq" else RedisStreamEventConfig(HEADERS)

    @property
    def dead_topic(self) -> str:
        consumer = self.consumer(self.billing)
        declared = consumer.subscription_for(EventSubscription(self.topic))
        assert declared is not None
        route = consumer.default_dead_letter(Subscription(Pattern.parse(self.topic), declared))
        assert route is not None
        return route.address

    def letters(self, producer: Producer | None = None, **options: Any) -> DeadLetters:
        return DeadLetters(
            self.consumer(self.reader), self.dead_topic, producer or self.producer(), **{"idle": 1.0, **options}
        )


@pytest.fixture(params=["kafka", "rabbitmq", "streams"])
def place(request: pytest.FixtureRequest) -> Place:
    name: str = request.param
    fixture = "redis" if name == "streams" else name
    return Place(name, request.getfixturevalue(f"{fixture}_url"))


class Workshop:
    """Two groups; in the first, one of two handlers fails while ``broken``."""

    def __init__(self, place: Place) -> None:
        self.broken = True
        self.log: Counter[str] = Counter()
        self.attempts: set[int] = set()
        self.events: list[Event[Any]] = []
        self.billing = EventDispatcher(place.consumer(place.billing), max_deliveries=1)
        self.audit = EventDispatcher(place.consumer(place.audit), max_deliveries=1)

        class Job(EventBase):
            __topic__ = place.topic
            __key__ = "{name}"
            __backend_config__ = place.config
            name: str

        self.kind: Callable[..., EventBase] = Job

        @self.billing.handler(topic=place.topic)
        async def charge(event: Event[Job]) -> None:
            self.attempts.add(event.meta.attempt)
            if self.broken:
                raise OSError(f"no money for {event.body.name}")
            self.events.append(event)
            self.log[f"charge {event.body.name}"] += 1

        @self.billing.handler(topic=place.topic)
        async def notify(event: Event[Job]) -> None:
            self.log[f"notify {event.body.name}"] += 1

        @self.audit.handler(topic=place.topic)
        async def audit(event: Event[Job]) -> None:
            self.log[f"audit {event.body.name}"] += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.billing.lifespan(), self.audit.lifespan():
            yield


@asynccontextmanager
async def failed(place: Place, names: str = "abc") -> AsyncIterator[Workshop]:
    """So many jobs have been dead-lettered by one handler, which is mended; both groups run on."""
    workshop = Workshop(place)
    async with workshop.running(), EventEmitter(place.producer()) as emitter:
        await emitter.emit_many([workshop.kind(name=name) for name in names])
        await until(lambda: workshop.billing.health().dead_lettered == len(names))
        await until(lambda: workshop.audit.health().handled == len(names))
        await until(lambda: workshop.billing.health().unsettled == 0)
        workshop.broken = False
        workshop.log.clear()
        workshop.attempts.clear()
        yield workshop


async def names(dead: DeadLetters) -> list[str]:
    return sorted([letter.error.rpartition(" ")[2] async for letter in dead.read()])


def about(*chosen: str) -> Callable[[Letter], bool]:
    return lambda letter: letter.error.rpartition(" ")[2] in chosen


async def test_reading_and_replaying_to_the_handler_that_failed(place: Place) -> None:
    async with place.letters() as dead:
        async with failed(place) as workshop:
            letters = [letter async for letter in dead.read()]
            assert sorted(letter.error for letter in letters) == [f"OSError: no money for {name}" for name in "abc"]
            assert {letter.group for letter in letters} == {place.billing}
            assert {letter.source for letter in letters} == {place.topic}
            assert await names(dead) == [*"abc"], "reading leaves them"

            assert await dead.replay() == Report(replayed=3, is_complete=True)
            await until(lambda: workshop.log.total() == 3)
            await until(lambda: workshop.audit.health().not_addressed == 3)
            await until(lambda: workshop.billing.health().unsettled == 0)
            assert workshop.log == {"charge a": 1, "charge b": 1, "charge c": 1}
            assert workshop.attempts == {1}
            for event in workshop.events:
                original = next(letter for letter in letters if letter.id == event.meta.id)
                assert event.meta.message.payload == original.payload
                assert event.meta.key == event.body.name
                own = [header for header in event.meta.message.headers if not header[0].startswith("dispytch-replay-")]
                assert sorted(own) == sorted(original.headers)
                assert ("tenant", b"acme") in own
                assert event.meta.dead_letter is None
        assert await dead.replay() == Report(is_complete=True), "nothing is left"


async def test_replaying_to_everybody(place: Place) -> None:
    async with place.letters() as dead, failed(place, "a") as workshop:
        assert await dead.replay(only_handler=False) == Report(replayed=1, is_complete=True)
        await until(lambda: workshop.log.total() == 3)
        assert workshop.log == {"charge a": 1, "notify a": 1, "audit a": 1}


async def test_a_filter_leaves_the_others_for_the_next_reader(place: Place) -> None:
    async with place.letters() as dead:
        async with failed(place, "abcdef") as workshop:
            assert await dead.replay(about("c"), dry_run=True) == Report(replayed=1, kept=5, is_complete=True)
            assert await dead.replay(about("b", "e")) == Report(replayed=2, kept=4, is_complete=True)
            assert await names(dead) == [*"acdf"]
            assert await dead.drop(about("a")) == Report(dropped=1, kept=3, is_complete=True)
            assert (await dead.replay(limit=1)).replayed == 1
        async with place.letters() as another:
            assert len(await names(another)) == 2
            assert (await another.replay()).replayed == 2
            assert await names(another) == []
        async with workshop.running():
            await until(lambda: workshop.log.total() == 5)
        assert workshop.log == {f"charge {name}": 1 for name in "bcdef"}


class Stuck(Producer):
    """Publishes by another one, and never hears that it did."""

    def __init__(self, inner: Producer) -> None:
        self.inner = inner
        self.transport = inner.transport  # type: ignore[misc]  # the other one's
        self.features = inner.features
        self.sent = anyio.Event()
        self.count = 0
        self.route_for = inner.route_for  # type: ignore[method-assign]
        self.route_back = inner.route_back  # type: ignore[method-assign]

    def route_for(self, topic: str) -> Any: ...

    def check(self, message: Message) -> None:
        self.inner.check(message)

    async def start(self) -> None: ...

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        self.count = len(await self.inner.send(messages, timeout))
        self.sent.set()
        await anyio.sleep_forever()
        raise AssertionError

    async def stop(self) -> None:
        await self.inner.stop()


async def test_a_crash_between_publishing_and_acknowledging_repeats_and_loses_nothing(place: Place) -> None:
    async with failed(place) as workshop:
        producer = Stuck(place.producer())
        async with place.letters(producer) as crashing, anyio.create_task_group() as group:
            group.start_soon(crashing.replay)
            with anyio.fail_after(60):
                await producer.sent.wait()
            group.cancel_scope.cancel()
        async with place.letters() as dead:
            report = await dead.replay()
            assert (report.replayed, report.failed) == (3, 0)
            assert await names(dead) == []
        await until(lambda: workshop.log.total() >= 3 + producer.count)
        assert set(workshop.log) == {"charge a", "charge b", "charge c"}
        assert workshop.log.total() == 3 + producer.count


async def test_undecodable_letters_come_back_as_they_were(place: Place) -> None:
    async with place.letters() as dead, failed(place, "a") as workshop:
        assert await dead.drop() == Report(dropped=1, is_complete=True)
        route = place.producer().route_for(place.topic)
        producer = place.producer()
        prefix = producer.features.header_prefix
        headers = [(f"{prefix}specversion", b"1.0"), ("tenant", b"acme")]
        (receipt,) = await producer.send([Message(unique("id"), route, b"\xff\x00", headers)], 30)
        assert isinstance(receipt, Receipt)
        await producer.stop()
        await until(lambda: workshop.billing.health().dead_lettered == 2)
        (letter,) = [letter async for letter in dead.read()]
        assert letter.error.startswith("DecodeError")
        assert (letter.handler, letter.payload) == (None, b"\xff\x00")
        assert {("tenant", b"acme"), (f"{prefix}specversion", b"1.0")} <= {*letter.headers}
        assert (await dead.replay()).replayed == 1
        await until(lambda: workshop.billing.health().dead_lettered == 3)
        (again,) = [letter async for letter in dead.read()]
        assert (again.payload, sorted(again.headers)) == (letter.payload, sorted(letter.headers))


async def test_from_a_url(place: Place) -> None:
    url = place.any_url
    assert type(consumer_from_url(url)) is type(place.consumer("x"))
    assert type(producer_from_url(url)) is type(place.producer())
    async with failed(place, "a") as workshop:
        async with DeadLetters.from_url(url, place.dead_topic, group_id=place.reader, idle=1.0) as dead:
            assert (await dead.replay()).replayed == 1
        await until(lambda: workshop.log["charge a"])


_KILLED = """
import sys, anyio
from dispytch.deadletters import DeadLetters
url, topic, group = sys.argv[1:]
class Dying(DeadLetters):
    async def _publish(self, producer, letters, *rest):
        await super()._publish(producer, letters, *rest)
        print(len(letters), flush=True)
        await anyio.sleep_forever()
async def main():
    await Dying.from_url(url, topic, group_id=group).replay()
anyio.run(main)
"""


async def test_a_kill_after_publishing_loses_nothing(place: Place) -> None:
    async with failed(place) as workshop:
        command = [sys.executable, "-c", _KILLED, place.url_of_mortals, place.dead_topic, place.reader]
        child = await anyio.open_process(command)
        async with child:
            assert child.stdout is not None
            with anyio.fail_after(60):
                published = int(await child.stdout.receive())
            child.kill()
        async with place.letters() as dead:
            with anyio.fail_after(90):  # until Kafka's session has timed out, and Streams' claim_idle is over
                while (await dead.replay()).replayed == 0:
                    pass
            assert await names(dead) == []
        await until(lambda: workshop.log.total() >= 3 + published)
        assert set(workshop.log) == {"charge a", "charge b", "charge c"}
        assert workshop.log.total() == 3 + published


# --- what only some have


@pytest.mark.parametrize("exchange", ["named", ""])
async def test_rabbitmq_letters_go_back_to_the_exchange_that_they_came_by(rabbitmq_url: str, exchange: str) -> None:
    exchange = exchange and unique("exchange")
    queue, key = unique("queue"), unique("key")
    declared = RabbitMQEventSubscription(exchange, None, key if exchange else queue)
    dispatcher = EventDispatcher(RabbitMQConsumer(rabbitmq_url, queue=queue), max_deliveries=1)
    tries: list[tuple[str, Any]] = []

    @dispatcher.handler(declared)
    async def fail_once(event: Event[Any]) -> None:
        tries.append((event.meta.topic, event.meta.message.scope))
        if len(tries) == 1:
            raise OSError("not yet")

    producer = RabbitMQProducer(rabbitmq_url)
    async with DeadLetters(RabbitMQConsumer(rabbitmq_url, queue="any"), f"{queue}.dead", producer, idle=1.0) as dead:
        async with dispatcher.lifespan():
            route = RabbitMQEventRoute(key if exchange else queue, exchange)
            (sent,) = await producer.send([Message("the id", route, b"{}")], 30)
            assert isinstance(sent, Receipt)
            await until(lambda: dispatcher.health().dead_lettered == 1)
            (letter,) = [letter async for letter in dead.read()]
            assert (letter.scope, letter.source) == (exchange, route.routing_key)
            assert letter.id == "the id", "that of the message, where the event has no other"
            assert await dead.replay() == Report(replayed=1, is_complete=True)
            await until(lambda: dispatcher.health().handled == 2)
        assert tries[0] == tries[1]


async def test_rabbitmq_a_letter_that_nobody_is_bound_for_stays_and_is_reported(rabbitmq_url: str) -> None:
    place = Place("rabbitmq", rabbitmq_url)
    async with place.letters() as dead:
        async with failed(place, "ab"):
            pass
        with channel_to(rabbitmq_url) as channel:
            for queue in (place.billing, place.audit):
                channel.queue_delete(queue)
        report = await dead.replay()
        assert (report.replayed, report.failed, report.is_complete) == (0, 2, True)
        assert isinstance(report.problems[0].error, EmitRejectedError)
        assert "no queue is bound" in str(report.problems[0].error)
        assert await names(dead) == ["a", "b"]
        assert (await dead.drop()).dropped == 2


async def test_rabbitmq_a_prefetch_bounds_a_pass(rabbitmq_url: str) -> None:
    place = Place("rabbitmq", rabbitmq_url)
    async with failed(place, "abcde"):
        pass
    consumer = RabbitMQConsumer(rabbitmq_url, queue="any", prefetch=2)
    async with DeadLetters(consumer, place.dead_topic, place.producer(), idle=1.0) as dead:
        assert dead.window == 2
        report = await dead.replay(lambda letter: False)
        assert (report.kept, report.is_complete) == (2, False)
        assert (await dead.drop()).dropped == 5


async def test_streams_an_entry_of_fields_comes_back_as_it_was(redis_url: str) -> None:
    stream, group = unique("fields"), unique("group")
    dispatcher = EventDispatcher(RedisStreamConsumer(redis_url, group_id=group), max_deliveries=1)
    tries: list[Any] = []

    @dispatcher.handler(topic=stream)
    async def fail_once(event: Event) -> None:
        tries.append(event.body)
        if len(tries) == 1:
            raise OSError("not yet")

    reader = RedisStreamConsumer(redis_url, group_id=unique("letters"))
    with client_of(redis_url) as client:
        async with dispatcher.lifespan():
            client.xadd(stream, {"color": "red", "size": "3"})
            await until(lambda: dispatcher.health().dead_lettered == 1)
            async with DeadLetters(reader, f"{stream}.{group}.dead", RedisStreamProducer(redis_url), idle=1.0) as dead:
                assert (await dead.replay()).replayed == 1
            await until(lambda: dispatcher.health().handled == 2)
        (_, (_, fields)) = client.xrange(stream)
    assert tries == [{"color": "red", "size": "3"}] * 2
    own = {name: value for name, value in fields.items() if not name.startswith(b"dispytch-replay-")}
    assert own == {b"color": b"red", b"size": b"3"}


async def test_kafka_a_pass_over_more_than_a_partition_may_have_uncommitted(kafka_url: str) -> None:
    topic, number = unique("dead"), 300
    headers = [("dispytch-dead-error", b"E"), ("dispytch-dead-source", f"{topic}-source".encode())]
    consumer = KafkaConsumer(kafka_url, group_id=unique("letters"), max_uncommitted=100)
    async with DeadLetters(consumer, topic, idle=0.05) as dead:
        producer = KafkaProducer(kafka_url)
        outcomes = await producer.send(
            [
                Message(unique("id"), producer.route_for(topic), b"%d" % n, [("ce_id", b"%d" % n), *headers], b"k")
                for n in range(number)
            ],
            30,
        )
        assert all(isinstance(one, Receipt) for one in outcomes)
        await producer.stop()
        chosen = {"3", "150", "299"}
        report = await dead.drop(lambda letter: letter.id in chosen)
        assert (report.dropped, report.kept, report.is_complete) == (3, number - 3, True)
        report = await dead.drop()
        assert (report.dropped, report.is_complete) == (number - 3, True)
