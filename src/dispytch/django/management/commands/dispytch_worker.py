"""``manage.py dispytch_worker``: runs the handlers of the project."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, SystemCheckError
from django.db import connections

from dispytch.cli.errors import CHECK_FAILED, CONFIGURATION, FAILURE, USAGE, exit_code, one_line, sole
from dispytch.cli.serving import RunOptions, serve_until_signal, warn_of_repeats
from dispytch.cli.supervisor import Supervisor
from dispytch.cli.worker import follow_supervisor
from dispytch.django import conf, dispatcher
from dispytch.django._typed import BaseCommand
from dispytch.django.logs import level_of, show_logs
from dispytch.errors import ConfigurationError

__all__ = ["Command"]

_CHILD = "DISPYTCH_WORKER"
"""The environment variable that a supervisor sets for its workers."""


class Command(BaseCommand):
    """The command."""

    help: str = "Runs the project's handlers until SIGINT or SIGTERM comes, then drains; a second signal cancels."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments."""
        parser.add_argument(
            "dispatcher",
            nargs="?",
            default=conf.DEFAULT,
            help="The alias of the dispatcher in DISPYTCH['DISPATCHERS'] (default: %(default)s).",
        )
        parser.add_argument(
            "--loop",
            choices=["asyncio", "uvloop", "trio"],
            default="asyncio",
            help="The event loop (default: %(default)s). On trio, asynchronous handlers cannot use the ORM.",
        )
        parser.add_argument(
            "--workers", type=_positive, default=1, help="Processes that share the events (default: %(default)s)."
        )
        parser.add_argument(
            "--reload",
            action="store_true",
            help="Drain and start again when a Python file in the folder of manage.py changes.",
        )

    def check(self, *args: Any, **options: Any) -> None:
        """Runs the system checks; if they fail, the exit code says so."""
        try:
            super().check(*args, **options)
        except SystemCheckError as error:
            error.returncode = CHECK_FAILED
            raise

    def handle(self, *args: Any, **options: Any) -> None:
        """Runs it.

        Raises:
            CommandError: it failed, with the exit codes of docs/guide/command-line.md.
        """
        alias, loop, workers = options["dispatcher"], options["loop"], options["workers"]
        level = level_of(options["verbosity"])
        is_child = _CHILD in os.environ
        if not is_child and (workers > 1 or options["reload"]):
            run = RunOptions(alias, "", False, loop, "text", level, options["traceback"], workers)
            folder = Path(sys.argv[0]).resolve().parent if options["reload"] else None
            sys.exit(Supervisor(run, folder, [sys.executable, *sys.orig_argv[1:]]).run())
        if is_child:
            follow_supervisor()
        show_logs(options["verbosity"])
        try:
            made = dispatcher(alias)
            if workers > 1:
                warn_of_repeats(made, workers)
            connections.close_all()  # what the checks have opened is not for the whole life of the worker
            serve_until_signal(made, loop)
        except Exception as raised:
            error = sole(raised)
            code = USAGE if isinstance(error, ImproperlyConfigured) else exit_code(error)
            if is_child and code == FAILURE and isinstance(error, ConfigurationError):
                code = CONFIGURATION
            text = str(error) if isinstance(error, ImproperlyConfigured) else one_line(error)
            raise CommandError(text.replace("--debug shows", "--traceback shows"), returncode=code) from raised


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("there is at least one")
    return number
