"""What probes are told of dispatchers, decided from their `Health`. No loop, socket or clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from dispytch._runtime.health import Health

__all__ = ["POLL_TIMEOUT", "Answer", "Report", "Source", "liveness", "readiness"]

POLL_TIMEOUT = 60.0
"""Seconds without a poll after which a consumer that could poll is taken to be stuck, unless one says otherwise."""


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a probe.

    Attributes:
        reasons: What is wrong; empty if all is well.
        details: What else there is to tell, as it goes into the JSON of an answer.
    """

    reasons: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """What the body of an answer holds."""
        return {"status": "ok" if self.ok else "unavailable", "reasons": list(self.reasons), **self.details}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sends back."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Whom a server asks."""

    async def live(self) -> Report:
        """Whether the process works; if not, it has to be started again."""
        ...

    async def ready(self) -> Report:
        """Whether events are being handled."""
        ...

    async def metrics(self) -> bytes | None:
        """The page of metrics, in Prometheus' text format; ``None`` if there is none."""
        ...


def liveness(healths: Sequence[Health], poll_timeout: float) -> Report:
    """Whether the consumers of dispatchers poll. It never depends on a broker.

    Args:
        poll_timeout: Seconds without a poll after which a consumer that could poll is taken to be stuck.
    """
    reasons = [
        f"{consumer.name} has not polled for {consumer.polled_ago:.0f} s"
        for health in healths
        if health.state == "running"  # whoever drains asks for nothing more
        for consumer in health.consumers
        if consumer.connected and not consumer.is_full and (consumer.polled_ago or 0.0) > poll_timeout
    ]
    return Report(reasons, {"dispatchers": [asdict(health) for health in healths]})


def readiness(healths: Sequence[Health]) -> Report:
    """Whether all dispatchers run, connected, with their share of partitions where there are any."""
    reasons: list[str] = []
    for number, health in enumerate(healths, 1):
        name = "the dispatcher" if len(healths) == 1 else f"dispatcher {number}"
        if health.state != "running":
            reasons.append(f"{name} is {'not started' if health.state == 'stopped' else health.state}")
            continue
        for consumer in health.consumers:
            if not consumer.connected:
                reasons.append(f"{consumer.name} is not connected")
            elif not consumer.is_receiving:
                reasons.append(f"{consumer.name} has no partitions assigned yet")
    return Report(reasons, {"dispatchers": [asdict(health) for health in healths]})
