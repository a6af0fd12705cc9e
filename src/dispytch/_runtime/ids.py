"""Ids of events."""

from __future__ import annotations

from os import urandom

__all__ = ["new_id", "new_ids"]


def new_id() -> str:
    """A random UUID (RFC 9562, version 4) as text, made without the objects of the uuid module."""
    return _uuid(urandom(16).hex())


def new_ids(count: int) -> list[str]:
    """So many of them, for one call of the system."""
    digits = urandom(16 * count).hex()
    return [_uuid(digits[at : at + 32]) for at in range(0, 32 * count, 32)]


def _uuid(digits: str) -> str:
    # Of the four first digits that the RFC allows in the fourth group, always the same one: 120 random bits are left.
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
