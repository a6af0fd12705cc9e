"""Dispatchers as the settings have them, with the handlers of all apps."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterator

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from dispytch import EventDispatcher, HandlerGroup, Router, consumer_from_url
from dispytch.django import conf
from dispytch.django.databases import guard
from dispytch.django.loading import named
from dispytch.errors import ConfigurationError

__all__ = ["dispatcher", "routers"]

_OPTIONS = tuple(inspect.signature(EventDispatcher).parameters)[1:]


def dispatcher(alias: str = conf.DEFAULT) -> EventDispatcher:
    """A new dispatcher as the settings have it: what ``manage.py dispytch_worker`` runs.

    It has the handlers of all routers and handler groups in the modules that were discovered, ``handlers`` of each app
    by default, unless the settings name others, or name a dispatcher of one's own. Around each call of a handler old
    database connections are closed, as Django does around a request.

    Raises:
        ImproperlyConfigured: there is none, or the setting ``DISPYTCH`` is wrong.
        ConfigurationError: its URL or one of its options is wrong.
        MissingExtraError: the client of its transport is not installed.
    """
    config = conf.current()
    if alias not in config.dispatchers:
        known = ", ".join(map(repr, config.dispatchers)) or "none"
        raise ImproperlyConfigured(
            f"there is no dispatcher {alias!r} in DISPYTCH (there are: {known}); set DISPYTCH['GROUP'] for "
            f"{conf.DEFAULT!r}, or DISPYTCH['DISPATCHERS'] for others"
        )
    one = config.dispatchers[alias]
    where = f"DISPYTCH['DISPATCHERS'][{alias!r}]"
    made = named(one, EventDispatcher, where) if isinstance(one, str) else _made_from(one, config, where)
    guard(made)
    return made


def routers(discover: tuple[str, ...]) -> Iterator[Router | HandlerGroup]:
    """The routers and handler groups in the modules of these names of all apps, in the order of INSTALLED_APPS."""
    for app in apps.get_app_configs():
        for name in discover:
            module = sys.modules.get(f"{app.name}.{name}")
            for value in vars(module).values() if module is not None else ():
                if isinstance(value, Router | HandlerGroup):
                    yield value


def _made_from(one: conf.DispatcherConfig, config: conf.Config, where: str) -> EventDispatcher:
    for name in one.options:
        if name not in _OPTIONS:
            close = difflib.get_close_matches(name, _OPTIONS, 1, 0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(_OPTIONS)}"
            raise ConfigurationError(f"{where}['OPTIONS'] has {name!r}, which EventDispatcher has not; {hint}")
    made = EventDispatcher(consumer_from_url(one.url, group_id=one.group), **one.options)
    if one.routers is None:
        found = list(routers(config.discover))
    else:
        found = [_router(target, f"{where}['ROUTERS']") for target in one.routers]
    for router in found:
        made.add_registry(router)
    return made


def _router(target: str, where: str) -> Router | HandlerGroup:
    try:
        return named(target, Router, where)
    except ImproperlyConfigured:
        return named(target, HandlerGroup, where)
