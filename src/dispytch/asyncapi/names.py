"""Identifiers: of channels, operations, messages, schemas and parameters."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["Names", "slug"]

_STRANGE = re.compile(r"[^A-Za-z0-9._-]+")
_LOCALS = re.compile(r"\.?<[a-z]+>\.?")


def slug(text: str, fallback: str) -> str:
    """A text as an identifier that AsyncAPI takes anywhere: letters, digits, ``.``, ``_`` and ``-``."""
    text = _LOCALS.sub(".", text)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _STRANGE.sub("_", plain).strip("._-") or fallback


class Names:
    """Gives each thing a name of its own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, *choices: str) -> str:
        """The first choice that nobody has; if all are taken, the last one with a number."""
        for choice in choices:
            if choice not in self._taken:
                self._taken.add(choice)
                return choice
        number = 2
        while (name := f"{choices[-1]}-{number}") in self._taken:
            number += 1
        self._taken.add(name)
        return name
