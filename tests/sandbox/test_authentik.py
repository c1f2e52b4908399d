"""The Authentik stand-in behaves as the vendor does, hazards included."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio

from sandbox.authentik import create_app
from sandbox.state import State

pytestmark = pytest.mark.asyncio

URL = "http://auth.test"
API = f"{URL}/api/v3"
GROUPS = f"{API}/core/groups/"
USERS = f"{API}/core/users/"
GROUP_FIELDS = {
    *("pk", "num_pk", "name", "is_superuser", "parents", "parents_obj", "users", "users_obj", "attributes"),
    *("roles", "roles_obj", "inherited_roles_obj", "children", "children_obj"),
}
USER_FIELDS = {
    *("pk", "username", "name", "is_active", "last_login", "date_joined", "is_superuser", "groups", "groups_obj"),
    *("roles", "roles_obj", "email", "avatar", "attributes", "uid", "path", "type", "uuid", "password_change_date"),
    "last_updated",
}


def connect(state: State, token: str = "secret") -> httpx.AsyncClient:
    """Return a client of a stand-in on this state, with the right credential."""
    app = create_app(state, public_url=URL, token="secret")
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, headers={"Authorization": f"Bearer {token}"})


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a fresh installation."""
    state = State()
    async with connect(state) as client:
        yield client
    state.close()


