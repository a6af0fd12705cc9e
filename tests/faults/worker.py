"""A process that handles events until a signal comes, and notes in a ledger what it does.

::

    python -m tests.faults.worker TASK

``TASK`` is a `Task` in JSON. It starts at the first byte on its standard input, so that a worker can be made in
advance, and ends at once when that closes, so that none outlives its parent.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
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


def _end_with_parent() -> None:
    if not os.read(0, 1):
        os._exit(3)


def main() -> None:
    task = Task.from_json(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if task.mutation is not None:
        mutate(task.mutation)
    ledger = Ledger(Path(task.folder), "worker")
    dispatcher = dispatcher_for(task)
    handle_with(dispatcher, task, ledger)
    if not os.read(0, 1):
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    backend: Literal["asyncio", "trio"] = "trio" if task.loop == "trio" else "asyncio"
    if task.stay:
        options = {"use_uvloop": True} if task.loop == "uvloop" else {}
        anyio.run(_come_and_go, task, ledger, backend=backend, backend_options=options)
    else:
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
    main()
