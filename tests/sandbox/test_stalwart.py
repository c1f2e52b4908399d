"""The Stalwart stand-in behaves as the vendor does, hazards included."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.zonefile
import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from sandbox.stalwart import create_app
from sandbox.state import State

pytestmark = pytest.mark.asyncio

URL = "http://mail.stalwart.test"
TOKEN = "API_secret"
USING = ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"]
PASSWORD = "correct horse battery staple"
Body = dict[str, Any]


def connect(
    state: State, token: str = TOKEN, dkim_delay_seconds: float = 0, erase_delay_seconds: float = 0
) -> httpx.AsyncClient:
    """Return a client of a stand-in on this state."""
    app = create_app(
        state,
        public_url=URL,
        token=TOKEN,
        dkim_delay_seconds=dkim_delay_seconds,
        erase_delay_seconds=erase_delay_seconds,
    )
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL, headers=headers)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a fresh installation that makes DKIM keys without delay."""
    state = State()
    async with connect(state) as client:
        yield client
    state.close()


async def batch(client: httpx.AsyncClient, *calls: list[Any]) -> list[list[Any]]:
    """Send several calls and return their answers."""
    answer = await client.post("/jmap/", json={"using": USING, "methodCalls": list(calls)})
    assert answer.status_code == 200, answer.text
    responses: list[list[Any]] = answer.json()["methodResponses"]
    return responses


async def call(client: httpx.AsyncClient, method: str, /, **arguments: Any) -> Body:
    """Send one call and return its answer, or the method error."""
    [[name, answer, call_id]] = await batch(client, [method, arguments, "0"])
    assert (name, call_id) in ((method, "0"), ("error", "0"))
    body: Body = answer
    return body


async def created(client: httpx.AsyncClient, kind: str, **fields: Any) -> str:
    """Create an object and return its id."""
    answer = await call(client, f"{kind}/set", create={"c": fields})
    assert "created" in answer, answer
    object_id: str = answer["created"]["c"]["id"]
    return object_id


async def not_created(client: httpx.AsyncClient, kind: str, **fields: Any) -> Body:
    """Create an object that has to be refused and return the error."""
    answer = await call(client, f"{kind}/set", create={"c": fields})
    assert answer.keys() == {"accountId", "notCreated"}, answer
    error: Body = answer["notCreated"]["c"]
    return error


async def changed(client: httpx.AsyncClient, kind: str, object_id: str, patch: Body) -> Body:
    """Patch an object and return the answer."""
    return await call(client, f"{kind}/set", update={object_id: patch})


async def read(client: httpx.AsyncClient, kind: str, object_id: str, *properties: str) -> Body:
    """Return one object."""
    wanted = {"properties": list(properties)} if properties else {}
    [found] = (await call(client, f"{kind}/get", ids=[object_id], **wanted))["list"]
    document: Body = found
    return document


async def found(client: httpx.AsyncClient, kind: str, **wanted: Any) -> list[str]:
    """Return the ids that meet a filter."""
    ids: list[str] = (await call(client, f"{kind}/query", filter=wanted))["ids"]
    return ids


async def new_domain(client: httpx.AsyncClient, name: str = "acme.test", dkim: str = "Manual") -> str:
    """Create a domain, without keys of its own unless asked."""
    return await created(client, "x:Domain", name=name, dkimManagement={"@type": dkim})


