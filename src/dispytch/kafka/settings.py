"""Where a Kafka is and how to connect to it: addresses, URLs, and librdkafka's own settings, checked without I/O.

This module and those beside it import confluent_kafka only inside functions, since that takes long and it may not be
installed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from dispytch.errors import ConfigurationError, MissingExtraError

__all__ = ["LibraryLog", "Settings", "import_confluent"]

logger: logging.Logger = logging.getLogger("dispytch")

_FORM = (
    "write host:9092, or several separated by commas; or kafka://user:password@host:9092, or kafka+ssl:// for TLS, "
    "with special characters percent-encoded"
)
_SERVER = re.compile(r"(?:[^\s:@/?#,\[\]\\]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
_DEFAULT_PORT = 9092
_SECRET = re.compile(r"password|secret|token|key\.pem|jaas|oauthbearer\.config|assertion")
_CONNECTING = re.compile(
    r"(security|sasl|ssl|enable\.ssl|enable\.sasl|https|socket|broker|client|connections|reconnect|resolve|api)\..*"
    r"|enable\.ssl\.certificate\.verification|oauth_cb"
)
_JOIN_STATE = re.compile(r"changed join state \S+ -> (\S+)")
_DEFAULTS = {"client.id": "dispytch", "reconnect.backoff.max.ms": 2000}
_NEEDS_A_SERVICE = ("GSSAPI", "OAUTHBEARER")

_OWN = {
    "bootstrap.servers": "give the addresses as the first argument",
    "metadata.broker.list": "give the addresses as the first argument",
    "default.topic.config": "write its settings beside the others",
    "error_cb": "errors are raised or logged",
    "logger": "messages of the client are logged to 'dispytch' at DEBUG",
    "log_cb": "messages of the client are logged to 'dispytch' at DEBUG",
}
_OWN_OF_CONSUMERS = {
    **_OWN,
    "group.id": "give group_id=",
    "enable.auto.commit": "events are committed when they have been handled",
    "enable.auto.offset.store": "events are committed when they have been handled",
    "auto.offset.reset": "give start_from=",
    "enable.partition.eof": "it would be an error each time",
    "on_commit": "commits are made, and looked after, by the consumer",
}
_OWN_OF_PRODUCERS = {
    **_OWN,
    "delivery.report.only.error": "a confirmed emit needs the report",
    "dr_cb": "a confirmed emit needs the report",
    "on_delivery": "a confirmed emit needs the report",
    "transactional.id": "transactions are not supported",
}
_FIXED_OF_PRODUCERS = {
    "acks": ("all", "-1"),
    "request.required.acks": ("all", "-1"),
    "enable.idempotence": ("true",),
}


@cache
def import_confluent() -> Any:
    """The confluent_kafka package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import confluent_kafka
    except ImportError as error:
        raise MissingExtraError('Kafka needs its client library: pip install "dispytch[kafka]"') from error
    return confluent_kafka


class LibraryLog:
    """Takes the place of a logger for librdkafka, which repeats itself many times a second when a broker is away.

    Attributes:
        join_state: Where a consumer is in joining its group, which only the log tells.
    """

    def __init__(self) -> None:
        self.join_state: str = "init"

    def log(self, level: int, message: str, *args: Any) -> None:
        if len(args) > 2 and args[0] == "CGRPJOINSTATE":
            found = _JOIN_STATE.search(str(args[-1]))
            self.join_state = self.join_state if found is None else found[1]
        logger.debug("librdkafka: " + message, *args)


