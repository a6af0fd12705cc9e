"""The emitters that note what is emitted, and what they say in a test that fails."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

import dispytch
from dispytch import EventBase, sync
from dispytch.errors import ConfigurationError, EmitManyError, EmitRejectedError, EmitTimeoutError
from dispytch.kafka import KafkaEventConfig, KafkaEventRoute, KafkaProducer
from dispytch.memory import MemoryBroker, MemoryEventConfig, MemoryProducer
from dispytch.rabbitmq import RabbitMQEventRoute
from dispytch.serialization import BareEnvelope
from dispytch.testing import BlockingRecordingEmitter, Emission, Faults, RecordingEmitter


class Item(BaseModel):
    name: str
    price: float = 1.0


class OrderPlaced(EventBase):
    __topic__ = "shops.{shop}.orders"
    __key__ = "{order_id}"
    __backend_config__ = MemoryEventConfig(headers={"origin": "web"})

    shop: str
    order_id: int
    items: tuple[Item, ...] = ()


class RushOrderPlaced(OrderPlaced):
    pass


class OrderShipped(EventBase):
    __topic__ = "shipments"

    order_id: int


class OnKafka(EventBase):
    __route__ = KafkaEventRoute(topic="kafka topics")  # which Kafka would refuse
    __backend_config__ = KafkaEventConfig(partition_key="{n}")

    n: int


@pytest.fixture
def emitter() -> RecordingEmitter:
    return RecordingEmitter()


def failure(recorded: RecordingEmitter | BlockingRecordingEmitter, *args: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as failed:
        recorded.assert_emitted(*args, **options)
    return str(failed.value)


@pytest.mark.anyio
async def test_events_are_noted_as_they_went(emitter: RecordingEmitter) -> None:
    event = OrderPlaced(shop="oslo", order_id=7, items=(Item(name="lamp"),))
    receipt = await emitter.emit(event)
    assert receipt is not None
    (emission,) = emitter.emissions
    assert emission == Emission(
        event, receipt.id, "shops.oslo.orders", "7", emission.headers, emission.config, emission.payload
    )
    assert emission.headers["origin"] == "web"
    assert emission.headers["ce_type"] == "OrderPlaced"
    assert emission.payload == b'{"shop":"oslo","order_id":7,"items":[{"name":"lamp","price":1.0}]}'
    with pytest.raises(TypeError):
        emission.headers["origin"] = "elsewhere"  # type: ignore[index]
    assert str(emission).endswith("to shops.oslo.orders")


@pytest.mark.anyio
async def test_events_are_found_by_class_fields_and_predicate(emitter: RecordingEmitter) -> None:
    first, second = OrderPlaced(shop="oslo", order_id=1), RushOrderPlaced(shop="rome", order_id=2)
    await emitter.emit_many([first, second, OrderShipped(order_id=1)])
    assert emitter.emitted(OrderPlaced) == [first, second]
    assert emitter.emitted(EventBase) == [first, second, OrderShipped(order_id=1)]
    assert emitter.assert_emitted(OrderPlaced, times=2) == [first, second]
    assert emitter.assert_emitted(RushOrderPlaced, shop="rome", order_id=2) == [second]
    assert emitter.assert_emitted(OrderPlaced, where=lambda order: order.order_id < 2) == [first]
    emitter.assert_not_emitted(OrderShipped, order_id=2)
    emitter.clear()
    emitter.assert_not_emitted(EventBase)
    assert emitter.emissions == []


@pytest.mark.anyio
async def test_a_failure_tells_what_was_emitted_instead(emitter: RecordingEmitter) -> None:
    assert failure(emitter, OrderShipped) == "OrderShipped was not emitted. Nothing was emitted."
    await emitter.emit(OrderShipped(order_id=1))
    await emitter.emit(OrderPlaced(shop="oslo", order_id=2))
    assert failure(emitter, OrderShipped, order_id=2) == (
        "OrderShipped with order_id=2 was not emitted. What was emitted (2):\n"
        "  OrderShipped(order_id=1) to shipments -- order_id is 1, not 2\n"
        "  OrderPlaced(shop='oslo', order_id=2, items=()) to shops.oslo.orders"
    )
    assert failure(emitter, OrderShipped, times=3).startswith("OrderShipped was emitted once, not 3 times. What")
    assert failure(emitter, RushOrderPlaced, times=1).startswith("RushOrderPlaced was not emitted. What")
    assert failure(emitter, RushOrderPlaced, times=2).startswith("RushOrderPlaced was emitted 0 times, not 2 times.")
    with pytest.raises(AssertionError, match=r"^OrderShipped with order_id=1 was emitted once\. What was emitted"):
        emitter.assert_not_emitted(OrderShipped, order_id=1)

    def is_large(order: OrderPlaced) -> bool:
        return len(order.items) > 10

    assert failure(emitter, OrderPlaced, where=is_large).startswith("OrderPlaced with is_large() was not")
    assert failure(emitter, OrderPlaced, where=lambda order: order.items).startswith("OrderPlaced with where=...")


@pytest.mark.anyio
async def test_a_failure_stays_readable_where_much_was_emitted(emitter: RecordingEmitter) -> None:
    await emitter.emit_many([OrderPlaced(shop="s" * 1000, order_id=n) for n in range(50)])
    text = failure(emitter, OrderShipped)
    assert len(text) < 20 * 1500
    assert text.endswith("... and 30 more")


def test_a_question_that_has_no_answer_is_an_error(emitter: RecordingEmitter) -> None:
    with pytest.raises(TypeError, match=r"OrderShipped has no field 'order' \(its fields: order_id\)"):
        emitter.assert_not_emitted(OrderShipped, order=1)
    with pytest.raises(TypeError, match="class of the event"):
        emitter.assert_emitted(OrderShipped(order_id=1))  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_a_bad_event_fails_as_in_production(emitter: RecordingEmitter) -> None:
    with pytest.raises(EmitRejectedError, match="shop"):
        await emitter.emit(OrderPlaced(shop="oslo.no", order_id=1))

    class Odd(EventBase):
        __topic__ = "odd"
        value: Any

    with pytest.raises(EmitRejectedError, match="cannot be written"):
        await emitter.emit(Odd(value=object()))

    class Nowhere(EventBase):
        pass

    with pytest.raises(ConfigurationError, match="nowhere to go"):
        await emitter.emit(Nowhere())
    with pytest.raises(EmitRejectedError):
        await emitter.emit_many([OrderShipped(order_id=1), Odd(value=object())])
    await emitter.close()
    with pytest.raises(EmitRejectedError, match="closed"):
        await emitter.emit(OrderShipped(order_id=1))
    assert emitter.emissions == []


@pytest.mark.anyio
async def test_routes_of_all_transports_are_taken_and_those_of_one_by_its_rules(emitter: RecordingEmitter) -> None:
    class OnRabbit(EventBase):
        __route__ = RabbitMQEventRoute(routing_key="a.{n}", exchange="x")
        n: int

    await emitter.emit_many([OnKafka(n=1), OnRabbit(n=2)])
    assert [one.topic for one in emitter.emissions] == ["kafka topics", "a.2"]
    assert emitter.emissions[0].config == KafkaEventConfig(partition_key="1")

    like_kafka = RecordingEmitter(like=KafkaProducer("kafka.invalid:9092"))
    with pytest.raises(EmitRejectedError, match="Kafka takes letters"):
        await like_kafka.emit(OnKafka(n=1))
    with pytest.raises(ConfigurationError, match="RabbitMQEventRoute"):
        await like_kafka.emit(OnRabbit(n=1))
    await like_kafka.emit(OrderShipped(order_id=1))
    (shipped,) = like_kafka.emissions
    assert shipped.topic == "shipments"
    with pytest.raises(ConfigurationError, match="like="):
        RecordingEmitter(like="kafka://localhost")  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_faults_of_its_broker_are_those_of_the_emitter() -> None:
    faults = Faults()
    emitter = RecordingEmitter(broker=MemoryBroker(faults=faults), envelope=BareEnvelope(), source="shop")
    faults.fail("reject")
    with pytest.raises(EmitRejectedError):
        await emitter.emit(OrderShipped(order_id=1))
    faults.fail("reject")
    with pytest.raises(EmitManyError):
        await emitter.emit_many([OrderShipped(order_id=2), OrderShipped(order_id=3)])
    faults.fail("lose_reply")
    with pytest.raises(EmitTimeoutError):
        await emitter.emit(OrderShipped(order_id=4))
    assert [event.order_id for event in emitter.emitted(OrderShipped)] == [3, 4]
    left: list[EventBase] = []
    emitter.on_timeout(left.append)
    faults.fail("lose_reply")
    assert await emitter.emit(OrderShipped(order_id=5)) is None
    assert left == [OrderShipped(order_id=5)]


@pytest.mark.parametrize(
    ("recording", "real"),
    [(RecordingEmitter, dispytch.EventEmitter), (BlockingRecordingEmitter, sync.EventEmitter)],
)
def test_it_is_an_emitter_for_everybody_who_takes_one(recording: type, real: type) -> None:
    assert issubclass(recording, real)
    ours, theirs = inspect.signature(recording).parameters, inspect.signature(real).parameters
    assert {name: theirs[name].default for name in theirs if name != "producer"} == {
        name: ours[name].default for name in ours if name not in ("like", "broker")
    }


def test_blocking_code_has_the_same() -> None:
    broker = MemoryBroker()
    with BlockingRecordingEmitter(like=MemoryProducer(broker), broker=broker) as emitter:
        event = OrderShipped(order_id=0)
        receipt = emitter.emit(event, id="first")
        assert receipt is not None
        assert (receipt.id, receipt.route) == ("first", "shipments")
        threads = [
            threading.Thread(target=emitter.emit_many, args=([OrderShipped(order_id=n) for n in range(1, 51)],))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert emitter.emitted(OrderShipped)[0] is event
        emitter.assert_emitted(OrderShipped, times=201)
        assert len(emitter.assert_emitted(OrderShipped, order_id=50)) == 4
        assert failure(emitter, OrderPlaced).startswith("OrderPlaced was not emitted. What was emitted (201)")
        with pytest.raises(ConfigurationError, match="MemoryEventRoute"):
            emitter.emit(OnKafka(n=1))
    assert len(broker.records("shipments")) == 201


@pytest.mark.anyio
async def test_the_blocking_one_refuses_an_event_loop_as_in_production() -> None:
    emitter = BlockingRecordingEmitter()
    with pytest.raises(ConfigurationError, match=r"dispytch\.EventEmitter"):
        emitter.emit(OrderShipped(order_id=1))
    await anyio.to_thread.run_sync(emitter.emit, OrderShipped(order_id=1))
    emitter.assert_emitted(OrderShipped, times=1)