def user(domain_id: str, name: str = "jane", **fields: Any) -> Body:
    """Return a user as the control plane creates one."""
    return {
        "@type": "User",
        "name": name,
        "domainId": domain_id,
        "credentials": {"0": {"@type": "Password", "secret": PASSWORD}},
        "roles": {"@type": "User"},
        "permissions": {"@type": "Inherit"},
        "quotas": {"maxDiskQuota": 1 << 30},
        **fields,
    }


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", "notJSON"),
        (b"[]", "notRequest"),
        (b'{"using": [], "methodCalls": [["x:Domain/get", {}]]}', "notRequest"),
        (b'{"using": ["urn:example:none"], "methodCalls": []}', "unknownCapability"),
    ],
)
async def test_a_request_that_is_none_is_an_http_error(client: httpx.AsyncClient, body: bytes, error: str) -> None:
    """Only the outermost layer of errors shows in the HTTP status."""
    answer = await client.post("/jmap/", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:ietf:params:jmap:error:{error}"
    assert answer.json()["status"] == 400


async def test_a_request_needs_its_content_type_and_at_most_16_calls(client: httpx.AsyncClient) -> None:
    """Another media type is no JSON; too many calls name the limit."""
    assert (await client.post("/jmap/", content=b"{}", headers={"Content-Type": "text/plain"})).status_code == 400
    calls = [["x:Domain/query", {}, str(number)] for number in range(17)]
    answer = await client.post("/jmap", json={"using": USING, "methodCalls": calls})
    assert (answer.status_code, answer.json()["limit"]) == (400, "maxCallsInRequest")


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("x:Unicorn/get", {}, "unknownMethod"),
        ("x:Domain/changes", {}, "unknownMethod"),
        ("x:Domain/get", {"idz": []}, "invalidArguments"),
        ("x:Domain/get", {"ids": "b"}, "invalidArguments"),
        ("x:Domain/get", {"properties": ["colour"]}, "invalidArguments"),
        ("x:Domain/get", {"accountId": "zz"}, "accountNotFound"),
        ("x:Domain/get", {"ids": ["b"] * 501}, "requestTooLarge"),
        ("x:Domain/query", {"filter": {"operator": "OR", "conditions": []}}, "unsupportedFilter"),
        ("x:Domain/query", {"filter": {"operator": "NOT", "conditions": []}}, "unsupportedFilter"),
        ("x:Account/query", {"filter": {"type": "User"}}, "unsupportedFilter"),
        ("x:Account/query", {"filter": {"emailAddress": "jane@acme.test"}}, "unsupportedFilter"),
        ("x:Domain/query", {"sort": [{"property": "isEnabled"}]}, "unsupportedSort"),
        ("x:Domain/query", {"anchor": "zz"}, "anchorNotFound"),
        (
            "x:Domain/get",
            {"#ids": {"resultOf": "9", "name": "x:Domain/query", "path": "/ids"}},
            "invalidResultReference",
        ),
    ],
)
async def test_a_refused_call_is_a_method_error(
    client: httpx.AsyncClient, method: str, arguments: Body, error: str
) -> None:
    """The status is 200, and the calls after it run."""
    refusal, after = await batch(client, [method, arguments, "0"], ["x:Domain/query", {}, "1"])
    assert (refusal[0], refusal[1]["type"], refusal[2]) == ("error", error, "0")
    assert (after[0], after[1]["ids"]) == ("x:Domain/query", [])


async def test_a_domain_is_created_with_defaults_and_a_normal_name(client: httpx.AsyncClient) -> None:
    """Only the name is needed; it is stored in lower case with A-labels, and only the id is answered."""
    answer = await call(client, "x:Domain/set", create={"d": {"name": "BÜCHER.Test"}})
    assert answer == {"accountId": "a", "created": {"d": {"id": "b"}}}
    domain = await read(client, "x:Domain", "b")
    assert domain["name"] == "xn--bcher-kva.test"
    assert domain["dkimManagement"]["@type"] == "Automatic"
    assert domain["dnsManagement"] == {"@type": "Manual"}
    assert domain["isEnabled"] is True


