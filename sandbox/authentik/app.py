"""HTTP side: paths, credentials, body parsing and the shapes of refusals."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Awaitable, Callable
from json import JSONDecodeError

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.authentik.directory import MACHINE_USERNAME, Directory
from sandbox.authentik.errors import ApiError, detail
from sandbox.authentik.oidc import Issuers, TokenRequest
from sandbox.state import Document, State

VERSION = "2026.8.5"
API = "/api/v3"
NOT_FOUND_PAGE = '<!DOCTYPE html>\n<html lang="en"><head><title>authentik</title></head><body>Not Found</body></html>'

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(state: State, *, public_url: str, token: str) -> ASGIApp:
    """Build the stand-in on its stored state; `token` is the API key of the control plane's service account."""
    directory = Directory(state)
    api = _Api(directory, token)
    oidc = _Oidc(Issuers(state, directory, public_url), directory)
    app = Starlette(
        routes=[*api.routes(), *oidc.routes()],
        exception_handlers={ApiError: _refusal, HTTPException: _unrouted},
    )
    # A path without its trailing slash is not found; it is never redirected.
    app.router.redirect_slashes = False
    return _RequestIds(app)


class _Api:
    """The endpoints below `/api/v3`."""

    def __init__(self, directory: Directory, token: str) -> None:
        self._directory = directory
        self._token = token

    def routes(self) -> list[Route]:
        """Return every path with the methods it knows."""
        return [
            self._route("/admin/version/", {"GET": self._version}),
            self._route("/core/users/me/", {"GET": self._me}),
            self._route("/core/groups/", {"GET": self._list_groups, "POST": self._create_group}),
            self._route("/core/groups/{pk}/add_user/", {"POST": self._add_user}),
            self._route("/core/groups/{pk}/remove_user/", {"POST": self._remove_user}),
            self._route(
                "/core/groups/{pk}/",
                {
                    "GET": self._get_group,
                    "PATCH": self._change_group,
                    "PUT": self._change_group,
                    "DELETE": self._delete_group,
                },
            ),
            self._route("/core/users/", {"GET": self._list_users, "POST": self._create_user}),
            self._route(
                "/core/users/{pk}/",
                {
                    "GET": self._get_user,
                    "PATCH": self._change_user,
                    "PUT": self._change_user,
                    "DELETE": self._delete_user,
                },
            ),
        ]

    def _route(self, path: str, methods: dict[str, Endpoint]) -> Route:
        async def endpoint(request: Request) -> Response:
            # Credentials come before the method: an anonymous caller learns nothing about a path.
            self._authenticate(request)
            method = methods.get("GET" if request.method == "HEAD" else request.method)
            if method is None:
                raise detail(405, f'Method "{request.method}" not allowed.')
            return await method(request)

        return Route(API + path, endpoint, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])

    def _authenticate(self, request: Request) -> None:
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise detail(403, "Authentication credentials were not provided.")
        if not secrets.compare_digest(credential.strip().encode(), self._token.encode()):
            raise detail(403, "Token invalid/expired")

    async def _version(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "version_current": VERSION,
                "version_latest": VERSION,
                "version_latest_valid": True,
                "build_hash": "",
                "outdated": False,
                "outpost_outdated": False,
            }
        )

    async def _me(self, _request: Request) -> Response:
        machine = self._directory.user_named(MACHINE_USERNAME)
        if machine is None or not machine["is_active"]:
            raise detail(403, "Token invalid/expired")
        return JSONResponse(self._directory.show_self(machine))

    async def _list_groups(self, request: Request) -> Response:
        return JSONResponse(self._directory.list_groups(request.query_params))

    async def _create_group(self, request: Request) -> Response:
        group = self._directory.create_group(await _body(request))
        return JSONResponse(self._directory.show_group(group, request.query_params), 201)

    async def _get_group(self, request: Request) -> Response:
        return JSONResponse(self._directory.show_group(self._group(request), request.query_params))

    async def _change_group(self, request: Request) -> Response:
        body = await _body(request)
        group = self._directory.change_group(self._group(request), body, partial=request.method == "PATCH")
        return JSONResponse(self._directory.show_group(group, request.query_params))

    async def _delete_group(self, request: Request) -> Response:
        self._directory.delete_group(self._group(request))
        return Response(status_code=204)

    async def _add_user(self, request: Request) -> Response:
        body = await _body(request)
        self._directory.set_membership(self._group(request), body, member=True)
        return Response(status_code=204)

    async def _remove_user(self, request: Request) -> Response:
        body = await _body(request)
        self._directory.set_membership(self._group(request), body, member=False)
        return Response(status_code=204)

    async def _list_users(self, request: Request) -> Response:
        return JSONResponse(self._directory.list_users(request.query_params))

    async def _create_user(self, request: Request) -> Response:
        user = self._directory.create_user(await _body(request))
        return JSONResponse(self._directory.show_user(user, request.query_params), 201)

    async def _get_user(self, request: Request) -> Response:
        return JSONResponse(self._directory.show_user(self._user(request), request.query_params))

    async def _change_user(self, request: Request) -> Response:
        body = await _body(request)
        user = self._directory.change_user(self._user(request), body, partial=request.method == "PATCH")
        return JSONResponse(self._directory.show_user(user, request.query_params))

    async def _delete_user(self, request: Request) -> Response:
        self._directory.delete_user(self._user(request))
        return Response(status_code=204)

    def _group(self, request: Request) -> Document:
        return self._directory.group(request.path_params["pk"])

    def _user(self, request: Request) -> Document:
        return self._directory.user(request.path_params["pk"])


