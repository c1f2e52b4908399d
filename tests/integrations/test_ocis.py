"""The OCIS client: what it sends, what it believes, and what it makes of refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from domain.errors import (
    OutcomeUnknown,
    VendorAuthFailed,
    VendorError,
    VendorRateLimited,
    VendorRejected,
    VendorUnavailable,
)
from integrations.ocis import SPACE_EDITOR, SPACE_VIEWER, Group, Member, OcisClient, Space, SpaceSpec
from tests.support.vendor import ANSWER_LOST, NOTHING_SENT, ScriptedVendor, answer

pytestmark = pytest.mark.asyncio

SPACE_ID = "1284d238-aa92-42ce-bdc4-0b0000009157$4c510ada-c86b-4815-8820-42cdf82c3d51"
ALIAS = "project/dezky-acme"
SPEC = SpaceSpec(name="Acme", drive_alias=ALIAS, description="op-1", quota_bytes=5_000)


def drive(drive_id: str = SPACE_ID, alias: str = ALIAS, **more: Any) -> dict[str, Any]:
    """A drive as the server shows it."""
    return {
        "id": drive_id,
        "name": "Acme",
        "driveAlias": alias,
        "driveType": "project",
        "description": "op-1",
        "quota": {"total": 5_000, "used": 12, "remaining": 4_988, "state": "normal"},
        "root": {"id": drive_id, "eTag": '"e"'},
    } | more


def odata(status: int, code: str, message: str = "no") -> httpx.Response:
    """An error of the graph service."""
    inner = {"date": "2026-11-20T07:45:27Z", "request-id": "vm/1"}
    return answer(status, {"error": {"code": code, "message": message, "innererror": inner}})


CALLS: dict[str, tuple[bool, Callable[[OcisClient], Awaitable[object]]]] = {
    "check": (False, lambda client: client.check()),
    "find_group": (False, lambda client: client.find_group("dezky-tenant-acme")),
    "find_spaces": (False, lambda client: client.find_spaces(ALIAS)),
    "space_members": (False, lambda client: client.space_members(SPACE_ID)),
    "create_group": (True, lambda client: client.create_group("dezky-tenant-acme")),
    "delete_group": (True, lambda client: client.delete_group("g1")),
    "create_space": (True, lambda client: client.create_space(SPEC)),
    "set_quota": (True, lambda client: client.set_quota(SPACE_ID, 9)),
    "invite_group": (True, lambda client: client.invite_group(SPACE_ID, "g1", SPACE_EDITOR)),
    "disable_space": (True, lambda client: client.disable_space(SPACE_ID)),
    "restore_space": (True, lambda client: client.restore_space(SPACE_ID)),
    "purge_space": (True, lambda client: client.purge_space(SPACE_ID)),
}
EVERY_CALL = pytest.mark.parametrize("name", CALLS)
WRITES = [name for name, (write, _) in CALLS.items() if write]
READS = [name for name, (write, _) in CALLS.items() if not write]


async def fail(name: str, *answers: httpx.Response | Exception) -> VendorError:
    """Make the call and return the error it raised, having asked the vendor just once."""
    vendor = ScriptedVendor(*answers)
    async with vendor.http() as http:
        with pytest.raises(VendorError) as caught:
            await CALLS[name][1](OcisClient(http))
    assert len(vendor.requests) == 1
    assert caught.value.vendor == "ocis"
    return caught.value


async def test_check_reads_ourselves() -> None:
    """The probe goes through the proxy to our own account."""
    vendor = ScriptedVendor(answer(200, {"id": "u1", "displayName": "Dezky"}))
    async with vendor.http() as http:
        await OcisClient(http).check()
    assert vendor.last.url.path == "/graph/v1.0/me"


async def test_find_group() -> None:
    """A group is read by its name, which stays one part of the path."""
    vendor = ScriptedVendor(answer(200, {"id": "g1", "displayName": "a/b", "groupTypes": []}))
    async with vendor.http() as http:
        assert await OcisClient(http).find_group("a/b") == Group(id="g1", name="a/b")
    assert vendor.last.url.raw_path == b"/graph/v1.0/groups/a%2Fb"


@pytest.mark.parametrize(
    "given", [odata(404, "itemNotFound"), answer(200, {"id": "dezky-tenant-acme", "displayName": "Dezky-Tenant-Acme"})]
)
async def test_group_of_another_name(given: httpx.Response) -> None:
    """An absent group, and one that only resembles the name, is none."""
    async with ScriptedVendor(given).http() as http:
        assert await OcisClient(http).find_group("dezky-tenant-acme") is None


async def test_create_group() -> None:
    """Only the name is sent: an unknown field would be refused."""
    vendor = ScriptedVendor(answer(201, {"id": "g1", "displayName": "dezky-tenant-acme", "groupTypes": []}))
    async with vendor.http() as http:
        assert (await OcisClient(http).create_group("dezky-tenant-acme")).id == "g1"
    assert vendor.body == {"displayName": "dezky-tenant-acme"}


async def test_delete_group() -> None:
    """Deleting twice is as good as once; an odd id stays one part of the path."""
    for given in (answer(204), odata(404, "itemNotFound")):
        vendor = ScriptedVendor(given)
        async with vendor.http() as http:
            await OcisClient(http).delete_group("../users/g1")
        assert (vendor.last.method, vendor.last.url.raw_path) == ("DELETE", b"/graph/v1.0/groups/..%2Fusers%2Fg1")


async def test_find_spaces_matches_here() -> None:
    """The server cannot filter by alias: it sends everything, and the order is ours."""
    everything = [drive("s$9"), drive("s$2", alias="project/dezky-acme-corp"), drive("s$1"), {"id": "x", "name": "x"}]
    vendor = ScriptedVendor(answer(200, {"value": everything}))
    async with vendor.http() as http:
        found = await OcisClient(http).find_spaces(ALIAS)
    assert [space.id for space in found] == ["s$1", "s$9"]
    assert vendor.last.url.params["$filter"] == "driveType eq 'project'"


async def test_no_spaces() -> None:
    """No space at all is an empty list."""
    async with ScriptedVendor(answer(200, {"value": []})).http() as http:
        assert await OcisClient(http).find_spaces(ALIAS) == []


async def test_space_is_read() -> None:
    """Quotas are flattened; a disabled space is known by `root.deleted` and shows no use."""
    disabled = drive("s$2", quota={"total": 5}, root={"id": "s$2", "deleted": {"state": "trashed"}})
    async with ScriptedVendor(answer(200, {"value": [drive("s$1"), disabled]})).http() as http:
        first, second = await OcisClient(http).find_spaces(ALIAS)
    assert first == Space(
        id="s$1", name="Acme", drive_alias=ALIAS, description="op-1", quota_total=5_000, quota_used=12, disabled=False
    )
    assert (second.quota_total, second.quota_used, second.disabled) == (5, None, True)
    assert Space.model_validate(second.model_dump()) == second


async def test_create_space() -> None:
    """The alias is set explicitly; the default one would follow the name."""
    vendor = ScriptedVendor(answer(201, drive()))
    async with vendor.http() as http:
        assert (await OcisClient(http).create_space(SPEC)).id == SPACE_ID
    assert vendor.body == {
        "name": "Acme",
        "driveAlias": ALIAS,
        "driveType": "project",
        "description": "op-1",
        "quota": {"total": 5_000},
    }


async def test_set_quota() -> None:
    """Only the quota is sent; the id keeps its dollar sign."""
    vendor = ScriptedVendor(answer(200, drive(quota={"total": 9, "used": 1})))
    async with vendor.http() as http:
        assert (await OcisClient(http).set_quota(SPACE_ID, 9)).quota_total == 9
    assert (vendor.last.method, vendor.last.url.path) == ("PATCH", f"/graph/v1.0/drives/{SPACE_ID}")
    assert vendor.body == {"quota": {"total": 9}}


async def test_negative_quota_is_never_sent() -> None:
    """The server would store a negative quota and later crash over it."""
    vendor = ScriptedVendor(answer(200, drive()))
    async with vendor.http() as http:
        with pytest.raises(ValueError, match="negative"):
            await OcisClient(http).set_quota(SPACE_ID, -1)
    assert vendor.requests == []


async def test_space_members() -> None:
    """Groups and users are members; public links stand in the same list and are none."""
    rows = [
        {"id": "u:1", "roles": [SPACE_VIEWER], "grantedToV2": {"user": {"id": "1", "displayName": "Anna"}}},
        {"id": "AbC", "link": {"type": "view"}},
        {"id": "g:2", "roles": [SPACE_EDITOR], "grantedToV2": {"group": {"id": "2", "displayName": ""}}},
    ]
    vendor = ScriptedVendor(answer(200, {"@libre.graph.permissions.actions.allowedValues": [], "value": rows}))
    async with vendor.http() as http:
        assert await OcisClient(http).space_members(SPACE_ID) == [
            Member(permission_id="g:2", role_ids=(SPACE_EDITOR,), group_id="2"),
            Member(permission_id="u:1", role_ids=(SPACE_VIEWER,), user_id="1"),
        ]
    assert vendor.last.url.path == f"/graph/v1beta1/drives/{SPACE_ID}/root/permissions"


async def test_members_of_an_unseen_space() -> None:
    """A space that is disabled, gone or not ours to manage has no members that we could see."""
    async with ScriptedVendor(odata(404, "itemNotFound")).http() as http:
        assert await OcisClient(http).space_members(SPACE_ID) == []


async def test_invite_group() -> None:
    """One recipient of the kind group, one role."""
    vendor = ScriptedVendor(answer(200, {"value": []}))
    async with vendor.http() as http:
        await OcisClient(http).invite_group(SPACE_ID, "g1", SPACE_EDITOR)
    assert vendor.last.url.path == f"/graph/v1beta1/drives/{SPACE_ID}/root/invite"
    assert vendor.body == {
        "recipients": [{"@libre.graph.recipient.type": "group", "objectId": "g1"}],
        "roles": [SPACE_EDITOR],
    }


async def test_restore() -> None:
    """A restore is a PATCH that changes nothing, told apart by a header; the space comes back as it was."""
    vendor = ScriptedVendor(answer(200, {"id": SPACE_ID, "name": "acme", "quota": {"total": 9, "used": 4}, "root": {}}))
    async with vendor.http() as http:
        space = await OcisClient(http).restore_space(SPACE_ID)
    (request,) = vendor.requests
    assert (request.method, request.headers["Restore"], request.content) == ("PATCH", "T", b"{}")
    assert (space.disabled, space.quota_used) == (False, 4)


async def test_disable_and_purge() -> None:
    """The two deletes differ by a header only; disabling must never carry it."""
    vendor = ScriptedVendor(answer(204))
    async with vendor.http() as http:
        await OcisClient(http).disable_space(SPACE_ID)
        await OcisClient(http).purge_space(SPACE_ID)
    disable, purge = vendor.requests
    assert disable.method == purge.method == "DELETE"
    assert "Purge" not in disable.headers
    assert purge.headers["Purge"] == "T"


@EVERY_CALL
async def test_unauthorized_is_weather(name: str) -> None:
    """For its first minute a server refuses good credentials; nothing was done."""
    error = await fail(name, httpx.Response(401, headers={"WWW-Authenticate": "Bearer", "X-Request-ID": "r1"}))
    assert type(error) is VendorUnavailable
    assert (error.code, error.request_id, error.retryable) == ("vendor_warming_up", "r1", True)


async def test_unauthorized_for_longer_than_a_start() -> None:
    """A server that answers nothing but 401 for longer than it may take to start refuses the credential."""
    refused, fine = httpx.Response(401), answer(200, {})
    vendor = ScriptedVendor(refused, refused, refused, fine, refused)
    async with vendor.http() as http:
        client = OcisClient(http, warm_up=timedelta(0))
        with pytest.raises(VendorUnavailable):
            await client.check()
        for _ in range(2):
            with pytest.raises(VendorAuthFailed) as caught:
                await client.check()
            assert (caught.value.code, caught.value.http_status) == ("vendor_auth_failed", 401)
        await client.check()
        with pytest.raises(VendorUnavailable):
            await client.check()


@EVERY_CALL
async def test_forbidden(name: str) -> None:
    """A missing right is final, and the server's id of the request is kept."""
    error = await fail(name, odata(403, "accessDenied"))
    assert type(error) is VendorRejected
    assert (error.code, error.request_id) == ("vendor_forbidden", "vm/1")