async def test_a_taken_domain_names_its_holder(client: httpx.AsyncClient) -> None:
    """Names and aliases share one space, and the refusal tells who has it: find-or-create in one call."""
    holder = await created(client, "x:Domain", name="acme.test", aliases={"acme.example": True})
    error = await not_created(client, "x:Domain", name="Acme.test")
    assert error["type"] == "primaryKeyViolation"
    assert error["properties"] == ["name"]
    assert error["objectId"]["id"] == holder
    error = await not_created(client, "x:Domain", name="other.test", aliases={"acme.example": True})
    assert error["properties"] == ["aliases"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "validationFailed"),
        ({"name": ""}, "validationFailed"),
        ({"name": "no domain"}, "validationFailed"),
        ({"name": "acme.test", "description": ""}, "validationFailed"),
        ({"name": "acme.test", "colour": "red"}, "invalidProperties"),
        ({"name": "acme.test", "createdAt": "2026-01-01T00:00:00Z"}, "invalidProperties"),
        ({"name": "acme.test", "aliases": ["acme.example"]}, "invalidProperties"),
        ({"name": "acme.test", "aliases": {"acme.example": False}}, "invalidProperties"),
        ({"name": "acme.test", "dkimManagement": {"@type": "Magic"}}, "invalidProperties"),
    ],
)
async def test_a_bad_object_is_refused_alone(client: httpx.AsyncClient, fields: Body, error: str) -> None:
    """Each object of a set stands for itself."""
    answer = await call(client, "x:Domain/set", create={"bad": fields, "good": {"name": "good.test"}})
    assert answer["notCreated"]["bad"]["type"] == error
    assert answer["created"].keys() == {"good"}


async def test_a_query_is_newest_first_and_paged(client: httpx.AsyncClient) -> None:
    """Without a sort ids descend; anchors and positions lead through."""
    ids = [await new_domain(client, f"d{number}.test") for number in range(5)]
    newest = ids[::-1]
    first = await call(client, "x:Domain/query", limit=2, calculateTotal=True)
    assert (first["ids"], first["total"], first["position"]) == (newest[:2], 5, 0)
    after = await call(client, "x:Domain/query", anchor=newest[1], anchorOffset=1, limit=2)
    assert after["ids"] == newest[2:4]
    assert "total" not in after
    assert (await call(client, "x:Domain/query", position=4))["ids"] == newest[4:]
    by_name = await call(client, "x:Domain/query", sort=[{"property": "name"}, {"property": "id"}])
    assert by_name["ids"] == ids


async def test_ids_are_short_and_ordered_by_number(client: httpx.AsyncClient) -> None:
    """The private base32 passes through its last letters, digits among them, to two characters."""
    creates = {str(number): {"name": f"d{number}.test", "dkimManagement": {"@type": "Manual"}} for number in range(33)}
    made = (await call(client, "x:Domain/set", create=creates))["created"]
    ids = [made[str(number)]["id"] for number in range(33)]
    assert (ids[0], ids[24:32], ids[32]) == ("b", ["z", "7", "9", "2", "0", "1", "3", "ba"], "bb")
    assert (await call(client, "x:Domain/query"))["ids"] == ids[::-1]


async def test_filters_are_joined_by_and(client: httpx.AsyncClient) -> None:
    """Members of a filter and nested conditions all have to hold."""
    first, second = await new_domain(client), await new_domain(client, "other.test")
    jane = await created(client, "x:Account", **user(first))
    await created(client, "x:Account", **user(second))
    assert await found(client, "x:Account", name="jane", domainId=first) == [jane]
    conditions = [{"name": "jane"}, {"@type": "User"}, {"domainId": first}]
    assert await found(client, "x:Account", operator="AND", conditions=conditions) == [jane]
    assert await found(client, "x:Account", **{"@type": "Group"}) == []


async def test_get_returns_what_was_asked_for(client: httpx.AsyncClient) -> None:
    """`ids: null` means all, the id always comes along, and unknown ids are listed."""
    domain = await new_domain(client)
    answer = await call(client, "x:Domain/get", ids=None, properties=["name"])
    assert answer["list"] == [{"id": domain, "name": "acme.test"}]
    assert (await call(client, "x:Domain/get", ids=["zz"]))["notFound"] == ["zz"]


