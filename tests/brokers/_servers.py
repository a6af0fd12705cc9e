"""What there is to know about each broker: one class each, and one entry in ``SERVERS`` (``_catalog.py``)."""

from __future__ import annotations

import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

LOOPBACK = "127.0.0.1"


class Server(ABC):
    """How to start one kind of broker as a plain process, and how to tell that it answers."""

    name: ClassVar[str]
    program: ClassVar[str]
    """The command to look for on PATH."""
    debian_package: ClassVar[str]
    """What ``apt-get install`` calls it."""
    start_seconds: ClassVar[float] = 60.0
    """After which it will not answer any more, however busy the machine is."""
    stop_seconds: ClassVar[float] = 30.0
    """After which it is killed."""

    def find(self) -> str | None:
        """The path of the program, if it is installed."""
        return shutil.which(self.program)

    def missing(self) -> str | None:
        """What there is not, but would have to be, in words; ``None`` if the server can be started."""
        return None if self.find() is not None else f"{self.program} is not on PATH"

    def missing_packages(self) -> Sequence[str]:
        """What ``apt-get`` is to install."""
        return () if self.find() is not None else (self.debian_package,)

    def fetch(self) -> None:  # noqa: B027 - most have nothing to fetch
        """Get what no package holds, once the packages are installed."""

    def prepare(self, folder: Path, port: int) -> None:  # noqa: B027 - most have nothing to prepare
        """Write to ``folder`` what must be there before the start."""

    @abstractmethod
    def url(self, port: int) -> str:
        """The address that clients are given."""

    @abstractmethod
    def arguments(self, folder: Path, port: int) -> Sequence[str]:
        """What follows the program on the command line: stay in the foreground, bind loopback, keep to ``folder``."""

    def environment(self, folder: Path, port: int) -> Mapping[str, str]:
        """What the program needs in its environment besides that of the caller."""
        return {}

    @abstractmethod
    def answers(self, port: int, pid: int | None) -> bool:
        """Whether the server is ready; with a ``pid``, whether it is that process which answers.

        Called again and again until it is true. An ``OSError`` counts as not ready.
        """


class Redis(Server):
    name = "redis"
    program = "redis-server"
    debian_package = "redis-server"

    def __init__(self, *, persistent: bool = False) -> None:
        """Keeps what it has across a restart, and a kill, only if ``persistent``: each write is synced at once."""
        self._persistent = persistent

    def url(self, port: int) -> str:
        return f"redis://{LOOPBACK}:{port}/0"

    def arguments(self, folder: Path, port: int) -> Sequence[str]:
        log = ("--appendonly", "yes", "--appendfsync", "always") if self._persistent else ("--appendonly", "no")
        return (
            "--bind",
            LOOPBACK,
            "--port",
            str(port),
            "--dir",
            str(folder),
            "--daemonize",
            "no",
            "--save",
            "",
            *log,
        )

    def answers(self, port: int, pid: int | None) -> bool:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection, connection.makefile("rwb") as stream:
            stream.write(b"PING\r\n")
            stream.flush()
            if stream.readline() != b"+PONG\r\n":
                return False
            if pid is None:
                return True
            # A second server may have taken the port between our choosing it and the start of ours.
            stream.write(b"INFO server\r\n")
            stream.flush()
            size = int(stream.readline().removeprefix(b"$"))
            return f"process_id:{pid}\r\n".encode() in stream.read(size)
