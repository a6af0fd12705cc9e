"""``dispytch dead``: dead letters, on top of `dispytch.deadletters`."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import anyio
import click

from dispytch._runtime.urls import consumer_from_url, producer_from_url
from dispytch.abc import Consumer
from dispytch.cli.app import Command, Group
from dispytch.cli.brokers import advising, broker_url, declaring
from dispytch.cli.errors import FAILURE, CommandError, sole
from dispytch.cli.showing import Opener, as_json, printable
from dispytch.deadletters import DeadLetters, Letter, Progress, Report

__all__ = ["command"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_MOST_READ = 10_000


@click.group("dead", cls=Group)
def command() -> None:
    """Look at the dead letters of a dispatcher, send them back, or drop them.

    TOPIC is the dead-letter topic: <topic>.<group>.dead by default, on RabbitMQ the queue <queue>.dead.
    """


# --- which letters


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which letters are meant."""

    ids: tuple[str, ...] = ()
    error: str | None = None
    handler: str | None = None
    source: str | None = None
    since: datetime | None = None
    before: datetime | None = None

    def __call__(self, letter: Letter) -> bool:
        return (
            (not self.ids or letter.id in self.ids)
            and (self.error is None or self.error.lower() in letter.error.lower())
            and (self.handler is None or letter.handler == self.handler)
            and (self.source is None or letter.source == self.source)
            and self._is_in_time(letter)
        )

    def _is_in_time(self, letter: Letter) -> bool:
        if self.since is None and self.before is None:
            return True
        try:
            at = datetime.fromisoformat(letter.failed_at)
        except ValueError:
            return False
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return (self.since is None or at >= self.since) and (self.before is None or at < self.before)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no moment; write 2026-11-25 or 2026-11-25T12:00:00+01:00") from None
    return found if found.tzinfo else found.astimezone()


def _common(function: F) -> F:
    """The arguments and options of all of these commands."""
    for add in reversed(
        (
            click.argument("url", type=broker_url, metavar="URL"),
            click.argument("topic"),
            click.option(
                "--group",
                default="dispytch-dead-letters",
                show_default=True,
                help="The consumer group of whoever reads this topic; the same for all.",
            ),
            click.option(
                "--idle",
                type=click.FloatRange(min=0, min_open=True),
                default=3.0,
                show_default=True,
                help="Seconds without a letter after which there are none left.",
            ),
        )
    ):
        function = add(function)
    return function


def _filtered(function: F) -> F:
    """The options that choose letters."""
    for add in reversed(
        (
            click.option("--id", "ids", multiple=True, help="Only the event with this id; may be given several times."),
            click.option("--error", help="Only letters whose error holds this text."),
            click.option("--handler", help="Only letters of this handler."),
            click.option("--source", help="Only letters from this topic."),
            click.option("--since", type=_moment, metavar="TIME", help="Only those given up at or after TIME."),
            click.option("--before", type=_moment, metavar="TIME", help="Only those given up before TIME."),
            click.option("--limit", type=click.IntRange(min=1), help="So many at most."),
        )
    ):
        function = add(function)
    return function


def _where(choice: dict[str, Any]) -> _Filter | None:
    found = _Filter(**choice)
    return None if found == _Filter() else found


# --- the commands


@command.command("list", cls=Command, short_help="List letters, and leave them where they are.")
@_common
@_filtered
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line, with payloads.")
def list_letters(
    url: str, topic: str, group: str, idle: float, limit: int | None, is_json: bool, **choice: Any
) -> None:
    """List letters, the oldest first, and leave them where they are."""
    where = _where(choice)
    limit = limit or 1000
    letters, opener = _run(url, topic, group, idle, partial(_read, _MOST_READ if where else min(limit, _MOST_READ)))
    chosen = [letter for letter in letters if where is None or where(letter)][:limit]
    for letter in chosen:
        click.echo(as_json(_facts(letter, opener)) if is_json else _line(letter))
    more = "" if len(letters) < (_MOST_READ if where else limit) else "; there may be more, see --limit"
    none = "" if letters else ": there are none, or the topic has another name"
    click.echo(f"{_count(len(chosen))}{more}{none}", err=True)


@command.command("show", cls=Command, short_help="Show all that the letters of an event tell.")
@_common
@click.argument("id")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
def show(url: str, topic: str, group: str, idle: float, id: str, is_json: bool) -> None:
    """Show all that the letters of the event ID tell: what failed, headers and body."""
    letters, opener = _run(url, topic, group, idle, partial(_read, _MOST_READ))
    chosen = [letter for letter in letters if letter.id == id]
    if not chosen:
        raise CommandError(
            f"no letter of the event {id!r} is among the {_count(len(letters))} of {topic}; `dispytch dead list` shows "
            "their ids"
        )
    for letter in chosen:
        facts = _facts(letter, opener)
        if is_json:
            click.echo(as_json(facts))
            continue
        for name, value in facts.items():
            if value not in (None, {}):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                click.echo(f"{name + ':':<12}{printable(text)}")


