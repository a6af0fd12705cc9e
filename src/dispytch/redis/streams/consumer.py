"""The consumer of Redis Streams."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal
from uuid import uuid4

import anyio
import anyio.lowlevel

from dispytch._bridge import running_backend
from dispytch._core.patterns import Pattern
from dispytch.abc import Consumer, Delivery, EventRoute, EventSubscription, Outcome, Progress, Settlement, Subscription
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, DispytchError
from dispytch.redis.streams.control import Control
from dispytch.redis.streams.groups import Group, Stream, is_error, refusal
from dispytch.redis.streams.keeper import Keeper
from dispytch.redis.streams.producer import FEATURES, RedisStreamProducer, stream_source
from dispytch.redis.streams.reading import Reader
from dispytch.redis.streams.routes import TRANSPORT, RedisStreamEventRoute
from dispytch.redis.streams.settling import Settler
from dispytch.redis.streams.wires import AsyncioWire, SocketWire, ThreadWire, Wire, packed

__all__ = ["RedisStreamConsumer"]

logger: logging.Logger = logging.getLogger("dispytch")

_TIMEOUT = 5.0
_STOP_TIMEOUT = 3.0
_BURIAL_PAUSE = 5.0
"""Seconds until what could not be dead-lettered is tried again."""


class RedisStreamConsumer(Consumer):
    """Receives from Redis Streams, as a consumer of a group: at least once.

    Entries are pending with it until they are acknowledged. What a consumer that died has left is claimed by the others
    of its group once it has been idle for ``claim_idle`` seconds; what is being handled is renewed, however long it
    takes; what is handed back at a stop is taken by the others within about half a second.

    Args:
        redis: A URL, or a ``redis.Redis``; see `RedisStreamProducer`.
        group_id: The consumer group. It is made where it does not exist.
        consumer: The consumer's name in the group, unique among the processes that run: a process that starts again
            with the name of one that died has its entries back at once. With ``None`` there is a new one for each
            start, which is removed at a clean stop.
        claim_idle: Seconds after which entries of consumers that show no sign of life are claimed. The same for
            all of a group.
        trim_acknowledged: Whether entries that all groups of a stream have acknowledged are removed, every few seconds.
            A group that is made later does not see them.
        start_from: Where a new group begins: with what the stream holds, or with what comes next.
        declare: Whether groups that do not exist are made; if not, one that is missing is an error.
        prefetch: How many entries may wait here beside those that are being handled; by default as many as the
            dispatcher handles at once. They are pending with this consumer, and come to others if it is killed.
        max_payload_bytes: Larger payloads are dead-lettered without being decoded.
        driver: ``"thread"`` for the blocking client in threads, ``"asyncio"`` for redis.asyncio; with ``None`` what
            suits the event loop: redis.asyncio, or on trio the socket that the blocking client has connected.

    Raises:
        ConfigurationError: the URL or another argument is wrong.
        MissingExtraError: redis is not installed.
    """

    transport: ClassVar[str] = TRANSPORT
    features = FEATURES
    _makes_streams: ClassVar[bool] = True

    def __init__(
        self,
        redis: Any,
        *,
        group_id: str,
        consumer: str | None = None,
        claim_idle: float = 60.0,
        trim_acknowledged: bool = False,
        start_from: Literal["earliest", "latest"] = "earliest",
        declare: bool = True,
        prefetch: int | None = None,
        max_payload_bytes: int = 1024 * 1024,
        driver: Literal["asyncio", "thread"] | None = None,
    ) -> None:
        for name, value in (("group_id", group_id), ("consumer", consumer)):
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"{name}={value!r}: give a name")
        if not (isinstance(claim_idle, int | float) and 0 < claim_idle < float("inf")):
            raise ConfigurationError(f"claim_idle={claim_idle!r}: give a number of seconds above 0")
        if start_from not in ("earliest", "latest"):
            raise ConfigurationError(f"start_from={start_from!r}: choose 'earliest' or 'latest'")
        if prefetch is not None and (not isinstance(prefetch, int) or prefetch < 0):
            raise ConfigurationError(f"prefetch={prefetch!r}: give a number of entries from 0 on, or leave it out")
        if driver not in (None, "asyncio", "thread"):
            raise ConfigurationError(f"driver={driver!r}: choose 'asyncio' or 'thread', or leave it out")
        self._source = stream_source(redis, "RedisStreamConsumer")
        if self._source.world == "asyncio":
            raise ConfigurationError(
                "RedisStreamConsumer takes a URL or a redis.Redis: a redis.asyncio.Redis works in its event loop only, "
                "and what is being handled has to be renewed while a handler blocks that"
            )
        if self._source.world == "blocking" and driver == "asyncio":
            raise ConfigurationError("driver='asyncio' is for a URL; a redis.Redis works in threads")
        self.group_id: str = group_id
        self.prefetch = prefetch
        self.max_payload_bytes: int = max_payload_bytes
        self._consumer = consumer
        self._claim_idle = float(claim_idle)
        self._trim = trim_acknowledged
        self._origin = b"0" if start_from == "earliest" else b"$"
        self._declares = declare
        self._driver = driver
        self._letters = RedisStreamProducer(self._source)
        self._subscriptions: tuple[Subscription, ...] = ()
        self._inbox: deque[Delivery] = deque()
        self._group: Group | None = None
        self._control: Control | None = None
        self._keeper: Keeper | None = None
        self._settler: Settler | None = None
        self._reader: Reader | None = None
        self._heard_at: float | None = None

    def __repr__(self) -> str:
        return f"<RedisStreamConsumer of {self._source.address}, group {self.group_id}>"

    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        if isinstance(declared, EventRoute):
            if not isinstance(declared, RedisStreamEventRoute):
                return None
            _check_stream(Pattern.parse(declared.address, declared.delimiter))
        elif declared.transport not in (None, self.transport):
            return None
        else:
            _check_stream(Pattern.parse(declared.pattern))
        return declared

    def dead_letter_route(self, topic: str) -> EventRoute | None:
        return RedisStreamEventRoute(topic)

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        await anyio.lowlevel.checkpoint()
        wanted = tuple(subscriptions) or self._subscriptions
        if self._reader is not None and wanted == self._subscriptions:
            return
        self._check_loop()
        for item in wanted:
            _check_stream(item.pattern)
        group = self._group
        if group is None:
            group = Group(self.group_id, self._consumer or _new_name(), self._claim_idle)
        self._group = group
        # What is held of streams that were there before is still being handled.
        known, group.streams = group.streams, {}
        for item in wanted:
            stream = Stream(item.pattern.source, self._origin)
            group.streams[stream.key] = known.get(stream.key, stream)
        was_lost = self._reader is None
        await self._close_reader()
        if self._control is None:
            self._control = Control(lambda: self._wire("settler"))
        elif was_lost:  # and so may this one be, which only a time-out would tell
            await self._control.close()
        await self._control.open()
        await self._check_dead_letters(self._control, wanted)
        wire, address = self._wire("reader"), self._source.address
        reader = Reader(wire, group, self._inbox, address, declare=self._declares, makes_streams=self._makes_streams)
        await reader.open()
        self._reader = reader
        self._heard_at = time.monotonic()
        self._subscriptions = wanted
        if self._keeper is None:
            self._keeper = Keeper(self._source, group, trim=self._trim)
            self._settler = Settler(group, self._control, self._keeper, self._letters, self._source.address)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await anyio.lowlevel.checkpoint()
        inbox = self._inbox
        while not inbox:
            reader = self._reader
            if reader is None:
                if self._keeper is not None:
                    raise BrokerUnreachableError(f"there is no connection to Redis at {self._source.address}")
                raise ConfigurationError("the consumer is not started; call start() first")
            if not self._subscriptions:
                raise ConfigurationError("the consumer has no subscriptions; call start() with some")
            try:
                await reader.fill(limit)
                self._heard_at = time.monotonic()
            except BrokerError:
                await self._close_reader()
                raise
            except BaseException:  # cancelled, perhaps for good: what the read would take is to go to others
                if self._control is not None:
                    await reader.cut_short(self._control)
                raise
        if len(inbox) <= limit:
            found = list(inbox)
            inbox.clear()
            return found
        return [inbox.popleft() for _ in range(limit)]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        if self._settler is None:
            await anyio.lowlevel.cancel_shielded_checkpoint()
            return []
        waiting: list[Settlement] = []
        if self._inbox and any(item.outcome is Outcome.RELEASE for item in settlements):
            # Whoever hands back is about to stop: what it has not asked for yet must not wait for the end of its drain.
            waiting = [Settlement(delivery, Outcome.RELEASE) for delivery in self._inbox]
            self._inbox.clear()
        failed = await self._settler.settle([*settlements, *waiting])
        for item in {item for item, _ in failed}.intersection(waiting):
            stream, entry = item.delivery.token
            stream.held.pop(entry, None)  # nobody tries again; it is claimed when it has been idle for long enough
        return [found for found in failed if found[0] not in waiting]

    async def stop(self) -> None:
        settler, self._settler = self._settler, None
        keeper, self._keeper = self._keeper, None
        control, self._control = self._control, None
        group, self._group = self._group, None
        self._inbox.clear()
        self._subscriptions = ()
        reader, self._reader = self._reader, None
        if reader is not None and control is not None:
            await reader.cut_short(control)
        self._inbox.clear()  # they are held, which is what counts below
        if keeper is not None:
            await keeper.stop()
        if reader is not None:
            await reader.close()
        if settler is not None and group is not None:
            with anyio.move_on_after(_STOP_TIMEOUT):
                await self._leave(settler)
            if group.holds_something:
                logger.warning(
                    "What was received from Redis at %s and not handled could not be handed back: others of the group "
                    "%s claim it after %g s.",
                    self._source.address,
                    self.group_id,
                    self._claim_idle,
                )
        if control is not None:
            await control.close()
        await self._letters.stop()

    def configuration(self) -> Mapping[str, object]:
        return {
            "server": self._source.address,
            "group": self.group_id,
            "consumer": self._consumer or "a new name for each start",
            "claim_idle": self._claim_idle,
            "trim_acknowledged": self._trim,
            "start_from": "earliest" if self._origin == b"0" else "latest",
            "declare": self._declares,
            "prefetch": "by the dispatcher's concurrency" if self.prefetch is None else self.prefetch,
            "driver": self._driver or "by the loop",
        }

    def progress(self) -> Progress:
        heard = None if self._heard_at is None else time.monotonic() - self._heard_at
        if self._keeper is None:
            return Progress(heard)
        self._keeper.want_lag()
        return Progress(heard, lag=self._keeper.lag)

    def backlog(self) -> int | None:
        return len(self._inbox) or None

    def is_caught_up(self) -> bool | None:
        return self._reader is not None and self._reader.is_caught_up

    async def _leave(self, settler: Settler) -> None:
        try:
            await settler.hand_back_all()
            if self._consumer is None:
                await settler.forget_consumer()
        except BrokerError:
            return  # what is held still tells

    async def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    def _check_loop(self) -> None:
        if self._driver == "asyncio" and running_backend() == "trio":
            raise ConfigurationError(
                "driver='asyncio' works under asyncio only, and this is trio; leave driver= out, or choose 'thread'"
            )

    def _wire(self, name: str) -> Wire:
        if self._driver == "thread" or self._source.world == "blocking":
            return ThreadWire(self._source, name)
        return SocketWire(self._source) if running_backend() == "trio" else AsyncioWire(self._source)

    async def _check_dead_letters(self, control: Control, subscriptions: Sequence[Subscription]) -> None:
        """Writing makes a stream where there is nothing; where there is something else, it could not."""
        names = list(dict.fromkeys(route.address for item in subscriptions for route in item.dead_letters))
        replies = await control.call(*(packed("TYPE", name) for name in names), timeout=_TIMEOUT) if names else []
        for name, reply in zip(names, replies, strict=True):
            if is_error(reply):
                raise refusal(reply, self._source.address, f"look at the dead-letter stream {name}")
            if reply not in ("none", "stream", b"none", b"stream"):
                raise BrokerError(
                    f"dead letters cannot go to {name} at {self._source.address}: that key holds something else than a "
                    "stream; choose another one by dead_letter="
                )


def _check_stream(pattern: Pattern) -> None:
    if not pattern.is_literal:
        raise ConfigurationError(
            f"{pattern.source!r} is a pattern, and Redis Streams have none: name each stream in a handler of its own"
        )
    try:
        pattern.source.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"the stream {pattern.source!a} holds half a surrogate pair, which has no bytes: give proper text"
        ) from None


def _new_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
