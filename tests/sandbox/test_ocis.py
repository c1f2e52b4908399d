"""The OCIS stand-in behaves as the vendor does, hazards included."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from sandbox.ocis import create_app
from sandbox.state import State

pytestmark = pytest.mark.asyncio

URL = "http://files.test"
GROUPS = f"{URL}/graph/v1.0/groups"
DRIVES = f"{URL}/graph/v1.0/drives"
BETA = f"{URL}/graph/v1beta1/drives"
VIEWER = "a8d5fe5e-96e3-418d-825b-534dbdf22b99"
EDITOR = "58c63c02-1d89-4572-916a-870abc5a1b7d"
MANAGER = "312c0871-5ef7-4b3a-85b6-0e4074c64049"
UNLIMITED = 9223372036854775807
AUTHORIZED = {"Authorization": "Bearer secret"}


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a fresh installation, with the right credential."""
    state = State()
    transport = httpx.ASGITransport(create_app(state, public_url=URL, token="secret"))
    async with httpx.AsyncClient(transport=transport, headers=AUTHORIZED) as client:
        yield client
    state.close()


async def new_group(client: httpx.AsyncClient, name: str = "dezky-tenant-acme") -> str:
    """Create a group and return its id."""
    answer = await client.post(GROUPS, json={"displayName": name})
    assert answer.status_code == 201, answer.text
    group_id: str = answer.json()["id"]
    return group_id


