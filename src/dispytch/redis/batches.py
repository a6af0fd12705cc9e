"""Messages on their way to the server, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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

__all__ = ["Batch", "Command"]

_CHUNK_MESSAGES = 1000
_CHUNK_BYTES = 1024 * 1024


class Command(NamedTuple):
    """The command of Redis that sends a message.

    Attributes:
        pack: Its bytes for a message.
        receipt: From a message and the server's reply, which is no error, to the receipt; raises the client's
            InvalidResponse if that is no reply to this command.
    """

    pack: Callable[[Message], bytes]
    receipt: Callable[[Message, Any], Receipt]


class Batch:
    """The messages of one ``send``, with what is known of each.

    Attributes:
        handed_over: How many of them, from the first one on, may have reached the server.
        connection: The connection that they go by, while they do.
    """

    def __init__(self, messages: Sequence[Message], command: Command, address: str, timeout: float | None) -> None:
        self.handed_over: int = 0
        self.connection: Any = None
        self.aborted: bool = False
        self._messages = messages
        self._command = command
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
        pack = self._command.pack
        for message in self._messages:
            part = pack(message)
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
        """The next message's reply has come, and is no error."""
        self._outcomes.append(self._command.receipt(self._messages[len(self._outcomes)], reply))

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
