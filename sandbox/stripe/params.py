"""Form parameters: decoding of `a[b][0]=c` and the checks that an endpoint makes before it does anything.

A parameter that the stand-in does not model is refused, never ignored: a test would otherwise rely on nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sandbox.stripe.errors import ParameterError

Params = dict[str, Any]
# Takes the decoded value and the parameter's full name, returns the typed value or raises ParameterError.
Check = Callable[[Any, str], Any]

METADATA_KEYS = 50
METADATA_KEY_LENGTH = 40
METADATA_VALUE_LENGTH = 500


def decode(pairs: Iterable[tuple[str, str]]) -> Params:
    """Return nested dicts; arrays are dicts keyed by index until `array` checks them."""
    decoded: Params = {}
    for name, value in pairs:
        first, *rest = re.split(r"\]?\[", name.removesuffix("]"))
        target, key = decoded, first
        for part in rest:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ParameterError(f"Invalid parameter: {name}", param=name)
            key = part or str(len(target))
        target[key] = value
    return decoded


def text(value: Any, name: str) -> str:
    """Accept a string with something in it; `unsettable` is for those that may be emptied."""
    if not isinstance(value, str):
        raise ParameterError(f"Invalid string: {value}", param=name)
    if not value:
        raise ParameterError(f"You passed an empty string for '{name}'.", code="parameter_invalid_empty", param=name)
    return value


def number(least: int | None = None, most: int | None = None) -> Check:
    """Accept an integer within bounds."""

    def check(value: Any, name: str) -> int:
        if not isinstance(value, str) or not re.fullmatch(r"-?\d+", value):
            raise ParameterError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
        found = int(value)
        if (least is not None and found < least) or (most is not None and found > most):
            raise ParameterError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
        return found

    return check


def boolean(value: Any, name: str) -> bool:
    """Accept true or false."""
    if value not in ("true", "false"):
        raise ParameterError(f"Invalid boolean: {value}", param=name)
    return bool(value == "true")


def choice(*allowed: str) -> Check:
    """Accept one of the given words."""

    def check(value: Any, name: str) -> str:
        if value not in allowed:
            raise ParameterError(f"Invalid {name}: must be one of {', '.join(allowed)}", param=name)
        return str(value)

    return check


def currency(value: Any, name: str) -> str:
    """Accept a currency code in any case, return it in lower case."""
    if not re.fullmatch(r"[A-Za-z]{3}", text(value, name)):
        raise ParameterError(f"Invalid currency: {value}", param=name)
    return str(value).lower()


def decimal(value: Any, name: str) -> str:
    """Accept an amount with at most 12 decimals."""
    if not re.fullmatch(r"\d+(\.\d{1,12})?", text(value, name)):
        raise ParameterError(f"Invalid decimal: {value}", param=name)
    return str(value)


def metadata(value: Any, name: str) -> dict[str, str]:
    """Accept a flat object of strings, or the empty string, which unsets all keys."""
    if value == "":
        return {}
    if not isinstance(value, dict) or any(not isinstance(entry, str) for entry in value.values()):
        raise ParameterError(f"Invalid object: {name}", param=name)
    if len(value) > METADATA_KEYS:
        raise ParameterError(f"{name} can have up to {METADATA_KEYS} keys", param=name)
    for key, entry in value.items():
        if len(key) > METADATA_KEY_LENGTH or len(entry) > METADATA_VALUE_LENGTH:
            raise ParameterError("Metadata key or value is too long", param=f"{name}[{key}]")
    return value


def array(item: Check, most: int | None = None) -> Check:
    """Accept a list of checked items."""

    def check(value: Any, name: str) -> list[Any]:
        if value == "":
            return []
        if not isinstance(value, dict) or any(not key.isdigit() for key in value):
            raise ParameterError("Invalid array", param=name)
        if most is not None and len(value) > most:
            raise ParameterError(f"Array {name} can have at most {most} items", param=name)
        return [item(value[key], f"{name}[{key}]") for key in sorted(value, key=int)]

    return check


def fields(known: Mapping[str, Check], required: Collection[str] = ()) -> Check:
    """Accept an object of known members; only those that were sent are returned."""

    def check(value: Any, name: str) -> Params:
        if not isinstance(value, dict):
            raise ParameterError("Invalid object", param=name)
        for key in value:
            if key not in known:
                full = _join(name, key)
                raise ParameterError(f"Received unknown parameter: {full}", code="parameter_unknown", param=full)
        for key in required:
            if key not in value:
                raise missing(_join(name, key))
        return {key: known[key](entry, _join(name, key)) for key, entry in value.items()}

    return check


def either(first: Check, second: Check) -> Check:
    """Accept what either check accepts, refuse with the words of the second."""

    def check(value: Any, name: str) -> Any:
        try:
            return first(value, name)
        except ParameterError:
            return second(value, name)

    return check


def unsettable(inner: Check) -> Check:
    """Accept the empty string as None: that is how a caller clears a value."""

    def check(value: Any, name: str) -> Any:
        return None if value == "" else inner(value, name)

    return check


def missing(name: str) -> ParameterError:
    """Return the refusal of a request that lacks a parameter."""
    return ParameterError(f"Missing required param: {name}.", code="parameter_missing", param=name)


def merged_metadata(stored: dict[str, str], params: Params) -> dict[str, str]:
    """Return stored metadata after an update: sent keys replace, empty values remove, an empty object removes all."""
    if "metadata" not in params:
        return stored
    sent: dict[str, str] = params["metadata"]
    return {key: value for key, value in ({**stored, **sent} if sent else {}).items() if value != ""}


def _join(prefix: str, key: str) -> str:
    return f"{prefix}[{key}]" if prefix else key
