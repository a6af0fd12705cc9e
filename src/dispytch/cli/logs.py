"""Logs of programs that ``dispytch run`` starts: text for people, or JSON, one object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["FORMATS", "LEVELS", "configure"]

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error", "critical")

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _JSONFormatter(logging.Formatter):
    """What was logged, with everything that was given by ``extra=``."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        found.update((name, value) for name, value in vars(record).items() if name not in _USUAL)
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False, default=str)


def configure(format: str, level: str, worker: str = "") -> None:
    """Has everything that the program logs go to standard error.

    A program that configures logging itself, when it is imported, replaces this.

    Args:
        format: One of `FORMATS`.
        level: One of `LEVELS`.
        worker: Which worker process this is, for the text.
    """
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(_JSONFormatter())
    else:
        prefix = f"[{worker}] " if worker else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-8s {prefix}%(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
