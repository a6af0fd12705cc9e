"""Import strings in the settings: ``module:attribute``, or ``module.attribute`` as Django has them."""

from __future__ import annotations

from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

__all__ = ["named"]

T = TypeVar("T")


def named(target: str, kind: type[T], where: str) -> T:
    """What an import string names, or what the function returns that it names.

    Args:
        target: The import string.
        kind: What it must be.
        where: The setting, for messages.

    Raises:
        ImproperlyConfigured: it leads nowhere, or to something else.
    """
    try:
        found: Any = import_string(target.replace(":", "."))
    except ImportError as error:
        raise ImproperlyConfigured(f"{where} = {target!r} cannot be imported: {error}") from error
    if not isinstance(found, kind) and callable(found) and not isinstance(found, type):
        found = found()
    if not isinstance(found, kind):
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise ImproperlyConfigured(f"{where} = {target!r} is no {name}, but of type {type(found).__name__}")
    return found
