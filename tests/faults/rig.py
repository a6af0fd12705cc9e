"""One run against one broker: events are emitted, workers handle them and fail, and the ledgers are compared."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from dispytch.abc import Receipt
from dispytch.errors import EmitError, EmitManyError
from dispytch.sync import EventEmitter
from tests.faults.broker import Broker
from tests.faults.ledger import Findings, Kind, Ledger, Life, check, read
from tests.faults.result import Result
from tests.faults.task import HEAD, Job, Mutation, Task, producer_for
from tests.faults.worker import dispatcher_for, handle_with, work_at_word
from tests.support import unique

__all__ = ["HAS_PROC", "LOOPS", "Emitting", "Rig", "Usage", "Worker", "uncommitted"]

HAS_PROC = Path("/proc/self/task").is_dir()
"""Whether the system tells what a process holds, as Linux does."""
LOOPS = ("asyncio", "uvloop", "trio")
_BATCH = 500


# A server that has imported everything forks the workers: importing would take a second of a processor for each.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["tests.faults.worker", "confluent_kafka", "pika", "redis.asyncio", "trio", "uvloop"]
    + [f"dispytch.{name}" for name in ("kafka", "rabbitmq", "redis")]
)


class Usage(NamedTuple):
    """What a process holds: memory in MiB, threads, and open files."""

    memory: float
    threads: int
    files: int


class Worker:
    """A worker process. It does nothing before `go`.

    Args:
        task: What it is to do.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._log = Path(task.folder, f"{unique('worker')}.log")
        self._log.touch()
        heard, self._word = _processes.Pipe(duplex=False)
        self._process = _processes.Process(target=work_at_word, args=(task, str(self._log), heard))
        self._process.start()
        heard.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def cpu_seconds(self) -> float:
        """What it has used of a processor so far; 0 where the system does not tell."""
        if not HAS_PROC:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def usage(self) -> Usage:
        """What it holds now."""
        process = Path(f"/proc/{self.pid}")
        pages = int((process / "statm").read_text().split()[1])
        threads, files = (len(list((process / name).iterdir())) for name in ("task", "fd"))
        return Usage(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, threads, files)

    def go(self) -> None:
        self._word.send_bytes(b"go")

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def stop(self, seconds: float = 45.0) -> int:
        """Has it drain and end; its exit code, or that of a kill if it does not end in time."""
        self.ask_to_stop()
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
        return self._end()

    def _end(self) -> int:
        self._process.join()
        self._word.close()
        code = self._process.exitcode
        assert code is not None
        return code


