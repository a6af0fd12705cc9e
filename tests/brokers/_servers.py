"""What there is to know about each broker: one class each, and one entry in ``SERVERS``."""

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
    start_seconds: ClassVar[float] = 15.0
    stop_seconds: ClassVar[float] = 10.0

    def find(self) -> str | None:
        """The path of the program, if it is installed."""
        return shutil.which(self.program)

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

    def url(self, port: int) -> str:
        return f"redis://{LOOPBACK}:{port}/0"

    def arguments(self, folder: Path, port: int) -> Sequence[str]:
        nothing_is_persisted = ("--save", "", "--appendonly", "no")
        return (
            "--bind",
            LOOPBACK,
            "--port",
            str(port),
            "--dir",
            str(folder),
            "--daemonize",
            "no",
            *nothing_is_persisted,
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
