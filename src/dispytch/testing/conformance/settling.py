"""Rows on what handlers settle themselves, on batches, and on the signs of life."""

from __future__ import annotations

import threading
from collections import Counter

import anyio

from dispytch import Event
from dispytch.ack import ManualAck
from dispytch.testing.conformance.bench import Bench, Numbered, numbered
from dispytch.testing.conformance.rows import row

__all__ = ["SettlingRows"]


class SettlingRows(Bench):
    """What handlers settle themselves, one by one or in batches."""

    @row("acknowledges", "persistent")
    async def test_settled_by_hand(self) -> None:
        """Handlers hang, have acknowledged every other of 20 events, and are cut off: only the others come again."""
        kind = numbered(self.name())
        begun: set[int] = set()
        again: set[int] = set()
        hanging = self.dispatcher(default_ack_policy=ManualAck(), drain_timeout=0.05)
        finishing = self.dispatcher()

        @hanging.handler(kind)
        async def hang(event: Event[Numbered]) -> None:
            begun.add(event.body.n)
            if event.body.n % 2:
                event.ack()
            await anyio.sleep_forever()

        @finishing.handler(kind)
        async def finish(event: Event[Numbered]) -> None:
            again.add(event.body.n)

        await self.declare(hanging)
        even = {n for n in range(20) if n % 2 == 0}
        async with self.emitter() as emitter:
            # On Kafka what is acknowledged behind a gap comes again; so the odd ones come first.
            await emitter.emit_many([kind(n=n) for n in range(1, 20, 2)])
            async with self.running(hanging):
                await self.until(lambda: len(begun) == 10 and hanging.health().unsettled == 0)
                await emitter.emit_many([kind(n=n) for n in sorted(even)])
                await self.until(lambda: len(begun) == 20)
            async with self.running(finishing):
                await self.until(lambda: again >= even)
                await self.until(lambda: finishing.health().unsettled == 0)
        assert again == even

    @row("acknowledges")
    async def test_batches(self) -> None:
        """100 events of 8 keys in batches of up to 30: each comes once and in order, what is nacked again, alone."""
        kind = numbered(self.name())
        handled: dict[str | None, list[int]] = {}
        attempts: Counter[int] = Counter()
        largest = 0
        dispatcher = self.dispatcher()

        @dispatcher.handler(kind, batch=30, batch_wait=0.1)
        async def handle(events: list[Event[Numbered]]) -> None:
            nonlocal largest
            largest = max(largest, len(events))
            for event in events:
                attempts[event.body.n] += 1
                if event.body.n == 50 and event.meta.attempt == 1:
                    event.nack()
                else:
                    handled.setdefault(event.body.key, []).append(event.body.n)

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([kind(n=n, key=str(n % 8)) for n in range(100)])
            await self.until(lambda: len(attempts) == 100 and attempts[50] == 2)
            await self.until(lambda: dispatcher.health().unsettled == 0)
        assert attempts == {n: 2 if n == 50 else 1 for n in range(100)}
        assert largest <= 30
        others = {key: [n for n in found if n != 50] for key, found in handled.items()}
        assert others == {str(key): [n for n in range(key, 100, 8) if n != 50] for key in range(8)}

    @row("acknowledges")
    async def test_health(self) -> None:
        """While handlers run, the health tells what is unsettled and that the consumer lives; later nothing is left."""
        kind = numbered(self.name())
        gate = threading.Event()
        dispatcher = self.dispatcher(concurrency=3)

        @dispatcher.handler(kind)
        def handle(event: Event[Numbered]) -> None:
            gate.wait(self.patience)

        async with self.running(dispatcher), self.emitter() as emitter:
            try:
                await emitter.emit_many([kind(n=n) for n in range(3)])
                await self.until(lambda: dispatcher.health().in_flight == 3)
                health = dispatcher.health()
                assert (health.state, health.connected, health.unsettled) == ("running", True, 3)
                assert health.oldest_in_flight is not None
                (consumer,) = health.consumers
                assert (consumer.connected, consumer.unsettled, consumer.is_full) == (True, 3, False)
                for _ in range(2):  # a rhythm, if it tells one: it is heard of again and again
                    await self.until(lambda: (dispatcher.health().consumers[0].polled_ago or 0.0) < 2.0)
            finally:
                gate.set()
            await self.until(lambda: dispatcher.health().unsettled == 0)
            assert dispatcher.health().handled == 3
        assert dispatcher.health().state == "stopped"
