"""HTTP side: paths, credentials, body parsing and the shapes of refusals."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from datetime import UTC, datetime

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.faults import CONTROL_PREFIX, CamelModel
from sandbox.ocis.directory import Directory, show_group
from sandbox.ocis.errors import GraphError, bad_request
from sandbox.ocis.members import Members
from sandbox.ocis.roles import show_roles
from sandbox.ocis.spaces import Spaces
from sandbox.state import Document, State

PRODUCT_VERSION = "7.1.4"
WEB_PAGE = '<!DOCTYPE html>\n<html lang="en"><head><title>Infinite Scale</title></head><body></body></html>'
# Header values that Go's strconv takes for booleans.
TRUE_WORDS = frozenset(("1", "t", "T", "true", "True", "TRUE"))
FALSE_WORDS = frozenset(("", "0", "f", "F", "false", "False", "FALSE"))


def create_app(state: State, *, public_url: str, token: str, warm_up_seconds: float = 0) -> ASGIApp:
    """Build the stand-in on its stored state.

    Args:
        state: where everything is kept.
        public_url: base of the URLs in answers.
        token: bearer of the machine account, which has the app role Admin and manages the spaces it creates.
        warm_up_seconds: for how long after the start every credential is refused, as by services still registering.
    """
    directory = Directory(state)
    spaces = Spaces(state, directory, public_url)
    graph = _Graph(directory, spaces, Members(spaces, directory), public_url.rstrip("/"))
    app = Starlette(
        routes=graph.routes(),
        exception_handlers={GraphError: graph.refuse, HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False
    return _Proxy(app, token, warm_up_seconds)


class NewFile(CamelModel):
    """Body of `POST /_sandbox/spaces/{id}/files`."""

    bytes: int = Field(ge=0)


class _Graph:
    """All endpoints: those below `/graph`, the status, and the control paths of this stand-in."""

    def __init__(self, directory: Directory, spaces: Spaces, members: Members, base: str) -> None:
        self._directory = directory
        self._spaces = spaces
        self._members = members
        self._base = base
        self._numbers = itertools.count(1)

    def routes(self) -> list[Route]:
        """Return every path with the methods it knows."""
        v1 = "/graph/v1.0"
        beta = "/graph/v1beta1"
        return [
            Route(f"{v1}/me", self._me),
            Route(f"{v1}/groups", self._list_groups, methods=["GET"]),
            Route(f"{v1}/groups", self._create_group, methods=["POST"]),
            Route(f"{v1}/groups/{{key}}", self._get_group, methods=["GET"]),
            Route(f"{v1}/groups/{{key}}", self._rename_group, methods=["PATCH"]),
            Route(f"{v1}/groups/{{key}}", self._delete_group, methods=["DELETE"]),
            Route(f"{v1}/drives", self._list_drives, methods=["GET"]),
            Route(f"{v1}/drives", self._create_drive, methods=["POST"]),
            Route(f"{v1}/drives/{{key}}", self._get_drive, methods=["GET"]),
            Route(f"{v1}/drives/{{key}}", self._change_drive, methods=["PATCH"]),
            Route(f"{v1}/drives/{{key}}", self._delete_drive, methods=["DELETE"]),
            Route(f"{beta}/drives", self._list_drives_with_unified_roles, methods=["GET"]),
            Route(f"{beta}/drives/{{key}}/root/invite", self._invite, methods=["POST"]),
            Route(f"{beta}/drives/{{key}}/root/permissions", self._list_members, methods=["GET"]),
            Route(f"{beta}/drives/{{key}}/root/permissions/{{permission}}", self._change_member, methods=["PATCH"]),
            Route(f"{beta}/drives/{{key}}/root/permissions/{{permission}}", self._remove_member, methods=["DELETE"]),
            Route(f"{beta}/roleManagement/permissions/roleDefinitions", self._role_definitions),
            Route("/status.php", _status),
            Route("/_sandbox/objects", self._objects),
            Route("/_sandbox/spaces/{key}/files", self._write_file, methods=["POST"]),
        ]

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer with an OData error that carries the caller's request id, or one of the server's."""
        assert isinstance(error, GraphError)
        inner = {
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "request-id": request.headers.get("x-request-id") or f"sandbox/{next(self._numbers):06d}",
        }
        return JSONResponse(
            {"error": {"code": error.code, "innererror": inner, "message": error.message}}, error.status
        )

    async def _me(self, _request: Request) -> Response:
        machine = self._directory.machine
        return JSONResponse(
            {
                "displayName": machine["displayName"],
                "id": machine["id"],
                "identities": [{"issuer": self._base, "issuerAssignedId": machine["id"]}],
                "mail": f"{machine['name']}@localhost.localdomain",
                "onPremisesSamAccountName": machine["name"],
                "preferredLanguage": "en",
                "userType": "Member",
            }
        )

    async def _list_groups(self, request: Request) -> Response:
        return JSONResponse({"value": self._directory.list_groups(request.query_params)})

    async def _create_group(self, request: Request) -> Response:
        group = self._directory.create_group(await _body(request))
        return JSONResponse(show_group(group, request.query_params), 201)

    async def _get_group(self, request: Request) -> Response:
        return JSONResponse(show_group(self._directory.group(request.path_params["key"]), request.query_params))

    async def _rename_group(self, request: Request) -> Response:
        body = await _body(request)
        self._directory.rename_group(self._directory.group(request.path_params["key"]), body)
        return Response(status_code=204)

    async def _delete_group(self, request: Request) -> Response:
        self._directory.delete_group(self._directory.group(request.path_params["key"]))
        return Response(status_code=204)

    async def _list_drives(self, request: Request) -> Response:
        return JSONResponse({"value": self._spaces.list_drives(request.query_params)})

    async def _list_drives_with_unified_roles(self, request: Request) -> Response:
        return JSONResponse({"value": self._spaces.list_drives(request.query_params, unified_roles=True)})

    async def _create_drive(self, request: Request) -> Response:
        body = await _body(request, problem="invalid body schema definition")
        return JSONResponse(self._spaces.show(self._spaces.create(body)), 201)

    async def _get_drive(self, request: Request) -> Response:
        space = self._spaces.get(request.path_params["key"], "no drive returned from storage")
        return JSONResponse(self._spaces.show(space))

    async def _change_drive(self, request: Request) -> Response:
        body = await _body(request)
        space = self._spaces.get(request.path_params["key"])
        return JSONResponse(self._spaces.show(self._spaces.change(space, body, restore=_flag(request, "Restore"))))

    async def _delete_drive(self, request: Request) -> Response:
        space = self._spaces.get(request.path_params["key"])
        if _flag(request, "Purge"):
            self._spaces.purge(space)
        else:
            self._spaces.disable(space)
        return Response(status_code=204)

    async def _list_members(self, request: Request) -> Response:
        return JSONResponse(self._members.list_members(request.path_params["key"]))

    async def _invite(self, request: Request) -> Response:
        return JSONResponse(self._members.invite(request.path_params["key"], await _body(request)))

    async def _change_member(self, request: Request) -> Response:
        body = await _body(request)
        return JSONResponse(self._members.change(request.path_params["key"], request.path_params["permission"], body))

    async def _remove_member(self, request: Request) -> Response:
        self._members.remove(request.path_params["key"], request.path_params["permission"])
        return Response(status_code=204)

    async def _role_definitions(self, _request: Request) -> Response:
        # A bare list, unlike every other answer with several objects.
        return JSONResponse(show_roles())

    async def _objects(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "groups": self._directory.groups(),
                "spaces": self._spaces.objects(),
                "memberships": self._members.objects(),
            }
        )

    async def _write_file(self, request: Request) -> Response:
        # Acts as a person who stores a file, so that the space is not empty any more.
        try:
            file = NewFile.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": str(error)}, 422)
        space = self._spaces.get(request.path_params["key"])
        return JSONResponse(self._spaces.show(self._spaces.put({**space, "used": space["used"] + file.bytes})))


