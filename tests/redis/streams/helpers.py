"""What the tests of Redis Streams share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from dispytch._core.patterns import Pattern
from dispytch.abc import Delivery, Headers, Message, Outcome, Settlement, Subscription
from dispytch.redis import RedisStreamConsumer, RedisStreamEventRoute, RedisStreamEventSubscription
from tests.redis.helpers import unique
from tests.support import PATIENCE

GROUP = "group"


def subscription(stream: str, *dead_letters: str) -> Subscription:
    letters = tuple(RedisStreamEventRoute(name) for name in dead_letters)
    return Subscription(Pattern.parse(stream), RedisStreamEventSubscription(stream), letters)


def message(stream: str, payload: bytes | None = b"{}", headers: Headers = (), key: bytes | None = None) -> Message:
    return Message(unique("id"), RedisStreamEventRoute(stream), payload, headers, key)


def consumer_of(url: str, **options: Any) -> RedisStreamConsumer:
    return RedisStreamConsumer(url, **{"group_id": GROUP, **options})


def fill(client: Any, stream: str, count: int) -> list[bytes]:
    """Adds entries, numbered from 0 in their payloads; returns their ids."""
    with client.pipeline(transaction=False) as pipeline:
        for number in range(count):
            pipeline.xadd(stream, {"data": b"%d" % number})
        ids: list[bytes] = pipeline.execute()
    return ids


def leave_pending(client: Any, stream: str, consumer: str, count: int) -> None:
    """Reads entries as somebody who then dies."""
    ensure_group(client, stream)
    client.xreadgroup(GROUP, consumer, {stream: ">"}, count=count)


def ensure_group(client: Any, stream: str, group: str = GROUP) -> None:
    if not client.exists(stream) or group.encode() not in [found["name"] for found in client.xinfo_groups(stream)]:
        client.xgroup_create(stream, group, "0", mkstream=True)


def pending(client: Any, stream: str) -> int:
    count: int = client.xpending(stream, GROUP)["pending"]
    return count


def names(client: Any, stream: str) -> list[str]:
    return [found["name"].decode() for found in client.xinfo_consumers(stream, GROUP)]


async def take(
    consumer: RedisStreamConsumer, count: int, limit: int = 100, seconds: float = PATIENCE
) -> list[Delivery]:
    """As many deliveries as that, or more."""
    found: list[Delivery] = []
    with anyio.fail_after(seconds):
        while len(found) < count:
            got = await consumer.receive(limit)
            assert 1 <= len(got) <= limit
            found += got
    return found


async def nothing_comes(consumer: RedisStreamConsumer, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        found = await consumer.receive(100)
        raise AssertionError(f"{found} came")


def payloads(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(delivery.payload or b"-1") for delivery in deliveries]


def settled(
    deliveries: Sequence[Delivery], outcome: Outcome = Outcome.ACK, letters: Sequence[Message] = ()
) -> list[Settlement]:
    return [Settlement(delivery, outcome, letters) for delivery in deliveries]
