"""The group of commands, what all of them share, and their way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from dispytch.cli.errors import FAILURE, INTERRUPTED, exit_code, one_line, without_passwords

__all__ = ["Command", "Group", "command", "is_debugging"]

_COMMANDS = {
    "run": "Run a dispatcher until a signal comes, then drain.",
    "check": "Check a dispatcher's wiring and configuration, without a network.",
    "emit": "Emit events, validated by their class.",
    "tail": "Show the events of a topic as they come.",
    "dead": "Look at dead letters, send them back, or drop them.",
    "health": "Tell whether a service is alive or ready.",
    "docs": "Write the API document: AsyncAPI as JSON or YAML, or a page of HTML.",
    "doctor": "Ask a broker how it is, and what it has of a dispatcher's.",
    "demo": "Run a small shop, and see what becomes of its events.",
    "bench": "Measure what a broker and this machine can do, in a minute.",
}
_EPILOG = (
    "Exit codes: 0 fine, 1 it failed, 2 the command line is wrong, or what it names cannot be imported or is not "
    "there, 3 the broker cannot be reached, 4 a check failed, 130 or 143 ended by a signal."
)


class Group(click.Group):
    """A group of commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        with _hidden_passwords():
            return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # while the command was imported; click would make a failure of it
            click.echo(err=True)
            ctx.exit(INTERRUPTED)


class _Lazy(Group):
    """Imports a command when it is run or asked for its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = import_module(f"dispytch.cli.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


class Command(click.Command):
    """A command whose errors are one line on standard error, unless ``--debug`` is given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, callback=_note, help="Show tracebacks.")
        self.params.append(debug)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _hidden_passwords():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            raise error
        except click.exceptions.Exit as error:
            raise error
        except click.Abort as error:  # a question that was answered by Ctrl-C, or by the end of standard input
            ctx.exit(INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else FAILURE)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # whoever read has seen enough, which click knows how to end
            raise
        except Exception as error:
            if is_debugging(ctx):
                raise
            click.echo(f"Error: {one_line(error)}", err=True)
            ctx.exit(exit_code(error))


@contextmanager
def _hidden_passwords() -> Iterator[None]:
    """Has click not quote the password of a URL that is in the wrong place."""
    try:
        yield
    except click.UsageError as error:
        raise click.UsageError(without_passwords(error.format_message()), error.ctx) from None


def is_debugging(ctx: click.Context) -> bool:
    """Whether the user asked for tracebacks."""
    return bool(ctx.meta.get("dispytch.debug"))


def _note(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta["dispytch.debug"] = value


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"dispytch {version('dispytch')}")
        ctx.exit()


@click.group(cls=_Lazy, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def command() -> None:
    """Typed events over Kafka, RabbitMQ and Redis: run, check and look after services."""
