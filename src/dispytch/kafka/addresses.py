"""From subscriptions to what librdkafka subscribes to: names, and the narrowest expressions for patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dispytch._core.patterns import Pattern
from dispytch.abc import Subscription
from dispytch.errors import ConfigurationError
from dispytch.kafka.routes import illegal_in_topic, topic_problem

__all__ = ["Topics", "check_pattern", "expression"]

_DEAD_SUFFIX = ".dead"
_INTERNAL = "__"
_VARYING = re.compile(r"\{[^{}]*\}|[*#]")


def check_pattern(source: str) -> None:
    """Raises ConfigurationError if no topic of Kafka can have an address that fits a pattern."""
    fixed = _VARYING.sub("", source)
    if fixed == source and (problem := topic_problem(source)) is not None:
        raise ConfigurationError(f"the topic {source!r} {problem}; no event can come from it")
    if (character := illegal_in_topic(fixed)) is not None:
        raise ConfigurationError(
            f"the pattern {source!r} holds {character!r}, and topics of Kafka are made of letters, digits, '.', '_' "
            "and '-' only; no event can come by it"
        )


def expression(pattern: Pattern) -> str:
    """The expression that matches every topic that fits a pattern, and few besides; POSIX, extended."""
    delimiter = "." if pattern.delimiter is None else pattern.delimiter
    one = f"[^{delimiter}]*" if len(delimiter) == 1 and delimiter not in "^]-" else ".*"
    found = ""
    is_first = True
    is_joined = False  # whether the separator before the next token is in the expression already
    for number, token in enumerate(pattern.tokens):
        separator = "" if is_first or is_joined else _quoted(token.separator)
        is_last = number == len(pattern.tokens) - 1
        is_joined = False
        if token.kind == "many":
            if is_first and not is_last:
                found += f"(.*{_quoted(pattern.tokens[number + 1].separator)})?"
                is_joined = True
            else:
                found += f"({separator}.*)?"
        else:
            found += separator + (one if token.kind == "one" else _quoted(token.text))
        is_first = False
    return f"^{found}$"


def _quoted(text: str) -> str:
    return text.replace(".", "[.]")


class Topics:
    """What a consumer subscribes to.

    Attributes:
        literal: Topics by name.
        patterns: Expressions for further ones.
        dead: Dead-letter topics that must exist.
        blacklist: librdkafka's setting for what no pattern is to match.
    """

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        self.literal: list[str] = []
        self.patterns: list[str] = []
        self.dead: list[str] = []
        for item in subscriptions:
            if item.pattern.is_literal:
                self._add(self.literal, item.pattern.source)
            else:
                self._add(self.patterns, expression(item.pattern))
            for route in item.dead_letters:
                self._add(self.dead, route.address)

    @property
    def blacklist(self) -> str | None:
        if not self.patterns:
            return None
        hidden = [f"^{_quoted(name)}$" for name in self.dead if name not in self.literal]
        if not any(name.startswith(_INTERNAL) for name in self.literal):
            hidden.append("^__.*")
        if not any(name.endswith(_DEAD_SUFFIX) for name in self.literal):
            hidden.append("^.*[.]dead$")
        return ",".join(hidden) or None

    def takes(self, topic: str) -> bool:
        """Whether a topic is subscribed to by name, or is one that patterns may match."""
        return topic in self.literal or not (
            topic in self.dead or topic.startswith(_INTERNAL) or topic.endswith(_DEAD_SUFFIX)
        )

    @staticmethod
    def _add(names: list[str], name: str) -> None:
        if name not in names:
            names.append(name)
