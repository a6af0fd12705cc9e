"""The pattern language, and the matcher against a slow and obvious one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispytch._core.patterns import Matcher, Pattern, Token, segments, split
from dispytch.errors import ConfigurationError
from tests.support import examples

thorough = settings(max_examples=examples(1500), deadline=None)


def match(pattern: str, address: str, delimiter: str | None = None) -> dict[str, str] | None:
    matcher: Matcher[None] = Matcher(delimiter)
    matcher.add(Pattern.parse(pattern, delimiter), None)
    found = matcher.match(address)
    return found[0][1] if found else None


def reference(tokens: Sequence[Token], parts: Sequence[tuple[str, str]], i: int = 0) -> dict[str, str] | None:
    """Match the tokens against the parts from ``i`` on, as the rules are worded."""
    if not tokens:
        return {} if i == len(parts) else None
    token, rest = tokens[0], tokens[1:]
    fits = i < len(parts) and (i == 0 or parts[i][0] == token.separator)
    if token.kind == "many":
        for j in range(i, len(parts) + 1 if fits else i + 1):
            if (captures := reference(rest, parts, j)) is not None:
                return captures
        return None
    if not fits or (token.kind == "literal" and parts[i][1] != token.text):
        return None
    captures = reference(rest, parts, i + 1)
    if captures is not None and token.text and token.kind == "one":
        return {token.text: parts[i][1], **captures}
    return captures


# -- Splitting -------------------------------------------------------------------------------------------------------


def test_split() -> None:
    assert split("a.b:c/d") == (("", "a"), (".", "b"), (":", "c"), ("/", "d"))
    assert split("a.b:c", ":") == (("", "a.b"), (":", "c"))
    assert split("a::b:c", "::") == (("", "a"), ("::", "b:c"))
    assert split("") == (("", ""),)
    assert split(".a.") == (("", ""), (".", "a"), (".", ""))
    assert segments("a.b:c") == ("a", "b", "c")
    assert segments("a.b:c", ".") == ("a", "b:c")


@thorough
@given(st.text(".:/ab{}", max_size=12), st.sampled_from([None, ".", "a", "::"]))
def test_split_loses_nothing(address: str, delimiter: str | None) -> None:
    parts = split(address, delimiter)
    assert "".join(separator + segment for separator, segment in parts) == address
    assert segments(address, delimiter) == tuple(segment for _, segment in parts)
    delimiters = [delimiter] if delimiter else [".", ":", "/"]
    assert parts[0][0] == ""
    assert all(separator in delimiters for separator, _ in parts[1:])
    assert not any(delimiter in segment for _, segment in parts for delimiter in delimiters)


@pytest.mark.parametrize("delimiter", ["", "{", "}", "*", "#", " ", "\n", ".#"])
@pytest.mark.parametrize("use", [lambda d: split("a", d), lambda d: segments("a", d), lambda d: Pattern.parse("a", d)])
def test_delimiter_refused(delimiter: str, use: Callable[[str], object]) -> None:
    with pytest.raises(ConfigurationError, match="write at least one character"):
        use(delimiter)


# -- Parsing ---------------------------------------------------------------------------------------------------------


def test_parse() -> None:
    pattern = Pattern.parse("users.{user.id}:*/#.created")
    assert pattern.source == "users.{user.id}:*/#.created"
    assert pattern.delimiter is None
    assert pattern.names == ("user.id",)
    assert not pattern.is_literal
    assert pattern.tokens == (
        Token("", "literal", "users"),
        Token(".", "one", "user.id"),
        Token(":", "one"),
        Token("/", "many"),
        Token(".", "literal", "created"),
    )


def test_parse_in_order_of_appearance() -> None:
    assert Pattern.parse("{b}.{a}.{b.a}").names == ("b", "a", "b.a")


@pytest.mark.parametrize("source", ["a", "a.b", ".", "user-created", "a b"])
def test_literal(source: str) -> None:
    assert Pattern.parse(source).is_literal
    assert match(source, source) == {}


@pytest.mark.parametrize("source", ["{a}", "*", "#", "a.#", "a.*", "a.{a}"])
def test_not_literal(source: str) -> None:
    assert not Pattern.parse(source).is_literal


def test_pattern_is_a_value() -> None:
    pattern = Pattern.parse("a.{b}")
    assert pattern == Pattern.parse("a.{b}") != Pattern.parse("a.{b}", ".")
    assert hash(pattern) == hash(Pattern.parse("a.{b}"))
    with pytest.raises(AttributeError):
        pattern.source = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("source", "instead"),
    [
        ("", "'#' for every address"),
        ("a.{id", "write each placeholder as '{name}'"),
        ("a.id}", "write each placeholder as '{name}'"),
        ("a.}id{", "write each placeholder as '{name}'"),
        ("a.{b{c}}", "write each placeholder as '{name}'"),
        ("user-{id}", "write '{name}' for the whole segment"),
        ("{a}{b}", "write '{name}' for the whole segment"),
        ("{id}*", "write '{name}' for the whole segment"),
        ("a*", "write '*' for exactly one whole segment"),
        ("a.**", "write '*' for exactly one whole segment"),
        ("a.#b", "write '*' for exactly one whole segment"),
        ("{a}.{b}.{a}", "write '*' for one"),
        ("{}", "write '{name}'"),
        ("{user-id}", "write '{user_id}'"),
        ("{ id }", "write '{id}'"),
        ("{1}", "write '{name}'"),
        ("{a..b}", "write '{a_b}'"),
        ("{a:b}", "write '{a_b}'"),
        ("{#}", "write '{_}'"),
    ],
)
def test_parse_refused(source: str, instead: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Pattern.parse(source)
    assert repr(source) in str(caught.value)
    assert instead in str(caught.value)


def test_delimiter_divides_what_would_be_one_segment() -> None:
    assert match("user-{id}", "user-7", "-") == {"id": "7"}
    assert match("{user.id}.x-*", "", ".x-") is None
    assert match("a.b-{user.id}", "a.b-c.d", "-") == {"user.id": "c.d"}
    assert match("{user_id}_x", "7_x", "_") == {"user_id": "7"}


# -- Matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "address", "captures"),
    [
        ("a.b", "a.b", {}),
        ("a.b", "a:b", None),
        ("a.b", "a", None),
        ("a", "a.b", None),
        ("a.*", "a.b", {}),
        ("a.*", "a.", {}),
        ("a.*", "a:b", None),
        ("a.*", "a.b.c", None),
        ("a.{x}:{y}", "a.b:c", {"x": "b", "y": "c"}),
        ("{x}", "", {"x": ""}),
        ("#", "", {}),
        ("#", "a.b:c", {}),
        ("a.#", "a", {}),
        ("a.#", "a.b", {}),
        ("a.#", "a.b:c", {}),
        ("a.#", "a:b", None),
        ("#.a", "a", {}),
        ("#.a", "x.a", {}),
        ("#.a", "x:y.a", {}),
        ("#.a", "x:a", None),
        ("#:#/*", "a", {}),
        ("a.#.b", "a.b", {}),
        ("a.#.b", "a.x.b", {}),
        ("a.#.b", "a.x:y.b", {}),
        ("a.#.b", "a:x.b", None),
        ("a.#.b", "a.x:b", None),
        ("a.#:b", "a:b", {}),
        ("#.{x}.#", "a.b.c", {"x": "a"}),
        ("#.{x}.a.#.{y}.#", "c.a.d.a", {"x": "c", "y": "d"}),
        ("#.{x}.a.{y}", "a.a.a.b", {"x": "a", "y": "b"}),
    ],
)
def test_match(pattern: str, address: str, captures: dict[str, str] | None) -> None:
    assert match(pattern, address) == captures
    assert reference(Pattern.parse(pattern).tokens, split(address)) == captures


def test_matches_come_in_order_of_addition_each_once() -> None:
    matcher: Matcher[int] = Matcher()
    for value, source in enumerate(["#", "a.{x}", "#.b", "*.*", "b", "a.b", "a.{y}", "#.#.#", "a.b"]):
        matcher.add(Pattern.parse(source), value)
    assert matcher.match("a.b") == [
        (0, {}),
        (1, {"x": "b"}),
        (2, {}),
        (3, {}),
        (5, {}),
        (6, {"y": "b"}),
        (7, {}),
        (8, {}),
    ]
    assert matcher.match("a:c") == [(0, {}), (7, {})]


def test_one_delimiter_per_matcher() -> None:
    matcher: Matcher[int] = Matcher(".")
    with pytest.raises(ConfigurationError, match="the same"):
        matcher.add(Pattern.parse("a"), 1)
    matcher.add(Pattern.parse("a", "."), 1)
    assert matcher.match("a") == [(1, {})]


@st.composite
def joined(draw: st.DrawFn, parts: Sequence[str], separators: str, max_size: int) -> str:
    """Segments with separators between them; the n-th segment, if it is ``{}``, is a placeholder named ``p<n>``."""
    text = ""
    for n, part in enumerate(draw(st.lists(st.sampled_from(parts), min_size=1, max_size=max_size))):
        text += (draw(st.sampled_from(separators)) if n else "") + part.replace("{}", f"{{p{n}}}")
    return text


patterns = joined(["a", "b", "", "*", "{}", "{}", "#", "#"], "...:/", 6).filter(bool)
addresses = joined(["a", "a", "b", ""], "...:/", 8)


@thorough
@given(st.lists(patterns, min_size=1, max_size=6), st.lists(addresses, min_size=1, max_size=6))
@example(["#.{p0}.#.a.{p1}"], ["a.a.a.a.a"])
def test_matcher_agrees_with_the_reference(sources: list[str], topics: list[str]) -> None:
    parsed = [Pattern.parse(source) for source in sources]
    matcher: Matcher[int] = Matcher()
    for value, pattern in enumerate(parsed):
        matcher.add(pattern, value)
    for topic in topics:
        expected = [reference(pattern.tokens, split(topic)) for pattern in parsed]
        assert matcher.match(topic) == [(n, found) for n, found in enumerate(expected) if found is not None]


@settings(max_examples=examples(1000), deadline=None)
@given(joined(["a", "#", "*", "{}"], ".", 5), joined(["a", "b", "a:b", "a/"], ".", 8))
def test_matcher_agrees_with_the_reference_for_one_delimiter(source: str, address: str) -> None:
    assert match(source, address, ".") == reference(Pattern.parse(source, ".").tokens, split(address, "."))


@settings(max_examples=examples(1000), deadline=None)
@given(joined(["a", "b", ""], ".:", 4).filter(bool), joined(["a", "b", ""], ".:", 4))
def test_literal_pattern_matches_itself_only(source: str, address: str) -> None:
    assert match(source, source) == {}
    assert match(source, address) == ({} if source == address else None)


# -- Cost ------------------------------------------------------------------------------------------------------------


def cost(matcher: Matcher[Any], address: str) -> int:
    """Count the lines of the module that a match runs: every turn of every loop, and every call, is in it."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if frame.f_globals["__name__"] != Matcher.__module__:
            return None
        count += 1
        return trace

    matcher.match(address)  # compiles the expression that splits, once
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        matcher.match(address)
    finally:
        sys.settrace(before)
    return count


