"""Dependencies: what provides, how often, in which order, in which thread, and what clean-up sees."""

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from pydantic import BaseModel

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventHandlerContext,
    Middleware,
    NextCall,
    Router,
    SubscriptionParam,
)
from dispytch.memory import MemoryBroker
from dispytch.middleware import Retry, RetryPolicy, Timeout
from tests.helpers import dispatcher_on, emit, errors, handle, publish, run, until
from tests.support import PATIENCE


class Sent(EventBase):
    __topic__ = "sent.{number}"
    number: int = 1


class AtOnce(RetryPolicy):
    def __init__(self, retries: int) -> None:
        self.retries = retries

    def next_delay(self, failures: int, error: Exception) -> float | None:
        return 0.0 if failures <= self.retries else None


# --- what can provide


class Service:
    def __init__(self) -> None:
        self.name = "class"


@dataclass
class Settings:
    service: Annotated[Service, Dependency(Service)]

    @property
    def name(self) -> str:
        return f"dataclass with a {self.service.name}"


class Entered:
    def __enter__(self) -> str:
        return "context manager class"

    def __exit__(self, *details: Any) -> None:
        CLOSED.append("context manager class")


class EnteredAsync:
    async def __aenter__(self) -> str:
        await anyio.lowlevel.checkpoint()
        return "async context manager class"

    async def __aexit__(self, *details: Any) -> None:
        await anyio.lowlevel.checkpoint()
        CLOSED.append("async context manager class")


class Maker:
    def __call__(self) -> str:
        return "callable object"

    def method(self) -> str:
        return "method"

    async def async_method(self) -> str:
        await anyio.lowlevel.checkpoint()
        return "async method"

    @staticmethod
    def static() -> str:
        return "static method"

    @classmethod
    def of_class(cls) -> str:
        return "class method"


class AsyncMaker:
    async def __call__(self) -> str:
        await anyio.lowlevel.checkpoint()
        return "async callable object"


class YieldingMaker:
    def __call__(self) -> Iterator[str]:
        yield "yielding callable object"
        CLOSED.append("yielding callable object")


CLOSED: list[str] = []


def function() -> str:
    return "function"


async def async_function() -> str:
    await anyio.lowlevel.checkpoint()
    return "async function"


def generator() -> Iterator[str]:
    yield "generator"
    CLOSED.append("generator")


async def async_generator() -> AsyncIterator[str]:
    await anyio.lowlevel.checkpoint()
    yield "async generator"
    await anyio.lowlevel.checkpoint()
    CLOSED.append("async generator")


@contextlib.contextmanager
def manager() -> Iterator[str]:
    yield "context manager"
    CLOSED.append("context manager")


@contextlib.asynccontextmanager
async def async_manager() -> AsyncIterator[str]:
    await anyio.lowlevel.checkpoint()
    yield "async context manager"
    await anyio.lowlevel.checkpoint()
    CLOSED.append("async context manager")


def with_argument(name: str) -> str:
    return name


PROVIDERS: list[tuple[Any, str, bool]] = [
    (function, "function", False),
    (async_function, "async function", False),
    (generator, "generator", True),
    (async_generator, "async generator", True),
    (manager, "context manager", True),
    (async_manager, "async context manager", True),
    (Entered, "context manager class", True),
    (EnteredAsync, "async context manager class", True),
    (Maker(), "callable object", False),
    (AsyncMaker(), "async callable object", False),
    (YieldingMaker(), "yielding callable object", True),
    (Maker().method, "method", False),
    (Maker().async_method, "async method", False),
    (Maker.static, "static method", False),
    (Maker.of_class, "class method", False),
    (lambda: "lambda", "lambda", False),
    (partial(with_argument, "partial"), "partial", False),
    (partial(with_argument, name="partial by name"), "partial by name", False),
    (partial(async_generator), "async generator", True),
    (partial(manager), "context manager", True),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("provider", "value", "cleans_up"), PROVIDERS, ids=[name for _, name, _ in PROVIDERS])
