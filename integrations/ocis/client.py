"""Client of the OCIS graph API, 7.1 and later."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from domain.errors import VendorAuthFailed, VendorError, VendorRateLimited, VendorRejected, VendorUnavailable
from integrations.http import call, decode, json_object, no_answer, retry_after, safe_text
from integrations.model import VendorModel
from integrations.ocis.models import Group, Member, Space, SpaceSpec

VENDOR = "ocis"

_V1 = "/graph/v1.0"
_BETA = "/graph/v1beta1"
_CODES: dict[int, str] = {
    HTTPStatus.FORBIDDEN: "vendor_forbidden",
    HTTPStatus.NOT_FOUND: "vendor_not_found",
    HTTPStatus.CONFLICT: "already_exists",
}


class _Spaces(VendorModel):
    value: tuple[Space, ...] = ()


class _Members(VendorModel):
    value: tuple[Member, ...] = ()


class OcisClient:
    """Groups and project spaces of one OCIS server.

    Every method raises `VendorAuthFailed`, `VendorRejected` (`vendor_forbidden`, `already_exists`, `vendor_not_found`,
    `vendor_rejected`), `VendorRateLimited`, `VendorUnavailable`, and, if it writes, `OutcomeUnknown`.

    Source: for its first minute a starting server refuses good credentials with 401, and nothing tells that from bad
    ones; so a 401 is weather (`VendorUnavailable`, code `vendor_warming_up`) until the server has answered nothing
    else for a minute.
    Source: there is no paging, and filters other than the drive type are ignored; everything is matched here.
    Source: only managers of a space may read or change its members, so one stable account must create all of them.
    """

    def __init__(self, http: httpx.AsyncClient, warm_up: timedelta = timedelta(minutes=1)) -> None:
        """Take a client whose base URL is the server's public root.

        Args:
            http: sends the credential with every request.
            warm_up: for how long 401 may be the answer to a good credential.
        """
        self._http = http
        self._warm_up = warm_up
        self._refused_since: float | None = None

    async def check(self) -> None:
        """Ensure that the server answers and takes our credential.

        Source: `/health` is 200 whatever happens behind it; reading ourselves needs the proxy, users and graph.
        """
        await self._send("GET", f"{_V1}/me")

    async def find_group(self, name: str) -> Group | None:
        """Return the group of exactly this name."""
        response = await self._send("GET", f"{_V1}/groups/{quote(name, safe='')}", missing_ok=True)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        group = decode(VENDOR, Group, response, write=False)
        # Source: the last part of the path is taken as a name or as an id, and names without regard to case.
        return group if group.name == name else None

    async def create_group(self, name: str) -> Group:
        """Create a group.

        Idempotency: none; names are unique, so a repeat is refused as `already_exists`: read again.
        """
        response = await self._send("POST", f"{_V1}/groups", body={"displayName": name})
        return decode(VENDOR, Group, response, write=True)

    async def delete_group(self, group_id: str) -> None:
        """Ensure that a group is gone.

        Idempotency: repeatable; an absent group is a success.
        Source: the memberships of a group outlive it, so it is to be taken out of its spaces before.
        """
        await self._send("DELETE", f"{_V1}/groups/{quote(group_id, safe='')}", missing_ok=True)

    async def find_spaces(self, drive_alias: str) -> list[Space]:
        """Return the project spaces of exactly this alias, disabled ones too, sorted by id."""
        query = {"$filter": "driveType eq 'project'", "$orderby": "name"}
        response = await self._send("GET", f"{_V1}/drives", query=query)
        spaces = decode(VENDOR, _Spaces, response, write=False).value
        return sorted((space for space in spaces if space.drive_alias == drive_alias), key=lambda space: space.id)

    async def create_space(self, spec: SpaceSpec) -> Space:
        """Create a project space; our account becomes its manager.

        Idempotency: none, and nothing is unique: a repeat makes a second space. Look for the alias before and after.
        """
        body = {
            "name": spec.name,
            "driveAlias": spec.drive_alias,
            "driveType": "project",
            "description": spec.description,
            "quota": {"total": spec.quota_bytes},
        }
        response = await self._send("POST", f"{_V1}/drives", body=body)
        return decode(VENDOR, Space, response, write=True)

    async def set_quota(self, space_id: str, quota_bytes: int) -> Space:
        """Set how much a space may hold, disabled or not.

        Units: bytes, 0 is unlimited. Idempotency: repeatable.

        Raises:
            ValueError: the quota is negative; the server would store it.
        """
        if quota_bytes < 0:
            raise ValueError("a quota cannot be negative")
        response = await self._send("PATCH", _drive(space_id), body={"quota": {"total": quota_bytes}})
        return decode(VENDOR, Space, response, write=True)

    async def space_members(self, space_id: str) -> list[Member]:
        """Return the groups and users in a space, sorted by permission id.

        Source: a space that is disabled, gone or not managed by us answers 404; here that is an empty list. Public
        links stand in the same list and are left out.
        """
        response = await self._send("GET", f"{_BETA}/drives/{_id(space_id)}/root/permissions", missing_ok=True)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return []
        members = decode(VENDOR, _Members, response, write=False).value
        return sorted(
            (member for member in members if member.group_id or member.user_id), key=lambda member: member.permission_id
        )

    async def invite_group(self, space_id: str, group_id: str, role_id: str) -> None:
        """Give a group a role in a space.

        Idempotency: none; a group that is a member already, in any role, is refused as `already_exists`: read again.
        """
        recipient = {"@libre.graph.recipient.type": "group", "objectId": group_id}
        body = {"recipients": [recipient], "roles": [role_id]}
        await self._send("POST", f"{_BETA}/drives/{_id(space_id)}/root/invite", body=body)

    async def disable_space(self, space_id: str) -> None:
        """Take a space from its members at once, keeping its data and its members.

        Idempotency: repeatable.

        Raises:
            VendorRejected: `vendor_not_found` if it is gone, but also if our account may not see it.
        """
        await self._send("DELETE", _drive(space_id))

    async def restore_space(self, space_id: str) -> Space:
        """Give a disabled space back to its members; its members and data are as they were.

        Idempotency: repeatable.

        Raises:
            VendorRejected: `vendor_not_found` if it is gone, but also if our account may not see it.
        """
        # Source: the header is missing from the vendor's OpenAPI document; an empty body is refused.
        response = await self._send("PATCH", _drive(space_id), body={}, headers={"Restore": "T"})
        return decode(VENDOR, Space, response, write=True)

    async def purge_space(self, space_id: str) -> None:
        """Destroy a disabled space and its data at once.

        Idempotency: a repeat is refused as `vendor_not_found`. That only means "done" to a caller that knows that the
        space existed: a missing right answers the same.

        Raises:
            VendorRejected: `vendor_rejected` if the space is still enabled.
        """
        # Source: the header is missing from the vendor's OpenAPI document.
        await self._send("DELETE", _drive(space_id), headers={"Purge": "T"})

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        missing_ok: bool = False,
    ) -> httpx.Response:
        write = method != "GET"
        response = await call(VENDOR, self._http, method, path, write=write, params=query, json=body, headers=headers)
        refused_for_good = self._is_refused_for_good(response)
        if response.is_success or (missing_ok and response.status_code == HTTPStatus.NOT_FOUND):
            return response
        raise _error(response, write=write, refused_for_good=refused_for_good)

    def _is_refused_for_good(self, response: httpx.Response) -> bool:
        """Tell whether the answer is a 401, and has been for longer than a server takes to start."""
        if response.status_code != HTTPStatus.UNAUTHORIZED:
            self._refused_since = None
            return False
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
            return False
        return now - self._refused_since >= self._warm_up.total_seconds()


def _error(response: httpx.Response, *, write: bool, refused_for_good: bool) -> VendorError:
    status, problem = response.status_code, json_object(response).get("error")
    problem = problem if isinstance(problem, dict) else {}
    inner = problem.get("innererror")
    request_id = inner.get("request-id") if isinstance(inner, dict) else response.headers.get("X-Request-ID")
    message = safe_text(f"ocis answered {status} {problem.get('code', '')}: {problem.get('message') or response.text}")
    if response.is_server_error:
        return no_answer(VENDOR, message, write=write, http_status=status, request_id=request_id)
    if refused_for_good:
        return VendorAuthFailed(VENDOR, message, http_status=status, request_id=request_id)
    if status == HTTPStatus.UNAUTHORIZED:
        # Refused before anything was done, so also a write may just be repeated.
        return VendorUnavailable(VENDOR, message, code="vendor_warming_up", http_status=status, request_id=request_id)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = retry_after(response.headers)
        return VendorRateLimited(VENDOR, message, http_status=status, request_id=request_id, retry_after=wait)
    return VendorRejected(VENDOR, message, code=_CODES.get(status), http_status=status, request_id=request_id)


def _drive(space_id: str) -> str:
    return f"{_V1}/drives/{_id(space_id)}"


def _id(space_id: str) -> str:
    return quote(space_id, safe="$")