@command.command("replay", cls=Command, short_help="Publish letters to where they came from.")
@_common
@_filtered
@click.option("--everyone", is_flag=True, help="All who consume the source get the event, not only the failed handler.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    url: str,
    topic: str,
    group: str,
    idle: float,
    limit: int | None,
    everyone: bool,
    dry_run: bool,
    **choice: Any,
) -> None:
    """Publish letters to the topics that they came from; what is confirmed leaves the dead-letter topic."""
    where = _where(choice)

    async def work(dead: DeadLetters) -> Report:
        with _progress("replaying", limit) as progress:
            return await dead.replay(where, limit=limit, only_handler=not everyone, dry_run=dry_run, progress=progress)

    report, _ = _run(url, topic, group, idle, work)
    _tell(ctx, report, f"{_count(report.replayed)} {'would be ' if dry_run else ''}replayed", limit)


@command.command("drop", cls=Command, short_help="Remove letters for good.")
@_common
@_filtered
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(
    ctx: click.Context,
    /,
    url: str,
    topic: str,
    group: str,
    idle: float,
    limit: int | None,
    dry_run: bool,
    is_sure: bool,
    **choice: Any,
) -> None:
    """Remove letters for good, after they were counted and you have agreed."""
    where = _where(choice)

    def work(only_count: bool, total: int | None) -> Callable[[DeadLetters], Awaitable[Report]]:
        async def passing(dead: DeadLetters) -> Report:
            with _progress("counting" if only_count else "dropping", total) as progress:
                return await dead.drop(where, limit=total, dry_run=only_count, progress=progress)

        return passing

    if dry_run or not is_sure:
        report, _ = _run(url, topic, group, idle, work(True, limit))
        if dry_run or not report.dropped:
            _tell(ctx, report, f"{_count(report.dropped)} would be dropped", limit)
            return
        if not _is_agreed(f"Drop {_count(report.dropped)} of {topic} for good?"):
            click.echo("Nothing was dropped.", err=True)
            ctx.exit(FAILURE)
        limit = report.dropped  # no more than was agreed to
    report, _ = _run(url, topic, group, idle, work(False, limit))
    _tell(ctx, report, f"{_count(report.dropped)} dropped", limit)


# --- what they have in common


def _is_agreed(question: str) -> bool:
    # `click.confirm` loses a Ctrl-C that comes while it asks, and then waits on.
    while True:
        click.echo(f"{question} [y/N]: ", nl=False, err=True)
        answer = sys.stdin.readline()
        if not answer:
            raise CommandError("nobody answered, and nothing was dropped; give --yes where nobody can")
        if (word := answer.strip().lower()) in ("y", "yes", "n", "no", ""):
            return word in ("y", "yes")
        click.echo("Answer y or n.", err=True)


def _run(
    url: str, topic: str, group: str, idle: float, work: Callable[[DeadLetters], Awaitable[T]]
) -> tuple[T, Opener]:
    with declaring():
        consumer = _consumer(url, group)
        dead = DeadLetters(consumer, topic, producer_from_url(url), idle=idle, window=_MOST_READ)

    async def main() -> T:
        async with dead:
            return await work(dead)

    with advising():
        try:
            return anyio.run(main), Opener(consumer)
        except BaseExceptionGroup as error:
            raise sole(error) from None


def _consumer(url: str, group: str) -> Consumer:
    """A reader that does not create a topic whose name was mistyped, on the transports that are known here."""
    scheme = url.partition("://")[0]
    if scheme in ("kafka", "kafka+ssl"):
        from dispytch.kafka import KafkaConsumer

        return KafkaConsumer(url, group_id=group, declare=False)
    if scheme in ("amqp", "amqps"):
        from dispytch.rabbitmq import RabbitMQConsumer

        return RabbitMQConsumer(url, queue=group, declare=False)
    if scheme in ("redis+stream", "rediss+stream"):
        from dispytch.redis.streams.existing import ExistingStreamConsumer

        return ExistingStreamConsumer(url, group_id=group)
    return consumer_from_url(url, group)


async def _read(limit: int, dead: DeadLetters) -> Sequence[Letter]:
    return [letter async for letter in dead.read(limit)]


def _count(number: int) -> str:
    return f"{number} letter{'' if number == 1 else 's'}"


def _line(letter: Letter) -> str:
    if not letter.error:
        return printable(f"{letter.id} is no dead letter of Dispytch")
    who = letter.handler or "nobody"
    tries = f"{letter.attempts} {'try' if letter.attempts == 1 else 'tries'}"
    return printable(f"{letter.failed_at} {letter.id} from {letter.source}, {who}, {tries}: {letter.error}")


def _facts(letter: Letter, opener: Opener) -> dict[str, Any]:
    told = ("id", "error", "handler", "group", "attempts", "source", "scope", "position", "failed_at")
    event = opener.facts(letter.message)
    headers = {name: value.decode("utf-8", "backslashreplace") for name, value in letter.headers}
    body: dict[str, Any] = {name: event[name] for name in ("body", "payload") if name in event}
    return {
        **{name: getattr(letter, name) for name in told},
        "type": event["type"],
        "time": event["time"],
        "key": event["key"],
        "headers": headers,
        **body,
    }


def _tell(ctx: click.Context, report: Report, done: str, limit: int | None) -> None:
    for problem in report.problems:
        click.echo(f"Error: {printable(problem.letter.id)}: {printable(str(problem.error))}", err=True)
    click.echo(f"{done}, {report.kept} kept, {report.failed} failed")
    if not report.is_complete and limit is None:
        click.echo("There are more than can be held at once; run it again, with filters for what is to stay.", err=True)
    if report.failed:
        ctx.exit(FAILURE)


@contextmanager
def _progress(verb: str, total: int | None) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=total)
        yield lambda report: bar.update(task, completed=report.replayed + report.dropped + report.failed)
