"""The clients by themselves, in the fastest way that each documents: the floor that the library is measured against.

They validate the same bytes with the same model, acknowledge in batches, send prepared bytes and wait for all
confirmations.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import ClassVar, Protocol

import anyio
import anyio.to_thread

from benchmarks.plans import Message, Plan, take_steps, take_steps_async


class Client(Protocol):
    """One transport's client.

    Attributes:
        consuming: How it receives, for people who compare.
        emitting: How it sends.
    """

    consuming: ClassVar[str]
    emitting: ClassVar[str]

    def __init__(self, url: str, topic: str) -> None: ...

    def one(self, message: Message) -> None:
        """Sends one message, and waits for its confirmation."""

    def many(self, messages: Sequence[Message]) -> None:
        """Sends messages pipelined, and waits for all confirmations."""

    def receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        """Receives, validates and acknowledges until `stop`, in a thread of its own."""

    def stop(self) -> None:
        """Ends `receive`, from another thread."""

    def close(self) -> None: ...


_MODULES = {"memory": "memory", "kafka": "kafka", "rabbitmq": "rabbitmq", "streams": "redis", "pubsub": "redis"}


def client(transport: str) -> type[Client]:
    """The client of a transport."""
    found: type[Client] = getattr(import_module(f"benchmarks.raw.{_MODULES[transport]}"), transport.capitalize())
    return found


def settings(transport: str, measure: str) -> str:
    chosen = client(transport)
    return chosen.emitting if measure.startswith("emit") else chosen.consuming


def run(plan: Plan, *, in_threads: bool = False) -> None:
    """Takes a plan's steps; ``in_threads`` calls the client from asyncio, through a worker thread for each call."""
    raw, messages = client(plan.transport)(plan.url, plan.topic), plan.messages
    if plan.prefill:
        raw.many(messages)
    ready = threading.Event()

    def receive(group: str) -> None:
        try:
            raw.receive(group, plan.took, ready.set)
        except BaseException as error:
            plan.errors.append(error)
            plan.done.set()
            ready.set()

    receiver = None if plan.group is None else threading.Thread(target=receive, args=(plan.group,))
    if receiver is not None:
        receiver.start()
        ready.wait()
    try:
        if in_threads:
            anyio.run(_from_asyncio, plan, raw)
        else:
            take_steps(
                plan,
                lambda number: raw.one(messages[number]),
                lambda numbers: raw.many(messages[numbers.start : numbers.stop]),
            )
    finally:
        if receiver is not None:
            raw.stop()
            receiver.join()
        raw.close()
    plan.check()


async def _from_asyncio(plan: Plan, raw: Client) -> None:
    messages, in_thread = plan.messages, anyio.to_thread.run_sync
    await take_steps_async(
        plan,
        lambda number: in_thread(raw.one, messages[number]),
        lambda numbers: in_thread(partial(raw.many, messages[numbers.start : numbers.stop])),
    )
