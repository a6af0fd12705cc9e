"""MessagePack: compact, binary fields kept as they are. Needs the extra ``msgpack``."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from dispytch._core.codec import Deserializer, Serializer
from dispytch.errors import ConfigurationError, MissingExtraError

__all__ = ["MessagePackDeserializer", "MessagePackSerializer"]


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise MissingExtraError(
            'MessagePack needs the package "msgpack", which is not installed: pip install "dispytch[msgpack]"'
        ) from error
    return msgpack


def _plain(value: Any) -> Any:
    return value.model_dump(by_alias=True) if isinstance(value, BaseModel) else to_jsonable_python(value)


class MessagePackSerializer(Serializer):
    """MessagePack; bytes stay bytes, what it has no form for (dates, UUIDs, decimals, sets) is written as in JSON.

    Raises:
        MissingExtraError: the package ``msgpack`` is not installed.
    """

    content_type: ClassVar[str] = "application/msgpack"

    def __init__(self) -> None:
        self._pack = _msgpack().packb

    def serialize(self, payload: Any) -> bytes:
        packed: bytes = self._pack(payload, default=_plain)
        return packed


class MessagePackDeserializer(Deserializer):
    """MessagePack into data. Nothing in a message can make it allocate more than the payload justifies.

    Args:
        max_items: How many entries one array or map may have. An empty map is one byte on the wire and 64 in memory, so
            that a payload of 1 MB would have 73 MB decoded.

    Raises:
        ConfigurationError: ``max_items`` is not positive.
        MissingExtraError: the package ``msgpack`` is not installed.
    """

    content_type: ClassVar[str | None] = "application/msgpack"

    def __init__(self, max_items: int = 131_072) -> None:
        if max_items < 1:
            raise ConfigurationError(f"max_items={max_items}: give a positive number of entries")
        self._unpack = _msgpack().unpackb
        self._max_items = max_items

    def deserialize(self, data: bytes) -> Any:
        # Lengths are bounded by the payload's own, too: memory is set aside for as many entries as a message claims.
        most = min(self._max_items, len(data))
        # Maps may have integer keys, as in dict[int, str].
        return self._unpack(data, strict_map_key=False, max_array_len=most, max_map_len=most)
