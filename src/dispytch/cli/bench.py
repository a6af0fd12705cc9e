"""``dispytch bench``: what a broker and this machine can do, by the dispatcher and the emitter that users have."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import anyio
import click

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch._runtime.dispatcher import loop_options
from dispytch.cli.app import Command
from dispytch.cli.brokers import any_url, declaring
from dispytch.cli.errors import CommandError, exit_code, one_line
from dispytch.cli.options import loop_option

__all__ = ["command"]

_AT_ONCE = 1000
"""Events of one `emit_many`."""
_MOST_SINGLE = 1000


class Reading(EventBase):
    """What is emitted: about 60 bytes."""

    number: int
    sensor: str = "a thermometer in the cellar"
    value: float = 21.5


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        rate: Events per second.
        times: Seconds that each took, ascending; none where several went together.
    """

    name: str
    rate: float
    times: Sequence[float] = ()

    def share(self, part: float) -> float:
        """So many milliseconds that part of the events took, at most."""
        return self.times[min(math.ceil(len(self.times) * part), len(self.times)) - 1] * 1000


@click.command("bench", cls=Command)
@click.argument("url", type=any_url, default="memory://bench", metavar="[URL]")
@loop_option
@click.option(
    "--events",
    type=click.IntRange(min=20),
    default=20_000,
    show_default=True,
    help="How many go together, as a backlog.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each of the measurements.",
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
def command(url: str, loop: str, events: int, timeout: float, is_json: bool) -> None:
    """Measure emitting to, and handling from, the broker in the process or the one at URL.

    With the defaults of the emitter and the dispatcher, a trivial async handler, and bodies of 60 bytes, on a topic of
    its own. Where the broker keeps events, that topic (on RabbitMQ a queue) stays there; the last line names it.
    """
    backend = "trio" if loop == "trio" else "asyncio"
    bench = _Bench(url, events, timeout)
    with declaring(), _naming_what_stays(bench):
        rows = anyio.run(bench.run, backend=backend, backend_options=loop_options(backend, loop == "uvloop"))
    if is_json:
        for row in rows:
            known = {f"p{share:g}_ms": row.share(share / 100) for share in (50, 99) if row.times}
            click.echo(json.dumps({"name": row.name, "events_per_second": row.rate, **known}))
        _say_what_stays(bench)
        return
    cores = os.cpu_count()
    click.echo(f"{bench.transport} on {loop}, Python {platform.python_version()}, {cores} cores; {events:,} events\n")
    click.echo(f"{'':<36}{'events/s':>10}{'median':>12}{'99 %':>12}")
    for row in rows:
        shares = "".join(f"{row.share(share):>9.2f} ms" for share in (0.5, 0.99)) if row.times else ""
        click.echo(f"{row.name:<36}{row.rate:>10,.0f}{shares}")
    again = f", {bench.repeated:,} of them again" if bench.repeated else ""
    click.echo(f"\nEvery event was handled{again}.")
    _say_what_stays(bench, err=False)


class _Bench:
    """One run, on a topic of its own."""

    def __init__(self, url: str, total: int, timeout: float) -> None:
        self.topic = f"dispytch-bench-{uuid4().hex[:8]}"
        self._url = url
        self._total = total
        self._timeout = timeout
        self._single = min(max(total // 20, 10), _MOST_SINGLE)
        self._handled: dict[int, float] = {}
        """When each was handled first, by its number."""
        self._calls = 0
        self._wanted = 0
        self._reached: anyio.Event
        with declaring():
            consumer = consumer_from_url(url, self.topic)
        self.transport = type(consumer).__name__.removesuffix("Consumer")
        self._is_persistent = consumer.features.persistent
        self._has_begun = False

    @property
    def stays(self) -> str | None:
        """What is left at the broker, in words."""
        if not self._has_begun or not self._is_persistent or self._url.startswith("memory://"):
            return None
        what = "queue {} stays" if self.transport == "RabbitMQ" else "topic {} and the group of that name stay"
        return f"the {what.format(self.topic)} at the broker, to be deleted there"

    @property
    def repeated(self) -> int:
        return self._calls - len(self._handled)

    async def run(self) -> list[Row]:
        """Measures all.

        Raises:
            CommandError: not every event was handled in time.
        """
        kind = cast(type[Reading], type("Reading", (Reading,), {"__topic__": self.topic, "__module__": __name__}))
        events = [kind(number=number) for number in range(self._single + self._total)]
        singles, backlog = events[: self._single], events[self._single :]
        async with EventEmitter(producer_from_url(self._url), timeout=self._timeout) as emitter:
            self._has_begun = True  # consuming makes what it needs at the broker
            async with self._consuming():
                rows = await self._one_by_one(emitter, singles)
                if not self._is_persistent:
                    rows.append(await self._together(emitter, backlog))
                    rows.append(await self._until_handled(backlog))
            if self._is_persistent:
                rows.append(await self._together(emitter, backlog))
                async with self._consuming():
                    rows.append(await self._until_handled(backlog))
        return rows

    def _consuming(self) -> AbstractAsyncContextManager[Any]:
        dispatcher = EventDispatcher(consumer_from_url(self._url, self.topic), dead_letter=None)
        handled = self._handled

        @dispatcher.handler(topic=self.topic)
        async def handle(event: Event[Reading]) -> None:
            self._calls += 1
            handled.setdefault(event.body.number, time.perf_counter())
            if len(handled) == self._wanted:
                self._reached.set()

        return dispatcher.lifespan()

    async def _one_by_one(self, emitter: EventEmitter, events: Sequence[Reading]) -> list[Row]:
        confirmed: list[float] = []
        arrived: list[float] = []
        await emitter.emit(events[0])  # opens the connection
        await self._all_handled(1)
        until = time.perf_counter() + self._timeout
        for count, event in enumerate(events[1:], 2):
            begin = time.perf_counter()
            await emitter.emit(event)
            confirmed.append(time.perf_counter() - begin)
            await self._all_handled(count)
            arrived.append(self._handled[event.number] - begin)
            if time.perf_counter() > until:  # a broker that is far away: what has been measured will do
                self._single = count
                break
        return [_row("emit, one after the other", confirmed), _row("the same, until handled", arrived)]

    async def _together(self, emitter: EventEmitter, events: Sequence[Reading]) -> Row:
        begin = time.perf_counter()
        with anyio.move_on_after(self._timeout):
            for start in range(0, len(events), _AT_ONCE):
                await emitter.emit_many(events[start : start + _AT_ONCE])
            return Row(f"emit_many of {_AT_ONCE:,}", len(events) / (time.perf_counter() - begin))
        raise CommandError(
            f"emitting {len(events):,} events took over {self._timeout:g} s; give fewer, or more --timeout"
        )

    async def _until_handled(self, events: Sequence[Reading]) -> Row:
        await self._all_handled(self._single + self._total)
        times = sorted(self._handled[event.number] for event in events)
        return Row("handle what waits", len(times) / (times[-1] - times[0]))

    async def _all_handled(self, count: int) -> None:
        """Waits until so many events are handled in all."""
        self._wanted, self._reached = count, anyio.Event()
        if len(self._handled) >= count:
            return
        with anyio.move_on_after(self._timeout):
            await self._reached.wait()
            return
        raise CommandError(
            f"{count - len(self._handled):,} events were not handled within {self._timeout:g} s; give fewer, or more "
            "--timeout"
        )


def _say_what_stays(bench: _Bench, err: bool = True) -> None:
    if (stays := bench.stays) is not None:
        click.echo(f"{stays[0].upper()}{stays[1:]}.", err=err)


@contextmanager
def _naming_what_stays(bench: _Bench) -> Iterator[None]:
    """However it ends: nobody else knows the name of what is left."""
    try:
        yield
    except KeyboardInterrupt:
        _say_what_stays(bench)
        raise
    except Exception as error:
        if bench.stays is None:
            raise
        failure = CommandError(f"{one_line(error)}; {bench.stays}")
        failure.exit_code = exit_code(error)
        raise failure from error


def _row(name: str, times: Sequence[float]) -> Row:
    return Row(name, len(times) / sum(times), sorted(times))
