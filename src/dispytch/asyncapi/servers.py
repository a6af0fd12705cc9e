"""Servers: by URL, without what is secret in it, or in AsyncAPI's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dispytch.asyncapi.names import slug
from dispytch.errors import ConfigurationError

__all__ = ["Servers", "servers_of", "without_secrets"]

Servers = Mapping[str, str | Mapping[str, Any]]

_PROTOCOLS = {
    "kafka": "kafka",
    "kafka+ssl": "kafka-secure",
    "amqp": "amqp",
    "amqps": "amqps",
    "redis": "redis",
    "redis+stream": "redis",
    "rediss": "rediss",
    "rediss+stream": "rediss",
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SECRET = re.compile(r"(://)(?:[^\s/@\"'<>]*@|[^\s/@:\"'<>]*:[^\s\"'<>]*@)")


def without_secrets(text: str) -> str:
    """A text without the users and passwords of URLs in it."""
    return _SECRET.sub(r"\1***@", text)


def servers_of(servers: Servers, security: Mapping[str, Any]) -> dict[str, Any]:
    """The server objects, by name.

    Raises:
        ConfigurationError: a server is neither a URL nor a server object.
    """
    found: dict[str, Any] = {}
    for name, given in servers.items():
        if slug(name, "") != name:
            raise ConfigurationError(
                f"servers: {name!r} is no name for a server; write it with letters, digits, '.', '_' and '-'"
            )
        if isinstance(given, str):
            own = list(_from_url(name, given))
        elif isinstance(given, Mapping) and {"host", "protocol"} <= given.keys():
            own = [dict(given)]
        else:
            raise ConfigurationError(
                f"servers: {name!r} is neither a URL, such as 'kafka://broker:9092', nor an object with host and "
                "protocol"
            )
        for number, one in enumerate(own, 1):
            if security and "security" not in one:
                one["security"] = [{"$ref": f"#/components/securitySchemes/{scheme}"} for scheme in security]
            found[name if number == 1 else f"{name}-{number}"] = one
    return found


def _from_url(name: str, url: str) -> Iterator[dict[str, Any]]:
    """A server object for each host; query and user are left out, since they may be secret."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigurationError(f"servers: that of {name!r} is no URL; write it as 'kafka://broker:9092'")
    scheme, rest = match[1].lower(), match[2]
    rest = re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    hosts, _, path = rest.partition("/")
    if not hosts:
        raise ConfigurationError(f"servers: the URL of {name!r} has no host; write it as '{scheme}://broker'")
    for host in hosts.split(","):
        server = {"host": host, "protocol": _PROTOCOLS.get(scheme, scheme)}
        if path:
            server["pathname"] = f"/{path}"
        yield server
