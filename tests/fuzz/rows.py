"""Bad input by name: what a foreign program might publish, and what is to become of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat

__all__ = ["MSGPACK_GOOD", "ROWS", "Bad", "Body", "Codec", "Outcome", "good"]

Codec = Literal["json", "msgpack"]
Outcome = Literal["dead letter", "handled", "skipped"]
RawHeaders = tuple[tuple[bytes, bytes], ...]


class Body(BaseModel):
    """What the handler takes."""

    n: int
    finite: FiniteFloat = 0.0
    loose: float = 0.0
    more: Any = None


@dataclass(frozen=True)
class Bad:
    """A message that nobody should send.

    Attributes:
        name: The row's.
        payload: Its bytes.
        headers: Names and values.
        codec: What the consumer reads.
        becomes: What is to become of it.
        timestamp: In the transport's own unit, as large as it takes.
        only: The transports where it can occur; none for all.
        differs: What becomes of it where that is not the same.
    """

    name: str
    payload: bytes | None
    headers: RawHeaders = ()
    codec: Codec = "json"
    becomes: Outcome = "dead letter"
    timestamp: int | None = None
    only: Sequence[str] = ()
    differs: tuple[tuple[str, Outcome], ...] = ()

    def outcome(self, transport: str) -> Outcome:
        return dict(self.differs).get(transport, self.becomes)


def good(codec: Codec, number: int) -> bytes:
    """The payload of an event that is right."""
    return b'{"n": %d}' % number if codec == "json" else MSGPACK_GOOD + number.to_bytes(4, "big")


MSGPACK_GOOD = b"\x81\xa1n\xce"

_WITH_HEADERS = ("memory", "Kafka", "RabbitMQ", "Redis Streams")
_CLOUDEVENT = ((b"ce_specversion", b"1.0"), (b"ce_id", b"1"), (b"ce_type", b"t"))
_STRUCTURED = ((b"content-type", b"application/cloudevents+json"),)
_FORGED = (
    *((b"dispytch-dead-error", b"forged"), (b"dispytch-dead-source", b"forged"), (b"dispytch-dead-attempts", b"99")),
    *((b"dispytch-attempt", b"99"), (b"dispytch-", b"\xff"), (b"traceparent", b"\xff" * 2000)),
)
_ODD_NAMES = ((b"a\0b", b"1"), (b"a\r\nb", b"2"), (b"k" * 200, b"3"), (b" ", b"\r\n"))
_EMPTY_MAPS = b"\xdd" + (125_000).to_bytes(4, "big") + b"\x80" * 125_000
_LARGE = tuple((b"large-%d" % number, b"x" * 10_000) for number in range(10))

ROWS: Sequence[Bad] = [
    Bad("JSON nested 200,000 deep, not closed", b"[" * 200_000),
    Bad("JSON nested 200,000 deep", b'{"n": 1, "more": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    Bad("integer of 5,000 digits", b'{"n": ' + b"9" * 5_000 + b"}"),
    Bad("integer of 5,000 digits in a field of any type", b'{"n": 1, "more": ' + b"9" * 5_000 + b"}"),
    Bad("NaN where the model wants finite numbers", b'{"n": 1, "finite": NaN}'),
    Bad("NaN where the model takes it", b'{"n": 1, "loose": NaN}', becomes="handled"),
    Bad("invalid UTF-8", b'{"n": 1, "more": "\xff\xfe"}'),
    Bad("lone surrogate, escaped", b'{"n": 1, "more": "\\ud800"}'),
    Bad("lone surrogate, as bytes", b'{"n": 1, "more": "\xed\xa0\x80"}'),
    Bad("UTF-16", '{"n": 1}'.encode("utf-16")),
    Bad("no JSON at all", b"\0\x01\x02 hello"),
    Bad("empty payload", b""),
    Bad("the text null", b"null"),
    Bad("JSON that does not fit", b'{"m": 1}'),
    Bad("payload over max_payload_bytes", b'{"n": 1, "more": "' + b"x" * 1024 * 1024 + b'"}'),
    Bad(
        "null payload",
        None,
        headers=_CLOUDEVENT,
        becomes="skipped",
        only=("memory", "Kafka", "Redis Streams"),
    ),
    Bad(
        "fields, but no payload",
        None,
        headers=((b"n", b"many"), (b"\xff", b"\xff")),
        only=("Redis Streams",),
    ),
    Bad("MessagePack that claims an array of 4 GiB", b"\xdd\xff\xff\xff\xff", codec="msgpack"),
    Bad("MessagePack that claims a map of 4 GiB", b"\xdf\xff\xff\xff\xff", codec="msgpack"),
    Bad("MessagePack that claims a text of 4 GiB", b"\xdb\xff\xff\xff\xff", codec="msgpack"),
    Bad("MessagePack that claims bytes of 4 GiB", b"\xc6\xff\xff\xff\xff", codec="msgpack"),
    Bad("MessagePack that claims an extension of 4 GiB", b"\xc9\xff\xff\xff\xff\x05", codec="msgpack"),
    Bad("MessagePack nested 100,000 deep, not closed", b"\x91" * 100_000, codec="msgpack"),
    Bad("MessagePack nested 100,000 deep", b"\x82\xa1n\x01\xa4more" + b"\x91" * 100_000 + b"\xc0", codec="msgpack"),
    Bad("1 MB of empty maps", b"\xdd" + (999_000).to_bytes(4, "big") + b"\x80" * 999_000, codec="msgpack"),
    Bad("1 MB of empty maps, in eight arrays", b"\x98" + _EMPTY_MAPS * 8, codec="msgpack"),
    Bad("MessagePack text that is no UTF-8", b"\x82\xa1n\x01\xa4more\xa2\xff\xfe", codec="msgpack"),
    Bad("MessagePack date beyond all dates", b"\x82\xa1n\x01\xa4more\xc7\x0c\xff" + b"\xff" * 12, codec="msgpack"),
    Bad("MessagePack map with a list as its key", b"\x82\xa1n\x01\x91\x01\x01", codec="msgpack"),
    Bad("CloudEvent without an id", b'{"n": 1}', headers=_CLOUDEVENT[:1], only=_WITH_HEADERS),
    Bad("CloudEvent in structured mode that is none", b'{"n": 1}', headers=_STRUCTURED, only=_WITH_HEADERS),
    Bad(
        "CloudEvent whose data_base64 is not base64",
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": "t", "data_base64": "***"}',
        headers=_STRUCTURED,
    ),
    Bad(
        "header name that is not UTF-8",
        b'{"n": 1}',
        headers=((b"\xff\xfe", b"1"),),
        becomes="handled",
        only=("Kafka", "RabbitMQ", "Redis Streams"),
        differs=(("Kafka", "dead letter"),),
    ),
    Bad(
        "header name that is not UTF-8, and JSON that does not fit",
        b"{}",
        headers=((b"\xff\xfe", b"1"), (b"fine", b"2")),
        only=("Kafka", "RabbitMQ", "Redis Streams"),
    ),
    Bad(
        "header names with NUL, CR, LF, and over 128 bytes",
        b'{"n": 1}',
        headers=_ODD_NAMES,
        becomes="handled",
        only=_WITH_HEADERS,
    ),
    Bad("odd header names, and JSON that does not fit", b"{}", headers=_ODD_NAMES, only=_WITH_HEADERS),
    Bad("100 KB of headers", b'{"n": 1}', headers=_LARGE, becomes="handled", only=_WITH_HEADERS),
    Bad("100 KB of headers, and JSON that does not fit", b"{}", headers=_LARGE, only=_WITH_HEADERS),
    Bad("headers that pretend to be ours", b'{"n": 1}', headers=_FORGED, becomes="handled", only=_WITH_HEADERS),
    Bad("headers that pretend to be ours, and JSON that does not fit", b"[]", headers=_FORGED, only=_WITH_HEADERS),
    Bad("timestamp beyond all dates", b'{"n": 1}', becomes="handled", timestamp=2**62, only=("Kafka", "RabbitMQ")),
]
