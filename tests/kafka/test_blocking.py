"""Emitting from blocking code: threads, forks, the exit, and both sides of a program."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dispytch import Event, EventBase
from dispytch.abc import Receipt
from dispytch.errors import ConfigurationError, EmitUnreachableError
from dispytch.kafka import BlockingKafkaProducer, KafkaConsumer, KafkaProducer
from dispytch.sync import EventDispatcher, EventEmitter
from tests.kafka.helpers import Cluster, blocking_until, confluent, kafka_threads, message, unique
from tests.support import closed_port


def test_emit_and_handle(cluster: Cluster) -> None:
    topic = unique()
    handled: list[int] = []

    class Paid(EventBase):
        __topic__ = topic
        amount: int

    dispatcher = EventDispatcher(KafkaConsumer(cluster.servers, group_id=unique("group")))

    @dispatcher.handler(Paid)
    def handle(event: Event[Paid]) -> None:
        handled.append(event.body.amount)

    with dispatcher, EventEmitter(KafkaProducer(cluster.servers)) as emitter:
        receipt = emitter.emit(Paid(amount=1))
        assert receipt is not None
        assert (receipt.partition, receipt.offset) == (0, 0)
        emitter.emit_many(Paid(amount=number) for number in range(2, 102))
        blocking_until(lambda: len(handled) == 101)
    assert sorted(handled) == list(range(1, 102))
    assert kafka_threads() == []


def test_threads_share_an_emitter(cluster: Cluster) -> None:
    topic = unique()

    class Paid(EventBase):
        __topic__ = topic
        number: int

    with EventEmitter(KafkaProducer(cluster.servers)) as emitter, ThreadPoolExecutor(32) as pool:

        def emit(worker: int) -> list[int | str | None]:
            receipts = [emitter.emit(Paid(number=worker * 100 + number)) for number in range(100)]
            return [receipt.offset for receipt in receipts if receipt is not None]

        offsets = [offset for found in pool.map(emit, range(32)) for offset in found]
    assert sorted(offsets) == list(range(3200))  # type: ignore[type-var]  # they are numbers here
    assert len({found.value() for found in cluster.read(topic, 3200)}) == 3200


def test_nothing_listens_at_the_address() -> None:
    port = closed_port()
    producer = KafkaProducer(f"127.0.0.1:{port}").blocking()
    start = time.monotonic()
    (outcome,) = producer.send([message("x")], 0.5)
    assert time.monotonic() - start < 2
    assert isinstance(outcome, EmitUnreachableError)
    assert str(port) in str(outcome)
    producer.stop()


_FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from dispytch import EventBase
from dispytch.kafka import KafkaProducer
from dispytch.sync import EventEmitter

class Paid(EventBase):
    __topic__ = sys.argv[2]
    number: int

emitter = EventEmitter(KafkaProducer(sys.argv[1]))
emitter.emit(Paid(number=-1))
child = os.fork()
first = 0 if child else 500
for number in range(first, first + 500):
    emitter.emit(Paid(number=number))
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    emitter.close()
# the child leaves with its emitter open
"""


def test_a_fork_connects_anew(cluster: Cluster) -> None:
    topic = unique()
    subprocess.run([sys.executable, "-c", _FORK, cluster.servers, topic], check=True, timeout=60)
    assert len({found.value() for found in cluster.read(topic, 1001)}) == 1001


def test_a_ready_made_producer_does_not_survive_a_fork(cluster: Cluster) -> None:
    client = confluent.Producer({"bootstrap.servers": cluster.servers})
    producer = BlockingKafkaProducer(client)
    assert isinstance(producer.send([message(unique())], 20)[0], Receipt)
    sender = producer._sender
    assert sender is not None
    producer._pid = os.getpid() + 1  # as it is in a child
    with pytest.raises(ConfigurationError, match="forked"):
        producer.send([message("x")], 1)
    sender.close(1)


_EXIT = """
import anyio, sys
from dispytch import EventBase, EventEmitter
from dispytch.kafka import KafkaProducer

class Paid(EventBase):
    __topic__ = sys.argv[2]
    number: int

emitter = EventEmitter(KafkaProducer(sys.argv[1], {"linger.ms": 400}))

async def main():
    await emitter.emit(Paid(number=0))
    with anyio.move_on_after(0.05):
        await emitter.emit_many([Paid(number=number) for number in range(1, 100)])

anyio.run(main)
"""


def test_an_exit_without_a_close_is_clean(cluster: Cluster) -> None:
    topic = unique()
    code = _EXIT.replace("with anyio.move_on_after(0.05):\n        await", "if True:\n        await")
    done = subprocess.run([sys.executable, "-c", code, cluster.servers, topic], timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(cluster.read(topic, 100)) == 100


_SILENT_EXIT = """
import contextlib, sys, threading, time
import dispytch.kafka.producer, dispytch.kafka.sender
from dispytch import EventBase
from dispytch.errors import DispytchError
from dispytch.kafka import KafkaProducer
from dispytch.sync import EventEmitter

dispytch.kafka.producer.FLUSH_TIMEOUT = dispytch.kafka.sender.FLUSH_TIMEOUT = 0.2

class Paid(EventBase):
    __topic__ = sys.argv[2]
    number: int

class Silent:
    def __init__(self, client): self.client = client
    def produce(self, *args, **options): pass
    def __getattr__(self, name): return getattr(self.client, name)

emitter = EventEmitter(KafkaProducer(sys.argv[1]))
emitter.emit(Paid(number=0))
(sender,) = dispytch.kafka.sender._senders
sender._client = Silent(sender._client)

def emit():  # a thread that still writes its traceback when the interpreter ends may abort it
    with contextlib.suppress(DispytchError):
        emitter.emit_many([Paid(number=1), Paid(number=2)])

threading.Thread(target=emit, daemon=True).start()
while not sender._open:
    time.sleep(0.01)
time.sleep(0.1)
"""


def test_an_exit_without_a_close_tells_of_what_is_unconfirmed(cluster: Cluster) -> None:
    call = [sys.executable, "-c", _SILENT_EXIT, cluster.servers, unique()]
    done = subprocess.run(call, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not closed before the exit: 2 events were handed over" in done.stderr