async def new_group(client: httpx.AsyncClient, name: str = "dezky-tenant-acme", **fields: Any) -> dict[str, Any]:
    """Create a group."""
    answer = await client.post(GROUPS, json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    group: dict[str, Any] = answer.json()
    return group


async def new_user(client: httpx.AsyncClient, username: str = "ann@acme.test", **fields: Any) -> dict[str, Any]:
    """Create a user."""
    answer = await client.post(USERS, json={"username": username, "name": "Ann", "email": username, **fields})
    assert answer.status_code == 201, answer.text
    user: dict[str, Any] = answer.json()
    return user


async def found(client: httpx.AsyncClient, url: str, **params: Any) -> list[Any]:
    """Return the names that a list answers with."""
    answer = await client.get(url, params=params)
    assert answer.status_code == 200, answer.text
    return [row["name"] if url == GROUPS else row["username"] for row in answer.json()["results"]]


# Rules of the whole API


@pytest.mark.parametrize(
    ("credentials", "text"),
    [
        ({}, "Authentication credentials were not provided."),
        ({"Authorization": "Token secret"}, "Authentication credentials were not provided."),
        ({"Authorization": "Bearer wrong"}, "Token invalid/expired"),
    ],
)
async def test_refused_credentials(client: httpx.AsyncClient, credentials: dict[str, str], text: str) -> None:
    """There is no 401: what is wrong with a credential stands in the detail of a 403."""
    del client.headers["Authorization"]
    answer = await client.get(GROUPS, headers=credentials)
    assert (answer.status_code, answer.json()) == (403, {"detail": text})


async def test_minted_tokens_are_no_api_tokens(client: httpx.AsyncClient) -> None:
    """An access token of an application does not open the API."""
    await new_user(client)
    token = (await mint(client)).json()["accessToken"]
    answer = await client.get(GROUPS, headers={"Authorization": f"Bearer {token}"})
    assert answer.json() == {"detail": "Token invalid/expired"}


@pytest.mark.parametrize("url", [GROUPS.rstrip("/"), f"{API}/core/nope/", f"{URL}/application/o/nope/jwks/"])
async def test_unknown_paths_are_html(client: httpx.AsyncClient, url: str) -> None:
    """A path without its trailing slash is not found, like any unknown one, and answers HTML."""
    answer = await client.get(url)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")


async def test_method_that_a_path_does_not_know(client: httpx.AsyncClient) -> None:
    """A known path with another method is 405 with JSON."""
    answer = await client.delete(GROUPS)
    assert (answer.status_code, answer.json()) == (405, {"detail": 'Method "DELETE" not allowed.'})


async def test_only_json_objects_are_read(client: httpx.AsyncClient) -> None:
    """A form is 415; broken JSON and JSON that is no object are 400."""
    assert (await client.post(GROUPS, data={"name": "x"})).status_code == 415
    broken = await client.post(GROUPS, content="{bad", headers={"Content-Type": "application/json"})
    assert broken.status_code == 400
    assert broken.json()["detail"].startswith("JSON parse error - ")
    assert (await client.post(GROUPS, json=["x"])).json().keys() == {"non_field_errors"}


async def test_every_answer_has_its_own_request_id(client: httpx.AsyncClient) -> None:
    """Good answers and refusals alike carry an id, a new one each time."""
    answers = [await client.get(GROUPS), await client.get(GROUPS.rstrip("/")), await client.post(GROUPS, json={})]
    assert len({answer.headers["x-authentik-id"] for answer in answers}) == 3


async def test_health_and_version(client: httpx.AsyncClient) -> None:
    """Health needs no credential, the version does."""
    version = (await client.get(f"{API}/admin/version/")).json()
    assert version["version_current"] == "2026.8.5"
    del client.headers["Authorization"]
    for probe in ("live", "ready"):
        answer = await client.get(f"{URL}/-/health/{probe}/")
        assert (answer.status_code, answer.content) == (200, b"")
    assert (await client.get(f"{API}/admin/version/")).status_code == 403


async def test_me(client: httpx.AsyncClient) -> None:
    """The caller is the service account of the control plane."""
    answer = (await client.get(f"{USERS}me/")).json()
    assert answer["user"]["username"] == "dezky-control-plane"
    assert answer["users"] == [answer["user"]]


# Lists


async def test_pages(client: httpx.AsyncClient) -> None:
    """Pages are numbered, 0 means that there is none, and one past the end is 404."""
    for number in range(4):
        await new_group(client, f"group-{number}")
    first = (await client.get(GROUPS, params={"page_size": 2, "ordering": "pk"})).json()
    assert first["pagination"] == {
        "next": 2,
        "previous": 0,
        "count": 5,
        "current": 1,
        "total_pages": 3,
        "start_index": 1,
        "end_index": 2,
    }
    assert first["autocomplete"] == {}
    last = (await client.get(GROUPS, params={"page_size": 2, "page": 3, "ordering": "pk"})).json()
    assert (last["pagination"]["next"], last["pagination"]["previous"]) == (0, 2)
    assert (last["pagination"]["start_index"], last["pagination"]["end_index"]) == (5, 5)
    for page in ("4", "0", "x"):
        answer = await client.get(GROUPS, params={"page_size": 2, "page": page})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Invalid page."})


async def test_page_size(client: httpx.AsyncClient) -> None:
    """The size is clamped to 100, and 20 if it makes no sense."""
    for number in range(104):
        await new_group(client, f"group-{number:03}")
    for asked, size in (("1000", 100), ("0", 20), ("abc", 20), ("", 20), ("7", 7)):
        assert len(await found(client, GROUPS, page_size=asked)) == size


async def test_an_empty_list_is_one_page(client: httpx.AsyncClient) -> None:
    """No match is page 1 of 1 without rows."""
    page = (await client.get(GROUPS, params={"name": "none"})).json()["pagination"]
    assert (page["total_pages"], page["start_index"], page["end_index"], page["count"]) == (1, 0, 0, 0)


async def test_what_a_filter_does_not_know_it_ignores(client: httpx.AsyncClient) -> None:
    """A misspelt filter and an empty one give the whole list, which begins with somebody else's group."""
    await new_group(client)
    everything = ["authentik Admins", "dezky-tenant-acme"]
    assert await found(client, GROUPS, nmae="dezky-tenant-acme") == everything
    assert await found(client, GROUPS, name="") == everything
    assert await found(client, GROUPS, ordering="bogus") == everything
    assert await found(client, GROUPS, ordering="-name") == everything[::-1]


async def test_names_are_compared_exactly(client: httpx.AsyncClient) -> None:
    """Case counts, blanks around the value do not."""
    await new_group(client)
    assert await found(client, GROUPS, name="DEZKY-TENANT-ACME") == []
    assert await found(client, GROUPS, name=" dezky-tenant-acme ") == ["dezky-tenant-acme"]


async def test_attribute_filter(client: httpx.AsyncClient) -> None:
    """Every key must match, a double underscore looks inside, and broken JSON is refused with a bare list."""
    await new_group(client, "a", attributes={"tenant": "t-1", "plan": {"key": "pro"}})
    await new_group(client, "b", attributes={"tenant": "t-1"})
    assert await found(client, GROUPS, attributes=json.dumps({"tenant": "t-1"})) == ["a", "b"]
    assert await found(client, GROUPS, attributes=json.dumps({"tenant": "t-1", "plan__key": "pro"})) == ["a"]
    answer = await client.get(GROUPS, params={"attributes": "{bad"})
    assert (answer.status_code, answer.json()) == (400, ["filter: failed to parse JSON"])


# Groups


async def test_group_life(client: httpx.AsyncClient) -> None:
    """A group is created, found, changed and deleted; the second deletion is 404."""
    group = await new_group(client, attributes={"tenant": "t-1"}, nonsense=1)
    assert group.keys() == GROUP_FIELDS
    url = f"{GROUPS}{group['pk']}/"
    assert (await client.get(url)).json() == group
    renamed = (await client.patch(url, json={"name": "other"})).json()
    assert renamed == {**group, "name": "other"}
    assert (await client.delete(url)).status_code == 204
    gone = await client.delete(url)
    assert (gone.status_code, gone.json()) == (404, {"detail": "No Group matches the given query."})


async def test_malformed_group_key(client: httpx.AsyncClient) -> None:
    """A key that is no UUID is not found, in other words."""
    answer = await client.get(f"{GROUPS}not-a-uuid/")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not found."})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({}, "name", id="missing"),
        pytest.param({"name": ""}, "name", id="blank"),
        pytest.param({"name": None}, "name", id="null"),
        pytest.param({"name": "taken"}, "name", id="duplicate"),
        pytest.param({"name": "x", "attributes": [1]}, "attributes", id="attributes are no object"),
        pytest.param({"name": "x", "users": [999]}, "users", id="unknown user"),
        pytest.param({"name": "x", "parents": [str(uuid.UUID(int=0))]}, "parents", id="unknown parent"),
    ],
)
async def test_refused_groups(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    """A wrong field, a duplicate too, is 400 under the key of the field, and nothing is created."""
    await new_group(client, "taken")
    answer = await client.post(GROUPS, json=body)
    assert answer.status_code == 400
    assert answer.json().keys() == {field}
    assert await found(client, GROUPS) == ["authentik Admins", "taken"]


async def test_patch_replaces_attributes_whole(client: httpx.AsyncClient) -> None:
    """Attributes that a PATCH does not repeat are lost."""
    group = await new_group(client, attributes={"a": 1})
    changed = await client.patch(f"{GROUPS}{group['pk']}/", json={"attributes": {"b": 2}})
    assert changed.json()["attributes"] == {"b": 2}


async def test_attributes_lose_their_order(client: httpx.AsyncClient) -> None:
    """Shorter keys come first, however they were sent."""
    group = await new_group(client, attributes={"tenant": 1, "plan": {"zz": 1, "a": 2}})
    assert list(group["attributes"]) == ["plan", "tenant"]
    assert list(group["attributes"]["plan"]) == ["a", "zz"]


async def test_membership(client: httpx.AsyncClient) -> None:
    """Adding and removing are idempotent; members are shown on both sides and filter both lists."""
    group, user = await new_group(client), await new_user(client)
    url = f"{GROUPS}{group['pk']}/"
    for _ in range(2):
        assert (await client.post(f"{url}add_user/", json={"pk": user["pk"]})).status_code == 204
    shown = (await client.get(url)).json()
    assert shown["users"] == [user["pk"]]
    assert [member["username"] for member in shown["users_obj"]] == ["ann@acme.test"]
    without = (await client.get(GROUPS, params={"name": group["name"], "include_users": "false"})).json()["results"]
    assert (without[0]["users"], without[0]["users_obj"]) == ([user["pk"]], None)
    assert await found(client, GROUPS, members_by_pk=user["pk"]) == [group["name"]]
    assert await found(client, USERS, groups_by_pk=group["pk"]) == ["ann@acme.test"]
    assert await found(client, USERS, groups_by_name=group["name"]) == ["ann@acme.test"]
    for _ in range(2):
        assert (await client.post(f"{url}remove_user/", json={"pk": user["pk"]})).status_code == 204
    assert (await client.get(url)).json()["users"] == []


async def test_refused_membership(client: httpx.AsyncClient) -> None:
    """Unknown users and groups are 404 in different words, a missing key is 400."""
    group, user = await new_group(client), await new_user(client)
    unknown_user = await client.post(f"{GROUPS}{group['pk']}/add_user/", json={"pk": 999})
    assert (unknown_user.status_code, unknown_user.json()) == (404, {"detail": "Not found."})
    unknown_group = await client.post(f"{GROUPS}{uuid.UUID(int=0)}/add_user/", json={"pk": user["pk"]})
    assert (unknown_group.status_code, unknown_group.json()) == (404, {"detail": "No Group matches the given query."})
    assert (await client.post(f"{GROUPS}{group['pk']}/add_user/", json={})).json() == {
        "pk": ["This field is required."]
    }


async def test_users_in_a_patch_replace_the_members(client: httpx.AsyncClient) -> None:
    """Writing `users` removes whoever is not named."""
    ann, bob = await new_user(client), await new_user(client, "bob@acme.test")
    group = await new_group(client, users=[ann["pk"]])
    changed = await client.patch(f"{GROUPS}{group['pk']}/", json={"users": [bob["pk"]]})
    assert changed.json()["users"] == [bob["pk"]]


async def test_members_survive_their_group(client: httpx.AsyncClient) -> None:
    """Deleting a group ends the membership, not the member."""
    group = await new_group(client)
    user = await new_user(client, groups=[group["pk"]])
    await client.delete(f"{GROUPS}{group['pk']}/")
    assert (await client.get(f"{USERS}{user['pk']}/")).json()["groups"] == []


# Users


async def test_user_life(client: httpx.AsyncClient) -> None:
    """A user is created, found, changed and deleted; the second deletion is 404."""
    group = await new_group(client)
    user = await new_user(client, groups=[group["pk"]], attributes={"dezkyUserId": "u-1"})
    assert user.keys() == USER_FIELDS
    assert [shown["pk"] for shown in user["groups_obj"]] == user["groups"] == [group["pk"]]
    assert (user["is_active"], user["type"], user["path"], user["last_login"]) == (True, "internal", "users", None)
    url = f"{USERS}{user['pk']}/"
    changed = (await client.patch(url, json={"name": "Ann A"})).json()
    assert changed["last_updated"] > user["last_updated"]
    assert {**changed, "last_updated": ""} == {**user, "name": "Ann A", "last_updated": ""}
    assert (await client.delete(url)).status_code == 204
    gone = await client.delete(url)
    assert (gone.status_code, gone.json()) == (404, {"detail": "No User matches the given query."})
    assert (await client.get(f"{USERS}abc/")).json() == {"detail": "Not found."}


async def test_email_is_not_unique_and_names_differ_by_case(client: httpx.AsyncClient) -> None:
    """Only the exact user name is unique."""
    await new_user(client)
    await new_user(client, "other", email="ann@acme.test")
    await new_user(client, "ANN@ACME.TEST")
    duplicate = await client.post(USERS, json={"username": "ann@acme.test", "name": ""})
    assert (duplicate.status_code, duplicate.json().keys()) == (400, {"username"})
    assert sorted(await found(client, USERS, email="ann@acme.test")) == ["ann@acme.test", "other"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"username", "name"}),
        ({"username": "", "name": ""}, {"username"}),
        ({"username": "x" * 151, "name": ""}, {"username"}),
        ({"username": "x", "name": "", "type": "robot"}, {"type"}),
        ({"username": "x", "name": "", "type": "internal_service_account"}, {"type"}),
        ({"username": "x", "name": "", "email": "not-an-email"}, {"email"}),
        ({"username": "x", "name": "", "path": "/a/"}, {"path"}),
        ({"username": "x", "name": "", "is_active": "maybe"}, {"is_active"}),
        ({"username": "x", "name": "", "groups": [str(uuid.UUID(int=0))]}, {"groups"}),
    ],
)
async def test_refused_users(client: httpx.AsyncClient, body: dict[str, Any], fields: set[str]) -> None:
    """All wrong fields are reported together, and nothing is created."""
    before = await found(client, USERS)
    answer = await client.post(USERS, json=body)
    assert answer.status_code == 400
    assert answer.json().keys() == fields
    assert await found(client, USERS) == before


