"""Rows on emitting: what is confirmed is there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Annotated

import anyio
import anyio.to_thread

from dispytch import Event, EventBase, SubscriptionParam, sync
from dispytch.abc import Receipt
from dispytch.errors import DispytchError, EmitManyError, EmitRejectedError, UnconfirmedError
from dispytch.testing.conformance.bench import Bench, Emitter, Numbered, numbered
from dispytch.testing.conformance.rows import row

__all__ = ["EmittingRows"]


class EmittingRows(Bench):
    """What arrives, and what the emitter is told."""

    @row()
    async def test_publish_subscribe(self) -> None:
        """100 events arrive with the body, id, key and headers that they were emitted with."""
        config = self.headers({"tenant": "acme", "x-Odd_Name": b"\xc3\xa9"})
        kind = numbered(self.name(), config)
        seen: list[Event[Numbered]] = []
        dispatcher = self.dispatcher()

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            seen.append(event)

        async with self.running(dispatcher), self.emitter() as emitter:
            receipts = [await emitter.emit(kind(n=n, key=f"k{n % 3}")) for n in range(100)]
            await self.until(lambda: len(seen) == 100)

        ids = [receipt.id for receipt in receipts if receipt is not None]
        found = sorted((event.body.n, event.meta.id, event.meta.key) for event in seen)
        assert found == [(n, ids[n], f"k{n % 3}") for n in range(100)]
        assert {event.meta.topic for event in seen} == {kind.__topic__}
        if config is not None:
            headers = [event.meta.headers for event in seen]
            assert {(each["tenant"], each["x-Odd_Name"]) for each in headers} == {("acme", "é")}

    @row("acknowledges", "consumer_groups")
    async def test_many_at_once(self) -> None:
        """100 [5,000] events of 10 [50] emitters, for as many dispatchers of one group: all arrive."""
        crowd, total = self.size(10, 50), self.size(100, 5_000)
        kind = numbered(self.name())
        seen: set[int] = set()
        dispatchers = [self.dispatcher() for _ in range(crowd)]

        async def handle(event: Event[Numbered]) -> None:
            seen.add(event.body.n)

        for dispatcher in dispatchers:
            dispatcher.handler(kind)(handle)

        async def emit(numbers: Sequence[int]) -> None:
            async with self.emitter() as emitter:
                for n in numbers:
                    await emitter.emit(kind(n=n))

        async with self.running(*dispatchers):
            async with anyio.create_task_group() as emitting:
                for number in range(crowd):
                    emitting.start_soon(emit, range(number, total, crowd))
            await self.until(lambda: len(seen) == total)
        assert seen == set(range(total))

    @row()
    async def test_many_topics(self) -> None:
        """10 [100] events on each of 20 topics: each topic's handler gets its own, and nothing else."""
        each = self.size(10, 100)
        kinds = [numbered(self.name(f"rows.{topic}")) for topic in range(20)]
        seen: list[list[int]] = [[] for _ in kinds]
        dispatcher = self.dispatcher()
        for kind, found in zip(kinds, seen, strict=True):

            def handle(event: Event[Numbered], found: list[int] = found) -> None:
                found.append(event.body.n)

            dispatcher.handler(kind)(handle)

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([kind(n=topic * each + n) for n in range(each) for topic, kind in enumerate(kinds)])
            await self.until(lambda: sum(map(len, seen)) >= 20 * each)
        assert [sorted(found) for found in seen] == [[*range(topic * each, (topic + 1) * each)] for topic in range(20)]

    @row("patterns")
    async def test_templated_topics(self) -> None:
        """Events of a templated topic reach the handler of the pattern, with the segment that it captures."""
        topic = self.name() + ".{shop}.orders"
        seen: list[tuple[int, int]] = []
        dispatcher = self.dispatcher()

        class Placed(EventBase):
            __topic__ = topic
            shop: int
            n: int

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[dict[str, int]], shop: Annotated[int, SubscriptionParam()]) -> None:
            seen.append((shop, event.body["n"]))

        async with self.running(dispatcher), self.emitter() as emitter:
            await emitter.emit_many([Placed(shop=n % 3, n=n) for n in range(9)])
            await self.until(lambda: len(seen) >= 9)
        assert sorted(seen) == sorted((n % 3, n) for n in range(9))

    @row()
    async def test_emitter_close(self) -> None:
        """20 emitters are closed amid 10,000 events: each event was confirmed, and arrives, or an error was raised."""
        kind = numbered(self.name())
        seen: set[int] = set()
        confirmed: set[int] = set()
        refused: set[int] = set()
        dispatcher = self.dispatcher()

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            seen.add(event.body.n)

        async def emit(emitter: Emitter, first: int) -> None:
            for start in range(first, first + 500, 50):
                numbers = range(start, start + 50)
                results: Sequence[Receipt | DispytchError | None]
                try:
                    results = await emitter.emit_many([kind(n=n) for n in numbers])
                except EmitManyError as error:
                    results = error.results
                except DispytchError as error:
                    results = [error] * 50
                for n, result in zip(numbers, results, strict=True):
                    (confirmed if isinstance(result, Receipt) else refused).add(n)

        async with self.running(dispatcher):
            async with anyio.create_task_group() as emitting:
                for first in range(0, 10_000, 500):
                    with suppress(UnconfirmedError):  # the close may say so, too
                        async with self.emitter() as emitter:
                            emitting.start_soon(emit, emitter, first)
                            await self.until(lambda n=first + 200: {n} & (confirmed | refused))  # type: ignore[misc]
            await self.until(lambda: confirmed <= seen)
        assert len(confirmed) + len(refused) == 10_000
        assert len(confirmed) >= 20 * 250

    @row(lacks=["old_messages"])
    async def test_unroutable(self) -> None:
        """The emitter of an event that nobody gets is told so: the emit is refused, or the receipt says 0 receivers."""
        async with self.emitter() as emitter:
            try:
                receipt = await emitter.emit(numbered(self.name())(n=1))
            except EmitRejectedError:
                return
        assert receipt is not None
        assert receipt.receivers == 0

    @row(columns=["blocking"])
    async def test_blocking_facade(self) -> None:
        """32 threads share one blocking emitter, and their 32,000 events arrive, each once."""
        kind = numbered(self.name())
        seen: Counter[int] = Counter()
        receipts: list[Receipt | None] = []
        dispatcher = self.dispatcher(concurrency=1000)

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            seen[event.body.n] += 1

        def emit(first: int) -> None:
            receipts.extend([emitter.emit(kind(n=n)) for n in range(first, first + 1000)])

        async with self.running(dispatcher):
            with closing(sync.EventEmitter(self.producer())) as emitter:
                threads = [threading.Thread(target=emit, args=(number * 1000,)) for number in range(32)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    await anyio.to_thread.run_sync(thread.join)
            assert len({receipt.id for receipt in receipts if receipt is not None}) == 32_000
            await self.until(lambda: len(seen) == 32_000)
        assert set(seen.values()) == {1}
