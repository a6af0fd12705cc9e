"""Something that is wrong with how a project uses Dispytch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Problem"]


class Problem(NamedTuple):
    """A problem, as system checks and exceptions tell it.

    Attributes:
        id: Its number among the system checks, such as ``"E002"``.
        text: What is wrong.
        hint: What to do about it.
    """

    id: str
    text: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.text}. {self.hint}" if self.hint else self.text
