"""Ports for servers."""

from __future__ import annotations

import random
import socket

from ._servers import LOOPBACK

__all__ = ["free_port", "free_ports"]

_FIRST, _END = 20_000, 32_000


def free_port() -> int:
    """A port that the system gives no client of its own accord: nobody takes it while its server is down.

    Clients that try to connect meanwhile would, sooner or later: one whose own port happens to be that very one
    connects to itself.
    """
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Several, each another one."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(_FIRST, _END)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
