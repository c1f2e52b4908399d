"""Properties of management objects: their types, defaults and the patches that change them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.stalwart.errors import SetError, invalid, required

MASK = "****"

_SETS_IN_VARIANTS = frozenset({"roleIds", "enabledPermissions", "disabledPermissions", "algorithms"})


@dataclass(frozen=True)
class Field:
    """One property: `is_set` marks a set in its encoding `{value: true}`, `variants` the allowed `@type` members."""

    type: type
    default: Any = None
    nullable: bool = False
    required: bool = False
    read_only: bool = False
    is_set: bool = False
    variants: tuple[str, ...] = ()


Fields = Mapping[str, Field]

TEXT = Field(str, nullable=True)
NAME = Field(str, required=True)
SET = Field(dict, default={}, is_set=True)
READ_ONLY = Field(str, read_only=True)


def variant(*names: str) -> Field:
    """Return an object property that is one of several kinds, by default the first."""
    return Field(dict, default={"@type": names[0]}, variants=names)


def complete(fields: Fields, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new object with defaults for what was not sent, or raise SetError."""
    for name in sent:
        _writable(fields, name)
    for name, field in fields.items():
        if field.required and sent.get(name) is None:
            raise required(name)
    defaults = {name: copy.deepcopy(field.default) for name, field in fields.items() if not field.read_only}
    document = {**defaults, **{name: value for name, value in sent.items() if value is not None}}
    check(fields, document)
    return document


def patched(fields: Fields, stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object after a JSON-Pointer patch, or raise SetError; a whole property named is replaced."""
    document: dict[str, Any] = copy.deepcopy(dict(stored))
    for pointer, value in patch.items():
        name, *path = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
        field = _writable(fields, name)
        if not path:
            document[name] = copy.deepcopy(field.default) if value is None else value
            continue
        target, parent_is_set = document[name], field.is_set
        for part in path[:-1]:
            if not isinstance(target, dict) or part not in target:
                raise SetError("invalidPatch", "The path does not exist.", properties=[pointer])
            target, parent_is_set = target[part], part in _SETS_IN_VARIANTS
        if not isinstance(target, dict):
            raise SetError("invalidPatch", "The path does not exist.", properties=[pointer])
        if value is None or (parent_is_set and value is False):
            target.pop(path[-1], None)
        else:
            target[path[-1]] = value
    check(fields, document)
    return document


def check(fields: Fields, document: Mapping[str, Any]) -> None:
    """Raise SetError for the first value of a wrong type."""
    for name, field in fields.items():
        value = document.get(name)
        if field.read_only or (value is None and (field.nullable or not field.required)):
            continue
        if not _fits(field, value):
            raise invalid(name, "Invalid value type.")
        if value == "":
            problem = {"type": "MinLength", "property": name, "required": 1}
            raise SetError("validationFailed", validationErrors=[problem])
        if isinstance(value, dict):
            _check_object(name, field, value)


def _fits(field: Field, value: Any) -> bool:
    # bool is an int in Python, but not in JSON.
    return isinstance(value, field.type) and not (field.type is int and isinstance(value, bool))


def _check_object(name: str, field: Field, value: Mapping[str, Any]) -> None:
    if field.variants and value.get("@type") not in field.variants:
        raise invalid(name, f"@type must be one of {', '.join(field.variants)}.")
    sets = [value] if field.is_set else [member for key, member in value.items() if key in _SETS_IN_VARIANTS]
    for members in sets:
        if not isinstance(members, dict) or any(member is not True for member in members.values()):
            raise invalid(name, "A set is an object whose values are true.")


def _writable(fields: Fields, name: str) -> Field:
    field = fields.get(name)
    if field is None:
        raise invalid(name, "Unknown property.")
    if field.read_only:
        raise invalid(name, "Property is read-only.")
    return field
