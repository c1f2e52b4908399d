"""The Authentik client: what it sends, what it believes, and what it makes of refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from domain.errors import (
    OutcomeUnknown,
    VendorAuthFailed,
    VendorError,
    VendorRateLimited,
    VendorRejected,
    VendorUnavailable,
)
from integrations.authentik import AuthentikClient, Group, User, UserSpec
from tests.support.vendor import ANSWER_LOST, NOTHING_SENT, ScriptedVendor, answer

pytestmark = pytest.mark.asyncio

GROUP_PK = "4339db4a-c64e-41ec-896d-e9ad238efa43"
SUBJECT = "0b31d3a5-8a8f-4a8e-9a3e-6b0d7e6a9f11"
SPEC = UserSpec(
    username=" Anna@Acme.example ", name="Anna", email="anna@acme.example", attributes={"dezkyUserId": "u1"}
)


def group(name: str = "dezky-tenant-acme", pk: str = GROUP_PK) -> dict[str, Any]:
    """A group as the server shows it."""
    return {"pk": pk, "num_pk": 1, "name": name, "is_superuser": False, "users": [4], "attributes": {"tenant": "t1"}}


def user(username: str = "anna@acme.example", pk: int = 4, subject: str = SUBJECT) -> dict[str, Any]:
    """A user as the server shows it."""
    return {
        "pk": pk,
        "uuid": subject,
        "uid": "f" * 64,
        "username": username,
        "email": username,
        "name": "Anna",
        "is_active": True,
        "attributes": {"dezkyUserId": "u1"},
        "groups": [GROUP_PK],
        "groups_obj": None,
    }


def page(*results: dict[str, Any], next_page: int = 0) -> httpx.Response:
    """A page of a list; `next_page` is a number, 0 for none."""
    return answer(200, {"pagination": {"next": next_page, "previous": 0}, "results": results, "autocomplete": {}})


CALLS: dict[str, tuple[bool, Callable[[AuthentikClient], Awaitable[object]]]] = {
    "check": (False, lambda client: client.check()),
    "find_group": (False, lambda client: client.find_group("dezky-tenant-acme")),
    "find_user": (False, lambda client: client.find_user("anna@acme.example")),
    "find_user_by_subject": (False, lambda client: client.find_user_by_subject(SUBJECT)),
    "create_group": (True, lambda client: client.create_group("dezky-tenant-acme", {})),
    "create_user": (True, lambda client: client.create_user(SPEC)),
    "set_user_active": (True, lambda client: client.set_user_active(4, False)),
    "add_user_to_group": (True, lambda client: client.add_user_to_group(GROUP_PK, 4)),
    "remove_user_from_group": (True, lambda client: client.remove_user_from_group(GROUP_PK, 4)),
    "delete_group": (True, lambda client: client.delete_group(GROUP_PK)),
    "delete_user": (True, lambda client: client.delete_user(4)),
}
EVERY_CALL = pytest.mark.parametrize("name", CALLS)
WRITES = [name for name, (write, _) in CALLS.items() if write]
READS = [name for name, (write, _) in CALLS.items() if not write]
REMOVALS = {
    "remove_user_from_group": ("POST", f"/api/v3/core/groups/{GROUP_PK}/remove_user/"),
    "delete_group": ("DELETE", f"/api/v3/core/groups/{GROUP_PK}/"),
    "delete_user": ("DELETE", "/api/v3/core/users/4/"),
}
# Nothing in their answers is read.
BODILESS = {*REMOVALS, "add_user_to_group"}


async def fail(name: str, *answers: httpx.Response | Exception) -> VendorError:
    """Make the call and return the error it raised, having asked the vendor just once."""
    vendor = ScriptedVendor(*answers)
    async with vendor.http() as http:
        with pytest.raises(VendorError) as caught:
            await CALLS[name][1](AuthentikClient(http))
    assert len(vendor.requests) == 1
    assert caught.value.vendor == "authentik"
    return caught.value


async def test_check_returns_the_version() -> None:
    """The probe reads the version with our credential."""
    vendor = ScriptedVendor(answer(200, {"version_current": "2026.8.5", "outdated": False}))
    async with vendor.http() as http:
        assert await AuthentikClient(http).check() == "2026.8.5"
    assert vendor.last.url.path == "/api/v3/admin/version/"
    assert vendor.last.headers["Accept-Language"] == "en"


async def test_find_group() -> None:
    """A group is found by its exact name."""
    vendor = ScriptedVendor(page(group()))
    async with vendor.http() as http:
        found = await AuthentikClient(http).find_group("dezky-tenant-acme")
    assert found == Group(pk=GROUP_PK, name="dezky-tenant-acme", attributes={"tenant": "t1"}, user_pks=(4,))
    assert vendor.last.url.path == "/api/v3/core/groups/"
    assert vendor.last.url.params["name"] == "dezky-tenant-acme"
    assert vendor.last.url.params["include_users"] == "false"


async def test_ignored_filter_is_not_believed() -> None:
    """A server that ignores the filter sends other groups: none of them is taken."""
    vendor = ScriptedVendor(page(group("authentik Admins"), group("Dezky-Tenant-Acme"), group("dezky-tenant-acme-2")))
    async with vendor.http() as http:
        assert await AuthentikClient(http).find_group("dezky-tenant-acme") is None


async def test_ignored_filter_is_paged_through() -> None:
    """The one that is ours may stand on a later page."""
    vendor = ScriptedVendor(page(group("a"), next_page=2), page(group("b"), next_page=3), page(group()))
    async with vendor.http() as http:
        found = await AuthentikClient(http).find_group("dezky-tenant-acme")
    assert found is not None
    assert [request.url.params["page"] for request in vendor.requests] == ["1", "2", "3"]


async def test_vanished_page_is_the_end() -> None:
    """A page past the end, after rows vanished, ends the list; on the first page a 404 is an error."""
    vendor = ScriptedVendor(page(group("a"), next_page=2), answer(404, {"detail": "Invalid page."}))
    async with vendor.http() as http:
        assert await AuthentikClient(http).find_group("dezky-tenant-acme") is None
    assert (await fail("find_group", answer(404, {"detail": "Not found."}))).code == "vendor_not_found"


async def test_find_user_compares_in_lower_case() -> None:
    """The look-up is normalised as the create is; a user that differs in case is somebody else."""
    vendor = ScriptedVendor(page(user("Anna@acme.example", pk=3), user()))
    async with vendor.http() as http:
        found = await AuthentikClient(http).find_user(" Anna@Acme.example")
    assert found is not None
    assert (found.pk, found.subject, found.group_pks, found.is_active) == (4, SUBJECT, (GROUP_PK,), True)
    assert vendor.last.url.params["username"] == "anna@acme.example"


async def test_find_user_by_subject() -> None:
    """A subject is compared too: an ignored filter must not hand out somebody else's account."""
    vendor = ScriptedVendor(page(user(subject="00000000-0000-0000-0000-000000000000")))
    async with vendor.http() as http:
        assert await AuthentikClient(http).find_user_by_subject(SUBJECT) is None
    vendor = ScriptedVendor(page(user()))
    async with vendor.http() as http:
        assert await AuthentikClient(http).find_user_by_subject(SUBJECT.upper()) == User.model_validate(user())
    assert vendor.last.url.params["uuid"] == SUBJECT


