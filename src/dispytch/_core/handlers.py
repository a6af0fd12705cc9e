"""Registration: handlers, and the routers and groups that collect them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeVar

from dispytch._core.ack import AckPolicy
from dispytch._core.context import Middleware
from dispytch._core.events import EventBase, declaration
from dispytch._core.params import callable_name, caller_locals
from dispytch._core.patterns import Pattern, placeholders
from dispytch._core.plan import Plan, make_plan
from dispytch._core.routes import EventRoute, EventSubscription, PortableRoute
from dispytch.errors import ConfigurationError, RegistrationError

__all__ = [
    "Batching",
    "DeadLetterTarget",
    "Handler",
    "Registry",
    "Router",
    "check_middlewares",
    "check_params",
    "check_tags",
    "make_handler",
    "refuse_bare",
    "refuse_single",
]

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
DeadLetterTarget = str | EventRoute | EllipsisType | None
"""A topic or route; ``...`` for the default one; ``None`` to log and acknowledge."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How a handler of batches wants them.

    Attributes:
        size: How many events at most.
        wait: For how many seconds at most the first one of a batch waits for others.
    """

    size: int
    wait: float


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler as it was registered.

    ``outer`` is the middleware of the router that it came by, ``own`` that of its own decorator, ``tags`` are the
    router's.
    """

    func: Callable[..., Any]
    name: str
    plan: Plan
    frame: Mapping[str, Any]
    subscription: EventSubscription | EventRoute
    event: str | None
    consumer: Any
    outer: tuple[Middleware, ...]
    own: tuple[Middleware, ...]
    ack_policy: AckPolicy | None
    dead_letter: DeadLetterTarget
    concurrency: int | None
    batching: Batching | None
    tags: tuple[str, ...] = ()


