"""What the rows work with: emitters and dispatchers of one transport, in one column."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar
from uuid import uuid4

import anyio
import anyio.pytest_plugin
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus

from dispytch import EventBase, EventDispatcher, EventEmitter, sync
from dispytch.abc import Consumer, EventConfig, EventRoute, Features, Producer, Receipt
from dispytch.testing.conformance.rows import INSTALLED, ROWS, Column

__all__ = ["AnyDispatcher", "Bench", "Emitter", "Numbered", "numbered"]

AnyDispatcher = EventDispatcher | sync.EventDispatcher
ClientT = TypeVar("ClientT", Producer, Consumer)

_BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
    "blocking": ("asyncio", {}),  # the loop of the test, which looks on
}


class Numbered(EventBase):
    """The event of the rows: a number, and perhaps a key."""

    n: int
    key: str | None = None


def numbered(topic: str, config: EventConfig | None = None) -> type[Numbered]:
    """The class of a topic's events."""

    class Event(Numbered):
        __topic__ = topic
        __event_type__ = "numbered"
        __key__ = "{key}"
        __backend_config__ = config

    return Event


class Emitter(Protocol):
    """The emitter of any column."""

    async def emit(self, event: EventBase) -> Receipt | None: ...

    async def emit_many(self, events: Iterable[EventBase]) -> list[Receipt | None]: ...


class Bench:
    """What a transport's suite declares, and what its rows use.

    Attributes:
        features: What the transport can do: its consumer's features.
        columns: What it runs in: ``"asyncio"``, ``"uvloop"``, ``"trio"``, ``"blocking"``; by default all whose loop is
            installed. A transport for one world names those of this world.
        leaves_out: Names of rows that the transport does not keep.
        long: Whether the numbers are the large ones, for a run at night; by default if ``DISPYTCH_LONG`` is set.
        patience: Seconds after which something that a row waits for will not come any more.
    """

    features: ClassVar[Features] = Features()
    columns: ClassVar[Sequence[Column]] = INSTALLED
    leaves_out: ClassVar[Sequence[str]] = ()
    long: ClassVar[bool] = os.environ.get("DISPYTCH_LONG", "") not in ("", "0")
    patience: ClassVar[float] = 30.0

    # --- what a transport's suite defines

    def producer(self) -> Producer:
        """A producer of its own for each call."""
        raise NotImplementedError(f"{type(self).__name__} must define producer(self)")

    def consumer(self, group_id: str) -> Consumer:
        """A consumer of its own for each call; without consumer groups the group is a name and no more."""
        raise NotImplementedError(f"{type(self).__name__} must define consumer(self, group_id)")

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig | None:
        """The ``__backend_config__`` by which events carry such headers; ``None`` if events cannot have their own."""
        return None

    def unwritable(self, route: EventRoute) -> AbstractAsyncContextManager[None]:
        """Optional: inside the context no dead letter can be written to ``route``; afterwards it can.

        It is entered while a dispatcher runs that has its dead letters there.
        """
        raise NotImplementedError

    # --- pytest

    pytestmark: ClassVar[Sequence[pytest.MarkDecorator]] = [pytest.mark.anyio]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs each row in its columns."""
        row = ROWS.get(metafunc.function.__name__)
        metafunc.parametrize("column", [one for one in self.columns if row is None or one in row.columns])

    @pytest.fixture
    def anyio_backend(self, column: str) -> tuple[str, dict[str, Any]]:
        """The loop of the column."""
        return _BACKENDS[column]

    @pytest.fixture(autouse=True)
    def _bench(self, column: str, request: pytest.FixtureRequest) -> None:
        if not request.config.pluginmanager.is_registered(anyio.pytest_plugin):
            raise pytest.UsageError("TransportSuite needs anyio's pytest plugin, which is switched off")
        self._column = column

    @cached_property
    def _token(self) -> str:
        return uuid4().hex[:12]

    # --- what rows use

    def size(self, short: int, long: int) -> int:
        """A number of events or emitters: the short one, or the long one at night."""
        return long if self.long else short

    def name(self, name: str = "rows") -> str:
        """A name for a topic or group that no other test uses."""
        return f"{name}-{self._token}"

    @asynccontextmanager
    async def emitter(self) -> AsyncIterator[Emitter]:
        """An emitter of the column, closed on exit."""
        producer = self._checked(self.producer())
        if self._column != "blocking":
            async with EventEmitter(producer) as emitter:
                yield emitter
            return
        blocking = sync.EventEmitter(producer)
        try:
            yield _InThreads(blocking)
        finally:
            await _to_thread(blocking.close)

    def dispatcher(self, group: str = "group", **options: Any) -> AnyDispatcher:
        """A dispatcher of the column with a consumer of its own."""
        kind = sync.EventDispatcher if self._column == "blocking" else EventDispatcher
        return kind(self._checked(self.consumer(self.name(group))), **options)

    @asynccontextmanager
    async def running(self, *dispatchers: AnyDispatcher) -> AsyncIterator[None]:
        """All are started on entry, at once, and have drained on exit."""
        if len(dispatchers) == 1:
            async with _lifespan(dispatchers[0]):
                yield
            return
        over = anyio.Event()

        async def run(dispatcher: AnyDispatcher, *, task_status: TaskStatus[None]) -> None:
            async with _lifespan(dispatcher):
                task_status.started()
                await over.wait()

        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as starting:
                for dispatcher in dispatchers:
                    starting.start_soon(group.start, run, dispatcher)
            yield
            over.set()

    async def declare(self, *dispatchers: AnyDispatcher) -> None:
        """Has the broker know these groups, so that it keeps events for them, if only known groups get old events."""
        if not self.features.old_messages:
            async with self.running(*dispatchers):
                pass

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds, which may be met by another thread."""
        __tracebackhide__ = True
        with anyio.move_on_after(self.patience):
            while not condition():  # noqa: ASYNC110 - conditions of all kinds
                await anyio.sleep(0.005)
            return
        pytest.fail(f"what the row waits for has not come within {self.patience:g} s")

    def _checked(self, client: ClientT) -> ClientT:
        if client.features != self.features:
            pytest.fail(f"{type(self).__name__} must declare features = {client.features!r}, which its clients have")
        return client


class _InThreads:
    """The blocking emitter for a test in an event loop: every call in a worker thread."""

    def __init__(self, emitter: sync.EventEmitter) -> None:
        self._emitter = emitter

    async def emit(self, event: EventBase) -> Receipt | None:
        return await anyio.to_thread.run_sync(self._emitter.emit, event)

    async def emit_many(self, events: Iterable[EventBase]) -> list[Receipt | None]:
        return await anyio.to_thread.run_sync(self._emitter.emit_many, events)


@asynccontextmanager
async def _lifespan(dispatcher: AnyDispatcher) -> AsyncIterator[None]:
    if isinstance(dispatcher, EventDispatcher):
        async with dispatcher.lifespan():
            yield
        return
    await anyio.to_thread.run_sync(dispatcher.start)
    try:
        yield
    finally:
        await _to_thread(dispatcher.stop)


async def _to_thread(function: Callable[[], None]) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(function)
