"""Emitting from blocking code: threads, forks, and clients of the wrong world."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from dispytch import Event, EventBase
from dispytch.abc import Receipt
from dispytch.errors import EmitTimeoutError, EmitUnreachableError, UnconfirmedError
from dispytch.redis import BlockingRedisProducer, RedisConsumer, RedisProducer
from dispytch.sync import EventDispatcher, EventEmitter
from tests.redis.helpers import blocking_until, client_of, fake_server, message, reader_threads, swallow_publish, unique
from tests.support import closed_port


def test_emit_and_handle(redis_url: str) -> None:
    topic = unique()
    handled: list[int] = []

    class Paid(EventBase):
        __topic__ = topic
        amount: int

    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(Paid)
    def handle(event: Event[Paid]) -> None:
        handled.append(event.body.amount)

    with dispatcher, EventEmitter(RedisProducer(redis_url)) as emitter:
        receipt = emitter.emit(Paid(amount=1))
        assert receipt is not None
        assert receipt.receivers == 1
        emitter.emit_many(Paid(amount=number) for number in range(2, 102))
        blocking_until(lambda: len(handled) == 101)
    assert sorted(handled) == list(range(1, 102))


def test_threads_share_an_emitter(redis_url: str) -> None:
    topic = unique()

    class Paid(EventBase):
        __topic__ = topic
        number: int

    got: set[bytes] = set()
    with client_of(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as watching:
        watching.subscribe(topic)
        blocking_until(lambda: client.pubsub_numsub(topic)[0][1] == 1)
        with EventEmitter(RedisProducer(redis_url)) as emitter, ThreadPoolExecutor(32) as pool:

            def emit(worker: int) -> int:
                receipts = [emitter.emit(Paid(number=worker * 100 + number)) for number in range(100)]
                return sum(receipt.receivers or 0 for receipt in receipts if receipt is not None)

            def watch() -> None:
                end = time.monotonic() + 30
                while len(got) < 3200 and time.monotonic() < end:
                    if (found := watching.get_message(timeout=1)) is not None:
                        got.add(found["data"])

            watcher = threading.Thread(target=watch)
            watcher.start()
            assert sum(pool.map(emit, range(32))) == 3200
            watcher.join()
    assert len(got) == 3200


def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    producer = RedisProducer(f"redis://127.0.0.1:{port}").blocking()
    start = time.monotonic()
    (outcome,) = producer.send([message("x")], 5)
    assert time.monotonic() - start < 2
    assert isinstance(outcome, EmitUnreachableError)
    assert str(port) in str(outcome)


def test_a_lost_reply() -> None:
    with fake_server(swallow_publish) as server:
        for producer in (BlockingRedisProducer(server.url), BlockingRedisProducer(client_of(server.url))):
            server.commands.clear()
            start = time.monotonic()
            (outcome,) = producer.send([message("x")], 0.3)
            assert 0.25 < time.monotonic() - start < 1.5
            assert isinstance(outcome, EmitTimeoutError)
            assert len(server.named(b"PUBLISH")) == 1
            producer.stop()


def test_a_reply_that_comes_late_is_nobody_elses(redis_url: str) -> None:
    with fake_server(swallow_publish) as server:
        producer = BlockingRedisProducer(server.url)
        assert isinstance(producer.send([message("x")], 0.1)[0], EmitTimeoutError)
        server.answer = lambda command: b":7\r\n"
        (outcome,) = producer.send([message("y")], 5)
        assert isinstance(outcome, Receipt)
        assert outcome.receivers == 7
        producer.stop()


def test_connections_that_the_server_has_closed_are_not_used(redis_url: str) -> None:
    name = unique("idle")
    producer = BlockingRedisProducer(f"{redis_url}?client_name={name}")
    producer.start()
    with client_of(redis_url) as client:
        for _ in range(3):
            (ours,) = [found for found in client.client_list() if found["name"] == name]
            client.client_kill_filter(_id=ours["id"])
            assert isinstance(producer.send([message("x")], 5)[0], Receipt)
        producer.stop()
        blocking_until(lambda: name not in [found["name"] for found in client.client_list()])


def test_a_stop_tells_what_is_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.redis.blocking._FLUSH_TIMEOUT", 0.1)
    with fake_server(swallow_publish) as server:
        producer = BlockingRedisProducer(server.url)
        outcomes: list[Any] = []
        sender = threading.Thread(target=lambda: outcomes.extend(producer.send([message("x")], None)))
        sender.start()
        blocking_until(lambda: server.named(b"PUBLISH"))
        with pytest.raises(UnconfirmedError, match="1 events"):
            producer.stop()
        sender.join(5)
        assert isinstance(outcomes[0], EmitTimeoutError)
        producer.stop()


def test_max_connections_of_the_url(redis_url: str) -> None:
    name = unique("few")
    producer = BlockingRedisProducer(f"{redis_url}?client_name={name}&max_connections=2")
    with client_of(redis_url) as client, ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda number: producer.send([message("x")], 10)[0], range(200)))
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        assert len([found for found in client.client_list() if found["name"] == name]) <= 2
    producer.stop()
    with fake_server(swallow_publish) as server:
        producer = BlockingRedisProducer(server.url + "?max_connections=1")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(producer.send, [message("x")], 1.0)
            blocking_until(lambda: server.named(b"PUBLISH"))
            assert isinstance(producer.send([message("y")], 0.1)[0], EmitUnreachableError)
            assert isinstance(first.result()[0], EmitTimeoutError)
        producer.stop()


_FORK = """
import os, sys, threading
from dispytch import EventBase
from dispytch.redis import RedisProducer
from dispytch.sync import EventEmitter

