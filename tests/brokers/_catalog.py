"""The brokers that there are, by name."""

from __future__ import annotations

from collections.abc import Mapping

from ._kafka import Kafka
from ._rabbitmq import RabbitMQ
from ._servers import Redis, Server

SERVERS: Mapping[str, Server] = {server.name: server for server in (Redis(), Kafka(), RabbitMQ())}
