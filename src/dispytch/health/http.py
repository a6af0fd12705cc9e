"""One HTTP connection, as far as probes and scrapes need it: h11 over a stream of anyio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import anyio
from anyio.abc import ByteStream

from dispytch.errors import MissingExtraError
from dispytch.health.reports import Answer

try:
    import h11
except ImportError as _missing:
    raise MissingExtraError('h11 is not installed: pip install "dispytch[http]"') from _missing

__all__ = ["Conversation"]

_LARGEST_HEAD = 16 * 1024
"""Bytes of the first line and the headers of a request."""
_RECEIVED_AT_ONCE = 4096
_PATIENCE = 5.0
"""Seconds that a client has for sending a request, and for taking an answer."""
_IDLE = 75.0
"""Seconds that a connection is kept open between requests."""


class Conversation:
    """One connection, until the client ends it, or is too slow, or says what is no HTTP."""

    def __init__(self, stream: ByteStream, answer: Callable[[bytes, bytes], Awaitable[Answer]]) -> None:
        self._stream = stream
        self._answer = answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD)

    async def hold(self) -> None:
        http = self._http
        first = True
        while True:
            try:
                request = await self._request(_PATIENCE if first else _IDLE)
                if request is None:
                    return
                await self._send(await self._answer(request.method, request.target), request.method == b"HEAD")
                # A body is nobody's here: what is not over yet is not waited for.
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    return
                http.start_next_cycle()
            except h11.RemoteProtocolError as error:
                if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send(Answer(HTTPStatus(error.error_status_hint), f"{error}\n".encode()), False)
                return
            first = False

    async def _request(self, patience: float) -> h11.Request | None:
        """The next request; ``None`` if there is none."""
        found: h11.Request | None = None
        deadline = anyio.current_time() + patience
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if found is not None:
                    return found  # with a body, which does not matter
                before = self._http.trailing_data[0]
                with anyio.fail_after(max(0.0, deadline - anyio.current_time())):
                    try:
                        data = await self._stream.receive(_RECEIVED_AT_ONCE)
                    except anyio.EndOfStream:
                        data = b""
                if data and not before and deadline - anyio.current_time() > _PATIENCE:
                    deadline = anyio.current_time() + _PATIENCE  # it has begun, and has no more than that to go on
                self._http.receive_data(data)
            elif isinstance(event, h11.Request):
                found = event
            elif found is not None and isinstance(event, h11.Data | h11.EndOfMessage):
                return found
            else:
                return None

    async def _send(self, answer: Answer, is_head: bool) -> None:
        headers = [
            ("content-type", answer.content_type),
            ("content-length", str(len(answer.body))),
            ("cache-control", "no-store"),
            *answer.headers.items(),
        ]
        if self._http.their_state is not h11.DONE:
            headers.append(("connection", "close"))
        data = self._http.send(h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase))
        if not is_head:
            data = (data or b"") + (self._http.send(h11.Data(data=answer.body)) or b"")
        self._http.send(h11.EndOfMessage())
        with anyio.fail_after(_PATIENCE):
            await self._stream.send(data or b"")
