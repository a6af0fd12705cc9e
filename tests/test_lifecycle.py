"""Starting and stopping: readiness, drains, errors, signals, connections that break, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.errors import BrokerUnreachableError, ConfigurationError, DispytchError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.testing import Faults, TestClock
from tests.support import until

ROOT = Path(__file__).parent.parent


class Tick(EventBase):
    __topic__ = "ticks"
    n: int


def ignore(event: Event[Tick]) -> None: ...


def tasks() -> set[Any]:
    """The tasks of the loop that runs here."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        root = trio.lowlevel.current_root_task()
        found, left = set(), [root]
        while left:
            task = left.pop()
            found.add(task)
            left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return found
    return asyncio.all_tasks()


def own_threads() -> set[threading.Thread]:
    """Threads but those that the loops themselves keep for a while."""
    kept = ("Trio thread", "AnyIO worker thread")
    return {thread for thread in threading.enumerate() if not thread.name.startswith(kept)}


@pytest.mark.anyio
async def test_stop_with_fifty_in_flight_leaves_nothing() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), concurrency=50)
    begun: Counter[int] = Counter()
    ended: Counter[int] = Counter()

    stopping = anyio.Event()

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        begun[event.body.n] += 1
        await stopping.wait()
        ended[event.body.n] += 1

    tasks_before, threads_before = tasks(), own_threads()
    async with EventEmitter(MemoryProducer(broker)) as emitter, anyio.create_task_group() as group:
        await group.start(dispatcher.start)
        await emitter.emit_many([Tick(n=n) for n in range(60)])
        await until(lambda: len(begun) == 50)
        dispatcher.request_stop()
        stopping.set()
        await dispatcher.stop()

    assert begun == ended == Counter(range(50))
    assert tasks() == tasks_before
    assert own_threads() == threads_before

    async with dispatcher.lifespan():
        await dispatcher.idle()
    assert begun == ended == Counter(range(60))


@pytest.mark.anyio
async def test_health_tells_the_states() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))
    dispatcher.handler(Tick)(ignore)
    assert dispatcher.health().state == "stopped"
    async with dispatcher.lifespan():
        assert (dispatcher.health().state, dispatcher.health().connected) == ("running", True)
    assert dispatcher.health().state == "stopped"


@pytest.mark.anyio
async def test_a_second_start_is_refused_and_the_first_goes_on() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))
    dispatcher.handler(Tick)(ignore)
    async with dispatcher.lifespan():
        with pytest.raises(ConfigurationError, match="started already"):
            await dispatcher.start()
        assert dispatcher.health().state == "running"


@pytest.mark.anyio
async def test_a_dispatcher_without_handlers_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no handler is registered"):
        await EventDispatcher(MemoryConsumer(MemoryBroker())).start()


@pytest.mark.anyio
async def test_an_unreachable_broker_ends_the_start() -> None:
    faults = Faults()
    faults.fail("unreachable")
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker(faults=faults)))
    dispatcher.handler(Tick)(ignore)
    with pytest.raises(BrokerUnreachableError):
        await dispatcher.start()
    with pytest.raises(BrokerUnreachableError):
        faults.fail("unreachable")
        async with dispatcher.lifespan():
            pytest.fail("it is not ready")
    async with dispatcher.lifespan():  # and it can be started when the broker is there
        pass


@pytest.mark.anyio
async def test_a_fatal_error_cancels_the_block_of_the_lifespan_and_is_raised_there() -> None:
    class Broken(MemoryConsumer):
        async def receive(self, limit: int) -> Any:
            raise RuntimeError("not to be mended")

    dispatcher = EventDispatcher(Broken(MemoryBroker()))
    dispatcher.handler(Tick)(ignore)
    with pytest.raises(RuntimeError, match="not to be mended"):
        async with dispatcher.lifespan():
            await anyio.sleep_forever()


@pytest.mark.anyio
async def test_an_error_in_the_block_of_the_lifespan_drains_and_goes_on() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    ended: list[int] = []
    begun = anyio.Event()

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        begun.set()
        await anyio.sleep(0.05)
        ended.append(event.body.n)

    with pytest.raises(ZeroDivisionError):
        async with dispatcher.lifespan(), EventEmitter(MemoryProducer(broker)) as emitter:
            await emitter.emit(Tick(n=1))
            await begun.wait()
            raise ZeroDivisionError
    assert ended == [1]


@pytest.mark.anyio
async def test_cancelling_start_hands_back_what_is_in_flight() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    begun: Counter[int] = Counter()

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        begun[event.body.n] += 1
        if begun[event.body.n] == 1:
            await anyio.sleep_forever()

    async with EventEmitter(MemoryProducer(broker)) as emitter, anyio.create_task_group() as group:
        await group.start(dispatcher.start)
        await emitter.emit(Tick(n=1))
        await until(lambda: begun[1])
        group.cancel_scope.cancel()
    async with dispatcher.lifespan():
        await dispatcher.idle()
    assert begun == {1: 2}


@pytest.mark.anyio
async def test_lifespan_hook_is_around_everything() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def hook(dispatcher: EventDispatcher) -> AsyncIterator[None]:
        log.append(f"in: {dispatcher.health().state}")
        yield
        log.append("out")

    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), on_lifespan=hook)

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        log.append("handled")

    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Tick(n=1))
        async with dispatcher.lifespan():
            await dispatcher.idle()
    assert log == ["in: starting", "handled", "out"]


