"""System checks: ``manage.py check``, and before every command that runs them."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from dispytch._bridge import in_event_loop
from dispytch.cli.errors import one_line
from dispytch.cli.examining import examine as examine_wiring
from dispytch.django import conf
from dispytch.django.dispatching import dispatcher, routers
from dispytch.django.emitting import make_emitter
from dispytch.django.failures import failure_callback
from dispytch.django.problems import Problem
from dispytch.errors import ConfigurationError, DispytchError

__all__ = ["check", "check_deployment"]


def check(app_configs: object = None, **_: object) -> list[checks.CheckMessage]:
    """Everything about the setting ``DISPYTCH``, and about what it names, that can be told without a network."""
    config, problems = conf.examine()
    found = list(problems)
    if not found:
        found += _callback()
        found += _outbox(config)
        found += _emitters(config)
        found += _dispatchers(config)
        found += _unused(config)
        found += _databases(config)
    return [_message(problem) for problem in found]


def check_deployment(app_configs: object = None, **_: object) -> list[checks.CheckMessage]:
    """What is fine for development alone: ``manage.py check --deploy``."""
    config, _problems = conf.examine()
    places: dict[str, object] = {f"the emitter {alias!r}": one for alias, one in config.emitters.items()}
    places |= {f"the dispatcher {alias!r}": one for alias, one in config.dispatchers.items()}
    return [
        _message(
            Problem(
                "W004",
                f"{name} is on memory://, so events do not leave their process",
                "Give it the URL of a broker; memory:// is for tests and development.",
            )
        )
        for name, one in places.items()
        if isinstance(one, conf.EmitterConfig | conf.DispatcherConfig) and one.url.startswith("memory://")
    ]


def _message(problem: Problem) -> checks.CheckMessage:
    kind = checks.Warning if problem.id.startswith("W") else checks.Error
    return kind(f"{problem.text}.", hint=problem.hint, id=f"dispytch.{problem.id}")


def _callback() -> Iterator[Problem]:
    try:
        failure_callback()
    except (ImportError, TypeError) as error:
        yield Problem("E006", f"DISPYTCH['ON_FAILURE'] cannot be used: {one_line(error)}")


def _outbox(config: conf.Config) -> Iterator[Problem]:
    if config.outbox and not apps.is_installed("dispytch.django.outbox"):
        yield Problem(
            "E009",
            "DISPYTCH['OUTBOX'] is True, and its tables are not there",
            "Add 'dispytch.django.outbox' to INSTALLED_APPS, and run manage.py migrate.",
        )


def _emitters(config: conf.Config) -> Iterator[Problem]:
    for alias in config.emitters:
        try:
            made = make_emitter(alias)
        except Exception as error:
            yield _unusable("the emitter", alias, error)
            continue
        if made.timeout is None:
            yield Problem(
                "W001",
                f"the emitter {alias!r} waits for its broker for ever, and requests wait with it",
                "Set TIMEOUT to the seconds that a request may take longer.",
            )


def _dispatchers(config: conf.Config) -> Iterator[Problem]:
    if not any(True for _ in routers(config.discover)):
        # A project that has no handlers yet is no mistake; a worker that is started for it says so.
        return
    for alias in config.dispatchers:
        try:
            made = dispatcher(alias)
        except Exception as error:
            yield _unusable("the dispatcher", alias, error)
            continue
        if not in_event_loop():
            _, problems = anyio.run(examine_wiring, made)
            for text in problems:
                yield Problem("E008", f"the dispatcher {alias!r} would not start: {text.rstrip('.')}")


def _unusable(what: str, alias: str, error: Exception) -> Problem:
    number = "E005" if isinstance(error, ConfigurationError) else "E007"
    text = str(error) if isinstance(error, DispytchError | ImproperlyConfigured) else one_line(error)
    return Problem(number, f"{what} {alias!r} cannot be made: {text.rstrip('.')}")


def _unused(config: conf.Config) -> Iterator[Problem]:
    if not config.dispatchers and any(True for _ in routers(config.discover)):
        yield Problem(
            "W002",
            "there are handlers, and no dispatcher that would call them",
            "Set DISPYTCH['GROUP'] to the name of the consumer group.",
        )


def _databases(config: conf.Config) -> Iterator[Problem]:
    if config.outbox:
        return
    for alias, one in settings.DATABASES.items():
        if one.get("AUTOCOMMIT", True) is False:
            yield Problem(
                "W003",
                f"DATABASES[{alias!r}] has AUTOCOMMIT = False, so emit_on_commit() fails",
                "Leave AUTOCOMMIT out, or set DISPYTCH['OUTBOX'] to True.",
            )
