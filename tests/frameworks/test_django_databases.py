"""Handlers of Django projects: connections to the database are closed around each call, where its queries run."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections

from dispytch import Dependency, Event, EventDispatcher, Router, SubscriptionParam
from dispytch.django.databases import guard
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.testing import running_in_thread
from tests.frameworks.project import Placed

used: list[Any] = []


def query() -> int:
    """Notes the connection of this thread, whether it was open before, and uses it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 7")
        used.append(connections["default"])
        found: int = cursor.fetchone()[0]
        return found


def plain(event: Event[Placed]) -> None:
    query()


async def asynchronous(event: Event[Placed]) -> None:
    await sync_to_async(query)()


def with_dependencies(placed: Placed, seven: Annotated[int, Dependency(query)]) -> None:
    assert (placed.n, seven) == (1, 7)
    query()


def with_segment(kind: Annotated[str, SubscriptionParam()], event: Event[Placed], unused: Any = None) -> None:
    assert (kind, event.body.n) == ("placed", 1)
    query()


def with_more(event: Event[Placed], more: int) -> None:
    assert more == 3
    query()


class Handlers:
    def method(self, event: Event[Placed]) -> None:
        query()

    def __call__(self, event: Event[Placed]) -> None:
        query()


class AsyncHandler:
    async def __call__(self, event: Event[Placed]) -> None:
        await sync_to_async(query)()


def in_batches(events: list[Event[Placed]]) -> None:
    query()


HANDLERS: dict[str, Any] = {
    "plain": plain,
    "asynchronous": asynchronous,
    "dependencies": with_dependencies,
    "segment": with_segment,
    "partial": functools.partial(with_more, more=3),
    "method": Handlers().method,
    "callable": Handlers(),
    "async-callable": AsyncHandler(),
    "batches": in_batches,
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", HANDLERS)
def test_connections_are_closed(name: str, backend: Any) -> None:
    if backend == "trio" and "async" in name:
        pytest.skip("asgiref has no trio")
    used.clear()
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()), max_deliveries=1)
    router = Router()
    options: dict[str, Any] = {"batch": 10, "batch_wait": 0.0} if name == "batches" else {}
    router.handler(topic="{kind}", **options)(HANDLERS[name])
    dispatcher.add_router(router)
    guard(dispatcher)
    guard(dispatcher)  # what is guarded stays as it is
    with running_in_thread(dispatcher, backend=backend) as app:
        for _ in range(3):
            app.emit(Placed(n=1))
            app.idle()
        assert len(used) >= 3
        assert all(one.connection is None for one in used)


def test_connections_that_are_to_persist_do(monkeypatch: pytest.MonkeyPatch) -> None:
    used.clear()
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()), max_deliveries=1, concurrency=1)
    dispatcher.handler(Placed)(plain)
    guard(dispatcher)
    with running_in_thread(dispatcher) as app:
        for _ in range(2):
            app.emit(Placed(n=1))
            app.idle()
        assert used[0] is used[1]
        assert used[0].connection is not None
        used[0].inc_thread_sharing()  # so that this thread may close it
        used[0].close()


def test_a_failure_stays_what_it_is() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()), max_deliveries=1)

    @dispatcher.handler(Placed)
    def fail(event: Event[Placed]) -> None:
        raise LookupError("as it was raised")

    guard(dispatcher)
    with running_in_thread(dispatcher, raise_failures=False) as app:
        app.emit(Placed(n=1))
        app.idle()
        (one,) = app.failed
        assert isinstance(one.error, LookupError)
        assert one.handler.endswith("fail")
