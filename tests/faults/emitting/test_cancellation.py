"""Emits that are cancelled at any moment leave a usable emitter, and nothing twice."""

from __future__ import annotations

import random

import anyio
import pytest

from tests.faults.emitting.emitters import LONG, EitherEmitter, Ledger, World
from tests.faults.emitting.places import Place

pytestmark = pytest.mark.anyio

NUMBER = 2_000 if LONG else 300


@pytest.mark.parametrize("world", ["loop", "aio-pika"], indirect=True)
async def test_cancelled_emits(place: Place, world: World) -> None:
    topic = place.topic()
    emitter = EitherEmitter(place, world, 10)
    ledger = Ledger(emitter, topic)
    chance = random.Random(topic)
    cancelled: set[int] = set()
    await ledger.until_confirmed(-1, 10)

    async def emit(number: int) -> None:
        with anyio.move_on_after(chance.choice([0, 0.0002, 0.001, 0.003, 0.01, None]) or (chance.random() / 100)):
            if chance.random() < 0.1:
                await ledger.emit_many([number, number + NUMBER])
            else:
                await ledger.emit(number)
        cancelled.update({number, number + NUMBER} - ledger.confirmed)

    # when many are emitted at once, most of which are cancelled
    for first in range(0, NUMBER, 50):
        async with anyio.create_task_group() as group:
            for number in range(first, first + 50):
                group.start_soon(emit, number)
    # then the emitter works on, in order, and has told the truth
    assert await ledger.until_confirmed(10_000, 10) == 1
    await ledger.emit_many(range(20_000, 20_100))
    await emitter.close()
    assert not ledger.unknown
    assert not ledger.rejected
    assert cancelled
    ledger.check(place.found(topic), maybe=cancelled)