@pytest.mark.parametrize("scope", ["event", "app"])
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_anything_that_makes_a_value_can_provide_it(
    dispatcher: EventDispatcher,
    broker: MemoryBroker,
    plain: bool,
    scope: Any,
    provider: Any,
    value: str,
    cleans_up: bool,
) -> None:
    CLOSED.clear()
    seen: list[str] = []

    async def handler(made: Annotated[str, Dependency(provider, scope=scope)]) -> None:
        assert CLOSED == []
        seen.append(made)

    def plain_handler(made: Annotated[str, Dependency(provider, scope=scope)]) -> None:
        assert CLOSED == []
        seen.append(made)

    dispatcher.handler(Sent)(plain_handler if plain else handler)
    await handle(dispatcher, Sent())
    assert errors(broker) == []
    assert seen == [value]
    assert len(CLOSED) == cleans_up
    assert set(CLOSED) <= {value}


@pytest.mark.anyio
@pytest.mark.parametrize(("provider", "name"), [(Service, "class"), (Settings, "dataclass with a class")])
async def test_classes_provide_their_instances(dispatcher: EventDispatcher, provider: Any, name: str) -> None:
    seen: list[Any] = []
    marker = Dependency(provider)

    @dispatcher.handler(Sent)
    async def handler(made: Annotated[Any, Dependency(provider)], default: Any = marker) -> None:
        assert made is default
        seen.append(made)

    await handle(dispatcher, Sent())
    assert [type(made) for made in seen] == [provider]
    assert seen[0].name == name


@pytest.mark.anyio
async def test_as_a_default_value_and_as_metadata(dispatcher: EventDispatcher) -> None:
    seen: list[tuple[str, str, str]] = []
    Used = Annotated[str, Dependency(function)]

    @dispatcher.handler(Sent)
    async def handler(a: Used, b: str = Dependency(function), *, c: str = Dependency(async_function)) -> None:
        seen.append((a, b, c))

    await handle(dispatcher, Sent())
    assert seen == [("function", "function", "async function")]


