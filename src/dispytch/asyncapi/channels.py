"""Channels: one for each address, whoever sends or receives there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dispytch._core.events import declaration
from dispytch._core.patterns import Pattern
from dispytch.asyncapi.bindings import channel_bindings
from dispytch.asyncapi.messages import canonical, pointer, wire_path
from dispytch.asyncapi.names import Names, slug
from dispytch.asyncapi.schemas import Schema, Schemas, as_json_text, resolve
from dispytch.asyncapi.traffic import Place, Traffic
from dispytch.serialization import ClassicEnvelope, CloudEventsEnvelope

__all__ = ["Channel", "channels_of"]

_ANY = "any"
_REST = "rest"
Shape = tuple[tuple[str, str, str], ...]


@dataclass
class Channel:
    """What there is at one address.

    Attributes:
        traffic: In an order that does not depend on that of registration.
        parameters: The names of the segments that vary, in order, as they are in the address.
    """

    id: str
    address: str
    patterns: Sequence[str]
    parameters: Sequence[str]
    traffic: Sequence[Traffic]

    def described(self, schemas: Schemas) -> Schema:
        """The channel object, without its messages."""
        first = self.traffic[0]
        found: Schema = {"address": self.address}
        if self.patterns != [self.address]:
            found["x-pattern"] = self.patterns[0]
        if first.wire.transport is not None:
            found["x-transport"] = first.wire.transport
        if self.parameters:
            found["parameters"] = {
                name: self._parameter(number, name, schemas) for number, name in enumerate(self.parameters)
            }
        if bindings := channel_bindings(first):
            found["bindings"] = bindings
        return found

    def _parameter(self, number: int, name: str, schemas: Schemas) -> Schema:
        """What is known of a segment, from whoever says something of it first."""
        found: Schema = {}
        tokens = [[token for token in one.pattern.tokens if token.kind != "literal"][number] for one in self.traffic]
        if tokens[0].kind == "many":
            return {"description": "Any number of segments, with what separates them; also none."}
        texts = [token.text for token in tokens]
        if (named := next(filter(None, texts), None)) is not None and named != name:
            found["x-segment"] = named
        for one, text in zip(self.traffic, texts, strict=True):
            for need in one.params:
                if need.name == text:
                    _tell(found, schemas.of(need.adapter, "validation"), schemas)
        for one, text in zip(self.traffic, texts, strict=True):
            if text and _names_fields(one) and (field := wire_path(one, text, schemas)) is not None:
                names, schema = field
                found.setdefault("location", f"$message.payload#{pointer([*_inside(one), *names])}")
                _tell(found, schema, schemas)
        found.setdefault("description", "Any one segment." if name.startswith(_ANY) else f"The segment {name!r}.")
        return dict(sorted(found.items()))


def _tell(found: Schema, schema: Schema, schemas: Schemas) -> None:
    resolved = resolve(schema, schemas.components)
    if isinstance(text := resolved.get("description"), str):
        found.setdefault("description", text)
    if values := as_json_text(resolved):
        found.setdefault("enum", values)
    if examples := [str(one) for one in resolved.get("examples", ()) if isinstance(one, str | int | float)]:
        found.setdefault("examples", examples)
    if schema:
        found.setdefault("x-schema", schema)


def _names_fields(one: Traffic) -> bool:
    """Whether the placeholders of the pattern are fields of the event class."""
    if one.kind is None:
        return False
    route = declaration(one.kind).route
    return one.action == "send" or (route is not None and route.address == one.pattern.source)


def _inside(one: Traffic) -> list[str]:
    """Where in the payload the body is."""
    if isinstance(one.wire.envelope, CloudEventsEnvelope) and not one.wire.features.headers:
        return ["data"]
    return ["body"] if isinstance(one.wire.envelope, ClassicEnvelope) else []


# --- grouping


def channels_of(traffic: Sequence[Traffic]) -> list[Channel]:
    """The channels, by address."""
    groups: dict[tuple[str | None, Place, Shape], list[Traffic]] = {}
    for one in sorted(traffic, key=_rank):
        groups.setdefault((one.wire.transport, one.place, _shape(one.pattern)), []).append(one)
    found = [(_address(group), group) for group in groups.values()]
    found.sort(key=lambda item: (item[0][0], _rank(item[1][0])))
    names = Names()
    bases = [slug(text, "channel") for (_, text, _), _ in found]
    channels: list[Channel] = []
    for base, ((address, _, parameters), group) in zip(bases, found, strict=True):
        first = group[0]
        choices = [base]
        if bases.count(base) > 1:
            choices = [f"{base}-{first.wire.transport}"] if first.wire.transport else choices
            if place := first.place.exchange or first.place.queue:
                choices.append(f"{base}-{slug(place, 'exchange')}")
        patterns = list(dict.fromkeys(one.pattern.source for one in group))
        channels.append(Channel(names.unique(*choices), address, patterns, parameters, group))
    return channels


def _rank(one: Traffic) -> tuple[str, ...]:
    """Senders first, whose fields tell best what a segment is; then by whatever tells them apart."""
    return (
        "0" if one.action == "send" else "1",
        one.pattern.source,
        one.wire.transport or "",
        one.name,
        one.event or "",
        canonical([one.place.exchange, one.place.queue, one.bindings, one.extras, one.tags, one.doc]),
        canonical([str(body.annotation) for body in one.bodies]),
    )


def _shape(pattern: Pattern) -> Shape:
    """Alike for patterns that differ in the names of their segments alone."""
    return tuple((separator, kind, text if kind == "literal" else "") for separator, kind, text in pattern.tokens)


def _address(group: Sequence[Traffic]) -> tuple[str, str, list[str]]:
    """The address, the same without braces, and its parameters."""
    names = Names()
    address = text = ""
    parameters: list[str] = []
    for number, token in enumerate(group[0].pattern.tokens):
        part = token.text
        if token.kind != "literal":
            named = [given for one in group if (given := one.pattern.tokens[number].text)]
            part = names.unique(
                slug(named[0].replace(".", "_"), "segment") if named else _REST if token.kind == "many" else _ANY
            )
            parameters.append(part)
            address += f"{token.separator}{{{part}}}"
        else:
            address += token.separator + part
        text += token.separator + part
    return address, text, parameters
