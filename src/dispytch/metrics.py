"""Metrics for Prometheus, by prometheus-client: of dispatchers, of handlers, and of emitters.

`watch` adds what a dispatcher knows of itself, read when Prometheus asks, at no cost for events. `PrometheusMiddleware`
and `PrometheusHook` measure each call. Names are those that OpenTelemetry's exporter would give, with short labels.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch._core.redelivery import Redeliver, Reject
from dispytch._runtime.health import Health
from dispytch.abc import EmitCall, EmitHook, Receipt
from dispytch.errors import ConfigurationError, EmitTimeoutError, MissingExtraError

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.parser import text_string_to_metric_families
    from prometheus_client.registry import Collector
except ImportError as _missing:
    raise MissingExtraError('prometheus-client is not installed: pip install "dispytch[metrics]"') from _missing

__all__ = ["PrometheusHook", "PrometheusMiddleware", "exposition", "merged", "system_of", "watch"]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds."""
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_GAUGES = {
    "in_flight": "Events that are being handled, back-offs included.",
    "queued": "Events that were received and wait for their turn.",
    "unsettled": "Events received and not yet acknowledged or handed back.",
}
_COUNTERS = {
    "handled": "Events that were done with.",
    "failed": "Tries that failed.",
    "redelivered": "Tries after a failed one.",
    "dead_lettered": "Dead letters.",
    "unhandled": "Events that no handler took.",
    "skipped_null": "Null messages that no handler takes.",
    "not_addressed": "Replayed events that are for a handler of another group.",
}
_STATES = ("stopped", "starting", "running", "draining")
_CONSUMER = ("dispatcher", "consumer", "system", "group")


class HasHealth(Protocol):
    """A dispatcher of either world."""

    def health(self) -> Health: ...


def system_of(transport: str) -> str:
    """What OpenTelemetry calls the system behind a transport."""
    return "redis" if transport.startswith("redis") else transport


# --- dispatchers


class _Dispatchers(Collector):
    """The dispatchers of one registry; those that are gone are forgotten."""

    def __init__(self) -> None:
        self._watched: WeakValueDictionary[str, HasHealth] = WeakValueDictionary()

    def add(self, dispatcher: HasHealth, name: str | None) -> str:
        for known, other in self._watched.items():
            if other is dispatcher:
                if name not in (None, known):
                    raise ConfigurationError(f"the dispatcher is watched already, by the name {known!r}")
                return known
        if name is None:
            name = next(
                free for number in range(1, len(self._watched) + 2) if (free := str(number)) not in self._watched
            )
        elif name in self._watched:
            raise ConfigurationError(f"another dispatcher is watched by the name {name!r}; give this one its own")
        self._watched[name] = dispatcher
        return name

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering it does not collect

    def collect(self) -> Iterator[Metric]:
        found = {name: dispatcher.health() for name, dispatcher in sorted(self._watched.items())}
        state = GaugeMetricFamily("dispytch_state", "1 for the state that it is in.", labels=["dispatcher", "state"])
        for name, health in found.items():
            for one in _STATES:
                state.add_metric([name, one], float(health.state == one))
        yield state
        for field, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"dispytch_{field}", text, labels=["dispatcher"])
            for name, health in found.items():
                gauge.add_metric([name], getattr(health, field))
            yield gauge
        oldest = GaugeMetricFamily(
            "dispytch_oldest_in_flight_seconds",
            "For how long the oldest event in flight has been handled.",
            labels=["dispatcher"],
        )
        for name, health in found.items():
            oldest.add_metric([name], health.oldest_in_flight or 0.0)
        yield oldest
        for field, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"dispytch_{field}", text, labels=["dispatcher"])
            for name, health in found.items():
                counter.add_metric([name], getattr(health, field))
            yield counter
        yield from _of_consumers(found)


