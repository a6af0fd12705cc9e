"""Messages on their way to PUBLISH, and what became of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dispytch.abc import Message, Receipt
from dispytch.errors import (
    BrokerError,
    BrokerUnreachableError,
    DispytchError,
    EmitError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
)
from dispytch.redis.source import import_redis, reply_text, with_advice

__all__ = ["Batch"]

_CHUNK_MESSAGES = 1000
_CHUNK_BYTES = 1024 * 1024


class Batch:
    """The messages of one ``send``, with what is known of each.

    Attributes:
        handed_over: How many of them, from the first one on, may have reached the server.
        connection: The connection that they go by, while they do.
    """

    def __init__(self, messages: Sequence[Message], address: str, timeout: float | None) -> None:
        self.handed_over: int = 0
        self.connection: Any = None
        self.aborted: bool = False
        self._messages = messages
        self._address = address
        self._outcomes: list[Receipt | EmitError] = []
        self._in_time = "in time" if timeout is None else f"within {timeout:g} s"
        self._why: str | None = None
        self._cause: BaseException | None = None
        self._refusal: EmitRejectedError | None = None

    @property
    def unconfirmed(self) -> int:
        """How many may have gone, and have no answer."""
        return self.handed_over - len(self._outcomes)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The commands in pieces to send and have confirmed one after the other: how many, and their bytes."""
        parts: list[bytes] = []
        size = 0
        for message in self._messages:
            channel, payload = message.route.address.encode(), message.payload or b""
            part = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(payload), payload)
            if parts and (len(parts) >= _CHUNK_MESSAGES or size + len(part) > _CHUNK_BYTES):
                yield self._hand_over(parts)
                parts, size = [], 0
            parts.append(part)
            size += len(part)
        if parts:
            yield self._hand_over(parts)

    def _hand_over(self, parts: list[bytes]) -> tuple[int, bytes]:
        self.handed_over += len(parts)
        return len(parts), b"".join(parts)

    def confirm(self, reply: Any) -> None:
        """The next message's reply has come: how many subscribers it reached."""
        message = self._messages[len(self._outcomes)]
        if not isinstance(reply, int):
            raise import_redis().exceptions.InvalidResponse("the reply to PUBLISH is not a number")
        self._outcomes.append(Receipt(message.id, message.route.address, receivers=reply))

    def refuse(self, error: BaseException) -> None:
        """The next message's reply has come, and is an error."""
        self._outcomes.append(self._rejected(error))

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        known = import_redis().exceptions
        if isinstance(error, BrokerUnreachableError):
            self._refusal = EmitUnreachableError(str(error))
            self._refusal.__cause__ = error.__cause__
        elif isinstance(error, BrokerError):
            self._refusal = EmitRejectedError(str(error))
            self._refusal.__cause__ = error.__cause__
        elif isinstance(
            error, known.AuthenticationError | known.AuthorizationError | known.BusyLoadingError
        ) or "max number of clients" in str(error):
            # Replies that the client takes for lost connections: no command of this connection is carried out.
            self._refusal = self._rejected(error)
        elif not isinstance(error, TimeoutError | known.TimeoutError):
            self._why = f"the connection to Redis at {self._address} broke off before the confirmation came"
            self._cause = error
        else:
            self._cause = error

    def outcomes(self) -> list[Receipt | DispytchError]:
        """The outcomes, aligned with the messages. What has no answer may have gone, if it was handed over."""
        found: list[Receipt | DispytchError] = list(self._outcomes)
        missing = len(self._messages) - len(found)
        if not missing:
            return found
        if self._refusal is not None:
            return found + [self._refusal] * missing
        why = self._why or f"no confirmation came from Redis at {self._address} {self._in_time}"
        unknown = EmitTimeoutError(f"{why}: the event may have gone")
        unknown.__cause__ = self._cause
        found += [unknown] * max(0, self.handed_over - len(found))
        why = self._why or f"Redis at {self._address} gave no connection, or none was free, {self._in_time}"
        unsent = EmitUnreachableError(
            f"{why}: the event was not sent; check the address, and that the server is running"
        )
        unsent.__cause__ = self._cause
        return found + [unsent] * (len(self._messages) - len(found))

    def _rejected(self, error: BaseException) -> EmitRejectedError:
        text = reply_text(error)
        rejected = EmitRejectedError(f"Redis at {self._address} refused the event: {with_advice(text)}")
        rejected.__cause__ = error if text == str(error) else None
        return rejected
