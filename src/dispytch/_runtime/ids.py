"""Ids of events."""

from __future__ import annotations

from os import urandom

__all__ = ["new_id", "new_ids"]


def new_id() -> str:
    """A random UUID (RFC 9562, version 4) as text, made without the objects of the uuid module."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """So many of them, for one call of the system."""
    digits = urandom(16 * count).hex()
    # Of the four first digits that the RFC allows in the fourth group, always the same one: 120 random bits are left.
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-4{digits[at + 13 : at + 16]}-a{digits[at + 17 : at + 20]}-"
        f"{digits[at + 20 : at + 32]}"
        for at in range(0, 32 * count, 32)
    ]
