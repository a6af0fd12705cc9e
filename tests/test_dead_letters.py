"""Dead letters as an API, on the memory broker: reading, replaying, dropping, and who gets what is replayed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import takewhile
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from dispytch import Event, EventBase, EventDispatcher
from dispytch.abc import Delivery, Headers, Message, Outcome, Receipt, Settlement
from dispytch.deadletters import DeadLetters, Letter, Report
from dispytch.errors import BrokerUnreachableError, ConfigurationError, DeliveryError, DispytchError, EmitTimeoutError
from dispytch.memory import (
    MemoryBroker,
    MemoryConsumer,
    MemoryEventConfig,
    MemoryEventRoute,
    MemoryProducer,
    Record,
)
from dispytch.serialization import BareEnvelope, ClassicEnvelope, Envelope
from dispytch.testing import Faults
from tests.helpers import dispatcher_on, emit, headers_of, publish, run

pytestmark = pytest.mark.anyio


class Job(EventBase):
    __topic__ = "jobs"
    __key__ = "{name}"
    __backend_config__ = MemoryEventConfig(headers={"tenant": "acme"})
    name: str


class Workshop:
    """Dispatchers of two groups; the first has two handlers, of which one fails while ``broken``."""

    def __init__(self, broker: MemoryBroker, envelope: Envelope | None = None) -> None:
        self.broker = broker
        self.broken = True
        self.log: list[str] = []
        self.attempts: list[int] = []
        self.billing = dispatcher_on(broker, group_id="billing", envelope=envelope)
        self.audit = dispatcher_on(broker, group_id="audit", envelope=envelope)

        @self.billing.handler(topic="jobs")
        async def charge(event: Event[Job]) -> None:
            self.attempts.append(event.meta.attempt)
            if self.broken:
                raise OSError(f"no money for {event.body.name}")
            self.log.append(f"charge {event.body.name}")

        @self.billing.handler(topic="jobs")
        async def notify(event: Event[Job]) -> None:
            self.log.append(f"notify {event.body.name}")

        @self.audit.handler(topic="jobs")
        async def audit(event: Event[Job]) -> None:
            self.log.append(f"audit {event.body.name}")

    async def run(self) -> None:
        await run(self.billing)
        await run(self.audit)


@pytest.fixture
async def workshop(broker: MemoryBroker) -> Workshop:
    """Three jobs have been dead-lettered by one handler."""
    found = Workshop(broker)
    await emit(broker, *(Job(name=name) for name in ("a", "b", "c")))
    await found.run()
    found.log.clear()
    found.attempts.clear()
    found.broken = False
    return found


@pytest.fixture
async def dead(broker: MemoryBroker) -> AsyncIterator[DeadLetters]:
    async with letters_of(broker) as dead:
        yield dead


def letters_of(broker: MemoryBroker, topic: str = "jobs.billing.dead", **options: Any) -> DeadLetters:
    return DeadLetters(MemoryConsumer(broker, "letters"), topic, MemoryProducer(broker), **{"idle": 0.05, **options})


def own(record: Record) -> list[tuple[str, bytes]]:
    """A record's headers less those that make it a replayed one."""
    return [header for header in record.headers if not header[0].startswith("dispytch-replay-")]


async def texts(dead: DeadLetters) -> list[str]:
    """What the letters say that are there."""
    with anyio.fail_after(20):
        return [letter.error for letter in [one async for one in dead.read()]]


# --- reading


async def test_a_letter_tells_all_and_stays(workshop: Workshop, dead: DeadLetters) -> None:
    letters = [letter async for letter in dead.read()]
    assert [letter.error for letter in letters] == [f"OSError: no money for {name}" for name in "abc"]
    first = letters[0]
    original = workshop.broker.records("jobs")[0]
    assert (first.payload, first.key, dict(first.headers)) == (original.payload, b"a", dict(original.headers))
    assert first.id == headers_of(original)["ce_id"]
    assert (first.source, first.position, first.group, first.attempts) == ("jobs", "jobs/0", "billing", 1)
    assert first.handler is not None
    assert first.handler.endswith("charge")
    assert first.message.position == "jobs.billing.dead/0"
    assert first.failed_at.startswith("20")
    assert [letter.id async for letter in dead.read()] == [letter.id for letter in letters]


