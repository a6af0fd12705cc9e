"""What becomes of entries: acknowledged, dead-lettered, handed back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio

from dispytch._core.deadletters import dead_letter_headers
from dispytch.abc import DeadLetter, Delivery, EventRoute, Message, Outcome, Settlement
from dispytch.errors import BrokerError, DispytchError
from dispytch.redis.streams.control import Control
from dispytch.redis.streams.entries import restored
from dispytch.redis.streams.groups import Group, Stream, has_vanished, is_error, refusal
from dispytch.redis.streams.keeper import Keeper
from dispytch.redis.streams.producer import RedisStreamProducer

__all__ = ["Settler", "crash_letters"]

_LETTER_TIMEOUT = 4.0
_TIMEOUT = 4.0
_NEVER = float("inf")
_RENEWAL_CHECK = 0.002

_Failures = list[tuple[Settlement, DispytchError]]
_Entries = dict[Stream, list[tuple[bytes, Settlement]]]


def crash_letters(delivery: Delivery, routes: Sequence[EventRoute], group: str) -> list[Message]:
    """What is told of an event that nobody has lived to settle."""
    letter = DeadLetter(
        "DeliveryError: it was delivered again and again, and never settled: its handling seems to end the process",
        None,
        0,
        delivery.source,
        delivery.position,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        group,
    )
    headers = dead_letter_headers(delivery, letter)
    return [Message(str(uuid4()), route, delivery.payload, headers, delivery.key) for route in routes]


class Settler:
    """Carries out outcomes over the control connection."""

    def __init__(
        self, group: Group, control: Control, keeper: Keeper, letters: RedisStreamProducer, address: str
    ) -> None:
        self._group = group
        self._control = control
        self._keeper = keeper
        self._letters = letters
        self._address = address
        self._written: dict[int, Settlement] = {}
        """Those whose dead letters are written, and that may have to be acknowledged once more."""

    async def settle(self, settlements: Sequence[Settlement]) -> _Failures:
        """Returns those that could not be carried out, with the reason."""
        failed: _Failures = []
        done: _Entries = {}
        back: _Entries = {}
        writing = [
            item for item in settlements if item.outcome is Outcome.DEAD_LETTER and id(item) not in self._written
        ]
        unwritten = await self._write(writing) if writing else {}
        for item in settlements:
            if id(item) in unwritten:
                failed.append((item, unwritten[id(item)]))
                continue
            stream, entry = item.delivery.token
            which = back if item.outcome is Outcome.RELEASE else done
            which.setdefault(stream, []).append((entry, item))
        if back:
            await self._stop_renewing({stream: [entry for entry, _ in items] for stream, items in back.items()})
        try:
            await self._carry_out(done, back, failed)
        except BrokerError as error:
            known = {id(item) for item, _ in failed}
            failed += [(item, error) for item in settlements if id(item) not in known]
        return failed

    async def hand_back_all(self) -> int:
        """Hands back everything that is held; how much that was.

        Raises:
            BrokerError: it did not work.
        """
        held = {stream: list(stream.held) for stream in self._group.streams.values() if stream.held}
        await self._stop_renewing(held)
        commands = [command for stream, ids in held.items() for command in self._group.hand_back(stream, ids)]
        if commands:
            for reply in await self._control.call(*commands, timeout=_TIMEOUT):
                if is_error(reply) and not has_vanished(reply):
                    raise refusal(reply, self._address, "take entries back")
        for stream in held:
            stream.held.clear()
        return sum(map(len, held.values()))

    async def forget_consumer(self) -> None:
        """Removes the consumer's name from the groups where nothing is pending with it."""
        commands = [self._group.forget(stream) for stream in self._group.streams.values()]
        if commands:  # a user who may not do that has names that pile up, and nothing worse
            await self._control.call(*commands, timeout=_TIMEOUT)

    async def _write(self, writing: Sequence[Settlement]) -> dict[int, DispytchError]:
        letters: list[Message] = []
        owners: list[int] = []
        for item in writing:
            letters += [restored(letter, item.delivery) for letter in item.dead_letters]
            owners += [id(item)] * len(item.dead_letters)
        failed: dict[int, DispytchError] = {}
        for owner, outcome in zip(owners, await self._letters.send(letters, _LETTER_TIMEOUT), strict=True):
            if isinstance(outcome, DispytchError):
                failed.setdefault(owner, outcome)
        self._written.update((id(item), item) for item in writing if id(item) not in failed)
        return failed

    async def _stop_renewing(self, entries: dict[Stream, list[bytes]]) -> None:
        for stream, ids in entries.items():
            for entry in ids:
                if entry in stream.held:
                    stream.held[entry] = _NEVER
        while self._keeper.is_renewing:  # noqa: ASYNC110 - it is a matter of one round trip, and rare
            await anyio.sleep(_RENEWAL_CHECK)

    async def _carry_out(self, done: _Entries, back: _Entries, failed: _Failures) -> None:
        commands: list[bytes] = []
        owners: list[tuple[Stream, list[tuple[bytes, Settlement]]]] = []
        for stream, items in done.items():
            commands.append(self._group.acknowledge(stream, [entry for entry, _ in items]))
            owners.append((stream, items))
        for stream, items in back.items():
            for command in self._group.hand_back(stream, [entry for entry, _ in items]):
                commands.append(command)
                owners.append((stream, items))
        replies: list[Any] = await self._control.call(*commands, timeout=_TIMEOUT) if commands else []
        refused: dict[int, tuple[Settlement, DispytchError]] = {}
        for reply, (_, items) in zip(replies, owners, strict=True):
            if is_error(reply) and not has_vanished(reply):
                error = refusal(reply, self._address, "acknowledge entries")
                refused.update((id(item), (item, error)) for _, item in items)
        failed += refused.values()
        written = self._written
        for stream, items in (*done.items(), *back.items()):
            held = stream.held
            for entry, item in items:
                if id(item) not in refused:
                    held.pop(entry, None)
                    if written:
                        written.pop(id(item), None)
