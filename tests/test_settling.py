"""What a handler says of an event: ack, nack, reject, under any policy; and ManualAck, which asks for a word."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import pytest

from dispytch import Event, EventBase, EventDispatcher, Middleware, Redeliver, Reject
from dispytch.abc import Outcome, Settlement
from dispytch.ack import AckAfterProcessing, AckBeforeProcessing, AckPolicy, ManualAck
from dispytch.errors import ConfigurationError, DispytchError, RegistrationError
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.middleware import ExceptionInterceptor, Filter, FixedDelay, Retry, Timeout
from dispytch.testing import TestClock
from tests.helpers import InstantClock, dispatcher_on, emit, errors, handle, run, until

pytestmark = pytest.mark.anyio

POLICIES = [AckAfterProcessing(), ManualAck()]


class Job(EventBase):
    __topic__ = "jobs"
    __key__ = "{key}"
    n: int = 1
    key: str | None = None


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
async def test_ack_settles_even_if_the_handler_fails_afterwards(
    policy: AckPolicy, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=5)
    tries: list[int] = []

    @dispatcher.handler(Job, ack_policy=policy)
    async def work(event: Event[Job]) -> None:
        tries.append(event.body.n)
        event.ack()
        event.nack()  # too late: the first word counts
        raise OSError("after the fact")

    await handle(dispatcher, Job())
    assert tries == [1]
    assert broker.dead_letters == []
    assert "has failed after it had settled" in caplog.text
    assert "after the fact" in caplog.text
    await run(dispatcher)
    assert tries == [1]  # it is acknowledged at the broker


async def test_ack_reaches_the_broker_while_the_handler_goes_on(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    over = anyio.Event()

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        event.ack()
        await over.wait()

    await emit(broker, Job())
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().in_flight == 1 and dispatcher.health().unsettled == 0)
        over.set()
        await dispatcher.idle()
    assert dispatcher.health().handled == 0  # of this run: it is over


async def test_ack_of_one_handler_waits_for_the_others(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    over = anyio.Event()
    acked = anyio.Event()

    @dispatcher.handler(Job)
    async def first(event: Event[Job]) -> None:
        event.ack()
        acked.set()

    @dispatcher.handler(Job)
    async def second(event: Event[Job]) -> None:
        await over.wait()

    await emit(broker, Job())
    async with dispatcher.lifespan():
        await acked.wait()
        await anyio.wait_all_tasks_blocked()
        assert dispatcher.health().unsettled == 1
        over.set()
        await until(lambda: dispatcher.health().unsettled == 0)


@pytest.mark.parametrize("policy", [*POLICIES, AckBeforeProcessing()], ids=repr)
@pytest.mark.parametrize("raises", [False, True])
async def test_nack_is_a_failure_that_is_tried_again(policy: AckPolicy, raises: bool) -> None:
    clock = InstantClock()
    broker = MemoryBroker(clock)
    dispatcher = dispatcher_on(broker, max_deliveries=5)
    attempts: list[int] = []

    @dispatcher.handler(Job, ack_policy=policy)
    async def work(event: Event[Job]) -> None:
        attempts.append(event.meta.attempt)
        if len(attempts) < 3:
            event.nack(delay=7.0)
            event.ack()
            if raises:
                raise OSError("as well")
        else:
            event.ack()

    await handle(dispatcher, Job())
    assert attempts == [1, 2, 3]
    assert clock.slept == [7.0, 7.0]
    assert broker.dead_letters == []


async def test_nack_counts_towards_max_deliveries() -> None:
    broker = MemoryBroker(InstantClock())
    dispatcher = dispatcher_on(broker, max_deliveries=3)
    attempts: list[int] = []

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        attempts.append(event.meta.attempt)
        event.nack()

    await handle(dispatcher, Job())
    assert attempts == [1, 2, 3]
    assert errors(broker) == ["Redeliver: the handler called nack()"]


@pytest.mark.parametrize("policy", [*POLICIES, AckBeforeProcessing()], ids=repr)
async def test_reject_dead_letters_at_once(policy: AckPolicy, broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=5)
    tries: list[int] = []

    @dispatcher.handler(Job, ack_policy=policy)
    async def work(event: Event[Job]) -> None:
        tries.append(1)
        event.reject("nobody can do this")
        event.ack()

    await handle(dispatcher, Job())
    assert tries == [1]
    assert errors(broker) == ["Reject: nobody can do this"]


async def test_to_return_without_a_word_is_a_failure_under_manual_ack() -> None:
    broker = MemoryBroker(InstantClock())
    dispatcher = EventDispatcher(MemoryConsumer(broker), default_ack_policy=ManualAck(), max_deliveries=2)
    tries: list[int] = []

    @dispatcher.handler(Job)
    async def forgets(event: Event[Job]) -> None:
        tries.append(event.body.n)
        if event.body.n == 2:
            event.ack()

    await handle(dispatcher, Job(n=1), Job(n=2))
    assert sorted(tries) == [1, 1, 2]
    (error,) = errors(broker)
    assert "returned without settling" in error
    assert "call event.ack(), event.nack() or event.reject()" in error


async def test_manual_ack_under_middleware(broker: MemoryBroker) -> None:
    """What is filtered is handled, what is forgotten is tried again by Retry, what is settled is not."""
    dispatcher = dispatcher_on(broker, default_ack_policy=ManualAck())
    tries: list[tuple[int, int]] = []

    @dispatcher.handler(
        Job, middlewares=[Filter(lambda ctx: ctx.event["n"] != 3), Retry(FixedDelay(retries=2, delay_sec=0))]
    )
    async def work(event: Event[Job]) -> None:
        tries.append((event.body.n, event.meta.attempt))
        if event.body.n == 1:
            event.ack()
            raise OSError("settled all the same")
        if event.meta.attempt == 3:
            event.ack()

    await handle(dispatcher, Job(n=1, key="k"), Job(n=2, key="k"), Job(n=3, key="k"))
    assert tries == [(1, 1), (2, 1), (2, 2), (2, 3)]
    assert broker.dead_letters == []
    assert dispatcher.health().unsettled == 0


async def test_middleware_sees_a_nack_as_redeliver_and_a_reject_as_reject(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    seen: list[str] = []

    def note(ctx: Any, error: Exception) -> None:
        seen.append(f"{type(error).__name__}({error})")

    interceptor = ExceptionInterceptor({Redeliver: note, Reject: note})

    @dispatcher.handler(Job, middlewares=[interceptor], ack_policy=ManualAck())
    async def work(event: Event[Job]) -> None:
        if event.body.n == 1:
            event.nack()
        else:
            event.reject("for good")

    await handle(dispatcher, Job(n=1), Job(n=2))
    assert sorted(seen) == ["Redeliver(the handler called nack())", "Reject(for good)"]
    assert broker.dead_letters == []


async def test_an_acknowledgement_stands_if_middleware_fails_after_it(broker: MemoryBroker) -> None:
    class FailsAfter(Middleware):
        async def dispatch(self, ctx: Any, call_next: Any) -> Any:
            await call_next(ctx)
            raise OSError("after the handler")

    dispatcher = dispatcher_on(broker, max_deliveries=3)
    tries: list[int] = []

    @dispatcher.handler(Job, middlewares=[FailsAfter()])
    async def work(event: Event[Job]) -> None:
        tries.append(1)
        event.ack()

    @dispatcher.handler(Job)
    async def other(event: Event[Job]) -> None: ...

    await handle(dispatcher, Job())
    assert tries == [1]
    assert broker.dead_letters == []


@pytest.mark.parametrize("batch", [None, 1])
async def test_an_ack_during_the_back_off_saves_the_next_try(batch: int | None) -> None:
    """As where a handler hands its event to somebody else, and that one is done with it a little late."""
    clock = TestClock()
    broker = MemoryBroker(clock)
    dispatcher = dispatcher_on(broker, default_ack_policy=ManualAck(), max_deliveries=5)
    given: list[Event[Job]] = []

    async def take(event: Event[Job]) -> None:
        given.append(event)

    async def take_many(events: list[Event[Job]]) -> None:
        given.extend(events)

    if batch:
        dispatcher.handler(Job, batch=batch)(take_many)
    else:
        dispatcher.handler(Job)(take)
    await emit(broker, Job())
    async with dispatcher.lifespan():
        await until(lambda: given and clock.sleepers)
        given[0].ack()
        await until(lambda: dispatcher.health().unsettled == 0)
        clock.advance(60)
        await until(lambda: dispatcher.health().handled == 1 or len(given) > 1)
    assert len(given) == 1


@pytest.mark.parametrize("word", ["ack", "reject"])
async def test_what_is_settled_and_then_cut_off_is_not_called_again(word: str, broker: MemoryBroker) -> None:
    """Not by a Retry around a Timeout, which cannot know."""
    dispatcher = dispatcher_on(broker, max_deliveries=1)
    tries: list[int] = []

    @dispatcher.handler(Job, middlewares=[Retry(FixedDelay(3, delay_sec=0)), Timeout(0.01)])
    async def work(event: Event[Job]) -> None:
        tries.append(event.body.n)
        event.ack() if word == "ack" else event.reject("no use")
        await anyio.sleep(60)

    await handle(dispatcher, Job())
    assert tries == [1]
    assert errors(broker) == ([] if word == "ack" else ["Reject: no use"])


async def test_idle_waits_for_a_handler_that_goes_on_after_its_ack(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    over: list[int] = []

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        event.ack()
        await anyio.sleep(0.05)
        over.append(event.body.n)

    await emit(broker, Job())
    async with dispatcher.lifespan():
        await dispatcher.idle()
        assert over == [1]


async def test_plain_functions_and_other_threads_settle(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, default_ack_policy=ManualAck(), max_deliveries=1)
    gate = threading.Event()

    @dispatcher.handler(Job)
    def work(event: Event[Job]) -> None:
        if event.body.n == 1:
            thread = threading.Thread(target=event.ack)
            thread.start()
            thread.join()
        else:
            event.ack()
        assert gate.wait(10)

    await emit(broker, Job(n=1), Job(n=2))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().in_flight == 2 and dispatcher.health().unsettled == 0)
        gate.set()
        await dispatcher.idle()
    assert broker.dead_letters == []


async def test_the_next_of_a_key_waits_for_the_handler_not_for_its_ack(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    over = anyio.Event()
    log: list[str] = []

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        log.append(f"begins {event.body.n}")
        event.ack()
        if event.body.n == 1:
            await over.wait()
        log.append(f"ends {event.body.n}")

    await emit(broker, Job(n=1, key="k"), Job(n=2, key="k"))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().unsettled == 1)
        await anyio.wait_all_tasks_blocked()
        over.set()
        await dispatcher.idle()
    assert log == ["begins 1", "ends 1", "begins 2", "ends 2"]


async def test_a_word_after_the_hand_back_changes_nothing(broker: MemoryBroker) -> None:
    """A thread that a stop has left to itself acknowledges too late: the event is somebody else's by then."""
    dispatcher = dispatcher_on(broker, drain_timeout=0.05)
    gate, left = threading.Event(), threading.Event()
    begun = threading.Event()

    @dispatcher.handler(Job)
    def hangs(event: Event[Job]) -> None:
        begun.set()
        gate.wait(10)
        event.ack()
        left.set()

    await emit(broker, Job())
    async with dispatcher.lifespan():
        await until(begun.is_set)
    gate.set()
    await anyio.to_thread.run_sync(left.wait)
    again = dispatcher_on(broker)
    seen: list[int] = []

    @again.handler(Job)
    async def work(event: Event[Job]) -> None:
        seen.append(event.body.n)

    await run(again)
    assert seen == [1]