async def new_space(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Create a project space."""
    answer = await client.post(DRIVES, json={"name": "Acme", "driveAlias": "project/dezky-acme", **fields})
    assert answer.status_code == 201, answer.text
    space: dict[str, Any] = answer.json()
    return space


async def invite(client: httpx.AsyncClient, space: dict[str, Any], group: str, role: str = EDITOR) -> httpx.Response:
    """Ask to make a group a member."""
    recipient = {"@libre.graph.recipient.type": "group", "objectId": group}
    return await client.post(f"{BETA}/{space['id']}/root/invite", json={"recipients": [recipient], "roles": [role]})


async def members(client: httpx.AsyncClient, space: dict[str, Any]) -> dict[str, str]:
    """Return the role of each permission id."""
    listed = await client.get(f"{BETA}/{space['id']}/root/permissions")
    assert listed.status_code == 200, listed.text
    return {permission["id"]: permission["roles"][0] for permission in listed.json()["value"]}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Return status and OData code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


# Rules of the whole API


@pytest.mark.parametrize("credentials", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic c2VjcmV0"}])
async def test_refused_credentials(client: httpx.AsyncClient, credentials: dict[str, str]) -> None:
    """A 401 has no body, and names both schemes."""
    del client.headers["Authorization"]
    answer = await client.get(DRIVES, headers=credentials)
    assert (answer.status_code, answer.content) == (401, b"")
    assert "Bearer" in answer.headers["www-authenticate"]
    assert "Basic" in answer.headers["www-authenticate"]


async def test_good_credentials_are_refused_while_starting() -> None:
    """During the warm-up every credential is refused; afterwards the same one is accepted."""
    state = State()
    transport = httpx.ASGITransport(create_app(state, public_url=URL, token="secret", warm_up_seconds=0.2))
    async with httpx.AsyncClient(transport=transport, headers=AUTHORIZED) as client:
        assert (await client.get(f"{URL}/graph/v1.0/me")).status_code == 401
        assert (await client.get(f"{URL}/status.php")).status_code == 200
        async with asyncio.timeout(10):
            while (await client.get(f"{URL}/graph/v1.0/me")).status_code == 401:
                await asyncio.sleep(0.02)
    state.close()


async def test_refusals_carry_the_request_id(client: httpx.AsyncClient) -> None:
    """The caller's X-Request-ID comes back in the error; without one the server has its own."""
    answer = await client.get(f"{GROUPS}/none", headers={"X-Request-ID": "op-1"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["message"]) == (404, "itemNotFound", "not found")
    assert error["innererror"]["request-id"] == "op-1"
    assert error["innererror"]["date"].endswith("Z")
    assert (await client.get(f"{GROUPS}/none")).json()["error"]["innererror"]["request-id"]


async def test_unknown_routes_and_methods(client: httpx.AsyncClient) -> None:
    """An unknown graph path is plain text, another method has no body, and all the rest is the web page."""
    unknown = await client.get(f"{URL}/graph/v1.0/nope")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    for method, url in (("PUT", DRIVES), ("POST", BETA)):
        answer = await client.request(method, url)
        assert (answer.status_code, answer.content) == (405, b"")
    health = await client.get(f"{URL}/health")
    assert (health.status_code, health.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_status(client: httpx.AsyncClient) -> None:
    """The version is told without a credential."""
    del client.headers["Authorization"]
    status = (await client.get(f"{URL}/status.php")).json()
    assert (status["installed"], status["maintenance"], status["productversion"]) == (True, False, "7.1.4")


async def test_me(client: httpx.AsyncClient) -> None:
    """The caller is one stable machine account."""
    me = (await client.get(f"{URL}/graph/v1.0/me")).json()
    assert me["onPremisesSamAccountName"] == "dezky-control-plane"
    assert uuid.UUID(me["id"])


# Groups


async def test_group_life(client: httpx.AsyncClient) -> None:
    """A group is found by id and by name, renamed and deleted; the second deletion is 404."""
    answer = await client.post(GROUPS, json={"displayName": "dezky-tenant-acme"})
    group = answer.json()
    assert group == {"displayName": "dezky-tenant-acme", "groupTypes": [], "id": group["id"]}
    for key in (group["id"], "dezky-tenant-acme", "DEZKY-TENANT-ACME"):
        assert (await client.get(f"{GROUPS}/{key}")).json() == group
    assert (await client.get(f"{GROUPS}/{group['id']}", params={"$expand": "members"})).json()["members"] == []
    assert (await client.patch(f"{GROUPS}/{group['id']}", json={"displayName": "other"})).status_code == 204
    assert refusal(await client.get(f"{GROUPS}/dezky-tenant-acme")) == (404, "itemNotFound")
    assert (await client.delete(f"{GROUPS}/{group['id']}")).status_code == 204
    assert refusal(await client.delete(f"{GROUPS}/{group['id']}")) == (404, "itemNotFound")


async def test_group_names_are_unique_in_any_case(client: httpx.AsyncClient) -> None:
    """A second group of the same name is 409, by creation and by renaming."""
    await new_group(client)
    other = await new_group(client, "other")
    assert refusal(await client.post(GROUPS, json={"displayName": "Dezky-Tenant-ACME"})) == (409, "nameAlreadyExists")
    taken = await client.patch(f"{GROUPS}/{other}", json={"displayName": "dezky-tenant-acme"})
    assert refusal(taken) == (409, "nameAlreadyExists")
    assert (await client.patch(f"{GROUPS}/{other}", json={"displayName": "Other"})).status_code == 204


@pytest.mark.parametrize(
    "body", [{}, {"displayName": ""}, {"displayName": "x", "id": "1"}, {"displayName": "x", "a": 1}]
)
async def test_refused_groups(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """A missing name, an own id and an unknown property are 400, and nothing is created."""
    assert refusal(await client.post(GROUPS, json=body)) == (400, "invalidRequest")
    assert (await client.get(GROUPS)).json() == {"value": []}


async def test_group_filters_are_ignored(client: httpx.AsyncClient) -> None:
    """`$filter` and `$top` give the whole list; `$search` and `$orderby` work."""
    for name in ("b", "a", "acme"):
        await new_group(client, name)

    async def names(**params: Any) -> list[str]:
        query = {f"${name}": value for name, value in params.items()}
        return [group["displayName"] for group in (await client.get(GROUPS, params=query)).json()["value"]]

    assert sorted(await names(filter="displayName eq 'a'", top=1)) == ["a", "acme", "b"]
    assert await names(orderby="displayName desc") == ["b", "acme", "a"]
    assert await names(search="acme") == ["acme"]


# Spaces


async def test_a_new_space(client: httpx.AsyncClient) -> None:
    """The answer has what was sent, the defaults, and the creator as manager under a legacy role word."""
    space = await new_space(client, description="tenant t-1", quota={"total": 5_000})
    me = (await client.get(f"{URL}/graph/v1.0/me")).json()
    assert (space["name"], space["driveAlias"], space["driveType"]) == ("Acme", "project/dezky-acme", "project")
    assert space["description"] == "tenant t-1"
    assert space["quota"] == {"total": 5_000, "used": 0, "remaining": 5_000, "state": "normal"}
    assert space["owner"]["user"]["id"] == space["id"].partition("$")[2]
    (permission,) = space["root"]["permissions"]
    assert permission["roles"] == ["manager"]
    assert permission["grantedToV2"]["user"]["id"] == me["id"]
    assert "deleted" not in space["root"]
    assert space["root"]["webDavUrl"] == f"{URL}/dav/spaces/{space['id']}"


async def test_nothing_about_a_space_is_unique(client: httpx.AsyncClient) -> None:
    """The same request again gives another space; an id of the caller's is ignored."""
    own = str(uuid.uuid4())
    ids = {(await new_space(client, id=own))["id"] for _ in range(3)}
    assert len(ids) == 3
    assert not any(own in space_id for space_id in ids)


async def test_defaults_of_a_space(client: httpx.AsyncClient) -> None:
    """Name is trimmed, alias follows from it, quota is the default; there is no description."""
    space = (await client.post(DRIVES, json={"name": "  Acme Files "})).json()
    assert (space["name"], space["driveAlias"]) == ("Acme Files", "project/acme-files")
    assert space["quota"]["total"] == 1_000_000_000
    assert "description" not in space


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no name"),
        pytest.param({"name": "  "}, id="blank name"),
        pytest.param({"name": "acme.example"}, id="dot"),
        pytest.param({"name": "a/b"}, id="slash"),
        pytest.param({"name": "é" * 128}, id="256 bytes"),
        pytest.param({"name": 1}, id="number"),
        pytest.param({"name": "x", "bogus": 1}, id="unknown property"),
        pytest.param({"name": "x", "quota": {"totl": 1}}, id="unknown nested property"),
        pytest.param({"name": "x", "quota": {"total": "1"}}, id="quota as text"),
        pytest.param({"name": "x", "driveType": "personal"}, id="personal"),
    ],
)
async def test_refused_spaces(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """A wrong body is 400, and nothing is created."""
    assert refusal(await client.post(DRIVES, json=body)) == (400, "invalidRequest")
    assert (await client.get(f"{URL}/_sandbox/objects")).json()["spaces"] == []


async def test_longest_name(client: httpx.AsyncClient) -> None:
    """255 bytes are accepted."""
    assert (await new_space(client, name="n" * 255))["name"] == "n" * 255


async def test_a_space_is_found_by_both_forms_of_its_id(client: httpx.AsyncClient) -> None:
    """The full id, raw or escaped, and the bare UUID lead to it; others are 404."""
    space = await new_space(client)
    for key in (space["id"], space["id"].replace("$", "%24"), space["id"].partition("$")[2]):
        assert (await client.get(f"{DRIVES}/{key}")).json() == space
    assert refusal(await client.get(f"{DRIVES}/{uuid.uuid4()}")) == (404, "itemNotFound")
    assert (await client.get(f"{BETA}/{space['id']}")).status_code == 404


async def listed(client: httpx.AsyncClient, url: str = DRIVES, **params: Any) -> list[str]:
    """Return the aliases that the list of drives answers with."""
    answer = await client.get(url, params={f"${name}": value for name, value in params.items()})
    assert answer.status_code == 200, answer.text
    return [drive["driveAlias"] for drive in answer.json()["value"]]


async def test_filters_that_work(client: httpx.AsyncClient) -> None:
    """Only type and id narrow the list; without them it contains drives that are no project."""
    first = await new_space(client, driveAlias="project/a", name="b")
    await new_space(client, driveAlias="project/b", name="a")
    everything = ["personal/dezky-control-plane", "project/a", "project/b", "virtual/shares"]
    assert sorted(await listed(client)) == everything
    assert await listed(client, filter="driveType eq 'project'", orderby="name") == ["project/b", "project/a"]
    assert await listed(client, filter="driveType eq project", orderby="lastModifiedDateTime desc") == [
        "project/b",
        "project/a",
    ]
    assert await listed(client, filter=f"id eq '{first['id']}'") == ["project/a"]
    for ignored in ("driveAlias eq 'project/a'", "name eq 'b'", "name eq 'rock and roll (live)'"):
        assert sorted(await listed(client, filter=ignored, top=1, skip=2)) == everything


@pytest.mark.parametrize(
    "expression",
    [
        "driveType eq 'project' and name eq 'a'",
        "driveType ne 'personal'",
        "contains(name,'a')",
        "name eq 'a' or id eq 'b'",
    ],
)
async def test_filters_that_are_not_supported(client: httpx.AsyncClient, expression: str) -> None:
    """Anything but one equality is 501."""
    assert refusal(await client.get(DRIVES, params={"$filter": expression})) == (501, "notSupported")


async def test_orders_that_are_not_supported(client: httpx.AsyncClient) -> None:
    """An unknown order is 400, unlike an unknown filter."""
    assert refusal(await client.get(DRIVES, params={"$orderby": "quota desc"})) == (400, "invalidRequest")


async def test_order_is_random(client: httpx.AsyncClient) -> None:
    """Without an order the same list comes in different orders."""
    for number in range(8):
        await new_space(client, driveAlias=f"project/{number}")
    orders = {tuple(await listed(client, filter="driveType eq 'project'")) for _ in range(10)}
    assert len(orders) > 1


async def test_unified_roles(client: httpx.AsyncClient) -> None:
    """The list below v1beta1 names roles by id."""
    await new_space(client)
    (drive,) = (await client.get(BETA, params={"$filter": "driveType eq 'project'"})).json()["value"]
    assert drive["root"]["permissions"][0]["roles"] == [MANAGER]


async def test_changing_a_space(client: httpx.AsyncClient) -> None:
    """Each property changes alone; an empty description disappears; an empty object changes nothing."""
    space = await new_space(client, description="old")
    url = f"{DRIVES}/{space['id']}"
    assert (await client.patch(url, json={"name": "New"})).json()["name"] == "New"
    assert "description" not in (await client.patch(url, json={"description": ""})).json()
    assert (await client.patch(url, json={"driveAlias": "project/x"})).json()["driveAlias"] == "project/x"
    assert (await client.patch(url, json={"quota": {"total": 7}})).json()["quota"]["total"] == 7
    unchanged = (await client.patch(url, json={})).json()
    assert (unchanged["name"], unchanged["driveAlias"], unchanged["quota"]["total"]) == ("New", "project/x", 7)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"bogus": 1}', "invalidRequest"),
        ("", "invalidRequest"),
        ("{", "invalidRequest"),
        ('{"name": "a.b"}', "generalException"),
    ],
)
async def test_refused_changes(client: httpx.AsyncClient, body: str, code: str) -> None:
    """A wrong body is 400 and leaves the space as it was."""
    space = await new_space(client)
    assert refusal(await client.patch(f"{DRIVES}/{space['id']}", content=body)) == (400, code)
    assert (await client.get(f"{DRIVES}/{space['id']}")).json() == space