async def test_references_within_one_request(client: httpx.AsyncClient) -> None:
    """A later call uses the id of a new object and the result of a query."""
    responses = await batch(
        client,
        ["x:Domain/set", {"create": {"d1": {"name": "acme.test", "dkimManagement": {"@type": "Manual"}}}}, "0"],
        ["x:Role/set", {"create": {"r1": {"description": "dezky acme"}}}, "1"],
        [
            "x:Account/set",
            {"create": {"a1": user("#d1", roles={"@type": "Custom", "roleIds": {"#r1": True}})}},
            "2",
        ],
        ["x:Account/query", {"filter": {"domainId": "#d1"}}, "3"],
        ["x:Account/get", {"#ids": {"resultOf": "3", "name": "x:Account/query", "path": "/ids"}}, "4"],
        [
            "x:Domain/get",
            {"#ids": {"resultOf": "4", "name": "x:Account/get", "path": "/list/*/domainId"}, "properties": ["name"]},
            "5",
        ],
    )
    assert [response[0] for response in responses] == [
        "x:Domain/set",
        "x:Role/set",
        "x:Account/set",
        "x:Account/query",
        "x:Account/get",
        "x:Domain/get",
    ]
    [account] = responses[4][1]["list"]
    assert account["roles"]["roleIds"] == {responses[1][1]["created"]["r1"]["id"]: True}
    assert responses[5][1]["list"][0]["name"] == "acme.test"


async def test_the_zone_of_a_domain_parses(client: httpx.AsyncClient) -> None:
    """The zone text holds each kind of record, and long texts come as several strings in parentheses."""
    domain = await new_domain(client, dkim="Automatic")
    zone = (await read(client, "x:Domain", domain, "dnsZoneFile"))["dnsZoneFile"]
    rrsets = dns.zonefile.read_rrsets(zone, rdclass=None, default_ttl=300)
    records = {(str(row.name), row.rdtype.name): row for row in rrsets}
    assert {kind for _, kind in records} == {"MX", "TXT", "SRV", "CNAME"}
    assert str(records["acme.test.", "MX"][0].exchange) == "mail.stalwart.test."
    assert ("_dmarc.acme.test.", "TXT") in records
    keys = [row for (name, _), row in records.items() if "._domainkey." in name]
    texts = {b"".join(row[0].strings).decode() for row in keys}
    assert {text.split("p=")[0] for text in texts} == {"v=DKIM1; k=ed25519; h=sha256; ", "v=DKIM1; k=rsa; h=sha256; "}
    assert '" "' in zone


async def test_an_automatic_domain_gets_two_keys_later(tmp_path: Path) -> None:
    """The create answers before the keys exist, and a restart does not lose the task that makes them."""
    path = tmp_path / "stalwart.sqlite"
    state = State(path)
    async with connect(state, dkim_delay_seconds=3600) as client:
        waiting = await new_domain(client, "waiting.test", dkim="Automatic")
        assert await found(client, "x:DkimSignature", domainId=waiting) == []
    async with connect(state, dkim_delay_seconds=0.05) as client:
        domain = await new_domain(client, dkim="Automatic")
    state.close()
    state = State(path)
    async with connect(state) as client:
        deadline = time.monotonic() + 10
        while len(await found(client, "x:DkimSignature", domainId=domain)) < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        signatures = (await call(client, "x:DkimSignature/get", ids=None))["list"]
        assert await found(client, "x:DkimSignature", domainId=waiting) == []
    state.close()
    by_type = {signature["@type"]: signature for signature in signatures}
    assert by_type.keys() == {"Dkim1Ed25519Sha256", "Dkim1RsaSha256"}
    short = base64.b64decode(by_type["Dkim1Ed25519Sha256"]["publicKey"])
    ed25519.Ed25519PublicKey.from_public_bytes(short)
    long = load_der_public_key(base64.b64decode(by_type["Dkim1RsaSha256"]["publicKey"]))
    assert isinstance(long, rsa.RSAPublicKey)
    assert long.key_size == 2048
    for signature in signatures:
        assert (signature["domainId"], signature["stage"]) == (domain, "active")
        assert signature["privateKey"] == {"@type": "Text", "secret": "****"}