class Progress:
    """What the ledgers of a folder hold so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.started: dict[int, int] = {}
        """How many handlers have begun, by process."""
        self.finished: set[str] = set()
        self._failed: dict[int, int] = {}

    def failed(self, pid: int) -> int:
        """How many handlers of a process have raised."""
        return self._failed.get(pid, 0)

    def update(self) -> None:
        for file in self._folder.glob("worker-*.ledger"):
            with file.open("rb") as ledger:
                ledger.seek(self._read.get(file, 0))
                whole, newline, _ = ledger.read().rpartition(b"\n")
            self._read[file] = self._read.get(file, 0) + len(whole) + len(newline)
            pid = int(file.stem.split("-")[1])
            for line in whole.decode().splitlines():
                _, kind, event, _ = line.split(" ", 3)
                if kind == Kind.STARTED:
                    self.started[pid] = self.started.get(pid, 0) + 1
                elif kind == Kind.FINISHED:
                    self.finished.add(event)
                elif kind == Kind.FAILED:
                    self._failed[pid] = self._failed.get(pid, 0) + 1


class Rig:
    """What a row needs.

    Args:
        broker: Where events go; the rig has a topic and a group of its own there.
        folder: For ledgers and logs; empty.
        seed: Decides on everything that is random.
        is_long: Whether the numbers are large.
        mutation: The mistake that workers are to make.
        patience: Seconds without any progress after which a run has come to a halt.
    """

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        seed: int,
        *,
        is_long: bool = False,
        mutation: Mutation | None = None,
        patience: float = 60.0,
    ) -> None:
        self.broker = broker
        self.transport = broker.transport
        self.folder = folder
        self.seed = seed
        self.is_long = is_long
        self.mutation = mutation
        self.patience = patience
        self.random = random.Random(f"{seed} {broker.transport}")
        self.topic, self.group = unique("faults").replace("-", ""), unique("group")
        self.positions: dict[str, tuple[int, int]] = {}
        """Partition and offset of each confirmed event, where there are partitions."""
        self.confirmed: set[str] = set()
        self.progress = Progress(folder)
        self._ledger = Ledger(folder, "emitter")
        self._stack = ExitStack()
        self._stack.callback(self._ledger.close)
        self._stack.callback(broker.delete, self.topic, self.group)
        self._workers: list[Worker] = []
        self._emitter: EventEmitter | None = None

    def close(self) -> None:
        for worker in self._workers:
            if worker.is_alive:
                worker.kill()
        self._stack.close()

    @property
    def events(self) -> int:
        """How many events a row is about."""
        return 100_000 if self.is_long else 2000

    # --- workers

    def task(self, **options: Any) -> Task:
        """Orders for workers, with some of their attributes."""
        given = {"url": self.broker.url, "seed": self.seed, "mutation": self.mutation, **options}
        return Task(self.transport, given.pop("url"), self.group, self.topic, str(self.folder), **given)

    def through_proxy(self, query: str = "") -> str:
        return self.broker.proxy.url + query

    def worker(self, task: Task, *, loop: int = 0) -> Worker:
        """A new worker, that waits for `Worker.go`."""
        worker = Worker(replace(task, loop=LOOPS[loop % len(LOOPS)]))
        self._workers.append(worker)
        return worker

    def declare(self, task: Task, partitions: int = 4) -> None:
        """Has the topic, the group and the dead-letter destination exist."""
        self.broker.create(self.topic, self.group, partitions)
        anyio.run(self._declare, replace(task, url=self.broker.url, mutation=None))

    async def _declare(self, task: Task) -> None:
        dispatcher = dispatcher_for(task)
        handle_with(dispatcher, task, self._ledger)
        async with dispatcher.lifespan():
            pass

    # --- emitting

    def jobs(self, count: int, keys: int = 150, first: int = 0) -> list[Job]:
        """Events that are not emitted yet, in the order of their keys' sequences."""
        return [
            Job(topic=self.topic, key=f"k{number % keys}", sequence=number) for number in range(first, first + count)
        ]

    def head(self, sequence: int = 0) -> Job:
        """The event whose handler is slow."""
        return Job(topic=self.topic, key=HEAD, sequence=sequence)

    def emit(self, jobs: Sequence[Job], *, timeout: float = 30.0, may_fail: bool = False) -> int:
        """Emits, and notes what was confirmed; how many that were."""
        if self._emitter is None or timeout != self._emitter.timeout:
            emitter = EventEmitter(producer_for(self.transport, self.broker.url), timeout=timeout)
            self._emitter = emitter
            self._stack.callback(emitter.close)
        before = len(self.confirmed)
        for begin in range(0, len(jobs), _BATCH):
            batch = jobs[begin : begin + _BATCH]
            for job in batch:
                self._ledger.note(Kind.EMITTED, job.name, job.key, job.sequence)
            try:
                results: Sequence[object] = self._emitter.emit_many(batch)
            except EmitManyError as error:
                if not may_fail:
                    raise
                results = error.results
            except EmitError:
                if not may_fail:
                    raise
                continue
            for job, result in zip(batch, results, strict=True):
                if isinstance(result, Receipt):
                    self._confirm(job, result)
        return len(self.confirmed) - before

    def _confirm(self, job: Job, receipt: Receipt) -> None:
        self._ledger.note(Kind.CONFIRMED, job.name, job.key, job.sequence)
        self.confirmed.add(job.name)
        if receipt.partition is not None and isinstance(receipt.offset, int):
            self.positions[job.name] = (receipt.partition, receipt.offset)

    # --- watching

    def until(self, condition: Callable[[], object], *, alive: Worker | None = None) -> bool:
        """Waits for a condition of the progress; False if there was none for too long, or the worker has ended."""
        seen, end = -1, time.monotonic() + self.patience
        while True:
            self.progress.update()
            if condition():
                return True
            total = sum(self.progress.started.values()) + len(self.progress.finished) + len(self.confirmed)
            if total != seen:
                seen, end = total, time.monotonic() + self.patience
            if time.monotonic() > end or (alive is not None and not alive.is_alive):
                return False
            time.sleep(0.004)

    def until_ready(self, worker: Worker) -> bool:
        """Waits until a worker has its connection."""
        return self.until(lambda: "is ready" in worker.log, alive=worker)

    def until_started(self, number: int, worker: Worker) -> bool:
        """Waits until a worker has begun with so many handlers, or nothing is left."""
        return self.until(lambda: self.started(worker) >= number or self.all_handled(), alive=worker)

    def until_finished(self, number: int, worker: Worker) -> bool:
        """Waits until so many events were finished, as long as the worker lives."""
        return self.until(lambda: len(self.progress.finished) >= number, alive=worker)

    def until_confirmed(self, number: int, worker: Worker) -> bool:
        """Waits until so many events were confirmed, as long as the worker lives."""
        return self.until(lambda: len(self.confirmed) >= number, alive=worker)

    def all_handled(self, but: set[str] | None = None) -> bool:
        """Whether every confirmed event was finished, but some."""
        return not self.confirmed - self.progress.finished - (but or set())

    def started(self, *workers: Worker) -> int:
        """How many handlers these workers have begun with."""
        return sum(self.progress.started.get(worker.pid, 0) for worker in workers)

    # --- the end

    def lives(self) -> list[Life]:
        return read(self.folder)

    def note_letters(self) -> None:
        """Notes what is new at the dead-letter destination."""
        for job in self.broker.take_letters(self.topic, self.group):
            self._ledger.note(Kind.DEAD_LETTERED, job.name, job.key, job.sequence)

    def finish(
        self,
        result: Result,
        worker: Worker | None = None,
        *,
        may_lose: int = 0,
        may_repeat: int | None = None,
        in_order: bool = False,
    ) -> Findings:
        """Stops the last worker, compares the ledgers, and completes the result.

        Args:
            may_lose: How many events may be lost.
            may_repeat: How many repeats there may be; ``None`` for any number.
            in_order: Whether the first handlings of each key must be in order.
        """
        if worker is not None:
            code = worker.stop()
            if code:
                result.problems.append(f"the worker ended with {code}: {worker.log[-2000:]}")
        found = check(self.lives())
        result.lost, result.repeated = len(found.lost), found.repeated
        if result.lost > may_lose:
            result.problems.append(f"lost {result.lost} events, such as {sorted(found.lost)[:5]}")
        if may_repeat is not None and result.repeated > may_repeat:
            result.problems.append(f"repeated {result.repeated} events, where at most {may_repeat} may be")
        if in_order and found.disordered:
            result.problems.append(f"{len(found.disordered)} out of order, such as {found.disordered[:5]}")
        if found.overlaps:
            result.problems.append(f"{len(found.overlaps)} overlaps of a key, such as {found.overlaps[:5]}")
        return found