@pytest.mark.anyio
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_dependencies_take_the_event_its_segments_and_each_other(
    dispatcher: EventDispatcher, broker: MemoryBroker, plain: bool
) -> None:
    def tenant(number: Annotated[int, SubscriptionParam(gt=0)], event: Event[Sent]) -> str:
        return f"{number}/{event.body.number}"

    async def user(tenant: Annotated[str, Dependency(tenant)], body: Sent) -> str:
        return f"user of {tenant} ({body.number})"

    def greeting(user: Annotated[str, Dependency(user)], tenant: str = Dependency(tenant)) -> str:
        return f"hello, {user} in {tenant}"

    seen: list[str] = []

    async def handler(greeting: Annotated[str, Dependency(greeting)]) -> None:
        seen.append(greeting)

    def plain_handler(greeting: Annotated[str, Dependency(greeting)]) -> None:
        seen.append(greeting)

    dispatcher.handler(Sent)(plain_handler if plain else handler)
    publish(broker, "sent.0", b'{"number": 0}')
    await handle(dispatcher, Sent(number=3))
    assert seen == ["hello, user of 3/3 (3) in 3/3"]
    # a segment that does not fit is permanent, wherever it was wanted
    publish(broker, "sent.0", b'{"number": 0}', [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_type", b"Sent")])
    await run(dispatcher)
    assert [error.partition(":")[0] for error in errors(broker)] == ["DecodeError"]


@pytest.mark.anyio
async def test_a_dependency_s_body_is_validated_as_it_declares(
    dispatcher: EventDispatcher, broker: MemoryBroker
) -> None:
    class Strict(BaseModel):
        missing: int

    def get(event: Event[Strict]) -> int:
        return event.body.missing

    @dispatcher.handler(Sent)
    async def handler(event: Event[Sent], missing: Annotated[int, Dependency(get)]) -> None:
        raise AssertionError("not to be reached")

    await handle(dispatcher, Sent())
    (error,) = errors(broker)
    assert "does not fit Strict: missing: Field required" in error


# --- how often


@pytest.mark.anyio
async def test_one_instance_for_each_provider_and_try(broker: MemoryBroker) -> None:
    # given a diamond of dependencies, and a handler that fails once
    dispatcher = dispatcher_on(broker, max_deliveries=2)
    made: list[object] = []
    fresh: list[object] = []
    seen: list[list[object]] = []

    def base() -> object:
        made.append(object())
        return made[-1]

    def new() -> object:
        fresh.append(object())
        return fresh[-1]

    def left(base: Annotated[object, Dependency(base)]) -> object:
        return base

    async def right(base: Annotated[object, Dependency(base)]) -> object:
        return base

    @dispatcher.handler(Sent, middlewares=[Retry(AtOnce(1))])
    async def handler(
        left: Annotated[object, Dependency(left)],
        right: Annotated[object, Dependency(right)],
        own: Annotated[object, Dependency(base)],
        first: Annotated[object, Dependency(new, use_cache=False)],
        second: Annotated[object, Dependency(new, use_cache=False)],
    ) -> None:
        assert left is right is own
        assert first is not second
        seen.append([own, first, second])
        if len(seen) < 4:
            raise OSError

    # when it is tried again, by middleware and by redelivery
    await handle(dispatcher, Sent())
    # then each try had its own instances
    assert errors(broker) == []
    assert len(seen) == len(made) == 4
    assert len(fresh) == 8
    assert len({id(item) for items in seen for item in items}) == 12


@pytest.mark.anyio
async def test_each_handler_has_its_own_instances(dispatcher: EventDispatcher) -> None:
    made: list[object] = []

    def provide() -> object:
        made.append(object())
        return made[-1]

    for _ in range(2):

        @dispatcher.handler(Sent)
        async def handler(item: Annotated[object, Dependency(provide)]) -> None: ...

    await handle(dispatcher, Sent())
    assert len(made) == 2


# --- clean-up


def tracked(log: list[str], name: str, *, is_async: bool = False) -> Callable[..., Any]:
    """A provider that notes its set-up, and its clean-up with the exception that it sees."""

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        log.append(f"+{name}")
        try:
            yield
        except BaseException as error:
            log.append(f"-{name} ({type(error).__name__})")
            raise
        else:
            log.append(f"-{name}")

    def provide() -> Iterator[str]:
        with noted():
            yield name

    async def provide_async() -> AsyncIterator[str]:
        with noted():
            await anyio.lowlevel.checkpoint()
            yield name

    return provide_async if is_async else provide


def chain(log: list[str], plain: bool, middle_is_async: bool) -> Callable[..., Any]:
    """A handler with three dependencies, each on the one before it."""
    first = tracked(log, "first")
    inner = tracked(log, "second", is_async=middle_is_async)
    third = tracked(log, "third")

    def bound(provider: Callable[..., Any], on: Callable[..., Any]) -> Callable[..., Any]:
        if middle_is_async and provider is inner:

            async def provide_async(on: Annotated[Any, Dependency(on)]) -> AsyncIterator[Any]:
                async with contextlib.asynccontextmanager(provider)() as value:
                    yield value

            return provide_async

        def provide(on: Annotated[Any, Dependency(on)]) -> Iterator[Any]:
            with contextlib.contextmanager(provider)() as value:
                yield value

        return provide

    last = bound(third, bound(inner, first))

    async def handler(event: Sent, last: Annotated[str, Dependency(last)]) -> None:
        log.append("handler")
        if event.number == 2:
            raise OSError("handler failed")

    def plain_handler(event: Sent, last: Annotated[str, Dependency(last)]) -> None:
        log.append("handler")
        if event.number == 2:
            raise OSError("handler failed")

    return plain_handler if plain else handler


@pytest.mark.anyio
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
@pytest.mark.parametrize("middle_is_async", [False, True], ids=["plain", "async between"])
async def test_clean_up_is_strictly_reversed(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str], plain: bool, middle_is_async: bool
) -> None:
    dispatcher.handler(Sent)(chain(log, plain, middle_is_async))
    await handle(dispatcher, Sent(number=1))
    assert errors(broker) == []
    assert log == ["+first", "+second", "+third", "handler", "-third", "-second", "-first"]


@pytest.mark.anyio
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
@pytest.mark.parametrize("middle_is_async", [False, True], ids=["plain", "async between"])
async def test_clean_up_sees_the_handler_s_exception(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str], plain: bool, middle_is_async: bool
) -> None:
    dispatcher.handler(Sent)(chain(log, plain, middle_is_async))
    await handle(dispatcher, Sent(number=2))
    assert errors(broker) == ["OSError: handler failed"]
    assert log[3:] == ["handler", "-third (OSError)", "-second (OSError)", "-first (OSError)"]


