"""From registered handlers and consumers to what runs: bound handlers, matchers, subscriptions. All checks are here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from dispytch._core.ack import AckAfterProcessing, AckBeforeProcessing, AckPolicy, ManualAck
from dispytch._core.context import Middleware
from dispytch._core.deadletters import ALL_OF_GROUP, REPLAY_FOR
from dispytch._core.envelope import Envelope, Opened
from dispytch._core.handlers import Batching, DeadLetterTarget, Handler, check_params, refuse_single
from dispytch._core.lanes import Limit
from dispytch._core.params import BodyNeed
from dispytch._core.patterns import Matcher, Pattern
from dispytch._core.plan import Plan, make_app_plan, make_plan
from dispytch._runtime.app_scope import AppScope
from dispytch._runtime.invoke import Begin, Call, make_begin, make_call, wrap
from dispytch._runtime.threads import Threads
from dispytch.abc import Consumer, Delivery, Deserializer, EventRoute, EventSubscription, Subscription
from dispytch.errors import ConfigurationError, DeliveryError, RegistrationError

__all__ = ["Bound", "Match", "Options", "Route", "Wired", "wire"]

logger = logging.getLogger("dispytch")

_MOST_CACHED = 4096
Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Options:
    """What a dispatcher was told, as far as wiring needs it."""

    deserializer: Deserializer
    envelope: Envelope
    delimiter: str | None
    middlewares: tuple[Middleware, ...]
    ack_policy: AckPolicy | None
    ack_policies: Mapping[EventSubscription | EventRoute, AckPolicy]
    dead_letter: DeadLetterTarget
    overrides: Overrides


class Bound:
    """A handler on one consumer, ready to be called."""

    __slots__ = (
        "accepts_null",
        "ack_first",
        "batching",
        "begin",
        "call",
        "consumer",
        "dead_letter",
        "declared",
        "delimiter",
        "event",
        "handler",
        "identity",
        "is_manual",
        "key",
        "limits",
        "must_settle",
        "name",
        "needs",
        "pattern",
        "policy",
        "takes",
    )

    def __init__(
        self,
        handler: Handler,
        plan: Plan,
        pattern: Pattern,
        declared: EventSubscription | EventRoute,
        policy: AckPolicy,
        dead_letter: EventRoute | None,
        limit: Limit | None,
    ) -> None:
        self.handler: Handler = handler
        self.name: str = handler.name
        self.key: str = handler.name
        """Tells it from other handlers of its consumer, also from those of the same name."""
        self.identity: str = ""
        """Tells it from all other handlers: its consumer group, a slash, and its key."""
        self.consumer: Consumer
        self.event: str | None = handler.event
        self.pattern: Pattern = pattern
        self.delimiter: str | None = pattern.delimiter
        self.declared: EventSubscription | EventRoute = declared
        """The subscription in its transport's form."""
        self.takes: Callable[[Hashable], bool] = _any_scope if isinstance(declared, EventRoute) else declared.takes
        self.policy: AckPolicy = policy
        self.ack_first: bool = isinstance(policy, AckBeforeProcessing)
        self.is_manual: bool = isinstance(policy, ManualAck)
        self.batching: Batching | None = handler.batching
        self.needs: Sequence[BodyNeed] = [need for _, need in plan.bodies]
        """What of an event it takes."""
        self.dead_letter: EventRoute | None = dead_letter
        self.limits: tuple[Limit, ...] = () if limit is None else (limit,)
        self.accepts_null: bool = all(need.body.accepts_null for need in self.needs)
        self.call: Call
        self.begin: Begin
        self.must_settle: bool
        """A call that returns without a word of the handler's is a failure; around middleware that is known already."""


def _any_scope(scope: Hashable) -> bool:
    return True


Match = tuple[Bound, Mapping[str, str]]


