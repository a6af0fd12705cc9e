"""JSON and YAML: both are read as what was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dispytch.asyncapi import to_json, to_yaml
from tests.asyncapi.showcase import showcase
from tests.support import examples

_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text("a \n\t:-#'\"\\|>&*!%@`?,[]{}=~0.", max_size=12),
    st.sampled_from(
        [
            *("yes", "No", "on", "~", "null", "NULL", "true", "1", "1e3", "0x1F", "1_000", "12:30:45", "2026-01-31"),
            *(".inf", ".nan", "<<", "=", "-", "- a", "? a", "a: b", "a #b", " a", "a ", "a\n", "\na", "a\n\nb"),
            *("a\n  b\n c", "\ufeff", "...", "---"),
        ]
    ),
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(_TEXTS, _VALUES, max_size=4))
@settings(max_examples=examples(500), deadline=None)
def test_what_is_written_is_read(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value
    assert json.loads(to_json(value)) == value


def test_the_showcase() -> None:
    found = showcase()
    text = to_yaml(found)
    assert yaml.safe_load(text) == found
    assert json.loads(to_json(found)) == found
    assert text.startswith('asyncapi: "3.1.0"\ninfo:\n  title: "Lamp shop"\n')
    # Long descriptions can be read, and compared line by line.
    assert "    description: |-\n      A card that is declined is tried again for a day;" in text


def test_no_number_that_json_does_not_know() -> None:
    for write in (to_json, to_yaml):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"x": float("nan")})
