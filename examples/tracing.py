"""One trace from a blocking program over the broker to a handler, and on to the handler of what that one emits.

pip install "dispytch[otel]" opentelemetry-sdk
python -m examples.tracing                                # the in-process broker, asyncio
python -m examples.tracing --loop trio --url amqp://localhost

It prints the spans that OpenTelemetry's SDK has got, each below its parent.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch.sync import EventEmitter as BlockingEmitter
from dispytch.telemetry import OpenTelemetryHook, OpenTelemetryMiddleware


class OrderPlaced(EventBase):
    __topic__ = "traced-orders"
    number: int


class OrderShipped(EventBase):
    __topic__ = "traced-shipments"
    number: int


exporter = InMemorySpanExporter()  # in a service: OTLPSpanExporter(), in a BatchSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

_SHOWN = {
    "messaging.system": "system",
    "messaging.destination.name": "destination",
    "messaging.destination.partition.id": "partition",
    "messaging.kafka.offset": "offset",
    "messaging.consumer.group.name": "group",
    "code.function.name": "handler",
}


def place_order(url: str) -> None:
    """What a blocking web framework would do."""
    with (
        trace.get_tracer(__name__).start_as_current_span("POST /orders"),
        BlockingEmitter(producer_from_url(url), hooks=[OpenTelemetryHook()]) as emitter,
    ):
        emitter.emit(OrderPlaced(number=1))


async def main(url: str) -> None:
    # "parent" has all of it in one trace; the default, "link", begins a trace for each event that is handled.
    dispatcher = EventDispatcher(
        consumer_from_url(url, group_id="traced"), middlewares=[OpenTelemetryMiddleware(correlation="parent")]
    )
    emitter = EventEmitter(producer_from_url(url), hooks=[OpenTelemetryHook()])
    arrived = anyio.Event()

    @dispatcher.handler(OrderPlaced)
    async def ship(event: Event[OrderPlaced]) -> None:
        await emitter.emit(OrderShipped(number=event.body.number))

    @dispatcher.handler(OrderShipped)
    def tell(event: Event[OrderShipped]) -> None:
        with trace.get_tracer(__name__).start_as_current_span("tell the customer"):
            anyio.from_thread.run_sync(arrived.set)

    async with emitter, dispatcher.lifespan():
        await anyio.to_thread.run_sync(place_order, url)
        with anyio.fail_after(30):
            await arrived.wait()
    show(exporter.get_finished_spans())


def show(spans: Sequence[ReadableSpan], parent: int | None = None, depth: int = 0) -> None:
    """Prints the spans of a parent, the earliest first, each with its own below it."""
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if (span.parent.span_id if span.parent else None) != parent:
            continue
        if parent is None:
            print(f"trace {span.context.trace_id:032x}")
        print(f"{'  ' * depth}- {span.name} ({span.kind.name}){_described(span.attributes or {})}")
        show(spans, span.context.span_id, depth + 1)


def _described(attributes: Mapping[str, Any]) -> str:
    found = [f"{short}={attributes[name]}" for name, short in _SHOWN.items() if name in attributes]
    return f": {', '.join(found)}" if found else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="memory://traced", help="the broker")
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    options = parser.parse_args()
    anyio.run(
        main,
        options.url,
        backend="trio" if options.loop == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if options.loop == "uvloop" else {},
    )
