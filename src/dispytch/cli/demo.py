"""``dispytch demo``: a small shop, whose events show what becomes of them."""

from __future__ import annotations

from pathlib import Path

import anyio
import click

from dispytch._runtime.dispatcher import loop_options
from dispytch.cli.app import Command
from dispytch.cli.brokers import any_url, declaring
from dispytch.cli.options import loop_option

__all__ = ["command"]


@click.command("demo", cls=Command)
@click.argument("url", type=any_url, default="memory://demo", metavar="[URL]")
@loop_option
@click.option("--source", is_flag=True, help="Print the program instead of running it.")
def command(url: str, loop: str, source: bool) -> None:
    """Run a small shop: its events are emitted, routed, validated, handled, tried again and acknowledged.

    On the broker in the process, or on the one of URL, such as kafka://localhost:9092.
    """
    from dispytch.cli import _shop as shop

    if source:
        click.echo(Path(shop.__file__).read_text(), nl=False)
        return
    backend = "trio" if loop == "trio" else "asyncio"
    with declaring():
        anyio.run(shop.main, url, backend=backend, backend_options=loop_options(backend, loop == "uvloop"))