class Route:
    """The handlers of one address and type, with what the address captured.

    Attributes:
        sole: The only one of them, if it takes single events.
        limits: Those of handlers that take single events; batches count towards theirs themselves.
        is_batched: All handlers of the address, whatever the type, take batches: its events wait for these in the order
            of the source, and for nothing before.
    """

    __slots__ = ("ack_first", "is_batched", "limits", "matches", "sole")

    def __init__(self, matches: Sequence[Match], is_batched: bool = False) -> None:
        self.matches: Sequence[Match] = matches
        self.sole: Match | None = matches[0] if len(matches) == 1 and matches[0][0].batching is None else None
        single = [bound for bound, _ in matches if bound.batching is None]
        self.limits: tuple[Limit, ...] = tuple(dict.fromkeys(limit for bound in single for limit in bound.limits))
        self.ack_first: bool = bool(matches) and matches[0][0].ack_first
        self.is_batched: bool = is_batched


class Wired:
    """One consumer with its handlers."""

    def __init__(
        self, consumer: Consumer, bound: Sequence[Bound], subscriptions: Sequence[Subscription], options: Options
    ) -> None:
        self.consumer: Consumer = consumer
        self.bound: Sequence[Bound] = bound
        self.subscriptions: Sequence[Subscription] = subscriptions
        self.envelope: Envelope = options.envelope
        self.deserializer: Deserializer = options.deserializer
        opener = options.envelope.opener(options.deserializer, consumer.features)
        self.open: Callable[[Delivery], Opened] = opener if options.envelope.notes_replays else _noting_replays(opener)
        self._matchers: dict[str | None, Matcher[Bound]] = {}
        for item in bound:
            delimiter = item.pattern.delimiter
            self._matchers.setdefault(delimiter, Matcher(delimiter)).add(item.pattern, item)
        self._order = {id(item): number for number, item in enumerate(bound)}
        seen: Counter[str] = Counter()
        for item in bound:
            seen[item.name] += 1
            if seen[item.name] > 1:
                item.key = f"{item.name}#{seen[item.name]}"
            item.identity = f"{consumer.group_id}/{item.key}"
            item.consumer = consumer
        self._dead_letters = {route.address for one in subscriptions for route in one.dead_letters}
        self._by_source: dict[tuple[str, Hashable], list[Match]] = {}
        self.routes: dict[tuple[str, Hashable, str | None], Route] = {}

    def matches(self, source: str, scope: Hashable = None) -> list[Match]:
        """The handlers for an address in a scope, whatever the type, in order of registration."""
        found = self._by_source.get((source, scope))
        if found is None:
            found = [
                match for matcher in self._matchers.values() for match in matcher.match(source) if match[0].takes(scope)
            ]
            found.sort(key=lambda match: self._order[id(match[0])])
            if source in self._dead_letters:  # wildcards never match those
                found = [match for match in found if match[0].pattern.is_literal]
            if len(self._by_source) >= _MOST_CACHED:
                self._by_source.clear()  # addresses may be without number: start over rather than grow
            self._by_source[source, scope] = found
        return found

    def route(self, source: str, scope: Hashable, type: str | None) -> Route:
        """The handlers for an address in a scope and an event type."""
        route = self.routes.get((source, scope, type))
        if route is None:
            matches = self.matches(source, scope)
            is_batched = bool(matches) and all(bound.batching is not None for bound, _ in matches)
            route = Route([match for match in matches if match[0].event in (None, type)], is_batched)
            if len(self.routes) >= _MOST_CACHED:
                self.routes.clear()
            self.routes[source, scope, type] = route
        return route

    def addressed(self, route: Route, target: str, scope: Hashable) -> Route | None:
        """Those handlers of a route that a replayed event is for; ``None`` if it is for others than these.

        Args:
            target: A handler's identity, or a group's with ``*`` for all of its handlers.

        Raises:
            DeliveryError: it is for a handler of this group, which there is not, or which does not take such events.
        """
        group, _, key = target.rpartition("/")
        if group != self.consumer.group_id:
            return None
        if key == ALL_OF_GROUP:
            return route
        found = [match for match in route.matches if match[0].key == key]
        if found:
            return Route(found, route.is_batched)
        if any(bound.key == key and not bound.takes(scope) for bound in self.bound):
            return None  # it has come by another way, by which this handler gets it too
        raise DeliveryError(
            f"it was replayed for the handler {key}, and the group {group} has none of that name for such events; "
            "replay it for all handlers"
        )


