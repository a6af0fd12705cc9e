"""How the entries of a group come: own ones from before, those that others have left, and new ones.

One exchange is under way at a time. If whoever waits for it is cancelled, its replies are still read, by the next one
who waits: entries that came with them are pending with us.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio

from dispytch.abc import Delivery
from dispytch.errors import BrokerError
from dispytch.redis.streams.control import Control
from dispytch.redis.streams.entries import delivery_of
from dispytch.redis.streams.groups import Group, Stream, has_no_stream, has_vanished, is_error, refusal
from dispytch.redis.streams.wires import Wire, packed

__all__ = ["Reader"]

logger: logging.Logger = logging.getLogger("dispytch")

LOOK_EVERY = 0.5
"""Seconds, at most, between looks for what others have left; and how long a read waits at the server."""
_PATIENCE = 5.0
"""Seconds that a reply may take beyond that."""
_PAGE = 100
_MOST_AT_ONCE = 500
"""Entries of one read, however many are wanted: they may be large."""
_SOON = 0.02
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_UNBLOCK_TIMEOUT = 2.0
_UNBLOCK_AGAIN = 0.05
_START, _NEW = b"0", b">"
_ROUND = b"0-0"


class Reader:
    """One connection that reads for a consumer of a group.

    Args:
        inbox: Where the deliveries go.
        declare: Whether groups that are not there are made.
        makes_streams: Whether streams that are not there are made with them.
    """

    def __init__(
        self,
        wire: Wire,
        group: Group,
        inbox: deque[Delivery],
        address: str,
        *,
        declare: bool,
        makes_streams: bool = True,
    ) -> None:
        self.is_caught_up: bool = False
        """Whether the last read found less than it asked for."""
        self._wire = wire
        self._group = group
        self._inbox = inbox
        self._inherited: dict[Stream, list[bytes]] = {}
        self._address = address
        self._declares = declare
        self._makes_streams = makes_streams
        self._id: int | None = None
        self._understand: Callable[[list[Any]], None] | None = None
        self._behind: dict[Stream, bytes] = {}
        self._full: list[Stream] = []
        self._cursors: dict[Stream, bytes] = {}
        self._next_look = 0.0
        self._gone: dict[Stream, list[bytes]] = {}
        self._vanished = False
        self._pause = _FIRST_PAUSE

    async def open(self) -> None:
        """Connects, and makes sure of the groups.

        Raises:
            BrokerError: it did not work; the reader is closed.
        """
        await self._wire.open()
        try:
            (found,) = await self._call(packed("CLIENT", "ID"))
            self._id = found if isinstance(found, int) else None
            await self._declare()
        except BaseException:
            await self._wire.close()
            raise
        # What is pending with us and not in this process came before a crash, or by a reply that was lost.
        self._behind = dict.fromkeys(self._group.streams.values(), _START)

    async def close(self) -> None:
        await self._wire.close()

    async def fill(self, limit: int) -> None:
        """One step towards deliveries in the inbox, about ``limit`` of them at most. May be cancelled.

        Raises:
            BrokerError: it is of no use to call again.
        """
        limit = min(limit, _MOST_AT_ONCE)
        if self._understand is not None:
            await self._answer()
        elif self._vanished:
            await self._make_anew()
        elif self._behind:
            # What is settled while the page is on its way must not come once more.
            known = {stream: set(stream.held) for stream in self._behind}
            self._ask(
                lambda replies: self._understand_page(known, replies), self._group.read(self._behind.items(), _PAGE)
            )
            await self._answer()
            await self._weigh()
        elif (left := self._next_look - time.monotonic()) <= 0:
            await self._look(limit)
        else:
            await self._read(limit, min(left, LOOK_EVERY))

    async def cut_short(self, control: Control) -> None:
        """Has the server end a read that nobody waits for any more, and takes what came with it."""
        with anyio.move_on_after(_UNBLOCK_TIMEOUT, shield=True), suppress(BrokerError):  # the next reader will know
            while self._understand is not None:
                if self._id is not None:  # the command may come before the read that it is to end: then once more
                    await control.call(packed("CLIENT", "UNBLOCK", self._id), timeout=_UNBLOCK_TIMEOUT)
                with anyio.move_on_after(_UNBLOCK_AGAIN):
                    await self._answer()

    # --- one exchange

    def _ask(self, understand: Callable[[list[Any]], None], *commands: bytes) -> None:
        tidy = [self._group.acknowledge(stream, ids) for stream, ids in self._gone.items()]
        self._gone.clear()
        self._wire.ask(*tidy, *commands)
        self._understand = lambda replies: understand(replies[len(tidy) :])

    async def _answer(self) -> None:
        replies = await self._wire.take(LOOK_EVERY + _PATIENCE)
        understand, self._understand = self._understand, None
        if understand is not None:
            understand(replies)

    async def _call(self, *commands: bytes) -> list[Any]:
        self._wire.ask(*commands)
        return await self._wire.take(LOOK_EVERY + _PATIENCE)

    # --- what is asked

    async def _look(self, limit: int) -> None:
        cursors = self._cursors or dict.fromkeys(self._group.streams.values(), _ROUND)
        count = max(1, limit // len(cursors))
        looks = [self._group.look(stream, cursor, count) for stream, cursor in cursors.items()]
        streams = list(cursors)
        self._ask(lambda replies: self._understand_look(streams, replies), *looks)
        await self._answer()
        await self._weigh()

    async def _weigh(self) -> None:
        """Looks how often those have come that others, or a process before this one, have had."""
        inherited, self._inherited = self._inherited, {}
        if inherited:
            looks = [self._group.deliveries(stream, ids) for stream, ids in inherited.items()]
            self._ask(lambda replies: self._understand_deliveries(inherited, replies), *looks)
            await self._answer()

    async def _read(self, limit: int, seconds: float) -> None:
        streams = list(self._group.streams.values())
        count = max(1, limit // len(streams))  # it is for each stream
        block = max(1, int(seconds * 1000))
        pairs = [(stream, _NEW) for stream in streams]
        self._ask(lambda replies: self._understand_new(count, replies), self._group.read(pairs, count, block))
        await self._answer()
        room = limit - len(self._inbox)
        if self._full and len(streams) > 1 and room > 0:  # others gave less: what they left is for those
            pairs = [(stream, _NEW) for stream in self._full]
            count = max(1, room // len(pairs))
            self._ask(lambda replies: self._understand_new(count, replies), self._group.read(pairs, count))
            await self._answer()

    # --- what is answered

    def _understand_page(self, known: Mapping[Stream, Collection[bytes]], replies: list[Any]) -> None:
        found = dict(self._entries(replies[0]))
        for stream in list(self._behind):
            entries = found.get(stream)
            if entries:
                self._behind[stream] = entries[-1][0]
                self._inherit(stream, [(id, fields) for id, fields in entries if id not in known[stream]])
            elif not self._vanished:
                del self._behind[stream]

    def _understand_look(self, streams: Sequence[Stream], replies: list[Any]) -> None:
        self._cursors = {}
        before = len(self._inbox)
        for stream, reply in zip(streams, replies, strict=True):
            if self._is_refused(reply):
                continue
            cursor, entries, *deleted = reply
            if cursor != _ROUND:
                self._cursors[stream] = cursor
            self._inherit(stream, [entry or (b"", None) for entry in entries])
            if deleted and deleted[0]:  # Redis 7 has dropped them itself
                self._tell_gone(stream, len(deleted[0]))
        now = time.monotonic()
        if len(self._inbox) > before:
            self._next_look = now
        elif self._cursors:
            self._next_look = now + _SOON
        else:
            self._next_look = now + LOOK_EVERY * (0.5 + random.random() / 2)  # noqa: S311 - no secret

    def _understand_deliveries(self, inherited: dict[Stream, list[bytes]], replies: list[Any]) -> None:
        counts: dict[tuple[Stream, bytes], int] = {}
        for stream, reply in zip(inherited, replies, strict=True):
            if not self._is_refused(reply):
                counts.update(((stream, id), count) for id, _, _, count in reply)
        for delivery in self._inbox:
            delivery.deliveries = counts.get(delivery.token, delivery.deliveries)

    def _understand_new(self, count: int, replies: list[Any]) -> None:
        self._full = []
        for stream, entries in self._entries(replies[0]):
            if len(entries) >= count:
                self._full.append(stream)
            if stream.origin != _START:  # a group that began late, and has to be made anew, goes on here
                stream.origin = entries[-1][0]
            self._take(stream, entries)
        self.is_caught_up = not self._full and not self._vanished
        if not self._vanished:
            self._pause = _FIRST_PAUSE

    def _entries(self, reply: Any) -> Iterable[tuple[Stream, list[Any]]]:
        if self._is_refused(reply):
            return ()
        streams = self._group.streams
        return [(streams[key], entries) for key, entries in reply or ()]

    def _is_refused(self, reply: Any) -> bool:
        if not is_error(reply):
            return False
        if not has_vanished(reply):
            names = ", ".join(stream.name for stream in self._group.streams.values())
            raise refusal(reply, self._address, f"read {names[:200]}")
        self._vanished = True
        return True

    def _inherit(self, stream: Stream, entries: Sequence[Any]) -> None:
        if ids := [id for id, fields in entries if fields is not None and id not in stream.held]:
            self._inherited[stream] = ids
        self._take(stream, entries)

    def _take(self, stream: Stream, entries: Iterable[Any]) -> None:
        held, inbox, name = stream.held, self._inbox, stream.name
        now = time.monotonic()
        gone: list[bytes] = []
        for id, fields in entries:
            if fields is None:
                gone.append(id)
            elif id not in held:
                held[id] = now
                inbox.append(delivery_of(name, id, fields, (stream, id)))
        if gone:
            self._tell_gone(stream, len(gone))
            if known := [id for id in gone if id]:
                self._gone.setdefault(stream, []).extend(known)
            else:  # Redis 6 does not name those that it claims: a look at all that is ours tells
                self._behind[stream] = _START

    def _tell_gone(self, stream: Stream, count: int) -> None:
        logger.warning(
            "%d entries of %s were delivered and not acknowledged, and are deleted by now: they will not be handled.",
            count,
            stream.name,
        )

    # --- the groups

    async def _declare(self) -> None:
        streams = list(self._group.streams.values())
        if not streams:
            return
        states = await self._call(*(self._group.state(stream) for stream in streams))
        missing: list[Stream] = []
        for stream, state in zip(streams, states, strict=True):
            if has_vanished(state):
                missing.append(stream)
            elif is_error(state):
                raise refusal(state, self._address, f"show the group {self._group.name} of {stream.name}")
        if missing and not self._declares:
            raise self._missing(missing[0])
        creations = [self._group.create(stream, with_stream=self._makes_streams) for stream in missing]
        for stream, reply in zip(missing, await self._call(*creations), strict=True):
            if has_no_stream(reply):
                raise BrokerError(
                    f"there is no stream {stream.name} at {self._address}; check its name (a stream comes with its "
                    "first entry)"
                )
            if is_error(reply) and not str(reply).startswith("BUSYGROUP"):  # somebody else was faster
                raise refusal(reply, self._address, f"make the group {self._group.name} of {stream.name}")
        late = [stream for stream in streams if stream.origin == b"$"]
        for stream, reply in zip(
            late, await self._call(*(packed("XINFO", "STREAM", stream.key) for stream in late)), strict=True
        ):
            if not is_error(reply):
                stream.origin = dict(zip(reply[::2], reply[1::2], strict=True))[b"last-generated-id"]

    def _missing(self, stream: Stream) -> BrokerError:
        return BrokerError(
            f"the stream {stream.name} at {self._address} has no group {self._group.name}, and declare=False makes "
            f"none: leave that out, or run XGROUP CREATE {stream.name} {self._group.name} 0 MKSTREAM"
        )

    async def _make_anew(self) -> None:
        if self._declares:
            logger.warning(
                "The group %s has vanished from Redis at %s, with what was pending; it is made again for %s.",
                self._group.name,
                self._address,
                ", ".join(stream.name for stream in self._group.streams.values())[:200],
            )
            pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
            await anyio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311 - no secret
        # On a connection that a cancellation in the middle of this must not leave with replies to come.
        with anyio.CancelScope(shield=True):
            await self._declare()
            self._vanished = False
        self._cursors = {}
        self._next_look = 0.0