def _of_consumers(found: dict[str, Health]) -> Iterator[Metric]:
    connected = GaugeMetricFamily("dispytch_consumer_connected", "Whether it has its connection.", labels=_CONSUMER)
    held = GaugeMetricFamily("dispytch_consumer_unsettled", "Events received and not yet settled.", labels=_CONSUMER)
    polled = GaugeMetricFamily(
        "dispytch_consumer_polled_seconds", "Time since it asked its broker or heard from it.", labels=_CONSUMER
    )
    assigned = GaugeMetricFamily(
        "dispytch_consumer_assigned_partitions", "How many partitions are its own.", labels=_CONSUMER
    )
    lag = GaugeMetricFamily(
        "dispytch_consumer_lag",
        "Messages that the group has not got yet, as last known.",
        labels=(*_CONSUMER, "destination"),
    )
    for name, health in found.items():
        for consumer in health.consumers:
            labels = [name, consumer.name, system_of(consumer.transport), consumer.group]
            connected.add_metric(labels, float(consumer.connected))
            held.add_metric(labels, consumer.unsettled)
            if consumer.polled_ago is not None:
                polled.add_metric(labels, consumer.polled_ago)
            if consumer.assignment is not None:
                assigned.add_metric(labels, len(consumer.assignment))
            for destination, count in (consumer.lag or {}).items():
                lag.add_metric([*labels, destination], count)
    yield from (connected, held, polled, assigned, lag)


# --- calls


class _Instruments:
    """What is measured by calls, once for each registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        handling = ("system", "destination", "group", "handler", "outcome")
        sending = ("system", "destination", "operation", "outcome")
        self.processed = Histogram(
            "messaging_process_duration_seconds",
            "How long calls of handlers took, with the middleware that is further in.",
            handling,
            registry=registry,
            buckets=_BUCKETS,
        )
        self.consumed = Counter(
            "messaging_client_consumed_messages",
            "Events that handlers were called with; several for a batch.",
            handling,
            registry=registry,
        )
        self.sent_in = Histogram(
            "messaging_client_operation_duration_seconds",
            "How long emits took, until the broker had confirmed.",
            sending,
            registry=registry,
            buckets=_BUCKETS,
        )
        self.sent = Counter("messaging_client_sent_messages", "Events that were emitted.", sending, registry=registry)


_lock = threading.Lock()
_dispatchers: WeakKeyDictionary[CollectorRegistry, _Dispatchers] = WeakKeyDictionary()
_instruments: WeakKeyDictionary[CollectorRegistry, _Instruments] = WeakKeyDictionary()


def _dispatchers_of(registry: CollectorRegistry) -> _Dispatchers:
    with _lock:
        if (found := _dispatchers.get(registry)) is None:
            found = _dispatchers[registry] = _Dispatchers()
            registry.register(found)
        return found


def _instruments_of(registry: CollectorRegistry | None) -> _Instruments:
    registry = REGISTRY if registry is None else registry
    with _lock:
        if (found := _instruments.get(registry)) is None:
            found = _instruments[registry] = _Instruments(registry)
        return found


def watch(dispatcher: HasHealth, *, name: str | None = None, registry: CollectorRegistry | None = None) -> str:
    """Has a registry collect what a dispatcher knows of itself, for as long as there is the dispatcher.

    It is read when the registry is collected, in whatever thread that is. To watch one again changes nothing.

    Args:
        name: The label ``dispatcher``; by default a number, from 1.
        registry: By default prometheus-client's own.

    Returns:
        The name.

    Raises:
        ConfigurationError: another dispatcher has that name.
    """
    return _dispatchers_of(REGISTRY if registry is None else registry).add(dispatcher, name)


def exposition(registry: CollectorRegistry | None = None, *, all_processes: bool = True) -> bytes:
    """The page that Prometheus asks for, in its text format.

    In prometheus-client's multiprocess mode it has what all processes have measured, and of the dispatchers those of
    this one.

    Args:
        registry: What to show; by default prometheus-client's own.
        all_processes: False for what this process alone has measured.
    """
    if registry is None and all_processes and os.environ.get(_MULTIPROCESS):
        shown = CollectorRegistry()
        MultiProcessCollector(shown)  # type: ignore[no-untyped-call]  # it has no annotations
        shown.register(_dispatchers_of(REGISTRY))
        return generate_latest(shown)
    return generate_latest(REGISTRY if registry is None else registry)


def merged(pages: Mapping[str, bytes], label: str = "worker") -> bytes:
    """Pages of several processes as one, each value with the label of its process.

    Sums would be wrong: where one of the processes is started again, they fall, and Prometheus takes that for a new
    start of all of them.

    Args:
        pages: By the value of the label.
    """
    families: dict[str, Metric] = {}
    for value, page in pages.items():
        for family in text_string_to_metric_families(page.decode()):
            known = families.get(family.name)
            if known is None:
                known = families[family.name] = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, label: value}, sample.value, sample.timestamp)

    registry = CollectorRegistry()
    registry.register(_Given(list(families.values())))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families


class PrometheusMiddleware(Middleware):
    """Measures how long handlers take, and how it ends.

    Given to a dispatcher, it measures each delivery to each handler with all tries of `Retry` in it; given to a handler
    after its ``Retry``, each try.

    Args:
        registry: By default prometheus-client's own. Any number of middlewares may share one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._instruments = _instruments_of(registry)
        # The children, since finding one costs several times as much as observing.
        self._known: dict[tuple[str, str, str], tuple[Any, Any]] = {}

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        outcome = "ok"
        began = time.perf_counter()
        try:
            return await call_next(ctx)
        except Reject:
            outcome = "rejected"
            raise
        except Redeliver:
            outcome = "redelivered"
            raise
        except Exception:
            outcome = "failed"
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            took = time.perf_counter() - began
            key = (ctx.identity, ctx.pattern, outcome)
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = self._children(ctx, outcome)
            duration, count = known
            duration.observe(took)
            count.inc(len(ctx.contexts))

    def _children(self, ctx: EventHandlerContext, outcome: str) -> tuple[Any, Any]:
        labels = (system_of(ctx.transport), ctx.pattern, ctx.group, ctx.handler, outcome)
        return self._instruments.processed.labels(*labels), self._instruments.consumed.labels(*labels)


