"""``python -m benchmarks compare``: the raw client, the library on every loop, and FastStream beside each other."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import core, ours, raw, rival
from benchmarks.jobs import JobError, run_job
from benchmarks.progress import missing, progress
from benchmarks.results import Results
from tests import brokers

TRANSPORTS = {"memory": None, "kafka": "kafka", "rabbitmq": "rabbitmq", "streams": "redis", "pubsub": "redis"}
"""Each transport with its broker."""
MEASURES = ("consume", "emit", "emit-one", "latency", "through", "core")
RIVAL = "faststream"

_CLIENTS = {
    "kafka": ("confluent_kafka", "kafka"),
    "rabbitmq": ("pika", "rabbitmq"),
    "streams": ("redis", "redis"),
    "pubsub": ("redis", "redis"),
}
_SHARES = {"consume": 1, "through": 1, "emit": 1, "emit-one": 20, "latency": 3}
"""Of how many events one is used: the slower the measure, the fewer."""
_SHARE_OF_RIVAL = 10
_LEAST = 100
_MOST_ON_PUBSUB = 50_000
"""More could be cut off by the server, before a slow subscriber has read it."""
_CORE_EVENTS = 5
_PERCENTILES = ("p50", "p99", "p99.9")


@dataclass(frozen=True)
class Run:
    """One contender in one measure: the same in every round."""

    transport: str
    measure: str
    contender: str
    total: int

    @property
    def settings(self) -> str:
        if self.contender.startswith("raw"):
            return raw.settings(self.transport, self.measure)
        return rival.SETTINGS[self.transport] if self.contender == RIVAL else ours.SETTINGS


def present(loops: Sequence[str], notes: list[str]) -> list[str]:
    """The loops that are installed."""
    found = []
    for loop in loops:
        if loop in ("uvloop", "trio") and missing(loop, loop):
            notes.append(f'Left out {loop}, which is not installed: pip install "dispytch[{loop}]".')
        else:
            found.append(loop)
    return found


def has_client(transport: str, notes: list[str]) -> bool:
    """Whether the client library of a transport is installed; notes what to do if it is not."""
    package, extra = _CLIENTS.get(transport, ("pydantic", ""))
    if missing(package, transport):
        notes.append(f'Left out {transport}: {package} is not installed; `pip install "dispytch[{extra}]"` brings it.')
        return False
    return True


def runs(transport: str, measures: Sequence[str], contenders: Sequence[str], events: int) -> Iterator[Run]:
    """What is measured on a transport; contenders that take turns follow each other."""
    for measure in measures:
        if measure == "core" or (measure == "through" and transport != "memory"):
            continue
        for contender in contenders:
            if contender == RIVAL and not rival.can(transport, measure):
                continue
            if contender == "raw-thread" and (measure != "emit-one" or transport == "memory"):
                continue
            total = events // _SHARES[measure]
            if transport == "pubsub":
                total = min(total, _MOST_ON_PUBSUB)
            yield Run(
                transport, measure, contender, max(total // (_SHARE_OF_RIVAL if contender == RIVAL else 1), _LEAST)
            )


def compare(options: argparse.Namespace, results: Results) -> None:
    """Measures what the options say."""
    loops = present(options.loop, results.notes)
    contenders = ["raw", "raw-thread", *loops, RIVAL]
    if note := missing(RIVAL, "Left out FastStream"):
        results.notes.append(note)
        contenders.remove(RIVAL)
    contenders = [name for name in contenders if name not in options.without]
    transports = [name for name in options.transport if has_client(name, results.notes)]
    todo = {name: list(runs(name, options.measure, contenders, options.events)) for name in transports}
    core_loops = [loop for loop in loops if loop != "blocking"] if "core" in options.measure else []
    off_loops = len(core.MEASURES) - len(core.ON_LOOPS)
    cores = len(core_loops) * len(core.ON_LOOPS) + (off_loops if core_loops else 0)
    with progress((sum(map(len, todo.values())) + cores) * options.rounds) as begin:
        for transport, some in todo.items():
            with ExitStack() as stack:
                try:
                    url = broker_url(transport, stack, options.install_brokers)
                except brokers.MissingServerError as error:
                    results.notes.append(f"Left out {transport}. {error}")
                    continue
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                _measure(url, some, options.rounds, str(Path(folder, "messages")), results, begin)
        _measure_core(core_loops, options, results, begin)


def broker_url(transport: str, stack: ExitStack, install: bool) -> str:
    """The address of a transport's broker, which is started if it does not run."""
    broker = TRANSPORTS[transport]
    if broker is None:
        return "memory://bench"
    url = stack.enter_context(brokers.running(broker, install=install))[broker]
    return url.replace("redis://", "redis+stream://", 1) if transport == "streams" else url


def _measure(
    url: str, some: Sequence[Run], rounds: int, file: str, results: Results, begin: Callable[[str], None]
) -> None:
    if not some:
        return
    transport, most = some[0].transport, max(run.total for run in some)
    run_job({"job": "prepare", "transport": transport, "url": url, "topic": "bench", "total": most, "file": file})
    failed: set[Run] = set()
    for measure in dict.fromkeys(run.measure for run in some):
        for turn in range(1, rounds + 1):
            for run in (run for run in some if run.measure == measure):
                begin(f"{transport} {measure}, round {turn}: {run.contender}")
                if run in failed:
                    continue
                job = {"transport": transport, "url": url, "measure": measure, "contender": run.contender}
                try:
                    found = run_job({"job": "measure", **job, "total": run.total, "file": file})
                except JobError as error:  # an hour's other figures are not to be lost by it
                    failed.add(run)
                    results.failures.append(str(error))
                else:
                    _note(run, found, results)


def _note(run: Run, found: dict[str, Any], results: Results) -> None:
    def add(measure: str, unit: str, value: float) -> None:
        results.add(run.transport, measure, run.contender, unit, value, found["memory_mb"], run.settings)

    if run.measure != "latency":
        add(run.measure, "events/s", found["rate"])
        return
    for name in ("alone", "loaded"):
        for percentile in _PERCENTILES:
            add(f"latency {name} {percentile}", "us", found[f"{name}_{percentile}"])
    add("latency load", "events/s", found["load"])


def _measure_core(
    loops: Sequence[str], options: argparse.Namespace, results: Results, begin: Callable[[str], None]
) -> None:
    total = max(options.events // _CORE_EVENTS, _LEAST)
    for measure, meaning in core.MEASURES.items():
        name, unit = meaning.rsplit(": ", 1)
        for turn in range(1, options.rounds + 1):
            for loop in loops if measure in core.ON_LOOPS else loops[:1]:
                begin(f"core {measure}, round {turn}: {loop}")
                try:
                    found = run_job({"job": "core", "what": measure, "loop": loop, "total": total})
                except JobError as error:
                    results.failures.append(str(error))
                    continue
                contender = loop if measure in core.ON_LOOPS else "python"
                results.add("core", name, contender, unit, found["value"], None, "")
