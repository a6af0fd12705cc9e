"""What a Kafka says when it is asked; blocking, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dispytch._core.findings import Finding
from dispytch._core.patterns import Matcher
from dispytch.abc import Subscription
from dispytch.kafka.settings import Settings, import_confluent
from dispytch.kafka.trouble import CONNECT_TIMEOUT, Trouble, reach

__all__ = ["diagnose"]

_TIMEOUT = 10.0


def diagnose(url: str, subscriptions: Sequence[Subscription], group: str | None) -> Iterator[Finding]:
    """What there is of the subscriptions of a group, and what is not.

    Raises:
        BrokerUnreachableError, ConfigurationError: it cannot be asked.
    """
    settings = Settings.of(url, None, "consumer")
    trouble = Trouble(settings)
    own = {"group.id": group or "dispytch-doctor", "enable.auto.commit": False, "error_cb": trouble.note}
    consumer = settings.make("Consumer", own)
    try:
        cluster = reach(consumer, trouble, CONNECT_TIMEOUT, None, lambda: consumer.poll(0))
        count = len(cluster.brokers)
        yield Finding(
            "ok",
            f"Kafka at {settings.address}: cluster {cluster.cluster_id}, {count} broker{'' if count == 1 else 's'}; "
            "its version cannot be asked for",
        )
        admin = settings.for_connecting().make("AdminClient", {})
        names = [item.pattern.source for item in subscriptions if item.pattern.is_literal]
        letters = [route.address for item in subscriptions for route in item.dead_letters]
        there = [name for name in dict.fromkeys([*names, *letters]) if name in cluster.topics]
        allowed = _allowed(admin, there)
        for name in dict.fromkeys([*names, *letters]):
            partitions = cluster.topics[name].partitions if name in cluster.topics else {}
            yield from _topic(name, partitions, allowed.get(name), "WRITE" if name in letters else "READ")
            if name in names and partitions and group is not None:
                yield _lag(consumer, name, list(partitions), group)
        for item in subscriptions:
            if not item.pattern.is_literal:
                matcher: Matcher[None] = Matcher(item.pattern.delimiter)
                matcher.add(item.pattern, None)
                found = sum(bool(matcher.match(name)) for name in cluster.topics)
                yield Finding("ok" if found else "warning", f"the pattern {item.pattern.source} fits {found} topics")
    finally:
        consumer.close()


def _topic(name: str, partitions: Mapping[int, Any], allowed: set[str] | None, needed: str) -> Iterator[Finding]:
    if not partitions:
        yield Finding("warning", f"there is no topic {name}; a start creates it, unless declare=False")
        return
    leaderless = [number for number, one in partitions.items() if one.leader < 0]
    if leaderless:
        yield Finding("problem", f"partitions {leaderless} of the topic {name} have no leader; look at the brokers")
    number = len(partitions)
    yield Finding("ok", f"topic {name}: {number} partition{'' if number == 1 else 's'}")
    if allowed is not None and needed not in allowed:
        yield Finding("problem", f"this user may not {needed} the topic {name}; allow it by an ACL")


def _allowed(admin: Any, names: Sequence[str]) -> dict[str, set[str]]:
    """What this user may do with topics, where the broker tells."""
    if not names:
        return {}
    topics = import_confluent().TopicCollection(list(names))
    found: dict[str, set[str]] = {}
    described = admin.describe_topics(topics, include_authorized_operations=True, request_timeout=_TIMEOUT)
    for name, future in described.items():
        try:
            operations = future.result(_TIMEOUT).authorized_operations
        except (import_confluent().KafkaException, TimeoutError):
            continue  # it is not told either, if it may not be described
        if operations:
            found[name] = {operation.name for operation in operations}
    return found


def _lag(consumer: Any, name: str, partitions: Sequence[int], group: str) -> Finding:
    confluent = import_confluent()
    waiting = 0
    is_new = True
    try:
        asked = [confluent.TopicPartition(name, number) for number in partitions]
        for one in consumer.committed(asked, timeout=_TIMEOUT):
            low, high = consumer.get_watermark_offsets(confluent.TopicPartition(name, one.partition), timeout=_TIMEOUT)
            is_new = is_new and one.offset < 0
            waiting += high - (one.offset if one.offset >= 0 else low)
    except confluent.KafkaException as error:
        return Finding("problem", f"the lag of the group {group} on {name} cannot be read: {error.args[0].str()}")
    if is_new:
        return Finding("ok", f"group {group} has read nothing of {name} yet; {waiting} messages are there")
    return Finding("ok", f"group {group} on {name}: {waiting} messages behind")
