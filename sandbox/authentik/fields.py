"""Validation of request bodies: known fields are checked, unknown ones are never even looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sandbox.authentik.errors import ApiError
from sandbox.state import Document


class Fields:
    """The fields of one body; what is wrong is collected, because Authentik reports all of it at once."""

    def __init__(self, body: Document, *, partial: bool) -> None:
        """Read a body; in a partial one (PATCH) nothing is required."""
        self._body = body
        self._partial = partial
        self._wrong: dict[str, list[str]] = {}
        self.valid: Document = {}

    def check(self, name: str, problem: Callable[[Any], str | None], *, required: bool = False) -> None:
        """Take over a field if `problem` finds none in its value; an absent one is wrong only if required."""
        if name not in self._body:
            if required and not self._partial:
                self._wrong[name] = ["This field is required."]
            return
        value = self._body[name]
        text = "This field may not be null." if value is None else problem(value)
        if text is None:
            self.valid[name] = value
        else:
            self._wrong[name] = [text]

    def done(self) -> Document:
        """Return the valid fields.

        Raises:
            ApiError: 400 naming every field that is wrong.
        """
        if self._wrong:
            raise ApiError(400, self._wrong)
        return self.valid


def text_problem(*, blank: bool = False, longest: int | None = None) -> Callable[[Any], str | None]:
    """Return the check of a text field."""

    def problem(value: Any) -> str | None:
        if not isinstance(value, str):
            return "Not a valid string."
        if not blank and not value.strip():
            return "This field may not be blank."
        if longest is not None and len(value) > longest:
            return f"Ensure this field has no more than {longest} characters."
        return None

    return problem


def flag_problem(value: Any) -> str | None:
    """Check a boolean field."""
    return None if isinstance(value, bool) else "Must be a valid boolean."


def object_problem(value: Any) -> str | None:
    """Check an `attributes` field."""
    return None if isinstance(value, dict) else "Value must be a dictionary, and not have any duplicate keys."


def choice_problem(choices: Sequence[str]) -> Callable[[Any], str | None]:
    """Return the check of an enumerated field."""
    return lambda value: None if value in choices else f'"{value}" is not a valid choice.'


def keys_problem(exists: Callable[[Any], bool]) -> Callable[[Any], str | None]:
    """Return the check of a list of primary keys."""

    def problem(value: Any) -> str | None:
        if not isinstance(value, list):
            return f'Expected a list of items but got type "{type(value).__name__}".'
        unknown = next((key for key in value if not exists(key)), None)
        return None if unknown is None else f'Invalid pk "{unknown}" - object does not exist.'

    return problem