async def test_user_filters(client: httpx.AsyncClient) -> None:
    """Each filter narrows the list; without groups and roles their objects are null."""
    ann = await new_user(client, path="tenants/t-1", attributes={"dezkyUserId": "u-1"})
    await new_user(client, "bob@acme.test", is_active=False, type="external", path="tenants/t-10")
    for params, expected in (
        ({"username": "ann@acme.test"}, ["ann@acme.test"]),
        ({"uuid": ann["uuid"].replace("-", "")}, ["ann@acme.test"]),
        ({"attributes": '{"dezkyUserId": "u-1"}'}, ["ann@acme.test"]),
        ({"is_active": "false"}, ["bob@acme.test"]),
        ({"type": ["external", "service_account"]}, ["bob@acme.test", "dezky-control-plane"]),
        ({"path_startswith": "tenants/t-1"}, ["ann@acme.test"]),
        ({"search": "acme ANN@"}, ["ann@acme.test"]),
        ({"date_joined__lt": ann["date_joined"]}, ["akadmin", "dezky-control-plane"]),
        ({"date_joined__gt": ann["date_joined"]}, ["bob@acme.test"]),
    ):
        assert await found(client, USERS, **params) == expected, params
    lean = await client.get(USERS, params={"email": ann["email"], "include_groups": "false", "include_roles": "false"})
    assert (lean.json()["results"][0]["groups_obj"], lean.json()["results"][0]["roles_obj"]) == (None, None)


