"""Where a Redis is and how to connect to it: from a URL, or from a client that was made elsewhere.

This module and those beside it import redis only inside functions, since that takes long and it may not be installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, MissingExtraError

__all__ = ["CONNECT_TIMEOUT", "Source", "connect_error", "import_redis", "reply_text"]

CONNECT_TIMEOUT = 10.0
"""Seconds that one attempt to connect may take, unless less is left or the URL says otherwise."""

_FORM = "write redis://user:password@host:6379/0, or rediss:// for TLS, with special characters percent-encoded"
_POOL_OPTIONS = ("max_connections", "timeout")
# What would retry, decode or probe behind our back, and what belongs to the pool that a client was made with.
_OWN_OPTIONS: Mapping[str, Any] = {
    "decode_responses": False,
    "health_check_interval": 0,
    "protocol": 2,
    "retry": None,
    "retry_on_error": [],
    "retry_on_timeout": False,
    "socket_timeout": None,
}
_ADVICE: Mapping[str, str] = {
    "DB index is out of range": "give a database number that the server has, at the end of the URL",
    "Authentication required": "give user and password in the URL: redis://user:password@host:6379",
    "MISCONF": "the server cannot write to its disk: see its log",
    "no permissions": "have the user's ACL allow it, or connect as another user",
    "used memory > 'maxmemory'": "raise the server's maxmemory, or trim its streams",
    "read only replica": "this is a replica: connect to the primary",
    "WRONGTYPE": "the key holds something else than a stream: choose another name",
}
_LEFT_OUT = ("parser_class", "maint_notifications_config", "maint_notifications_pool_handler", "event_dispatcher")


@cache
def import_redis() -> Any:
    """The redis package.

    Raises:
        MissingExtraError: it is not installed, or hiredis is not.
    """
    try:
        import hiredis  # noqa: F401
        import redis
    except ImportError as error:
        raise MissingExtraError('Redis needs its client library: pip install "dispytch[redis]"') from error
    return redis


def is_asyncio(client: Any) -> bool:
    """Whether a client object is one of redis.asyncio."""
    return any(kind.__module__.startswith("redis.asyncio") for kind in type(client).__mro__)


class Source:
    """How to connect; makes connections that do not retry anything.

    Attributes:
        address: Host and port, for messages.
        world: Where its connections can be used.
        max_connections: How many the user allows at once, if anything was said.
    """

    def __init__(
        self,
        address: str,
        options: Mapping[str, Any],
        *,
        world: Literal["both", "asyncio", "blocking"],
        kind: Any,
        max_connections: int | None = None,
    ) -> None:
        self.address: str = address
        self.world: Literal["both", "asyncio", "blocking"] = world
        self.max_connections: int | None = max_connections
        self.connect_timeout: float = options.get("socket_connect_timeout") or CONNECT_TIMEOUT
        self._options = options
        self._kind = kind

    def __repr__(self) -> str:
        return f"<Redis at {self.address}>"

    @classmethod
    def from_url(cls, url: str) -> Source:
        """Raises ConfigurationError, without quoting the URL, since a password may be anywhere in a malformed one."""
        redis = import_redis()
        problem: str | None = None
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("redis", "rediss"):
                problem = "its scheme is neither redis:// nor rediss://"
            elif parts.fragment or "#" in url:
                problem = "it holds a '#', which ends what is read of it"
            elif not re.fullmatch(r"/?|/\d+", parts.path):
                problem = "what follows the host is no database number"
            elif parts.port == 0:
                problem = "port 0 is no port"
            else:
                parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            problem = "its host, port or options cannot be read"
        if problem is not None:
            raise ConfigurationError(f"this is no usable Redis URL: {problem}; {_FORM}")
        try:
            options: dict[str, Any] = redis.connection.parse_url(url)
        except ValueError:
            raise ConfigurationError(f"an option in the Redis URL has a value that cannot be used; {_FORM}") from None
        options.pop("connection_class", None)
        limit = options.get("max_connections")
        for name in _POOL_OPTIONS:
            options.pop(name, None)
        kind = redis.SSLConnection if parts.scheme == "rediss" else redis.Connection
        if parts.scheme == "rediss" and options.get("ssl_cert_reqs", "required") != "none":
            options.setdefault("ssl_check_hostname", True)  # redis-py before 6 did not look
        options.setdefault("socket_keepalive", True)
        address = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        source = cls(address, options, world="both", kind=kind, max_connections=limit)
        source._check(parts.scheme == "rediss")
        return source

    @classmethod
    def from_pool(cls, pool: Any, world: Literal["asyncio", "blocking"]) -> Source:
        """The way that a ready-made client's pool connects; the pool itself and its connections are left alone."""
        options = {name: value for name, value in pool.connection_kwargs.items() if name not in _LEFT_OUT}
        address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return cls(address, options, world=world, kind=pool.connection_class)

    def blocking(self) -> Any:
        """A new connection of the blocking client, not connected."""
        return self._make(self._kind)

    def asyncio(self) -> Any:
        """A new connection of the asyncio client, not connected."""
        if self.world != "both":
            return self._make(self._kind)
        import redis.asyncio

        # Only here: blocking code needs nothing of it.
        return self._make(getattr(redis.asyncio, self._kind.__name__))

    def _make(self, kind: Any) -> Any:
        connection = kind(**{**self._options, **_OWN_OPTIONS})
        # No CLIENT SETINFO: it is a round trip or two before the first message, which some users may not even do.
        connection.driver_info = connection.lib_name = connection.lib_version = None
        return connection

    def _check(self, is_tls: bool) -> None:
        """Finds unknown options and unreadable certificates before anything is connected."""
        redis = import_redis()
        try:
            self.blocking()
        except TypeError as error:
            name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            which = f"the option {name[1]!r}" if name is not None else "an option"
            raise ConfigurationError(f"redis-py does not know {which} of the Redis URL") from None
        except (ValueError, redis.RedisError):
            raise ConfigurationError(f"an option in the Redis URL has a value that cannot be used; {_FORM}") from None
        if is_tls:
            _check_certificates(self._options)


