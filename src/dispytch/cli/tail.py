"""``dispytch tail``: the events of a topic, live."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from uuid import uuid4

import anyio
import click

from dispytch._core.patterns import Matcher, Pattern
from dispytch._runtime.urls import observer_from_url
from dispytch.abc import Consumer, Delivery, EventSubscription, Outcome, Settlement, Subscription
from dispytch.cli.app import Command
from dispytch.cli.brokers import advising, broker_url, declaring
from dispytch.cli.errors import UsageProblem, sole
from dispytch.cli.showing import Opener, as_json, pretty
from dispytch.errors import BrokerUnreachableError

__all__ = ["command"]

_STOP_TIMEOUT = 15.0
_PAUSE = 1.0


@click.command("tail", cls=Command)
@click.argument("url", type=broker_url, metavar="URL")
@click.argument("topic")
@click.option("--event", help="Only events of this type.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line, with headers.")
@click.option("--from-start", is_flag=True, help="Begin with what the broker holds, where it keeps events.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many events.")
@click.pass_context
def command(
    ctx: click.Context, url: str, topic: str, event: str | None, is_json: bool, from_start: bool, limit: int | None
) -> None:
    """Show the events of TOPIC at the broker URL as they come, until Ctrl-C.

    TOPIC may be a pattern, where the broker has patterns: {name} and * match one segment, # any number. Nobody else
    misses what is shown here.
    """
    with declaring():
        consumer = observer_from_url(url, f"dispytch-tail-{uuid4().hex[:12]}", from_start=from_start)
        subscription = _subscription(consumer, topic)
    opener = Opener(consumer)
    left = [limit]

    def show(delivery: Delivery) -> bool:
        facts = opener.facts(delivery)
        if event in (None, facts["type"]):
            click.echo(as_json(facts) if is_json else pretty(facts))
            if left[0] is not None:
                left[0] -= 1
        return left[0] == 0

    with advising():
        try:
            code = anyio.run(partial(_follow, consumer, subscription, show))
        except BaseExceptionGroup as group:
            raise sole(group) from None
    ctx.exit(code)


def _subscription(consumer: Consumer, topic: str) -> Subscription:
    declared = consumer.subscription_for(EventSubscription(topic))
    if not isinstance(declared, EventSubscription):
        raise UsageProblem(f"{type(consumer).__name__} cannot receive from {topic!r}")
    return Subscription(Pattern.parse(declared.pattern, declared.delimiter), declared)


async def _follow(consumer: Consumer, subscription: Subscription, show: Callable[[Delivery], bool]) -> int:
    """Shows deliveries until enough are shown, or a signal comes; returns the exit code."""
    code = 0
    async with anyio.create_task_group() as group:

        async def await_signal() -> None:
            nonlocal code
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    code = 128 + number
                    group.cancel_scope.cancel()

        group.start_soon(await_signal)
        try:
            await consumer.start([subscription])
            click.echo(f"Waiting for events of {subscription.pattern.source}; Ctrl-C ends.", err=True)
            await _show_all(consumer, subscription, show)
            group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_STOP_TIMEOUT, shield=True):
                await consumer.stop()
    return code


async def _show_all(consumer: Consumer, subscription: Subscription, show: Callable[[Delivery], bool]) -> None:
    matcher: Matcher[None] = Matcher(subscription.pattern.delimiter)
    matcher.add(subscription.pattern, None)
    while True:
        try:
            deliveries = await consumer.receive(100)
        except BrokerUnreachableError as error:
            click.echo(f"{error}; trying again", err=True)
            await _reconnect(consumer, subscription)
            continue
        await consumer.settle([Settlement(delivery, Outcome.ACK) for delivery in deliveries])
        for delivery in deliveries:
            if matcher.match(delivery.source) and show(delivery):
                return


async def _reconnect(consumer: Consumer, subscription: Subscription) -> None:
    while True:
        await anyio.sleep(_PAUSE)
        try:
            await consumer.start([subscription])
        except BrokerUnreachableError:
            continue
        click.echo("Connected again.", err=True)
        return
