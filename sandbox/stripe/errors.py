"""Refusals in the shape of the Billing API."""

from __future__ import annotations

from typing import Any


class StripeError(Exception):
    """A refused request; raised while a request is carried out, it is kept under the request's idempotency key."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._fields = {"type": kind, "message": str(message), "code": code, "param": param}

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON, without the members that do not apply."""
        return {"error": {name: value for name, value in self._fields.items() if value is not None}}


class ParameterError(StripeError):
    """A parameter of the wrong name or form: found before anything is carried out, so no key remembers it."""


def no_such(kind: str, object_id: str, *, param: str | None = None) -> StripeError:
    """Return the refusal of an unknown id: 404 if the path names it (no `param`), else 400."""
    return StripeError(
        f"No such {kind}: '{object_id}'",
        status=404 if param is None else 400,
        code="resource_missing",
        param=param or "id",
    )
