"""Deduplicate: repeats are dropped, failures are not, and what somebody else has claimed waits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from dispytch import Event, EventBase, EventDispatcher
from dispytch.abc import Delivery, Middleware
from dispytch.errors import BrokerUnreachableError, ConfigurationError
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.middleware import (
    Claim,
    Deduplicate,
    ExponentialBackoffWithFullJitter,
    MemoryStore,
    Retry,
    Store,
    Timeout,
)
from dispytch.testing import Faults
from tests.helpers import dispatcher_on, emit, errors, handle, run, until

pytestmark = pytest.mark.anyio


class Paid(EventBase):
    __topic__ = "payments.{shop}"
    shop: str = "berlin"
    amount: int = 1


class Now:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Moody(MemoryStore):
    """A store that fails at the next few calls of some kinds."""

    def __init__(self) -> None:
        super().__init__(ttl=60)
        self.failing: Counter[str] = Counter()
        self.calls: list[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if self.failing[name] > 0:
            self.failing[name] -= 1
            raise BrokerUnreachableError("the store is down")

    async def claim(self, key: str, token: str, claim_ttl: float) -> Claim:
        self._note("claim")
        return await super().claim(key, token, claim_ttl)

    async def complete(self, key: str) -> None:
        self._note("complete")
        await super().complete(key)

    async def release(self, key: str, token: str) -> None:
        self._note("release")
        await super().release(key, token)


def counting(
    broker: MemoryBroker, middlewares: Sequence[Middleware], group: str = "default", **options: Any
) -> tuple[EventDispatcher, list[int]]:
    dispatcher = dispatcher_on(broker, group_id=group, middlewares=middlewares, **options)
    handled: list[int] = []

    @dispatcher.handler(Paid)
    async def take(event: Event[Paid]) -> None:
        handled.append(event.body.amount)

    return dispatcher, handled


# --- the store in memory


async def test_a_claim_is_exclusive_until_it_is_released_completed_or_expired() -> None:
    now = Now()
    store = MemoryStore(ttl=10, clock=now)
    assert await store.claim("k", "a", 5) is Claim.GRANTED
    assert await store.claim("k", "b", 5) is Claim.BUSY
    assert await store.claim("k", "a", 5) is Claim.GRANTED, "the reply may have been lost"
    await store.release("k", "b")
    assert await store.claim("k", "b", 5) is Claim.BUSY, "nobody releases what is another's"
    await store.release("k", "a")
    assert await store.claim("k", "b", 5) is Claim.GRANTED
    now.seconds = 5
    assert await store.claim("k", "c", 5) is Claim.GRANTED
    await store.complete("k")
    await store.release("k", "c")
    assert await store.claim("k", "d", 5) is Claim.DONE
    now.seconds = 15
    assert await store.claim("k", "d", 5) is Claim.GRANTED


async def test_what_has_expired_takes_no_room() -> None:
    now = Now()
    store = MemoryStore(ttl=10, clock=now)
    for number in range(1000):
        now.seconds = float(number)
        await store.claim(f"done {number}", "a", 5)
        await store.complete(f"done {number}")
        await store.claim(f"died {number}", "a", 5)
    assert len(store) <= 10 + 5


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "60", timedelta(hours=1)], ids=str)
async def test_a_ttl_must_be_positive(ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl="):
        MemoryStore(ttl)


async def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Deduplicate\(MemoryStore"):
        Deduplicate("redis://localhost")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigurationError, match=r"not the class MemoryStore; for instance"):
        Deduplicate(MemoryStore)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigurationError, match="claim_ttl"):
        Deduplicate(MemoryStore(1), claim_ttl=0)
    with pytest.raises(ConfigurationError, match="claim_ttl"):
        Deduplicate(MemoryStore(1), claim_ttl=timedelta(minutes=5))  # type: ignore[arg-type]  # what is refused


# --- the middleware


async def test_a_repeat_is_dropped_and_counts_as_handled(broker: MemoryBroker) -> None:
    dispatcher, handled = counting(broker, [Deduplicate(MemoryStore(60))])
    event = Paid()
    await handle(dispatcher, event, event, Paid(amount=2), event)
    assert sorted(handled) == [1, 2]
    assert errors(broker) == []


async def test_a_repeat_after_the_ttl_is_handled(broker: MemoryBroker) -> None:
    now = Now()
    dispatcher, handled = counting(broker, [Deduplicate(MemoryStore(60, clock=now))])
    event = Paid()
    await handle(dispatcher, event)
    now.seconds = 61
    await handle(dispatcher, event)
    assert handled == [1, 1]


async def test_each_handler_group_and_topic_has_each_event(broker: MemoryBroker) -> None:
    once = Deduplicate(MemoryStore(60))
    first, first_handled = counting(broker, [once], "first")
    second, second_handled = counting(broker, [once], "second")
    names: list[str] = []
    for number in range(2):  # of the same name, too

        @second.handler(Paid)
        async def other(event: Event[Paid], number: int = number) -> None:
            names.append(f"{number} {event.meta.topic}")

    event = Paid()
    await emit(broker, event, event)
    event.shop = "oslo"
    await emit(broker, event)
    await run(first)
    await run(second)
    assert (first_handled, second_handled) == ([1, 1], [1, 1])
    assert sorted(names) == sorted(f"{n} payments.{shop}" for n in range(2) for shop in ("berlin", "oslo"))


async def test_a_failure_releases_the_claim(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(MemoryStore(60))], max_deliveries=3)
    attempts: list[int] = []

    @dispatcher.handler(Paid)
    async def fail_twice(event: Event[Paid]) -> None:
        attempts.append(event.meta.attempt)
        if event.meta.attempt < 3:
            raise OSError("not yet")

    event = Paid()
    await handle(dispatcher, event)
    await handle(dispatcher, event)
    assert attempts == [1, 2, 3]
    assert errors(broker) == []


@pytest.mark.parametrize("outside", [True, False])
async def test_with_retry_on_either_side(broker: MemoryBroker, outside: bool) -> None:
    retry = Retry(ExponentialBackoffWithFullJitter(retries=2, base_delay_sec=0))
    once = Deduplicate(MemoryStore(60))
    dispatcher = dispatcher_on(broker, middlewares=[retry, once] if outside else [once, retry])
    tries: list[int] = []

    @dispatcher.handler(Paid)
    async def fail_once(event: Event[Paid]) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not yet")

    event = Paid()
    await handle(dispatcher, event)
    await handle(dispatcher, event)
    assert len(tries) == 2
    assert errors(broker) == []


async def test_in_worker_threads(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(MemoryStore(60))])
    threads: list[threading.Thread] = []

    @dispatcher.handler(Paid)
    def take(event: Event[Paid]) -> None:
        threads.append(threading.current_thread())

    event = Paid()
    await handle(dispatcher, event, event)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_repeat_waits_for_the_one_that_is_being_handled(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(MemoryStore(60))])
    entered, go_on = anyio.Event(), anyio.Event()
    calls: list[int] = []

    @dispatcher.handler(Paid)
    async def take(event: Event[Paid]) -> None:
        calls.append(event.meta.attempt)
        entered.set()
        await go_on.wait()

    event = Paid()
    await emit(broker, event, event)
    with anyio.fail_after(20):
        async with dispatcher.lifespan():
            await entered.wait()
            await until(lambda: dispatcher.health().in_flight == 2)
            assert dispatcher.health().handled == 0, "neither is acknowledged before it is known that one succeeded"
            go_on.set()
            await dispatcher.idle()
            assert dispatcher.health().failed == 0
    assert calls == [1]


async def test_a_repeat_is_handled_if_the_one_that_was_first_fails(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(MemoryStore(60))])
    go_on = anyio.Event()
    calls: list[int] = []

    @dispatcher.handler(Paid)
    async def take(event: Event[Paid]) -> None:
        calls.append(event.meta.attempt)
        if len(calls) == 1:
            await go_on.wait()
            raise OSError("the first one fails")

    event = Paid()
    await emit(broker, event, event)
    with anyio.fail_after(20):
        async with dispatcher.lifespan():
            await until(lambda: dispatcher.health().in_flight == 2)
            go_on.set()
            await dispatcher.idle()
    assert calls == [1, 1]
    assert errors(broker) == ["OSError: the first one fails"]


async def test_what_a_dead_claimant_had_is_handled_once_its_claim_expires(broker: MemoryBroker) -> None:
    now = Now()
    store = MemoryStore(60, clock=now)
    dispatcher, handled = counting(broker, [Deduplicate(store)])
    keys: list[str] = []
    claim = store.claim

    async def taken(key: str, token: str, claim_ttl: float) -> Claim:
        if not keys:
            assert await claim(key, "somebody who dies", claim_ttl) is Claim.GRANTED
        keys.append(key)
        return await claim(key, token, claim_ttl)

    store.claim = taken  # type: ignore[method-assign]  # stands in for another process
    await emit(broker, Paid())
    with anyio.fail_after(20):
        async with dispatcher.lifespan():
            await until(lambda: len(keys) >= 2)
            assert (handled, dispatcher.health().unsettled) == ([], 1)
            now.seconds = 301
            await dispatcher.idle()
            assert dispatcher.health().failed == 0
    assert handled == [1]


async def test_who_waits_for_too_long_asks_for_redelivery(broker: MemoryBroker) -> None:
    class Taken(MemoryStore):
        async def claim(self, key: str, token: str, claim_ttl: float) -> Claim:
            return Claim.BUSY

    dispatcher, handled = counting(broker, [Deduplicate(Taken(60), claim_ttl=0.01)])
    await handle(dispatcher, Paid())
    assert handled == []
    assert errors(broker) == ["Redeliver: somebody else has been handling this event all the time"]


async def test_a_stop_hands_back_what_waits(broker: MemoryBroker) -> None:
    store = MemoryStore(60)
    dispatcher, handled = counting(broker, [Deduplicate(store)])
    claims: list[str] = []
    claim = store.claim

    async def busy(key: str, token: str, claim_ttl: float) -> Claim:
        claims.append(key)
        return Claim.BUSY

    store.claim = busy  # type: ignore[method-assign]  # stands in for another process
    await emit(broker, Paid())
    with anyio.fail_after(20):
        async with dispatcher.lifespan():
            await until(lambda: claims)
    store.claim = claim  # type: ignore[method-assign]
    assert (handled, errors(broker)) == ([], [])
    await run(dispatcher)
    assert handled == [1]


async def test_what_a_stop_hands_back_has_used_up_no_delivery(broker: MemoryBroker) -> None:
    """No handler has run, so none has failed."""
    store = MemoryStore(60)
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(store)], max_deliveries=2)
    attempts: list[int] = []
    claims: list[str] = []
    claim = store.claim

    async def busy(key: str, token: str, claim_ttl: float) -> Claim:
        claims.append(key)
        return Claim.BUSY

    @dispatcher.handler(Paid)
    async def take(event: Event[Paid]) -> None:
        attempts.append(event.meta.attempt)
        raise OSError("always")

    await emit(broker, Paid())
    store.claim = busy  # type: ignore[method-assign]  # stands in for another process
    with anyio.fail_after(20):
        async with dispatcher.lifespan():
            await until(lambda: claims)
    store.claim = claim  # type: ignore[method-assign]
    await run(dispatcher)
    assert attempts == [1, 2]


async def test_what_was_acknowledged_before_it_was_cut_off_is_handled(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(MemoryStore(60)), Timeout(0.01)])
    handled: list[int] = []

    @dispatcher.handler(Paid)
    async def take(event: Event[Paid]) -> None:
        handled.append(event.body.amount)
        event.ack()
        await anyio.sleep_forever()

    paid = Paid()
    await handle(dispatcher, paid)
    await handle(dispatcher, paid)
    assert handled == [1]


async def test_a_cancelled_handler_has_its_claim_released(broker: MemoryBroker) -> None:
    store = MemoryStore(60)
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(store)], drain_timeout=0)
    entered = anyio.Event()

    @dispatcher.handler(Paid)
    async def hang(event: Event[Paid]) -> None:
        entered.set()
        await anyio.sleep_forever()

    await emit(broker, Paid())
    with anyio.fail_after(20):
        async with dispatcher.lifespan():
            await entered.wait()
    assert len(store) == 0


async def test_while_the_store_is_down_events_wait(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    store = Moody()
    store.failing.update(claim=3)
    dispatcher, handled = counting(broker, [Deduplicate(store)])
    await handle(dispatcher, Paid())
    assert handled == [1]
    assert errors(broker) == []
    assert caplog.text.count("cannot be told whether it was handled: the store is down") == 3


async def test_a_store_that_stays_down_is_a_failure_that_says_so(broker: MemoryBroker) -> None:
    store = Moody()
    store.failing.update(claim=10_000)
    dispatcher, handled = counting(broker, [Deduplicate(store, claim_ttl=0.01)])
    await handle(dispatcher, Paid())
    assert handled == []
    assert errors(broker) == ["BrokerUnreachableError: the store is down"]


async def test_success_is_noted_later_if_the_store_is_down_meanwhile(broker: MemoryBroker) -> None:
    store = Moody()
    store.failing.update(complete=2)
    dispatcher, handled = counting(broker, [Deduplicate(store)])
    event = Paid()
    await handle(dispatcher, event, event)
    assert handled == [1]
    assert store.calls.count("complete") == 3


async def test_success_is_noted_also_if_the_event_is_somebody_elses_by_then(broker: MemoryBroker) -> None:
    handled: list[int] = []

    class Losing(MemoryConsumer):
        def is_stale(self, delivery: Delivery) -> bool:
            return bool(handled)

    store = Moody()
    store.failing.update(complete=2)
    dispatcher = EventDispatcher(Losing(broker), middlewares=[Deduplicate(store)])

    @dispatcher.handler(Paid)
    async def take(event: Event[Paid]) -> None:
        handled.append(event.body.amount)

    await handle(dispatcher, Paid())
    assert handled == [1]
    assert store.calls.count("complete") == 3


async def test_success_that_cannot_be_noted_is_told(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    store = Moody()
    store.failing.update(complete=10_000)
    dispatcher, handled = counting(broker, [Deduplicate(store, claim_ttl=0.01)])
    await handle(dispatcher, Paid())
    assert (handled, errors(broker)) == ([1], [])
    assert "a repeat of it would be handled again: the store is down" in caplog.text


async def test_a_claim_that_cannot_be_released_is_still_ones_own(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    store = Moody()
    store.failing.update(release=1)
    dispatcher = dispatcher_on(broker, middlewares=[Deduplicate(store)], max_deliveries=2)
    attempts: list[int] = []

    @dispatcher.handler(Paid)
    async def fail_once(event: Event[Paid]) -> None:
        attempts.append(event.meta.attempt)
        if len(attempts) == 1:
            raise OSError("not yet")

    await handle(dispatcher, Paid())
    assert attempts == [1, 2]
    assert "could not be released" in caplog.text


async def test_events_that_the_broker_delivers_twice_are_handled_once() -> None:
    faults = Faults()
    broker = MemoryBroker(faults=faults)
    faults.fail("duplicate", 20)
    dispatcher, handled = counting(broker, [Deduplicate(MemoryStore(60))], concurrency=10)
    await handle(dispatcher, *(Paid(amount=number) for number in range(20)))
    assert len(broker.records("payments.berlin")) == 40
    assert sorted(handled) == list(range(20))


async def test_two_dispatchers_with_one_store_handle_each_event_once(broker: MemoryBroker) -> None:
    store = MemoryStore(60)
    handled: list[int] = []
    dispatchers = [EventDispatcher(MemoryConsumer(broker, "group"), middlewares=[Deduplicate(store)]) for _ in range(2)]

    async def take(event: Event[Paid]) -> None:
        await anyio.lowlevel.checkpoint()
        handled.append(event.body.amount)

    for dispatcher in dispatchers:
        dispatcher.handler(Paid)(take)
    sent = [Paid(amount=number) for number in range(50)]
    await emit(broker, *sent, *sent)
    with anyio.fail_after(20):
        async with dispatchers[0].lifespan(), dispatchers[1].lifespan():
            for dispatcher in dispatchers:
                await dispatcher.idle()
    assert sorted(handled) == list(range(50))


async def test_long_keys_are_shortened_and_stay_apart(broker: MemoryBroker) -> None:
    keys: list[str] = []

    class Looking(MemoryStore):
        async def complete(self, key: str) -> None:
            keys.append(key)
            await super().complete(key)

    assert issubclass(Looking, Store)
    dispatcher, handled = counting(broker, [Deduplicate(Looking(60))])
    await handle(dispatcher, Paid(shop="a" * 300), Paid(shop="b" * 300), Paid())
    assert len(handled) == 3
    assert sorted(map(len, keys))[:2] == [64, 64]
    assert len(set(keys)) == 3