def _noting_replays(opener: Callable[[Delivery], Opened]) -> Callable[[Delivery], Opened]:
    def open_noting(delivery: Delivery) -> Opened:
        opened = opener(delivery)
        for name, value in delivery.headers:
            if name == REPLAY_FOR:
                opened.replay_for = value
        return opened

    return open_noting


def wire(
    handlers: Sequence[Handler], consumers: Sequence[Consumer], options: Options
) -> tuple[list[Wired], AppScope, Callable[[Mapping[Callable[..., Any], Any], Threads], None]]:
    """Checks everything that can be checked without I/O, and compiles it.

    Returns:
        The consumers with their handlers; the application's scope; and what finishes the handlers once the scope is
        entered.

    Raises:
        RegistrationError: a handler cannot be served as it is declared.
    """
    if not handlers:
        raise ConfigurationError(
            "no handler is registered, so nothing would be consumed; register one, or add its router"
        )
    for handler in handlers:
        if handler.consumer is not None and handler.consumer not in consumers:
            raise RegistrationError(f"handler {handler.name}: its consumer= is not one of the dispatcher's consumers")
    for subscription in options.ack_policies.keys() - {handler.subscription for handler in handlers}:
        raise RegistrationError(f"set_ack_policy(): no handler has the subscription {subscription!r}")
    plans = {
        id(item): make_plan(item.func, item.name, item.frame, options.overrides, item.batching is not None)
        for item in handlers
    }
    limits = {
        id(item): Limit(item.concurrency or 1)
        for item in handlers
        if item.concurrency is not None or item.batching is not None
    }
    served: set[int] = set()
    wired = [_wire_consumer(consumer, handlers, plans, limits, options, served) for consumer in consumers]
    for handler in handlers:
        if id(handler) not in served:
            kinds = ", ".join(type(consumer).__name__ for consumer in consumers)
            raise RegistrationError(
                f"handler {handler.name}: no consumer of the dispatcher ({kinds}) can serve {handler.subscription!r}; "
                "use topic=, or add a consumer of that transport"
            )
    for one in wired:
        if not one.bound:
            raise RegistrationError(
                f"no handler is for the consumer {type(one.consumer).__name__}; leave it out, or register a handler "
                "for its transport"
            )
    frame: dict[str, Any] = {}
    for handler in handlers:
        frame.update(handler.frame)
    app = list(dict.fromkeys(provider for plan in plans.values() for _, provider in plan.app))
    scope = AppScope(make_app_plan(app, options.overrides, frame))

    _tell_left_out(handlers, plans, options)

    def finish(values: Mapping[Callable[..., Any], Any], threads: Threads) -> None:
        for one in wired:
            for bound in one.bound:
                plan = plans[id(bound.handler)]
                middlewares = _middlewares(bound.handler, plan, options)
                bound.call = wrap(make_call(plan, values, threads), middlewares, bound.is_manual)
                bound.begin = make_begin(bound.call, plan, values, has_middleware=bool(middlewares))
                bound.must_settle = bound.is_manual and not middlewares

    return wired, scope, finish


def _middlewares(handler: Handler, plan: Plan, options: Options) -> list[Middleware]:
    found = [*options.middlewares, *handler.outer, *handler.own]
    return [item for item in found if plan.is_async or not item.cancels]


def _tell_left_out(handlers: Sequence[Handler], plans: Mapping[int, Plan], options: Options) -> None:
    left_out: dict[Middleware, list[str]] = {}
    for handler in handlers:
        if not plans[id(handler)].is_async:
            for item in (*options.middlewares, *handler.outer):
                if item.cancels:
                    left_out.setdefault(item, []).append(handler.name)
    for item, names in left_out.items():
        logger.warning(
            "%s is left out for handlers that are plain functions, which run in threads that cannot be cancelled: %s",
            type(item).__name__,
            ", ".join(names),
        )


