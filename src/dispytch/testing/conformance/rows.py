"""The rows of the table: their names, and which transports each applies to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

__all__ = ["COLUMNS", "INSTALLED", "ROWS", "Column", "Feature", "Row", "row"]

Column = Literal["asyncio", "uvloop", "trio", "blocking"]
Feature = Literal["headers", "acknowledges", "consumer_groups", "persistent", "old_messages", "patterns"]

COLUMNS: tuple[Column, ...] = ("asyncio", "uvloop", "trio", "blocking")
"""The loops, and the blocking facade."""

INSTALLED: tuple[Column, ...] = tuple(
    column for column in COLUMNS if column not in ("uvloop", "trio") or find_spec(column) is not None
)
"""The columns whose loop is installed."""

RowT = TypeVar("RowT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        test: The name of the test.
        name: As the table has it.
        says: What the transport keeps.
        needs: Features without which the row does not apply.
        lacks: Features with which it does not apply.
        hook: The optional method that the suite of a transport has to define.
        columns: The columns that it runs in.
    """

    test: str
    name: str
    says: str
    needs: Sequence[Feature]
    lacks: Sequence[Feature]
    hook: str | None
    columns: Sequence[Column]


ROWS: dict[str, Row] = {}
"""All rows, by the name of the test."""


def row(
    *needs: Feature, lacks: Sequence[Feature] = (), hook: str | None = None, columns: Sequence[Column] = COLUMNS
) -> Callable[[RowT], RowT]:
    """Makes a method a row. Its docstring says what the transport keeps."""

    def register(test: RowT) -> RowT:
        name = test.__name__.removeprefix("test_").replace("_", " ")
        says = " ".join((test.__doc__ or "").split())
        ROWS[test.__name__] = Row(test.__name__, name, says, needs, lacks, hook, columns)
        return test

    return register
