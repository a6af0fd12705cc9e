"""The rows: each lets something fail while workers handle events, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.faults.result import Result
from tests.faults.rig import Emitting, Rig, Worker, uncommitted
from tests.faults.task import Job, Task, Transport
from tests.faults.worker import fails

__all__ = ["HALF_OPEN", "ROWS", "TRANSPORTS", "Row"]

TRANSPORTS: Sequence[Transport] = ("kafka", "rabbitmq", "redis")
_COMMIT_SECONDS = 1.5
"""After which a contiguous prefix that is done must have been committed on Kafka: a second, and some for the way."""
_KAFKA = {"config": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 200, "group.instance.id": "worker"}}
"""The next process takes the partitions of a killed one over at once, as a StatefulSet's would."""
_PREFETCH = 120


@dataclass(frozen=True)
class Row:
    """One fault, and what has to be true in spite of it."""

    name: str
    run: Callable[[Rig], Result]
    transports: Sequence[Transport] = TRANSPORTS


def _options(rig: Rig, prefetch: int = _PREFETCH) -> Mapping[str, Any]:
    """Of consumers whose successors take over what they had."""
    if rig.transport == "kafka":
        return _KAFKA
    return {"prefetch": prefetch} if rig.transport == "rabbitmq" else {"consumer": "worker"}


def _result(rig: Rig, name: str, faults: int, bound: int | None = None) -> Result:
    return Result(name, rig.transport, len(rig.confirmed), faults, bound=bound)


def _window(rig: Rig, task: Task) -> int:
    """How many events one process may have received and not acknowledged, where each is acknowledged by itself."""
    return _PREFETCH if rig.transport == "rabbitmq" else 2 * task.concurrency


# --- processes that are killed