async def test_reading_some(workshop: Workshop, dead: DeadLetters) -> None:
    assert [letter.key async for letter in dead.read(limit=2)] == [b"a", b"b"]
    async for letter in dead.read():
        assert letter.key == b"a"
        break
    assert len(await texts(dead)) == 3


async def test_reading_nothing(broker: MemoryBroker, dead: DeadLetters) -> None:
    assert await texts(dead) == []
    assert await dead.replay() == Report(is_complete=True)


async def test_a_payload_is_in_no_repr(workshop: Workshop, dead: DeadLetters) -> None:
    publish(workshop.broker, "jobs.billing.dead", b"canary-payload")
    found = [repr(letter) async for letter in dead.read()]
    assert len(found) == 4
    assert "canary-payload" not in "".join(found)


# --- replaying


async def test_replaying_all_to_everybody(workshop: Workshop, dead: DeadLetters) -> None:
    assert await dead.replay(only_handler=False) == Report(replayed=3, is_complete=True)
    assert await texts(dead) == []
    records = workshop.broker.records("jobs")
    assert len(records) == 6
    for before, after in zip(records[:3], records[3:], strict=True):
        assert (after.payload, after.key, own(after)) == (before.payload, before.key, [*before.headers])
    await workshop.run()
    assert sorted(workshop.log) == sorted(f"{who} {name}" for who in ("charge", "notify", "audit") for name in "abc")
    assert workshop.attempts == [1, 1, 1]


@pytest.mark.parametrize("envelope", [None, BareEnvelope(), ClassicEnvelope()], ids=["cloudevents", "bare", "classic"])
async def test_replaying_to_the_handler_that_failed(broker: MemoryBroker, envelope: Envelope | None) -> None:
    workshop = Workshop(broker, envelope)
    async with letters_of(broker) as dead:
        await emit(broker, Job(name="a"), envelope=envelope)
        await workshop.run()
        assert sorted(workshop.log) == ["audit a", "notify a"]
        workshop.broken = False
        assert await dead.replay() == Report(replayed=1, is_complete=True)
    with anyio.fail_after(20):
        async with workshop.billing.lifespan():
            await workshop.billing.idle()
            assert workshop.billing.health().not_addressed == 0
        async with workshop.audit.lifespan():
            await workshop.audit.idle()
            assert workshop.audit.health().not_addressed == 1
            assert workshop.audit.health().unsettled == 0
    assert sorted(workshop.log) == ["audit a", "charge a", "notify a"]


async def test_what_fails_again_is_a_letter_again_that_can_be_replayed_again(
    workshop: Workshop, dead: DeadLetters
) -> None:
    workshop.broken = True
    for _ in range(2):
        assert (await dead.replay()).replayed == 3
        await workshop.run()
        assert len(await texts(dead)) == 3
    assert workshop.log == []
    workshop.broken = False
    await dead.replay()
    await workshop.run()
    assert sorted(workshop.log) == ["charge a", "charge b", "charge c"]


async def test_what_fails_again_at_once_does_not_go_round_and_round(workshop: Workshop, dead: DeadLetters) -> None:
    workshop.broken = True
    publish(
        workshop.broker, "jobs", b"{}", [("ce_specversion", b"1.0")]
    )  # one whose id is its position, ever a new one
    await workshop.run()
    told: list[Report] = []

    def progress(report: Report) -> None:
        told.append(report)
        assert len(told) < 100

    with anyio.fail_after(20):
        async with workshop.billing.lifespan(), letters_of(workshop.broker, idle=0.5) as waiting:
            waiting.consumer.backlog = lambda: None  # type: ignore[method-assign]  # so that it waits for more
            report = await waiting.replay(progress=progress)
            await workshop.billing.idle()
    assert (report.replayed, report.is_complete) == (4, True)
    assert len(await texts(dead)) == 4
    assert (await dead.replay()).replayed == 4, "the next pass takes them"


