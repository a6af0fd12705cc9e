"""Seeing to it that topics exist."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import wait
from importlib import import_module
from typing import Any, Literal

from dispytch.kafka.settings import Settings, import_confluent
from dispytch.kafka.trouble import Trouble, reach

__all__ = ["missing_topics"]

_MANY = 4
_APPEARS_WITHIN = 5.0
"""Seconds until a topic that was made is known to the broker that is asked."""


def missing_topics(
    client: Any,
    settings: Settings,
    trouble: Trouble,
    topics: Collection[str],
    seconds: float,
    *,
    creates: Literal["us", "broker"] | None,
    options: Mapping[str, str] | None = None,
    serve: Callable[[], object] = lambda: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Which of some topics there are not, or are not for us, with the reason and what to do; creates what is missing.

    Args:
        creates: Who may create them, with the broker's own numbers of partitions and replicas: a broker may do so by
            itself when it is asked for one.
        options: Settings of topics that are created.

    Raises:
        BrokerUnreachableError: no broker answered in time.
    """
    end = time.monotonic() + seconds
    reasons = _look(client, trouble, topics, end, serve, is_stopped)
    wanted = [name for name, (is_absent, _) in reasons.items() if is_absent]
    if wanted and creates is not None:
        refused = _create(settings, wanted, end, dict(options or {})) if creates == "us" else dict.fromkeys(wanted)
        appears = min(end, time.monotonic() + _APPEARS_WITHIN)
        waiting = set(wanted)
        while waiting:
            found = _look(client, trouble, waiting, end, serve, is_stopped)
            waiting &= found.keys()
            for name in set(wanted) - waiting:
                reasons.pop(name, None)
            reasons.update(found)
            if time.monotonic() >= (appears - _APPEARS_WITHIN + 1 if waiting <= refused.keys() else appears):
                break
            time.sleep(0.02)
        for name, why in refused.items():
            if name in reasons and why is not None:
                reasons[name] = (True, f"it does not exist, and cannot be created: {why}")
    return {name: f"{why}; {_advice(name, is_absent)}" for name, (is_absent, why) in reasons.items()}


def _advice(topic: str, is_absent: bool) -> str:
    if is_absent:
        return f"create it, for instance with `kafka-topics.sh --create --topic {topic}`"
    return "allow the user what is needed (Describe, and Read or Write; Create if it does not exist)"


def _look(
    client: Any,
    trouble: Trouble,
    topics: Collection[str],
    end: float,
    serve: Callable[[], object],
    is_stopped: Callable[[], bool],
) -> dict[str, tuple[bool, str]]:
    """Topics that cannot be used now: whether that is since they are absent, and what was said."""
    known = import_confluent().KafkaError
    absent = (known.UNKNOWN_TOPIC_OR_PART, known.LEADER_NOT_AVAILABLE, known._UNKNOWN_TOPIC)
    found: dict[str, tuple[bool, str]] = {}
    everything: Any = None
    if len(topics) > _MANY:
        everything = reach(client, trouble, max(end - time.monotonic(), 0.0), None, serve, is_stopped).topics
    for name in topics:
        if everything is not None and name in everything and everything[name].error is None:
            continue
        metadata = reach(client, trouble, max(end - time.monotonic(), 0.0), name, serve, is_stopped).topics
        error = metadata[name].error if name in metadata else None
        if name not in metadata or (error is not None and error.code() in absent):
            found[name] = (True, "it does not exist")
        elif error is not None:
            found[name] = (False, error.str())
    return found


def _create(settings: Settings, topics: Collection[str], end: float, options: dict[str, str]) -> dict[str, str | None]:
    """Has topics created; why some were not."""
    confluent = import_confluent()
    admin_module: Any = import_module("confluent_kafka.admin")

    trouble = Trouble(settings)
    admin = settings.for_connecting().make("AdminClient", {"error_cb": trouble.note})
    left = max(end - time.monotonic(), 0.1)
    made = admin.create_topics(
        [admin_module.NewTopic(name, num_partitions=-1, replication_factor=-1, config=options) for name in topics],
        request_timeout=left,
        operation_timeout=left,
    )
    refused: dict[str, str | None] = {}
    # No error is caught here: with its traceback it would keep the client, which a forked child must not inherit.
    done, _ = wait(made.values(), left + 0.5)
    for name, future in made.items():
        error = future.exception() if future in done else None
        if future not in done:
            refused[name] = "no answer came in time"
        elif isinstance(error, confluent.KafkaException):
            if error.args[0].code() != confluent.KafkaError.TOPIC_ALREADY_EXISTS:
                refused[name] = settings.without_secrets(error.args[0].str())
        elif error is not None:
            refused[name] = type(error).__name__
    del admin, made, done, future, error
    if trouble.is_final:
        raise trouble.error()
    return refused