class Numbered(EventBase):
    __topic__ = sys.argv[2]
    number: int

emitter = EventEmitter(RedisProducer(sys.argv[1]))

def emit(number, times):
    for _ in range(times):
        assert emitter.emit(Numbered(number=number)).receivers == 1

def start(number, times):
    thread = threading.Thread(target=emit, args=(number, times))
    thread.start()
    return thread

sent = 0
while len(emitter.producer._driver._state.idle) < 3:  # so that the child inherits some
    threads = [start(-1, 10) for _ in range(8)]
    sent += 80
    for thread in threads:
        thread.join()
threads = [start(-2, 300)]  # the fork comes while this one holds another
child = os.fork()
if not child:
    for number in range(1000):
        emit(number, 1)
    emitter.close()
    os._exit(0)
threads += [start(-2, 300) for _ in range(4)]  # on connections that the child knows too
for thread in threads:
    thread.join()
_, status = os.waitpid(child, 0)
emit(-3, 1)  # the parent's connections are as they were
emitter.close()
print(sent)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_fork(redis_url: str) -> None:
    topic = unique()
    numbers: list[int] = []

    class Numbered(EventBase):
        __topic__ = topic
        number: int

    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Numbered]) -> None:
        numbers.append(event.body.number)

    with dispatcher:
        done = subprocess.run(
            [sys.executable, "-c", _FORK, redis_url, topic], capture_output=True, text=True, timeout=60, check=False
        )
        # The program forks beside threads on purpose; from 3.12 on, Python says what it thinks of that.
        told = [line for line in done.stderr.splitlines() if "fork()" not in line]
        assert (done.returncode, told) == (0, [])
        before = int(done.stdout)
        blocking_until(lambda: len(numbers) >= before + 2501)
    assert sorted(numbers) == [-3] + [-2] * 1500 + [-1] * before + list(range(1000))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_dispatcher_leaves_no_thread(redis_url: str, backend: Any) -> None:
    dispatcher = EventDispatcher(RedisConsumer(redis_url), backend=backend)

    @dispatcher.handler(topic=unique())
    async def handle(event: Event[Any]) -> None: ...

    with dispatcher:
        assert len(reader_threads()) == (1 if backend == "trio" else 0)
    assert reader_threads() == []


def test_a_ready_made_client_stays_open(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    producer = RedisProducer(client).blocking()
    assert isinstance(producer.send([message("x")], 5)[0], Receipt)
    producer.stop()
    assert client.ping()
    client.close()
