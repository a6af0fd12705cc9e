"""Dispytch: typed, event-driven services without the plumbing.

Messages become calls of plain functions with validated bodies and injected dependencies; typed events become messages.
"""

from typing import TYPE_CHECKING

__all__ = [
    "Dependency",
    "Event",
    "EventBase",
    "EventDispatcher",
    "EventEmitter",
    "EventHandlerContext",
    "EventListener",
    "EventRoute",
    "EventSubscription",
    "HandlerGroup",
    "Middleware",
    "NextCall",
    "Redeliver",
    "Reject",
    "Router",
    "SubscriptionParam",
    "consumer_from_url",
    "producer_from_url",
]

if TYPE_CHECKING:
    from dispytch._core.context import EventHandlerContext, Middleware, NextCall
    from dispytch._core.events import Event, EventBase
    from dispytch._core.handlers import Router
    from dispytch._core.params import Dependency, SubscriptionParam
    from dispytch._core.redelivery import Redeliver, Reject
    from dispytch._core.routes import EventRoute, EventSubscription
    from dispytch._runtime.dispatcher import EventDispatcher, EventListener
    from dispytch._runtime.emitter import EventEmitter
    from dispytch._runtime.groups import HandlerGroup
    from dispytch._runtime.urls import consumer_from_url, producer_from_url
else:
    # Imported when they are asked for, as pydantic does it: what needs but a part of the package, above all
    # `dispytch --help`, does not wait for all of it. Type checkers see the imports above, and no __getattr__.
    _PLACES = {
        "Dependency": "_core.params",
        "Event": "_core.events",
        "EventBase": "_core.events",
        "EventDispatcher": "_runtime.dispatcher",
        "EventEmitter": "_runtime.emitter",
        "EventHandlerContext": "_core.context",
        "EventListener": "_runtime.dispatcher",
        "EventRoute": "_core.routes",
        "EventSubscription": "_core.routes",
        "HandlerGroup": "_runtime.groups",
        "Middleware": "_core.context",
        "NextCall": "_core.context",
        "Redeliver": "_core.redelivery",
        "Reject": "_core.redelivery",
        "Router": "_core.handlers",
        "SubscriptionParam": "_core.params",
        "consumer_from_url": "_runtime.urls",
        "producer_from_url": "_runtime.urls",
    }
    _MODULES = {"abc", "errors", "middleware", "serialization"}  # attributes after `import dispytch` alone

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value  # so that the next access is as fast as any
        return value

    def __dir__():
        return sorted({*globals(), *__all__, *_MODULES})
