"""Real brokers on loopback for the tests, without Docker: see ``python -m tests.brokers --help``.

In Python::

    with brokers.running("redis") as urls:
        connect(urls["redis"])
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager

from ._catalog import SERVERS
from ._errors import BrokersError, MissingServerError
from ._install import find_or_install, find_or_install_tool
from ._kafka import KAFKA_USERS, Kafka
from ._manager import Manager, Running, server_named, started
from ._ports import free_port
from ._rabbitmq import RabbitMQ, server_properties
from ._servers import Redis
from ._tools import TOOLS, Tool

__all__ = [
    "KAFKA_USERS",
    "SERVERS",
    "TOOLS",
    "BrokersError",
    "Kafka",
    "Manager",
    "MissingServerError",
    "RabbitMQ",
    "Redis",
    "Running",
    "Tool",
    "free_port",
    "kafka_version",
    "program",
    "running",
    "server_properties",
    "started",
    "tool",
]


def running(*names: str, install: bool = False) -> AbstractContextManager[dict[str, str]]:
    """The addresses of running brokers by name; those that do not run yet are started for this context only."""
    return Manager().running(*names, install=install)


def program(name: str, *, install: bool = False) -> str:
    """The path of the broker's server program."""
    return find_or_install(server_named(name), install=install)


def tool(program: str, *, install: bool = False) -> str:
    """The path of one of the `TOOLS`."""
    return find_or_install_tool(TOOLS[program], install=install)


def kafka_version(url: str) -> str | None:
    """What a Kafka that was started here says in its log; clients cannot ask for it."""
    for record in Manager().folder.rglob("broker.json"):
        if json.loads(record.read_text())["url"] == url:
            return Kafka().version(record.parent)
    return None