@pytest.mark.parametrize(
    ("total", "used", "quota"),
    [
        (100, 75, {"total": 100, "used": 75, "remaining": 25, "state": "normal"}),
        (100, 76, {"total": 100, "used": 76, "remaining": 24, "state": "nearing"}),
        (100, 91, {"total": 100, "used": 91, "remaining": 9, "state": "critical"}),
        (100, 100, {"total": 100, "used": 100, "remaining": 0, "state": "exceeded"}),
        (0, 5, {"total": 0, "used": 5, "remaining": UNLIMITED, "state": "normal"}),
    ],
)
async def test_quota_numbers(client: httpx.AsyncClient, total: int, used: int, quota: dict[str, Any]) -> None:
    """A stored file raises what is used; the state follows from the share; zero is no limit."""
    space = await new_space(client, quota={"total": total})
    written = await client.post(f"{URL}/_sandbox/spaces/{space['id']}/files", json={"bytes": used})
    assert written.status_code == 200
    assert (await client.get(f"{DRIVES}/{space['id']}")).json()["quota"] == quota


async def test_negative_quota(client: httpx.AsyncClient) -> None:
    """At creation it means the default, in a change it is stored and counts as none."""
    space = await new_space(client, quota={"total": -1})
    assert space["quota"]["total"] == 1_000_000_000
    changed = (await client.patch(f"{DRIVES}/{space['id']}", json={"quota": {"total": -1}})).json()
    assert (changed["quota"]["total"], changed["quota"]["remaining"]) == (0, UNLIMITED)


