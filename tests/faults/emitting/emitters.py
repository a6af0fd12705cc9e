"""Either emitter, awaited; and a ledger of what each emit has said."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import anyio
import anyio.to_thread
from pydantic import create_model

from dispytch import EventBase, EventEmitter, producer_from_url
from dispytch import sync as blocking
from dispytch.abc import Receipt
from dispytch.errors import DispytchError, EmitManyError, EmitRejectedError, EmitTimeoutError
from dispytch.rabbitmq import RabbitMQProducer
from tests.faults.emitting.places import Place

__all__ = ["LONG", "EitherEmitter", "Ledger", "World", "numbered"]

World = Literal["loop", "blocking", "aio-pika"]
LONG = os.environ.get("DISPYTCH_LONG") == "1"


def numbered(topic: str) -> Any:
    """An event class of numbers."""
    return create_model("Numbered", __base__=type("Base", (EventBase,), {"__topic__": topic}), number=(int, ...))


class EitherEmitter:
    """The emitter of one world, by way of the proxy or past it.

    Args:
        place: Where it emits to.
        world: In the running loop, with the driver of choice or with aio-pika, or blocking, in threads.
        timeout: Seconds of each emit.
        direct: Past the proxy.
    """

    def __init__(self, place: Place, world: World, timeout: float, *, direct: bool = False) -> None:
        url = place.producer_url(place.url if direct else place.proxy.url)
        self.producer: Any = RabbitMQProducer(url, driver="aio-pika") if world == "aio-pika" else producer_from_url(url)
        kind: Any = blocking.EventEmitter if world == "blocking" else EventEmitter
        self._emitter: Any = kind(self.producer, timeout=timeout)
        self._world = world
        self._limiter = anyio.CapacityLimiter(100)

    async def emit(self, event: EventBase) -> Receipt:
        found: Receipt = await self._call(self._emitter.emit, event)
        return found

    async def emit_many(self, events: Sequence[EventBase]) -> list[Receipt]:
        found: list[Receipt] = await self._call(self._emitter.emit_many, events)
        return found

    async def close(self) -> None:
        await self._call(self._emitter.close)

    async def _call(self, function: Any, *arguments: Any) -> Any:
        if self._world != "blocking":
            return await function(*arguments)
        return await anyio.to_thread.run_sync(partial(function, *arguments), limiter=self._limiter)


class Ledger:
    """What the emits of one topic have said, by the numbers of their events."""

    def __init__(self, emitter: EitherEmitter, topic: str) -> None:
        self.confirmed: set[int] = set()
        self.unknown: set[int] = set()
        self.rejected: set[int] = set()
        self.slowest: float = 0.0
        """Seconds of the emit that took the longest."""
        self._emitter = emitter
        self._event = numbered(topic)

    async def emit(self, number: int) -> DispytchError | None:
        """Emits one; the error, if it was not confirmed."""
        began = anyio.current_time()
        try:
            await self._emitter.emit(self._event(number=number))
        except DispytchError as error:
            return self._note(number, error)
        finally:
            self.slowest = max(self.slowest, anyio.current_time() - began)
        self.confirmed.add(number)
        return None

    async def emit_many(self, numbers: Sequence[int]) -> list[DispytchError]:
        """Emits several at once; their errors."""
        results: Sequence[Any]
        began = anyio.current_time()
        try:
            results = await self._emitter.emit_many([self._event(number=number) for number in numbers])
        except EmitManyError as error:
            results = error.results
        self.slowest = max(self.slowest, anyio.current_time() - began)
        errors: list[DispytchError] = []
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, Receipt):
                self.confirmed.add(number)
            else:
                assert result is not None, "nobody took it"
                errors.append(self._note(number, result))
        return errors

    async def until_confirmed(self, first: int, seconds: float) -> int:
        """Emits one after the other, until one is confirmed; how many it took."""
        for count in range(1, 10_000):
            with anyio.fail_after(seconds):
                if await self.emit(first + count - 1) is None:
                    return count
                await anyio.sleep(0.05)
        raise AssertionError("none was confirmed")

    def _note(self, number: int, error: DispytchError) -> DispytchError:
        if isinstance(error, EmitTimeoutError):
            self.unknown.add(number)
        elif isinstance(error, EmitRejectedError):
            self.rejected.add(number)
        else:
            raise AssertionError(f"neither rejected nor unknown: {error!r}")
        return error

    def check(self, found: Counter[int], *, maybe: set[int] = frozenset()) -> None:  # type: ignore[assignment]  # empty
        """What was confirmed is there, what was rejected is not, and nothing is there twice.

        Args:
            maybe: Those of which nothing was said, since their emit was cancelled.
        """
        assert {number for number, times in found.items() if times > 1} == set(), "written twice"
        assert self.confirmed - found.keys() == set(), "confirmed, and lost"
        assert self.rejected & found.keys() == set(), "told that it did not go, and it went"
        assert found.keys() - self.confirmed - self.unknown - maybe == set(), "never emitted"