def test_cost_does_not_grow_with_other_routes() -> None:
    matcher: Matcher[int] = Matcher()
    matcher.add(Pattern.parse("orders.{id}.created"), 0)
    matcher.add(Pattern.parse("orders.#"), 1)
    alone = cost(matcher, "orders.7.created")
    assert alone > 50
    for n in range(10_000):
        matcher.add(Pattern.parse(f"other{n}.{{id}}.created"), n)
        matcher.add(Pattern.parse(f"orders.{n + 8}.created"), n)
    assert cost(matcher, "orders.7.created") == alone


@pytest.mark.parametrize("source", ["#.a.#.a.#.a.#.b", "#.#.#.#.#.#.b", "#.{x}.#.{y}.#.{z}.#.a.#.b"])
def test_cost_of_many_wildcards_is_linear(source: str) -> None:
    matcher: Matcher[int] = Matcher()
    matcher.add(Pattern.parse(source), 0)
    short, long = (cost(matcher, ".".join(["a"] * n)) for n in (30, 60))
    assert short < long < 2.2 * short
    assert matcher.match(".".join(["a"] * 200)) == []


@given(
    left=st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5),
    right=st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5),
    address=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=6),
)
@settings(max_examples=examples(2000), deadline=None)
def test_patterns_that_share_an_address_overlap(left: list[str], right: list[str], address: list[str]) -> None:
    patterns = [Pattern.parse(".".join(segments)) for segments in (left, right)]
    matched = []
    for pattern in patterns:
        matcher: Matcher[None] = Matcher()
        matcher.add(pattern, None)
        matched.append(bool(matcher.match(".".join(address))))
    assert not all(matched) or patterns[0].overlaps(patterns[1])
    assert patterns[0].overlaps(patterns[1]) == patterns[1].overlaps(patterns[0])


@pytest.mark.parametrize(
    ("left", "right"), [("a", "b"), ("a.*", "a"), ("a.#", "b.#"), ("#.a", "b.b"), ("{x}.a", "a.b")]
)
def test_patterns_without_a_common_address_do_not_overlap(left: str, right: str) -> None:
    assert not Pattern.parse(left).overlaps(Pattern.parse(right))