async def test_disable_and_restore(client: httpx.AsyncClient) -> None:
    """Both are idempotent; a disabled space stays listed with its members, and can still be changed."""
    space = await new_space(client)
    url = f"{DRIVES}/{space['id']}"
    for _ in range(2):
        assert (await client.delete(url)).status_code == 204
    disabled = (await client.get(url)).json()
    assert disabled["root"]["deleted"] == {"state": "trashed"}
    assert disabled["quota"] == {"total": space["quota"]["total"]}
    assert disabled["root"]["permissions"] == space["root"]["permissions"]
    assert await listed(client, filter="driveType eq 'project'") == ["project/dezky-acme"]
    assert (await client.patch(url, json={"name": "New"})).json()["root"]["deleted"] == {"state": "trashed"}
    assert refusal(await client.patch(url, headers={"Restore": "T"})) == (400, "invalidRequest")
    for word in ("T", "true"):
        restored = (await client.patch(url, json={}, headers={"Restore": word})).json()
        assert "deleted" not in restored["root"]
        assert restored["name"] == "New"


async def test_purge(client: httpx.AsyncClient) -> None:
    """An enabled space cannot be purged; a purged one is gone for every verb."""
    space = await new_space(client)
    url = f"{DRIVES}/{space['id']}"
    purge = {"Purge": "T"}
    assert refusal(await client.delete(url, headers=purge)) == (400, "invalidRequest")
    await client.delete(url)
    assert (await client.delete(url, headers=purge)).status_code == 204
    for answer in (
        await client.delete(url, headers=purge),
        await client.delete(url),
        await client.get(url),
        await client.patch(url, json={}, headers={"Restore": "T"}),
    ):
        assert refusal(answer) == (404, "itemNotFound")


