"""From address patterns to channels and glob patterns of Redis, and which of several copies of a message counts.

Redis sends a message once for each subscription of a connection that it fits: for its channel, and for every pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dispytch._core.patterns import Matcher
from dispytch.abc import Subscription
from dispytch.errors import ConfigurationError

__all__ = ["Channels", "decode", "encode", "glob_expression", "glob_of"]

_SPECIAL = re.compile(r"[*?\[\]\\^-]")
_ANYTHING = b"\xff"
"""A byte that no UTF-8 text holds: what a wildcard of one glob stands for when another one is tried on it."""
_MOST_CACHED = 4096


def encode(channel: str) -> bytes:
    """The channel's name as Redis has it.

    Raises:
        ConfigurationError: it is no text.
    """
    try:
        return channel.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"the channel {channel!a} holds half a surrogate pair, which has no bytes: give proper text"
        ) from None


def decode(channel: bytes) -> str:
    """The channel's name for matching; what is not UTF-8 shows as escapes."""
    return channel.decode("utf-8", "backslashreplace")


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)


def glob_of(subscription: Subscription) -> bytes:
    """The narrowest glob that fits every address that the subscription's pattern does."""
    parts: list[str] = []
    only_many = True
    for token in subscription.pattern.tokens:
        # A ``#`` may take nothing, and then its separator is not there either; nor is that of what follows a leading
        # one.
        if token.kind != "many" and not only_many:
            parts.append(_escape(token.separator))
        if token.kind == "literal":
            parts.append(_escape(token.text))
        elif parts[-1:] != ["*"]:
            parts.append("*")
        only_many = only_many and token.kind == "many"
    return encode("".join(parts))


def glob_expression(glob: bytes) -> re.Pattern[bytes]:
    """What a glob of Redis matches, as a regular expression, with the quirks of the server's matcher."""
    parts: list[bytes] = []
    at, end = 0, len(glob)
    while at < end:
        char = glob[at : at + 1]
        at += 1
        if char == b"*":
            parts.append(b".*")
        elif char == b"?":
            parts.append(b".")
        elif char == b"[":
            at, part = _bracket(glob, at)
            parts.append(part)
        else:
            if char == b"\\" and at < end:
                char = glob[at : at + 1]
                at += 1
            parts.append(re.escape(char))
    return re.compile(b"".join(parts), re.DOTALL)


def _bracket(glob: bytes, at: int) -> tuple[int, bytes]:
    """The expression of what follows a ``[``, and where it ends; a missing ``]`` is the end of the glob."""
    negated = glob[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(glob) and glob[at : at + 1] != b"]":
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            members.add(glob[at + 1])
            at += 2
        elif glob[at + 1 : at + 2] == b"-" and at + 2 < len(glob):
            low, high = sorted((glob[at], glob[at + 2]))
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(glob[at])
            at += 1
    listed = b"".join(b"\\x%02x" % member for member in sorted(members))
    if not members:
        return at + 1, b"." if negated else b"(?!)"
    return at + 1, b"[" + (b"^" if negated else b"") + listed + b"]"


def _is_within(glob: bytes, others: Iterable[tuple[bytes, re.Pattern[bytes]]]) -> bool:
    """Whether everything that a glob of `glob_of` fits is fitted by one of the others."""
    example = re.sub(rb"\\(.)|\*", lambda found: found[1] or _ANYTHING, glob, flags=re.DOTALL)
    return any(other != glob and expression.fullmatch(example) for other, expression in others)


class Channels:
    """What a consumer subscribes to, and which of the copies it takes.

    Every message is taken from one deterministic subscription, whatever others it comes by: from its channel's own, or
    else from the first pattern that it fits.

    Args:
        channels: The names that are subscribed at the broker.
        patterns: The globs.
        subscriptions: What the handlers want.
        only_wanted: Whether what no handler wants is left out; dead letters always are, unless named.
    """

    def __init__(
        self,
        channels: Sequence[bytes],
        patterns: Sequence[bytes],
        subscriptions: Sequence[Subscription],
        *,
        only_wanted: bool,
    ) -> None:
        self.channels: tuple[bytes, ...] = tuple(channels)
        self.patterns: tuple[bytes, ...] = tuple(patterns)
        self._literals = frozenset(self.channels)
        self._expressions = [(glob, glob_expression(glob)) for glob in self.patterns]
        self._only_wanted = only_wanted
        self._matchers: dict[str | None, Matcher[None]] = {}
        for item in subscriptions:
            delimiter = item.pattern.delimiter
            self._matchers.setdefault(delimiter, Matcher(delimiter)).add(item.pattern, None)
        named = {item.pattern.source for item in subscriptions if item.pattern.is_literal}
        self._dead = frozenset(route.address for item in subscriptions for route in item.dead_letters) - named
        self._known: dict[bytes, tuple[bytes | None, str | None]] = {}

    @classmethod
    def of(cls, subscriptions: Sequence[Subscription]) -> Channels:
        """The fewest channels and globs that bring all that is wanted."""
        globs = dict.fromkeys(glob_of(item) for item in subscriptions if not item.pattern.is_literal)
        expressions = [(glob, glob_expression(glob)) for glob in globs]
        patterns = [glob for glob in globs if not _is_within(glob, expressions)]
        names = dict.fromkeys(encode(item.pattern.source) for item in subscriptions if item.pattern.is_literal)
        channels = [name for name in names if not any(found.fullmatch(name) for _, found in expressions)]
        return cls(channels, patterns, subscriptions, only_wanted=True)

    def __bool__(self) -> bool:
        return bool(self.channels or self.patterns)

    def __str__(self) -> str:
        names = [decode(name) for name in (*self.channels, *self.patterns)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ", ".join(names[:5]) + more

    def source(self, channel: bytes, pattern: bytes | None) -> str | None:
        """The name of the channel if the copy that came by a pattern, or by the channel itself, is to be taken."""
        known = self._known.get(channel)
        if known is None:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()  # channels may be without number: start over rather than grow
            known = self._known[channel] = self._decide(channel, pattern)
        owner, name = known
        return name if owner == pattern else None

    def covers(self, channel: bytes) -> bool:
        """Whether messages on a channel come by one of the subscriptions."""
        return channel in self._literals or any(found.fullmatch(channel) for _, found in self._expressions)

    def _decide(self, channel: bytes, pattern: bytes | None) -> tuple[bytes | None, str | None]:
        owner: bytes | None = None
        if channel not in self._literals:
            owner = next((glob for glob, found in self._expressions if found.fullmatch(channel)), pattern)
        name = decode(channel)
        is_wanted = not self._only_wanted or any(matcher.match(name) for matcher in self._matchers.values())
        return owner, name if is_wanted and name not in self._dead else None
