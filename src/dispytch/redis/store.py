"""What has been handled, remembered in Redis."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from dispytch._bridge import running_backend
from dispytch.abc import Claim, Store
from dispytch.errors import ConfigurationError
from dispytch.redis.senders import current_loop
from dispytch.redis.streams.control import Control
from dispytch.redis.streams.groups import is_error, refusal
from dispytch.redis.streams.producer import stream_source
from dispytch.redis.streams.wires import AsyncioWire, SocketWire, Wire, packed

__all__ = ["RedisStore"]

_TIMEOUT = 5.0
_DONE = b"done"
_OWN = "claimed "
# In one round trip, since a claim that is looked up and then made could be made by two.
_CLAIM = """
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then
  return found
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class RedisStore(Store):
    """Remembers in Redis, for all processes of a group; for `dispytch.middleware.Deduplicate`.

    It has one connection for each event loop, made on first use and made anew when it was lost. Close it, or enter it
    as a context: ``EventDispatcher(..., on_lifespan=lambda dispatcher: store)`` does so around a dispatcher's run.

    What Redis forgets, for instance since it keeps nothing on disk or evicts keys, is handled again if it comes again.

    Args:
        redis: ``redis://user:password@host:6379/0``, ``rediss://`` for TLS, or a ``redis.Redis``, whose address and
            options are taken.
        ttl: Seconds for which an event that was handled is remembered.
        prefix: Before every key, for instance to keep applications apart that share groups' names.

    Raises:
        ConfigurationError: the URL or ``ttl`` is wrong.
        MissingExtraError: redis is not installed.
    """

    def __init__(self, redis: Any, ttl: float, *, prefix: str = "dispytch:handled:") -> None:
        if not (isinstance(ttl, int | float) and 0 < ttl < float("inf")):
            raise ConfigurationError(f"ttl={ttl!r}: give the seconds for which events are remembered")
        self._source = stream_source(redis, "RedisStore")
        if self._source.world == "asyncio":
            raise ConfigurationError("RedisStore takes a URL or a redis.Redis, not a redis.asyncio.Redis")
        self.ttl: float = ttl
        self.prefix: str = prefix
        self._control: Control | None = None
        self._loop: object = None

    def __repr__(self) -> str:
        return f"<RedisStore at {self._source.address}, ttl {self.ttl:g} s>"

    async def claim(self, key: str, token: str, claim_ttl: float) -> Claim:
        """See `Store.claim`.

        Raises:
            BrokerError: Redis cannot be reached, or refuses.
        """
        found = await self._call("claim an event", "EVAL", _CLAIM, 1, self._key(key), _OWN + token, _ms(claim_ttl))
        if found is None:
            return Claim.GRANTED
        return Claim.DONE if found == _DONE else Claim.BUSY

    async def complete(self, key: str) -> None:
        """See `Store.complete`.

        Raises:
            BrokerError: Redis cannot be reached, or refuses.
        """
        await self._call("note an event", "SET", self._key(key), _DONE, "PX", _ms(self.ttl))

    async def release(self, key: str, token: str) -> None:
        """See `Store.release`.

        Raises:
            BrokerError: Redis cannot be reached, or refuses.
        """
        await self._call("release an event", "EVAL", _RELEASE, 1, self._key(key), _OWN + token)

    async def close(self) -> None:
        """Disconnects. Idempotent; it may be used again. In the event loop that has used it."""
        control, self._control = self._control, None
        if control is not None and self._loop is current_loop():
            await control.close()

    async def __aenter__(self) -> RedisStore:
        await self._here().open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _key(self, key: str) -> bytes:
        return (self.prefix + key).encode("utf-8", "surrogatepass")

    async def _call(self, what: str, *words: bytes | str | int) -> Any:
        (reply,) = await self._here().call(packed(*words), timeout=_TIMEOUT)
        if is_error(reply):
            raise refusal(reply, self._source.address, what)
        return reply

    def _here(self) -> Control:
        """The connection of the running loop; one of an earlier loop has ended with it."""
        loop = current_loop()
        if self._control is None or self._loop is not loop:
            self._control, self._loop = Control(self._wire), loop
        return self._control

    def _wire(self) -> Wire:
        if self._source.world == "blocking" or running_backend() == "trio":
            return SocketWire(self._source)
        return AsyncioWire(self._source)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