@pytest.mark.parametrize(("method", "header"), [("DELETE", "Purge"), ("PATCH", "Restore")])
async def test_headers_that_are_no_boolean(client: httpx.AsyncClient, method: str, header: str) -> None:
    """A header value that is no boolean changes nothing."""
    space = await new_space(client)
    answer = await client.request(method, f"{DRIVES}/{space['id']}", json={}, headers={header: "yes"})
    assert refusal(answer) == (400, "invalidRequest")
    assert (await client.get(f"{DRIVES}/{space['id']}")).json() == space


# Members


async def test_member_life(client: httpx.AsyncClient) -> None:
    """A group joins under a predictable id, changes its role, and leaves; a second removal is 500."""
    group, space = await new_group(client), await new_space(client)
    permission = (await invite(client, space, group, VIEWER)).json()["value"][0]
    assert (permission["id"], permission["roles"]) == (f"g:{group}", [VIEWER])
    assert permission["grantedToV2"] == {"group": {"displayName": "dezky-tenant-acme", "id": group}}
    assert permission["invitation"]["invitedBy"]["user"]["displayName"] == "dezky-control-plane"
    url = f"{BETA}/{space['id']}/root/permissions/g:{group}"
    for _ in range(2):
        changed = await client.patch(url, json={"roles": [EDITOR]})
        assert (changed.status_code, changed.json()["roles"]) == (200, [EDITOR])
    assert (await members(client, space))[f"g:{group}"] == EDITOR
    words = [shown["roles"] for shown in (await client.get(f"{DRIVES}/{space['id']}")).json()["root"]["permissions"]]
    assert words == [["manager"], ["editor"]]
    assert (await client.get(url)).status_code == 405
    assert (await client.delete(url)).status_code == 204
    assert refusal(await client.delete(url)) == (500, "generalException")
    assert refusal(await client.patch(url, json={"roles": [EDITOR]})) == (404, "itemNotFound")