async def test_a_key_of_the_callers_own_is_masked(client: httpx.AsyncClient) -> None:
    """The public key follows from the private one, which is never shown; the selector is not unique."""
    domain = await new_domain(client)
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    fields = {"@type": "Dkim1Ed25519Sha256", "domainId": domain, "selector": "dezky"}
    ids = [
        await created(client, "x:DkimSignature", **fields, privateKey={"@type": "Text", "secret": pem})
        for _ in range(2)
    ]
    assert await found(client, "x:DkimSignature", domainId=domain) == ids[::-1]
    signature = await read(client, "x:DkimSignature", ids[0])
    assert signature["publicKey"] == base64.b64encode(key.public_key().public_bytes_raw()).decode()
    assert signature["privateKey"]["secret"] == "****"
    wrong = {**fields, "@type": "Dkim1RsaSha256", "privateKey": {"@type": "Text", "secret": pem}}
    assert (await not_created(client, "x:DkimSignature", **wrong))["type"] == "invalidProperties"


async def test_a_domain_goes_last(client: httpx.AsyncClient) -> None:
    """Accounts and signatures keep a domain from being destroyed and are named."""
    domain = await new_domain(client, dkim="Automatic")
    account = await created(client, "x:Account", **user(domain))
    signatures = await found(client, "x:DkimSignature", domainId=domain)
    error = (await call(client, "x:Domain/set", destroy=[domain]))["notDestroyed"][domain]
    assert error["type"] == "objectIsLinked"
    assert {linked["id"] for linked in error["linkedObjects"]} == {account, *signatures}
    await call(client, "x:Account/set", destroy=[account])
    await call(client, "x:DkimSignature/set", destroy=signatures)
    assert (await call(client, "x:Domain/set", destroy=[domain])) == {"accountId": "a", "destroyed": [domain]}
    again = await call(client, "x:Domain/set", destroy=[domain])
    assert again["notDestroyed"][domain]["type"] == "notFound"


async def test_a_destroyed_account_lets_go_later(tmp_path: Path) -> None:
    """Its address is free at once; domain and role are held until its mail is erased, also over a restart."""
    path = tmp_path / "stalwart.sqlite"
    state = State(path)
    async with connect(state, erase_delay_seconds=3600) as client:
        domain = await new_domain(client)
        role = await created(client, "x:Role", description="dezky acme")
        account = await created(client, "x:Account", **user(domain, roles={"@type": "Custom", "roleIds": {role: True}}))
        assert (await call(client, "x:Account/set", destroy=[account]))["destroyed"] == [account]
        assert (await call(client, "x:Account/get", ids=[account]))["notFound"] == [account]
        for kind, held in (("x:Domain", domain), ("x:Role", role)):
            error = (await call(client, f"{kind}/set", destroy=[held]))["notDestroyed"][held]
            assert error["linkedObjects"] == [{"object": "x:Account", "id": account}]
        again = await created(client, "x:Account", **user(domain))
        objects = (await client.get("/_sandbox/objects")).json()
        assert [row["id"] for row in objects["accounts"]] == [again]
        assert [row["id"] for row in objects["accountErasures"]] == [account]
        await call(client, "x:Account/set", destroy=[again])
    state.close()
    state = State(path)
    erasures = state.table("account_erasures")
    for row in erasures:
        erasures.put(row["id"], {**row, "dueAt": 0})
    async with connect(state) as client:
        assert (await call(client, "x:Domain/set", destroy=[domain]))["destroyed"] == [domain]
        assert (await call(client, "x:Role/set", destroy=[role]))["destroyed"] == [role]
    state.close()


