"""From the bytes of a subscribed connection to deliveries."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from dispytch.abc import Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.redis.channels import Channels, decode
from dispytch.redis.source import with_advice

__all__ = ["PING", "Feed", "closed_error", "deliveries_of", "silent_error"]

PING = b"*1\r\n$4\r\nPING\r\n"
"""What is asked on a connection to see whether the server answers at all."""


def closed_error(address: str) -> BrokerUnreachableError:
    return BrokerUnreachableError(f"Redis at {address} closed the connection")


def silent_error(address: str, seconds: float) -> BrokerUnreachableError:
    return BrokerUnreachableError(f"Redis at {address} has not answered a PING for {seconds:g} s")


class Feed:
    """What comes on one connection, the confirmations of its subscriptions among it."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._channels = channels
        self._address = address
        import hiredis

        self._hiredis = hiredis
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._unconfirmed = {*channels.channels, *channels.patterns}

    @property
    def is_confirmed(self) -> bool:
        """Whether the server has confirmed every subscription."""
        return not self._unconfirmed

    def commands(self) -> list[bytes]:
        """What subscribes."""
        return [
            _packed(name, *given)
            for name, given in ((b"SUBSCRIBE", self._channels.channels), (b"PSUBSCRIBE", self._channels.patterns))
            if given
        ]

    def take(self, data: bytes) -> list[Delivery]:
        """The deliveries that some bytes complete.

        Raises:
            BrokerError: the server has refused something.
            BrokerUnreachableError: this is not Redis.
        """
        self._reader.feed(data)
        try:
            return deliveries_of(self._replies(), self._channels)
        except self._hiredis.ProtocolError as error:
            raise BrokerUnreachableError(
                f"what answers at {self._address} does not speak Redis's protocol; check the address and the port"
            ) from error

    def _replies(self) -> Iterable[list[Any]]:
        while (reply := self._reader.gets()) is not _NOTHING:
            if isinstance(reply, self._hiredis.ReplyError):
                text = str(reply).partition(", with args beginning")[0]
                if text.startswith(("LOADING", "ERR max number of clients")):
                    raise BrokerUnreachableError(f"Redis at {self._address} takes no subscriptions now: {text}")
                raise BrokerError(
                    f"Redis at {self._address} refused to subscribe to {self._channels}: {with_advice(text)}"
                )
            if not isinstance(reply, list):
                continue  # the answer to a PING where nothing is subscribed
            if reply[0] in (b"subscribe", b"psubscribe"):
                self._unconfirmed.discard(reply[1])
            yield reply


_NOTHING: Any = object()


def _packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def deliveries_of(replies: Iterable[list[Any]], channels: Channels) -> list[Delivery]:
    """The messages among some replies, less the copies that are not to be taken."""
    found: list[Delivery] = []
    now = int(time.time() * 1000)
    source_of = channels.source
    for reply in replies:
        kind = reply[0]
        if kind == b"message":
            source = source_of(reply[1], None)
            payload = reply[2]
        elif kind == b"pmessage":
            source = source_of(reply[2], reply[1])
            payload = reply[3]
        elif kind == b"smessage":
            source, payload = decode(reply[1]), reply[2]
        else:
            continue
        if source is not None:
            found.append(Delivery(source, payload, (), timestamp_ms=now))
    return found