class PrometheusHook(EmitHook):
    """Measures how long emits take, and how it ends.

    Args:
        registry: By default prometheus-client's own. Any number of hooks may share one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._instruments = _instruments_of(registry)
        self._known: dict[tuple[str, str, str, str], tuple[Any, Any]] = {}

    @contextmanager
    def around(self, call: EmitCall) -> Iterator[None]:
        began = time.perf_counter()
        failed = "failed"
        try:
            yield
        except EmitTimeoutError:
            failed = "timeout"
            raise
        except Exception:
            raise
        except BaseException:
            failed = "cancelled"
            raise
        finally:
            self._note(call, time.perf_counter() - began, failed)

    def _note(self, call: EmitCall, took: float, failed: str) -> None:
        operation = "emit_many" if call.is_many else "emit"
        system = system_of(call.transport)
        outcomes = [_outcome(one) for one in call.outcomes] or [failed] * len(call.events)
        counts: dict[tuple[str, str, str, str], int] = {}
        for destination, outcome in zip(call.destinations, outcomes, strict=True):
            key = (system, destination, operation, outcome)
            counts[key] = counts.get(key, 0) + 1
        for key, count in counts.items():
            known = self._known.get(key)
            if known is None:
                known = self._instruments.sent_in.labels(*key), self._instruments.sent.labels(*key)
                self._known[key] = known
            duration, counter = known
            duration.observe(took)
            counter.inc(count)


def _outcome(outcome: object) -> str:
    if isinstance(outcome, Receipt):
        return "ok"
    return "timeout" if isinstance(outcome, EmitTimeoutError) else "failed"