async def test_a_nack_that_a_stop_meets_is_handed_back_with_its_count() -> None:
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    attempts: list[int] = []

    def dispatcher() -> EventDispatcher:
        made = EventDispatcher(MemoryConsumer(broker))

        @made.handler(Job)
        async def work(event: Event[Job]) -> None:
            attempts.append(event.meta.attempt)
            if event.meta.attempt == 1:
                event.nack(delay=60)

        return made

    await emit(broker, Job())
    async with dispatcher().lifespan():
        await until(lambda: clock.sleepers == 1)
    await run(dispatcher())
    assert attempts == [1, 2]


@pytest.mark.parametrize("delay", [-1, float("nan")])
async def test_a_negative_delay_is_refused(delay: float) -> None:
    with pytest.raises(ConfigurationError, match=r"a delay is in seconds, from 0 on"):
        Event(Job()).nack(delay=delay)


@pytest.mark.parametrize("delay", [-1.0, float("nan"), float("inf"), "5", timedelta(seconds=5)], ids=str)
async def test_a_delay_that_nobody_can_wait_for_is_the_failure_of_its_handler(delay: Any, broker: MemoryBroker) -> None:
    """And not of the dispatcher, which would have to wait."""
    dispatcher = dispatcher_on(broker, max_deliveries=1)

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        raise Redeliver(delay=delay)

    @dispatcher.handler(Job)
    async def other(event: Event[Job]) -> None:
        event.nack(delay)

    await handle(dispatcher, Job())
    first, second = sorted(errors(broker))
    assert first.startswith("ConfigurationError: Redeliver(delay=")
    assert second.startswith("ConfigurationError: nack(delay=")


