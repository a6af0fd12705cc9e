"""Failure counts in the metadata of a committed offset, so that they outlast the process that counted."""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["packed", "unpacked"]

_MOST_BYTES = 3_000
"""A broker takes 4,096 by default (``offset.metadata.max.bytes``)."""
_NAME = "dispytch-failures"
_MOST_COUNTED = 1_000_000

Failures = Mapping[int, Mapping[str, int]]


def packed(failures: Failures) -> str:
    """The counts by offset and handler as text, of the first offsets as many as fit; empty for none."""
    chosen: dict[str, Mapping[str, int]] = {}
    text = ""
    for offset in sorted(failures):
        if not failures[offset]:
            continue
        chosen[str(offset)] = failures[offset]
        longer = json.dumps({_NAME: chosen}, separators=(",", ":"))
        if len(longer) > _MOST_BYTES:
            break
        text = longer
    return text


def unpacked(text: str | None) -> dict[int, dict[str, int]]:
    """What `packed` made a text of; nothing of what others wrote there."""
    if not text or not text.startswith(f'{{"{_NAME}"'):
        return {}
    try:
        found = json.loads(text)[_NAME]
        return {
            int(offset): {handler: count for handler, count in counts.items() if _is_count(count)}
            for offset, counts in found.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < _MOST_COUNTED
