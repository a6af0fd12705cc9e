"""From pydantic's types to the schemas of AsyncAPI, which are JSON Schema draft 07 and a little more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema

from dispytch.errors import ConfigurationError

__all__ = ["PLACE", "Mode", "Schema", "Schemas", "as_json_text", "referred", "resolve"]

Schema = dict[str, Any]
Mode = Literal["validation", "serialization"]

PLACE = "#/components/schemas/"

_ONE = ("items", "additionalItems", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "definitions", "$defs", "dependentSchemas")


class _Generator(GenerateJsonSchema):
    """Leaves open what has no JSON schema, instead of failing; and does not warn of it."""

    def handle_invalid_for_json_schema(self, schema: core_schema.CoreSchema, error_info: str) -> JsonSchemaValue:
        return {}

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        pass


class Schemas:
    """The schemas of a set of types, made together so that each class has one name.

    Args:
        wanted: The types, each with what it is read by (``"validation"``) or written by (``"serialization"``).

    Raises:
        ConfigurationError: pydantic cannot make one of them.
    """

    def __init__(self, wanted: Iterable[tuple[TypeAdapter[Any], Mode]]) -> None:
        self._adapters: dict[tuple[int, Mode], TypeAdapter[Any]] = {}
        for adapter, mode in wanted:
            self._adapters[id(adapter), mode] = adapter
        inputs = [(key, key[1], adapter) for key, adapter in self._adapters.items()]
        found, rest = _generate(inputs)
        defined = {name: as_draft_7(schema) for name, schema in rest.items()}
        self._names = _merged(defined)
        self._found = {key: self._named(as_draft_7(schema)) for (key, _), schema in found.items()}
        self.components: dict[str, Schema] = {
            self._names.get(name, name): self._named(schema) for name, schema in defined.items()
        }

    def of(self, adapter: TypeAdapter[Any], mode: Mode) -> Schema:
        """The schema of one of the types."""
        return self._found[id(adapter), mode]

    def _named(self, schema: Schema) -> Schema:
        named: Schema = _with_names(schema, self._names)
        return named


def _generate(
    inputs: Sequence[tuple[tuple[int, Mode], Mode, TypeAdapter[Any]]],
) -> tuple[Mapping[tuple[Any, Mode], Schema], dict[str, Schema]]:
    if not inputs:
        return {}, {}
    try:
        found, rest = TypeAdapter.json_schemas(
            inputs, by_alias=True, ref_template=f"{PLACE}{{model}}", schema_generator=_Generator
        )
    except Exception as error:
        raise _refusal(inputs, error) from error
    return found, rest.get("$defs", {})


def _refusal(inputs: Sequence[tuple[tuple[int, Mode], Mode, TypeAdapter[Any]]], error: Exception) -> ConfigurationError:
    for _, mode, adapter in inputs:
        try:
            adapter.json_schema(mode=mode, schema_generator=_Generator)
        except Exception as own:  # which is told: pydantic's, or one of a __get_pydantic_json_schema__ of the user's
            name = getattr(adapter._type, "__name__", str(adapter._type))
            hint = "" if isinstance(own, PydanticInvalidForJsonSchema) else f" ({type(own).__name__})"
            return ConfigurationError(f"there is no JSON schema of {name}{hint}: {own}; mend the type, or leave it out")
    return ConfigurationError(f"pydantic cannot make the JSON schemas ({type(error).__name__}): {error}")


# --- draft 07


def as_draft_7(schema: Any) -> Any:
    """A schema of pydantic's, which is of 2020-12, in the words of draft 07."""
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for name, value in schema.items():
        if name in _ONE:
            found[name] = [as_draft_7(one) for one in value] if isinstance(value, list) else as_draft_7(value)
        elif name in _SEVERAL and isinstance(value, list):
            found[name] = [as_draft_7(one) for one in value]
        elif name in _NAMED and isinstance(value, dict):
            found[name] = {key: as_draft_7(one) for key, one in value.items()}
        else:
            found[name] = value
    if "prefixItems" in found:
        if "items" in found:
            found["additionalItems"] = found["items"]
        found["items"] = found.pop("prefixItems")
    if isinstance(found.get("discriminator"), dict):
        # There it is a string, and its values must be the names of schemas.
        found["x-discriminator"] = found.pop("discriminator")
    if "$ref" in found and len(found) > 1:  # whatever stands beside a reference is ignored
        found = {"allOf": [{"$ref": found.pop("$ref")}], **found}
    return found


# --- one schema for both modes where they are the same


def _merged(defined: Mapping[str, Schema]) -> dict[str, str]:
    """New names for those that are only apart because they refer to others that are."""
    pairs = {
        name.removesuffix("-Input"): name
        for name in defined
        if name.endswith("-Input")
        and f"{name.removesuffix('-Input')}-Output" in defined
        and name.removesuffix("-Input") not in defined
    }
    while True:
        names = {f"{base}-{mode}": base for base in pairs for mode in ("Input", "Output")}
        different = [
            base
            for base in pairs
            if _with_names(defined[f"{base}-Input"], names) != _with_names(defined[f"{base}-Output"], names)
        ]
        if not different:
            return names
        for base in different:
            del pairs[base]


def _with_names(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_with_names(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _renamed(name, one, names) for name, one in value.items()}


def _renamed(name: str, value: Any, names: Mapping[str, str]) -> Any:
    if name == "$ref" and isinstance(value, str) and value.startswith(PLACE):
        known = value.removeprefix(PLACE)
        return f"{PLACE}{names.get(known, known)}"
    if name == "mapping" and isinstance(value, dict):
        return {key: _renamed("$ref", one, names) for key, one in value.items()}
    return _with_names(value, names)


# --- looking into schemas


def referred(schema: Any) -> str | None:
    """The name of the component that a schema is nothing but a reference to."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith(PLACE):
            return reference.removeprefix(PLACE)
        parts = schema.get("allOf")
        if isinstance(parts, list) and len(parts) == 1:
            return referred(parts[0])
    return None


def resolve(schema: Any, components: Mapping[str, Schema]) -> Schema:
    """A schema with what it refers to in place of the reference; the last one wins where both say something."""
    seen: set[str] = set()
    found: Schema = dict(schema) if isinstance(schema, dict) else {}
    while (name := referred(found)) is not None and name not in seen:
        seen.add(name)
        target = components.get(name)
        found = {
            **(target if isinstance(target, dict) else {}),
            **{key: value for key, value in found.items() if key not in ("$ref", "allOf")},
        }
    return found


def as_json_text(value: Any) -> list[str]:
    """The values that a schema lists, as texts; none if it lists none."""
    if not isinstance(value, dict):
        return []
    listed = [value["const"]] if "const" in value else value.get("enum", [])
    return [one if isinstance(one, str) else _text(one) for one in listed if one is not None]


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
