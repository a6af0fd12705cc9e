"""The log of Dispytch's commands."""

from __future__ import annotations

import logging
import os

__all__ = ["level_of", "show_logs"]


def level_of(verbosity: int) -> str:
    """The level of a command's ``--verbosity``."""
    return {0: "warning", 1: "info"}.get(verbosity, "debug")


def show_logs(verbosity: int) -> None:
    """Shows the log of Dispytch on standard error, unless the project's LOGGING has it already."""
    logger = logging.getLogger("dispytch")
    if not logger.hasHandlers():
        number = os.environ.get("DISPYTCH_WORKER")
        prefix = f"[{number}] " if number else ""
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-8s {prefix}%(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(level_of(verbosity).upper())
