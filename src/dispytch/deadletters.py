"""Dead letters: reading them, and sending them back to where they came from.

```python
async with DeadLetters.from_url("kafka://localhost:9092", "orders.billing.dead") as dead:
    async for letter in dead.read():
        print(letter.id, letter.error)
    print(await dead.replay(where=lambda letter: "TimeoutError" in letter.error))
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

import anyio.lowlevel

from dispytch._core.deadletters import ALL_OF_GROUP, REPLAY_FOR, REPLAY_MARK
from dispytch._core.letters import Letter, letter_of
from dispytch._core.patterns import Pattern
from dispytch._runtime.ids import new_id
from dispytch._runtime.sweep import InOrder, OneByOne, Sweep, Tail
from dispytch._runtime.urls import consumer_from_url, no_client, producer_from_url
from dispytch.abc import Consumer, EventRoute, Message, Producer, Subscription
from dispytch.errors import ConfigurationError, DeliveryError, DispytchError
from dispytch.middleware._calls import call

__all__ = ["DeadLetters", "Letter", "Problem", "Report"]

_BATCH = 100
_MOST_PROBLEMS = 1000

Where = Callable[[Letter], bool | Awaitable[bool]]
Progress = Callable[["Report"], object]


class Problem(NamedTuple):
    """A letter that could not be dealt with, and why."""

    letter: Letter
    error: DispytchError


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass over the dead letters did.

    Attributes:
        replayed: How many were published to their sources and confirmed; in a dry run, how many would be.
        dropped: How many were acknowledged without that; in a dry run, how many would be.
        kept: How many were looked at and not chosen: they are there still.
        failed: How many were chosen and could not be published: they are there still.
        is_complete: Whether all there were have been looked at; False where ``limit`` or ``window`` ended the pass.
            What was replayed and has failed again meanwhile is a new letter, and left for the next pass.
        problems: The letters that failed, and those that were dealt with and may be there still, since acknowledging
            them failed; the first 1,000 of them.
    """

    replayed: int = 0
    dropped: int = 0
    kept: int = 0
    failed: int = 0
    is_complete: bool = False
    problems: tuple[Problem, ...] = ()


