"""Rows on delivery: who gets an event, and when it comes again."""

from __future__ import annotations

import threading
from collections import Counter

import anyio

from dispytch import Event
from dispytch.testing.conformance.bench import Bench, Numbered, numbered
from dispytch.testing.conformance.rows import row

__all__ = ["DeliveryRows"]


class DeliveryRows(Bench):
    """Who gets an event, and when it comes again."""

    @row("consumer_groups")
    async def test_two_groups(self) -> None:
        """Each of two groups gets all of 50 events."""
        kind = numbered(self.name())
        seen: dict[str, set[int]] = {"one": set(), "two": set()}
        dispatchers = []
        for group, found in seen.items():
            dispatcher = self.dispatcher(group)

            def handle(event: Event[Numbered], found: set[int] = found) -> None:
                found.add(event.body.n)

            dispatcher.handler(kind)(handle)
            dispatchers.append(dispatcher)

        async with self.running(*dispatchers), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(50)])
            await self.until(lambda: all(len(found) == 50 for found in seen.values()))

    @row("acknowledges")
    async def test_redeliver_on_error(self) -> None:
        """The first two of 20 events fail twice: all are handled, and `attempt` counts."""
        kind = numbered(self.name())
        attempts: dict[int, list[int]] = {}
        dispatcher = self.dispatcher()

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            tries = attempts.setdefault(event.body.n, [])
            tries.append(event.meta.attempt)
            if event.body.n < 2 and len(tries) < 3:
                raise OSError("the first two fail")

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(20)])
            await self.until(lambda: len(attempts) == 20 and len(attempts[0]) == len(attempts[1]) == 3)
            await self.until(lambda: dispatcher.health().unsettled == 0)
        assert attempts == {n: [1, 2, 3] if n < 2 else [1] for n in range(20)}

    @row("acknowledges")
    async def test_many_errors(self) -> None:
        """Three handlers fail 100 times each (`max_deliveries=200`): then each has had all of 100 events."""
        kind = numbered(self.name())
        failures = [100, 100, 100]
        seen: list[set[int]] = [set(), set(), set()]
        dispatcher = self.dispatcher(max_deliveries=200)
        for number in range(3):

            async def handle(event: Event[Numbered], number: int = number) -> None:
                if failures[number] > 0:
                    failures[number] -= 1
                    raise OSError("one of many")
                seen[number].add(event.body.n)

            dispatcher.handler(kind)(handle)

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(100)])
            await self.until(lambda: all(len(found) == 100 for found in seen))
        assert failures == [0, 0, 0]

    @row("acknowledges", "persistent")
    async def test_fail_then_succeed(self) -> None:
        """Event 1 fails, event 2 succeeds, the consumer is closed: event 1 is seen again by the next one."""
        kind = numbered(self.name())
        tried: Counter[int] = Counter()
        again: set[int] = set()
        failing, succeeding = self.dispatcher(max_deliveries=100, drain_timeout=0.05), self.dispatcher()

        @failing.handler(kind)
        async def fail_on_one(event: Event[Numbered]) -> None:
            tried[event.body.n] += 1
            if event.body.n == 1:
                raise OSError("not this one")

        @succeeding.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            again.add(event.body.n)

        async with self.emitter() as emitter:
            async with self.running(failing):
                await emitter.emit_many([kind(n=1), kind(n=2)])
                await self.until(lambda: tried[1] and tried[2])
            async with self.running(succeeding):
                await self.until(lambda: 1 in again)

    @row("acknowledges", "persistent")
    async def test_commit_gap(self) -> None:
        """Event 0 blocks while 1 to 99 [999] finish, and the consumer is cut off: event 0 comes again."""
        total = self.size(100, 1_000)
        kind = numbered(self.name())
        finished: set[int] = set()
        again: set[int] = set()
        blocked, succeeding = self.dispatcher(drain_timeout=0.05), self.dispatcher()

        @blocked.handler(kind)
        async def block_on_zero(event: Event[Numbered]) -> None:
            if event.body.n == 0:
                await anyio.sleep_forever()
            finished.add(event.body.n)

        @succeeding.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            again.add(event.body.n)

        await self.declare(blocked)
        async with self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(total)])
            async with self.running(blocked):
                await self.until(lambda: len(finished) == total - 1 and blocked.health().unsettled == 1)
            async with self.running(succeeding):
                await self.until(lambda: 0 in again)

    @row("acknowledges", "persistent")
    async def test_cancel(self) -> None:
        """A handler is cancelled in the middle: the next consumer gets all of 20 events."""
        kind = numbered(self.name())
        begun = threading.Event()
        seen: set[int] = set()
        hanging, finishing = self.dispatcher(concurrency=1, drain_timeout=0.05), self.dispatcher()

        @hanging.handler(kind)
        async def hang(event: Event[Numbered]) -> None:
            begun.set()
            await anyio.sleep_forever()

        @finishing.handler(kind)
        async def finish(event: Event[Numbered]) -> None:
            seen.add(event.body.n)

        await self.declare(hanging)
        async with self.emitter() as emitter:
            await emitter.emit_many([kind(n=n) for n in range(20)])
            async with self.running(hanging):
                await self.until(begun.is_set)
            async with self.running(finishing):
                await self.until(lambda: len(seen) == 20)
