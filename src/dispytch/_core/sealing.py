"""Sealing a CloudEvent: its attributes as headers beside the body, or around it in one JSON document."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dispytch._core.codec import Serializer
from dispytch._core.messages import Features, Headers

__all__ = ["CARRIED", "Seal", "Sealed", "Sealing", "binary", "structured"]

CARRIED = "dispytchheaders"
"""The attribute that carries an event's own headers where the transport has none."""


class Sealing(NamedTuple):
    """What is known of an event class when its envelope is compiled."""

    type: str
    source: str
    serializer: Serializer
    features: Features


Sealed = tuple[Headers, bytes]
Seal = Callable[[str, float, bytes | None, Any, Sequence[tuple[str, str]], Headers], Sealed]
"""From id, time (seconds since the epoch), key, body, travelling attributes and own headers to headers and payload."""


_last_second: tuple[int, str] = (-1, "")


def _stamp(time: float) -> str:
    # Formatting a date costs more than everything else in an envelope; within a second only the fraction changes.
    global _last_second
    second = int(time)
    known, text = _last_second
    if known != second:
        text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _last_second = (second, text)
    return f"{text}.{int((time - second) * 1_000_000):06d}Z"


def binary(sealing: Sealing) -> Seal:
    """What has the attributes as headers."""
    prefix, serialize = sealing.features.header_prefix, sealing.serializer.serialize
    fixed = (
        ("content-type", sealing.serializer.content_type.encode()),
        (prefix + "specversion", b"1.0"),
        (prefix + "source", sealing.source.encode()),
        (prefix + "type", sealing.type.encode()),
    )
    id_name, time_name, key_name = prefix + "id", prefix + "time", prefix + "partitionkey"
    last: tuple[float, tuple[str, bytes]] = (-1.0, ("", b""))

    def seal(
        id: str, time: float, key: bytes | None, body: Any, travelling: Sequence[tuple[str, str]], own: Headers
    ) -> Sealed:
        # Tuples all the way down, which the garbage collector soon leaves alone, however many messages wait.
        nonlocal last
        known, stamp = last
        if known != time:  # those that are emitted together have the same
            stamp = (time_name, _stamp(time).encode())
            last = (time, stamp)
        headers: Headers = (*fixed, (id_name, id.encode()), stamp)
        if key is not None:
            headers = (*headers, (key_name, key))
        if travelling:
            headers = (*headers, *((prefix + name, value.encode()) for name, value in travelling))
        if own:
            headers = (*headers, *own)
        return headers, serialize(body)

    return seal


def structured(sealing: Sealing) -> Seal:
    """What has them in a JSON document, with the body in it."""
    serialize = sealing.serializer.serialize
    content_type = sealing.serializer.content_type
    is_json = content_type == "application/json"
    fixed = json.dumps(
        {
            "specversion": "1.0",
            "source": sealing.source,
            "type": sealing.type,
            "datacontenttype": content_type,
        }
    ).encode()[:-1]

    def seal(
        id: str, time: float, key: bytes | None, body: Any, travelling: Sequence[tuple[str, str]], own: Headers
    ) -> Sealed:
        varying: dict[str, str] = {"id": id, "time": _stamp(time)}
        if key is not None:
            varying["partitionkey"] = key.decode()
        varying.update(travelling)
        if own:
            varying[CARRIED] = json.dumps([(name, value.decode()) for name, value in own])
        data = serialize(body)
        name = b"data"
        if not is_json:
            name, data = b"data_base64", b'"' + b64encode(data) + b'"'
        return (), b"".join((fixed, b", ", json.dumps(varying).encode()[1:-1], b', "', name, b'": ', data, b"}"))

    return seal
