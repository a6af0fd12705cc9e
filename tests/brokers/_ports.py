"""Ports for servers."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

from ._servers import LOOPBACK

__all__ = ["free_port", "free_ports"]

_FIRST, _END = 20_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A port that the system gives no client of its own accord: nobody takes it while its server is down.

    Clients that try to connect meanwhile would, sooner or later: one whose own port happens to be that very one
    connects to itself. Nor is it given to anybody else who asks here, in this process or in another one, until this
    process ends: between the choice of a port and the start of its server there may be many seconds.
    """
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Several, each another one."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(_FIRST, _END)
        if port in _given or not _reserve(port):
            continue
        _given.add(port)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
    return found


def _reserve(port: int) -> bool:
    """Keeps other processes from being given it; the system forgets that when this one ends."""
    try:
        fcntl.lockf(_reservations(os.getpid()), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _reservations(pid: int) -> int:
    """A file whose bytes stand for ports, for a process: it stays open, since closing it gives up all of them."""
    path = Path(tempfile.gettempdir(), f"dispytch-tests-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
