"""Connections that die half-way, and replies that do not come."""

from __future__ import annotations

from itertools import count

import anyio
import pytest

from dispytch.errors import EmitTimeoutError, EmitUnreachableError
from tests.faults.emitting.emitters import LONG, EitherEmitter, Ledger, World
from tests.faults.emitting.places import Place
from tests.support import at_best, until

pytestmark = pytest.mark.anyio

MANY = 2_000 if LONG else 200
CUT_NUMBER = 4_000 if LONG else 400
TIMEOUT = 0.6
SLACK = 0.7
"""Seconds that an emit may take beyond its timeout."""


async def test_a_half_open_connection(place: Place, world: World) -> None:
    # given an emitter whose connection has died without a word
    topic = place.topic()
    emitter = EitherEmitter(place, world, TIMEOUT)
    ledger = Ledger(emitter, topic)
    numbers = count(0, 1000)

    async def emit() -> float:
        await ledger.until_confirmed(next(numbers), 10)
        place.proxy.swallow()
        # when it emits
        ledger.slowest = 0.0
        error = await ledger.emit(next(numbers))
        # then the emit says that it may have gone
        assert type(error) is EmitTimeoutError
        return ledger.slowest

    # in time
    await at_best(TIMEOUT + SLACK, emit)
    # and later ones work
    await ledger.until_confirmed(next(numbers), 10)
    await emitter.close()
    ledger.check(place.found(topic))


async def test_replies_that_are_lost(place: Place, world: World) -> None:
    topic = place.topic()
    emitter = EitherEmitter(place, world, TIMEOUT)
    ledger = Ledger(emitter, topic)
    numbers = count(100_000, 1000)

    async def emit() -> float:
        await ledger.until_confirmed(next(numbers), 10)
        place.proxy.drops_replies = True
        # one that is sent while no reply comes is unknown, and there; it was sent once
        ledger.slowest = 0.0
        error = await ledger.emit(lost := next(numbers))
        assert type(error) is EmitTimeoutError
        await until(lambda: place.found(topic)[lost] == 1)
        place.mend()
        return ledger.slowest

    await at_best(TIMEOUT + SLACK, emit)
    await ledger.until_confirmed(next(numbers), 10)
    # the same for many at once: each has an outcome of its own
    place.proxy.drops_replies = True
    errors = await ledger.emit_many(range(5000, 5000 + MANY))
    assert {type(error) for error in errors} <= {EmitTimeoutError, EmitUnreachableError}
    assert len(errors) == MANY
    place.mend()
    await ledger.until_confirmed(10_000, 10)
    await emitter.close()
    ledger.check(place.found(topic))
    # and once more with a connection that is cut while replies are outstanding
    emitter = EitherEmitter(place, world, 5)
    ledger = Ledger(emitter, topic := place.topic())
    await ledger.until_confirmed(0, 10)
    place.proxy.drops_replies = True

    async with anyio.create_task_group() as group:
        group.start_soon(ledger.emit_many, range(5000, 5000 + MANY))
        await until(lambda: place.found(topic)[5000])
        place.mend()
    await ledger.until_confirmed(10_000, 10)
    await emitter.close()
    assert 5000 in ledger.unknown | ledger.confirmed
    ledger.check(place.found(topic))


async def test_a_broker_that_says_nothing_at_first(place: Place, world: World) -> None:
    async def emit() -> float:
        topic = place.topic()
        emitter = EitherEmitter(place, world, TIMEOUT)
        ledger = Ledger(emitter, topic)
        place.proxy.frozen = True
        error = await ledger.emit(1000)
        assert type(error) in (EmitTimeoutError, EmitUnreachableError)
        took = ledger.slowest
        place.mend()
        await ledger.until_confirmed(2000, 15)
        await emitter.close()
        ledger.check(place.found(topic))
        return took

    await at_best(TIMEOUT + SLACK, emit)


async def test_connections_that_are_cut(place: Place, world: World) -> None:
    # given tasks that emit, one after the other and many at once
    topic = place.topic()
    emitter = EitherEmitter(place, world, 20)
    ledger = Ledger(emitter, topic)
    await ledger.until_confirmed(-1000, 10)
    numbers = iter(range(CUT_NUMBER))
    said = 0

    async def emit() -> None:
        nonlocal said
        for number in numbers:
            if number % 10 == 0:
                await ledger.emit_many(range(CUT_NUMBER * (number + 1), CUT_NUMBER * (number + 1) + 50))
            else:
                await ledger.emit(number)
            said += 1

    # when all connections are cut five times
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(emit)
        for cut in range(1, 6):
            await until(lambda: said >= CUT_NUMBER * cut // 7)  # noqa: B023 - waited for here
            place.proxy.cut()
    # then each is told at once, the emitter goes on by itself, and each outcome is true
    assert ledger.slowest < 10
    await ledger.until_confirmed(10**9, 10)
    assert len(ledger.confirmed) > CUT_NUMBER / 5
    await emitter.close()
    ledger.check(place.found(topic))
