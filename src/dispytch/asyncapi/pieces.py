"""Small parts of the page, and what is safe to take out of any document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispytch.asyncapi.markup import Markup, breakable, tag

__all__ = ["address_of", "as_map", "counted", "term", "transport_of", "words_of"]

_TRANSPORTS = {
    "kafka": "Kafka",
    "rabbitmq": "RabbitMQ",
    "redis": "Redis Pub/Sub",
    "redis-stream": "Redis Streams",
    "memory": "in memory",
}


def transport_of(channel: Mapping[str, Any]) -> str:
    name = str(channel.get("x-transport", ""))
    return _TRANSPORTS.get(name, name)


def as_map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def term(name: str, *values: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", *(Markup(tag("span", one)) for one in values)))


def words_of(name: str) -> str:
    """``AckAfterProcessing`` as words."""
    text = name.removeprefix("Ack") or name
    return "".join(f" {one.lower()}" if one.isupper() else one for one in text).strip()


def address_of(channel: Any, name: str) -> Markup:
    """An address, with the segments that vary marked, and places where it may be broken."""
    address = as_map(channel).get("address")
    if not isinstance(address, str):
        return tag("code", f"{name} (its address is not known)", class_="address")
    made, rest = "", address
    for parameter in as_map(as_map(channel).get("parameters")):
        before, braced, after = rest.partition(f"{{{parameter}}}")
        if braced:
            made += breakable(before) + tag("var", braced)
            rest = after
    return tag("code", Markup(made + breakable(rest)), class_="address")
