"""The setting ``DISPYTCH``: what it may hold, and what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from dispytch.django.problems import Problem

__all__ = ["DEFAULT", "Config", "DispatcherConfig", "EmitterConfig", "current", "examine"]

DEFAULT = "default"

_TOP = ("URL", "SOURCE", "TIMEOUT", "GROUP", "ON_FAILURE", "OUTBOX", "DISCOVER", "EMITTERS", "DISPATCHERS")
_EMITTER = ("URL", "SOURCE", "TIMEOUT")
_DISPATCHER = ("URL", "GROUP", "ROUTERS", "OPTIONS")


@dataclass(frozen=True, slots=True)
class EmitterConfig:
    """An emitter that is made from the settings: see `dispytch.sync.EventEmitter`."""

    url: str = field(repr=False)  # it may hold a password, and reports of errors show the variables of frames
    source: str
    timeout: float | None


@dataclass(frozen=True, slots=True)
class DispatcherConfig:
    """A dispatcher that is made from the settings: see `dispytch.EventDispatcher`.

    Attributes:
        routers: The import strings of its routers; ``None`` for all that were discovered.
        options: Further arguments of `EventDispatcher`.
    """

    url: str = field(repr=False)
    group: str
    routers: tuple[str, ...] | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Config:
    """The setting, read.

    Attributes:
        emitters, dispatchers: By alias; a string is the import string of one.
        on_failure: What gets events that were not emitted after their commit, or its import string.
        outbox: Whether `emit_on_commit` writes events to the database, for ``manage.py dispytch_outbox``.
        discover: The modules that are imported from each app.
    """

    emitters: Mapping[str, EmitterConfig | str] = field(default_factory=dict)
    dispatchers: Mapping[str, DispatcherConfig | str] = field(default_factory=dict)
    on_failure: str | Callable[..., Any] | None = None
    outbox: bool = False
    discover: tuple[str, ...] = ("events", "handlers")


def current() -> Config:
    """What goes at the moment.

    Raises:
        ImproperlyConfigured: something is wrong with it; ``manage.py check`` lists all that is.
    """
    config, problems = examine()
    if problems:
        raise ImproperlyConfigured(str(problems[0]))
    return config


def examine() -> tuple[Config, list[Problem]]:
    """What goes, as far as it can be read, and what is wrong."""
    given: Any = getattr(settings, "DISPYTCH", None)
    if given is None:
        return Config(), [Problem("E001", "there is no setting DISPYTCH", "Set it to a dict, such as {'URL': '...'}.")]
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        return Config(), [Problem("E001", f"DISPYTCH is a {kind}", "Make it a dict, such as {'URL': '...'}.")]
    reader = _Reader(given)
    return reader.read(), reader.problems


class _Reader:
    """Reads the setting, and notes what is wrong where it goes on all the same."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self.problems: list[Problem] = []

    def read(self) -> Config:
        self._check_keys(self._given, _TOP, "DISPYTCH")
        on_failure = self._given.get("ON_FAILURE")
        if on_failure is not None and not isinstance(on_failure, str) and not callable(on_failure):
            self._wrong("DISPYTCH['ON_FAILURE']", "a function, or the import string of one", on_failure)
            on_failure = None
        outbox = self._given.get("OUTBOX", False)
        if not isinstance(outbox, bool):
            self._wrong("DISPYTCH['OUTBOX']", "True or False", outbox)
            outbox = False
        discover = self._names("DISPYTCH['DISCOVER']", self._given.get("DISCOVER", Config().discover))
        emitters = dict(self._each("EMITTERS", self._emitter, is_implied=bool(self._given.get("URL"))))
        dispatchers = dict(self._each("DISPATCHERS", self._dispatcher, is_implied="GROUP" in self._given))
        return Config(emitters, dispatchers, on_failure, outbox, Config().discover if discover is None else discover)

    def _each(
        self, key: str, read: Callable[[str, Mapping[str, Any]], Any], *, is_implied: bool
    ) -> Iterator[tuple[str, Any]]:
        given: Any = self._given.get(key, {})
        if not isinstance(given, Mapping):
            self._wrong(f"DISPYTCH[{key!r}]", "a dict by alias", given)
            given = {}
        for alias, one in ({DEFAULT: {}, **given} if is_implied else given).items():
            where = f"DISPYTCH[{key!r}][{alias!r}]"
            if isinstance(one, str):
                yield alias, one
            elif not isinstance(one, Mapping):
                self._wrong(where, "a dict, or an import string", one)
            elif (found := read(where, one)) is not None:
                yield alias, found

    def _emitter(self, where: str, given: Mapping[str, Any]) -> EmitterConfig | None:
        self._check_keys(given, _EMITTER, where)
        url = self._text(where, given, "URL")
        source = self._text(where, given, "SOURCE", "django")
        timeout = given.get("TIMEOUT", self._given.get("TIMEOUT", 5.0))
        if timeout is not None and (
            not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0
        ):
            self._wrong(f"{where}['TIMEOUT']", "in seconds and positive, or None to wait for ever,", timeout)
            return None
        return None if url is None or source is None else EmitterConfig(url, source, timeout)

    def _dispatcher(self, where: str, given: Mapping[str, Any]) -> DispatcherConfig | None:
        self._check_keys(given, _DISPATCHER, where)
        url, group = self._text(where, given, "URL"), self._text(where, given, "GROUP")
        options = given.get("OPTIONS", {})
        if not isinstance(options, Mapping):
            self._wrong(f"{where}['OPTIONS']", "a dict of arguments of EventDispatcher", options)
            return None
        routers = self._names(f"{where}['ROUTERS']", given.get("ROUTERS", ()))
        if url is None or group is None or routers is None:
            return None
        return DispatcherConfig(url, group, routers if "ROUTERS" in given else None, options)

    def _text(self, where: str, given: Mapping[str, Any], key: str, default: str | None = None) -> str | None:
        """A string of an emitter or dispatcher; by default the one at the top."""
        value = given.get(key, self._given.get(key, default))
        if value is None:
            self.problems.append(Problem("E003", f"{where} has no {key}", f"Give it one, or DISPYTCH[{key!r}] to all."))
        elif not isinstance(value, str) or not value:
            self._wrong(f"{where}[{key!r}]", "a non-empty string", value)
        else:
            return value
        return None

    def _names(self, where: str, given: Any) -> tuple[str, ...] | None:
        if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
            return tuple(given)
        self._wrong(where, "a list of strings", given)
        return None

    def _wrong(self, where: str, wanted: str, given: object) -> None:
        # The value is not quoted, since a URL may hold a password.
        self.problems.append(Problem("E004", f"{where} must be {wanted} and is of type {type(given).__name__}"))

    def _check_keys(self, given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(str(key).upper(), known, 1, 0.6)
                hint = f"Did you mean {close[0]!r}?" if close else f"Its keys are: {', '.join(known)}."
                self.problems.append(Problem("E002", f"{where} has the unknown key {key!r}", hint))