def swallowing() -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield "swallowing"


async def swallowing_async() -> AsyncIterator[str]:
    with contextlib.suppress(OSError):
        yield "swallowing"


class Swallowing:
    def __enter__(self) -> str:
        return "swallowing"

    def __exit__(self, *details: Any) -> bool:
        return True


@pytest.mark.anyio
@pytest.mark.parametrize("provider", [swallowing, swallowing_async, Swallowing])
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_clean_up_cannot_make_a_failure_a_success(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str], plain: bool, provider: Any
) -> None:
    outer = tracked(log, "outer")

    async def handler(
        outer: Annotated[str, Dependency(outer)], swallowing: Annotated[str, Dependency(provider)]
    ) -> None:
        raise OSError("handler failed")

    def plain_handler(
        outer: Annotated[str, Dependency(outer)], swallowing: Annotated[str, Dependency(provider)]
    ) -> None:
        raise OSError("handler failed")

    dispatcher.handler(Sent)(plain_handler if plain else handler)
    await handle(dispatcher, Sent())
    assert errors(broker) == ["OSError: handler failed"]
    assert log == ["+outer", "-outer (OSError)"]  # those around it still see the failure


def failing() -> Iterator[str]:
    yield "failing"
    raise LookupError("clean-up failed")


async def failing_async() -> AsyncIterator[str]:
    try:
        yield "failing"
    finally:
        await anyio.lowlevel.checkpoint()
        raise LookupError("clean-up failed")


@pytest.mark.anyio
@pytest.mark.parametrize("provider", [failing, failing_async])
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_an_error_of_clean_up_fails_the_event_and_the_rest_is_cleaned_up(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str], plain: bool, provider: Any
) -> None:
    outer = tracked(log, "outer", is_async=True)

    async def handler(outer: Annotated[str, Dependency(outer)], inner: Annotated[str, Dependency(provider)]) -> None:
        log.append("handler")

    def plain_handler(outer: Annotated[str, Dependency(outer)], inner: Annotated[str, Dependency(provider)]) -> None:
        log.append("handler")

    dispatcher.handler(Sent)(plain_handler if plain else handler)
    await handle(dispatcher, Sent())
    assert errors(broker) == ["LookupError: clean-up failed"]
    assert log == ["+outer", "handler", "-outer (LookupError)"]


@pytest.mark.anyio
async def test_what_was_set_up_is_cleaned_up_when_a_later_one_fails(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str]
) -> None:
    first, second = tracked(log, "first"), tracked(log, "second", is_async=True)

    def broken(second: Annotated[str, Dependency(second)]) -> str:
        raise OSError("set-up failed")

    @dispatcher.handler(Sent)
    async def handler(first: Annotated[str, Dependency(first)], broken: Annotated[str, Dependency(broken)]) -> None:
        raise AssertionError("not to be reached")

    await handle(dispatcher, Sent())
    assert errors(broker) == ["OSError: set-up failed"]
    assert log == ["+first", "+second", "-second (OSError)", "-first (OSError)"]


# --- cancellation


def slow_to_close(log: list[str]) -> Callable[..., Any]:
    async def provide() -> AsyncIterator[str]:
        try:
            yield "slow"
        finally:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.01)
            log.append("closed")

    return provide


@pytest.mark.anyio
async def test_clean_up_awaits_although_a_time_out_cancelled_the_handler(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str]
) -> None:
    slow = slow_to_close(log)
    plain = tracked(log, "plain")

    @dispatcher.handler(Sent, middlewares=[Timeout(0.02)])
    async def handler(plain: Annotated[str, Dependency(plain)], slow: Annotated[str, Dependency(slow)]) -> None:
        await anyio.sleep_forever()

    await handle(dispatcher, Sent())
    assert errors(broker)[0].startswith("TimeoutError: handler ")
    assert log[0] == "+plain"
    assert log[1] == "closed"
    assert log[2].startswith("-plain (Cancelled")