def _wire_consumer(
    consumer: Consumer,
    handlers: Sequence[Handler],
    plans: Mapping[int, Plan],
    limits: Mapping[int, Limit],
    options: Options,
    served: set[int],
) -> Wired:
    bound: list[Bound] = []
    by_policy: dict[AckPolicy, list[Bound]] = {}
    subscriptions: dict[tuple[str, Any], Subscription] = {}
    for handler in handlers:
        if handler.consumer is not None and handler.consumer is not consumer:
            continue
        owner = f"handler {handler.name}"
        try:
            declared = consumer.subscription_for(handler.subscription)
            if declared is None:
                continue
            if isinstance(declared, EventRoute):
                pattern = Pattern.parse(declared.address, declared.delimiter or options.delimiter)
            else:
                pattern = Pattern.parse(declared.pattern, declared.delimiter or options.delimiter)
        except ConfigurationError as error:
            raise RegistrationError(f"{owner}: {error}") from error
        served.add(id(handler))
        check_params(plans[id(handler)], pattern.source, pattern.names, owner)  # an override may want others
        if handler.batching is not None:
            refuse_single(options.middlewares, owner)
        policy = _policy(handler, consumer, options, owner)
        dead_letter = _dead_letter(handler.dead_letter, consumer, Subscription(pattern, declared), options, owner)
        item = Bound(
            handler,
            plans[id(handler)],
            pattern,
            declared,
            policy,
            dead_letter,
            limits.get(id(handler)),
        )
        for other in (one for known, alike in by_policy.items() if known != policy for one in alike):
            if other.pattern.overlaps(pattern):
                raise RegistrationError(
                    f"{owner} and handler {other.name} can receive the same event ({pattern.source!r} and "
                    f"{other.pattern.source!r}), but acknowledge it differently ({policy!r}, {other.policy!r}); give "
                    "both the same ack_policy"
                )
        bound.append(item)
        by_policy.setdefault(policy, []).append(item)
        known = subscriptions.get((pattern.source, declared))
        letters = () if known is None else known.dead_letters
        if dead_letter is not None and dead_letter not in letters:
            letters = (*letters, dead_letter)
        subscriptions[pattern.source, declared] = Subscription(pattern, declared, letters)
    return Wired(consumer, bound, tuple(subscriptions.values()), options)


def _policy(handler: Handler, consumer: Consumer, options: Options, owner: str) -> AckPolicy:
    policy = handler.ack_policy or options.ack_policies.get(handler.subscription) or options.ack_policy
    if policy is None:
        return AckAfterProcessing() if consumer.features.acknowledges else AckBeforeProcessing()
    if not consumer.features.acknowledges and not isinstance(policy, AckBeforeProcessing):
        raise RegistrationError(
            f"{owner}: {policy!r} needs acknowledgements, but {type(consumer).__name__} has none: its broker forgets a "
            "message as soon as it is sent; leave the policy out, or use a transport that keeps messages"
        )
    return policy


def _dead_letter(
    target: DeadLetterTarget, consumer: Consumer, subscription: Subscription, options: Options, owner: str
) -> EventRoute | None:
    if isinstance(target, EllipsisType):
        target = options.dead_letter
    if target is None:
        return None
    if isinstance(target, EllipsisType):
        if not consumer.features.acknowledges:
            return None  # what nobody can take back needs no place to wait in
        return consumer.default_dead_letter(subscription)
    example = consumer.dead_letter_route("example")
    if isinstance(target, str):
        route = consumer.dead_letter_route(target) if target else None
    else:
        route = target if type(target) is type(example) else None
    if route is None:
        raise RegistrationError(f"{owner}: {type(consumer).__name__} cannot write dead letters to {target!r}")
    return route
