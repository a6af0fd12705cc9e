"""Where a RabbitMQ is and how to connect to it; what its clients' errors mean.

This module and those beside it import pika and aio-pika only inside functions: it takes long, and they may be absent.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, MissingExtraError

__all__ = ["Source", "closed_error", "connect_error", "import_aio_pika", "import_pika", "refusal"]

_FORM = "write amqp://user:password@host:5672/vhost, or amqps:// for TLS, with special characters percent-encoded"
_OPTIONS = ("cafile", "certfile", "keyfile", "no_verify_ssl", "heartbeat", "connection_timeout")
_CONNECT_TIMEOUT = 10.0
_HEARTBEAT = 30
_ACCESS_REFUSED, _NOT_ALLOWED = 403, 530


@cache
def import_pika() -> Any:
    """The pika package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pika
    except ImportError as error:
        raise _missing() from error
    return pika


@cache
def import_aio_pika() -> Any:
    """The aio-pika package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import aio_pika
    except ImportError as error:
        raise _missing() from error
    return aio_pika


def _missing() -> MissingExtraError:
    return MissingExtraError('RabbitMQ needs its client libraries: pip install "dispytch[rabbitmq]"')


class Source:
    """How to connect; made from a URL without I/O.

    Attributes:
        address: Host, port and virtual host, for messages.
        connect_timeout: Seconds that one attempt to connect may take.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError, without quoting the URL, since a password may be anywhere in a malformed one."""
        import_pika()
        problem: str | None = None
        options: dict[str, str] = {}
        try:
            parts = urlsplit(url)
            problem = _problem(parts, url)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            options = dict(pairs)
            if problem is None and len(options) != len(pairs):
                problem = "one of its options is given twice"
        except ValueError:
            problem = "its host, port or options cannot be read"
        if problem is not None:
            raise ConfigurationError(f"this is no usable RabbitMQ URL: {problem}; {_FORM}")
        for name in options:
            if name not in _OPTIONS:
                raise ConfigurationError(
                    f"the RabbitMQ URL has an option {name[:30]!r}, and there is none; known are: {', '.join(_OPTIONS)}"
                )
        self.host: str = parts.hostname or "localhost"
        is_tls = parts.scheme == "amqps"
        self.port: int = parts.port or (5671 if is_tls else 5672)
        self.vhost: str = unquote(parts.path[1:]) or "/"
        self.address: str = f"{self.host}:{self.port}" + ("" if self.vhost == "/" else f"/{self.vhost}")
        self.heartbeat: int = int(_seconds(options, "heartbeat", _HEARTBEAT, least=0))
        self.connect_timeout: float = _seconds(options, "connection_timeout", _CONNECT_TIMEOUT, least=0.001)
        self._user = unquote(parts.username or "guest")
        self._password = unquote(parts.password or ("" if parts.username else "guest"))
        self._tls = _tls_context(options) if is_tls else None
        if not is_tls and (named := [name for name in _OPTIONS[:4] if name in options]):
            raise ConfigurationError(f"the RabbitMQ URL has {named[0]}=, which is for TLS: begin it with amqps://")

    def __repr__(self) -> str:
        return f"<RabbitMQ at {self.address}>"

    def pika_parameters(self, connection_name: str) -> Any:
        pika = import_pika()
        return pika.ConnectionParameters(
            host=self.host,
            port=self.port,
            virtual_host=self.vhost,
            credentials=pika.PlainCredentials(self._user, self._password, erase_on_connect=False),
            ssl_options=None if self._tls is None else pika.SSLOptions(self._tls, self.host),
            heartbeat=self.heartbeat,
            connection_attempts=1,
            socket_timeout=self.connect_timeout,
            stack_timeout=self.connect_timeout,
            client_properties={"connection_name": connection_name},
        )

    async def connect_aio_pika(self, connection_name: str) -> Any:
        """A connection of aio-pika, which does not reconnect by itself."""
        from yarl import URL

        url = URL.build(
            scheme="amqp" if self._tls is None else "amqps",
            host=self.host,
            port=self.port,
            user=self._user,
            password=self._password,
            path="/" + self.vhost,
            query_string=urlencode({"heartbeat": self.heartbeat}),
        )
        return await import_aio_pika().connect(
            url,
            timeout=self.connect_timeout,
            ssl_context=self._tls,
            client_properties={"connection_name": connection_name},
            connection_class=_aio_connection_type(),
        )


@cache
def _aio_connection_type() -> Any:
    """aio-pika's connection, which closes itself when it is collected, also where no loop runs that could do it.

    What is ours is always closed; one that never came about would end in a warning of a coroutine never awaited.
    """
    base: Any = import_aio_pika().Connection

    class Connection(base):  # type: ignore[misc]  # its type is not known without the import
        def __del__(self) -> None: ...

    return Connection


def _problem(parts: SplitResult, url: str) -> str | None:
    if parts.scheme not in ("amqp", "amqps"):
        return "its scheme is neither amqp:// nor amqps://"
    if "#" in url:
        return "it holds a '#', which ends what is read of it"
    if parts.path.count("/") > 1 and parts.path != "//":  # a common way to write the virtual host "/"
        return "the virtual host after the host holds a '/', which is written %2F"
    if parts.port == 0:
        return "port 0 is no port"
    try:
        unquote(parts.path, errors="strict")
        for text in (parts.path, parts.username, parts.password):
            if text is not None and len(unquote(text, errors="strict").encode()) > 255:
                return "its user, password or virtual host is longer than 255 bytes"
    except UnicodeError:
        return "its user, password or virtual host is not UTF-8"
    return None


def _seconds(options: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= 65535:
        raise ConfigurationError(f"{name}= in the RabbitMQ URL is not a number of seconds that can be used")
    return value


def _tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    files = {name: options.get(name) or None for name in ("cafile", "certfile", "keyfile")}
    try:
        context = ssl.create_default_context(cafile=files["cafile"])
        if files["certfile"]:
            context.load_cert_chain(files["certfile"], files["keyfile"])
    except (OSError, ValueError) as error:
        named = ", ".join(f"{name}={value}" for name, value in files.items() if value)
        raise ConfigurationError(f"the certificates of the RabbitMQ URL cannot be loaded ({named}): {error}") from error
    unverified = options.get("no_verify_ssl", "0")
    if unverified not in ("0", "1"):
        raise ConfigurationError("no_verify_ssl= in the RabbitMQ URL is 0 or 1")
    if unverified == "1":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connect_error(error: BaseException, source: Source) -> BrokerError:
    """What went wrong while connecting, with the client's error as its cause."""
    if isinstance(error, BrokerError):
        return error
    root = _root(error)
    name = type(root).__name__
    text = _text(root)
    found: BrokerError
    if "Authentication" in name or "ACCESS_REFUSED" in text:
        found = BrokerError(
            f"RabbitMQ at {source.address} refused the user name or the password; check both (a user 'guest' may come "
            "from the broker's own machine only)"
        )
    elif "AccessDenied" in name or "NOT_ALLOWED" in text or "OpenOk" in text:  # as aiormq puts it
        found = BrokerError(
            f"RabbitMQ at {source.address} has no virtual host {source.vhost!r} for this user; check the URL's path "
            "and the user's permissions"
        )
    elif isinstance(root, ssl.SSLError):
        found = BrokerUnreachableError(
            f"the TLS connection to RabbitMQ at {source.address} failed: "
            f"{getattr(root, 'verify_message', '') or root}; check the certificate, the authority "
            "(?cafile=/path), the host name, and that the port is one for TLS"
        )
    elif isinstance(root, TimeoutError) or "Timeout" in name + text:
        found = BrokerUnreachableError(
            f"RabbitMQ at {source.address} did not answer within {source.connect_timeout:g} s; check the address, and "
            "that the server is running"
        )
    else:
        found = BrokerUnreachableError(
            f"cannot connect to RabbitMQ at {source.address}: {text.rstrip('.') or name}; check the address, that the "
            "server is running, and TLS (amqp:// or amqps://)"
        )
    found.__cause__ = root
    return found


def _root(error: BaseException) -> BaseException:
    """The error that a client's own errors are wrapped around."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "exceptions", None)
        if inner:
            error = inner[-1]
        elif isinstance(nested := getattr(error, "exception", None), BaseException):
            error = nested
        elif isinstance(error, ConnectionError) and isinstance(error.__cause__, OSError):
            error = error.__cause__
        elif error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
    return error


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return getattr(error, "reply_text", None) or str(error) or repr(error)


def closed_error(error: BaseException, source: Source) -> BrokerUnreachableError:
    """An open connection that ended."""
    if isinstance(error, BrokerUnreachableError):
        return error
    root = _root(error)
    found = BrokerUnreachableError(f"the connection to RabbitMQ at {source.address} broke off: {_text(root)}")
    found.__cause__ = root
    return found


def refusal(code: int, text: str, source: Source) -> BrokerError:
    """A channel that the broker closed, since it did not like what was asked."""
    advice = "; check the user's permissions" if code in (_ACCESS_REFUSED, _NOT_ALLOWED) else ""
    return BrokerError(f"RabbitMQ at {source.address} refused: {text}{advice}")
