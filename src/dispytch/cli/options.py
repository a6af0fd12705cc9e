"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["Option", "app_dir_option", "factory_option", "loop_option"]

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

factory_option: Option = click.option(
    "--factory", is_flag=True, help="The import string names a function that returns the dispatcher."
)
app_dir_option: Option = click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="Where modules are looked for first.",
)
loop_option: Option = click.option(
    "--loop", type=click.Choice(["asyncio", "uvloop", "trio"]), default="asyncio", show_default=True
)
