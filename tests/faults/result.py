"""What came of a row."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

__all__ = ["RESULT", "Result"]


@dataclass
class Result:
    """One line of the table.

    Attributes:
        faults: How often something failed.
        bound: How many may be lost or repeated, if not 0; ``None`` for any number.
        problems: What is wrong; empty if the row is kept.
    """

    row: str
    transport: str
    events: int
    faults: int
    lost: int = 0
    repeated: int = 0
    bound: int | None = None
    note: str = ""
    problems: list[str] = field(default_factory=list)


RESULT = pytest.StashKey[Result]()
"""Where a test that runs a row keeps what came of it."""
