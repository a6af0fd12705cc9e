"""``dispytch doctor``: what a broker says when it is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence

import anyio
import click

from dispytch._core.findings import Finding
from dispytch._runtime.urls import consumer_from_url, diagnose
from dispytch.abc import Subscription
from dispytch.cli.app import Command
from dispytch.cli.brokers import broker_url, declaring
from dispytch.cli.errors import CHECK_FAILED, CheckFailed, UsageProblem
from dispytch.cli.examining import examine
from dispytch.cli.loading import load_dispatcher
from dispytch.cli.options import app_dir_option, factory_option
from dispytch.cli.showing import printable

__all__ = ["command"]


@click.command("doctor", cls=Command)
@click.argument("url", type=broker_url, metavar="URL")
@click.argument("target", metavar="[MODULE:DISPATCHER]", required=False)
@factory_option
@app_dir_option
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def command(ctx: click.Context, url: str, target: str | None, factory: bool, app_dir: str, is_json: bool) -> None:
    """Ask the broker at URL how it is, and what it has of what MODULE:DISPATCHER needs: topics, groups, lag.

    Nothing is changed there. The exit code is 4 if there is a problem.
    """
    wanted: list[tuple[Sequence[Subscription], str | None]] = [((), None)]
    if target is not None:
        wanted = _wanted(url, target, factory, app_dir)
    seen: set[Finding] = set()
    with declaring():
        for finding in (one for subscriptions, group in wanted for one in diagnose(url, subscriptions, group)):
            if finding in seen:
                continue
            seen.add(finding)
            click.echo(json.dumps(finding._asdict()) if is_json else f"{finding.level:<9}{printable(finding.text)}")
    if any(finding.level == "problem" for finding in seen):
        ctx.exit(CHECK_FAILED)


def _wanted(url: str, target: str, factory: bool, app_dir: str) -> list[tuple[Sequence[Subscription], str | None]]:
    """What the dispatcher's consumers of the broker's transport receive, and their groups."""
    dispatcher = load_dispatcher(target, app_dir, factory)
    wired, problems = anyio.run(examine, dispatcher)
    if problems:
        raise CheckFailed(f"{problems[0]}; `dispytch check {target}` shows all that is wrong")
    with declaring():
        transport = consumer_from_url(url, "dispytch-doctor").transport
    found = [(one.subscriptions, one.consumer.group_id) for one in wired if one.consumer.transport == transport]
    if not found:
        raise UsageProblem(f"no consumer of {target} is of the transport of this URL ({transport}); give another URL")
    return list(found)
