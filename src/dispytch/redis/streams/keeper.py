"""The thread that keeps what is held here from being claimed by others, trims what everybody has acknowledged, and
measures how far the group is behind.

It is a thread on every loop: a handler that blocks the loop for longer than ``claim_idle`` must not lose its event.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from dispytch._bridge import Waker
from dispytch.redis.blocking import connect_blocking, interrupt
from dispytch.redis.source import Source, import_redis
from dispytch.redis.streams.groups import Group, Stream, has_vanished, is_error, refusal
from dispytch.redis.streams.wires import packed

__all__ = ["Keeper"]

logger: logging.Logger = logging.getLogger("dispytch")

_TRIM_EVERY = 5.0
_MEASURE_EVERY = 5.0
_MEASURED_FOR = 150.0
"""Seconds for which the lag is measured after somebody has wanted to know it."""
_TIMEOUT = 5.0
_STOP_TIMEOUT = 1.0
_LAST_NUMBER = 2**64 - 1


class Keeper:
    """Renews and trims, now and then. Made in the loop that stops it."""

    def __init__(self, source: Source, group: Group, *, trim: bool) -> None:
        self.is_renewing: bool = False
        """What leaves `Stream.held` while this is true may be renewed once more."""
        self.lag: Mapping[str, int] | None = None
        """How many entries nobody of the group has been given yet, by stream; ``None`` if that is not known."""
        self._measures_until = self._measured_at = 0.0
        self._source = source
        self._group = group
        self._trim = trim
        self._period = group.claim_idle / 4
        self._next_trim = time.monotonic() + _TRIM_EVERY * random.random()  # noqa: S311 - no secret
        self._stopping = threading.Event()
        self._ended = False
        self._troubled = False
        self._connection: Any = None
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="dispytch redis stream keeper", daemon=True)
        self._thread.start()

    def want_lag(self) -> None:
        """Has `lag` measured now and then, for a while."""
        self._measures_until = time.monotonic() + _MEASURED_FOR

    async def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        if (connection := self._connection) is not None:
            interrupt(connection)
        with anyio.move_on_after(_STOP_TIMEOUT, shield=True):
            while not self._ended:
                await self._waker.wait()
        if self._ended:
            self._thread.join()

    # --- in the thread

    def _run(self) -> None:
        pause = min(self._period, _TRIM_EVERY / 5)
        next_renewal = time.monotonic() + self._period
        try:
            while not self._stopping.wait(pause * (0.9 + random.random() / 10)):  # noqa: S311 - no secret
                now = time.monotonic()
                doing = "renewed, so that others may claim what is being handled"
                try:
                    if now >= next_renewal - pause / 2:
                        self._renew(now)
                        next_renewal = now + self._period
                    if self._trim and now >= self._next_trim:
                        doing = "trimmed"
                        self._next_trim = now + _TRIM_EVERY * (0.75 + random.random() / 2)  # noqa: S311 - no secret
                        for stream in list(self._group.streams.values()):
                            self._trim_acknowledged(stream)
                    if self._measured_at + _MEASURE_EVERY < now < self._measures_until:
                        doing = "counted"
                        self._measured_at = now
                        self._measure()
                    self._troubled = False
                except Exception as error:  # whatever it is: without renewals others would handle the same events
                    self._disconnect()
                    if not self._troubled and not self._stopping.is_set():
                        self._troubled = True
                        logger.warning("Entries could not be %s; it is tried again: %s", doing, error)
        finally:
            self._disconnect()
            self._ended = True
            self._waker.wake()

    def _renew(self, now: float) -> None:
        self.is_renewing = True
        try:
            commands: list[bytes] = []
            for stream in list(self._group.streams.values()):
                old = [id for id, taken in list(stream.held.items()) if taken <= now - self._period / 2]
                commands += self._group.renew(stream, old)
            if commands:
                for reply in self._call(*commands):
                    if is_error(reply) and not has_vanished(reply):
                        raise refusal(reply, self._source.address, "renew entries")
        finally:
            self.is_renewing = False

    def _measure(self) -> None:
        found: dict[str, int] = {}
        for stream in list(self._group.streams.values()):
            (groups,) = self._call(packed("XINFO", "GROUPS", stream.key))
            if is_error(groups):
                continue  # it has gone, or we may not look
            for fields in groups:
                group = dict(zip(fields[::2], fields[1::2], strict=True))
                # Before Redis 7 it is not told, nor where entries were deleted from the middle.
                if group[b"name"] == self._group.key and isinstance(lag := group.get(b"lag"), int):
                    found[stream.name] = lag
        self.lag = found

    def _trim_acknowledged(self, stream: Stream) -> None:
        """Removes what lies before the first entry that some group has not been given, or has not acknowledged."""
        (groups,) = self._call(packed("XINFO", "GROUPS", stream.key))
        if not is_error(groups):
            self._trim_below(stream, groups)
        elif "no such key" not in str(groups):
            raise refusal(groups, self._source.address, f"show the groups of {stream.name}")

    def _trim_below(self, stream: Stream, groups: list[list[Any]]) -> None:
        found = [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in groups]
        # In this order: what a group is given after the first look is behind the place that the first look found.
        pending = self._call(*(packed("XPENDING", stream.key, group[b"name"]) for group in found))
        limits: list[tuple[int, int]] = []
        for group, summary in zip(found, pending, strict=True):
            if is_error(summary):
                return  # the group has gone meanwhile
            time_part, _, number = group[b"last-delivered-id"].partition(b"-")
            limits.append((int(time_part), min(int(number) + 1, _LAST_NUMBER)))
            if summary[0]:
                time_part, _, number = summary[1].partition(b"-")
                limits.append((int(time_part), int(number)))
        if not limits:
            return
        time_part, number = min(limits)
        (reply,) = self._call(packed("XTRIM", stream.key, "MINID", f"{time_part}-{number}"))
        if is_error(reply):
            raise refusal(reply, self._source.address, f"trim {stream.name}")

    def _call(self, *commands: bytes) -> list[Any]:
        """The replies; the commands may be repeated, since the connection may have been lost since the last time."""
        is_fresh = self._connection is None
        try:
            return self._exchange(commands)
        except (OSError, AttributeError, import_redis().RedisError):
            self._disconnect()
            if is_fresh or self._stopping.is_set():
                raise
        return self._exchange(commands)

    def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        redis = import_redis()
        if self._connection is None:
            self._connection = connect_blocking(self._source, None)
            self._connection._sock.settimeout(_TIMEOUT)
        if self._stopping.is_set():
            raise OSError("stopping")
        self._connection.send_packed_command([b"".join(commands)], check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(self._connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)
        return replies

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