@pytest.mark.anyio
async def test_an_error_of_clean_up_does_not_hide_a_cancellation(
    broker: MemoryBroker, dispatcher: EventDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    @dispatcher.handler(Sent, middlewares=[Timeout(0.02)])
    async def handler(inner: Annotated[str, Dependency(failing_async)]) -> None:
        await anyio.sleep_forever()

    await handle(dispatcher, Sent())
    assert errors(broker)[0].startswith("TimeoutError: handler ")
    assert "clean-up failed" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [False, True])
async def test_clean_up_awaits_although_a_stop_cancelled_the_handler(
    broker: MemoryBroker, log: list[str], fails: bool
) -> None:
    # given a handler that outlasts the drain time
    dispatcher = dispatcher_on(broker, drain_timeout=0.01)
    slow = slow_to_close(log)
    entered = anyio.Event()
    provider = failing_async if fails else async_function

    @dispatcher.handler(Sent)
    async def handler(slow: Annotated[str, Dependency(slow)], inner: Annotated[str, Dependency(provider)]) -> None:
        entered.set()
        if len(log) < 1:
            await anyio.sleep_forever()
        log.append("second time")

    await emit(broker, Sent())
    # when it is stopped
    with anyio.fail_after(10):
        async with dispatcher.lifespan():
            await entered.wait()
    # then its dependencies were closed, and the event is neither handled nor dead-lettered
    assert log == ["closed"]
    assert errors(broker) == []
    if not fails:
        await run(dispatcher)
        assert log == ["closed", "second time", "closed"]


