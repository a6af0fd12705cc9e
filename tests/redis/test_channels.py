"""Globs, and which of several copies of a message counts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dispytch._core.patterns import Matcher, Pattern
from dispytch.abc import Subscription
from dispytch.errors import ConfigurationError
from dispytch.redis import RedisEventRoute, RedisEventSubscription
from dispytch.redis.channels import Channels, encode, glob_expression, glob_of
from tests.redis.helpers import client_of, subscription, unique


@pytest.mark.parametrize(
    ("pattern", "glob"),
    [
        ("order.{id}.events", b"order.*.events"),
        ("order.*", b"order.*"),
        ("#", b"*"),
        ("order.#", b"order*"),
        ("#.events", b"*events"),
        ("#.*", b"*"),
        ("#.#.{x}.#", b"*"),
        ("a.#.b", b"a*.b"),
        ("a?[x]^-\\.{id}", rb"a\?\[x\]\^\-\\.*"),
        ("ä.*", "ä.*".encode()),
    ],
)
def test_glob(pattern: str, glob: bytes) -> None:
    assert glob_of(subscription(pattern)) == glob


def test_glob_with_a_delimiter_of_its_own() -> None:
    assert glob_of(subscription("a-{id}-b.c", "-")) == rb"a\-*\-b.c"


def test_globs_fit_whatever_the_pattern_does() -> None:
    chance = random.Random(7)
    texts = ["a", "b", "*", "#", "{x}", "c?", "[d]"]
    for _ in range(3000):
        tokens = [chance.choice(texts) for _ in range(chance.randint(1, 4))]
        if tokens.count("{x}") > 1:
            continue
        pattern = Pattern.parse(chance.choice(".:/").join(tokens))
        matcher: Matcher[None] = Matcher()
        matcher.add(pattern, None)
        address = chance.choice(".:/").join(
            chance.choice(["a", "b", "c?", "[d]", ""]) for _ in range(chance.randint(1, 4))
        )
        if matcher.match(address):
            glob = glob_of(Subscription(pattern, RedisEventSubscription(pattern.source)))
            assert glob_expression(glob).fullmatch(address.encode()), (pattern.source, address)


def test_expressions_match_what_the_server_matches(redis_url: str) -> None:
    chance = random.Random(11)
    alphabet = "ab*?[]^-\\c"
    with client_of(redis_url) as client:
        for _ in range(1500):
            glob = "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 7)))
            name = "".join(chance.choice("abc]^-\\") for _ in range(chance.randint(1, 4)))
            sent = encode(glob), encode(name)
            assert bool(glob_expression(sent[0]).fullmatch(sent[1])) is _server_says(client, *sent), sent


def _server_says(client: Any, glob: bytes, name: bytes) -> bool:
    key = b"glob-test:" + name
    client.set(key, b"", px=10_000)
    found: list[bytes] = client.keys(b"glob-test:" + glob)
    client.delete(key)
    return key in found


def test_what_another_subscription_covers_is_left_out() -> None:
    patterns = ["a.b", "a.{x}", "a.*", "a.*.c", "a.b.*", "z", "a.#"]
    channels = Channels.of([subscription(pattern) for pattern in patterns])
    assert channels.channels == (b"z",)
    assert channels.patterns == (b"a*",)


def test_patterns_that_overlap_only_partly_are_both_kept() -> None:
    channels = Channels.of([subscription("a.*.c"), subscription("a.b.*")])
    assert channels.patterns == (b"a.*.c", b"a.b.*")


def test_one_copy_is_taken() -> None:
    channels = Channels.of([subscription("a.*.c"), subscription("a.b.*"), subscription("*.b.c"), subscription("q.r")])
    taken = [glob for glob in channels.patterns if channels.source(b"a.b.c", glob) is not None]
    assert taken == [b"a.*.c"]
    assert channels.source(b"q.r", None) == "q.r"
    assert channels.source(b"q.r", b"*") is None


def test_what_nobody_wants_is_left_out() -> None:
    channels = Channels.of([subscription("order.{id}.events")])
    assert channels.source(b"order.1.events", b"order.*.events") == "order.1.events"
    assert channels.source(b"order.1.2.events", b"order.*.events") is None


def test_wildcards_do_not_bring_dead_letters() -> None:
    declared = RedisEventSubscription()
    everything = Subscription(Pattern.parse("#"), declared, (RedisEventRoute("dead"), RedisEventRoute("named")))
    channels = Channels.of([everything, subscription("named")])
    assert channels.patterns == (b"*",)
    assert channels.source(b"dead", b"*") is None
    assert channels.source(b"named", b"*") == "named"


def test_the_cache_of_channels_does_not_grow() -> None:
    channels = Channels.of([subscription("#")])
    for number in range(10_000):
        assert channels.source(b"%d" % number, b"*") == str(number)
    assert len(channels._known) < 5000


def test_half_a_surrogate_pair_is_no_channel() -> None:
    with pytest.raises(ConfigurationError, match="surrogate"):
        encode("\ud800")


def test_subscriptions_look_as_they_are_written() -> None:
    assert RedisEventSubscription("a", "b") == RedisEventSubscription(channel="a", event="b")
    assert RedisEventSubscription("a") != RedisEventSubscription("b")
    assert hash(RedisEventSubscription("a")) == hash(RedisEventSubscription("a"))
    assert repr(RedisEventSubscription("a")) == "RedisEventSubscription(channel='a', event=None)"
    assert RedisEventSubscription().pattern == "#"
    assert RedisEventSubscription(unique()).transport == "redis"
