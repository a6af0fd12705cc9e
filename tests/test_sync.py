"""Blocking code: emitting and consuming without an event loop in sight, from threads, forks and scripts."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dispytch
from dispytch import Event, EventBase, sync
from dispytch.errors import ConfigurationError, EmitManyError, EmitRejectedError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.testing import Faults
from tests.support import unique

ROOT = Path(__file__).parent.parent


class Tick(EventBase):
    __topic__ = "ticks"
    n: int


def script(text: str, *arguments: str) -> str:
    """The output of a program; it must end well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_emit_and_handle_without_a_loop_of_one_s_own(backend: Any) -> None:
    broker = MemoryBroker()
    dispatcher = sync.EventDispatcher(MemoryConsumer(broker), backend=backend)
    seen: Counter[int] = Counter()
    done = threading.Event()

    @dispatcher.handler(Tick)
    def handle(event: Event[Tick]) -> None:
        seen[event.body.n] += 1
        if len(seen) == 100:
            done.set()

    with dispatcher, sync.EventEmitter(MemoryProducer(broker)) as emitter:
        assert emitter.emit_many([]) == []
        assert emitter.emit(Tick(n=0)) is not None
        receipts = emitter.emit_many([Tick(n=n) for n in range(1, 100)])
        assert [receipt.offset for receipt in receipts if receipt] == list(range(1, 100))
        assert done.wait(20)
    assert seen == Counter(range(100))
    assert dispatcher.wait(0)


def test_start_raises_what_went_wrong() -> None:
    faults = Faults()
    faults.fail("unreachable")
    dispatcher = sync.EventDispatcher(MemoryConsumer(MemoryBroker(faults=faults)))
    dispatcher.handler(topic="ticks")(_ignore)
    with pytest.raises(dispytch.errors.BrokerUnreachableError):
        dispatcher.start()
    dispatcher.start()
    dispatcher.stop()


def _ignore(event: Event[Any]) -> None: ...


def test_wait_raises_what_ended_it() -> None:
    class Broken(MemoryConsumer):
        async def receive(self, limit: int) -> Any:
            raise RuntimeError("not to be mended")

    dispatcher = sync.EventDispatcher(Broken(MemoryBroker()))
    dispatcher.handler(topic="ticks")(_ignore)
    with pytest.raises(RuntimeError, match="not to be mended"):
        dispatcher.start()
        dispatcher.wait(20)


def test_errors_are_those_of_the_other_world() -> None:
    faults = Faults()
    emitter = sync.EventEmitter(MemoryProducer(MemoryBroker(faults=faults)))
    faults.fail("reject")
    with pytest.raises(EmitRejectedError):
        emitter.emit(Tick(n=1))
    faults.fail("reject")
    with pytest.raises(EmitManyError) as failed:
        emitter.emit_many([Tick(n=1), Tick(n=2)])
    assert [type(result).__name__ for result in failed.value.results] == ["EmitRejectedError", "Receipt"]
    taken: list[Tick] = []
    emitter.on_timeout(taken.append)
    faults.fail("lose_reply")
    event = Tick(n=3)
    assert emitter.emit(event) is None
    assert taken == [event]
    with pytest.raises(ConfigurationError, match="plain function"):
        emitter.on_timeout(anyio.sleep)


@pytest.mark.anyio
async def test_refused_where_a_loop_runs_but_not_in_its_worker_threads() -> None:
    emitter = sync.EventEmitter(MemoryProducer(MemoryBroker()))
    with pytest.raises(ConfigurationError, match=r"dispytch\.EventEmitter"):
        emitter.emit(Tick(n=1))
    dispatcher = sync.EventDispatcher(MemoryConsumer(MemoryBroker()))
    with pytest.raises(ConfigurationError, match=r"dispytch\.EventDispatcher"):
        dispatcher.start()
    assert await anyio.to_thread.run_sync(emitter.emit, Tick(n=1))


