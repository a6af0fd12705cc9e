"""The command as a process, and programs for it to run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.support import PATIENCE, blocking_until
from tests.test_examples import ROOT

LOOPS = ["asyncio", "uvloop", "trio"]

APP = """
import os, threading, time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from dispytch import EventBase, EventDispatcher, EventEmitter
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

broker = MemoryBroker()
here = Path(os.environ["HERE"])


class Job(EventBase):
    __topic__ = "jobs"
    how: str


def note(text: str) -> None:
    with open(here / "log", "a") as log:
        log.write(text + "\\n")


@asynccontextmanager
async def lifespan(dispatcher):
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Job(how=os.environ.get("JOB", "none")))
    note("entered")
    try:
        yield
    finally:
        note("left")


dispatcher = EventDispatcher(MemoryConsumer(broker), on_lifespan=lifespan)


@dispatcher.handler(Job)
async def work(job: Job) -> None:
    note(f"began {job.how} {os.getpid()}")
    while job.how == "wait" and not (here / "go").exists():
        await anyio.sleep(0.005)
    note("done")


@dispatcher.handler(Job)
def block(job: Job) -> None:
    while job.how == "block":
        note("blocks")
        time.sleep(3600)


def make() -> EventDispatcher:
    return dispatcher


number = 3
"""
"""It emits one event to itself, whose handling lasts as long as the test says."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dispytch", *arguments]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


class Running:
    """A program that runs, and what it has said so far."""

    def __init__(self, folder: Path, program: Sequence[str], variables: dict[str, str]) -> None:
        self.folder = folder
        self.said = ""
        self.process = subprocess.Popen(
            program,
            cwd=folder,
            env=environment(HERE=str(folder), **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    @property
    def log(self) -> list[str]:
        """What the program has noted."""
        file = self.folder / "log"
        return file.read_text().splitlines() if file.exists() else []

    def until_said(self, text: str, times: int = 1) -> None:
        try:
            blocking_until(lambda: self.said.count(text) >= times or self.process.poll() is not None)
        except AssertionError:
            raise AssertionError(f"waited in vain for {text!r}:\n{self.said}") from None
        self._reader.join(0 if self.process.poll() is None else PATIENCE)
        assert self.said.count(text) >= times, self.said

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def code(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def running(folder: Path, *arguments: str, **variables: str) -> Iterator[Running]:
    """Runs the command in a folder; kills what is left of it at the end."""
    with program(folder, command(*arguments), **variables) as one:
        yield one


@contextmanager
def program(folder: Path, arguments: Sequence[str], **variables: str) -> Iterator[Running]:
    """The same for any program."""
    one = Running(folder, arguments, variables)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            one.process.send_signal(signal.SIGTERM)
            try:
                one.process.wait(10)
            except subprocess.TimeoutExpired:
                one.process.kill()
        one.code()
        assert one.process.stdout is not None
        one.process.stdout.close()


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(HERE=str(folder), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def read_all(url: str, topic: str) -> list[dict[str, Any]]:
    """All that a stream of Redis holds."""
    client: Any = redis.Redis.from_url(url.replace("redis+stream://", "redis://", 1))
    return [{"body": json.loads(fields[b"data"])} for _, fields in client.xrange(topic)]
