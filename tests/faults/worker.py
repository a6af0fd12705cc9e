"""A process that handles events until a signal comes, and notes in a ledger what it does.

By hand, with a `Task` in JSON::

    python -m tests.faults.worker TASK
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import anyio

from dispytch import Event, EventDispatcher
from dispytch.ack import AckBeforeProcessing
from tests.faults.ledger import Kind, Ledger
from tests.faults.mutations import mutate
from tests.faults.task import HEAD, Job, Task


def dispatcher_for(task: Task) -> EventDispatcher:
    """A dispatcher with the task's options, and no handlers."""
    return EventDispatcher(
        task.consumer(),
        concurrency=task.concurrency,
        default_ack_policy=AckBeforeProcessing() if task.ack_first else None,
        max_deliveries=task.max_deliveries,
        drain_timeout=task.drain_timeout,
    )


def fails(task: Task, event: str) -> bool:
    """Whether the handler always raises on this event."""
    return random.Random(f"{task.seed} fails {event}").random() < task.failing


def handle_with(dispatcher: EventDispatcher, task: Task, ledger: Ledger) -> None:
    """Registers the handler."""

    @dispatcher.handler(topic=task.topic)
    async def handle(event: Event[Job]) -> None:
        job = event.body
        ledger.note(Kind.STARTED, job.name, job.key, job.sequence)
        try:
            if job.key == HEAD and task.blocks:
                time.sleep(task.head)  # noqa: ASYNC251 - a handler that is badly written
            elif job.key == HEAD:
                await anyio.sleep(task.head)
            else:
                await anyio.sleep(random.Random(f"{task.seed} {job.name}").uniform(task.shortest, task.longest))
            if fails(task, job.name):
                raise OSError("always")
        except BaseException:
            ledger.note(Kind.FAILED, job.name, job.key, job.sequence)
            raise
        ledger.note(Kind.FINISHED, job.name, job.key, job.sequence)


def work_at_word(task: Task, log: str, word: Connection) -> None:
    """What a child process does: the same, with its output in ``log``, once something comes through the pipe.

    It ends at once when that closes, so that no worker outlives its parent.
    """
    with open(log, "wb") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    try:
        word.recv_bytes()
    except EOFError:
        return
    threading.Thread(target=_end_with_parent, args=[word], daemon=True).start()
    work(task)


def _end_with_parent(word: Connection) -> None:
    with suppress(EOFError):
        word.recv_bytes()
    os._exit(3)


def work(task: Task) -> None:
    """Handles events until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if task.mutation is not None:
        mutate(task.mutation)
    ledger = Ledger(Path(task.folder), "worker")
    backend: Literal["asyncio", "trio"] = "trio" if task.loop == "trio" else "asyncio"
    if task.stay:
        options = {"use_uvloop": True} if task.loop == "uvloop" else {}
        anyio.run(_come_and_go, task, ledger, backend=backend, backend_options=options)
    else:
        dispatcher = dispatcher_for(task)
        handle_with(dispatcher, task, ledger)
        dispatcher.run(backend, use_uvloop=task.loop == "uvloop")


async def _come_and_go(task: Task, ledger: Ledger) -> None:
    """Leaves the group and joins it again, until a signal comes."""
    stopping = anyio.Event()

    async def watch() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                stopping.set()
                return

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        while not stopping.is_set():
            dispatcher = dispatcher_for(task)
            handle_with(dispatcher, task, ledger)
            async with dispatcher.lifespan():
                with anyio.move_on_after(task.stay):
                    await stopping.wait()


if __name__ == "__main__":
    work(Task.from_json(sys.argv[1]))
