"""The HTTP side of the stand-in: credentials, bans, limits, session, control."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sandbox.faults import CamelModel
from sandbox.stalwart import ids, permissions
from sandbox.stalwart.accounts import Accounts
from sandbox.stalwart.dkim import DkimSignatures
from sandbox.stalwart.domains import Domains
from sandbox.stalwart.errors import JMAP_ERROR, RequestError
from sandbox.stalwart.jmap import CAPABILITIES, CORE, MANAGEMENT, MAX_CALLS, MAX_SIZE, SESSION_STATE, Processor
from sandbox.stalwart.registry import MAX_OBJECTS, Registry
from sandbox.stalwart.roles import Roles
from sandbox.state import State

MAX_CONCURRENT = 4
FAILED_LOGINS_BEFORE_BAN = 100
# A request takes a moment, in which others count as concurrent.
WORK_SECONDS = 0.002
# The service's own account is not among the listed ones: ids of those start after it.
SERVICE_ACCOUNT = ids.encode(0)
SERVICE_NAME = "control-plane@stalwart.test"

Handler = Callable[[Request], Awaitable[Response]]


class LostRace(CamelModel):
    """The next create of this kind answers serverUnavailable; `created` says whether it has written nevertheless."""

    object: Literal["x:Domain", "x:Account", "x:Role", "x:DkimSignature"]
    created: bool


def create_app(
    state: State,
    *,
    public_url: str,
    token: str,
    dkim_delay_seconds: float = 0.5,
    erase_delay_seconds: float = 0.5,
) -> ASGIApp:
    """Build the stand-in on its stored state; `token` is the API key that it accepts.

    Two things happen later, also if the process is restarted meanwhile: the two DKIM keys of a new domain appear after
    `dkim_delay_seconds`, and a destroyed account lets go of its domain and role after `erase_delay_seconds`.
    """
    signatures = DkimSignatures(state, SERVICE_ACCOUNT, dkim_delay_seconds)
    accounts = Accounts(state, SERVICE_ACCOUNT, erase_delay_seconds)
    registries: list[Registry] = [
        Domains(state, SERVICE_ACCOUNT, _mail_host(public_url), signatures, accounts),
        accounts,
        Roles(state, SERVICE_ACCOUNT, accounts),
        signatures,
    ]
    kinds = {registry.kind: registry for registry in registries}
    return _Server(state, public_url, token, kinds, signatures, accounts).app()


class _Server:
    def __init__(
        self,
        state: State,
        public_url: str,
        token: str,
        registries: dict[str, Registry],
        signatures: DkimSignatures,
        accounts: Accounts,
    ) -> None:
        self._failed_logins = state.table("failed_logins")
        self._public_url = public_url.rstrip("/")
        self._token = token
        self._registries = registries
        self._signatures = signatures
        self._accounts = accounts
        self._processor = Processor(registries, SERVICE_ACCOUNT)
        self._running = 0

    def app(self) -> Starlette:
        routes = [
            Route("/jmap", self._guarded(self._jmap), methods=["POST"]),
            Route("/jmap/", self._guarded(self._jmap), methods=["POST"]),
            Route("/jmap/session", self._session, methods=["GET"]),
            Route("/.well-known/jmap", self._well_known, methods=["GET"]),
            Route("/api/account", self._guarded(self._account), methods=["GET"]),
            Route("/healthz/live", self._health, methods=["GET"]),
            Route("/healthz/ready", self._health, methods=["GET"]),
            Route("/_sandbox/objects", self._objects, methods=["GET"]),
            Route("/_sandbox/lose-next-race", self._lose_next_race, methods=["POST"]),
            Route("/_sandbox/unban", self._unban, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {RequestError: _problem, 404: _no_route, 405: _no_route}
        return Starlette(routes=routes, exception_handlers=handlers)

    def _guarded(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            self._authenticate(request)
            with self._slot():
                await asyncio.sleep(WORK_SECONDS)
                return await handler(request)

        return handle

    def _authenticate(self, request: Request) -> None:
        address = request.client.host if request.client is not None else "unknown"
        today = int(time.time() // 86400)
        failed = self._failed_logins.get(address)
        count = failed["count"] if failed is not None and failed["day"] == today else 0
        if count >= FAILED_LOGINS_BEFORE_BAN:
            raise RequestError(429, "Too many failed logins: the address is blocked.", title="Too Many Requests")
        if hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {self._token}".encode()):
            return
        # Coming without credentials is no attempt to log in.
        if "authorization" in request.headers:
            self._failed_logins.put(address, {"address": address, "day": today, "count": count + 1})
        raise RequestError(401, "You have to authenticate first.", title="Unauthorized")

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._running >= MAX_CONCURRENT:
            raise RequestError(
                400, "Too many concurrent requests.", kind=f"{JMAP_ERROR}limit", limit="maxConcurrentRequests"
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _jmap(self, request: Request) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RequestError(400, "The content type must be application/json.", kind=f"{JMAP_ERROR}notJSON")
        self._settle()
        return JSONResponse(self._processor.run(await request.body()))

    async def _account(self, _request: Request) -> Response:
        return JSONResponse({"permissions": list(permissions.HELD), "edition": "community", "locale": "en_US"})

    async def _session(self, request: Request) -> Response:
        known = "authorization" in request.headers
        if known:
            self._authenticate(request)
        own: dict[str, Any] = {MANAGEMENT: {}, CORE: {}}
        account = {"name": SERVICE_NAME, "isPersonal": True, "isReadOnly": False, "accountCapabilities": own}
        limits = {
            "maxConcurrentRequests": MAX_CONCURRENT,
            "maxCallsInRequest": MAX_CALLS,
            "maxObjectsInGet": MAX_OBJECTS,
            "maxObjectsInSet": MAX_OBJECTS,
            "maxSizeRequest": MAX_SIZE,
        }
        # The management capability is deliberately absent from the server's own: real servers do not list it either.
        capabilities = {name: limits if name == CORE else {} for name in CAPABILITIES if name != MANAGEMENT}
        return JSONResponse(
            {
                "capabilities": capabilities,
                "accounts": {SERVICE_ACCOUNT: account} if known else {},
                "primaryAccounts": {MANAGEMENT: SERVICE_ACCOUNT} if known else {},
                "username": SERVICE_NAME if known else "",
                "apiUrl": f"{self._public_url}/jmap/",
                "state": SESSION_STATE,
            }
        )

    async def _well_known(self, _request: Request) -> Response:
        return RedirectResponse("/jmap/session", status_code=307)

    async def _health(self, _request: Request) -> Response:
        body = {"type": "about:blank", "status": 200, "title": "OK", "detail": "OK"}
        return JSONResponse(body, media_type="application/problem+json")

    async def _objects(self, _request: Request) -> Response:
        self._settle()
        objects = {registry.table: registry.everything() for registry in self._registries.values()}
        return JSONResponse({**objects, "accountErasures": self._accounts.erasures()})

    def _settle(self) -> None:
        self._signatures.settle()
        self._accounts.settle()

    async def _lose_next_race(self, request: Request) -> Response:
        try:
            race = LostRace.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        self._registries[race.object].lose_next_create = race.created
        return JSONResponse(race.model_dump(by_alias=True), status_code=201)

    async def _unban(self, _request: Request) -> Response:
        banned = list(self._failed_logins)
        for failed in banned:
            self._failed_logins.delete(failed["address"])
        return JSONResponse({"forgotten": len(banned)})


def _mail_host(public_url: str) -> str:
    host = urlsplit(public_url).hostname or ""
    # An address or a bare name cannot stand in an MX record.
    return host if "." in host and any(letter.isalpha() for letter in host) else "mail.stalwart.test"


async def _problem(_request: Request, error: RequestError) -> Response:
    response = JSONResponse(error.problem, status_code=error.status, media_type="application/problem+json")
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers.append("WWW-Authenticate", 'Bearer realm="Stalwart Server"')
        response.headers.append("WWW-Authenticate", 'Basic realm="Stalwart Server"')
    return response


async def _no_route(request: Request, _error: Exception) -> Response:
    return await _problem(request, RequestError(404, "The requested resource does not exist.", title="Not Found"))
