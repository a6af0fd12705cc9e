"""Emitting to RabbitMQ from blocking code."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count as count_from
from pathlib import Path

import pytest

from dispytch import Event, EventBase
from dispytch.abc import Receipt
from dispytch.errors import (
    BrokerError,
    ConfigurationError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
    UnconfirmedError,
)
from dispytch.rabbitmq import BlockingRabbitMQProducer, RabbitMQConsumer, RabbitMQProducer
from dispytch.sync import EventDispatcher, EventEmitter
from tests import brokers
from tests.faults.proxy import proxy_to
from tests.rabbitmq.helpers import Names, count, drain, handed_over, message, our_threads
from tests.support import PATIENCE, blocking_at_best, blocking_until, closed_port

PROJECT = Path(__file__).parents[2]


class Ping(EventBase):
    __topic__ = "ping"
    number: int


@pytest.fixture
def emitter(names: Names) -> Iterator[EventEmitter]:
    names.bind()
    with EventEmitter(RabbitMQProducer(names.url, names.exchange)) as emitter:
        yield emitter


def test_32_threads_share_an_emitter(names: Names, emitter: EventEmitter) -> None:
    def work(thread: int) -> None:
        for number in range(60):
            emitter.emit(Ping(number=thread * 1000 + number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({body for _, _, body in drain(names.url, names.queue)}) == 32 * 60
    assert our_threads() == ["dispytch rabbitmq publisher"]


def test_emit_many_in_order(names: Names, emitter: EventEmitter) -> None:
    emitter.emit_many([Ping(number=number) for number in range(2500)])
    bodies = [body for _, _, body in drain(names.url, names.queue)]
    assert bodies == [b'{"number":%d}' % number for number in range(2500)]


def test_an_idle_connection_is_kept(names: Names) -> None:
    names.bind()
    with (
        proxy_to(names.url) as proxy,
        EventEmitter(RabbitMQProducer(proxy.url + "?heartbeat=1", names.exchange)) as emitter,
    ):
        emitter.emit(Ping(number=1))
        time.sleep(3.2)  # the broker gives up after two intervals without a heartbeat
        emitter.emit(Ping(number=2))
        assert proxy.accepted == 1


def test_timeouts_and_stop(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.rabbitmq.publisher._FLUSH_TIMEOUT", 0.2)
    monkeypatch.setattr("dispytch.rabbitmq.wire._CLOSE_TIMEOUT", 0.2)
    names.bind()
    with proxy_to(names.url) as proxy:
        sender = BlockingRabbitMQProducer(proxy.url, names.exchange)
        sender.start()
        sender.send([message("k")], 5)
        proxy.frozen = True
        assert isinstance(sender.send([message("k")], 0.2)[0], EmitTimeoutError)
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.extend(sender.send([message("k")] * 3, 30)))
        thread.start()
        blocking_until(lambda: handed_over(sender) == 1)  # two of one id are never in flight at once
        with pytest.raises(UnconfirmedError) as caught:
            sender.stop()
        assert caught.value.count >= 1
        thread.join()
        assert len(found) == 3
        proxy.frozen = False


def test_a_half_open_connection_is_noticed_within_three_heartbeats(names: Names) -> None:
    with proxy_to(names.url) as proxy:
        url = f"{proxy.url}?heartbeat=1"
        dispatcher = EventDispatcher(RabbitMQConsumer(url, queue=names.queue, exchange=names.exchange))
        seen: list[int] = []

        @dispatcher.handler(topic="ping")
        def on_ping(event: Event[Ping]) -> None:
            seen.append(event.body.number)

        sender = BlockingRabbitMQProducer(url, names.exchange)
        numbers = count_from()

        def arrives() -> None:
            number = next(numbers)
            assert isinstance(sender.send([message("ping", b'{"number":%d}' % number)], PATIENCE)[0], Receipt)
            blocking_until(lambda: number in seen)

        def recover() -> float:
            arrives()
            proxy.swallow()
            began = time.monotonic()
            (outcome,) = sender.send([message("ping", b'{"number":%d}' % next(numbers))], 20)
            took = time.monotonic() - began
            assert isinstance(outcome, EmitTimeoutError)
            assert "may have gone" in str(outcome)
            arrives()
            return max(took, time.monotonic() - began - 1)

        with dispatcher:
            blocking_at_best(4, recover)  # 3 on a machine with nothing else to do
        sender.stop()


def test_no_thread_is_left_by_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    from pika.adapters.select_connection import IOLoop

    close = IOLoop.close

    def slow_close(loop: IOLoop) -> None:
        time.sleep(0.2)
        close(loop)

    monkeypatch.setattr(IOLoop, "close", slow_close)
    sender = BlockingRabbitMQProducer(f"amqp://127.0.0.1:{closed_port()}")
    assert isinstance(sender.send([message("k")], 5)[0], EmitUnreachableError)
    sender.stop()
    assert not our_threads()


def test_a_broker_that_comes_back(rabbitmq_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.rabbitmq.wire._CLOSE_TIMEOUT", 0.3)
    with brokers.started(brokers.RabbitMQ(), tmp_path) as server:
        sender = BlockingRabbitMQProducer(server.url, mandatory=False)
        assert isinstance(sender.send([message("k")], 5)[0], Receipt)
    assert isinstance(sender.send([message("k")], 1)[0], EmitUnreachableError | EmitTimeoutError)
    with pytest.raises(BrokerError):
        sender.start()
    settings = {"vm_memory_high_watermark.absolute": "50MB"}
    with brokers.started(brokers.RabbitMQ(settings), tmp_path, server.port):
        outcomes = [sender.send([message("k")], 1)[0] for _ in range(2)]
        assert isinstance(outcomes[0], EmitTimeoutError)  # the broker tells of its alarm after the first one only
        assert isinstance(outcomes[1], EmitUnreachableError)
        assert "blocked publishing" in str(outcomes[1])
        started = time.monotonic()
        sender.stop()
        assert time.monotonic() - started < 5


def test_nothing_confirmed_is_lost_when_the_broker_is_killed(rabbitmq_server: str, tmp_path: Path) -> None:
    seen: set[int] = set()
    done = threading.Event()
    confirmed: set[int] = set()
    with brokers.started(brokers.RabbitMQ(), tmp_path) as server:
        dispatcher = EventDispatcher(RabbitMQConsumer(server.url, queue="pings"))

        @dispatcher.handler(Ping)
        def on_ping(event: Event[Ping]) -> None:
            time.sleep(0.001)
            seen.add(event.body.number)
            if event.body.number == 2000:
                done.set()

        emitter = EventEmitter(RabbitMQProducer(server.url))
        dispatcher.start()
        try:
            receipts = emitter.emit_many([Ping(number=number) for number in range(1000)])
            confirmed |= {number for number, receipt in enumerate(receipts) if receipt is not None}
            assert server.pid is not None
            os.killpg(server.pid, signal.SIGKILL)
            with brokers.started(brokers.RabbitMQ(), tmp_path, server.port):
                emitter.emit(Ping(number=2000))
                assert done.wait(30)
                while not confirmed <= seen:
                    time.sleep(0.01)
                dispatcher.stop()
                emitter.close()
        finally:
            dispatcher.stop()
            emitter.close()


def test_a_forked_child_connects_anew(names: Names, emitter: EventEmitter) -> None:
    emitter.emit(Ping(number=1))

    def child() -> None:
        emitter.emit_many([Ping(number=number) for number in range(2, 100)])
        emitter.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    emitter.emit(Ping(number=100))
    assert len({body for _, _, body in drain(names.url, names.queue)}) == 100


def test_a_producer_without_an_emitter_survives_a_fork(names: Names) -> None:
    names.bind()
    sender = BlockingRabbitMQProducer(names.url, names.exchange)
    sender.send([message("k")], 5)
    pid = os.fork()
    if pid == 0:
        try:
            outcome = sender.send([message("k")], 10)
            sender.stop()
            os._exit(0 if isinstance(outcome[0], Receipt) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert isinstance(sender.send([message("k")], 5)[0], Receipt)
    sender.stop()
    assert count(names.url, names.queue) == 3


def test_exit_without_close(names: Names) -> None:
    names.bind()
    program = (
        "import sys\n"
        "from dispytch import EventBase\n"
        "from dispytch.rabbitmq import RabbitMQProducer\n"
        "from dispytch.sync import EventEmitter\n"
        "class Ping(EventBase):\n"
        "    __topic__ = 'ping'\n"
        "EventEmitter(RabbitMQProducer(sys.argv[1], sys.argv[2])).emit(Ping())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, names.url, names.exchange],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert count(names.url, names.queue) == 1


def test_clients_are_imported_when_they_are_used() -> None:
    program = (
        "import sys, dispytch.rabbitmq, dispytch.rabbitmq.urls\n"
        "assert not {'pika', 'aio_pika', 'aiormq'} & sys.modules.keys()\n"
        "sys.modules['pika'] = sys.modules['aio_pika'] = None\n"
        "from dispytch.errors import MissingExtraError\n"
        "for make in (dispytch.rabbitmq.RabbitMQProducer, dispytch.rabbitmq.RabbitMQConsumer):\n"
        "    for given in ('amqp://h', object()):\n"
        "        try:\n"
        "            make(given)\n"
        "        except MissingExtraError as error:\n"
        "            assert 'dispytch[rabbitmq]' in str(error)\n"
        "        else:\n"
        "            raise AssertionError\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environment, check=True, timeout=30)


def test_no_start_is_left_waiting() -> None:
    sender = BlockingRabbitMQProducer(f"amqp://127.0.0.1:{closed_port()}")
    failures: list[BaseException] = []

    def start() -> None:
        for _ in range(5):
            try:
                sender.start()
            except BrokerError as error:
                failures.append(error)

    threads = [threading.Thread(target=start, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(failures) == 40
    sender.stop()


def test_ready_made_exchanges_are_for_event_loops() -> None:
    with pytest.raises(ConfigurationError, match="takes a URL"):
        BlockingRabbitMQProducer([object()])


def test_unroutable(names: Names) -> None:
    sender = BlockingRabbitMQProducer(names.url, names.exchange)
    assert isinstance(sender.send([message("k")], 5)[0], EmitRejectedError)
    sender.stop()
    assert not our_threads()
