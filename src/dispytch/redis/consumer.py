"""The consumer of Redis Pub/Sub."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import anyio.lowlevel

from dispytch._bridge import running_backend
from dispytch.abc import (
    Consumer,
    Delivery,
    EventRoute,
    EventSubscription,
    Message,
    Outcome,
    Progress,
    Settlement,
    Subscription,
)
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, DispytchError
from dispytch.redis.channels import Channels, encode
from dispytch.redis.links import AsyncioLink, AsyncioPubSubLink, Link, warn_of_gap
from dispytch.redis.producer import FEATURES, RedisProducer
from dispytch.redis.routes import RedisEventRoute
from dispytch.redis.source import Source, import_redis, is_asyncio
from dispytch.redis.threads import PubSubThreadLink, ThreadLink

__all__ = ["RedisConsumer"]

logger: logging.Logger = logging.getLogger("dispytch")

_LETTER_TIMEOUT = 5.0


class RedisConsumer(Consumer):
    """Receives from channels of Redis Pub/Sub, at most once: what is published while nobody listens is gone.

    Literal channels are subscribed as such, patterns by the narrowest glob; every message arrives once, however many
    subscriptions it fits. When a connection is made anew, a warning in the log says that there was a gap.

    Args:
        redis: A URL, see `RedisProducer`; or a ready-made PubSub object with its subscriptions, of redis.asyncio (on
            asyncio only) or of the blocking client (anywhere), to which nothing is subscribed and which is not closed.
        max_payload_bytes: Larger payloads are given up without being decoded.
        driver: ``"thread"`` for the blocking client in a thread, ``"asyncio"`` for redis.asyncio; with ``None`` what
            the event loop can run.

    Raises:
        ConfigurationError: the URL or another argument is wrong.
        MissingExtraError: redis is not installed.
    """

    transport: ClassVar[str] = "redis"
    features = FEATURES
    _heartbeat = 5.0

    def __init__(
        self,
        redis: Any,
        *,
        max_payload_bytes: int = 1024 * 1024,
        driver: Literal["asyncio", "thread"] | None = None,
    ) -> None:
        if driver not in (None, "asyncio", "thread"):
            raise ConfigurationError(f"driver={driver!r}: choose 'asyncio' or 'thread', or leave it out")
        self.group_id = "default"
        self.max_payload_bytes: int = max_payload_bytes
        self._pubsub: Any = None
        if isinstance(redis, str):
            self._source = Source.from_url(redis)
        else:
            self._source = _pubsub_source(redis)
            self._pubsub = redis
            if driver is not None:
                raise ConfigurationError("driver= is for a URL; a PubSub object brings its own")
        self._driver = driver
        self._letters = RedisProducer(self._source)
        self._subscriptions: tuple[Subscription, ...] = ()
        self._channels: Channels | None = None
        self._link: Link | None = None
        self._inbox: list[Delivery] = []
        self._heard_at: float | None = None

    def __repr__(self) -> str:
        return f"<RedisConsumer of {self._source.address}>"

    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        if isinstance(declared, EventRoute):
            if not isinstance(declared, RedisEventRoute):
                return None
            encode(declared.address)
        elif declared.transport not in (None, self.transport):
            return None
        else:
            encode(declared.pattern)
        return declared

    def dead_letter_route(self, topic: str) -> EventRoute | None:
        return RedisEventRoute(topic)

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        await anyio.lowlevel.checkpoint()
        wanted = tuple(subscriptions) or self._subscriptions
        if self._link is not None and wanted == self._subscriptions:
            return
        self._check_loop()
        await self._close()
        channels = Channels.of(wanted) if self._pubsub is None else self._subscribed(wanted)
        link = self._make_link(channels)
        await link.open()
        self._link = link
        self._heard_at = time.monotonic()
        self._subscriptions = wanted
        if self._channels:
            warn_of_gap(self._channels)
        self._channels = channels

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await anyio.lowlevel.checkpoint()
        while not self._inbox:
            if self._link is None:
                if self._channels is not None:
                    raise BrokerUnreachableError(f"there is no connection to Redis at {self._source.address}")
                raise ConfigurationError("the consumer is not started; call start() first")
            try:
                self._inbox = await self._link.read()
                self._heard_at = time.monotonic()
            except BrokerError:
                await self._close()
                raise
        found = self._inbox
        if len(found) <= limit:
            self._inbox = []
            return found
        self._inbox = found[limit:]
        return found[:limit]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        # There is nothing to acknowledge; dead letters are there only if somebody asked for them.
        letters: list[Message] = []
        owners: list[Settlement] = []
        for settlement in settlements:
            if settlement.outcome is Outcome.DEAD_LETTER:
                letters += settlement.dead_letters
                owners += [settlement] * len(settlement.dead_letters)
        if not letters:
            await anyio.lowlevel.cancel_shielded_checkpoint()
            return []
        outcomes = await self._letters.send(letters, _LETTER_TIMEOUT)
        failed: dict[Settlement, DispytchError] = {}
        for settlement, outcome in zip(owners, outcomes, strict=True):
            if isinstance(outcome, DispytchError):
                failed.setdefault(settlement, outcome)
        return list(failed.items())

    async def stop(self) -> None:
        self._inbox = []
        self._channels = None
        self._subscriptions = ()
        await self._close()
        await self._letters.stop()

    def configuration(self) -> Mapping[str, object]:
        return {"server": self._source.address, "driver": self._driver or "by the loop"}

    def progress(self) -> Progress:
        if self._heard_at is None:
            return Progress()
        # Where a thread reads, nothing reaches the loop while the channels are quiet.
        heard_at = self._heard_at if self._link is None else max(self._heard_at, self._link.heard_at)
        return Progress(time.monotonic() - heard_at)

    def backlog(self) -> int | None:
        return len(self._inbox) or None

    async def _close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def _check_loop(self) -> None:
        if running_backend() != "trio":
            return
        if self._source.world == "asyncio":
            raise ConfigurationError(
                "a PubSub object of redis.asyncio works under asyncio only, and this is trio; give RedisConsumer a "
                "URL, or the pubsub() of a blocking redis.Redis"
            )
        if self._driver == "asyncio":
            raise ConfigurationError(
                "driver='asyncio' works under asyncio only, and this is trio; leave driver= out, or choose 'thread'"
            )

    def _make_link(self, channels: Channels) -> Link:
        address = self._source.address
        if self._pubsub is not None:
            of_pubsub = PubSubThreadLink if self._source.world == "blocking" else AsyncioPubSubLink
            return of_pubsub(self._pubsub, channels, address)
        use_thread = self._driver == "thread" or running_backend() == "trio"
        return (ThreadLink if use_thread else AsyncioLink)(self._source, channels, self._heartbeat)

    def _subscribed(self, wanted: Sequence[Subscription]) -> Channels:
        """What the ready-made PubSub object is subscribed to."""
        pubsub = self._pubsub
        shards = getattr(pubsub, "shard_channels", ())  # redis.asyncio has them since 8
        if not (pubsub.channels or pubsub.patterns or shards):
            raise ConfigurationError(
                "the PubSub object has no subscriptions, and RedisConsumer makes none on a ready-made one: call its "
                "subscribe() or psubscribe() before the dispatcher starts, or give RedisConsumer a URL"
            )
        channels, patterns = (
            [pubsub.encoder.encode(name) for name in names] for names in (pubsub.channels, pubsub.patterns)
        )
        found = Channels(channels, patterns, wanted, only_wanted=False)
        for item in wanted:
            name = item.pattern.source
            if item.pattern.is_literal and not shards and not found.covers(encode(name)):
                logger.warning("The PubSub object is not subscribed to %s, so its handlers will get nothing.", name)
        return found


def _pubsub_source(pubsub: Any) -> Source:
    redis = import_redis()
    if is_asyncio(pubsub) and hasattr(pubsub, "psubscribe"):
        return Source.from_pool(pubsub.connection_pool, "asyncio")
    if isinstance(pubsub, redis.client.PubSub):
        return Source.from_pool(pubsub.connection_pool, "blocking")
    if is_asyncio(pubsub) or isinstance(pubsub, redis.Redis):
        raise ConfigurationError(
            "RedisConsumer takes a URL or a PubSub object, not a client: write RedisConsumer(client.pubsub()), after "
            "subscribing that to its channels"
        )
    raise ConfigurationError(
        f"RedisConsumer takes a URL such as 'redis://localhost:6379/0' or a PubSub object, not {type(pubsub).__name__}"
    )