async def test_a_user_is_normalised_and_keeps_secrets(client: httpx.AsyncClient) -> None:
    """The name becomes a local part, the password is masked, hashed and not in the stored object."""
    domain = await new_domain(client)
    account = await read(client, "x:Account", await created(client, "x:Account", **user(domain, " Jane Doe ")))
    assert (account["name"], account["emailAddress"]) == ("janedoe", "janedoe@acme.test")
    assert account["credentials"]["0"]["secret"] == "****"
    assert account["quotas"] == {"maxDiskQuota": 1 << 30}
    stored = (await client.get("/_sandbox/objects")).text
    assert PASSWORD not in stored


async def test_a_password_changes_alone_and_its_mask_is_ignored(client: httpx.AsyncClient) -> None:
    """Sending the mask back leaves the secret, sending a weak one is refused."""
    domain = await new_domain(client)
    account = await created(client, "x:Account", **user(domain))

    async def stored() -> str:
        secret: str = (await client.get("/_sandbox/objects")).json()["accounts"][0]["credentials"]["0"]["secret"]
        return secret

    before = await stored()
    await changed(client, "x:Account", account, {"credentials/0/secret": "****"})
    assert await stored() == before
    assert await changed(client, "x:Account", account, {"credentials/0/secret": "$6$salt$hash"}) == {
        "accountId": "a",
        "updated": {account: None},
    }
    assert await stored() == "$6$salt$hash"
    weak = await changed(client, "x:Account", account, {"credentials/0/secret": "aaaaaaaaaa"})
    assert weak["notUpdated"][account]["properties"] == ["secret"]


async def test_an_address_exists_once(client: httpx.AsyncClient) -> None:
    """Users, groups and aliases share the addresses, and a destroyed account frees its own at once."""
    domain = await new_domain(client)
    alias = {"0": {"name": "j", "domainId": domain}}
    holder = await created(client, "x:Account", **user(domain, aliases=alias))
    error = await not_created(client, "x:Account", **{"@type": "Group", "name": "J", "domainId": domain})
    assert (error["type"], error["objectId"]["id"]) == ("primaryKeyViolation", holder)
    await call(client, "x:Account/set", destroy=[holder])
    await created(client, "x:Account", **user(domain, "j"))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"domainId": "zz"}, "invalidForeignKey"),
        ({"roles": {"@type": "Custom", "roleIds": {"zz": True}}}, "invalidForeignKey"),
        ({"memberGroupIds": {"zz": True}}, "invalidForeignKey"),
        ({"roles": {"@type": "Custom", "roleIds": ["zz"]}}, "invalidProperties"),
        ({"quotas": {"maxUnicorns": 1}}, "invalidProperties"),
        ({"name": "jane@acme.test"}, "validationFailed"),
        ({"permissions": {"@type": "Merge", "enabledPermissions": {"impersonate": True}}}, "forbidden"),
    ],
)
async def test_a_bad_account_is_refused(client: httpx.AsyncClient, fields: Body, error: str) -> None:
    """Missing parents, wrong encodings and permissions that the caller lacks are told apart."""
    domain = await new_domain(client)
    assert (await not_created(client, "x:Account", **{**user(domain), **fields}))["type"] == error


async def test_a_patch_reaches_into_an_object(client: httpx.AsyncClient) -> None:
    """Pointers change members of lists, sets and variants; a whole property named is replaced."""
    domain = await new_domain(client)
    group = await created(client, "x:Account", **{"@type": "Group", "name": "all", "domainId": domain})
    alias = {"0": {"name": "j", "domainId": domain}, "1": {"name": "jd", "domainId": domain}}
    account = await created(client, "x:Account", **user(domain, aliases=alias))
    patch = {
        "aliases/0/enabled": False,
        "aliases/1": None,
        f"memberGroupIds/{group}": True,
        "quotas/maxDiskQuota": 5,
        "permissions": {"@type": "Merge"},
        "permissions/disabledPermissions": {"authenticate": True},
    }
    assert (await changed(client, "x:Account", account, patch))["updated"] == {account: None}
    after = await read(client, "x:Account", account)
    assert after["aliases"] == {"0": {"name": "j", "domainId": domain, "enabled": False}}
    assert after["memberGroupIds"] == {group: True}
    assert after["quotas"] == {"maxDiskQuota": 5}
    assert after["permissions"]["disabledPermissions"] == {"authenticate": True}
    assert "credentials" not in await read(client, "x:Account", group)
    linked = (await call(client, "x:Account/set", destroy=[group]))["notDestroyed"][group]
    assert linked["type"] == "objectIsLinked"
    await changed(client, "x:Account", account, {f"memberGroupIds/{group}": None, "permissions": None})
    after = await read(client, "x:Account", account)
    assert (after["memberGroupIds"], after["permissions"]) == ({}, {"@type": "Inherit"})


