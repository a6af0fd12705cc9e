"""What telemetry costs per event, in the process alone: the in-process broker, small events, one after the other.

python -m benchmarks.observability
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, EventHandlerContext, Middleware, NextCall
from dispytch.abc import EmitHook
from dispytch.logs import LogContext
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.metrics import PrometheusHook, PrometheusMiddleware, watch
from dispytch.telemetry import OpenTelemetryHook, OpenTelemetryMiddleware


class Order(EventBase):
    __topic__ = "orders"
    order_id: int
    customer: str


class Pass(Middleware):
    """What any middleware costs."""

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        return await call_next(ctx)


def _tracing() -> dict[str, Any]:
    return {"tracer_provider": TracerProvider()}


def _unsampled() -> dict[str, Any]:
    return {"tracer_provider": TracerProvider(sampler=ALWAYS_OFF)}


def _metering() -> dict[str, Any]:
    return {"meter_provider": MeterProvider([InMemoryMetricReader()])}


HANDLING: dict[str, Callable[[], Sequence[Middleware]]] = {
    "nothing": lambda: [],
    "a middleware that does nothing": lambda: [Pass()],
    "LogContext": lambda: [LogContext()],
    "PrometheusMiddleware": lambda: [PrometheusMiddleware(CollectorRegistry())],
    "OpenTelemetryMiddleware, no SDK": lambda: [OpenTelemetryMiddleware()],
    "OpenTelemetryMiddleware, spans": lambda: [OpenTelemetryMiddleware(**_tracing())],
    "OpenTelemetryMiddleware, spans that are not sampled": lambda: [OpenTelemetryMiddleware(**_unsampled())],
    "OpenTelemetryMiddleware, metrics": lambda: [OpenTelemetryMiddleware(**_metering())],
}
EMITTING: dict[str, Callable[[], Sequence[EmitHook]]] = {
    "nothing": lambda: [],
    "PrometheusHook": lambda: [PrometheusHook(CollectorRegistry())],
    "OpenTelemetryHook, no SDK": lambda: [OpenTelemetryHook()],
    "OpenTelemetryHook, spans": lambda: [OpenTelemetryHook(**_tracing())],
    "OpenTelemetryHook, spans that are not sampled": lambda: [OpenTelemetryHook(**_unsampled())],
    "OpenTelemetryHook, metrics": lambda: [OpenTelemetryHook(**_metering())],
}


async def handle(middlewares: Sequence[Middleware], count: int) -> float:
    """Seconds of the processor per event."""
    broker, done, seen = MemoryBroker(), anyio.Event(), 0
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit_many([Order(order_id=number, customer="c") for number in range(count)])
    dispatcher = EventDispatcher(MemoryConsumer(broker), middlewares=middlewares)
    watch(dispatcher, registry=CollectorRegistry())  # read by nobody meanwhile, so it costs nothing

    @dispatcher.handler(Order)
    async def take(event: Event[Order]) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    async with dispatcher.lifespan():
        began = time.process_time()
        await done.wait()
        return (time.process_time() - began) / count


async def emit(hooks: Sequence[EmitHook], count: int) -> float:
    """Seconds of the processor per call of ``emit``."""
    event = Order(order_id=1, customer="c")
    async with EventEmitter(MemoryProducer(MemoryBroker()), hooks=hooks) as emitter:
        await emitter.emit(event)
        began = time.process_time()
        for _ in range(count):
            await emitter.emit(event)
        return (time.process_time() - began) / count


async def measure(count: int, rounds: int) -> None:
    """Prints the least of each; variants take turns, so that a busy moment hits all of them."""
    await _compare("handling", {name: partial(_handle_with, make, count) for name, make in HANDLING.items()}, rounds)
    await _compare("emit", {name: partial(_emit_with, make, count) for name, make in EMITTING.items()}, rounds)


async def _handle_with(make: Callable[[], Sequence[Middleware]], count: int) -> float:
    return await handle(make(), count)


async def _emit_with(make: Callable[[], Sequence[EmitHook]], count: int) -> float:
    return await emit(make(), count)


async def _compare(title: str, variants: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            gc.collect()
            found[name].append(await run())
    base = min(found["nothing"])
    print(f"\n| {title} | microseconds | more than with nothing |\n|---|---|---|")
    for name, seconds in found.items():
        own = min(seconds)
        print(f"| {name} | {own * 1e6:.1f} | {(own - base) * 1e6:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="events of a measurement")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each")
    options = parser.parse_args()
    anyio.run(measure, options.count, options.rounds)