def killed(rig: Rig) -> Result:
    """kill -9 in the middle of handlers, again and again: nothing is lost, and little comes again."""
    kills = 10
    # Kafka commits every second: what a process that lives for less has done comes again.
    by_time = rig.transport == "kafka"
    events = 3 * rig.events if by_time else rig.events
    task = rig.task(options=_options(rig), shortest=0.03 if by_time else 0.01, longest=0.3 if by_time else 0.1)
    rig.declare(task)
    # What is fetched at once is of one partition, and must have enough keys to be handled side by side.
    rig.emit(rig.jobs(events, keys=600 if by_time else 150))
    bound = 0
    next_worker = rig.worker(task)
    for number in range(kills):
        worker, next_worker = next_worker, rig.worker(task, loop=number + 1)
        worker.go()
        share = rig.events // (kills + 2)
        wanted = 1 if by_time else rig.random.randint(share // 2, share)
        rig.until_started(wanted, worker)
        if by_time:
            time.sleep(rig.random.uniform(1.4, 1.8))
        killed_at = time.monotonic()
        worker.kill()
        if by_time:
            life = next(life for life in rig.lives() if life.pid == worker.pid)
            bound += uncommitted(life, rig.positions, killed_at - _COMMIT_SECONDS)
        else:
            bound += _window(rig, task)
    next_worker.go()
    rig.until(rig.all_handled, alive=next_worker)
    result = _result(rig, "kill -9", kills, bound)
    rig.finish(result, next_worker, may_repeat=bound, in_order=True)
    return result


def killed_acknowledging_first(rig: Rig) -> Result:
    """The same where events are acknowledged first: what one process had in hand is lost, at most."""
    kills = 10
    options = dict(_options(rig, 20))
    task = rig.task(options=options, ack_first=True, concurrency=20, shortest=0.005, longest=0.05)
    rig.declare(task, partitions=1)
    rig.emit(rig.jobs(rig.events))
    batch = 2 * task.concurrency
    next_worker = rig.worker(task)
    for number in range(kills):
        worker, next_worker = next_worker, rig.worker(task, loop=number + 1)
        worker.go()
        share = rig.events // (kills + 2)
        wanted = rig.random.randint(share // 2, share)
        rig.until_started(wanted, worker)
        worker.kill()
    last = rig.jobs(1, first=rig.events)
    rig.emit(last)
    next_worker.go()
    # Events come in order, so that all others have come when the last one has; the drain sees them through.
    rig.until(lambda: last[0].name in rig.progress.finished, alive=next_worker)
    result = _result(rig, "kill -9, acknowledging first", kills, batch * kills)
    rig.finish(result, next_worker, may_lose=batch * kills, may_repeat=batch * kills, in_order=True)
    return result


def drained(rig: Rig) -> Result:
    """SIGTERM with handlers in flight: all of them finish, and none is seen again by the next process."""
    task = rig.task(options=_options(rig), concurrency=50, shortest=0.2, longest=0.6)
    rig.declare(task)
    rig.emit(rig.jobs(rig.events // 8))
    first, second = rig.worker(task, loop=0), rig.worker(task, loop=2)
    first.go()
    rig.until_started(70, first)
    code = first.stop()
    result = _result(rig, "SIGTERM with handlers in flight", 1, 0)
    if code:
        result.problems.append(f"the worker ended with {code}: {first.log[-2000:]}")
    rig.progress.update()
    done = len(rig.progress.finished)
    if done != rig.started(first):
        result.problems.append(f"{rig.started(first) - done} handlers were begun and did not finish")
    second.go()
    rig.until(rig.all_handled, alive=second)
    found = rig.finish(result, second, may_repeat=0, in_order=True)
    if rig.started(first, second) != found.handled:
        result.problems.append(f"{rig.started(first, second)} handlings of {found.handled} events")
    return result


# --- connections that fail


def cut(rig: Rig) -> Result:
    """The connections are cut, again and again: the same process goes on by itself, and nothing is lost."""
    cuts = 5
    task = rig.task(url=rig.through_proxy(), options=_options(rig), shortest=0.02, longest=0.2)
    rig.declare(task)
    rig.emit(rig.jobs(rig.events))
    worker = rig.worker(task, loop=rig.seed)
    worker.go()
    for number in range(cuts):
        wanted = rig.events * (number + 1) // (cuts + 2)
        rig.until_finished(wanted, worker)
        rig.broker.proxy.cut()
    rig.until(rig.all_handled, alive=worker)
    bound = _window(rig, task) * cuts if rig.transport != "kafka" else None
    result = _result(rig, "connections cut", cuts, bound)
    rig.finish(result, worker, may_repeat=bound)
    return result


HALF_OPEN: Mapping[Transport, tuple[str, float]] = {
    "rabbitmq": ("?heartbeat=1", 3.0),
    "kafka": ("?socket.timeout.ms=1000&session.timeout.ms=3000&heartbeat.interval.ms=1000", 3.0),
    "redis": ("", 5.5),
}
"""What has the client notice soon that nobody is there, and within how many seconds.

That is three heartbeats on RabbitMQ; on Kafka, where an answer is due to every request, three of its time-outs. A read
of Streams is given up after 5.5 s, which nobody can choose: that once.
"""


def half_open(rig: Rig) -> Result:
    """Nothing is heard from the broker any more, not even its end: the consumer is back within three heartbeats."""
    query, limit = HALF_OPEN[rig.transport]
    rounds, each = 5 if rig.is_long else 1, 50
    task = rig.task(url=rig.through_proxy(query), shortest=0.001, longest=0.01)
    rig.declare(task)
    worker = rig.worker(task, loop=rig.seed + 1)
    worker.go()
    rig.emit(rig.jobs(each))
    rig.until(rig.all_handled, alive=worker)
    slowest = 0.0
    for number in range(rounds):
        rig.broker.proxy.swallow()
        began = time.monotonic()
        rig.emit(rig.jobs(each, first=each * (number + 1)))
        rig.until(rig.all_handled, alive=worker)
        slowest = max(slowest, time.monotonic() - began)
    result = _result(rig, "half-open connection", rounds)
    result.note = f"back within {slowest:.1f} s"
    if slowest > limit + 1.0:  # to connect, and to handle what has come meanwhile
        result.problems.append(f"it took {slowest:.1f} s, and not {limit:g} s: {worker.log[-3000:]}")
    rig.finish(result, worker)
    return result


def broker_killed(rig: Rig) -> Result:
    """kill -9 the broker while events are emitted and handled: none that was confirmed is lost."""
    kills = 5 if rig.is_long else 1
    task = rig.task(options={"prefetch": _PREFETCH} if rig.transport == "rabbitmq" else {}, shortest=0.01, longest=0.1)
    rig.declare(task)
    worker = rig.worker(task, loop=rig.seed)
    worker.go()
    rig.until_ready(worker)  # a first connection that fails ends it, as it should
    with Emitting(rig, rig.events):
        for number in range(kills):
            wanted = rig.events * (number + 1) // (kills + 1)
            rig.until_confirmed(wanted, worker)
            rig.broker.kill()
            rig.broker.start()
        rig.until_confirmed(rig.events, worker)
    rig.until(rig.all_handled, alive=worker)
    result = _result(rig, "broker killed and restarted", kills)
    rig.finish(result, worker)
    return result


# --- Kafka


def rebalanced(rig: Rig) -> Result:
    """One of three members joins and leaves every 500 ms: nothing is lost, and there is progress all the time."""
    seconds, every = (60.0 if rig.is_long else 5.0), 0.5
    config = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 200}
    task = rig.task(options={"config": config}, concurrency=20, shortest=0.005, longest=0.05)
    rig.declare(task, partitions=12)
    tasks = (task, task, replace(task, stay=every))
    workers = [rig.worker(task, loop=number) for number, task in enumerate(tasks)]
    for worker in workers:
        worker.go()
        rig.until_ready(worker)
    halts = [0.0]
    with Emitting(rig, 1_000_000, each=40, pause=0.1):
        end, seen = time.monotonic() + seconds, (0, time.monotonic())
        while (now := time.monotonic()) < end:
            rig.progress.update()
            if len(rig.progress.finished) > seen[0]:
                halts.append(now - seen[1])
                seen = len(rig.progress.finished), now
            time.sleep(0.02)
        halts.append(now - seen[1])
    codes = [workers[-1].stop()]  # in half a second a member that joins may not come to anything
    rig.until(rig.all_handled)
    result = _result(rig, "a member joins and leaves every 500 ms", workers[-1].log.count("is ready"))
    result.note = f"longest halt {max(halts):.1f} s"
    if max(halts) > 4.0:
        result.problems.append(f"nothing was handled for {max(halts):.1f} s")
    codes += [worker.stop() for worker in workers[:-1]]
    result.problems += [
        f"a worker ended with {code}: {worker.log[-2000:]}"
        for code, worker in zip(codes, [workers[-1], *workers[:-1]], strict=True)
        if code
    ]
    rig.finish(result)
    return result


def long_handler(rig: Rig) -> Result:
    """A handler takes longer than max.poll.interval.ms, and blocks the loop: it is called once, by the same process."""
    config = {"session.timeout.ms": 1000, "heartbeat.interval.ms": 200, "max.poll.interval.ms": 1000}
    task = rig.task(options={"config": config}, head=4.0, blocks=True)
    rig.declare(task, partitions=1)
    rig.emit([rig.head(), *rig.jobs(100)])
    worker = rig.worker(task, loop=rig.seed)
    worker.go()
    rig.until(rig.all_handled, alive=worker)
    result = _result(rig, "handler longer than max.poll.interval.ms", 1, 0)
    rig.finish(result, worker, may_repeat=0, in_order=True)
    for word in ("max.poll.interval", "MAXPOLL", "were lost to others"):
        if word in worker.log:
            result.problems.append(f"the log says {word}: {worker.log[-2000:]}")
    return result


# --- what is deleted, or takes nothing


def deleted(rig: Rig) -> Result:
    """The queue or the group vanishes: it is made again, without haste, and what is emitted then is handled."""
    task = rig.task(shortest=0.001, longest=0.01)
    rig.declare(task)
    worker = rig.worker(task, loop=rig.seed)
    worker.go()
    rig.emit(rig.jobs(100))
    rig.until(rig.all_handled, alive=worker)
    ways = {"rabbitmq": [_delete_queue], "redis": [_destroy_group, _flush]}[rig.transport]
    result = _result(rig, "queue or group deleted", len(ways))
    for number, way in enumerate(ways, 1):
        lines, cpu = worker.log.count("\n"), worker.cpu_seconds
        way(rig)
        began = time.monotonic()
        jobs = rig.jobs(100, first=100 * number)
        while not rig.emit(jobs, may_fail=True) and time.monotonic() - began < 30:
            time.sleep(0.1)  # RabbitMQ refuses what no queue takes
        rig.until(rig.all_handled, alive=worker)
        took = time.monotonic() - began
        said, used = worker.log.count("\n") - lines, worker.cpu_seconds - cpu
        result.note = f"back within {took:.1f} s"
        if said > 40 or used > 0.5 + took / 2:
            result.problems.append(f"{said} lines of log and {used:.1f} s of CPU in {took:.1f} s: a hot loop")
    result.events = len(rig.confirmed)
    rig.finish(result, worker)
    return result


def _delete_queue(rig: Rig) -> None:
    rig.broker.delete_queue(rig.group)


def _destroy_group(rig: Rig) -> None:
    with rig.broker.redis() as client:
        client.xgroup_destroy(rig.topic, rig.group)


def _flush(rig: Rig) -> None:
    with rig.broker.redis() as client:
        client.flushall()


def letters_refused(rig: Rig) -> Result:
    """The dead-letter destination takes nothing: the source stays unacknowledged until it does."""
    # So few that a process can hold them all, and the others go on beside them.
    task = rig.task(options=_options(rig), shortest=0.001, longest=0.01, failing=min(0.05, 500 / rig.events))
    rig.declare(task, partitions=1)
    jobs = rig.jobs(rig.events // 5)
    failing = [job.name for job in jobs if fails(task, job.name)]
    first, second = rig.worker(task, loop=0), rig.worker(task, loop=2)
    half = len(jobs) // 2
    result = _result(rig, "dead-letter destination down", 2)
    # One process dies meanwhile, and the next one has them all again.
    first.go()
    rig.until_ready(first)
    unwritten = _fail_without_letters(rig, jobs[:half], failing, first)
    time.sleep(0.3)  # for acknowledgements that must not be
    first.kill()
    _check_held(rig, result, unwritten)
    rig.broker.mend_letters(rig.topic, rig.group)
    second.go()
    rig.until_ready(second)
    _take_letters(rig, len(unwritten), second)
    # Another one goes on when it can.
    unwritten = _fail_without_letters(rig, jobs[half:], failing, second)
    rig.broker.mend_letters(rig.topic, rig.group)
    _take_letters(rig, len(unwritten), second)
    result.events = len(rig.confirmed)
    found = rig.finish(result, second)
    result.note = f"{found.letters} dead letters"
    if (found.dead_lettered, found.letters) != (len(failing), len(failing)):
        result.problems.append(f"{found.letters} dead letters of {found.dead_lettered} events; {len(failing)} failed")
    return result


def _fail_without_letters(rig: Rig, jobs: Sequence[Job], failing: Collection[str], worker: Worker) -> set[str]:
    """Has events handled while no dead letter can be written; those that want one."""
    unwritten = {job.name for job in jobs if job.name in failing}
    rig.broker.break_letters(rig.topic, rig.group)
    before = rig.progress.failed(worker.pid)
    rig.emit(jobs)
    rig.until(
        lambda: rig.all_handled(but=set(failing)) and rig.progress.failed(worker.pid) >= before + len(unwritten),
        alive=worker,
    )
    return unwritten


def _check_held(rig: Rig, result: Result, unwritten: set[str]) -> None:
    """Whether what has no dead letter is still the broker's to deliver."""
    if rig.transport == "kafka":
        first = min(rig.positions[name][1] for name in unwritten)
        if (committed := rig.broker.committed(rig.topic, rig.group)) > first:
            result.problems.append(f"{committed} is committed, past {first}, which has no dead letter")
        return
    if (held := rig.broker.unacknowledged(rig.topic, rig.group)) < len(unwritten):
        result.problems.append(f"{held} events are unacknowledged, of {len(unwritten)} without a dead letter")


def _take_letters(rig: Rig, number: int, worker: Worker) -> None:
    end = time.monotonic() + rig.patience
    while worker.is_alive and time.monotonic() < end and rig.broker.count_letters(rig.topic, rig.group) < number:
        time.sleep(0.05)
    rig.note_letters()


# --- what is slow


def slow_head(rig: Rig) -> Result:
    """One event takes long: all others are handled meanwhile, and nothing behind it is lost if the process dies."""
    task = rig.task(options=_options(rig), shortest=0.001, longest=0.02, head=60.0)
    rig.declare(task, partitions=1)
    head = rig.head()
    rig.emit([head, *rig.jobs(min(rig.events, 9000))])  # a partition pauses at 10,000
    # The next process does not take as long over it, so the first one is killed before it is done with it.
    first, second = rig.worker(task, loop=rig.seed), rig.worker(replace(task, head=0.1), loop=rig.seed + 1)
    first.go()
    rig.until(lambda: rig.all_handled(but={head.name}), alive=first)
    result = _result(rig, "slow event at the head", 1)
    if head.name in rig.progress.finished:
        result.problems.append("the others did not get past the slow one")
    if rig.transport == "kafka":
        time.sleep(1.2)  # a commit that must not be is due by now
        committed = rig.broker.committed(rig.topic, rig.group)
        if committed > rig.positions[head.name][1]:
            result.problems.append(f"{committed} is committed, past the event that is not done")
    first.kill()
    second.go()
    rig.until(rig.all_handled, alive=second)
    # On Kafka all is behind the head, and comes again.
    result.bound = None if rig.transport == "kafka" else _window(rig, task)
    rig.finish(result, second, may_repeat=result.bound)
    return result


ROWS: Sequence[Row] = (
    Row("killed", killed),
    Row("killed-acknowledging-first", killed_acknowledging_first),
    Row("drained", drained),
    Row("cut", cut),
    Row("half-open", half_open),
    Row("broker-killed", broker_killed),
    Row("rebalanced", rebalanced, ("kafka",)),
    Row("long-handler", long_handler, ("kafka",)),
    Row("deleted", deleted, ("rabbitmq", "redis")),
    Row("letters-refused", letters_refused),
    Row("slow-head", slow_head),
)