class _Proxy:
    """Checks credentials in front of everything below `/graph`, before a path is even looked up."""

    def __init__(self, app: ASGIApp, token: str, warm_up_seconds: float) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._ready_at = time.monotonic() + warm_up_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/graph/") and not self._admits(scope):
            challenge = 'Bearer realm="sandbox", charset="UTF-8", Basic realm="sandbox", charset="UTF-8"'
            refusal = Response(status_code=401, headers={"WWW-Authenticate": challenge})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        credentials = dict(scope["headers"]).get(b"authorization", b"")
        return time.monotonic() >= self._ready_at and secrets.compare_digest(credentials, self._expected)


async def _status(_request: Request) -> Response:
    return JSONResponse(
        {
            "installed": True,
            "maintenance": False,
            "needsDbUpgrade": False,
            # What old clients compare with; the real version is productversion.
            "version": "10.11.0.0",
            "versionstring": "10.11.0",
            "edition": "Community",
            "productname": "Infinite Scale",
            "product": "Infinite Scale",
            "productversion": PRODUCT_VERSION,
        }
    )


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and request.url.path.startswith("/graph/"):
        return PlainTextResponse("404 page not found\n", 404)
    if error.status_code == 404 and not request.url.path.startswith(CONTROL_PREFIX):
        # The web app's route catches everything else, `/health` included: 200 there says nothing about health.
        return HTMLResponse(WEB_PAGE)
    return Response(status_code=error.status_code)


async def _body(request: Request, problem: str | None = None) -> Document:
    raw = await request.body()
    if not raw:
        raise bad_request(problem or "invalid request body: error: EOF")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise bad_request(problem or f"invalid request body: error: {error}") from None
    if not isinstance(body, dict):
        raise bad_request(problem or "invalid request body: error: json: cannot unmarshal value")
    return body


def _flag(request: Request, header: str) -> bool:
    value = request.headers.get(header, "")
    if value not in TRUE_WORDS | FALSE_WORDS:
        raise bad_request(f"invalid {header} header")
    return value in TRUE_WORDS
