"""Address patterns, and the matcher that finds every pattern an address fits.

An address (a topic, a routing key, a channel) is a row of segments. In a pattern, ``{name}`` captures exactly one
segment, ``*`` matches exactly one, ``#`` matches any number of them (also none), and anything else matches itself.
Separators are significant: ``a.b`` does not match ``a:b``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Literal, NamedTuple, TypeVar

from dispytch.errors import ConfigurationError

__all__ = ["Matcher", "Pattern", "Token", "placeholders", "segments", "split"]

T = TypeVar("T")

_SEPARATORS = (".", ":", "/")
_BRACED = re.compile(r"\{[^{}]*\}")


def split(address: str, delimiter: str | None = None) -> tuple[tuple[str, str], ...]:
    """Return the segments of an address, each with the separator before it (``""`` for the first one).

    ``delimiter`` is what separates segments; without one, each of ``.``, ``:`` and ``/`` does.
    """
    parts = _splitter(delimiter).split(address)
    return tuple(zip(("", *parts[1::2]), parts[::2], strict=True))


def segments(address: str, delimiter: str | None = None) -> tuple[str, ...]:
    """Return the segments of an address, without their separators."""
    return tuple(_splitter(delimiter).split(address)[::2])


@lru_cache
def _splitter(delimiter: str | None) -> re.Pattern[str]:
    """Return the expression that finds, as its only group, the separators of an address."""
    if delimiter is not None and not re.fullmatch(r"[^{}*#\s]+", delimiter):
        raise ConfigurationError(
            f"Delimiter {delimiter!r} cannot separate segments: "
            "write at least one character, and none of '{', '}', '*', '#' and whitespace"
        )
    return re.compile("([.:/])" if delimiter is None else f"({re.escape(delimiter)})")


class Token(NamedTuple):
    """One segment of a pattern: ``text`` is what a literal matches, or the name that a placeholder captures."""

    separator: str
    kind: Literal["literal", "one", "many"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern; make one with ``Pattern.parse``."""

    source: str
    delimiter: str | None
    tokens: tuple[Token, ...]
    names: tuple[str, ...]
    """The names it captures, in order."""
    is_literal: bool
    """It has no wildcard and no placeholder: it matches the address that it spells, and no other."""

    @classmethod
    def parse(cls, source: str, delimiter: str | None = None) -> Pattern:
        """Parse a pattern, or raise ``ConfigurationError`` saying what to write instead."""
        splitter = _splitter(delimiter)
        names = placeholders(source)
        # Braces are atomic: they are hidden, at their length, while the separators are looked for.
        hidden = _BRACED.sub(lambda braced: " " * len(braced[0]), source)
        tokens: list[Token] = []
        start, separator = 0, ""
        for found in splitter.finditer(hidden):
            tokens.append(_token(source, separator, source[start : found.start()]))
            start, separator = found.end(), found[1]
        tokens.append(_token(source, separator, source[start:]))
        return cls(source, delimiter, tuple(tokens), names, all(token.kind == "literal" for token in tokens))

    def overlaps(self, other: Pattern) -> bool:
        """Whether some address may match both; separators are not looked at, so that it errs on the side of yes."""
        rows: dict[tuple[int, int], bool] = {}

        def meet(i: int, j: int) -> bool:
            if (i, j) not in rows:
                rows[i, j] = _meet(self.tokens[i:], other.tokens[j:], lambda di, dj: meet(i + di, j + dj))
            return rows[i, j]

        return meet(0, 0)


def placeholders(source: str) -> tuple[str, ...]:
    """Return the names that a pattern captures, in order; check what can be checked whatever the delimiter."""
    if not source:
        raise ConfigurationError("Pattern '' is empty: write an address, or '#' for every address")
    if re.search(r"[{}]", _BRACED.sub("", source)):
        raise _refusal(source, "its braces do not pair up", "write each placeholder as '{name}', none in another")
    names = tuple(braced[1:-1] for braced in _BRACED.findall(source))
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            better = re.sub(r"\W+", "_", name.strip())
            raise _refusal(
                source,
                f"{{{name}}} does not hold an identifier, or identifiers joined by dots",
                f"write '{{{better if better.isidentifier() else 'name'}}}'",
            )
        if names.count(name) > 1:
            raise _refusal(
                source, f"{{{name}}} occurs twice", "name each placeholder differently, or write '*' for one"
            )
    return names


def _meet(left: tuple[Token, ...], right: tuple[Token, ...], rest: Callable[[int, int], bool]) -> bool:
    if left and left[0].kind == "many":
        return rest(1, 0) or (bool(right) and rest(0, 1))
    if right and right[0].kind == "many":
        return rest(0, 1) or (bool(left) and rest(1, 0))
    if not left or not right:
        return not left and not right
    if left[0].kind == right[0].kind == "literal" and left[0].text != right[0].text:
        return False
    return rest(1, 1)


