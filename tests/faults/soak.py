"""What grows: a worker under faults for a long time, and a worker with a long queue before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.faults.result import Result
from tests.faults.rig import Emitting, Rig, Usage, Worker
from tests.faults.rows import HALF_OPEN
from tests.faults.task import Task

__all__ = ["backlog", "soak"]

_EVERY = 0.5
"""Seconds between two looks at a process."""
_MORE_MEMORY = 12.0
"""MiB that a process may have more at the end than after its beginning, as allocators go."""
_MORE_THREADS, _MORE_FILES = 3, 4


def soak(rig: Rig, seconds: float) -> Result:
    """One worker lives through random faults of its connections and its broker, and beside it others that are killed.

    In the end nothing that was confirmed is lost, and the worker holds no more than it did.
    """
    query, _ = HALF_OPEN[rig.transport]
    task = rig.task(url=rig.through_proxy(query), shortest=0.001, longest=0.05, concurrency=50)
    if rig.transport == "redis":
        task = replace(task, options={"claim_idle": 5.0})
    rig.declare(task)
    worker = rig.worker(task, loop=rig.seed)
    worker.go()
    rig.until_ready(worker)
    others: list[Worker] = []
    faults: list[str] = []
    usages = [worker.usage]
    with Emitting(rig, 10**9, each=20, pause=0.1):
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and worker.is_alive:
            fault = rig.random.choices(_FAULTS, [4, 2, 2, 2, 3, 1])[0]
            faults.append(fault.__name__.strip("_"))
            fault(rig, replace(task, url=rig.broker.url), others)
            pause = now + rig.random.uniform(1.0, 4.0)
            while time.monotonic() < min(pause, end) and worker.is_alive:
                usages.append(worker.usage)
                time.sleep(_EVERY)
    for other in others:
        if other.is_alive:
            other.stop()
    rig.until(rig.all_handled, alive=worker)
    result = Result("soak", rig.transport, len(rig.confirmed), len(faults))
    if worker.is_alive:
        usages.append(worker.usage)
    _judge(result, usages)
    rig.finish(result, worker)
    result.note += f"; {', '.join(f'{faults.count(name)} {name}' for name in sorted(set(faults)))}"
    return result


def _cut(rig: Rig, task: Task, others: list[Worker]) -> None:
    rig.broker.proxy.cut()


def _freeze(rig: Rig, task: Task, others: list[Worker]) -> None:
    rig.broker.proxy.frozen = True
    time.sleep(rig.random.uniform(0.1, 2.0))
    rig.broker.proxy.frozen = False


def _swallow(rig: Rig, task: Task, others: list[Worker]) -> None:
    rig.broker.proxy.swallow()


def _drop_replies(rig: Rig, task: Task, others: list[Worker]) -> None:
    rig.broker.proxy.drops_replies = True
    time.sleep(rig.random.uniform(0.1, 1.0))
    rig.broker.proxy.drops_replies = False
    rig.broker.proxy.cut()


def _kill_worker(rig: Rig, task: Task, others: list[Worker]) -> None:
    """Another member of the group joins, or the one that has is killed."""
    if others and others[-1].is_alive:
        others.pop().kill()
        return
    others.append(rig.worker(task, loop=rig.random.randrange(3)))
    others[-1].go()


def _kill_broker(rig: Rig, task: Task, others: list[Worker]) -> None:
    rig.broker.kill()
    rig.broker.start()


_FAULTS: Sequence[Callable[[Rig, Task, list[Worker]], None]] = (
    _cut,
    _freeze,
    _swallow,
    _drop_replies,
    _kill_worker,
    _kill_broker,
)


def backlog(rig: Rig, number: int, seconds: float = 20.0) -> Result:
    """A slow handler with a long queue before it: what its process holds does not depend on how long that is."""
    task = rig.task(shortest=0.05, longest=0.2, concurrency=20)
    rig.declare(task)
    rig.emit(rig.jobs(number, keys=1000))
    worker = rig.worker(task, loop=rig.seed)
    worker.go()
    rig.until_started(1, worker)
    usages = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and worker.is_alive:
        usages.append(worker.usage)
        time.sleep(_EVERY)
    result = Result("backlog", rig.transport, number, 0)
    rig.progress.update()
    handled = len(rig.progress.finished)
    _judge(result, usages)
    result.note += f"; {handled} handled in {seconds:g} s"
    if code := worker.stop():
        result.problems.append(f"the worker ended with {code}: {worker.log[-2000:]}")
    if handled >= number:
        result.problems.append("the queue was not long enough to last")
    return result


def _judge(result: Result, usages: Sequence[Usage]) -> None:
    """Whether a process holds more in the last quarter than in the second one, when it had begun."""
    quarter = max(len(usages) // 4, 1)
    early, late = usages[quarter : 2 * quarter] or usages[:1], usages[-quarter:]
    before, after = _median(early), _median(late)
    result.note = (
        f"memory {usages[0].memory:.0f} MiB at first, {before.memory:.0f}, {after.memory:.0f} in the end, "
        f"threads {before.threads} to {after.threads}, files {before.files} to {after.files}"
    )
    if after.memory > before.memory + _MORE_MEMORY:
        result.problems.append(f"memory has grown from {before.memory:.0f} MiB to {after.memory:.0f}")
    if after.threads > before.threads + _MORE_THREADS:
        result.problems.append(f"threads have grown from {before.threads} to {after.threads}")
    if after.files > before.files + _MORE_FILES:
        result.problems.append(f"open files have grown from {before.files} to {after.files}")


def _median(usages: Sequence[Usage]) -> Usage:
    memory, threads, files = (sorted(column)[len(column) // 2] for column in zip(*usages, strict=True))
    return Usage(float(memory), int(threads), int(files))
