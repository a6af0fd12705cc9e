"""Messages in a table: with their bytes, so that they leave as they were made, whatever the code is by then."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from importlib import import_module
from typing import Any

from dispytch._core.messages import Message
from dispytch._core.routes import EventConfig, EventRoute
from dispytch.errors import ConfigurationError

__all__ = ["pack", "unpack"]


def pack(message: Message) -> dict[str, Any]:
    """Everything of a message but its id and its payload.

    Raises:
        ConfigurationError: a route or an option is of a type that cannot be kept.
    """
    return {
        "route": _pack(message.route),
        "config": _pack(message.config),
        "headers": [[name, _pack(value)] for name, value in message.headers],
        "key": _pack(message.key),
    }


def unpack(id: str, payload: bytes | None, packed: Mapping[str, Any]) -> Message:
    """The message again.

    Raises:
        ConfigurationError: a class that it needs is there no more, or has other fields.
    """
    try:
        return Message(
            id,
            _unpack(packed["route"]),
            None if payload is None else bytes(payload),
            [(name, _unpack(value)) for name, value in packed["headers"]],
            _unpack(packed["key"]),
            _unpack(packed["config"]),
        )
    except ConfigurationError:
        raise
    except Exception as error:  # of classes of other versions, whatever they raise: it must not hold up other rows
        raise ConfigurationError(
            f"an event in the outbox was written by another version of the code, and cannot be read: "
            f"{type(error).__name__}: {error}"
        ) from error


def _pack(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, timedelta):
        return {"seconds": value.total_seconds()}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _pack(item) for key, item in value.items()}}
    if isinstance(value, EventRoute | EventConfig):
        kind = type(value)
        given = {field.name: _pack(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]  # all are dataclasses
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": given}
    raise ConfigurationError(
        f"a value of type {type(value).__name__} cannot be kept in the outbox; routes and options hold text, bytes, "
        "numbers, time spans and mappings of these"
    )


def _unpack(value: Any) -> Any:
    match value:
        case {"bytes": text}:
            return base64.b64decode(text)
        case {"seconds": seconds}:
            return timedelta(seconds=seconds)
        case {"mapping": mapping}:
            return {key: _unpack(item) for key, item in mapping.items()}
        case {"class": name, "fields": given}:
            return _class(name)(**{key: _unpack(item) for key, item in given.items()})
    return value


def _class(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{name}, the route or the options of an event in the outbox, is there no more") from (
            error
        )
    if not (isinstance(found, type) and issubclass(found, EventRoute | EventConfig)):
        raise ConfigurationError(f"{name} is neither a route nor options of an event")
    return found