@pytest.mark.anyio
async def test_a_broken_connection_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dispytch")
    faults = Faults()
    broker = MemoryBroker(faults=faults)
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    seen: set[int] = set()

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        seen.add(event.body.n)

    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        for n in range(5):
            faults.fail("disconnect")
            await emitter.emit(Tick(n=n))
            await until(lambda n=n: n in seen)  # type: ignore[misc]
    assert faults.taken["disconnect"] == 5
    assert "lost its connection" in caplog.text
    assert "is connected again" in caplog.text


@pytest.mark.anyio
async def test_settlements_that_fail_are_tried_again() -> None:
    faults = Faults(seed=3)
    faults.sometimes("settle", 0.3)
    broker = MemoryBroker(faults=faults)
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    seen: Counter[int] = Counter()

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        seen[event.body.n] += 1

    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await emitter.emit_many([Tick(n=n) for n in range(200)])
        await dispatcher.idle()
    assert seen == Counter(range(200))
    assert faults.taken["settle"] > 10


@pytest.mark.anyio
async def test_back_offs_go_by_the_broker_s_clock() -> None:
    clock = TestClock()
    broker = MemoryBroker(clock)
    dispatcher = EventDispatcher(MemoryConsumer(broker), max_deliveries=3)
    tries: list[int] = []

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        tries.append(event.meta.attempt)
        raise OSError("again and again")

    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await emitter.emit(Tick(n=1))
        for number in (1, 2):
            await until(lambda: clock.sleepers == 1)
            assert len(tries) == number
            clock.advance(60)
        await dispatcher.idle()
    assert tries == [1, 2, 3]
    assert len(broker.dead_letters) == 1


@pytest.mark.anyio
async def test_a_back_off_ends_when_the_dispatcher_stops() -> None:
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    attempts: list[int] = []

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        attempts.append(event.meta.attempt)
        if event.meta.attempt == 1:
            raise OSError("the first time")

    async with EventEmitter(MemoryProducer(broker)) as emitter:
        async with dispatcher.lifespan():
            await emitter.emit(Tick(n=1))
            await until(lambda: clock.sleepers == 1)
        async with dispatcher.lifespan():  # handed back with its count of failures
            await dispatcher.idle()
    assert attempts == [1, 2]


@pytest.mark.anyio
async def test_run_inside_a_loop_says_what_to_do() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))
    with pytest.raises(ConfigurationError, match="await start"):
        dispatcher.run()


@pytest.mark.anyio
async def test_a_thread_that_outlives_the_drain_is_named(caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), drain_timeout=0.05)
    begun, release = threading.Event(), threading.Event()

    @dispatcher.handler(Tick)
    def hang(event: Event[Tick]) -> None:
        begun.set()
        release.wait(20)

    try:
        async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
            await emitter.emit(Tick(n=1))
            await until(begun.is_set)
    finally:
        release.set()
    assert "hang" in caplog.text
    assert "drain time" in caplog.text


PROGRAM = """
import signal, sys, threading
import anyio
from dispytch import Event, EventBase, EventDispatcher
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch import sync

class Tick(EventBase):
    __topic__ = "ticks"
    n: int

broker = MemoryBroker()
dispatcher = EventDispatcher(MemoryConsumer(broker))

@dispatcher.handler(Tick)
async def handle(event: Event[Tick]) -> None:
    print("begun", flush=True)
    await anyio.sleep(float(sys.argv[2]))
    print("ended", flush=True)

def previous(number, frame): ...

signal.signal(signal.SIGTERM, previous)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background may have it ignored
sync.EventEmitter(MemoryProducer(broker)).emit(Tick(n=1))
loop = sys.argv[1]
dispatcher.run("trio" if loop == "trio" else "asyncio", use_uvloop=loop == "uvloop")
print("restored" if signal.getsignal(signal.SIGTERM) is previous else "not restored", flush=True)
print("default" if signal.getsignal(signal.SIGINT) is signal.default_int_handler else "not default", flush=True)
"""


def _run(loop: str, seconds: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, loop, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains(loop: str, number: signal.Signals) -> None:
    with _run(loop, 0.3) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        out, errors = process.communicate(timeout=20)
    assert out.splitlines() == ["ended", "restored", "default"], errors
    assert process.returncode == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_the_second_signal_cancels(loop: str) -> None:
    with _run(loop, 60) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        # It is draining now, and a second one is counted apart from the first once that has been taken.
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        out = process.stdout.read()
    assert "ended" not in out
    assert "restored" in out.splitlines()


@pytest.mark.anyio
async def test_emit_timeouts_and_refusals_of_the_broker() -> None:
    faults = Faults()
    broker = MemoryBroker(faults=faults)
    emitter = EventEmitter(MemoryProducer(broker))
    faults.fail("reject")
    with pytest.raises(DispytchError) as refused:
        await emitter.emit(Tick(n=1))
    assert type(refused.value).__name__ == "EmitRejectedError"
    assert not broker.records("ticks")

    faults.fail("lose_reply")
    with pytest.raises(TimeoutError):
        await emitter.emit(Tick(n=2))
    assert len(broker.records("ticks")) == 1

    taken: list[Tick] = []

    @emitter.on_timeout
    async def keep(event: Tick) -> None:
        taken.append(event)

    faults.fail("lose_reply", 2)
    event = Tick(n=3)
    assert await emitter.emit(event) is None
    assert (await emitter.emit_many([Tick(n=4), Tick(n=5)]))[0] is None
    assert [event.n for event in taken] == [3, 4]
    receipt = await emitter.emit(event)
    first, again = broker.records("ticks")[1], broker.records("ticks")[-1]
    assert receipt is not None
    assert dict(first.headers)["ce_id"] == dict(again.headers)["ce_id"] == receipt.id.encode()