class DeadLetters:
    """The letters of one dead-letter topic.

    What is read and not chosen stays for the next reader of the same consumer group: give all of them one group, since
    to another one every letter that the topic ever had is new. Nobody else should consume the topic in that group at
    the same time. One operation runs at a time.

    Args:
        consumer: A consumer that nobody else uses; it is started and stopped by each operation.
        topic: The dead-letter topic, stream or, on RabbitMQ, queue; or its route.
        producer: Publishes what is replayed; stopped by `close`. Not needed for reading and dropping.
        idle: Seconds without a letter after which there are none left, unless the consumer is known to have more.
        timeout: Seconds that publishing a batch of letters may take.
        window: How many letters are held at once, at most: those that were read, and on transports that acknowledge one
            by one, and in dry runs, those that stay. A pass ends when it is full.

    Raises:
        ConfigurationError: an argument is wrong, or the transport keeps no dead letters.
    """

    def __init__(
        self,
        consumer: Consumer,
        topic: str | EventRoute,
        producer: Producer | None = None,
        *,
        idle: float = 3.0,
        timeout: float | None = 30.0,
        window: int = 10_000,
    ) -> None:
        if not isinstance(consumer, Consumer):
            raise ConfigurationError(no_client(consumer, "consumer"))
        if producer is not None and not isinstance(producer, Producer):
            raise ConfigurationError(no_client(producer, "producer"))
        if producer is not None and producer.transport != consumer.transport:
            raise ConfigurationError(
                f"{type(producer).__name__} publishes by another transport than {type(consumer).__name__}, and letters "
                "go back to where they came from; give a producer of the same"
            )
        if not (isinstance(idle, int | float) and idle > 0):
            raise ConfigurationError(
                f"idle={idle!r}: give the seconds without a letter after which there are none left"
            )
        if window < 1:
            raise ConfigurationError(f"window={window!r}: give a number from 1 on")
        route = consumer.dead_letter_source(topic) if isinstance(topic, str) and topic else topic
        if not isinstance(route, EventRoute) or not consumer.features.acknowledges or not consumer.features.headers:
            raise ConfigurationError(
                f"{type(consumer).__name__} receives no dead letters from {topic!r}; name a dead-letter topic of a "
                "transport that keeps messages"
            )
        declared = consumer.subscription_for(route)
        if declared is None:
            raise ConfigurationError(f"{type(consumer).__name__} cannot receive from {route!r}")
        text = declared.address if isinstance(declared, EventRoute) else declared.pattern
        pattern = Pattern.parse(text, declared.delimiter)
        if not pattern.is_literal:
            raise ConfigurationError(f"{text!r} is a pattern; name one dead-letter topic")
        self.consumer: Consumer = consumer
        self.producer: Producer | None = producer
        self.route: EventRoute = route
        self.timeout: float | None = timeout
        self.window: int = min(window, consumer.most_unsettled or window)
        self._sweep = Sweep(consumer, Subscription(pattern, declared), idle, self.window)
        self._is_busy = False

    @classmethod
    def from_url(cls, url: str, topic: str, *, group_id: str = "dispytch-dead-letters", **options: Any) -> DeadLetters:
        """The dead letters of a topic at a broker's URL; see `dispytch.consumer_from_url`.

        Args:
            url: The broker; Redis Streams are ``redis+stream://``.
            topic: See `DeadLetters`.
            group_id: The consumer group that reads dead letters, where the transport has groups.
            options: Further ones of `DeadLetters`.

        Raises:
            ConfigurationError, MissingExtraError: see `DeadLetters` and `dispytch.consumer_from_url`.
        """
        return cls(consumer_from_url(url, group_id), topic, producer_from_url(url), **options)

    def __repr__(self) -> str:
        return f"<DeadLetters of {self.route.address} by {self.consumer!r}>"

    async def __aenter__(self) -> DeadLetters:
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops the producer. Idempotent."""
        if self.producer is not None:
            await self.producer.stop()
        else:
            await anyio.lowlevel.checkpoint()

    def read(self, limit: int = 1000) -> AsyncIterator[Letter]:
        """Gives the letters, the oldest first, and leaves them where they are.

        All are read before the first is given, so that none is held while you look at it.

        Args:
            limit: How many at most; if there are as many, there may be more.

        Raises:
            BrokerError: the broker cannot be reached, or the connection was lost.
            ConfigurationError: ``limit`` is above the window, or another operation runs.
        """
        if limit > self.window:
            raise ConfigurationError(
                f"limit={limit} is above {self.window}, what can be held at once; give less, or a larger window= (and "
                "a consumer that can hold as many)"
            )
        return _Reading(lambda: self._collect(limit))

    async def _collect(self, limit: int) -> list[Letter]:
        found: list[Letter] = []
        with self._alone():
            async with self._sweep.running():
                while len(found) < limit:
                    deliveries = await self._sweep.next(min(limit - len(found), _BATCH))
                    if not deliveries:
                        break
                    found += map(letter_of, deliveries)
        return found

    async def replay(
        self,
        where: Where | None = None,
        *,
        limit: int | None = None,
        only_handler: bool = True,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Publishes letters to their sources again, as they were; each is acknowledged once that is confirmed.

        They are events as any other there: their attempts begin at 1. Of an event that fails again meanwhile, the new
        letter stays for the next pass. If this is interrupted, at most the batch in hand (100 letters) is replayed once
        more by the next one.

        Args:
            where: Which; a function, sync or async; by default all. What it raises ends the pass; what was not
                acknowledged yet stays.
            limit: How many are chosen at most.
            only_handler: Whether only the handler that failed gets the event, and nobody else of those who consume the
                source by Dispytch; for letters that name no handler, all handlers of their group. With False everybody
                gets it again.
            dry_run: Only counts.
            progress: Called with the counts so far after each batch.

        Raises:
            BrokerError: the broker cannot be reached, or the connection was lost.
            ConfigurationError: there is no producer, or another operation runs.
        """
        producer = self.producer
        if producer is None:
            raise ConfigurationError("replaying publishes: give DeadLetters a producer of the same transport")

        mark = new_id().encode()

        async def publish(letters: Sequence[Letter]) -> list[DispytchError | None]:
            return await self._publish(producer, letters, mark, only_handler)

        return await self._pass("replayed", publish, mark, where, limit, dry_run, progress)

    async def drop(
        self,
        where: Where | None = None,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Acknowledges letters, and does nothing else with them: they are gone. Arguments and errors: see `replay`."""

        async def forget(letters: Sequence[Letter]) -> list[DispytchError | None]:
            await anyio.lowlevel.checkpoint()
            return [None] * len(letters)

        return await self._pass("dropped", forget, new_id().encode(), where, limit, dry_run, progress)

    # --- one pass

    async def _pass(
        self,
        verb: str,
        act: Callable[[Sequence[Letter]], Awaitable[list[DispytchError | None]]],
        mark: bytes,
        where: Where | None,
        limit: int | None,
        dry_run: bool,
        progress: Progress | None,
    ) -> Report:
        if not (where is None or callable(where)):
            raise ConfigurationError(f"where={where!r}: give a function that is true of the letters to choose")
        report = Report()
        chosen_in_all = 0
        async with self._tail(mark, dry_run) as tail:
            while (most := min(_BATCH, tail.room, _BATCH if limit is None else limit - chosen_in_all)) > 0:
                deliveries = await self._sweep.next(most)
                if not deliveries:
                    report = replace(report, is_complete=True)
                    break
                chosen: list[Letter] = []
                kept = 0
                for delivery in deliveries:
                    if tail.is_new(delivery):  # what has failed again must not go round and round
                        continue
                    letter = letter_of(delivery)
                    if where is None or await call(where, letter):
                        chosen_in_all += 1
                        chosen.append(letter)
                        if dry_run:
                            tail.keep(delivery)
                    else:
                        kept += 1
                        tail.keep(delivery)
                report = replace(report, kept=report.kept + kept)
                if dry_run:
                    report = replace(report, **{verb: getattr(report, verb) + len(chosen)})
                else:
                    report = await self._deal_with(verb, act, chosen, tail, report)
                if progress is not None:
                    progress(report)
            if report.replayed + report.dropped and not dry_run:
                await self._sweep.flush()
        return report

    async def _deal_with(
        self,
        verb: str,
        act: Callable[[Sequence[Letter]], Awaitable[list[DispytchError | None]]],
        chosen: Sequence[Letter],
        tail: Tail,
        report: Report,
    ) -> Report:
        outcomes = await act(chosen) if chosen else []
        problems = [*report.problems]
        done: list[Letter] = []
        for letter, outcome in zip(chosen, outcomes, strict=True):
            if outcome is None:
                done.append(letter)
            else:
                problems.append(Problem(letter, outcome))
                tail.keep(letter.message)
        unsettled = await self._sweep.acknowledge([letter.message for letter in done]) if done else {}
        for letter in done:
            if (error := unsettled.get(id(letter.message))) is not None:
                again = DeliveryError(f"it was {verb}, and is there still, since it could not be acknowledged: {error}")
                problems.append(Problem(letter, again))
        await tail.advance([letter.message for letter in done])
        return replace(
            report,
            **{verb: getattr(report, verb) + len(done)},
            failed=report.failed + len(chosen) - len(done),
            problems=tuple(problems[:_MOST_PROBLEMS]),
        )

    async def _publish(
        self, producer: Producer, letters: Sequence[Letter], mark: bytes, only_handler: bool
    ) -> list[DispytchError | None]:
        outcomes: list[DispytchError | None] = [None] * len(letters)
        messages: list[Message] = []
        numbers: list[int] = []
        for number, letter in enumerate(letters):
            try:
                message = _message(producer, letter, mark, only_handler)
                producer.check(message)
            except DispytchError as error:
                outcomes[number] = error
            else:
                messages.append(message)
                numbers.append(number)
        if messages:
            found = await producer.send(messages, self.timeout)
            for number, outcome in zip(numbers, found, strict=True):
                outcomes[number] = outcome if isinstance(outcome, DispytchError) else None
        return outcomes

    @asynccontextmanager
    async def _tail(self, mark: bytes, dry_run: bool) -> AsyncIterator[Tail]:
        with self._alone():
            tail: Tail = OneByOne(mark, self.window)
            if self.consumer.acknowledges_in_order and not dry_run:
                tail = InOrder(mark, self.window, self._sweep, self.route)
            async with self._sweep.running():
                yield tail

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._is_busy:
            raise ConfigurationError("another operation runs on these dead letters; wait for its end")
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False


class _Reading(AsyncIterator[Letter]):
    """What `DeadLetters.read` returns: no generator, since trio warns of one that a ``break`` leaves behind."""

    def __init__(self, collect: Callable[[], Awaitable[list[Letter]]]) -> None:
        self._collect = collect
        self._letters: Iterator[Letter] | None = None

    async def __anext__(self) -> Letter:
        if self._letters is None:
            self._letters = iter(await self._collect())
        else:
            await anyio.lowlevel.checkpoint()
        for letter in self._letters:
            return letter
        raise StopAsyncIteration


def _message(producer: Producer, letter: Letter, mark: bytes, only_handler: bool) -> Message:
    if letter.source is None:
        raise DeliveryError("it is no dead letter of Dispytch, so nobody knows where it came from; handle or drop it")
    headers = [(REPLAY_MARK, mark), *letter.headers]
    if only_handler:
        if letter.group is None:
            raise DeliveryError(
                "it does not tell the group of the handler that failed; replay it with only_handler=False"
            )
        target = f"{letter.group}/{letter.handler or ALL_OF_GROUP}"
        headers = [(REPLAY_FOR, target.encode("utf-8", "surrogatepass")), *headers]
    route = producer.route_back(letter.source, letter.scope)
    return Message(letter.id, route, letter.payload, headers, letter.key)