@pytest.mark.parametrize(
    ("patch", "error"),
    [
        ({"aliases/7/enabled": False}, "invalidPatch"),
        ({"@type": "Group"}, "invalidProperties"),
        ({"name": None}, "invalidProperties"),
        ({"emailAddress": "x@acme.test"}, "invalidProperties"),
    ],
)
async def test_a_bad_patch_changes_nothing(client: httpx.AsyncClient, patch: Body, error: str) -> None:
    """A pointer into nothing, a changed type and a read-only property are refused as a whole."""
    domain = await new_domain(client)
    account = await created(client, "x:Account", **user(domain))
    before = await read(client, "x:Account", account)
    answer = await changed(client, "x:Account", account, {"description": "changed", **patch})
    assert answer["notUpdated"][account]["type"] == error
    assert await read(client, "x:Account", account) == before


async def test_roles_are_not_unique_and_found_by_words(client: httpx.AsyncClient) -> None:
    """A repeated create makes a second role, and the filter is a search for words."""
    first = await created(client, "x:Role", description="dezky acme")
    second = await created(client, "x:Role", description="dezky acme")
    longer = await created(client, "x:Role", description="dezky acme two")
    assert await found(client, "x:Role", description="Acme") == [longer, second, first]
    assert await found(client, "x:Role", description="acme two") == [longer]
    assert await found(client, "x:Role", description="acm") == []


async def test_a_role_suspends_its_accounts_and_cannot_go_before_them(client: httpx.AsyncClient) -> None:
    """Permissions are edited by pointer, unknown spellings are refused, and links are named."""
    domain = await new_domain(client)
    role = await created(client, "x:Role", description="dezky acme", enabledPermissions={"emailSend": True})
    roles = {"@type": "Custom", "roleIds": {role: True}}
    account = await created(client, "x:Account", **user(domain, roles=roles))
    await changed(client, "x:Role", role, {"disabledPermissions/authenticate": True})
    assert (await read(client, "x:Role", role))["disabledPermissions"] == {"authenticate": True}
    await changed(client, "x:Role", role, {"disabledPermissions/authenticate": False})
    assert (await read(client, "x:Role", role))["disabledPermissions"] == {}
    kebab = await changed(client, "x:Role", role, {"disabledPermissions/email-send": True})
    assert kebab["notUpdated"][role]["type"] == "invalidProperties"
    error = (await call(client, "x:Role/set", destroy=[role]))["notDestroyed"][role]
    assert (error["type"], error["linkedObjects"][0]["id"]) == ("objectIsLinked", account)
    await call(client, "x:Account/set", destroy=[account])
    assert (await call(client, "x:Role/set", destroy=[role]))["destroyed"] == [role]


@pytest.mark.parametrize("written", [True, False])
async def test_a_lost_race_leaves_the_outcome_open(client: httpx.AsyncClient, written: bool) -> None:
    """The method error is the same whether the object exists afterwards or not; the next create is normal."""
    control = {"object": "x:Domain", "created": written}
    assert (await client.post("/_sandbox/lose-next-race", json=control)).status_code == 201
    assert (await call(client, "x:Domain/set", create={"d": {"name": "acme.test"}}))["type"] == "serverUnavailable"
    assert len(await found(client, "x:Domain", name="acme.test")) == int(written)
    await new_domain(client, "other.test")
    assert (await client.post("/_sandbox/lose-next-race", json={"object": "Domain"})).status_code == 422


