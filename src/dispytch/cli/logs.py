"""Logs of programs that ``dispytch run`` starts: text for people, or JSON, one object a line."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dispytch.cli.errors import UsageProblem
from dispytch.logs import EventFields

__all__ = ["FORMATS", "LEVELS", "configure"]

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error", "critical")

_TALKATIVE = ("pika", "aio_pika", "aiormq")
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


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is for people who run the program: clients of RabbitMQ log each step of connecting and closing."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _TALKATIVE


def configure(format: str, level: str, worker: str = "", config: str | None = None) -> None:
    """Has everything that the program logs go to standard error.

    A program that configures logging itself, when it is imported, replaces this.

    Args:
        format: One of `FORMATS`.
        level: One of `LEVELS`.
        worker: Which worker process this is, for the text.
        config: A file that says all of it, in the place of the others.

    Raises:
        UsageProblem: the file cannot be used.
    """
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(_JSONFormatter())
    else:
        prefix = f"[{worker}] " if worker else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-8s {prefix}%(name)s: %(message)s"))
    handler.addFilter(EventFields())
    if level == "info":
        handler.addFilter(_is_news)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if config is None:
        return
    try:
        _apply(Path(config))
    except Exception as error:  # the file names classes, and they raise what they like
        raise UsageProblem(
            f"the logging configuration {config} cannot be used: {'; '.join(_reasons(error))}; correct it, as "
            "docs.python.org/3/library/logging.config.html has it"
        ) from error
    logging.getLogger().removeHandler(handler)  # it is there still if the file does not speak of the root


def _apply(file: Path) -> None:
    kind = file.suffix.lower()
    if kind in (".yaml", ".yml"):
        raise ValueError("it is YAML; write it as JSON or INI")
    # Loggers that exist are kept unless the file says otherwise: ours do, and would fall silent.
    if kind != ".json":
        logging.config.fileConfig(file, disable_existing_loggers=False)
        return
    try:
        given: Any = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"it holds a {type(given).__name__} and no object")
    logging.config.dictConfig({"disable_existing_loggers": False, **given})


def _reasons(error: BaseException | None) -> Iterator[str]:
    """What went wrong, and why: logging.config wraps the error that helps."""
    while error is not None:
        text = " ".join(str(error).split())
        yield text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
        error = error.__cause__
