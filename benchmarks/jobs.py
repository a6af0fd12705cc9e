"""One measurement of one contender, in a process of its own: ``python -m benchmarks.jobs`` reads it from a line.

A job is a dict with its ``job``, and answers with a dict of numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks import ours, plans, raw, rival
from benchmarks.plans import Arrivals, Count, Message, Plan
from benchmarks.results import peak_mb

_ROOT = Path(__file__).parent.parent
_TIMEOUT = 3600.0
"""Seconds; a contender that loses events is stopped much sooner."""
_FILLED_AT_ONCE = 10_000


class JobError(Exception):
    """A measurement failed in its process."""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Has another process carry out a job.

    Raises:
        JobError: it failed; says how.
    """
    command = [sys.executable, "-m", "benchmarks.jobs"]
    done = subprocess.run(  # noqa: S603 - this program itself
        command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=_TIMEOUT, cwd=_ROOT
    )
    if done.returncode:
        what = " ".join(str(job[name]) for name in ("job", "transport", "measure", "contender", "what") if name in job)
        raise JobError(f"{what} failed:\n{done.stderr.strip()[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def prepare(transport: str, url: str, topic: str, total: int, file: str) -> dict[str, Any]:
    """Writes the messages of a topic into a file, so that all contenders have the same bytes."""
    with Path(file).open("w") as lines:
        for payload, headers in ours.messages_of(url, topic, range(total)):
            line = [payload.decode(), [(name, value.decode()) for name, value in headers]]
            lines.write(json.dumps(line) + "\n")
    return {}


def _prepared(file: str, total: int) -> Iterator[Message]:
    with Path(file).open() as lines:
        for line, _ in zip(lines, range(total), strict=False):
            payload, headers = json.loads(line)
            yield payload.encode(), [(name, value.encode()) for name, value in headers]


def fill(transport: str, url: str, topic: str, total: int, file: str | None, contender: str) -> dict[str, Any]:
    """Publishes what another process is to consume."""
    if contender == "faststream" and transport in rival.OWN_FORMAT:
        rival.run(Plan(transport, url, topic, None, True, total, Count(0), plans.chunks(total)))
        return {}
    client = raw.client(transport)(url, topic)
    if file is not None:
        client.many(list(_prepared(file, total)))
    else:
        for first in range(0, total, _FILLED_AT_ONCE):
            numbers = range(first, min(first + _FILLED_AT_ONCE, total))
            client.many(list(ours.messages_of(url, topic, numbers)))
    client.close()
    return {}


def measure(
    transport: str, url: str, measure: str, contender: str, total: int, file: str | None = None, topic: str = ""
) -> dict[str, Any]:
    """One figure, or several, of one contender."""
    topic, group = topic or f"bench-{uuid4().hex[:8]}", f"bench-{uuid4().hex[:8]}"
    found: dict[str, Any] = {}
    count, arrivals = Count(total), Arrivals()
    arguments = {"transport": transport, "url": url, "topic": topic, "total": total, "contender": contender}
    filling: Callable[[], object] = partial(run_job, {"job": "fill", "file": file, **arguments})
    in_memory, is_kept = transport == "memory", transport not in ("memory", "pubsub")
    if is_kept:
        ours.declare(url, topic, group)
    plan = Plan(transport, url, topic, group, measure != "consume", total, count, plans.consuming())
    if measure == "consume":
        plan.prefill = in_memory
        if transport == "pubsub":
            plan.fill = filling
        elif not in_memory:
            filling()
    elif measure in ("emit", "emit-one"):
        plan.group = None
        plan.steps = plans.emitting(total, measure == "emit-one", found)
    elif measure == "through":
        plan.steps = plans.through(count, found)
    else:
        plan.sink = arrivals
        plan.steps = plans.latency(arrivals, total, found)
    if contender.startswith("raw") and (plan.emits or plan.prefill):
        prepared = _prepared(file, total) if file else ours.messages_of(url, topic, range(total))
        plan.messages = list(prepared)
    _run(plan, contender)
    if measure == "consume":
        found["rate"] = total / (count.end - count.begin)
    found["memory_mb"] = peak_mb()
    if measure.startswith("emit") and is_kept:  # what was confirmed must be there: read it back
        back = Plan(transport, url, topic, group, False, total, count, iter([plans.Wait()]))
        _run(back, "faststream" if contender == "faststream" else "raw")
    if measure in ("consume", "through") or (measure.startswith("emit") and is_kept):
        count.check()
    return found


_CLIENTS = {
    "kafka": ["confluent_kafka"],
    "rabbitmq": ["pika", "aio_pika"],
    "streams": ["redis", "redis.asyncio"],
    "pubsub": ["redis", "redis.asyncio"],
}


def _run(plan: Plan, contender: str) -> None:
    for name in _CLIENTS.get(plan.transport, ()):
        import_module(name)
    plans.leave_alone()
    if contender in ("raw", "raw-thread"):
        raw.run(plan, in_threads=contender == "raw-thread")
    elif contender == "faststream":
        rival.run(plan)
    elif contender in ours.LOOPS:
        ours.run(plan, contender)
    else:
        raise ValueError(f"there is no contender {contender!r}")


def main() -> None:
    from benchmarks import core, scaling

    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "prepare": prepare,
        "fill": fill,
        "measure": measure,
        "core": core.job,
        "scale": scaling.job,
    }
    job = json.load(sys.stdin)
    print(json.dumps(jobs[job.pop("job")](**job)))


if __name__ == "__main__":
    main()
