"""``memory://name``."""

from __future__ import annotations

from dispytch.errors import ConfigurationError
from dispytch.memory.broker import MemoryBroker
from dispytch.memory.clients import MemoryConsumer, MemoryProducer

__all__ = ["consumer_from_url", "observer_from_url", "producer_from_url"]


def _broker(url: str) -> MemoryBroker:
    name = url.removeprefix("memory://")
    if not name or "/" in name or "?" in name:
        raise ConfigurationError("a memory URL is memory://name, where the name tells brokers of this process apart")
    return MemoryBroker.named(name)


def producer_from_url(url: str) -> MemoryProducer:
    """The producer of a named broker."""
    return MemoryProducer(_broker(url))


def consumer_from_url(url: str, group_id: str) -> MemoryConsumer:
    """A consumer of a named broker."""
    return MemoryConsumer(_broker(url), group_id)


def observer_from_url(url: str, name: str, from_start: bool) -> MemoryConsumer:
    """A consumer of a named broker, in a group of its own."""
    return MemoryConsumer(_broker(url), name, start_from="earliest" if from_start else "latest")