def _check_certificates(options: Mapping[str, Any]) -> None:
    import ssl

    context = ssl.create_default_context()
    files = {name: options.get(name) for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")}
    try:
        if files["ssl_ca_certs"] or files["ssl_ca_path"]:
            context.load_verify_locations(files["ssl_ca_certs"], files["ssl_ca_path"])
        if files["ssl_certfile"]:
            context.load_cert_chain(files["ssl_certfile"], files["ssl_keyfile"], options.get("ssl_password"))
    except (OSError, ValueError) as error:
        named = ", ".join(f"{name}={value}" for name, value in files.items() if value)
        raise ConfigurationError(f"the certificates of the Redis URL cannot be loaded ({named}): {error}") from error


def reply_text(error: BaseException) -> str:
    """What a server's error reply says; never the arguments of the command, which some replies quote."""
    return str(error).partition(", with args beginning")[0]


def with_advice(text: str) -> str:
    """A server's error reply with what to do about it, where that is plain."""
    for beginning, advice in _ADVICE.items():
        if beginning in text:
            return f"{text.rstrip('.')}; {advice}"
    return text


def connect_error(error: BaseException, address: str) -> BrokerError:
    """What went wrong while connecting, with the client's error as its cause."""
    redis = import_redis()
    known = redis.exceptions
    text = reply_text(error)
    found: BrokerError
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, known.AuthenticationError | known.AuthorizationError | known.NoPermissionError):
        found = BrokerError(f"Redis at {address} refused the user name or the password: {text.rstrip('.')}; check both")
    elif isinstance(error, known.BusyLoadingError):
        found = BrokerUnreachableError(f"Redis at {address} is still loading its data")
    elif isinstance(error, known.ResponseError):
        found = BrokerError(f"Redis at {address} refused the connection: {with_advice(text)}")
    elif isinstance(error, TimeoutError | known.TimeoutError):
        found = BrokerUnreachableError(
            f"Redis at {address} did not answer in time; check the address, that the server is running, and TLS "
            "(redis:// or rediss://)"
        )
    else:
        found = BrokerUnreachableError(
            f"cannot connect to Redis at {address}: {text.rstrip('.')}; check the address, that the server is running, "
            "and TLS (redis:// or rediss://)"
        )
    found.__cause__ = error if text == str(error) else None
    return found
