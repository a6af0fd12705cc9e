"""From a message of the client to a delivery."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from dispytch.abc import Delivery, Headers
from dispytch.kafka.partitions import Partition, Token

__all__ = ["delivery_of"]

logger: logging.Logger = logging.getLogger("dispytch")

_EXHAUSTED: Iterator[None] = iter(())
_NO_FAILURES: Mapping[str, int] = {}
_stored_position: Any = Delivery.__dict__["position"]
_stored_timestamp: Any = Delivery.__dict__["timestamp_ms"]


class KafkaDelivery(Delivery):
    """A delivery that works out what few ask for when it is asked for."""

    __slots__ = ("_message",)

    def __init__(self, message: Any, headers: Headers, key: bytes | None, token: Token, unreadable: str | None) -> None:
        # All that the class it derives from sets, but the two below.
        self.source: str
        self.partition: int | None
        self.source, self.partition = token[0].key
        self.payload: bytes | None = message.value()
        self.headers: Headers = headers
        self.key: bytes | None = key
        self.failures: Mapping[str, int] = _NO_FAILURES
        self.scope: Hashable = None
        self.as_json: bool = False
        self.deliveries: int = 0
        self.unreadable: str | None = unreadable
        self.token: Any = token
        self._message = message

    @property
    def position(self) -> str | None:
        try:
            found: str | None = _stored_position.__get__(self)
        except AttributeError:
            found = self.position = f"{self.partition}:{self.token[1]}"
        return found

    @position.setter
    def position(self, value: str | None) -> None:
        _stored_position.__set__(self, value)

    @property
    def timestamp_ms(self) -> int:
        try:
            found: int = _stored_timestamp.__get__(self)
        except AttributeError:
            kind, found = self._message.timestamp()
            if not kind:
                found = int(time.time() * 1000)
            self.timestamp_ms = found
        return found

    @timestamp_ms.setter
    def timestamp_ms(self, value: int) -> None:
        _stored_timestamp.__set__(self, value)


def delivery_of(message: Any, partition: Partition, offset: int) -> Delivery:
    """The delivery of a message of an assigned partition."""
    number = partition.key[1]
    unreadable: str | None = None
    headers: Any = ()
    try:
        # Once only: after an error the client crashes at the second time.
        found = message.headers()
        next(_EXHAUSTED, None)  # it may leave an error pending, beside a result that must not be touched
        headers = found or ()
    except Exception:
        unreadable = "the name of one of its headers is not UTF-8"
        logger.error(
            "A message from %s (%d:%d) has a header whose name is not UTF-8; its headers cannot be told.",
            partition.key[0],
            number,
            offset,
        )
    for _, value in headers:
        if value is None:
            headers = [(name, b"" if found is None else found) for name, found in headers]
            break
    return KafkaDelivery(message, headers, message.key(), (partition, offset), unreadable)
