"""What becomes of entries: acknowledged, dead-lettered, handed back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from dispytch.abc import Message, Outcome, Settlement
from dispytch.errors import BrokerError, DispytchError
from dispytch.redis.streams.control import Control
from dispytch.redis.streams.entries import restored
from dispytch.redis.streams.groups import Group, Stream, has_vanished, is_error, refusal
from dispytch.redis.streams.keeper import Keeper
from dispytch.redis.streams.producer import RedisStreamProducer

__all__ = ["Settler"]

_LETTER_TIMEOUT = 4.0
_TIMEOUT = 4.0
_NEVER = float("inf")
_RENEWAL_CHECK = 0.002

_Failures = list[tuple[Settlement, DispytchError]]
_Items = dict[Stream, list[Settlement]]


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
        done: _Items = {}
        back: _Items = {}
        writing = [
            item for item in settlements if item.outcome is Outcome.DEAD_LETTER and id(item) not in self._written
        ]
        unwritten = await self._write(writing) if writing else {}
        for item in settlements:
            if unwritten and id(item) in unwritten:
                failed.append((item, unwritten[id(item)]))
                continue
            stream = item.delivery.token[0]
            which = back if item.outcome is Outcome.RELEASE else done
            if stream in which:
                which[stream].append(item)
            else:
                which[stream] = [item]
        if back:
            await self._stop_renewing({stream: _ids(items) for stream, items in back.items()})
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

    async def _carry_out(self, done: _Items, back: _Items, failed: _Failures) -> None:
        commands: list[bytes] = []
        owners: list[list[Settlement]] = []
        for stream, items in done.items():
            commands.append(self._group.acknowledge(stream, _ids(items)))
            owners.append(items)
        for stream, items in back.items():
            for command in self._group.hand_back(stream, _ids(items)):
                commands.append(command)
                owners.append(items)
        replies: list[Any] = await self._control.call(*commands, timeout=_TIMEOUT) if commands else []
        refused: dict[int, tuple[Settlement, DispytchError]] = {}
        for reply, items in zip(replies, owners, strict=True):
            if is_error(reply) and not has_vanished(reply):
                error = refusal(reply, self._address, "acknowledge entries")
                refused.update((id(item), (item, error)) for item in items)
        failed += refused.values()
        written = self._written
        for stream, items in (*done.items(), *back.items()):
            held = stream.held
            for item in items:
                if not refused or id(item) not in refused:
                    held.pop(item.delivery.token[1], None)
                    if written:
                        written.pop(id(item), None)


def _ids(items: Sequence[Settlement]) -> list[bytes]:
    return [item.delivery.token[1] for item in items]
