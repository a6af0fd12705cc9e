"""A file that tells how a service is doing, for probes that run a command in its container."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from dispytch.errors import ConfigurationError
from dispytch.health.background import Background
from dispytch.health.reports import POLL_TIMEOUT, Source
from dispytch.health.sources import DispatcherSource, HasHealth

__all__ = ["INTERVAL", "Heartbeat", "keep_heartbeat"]

logger: logging.Logger = logging.getLogger("dispytch")

INTERVAL = 5.0
"""Seconds between two heartbeats."""


class Heartbeat(Background):
    """Writes a heartbeat file every 5 s while it is entered, and removes it at the end.

    Use `keep_heartbeat`, which makes one of dispatchers.

    Raises:
        ConfigurationError: (when it is entered) the file cannot be written.
    """

    def __init__(self, source: Source, file: str | os.PathLike[str]) -> None:
        self._source = source
        self._path = Path(file)

    async def _begin(self, group: TaskGroup) -> None:
        await _write(self._source, self._path)
        group.start_soon(self._go_on, name="dispytch heartbeat")

    async def _go_on(self) -> None:
        while True:
            await anyio.sleep(INTERVAL)
            try:
                await _write(self._source, self._path)
            except ConfigurationError as error:  # a full disk, say: probes fail, and the service goes on
                logger.error("%s", error)

    async def _end(self) -> None:
        await anyio.to_thread.run_sync(_remove, self._path)


def keep_heartbeat(
    *dispatchers: HasHealth, file: str | os.PathLike[str], poll_timeout: float = POLL_TIMEOUT
) -> Heartbeat:
    """A heartbeat file for ``dispytch health FILE``: ``async with keep_heartbeat(dispatcher, file="/run/alive"):``.

    Args:
        dispatchers: See `dispytch.health.serve_health`.
        file: Where; in a folder that is there.
        poll_timeout: Seconds without a poll after which a consumer that could poll counts as stuck.
    """
    return Heartbeat(DispatcherSource(dispatchers, poll_timeout), file)


async def _write(source: Source, path: Path) -> None:
    live, ready = await source.live(), await source.ready()
    content = json.dumps({"alive": live.as_json(), "ready": ready.as_json()})
    try:
        await anyio.to_thread.run_sync(_replace, path, content)
    except OSError as error:
        raise ConfigurationError(
            f"the heartbeat cannot be written to {path}: {error.strerror}; name a file in a folder that is there and "
            "that may be written to"
        ) from error


def _replace(path: Path, content: str) -> None:
    # As a whole: a probe never sees half of it.
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(content)
    beside.replace(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
