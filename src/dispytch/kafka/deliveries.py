"""From a message of the client to a delivery."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from dispytch.abc import Delivery
from dispytch.kafka.partitions import Partition

__all__ = ["delivery_of"]

logger: logging.Logger = logging.getLogger("dispytch")

_EXHAUSTED: Iterator[None] = iter(())


def delivery_of(message: Any, partition: Partition, offset: int) -> Delivery:
    """The delivery of a message of an assigned partition."""
    number = partition.key[1]
    unreadable: str | None = None
    headers: Any = ()
    try:
        # Once only: after an error the client crashes at the second time.
        found = message.headers()
        next(_EXHAUSTED, None)  # it may leave an error pending, beside a result that must not be touched
        headers = found or ()
    except Exception:
        unreadable = "the name of one of its headers is not UTF-8"
        logger.error(
            "A message from %s (%d:%d) has a header whose name is not UTF-8; its headers cannot be told.",
            partition.key[0],
            number,
            offset,
        )
    for _, value in headers:
        if value is None:
            headers = [(name, b"" if found is None else found) for name, found in headers]
            break
    kind, timestamp = message.timestamp()
    return Delivery(
        partition.key[0],
        message.value(),
        headers,
        timestamp if kind else int(time.time() * 1000),
        message.key(),
        f"{number}:{offset}",
        number,
        (partition, offset),
        unreadable=unreadable,
    )
