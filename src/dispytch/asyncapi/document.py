"""The AsyncAPI document of an application."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dispytch._core.events import EventBase
from dispytch.asyncapi.bindings import PROTOCOLS, sent_bindings
from dispytch.asyncapi.channels import Channel, channels_of
from dispytch.asyncapi.messages import Carriers, canonical, is_open, make_message, payload_of
from dispytch.asyncapi.names import Names, slug
from dispytch.asyncapi.schemas import Mode, Schema, Schemas
from dispytch.asyncapi.servers import Servers, servers_of, without_secrets
from dispytch.asyncapi.traffic import Traffic, received, sent
from dispytch.errors import ConfigurationError

if TYPE_CHECKING:
    from dispytch._runtime.dispatcher import EventDispatcher
    from dispytch._runtime.emitter import EventEmitter
    from dispytch.sync import EventDispatcher as BlockingDispatcher
    from dispytch.sync import EventEmitter as BlockingEmitter

__all__ = ["VERSION", "document"]

VERSION = "3.1.0"
"""The version of AsyncAPI that documents are of."""


def document(
    dispatcher: EventDispatcher | BlockingDispatcher | None = None,
    *,
    title: str,
    version: str,
    description: str | None = None,
    emits: Iterable[type[EventBase]] = (),
    emitter: EventEmitter | BlockingEmitter | None = None,
    servers: Servers | None = None,
    security: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The AsyncAPI document of an application, as plain data; the same for the same application.

    Args:
        dispatcher: Whose handlers tell what is received, those of routers and groups too; of either world.
        title: The application's name.
        version: The version of its API.
        description: What it is for; CommonMark.
        emits: The event classes that it emits.
        emitter: What they are emitted by, of either world; by default they travel like what the dispatcher receives.
        servers: Brokers by name: URLs, whose users, passwords and options are left out, or server objects. None are
            named by default, since where a broker is differs from place to place.
        security: Security schemes by name, for all servers that say nothing else.

    Raises:
        ConfigurationError: something is declared wrong, or an event class cannot be emitted that way.
    """
    wiring = () if dispatcher is None else _wiring(dispatcher)
    traffic = [*received(wiring), *sent(emits, emitter, wiring)]
    if not traffic:
        raise ConfigurationError("there is nothing to document: give a dispatcher, or emits= with event classes")
    for one in traffic:
        if one.action == "send":
            one.bindings = sent_bindings(one, None if one.kind is None else one.kind.__backend_config__)
    schemas = Schemas(_types(traffic))
    channels = channels_of(traffic)
    known_servers = servers_of(servers or {}, security or {})
    messages = _Messages(channels, schemas)
    tags = sorted({tag for one in traffic for tag in one.tags})
    info: Schema = {"title": title, "version": version}
    if description:
        info["description"] = description
    if tags:
        info["tags"] = [{"name": tag} for tag in tags]
    components: Schema = {"messages": messages.components}
    if found := {**schemas.components, **messages.carriers.components}:
        components["schemas"] = dict(sorted(found.items()))
    if security:
        components["securitySchemes"] = {name: dict(scheme) for name, scheme in security.items()}
    made: Schema = {
        "asyncapi": VERSION,
        "info": info,
        "defaultContentType": "application/json",
        "servers": known_servers,
        "channels": {
            one.id: _with_servers({**one.described(schemas), "messages": messages.of_channel(one)}, known_servers)
            for one in channels
        },
        "operations": _operations(channels, messages),
        "components": components,
    }
    if not known_servers:
        del made["servers"]
    cleaned: dict[str, Any] = _clean(made)
    return cleaned


def _wiring(dispatcher: Any) -> Sequence[Any]:
    if not callable(getattr(dispatcher, "wiring", None)):
        raise ConfigurationError(
            f"{type(dispatcher).__name__} is no dispatcher; give an EventDispatcher, to which routers are added"
        )
    found: Sequence[Any] = dispatcher.wiring()
    return found


def _types(traffic: Sequence[Traffic]) -> Iterable[tuple[Any, Mode]]:
    for one in traffic:
        for body in one.bodies:
            yield body.adapter, body.mode
        for need in one.params:
            yield need.adapter, "validation"


