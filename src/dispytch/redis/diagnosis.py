"""What a Redis says when it is asked; blocking, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dispytch._core.findings import Finding
from dispytch.abc import Subscription
from dispytch.errors import BrokerUnreachableError
from dispytch.redis.blocking import connect_blocking
from dispytch.redis.source import import_redis, reply_text, with_advice
from dispytch.redis.streams.producer import stream_source

__all__ = ["diagnose"]

_TIMEOUT = 10.0
_Ask = Callable[..., Any]


def diagnose(url: str, subscriptions: Sequence[Subscription], group: str | None) -> Iterator[Finding]:
    """What there is of the subscriptions of a group, and what is not.

    Raises:
        BrokerError, ConfigurationError: it cannot be asked.
    """
    source = stream_source(url, "doctor")
    redis = import_redis()
    connection = connect_blocking(source, _TIMEOUT)

    def ask(*words: str) -> Any:
        """The reply, an error of the server's among them."""
        try:
            connection.send_command(*words)
            return connection.read_response()
        except redis.exceptions.ResponseError as error:
            return error
        except (redis.RedisError, OSError) as error:
            raise BrokerUnreachableError(f"Redis at {source.address} has not answered: {reply_text(error)}") from error

    try:
        yield from _server(ask, source.address)
        if "+stream://" in url:
            user = _text(ask("ACL", "WHOAMI"))
            for item in subscriptions:
                yield from _stream(ask, user, item.pattern.source, group)
                for route in item.dead_letters:
                    yield from _may(ask, user, "XADD", route.address, "*", "a", "b")
        else:
            names = [item.pattern.source for item in subscriptions if item.pattern.is_literal]
            found = ask("PUBSUB", "NUMSUB", *names) if names else []
            if not isinstance(found, Exception):
                for name, count in zip(found[::2], found[1::2], strict=True):
                    yield Finding("ok", f"channel {_text(name)}: {count} subscribers")
    finally:
        connection.disconnect()


def _server(ask: _Ask, address: str) -> Iterator[Finding]:
    reply = ask("INFO")
    if isinstance(reply, Exception):
        yield Finding("warning", f"Redis at {address} answers, and does not tell of itself: {reply_text(reply)}")
        return
    lines = [line.partition(":") for line in _text(reply).splitlines() if ":" in line]
    info = {name: value for name, _, value in lines}
    version, mode, role = (info.get(name, "unknown") for name in ("redis_version", "redis_mode", "role"))
    yield Finding("ok", f"Redis {version} at {address}, {mode}, {role}")
    if role == "slave":
        yield Finding("problem", "it is a replica, and nothing can be written to it; connect to the primary")
    if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy", "noeviction").startswith("allkeys"):
        yield Finding("warning", f"maxmemory-policy is {info['maxmemory_policy']}: streams may be evicted")
    if info.get("aof_enabled") == "0":
        yield Finding("warning", "there is no append-only file: a crash loses what came since the last snapshot")


def _stream(ask: _Ask, user: str | None, name: str, group: str | None) -> Iterator[Finding]:
    kind = ask("TYPE", name)
    if isinstance(kind, Exception):
        yield Finding("problem", f"stream {name}: {with_advice(reply_text(kind))}")
        return
    if _text(kind) == "none":
        yield Finding("warning", f"there is no stream {name}; a start makes it, and so does the first event")
    elif _text(kind) != "stream":
        yield Finding("problem", f"{name} is a {_text(kind)} and no stream; choose another name")
    elif group is not None:
        yield _group(ask("XINFO", "GROUPS", name), name, group)
    yield from _may(ask, user, "XREADGROUP", "GROUP", group or "g", "c", "STREAMS", name, ">")


def _group(reply: Any, name: str, group: str) -> Finding:
    if isinstance(reply, Exception):
        return Finding("problem", f"stream {name}: {with_advice(reply_text(reply))}")
    for fields in reply:
        found = {_text(key): value for key, value in zip(fields[::2], fields[1::2], strict=True)}
        if _text(found["name"]) == group:
            lag = found.get("lag")
            behind = "an unknown number of" if lag is None else lag
            return Finding("ok", f"group {group} on {name}: {behind} entries behind, {found['pending']} being handled")
    return Finding("warning", f"the stream {name} has no group {group}; a start makes it")


def _may(ask: _Ask, user: str | None, command: str, *words: str) -> Iterator[Finding]:
    """What the server says of a command that it does not carry out; nothing, where it may not be asked that."""
    if user is None:
        return
    reply = ask("ACL", "DRYRUN", user, command, *words)
    if not isinstance(reply, Exception) and _text(reply) != "OK":
        yield Finding("problem", f"the user {user} may not {command}: {_text(reply)}; have its ACL allow it")


def _text(value: Any) -> Any:
    if isinstance(value, Exception):
        return None
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
