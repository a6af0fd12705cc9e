"""Names and headers from anywhere: what is emitted comes back as it was, and what is forged is not believed."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dispytch._core.deadletters import dead_letter_headers, error_text, own_header, read_dead_letter
from dispytch._core.patterns import Matcher, Pattern
from dispytch._core.routes import Template
from dispytch.abc import DeadLetter, Delivery
from dispytch.errors import ConfigurationError, EmitRejectedError
from tests.fuzz.mutations import LONG

EXAMPLES = 20_000 if LONG else 2_000

ANY_TEXT = st.text(st.sampled_from("ab.:/*#{}-|_ \t\r\n\0\u2028\ud800") | st.characters(), max_size=6)
DELIMITERS = st.none() | st.text("ab-.|:/", min_size=1, max_size=3)
SEGMENTS = st.lists(st.text("ab-_", max_size=3) | st.none(), min_size=1, max_size=4)


@settings(max_examples=EXAMPLES, deadline=None)
@given(segments=SEGMENTS, delimiter=DELIMITERS, separator=st.sampled_from(".:/"), data=st.data())
def test_a_route_gives_back_the_values_that_it_was_made_of(
    segments: list[str | None], delimiter: str | None, separator: str, data: st.DataObject
) -> None:
    # given the route of an event class, whose placeholders are the segments without a text
    names = [f"f{number}" for number, segment in enumerate(segments) if segment is None]
    parts = [f"{{f{number}}}" if segment is None else segment for number, segment in enumerate(segments)]
    source = (separator if delimiter is None else delimiter).join(parts)
    try:
        pattern = Pattern.parse(source, delimiter)
    except ConfigurationError:
        assume(False)
        raise
    values = {name: data.draw(ANY_TEXT, label=name) for name in names}
    # when an event with any values goes there
    try:
        address = Template(source, "the test").fill_segments(SimpleNamespace(**values), delimiter)
    except EmitRejectedError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        # then it is refused, by the name of the field
        assert any(repr(name) in refusal for name in names)
        assert any(not _is_plain(value) for value in values.values())
        return
    # then it matches the route, and gives back the same values; nothing that is like it matches
    matcher: Matcher[str] = Matcher(delimiter)
    matcher.add(pattern, "own")
    joint = separator if delimiter is None else delimiter
    for other in (f"{source}{joint}*", f"*{joint}{source}"):
        with suppress(ConfigurationError):  # the end of a segment and a long delimiter may make another delimiter
            matcher.add(Pattern.parse(other, delimiter), other)
    found = matcher.match(address)
    assert ("own", values) in found
    assert len(found) == 1


def _is_plain(value: str) -> bool:
    return value.isalnum() and value.isascii() and not set(value) & set("ab")


HEADER_NAMES = st.sampled_from(
    [
        *("dispytch-dead-error", "dispytch-dead-source", "dispytch-dead-attempts", "dispytch-dead-handler"),
        *("dispytch-dead-position", "dispytch-dead-failed-at", "dispytch-dead-", "dispytch-attempt", "ce_id", ""),
    ]
)
HEADER_VALUES = st.binary(max_size=8) | st.sampled_from(
    [b"9" * 5000, "²".encode(), "٣".encode(), b"-1", b"\xed\xa0\x80", b"x" * 5000]
)
FORGED = st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8)
LETTERS = st.builds(
    DeadLetter,
    error=st.text(max_size=2000),
    handler=st.none() | st.text(max_size=2000),
    attempts=st.integers(0, 10**9 - 1),
    source=st.text(max_size=2000),
    position=st.none() | st.text(max_size=20),
    failed_at=st.text(max_size=30),
)


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(forged=FORGED)
def test_reading_a_dead_letter_takes_whatever_it_says(forged: list[tuple[str, bytes]]) -> None:
    found = read_dead_letter(forged)
    names = {name for name, _ in forged}
    assert (found is not None) == ({"dispytch-dead-error", "dispytch-dead-source"} <= names)
    if found is not None:
        assert 0 <= found.attempts < 10**9
        for text in (found.error, found.source, found.handler, found.position, found.failed_at):
            assert text is None or text.encode() is not None


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(forged=FORGED, letter=LETTERS)
def test_a_dead_letter_says_what_happened_and_not_what_was_forged(
    forged: list[tuple[str, bytes]], letter: DeadLetter
) -> None:
    headers = dead_letter_headers(Delivery("orders", b"", forged, timestamp_ms=0), letter)
    assert [header for header in headers if not own_header(header[0])] == [
        header for header in forged if not own_header(header[0])
    ]
    own = [(name, value) for name, value in headers if own_header(name)]
    assert len(own) == len(dict(own))
    assert all(len(value) <= 1024 for _, value in own)
    found = read_dead_letter(headers)
    assert found is not None
    assert found.attempts == letter.attempts
    for name in ("error", "handler", "source", "position", "failed_at"):
        said, meant = getattr(found, name), getattr(letter, name)
        if meant is None or (len(meant) < 200 and meant.encode("utf-8", "ignore") == meant.encode("utf-8", "replace")):
            assert said == meant


class _Odd(Exception):
    def __init__(self, text: Any) -> None:
        self.text = text

    def __str__(self) -> Any:
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


@given(
    text=st.text(st.characters() | st.just("\ud800"), max_size=1500) | st.sampled_from([OSError(), None, b"no text"])
)
def test_the_text_of_an_error_is_bounded(text: Any) -> None:
    found = error_text(_Odd(text))
    assert found.startswith("_Odd")
    assert len(found.encode()) <= 1024


@pytest.mark.parametrize("text", ["x" * 2_000_000, "ä" * 2_000, "\U0001f600" * 300, "\ud800" * 2_000])
def test_the_text_of_a_long_error_is_cut_between_characters(text: str) -> None:
    found = error_text(ValueError(text))
    assert 1020 <= len(found.encode()) <= 1024