class Registry:
    """What has a ``handler`` decorator: routers and dispatchers."""

    # What separates the segments of patterns: a router does not know it before a dispatcher takes it.
    _pattern_delimiter: str | EllipsisType | None = ...

    tags: tuple[str, ...] = ()
    """How documents group its handlers."""

    def __init__(self, middlewares: Sequence[Middleware] = ()) -> None:
        self.middlewares: tuple[Middleware, ...] = check_middlewares(middlewares, type(self).__name__)
        self.handlers: list[Handler] = []

    def handler(
        self,
        subscription_or_event: EventSubscription | type[EventBase] | None = None,
        *,
        topic: str | None = None,
        event: str | None = None,
        consumer: Any = None,
        middlewares: Sequence[Middleware] = (),
        ack_policy: AckPolicy | None = None,
        dead_letter: DeadLetterTarget = ...,
        concurrency: int | None = None,
        batch: int | None = None,
        batch_wait: float | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Registers a function as a handler; the function itself stays as it is.

        Args:
            subscription_or_event: What it handles: a subscription, or an event class, whose route and type are taken.
            topic: Instead of a subscription, a topic or pattern on every consumer of the dispatcher.
            event: The event type that it handles; with ``None`` any.
            consumer: The one consumer that it listens to; with ``None`` all that can serve the subscription.
            middlewares: Middleware around this handler alone, the outermost first.
            ack_policy: When its events are acknowledged; with ``None`` the dispatcher's policy.
            dead_letter: Where its failures go: a topic or a route of the transport, ``None`` to log and acknowledge;
                by default what the dispatcher says.
            concurrency: How many events it may handle at once, within the dispatcher's own limit; how many batches, one
                by default.
            batch: Hands it lists of up to so many events, ``list[Event[...]]``.
            batch_wait: For how many seconds at most the first event of a batch waits for others; 1 if not given.

        Raises:
            RegistrationError: the handler cannot be called as it is declared.
        """
        refuse_bare(subscription_or_event)
        frame = caller_locals(1)

        def register(func: HandlerT) -> HandlerT:
            if self._is_running():
                raise RegistrationError(
                    f"handler {callable_name(func)} comes too late: the dispatcher is started; register it before"
                )
            self.handlers.append(
                make_handler(
                    func,
                    frame,
                    subscription_or_event,
                    self._pattern_delimiter,
                    topic=topic,
                    event=event,
                    consumer=consumer,
                    outer=self._outer(),
                    own=middlewares,
                    ack_policy=ack_policy,
                    dead_letter=dead_letter,
                    concurrency=concurrency,
                    batch=batch,
                    batch_wait=batch_wait,
                    tags=self.tags,
                )
            )
            return func

        return register

    def _is_running(self) -> bool:
        return False

    def _outer(self) -> tuple[Middleware, ...]:
        return self.middlewares


class Router(Registry):
    """A collection of handlers that a dispatcher takes with ``add_router``.

    Args:
        middlewares: Middleware around each of its handlers, the outermost first.
        tags: How documents group its handlers, such as ``["billing"]``.

    Raises:
        RegistrationError: an argument is no list of what it should be.
    """

    def __init__(self, middlewares: Sequence[Middleware] = (), *, tags: Sequence[str] = ()) -> None:
        super().__init__(middlewares)
        self.tags: tuple[str, ...] = check_tags(tags, type(self).__name__)


def refuse_bare(target: object) -> None:
    """Refuses ``@registry.handler`` without parentheses, which would register nothing."""
    if callable(target) and not (isinstance(target, type) and issubclass(target, EventBase)):
        raise RegistrationError(
            f"{callable_name(target)} is neither a subscription nor an event class; a decorator of a handler is "
            "written with parentheses: @router.handler(OrderPlaced), or @router.handler(topic='orders')"
        )


def check_middlewares(middlewares: Sequence[Middleware], owner: str) -> tuple[Middleware, ...]:
    if isinstance(middlewares, Middleware):
        name = type(middlewares).__name__
        raise RegistrationError(f"{owner}: middlewares takes a list, also of one: middlewares=[{name}(...)]")
    for item in middlewares:
        if not isinstance(item, Middleware):
            hint = "; write it with parentheses" if isinstance(item, type) else ""
            raise RegistrationError(f"{owner}: {item!r} is not a middleware instance{hint}")
    return tuple(middlewares)


def check_tags(tags: Sequence[str], owner: str) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise RegistrationError(f"{owner}: tags takes a list, also of one: tags=[{tags!r}]")
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise RegistrationError(f"{owner}: {tag!r} is no tag; give non-empty strings")
    return tuple(dict.fromkeys(tags))


def make_handler(
    func: Callable[..., Any],
    frame: Mapping[str, Any],
    target: EventSubscription | type[EventBase] | None,
    delimiter: str | EllipsisType | None,
    *,
    topic: str | None,
    event: str | None,
    consumer: Any,
    outer: tuple[Middleware, ...],
    own: Sequence[Middleware],
    ack_policy: AckPolicy | None,
    dead_letter: DeadLetterTarget,
    concurrency: int | None,
    batch: int | None = None,
    batch_wait: float | None = None,
    tags: tuple[str, ...] = (),
) -> Handler:
    if not callable(func):
        raise RegistrationError(f"a handler must be callable, not {type(func).__name__}")
    name = callable_name(func)
    owner = f"handler {name}"
    subscription, event_type = _subscription(target, topic, event, owner)
    batching = _batching(batch, batch_wait, owner)
    plan = make_plan(func, name, frame, is_batch=batching is not None)
    _check_pattern(plan, subscription, delimiter, owner)
    own = check_middlewares(own, owner)
    if batching is not None:
        refuse_single((*outer, *own), owner)
    if not plan.is_async:
        for item in own:
            if item.cancels:
                raise RegistrationError(
                    f"{owner} is a plain function, which runs in a thread and cannot be cancelled, so "
                    f"{type(item).__name__} cannot work on it; make it async, or use time-outs of the calls inside it"
                )
    if ack_policy is not None and not isinstance(ack_policy, AckPolicy):
        raise RegistrationError(
            f"{owner}: ack_policy must be a policy such as AckAfterProcessing(), not {ack_policy!r}"
        )
    if concurrency is not None and not (isinstance(concurrency, int) and concurrency >= 1):
        raise RegistrationError(f"{owner}: concurrency must be at least 1, not {concurrency!r}")
    return Handler(
        func,
        name,
        plan,
        frame,
        subscription,
        event_type,
        consumer,
        outer,
        own,
        ack_policy,
        dead_letter,
        concurrency,
        batching,
        tags,
    )


def _batching(batch: int | None, batch_wait: float | None, owner: str) -> Batching | None:
    if batch is None:
        if batch_wait is not None:
            raise RegistrationError(f"{owner}: batch_wait= is for handlers of batches; give batch= too")
        return None
    if batch_wait is None:
        batch_wait = 1.0
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise RegistrationError(f"{owner}: batch= is the most events of one call, at least 1, not {batch!r}")
    if not (isinstance(batch_wait, int | float) and 0 <= batch_wait < math.inf):
        raise RegistrationError(f"{owner}: batch_wait= is in seconds, from 0 on, not {batch_wait!r}")
    return Batching(batch, batch_wait)


def refuse_single(middlewares: Sequence[Middleware], owner: str) -> None:
    """Refuses middleware that decides on single events, for a handler of batches."""
    for item in middlewares:
        if not item.takes_batches:
            raise RegistrationError(
                f"{owner} gets batches, and {type(item).__name__} decides on single events; do it inside the handler, "
                "or leave batch= out"
            )


def _subscription(
    target: EventSubscription | type[EventBase] | None, topic: str | None, event: str | None, owner: str
) -> tuple[EventSubscription | EventRoute, str | None]:
    if topic is not None and not isinstance(topic, str):
        raise RegistrationError(
            f"{owner}: topic= is a string, not {topic!r}; an event class or a subscription is given without topic="
        )
    if event is not None and not isinstance(event, str):
        raise RegistrationError(f"{owner}: event= is the name of a type, a string, not {event!r}")
    if target is not None and topic is not None:
        raise RegistrationError(f"{owner}: give a subscription or topic=, not both")
    if isinstance(target, type) and issubclass(target, EventBase):
        declared = declaration(target)
        if declared.route is None:
            raise RegistrationError(
                f"{owner}: event class {target.__qualname__} has no __topic__ or __route__ to listen to"
            )
        if isinstance(declared.route, PortableRoute):
            return EventSubscription(declared.route.topic), event or declared.type
        return declared.route, event or declared.type
    if isinstance(target, EventSubscription):
        return target, event or target.event
    if target is not None:
        raise RegistrationError(
            f"{owner}: {target!r} is neither a subscription nor an event class; for a topic write topic={target!r}"
            if isinstance(target, str)
            else f"{owner}: {target!r} is neither a subscription nor an event class"
        )
    if topic is None:
        raise RegistrationError(f"{owner}: say what it handles: a subscription, an event class, or topic=")
    return EventSubscription(topic), event


def _check_pattern(
    plan: Plan, subscription: EventSubscription | EventRoute, delimiter: str | EllipsisType | None, owner: str
) -> None:
    text = subscription.pattern if isinstance(subscription, EventSubscription) else subscription.address
    if isinstance(subscription, EventRoute) and subscription.delimiter is not None:
        delimiter = subscription.delimiter
    try:
        names = placeholders(text) if isinstance(delimiter, EllipsisType) else Pattern.parse(text, delimiter).names
    except ConfigurationError as error:
        raise RegistrationError(f"{owner}: {error}") from None
    check_params(plan, text, names, owner)


def check_params(plan: Plan, text: str, names: Sequence[str], owner: str) -> None:
    """Raises RegistrationError if a parameter wants a segment that the pattern ``text`` does not capture."""
    for _, need in plan.params:
        if need.name not in names:
            known = ", ".join(names) or "nothing"
            raise RegistrationError(
                f"{owner}: parameter {need.parameter!r} wants the segment {need.name!r}, but its pattern {text!r} "
                f"captures {known}; write {{{need.name}}} in the pattern"
            )