class Settings:
    """How to connect, and what else a client is made with.

    Attributes:
        address: The bootstrap servers, for messages.
    """

    def __init__(self, address: str, options: Mapping[str, Any]) -> None:
        self.address: str = address
        self._options = options

    def __repr__(self) -> str:
        return f"<Kafka at {self.address}>"

    def get(self, name: str, default: Any = None) -> Any:
        """One of librdkafka's settings as the user gave it."""
        return self._options.get(name, default)

    @classmethod
    def of(cls, servers: object, config: Mapping[str, Any] | None, kind: Literal["consumer", "producer"]) -> Settings:
        """Settings from what a user gave; no part of a URL or a value is quoted in the errors.

        Raises:
            ConfigurationError: the addresses or a setting are wrong, or one is not the user's to choose.
        """
        import_confluent()
        if not isinstance(servers, str):
            raise ConfigurationError(f"the addresses of Kafka are one string, not a {type(servers).__name__}; {_FORM}")
        if config is not None and not isinstance(config, Mapping):
            raise ConfigurationError(f"config= maps librdkafka's settings to values, and is a {type(config).__name__}")
        address, options = _parse(servers)
        for name, value in (config or {}).items():
            if not isinstance(name, str):
                raise ConfigurationError("config= maps librdkafka's settings, by their names, to values")
            if name in options:
                raise ConfigurationError(f"the setting {name!r} is given by the URL and by config=; give it once")
            options[name] = value
        _refuse_own(options, kind)
        settings = cls(address, options)
        settings._probe(kind)
        return settings

    def for_connecting(self, more: Mapping[str, Any] | None = None) -> Settings:
        """Only what is about connecting, for a client of another kind; with some settings more."""
        options = {name: value for name, value in self._options.items() if _CONNECTING.fullmatch(name) is not None}
        return Settings(self.address, {**options, **(more or {})})

    def make(self, kind: str, own: Mapping[str, Any], *, connect: bool = True, log: LibraryLog | None = None) -> Any:
        """A client of librdkafka: ``"Consumer"``, ``"Producer"`` or ``"AdminClient"``.

        Args:
            own: Settings of ours, over those of the user.
            connect: Whether it has addresses to connect to.
            log: Where its log goes.

        Raises:
            ConfigurationError: librdkafka does not take a setting.
        """
        confluent = import_confluent()
        options = {**_DEFAULTS, **self._options, **own}
        if connect:
            options["bootstrap.servers"] = self.address
        if kind == "AdminClient":
            made: Any = import_module("confluent_kafka.admin").AdminClient
        else:
            made = getattr(confluent, kind)
        try:
            return made(options, logger=log or LibraryLog())
        except confluent.KafkaException as error:
            text = self.without_secrets(error.args[0].str())
            cause = error if text == error.args[0].str() else None
        except (TypeError, ValueError) as error:
            text, cause = f"a value has the wrong type ({type(error).__name__})", None
        raise ConfigurationError(
            f"librdkafka does not take the settings for Kafka at {self.address}: {text}"
        ) from cause

    def shown(self, own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, object]:
        """librdkafka's settings as a client is made with them, for people: secrets and functions are left out.

        Args:
            own: Settings of ours, over those of the user.
            usual: Settings of ours that those of the user go over.
        """
        effective = {**_DEFAULTS, **usual, **self._options, **own}
        return {
            name: "***" if _SECRET.search(name) else getattr(value, "__qualname__", value)
            for name, value in sorted(effective.items())
        }

    def without_secrets(self, text: str) -> str:
        """A text of the client, with any secret of the settings left out."""
        for name, value in self._options.items():
            if _SECRET.search(name) is not None and isinstance(value, str) and value:
                text = text.replace(value, "***")
        return text

    def _probe(self, kind: str) -> None:
        """Has librdkafka check the settings, by a client without addresses, which has nothing to connect to."""
        options = dict(self._options)
        mechanism = str(options.get("sasl.mechanism", options.get("sasl.mechanisms", ""))).upper()
        if mechanism in _NEEDS_A_SERVICE:  # it would ask for a ticket or a token at once
            options = {name: value for name, value in options.items() if not name.startswith(("sasl.", "security."))}
            options.pop("oauth_cb", None)
        own = {"group.id": "probe"} if kind == "consumer" else {"enable.idempotence": True}
        probe = Settings(self.address, options).make(kind.capitalize(), own, connect=False)
        if kind == "consumer":
            probe.close()


def _refuse_own(options: Mapping[str, Any], kind: str) -> None:
    own = _OWN_OF_CONSUMERS if kind == "consumer" else _OWN_OF_PRODUCERS
    for name, value in options.items():
        if name in own:
            raise ConfigurationError(f"the setting {name!r} is not for you to choose here: {own[name]}; leave it out")
        fixed = _FIXED_OF_PRODUCERS.get(name) if kind == "producer" else None
        if fixed is not None and str(value).lower() not in fixed:
            raise ConfigurationError(
                f"the setting {name!r} must be {fixed[0]!r} here, since an emit returns once all in-sync replicas have "
                "the event, and once only; leave it out"
            )


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """The bootstrap servers, and the settings that the form of the address brings with it."""
    options: dict[str, Any] = {}
    servers = text
    is_read = False
    if "://" in text:
        with suppress(ValueError):  # which quotes the URL
            parts = urlsplit(text)
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            is_read = True
        if not is_read:
            raise _malformed("its hosts or options cannot be read")
        if parts.scheme not in ("kafka", "kafka+ssl"):
            raise _malformed("its scheme is neither kafka:// nor kafka+ssl://")
        if parts.fragment or "#" in text:
            raise _malformed("it holds a '#', which ends what is read of it")
        if parts.path not in ("", "/"):
            raise _malformed("something follows the hosts, where nothing but '?' and options may")
        user_info, at, servers = parts.netloc.rpartition("@")
        is_tls = parts.scheme == "kafka+ssl"
        for name, value in query:
            if name in options:
                raise _malformed("an option is given twice")
            options[name] = value
        if "security.protocol" in options:
            raise _malformed("the scheme tells security.protocol: kafka:// or kafka+ssl://, and SASL with a user")
        if at:
            user, _, password = user_info.partition(":")
            if not user or not password:
                raise _malformed("a user and a password belong together")
            if not {"sasl.username", "sasl.password"}.isdisjoint(options):
                raise _malformed("the user is given twice")
            options["sasl.username"], options["sasl.password"] = unquote(user), unquote(password)
        if {"sasl.mechanism", "sasl.mechanisms"}.isdisjoint(options) and at:
            options["sasl.mechanism"] = "PLAIN"
        is_sasl = any(name.startswith("sasl.") for name in options)
        protocol = ("SASL_" if is_sasl else "") + ("SSL" if is_tls else "PLAINTEXT")
        if protocol != "PLAINTEXT":
            options["security.protocol"] = protocol
    return _servers(servers), options


def _servers(text: str) -> str:
    found: list[str] = []
    for server in text.split(","):
        match = _SERVER.fullmatch(server.strip())
        if match is None:
            raise _malformed("it is no host, or list of hosts, with a port each")
        if match[1] is None:
            found.append(f"{server.strip()}:{_DEFAULT_PORT}")
        elif 0 < int(match[1]) < 65536:
            found.append(server.strip())
        else:
            raise _malformed("a port is not between 1 and 65535")
    return ",".join(found)


def _malformed(problem: str) -> ConfigurationError:
    return ConfigurationError(f"this is no usable address of Kafka: {problem}; {_FORM}")
