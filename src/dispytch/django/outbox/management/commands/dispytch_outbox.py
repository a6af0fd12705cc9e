"""``manage.py dispytch_outbox``: emits what is in the outbox."""

from __future__ import annotations

import argparse
import logging
import random
import signal
import threading
from types import FrameType
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, Error, close_old_connections

from dispytch.cli.errors import USAGE, exit_code, one_line
from dispytch.django._typed import BaseCommand
from dispytch.django.logs import show_logs
from dispytch.django.outbox.relay import Relay
from dispytch.errors import BrokerError, ConfigurationError, DispytchError, EmitError

__all__ = ["Command"]

logger: logging.Logger = logging.getLogger("dispytch")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class Command(BaseCommand):
    """The command."""

    help: str = "Emits the events in the outbox until SIGINT or SIGTERM comes."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Whose outbox (default: %(default)s).")
        parser.add_argument(
            "--poll", type=_seconds, default=0.5, help="Seconds between two looks at an empty outbox (default: 0.5)."
        )
        parser.add_argument("--once", action="store_true", help="End when nothing more is due.")
        parser.add_argument("--retry", action="store_true", help="Try those again that were given up, too.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Runs it.

        Raises:
            CommandError: with ``--once``, the outbox could not be emptied.
        """
        show_logs(options["verbosity"])
        relay = Relay(options["database"])
        if options["retry"]:
            logger.info("%d events that were given up are tried again.", relay.revive())
        try:
            if options["once"]:
                _empty(relay)
            else:
                _run(relay, options["poll"])
        except (DispytchError, ImproperlyConfigured) as error:
            code = USAGE if isinstance(error, ImproperlyConfigured) else exit_code(error)
            text = str(error) if isinstance(error, ImproperlyConfigured) else one_line(error)
            raise CommandError(text, returncode=code) from error


def _empty(relay: Relay) -> None:
    try:
        while (done := relay.run_once()) != 0:
            if done is None:
                raise ConfigurationError("another process empties the outbox; wait until it has, or stop it")
    finally:
        relay.release()


def _run(relay: Relay, poll: float) -> None:
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        logger.info("%s: the last batch is finished; once more ends at once.", signal.Signals(number).name)
        stop.set()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _relay_until(stop, relay, poll)
        try:
            relay.release()
        except Error as error:
            logger.warning("The lease was not given back, and will run out: %s", one_line(error))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _relay_until(stop: threading.Event, relay: Relay, poll: float) -> None:
    failures, standing_by = 0, None
    while not stop.is_set():
        close_old_connections()
        try:
            done = relay.run_once()
        except (BrokerError, EmitError, Error) as error:
            failures += 1
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
            logger.warning("The outbox stays as it is, to be tried again in %.1f s: %s", pause, one_line(error))
            stop.wait(pause)
            continue
        if failures:
            logger.info("The outbox is emptied again.")
        failures = 0
        if (done is None) is not standing_by:
            standing_by = done is None
            logger.info("Another process empties the outbox: standing by." if standing_by else "Emptying the outbox.")
        if not done:
            stop.wait(poll)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError("it must be positive")
    return seconds
