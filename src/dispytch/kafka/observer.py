"""A consumer of Kafka that looks on, and leaves nothing behind."""

from __future__ import annotations

import logging
from typing import Any

import anyio.to_thread

from dispytch.kafka.consumer import KafkaConsumer
from dispytch.kafka.settings import Settings

__all__ = ["KafkaObserver"]

logger: logging.Logger = logging.getLogger("dispytch")

_TIMEOUT = 5.0


class KafkaObserver(KafkaConsumer):
    """Receives in a group of its own, which it deletes when it stops. It creates no topics.

    Args:
        kafka: The addresses or the URL; see `KafkaProducer`.
        group_id: The group, which nobody else may have.
        from_start: Whether it begins with what the topics hold, or with what comes next.
    """

    def __init__(self, kafka: str, group_id: str, from_start: bool) -> None:
        super().__init__(kafka, group_id=group_id, start_from="earliest" if from_start else "latest", declare=False)

    async def stop(self) -> None:
        was_member = self._reader is not None
        await super().stop()
        if was_member:
            await anyio.to_thread.run_sync(_delete, self._settings, self.group_id, abandon_on_cancel=True)


def _delete(settings: Settings, group_id: str) -> None:
    admin: Any = settings.for_connecting().make("AdminClient", {})
    try:
        (future,) = admin.delete_consumer_groups([group_id], request_timeout=_TIMEOUT).values()
        future.result(_TIMEOUT)
    except Exception as error:  # it may not be allowed to; the broker forgets groups without members after a while
        logger.debug("The group %s was not deleted: %s", group_id, settings.without_secrets(str(error)))
