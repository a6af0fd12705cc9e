"""``dispytch check``: everything about a dispatcher that can be told without a network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import click

from dispytch.cli.app import Command
from dispytch.cli.errors import CHECK_FAILED
from dispytch.cli.loading import load_dispatcher
from dispytch.cli.options import app_dir_option, factory_option
from dispytch.errors import ConfigurationError

if TYPE_CHECKING:
    from dispytch import EventDispatcher
    from dispytch._core.handlers import Handler
    from dispytch._runtime.wiring import Options, Wired
    from dispytch.abc import Consumer

__all__ = ["collected_warnings", "command", "examine"]


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


async def examine(dispatcher: EventDispatcher) -> tuple[Sequence[Wired], list[str]]:
    """The consumers with their handlers, and what is wrong; there are no consumers if something is.

    In an event loop, since some of what is made here belongs to one.
    """
    from dispytch._runtime.wiring import wire

    await anyio.lowlevel.checkpoint()
    handlers, options = dispatcher._declared()
    problems: dict[str, None] = {}
    for handler in handlers:
        takers = [consumer for consumer in dispatcher.consumers if _is_for(handler, consumer, dispatcher.consumers)]
        for group in [[one] for one in takers] or [list(dispatcher.consumers)]:
            problems.update(dict.fromkeys(_problems(handler, group, options)))
    if not problems:
        try:
            return wire(handlers, dispatcher.consumers, options)[0], []
        except ConfigurationError as error:
            problems[str(error)] = None
    return [], list(problems)


def _is_for(handler: Handler, consumer: Consumer, consumers: Sequence[Consumer]) -> bool:
    if handler.consumer in consumers and handler.consumer is not consumer:
        return False
    try:
        return consumer.subscription_for(handler.subscription) is not None
    except ConfigurationError:
        return True  # and wiring says why it cannot be served


def _problems(handler: Handler, consumers: Sequence[Consumer], options: Options) -> Iterator[str]:
    """What is wrong with one handler."""
    from dispytch._runtime.wiring import wire

    own = {name: policy for name, policy in options.ack_policies.items() if name == handler.subscription}
    logger = logging.getLogger("dispytch")
    logger.disabled = True  # warnings are given once, when all are wired
    try:
        wire([handler], consumers, replace(options, ack_policies=own))
    except ConfigurationError as error:
        yield str(error)
    finally:
        logger.disabled = False


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
