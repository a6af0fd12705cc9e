"""Blocking code: threads, forks, and the blocking dispatcher."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dispytch import Event, EventBase
from dispytch.abc import Receipt
from dispytch.errors import EmitTimeoutError, EmitUnreachableError, UnconfirmedError
from dispytch.redis import BlockingRedisStreamProducer, RedisStreamProducer
from dispytch.sync import EventDispatcher, EventEmitter
from tests.redis.helpers import blocking_until, client_of, fake_server, reader_threads, unique
from tests.redis.streams.helpers import consumer_of, message, pending
from tests.redis.streams.test_producer import swallow_xadd
from tests.support import blocking_at_best, closed_port


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_emit_and_handle(redis_url: str, client: Any, backend: Any) -> None:
    topic = unique()
    handled: list[int] = []

    class Paid(EventBase):
        __topic__ = topic
        amount: int

    dispatcher = EventDispatcher(consumer_of(redis_url), backend=backend)

    @dispatcher.handler(Paid)
    def handle(event: Event[Paid]) -> None:
        handled.append(event.body.amount)

    with dispatcher, EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        receipt = emitter.emit(Paid(amount=0))
        assert receipt is not None
        receipts = emitter.emit_many(Paid(amount=number) for number in range(1, 101))
        offsets = [receipt.offset for receipt in (receipt, *receipts) if receipt is not None]
        assert offsets == [id.decode() for id, _ in client.xrange(topic)]
        blocking_until(lambda: len(handled) == 101)

        def stop() -> float:
            dispatcher.start()
            start = time.monotonic()
            dispatcher.stop()
            return time.monotonic() - start

        dispatcher.stop()
        blocking_at_best(0.5, stop)
    assert sorted(handled) == list(range(101))
    assert pending(client, topic) == 0
    assert reader_threads() == []


def test_threads_share_an_emitter(redis_url: str, client: Any) -> None:
    topic = unique()

    class Paid(EventBase):
        __topic__ = topic
        worker: int
        number: int

    with EventEmitter(RedisStreamProducer(redis_url)) as emitter, ThreadPoolExecutor(32) as pool:

        def emit(worker: int) -> list[Any]:
            receipts = [emitter.emit(Paid(worker=worker, number=number)) for number in range(300)]
            return [receipt.offset for receipt in receipts if receipt is not None]

        offsets = list(pool.map(emit, range(32)))
    entries = client.xrange(topic)
    assert len(entries) == 9_600
    assert {id.decode() for id, _ in entries} == {offset for each in offsets for offset in each}
    assert len({fields[b"data"] for _, fields in entries}) == 9_600
    for each in offsets:  # in the order of the emits of a thread
        assert each == sorted(each, key=lambda offset: [int(part) for part in offset.split("-")])


def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    (outcome,) = RedisStreamProducer(f"redis://127.0.0.1:{port}").blocking().send([message("x")], 5)
    assert isinstance(outcome, EmitUnreachableError)
    assert str(port) in str(outcome)


def test_a_lost_reply() -> None:
    with fake_server(swallow_xadd) as server:
        for producer in (BlockingRedisStreamProducer(server.url), BlockingRedisStreamProducer(client_of(server.url))):
            server.commands.clear()
            (outcome,) = producer.send([message("x")], 0.3)
            assert isinstance(outcome, EmitTimeoutError)
            assert len(server.named(b"XADD")) == 1
            producer.stop()


def test_a_stop_tells_what_is_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.redis.blocking._FLUSH_TIMEOUT", 0.1)
    with fake_server(swallow_xadd) as server, ThreadPoolExecutor(1) as pool:
        producer = BlockingRedisStreamProducer(server.url)
        sending = pool.submit(producer.send, [message("x"), message("x")], None)
        blocking_until(lambda: len(server.named(b"XADD")) == 2)
        with pytest.raises(UnconfirmedError, match="2 events"):
            producer.stop()
        assert [type(outcome) for outcome in sending.result(5)] == [EmitTimeoutError] * 2


def test_connections_that_the_server_has_closed_are_not_used(redis_url: str, client: Any) -> None:
    name = unique("idle")
    producer = BlockingRedisStreamProducer(f"{redis_url}?client_name={name}")
    producer.start()
    for _ in range(3):
        (ours,) = [found for found in client.client_list() if found["name"] == name]
        client.client_kill_filter(_id=ours["id"])
        assert isinstance(producer.send([message(name)], 5)[0], Receipt)
    producer.stop()


_FORK = """
import os, sys, threading
from dispytch import EventBase
from dispytch.redis import RedisStreamProducer
from dispytch.sync import EventEmitter

class Numbered(EventBase):
    __topic__ = sys.argv[2]
    number: int

emitter = EventEmitter(RedisStreamProducer(sys.argv[1]))

def emit(number, times):
    for _ in range(times):
        assert emitter.emit(Numbered(number=number)).offset

emit(-1, 10)
threads = [threading.Thread(target=emit, args=(-2, 300)) for _ in range(4)]
for thread in threads:
    thread.start()
child = os.fork()
if not child:
    for number in range(1000):
        emit(number, 1)
    emitter.close()
    os._exit(0)
for thread in threads:
    thread.join()
_, status = os.waitpid(child, 0)
emit(-3, 1)
emitter.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_fork(redis_url: str) -> None:
    topic = unique()
    numbers: Counter[int] = Counter()

    class Numbered(EventBase):
        __topic__ = topic
        number: int

    dispatcher = EventDispatcher(consumer_of(redis_url))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Numbered]) -> None:
        numbers[event.body.number] += 1

    with dispatcher:
        done = subprocess.run(
            [sys.executable, "-c", _FORK, redis_url, topic], capture_output=True, text=True, timeout=60, check=False
        )
        told = [line for line in done.stderr.splitlines() if "fork()" not in line]
        assert (done.returncode, told) == (0, [])
        blocking_until(lambda: numbers.total() >= 2211)
    assert numbers == {-1: 10, -2: 1200, -3: 1} | dict.fromkeys(range(1000), 1)
