"""The one way in which the stand-in refuses a request."""

from __future__ import annotations


class ApiError(Exception):
    """An answer with an error status and the JSON that Authentik gives with it."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def detail(status: int, text: str) -> ApiError:
    """Return an error that concerns the request as a whole."""
    return ApiError(status, {"detail": text})


def invalid(field: str, *texts: str) -> ApiError:
    """Return an error that concerns one field of the body or the query."""
    return ApiError(400, {field: list(texts)})
