"""Client of the Authentik API, 2026.5 to 2026.8."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from domain.errors import VendorAuthFailed, VendorError, VendorRateLimited, VendorRejected
from integrations.authentik.models import Group, User, UserSpec
from integrations.http import call, decode, json_object, no_answer, retry_after, safe_text
from integrations.model import VendorModel

VENDOR = "authentik"

# Source: there is no 401; this detail tells a refused credential from a missing permission.
_REFUSED_CREDENTIAL = "Token invalid/expired"
_API = "/api/v3"
# Source: page_size above the instance's maximum is clamped silently; 100 is the default maximum.
_PAGE_SIZE = "100"
# Source: error texts follow Accept-Language; one of them has to be recognised.
_HEADERS = {"Accept-Language": "en"}

_Row = TypeVar("_Row", bound=VendorModel)


class _Pagination(VendorModel):
    next: int


class _Page(VendorModel, Generic[_Row]):
    pagination: _Pagination
    results: tuple[_Row, ...]


class _Version(VendorModel):
    version_current: str


class AuthentikClient:
    """Groups and users of one Authentik server.

    Every method raises `VendorAuthFailed` (403 with the invalid-token detail), `VendorRejected`
    (`vendor_forbidden`, `already_exists`, `vendor_not_found`, `vendor_rejected`), `VendorRateLimited`,
    `VendorUnavailable`, and, if it writes, `OutcomeUnknown`.

    Source: filters that the server does not know are ignored and the whole list comes back, so every look-up compares
    what it found and pages on until it has found it.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        """Take a client whose base URL is the server's public root: links in answers are built from the host called."""
        self._http = http

    async def check(self) -> str:
        """Return the server's version, which proves that it answers and takes our credential."""
        response = await self._send("GET", "/admin/version/")
        return decode(VENDOR, _Version, response, write=False).version_current

    async def find_group(self, name: str) -> Group | None:
        """Return the group of exactly this name."""
        query = {"name": name, "include_users": "false", "ordering": "name"}
        return await self._find(Group, "/core/groups/", query, lambda group: group.name == name)

    async def create_group(self, name: str, attributes: dict[str, Any]) -> Group:
        """Create a group.

        Idempotency: none; names are unique, so a repeat is refused as `already_exists`. After that or an unknown
        outcome read again: parallel creates can fail with 405 or 500 although one of them succeeded.
        """
        body = {"name": name, "attributes": attributes}
        response = await self._send("POST", "/core/groups/", body=body, unique="name")
        return decode(VENDOR, Group, response, write=True)

    async def delete_group(self, group_pk: str) -> None:
        """Ensure that a group is gone; its members stay.

        Idempotency: repeatable; an absent group is a success.
        Source: every policy binding that names the group goes with it, and an application whose only one that was is
        then open to everyone, unless the installation's flag `core_default_app_access` is off.
        """
        await self._send("DELETE", f"/core/groups/{quote(group_pk, safe='')}/", missing_ok=True)

    async def find_user(self, username: str) -> User | None:
        """Return the user of this username, compared in lower case as we create them."""
        wanted = _normal(username)
        query = {"username": wanted, "ordering": "username"}
        return await self._find(User, "/core/users/", query, lambda user: user.username == wanted)

    async def find_user_by_subject(self, subject: str) -> User | None:
        """Return the user whose uuid is the subject of its tokens (providers use `sub_mode=user_uuid`)."""
        wanted = subject.lower()
        query = {"uuid": wanted, "ordering": "username"}
        return await self._find(User, "/core/users/", query, lambda user: user.subject == wanted)

    async def create_user(self, spec: UserSpec) -> User:
        """Create an active internal user without a usable password.

        Idempotency: none; usernames are unique, so a repeat is refused as `already_exists`: read again.
        """
        body = spec.model_dump() | {"username": _normal(spec.username), "type": "internal", "is_active": True}
        response = await self._send("POST", "/core/users/", body=body, unique="username")
        return decode(VENDOR, User, response, write=True)

    async def set_user_active(self, pk: int, active: bool) -> User:  # noqa: FBT001 - the value, not a mode
        """Let a user log in, or keep the user out and end the sessions and tokens.

        Idempotency: repeatable. Source: PATCH, because a PUT empties the groups it does not name.
        """
        response = await self._send("PATCH", f"/core/users/{pk}/", body={"is_active": active})
        return decode(VENDOR, User, response, write=True)

    async def delete_user(self, pk: int) -> None:
        """Ensure that a user is gone, with the sessions, tokens and memberships.

        Idempotency: repeatable; an absent user is a success.
        Source: unless the installation's `gdpr_compliance` is off, the events that the user caused go as well.
        """
        await self._send("DELETE", f"/core/users/{pk}/", missing_ok=True)

    async def add_user_to_group(self, group_pk: str, user_pk: int) -> None:
        """Ensure that a user is in a group.

        Idempotency: repeatable. Source: writing the group's `users` would replace what others add at the same time.
        """
        await self._send("POST", f"/core/groups/{quote(group_pk, safe='')}/add_user/", body={"pk": user_pk})

    async def remove_user_from_group(self, group_pk: str, user_pk: int) -> None:
        """Ensure that a user is not in a group.

        Idempotency: repeatable; an absent group or user is a success.
        """
        path = f"/core/groups/{quote(group_pk, safe='')}/remove_user/"
        await self._send("POST", path, body={"pk": user_pk}, missing_ok=True)

    async def _find(
        self, row: type[_Row], path: str, query: dict[str, str], matches: Callable[[_Row], bool]
    ) -> _Row | None:
        """Return the first row that really matches, from as many pages as the server has."""
        number = 1
        while number:  # Source: the number of the next page, 0 = none
            response = await self._send(
                "GET", path, query=query | {"page": str(number), "page_size": _PAGE_SIZE}, missing_ok=number > 1
            )
            if response.status_code == HTTPStatus.NOT_FOUND:  # rows vanished while paging: there is no such page now
                return None
            page = decode(VENDOR, _Page[row], response, write=False)  # type: ignore[valid-type]  # a type at run time
            found = next(filter(matches, page.results), None)
            if found is not None:
                return found
            number = page.pagination.next
        return None

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        unique: str | None = None,
        missing_ok: bool = False,
    ) -> httpx.Response:
        write = method != "GET"
        response = await call(
            VENDOR, self._http, method, _API + path, write=write, params=query, json=body, headers=_HEADERS
        )
        # Source: the server says in JSON what it does not find; a 404 without that comes from a wrong path or a proxy.
        missing = response.status_code == HTTPStatus.NOT_FOUND and "detail" in json_object(response)
        if response.is_success or (missing_ok and missing):
            return response
        raise _error(response, write=write, unique=unique)


