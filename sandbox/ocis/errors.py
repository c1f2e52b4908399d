"""The one way in which the stand-in refuses a request."""

from __future__ import annotations


class GraphError(Exception):
    """An OData error: callers may rely on status and code, never on the message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


def bad_request(message: str) -> GraphError:
    """Return the refusal of a body or query that makes no sense."""
    return GraphError(400, "invalidRequest", message)


def not_found(message: str) -> GraphError:
    """Return the refusal for what is absent, or for what the caller may not even see."""
    return GraphError(404, "itemNotFound", message)
