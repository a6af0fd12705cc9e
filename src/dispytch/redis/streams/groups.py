"""What a consumer knows of its group and its streams, and the commands about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.redis.source import reply_text, with_advice
from dispytch.redis.streams.wires import packed

__all__ = ["HANDED_BACK", "Group", "Stream", "has_no_stream", "has_vanished", "is_error", "refusal"]

HANDED_BACK = b"dispytch-handed-back"
"""The name under which entries wait that were handed back: whoever looks for idle ones takes them at once."""
_MOST_IDS = 500
_TEMPORARY = (
    "BUSY ",
    "CLUSTERDOWN",
    "ERR max number of clients",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
)
# The only members are those pending with the consumer itself, so nothing comes in between.
_FORGET = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return -1
"""


def is_error(reply: Any) -> bool:
    return isinstance(reply, Exception)


def has_vanished(reply: Any) -> bool:
    """Whether a reply says that the group, or the stream with it, is not there."""
    return is_error(reply) and str(reply).startswith(("NOGROUP", "UNBLOCKED"))


def has_no_stream(reply: Any) -> bool:
    """Whether a group could not be made, since there is no stream for it."""
    return is_error(reply) and "requires the key to exist" in str(reply)


def refusal(reply: Any, address: str, what: str) -> BrokerError:
    """An error reply as an error of ours."""
    text = reply_text(reply)
    kind = BrokerUnreachableError if text.startswith(_TEMPORARY) else BrokerError
    return kind(f"Redis at {address} refused to {what}: {with_advice(text)}")


def _position(id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in id.split(b"-"))


class Stream:
    """One stream, with the entries of it that are in this process.

    Attributes:
        held: When each was taken, by its id, in monotonic time; those that are being handed back, at the end of time.
        origin: Where the group is to begin if it has to be made.
    """

    __slots__ = ("held", "key", "name", "origin")

    def __init__(self, name: str, origin: bytes) -> None:
        self.name: str = name
        self.key: bytes = name.encode()
        self.held: dict[bytes, float] = {}
        self.origin: bytes = origin


class Group:
    """A consumer group, and one consumer of it.

    Args:
        name: The group's name.
        consumer: The consumer's.
        claim_idle: Seconds after which entries that nobody has acknowledged may be claimed.
    """

    def __init__(self, name: str, consumer: str, claim_idle: float) -> None:
        self.name: str = name
        self.key: bytes = name.encode()
        self.consumer: bytes = consumer.encode()
        self.claim_idle: float = claim_idle
        self.streams: dict[bytes, Stream] = {}

    @property
    def holds_something(self) -> bool:
        return any(stream.held for stream in self.streams.values())

    def acknowledge(self, stream: Stream, ids: Sequence[bytes]) -> bytes:
        return packed("XACK", stream.key, self.key, ids=ids)

    def renew(self, stream: Stream, ids: Sequence[bytes]) -> Iterator[bytes]:
        """Tells the others that somebody is at work on these."""
        return self._claim(stream, ids, self.consumer, "JUSTID")

    def hand_back(self, stream: Stream, ids: Sequence[bytes]) -> Iterator[bytes]:
        """Has these taken by whoever looks next, since they were idle for ever; it is not counted as a delivery."""
        return self._claim(stream, ids, HANDED_BACK, "TIME", 0, "RETRYCOUNT", 0, "JUSTID")

    def _claim(self, stream: Stream, ids: Sequence[bytes], consumer: bytes, *options: str | int) -> Iterator[bytes]:
        for start in range(0, len(ids), _MOST_IDS):
            yield packed("XCLAIM", stream.key, self.key, consumer, 0, *ids[start : start + _MOST_IDS], *options)

    def look(self, stream: Stream, cursor: bytes, count: int) -> bytes:
        """Claims what others have left."""
        idle = max(1, int(self.claim_idle * 1000))
        return packed("XAUTOCLAIM", stream.key, self.key, self.consumer, idle, cursor, "COUNT", count)

    def read(self, wanted: Iterable[tuple[Stream, bytes]], count: int, block: int | None = None) -> bytes:
        """Reads on from an id in each stream; ``>`` for what is new to the group."""
        pairs = list(wanted)
        waiting: tuple[str | int, ...] = () if block is None else ("BLOCK", block)
        keys, ids = [stream.key for stream, _ in pairs], [id for _, id in pairs]
        return packed("XREADGROUP", "GROUP", self.key, self.consumer, "COUNT", count, *waiting, "STREAMS", *keys, *ids)

    def state(self, stream: Stream) -> bytes:
        """A look at the group that changes nothing."""
        return packed("XPENDING", stream.key, self.key)

    def deliveries(self, stream: Stream, ids: Sequence[bytes]) -> bytes:
        """How often these, which are pending with us, were delivered."""
        first, last = (sorted(ids, key=_position)[end] for end in (0, -1))
        return packed("XPENDING", stream.key, self.key, first, last, len(stream.held) + len(ids), self.consumer)

    def create(self, stream: Stream, *, with_stream: bool) -> bytes:
        more = ("MKSTREAM",) if with_stream else ()
        return packed("XGROUP", "CREATE", stream.key, self.key, stream.origin, *more)

    def forget(self, stream: Stream) -> bytes:
        """Removes the consumer, unless something is pending with it, which would be lost."""
        return packed("EVAL", _FORGET, 1, stream.key, self.key, self.consumer)
