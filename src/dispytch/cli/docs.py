"""``dispytch docs``: the API document of a program, and whether the one in the repository is still true."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from dispytch import EventBase, EventDispatcher
from dispytch.asyncapi import document, to_html, to_json, to_yaml
from dispytch.cli.app import Command
from dispytch.cli.check import collected_warnings
from dispytch.cli.errors import CHECK_FAILED, CheckFailed, CommandError, UsageProblem
from dispytch.cli.loading import load_dispatcher, load_event
from dispytch.cli.options import app_dir_option, factory_option
from dispytch.cli.showing import printable
from dispytch.errors import ConfigurationError

__all__ = ["command"]

_WRITERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"json": to_json, "yaml": to_yaml, "html": to_html}
_SUFFIXES = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".html": "html", ".htm": "html"}
_MOST_SHOWN = 40
"""Lines of a difference."""
_WIDEST = 160
"""Characters of such a line."""


@click.command("docs", cls=Command)
@click.argument("target", metavar="[MODULE:DISPATCHER]", required=False)
@click.option(
    "--emits",
    multiple=True,
    metavar="MODULE:EVENT",
    help="An event class that is emitted, or a list of them; may be given several times.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([*_WRITERS]),
    help="By default what the name of the file says, else yaml.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file; by default standard output."
)
@click.option("--check", "is_check", is_flag=True, help="Write nothing; exit with 4 if the file says something else.")
@click.option("--title", help="The application's name; by default its module's.")
@click.option("--api-version", default="1.0.0", show_default=True, help="The version of the application's API.")
@click.option("--description", help="What the application is for.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME=URL",
    help="A broker; users, passwords and options of the URL are left out.",
)
@factory_option
@app_dir_option
@click.pass_context
def command(
    ctx: click.Context,
    target: str | None,
    emits: tuple[str, ...],
    form: str | None,
    output: Path | None,
    is_check: bool,
    title: str | None,
    api_version: str,
    description: str | None,
    servers: tuple[str, ...],
    factory: bool,
    app_dir: str,
) -> None:
    """Write the AsyncAPI document of MODULE:DISPATCHER and of the events that it emits, without a network.

    A program that only emits has --emits alone.
    """
    if target is None and not emits:
        raise UsageProblem("there is nothing to document: name a dispatcher, or event classes with --emits")
    if is_check and output is None:
        raise UsageProblem("--check compares with a file: name it with -o")
    form = form or (None if output is None else _SUFFIXES.get(output.suffix.lower())) or "yaml"
    with collected_warnings() as warnings:
        dispatcher = None if target is None else load_dispatcher(target, app_dir, factory)
        kinds = [kind for one in emits for kind in _events(one, app_dir)]
        if dispatcher is not None:
            _check(dispatcher, target)
        try:
            made = document(
                dispatcher,
                title=title or (target or emits[0]).partition(":")[0],
                version=api_version,
                description=description,
                emits=kinds,
                servers=dict(_server(one) for one in servers),
            )
        except ConfigurationError as error:  # the dispatcher is fine, so it is what else the command line names
            raise UsageProblem(str(error)) from error
    for text in dict.fromkeys(warnings):
        click.echo(f"Warning: {text}", err=True)
    text = _WRITERS[form](made)
    if output is None:
        sys.stdout.buffer.write(text.encode())  # UTF-8 like the file, whatever the terminal's own
        sys.stdout.buffer.flush()
    elif not is_check:
        _write(output, text)
        click.echo(f"{output}: {_summary(made)}", err=True)
    elif difference := list(_difference(output, text)):
        for line in difference[:_MOST_SHOWN]:
            click.echo(printable(line if len(line) <= _WIDEST else f"{line[:_WIDEST]}…"))
        if len(difference) > _MOST_SHOWN:
            click.echo(f"... and {len(difference) - _MOST_SHOWN} more lines")
        click.echo(f"Error: {output} is not what the program says; write it anew without --check", err=True)
        ctx.exit(CHECK_FAILED)
    else:
        click.echo(f"ok: {output} is what the program says")


def _check(dispatcher: EventDispatcher, target: str | None) -> None:
    try:
        dispatcher.wiring()
    except ConfigurationError as error:
        raise CheckFailed(f"{error}; `dispytch check {target}` shows all that is wrong") from error


def _events(target: str, app_dir: str) -> Iterator[type[EventBase]]:
    found = load_event(target, app_dir)
    several: Iterable[Any] = found if isinstance(found, list | tuple | set | frozenset) else [found]
    for kind in several:
        if not (isinstance(kind, type) and issubclass(kind, EventBase)):
            raise UsageProblem(
                f'"{target}" is no event class (its type is {type(kind).__name__}); name an EventBase, or a list of '
                "them"
            )
        yield kind


def _server(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        raise UsageProblem("--server takes a name and a URL: --server production=kafka://broker:9092")
    return name, url


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}; choose another file, or make its folder") from error


def _difference(file: Path, text: str) -> Iterator[str]:
    try:
        known = file.read_text("utf-8")
    except FileNotFoundError:
        yield f"{file} does not exist"
        return
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {file}: {error}; name the file that this command has written") from error
    yield from difflib.unified_diff(
        known.splitlines(), text.splitlines(), f"{file}, as it is", f"{file}, as it should be", lineterm="", n=2
    )


def _summary(made: Mapping[str, Any]) -> str:
    counts = (len(made[kind]) for kind in ("channels", "operations"))
    return ", ".join(
        f"{count} {what}{'' if count == 1 else 's'}"
        for count, what in zip(counts, ("channel", "operation"), strict=True)
    )
