"""``python -m benchmarks scale``: the cost of an event as one thing grows."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

from benchmarks import compare, scaling
from benchmarks.jobs import JobError, run_job
from benchmarks.progress import progress
from benchmarks.results import Results
from tests import brokers

_BIG_BODY = 10_000
_FEW = 5
"""How much fewer events there are where each is costly."""


def scale(options: argparse.Namespace, results: Results) -> None:
    """Measures what the options say."""
    loops = [loop for loop in compare.present(options.loop, results.notes) if loop != "blocking"]
    todo = [
        (what, value, loop)
        for what in options.what
        for value in scaling.values(what, options.short)
        if what != "backlog" or value <= options.most
        for loop in loops
    ]
    rounds = options.rounds
    with progress(len(todo) * rounds) as begin, ExitStack() as stack:
        url = "memory://backlog"
        if not compare.has_client(options.transport, results.notes):
            todo = [(what, value, loop) for what, value, loop in todo if what != "backlog"]
        elif "backlog" in options.what and options.transport != "memory":
            try:
                url = compare.broker_url(options.transport, stack, options.install_brokers)
            except brokers.MissingServerError as error:
                results.notes.append(f"Left out the backlog on {options.transport}. {error}")
                todo = [(what, value, loop) for what, value, loop in todo if what != "backlog"]
        for turn in range(1, rounds + 1):
            for what, value, loop in todo:
                begin(f"{what} {value:,}, round {turn}: {loop}")
                try:
                    found = _measure(what, value, loop, url, options)
                except JobError as error:  # the other figures are not to be lost by it
                    results.failures.append(str(error))
                    continue
                results.add(what, str(value), loop, "us/event", found["value"], found["memory_mb"], "")


def _measure(what: str, value: int, loop: str, url: str, options: argparse.Namespace) -> dict[str, Any]:
    if what == "backlog" and options.transport != "memory":
        job = {"transport": options.transport, "url": url, "measure": "consume", "contender": loop}
        found = run_job({"job": "measure", "total": value, **job})
        return {"value": 1e6 / found["rate"], "memory_mb": found["memory_mb"]}
    few = what == "body" and value >= _BIG_BODY
    total = max(options.events // (_FEW if few else 1), 1)
    return run_job({"job": "scale", "what": what, "value": value, "loop": loop, "total": total})
