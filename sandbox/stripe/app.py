"""The HTTP side of the stand-in: credentials, versions, idempotency, routing, control."""

from __future__ import annotations

import asyncio
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sandbox.faults import CamelModel
from sandbox.state import Document, State
from sandbox.stripe.catalog import Catalog
from sandbox.stripe.customers import Customers
from sandbox.stripe.endpoints import Endpoint
from sandbox.stripe.errors import ParameterError, StripeError
from sandbox.stripe.idempotency import IdempotencyStore, fingerprint
from sandbox.stripe.params import Params, decode, fields
from sandbox.stripe.subscriptions import Status, Subscriptions

API_VERSION = "2026-10-28.endive"
# A request takes a moment, in which the same idempotency key can arrive again.
WORK_SECONDS = 0.002

Handler = Callable[[Request], Awaitable[Response]]


class NextFailure(CamelModel):
    """The next POST to a path that the expression finds does nothing and fails; its key remembers the failure."""

    path: re.Pattern[str]
    status: int = Field(default=500, ge=500, le=599)


class SubscriptionStatus(CamelModel):
    """Puts a subscription into a status that only payments would lead to."""

    id: str
    status: Status


def create_app(state: State, *, public_url: str, token: str) -> ASGIApp:  # noqa: ARG001
    """Build the stand-in on its stored state; `token` is the secret key that it accepts.

    `public_url` belongs to what every stand-in is given: no answer of this API names its own address.
    """
    return _Api(state, token).app()


class _Api:
    def __init__(self, state: State, token: str) -> None:
        self._state = state
        self._token = token
        self._kept = IdempotencyStore(state)
        self._subscriptions = Subscriptions(state)
        self._endpoints = [
            Endpoint("GET", "/v1/balance", fields({}), _balance),
            *Catalog(state).endpoints(),
            *Customers(state, self._subscriptions.cancel_all).endpoints(),
            *self._subscriptions.endpoints(),
        ]
        self._failures: list[NextFailure] = []

    def app(self) -> Starlette:
        routes = [
            Route("/_sandbox/objects", self._objects, methods=["GET"]),
            Route("/_sandbox/fail-next", self._fail_next, methods=["POST"]),
            Route("/_sandbox/expire-idempotency-keys", self._expire_keys, methods=["POST"]),
            Route("/_sandbox/subscription-status", self._set_status, methods=["POST"]),
            *(Route(endpoint.path, self._handler(endpoint), methods=[endpoint.method]) for endpoint in self._endpoints),
        ]
        return Starlette(routes=routes, exception_handlers={404: self._unknown_url, 405: self._unknown_url})

    def _handler(self, endpoint: Endpoint) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                self._authenticate(request)
                return await self._carry_out(endpoint, request)
            except StripeError as error:
                return _answer(request, error.status, error.body())

        return handle

    def _authenticate(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if not key:
            raise StripeError("You did not provide an API key.", status=401)
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode(), self._token.encode()):
            raise StripeError("Invalid API Key provided.", status=401)

    async def _carry_out(self, endpoint: Endpoint, request: Request) -> Response:
        encoded = (await request.body()).decode("utf-8", "replace") if endpoint.method == "POST" else request.url.query
        sent = decode(parse_qsl(encoded, keep_blank_values=True))
        key = request.headers.get("idempotency-key", "") if endpoint.method == "POST" else ""
        same = fingerprint(request.method, request.url.path, sent)
        if not key:
            status, body = self._run(endpoint, request, endpoint.check(sent, ""))
            return _answer(request, status, body)
        kept = self._kept.find(key, same)
        if kept is not None:
            return _answer(request, *kept, {"Idempotent-Replayed": "true"})
        params = endpoint.check(sent, "")
        with self._kept.using(key):
            await asyncio.sleep(WORK_SECONDS)
            status, body = self._run(endpoint, request, params)
            self._kept.keep(key, same, status, body)
        return _answer(request, status, body)

    def _run(self, endpoint: Endpoint, request: Request, params: dict[str, Any]) -> tuple[int, Any]:
        failure = self._take_failure(request)
        if failure is not None:
            return failure, StripeError("An unknown error occurred", kind="api_error").body()
        try:
            return 200, endpoint.run(params, **request.path_params)
        except ParameterError:
            raise
        except StripeError as error:
            return error.status, error.body()

    def _take_failure(self, request: Request) -> int | None:
        for failure in self._failures:
            if request.method == "POST" and failure.path.search(request.url.path):
                self._failures.remove(failure)
                return failure.status
        return None

    async def _unknown_url(self, request: Request, _error: Exception) -> Response:
        refusal = StripeError(f"Unrecognized request URL ({request.method}: {request.url.path}).", status=404)
        return _answer(request, refusal.status, refusal.body())

    async def _objects(self, _request: Request) -> Response:
        tables = ("products", "prices", "customers")
        objects = {name: list(self._state.table(name)) for name in tables}
        return JSONResponse({**objects, "subscriptions": self._subscriptions.everything()})

    async def _fail_next(self, request: Request) -> Response:
        try:
            failure = NextFailure.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        self._failures.append(failure)
        return JSONResponse(failure.model_dump(mode="json", by_alias=True), status_code=201)

    async def _expire_keys(self, _request: Request) -> Response:
        return JSONResponse({"expired": self._kept.expire()})

    async def _set_status(self, request: Request) -> Response:
        try:
            wanted = SubscriptionStatus.model_validate_json(await request.body())
            return JSONResponse(self._subscriptions.set_status(wanted.id, wanted.status))
        except (ValidationError, StripeError) as error:
            return JSONResponse({"error": str(error)}, status_code=422)


def _balance(_params: Params) -> Document:
    """Return what an account has that never took a payment."""
    return {"object": "balance", "available": [], "pending": [], "livemode": False}


def _answer(request: Request, status: int, body: Any, extra: Mapping[str, str] | None = None) -> Response:
    headers = {
        "Request-Id": f"req_{uuid.uuid4().hex[:14]}",
        "Stripe-Version": request.headers.get("stripe-version", API_VERSION),
        **(extra or {}),
    }
    if "idempotency-key" in request.headers:
        headers["Idempotency-Key"] = request.headers["idempotency-key"]
    return JSONResponse(body, status_code=status, headers=headers)
