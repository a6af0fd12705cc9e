"""Rows on order and on how much is taken at once."""

from __future__ import annotations

import threading
from collections import Counter

import anyio
import anyio.lowlevel

from dispytch import Event
from dispytch.testing.conformance.bench import Bench, Numbered, numbered
from dispytch.testing.conformance.rows import row

__all__ = ["OrderRows"]


class OrderRows(Bench):
    """In which order events are handled, and how many are held."""

    @row("acknowledges")
    async def test_order_per_key(self) -> None:
        """1,000 events of 16 keys, ten at a time: those of a key in order, one at a time, through retries."""
        kind = numbered(self.name())
        seen: dict[str | None, list[int]] = {}
        running: Counter[str | None] = Counter()
        failed: set[int] = set()
        overlaps: list[int] = []
        dispatcher = self.dispatcher(concurrency=10)

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            n, key = event.body.n, event.body.key
            running[key] += 1
            if running[key] > 1:
                overlaps.append(n)
            try:
                await anyio.lowlevel.checkpoint()
                if n % 97 == 0 and n not in failed:
                    failed.add(n)
                    raise OSError("once")
                seen.setdefault(key, []).append(n)
            finally:
                running[key] -= 1

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n, key=f"k{n % 16}") for n in range(1000)])
            await self.until(lambda: sum(map(len, seen.values())) >= 1000)
        assert not overlaps
        assert failed == set(range(0, 1000, 97))
        assert seen == {f"k{k}": list(range(k, 1000, 16)) for k in range(16)}

    @row("acknowledges")
    async def test_same_key_two_topics_and_null_keys(self) -> None:
        """An event that waits holds up neither 500 of the same key on another topic, nor 500 without a key."""
        one, two = numbered(self.name("one")), numbered(self.name("two"))
        seen: Counter[str] = Counter()
        gate = threading.Event()
        dispatcher = self.dispatcher(concurrency=10)

        @dispatcher.handler(one)
        async def wait(event: Event[Numbered]) -> None:
            await self.until(gate.is_set)
            seen["one"] += 1

        @dispatcher.handler(two)
        async def handle(event: Event[Numbered]) -> None:
            seen["two"] += 1

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit(one(n=0, key="k"))
            await emitter.emit_many([two(n=n, key="k" if n % 2 else None) for n in range(1000)])
            await self.until(lambda: seen["two"] == 1000)
            assert seen["one"] == 0
            gate.set()
            await self.until(lambda: seen["one"] == 1)

    @row("acknowledges")
    async def test_no_settle_no_next(self) -> None:
        """With `concurrency=1` the second event waits until the first one, which fails at first, is done with."""
        kind = numbered(self.name())
        log: list[str] = []
        dispatcher = self.dispatcher(concurrency=1)

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            log.append(f"{event.body.n} begins")
            if event.body.n == 0 and event.meta.attempt == 1:
                raise OSError("not settled yet")
            await anyio.sleep(0.01)
            log.append(f"{event.body.n} ends")

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(2)])
            await self.until(lambda: log[-1:] == ["1 ends"])
        assert log == ["0 begins", "0 begins", "0 ends", "1 begins", "1 ends"]

    @row("acknowledges", "persistent")
    async def test_backpressure(self) -> None:
        """10,000 events wait, ten may run: what is held never exceeds those and the prefetch."""
        kind = numbered(self.name())
        gate = threading.Event()
        handled: set[int] = set()
        prefetch = self.consumer(self.name()).prefetch
        most = 10 + (10 if prefetch is None else prefetch)
        dispatcher = self.dispatcher(concurrency=10)

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            await self.until(gate.is_set)
            handled.add(event.body.n)

        def all_handled() -> bool:
            assert dispatcher.health().unsettled <= most
            return len(handled) == 10_000

        await self.declare(dispatcher)
        async with self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(10_000)])
        async with self.running(dispatcher):
            await self.until(lambda: dispatcher.health().in_flight == 10)
            for _ in range(20):
                assert dispatcher.health().unsettled <= most
                await anyio.sleep(0.005)
            assert dispatcher.health().in_flight == 10
            gate.set()
            await self.until(all_handled)
