"""Middleware: where it is, what it sees, what it may do; and each that ships."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventHandlerContext,
    HandlerGroup,
    Middleware,
    NextCall,
    Redeliver,
    Reject,
    Router,
)
from dispytch.errors import DecodeError
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.middleware import (
    AsyncLock,
    ExceptionInterceptor,
    ExponentialBackoffWithFullJitter,
    Filter,
    FixedDelay,
    Retry,
    RetryPolicy,
    Timeout,
)
from dispytch.testing import TestClock
from tests.helpers import InstantClock, dispatcher_on, emit, errors, handle, publish, run, until
from tests.support import PATIENCE


class Sent(EventBase):
    __topic__ = "sent.{kind}"
    __key__ = "{kind}"
    kind: str = "a"
    number: int = 1


class Note(Middleware):
    """Writes down its name before and after."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        self.log.append(f"+{self.name}")
        try:
            return await call_next(ctx)
        finally:
            self.log.append(f"-{self.name}")


class Around(Middleware):
    """A middleware out of a function."""

    def __init__(self, func: Callable[[EventHandlerContext, NextCall], Any]) -> None:
        self.func = func

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        return await self.func(ctx, call_next)


class AtOnce(RetryPolicy):
    """Up to a number of retries, without a delay."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.asked: list[tuple[int, str]] = []

    def next_delay(self, failures: int, error: Exception) -> float | None:
        self.asked.append((failures, type(error).__name__))
        return 0.0 if failures <= self.retries else None


class Guarded(Coroutine[Any, Any, Any]):
    """A coroutine around another, as libraries make them for what is both awaited and entered."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self.inner = inner

    def send(self, value: Any) -> Any:
        return self.inner.send(value)

    def throw(self, *error: Any) -> Any:
        return self.inner.throw(*error)

    def close(self) -> None:
        self.inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.inner.__await__())


@pytest.mark.anyio
async def test_what_a_middleware_returns_may_be_any_coroutine(broker: MemoryBroker, log: list[str]) -> None:
    class Wrapping(Note):
        def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
            return Guarded(super().dispatch(ctx, call_next))

    dispatcher = dispatcher_on(broker, middlewares=[Wrapping(log, "guarded")])

    @dispatcher.handler(Sent)
    async def handler() -> None:
        await anyio.sleep(0.001)
        log.append("handler")

    await handle(dispatcher, Sent())
    assert log == ["+guarded", "handler", "-guarded"]


# --- levels


@pytest.mark.anyio
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_the_dispatcher_s_is_outermost_then_the_router_s_then_the_handler_s(
    broker: MemoryBroker, log: list[str], plain: bool
) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Note(log, "dispatcher 1"), Note(log, "dispatcher 2")])
    router = Router(middlewares=[Note(log, "router")])

    async def handler() -> None:
        log.append("handler")

    def plain_handler() -> None:
        log.append("handler")

    router.handler(Sent, middlewares=[Note(log, "own 1"), Note(log, "own 2")])(plain_handler if plain else handler)
    dispatcher.add_router(router)
    await handle(dispatcher, Sent())
    names = ["dispatcher 1", "dispatcher 2", "router", "own 1", "own 2"]
    assert log == [f"+{name}" for name in names] + ["handler"] + [f"-{name}" for name in reversed(names)]