async def test_events_of_tests_and_copies_are_settled_without_effect(broker: MemoryBroker) -> None:
    event = Event(Job())
    event.ack()
    event.nack()
    event.reject("whatever")
    dispatcher = dispatcher_on(broker, default_ack_policy=ManualAck())

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        copy.copy(event).ack()

    await handle(dispatcher, Job())
    assert len(broker.dead_letters) == 1


async def test_a_body_with_a_field_named_ack(broker: MemoryBroker) -> None:
    class Odd(EventBase):
        __topic__ = "odd"
        ack: int = 5

    dispatcher = dispatcher_on(broker)
    seen: list[int] = []

    @dispatcher.handler(Odd)
    async def work(event: Event[Odd]) -> None:
        event.ack()
        seen.append(event.body.ack)

    await handle(dispatcher, Odd())
    assert seen == [5]


async def test_set_ack_policy_takes_manual_ack(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None: ...

    dispatcher.set_ack_policy(Job, ManualAck())
    await handle(dispatcher, Job())
    assert len(broker.dead_letters) == 1


@pytest.mark.parametrize("other", [AckAfterProcessing(), AckBeforeProcessing()], ids=repr)
async def test_subscriptions_that_overlap_must_agree_on_manual_ack(other: AckPolicy, broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    dispatcher.handler(topic="jobs", ack_policy=ManualAck())(_nothing)
    dispatcher.handler(topic="#", ack_policy=other)(_nothing)
    with pytest.raises(RegistrationError, match=r"acknowledge it differently"):
        await run(dispatcher)


async def _nothing(event: Event) -> None: ...


def test_policies_of_one_kind_are_equal() -> None:
    assert ManualAck() == ManualAck() != AckAfterProcessing()
    assert repr(ManualAck()) == "ManualAck()"


@pytest.mark.parametrize("settle", [Event.ack, Event.nack, Event.reject])
async def test_pub_sub_like_events_may_be_settled(settle: Callable[[Event[Job]], None], broker: MemoryBroker) -> None:
    """Acknowledged first: ack says nothing new, nack asks for another try within the process, reject gives up."""
    dispatcher = dispatcher_on(broker, default_ack_policy=AckBeforeProcessing(), max_deliveries=2)
    tries: list[int] = []

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        tries.append(1)
        settle(event)

    logging.getLogger("dispytch").setLevel(logging.CRITICAL)
    try:
        await handle(dispatcher, Job())
    finally:
        logging.getLogger("dispytch").setLevel(logging.NOTSET)
    assert len(tries) == (2 if settle is Event.nack else 1)
    assert len(broker.dead_letters) == (0 if settle is Event.ack else 1)


class _Recording(MemoryConsumer):
    """Notes the dead letters that it is to write, and whether their events were acknowledged already."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.letters: list[bool] = []

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        self.letters += [item.is_acknowledged for item in settlements if item.outcome is Outcome.DEAD_LETTER]
        return await super().settle(settlements)


@pytest.mark.parametrize("policy", [*POLICIES, AckBeforeProcessing()], ids=repr)
async def test_the_transport_learns_whether_a_dead_letter_is_all_that_is_left(policy: AckPolicy) -> None:
    consumer = _Recording(MemoryBroker())
    dispatcher = EventDispatcher(consumer, default_ack_policy=policy)

    @dispatcher.handler(Job)
    async def work(event: Event[Job]) -> None:
        event.reject()

    await handle(dispatcher, Job())
    assert consumer.letters == [policy == AckBeforeProcessing()]