async def test_a_filter_and_a_limit_leave_the_others(workshop: Workshop, dead: DeadLetters) -> None:
    assert await dead.replay(lambda letter: letter.key == b"b") == Report(replayed=1, kept=2, is_complete=True)
    assert [letter.key async for letter in dead.read()] == [b"a", b"c"]
    assert await dead.replay(limit=1) == Report(replayed=1)
    assert [letter.key async for letter in dead.read()] == [b"c"]
    assert await dead.replay(lambda letter: False) == Report(kept=1, is_complete=True)
    assert [letter.key async for letter in dead.read()] == [b"c"]


async def test_a_filter_may_be_async(workshop: Workshop, dead: DeadLetters) -> None:
    """One that was not awaited would be true of all letters."""

    async def where(letter: Letter) -> bool:
        await anyio.lowlevel.checkpoint()
        return letter.key == b"b"

    assert await dead.drop(where) == Report(dropped=1, kept=2, is_complete=True)
    assert [letter.key async for letter in dead.read()] == [b"a", b"c"]
    with pytest.raises(ConfigurationError, match="give a function"):
        await dead.drop("b")  # type: ignore[arg-type]


async def test_a_filter_that_fails_changes_nothing(workshop: Workshop, dead: DeadLetters) -> None:
    def where(letter: Letter) -> bool:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        await dead.replay(where)
    assert len(await texts(dead)) == 3
    assert len(workshop.broker.records("jobs")) == 3


async def test_a_dry_run_only_counts(workshop: Workshop, dead: DeadLetters) -> None:
    report = await dead.replay(lambda letter: letter.key != b"a", dry_run=True)
    assert report == Report(replayed=2, kept=1, is_complete=True)
    assert await dead.drop(dry_run=True) == Report(dropped=3, is_complete=True)
    assert len(await texts(dead)) == 3
    assert len(workshop.broker.records("jobs")) == 3


async def test_dropping(workshop: Workshop, dead: DeadLetters) -> None:
    assert await dead.drop(lambda letter: letter.key == b"b") == Report(dropped=1, kept=2, is_complete=True)
    assert [letter.key async for letter in dead.read()] == [b"a", b"c"]
    assert len(workshop.broker.records("jobs")) == 3


async def test_progress_is_told(workshop: Workshop, dead: DeadLetters) -> None:
    await emit(workshop.broker, *(Job(name=str(number)) for number in range(250)))
    workshop.broken = True
    await workshop.run()
    seen: list[Report] = []
    report = await dead.replay(progress=seen.append)
    assert report.replayed == 253
    assert [one.replayed for one in seen] == [100, 200, 253]


async def test_a_full_window_ends_a_pass(workshop: Workshop, broker: MemoryBroker) -> None:
    async with letters_of(broker, window=2) as dead:
        assert await dead.replay(lambda letter: letter.key == b"c") == Report(kept=2)
        assert await dead.replay() == Report(replayed=3, is_complete=True), "what goes needs no room"
        with pytest.raises(ConfigurationError, match="limit=1000 is above 2"):
            await texts(dead)


async def test_a_source_that_cannot_be_written_keeps_its_letter(workshop: Workshop, dead: DeadLetters) -> None:
    broker = workshop.broker
    broker.faults = faults = Faults()
    faults.fail("reject", 2)
    report = await dead.replay()
    assert (report.replayed, report.failed, report.is_complete) == (1, 2, True)
    assert [(problem.letter.key, type(problem.error).__name__) for problem in report.problems] == [
        (b"a", "EmitRejectedError"),
        (b"b", "EmitRejectedError"),
    ]
    assert [letter.key async for letter in dead.read()] == [b"a", b"b"]


