"""``dispytch check``: everything about a dispatcher that can be told without a network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import click

from dispytch.cli.app import Command
from dispytch.cli.errors import CHECK_FAILED
from dispytch.cli.examining import examine
from dispytch.cli.loading import load_dispatcher
from dispytch.cli.options import app_dir_option, factory_option

if TYPE_CHECKING:
    from dispytch._runtime.wiring import Wired

__all__ = ["collected_warnings", "command"]


@click.command("check", cls=Command)
@click.argument("target", metavar="MODULE:DISPATCHER")
@factory_option
@app_dir_option
@click.pass_context
def command(ctx: click.Context, target: str, factory: bool, app_dir: str) -> None:
    """Check the dispatcher MODULE:DISPATCHER as far as that goes without a network.

    Shows its handlers and how its consumers are configured. Each problem is a line on standard error, and the exit code
    is 4 if there is one.
    """
    with collected_warnings() as warnings:
        dispatcher = load_dispatcher(target, app_dir, factory)
        wired, problems = anyio.run(examine, dispatcher)
    for one in wired:
        _show(one)
    for text in warnings:
        click.echo(f"Warning: {text}", err=True)
    for text in problems:
        click.echo(f"Error: {text}", err=True)
    if problems:
        click.echo(f"{_count(len(problems), 'problem')} in {target}", err=True)
        ctx.exit(CHECK_FAILED)
    handlers = len({id(bound.handler) for one in wired for bound in one.bound})
    click.echo(f"ok: {_count(handlers, 'handler')} on {_count(len(wired), 'consumer')}")


def _show(wired: Wired) -> None:
    consumer = wired.consumer
    click.echo(f"{type(consumer).__name__} ({consumer.transport})")
    for name, value in consumer.configuration().items():
        click.echo(f"  {name} = {value}")
    for bound in wired.bound:
        kind = "" if bound.event is None else f", event {bound.event}"
        letters = "" if bound.dead_letter is None else f", dead letters to {bound.dead_letter.address}"
        policy = type(bound.policy).__name__
        click.echo(f"  handler {bound.name}: {bound.pattern.source}{kind}, {policy}{letters}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """What the library warns of meanwhile."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(" ".join(record.getMessage().split()))

    collector = Collector(logging.WARNING)
    logger = logging.getLogger("dispytch")
    logger.addHandler(collector)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield found
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates
