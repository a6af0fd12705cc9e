"""From the bytes of an event to the type that a handler declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from dispytch._core.codec import Deserializer
from dispytch._core.envelope import Opened
from dispytch.errors import DecodeError

__all__ = ["BodyType"]

# Errors whose text quotes the input, or is the text of a validator of the user's, are named by their type alone.
_QUOTING = {"value_error", "assertion_error", "union_tag_invalid"}
_KNOWN = set(get_args(ErrorType)) - _QUOTING
_MOST_SHOWN = 5


class BodyType:
    """A type that a handler or a provider declares for an event's body; validators are made once for each codec."""

    __slots__ = ("_validators", "accepts_null", "adapter", "annotation", "name")

    def __init__(self, annotation: Any) -> None:
        """Raises pydantic's own errors if it cannot validate the annotation."""
        self.annotation: Any = annotation
        self.adapter: TypeAdapter[Any] = TypeAdapter(self.annotation)
        self.name = getattr(self.annotation, "__name__", None) or str(self.annotation)
        self._validators: dict[tuple[Deserializer, str | None], Callable[[bytes], Any]] = {}
        try:
            self.accepts_null = self.adapter.validate_python(None) is None
        except Exception:
            self.accepts_null = False

    def read(self, opened: Opened) -> Any:
        """The validated body.

        Raises:
            DecodeError: the bytes are malformed or do not fit; the message names the places, not the values.
        """
        data = opened.data
        if data is None:
            return None
        validate = self._validators.get((opened.codec, opened.nested))
        if validate is None:
            validate = self._compile(opened.codec, opened.nested)
        try:
            return validate(data)
        except ValidationError as error:
            problem = self._describe(error, opened.nested)
        except DecodeError:
            raise
        except Exception as error:
            problem = f"the payload is not what {type(opened.codec).__name__} reads ({type(error).__name__})"
        # Raised out of the except clause, so that the original, which quotes the payload, is not its context.
        raise DecodeError(problem)

    def _compile(self, codec: Deserializer, nested: str | None) -> Callable[[bytes], Any]:
        if nested is None:
            validate = codec.validator(self.adapter)
        else:
            around: Any = create_model("Envelope", **{nested: (self.annotation, ...)})  # type: ignore[call-overload]  # the name varies
            inner = codec.validator(TypeAdapter(around))

            def validate(data: bytes) -> Any:
                return getattr(inner(data), nested)

        self._validators[codec, nested] = validate
        return validate

    def _describe(self, error: ValidationError, nested: str | None) -> str:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        shown = "; ".join(_problem(detail, nested) for detail in details[:_MOST_SHOWN])
        more = f"; and {len(details) - _MOST_SHOWN} more" if len(details) > _MOST_SHOWN else ""
        return f"the event's body does not fit {self.name}: {shown}{more}"


def _problem(detail: ErrorDetails, nested: str | None) -> str:
    location = list(detail["loc"])
    if nested is not None and location[:1] == [nested]:
        location = location[1:]
    if detail["type"] == "extra_forbidden":
        location[-1:] = ["…"]
    # A location may hold keys of the payload, so only what could be a field's name is repeated.
    path = ".".join(str(part) if isinstance(part, int) or part.isidentifier() else "…" for part in location)
    text = detail["msg"] if detail["type"] in _KNOWN else detail["type"]
    return f"{path}: {text}" if path else text
