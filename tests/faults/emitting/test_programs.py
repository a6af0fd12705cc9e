"""Programs that fork, or end without closing their emitter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.emitting.places import Place
from tests.support import blocking_until

PROJECT = Path(__file__).parents[3]

_PRELUDE = """
import contextlib, os, sys, threading, time
import anyio
from dispytch import EventBase, EventEmitter, producer_from_url
from dispytch.errors import DispytchError
from dispytch import sync

class Numbered(EventBase):
    __topic__ = sys.argv[2]
    number: int

producer = producer_from_url(sys.argv[1])
"""

_FORK = """
emitter = sync.EventEmitter(producer)
emitter.emit(Numbered(number=-1))
child = os.fork()
first = 1000 if child else 0
def emit(start):
    for number in range(start, start + 200):
        emitter.emit(Numbered(number=number))
threads = [threading.Thread(target=emit, args=(first + 200 * one,)) for one in range(4)]
for thread in threads:
    thread.start()
emitter.emit_many([Numbered(number=number) for number in range(first + 800, first + 1000)])
for thread in threads:
    thread.join()
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
# both leave with their emitter open
"""

_FORK_IN_LOOP = """
async def some(first):
    emitter = EventEmitter(producer)
    await emitter.emit(Numbered(number=first))
    await emitter.emit_many([Numbered(number=number) for number in range(first + 1, first + 1000)])
    await emitter.close()

anyio.run(some, -2000, backend=sys.argv[3])
child = os.fork()
anyio.run(some, 1000 if child else 0, backend=sys.argv[3])
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
"""

_EXIT = """
emitter = sync.EventEmitter(producer)
emitter.emit(Numbered(number=0))
emitter.emit_many([Numbered(number=number) for number in range(1, 100)])
"""

_EXIT_IN_LOOP = """
async def main():
    emitter = EventEmitter(producer)
    await emitter.emit(Numbered(number=0))
    await emitter.emit_many([Numbered(number=number) for number in range(1, 100)])

anyio.run(main, backend=sys.argv[3])
"""

_EXIT_BEFORE_THE_REPLIES = """
import importlib
for name in ("kafka.producer.FLUSH", "kafka.sender.FLUSH", "rabbitmq.publisher._FLUSH", "redis.blocking._FLUSH"):
    module, _, attribute = name.rpartition(".")
    setattr(importlib.import_module(f"dispytch.{module}"), f"{attribute}_TIMEOUT", 0.5)

emitter = sync.EventEmitter(producer)
emitter.emit(Numbered(number=0))
print("ready", flush=True)
sys.stdin.readline()

def emit(number):  # a thread that still writes its traceback when the interpreter ends may abort it
    with contextlib.suppress(DispytchError):
        emitter.emit(Numbered(number=number))

for number in (1, 2, 3):
    threading.Thread(target=emit, args=(number,), daemon=True).start()
sys.stdin.readline()
"""


def call(program: str, place: Place, topic: str, *arguments: str, direct: bool = True) -> Sequence[str]:
    url = place.producer_url(place.url if direct else place.proxy.url).partition("?")[0]
    # Python 3.12 and later warn of any fork beside threads; and where a loop is left without a close, asyncio itself
    # warns of sockets.
    ignored = ["-W", "ignore::DeprecationWarning", *(["-W", "ignore::ResourceWarning"] if arguments else [])]
    return [sys.executable, "-W", "error", *ignored, "-c", _PRELUDE + program, url, topic, *arguments]


def run(program: str, place: Place, topic: str, *arguments: str) -> None:
    """Runs it to its end, which is silent."""
    done = subprocess.run(
        call(program, place, topic, *arguments),
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork(place: Place) -> None:
    topic = place.topic()
    run(_FORK, place, topic)
    assert place.found(topic) == dict.fromkeys(range(-1, 2000), 1)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_fork_between_loops(place: Place, backend: str) -> None:
    topic = place.topic()
    run(_FORK_IN_LOOP, place, topic, backend)
    assert place.found(topic) == dict.fromkeys([*range(-2000, -1000), *range(2000)], 1)


def test_an_exit_without_a_close(place: Place) -> None:
    topic = place.topic()
    run(_EXIT, place, topic)
    assert place.found(topic) == dict.fromkeys(range(100), 1)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_exit_without_a_close_after_a_loop(place: Place, backend: str) -> None:
    topic = place.topic()
    run(_EXIT_IN_LOOP, place, topic, backend)
    assert place.found(topic) == dict.fromkeys(range(100), 1)


def test_an_exit_before_the_replies_tells_how_many(place: Place) -> None:
    topic = place.topic()
    command = call(_EXIT_BEFORE_THE_REPLIES, place, topic, direct=False)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as program:  # type: ignore[call-overload]  # pipes
        assert program.stdout.readline() == "ready\n"
        place.proxy.drops_replies = True
        program.stdin.write("go\n")
        program.stdin.flush()
        blocking_until(lambda: place.found(topic).keys() == {0, 1, 2, 3})
        _, said = program.communicate("exit\n", timeout=60)
    assert program.returncode == 0, said
    assert "3 events" in said
    assert "not confirmed" in said
    assert place.found(topic).keys() == {0, 1, 2, 3}