def _token(source: str, separator: str, segment: str) -> Token:
    if segment == "#":
        return Token(separator, "many")
    if segment == "*":
        return Token(separator, "one")
    if _BRACED.fullmatch(segment):
        return Token(separator, "one", segment[1:-1])
    if braced := _BRACED.search(segment):
        raise _refusal(
            source,
            f"{braced[0]} is only a part of the segment '{segment}'",
            "write '{name}' for the whole segment and take it apart in the handler, or set a delimiter that divides it",
        )
    if "*" in segment or "#" in segment:
        raise _refusal(
            source,
            f"a wildcard is only a part of the segment '{segment}'",
            "write '*' for exactly one whole segment, or '#' for any number of them",
        )
    return Token(separator, "literal", segment)


def _refusal(source: str, problem: str, instead: str) -> ConfigurationError:
    return ConfigurationError(f"Pattern {source!r}: {problem}; {instead}")


class _Node(Generic[T]):
    """What the patterns that begin with the same tokens have in common."""

    __slots__ = ("entries", "literals", "many", "one")

    def __init__(self) -> None:
        self.literals: dict[tuple[str, str], _Node[T]] = {}
        self.one: dict[str, _Node[T]] = {}
        self.many: dict[str, _Node[T]] = {}
        # Of each pattern that ends here: its rank, its value, and its names by the count of one-segment tokens before.
        self.entries: list[tuple[int, T, tuple[tuple[str, int], ...]]] = []


class Matcher(Generic[T]):
    """Finds the values whose patterns an address fits.

    The cost of a match depends on the patterns that begin like the address, not on the number of all patterns.
    """

    __slots__ = ("_delimiter", "_root", "_separators", "_size")

    def __init__(self, delimiter: str | None = None) -> None:
        self._delimiter = delimiter
        self._separators = _SEPARATORS if delimiter is None else (delimiter,)
        self._root: _Node[T] = _Node()
        self._size = 0

    def add(self, pattern: Pattern, value: T) -> None:
        """Add a value; its pattern must have the delimiter of the matcher."""
        if pattern.delimiter != self._delimiter:
            raise ConfigurationError(
                f"Pattern {pattern.source!r} has the delimiter {pattern.delimiter!r} among patterns with "
                f"{self._delimiter!r}; write them all with the same one"
            )
        node = self._root
        picks: list[tuple[str, int]] = []
        ones = 0
        for separator, kind, text in pattern.tokens:
            if kind == "literal":
                node = node.literals.setdefault((separator, text), _Node())
            elif kind == "many":
                node = node.many.setdefault(separator, _Node())
            else:
                node = node.one.setdefault(separator, _Node())
                if text:
                    picks.append((text, ones))
                ones += 1
        node.entries.append((self._size, value, tuple(picks)))
        self._size += 1

    def match(self, address: str) -> list[tuple[T, dict[str, str]]]:
        """Return the values that match, in the order of their addition, each with what its pattern captures.

        Where an address fits a pattern in several ways, each ``#`` takes as little as it can, the first one first.
        """
        parts = split(address, self._delimiter)
        end = len(parts)
        found: dict[int, tuple[T, dict[str, str]]] = {}
        # Depth first, with a stack. A state is a node, the segments used up, and whether the node is a ``#`` that may
        # take more of them. No state is entered twice: what follows from it was found the first time.
        stack: list[tuple[_Node[T], int, bool, tuple[str, ...]]] = [(self._root, 0, False, ())]
        seen: set[tuple[_Node[T], int, bool]] = set()
        while stack:
            node, i, greedy, taken = stack.pop()
            state = (node, i, greedy)
            if state in seen:
                continue
            seen.add(state)
            if greedy and i < end:
                stack.append((node, i + 1, True, taken))
            for separator, child in node.many.items():
                if i == 0 or (i < end and parts[i][0] == separator):
                    stack.append((child, i + 1, True, taken))
                stack.append((child, i, False, taken))
            if i == end:
                for rank, value, picks in node.entries:
                    if rank not in found:
                        found[rank] = value, {name: taken[k] for name, k in picks}
                continue
            segment = parts[i][1]
            # Past a ``#`` that took nothing, the first segment of the address fits whatever the separator.
            keys = (parts[i],) if i or node is self._root else [(separator, segment) for separator in self._separators]
            for key in keys:
                literal, one = node.literals.get(key), node.one.get(key[0])
                if literal is not None:
                    stack.append((literal, i + 1, False, taken))
                if one is not None:
                    stack.append((one, i + 1, False, (*taken, segment)))
        return [found[rank] for rank in sorted(found)]
