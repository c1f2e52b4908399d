"""Every error leaves as a problem document (RFC 9457)."""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from pymongo.errors import ConnectionFailure, PyMongoError
from starlette.exceptions import HTTPException

from domain.errors import ControlPlaneError, Unavailable, VendorError
from runtime.logging import get_logger

log = get_logger(__name__)

RETRY_AFTER_SECONDS = 2


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
    return [{"loc": [str(part) for part in error["loc"]], "msg": error["msg"]} for error in errors]


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
    return problem(request, error.status_code, code, str(error.detail))


async def _on_database(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ConnectionFailure):
        away = Unavailable("The database cannot be reached.", code="database_unavailable")
        return await _on_known(request, away)
    return await _on_bug(request, error)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return problem(request, 500, "internal_error", "Something went wrong here; it has been logged.", retryable=True)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of an application leave as a problem document."""
    app.add_exception_handler(ControlPlaneError, _on_known)
    app.add_exception_handler(RequestValidationError, _on_query)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(PyMongoError, _on_database)
    app.add_exception_handler(Exception, _on_bug)
