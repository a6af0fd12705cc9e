"""Import strings: ``module:attribute``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dispytch import EventBase
from dispytch._runtime.dispatcher import EventDispatcher
from dispytch.cli.errors import UsageProblem, one_line

__all__ = ["load_dispatcher", "load_event"]


def load_event(target: str, app_dir: str) -> Any:
    """What an import string names that should name an event class.

    Raises:
        UsageProblem: see `load_dispatcher`; whether it is one is not looked at.
    """
    return _load(target, app_dir, "app:OrderPlaced", "event class")


def _load(target: str, app_dir: str, example: str, wanted: str) -> Any:
    """What an import string names.

    Args:
        target: ``module:attribute``; the attribute may be dotted.
        app_dir: The folder where modules are looked for first.
        example: A right one, for messages.
        wanted: What it should name: a dispatcher, or an event class.

    Raises:
        UsageProblem: the string is malformed, or leads nowhere, or the module fails when it is imported.
    """
    if "://" in target:  # and it is not quoted, since it may hold a password
        raise UsageProblem(f'a URL is in the place of an import string, which is such as "{example}"')
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise UsageProblem(
            f'Import string "{target}" must be in format "<module>:<attribute>", for instance "{example}".'
        )
    if module_name.endswith(".py") or "/" in module_name or module_name.startswith("."):
        path_of_module = module_name.removesuffix(".py").replace("/", ".").strip(".")
        raise UsageProblem(f'"{module_name}" is a file; name its module instead: "{path_of_module}:{path}"')
    folder = str(Path(app_dir).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found: Any = _module(module_name, folder)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UsageProblem(
                f'Attribute "{path}" not found in module "{module_name}"{_others(found, wanted)}.'
            ) from None
    return found


def load_dispatcher(target: str, app_dir: str, is_factory: bool) -> EventDispatcher:
    """The dispatcher that an import string names, or that the factory makes which it names.

    Raises:
        UsageProblem: see `_load`; or what was found is no dispatcher, or the factory fails.
    """
    found = _load(target, app_dir, "app:dispatcher", "dispatcher")
    if is_factory:
        if not callable(found):
            raise UsageProblem(
                f'"{target}" is no factory: it cannot be called (its type is {type(found).__name__}); leave out '
                "--factory, or name a function that returns the dispatcher"
            )
        try:
            found = found()
        except Exception as error:
            raise UsageProblem(f'the factory "{target}" failed: {one_line(error)}') from error
    if isinstance(found, EventDispatcher):
        return found
    kind = type(found).__name__
    inner = getattr(found, "_inner", None)
    if isinstance(inner, EventDispatcher):
        raise UsageProblem(
            f'"{target}" is the dispatcher of dispytch.sync, which runs beside a blocking program and not by itself; '
            "make it a dispytch.EventDispatcher, which takes plain functions too"
        )
    if is_factory:
        raise UsageProblem(f'the factory "{target}" returned no EventDispatcher, but something of type {kind}')
    hint = "if it makes the dispatcher, add --factory" if callable(found) else "name an EventDispatcher"
    raise UsageProblem(f'"{target}" is no EventDispatcher (its type is {kind}); {hint}')


def _module(name: str, folder: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            path = name.replace(".", "/")
            raise UsageProblem(
                f'Could not import module "{name}": there is no {path}.py or {path}/ in {folder}; run this where it '
                "is, or name the folder with --app-dir"
            ) from None
        raise UsageProblem(
            f'Could not import module "{name}", since it needs another: {error}; install that, or correct the import; '
            "--debug shows the traceback"
        ) from error
    except Exception as error:
        raise UsageProblem(f'Could not import module "{name}": {one_line(error)}') from error


def _others(found: Any, wanted: str) -> str:
    """What could have been meant."""
    fits = _is_event_class if wanted == "event class" else _is_dispatcher
    names = [name for name, value in getattr(found, "__dict__", {}).items() if fits(value)]
    plural = "" if len(names) == 1 else "es" if wanted.endswith("s") else "s"
    return f"; it has the {wanted}{plural} {', '.join(names)}" if names else ""


def _is_dispatcher(value: Any) -> bool:
    return isinstance(value, EventDispatcher)


def _is_event_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, EventBase) and value is not EventBase