@pytest.mark.parametrize("params", [{"groups_by_pk": str(uuid.UUID(int=0))}, {"uuid": "x"}, {"type": "robot"}])
async def test_refused_filters(client: httpx.AsyncClient, params: dict[str, str]) -> None:
    """The few filters that check their value refuse it under their own key."""
    answer = await client.get(USERS, params=params)
    assert answer.status_code == 400
    assert answer.json().keys() == params.keys()


async def test_put_of_a_user_empties_its_groups(client: httpx.AsyncClient) -> None:
    """What PUT does not name is lost, where PATCH keeps it."""
    group = await new_group(client)
    user = await new_user(client, groups=[group["pk"]])
    url = f"{USERS}{user['pk']}/"
    assert (await client.patch(url, json={"is_active": False})).json()["groups"] == [group["pk"]]
    assert (await client.put(url, json={"username": "ann@acme.test"})).json() == {"name": ["This field is required."]}
    assert (await client.put(url, json={"username": "ann@acme.test", "name": "Ann"})).json()["groups"] == []


# Tokens


async def mint(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    """Ask for an access token."""
    body = {"application": "dezky-portal", "username": "ann@acme.test", **fields}
    return await client.post(f"{URL}/_sandbox/tokens", json=body)


async def test_minted_tokens_verify_against_the_published_key(client: httpx.AsyncClient) -> None:
    """Discovery, key set and token of one application fit together."""
    group = await new_group(client)
    user = await new_user(client, groups=[group["pk"]])
    minted = (await mint(client)).json()
    configuration = (await client.get(f"{URL}/application/o/dezky-portal/.well-known/openid-configuration")).json()
    assert configuration["issuer"] == f"{URL}/application/o/dezky-portal/"
    keys = jwt.PyJWKSet.from_dict((await client.get(configuration["jwks_uri"])).json())
    header = jwt.get_unverified_header(minted["accessToken"])
    assert header["alg"] == "RS256"
    claims = jwt.decode(
        minted["accessToken"],
        keys[header["kid"]],
        algorithms=["RS256"],
        audience="dezky-portal",
        issuer=configuration["issuer"],
        options={"require": ["exp", "iat", "sub"]},
    )
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["auth_time"] == claims["iat"]
    assert claims["sub"] == user["uuid"]
    assert claims["azp"] == "dezky-portal"
    assert claims["preferred_username"] == claims["email"] == "ann@acme.test"
    assert claims["email_verified"] is False
    assert claims["groups"] == [group["name"]]
    assert claims.keys() >= {"acr", "jti", "uid", "scope", "name"}


async def test_applications_have_different_keys(client: httpx.AsyncClient) -> None:
    """A token of the portal does not verify with the operator's keys."""
    portal, operator = [
        (await client.get(f"{URL}/application/o/{slug}/jwks/")).json()["keys"][0]
        for slug in ("dezky-portal", "dezky-operator")
    ]
    assert portal["kid"] != operator["kid"]
    assert portal["n"] != operator["n"]


async def test_claims_can_be_bent(client: httpx.AsyncClient) -> None:
    """Tests get expired tokens, other audiences and tokens without a claim."""
    await new_user(client)
    minted = (await mint(client, lifetimeSeconds=-60, claims={"aud": "other", "sub": None})).json()
    claims = jwt.decode(minted["accessToken"], options={"verify_signature": False})
    assert claims["exp"] < claims["iat"]
    assert claims["aud"] == "other"
    assert "sub" not in claims


async def test_refused_tokens(client: httpx.AsyncClient) -> None:
    """Who does not exist is 404, who is inactive gets no token."""
    user = await new_user(client)
    assert (await mint(client, application="nope")).status_code == 404
    assert (await mint(client, username="nobody")).status_code == 404
    assert (await mint(client, lifetime=1)).status_code == 400
    await client.patch(f"{USERS}{user['pk']}/", json={"is_active": False})
    refused = await mint(client)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


# State


async def test_objects(client: httpx.AsyncClient) -> None:
    """The control path shows raw documents with memberships on both sides."""
    group = await new_group(client)
    user = await new_user(client, groups=[group["pk"]])
    objects = (await client.get(f"{URL}/_sandbox/objects")).json()
    assert [row["users"] for row in objects["groups"] if row["pk"] == group["pk"]] == [[user["pk"]]]
    assert [row["groups"] for row in objects["users"] if row["pk"] == user["pk"]] == [[group["pk"]]]


async def test_a_second_start_finds_the_first_installation(tmp_path: Path) -> None:
    """Nothing is seeded twice, and keys stay, so tokens of before the restart remain valid."""
    answers = []
    for _ in range(2):
        state = State(tmp_path / "authentik.sqlite")
        async with connect(state) as client:
            objects = (await client.get(f"{URL}/_sandbox/objects")).json()
            answers.append((objects, (await client.get(f"{URL}/application/o/dezky-portal/jwks/")).json()))
        state.close()
    assert answers[0] == answers[1]
