"""Which event a log record is about."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from dispytch import Event, EventBase, Reject
from dispytch.logs import EventFields, LogContext
from dispytch.memory import MemoryBroker
from dispytch.telemetry import OpenTelemetryMiddleware
from tests.cli.support import running
from tests.helpers import InstantClock, dispatcher_on, emit, publish, run
from tests.support import blocking_until

pytestmark = pytest.mark.anyio

logger = logging.getLogger("own")
FIELDS = ("topic", "event_id", "handler", "group", "attempt", "events", "trace_id", "span_id")


class Order(EventBase):
    __topic__ = "orders"
    number: int = 0


def fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name in FIELDS}


class Kept(logging.Handler):
    """Keeps the fields of what is logged."""

    def __init__(self, *filters: logging.Filter) -> None:
        super().__init__()
        self.found: list[dict[str, object]] = []
        for one in filters:
            self.addFilter(one)

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(fields(record))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    handler = Kept(EventFields())
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return handler


@pytest.mark.parametrize("is_async", [True, False])
async def test_records_of_a_handler(broker: MemoryBroker, kept: Kept, is_async: bool) -> None:
    """In threads too; with the middleware they have the handler."""

    async def handle(event: Event[Order]) -> None:
        logger.info("at work")

    def handle_in_thread(event: Event[Order]) -> None:
        logger.info("at work")

    for middlewares in ([], [LogContext()]):
        dispatcher = dispatcher_on(broker, group_id=f"g{len(middlewares)}", middlewares=middlewares)
        dispatcher.handler(Order)(handle if is_async else handle_in_thread)
        await run(dispatcher) if middlewares else await _handle_one(dispatcher, broker)
    logger.info("outside")
    name = f"{__name__}.test_records_of_a_handler.<locals>.{'handle' if is_async else 'handle_in_thread'}"
    assert kept.found == [
        {"topic": "orders", "event_id": "1"},
        {"topic": "orders", "event_id": "1", "handler": name, "group": "g1", "attempt": 1},
        {},
    ]


async def _handle_one(dispatcher: Any, broker: MemoryBroker) -> None:
    from dispytch import EventEmitter
    from dispytch.memory import MemoryProducer

    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Order(), id="1")
    await run(dispatcher)


async def test_a_batch_and_a_span(broker: MemoryBroker, kept: Kept) -> None:
    tracing = OpenTelemetryMiddleware(tracer_provider=TracerProvider())
    dispatcher = dispatcher_on(broker, middlewares=[LogContext(), tracing])

    @dispatcher.handler(Order, batch=2)
    async def handle(events: list[Event[Order]]) -> None:
        logger.info("at work")

    await emit(broker, Order(), Order())
    await run(dispatcher)
    (found,) = kept.found
    assert {"topic": "orders", "events": 2, "group": "default", "attempt": 1}.items() <= found.items()
    assert "event_id" not in found
    assert (len(str(found["trace_id"])), len(str(found["span_id"]))) == (32, 16)


async def test_what_is_missing_and_what_is_there_already(broker: MemoryBroker) -> None:
    record = logging.makeLogRecord({"topic": "mine"})
    assert EventFields(missing="-").filter(record)
    assert fields(record) == {**dict.fromkeys(set(FIELDS) - {"events"}, "-"), "topic": "mine"}


async def test_the_librarys_own_records(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = dispatcher_on(broker, group_id="g", max_deliveries=2)
    broker.clock = dispatcher.consumers[0].clock = InstantClock()

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        raise ValueError("always") if event.body.number == 1 else Reject("no use")

    @dispatcher.handler(Order, batch=1)
    async def batched(events: list[Event[Order]]) -> None:
        raise ValueError("always")

    from dispytch import EventEmitter
    from dispytch.memory import MemoryProducer

    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Order(number=1), id="1")
    publish(broker, "orders", b"{", [("ce_specversion", b"1.0")])
    await run(dispatcher)
    found = [fields(record) for record in caplog.records if record.levelno >= logging.WARNING]
    common = {"topic": "orders", "event_id": "1", "group": "g"}
    single = {**common, "handler": f"{__name__}.test_the_librarys_own_records.<locals>.handle"}
    batch = {**common, "handler": f"{__name__}.test_the_librarys_own_records.<locals>.batched"}
    for expected in (
        {**single, "attempt": 1},
        {**single, "attempt": 2},
        {**batch, "events": 1},
        {**batch, "attempt": 2},
        {"topic": "orders", "group": "g"},
    ):
        assert expected in found


_APP = """
import logging
from dispytch import EventBase, EventDispatcher, EventEmitter
from dispytch.logs import LogContext
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

broker = MemoryBroker()
dispatcher = EventDispatcher(MemoryConsumer(broker, "g"), max_deliveries=1, middlewares=[LogContext()])

class Order(EventBase):
    __topic__ = "orders"

@dispatcher.handler(Order)
async def handle(event: Order) -> None:
    logging.getLogger("own").info("at work")
    raise ValueError("always")

def make():
    from dispytch.sync import EventEmitter as Blocking
    with Blocking(MemoryProducer(broker)) as emitter:
        emitter.emit(Order(), id="1")
    return dispatcher
"""


def test_run_prints_them_as_json(tmp_path: Path) -> None:
    (tmp_path / "logging_app.py").write_text(_APP)
    arguments = ("run", "logging_app:make", "--factory", "--log-format", "json")
    with running(tmp_path, *arguments) as one:
        blocking_until(lambda: "dead-lettered" in one.said)
    lines = [json.loads(line) for line in one.said.splitlines()]
    expected = {"topic": "orders", "event_id": "1", "handler": "logging_app.handle", "group": "g", "attempt": 1}
    (own,) = [line for line in lines if line["logger"] == "own"]
    (ours,) = [line for line in lines if "dead-lettered" in line["message"]]
    assert expected.items() <= own.items()
    assert expected.items() <= ours.items()
    assert "topic" not in lines[-1]
