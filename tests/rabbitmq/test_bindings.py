"""Binding keys let through whatever the pattern matches."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispytch._core.patterns import Matcher, Pattern
from dispytch.errors import BrokerUnreachableError
from dispytch.rabbitmq.bindings import binding_key
from dispytch.rabbitmq.tags import Tags
from dispytch.rabbitmq.topology import Refused, Topology


def topic_matches(binding: str, key: str) -> bool:
    """How a topic exchange of AMQP 0-9-1 matches."""

    def match(pattern: list[str], words: list[str]) -> bool:
        if not pattern:
            return not words
        if pattern[0] == "#":
            return match(pattern[1:], words) or (bool(words) and match(pattern, words[1:]))
        return bool(words) and pattern[0] in ("*", words[0]) and match(pattern[1:], words[1:])

    return match(binding.split("."), key.split("."))


@pytest.mark.parametrize(
    ("pattern", "delimiter", "expected"),
    [
        ("orders.created", None, "orders.created"),
        ("orders.{id}.events", None, "orders.*.events"),
        ("orders.*.#", None, "orders.*.#"),
        ("#", None, "#"),
        ("#.dead", None, "#.dead"),
        ("orders:{id}.events", None, "*.events"),
        ("a/b.{x}", None, "a/b.*"),
        ("a:#", None, "#"),
        ("a.{x}", ".", "a.*"),
        ("a:b.{x}", ".", "a:b.*"),
        ("a-{x}", "-", "*.#"),
        ("v1.a-{x}", "-", "v1.*.#"),
    ],
)
def test_examples(pattern: str, delimiter: str | None, expected: str) -> None:
    assert binding_key(Pattern.parse(pattern, delimiter)) == expected


SEGMENTS = st.sampled_from(["a", "b", "c"])
SEPARATORS = st.sampled_from([".", ":", "/"])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    parts = [draw(st.sampled_from(["a", "b", "*", "#"]))]
    for _ in range(draw(st.integers(0, 4))):
        parts += [draw(SEPARATORS), draw(st.sampled_from(["a", "b", "*", "#"]))]
    return "".join(parts)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    parts = [draw(SEGMENTS)]
    for _ in range(draw(st.integers(0, 5))):
        parts += [draw(SEPARATORS), draw(SEGMENTS)]
    return "".join(parts)


@settings(max_examples=1500, deadline=None)
@given(patterns(), addresses(), st.sampled_from([None, ".", ":", "/", ".:"]))
def test_whatever_the_pattern_matches_gets_through(source: str, address: str, delimiter: str | None) -> None:
    try:
        pattern = Pattern.parse(source, delimiter)
    except Exception:  # a wildcard that is only a part of a segment under this delimiter
        return
    matcher: Matcher[int] = Matcher(delimiter)
    matcher.add(pattern, 1)
    if matcher.match(address):
        assert topic_matches(binding_key(pattern), address)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_tag_is_settled_twice_and_none_is_left_out(data: st.DataObject) -> None:
    tags = Tags()
    at_broker: set[int] = set()
    wanted: set[int] = set()
    received = 0
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(data.draw(st.integers(0, 5))):
            received += 1
            tags.add(received)
            at_broker.add(received)
        candidates = st.lists(st.integers(1, received or 1), max_size=6)
        acks, releases = data.draw(candidates), data.draw(candidates)
        verdict = tags.settle(acks, set(releases) - set(acks))
        for tag in verdict.release:
            at_broker.remove(tag)
        if verdict.up_to is not None:
            assert verdict.up_to in at_broker  # else RabbitMQ closes the channel
            assert {tag for tag in at_broker if tag <= verdict.up_to} <= set(acks)
            at_broker -= set(range(verdict.up_to + 1))
        for tag in verdict.single:
            at_broker.remove(tag)
        wanted |= (set(acks) | set(releases)) & set(range(received + 1))
        assert at_broker == set(range(1, received + 1)) - wanted == set(tags.open())


def test_what_is_away_for_a_while_is_not_taken_for_missing() -> None:
    for step, _ in enumerate(Topology({}, declare=True, queues={"q": None}).steps()):
        assert step < 10
    steps = Topology({}, declare=True, queues={"q": None}).steps()
    next(steps)
    with pytest.raises(BrokerUnreachableError):
        steps.throw(
            Refused(404, "NOT_FOUND - home node 'b@c' of durable queue 'q' in vhost '/' is down or inaccessible")
        )


def test_words_of_a_binding_are_never_half_wild() -> None:
    assert not re.search(r"[^.]\*|\*[^.]", binding_key(Pattern.parse("x:{y}/z.{w}")))
