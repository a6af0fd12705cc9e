"""Dispytch for blocking code: Django views, scripts, threads. The names are those of `dispytch`, the calls block."""

from dispytch.sync.dispatcher import EventDispatcher
from dispytch.sync.emitter import EventEmitter

__all__ = ["EventDispatcher", "EventEmitter"]
