"""The replies of a connection that is read below the client's own parser."""

from __future__ import annotations

from typing import Any

__all__ = ["Replies"]

_NOTHING: Any = object()


class Replies:
    """What has come of the replies that are waited for.

    Args:
        options: Of ``hiredis.Reader``; by default errors among the replies are ``hiredis.ReplyError``, and what is no
            reply raises ``hiredis.ProtocolError``.
    """

    def __init__(self, **options: Any) -> None:
        import hiredis

        self.protocol_error: type[Exception] = options.get("protocolError", hiredis.ProtocolError)
        self._reader = hiredis.Reader(notEnoughData=_NOTHING, **options)
        self._found: list[Any] = []
        self._missing = 0

    def expect(self, count: int) -> None:
        """So many more are waited for."""
        self._missing += count

    def feed(self, data: bytes) -> None:
        """Takes what the server has sent."""
        self._reader.feed(data)
        while self._missing and (reply := self._reader.gets()) is not _NOTHING:
            self._found.append(reply)
            self._missing -= 1

    @property
    def are_all_there(self) -> bool:
        """Whether none is waited for any more."""
        return not self._missing

    def taken(self) -> list[Any]:
        """Those that have come and were not taken."""
        found, self._found = self._found, []
        return found