async def test_create_group() -> None:
    """Only the name and our attributes are sent."""
    vendor = ScriptedVendor(answer(201, group()))
    async with vendor.http() as http:
        created = await AuthentikClient(http).create_group("dezky-tenant-acme", {"tenant": "t1"})
    assert created.pk == GROUP_PK
    assert vendor.body == {"name": "dezky-tenant-acme", "attributes": {"tenant": "t1"}}


async def test_create_user() -> None:
    """A user is created active, internal, under the e-mail address in lower case."""
    vendor = ScriptedVendor(answer(201, user()))
    async with vendor.http() as http:
        await AuthentikClient(http).create_user(SPEC)
    assert vendor.body == {
        "username": "anna@acme.example",
        "name": "Anna",
        "email": "anna@acme.example",
        "attributes": {"dezkyUserId": "u1"},
        "path": "dezky",
        "type": "internal",
        "is_active": True,
    }


async def test_set_user_active_patches() -> None:
    """Only the one field is sent, by PATCH: a PUT would empty the groups."""
    vendor = ScriptedVendor(answer(200, user() | {"is_active": False}))
    async with vendor.http() as http:
        changed = await AuthentikClient(http).set_user_active(4, False)
    assert not changed.is_active
    assert (vendor.last.method, vendor.last.url.path) == ("PATCH", "/api/v3/core/users/4/")
    assert vendor.body == {"is_active": False}


async def test_add_user_to_group() -> None:
    """The user is added, the membership not rewritten; an odd id stays one part of the path."""
    vendor = ScriptedVendor(answer(204))
    async with vendor.http() as http:
        await AuthentikClient(http).add_user_to_group(GROUP_PK, 4)
        assert vendor.last.url.path == f"/api/v3/core/groups/{GROUP_PK}/add_user/"
        assert vendor.body == {"pk": 4}
        await AuthentikClient(http).add_user_to_group("../users", 4)
    assert vendor.last.url.raw_path == b"/api/v3/core/groups/..%2Fusers/add_user/"