def _with_servers(channel: Schema, servers: Mapping[str, Any]) -> Schema:
    """Says on which servers a channel is, if there are others."""
    protocols = PROTOCOLS.get(channel.get("x-transport", ""), ())
    own = [name for name, server in servers.items() if server["protocol"] in protocols]
    if own and len(own) < len(servers):
        channel["servers"] = [{"$ref": f"#/servers/{name}"} for name in own]
    return channel


class _Messages:
    """The messages of all channels, each of them once."""

    def __init__(self, channels: Sequence[Channel], schemas: Schemas) -> None:
        self.carriers = Carriers(schemas.components)
        self._schemas = schemas
        self._of: dict[int, list[str]] = {}
        """The texts of the messages of a piece of traffic, by its id."""
        made: dict[str, tuple[Traffic, Schema]] = {}
        for channel in channels:
            described: dict[str | None, list[str]] = {}
            undescribed: list[Traffic] = []
            for one in channel.traffic:
                if one.event is not None and is_open(payload_of(one, schemas)):
                    undescribed.append(one)
                    continue
                text = self._add(one, made)
                described.setdefault(one.event, []).append(text)
            for one in undescribed:  # others of the channel may say what such an event holds
                known = described.get(one.event)
                self._of[id(one)] = list(dict.fromkeys(known)) if known else [self._add(one, made)]
        self._ids = _named(made)
        self.components: Schema = {
            self._ids[text]: message for text, (_, message) in sorted(made.items(), key=lambda item: self._ids[item[0]])
        }

    def _add(self, one: Traffic, made: dict[str, tuple[Traffic, Schema]]) -> str:
        message = make_message(one, self._schemas, self.carriers)
        text = canonical(message)
        made.setdefault(text, (one, message))
        self._of[id(one)] = [text]
        return text

    def of(self, one: Traffic) -> list[str]:
        """The ids of the messages that a handler takes, or an event class makes."""
        return [self._ids[text] for text in self._of[id(one)]]

    def of_channel(self, channel: Channel) -> Schema:
        names = sorted({name for one in channel.traffic for name in self.of(one)})
        return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _named(made: Mapping[str, tuple[Traffic, Schema]]) -> dict[str, str]:
    """The id of each message: its title, with what tells it apart if others have the same."""
    names = Names()
    bases = {text: slug(message["title"], "message") for text, (_, message) in made.items()}
    count = Counter(bases.values())
    found: dict[str, str] = {}
    for text in sorted(made, key=lambda text: (bases[text], text)):
        one, base = made[text][0], bases[text]
        if count[base] == 1:
            choices = [base]
        else:
            mode = "sent" if one.action == "send" else "received"
            transports = {other.wire.transport for key, (other, _) in made.items() if bases[key] == base}
            choices = [f"{base}-{one.wire.transport}"] if len(transports) > 1 else []
            choices.append(f"{base}-{one.wire.transport}-{mode}" if len(transports) > 1 else f"{base}-{mode}")
        found[text] = names.unique(*choices)
    return found


def _operations(channels: Sequence[Channel], messages: _Messages) -> Schema:
    names = Names()
    count = Counter(slug(one.name, "operation") for channel in channels for one in channel.traffic)
    found: Schema = {}
    for channel in channels:
        for one in channel.traffic:
            base = slug(one.name, "operation")
            name = names.unique(base if count[base] == 1 else f"{base}-{channel.id}")
            found[name] = _operation(one, channel, messages)
    return dict(sorted(found.items()))


def _operation(one: Traffic, channel: Channel, messages: _Messages) -> Schema:
    made: Schema = {"action": one.action, "channel": {"$ref": f"#/channels/{channel.id}"}, "title": one.title}
    if one.summary:
        made["summary"] = one.summary
    if one.description:
        made["description"] = one.description
    if one.tags:
        made["tags"] = [{"name": tag} for tag in one.tags]
    made["messages"] = [{"$ref": f"#/channels/{channel.id}/messages/{name}"} for name in messages.of(one)]
    if one.bindings:
        made["bindings"] = one.bindings
    if one.pattern.source != channel.address and one.pattern.source != channel.patterns[0]:
        made["x-pattern"] = one.pattern.source
    return {**made, **one.extras}


def _clean(value: Any) -> Any:
    """Plain data that every writer can write: no secrets of URLs, nothing that JSON has no form for."""
    if isinstance(value, dict):
        return {
            _text(str(name)): _text(one) if name == "pattern" and isinstance(one, str) else _clean(one)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    if isinstance(value, str):
        return without_secrets(_text(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _text(value: str) -> str:
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
