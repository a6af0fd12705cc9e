"""Dispytch: typed, event-driven services without the plumbing.

Messages become calls of plain functions with validated bodies and injected dependencies; typed events become messages.
"""

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
