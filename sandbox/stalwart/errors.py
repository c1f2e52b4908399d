"""The three layers of refusal: of the request, of one method call, of one object in a set."""

from __future__ import annotations

from typing import Any

JMAP_ERROR = "urn:ietf:params:jmap:error:"


class RequestError(Exception):
    """The whole request is refused: an HTTP error with a problem document."""

    def __init__(self, status: int, detail: str, *, kind: str = "about:blank", **members: str) -> None:
        super().__init__(detail)
        self.status = status
        self.problem: dict[str, Any] = {"type": kind, "status": status, "detail": detail, **members}


class MethodError(Exception):
    """One method call is refused; the HTTP status stays 200 and the calls after it still run."""

    def __init__(self, kind: str, description: str | None = None) -> None:
        super().__init__(kind)
        self.body = {"type": kind} if description is None else {"type": kind, "description": description}


class SetError(Exception):
    """One object of a set is refused; `members` are the further members of the JSON object."""

    def __init__(self, kind: str, description: str | None = None, **members: Any) -> None:
        super().__init__(kind)
        self.body: dict[str, Any] = {"type": kind, **members}
        if description is not None:
            self.body["description"] = description


def invalid(name: str, description: str) -> SetError:
    """Return the refusal of a property's value."""
    return SetError("invalidProperties", description, properties=[name])


def required(name: str) -> SetError:
    """Return the refusal of an object that lacks a property."""
    return SetError("validationFailed", validationErrors=[{"type": "Required", "property": name}])