async def test_inviting_a_member_again(client: httpx.AsyncClient) -> None:
    """A second invitation is 409 whatever the role, and the first role stays."""
    group, space = await new_group(client), await new_space(client)
    await invite(client, space, group, VIEWER)
    for role in (VIEWER, EDITOR):
        assert refusal(await invite(client, space, group, role)) == (409, "nameAlreadyExists")
    assert (await members(client, space))[f"g:{group}"] == VIEWER


async def test_what_could_be_given(client: httpx.AsyncClient) -> None:
    """The list of members names the roles; the definitions are a bare list."""
    space = await new_space(client)
    answer = (await client.get(f"{BETA}/{space['id']}/root/permissions")).json()
    roles = answer["@libre.graph.permissions.roles.allowedValues"]
    assert [role["id"] for role in roles] == [VIEWER, EDITOR, MANAGER]
    definitions = await client.get(f"{URL}/graph/v1beta1/roleManagement/permissions/roleDefinitions")
    assert definitions.json() == roles


GROUP_RECIPIENT = {"@libre.graph.recipient.type": "group", "objectId": str(uuid.UUID(int=0))}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"recipients": [], "roles": [VIEWER]}, id="no recipient"),
        pytest.param({"recipients": [GROUP_RECIPIENT] * 2, "roles": [VIEWER]}, id="two recipients"),
        pytest.param({"recipients": [{"objectId": "x"}], "roles": [VIEWER]}, id="no type"),
        pytest.param({"recipients": [GROUP_RECIPIENT]}, id="no role"),
        pytest.param({"recipients": [GROUP_RECIPIENT], "roles": ["manager"]}, id="legacy word"),
        pytest.param({"recipients": [GROUP_RECIPIENT], "roles": [VIEWER, EDITOR]}, id="two roles"),
        pytest.param({"recipients": [GROUP_RECIPIENT], "roles": [VIEWER]}, id="unknown group"),
        pytest.param({"recipients": [GROUP_RECIPIENT], "roles": [VIEWER], "bogus": 1}, id="unknown property"),
        pytest.param(
            {"recipients": [GROUP_RECIPIENT], "roles": [VIEWER], "expirationDateTime": "2001-01-01T00:00:00Z"},
            id="expired",
        ),
    ],
)
async def test_refused_invitations(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """A wrong invitation is 400, and nobody joins."""
    space = await new_space(client)
    before = await members(client, space)
    assert refusal(await client.post(f"{BETA}/{space['id']}/root/invite", json=body)) == (400, "invalidRequest")
    assert await members(client, space) == before


async def test_the_last_manager_stays(client: httpx.AsyncClient) -> None:
    """The only manager can neither be removed nor be lowered."""
    space = await new_space(client)
    (manager,) = await members(client, space)
    url = f"{BETA}/{space['id']}/root/permissions/{manager}"
    assert refusal(await client.delete(url)) == (403, "accessDenied")
    assert refusal(await client.patch(url, json={"roles": [VIEWER]})) == (403, "accessDenied")
    assert await members(client, space) == {manager: MANAGER}


async def test_who_is_no_member_finds_no_members(client: httpx.AsyncClient) -> None:
    """Once the machine account has left, members are 404 to it, though it may still administer the space."""
    group, space = await new_group(client), await new_space(client)
    await invite(client, space, group, MANAGER)
    machine = next(key for key in await members(client, space) if key.startswith("u:"))
    permissions = f"{BETA}/{space['id']}/root/permissions"
    assert (await client.delete(f"{permissions}/{machine}")).status_code == 204
    for answer in (
        await client.get(permissions),
        await invite(client, space, await new_group(client, "other")),
        await client.patch(f"{permissions}/g:{group}", json={"roles": [VIEWER]}),
        await client.delete(f"{permissions}/g:{group}"),
    ):
        assert refusal(answer) == (404, "itemNotFound")
    assert (await client.patch(f"{DRIVES}/{space['id']}", json={"name": "New"})).status_code == 200


async def test_a_disabled_space_hides_its_members(client: httpx.AsyncClient) -> None:
    """Members of a disabled space are 404, and the same as before once it is restored."""
    group, space = await new_group(client), await new_space(client)
    await invite(client, space, group)
    before = await members(client, space)
    await client.delete(f"{DRIVES}/{space['id']}")
    assert refusal(await client.get(f"{BETA}/{space['id']}/root/permissions")) == (404, "itemNotFound")
    await client.patch(f"{DRIVES}/{space['id']}", json={}, headers={"Restore": "T"})
    assert await members(client, space) == before


async def test_a_deleted_group_leaves_its_membership(client: httpx.AsyncClient) -> None:
    """The membership stays listed without a name, and can be removed."""
    group, space = await new_group(client), await new_space(client)
    await invite(client, space, group)
    await client.delete(f"{GROUPS}/{group}")
    shown = (await client.get(f"{BETA}/{space['id']}/root/permissions")).json()["value"][1]
    assert shown["grantedToV2"]["group"] == {"displayName": "", "id": group}
    assert (await client.delete(f"{BETA}/{space['id']}/root/permissions/g:{group}")).status_code == 204


async def test_malformed_drive_id_in_an_invitation(client: httpx.AsyncClient) -> None:
    """An id that cannot be one is 422."""
    group = await new_group(client)
    assert (await invite(client, {"id": "not-an-id"}, group)).status_code == 422


# State


async def test_objects(client: httpx.AsyncClient) -> None:
    """The control path shows groups, project spaces and memberships, and nothing that was always there."""
    assert (await client.get(f"{URL}/_sandbox/objects")).json() == {"groups": [], "spaces": [], "memberships": []}
    group, space = await new_group(client), await new_space(client)
    await invite(client, space, group)
    objects = (await client.get(f"{URL}/_sandbox/objects")).json()
    assert [row["id"] for row in objects["groups"]] == [group]
    assert [row["driveAlias"] for row in objects["spaces"]] == ["project/dezky-acme"]
    assert [(row["kind"], row["role"]) for row in objects["memberships"]] == [("user", MANAGER), ("group", EDITOR)]


async def test_a_second_start_finds_the_first_installation(tmp_path: Path) -> None:
    """The machine account stays the same, so it still manages the spaces of before the restart."""
    spaces: list[dict[str, Any]] = []
    for _ in range(2):
        state = State(tmp_path / "ocis.sqlite")
        transport = httpx.ASGITransport(create_app(state, public_url=URL, token="secret"))
        async with httpx.AsyncClient(transport=transport, headers=AUTHORIZED) as client:
            spaces.append(spaces[0] if spaces else await new_space(client))
            assert list((await members(client, spaces[0])).values()) == [MANAGER]
            assert (await client.get(f"{DRIVES}/{spaces[0]['id']}")).json() == spaces[0]
            assert len(await listed(client)) == 3
        state.close()
