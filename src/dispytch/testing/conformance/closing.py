"""Rows on closing: what is in flight finishes or comes again."""

from __future__ import annotations

import time
from collections import Counter

import anyio

from dispytch import Event
from dispytch.testing.conformance.bench import Bench, Numbered, numbered
from dispytch.testing.conformance.rows import row

__all__ = ["ClosingRows"]


class ClosingRows(Bench):
    """What a consumer leaves behind when it closes."""

    @row("acknowledges", "persistent")
    async def test_close_and_reopen(self) -> None:
        """5,000 events in batches, while the consumer is closed and reopened 5 [20] times: all are seen."""
        rounds = self.size(5, 20)
        batch = 5_000 // rounds
        kind = numbered(self.name())
        seen: set[int] = set()
        dispatcher = self.dispatcher()

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            seen.add(event.body.n)

        await self.declare(dispatcher)
        async with self.emitter() as emitter:
            for number in range(rounds):
                before = len(seen)
                await emitter.emit_many([kind(n=n) for n in range(number * batch, (number + 1) * batch)])
                async with self.running(dispatcher):
                    await self.until(lambda before=before: len(seen) > before)  # type: ignore[misc]
        async with self.running(dispatcher):
            await self.until(lambda: len(seen) == 5_000)

    @row("acknowledges", "consumer_groups")
    async def test_concurrent_close(self) -> None:
        """Ten dispatchers of a group start and stop at once: the next one gets the next 50 events."""
        kind = numbered(self.name())
        seen: set[int] = set()

        async def handle(event: Event[Numbered]) -> None:
            seen.add(event.body.n)

        *ten, after = [self.dispatcher() for _ in range(11)]
        for dispatcher in (*ten, after):
            dispatcher.handler(kind)(handle)

        async with self.running(*ten):
            pass
        async with self.running(after), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(50)])
            await self.until(lambda: len(seen) == 50)

    @row("acknowledges", "persistent")
    async def test_drain(self) -> None:
        """Stopped with 50 events in flight: all of them finish, and none is seen again after a restart."""
        kind = numbered(self.name())
        begun: Counter[int] = Counter()
        ended: Counter[int] = Counter()
        first, second = self.dispatcher(concurrency=50), self.dispatcher(concurrency=50)

        async def handle(event: Event[Numbered]) -> None:
            begun[event.body.n] += 1
            await self.until(lambda: first.health().state != "running")  # none ends before the stop,
            await anyio.sleep(0.1)  # nor at once: the drain has something to wait for
            ended[event.body.n] += 1

        for dispatcher in (first, second):
            dispatcher.handler(kind)(handle)
        await self.declare(first)
        async with self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(80)])
        async with self.running(first):
            await self.until(lambda: len(begun) == 50)
        assert ended == begun
        assert len(ended) == 50
        async with self.running(second):
            await self.until(lambda: len(ended) == 80)
        assert ended == begun == Counter(range(80))

    @row("acknowledges", "persistent")
    async def test_drain_timeout(self) -> None:
        """Stopped with handlers that exceed the drain time: none of 10 events is acknowledged, all come again."""
        kind = numbered(self.name())
        begun: set[int] = set()
        again: Counter[int] = Counter()
        slow, quick = self.dispatcher(drain_timeout=0.05), self.dispatcher()

        @slow.handler(kind)
        async def hang(event: Event[Numbered]) -> None:
            begun.add(event.body.n)
            await anyio.sleep_forever()

        @quick.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            again[event.body.n] += 1

        await self.declare(slow)
        async with self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(10)])
        async with self.running(slow):
            await self.until(lambda: len(begun) == 10)
        async with self.running(quick):
            await self.until(lambda: len(again) == 10)
        assert again == Counter(range(10))

    @row()
    async def test_prompt_stop(self) -> None:
        """An idle dispatcher stops within 200 ms (the best of five), one with a hanging handler at its drain time."""
        kind = numbered(self.name())
        seen: set[int] = set()
        fastest = float("inf")
        async with self.emitter() as emitter:
            for n in range(5):
                idle = self.dispatcher()

                @idle.handler(kind)
                async def handle(event: Event[Numbered]) -> None:
                    seen.add(event.body.n)

                async with self.running(idle):
                    await emitter.emit(kind(n=n))
                    await self.until(lambda n=n, idle=idle: n in seen and idle.health().unsettled == 0)  # type: ignore[misc]
                    began = time.perf_counter()
                fastest = min(fastest, time.perf_counter() - began)
                if fastest <= 0.2:
                    break
            assert fastest <= 0.2

            fastest = float("inf")
            for n in range(5, 10):
                busy = self.dispatcher(drain_timeout=0.3)

                @busy.handler(kind)
                async def hang(event: Event[Numbered]) -> None:
                    seen.add(event.body.n)
                    await anyio.sleep_forever()

                async with self.running(busy):
                    await emitter.emit(kind(n=n))
                    await self.until(lambda n=n: n in seen)  # type: ignore[misc]
                    began = time.perf_counter()
                fastest = min(fastest, time.perf_counter() - began)
                if fastest < 1.3:
                    break
            assert 0.3 <= fastest < 1.3