@pytest.mark.parametrize("name", ["create_group", "invite_group"])
async def test_conflict(name: str) -> None:
    """What exists already is read again by the caller."""
    error = await fail(name, odata(409, "nameAlreadyExists"))
    assert type(error) is VendorRejected
    assert error.code == "already_exists"


@pytest.mark.parametrize("name", [*sorted(set(WRITES) - {"delete_group"}), "find_spaces", "check"])
async def test_not_found(name: str) -> None:
    """A write to something absent, or hidden from us, is refused for good."""
    error = await fail(name, odata(404, "itemNotFound"))
    assert type(error) is VendorRejected
    assert error.code == "vendor_not_found"


@pytest.mark.parametrize("status", [400, 405, 412, 423])
async def test_other_refusals(status: int) -> None:
    """Other refusals are final, with or without a body."""
    for given in (odata(status, "invalidRequest"), httpx.Response(status), answer(status, {"error": "text"})):
        error = await fail("purge_space", given)
        assert type(error) is VendorRejected
        assert (error.code, error.http_status) == ("vendor_rejected", status)


@EVERY_CALL
@pytest.mark.parametrize("status", [500, 501, 502, 503])
async def test_server_error(name: str, status: int) -> None:
    """A failed read is weather, a failed write may have been done."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, httpx.Response(status))) is expected


@EVERY_CALL
async def test_rate_limit(name: str) -> None:
    """A proxy in front may limit us."""
    error = await fail(name, answer(429, None, Retry_After="3"))
    assert type(error) is VendorRateLimited
    assert error.retry_after == timedelta(seconds=3)


@EVERY_CALL
async def test_nothing_sent(name: str) -> None:
    """A refused connection is weather, for writes too."""
    assert type(await fail(name, NOTHING_SENT[0])) is VendorUnavailable


@EVERY_CALL
async def test_answer_lost(name: str) -> None:
    """A connection that closes without an answer leaves a write open."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, ANSWER_LOST[-1])) is expected


@pytest.mark.parametrize("name", ["find_group", "find_spaces", "space_members", "create_group", "create_space"])
async def test_body_that_is_not_understood(name: str) -> None:
    """The web app's page with status 200 is no answer."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, httpx.Response(200, html="<html>"))) is expected
