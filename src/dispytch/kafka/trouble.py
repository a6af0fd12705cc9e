"""What librdkafka says of its connections, kept until it is wanted; and waiting for a first answer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from dispytch.errors import BrokerUnreachableError
from dispytch.kafka.settings import Settings, import_confluent

__all__ = ["CONNECT_TIMEOUT", "Trouble", "reach"]

CONNECT_TIMEOUT = 10.0
"""Seconds that connecting may take, unless less is left."""

_PATIENCE = 2.0
"""Seconds for which brokers may refuse connections, since a name may stand for several addresses, and some be dead."""
_SLICE = 0.25
_WHERE = re.compile(r"^\S+/(?:bootstrap|\d+): ")
_WHEN = re.compile(r" \(after \d+ms in state \w+\)")
_REFUSED = "Connection refused"
_ADVICE = "check the address, and that the server is running"
_WANTS = "; and what it wants: TLS (kafka+ssl://), or a user and a password"
"""A server drops a connection that is not what it wants without a word."""


class Trouble:
    """The errors of one client. Noted in the thread that polls it, read in any.

    Attributes:
        text: What was said last of a connection that failed.
        since: When the first of them failed (monotonic), after the last one that worked.
        is_final: Whether trying again is no use: the credentials or a certificate were refused.
        fatal: What has ended the client.
        are_down: Whether all brokers were away when last heard of.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.text: str | None = None
        self.since: float | None = None
        self.is_final: bool = False
        self.fatal: str | None = None
        self.are_down: bool = False

    def note(self, error: Any) -> None:
        """librdkafka's ``error_cb``."""
        known = import_confluent().KafkaError
        code = error.code()
        if error.fatal() or code == known._FATAL:
            self.fatal = self.words(error)
            return
        if code == known._ALL_BROKERS_DOWN:
            self.are_down = True
        elif code in (known._AUTHENTICATION, known.SASL_AUTHENTICATION_FAILED, known._SSL):
            advice = (
                "check the certificates (ssl.ca.location), and that the host has the name that they are for"
                if code == known._SSL
                else "check the user, the password and sasl.mechanism"
            )
            self.text, self.is_final = f"{self.words(error)}; {advice}", True
        elif code == known._RESOLVE:
            self.text = f"{self.words(error)}; check the address"
        elif code == known._TRANSPORT:
            self.text = f"{self.words(error)}; {_ADVICE if _REFUSED in error.str() else _ADVICE + _WANTS}"
        else:
            return
        if self.since is None:
            self.since = time.monotonic()

    def words(self, error: Any) -> str:
        """What an error says, without what changes each time."""
        text = error.str() or error.name()
        return self._settings.without_secrets(_WHEN.sub("", _WHERE.sub("", text))).rstrip(".")

    def clear(self) -> None:
        """A broker has answered."""
        self.text, self.since, self.is_final, self.are_down = None, None, False, False

    def error(self, cause: BaseException | None = None) -> BrokerUnreachableError:
        """The trouble as an error."""
        why = self.text or f"no answer came; {_ADVICE}{_WANTS}"
        found = BrokerUnreachableError(f"cannot connect to Kafka at {self._settings.address}: {why}")
        found.__cause__ = cause
        return found


def reach(
    client: Any,
    trouble: Trouble,
    seconds: float,
    topic: str | None = None,
    serve: Callable[[], object] = lambda: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Any:
    """The cluster's metadata, or that of one topic; waits until a broker gives it.

    Args:
        serve: Has the client call back, where no other thread does.
        is_stopped: Whether to give up.

    Raises:
        BrokerUnreachableError: none gave it in time, or none will.
    """
    confluent = import_confluent()
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        try:
            found = client.list_topics(*(() if topic is None else (topic,)), timeout=max(min(left, _SLICE), 0.01))
        except confluent.KafkaException as error:
            serve()
            now = time.monotonic()
            is_over = now >= end or trouble.is_final or trouble.fatal is not None or is_stopped()
            if is_over or (trouble.since is not None and now - trouble.since > _PATIENCE):
                del client  # the traceback would keep it
                raise trouble.error() from error.with_traceback(None)
            time.sleep(0.01)
        else:
            serve()
            trouble.clear()
            return found