class _Oidc:
    """The endpoints outside the API: issuers, health and the control paths of this stand-in."""

    def __init__(self, issuers: Issuers, directory: Directory) -> None:
        self._issuers = issuers
        self._directory = directory

    def routes(self) -> list[Route]:
        """Return every path with the methods it knows."""
        return [
            Route("/application/o/{slug}/.well-known/openid-configuration", self._discovery),
            Route("/application/o/{slug}/jwks/", self._jwks),
            Route("/-/health/live/", self._healthy),
            Route("/-/health/ready/", self._healthy),
            Route("/_sandbox/tokens", self._mint, methods=["POST"]),
            Route("/_sandbox/objects", self._objects),
        ]

    async def _discovery(self, request: Request) -> Response:
        return JSONResponse(self._issuers.discovery(self._slug(request)))

    async def _jwks(self, request: Request) -> Response:
        return JSONResponse(self._issuers.jwks(self._slug(request)))

    async def _healthy(self, _request: Request) -> Response:
        return Response()

    async def _mint(self, request: Request) -> Response:
        try:
            asked = TokenRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": "invalid_request", "error_description": str(error)}, 400)
        return JSONResponse(self._issuers.mint(asked))

    async def _objects(self, _request: Request) -> Response:
        return JSONResponse(self._directory.objects())

    def _slug(self, request: Request) -> str:
        slug: str = request.path_params["slug"]
        if slug not in self._issuers:
            raise HTTPException(404)
        return slug


class _RequestIds:
    """Gives each answer the id under which Authentik logs the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-authentik-id", uuid.uuid4().hex.encode())]}
            await send(message)

        await self._app(scope, receive, send_with_id)


async def _body(request: Request) -> Document:
    raw = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and media_type != "application/json":
        raise detail(415, f'Unsupported media type "{media_type}" in request.')
    try:
        body = await request.json() if raw else {}
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise detail(400, f"JSON parse error - {error}") from None
    if not isinstance(body, dict):
        text = f"Invalid data. Expected a dictionary, but got {type(body).__name__}."
        raise ApiError(400, {"non_field_errors": [text]})
    return body


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status)


async def _unrouted(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return HTMLResponse(NOT_FOUND_PAGE, error.status_code)