@pytest.mark.parametrize(("name", "method", "path"), [(name, *where) for name, where in REMOVALS.items()])
async def test_removal(name: str, method: str, path: str) -> None:
    """What is to be removed may be gone already; a 404 that does not come from the API says nothing about that."""
    for given in (answer(204), answer(404, {"detail": "No Group matches the given query."})):
        vendor = ScriptedVendor(given)
        async with vendor.http() as http:
            await CALLS[name][1](AuthentikClient(http))
        assert (vendor.last.method, vendor.last.url.path) == (method, path)
    assert (await fail(name, httpx.Response(404, html="<html>"))).code == "vendor_not_found"


@EVERY_CALL
async def test_refused_credential(name: str) -> None:
    """Only the invalid-token detail says that our credential is bad."""
    error = await fail(name, answer(403, {"detail": "Token invalid/expired"}, x_authentik_id="abc"))
    assert type(error) is VendorAuthFailed
    assert (error.http_status, error.request_id) == (403, "abc")


@EVERY_CALL
async def test_missing_permission(name: str) -> None:
    """Any other 403 is a missing permission."""
    error = await fail(name, answer(403, {"detail": "You do not have permission to perform this action."}))
    assert type(error) is VendorRejected
    assert error.code == "vendor_forbidden"


@pytest.mark.parametrize(("name", "field"), [("create_group", "name"), ("create_user", "username")])
async def test_duplicate(name: str, field: str) -> None:
    """A taken name is a 400, known by its field and not by its text."""
    error = await fail(name, answer(400, {field: ["Bereits vorhanden."]}))
    assert type(error) is VendorRejected
    assert error.code == "already_exists"


@pytest.mark.parametrize("body", [{"email": ["Enter a valid email address."]}, ["filter: failed"], "text"])
async def test_other_bad_request(body: object) -> None:
    """Other refusals stay refusals, whatever the shape of their body."""
    error = await fail("create_user", answer(400, body))
    assert type(error) is VendorRejected
    assert error.code == "vendor_rejected"


async def test_unknown_object() -> None:
    """A write to something absent is refused for good."""
    assert (await fail("add_user_to_group", answer(404, {"detail": "Not found."}))).code == "vendor_not_found"


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("status", [405, 500, 502, 503, 504])
async def test_server_error_of_a_write(name: str, status: int) -> None:
    """A write that crashed the server may have been done; before 2026.8 that is a 405 without a body."""
    error = await fail(name, httpx.Response(status))
    assert type(error) is OutcomeUnknown
    assert error.http_status == status


async def test_method_not_allowed_with_a_body() -> None:
    """A 405 that says so is no crash."""
    error = await fail("create_group", answer(405, {"detail": 'Method "POST" not allowed.'}))
    assert type(error) is VendorRejected


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("status", [500, 502, 503])
async def test_server_error_of_a_read(name: str, status: int) -> None:
    """A read that failed is weather."""
    assert type(await fail(name, httpx.Response(status))) is VendorUnavailable


@EVERY_CALL
async def test_rate_limit(name: str) -> None:
    """A 429 carries the wait that the server asked for."""
    error = await fail(name, answer(429, {"detail": "Request was throttled."}, Retry_After="7"))
    assert type(error) is VendorRateLimited
    assert error.retry_after == timedelta(seconds=7)


@EVERY_CALL
async def test_nothing_sent(name: str) -> None:
    """A refused connection is weather, for writes too."""
    assert type(await fail(name, NOTHING_SENT[0])) is VendorUnavailable


@EVERY_CALL
async def test_answer_lost(name: str) -> None:
    """A dropped connection leaves a write open."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, ANSWER_LOST[-1])) is expected


@pytest.mark.parametrize("name", sorted(set(CALLS) - BODILESS))
async def test_body_that_is_not_understood(name: str) -> None:
    """A proxy's page with status 200 is no answer."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, httpx.Response(200, html="<html>"))) is expected


async def test_message_is_bounded() -> None:
    """A server's page does not fill our logs."""
    assert len((await fail("find_user", httpx.Response(500, text="x" * 9000))).message) <= 300


async def test_empty_username_is_our_mistake() -> None:
    """A spec without a username cannot be made."""
    with pytest.raises(ValidationError):
        UserSpec(username="", name="", email="", attributes={})