def test_the_two_worlds_have_the_same_names_and_parameters() -> None:
    def public(kind: type) -> dict[str, Any]:
        return {name: member for name, member in vars(kind).items() if not name.startswith("_") and callable(member)}

    def parameters(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    theirs, ours = public(dispytch.EventEmitter), public(sync.EventEmitter)
    assert theirs.keys() == ours.keys()
    assert parameters(dispytch.EventEmitter) == parameters(sync.EventEmitter)
    for name in theirs:
        assert parameters(theirs[name]) == parameters(ours[name]), name

    loop_parameters, blocking_parameters = parameters(dispytch.EventDispatcher), parameters(sync.EventDispatcher)
    assert blocking_parameters[: len(loop_parameters)] == loop_parameters
    assert [name for name, _, _ in blocking_parameters[len(loop_parameters) :]] == ["backend", "use_uvloop"]
    dispatcher = sync.EventDispatcher(MemoryConsumer(MemoryBroker()))
    assert parameters(dispatcher.handler) == parameters(dispytch.EventDispatcher.handler)[1:]
    for name in ("add_router", "add_handler_group", "set_ack_policy", "health", "wiring"):
        assert parameters(getattr(sync.EventDispatcher, name)) == parameters(getattr(dispytch.EventDispatcher, name))


NO_LOOP = """
import asyncio, sys

def forbidden(*args, **kwargs):
    raise AssertionError("an event loop was asked for")

url, topic = sys.argv[1:]
if url.startswith("redis"):
    import redis  # its own __init__ imports redis.asyncio: out with it, and let nobody bring it back
    for name in [name for name in sys.modules if name.startswith("redis.asyncio")]:
        del sys.modules[name]
    del redis.asyncio

    class Bar:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("redis.asyncio"):
                raise AssertionError("redis.asyncio was asked for")

    sys.meta_path.insert(0, Bar())
asyncio.new_event_loop = asyncio.run = asyncio.Runner = asyncio.BaseEventLoop.__init__ = forbidden
asyncio.events.new_event_loop = forbidden
asyncio.SelectorEventLoop.__init__ = forbidden

from dispytch import EventBase, producer_from_url
from dispytch.sync import EventEmitter

class Tick(EventBase):
    __topic__ = topic
    n: int

with EventEmitter(producer_from_url(url)) as emitter:
    receipts = emitter.emit_many([Tick(n=n) for n in range(3)])
    receipts.append(emitter.emit(Tick(n=3)))
assert not [name for name in sys.modules if name.startswith(("redis.asyncio", "trio", "uvloop"))]
print(len([receipt for receipt in receipts if receipt]))
"""


@pytest.mark.parametrize("transport", ["memory", "redis"])
def test_blocking_all_the_way_down(transport: str, request: pytest.FixtureRequest) -> None:
    url = "memory://here" if transport == "memory" else request.getfixturevalue("redis_url")
    assert script(NO_LOOP, url, unique("ticks")) == "4\n"


def test_a_program_that_forgets_to_stop_ends_with_a_drain() -> None:
    text = """
import time
from dispytch import Event, EventBase, sync
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

class Tick(EventBase):
    __topic__ = "ticks"

broker = MemoryBroker()
dispatcher = sync.EventDispatcher(MemoryConsumer(broker))

@dispatcher.handler(Tick)
async def handle(event: Event[Tick]) -> None:
    import anyio
    print("begun", flush=True)
    while dispatcher.health().state == "running":  # none ends before the stop
        await anyio.sleep(0.001)
    await anyio.sleep(0.1)  # nor at once: the drain has something to wait for
    print("ended", flush=True)

dispatcher.start()
sync.EventEmitter(MemoryProducer(broker)).emit(Tick())
while not dispatcher.health().in_flight:
    time.sleep(0.001)
"""
    assert script(text) == "begun\nended\n"


def test_a_forked_child_emits_with_the_emitter_it_inherited() -> None:
    text = """
import os
from dispytch import EventBase, sync
from dispytch.memory import MemoryBroker, MemoryProducer

class Tick(EventBase):
    __topic__ = "ticks"

emitter = sync.EventEmitter(MemoryProducer(MemoryBroker()))
emitter.emit(Tick())
child = os.fork()
if child == 0:
    emitter.emit(Tick())
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert script(text) == "7\n"
