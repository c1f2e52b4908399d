"""Every error leaves as a problem document (RFC 9457)."""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.middleware import shown_path
from domain.errors import ControlPlaneError, Unavailable, VendorError
from runtime.logging import get_logger
from store.database import is_connection_loss

log = get_logger(__name__)

RETRY_AFTER_SECONDS = 2
MAX_FIELD_ERRORS = 50
MAX_NAME_SHOWN = 100


def problem(
    request: Request, status: int, code: str, detail: str, *, retryable: bool = False, **extra: Any
) -> JSONResponse:
    """Return a problem document as an answer."""
    body = {
        "type": f"{request.app.state.settings.public_url.rstrip('/')}/problems/{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "instance": request.url.path,
        "requestId": request.scope["state"].get("request_id", ""),
        "retryable": retryable,
        **extra,
    }
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return JSONResponse(body, status, headers, "application/problem+json")


def field_errors(errors: list[ErrorDetails] | list[Any]) -> list[dict[str, Any]]:
    """Return where a payload is wrong and why, without repeating what was sent."""
    # The name of an unknown field is the caller's, and there may be many: the answer stays small.
    shown = errors[:MAX_FIELD_ERRORS]
    return [
        {"loc": [str(part)[:MAX_NAME_SHOWN] for part in each["loc"]], "msg": each["msg"].removeprefix("Value error, ")}
        for each in shown
    ]


async def _on_known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ControlPlaneError)
    if isinstance(error, VendorError):
        # A vendor's words are for operators, and stand on the operation.
        return problem(request, 502, error.code, "An outside system did not answer as needed.", retryable=True)
    return problem(request, error.status, error.code, error.message, retryable=error.retryable, **error.extra)


async def _on_query(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = field_errors(list(error.errors()))
    return problem(request, 422, "invalid", "The request is not valid.", errors=errors)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = http.HTTPStatus(error.status_code).name.lower()
    answer = problem(request, error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        # The framework names the methods of the first route at this path only.
        answer.headers["Allow"] = ", ".join(_methods_at(request))
    return answer


def _methods_at(request: Request) -> list[str]:
    """Return the methods of every route that matches the request's path."""
    methods: set[str] = set()
    for route in request.app.state.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _on_database(request: Request, error: Exception) -> JSONResponse:
    if is_connection_loss(error):
        away = Unavailable("The database cannot be reached.", code="database_unavailable")
        return await _on_known(request, away)
    return await _on_bug(request, error)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    # This handler stands outside the middleware that gives logs and answers their id.
    request_id = request.scope["state"].get("request_id", "")
    log.error("request_failed", request_id=request_id, path=shown_path(request.scope), exc_info=error)
    detail = "Something went wrong here; it has been logged."
    answer = problem(request, 500, "internal_error", detail, retryable=True)
    answer.headers["X-Request-Id"] = request_id
    return answer


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of an application leave as a problem document."""
    app.add_exception_handler(ControlPlaneError, _on_known)
    app.add_exception_handler(RequestValidationError, _on_query)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(PyMongoError, _on_database)
    app.add_exception_handler(Exception, _on_bug)