class Emitting:
    """Emits events in a thread as long as the block runs, until so many are confirmed; some may fail.

    Args:
        each: How many are emitted at once.
        pause: Seconds between two of these.
    """

    def __init__(self, rig: Rig, number: int, *, each: int = 50, pause: float = 0.02) -> None:
        self._rig, self._number, self._each, self._pause = rig, number, each, pause
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._emit)

    def _emit(self) -> None:
        first = 0
        while len(self._rig.confirmed) < self._number and not self._is_over.is_set():
            # Emitted once each, so that what has its confirmation lost is never told from what was never sent.
            self._rig.emit(self._rig.jobs(self._each, first=first), timeout=5.0, may_fail=True)
            first += self._each
            self._is_over.wait(self._pause)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()


def uncommitted(life: Life, positions: Mapping[str, tuple[int, int]], until: float) -> int:
    """How many events may come again if a process that commits contiguous prefixes ends.

    Args:
        life: What the process has handled.
        positions: Partition and offset of each event.
        until: The time of the last commit that must have happened.
    """
    begun: dict[tuple[int, int], float] = {}
    for record in life.records:
        if record.event in positions:
            place = positions[record.event]
            if record.kind is Kind.STARTED:
                begun.setdefault(place, float("inf"))
            elif record.kind is Kind.FINISHED:
                begun[place] = record.time
    count = 0
    for partition in {partition for partition, _ in begun}:
        offsets = sorted(offset for number, offset in begun if number == partition)
        first_open = next((one for one in offsets if begun[partition, one] > until), offsets[-1] + 1)
        count += sum(one >= first_open for one in offsets)
    return count
