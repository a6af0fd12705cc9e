"""Options that several commands have."""

from __future__ import annotations

import click

__all__ = ["app_dir_option", "factory_option"]

factory_option = click.option(
    "--factory", is_flag=True, help="The import string names a function that returns the dispatcher."
)
app_dir_option = click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="Where modules are looked for first.",
)
