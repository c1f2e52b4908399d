"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import Field

from domain.model import Model

SCHEMA_REF = "#/components/schemas/{model}"

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and request get the same answer for 24 hours.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N` waits up to N seconds, at most 30, for the end of the job.",
    "schema": {"type": "string"},
}
# For routes that anybody may call.
PUBLIC: dict[str, Any] = {"security": []}


class FieldError(Model):
    """Where a request is wrong, and why."""

    loc: list[str]
    msg: str


class Problem(Model):
    """A problem document (RFC 9457); some codes add members of their own."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    request_id: str
    retryable: bool
    errors: list[FieldError] = Field(default_factory=list)


def install_reference(app: FastAPI) -> None:
    """Let an application describe itself with its bodies, its problem documents and its authentication."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend the document


def _document(app: FastAPI) -> dict[str, Any]:
    # A copy: parts of the document belong to the routes, which other applications share.
    document = copy.deepcopy(get_openapi(title=app.title, version=app.version, routes=app.routes))
    components = document["components"]
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    schemas = components["schemas"]
    schemas["Problem"] = _lift(Problem.model_json_schema(ref_template=SCHEMA_REF), schemas)
    # What FastAPI would answer to a request that is not valid, and this application does not.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = {"application/problem+json": {"schema": {"$ref": SCHEMA_REF.format(model="Problem")}}}
    for path in document["paths"].values():
        for operation in path.values():
            operation.setdefault("security", [{"bearer": []}])
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "A problem", "content": problem}
            for media in operation.get("requestBody", {}).get("content", {}).values():
                media["schema"] = _lift(media["schema"], schemas)
    return document


def _lift(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Move the definitions inside a schema to where its references look for them."""
    schemas.update(schema.pop("$defs", {}))
    return schema
