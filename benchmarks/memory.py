"""Events per second through the in-process broker, emit to handler, beside FastStream's in-memory broker.

    python -m benchmarks.memory [--rounds 3] [--events 100000]

One dependency, a body of three validated fields, a handler that counts. Each contender runs in a process of its own;
they take turns, and the figure is the median of the rounds with its range. FastStream (group ``bench``) publishes one
by one, since its test broker has no other way, and fewer events, since it is slower; rates do not depend on the number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Annotated, Any

import anyio
from pydantic import BaseModel

from dispytch import Dependency, Event, EventBase, EventDispatcher, EventEmitter
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

_BATCH = 1000


class Order(EventBase):
    __topic__ = "orders"

    order_id: int
    customer: str
    amount: float


def get_rate() -> float:
    return 1.19


def dispytch(loop: str, count: int) -> float:
    """Seconds for ``count`` events, emitted in batches while the dispatcher handles them."""

    async def main() -> float:
        broker = MemoryBroker()
        dispatcher = EventDispatcher(MemoryConsumer(broker))
        handled: set[int] = set()
        done = anyio.Event()

        @dispatcher.handler(Order)
        async def handle(event: Event[Order], rate: Annotated[float, Dependency(get_rate)]) -> None:
            handled.add(event.body.order_id)
            if len(handled) == count:
                done.set()

        async with dispatcher.lifespan(), EventEmitter(MemoryProducer(broker)) as emitter:
            begin = time.perf_counter()
            for first in range(0, count, _BATCH):
                await emitter.emit_many(
                    [
                        Order(order_id=number, customer=f"customer {number}", amount=number / 2)
                        for number in range(first, min(first + _BATCH, count))
                    ]
                )
            await done.wait()
            return time.perf_counter() - begin

    return anyio.run(
        main,
        backend="trio" if loop == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if loop == "uvloop" else {},
    )


class OrderBody(BaseModel):
    order_id: int
    customer: str
    amount: float


def faststream(loop: str, count: int) -> float:
    """The same through FastStream's in-memory broker."""
    from faststream import Depends
    from faststream.redis import RedisBroker, TestRedisBroker

    broker = RedisBroker()
    handled: set[int] = set()

    @broker.subscriber("orders")
    async def handle(order: OrderBody, rate: Annotated[float, Depends(get_rate)]) -> None:
        handled.add(order.order_id)

    async def main() -> float:
        async with TestRedisBroker(broker):
            begin = time.perf_counter()
            for number in range(count):
                await broker.publish(
                    OrderBody(order_id=number, customer=f"customer {number}", amount=number / 2), "orders"
                )
            seconds = time.perf_counter() - begin
        if len(handled) != count:
            raise RuntimeError(f"{len(handled)} of {count} events arrived")
        return seconds

    return anyio.run(main, backend_options={"use_uvloop": True} if loop == "uvloop" else {})


CONTENDERS = [("dispytch", "asyncio"), ("dispytch", "uvloop"), ("dispytch", "trio"), ("faststream", "asyncio")]


def _measure(library: str, loop: str, count: int) -> float:
    """Events per second, taken in a process of its own."""
    done = subprocess.run(  # noqa: S603 - this program itself
        [sys.executable, "-m", "benchmarks.memory", "--contender", library, loop, "--events", str(count)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds: float = json.loads(done.stdout)
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--contender", nargs=2, metavar=("LIBRARY", "LOOP"), help="run this one here, print its seconds"
    )
    options = parser.parse_args()
    if options.contender:
        library, loop = options.contender
        contender: Any = {"dispytch": dispytch, "faststream": faststream}[library]
        print(json.dumps(contender(loop, options.events)))
        return
    rates: dict[tuple[str, str], list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(options.rounds):
        for library, loop in CONTENDERS:
            count = options.events // 20 if library == "faststream" else options.events
            rates[library, loop].append(_measure(library, loop, count))
    rival = statistics.median(rates["faststream", "asyncio"])
    print(f"python {sys.version.split()[0]}, {options.rounds} rounds, events/s: median (range), ratio to FastStream")
    for (library, loop), found in rates.items():
        median = statistics.median(found)
        span = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"{library:10} {loop:8} {median:9,.0f}  ({span})  {median / rival:5.1f} x")


if __name__ == "__main__":
    main()
