"""What a codec implements, and JSON, the codec that the envelopes themselves are written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json, to_json

__all__ = ["Deserializer", "JSONDeserializer", "JSONSerializer", "Serializer"]

T = TypeVar("T")


class Serializer(ABC):
    """Turns an event's body into bytes. Called from several threads at once."""

    content_type: ClassVar[str]
    """The media type of the bytes, sent along with them."""

    @abstractmethod
    def serialize(self, payload: Any) -> bytes:
        """The bytes of a pydantic model, or of plain data that may hold models.

        Raises:
            Exception: any, if the payload has no form in this codec; the emitter wraps it in an EmitRejectedError.
        """


class Deserializer(ABC):
    """Turns bytes into data. Called from several threads at once."""

    content_type: ClassVar[str | None] = None
    """The media type that it reads, for documents; ``None`` if that cannot be told."""

    @abstractmethod
    def deserialize(self, data: bytes) -> Any:
        """The data: mappings, lists, strings, numbers, booleans, None.

        Raises:
            Exception: any, if the bytes are malformed; the dispatcher makes it a DecodeError without their content.
        """

    def validator(self, adapter: TypeAdapter[T]) -> Callable[[bytes], T]:
        """A function from bytes to a validated value, made once for each type.

        Override it where the codec can validate without building the data first.
        """
        deserialize, validate = self.deserialize, adapter.validate_python
        return lambda data: validate(deserialize(data))


class JSONSerializer(Serializer):
    """UTF-8 JSON; field aliases are the names on the wire, since validation reads those."""

    content_type: ClassVar[str] = "application/json"

    def serialize(self, payload: Any) -> bytes:
        if isinstance(payload, BaseModel):
            return payload.__pydantic_serializer__.to_json(payload, by_alias=True)
        return to_json(payload, by_alias=True, inf_nan_mode="strings")


class JSONDeserializer(Deserializer):
    """JSON into data, or straight into a validated type in pydantic's JSON mode."""

    content_type: ClassVar[str | None] = "application/json"

    def deserialize(self, data: bytes) -> Any:
        return from_json(data)

    def validator(self, adapter: TypeAdapter[T]) -> Callable[[bytes], T]:
        return adapter.validator.validate_json