@pytest.mark.anyio
async def test_the_dispatcher_s_middleware_is_around_all_handlers_the_router_s_around_its_own(
    broker: MemoryBroker, log: list[str]
) -> None:
    async def note_handler(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        log.append(ctx.handler.rpartition(".")[2])
        return await call_next(ctx)

    dispatcher = dispatcher_on(broker, middlewares=[Around(note_handler)])
    router, group = Router(middlewares=[Note(log, "router")]), HandlerGroup(default_topic="sent.a")
    dispatcher.add_router(router)
    dispatcher.add_handler_group(group)

    @router.handler(Sent)
    async def of_router() -> None: ...

    @group.handler()
    async def of_group() -> None: ...

    @dispatcher.handler(Sent)
    async def own() -> None: ...

    await handle(dispatcher, Sent())
    assert sorted(log) == ["+router", "-router", "of_group", "of_router", "own"]


# --- the context


@pytest.mark.anyio
async def test_what_the_context_tells(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    seen: list[EventHandlerContext] = []

    async def look(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        assert dict(ctx.event) == {"kind": "a", "number": 7}
        assert ctx.event is ctx.event
        with pytest.raises(TypeError):
            ctx.event["kind"] = "b"  # type: ignore[index]  # read-only
        assert ctx.event_route == ("sent", "a")
        assert ctx.params == {"k": "a"}
        assert ctx.message.payload == b'{"kind":"a","number":7}'
        assert ctx.meta.type == "Sent"
        assert ctx.meta.topic == "sent.a"
        assert ctx.meta.key == "a"
        assert ctx.meta.attempt == 1
        assert ctx.handler == f"{__name__}.test_what_the_context_tells.<locals>.handler"
        assert ctx.state == {}
        ctx.state["from"] = "outer"
        seen.append(ctx)
        return await call_next(ctx)

    async def look_again(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        assert ctx is seen[0]
        assert ctx.state == {"from": "outer"}
        return await call_next(ctx)

    @dispatcher.handler(topic="sent.{k}", middlewares=[Around(look), Around(look_again)])
    async def handler(event: Event[Sent]) -> None:
        assert event.meta.id == seen[0].meta.id

    await handle(dispatcher, Sent(number=7))
    assert errors(broker) == []
    assert len(seen) == 1
    assert "7" not in repr(seen[0]).replace(seen[0].meta.id, "")


@pytest.mark.anyio
async def test_the_route_s_segments_go_by_its_own_delimiter(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, route_delimiter="-")
    seen: list[tuple[str, ...]] = []

    async def look(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        seen.append(ctx.event_route)

    dispatcher.handler(topic="a-b.c", middlewares=[Around(look)])(lambda: None)
    publish(broker, "a-b.c", b"{}")
    await run(dispatcher)
    assert seen == [("a", "b.c")]


@pytest.mark.anyio
async def test_the_event_is_decoded_only_when_it_is_asked_for(
    broker: MemoryBroker, dispatcher: EventDispatcher
) -> None:
    seen: list[Any] = []

    async def look(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        seen.append(ctx.meta.topic)  # which needs no decoding
        with pytest.raises(DecodeError):
            _ = ctx.event
        return "dropped"

    dispatcher.handler(topic="t", middlewares=[Around(look)])(lambda: None)
    publish(broker, "t", b"nonsense")
    publish(broker, "t", b"[1]")
    await run(dispatcher)
    assert seen == ["t", "t"]
    assert errors(broker) == []


@pytest.mark.anyio
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_call_next_returns_what_the_handler_returned_and_raises_what_it_raised(
    broker: MemoryBroker, dispatcher: EventDispatcher, plain: bool
) -> None:
    results: list[Any] = []
    error = LookupError("as it was raised")

    async def look(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        try:
            results.append(await call_next(ctx))
        except LookupError as raised:
            results.append(raised)

    async def handler(event: Sent) -> int:
        if event.number == 2:
            raise error
        return event.number * 10

    def plain_handler(event: Sent) -> int:
        if event.number == 2:
            raise error
        return event.number * 10

    dispatcher.handler(Sent, middlewares=[Around(look)])(plain_handler if plain else handler)
    await handle(dispatcher, Sent(number=1), Sent(number=2))
    assert results == [10, error]
    assert errors(broker) == []


@pytest.mark.anyio
async def test_not_calling_on_drops_the_event_for_that_handler_as_handled(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str]
) -> None:
    async def drop(ctx: EventHandlerContext, call_next: NextCall) -> None: ...

    @dispatcher.handler(Sent, middlewares=[Around(drop)])
    async def dropped() -> None:
        raise AssertionError("not to be reached")

    @dispatcher.handler(Sent)
    async def kept() -> None:
        log.append("kept")

    await emit(broker, Sent())
    async with dispatcher.lifespan():
        await dispatcher.idle()
        assert dispatcher.health().handled == 1
        assert dispatcher.health().unhandled == 0
    assert log == ["kept"]
    assert broker.dead_letters == []
    await run(dispatcher)
    assert log == ["kept"]


@pytest.mark.anyio
async def test_an_error_of_the_middleware_is_the_handler_s_failure(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=2)
    attempts: list[int] = []

    async def fail(ctx: EventHandlerContext, call_next: NextCall) -> None:
        attempts.append(ctx.meta.attempt)
        raise OSError("in the middleware")

    dispatcher.handler(Sent, middlewares=[Around(fail)])(lambda: None)
    await handle(dispatcher, Sent())
    assert errors(broker) == ["OSError: in the middleware"]
    assert attempts == [1, 2]


# --- Retry


def retrying(broker: MemoryBroker, policy: RetryPolicy, fails: int, error: Exception, **options: Any) -> list[int]:
    """A dispatcher whose handler fails a number of times; the attempts that it saw."""
    dispatcher = dispatcher_on(broker, **options)
    attempts: list[int] = []

    @dispatcher.handler(Sent, middlewares=[Retry(policy)])
    async def handler(event: Event[Sent]) -> None:
        attempts.append(event.meta.attempt)
        if len(attempts) <= fails:
            raise error

    RETRYING[id(broker)] = dispatcher
    return attempts


RETRYING: dict[int, EventDispatcher] = {}


@pytest.mark.anyio
async def test_retry_tries_again_until_the_policy_gives_up(broker: MemoryBroker) -> None:
    policy = AtOnce(3)
    attempts = retrying(broker, policy, 10, OSError("broken"))
    await handle(RETRYING.pop(id(broker)), Sent())
    assert attempts == [1, 2, 3, 4]
    assert policy.asked == [(1, "OSError"), (2, "OSError"), (3, "OSError"), (4, "OSError")]
    (letter,) = broker.dead_letters
    assert letter.dead_letter is not None
    assert letter.dead_letter.attempts == 4


@pytest.mark.anyio
async def test_retry_ends_with_success(broker: MemoryBroker) -> None:
    attempts = retrying(broker, AtOnce(3), 2, OSError("broken"))
    await handle(RETRYING.pop(id(broker)), Sent())
    assert attempts == [1, 2, 3]
    assert errors(broker) == []


@pytest.mark.anyio
async def test_attempts_go_on_counting_over_redeliveries(broker: MemoryBroker) -> None:
    broker.clock = InstantClock()
    attempts = retrying(broker, AtOnce(2), 10, OSError("broken"), max_deliveries=3)
    await handle(RETRYING.pop(id(broker)), Sent())
    assert attempts == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(broker.dead_letters) == 1


@pytest.mark.anyio
async def test_retry_only_on_what_it_is_told(broker: MemoryBroker) -> None:
    broker.clock = clock = InstantClock()
    policy = ExponentialBackoffWithFullJitter(retries=5, retry_on=[ConnectionError], base_delay_sec=1)
    attempts = retrying(broker, policy, 10, ConnectionResetError())  # a subclass
    await handle(RETRYING.pop(id(broker)), Sent())
    assert attempts == [1, 2, 3, 4, 5, 6]
    assert len(clock.slept) == 5

    other = MemoryBroker()
    attempts = retrying(other, policy, 10, LookupError())
    await handle(RETRYING.pop(id(other)), Sent())
    assert attempts == [1]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [DecodeError("cannot be read"), Reject("never"), Redeliver()])
async def test_retry_leaves_alone_what_is_decided(broker: MemoryBroker, error: Exception) -> None:
    policy = AtOnce(3)
    attempts = retrying(broker, policy, 10, error)
    await handle(RETRYING.pop(id(broker)), Sent())
    assert attempts == [1]
    assert policy.asked == []


@pytest.mark.anyio
async def test_retry_never_repeats_what_cannot_be_decoded(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    policy = AtOnce(3)

    @dispatcher.handler(topic="t", middlewares=[Retry(policy)])
    async def handler(event: Event[Sent]) -> None:
        raise AssertionError("not to be reached")

    publish(broker, "t", b"nonsense")
    await run(dispatcher)
    assert policy.asked == []
    assert len(errors(broker)) == 1


def test_the_back_off_doubles_under_full_jitter() -> None:
    policy = ExponentialBackoffWithFullJitter(retries=200, base_delay_sec=1.25, max_delay_sec=10)
    random.seed(1)
    for failures, bound in [(1, 1.25), (2, 2.5), (3, 5), (4, 10), (5, 10), (199, 10)]:
        delays = [policy.next_delay(failures, OSError()) for _ in range(200)]
        found = [delay for delay in delays if delay is not None]
        assert len(found) == 200
        assert 0 <= min(found) < bound / 4
        assert bound * 3 / 4 < max(found) <= bound
    assert policy.next_delay(201, OSError()) is None


@pytest.mark.anyio
async def test_a_back_off_goes_by_the_broker_s_clock() -> None:
    clock = TestClock()
    broker = MemoryBroker(clock=clock)

    class Hour(RetryPolicy):
        def next_delay(self, failures: int, error: Exception) -> float | None:
            return 3600.0 if failures < 2 else None

    attempts = retrying(broker, Hour(), 1, OSError())
    dispatcher = RETRYING.pop(id(broker))
    await emit(broker, Sent())
    async with dispatcher.lifespan():
        await until(lambda: clock.sleepers)
        assert attempts == [1]
        clock.advance(3599)
        await anyio.lowlevel.checkpoint()
        assert attempts == [1]
        clock.advance(1)
        await dispatcher.idle()
        assert attempts == [1, 2]


@pytest.mark.anyio
@pytest.mark.parametrize("max_deliveries", [1, 5])
async def test_a_back_off_ends_at_once_when_the_dispatcher_stops(max_deliveries: int) -> None:
    # given an event that waits for a retry in an hour
    clock = TestClock()
    broker = MemoryBroker(clock=clock)

    class Hour(RetryPolicy):
        def next_delay(self, failures: int, error: Exception) -> float | None:
            return 3600.0

    attempts = retrying(broker, Hour(), 1, OSError(), max_deliveries=max_deliveries)
    dispatcher = RETRYING.pop(id(broker))
    await emit(broker, Sent())
    # when the dispatcher stops
    with anyio.fail_after(PATIENCE):
        async with dispatcher.lifespan():
            await until(lambda: clock.sleepers)
    # then the event is handed back, not given up, although its policy would have gone on
    assert attempts == [1]
    assert broker.dead_letters == []
    await run(dispatcher)
    assert attempts == [1, 2]
    assert broker.dead_letters == []


# --- handler groups


@pytest.mark.anyio
async def test_a_group_s_retries(broker: MemoryBroker) -> None:
    broker.clock = clock = InstantClock()
    group = HandlerGroup(default_topic="sent.a")
    dispatcher = dispatcher_on(broker)
    dispatcher.add_handler_group(group)
    calls: list[str] = []

    @group.handler(retries=2, retry_on=[OSError], retry_interval=2.5)
    async def retried() -> None:
        calls.append("retried")
        raise OSError

    @group.handler(retries=2, retry_on=[OSError])
    async def not_retried() -> None:
        calls.append("not retried")
        raise LookupError

    @group.handler(retries=1)
    def default_interval() -> None:
        calls.append("default")
        raise LookupError

    @group.handler()
    async def never() -> None:
        calls.append("never")
        raise OSError

    await handle(dispatcher, Sent())
    assert sorted(calls) == ["default"] * 2 + ["never"] + ["not retried"] + ["retried"] * 3
    assert sorted(clock.slept) == [1.25, 2.5, 2.5]
    assert len(broker.dead_letters) == 4


# --- Filter


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_filter(broker: MemoryBroker, dispatcher: EventDispatcher, is_async: bool) -> None:
    async def ask(ctx: EventHandlerContext) -> bool:
        await anyio.lowlevel.checkpoint()
        return bool(ctx.event["number"] > 1)

    seen: list[int] = []
    predicate = ask if is_async else lambda ctx: ctx.event["number"] > 1

    @dispatcher.handler(Sent, middlewares=[Filter(predicate)])
    async def handler(event: Sent) -> None:
        seen.append(event.number)

    await handle(dispatcher, Sent(number=1), Sent(number=2), Sent(number=3))
    assert seen == [2, 3]
    assert broker.dead_letters == []


@pytest.mark.anyio
async def test_what_a_predicate_raises_is_a_failure(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    dispatcher.handler(Sent, middlewares=[Filter(lambda ctx: ctx.event["missing"])])(lambda: None)
    await handle(dispatcher, Sent())
    assert errors(broker) == ["KeyError: 'missing'"]


# --- AsyncLock


class Gauge:
    def __init__(self) -> None:
        self.inside: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.most_in_all = 0

    async def enter(self, key: str) -> None:
        self.inside[key] = self.inside.get(key, 0) + 1
        self.most[key] = max(self.most.get(key, 0), self.inside[key])
        self.most_in_all = max(self.most_in_all, sum(self.inside.values()))
        for _ in range(5):  # others would come in now
            await anyio.lowlevel.checkpoint()
        self.inside[key] -= 1


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [1, 3])
async def test_a_lock_lets_a_number_through(broker: MemoryBroker, limit: int) -> None:
    dispatcher = dispatcher_on(broker, ordering="none")
    lock, gauge = AsyncLock(concurrency_limit=limit), Gauge()

    @dispatcher.handler(Sent, middlewares=[lock])
    async def handler(event: Sent) -> None:
        await gauge.enter("all")
        if event.number % 5 == 0:
            raise OSError

    await handle(dispatcher, *(Sent(number=number) for number in range(20)))
    assert gauge.most == {"all": limit}
    assert lock._gates == {}  # what nobody uses is forgotten


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_lock_of_several_keys(broker: MemoryBroker, is_async: bool) -> None:
    async def ask(ctx: EventHandlerContext) -> str:
        await anyio.lowlevel.checkpoint()
        return str(ctx.event["kind"])

    dispatcher = dispatcher_on(broker, ordering="none")
    gauge = Gauge()
    lock = AsyncLock(ask if is_async else lambda ctx: ctx.event["kind"])
    router = Router(middlewares=[lock])
    dispatcher.add_router(router)

    @router.handler(Sent)
    async def one(event: Sent) -> None:
        await gauge.enter(event.kind)

    @router.handler(Sent)
    async def other(event: Sent) -> None:
        await gauge.enter(event.kind)

    await handle(dispatcher, *(Sent(number=number, kind="abc"[number % 3]) for number in range(30)))
    assert gauge.most == {"a": 1, "b": 1, "c": 1}  # one lock for both handlers
    assert gauge.most_in_all > 1
    assert lock._gates == {}


@pytest.mark.anyio
async def test_a_lock_is_free_again_after_a_cancellation(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, ordering="none")
    lock = AsyncLock()
    seen: list[int] = []

    @dispatcher.handler(Sent, middlewares=[Timeout(0.02), lock])
    async def handler(event: Sent) -> None:
        if event.number < 3:
            await anyio.sleep_forever()
        seen.append(event.number)

    await handle(dispatcher, Sent(number=1), Sent(number=2))
    assert lock._gates == {}
    await handle(dispatcher, Sent(number=3))
    assert seen == [3]


# --- ExceptionInterceptor


@pytest.mark.anyio
async def test_the_most_specific_class_intercepts(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    seen: list[tuple[str, str, int]] = []

    def note(name: str) -> Callable[[EventHandlerContext, Exception], None]:
        return lambda ctx, error: seen.append((name, type(error).__name__, ctx.event["number"]))

    async def note_async(ctx: EventHandlerContext, error: Exception) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(("async", type(error).__name__, ctx.event["number"]))

    interceptor = ExceptionInterceptor({Exception: note("any"), OSError: note("os")})
    interceptor.add_handler(ConnectionError, note_async)

    @dispatcher.handler(Sent, middlewares=[interceptor])
    async def handler(event: Sent) -> None:
        raise [ConnectionResetError(), PermissionError(), LookupError()][event.number]

    await handle(dispatcher, *(Sent(number=number) for number in range(3)))
    assert sorted(seen) == [
        ("any", "LookupError", 2),
        ("async", "ConnectionResetError", 0),
        ("os", "PermissionError", 1),
    ]
    assert broker.dead_letters == []


@pytest.mark.anyio
async def test_an_interceptor_s_result_and_errors(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    results: list[Any] = []

    async def look(ctx: EventHandlerContext, call_next: NextCall) -> Any:
        results.append(await call_next(ctx))

    def refuse(ctx: EventHandlerContext, error: Exception) -> None:
        raise RuntimeError("the interceptor failed") from error

    interceptor = ExceptionInterceptor({LookupError: lambda ctx, error: "instead", OSError: refuse})

    @dispatcher.handler(Sent, middlewares=[Around(look), interceptor])
    async def handler(event: Sent) -> str:
        if event.number:
            raise [LookupError(), OSError(), ValueError("not intercepted")][event.number - 1]
        return "fine"

    await handle(dispatcher, *(Sent(number=number) for number in range(4)))
    assert results == ["fine", "instead"]
    assert sorted(errors(broker)) == ["RuntimeError: the interceptor failed", "ValueError: not intercepted"]


@pytest.mark.anyio
async def test_redeliver_and_reject_are_no_errors_to_intercept(broker: MemoryBroker) -> None:
    # given an interceptor of all exceptions
    broker.clock = InstantClock()
    dispatcher = dispatcher_on(broker, max_deliveries=3)
    intercepted: list[str] = []
    calls: list[int] = []

    @dispatcher.handler(
        Sent,
        middlewares=[ExceptionInterceptor({Exception: lambda ctx, error: intercepted.append(type(error).__name__)})],
    )
    async def handler(event: Sent) -> None:
        calls.append(event.number)
        if event.number == 1 and calls.count(1) == 1:
            raise Redeliver(delay=1)
        if event.number == 2:
            raise Reject("not ours")

    # when a handler steers the outcome, then it does
    await handle(dispatcher, Sent(number=1), Sent(number=2))
    assert intercepted == []
    assert sorted(calls) == [1, 1, 2]
    assert errors(broker) == ["Reject: not ours"]


@pytest.mark.anyio
async def test_redeliver_and_reject_can_be_intercepted_by_name(
    broker: MemoryBroker, dispatcher: EventDispatcher
) -> None:
    intercepted: list[str] = []

    @dispatcher.handler(
        Sent, middlewares=[ExceptionInterceptor({Reject: lambda ctx, error: intercepted.append(str(error))})]
    )
    async def handler() -> None:
        raise Reject("not ours")

    await handle(dispatcher, Sent())
    assert intercepted == ["not ours"]
    assert broker.dead_letters == []


# --- Timeout


@pytest.mark.anyio
async def test_timeout(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    seen: list[int] = []

    @dispatcher.handler(Sent, middlewares=[Timeout(0.03)])
    async def handler(event: Sent) -> None:
        if event.number == 2:
            await anyio.sleep_forever()
        seen.append(event.number)

    await handle(dispatcher, *(Sent(number=number) for number in range(1, 4)))
    assert sorted(seen) == [1, 3]
    (error,) = errors(broker)
    assert error.startswith("TimeoutError: handler ")
    assert error.endswith("took over 0.03 s")


@pytest.mark.anyio
async def test_a_handler_s_own_timeout_error_is_its_own(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    @dispatcher.handler(Sent, middlewares=[Timeout(60)])
    async def handler() -> None:
        raise TimeoutError("of a client")

    await handle(dispatcher, Sent())
    assert errors(broker) == ["TimeoutError: of a client"]


@pytest.mark.anyio
async def test_timeouts_can_be_retried(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    attempts: list[int] = []

    @dispatcher.handler(Sent, middlewares=[Retry(AtOnce(1)), Timeout(0.02)])
    async def handler(event: Event[Sent]) -> None:
        attempts.append(event.meta.attempt)
        if len(attempts) == 1:
            await anyio.sleep_forever()

    await handle(dispatcher, Sent())
    assert attempts == [1, 2]
    assert broker.dead_letters == []


@pytest.mark.anyio
@pytest.mark.parametrize("level", ["dispatcher", "router"])
async def test_a_timeout_for_many_leaves_plain_functions_out_and_says_so_once(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    timeouts: list[Middleware] = [Timeout(0.02)]
    dispatcher = dispatcher_on(broker, middlewares=timeouts if level == "dispatcher" else [])
    router = Router(middlewares=timeouts if level == "router" else [])
    dispatcher.add_router(router)
    release = threading.Event()
    done: list[str] = []

    @router.handler(Sent)
    def plain() -> None:
        release.wait(10)
        done.append("plain")

    @router.handler(Sent)
    def other_plain() -> None:
        done.append("other")

    @router.handler(Sent)
    async def cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            release.set()

    await handle(dispatcher, Sent(), Sent())
    assert sorted(done) == ["other", "other", "plain", "plain"]
    assert [error.partition(":")[0] for error in errors(broker)] == ["TimeoutError"] * 2
    said = [record.getMessage() for record in caplog.records if "Timeout" in record.getMessage()]
    (once,) = [text for text in said if "plain function" in text]
    assert "plain" in once
    assert "other_plain" in once
    assert ".cancelled" not in once


# --- together


@pytest.mark.anyio
async def test_dependencies_are_made_inside_the_middleware(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str]
) -> None:
    def provide() -> None:
        log.append("dependency")

    async def handler(made: None = Dependency(provide)) -> None:
        log.append("handler")

    dispatcher.handler(Sent, middlewares=[Note(log, "own")])(handler)
    await handle(dispatcher, Sent())
    assert log == ["+own", "dependency", "handler", "-own"]


@pytest.mark.anyio
async def test_a_lock_a_filter_and_retries_together(broker: MemoryBroker) -> None:
    dispatcher = EventDispatcher(
        MemoryConsumer(broker), middlewares=[Filter(lambda ctx: ctx.event["number"] % 2 == 0)], max_deliveries=1
    )
    gauge = Gauge()
    tries: dict[int, int] = {}

    @dispatcher.handler(Sent, middlewares=[Retry(AtOnce(2)), AsyncLock(lambda ctx: ctx.meta.key)])
    async def handler(event: Sent) -> None:
        await gauge.enter(event.kind)
        tries[event.number] = tries.get(event.number, 0) + 1
        if tries[event.number] < 3:
            raise OSError

    await handle(dispatcher, *(Sent(number=number) for number in range(10)))
    assert tries == {0: 3, 2: 3, 4: 3, 6: 3, 8: 3}
    assert gauge.most == {"a": 1}
    assert broker.dead_letters == []


@pytest.mark.anyio
async def test_an_interceptor_handles_nothing_that_a_stop_has_cut_short() -> None:
    """Else the event would be acknowledged with tries left, which might have succeeded."""
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    intercepted: list[str] = []
    attempts: list[int] = []

    def note(ctx: EventHandlerContext, error: OSError) -> None:
        intercepted.append(str(error))

    def dispatcher() -> EventDispatcher:
        made = EventDispatcher(MemoryConsumer(broker))

        @made.handler(
            topic="flaky",
            middlewares=[ExceptionInterceptor({OSError: note}), Retry(FixedDelay(3, delay_sec=10))],
        )
        async def flaky(event: Event) -> None:
            attempts.append(event.meta.attempt)
            if len(attempts) == 1:
                raise OSError("not yet")

        return made

    publish(broker, "flaky", b"{}")
    async with dispatcher().lifespan():
        await until(lambda: clock.sleepers)
    await run(dispatcher())
    assert (intercepted, attempts) == ([], [1, 2])
