"""What is found out about a broker by asking it."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Finding"]


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        level: ``"problem"``: a dispatcher would not work; ``"warning"``: look at it.
        text: A line for people, without secrets.
    """

    level: Literal["ok", "warning", "problem"]
    text: str
