"""Envelopes: how an event's id, type, time and key travel beside its body, and how they are read again.

The default is CloudEvents 1.0: binary mode where the transport has headers, structured JSON where it has none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import uuid4

from pydantic import BaseModel
from pydantic_core import from_json

from dispytch._core.codec import Deserializer, JSONDeserializer
from dispytch._core.deadletters import REPLAY_FOR
from dispytch._core.messages import Delivery, Features, Headers
from dispytch._core.sealing import CARRIED, Seal, Sealed, Sealing, binary, structured
from dispytch.errors import DecodeError

__all__ = [
    "CURRENT",
    "BareEnvelope",
    "ClassicEnvelope",
    "CloudEventsEnvelope",
    "Envelope",
    "Opened",
]

CURRENT: ContextVar[Opened] = ContextVar("dispytch_current_event")
"""The event that is being handled; what is emitted meanwhile carries its trace and correlation."""

TRAVELLING = ("traceparent", "tracestate", "correlationid")
"""The attributes that go from an event that is handled to those emitted meanwhile."""

_STRUCTURED = "application/cloudevents+json"
_PREFIXES = ("ce_", "ce-", "cloudEvents_", "cloudEvents:")
_JSON = JSONDeserializer()
_UNSET: Any = object()


class Opened:
    """A delivery whose envelope is open: id, type and key are known, the body is still bytes.

    Attributes:
        delivery: The message as received.
        id: The event's id.
        type: Its type, or ``None``.
        key: Its ordering key, or ``None``.
        data: The bytes that hold the body; ``None`` for a null message.
        nested: The member of ``data`` that is the body; ``None`` if all of it is.
        codec: What decodes ``data``.
        attributes: The envelope's attributes where they are not headers.
        replay_for: The value of the header ``dispytch-replay-for``, if the message has it.
    """

    __slots__ = (
        "_decoded",
        "attributes",
        "codec",
        "data",
        "delivery",
        "id",
        "key",
        "nested",
        "replay_for",
        "time",
        "type",
    )

    def __init__(
        self,
        delivery: Delivery,
        id: str,
        type: str | None,
        data: bytes | None,
        codec: Deserializer,
        time: str | float | None = None,
        key: bytes | None = None,
        *,
        nested: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        decoded: Any = _UNSET,
        replay_for: bytes | None = None,
    ) -> None:
        self.delivery: Delivery = delivery
        self.id: str = id
        self.type: str | None = type
        self.data: bytes | None = data
        self.codec: Deserializer = codec
        self.time: str | float | None = time
        self.key: bytes | None = key
        self.nested: str | None = nested
        self.attributes: Mapping[str, Any] | None = attributes
        self.replay_for: bytes | None = replay_for
        self._decoded = decoded

    @property
    def timestamp(self) -> datetime:
        """When the event was emitted, or when the broker took it, aware, UTC; the nearest date that there is."""
        try:
            if isinstance(self.time, str):
                moment = datetime.fromisoformat(self.time)
                return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
            if self.time is not None:
                return datetime.fromtimestamp(self.time, UTC)
        except (ValueError, OverflowError, OSError):
            pass  # a sender's odd clock is no reason to refuse the event
        milliseconds = self.delivery.timestamp_ms  # which on some brokers is the sender's, too
        try:
            return datetime.fromtimestamp(milliseconds / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return (datetime.max if milliseconds > 0 else datetime.min).replace(tzinfo=UTC)

    @property
    def headers(self) -> Headers:
        """The message's headers; where the transport has none, the envelope's attributes and the headers in it."""
        if self.attributes is None:
            return self.delivery.headers
        found = [
            (f"ce_{name}", str(value).encode())
            for name, value in self.attributes.items()
            if name not in ("data", "data_base64", CARRIED) and not isinstance(value, dict | list)
        ]
        carried = self.attributes.get(CARRIED)
        if isinstance(carried, str):
            with suppress(ValueError, TypeError):  # somebody else's attribute of the same name is left out
                found += [(str(name), str(value).encode()) for name, value in from_json(carried)]
        return [*self.delivery.headers, *found]

    def attribute(self, name: str) -> str | None:
        """A CloudEvents attribute by name, wherever this envelope keeps it."""
        if self.attributes is not None:
            value = self.attributes.get(name)
            return value if isinstance(value, str) else None
        for header, raw in self.delivery.headers:
            if header == name or (header[:2] in ("ce", "cl") and header in [prefix + name for prefix in _PREFIXES]):
                return raw.decode("utf-8", "replace")
        return None

    def decoded(self) -> Any:
        """The body as plain data, decoded once.

        Raises:
            DecodeError: the bytes are malformed.
        """
        if self._decoded is _UNSET:
            if self.data is None:
                self._decoded = None
            else:
                whole = decode(self.codec, self.data)
                self._decoded = whole if self.nested is None else whole[self.nested]
        return self._decoded


def decode(codec: Deserializer, data: bytes) -> Any:
    """Bytes to data, with a DecodeError that does not quote them."""
    try:
        return codec.deserialize(data)
    except Exception as error:
        problem = type(error).__name__
    # Raised out of the except clause, so that the original, which may quote the payload, is not its context.
    raise DecodeError(f"the {len(data)} bytes of the payload are not what {type(codec).__name__} reads ({problem})")


class Envelope(ABC):
    """How the attributes of an event travel with its body."""

    notes_replays: ClassVar[bool] = False
    """Whether what its openers return has ``replay_for`` set; otherwise the headers are looked through once more."""

    @abstractmethod
    def sealer(self, sealing: Sealing) -> Seal:
        """The function that wraps the events of one class; made once, called for each event."""

    @abstractmethod
    def opener(self, codec: Deserializer, features: Features) -> Callable[[Delivery], Opened]:
        """The function that opens the messages of one consumer; it raises DecodeError for what it cannot open."""


class CloudEventsEnvelope(Envelope):
    """CloudEvents 1.0, binary where there are headers, else structured JSON; also opens foreign bare payloads.

    See the specification at cloudevents.io, with its Kafka and AMQP protocol bindings.
    """

    notes_replays: ClassVar[bool] = True

    def sealer(self, sealing: Sealing) -> Seal:
        return binary(sealing) if sealing.features.headers else structured(sealing)

    def opener(self, codec: Deserializer, features: Features) -> Callable[[Delivery], Opened]:
        prefix = features.header_prefix
        attributes = ("specversion", "id", "type", "time", "partitionkey")
        names = [
            tuple(known + attribute for attribute in attributes)
            for known in (prefix, *(other for other in _PREFIXES if other != prefix))
        ]

        ours = (
            "content-type",
            *(prefix + attribute for attribute in ("specversion", "source", "type")),
            *(prefix + attribute for attribute in ("id", "time", "partitionkey")),
        )
        key_name_of_ours = ours[-1]

        def open_headers(delivery: Delivery) -> Opened:
            received = delivery.headers
            # What `binary` writes, as it writes it, costs a third of the rest.
            raw_id, raw_type, raw_time, seventh = b"", b"", b"", key_name_of_ours
            raw_key: bytes | None = None
            count = len(received)
            if count == 6:
                (first, _), (second, _), (third, _), (fourth, raw_type), (fifth, raw_id), (sixth, raw_time) = received
            elif count == 7:
                (
                    (first, _),
                    (second, _),
                    (third, _),
                    (fourth, raw_type),
                    (fifth, raw_id),
                    (sixth, raw_time),
                    (seventh, raw_key),
                ) = received
            if raw_id and raw_type and raw_time and (first, second, third, fourth, fifth, sixth, seventh) == ours:
                return Opened(
                    delivery,
                    raw_id.decode("utf-8", "backslashreplace"),
                    raw_type.decode("utf-8", "backslashreplace"),
                    delivery.payload,
                    codec,
                    raw_time.decode("utf-8", "replace"),
                    delivery.key or raw_key,
                )
            headers = dict(received)
            for version_name, id_name, type_name, time_name, key_name in names:
                if version_name in headers:
                    foreign_id = headers.get(id_name)
                    if not foreign_id:
                        raise DecodeError("the message has CloudEvents headers, but no id among them")
                    kind = headers.get(type_name)
                    time = headers.get(time_name)
                    return Opened(
                        delivery,
                        foreign_id.decode("utf-8", "backslashreplace"),
                        None if kind is None else kind.decode("utf-8", "backslashreplace"),
                        delivery.payload,
                        codec,
                        None if time is None else time.decode("utf-8", "replace"),
                        delivery.key or headers.get(key_name),
                        replay_for=headers.get(REPLAY_FOR),
                    )
            content_type = headers.get("content-type") or headers.get("content_type") or b""
            if content_type.startswith(_STRUCTURED.encode()) and delivery.payload is not None:
                document = decode(_JSON, delivery.payload)
                if not _is_event(document):
                    raise DecodeError("the message says that it is a CloudEvent, but lacks specversion, id or type")
                opened = _open_structured(delivery, document, codec)
            else:
                opened = _open_bare(delivery, codec)
            opened.replay_for = headers.get(REPLAY_FOR)
            return opened

        def open_payload(delivery: Delivery) -> Opened:
            payload = delivery.payload
            if payload is not None and payload.lstrip()[:1] == b"{":
                try:
                    document = from_json(payload)
                except ValueError:
                    return _open_bare(delivery, codec)
                if _is_event(document):
                    return _open_structured(delivery, document, codec)
            return _open_bare(delivery, codec)

        return open_headers if features.headers else open_payload


class BareEnvelope(Envelope):
    """The payload alone, for systems that know no envelope.

    Args:
        type_field: The member of the payload that tells the event's type; without it events have no type.
    """

    def __init__(self, type_field: str | None = None) -> None:
        self.type_field: str | None = type_field

    def sealer(self, sealing: Sealing) -> Seal:
        serialize, field = sealing.serializer.serialize, self.type_field
        content_type = ("content-type", sealing.serializer.content_type.encode())
        has_headers = sealing.features.headers

        def seal(
            id: str, time: float, key: bytes | None, body: Any, travelling: Sequence[tuple[str, str]], own: Headers
        ) -> Sealed:
            payload = serialize(body if field is None else {field: sealing.type, **_plain(body)})
            if not has_headers:
                return (), payload
            return (content_type, *((name, value.encode()) for name, value in travelling), *own), payload

        return seal

    def opener(self, codec: Deserializer, features: Features) -> Callable[[Delivery], Opened]:
        field = self.type_field

        def open_typed(delivery: Delivery) -> Opened:
            if field is None or delivery.payload is None:
                return _open_bare(delivery, codec)
            data = decode(_codec_of(delivery, codec), delivery.payload)
            kind = data.get(field) if isinstance(data, dict) else None
            opened = _open_bare(delivery, codec, decoded=data)
            opened.type = kind if isinstance(kind, str) else None
            return opened

        return open_typed


class ClassicEnvelope(Envelope):
    """The envelope of Dispytch 0.10: a document with ``id``, ``type``, ``body``, and ``timestamp`` in milliseconds."""

    def sealer(self, sealing: Sealing) -> Seal:
        serialize = sealing.serializer.serialize
        content_type = ("content-type", sealing.serializer.content_type.encode())

        def seal(
            id: str, time: float, key: bytes | None, body: Any, travelling: Sequence[tuple[str, str]], own: Headers
        ) -> Sealed:
            payload = serialize({"id": id, "type": sealing.type, "body": body, "timestamp": int(time * 1000)})
            if not sealing.features.headers:
                return (), payload
            return (content_type, *((name, value.encode()) for name, value in travelling), *own), payload

        return seal

    def opener(self, codec: Deserializer, features: Features) -> Callable[[Delivery], Opened]:
        def open_classic(delivery: Delivery) -> Opened:
            if delivery.payload is None:
                return _open_bare(delivery, codec)
            actual = _codec_of(delivery, codec)
            document = decode(actual, delivery.payload)
            if not isinstance(document, dict) or "body" not in document:
                raise DecodeError("the payload is no classic envelope: it has no member 'body'")
            id, kind, time = document.get("id"), document.get("type"), document.get("timestamp")
            return Opened(
                delivery,
                str(id) if id else _foreign_id(delivery),
                kind if isinstance(kind, str) else None,
                delivery.payload,
                actual,
                time=_seconds(time),
                key=delivery.key,
                nested="body",
                decoded=document["body"],
            )

        return open_classic


def _seconds(milliseconds: Any) -> str | float | None:
    if not isinstance(milliseconds, int | float):
        return milliseconds if isinstance(milliseconds, str) else None
    try:
        return milliseconds / 1000
    except OverflowError:  # an integer that no float can be
        return None


def _plain(body: Any) -> dict[str, Any]:
    return body.model_dump(by_alias=True) if isinstance(body, BaseModel) else dict(body)


def _foreign_id(delivery: Delivery) -> str:
    return delivery.position or str(uuid4())


def _codec_of(delivery: Delivery, codec: Deserializer) -> Deserializer:
    return _JSON if delivery.as_json else codec


def _open_bare(delivery: Delivery, codec: Deserializer, *, decoded: Any = _UNSET) -> Opened:
    codec = _codec_of(delivery, codec)
    return Opened(delivery, _foreign_id(delivery), None, delivery.payload, codec, key=delivery.key, decoded=decoded)


def _is_event(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("specversion"), str)
        and isinstance(document.get("id"), str)
        and document["id"] != ""
        and isinstance(document.get("type"), str)
    )


def _open_structured(delivery: Delivery, document: dict[str, Any], codec: Deserializer) -> Opened:
    attributes = {name: value for name, value in document.items() if name not in ("data", "data_base64")}
    time, key = document.get("time"), document.get("partitionkey")
    opened = Opened(
        delivery,
        document["id"],
        document["type"],
        None,
        codec,
        time=time if isinstance(time, str) else None,
        key=delivery.key or (key.encode() if isinstance(key, str) else None),
        attributes=attributes,
    )
    encoded = document.get("data_base64")
    if isinstance(encoded, str):
        try:
            opened.data = b64decode(encoded, validate=True)
        except ValueError:
            raise DecodeError("the CloudEvent's data_base64 is not base64") from None
    elif "data" in document:
        # The body is inside the JSON of the envelope, whatever the consumer's own codec is.
        opened.data, opened.nested, opened.codec = delivery.payload, "data", _JSON
        opened._decoded = document["data"]
    return opened