def _error(response: httpx.Response, *, write: bool, unique: str | None) -> VendorError:
    status, body = response.status_code, json_object(response)
    request_id = response.headers.get("x-authentik-id")
    message = safe_text(f"authentik answered {status}: {response.text}")
    # Source: before 2026.8 an unhandled server error of a write is a 405 without a body.
    crashed = write and status == HTTPStatus.METHOD_NOT_ALLOWED and not response.content
    if crashed or response.is_server_error:
        return no_answer(VENDOR, message, write=write, http_status=status, request_id=request_id)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = retry_after(response.headers)
        return VendorRateLimited(VENDOR, message, http_status=status, request_id=request_id, retry_after=wait)
    if status == HTTPStatus.FORBIDDEN and body.get("detail") == _REFUSED_CREDENTIAL:
        return VendorAuthFailed(VENDOR, message, http_status=status, request_id=request_id)
    code = None
    if status == HTTPStatus.FORBIDDEN:
        code = "vendor_forbidden"
    elif status == HTTPStatus.NOT_FOUND:
        code = "vendor_not_found"
    elif status == HTTPStatus.BAD_REQUEST and unique in body:
        # Source: duplicates are 400, told apart by the field's key; the texts are translated.
        code = "already_exists"
    return VendorRejected(VENDOR, message, code=code, http_status=status, request_id=request_id)


def _normal(username: str) -> str:
    # Source: two usernames that differ only in case are both accepted.
    return username.strip().lower()
