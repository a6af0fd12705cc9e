"""Messages: payload, headers and what belongs to them, by the envelope that they travel in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dispytch._core.events import declaration
from dispytch.abc import EventConfig
from dispytch.asyncapi.bindings import message_bindings
from dispytch.asyncapi.schemas import PLACE, Schema, Schemas, resolve
from dispytch.asyncapi.traffic import Traffic
from dispytch.serialization import BareEnvelope, ClassicEnvelope, CloudEventsEnvelope

__all__ = ["Carriers", "is_open", "make_message", "payload_of", "wire_path"]

_TEXT = {"type": "string", "minLength": 1}
_MOMENT = {"type": "string", "format": "date-time"}
_ATTRIBUTES: Mapping[str, Schema] = {
    "specversion": {"type": "string", "const": "1.0", "description": "The version of CloudEvents."},
    "id": {**_TEXT, "description": "The event's id; the same when it is emitted again."},
    "source": {**_TEXT, "format": "uri-reference", "description": "What emitted it."},
    "type": {**_TEXT, "description": "The event's type."},
    "time": {**_MOMENT, "description": "When it was emitted."},
    "partitionkey": {"type": "string", "description": "The ordering key."},
    "correlationid": {"type": "string", "description": "The id of the event that began it all."},
    "traceparent": {"type": "string", "description": "The trace, as W3C Trace Context has it."},
    "tracestate": {"type": "string", "description": "What vendors add to the trace."},
}
_REQUIRED = ("specversion", "id", "source", "type")
_STRUCTURED = "application/cloudevents+json"


class Carriers:
    """The schemas of headers and envelopes, which messages share; those that are asked for become components."""

    def __init__(self, taken: Mapping[str, Schema]) -> None:
        self._taken = taken
        self.components: dict[str, Schema] = {}

    def headers(self, transport: str | None, prefix: str) -> Schema:
        """CloudEvents attributes as headers."""
        schema: Schema = {
            "type": "object",
            "title": "CloudEvents attributes as headers",
            "properties": {prefix + name: attribute for name, attribute in _ATTRIBUTES.items()},
            "required": [prefix + name for name in _REQUIRED],
        }
        return self._component(f"CloudEventHeaders-{transport}" if transport else "CloudEventHeaders", schema)

    def event(self) -> Schema:
        """A CloudEvent as a document."""
        schema: Schema = {
            "type": "object",
            "title": "CloudEvent",
            "properties": dict(_ATTRIBUTES),
            "required": list(_REQUIRED),
        }
        return self._component("CloudEvent", schema)

    def _component(self, name: str, schema: Schema) -> Schema:
        while name in self._taken:
            name += "_"
        self.components[name] = schema
        return {"$ref": f"{PLACE}{name}"}


def is_open(schema: Schema) -> bool:
    """Whether it says nothing of what is inside."""
    return {name for name in schema if name not in ("title", "description")} <= {"type", "additionalProperties"} and (
        schema.get("type") in (None, "object") and schema.get("additionalProperties") in (None, True)
    )


def payload_of(traffic: Traffic, schemas: Schemas) -> Schema:
    """The schema of the body alone."""
    found: list[Schema] = []
    for body in traffic.bodies:
        schema = schemas.of(body.adapter, body.mode)
        if schema not in found:
            found.append(schema)
    telling = [schema for schema in found if not is_open(schema)] or found[:1]
    return telling[0] if len(telling) == 1 else {"allOf": telling} if telling else {}


def make_message(traffic: Traffic, schemas: Schemas, carriers: Carriers) -> Schema:
    """The message object."""
    wire, kind = traffic.wire, traffic.kind
    body = payload_of(traffic, schemas)
    declared = None if kind is None else declaration(kind)
    config = _config(None if declared is None else declared.config, traffic)
    key = getattr(config, "partition_key", None) or (None if declared is None or declared.key is None else declared.key)
    key_text = key if isinstance(key, str) else None if key is None else key.source
    content_type = getattr(config, "content_type", None) or wire.content_type
    payload, headers, content_type, correlation = _sealed(traffic, body, content_type, carriers)
    title = traffic.event or _title(traffic, body)
    own = sorted(getattr(config, "headers", None) or ())
    if own and wire.features.headers:
        more: Schema = {"type": "object", "properties": {name: {"type": "string"} for name in own}}
        headers = {"allOf": [*headers["allOf"], more]} if "allOf" in headers else {"allOf": [headers, more]}
    doc = "" if kind is None else kind.__doc__ or ""
    return _without_empty(
        {
            "name": title,
            "title": title,
            "summary": doc.strip().split("\n\n", 1)[0].replace("\n", " ").strip(),
            "contentType": content_type,
            "headers": headers,
            "payload": payload,
            "correlationId": correlation,
            "bindings": message_bindings(traffic, key_text, config),
            "x-ordering-key": key_text,
        },
        keep=("payload",),
    )


def _config(config: EventConfig | None, traffic: Traffic) -> EventConfig | None:
    """The options of an event class, if they are those of the transport."""
    name = {"kafka": "Kafka", "rabbitmq": "RabbitMQ", "redis": "Redis", "redis-stream": "RedisStream"}
    wanted = f"{name.get(traffic.wire.transport or '', 'Memory')}EventConfig"
    return config if type(config).__name__ == wanted else None


def _title(traffic: Traffic, body: Schema) -> str:
    labels = dict.fromkeys(one.label for one in traffic.bodies)
    return "any event" if is_open(body) or not labels else " and ".join(labels)


def _sealed(
    traffic: Traffic, body: Schema, content_type: str | None, carriers: Carriers
) -> tuple[Schema, Schema, str | None, Schema]:
    """Payload, headers, content type and where the correlation id is."""
    wire, envelope = traffic.wire, traffic.wire.envelope
    prefix = wire.features.header_prefix
    carried = content_type if wire.features.headers and wire.transport != "rabbitmq" else None  # there a property
    type_schema: Schema = {} if traffic.event is None else {"const": traffic.event}
    if isinstance(envelope, CloudEventsEnvelope):
        if not wire.features.headers:
            return (*_structured(body, type_schema, content_type, carriers), _correlated("payload", "correlationid"))
        own: Schema = {}
        if type_schema:
            own[f"{prefix}type"] = type_schema
        if carried is not None:
            own["content-type"] = {"const": carried}
        base = carriers.headers(wire.transport, prefix)
        headers = {"allOf": [base, {"type": "object", "properties": own}]} if own else base
        return body, headers, content_type, _correlated("header", f"{prefix}correlationid")
    if isinstance(envelope, BareEnvelope) and envelope.type_field is not None:
        field: Schema = {"type": "object", "properties": {envelope.type_field: type_schema}}
        body = {"allOf": [body, {**field, "required": [envelope.type_field]}]}
    elif isinstance(envelope, ClassicEnvelope):
        body = {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "type": {"type": "string", **type_schema},
                "body": body,
                "timestamp": {"type": "integer", "description": "Seconds since the epoch."},
            },
            "required": ["body"],
        }
    elif not isinstance(envelope, BareEnvelope):
        return body, {}, content_type, {}  # one of the user's own, of which nothing is known
    if not wire.features.headers:
        return body, {}, content_type, {}
    shown: Schema = {} if carried is None else {"content-type": {"const": carried}}
    shown["correlationid"] = _ATTRIBUTES["correlationid"]
    return body, {"type": "object", "properties": shown}, content_type, _correlated("header", "correlationid")


def _structured(
    body: Schema, type_schema: Schema, content_type: str | None, carriers: Carriers
) -> tuple[Schema, Schema, str]:
    properties: Schema = {"type": type_schema} if type_schema else {}
    if content_type in (None, "application/json"):
        name, data = "data", body
    else:
        name, data = "data_base64", {"type": "string", "contentEncoding": "base64", "x-content-schema": body}
        data = {**data, "contentMediaType": content_type}
    document: Schema = {"type": "object", "properties": {**properties, name: data}, "required": [name]}
    return {"allOf": [carriers.event(), document]}, {}, _STRUCTURED


def _correlated(part: str, name: str) -> Schema:
    return {
        "location": f"$message.{part}#/{name}",
        "description": "The id of the event that began it all, on what is emitted while an event is handled.",
    }


# --- fields


def wire_path(traffic: Traffic, path: str, schemas: Schemas) -> tuple[list[str], Schema] | None:
    """The names on the wire that lead to a field of the event class, and its schema; ``None`` if that is not known."""
    kind: Any = traffic.kind
    if kind is None or not traffic.bodies:
        return None
    body = next((one for one in traffic.bodies if one.annotation is kind), None)
    if body is None:
        return None
    schema = resolve(schemas.of(body.adapter, body.mode), schemas.components)
    names: list[str] = []
    for part in path.split("."):
        fields = getattr(kind, "model_fields", {})
        if part not in fields:
            return None
        info = fields[part]
        alias = info.serialization_alias if body.mode == "serialization" else info.validation_alias
        name = alias if isinstance(alias, str) else part
        if name not in schema.get("properties", {}):
            return None
        schema = resolve(schema["properties"][name], schemas.components)
        names.append(name)
        kind = info.annotation
    return names, schema


def pointer(parts: Sequence[str]) -> str:
    """A JSON pointer."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def canonical(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, default=str)


def _without_empty(found: Mapping[str, Any], keep: Sequence[str] = ()) -> Schema:
    return {
        name: value for name, value in found.items() if name in keep or (value is not None and value not in ({}, ""))
    }