async def test_more_than_four_requests_at_once_are_refused(client: httpx.AsyncClient) -> None:
    """The fifth request of an account meets a 400 that is weather, and passes when it comes again."""
    request = {"using": USING, "methodCalls": []}
    answers = await asyncio.gather(*(client.post("/jmap/", json=request) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 400]
    refusal = next(answer.json() for answer in answers if answer.status_code == 400)
    assert refusal["type"] == "urn:ietf:params:jmap:error:limit"
    assert refusal["limit"] == "maxConcurrentRequests"
    assert (await client.post("/jmap/", json=request)).status_code == 200


async def test_an_address_that_keeps_failing_to_log_in_is_banned() -> None:
    """After 100 failures even the right key is refused, also by a restarted server, until the ban is lifted."""
    state = State()
    async with connect(state, token="wrong") as client:
        for _ in range(100):
            answer = await client.get("/api/account")
            assert answer.status_code == 401
    assert answer.headers.get_list("www-authenticate")[0].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    async with connect(state) as client:
        assert (await client.get("/api/account")).status_code == 429
        assert (await client.post("/_sandbox/unban")).json() == {"forgotten": 1}
        assert (await client.get("/api/account")).status_code == 200


async def test_coming_without_credentials_is_no_failed_login(client: httpx.AsyncClient) -> None:
    """A request without a key is refused and never leads to a ban."""
    del client.headers["Authorization"]
    for _ in range(101):
        assert (await client.get("/api/account")).status_code == 401


async def test_the_generation_can_be_told(client: httpx.AsyncClient) -> None:
    """The account call answers, the older generation's routes and the documented wrong path do not."""
    account = (await client.get("/api/account")).json()
    assert account.keys() == {"permissions", "edition", "locale"}
    assert account["edition"] == "community"
    assert "sysDomainCreate" in account["permissions"]
    for path in ("/api/principal", "/api/principal/acme.test", "/api/dkim", "/api/dns/records/acme.test"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (404, 404)
    assert (await client.post("/api", json={"using": USING, "methodCalls": []})).status_code == 404


async def test_the_session_lists_the_management_capability_by_account_only(client: httpx.AsyncClient) -> None:
    """The server's capabilities lack it, the account's have it, and a stranger gets an empty session."""
    redirect = await client.get("/.well-known/jmap")
    assert (redirect.status_code, redirect.headers["location"]) == (307, "/jmap/session")
    session = (await client.get("/jmap/session")).json()
    assert "urn:stalwart:jmap" not in session["capabilities"]
    assert session["primaryAccounts"]["urn:stalwart:jmap"] in session["accounts"]
    assert session["apiUrl"] == f"{URL}/jmap/"
    del client.headers["Authorization"]
    assert (await client.get("/jmap/session")).json()["accounts"] == {}


@pytest.mark.parametrize("path", ["/healthz/live", "/healthz/ready"])
async def test_health_needs_no_key(client: httpx.AsyncClient, path: str) -> None:
    """Anybody may ask whether the server is up."""
    del client.headers["Authorization"]
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["status"]) == (200, 200)


async def test_everything_outlives_the_process(tmp_path: Path) -> None:
    """A stand-in on the same file has the same objects and goes on counting their ids."""
    path = tmp_path / "stalwart.sqlite"
    state = State(path)
    async with connect(state) as client:
        domain = await new_domain(client)
        await created(client, "x:Account", **user(domain))
        before = (await client.get("/_sandbox/objects")).json()
    state.close()
    state = State(path)
    async with connect(state) as client:
        assert (await client.get("/_sandbox/objects")).json() == before
        assert await new_domain(client, "other.test") == "c"
    state.close()
    assert before.keys() == {"domains", "accounts", "roles", "dkimSignatures", "accountErasures"}