@pytest.mark.anyio
async def test_clean_up_without_end_is_cut_off(
    broker: MemoryBroker, dispatcher: EventDispatcher, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch._runtime.invoke.CLEANUP_TIMEOUT", 0.02)
    outer = tracked(log, "outer")

    async def endless() -> AsyncIterator[str]:
        yield "endless"
        await anyio.sleep_forever()

    @dispatcher.handler(Sent)
    async def handler(outer: Annotated[str, Dependency(outer)], inner: Annotated[str, Dependency(endless)]) -> None: ...

    await handle(dispatcher, Sent())
    (error,) = errors(broker)
    assert error.startswith("TimeoutError: the clean-up of dependency")
    assert "endless" in error
    assert log == ["+outer", "-outer (TimeoutError)"]


# --- threads and context


@pytest.mark.anyio
async def test_plain_providers_run_inline_for_async_handlers(dispatcher: EventDispatcher) -> None:
    threads: list[int] = []

    def provide() -> Iterator[int]:
        threads.append(threading.get_ident())
        yield 1
        threads.append(threading.get_ident())

    @dispatcher.handler(Sent)
    async def handler(one: Annotated[int, Dependency(provide)]) -> None:
        threads.append(threading.get_ident())

    await handle(dispatcher, Sent())
    assert threads == [threading.get_ident()] * 3


@pytest.mark.anyio
async def test_plain_providers_run_in_the_thread_of_a_plain_handler(
    broker: MemoryBroker, dispatcher: EventDispatcher
) -> None:
    threads: dict[str, int] = {}

    async def provide_async() -> str:
        threads["async"] = threading.get_ident()
        return "async"

    def provide(made: Annotated[str, Dependency(provide_async)]) -> Iterator[int]:
        threads["set-up"] = threading.get_ident()
        yield 1
        threads["clean-up"] = threading.get_ident()

    @dispatcher.handler(Sent)
    def handler(one: Annotated[int, Dependency(provide)]) -> None:
        threads["handler"] = threading.get_ident()

    await handle(dispatcher, Sent())
    assert errors(broker) == []
    here = threads.pop("async")
    assert here == threading.get_ident()
    assert len(set(threads.values())) == 1
    assert len(threads) == 3
    assert here not in threads.values()


variable: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.mark.anyio
async def test_a_context_variable_never_leaks_into_the_next_call(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, concurrency=1, max_deliveries=2)
    seen: list[tuple[str, str]] = []

    async def provide() -> AsyncIterator[str]:
        found = variable.get()
        token = variable.set("provider")
        yield found
        variable.reset(token)  # in the same context, or it raises

    def provide_plain() -> Iterator[str]:
        found = variable.get()
        token = variable.set("plain provider")
        yield found
        variable.reset(token)

    @dispatcher.handler(Sent, middlewares=[Retry(AtOnce(1))])
    async def handler(
        event: Sent, found: Annotated[str, Dependency(provide)], plain: Annotated[str, Dependency(provide_plain)]
    ) -> None:
        seen.append((found, variable.get()))
        variable.set("handler")
        await anyio.lowlevel.checkpoint()
        assert variable.get() == "handler"
        if event.number == 2:
            raise OSError

    @dispatcher.handler(Sent)
    async def simple(event: Event[Sent]) -> None:
        seen.append((variable.get(), "simple"))
        variable.set("simple")

    await handle(dispatcher, Sent(number=1), Sent(number=2), Sent(number=3))
    assert {found for found, _ in seen} == {"unset"}
    assert [inside for _, inside in seen if inside != "simple"] == ["plain provider"] * 6
    assert variable.get() == "unset"


@pytest.mark.anyio
async def test_plain_handlers_see_what_their_providers_set(dispatcher: EventDispatcher, broker: MemoryBroker) -> None:
    seen: list[str] = []

    async def provide_async() -> None:
        variable.set("async provider")

    def provide(_: Annotated[None, Dependency(provide_async)]) -> Iterator[None]:
        seen.append(variable.get())
        token = variable.set("provider")
        yield
        variable.reset(token)

    @dispatcher.handler(Sent)
    def handler(_: Annotated[None, Dependency(provide)]) -> None:
        seen.append(variable.get())

    await handle(dispatcher, Sent(), Sent())
    assert errors(broker) == []
    assert seen == ["async provider", "provider"] * 2


async def task_group() -> AsyncIterator[TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("scope", ["event", "app"])
async def test_a_dependency_may_yield_inside_a_task_group(
    dispatcher: EventDispatcher, broker: MemoryBroker, scope: Any
) -> None:
    # which takes that it is entered and left in one task, and that scopes nest
    started = anyio.Event()

    @dispatcher.handler(Sent)
    async def handler(tasks: Annotated[TaskGroup, Dependency(task_group, scope=scope)]) -> None:
        async def child() -> None:
            started.set()
            await anyio.sleep_forever()

        tasks.start_soon(child)
        await started.wait()

    @dispatcher.handler(Sent)
    def plain_handler(tasks: Annotated[TaskGroup, Dependency(task_group, scope=scope)]) -> None: ...

    await handle(dispatcher, Sent(), Sent())
    assert errors(broker) == []


@pytest.mark.anyio
async def test_a_dependency_may_yield_inside_a_time_out(dispatcher: EventDispatcher, broker: MemoryBroker) -> None:
    async def limit(event: Sent) -> AsyncIterator[None]:
        with anyio.fail_after(PATIENCE if event.number == 1 else 0.02):
            yield

    @dispatcher.handler(Sent)
    async def handler(event: Sent, _: Annotated[None, Dependency(limit)]) -> None:
        await anyio.sleep(0 if event.number == 1 else PATIENCE)

    await handle(dispatcher, Sent(number=1), Sent(number=2))
    assert errors(broker) == ["TimeoutError"]


@pytest.mark.anyio
async def test_a_failure_in_an_application_s_task_group_ends_the_dispatcher(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)

    async def background() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:

            async def child() -> None:
                await until(lambda: dispatcher.health().state == "running")
                raise LookupError("the background task failed")

            tasks.start_soon(child)
            yield
            tasks.cancel_scope.cancel()

    @dispatcher.handler(Sent)
    async def handler(_: Annotated[None, Dependency(background, scope="app")]) -> None: ...

    with anyio.fail_after(10), pytest.raises(LookupError, match="the background task failed"):
        await dispatcher.start()
    assert dispatcher.health().state == "stopped"


@pytest.mark.anyio
@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_exceptions_keep_their_cause(broker: MemoryBroker, dispatcher: EventDispatcher, plain: bool) -> None:
    seen: list[BaseException | None] = []

    def provide() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LookupError from error

    class Note(Middleware):
        async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
            try:
                return await call_next(ctx)
            except LookupError as error:
                seen.append(error.__cause__)

    async def handler(_: Annotated[None, Dependency(provide)]) -> None:
        raise OSError("the cause")

    def plain_handler(_: Annotated[None, Dependency(provide)]) -> None:
        raise OSError("the cause")

    dispatcher.handler(Sent, middlewares=[Note()])(plain_handler if plain else handler)
    await handle(dispatcher, Sent())
    assert [str(cause) for cause in seen] == ["the cause"]


# --- the application's


@pytest.mark.anyio
async def test_an_application_s_dependency_lives_as_long_as_the_dispatcher(
    broker: MemoryBroker, log: list[str]
) -> None:
    dispatcher = dispatcher_on(broker)
    tasks: list[int] = []

    async def pool() -> AsyncIterator[list[str]]:
        assert dispatcher.health().state == "starting"
        log.append("+pool")
        tasks.append(anyio.get_current_task().id)
        yield log
        await anyio.lowlevel.checkpoint()
        tasks.append(anyio.get_current_task().id)
        log.append("-pool")

    def repository(pool: Annotated[list[str], Dependency(pool)]) -> Iterator[list[str]]:
        log.append("+repository")
        yield pool
        log.append("-repository")

    @dispatcher.handler(Sent)
    async def handler(
        event: Sent,
        repository: Annotated[list[str], Dependency(repository, scope="app")],
        pool: Annotated[list[str], Dependency(pool, scope="app")],
    ) -> None:
        assert repository is pool is log
        await anyio.sleep(0.01)  # still running when the stop comes
        log.append(f"handled {event.number}")

    @dispatcher.handler(Sent)
    def plain_handler(repository: Annotated[list[str], Dependency(repository, scope="app")]) -> None:
        assert repository is log

    await emit(broker, Sent(number=1), Sent(number=2))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().in_flight == 2)
    assert errors(broker) == []
    assert log[:2] == ["+pool", "+repository"]
    assert sorted(log[2:4]) == ["handled 1", "handled 2"]
    assert log[4:] == ["-repository", "-pool"]
    assert len(set(tasks)) == 1
    # and a second run has its own
    log.clear()
    await run(dispatcher)
    assert log == ["+pool", "+repository", "-repository", "-pool"]


@pytest.mark.anyio
async def test_plain_providers_of_the_application_have_a_thread_of_their_own(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    threads: list[int] = []

    def connection() -> Iterator[int]:
        threads.append(threading.get_ident())
        yield 1
        threads.append(threading.get_ident())

    def cursor(connection: Annotated[int, Dependency(connection)]) -> int:
        threads.append(threading.get_ident())
        return connection

    @dispatcher.handler(Sent)
    async def handler(cursor: Annotated[int, Dependency(cursor, scope="app")]) -> None:
        assert cursor == 1

    await handle(dispatcher, Sent(), Sent())
    assert errors(broker) == []
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    assert [thread for thread in threading.enumerate() if thread.ident == threads[0]] == []


@pytest.mark.anyio
async def test_an_event_s_dependency_may_take_the_application_s(dispatcher: EventDispatcher) -> None:
    made: list[object] = []

    def engine() -> object:
        made.append(object())
        return made[-1]

    def session(engine: Annotated[object, Dependency(engine, scope="app")], event: Sent) -> tuple[object, int]:
        return engine, event.number

    seen: list[Any] = []

    @dispatcher.handler(Sent)
    async def handler(session: Annotated[Any, Dependency(session)]) -> None:
        seen.append(session)

    await handle(dispatcher, Sent(number=1), Sent(number=2))
    assert len(made) == 1
    assert sorted(number for _, number in seen) == [1, 2]
    assert all(engine is made[0] for engine, _ in seen)


@pytest.mark.anyio
async def test_a_failure_at_entry_unwinds_and_ends_the_start(broker: MemoryBroker, log: list[str]) -> None:
    dispatcher = dispatcher_on(broker)
    first, second = tracked(log, "first"), tracked(log, "second", is_async=True)

    def broken(second: Annotated[str, Dependency(second)]) -> str:
        raise OSError("no database")

    @dispatcher.handler(Sent)
    async def handler(
        first: Annotated[str, Dependency(first, scope="app")], broken: Annotated[str, Dependency(broken, scope="app")]
    ) -> None:
        raise AssertionError("not to be reached")

    await emit(broker, Sent())
    with pytest.raises(OSError, match="no database"):
        await run(dispatcher)
    assert log == ["+first", "+second", "-second (OSError)", "-first (OSError)"]
    assert dispatcher.health().state == "stopped"
    with pytest.raises(OSError, match="no database"):
        await dispatcher.start()


@pytest.mark.anyio
async def test_an_error_at_exit_is_raised_after_the_drain(broker: MemoryBroker, log: list[str]) -> None:
    dispatcher = dispatcher_on(broker)

    async def broken() -> AsyncIterator[str]:
        yield "value"
        raise OSError("cannot close")

    outer = tracked(log, "outer")

    @dispatcher.handler(Sent)
    async def handler(
        outer: Annotated[str, Dependency(outer, scope="app")], broken: Annotated[str, Dependency(broken, scope="app")]
    ) -> None:
        log.append("handled")

    with pytest.raises(OSError, match="cannot close"):
        await handle(dispatcher, Sent())
    assert log == ["+outer", "handled", "-outer (OSError)"]


@pytest.mark.anyio
async def test_the_application_s_are_closed_when_the_dispatcher_is_cancelled(
    broker: MemoryBroker, log: list[str]
) -> None:
    dispatcher = dispatcher_on(broker)
    slow = slow_to_close(log)
    plain = tracked(log, "plain")

    @dispatcher.handler(Sent)
    async def handler(
        plain: Annotated[str, Dependency(plain, scope="app")], slow: Annotated[str, Dependency(slow, scope="app")]
    ) -> None: ...

    async with anyio.create_task_group() as group:
        await group.start(dispatcher.start)
        group.cancel_scope.cancel()
    assert log[:2] == ["+plain", "closed"]
    assert log[2].startswith("-plain (Cancelled")


# --- overrides


def real() -> str:
    raise AssertionError("not to be called")


def service(real: Annotated[str, Dependency(real)]) -> str:
    return f"service with {real}"


@pytest.mark.anyio
@pytest.mark.parametrize("scope", ["event", "app"])
@pytest.mark.parametrize(
    ("replaced", "expected"), [(real, "service with fake"), (service, "fake")], ids=["nested", "direct"]
)
async def test_overrides_replace_providers(broker: MemoryBroker, scope: Any, replaced: Any, expected: str) -> None:
    # given a router that knows nothing of the test
    router = Router()
    seen: list[str] = []

    @router.handler(Sent)
    async def handler(service: Annotated[str, Dependency(service, scope=scope)]) -> None:
        seen.append(service)

    def fake() -> Iterator[str]:
        yield "fake"
        CLOSED.append("fake")

    CLOSED.clear()
    dispatcher = dispatcher_on(broker, dependency_overrides={replaced: fake})
    dispatcher.add_router(router)
    await handle(dispatcher, Sent())
    assert errors(broker) == []
    assert seen == [expected]
    assert CLOSED == ["fake"]


@pytest.mark.anyio
async def test_overrides_may_change_until_the_start(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    seen: list[str] = []

    @dispatcher.handler(Sent)
    async def handler(service: Annotated[str, Dependency(service)]) -> None:
        seen.append(service)

    dispatcher.dependency_overrides[real] = lambda: "first"
    await handle(dispatcher, Sent())
    dispatcher.dependency_overrides[real] = lambda: "second"
    await handle(dispatcher, Sent())
    assert seen == ["service with first", "service with second"]
