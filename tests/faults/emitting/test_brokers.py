"""Brokers that are killed, or have no room: what was confirmed is there, and what was refused is told."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest
import redis

from dispytch.errors import DispytchError, EmitRejectedError, EmitTimeoutError, EmitUnreachableError
from tests.faults.emitting.emitters import LONG, EitherEmitter, Ledger, World
from tests.faults.emitting.places import Place, RabbitMQPlace
from tests.support import at_best, until

pytestmark = pytest.mark.anyio

NUMBER = 20_000 if LONG else 2_000
TASKS = 20


@pytest.mark.parametrize("place", ["kafka", "rabbitmq", "redis"], indirect=True)
async def test_nothing_confirmed_is_lost_when_the_broker_is_killed(place: Place, world: World) -> None:
    # given tasks that emit, one after the other and many at once, and go on whatever happens
    topic = place.topic()
    emitter = EitherEmitter(place, world, 5, direct=True)
    ledger = Ledger(emitter, topic)
    numbers = iter(range(NUMBER))
    is_back = False

    async def emit() -> None:
        for number in numbers:
            if number % 50 == 0:
                errors = await ledger.emit_many(
                    [number, *(NUMBER * number + rest for rest in range(NUMBER, NUMBER + 20))]
                )
            else:
                errors = [error for error in [await ledger.emit(number)] if error is not None]
            if errors:
                await anyio.sleep(0.01)
            if number > NUMBER / 2:
                await until(lambda: is_back)

    async with anyio.create_task_group() as group:
        for _ in range(TASKS):
            group.start_soon(emit)
        # when the broker is killed in the midst of it, and started again
        await until(lambda: len(ledger.confirmed) > NUMBER / 4)
        await anyio.to_thread.run_sync(place.kill)
        before = len(ledger.confirmed)
        await anyio.to_thread.run_sync(place.start)
        is_back = True
    # then the emitter has gone on by itself
    await ledger.until_confirmed(10**9, 20)
    assert len(ledger.confirmed) > before
    await emitter.close()
    # and what was confirmed is there, once
    ledger.check(place.found(topic))


@pytest.mark.parametrize("place", ["rabbitmq"], indirect=True)
async def test_a_memory_alarm(place: RabbitMQPlace, world: World) -> None:
    topic = place.topic()
    emitter = EitherEmitter(place, world, 1, direct=True)
    ledger = Ledger(emitter, topic)
    await ledger.until_confirmed(0, 10)
    # given a broker that has no memory left, in its own eyes
    await anyio.to_thread.run_sync(place.limit_memory, "1MB")
    try:
        errors: list[DispytchError | None] = []

        async def emit() -> float:
            ledger.slowest = 0.0
            errors.append(await ledger.emit(1000 + len(errors)))
            return ledger.slowest

        # when events are emitted, then each emit ends in time; the broker tells of its alarm after the first one
        for _ in range(3):
            await at_best(1.7, emit)
        assert {type(error) for error in errors} <= {EmitTimeoutError, EmitUnreachableError}
        if world != "aio-pika":  # which tells nobody of an alarm
            assert any("it has blocked publishing: low on memory" in str(error) for error in errors)
    finally:
        await anyio.to_thread.run_sync(place.limit_memory, "2GB")
    # and once there is room again, the emitter works
    await ledger.until_confirmed(2000, 15)
    await emitter.close()
    ledger.check(place.found(topic))


@pytest.mark.parametrize("place", ["redis"], indirect=True)
async def test_a_server_without_memory(place: Place, world: World) -> None:
    topic = place.topic()
    emitter = EitherEmitter(place, world, 5, direct=True)
    ledger = Ledger(emitter, topic)
    await ledger.until_confirmed(0, 10)
    with redis.Redis.from_url(place.url) as client:
        client.config_set("maxmemory", "1")
        try:
            error = await ledger.emit(1000)
            errors = await ledger.emit_many(range(2000, 2000 + NUMBER))
        finally:
            client.config_set("maxmemory", "0")
    assert type(error) is EmitRejectedError
    assert "trim its streams" in str(error)
    assert {type(one) for one in errors} == {EmitRejectedError}
    assert len(errors) == NUMBER
    assert await ledger.until_confirmed(1_000_000, 10) == 1
    await emitter.close()
    ledger.check(place.found(topic))
