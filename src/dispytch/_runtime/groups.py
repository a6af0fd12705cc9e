"""Handlers grouped by topic and event type, as Dispytch had them from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dispytch._core.handlers import Handler, check_tags, make_handler, refuse_bare
from dispytch._core.params import callable_name, caller_locals
from dispytch.abc import Middleware
from dispytch.errors import RegistrationError
from dispytch.middleware.retry import FixedDelay, Retry

__all__ = ["HandlerGroup"]

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


class HandlerGroup:
    """Handlers of one topic or event type; a dispatcher takes them with ``add_handler_group``.

    Args:
        default_topic: The topic of handlers that name none.
        default_event: The event type of handlers that name none.
        tags: How documents group its handlers.
    """

    def __init__(
        self, default_topic: str | None = None, default_event: str | None = None, *, tags: Sequence[str] = ()
    ) -> None:
        self.default_topic: str | None = default_topic
        self.default_event: str | None = default_event
        self.tags: tuple[str, ...] = check_tags(tags, type(self).__name__)
        self.handlers: list[Handler] = []

    def handler(
        self,
        topic: str | None = None,
        event: str | None = None,
        *,
        retries: int = 0,
        retry_on: Sequence[type[Exception]] | None = None,
        retry_interval: float = 1.25,
    ) -> Callable[[HandlerT], HandlerT]:
        """Registers a function as a handler; the function itself stays as it is.

        Args:
            topic: A topic or pattern; the group's by default.
            event: The event type; the group's by default, any if it has none.
            retries: How often a failed handler is tried again, before the failure counts as one.
            retry_on: The exceptions to try again on; by default all.
            retry_interval: Seconds between the tries.

        Raises:
            RegistrationError: the handler cannot be called as it is declared, or has no topic.
        """
        refuse_bare(topic)
        frame = caller_locals(1)

        def register(func: HandlerT) -> HandlerT:
            chosen = self.default_topic if topic is None else topic
            if chosen is None:
                raise RegistrationError(
                    f"handler {callable_name(func)} has no topic; give topic= here or default_topic= to the group"
                )
            own: list[Middleware] = [Retry(FixedDelay(retries, retry_on, retry_interval))] if retries else []
            self.handlers.append(
                make_handler(
                    func,
                    frame,
                    None,
                    ...,
                    topic=chosen,
                    event=self.default_event if event is None else event,
                    consumer=None,
                    outer=(),
                    own=own,
                    ack_policy=None,
                    dead_letter=...,
                    concurrency=None,
                    tags=self.tags,
                )
            )
            return func

        return register