async def test_a_letter_that_cannot_be_acknowledged_is_told(workshop: Workshop, dead: DeadLetters) -> None:
    workshop.broker.faults = faults = Faults()
    faults.fail("settle", 12)
    report = await dead.replay()
    assert (report.replayed, report.failed) == (3, 0)
    assert len(report.problems) == 3
    assert isinstance(report.problems[0].error, DeliveryError)
    assert "was replayed, and is there still" in str(report.problems[0].error)
    assert len(await texts(dead)) == 3


async def test_a_lost_connection_ends_a_pass_and_loses_nothing(workshop: Workshop, dead: DeadLetters) -> None:
    workshop.broker.faults = faults = Faults()
    faults.fail("disconnect")
    with pytest.raises(BrokerUnreachableError):
        await dead.replay()
    assert (await dead.replay()).replayed == 3


async def test_a_pass_does_not_end_while_there_are_more(workshop: Workshop) -> None:
    """On a busy machine the time may be over before anything could come."""
    hasty = DeadLetters(MemoryConsumer(workshop.broker, "letters"), "jobs.billing.dead", idle=1e-6)
    report = await hasty.drop()
    assert (report.dropped, report.is_complete) == (3, True)


class Stuck(MemoryProducer):
    """Publishes, and never hears that it did."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.sent = anyio.Event()

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        await super().send(messages, timeout)
        self.sent.set()
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_crash_between_publishing_and_acknowledging_repeats_and_loses_nothing(
    workshop: Workshop, dead: DeadLetters
) -> None:
    producer = Stuck(workshop.broker)
    crashing = DeadLetters(MemoryConsumer(workshop.broker, "letters"), "jobs.billing.dead", producer, idle=0.05)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(crashing.replay)
            await producer.sent.wait()
            group.cancel_scope.cancel()
    assert len(await texts(dead)) == 3
    assert (await dead.replay()).replayed == 3
    await workshop.run()
    assert sorted(workshop.log) == sorted(2 * ["charge a", "charge b", "charge c"])


async def test_a_letter_whose_replay_may_have_gone_stays(workshop: Workshop, dead: DeadLetters) -> None:
    workshop.broker.faults = faults = Faults()
    faults.fail("lose_reply")
    report = await dead.replay(limit=1)
    assert (report.replayed, report.failed) == (0, 1)
    assert isinstance(report.problems[0].error, EmitTimeoutError)
    assert len(await texts(dead)) == 3


# --- who gets what is replayed


async def test_undecodable_letters_go_to_all_handlers_of_their_group(broker: MemoryBroker) -> None:
    workshop = Workshop(broker)
    publish(broker, "jobs", b"{}", [("ce_specversion", b"1.0")])  # an event without an id
    await workshop.run()
    async with letters_of(broker) as dead:
        (letter,) = [letter async for letter in dead.read()]
        assert (letter.handler, letter.group, letter.id) == (None, "billing", "jobs/0")
        await dead.replay()
        (_, again) = broker.records("jobs")
        assert headers_of(again)["dispytch-replay-for"] == "billing/*"
        assert own(again) == [("ce_specversion", b"1.0")]


async def test_all_handlers_of_a_group_and_no_other_group(broker: MemoryBroker) -> None:
    workshop = Workshop(broker)
    workshop.broken = False
    await emit(broker, Job(name="a"))
    (record,) = broker.records("jobs")
    publish(broker, "jobs", record.payload, [("dispytch-replay-for", b"billing/*"), *record.headers])
    await workshop.run()
    assert sorted(workshop.log) == sorted(["audit a", "charge a", "notify a", "charge a", "notify a"])


async def test_handlers_of_one_name_are_told_apart(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, group_id="billing")
    calls: list[int] = []
    broken = True

    for number in range(2):

        @dispatcher.handler(Job)
        async def take(event: Event[Job], number: int = number) -> None:
            if number == 1 and broken:
                raise OSError("broken")
            calls.append(number)

    await emit(broker, Job(name="a"))
    await run(dispatcher)
    broken = False
    async with letters_of(broker) as dead:
        assert (await dead.replay()).replayed == 1
    await run(dispatcher)
    assert calls == [0, 1]


async def test_a_replay_for_a_handler_that_is_gone_is_a_letter_again(workshop: Workshop, dead: DeadLetters) -> None:
    await dead.replay()
    renamed = dispatcher_on(workshop.broker, group_id="billing")

    @renamed.handler(Job)
    async def other(event: Event[Job]) -> None:
        raise AssertionError("it is not for this one")

    await run(renamed)
    found = await texts(dead)
    assert len(found) == 3
    assert "replayed for the handler" in found[0]
    assert "replay it for all handlers" in found[0]


async def test_a_header_that_is_nonsense_reaches_nobody_and_stops_nothing(broker: MemoryBroker) -> None:
    workshop = Workshop(broker)
    workshop.broken = False
    await emit(broker, Job(name="a"))
    (record,) = broker.records("jobs")
    for value in (b"", b"/", b"\xff/\xff", b"nobody"):
        publish(broker, "jobs", record.payload, [("dispytch-replay-for", value), *record.headers])
    await workshop.run()
    assert sorted(workshop.log) == ["audit a", "charge a", "notify a"]


async def test_foreign_messages_can_be_dropped_and_not_replayed(broker: MemoryBroker, dead: DeadLetters) -> None:
    publish(broker, "jobs.billing.dead", b"x")
    report = await dead.replay()
    assert (report.replayed, report.failed) == (0, 1)
    assert "no dead letter of Dispytch" in str(report.problems[0].error)
    (letter,) = [letter async for letter in dead.read()]
    assert (letter.source, letter.error, letter.payload) == (None, "", b"x")
    assert (await dead.drop()).dropped == 1
    assert await texts(dead) == []


async def test_a_letter_without_a_group_is_replayed_to_all_only(broker: MemoryBroker, dead: DeadLetters) -> None:
    told: Headers = [("dispytch-dead-error", b"E"), ("dispytch-dead-source", b"jobs"), ("dispytch-dead-handler", b"h")]
    publish(broker, "jobs.billing.dead", b"x", told)
    assert (await dead.replay()).failed == 1
    assert (await dead.replay(only_handler=False)).replayed == 1
    (record,) = broker.records("jobs")
    assert own(record) == []


# --- a consumer that acknowledges in order


class InOrderConsumer(MemoryConsumer):
    """Acknowledges like Kafka: what lies behind something that is not acknowledged comes again after a restart."""

    acknowledges_in_order = True
    most = 1000

    def __init__(self, broker: MemoryBroker, group_id: str) -> None:
        super().__init__(broker, group_id)
        self._received: list[Delivery] = []
        self._done: set[int] = set()

    @property
    def most_unsettled(self) -> int | None:
        return self.most

    async def receive(self, limit: int) -> Sequence[Delivery]:
        found = await super().receive(limit)
        self._received += found
        return found

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        await anyio.lowlevel.checkpoint()
        self.broker.publish([letter for settlement in settlements for letter in settlement.dead_letters])
        self._done |= {id(settlement.delivery) for settlement in settlements}
        return []

    async def stop(self) -> None:
        prefix = takewhile(lambda delivery: id(delivery) in self._done, self._received)
        await super().settle([Settlement(delivery, Outcome.ACK) for delivery in prefix])
        self._received.clear()
        self._done.clear()
        await super().stop()


def in_order(broker: MemoryBroker, **options: Any) -> DeadLetters:
    return DeadLetters(
        InOrderConsumer(broker, "letters"),
        MemoryEventRoute("jobs.billing.dead"),
        MemoryProducer(broker),
        **{"idle": 0.05, **options},
    )


async def test_in_order_what_stays_is_written_again_before_it_is_passed(workshop: Workshop) -> None:
    async with in_order(workshop.broker) as dead:
        assert await dead.replay(lambda letter: letter.key == b"b") == Report(replayed=1, kept=2, is_complete=True)
        again = [letter async for letter in dead.read()]
        assert [letter.key for letter in again] == [b"c", b"a"], "c was passed by nothing and is where it was"
        assert again[1].error == "OSError: no money for a"
        assert (again[1].source, again[1].position) == ("jobs", "jobs/0")
        assert [letter.key async for letter in dead.read()] == [b"c", b"a"]
        assert (await dead.replay()).replayed == 2
        assert await texts(dead) == []
    await workshop.run()
    assert sorted(workshop.log) == ["charge a", "charge b", "charge c"]


async def test_in_order_nothing_is_written_where_nothing_is_chosen(workshop: Workshop) -> None:
    async with in_order(workshop.broker) as dead:
        assert await dead.replay(lambda letter: False) == Report(kept=3, is_complete=True)
        assert await dead.replay(lambda letter: letter.key == b"a") == Report(replayed=1, kept=2, is_complete=True)
        assert len(workshop.broker.records("jobs.billing.dead")) == 3


async def test_in_order_more_than_can_be_held(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    await emit(workshop.broker, *(Job(name=str(number)) for number in range(500)))
    workshop.broken = True
    await workshop.run()
    monkeypatch.setattr(InOrderConsumer, "most", 100)
    async with in_order(workshop.broker) as dead:
        report = await dead.replay(lambda letter: letter.key in (b"7", b"450", b"499"))
        assert report == Report(replayed=3, kept=500, is_complete=True)
    async with letters_of(workshop.broker) as dead:
        names = [letter.key async for letter in dead.read()]
    assert len(names) == 500
    assert {*names} == {str(number).encode() for number in range(500)} - {b"7", b"450", b"499"} | {b"a", b"b", b"c"}


async def test_in_order_a_source_that_cannot_be_written_keeps_its_letter(workshop: Workshop) -> None:
    workshop.broker.faults = faults = Faults()
    faults.fail("reject", 1)
    async with in_order(workshop.broker) as dead:
        report = await dead.replay()
        assert (report.replayed, report.failed) == (2, 1)
        assert [letter.key async for letter in dead.read()] == [b"a"]


# --- arguments


async def test_wrong_arguments(broker: MemoryBroker) -> None:
    consumer, producer = MemoryConsumer(broker), MemoryProducer(broker)
    with pytest.raises(ConfigurationError, match="no consumer"):
        DeadLetters("memory://x", "topic")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigurationError, match="no producer"):
        DeadLetters(consumer, "topic", consumer)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigurationError, match="idle"):
        DeadLetters(consumer, "topic", producer, idle=0)
    with pytest.raises(ConfigurationError, match="idle"):
        DeadLetters(consumer, "topic", producer, idle=None)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigurationError, match="window"):
        DeadLetters(consumer, "topic", producer, window=0)
    with pytest.raises(ConfigurationError, match="dead-letter topic"):
        DeadLetters(consumer, "", producer)
    with pytest.raises(ConfigurationError, match="pattern"):
        DeadLetters(consumer, "a.*", producer)
    async with DeadLetters(consumer, "topic") as dead:
        with pytest.raises(ConfigurationError, match="give DeadLetters a producer"):
            await dead.replay()


async def test_one_operation_at_a_time(workshop: Workshop, dead: DeadLetters) -> None:
    refused: list[Exception] = []

    async def meddle() -> None:
        try:
            await dead.drop()
        except ConfigurationError as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(meddle)
    assert len(refused) == 1


async def test_from_a_url(workshop: Workshop) -> None:
    name = f"dead-{id(workshop)}"
    MemoryBroker._named[name] = workshop.broker
    async with DeadLetters.from_url(f"memory://{name}", "jobs.billing.dead", idle=0.05) as dead:
        assert (await dead.replay()).replayed == 3
    del MemoryBroker._named[name]


async def test_a_dispatcher_handles_only_what_it_is_for(workshop: Workshop, dead: DeadLetters) -> None:
    """A dispatcher of the same group with other topics is none of the matter."""
    other = EventDispatcher(MemoryConsumer(workshop.broker, "other"), max_deliveries=1)
    seen: list[str] = []

    @other.handler(topic="#")
    async def everything(event: Event) -> None:
        seen.append(event.meta.topic)

    await dead.replay()
    await run(other)
    assert seen == ["jobs"] * 3
