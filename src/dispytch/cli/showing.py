"""Events and dead letters on a terminal, or as JSON, one object a line."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import click

from dispytch._core.envelope import CloudEventsEnvelope, Opened
from dispytch.abc import Consumer, Delivery
from dispytch.errors import DecodeError
from dispytch.serialization import JSONDeserializer

__all__ = ["Opener", "as_json", "pretty", "printable"]

_MOST_SHOWN = 2000


class Opener:
    """Opens the envelopes of what a consumer receives."""

    def __init__(self, consumer: Consumer) -> None:
        self._open = CloudEventsEnvelope().opener(JSONDeserializer(), consumer.features)

    def facts(self, delivery: Delivery) -> dict[str, Any]:
        """What there is to tell of a message: its body, or its bytes if it is not JSON."""
        try:
            opened = self._open(delivery)
        except DecodeError:
            opened = Opened(delivery, "", None, delivery.payload, JSONDeserializer(), key=delivery.key)
        headers = {name: _text(value) for name, value in opened.headers}
        facts: dict[str, Any] = {
            "topic": delivery.source,
            "id": opened.id,
            "type": opened.type,
            "time": opened.timestamp.isoformat(timespec="milliseconds"),
            "key": None if opened.key is None else _text(opened.key),
            "position": delivery.position,
            "partition": delivery.partition,
            "headers": headers,
        }
        return {**facts, **_body(opened)}


def _body(opened: Opened) -> dict[str, Any]:
    try:
        return {"body": opened.decoded()}
    except DecodeError:
        return {"payload": base64.b64encode(opened.data or b"").decode()}


def as_json(facts: Mapping[str, Any]) -> str:
    """One line, with nothing in it that a terminal would obey."""
    return json.dumps(facts, ensure_ascii=True)


def pretty(facts: Mapping[str, Any]) -> str:
    """A line of what is known, and one of the body."""
    where = facts["topic"] if facts["partition"] is None else f"{facts['topic']}[{facts['partition']}]"
    words = [facts["time"], click.style(printable(facts["type"] or "no type"), bold=True), printable(where)]
    words += [f"{name}={printable(facts[name])}" for name in ("key", "id") if facts[name]]
    if "body" in facts:
        body = json.dumps(facts["body"], ensure_ascii=False)
    else:
        body = f"not JSON: {base64.b64decode(facts['payload'])!r}"
    body = body if len(body) <= _MOST_SHOWN else f"{body[:_MOST_SHOWN]}... ({len(body)} characters; --json shows all)"
    return f"{' '.join(words)}\n  {printable(body)}"


def printable(text: str) -> str:
    """Text without what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
