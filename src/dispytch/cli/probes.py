"""What a process of ``dispytch run`` tells of itself, and what the supervisor tells of its workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from pydantic_core import from_json

from dispytch._runtime.dispatcher import EventDispatcher
from dispytch.cli.errors import UsageProblem
from dispytch.errors import MissingExtraError
from dispytch.health.background import Background
from dispytch.health.heartbeat import Heartbeat
from dispytch.health.reports import POLL_TIMEOUT, Report, Source
from dispytch.health.server import HealthServer
from dispytch.health.sources import DispatcherSource, page_of

if TYPE_CHECKING:
    from dispytch.cli.serving import RunOptions

__all__ = ["Fleet", "Place", "address_of", "probes", "probes_of", "socket_of"]

_ANSWER_TIME = 2.0
"""Seconds in which a worker whose loop turns answers its supervisor."""


def address_of(text: str) -> tuple[str, int]:
    """Host and port of ``[HOST:]PORT``; an IPv6 address is in brackets.

    Raises:
        UsageProblem: it is neither.
    """
    host, _, port = text.rpartition(":")
    host = host or "127.0.0.1"
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageProblem(f"--http {text}: an IPv6 address is in brackets, such as [::1]:8080")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise UsageProblem(f"--http {text}: give a port, or an address and a port, such as 8080 or 0.0.0.0:8080")
    return host, int(port)


def probes(source: Source, http: str | None, heartbeat: str | None) -> list[Background]:
    """What is to run beside a source that is asked by others."""
    found: list[Background] = []
    if http is not None:
        found.append(HealthServer(source, *address_of(http)))
    if heartbeat is not None:
        found.append(Heartbeat(source, heartbeat))
    return found


def probes_of(dispatcher: EventDispatcher, options: RunOptions) -> list[Background]:
    """What is to run beside the dispatcher of this process."""
    source = DispatcherSource([dispatcher], POLL_TIMEOUT)
    if options.http is not None:
        source.page = page_of([dispatcher], None, all_processes=not options.socket)
    if options.socket is not None:
        return [HealthServer(source, path=options.socket)]
    return probes(source, options.http, options.heartbeat)


def socket_of(folder: Path, number: int) -> str:
    """Where a worker answers its supervisor."""
    return str(folder / f"{number}.sock")


class Place(NamedTuple):
    """A worker that is there, or will be again in a moment: then it has no process."""

    number: int
    pid: int | None


class _Reply(NamedTuple):
    status: int
    body: bytes


class Fleet:
    """All workers of a supervisor as what a server asks; it asks them itself, each at its socket.

    Args:
        folder: Where their sockets are.
        places: Tells the workers that are there.
    """

    def __init__(self, folder: Path, places: Callable[[], Sequence[Place]]) -> None:
        self._folder = folder
        self._places = places

    async def live(self) -> Report:
        return await self._report("/livez", is_needed=False)

    async def ready(self) -> Report:
        return await self._report("/readyz", is_needed=True)

    async def metrics(self) -> bytes | None:
        pages = {
            str(place.number): reply.body
            for place, reply in (await self._ask("/metrics")).items()
            if isinstance(reply, _Reply) and reply.status == HTTPStatus.OK
        }
        try:
            from dispytch.metrics import merged
        except MissingExtraError:
            return None
        return merged(pages)

    async def _report(self, page: str, *, is_needed: bool) -> Report:
        """What all say.

        Args:
            is_needed: Whether one that is still being started, or none at all, is a reason.
        """
        reasons: list[str] = []
        workers: list[dict[str, Any]] = []
        replies = await self._ask(page)
        for place, reply in replies.items():
            told: dict[str, Any] = {}
            if isinstance(reply, _Reply) and reply.status not in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
                reasons.append(f"worker {place.number} cannot tell: its log says why")
            elif isinstance(reply, _Reply):
                told = from_json(reply.body)
                reasons += [f"worker {place.number}: {reason}" for reason in told["reasons"]]
            elif isinstance(reply, TimeoutError):
                reasons.append(f"worker {place.number} has not answered for {_ANSWER_TIME:g} s")
            elif is_needed:
                reasons.append(f"worker {place.number} is being started")
            workers.append({"worker": place.number, "pid": place.pid, **told})
        if is_needed and not replies:
            reasons.append("no worker runs")
        return Report(reasons, {"workers": workers})

    async def _ask(self, page: str) -> Mapping[Place, _Reply | OSError]:
        replies: dict[Place, _Reply | OSError] = {}

        async def ask(place: Place) -> None:
            try:
                with anyio.fail_after(_ANSWER_TIME):
                    replies[place] = await _get(socket_of(self._folder, place.number), page)
            except (anyio.BrokenResourceError, anyio.EndOfStream) as error:  # it has just ended
                replies[place] = OSError(str(error))
            except OSError as error:  # it does not listen yet; or, a TimeoutError, its loop is stuck
                replies[place] = error

        places = self._places()
        async with anyio.create_task_group() as group:
            for place in places:
                group.start_soon(ask, place)
        return {place: replies[place] for place in places}


async def _get(path: str, page: str) -> _Reply:
    async with await anyio.connect_unix(path) as stream:
        await stream.send(f"GET {page} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n".encode())
        data = b""
        try:
            while True:
                data += await stream.receive()
        except anyio.EndOfStream:
            pass
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        raise ConnectionError("it has not answered")
    return _Reply(int(head.split(maxsplit=2)[1]), body)
