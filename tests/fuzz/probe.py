"""Publishes bad input beside a running dispatcher, and sees what becomes of it and of what comes next."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count

import anyio
import anyio.to_thread

from dispytch import Event, EventDispatcher
from dispytch.serialization import JSONDeserializer, MessagePackDeserializer
from tests.fuzz.rigs import Letter, Rig
from tests.fuzz.rows import ROWS, Bad, Body, Codec, good
from tests.support import PATIENCE, until

__all__ = ["Finding", "Probe", "probing", "rows_for"]

_LONGEST_ERROR = 1024


class Finding:
    """What was seen of one row.

    Attributes:
        milliseconds: From publishing the bad one to the handling of the good one after it, once for each try.
        problems: What was not as it should be.
    """

    def __init__(self, row: Bad) -> None:
        self.row: Bad = row
        self.milliseconds: list[float] = []
        self.problems: list[str] = []

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


class Probe:
    """A dispatcher that runs, with the raw client beside it."""

    def __init__(self, rig: Rig, codec: Codec, dispatcher: EventDispatcher) -> None:
        self.rig: Rig = rig
        self.codec: Codec = codec
        self.dispatcher: EventDispatcher = dispatcher
        self.handled: list[Event[Body]] = []
        self.at: dict[int, float] = {}
        """When each good one was handled."""
        self._numbers = count(1000)
        self._settled = 0

        @dispatcher.handler(topic=rig.topic, dead_letter=rig.dead)
        async def handle(event: Event[Body]) -> None:
            self.at[event.body.n] = time.perf_counter()
            self.handled.append(event)

    async def one(self, row: Bad, times: int = 1) -> Finding:
        """Publishes a row and a good event after it, so many times."""
        finding = Finding(row)
        for _ in range(times):
            await self._once(finding)
        return finding

    async def good(self) -> None:
        """Has a good event handled, so that all is warm."""
        number = next(self._numbers)
        await anyio.to_thread.run_sync(self.rig.publish, Bad("good", good(self.codec, number), codec=self.codec))
        await until(lambda: number in self.at)
        self.handled.clear()

    async def _once(self, finding: Finding) -> None:
        row = finding.row
        number = next(self._numbers)
        next_one = Bad("good", good(self.codec, number), codec=self.codec)
        skipped = self.dispatcher.health().skipped_null

        def publish() -> float:
            began = time.perf_counter()
            self.rig.publish(row)
            self.rig.publish(next_one)
            return began

        began = await anyio.to_thread.run_sync(publish)
        await until(lambda: number in self.at)
        finding.milliseconds.append((self.at[number] - began) * 1000)
        expected = row.outcome(self.rig.title)
        letters = await self._letters(1 if expected == "dead letter" else 0)
        await until(lambda: self.dispatcher.health().unsettled == 0)
        others = [event for event in self.handled if event.body.n != number]
        self.handled.clear()
        found = (len(others), len(letters), self.dispatcher.health().skipped_null - skipped)
        wanted = (int(expected == "handled"), int(expected == "dead letter"), int(expected == "skipped"))
        if found != wanted:
            finding.problems.append(f"{row.name}: handled, dead letters, skipped: {found}, and not {wanted}")
        finding.problems += [problem for letter in letters for problem in _problems(row, letter, self.rig)]
        for event in others:
            if event.meta.attempt != 1 or event.meta.timestamp.tzinfo is None:
                finding.problems.append(f"{row.name}: attempt {event.meta.attempt}")

    async def _letters(self, number: int) -> list[Letter]:
        found = await anyio.to_thread.run_sync(self.rig.letters)
        end = anyio.current_time() + PATIENCE / 3
        while len(found) < number and anyio.current_time() < end:
            found += await anyio.to_thread.run_sync(self.rig.letters)
        return found


def _problems(row: Bad, letter: Letter, rig: Rig) -> Iterator[str]:
    if letter.payload != row.payload:
        yield f"{row.name}: the dead letter's payload is another one"
    if rig.title == "Redis Pub/Sub":
        return  # nothing but the payload
    if not letter.headers.get(b"dispytch-dead-error", b"").startswith(b"DecodeError: "):
        yield f"{row.name}: the dead letter says {letter.headers.get(b'dispytch-dead-error')!r}"
    if any(len(value) > _LONGEST_ERROR for name, value in letter.headers.items() if name.startswith(b"dispytch-")):
        yield f"{row.name}: what the dead letter says is over 1 KiB"
    if letter.headers.get(b"dispytch-dead-source") != rig.topic.encode() or b"dispytch-attempt" in letter.headers:
        yield f"{row.name}: what was forged is in the dead letter"


@asynccontextmanager
async def probing(rig: Rig, codec: Codec) -> AsyncIterator[Probe]:
    """Runs a dispatcher for one rig, and closes the rig in the end."""
    with _closing(rig):
        deserializer = JSONDeserializer() if codec == "json" else MessagePackDeserializer()
        probe = Probe(rig, codec, EventDispatcher(rig.consumer(), deserializer=deserializer, max_deliveries=1))
        async with probe.dispatcher.lifespan():
            rig.watch()
            await probe.good()
            yield probe


@contextmanager
def _closing(rig: Rig) -> Iterator[None]:
    try:
        yield
    finally:
        rig.close()


def rows_for(rig: Rig, codec: Codec) -> list[Bad]:
    return [row for row in ROWS if row.codec == codec and rig.can(row)]
