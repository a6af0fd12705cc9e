"""Rows on dead letters: what is given up is kept, once, as it was."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dispytch import Event
from dispytch._core.patterns import Pattern
from dispytch.abc import EventRoute, EventSubscription, Subscription
from dispytch.testing.conformance.bench import AnyDispatcher, Bench, Numbered, numbered
from dispytch.testing.conformance.rows import row

__all__ = ["DeadLetterRows"]


class DeadLetterRows(Bench):
    """What becomes of an event that is given up."""

    @row("acknowledges")
    async def test_dead_letter(self) -> None:
        """An event that fails three times leaves one dead letter, with its bytes, key, headers and what failed."""
        kind = numbered(self.name(), self.headers({"tenant": "acme"}))
        tried: list[Event[Numbered]] = []
        letters: list[Event[Numbered]] = []
        dispatcher, reader = self.dispatcher(max_deliveries=3), self.dispatcher("letters")

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            tried.append(event)
            if event.body.n > 0:
                raise OSError("never this one")

        self._read(reader, self._dead_letter_route(kind), letters)
        async with self.running(reader, dispatcher), self.emitter() as emitter:
            for n in range(3):  # the letter of event 2 shows that there is no second one of event 1 before it
                await emitter.emit(kind(n=n, key="k"))
                await self.until(lambda n=n: len(letters) >= n)  # type: ignore[misc]
            await self.until(lambda: dispatcher.health().unsettled == 0)

        assert Counter(event.body.n for event in tried) == {0: 1, 1: 3, 2: 3}
        assert [letter.body.n for letter in letters] == [1, 2]
        for letter in letters:
            original = next(event.meta for event in tried if event.body.n == letter.body.n)
            assert letter.meta.message.payload == original.message.payload
            assert (letter.meta.id, letter.meta.key) == (original.id, "k")
            assert set(letter.meta.raw_headers) >= set(original.raw_headers)
            told = letter.meta.dead_letter
            assert told is not None
            assert (told.attempts, told.source, told.position) == (3, original.topic, original.message.position)
            assert told.error == "OSError: never this one"

    @row("acknowledges", "persistent", hook="unwritable")
    async def test_dead_letter_unwritable(self) -> None:
        """While its dead letter cannot be written an event stays unacknowledged; afterwards the letter is there."""
        kind = numbered(self.name())
        route = self._dead_letter_route(kind)
        letters: list[Event[Numbered]] = []
        dispatcher, reader = self.dispatcher(max_deliveries=1), self.dispatcher("letters")

        @dispatcher.handler(kind)
        async def handle(event: Event[Numbered]) -> None:
            raise OSError("always")

        self._read(reader, route, letters)
        await self.declare(dispatcher, reader)
        async with self.running(dispatcher), self.emitter() as emitter:
            with _failed_settlements() as failed:
                async with self.unwritable(route):
                    await emitter.emit(kind(n=1))
                    await self.until(failed.is_set)
                    assert dispatcher.health().unsettled == 1
            await self.until(lambda: dispatcher.health().unsettled == 0)
        async with self.running(reader):
            await self.until(lambda: letters)
        assert [letter.body.n for letter in letters] == [1]

    def _dead_letter_route(self, kind: type[Numbered]) -> EventRoute:
        """Where the dead letters of a dispatcher of the usual group go."""
        assert isinstance(kind.__topic__, str)
        consumer = self.consumer(self.name("group"))
        declared = consumer.subscription_for(EventSubscription(kind.__topic__))
        assert declared is not None
        route = consumer.default_dead_letter(Subscription(Pattern.parse(kind.__topic__), declared))
        assert route is not None, "the transport keeps no dead letters; let the suite leave out this row"
        return route

    def _read(self, reader: AnyDispatcher, route: EventRoute, letters: list[Event[Numbered]]) -> None:
        class Letter(Numbered):
            __route__ = route
            __event_type__ = "numbered"

        @reader.handler(Letter)
        async def read(event: Event[Numbered]) -> None:
            letters.append(event)


@contextmanager
def _failed_settlements() -> Iterator[threading.Event]:
    """An event that is set when a dispatcher says that it could not settle something."""
    failed = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "could not settle" in record.getMessage():
                failed.set()

    watch = Watch()
    logger = logging.getLogger("dispytch")
    logger.addHandler(watch)
    try:
        yield failed
    finally:
        logger.removeHandler(watch)
