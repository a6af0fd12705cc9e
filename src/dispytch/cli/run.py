"""``dispytch run``: a dispatcher as a program, or as several."""

from __future__ import annotations

from pathlib import Path

import click

from dispytch.cli.app import Command, is_debugging
from dispytch.cli.errors import CONFIGURATION, FAILURE, sole
from dispytch.cli.logs import FORMATS, LEVELS
from dispytch.cli.options import app_dir_option, factory_option, loop_option
from dispytch.cli.serving import RunOptions, report, serve

__all__ = ["command"]


@click.command("run", cls=Command)
@click.argument("target", metavar="MODULE:DISPATCHER")
@loop_option
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that share the events."
)
@click.option(
    "--reload", is_flag=True, help="Drain and start again when a Python file of the working directory changes."
)
@factory_option
@app_dir_option
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@click.option(
    "--log-config",
    type=click.Path(exists=True, dir_okay=False),
    help="A file of logging.config, JSON or INI, in the place of the two above.",
)
@click.option("--http", metavar="[HOST:]PORT", help="Tell health and metrics there: /livez, /readyz, /metrics.")
@click.option(
    "--heartbeat",
    type=click.Path(dir_okay=False),
    help="Tell health in a file, for `dispytch health FILE`.",
)
@click.pass_context
def command(
    ctx: click.Context,
    target: str,
    loop: str,
    workers: int,
    reload: bool,
    factory: bool,
    app_dir: str,
    log_format: str,
    log_level: str,
    log_config: str | None,
    http: str | None,
    heartbeat: str | None,
) -> None:
    """Run the dispatcher MODULE:DISPATCHER until SIGINT or SIGTERM comes.

    The first signal drains: nothing more is fetched, what is in flight finishes. A second one cancels it.
    """
    debug = is_debugging(ctx)
    options = RunOptions(
        target,
        app_dir,
        factory,
        loop,
        log_format,
        log_level,
        debug,
        workers,
        log_config=log_config,
        http=http,
        heartbeat=heartbeat,
    )
    if workers > 1 or reload:
        from dispytch.cli.supervisor import Supervisor

        ctx.exit(Supervisor(options, Path.cwd() if reload else None).run())
    try:
        code = serve(options)
    except Exception as error:
        code = report(sole(error), options)
    ctx.exit(FAILURE if code == CONFIGURATION else code)
