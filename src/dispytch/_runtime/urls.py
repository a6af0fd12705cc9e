"""Transports by URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Literal

from dispytch._core.findings import Finding
from dispytch.abc import Consumer, Producer, Subscription
from dispytch.errors import ConfigurationError

__all__ = ["consumer_from_url", "diagnose", "no_client", "observer_from_url", "producer_from_url"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")

_BUILT_IN = {
    "memory": "dispytch.memory.urls",
    "kafka": "dispytch.kafka.urls",
    "kafka+ssl": "dispytch.kafka.urls",
    "amqp": "dispytch.rabbitmq.urls",
    "amqps": "dispytch.rabbitmq.urls",
    "redis": "dispytch.redis.urls",
    "rediss": "dispytch.redis.urls",
    "redis+stream": "dispytch.redis.urls",
    "rediss+stream": "dispytch.redis.urls",
}


def producer_from_url(url: str) -> Producer:
    """A producer for a broker's URL: ``memory://name``, ``redis://host:6379/0``, or a scheme of a plug-in.

    Raises:
        ConfigurationError: no transport has this scheme, or the URL is malformed.
        MissingExtraError: the transport's client is not installed.
    """
    producer: Producer = _maker(url, "producer_from_url")(url)
    return producer


def consumer_from_url(url: str, group_id: str = "default") -> Consumer:
    """A consumer for a broker's URL.

    Args:
        url: See `producer_from_url`.
        group_id: The consumer group, on transports that have them.

    Raises:
        ConfigurationError, MissingExtraError: see `producer_from_url`.
    """
    consumer: Consumer = _maker(url, "consumer_from_url")(url, group_id)
    return consumer


def observer_from_url(url: str, name: str, *, from_start: bool = False) -> Consumer:
    """A consumer that sees what everybody else gets, and takes nothing from anybody.

    What it needs at the broker goes when it stops; if it cannot stop, the broker removes it after a while.

    Args:
        url: See `producer_from_url`.
        name: Of its own group or queue, where it needs one.
        from_start: Whether it begins with what the broker holds, or with what comes next.

    Raises:
        ConfigurationError: the transport cannot do that.
        MissingExtraError: see `producer_from_url`.
    """
    observer: Consumer = _maker(url, "observer_from_url")(url, name, from_start)
    return observer


def diagnose(url: str, subscriptions: Sequence[Subscription], group: str | None) -> Iterator[Finding]:
    """What a broker says when it is asked: of itself, and of what a consumer group needs. Blocking; changes nothing.

    Args:
        url: See `producer_from_url`.
        subscriptions: What the group receives.
        group: The consumer group; ``None`` if there is none to ask about.

    Raises:
        ConfigurationError: the transport cannot tell.
        BrokerError: the broker cannot be reached, or refuses.
    """
    findings: Iterator[Finding] = _maker(url, "diagnose")(url, subscriptions, group)
    return findings


def no_client(given: object, kind: Literal["consumer", "producer"]) -> str:
    """What to say of something that was given in the place of a consumer or a producer."""
    if isinstance(given, str):  # not quoted, since a URL may hold a password
        return f"a string is no {kind}; for a URL write {kind}_from_url(url)"
    if isinstance(given, list | tuple):
        return f"a {type(given).__name__} is no {kind}; give {kind}s one by one, without brackets"
    # Nor is anything else quoted: it may be the settings of a client.
    return f"{type(given).__name__} is no {kind}; give an instance such as Memory{kind.capitalize()}(broker)"


def _maker(url: str, name: str) -> Callable[..., Any]:
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):  # and it is not quoted, since it may hold a password
        raise ConfigurationError("a broker's URL begins with its scheme, as in redis://localhost:6379 or memory://name")
    if scheme in _BUILT_IN:
        return _found(import_module(_BUILT_IN[scheme]), name, scheme)
    from importlib.metadata import entry_points  # whose import costs more than this module

    plug_ins = entry_points(group="dispytch.transports")
    for plug_in in plug_ins:
        if plug_in.name == scheme:
            return _found(plug_in.load(), name, scheme)
    known = ", ".join(sorted({*_BUILT_IN, *(plug_in.name for plug_in in plug_ins)}))
    raise ConfigurationError(f"no transport has the URL scheme {scheme!r}; known are: {known}")


def _found(module: Any, name: str, scheme: str) -> Callable[..., Any]:
    maker: Callable[..., Any] | None = getattr(module, name, None)
    if maker is None:
        raise ConfigurationError(f"the transport of {scheme}:// cannot do this: its module defines no {name}()")
    return maker
