"""The Stalwart client: what it sends, what it believes, and the three layers in which a call can fail."""

from __future__ import annotations

import json
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
from integrations.stalwart import DkimKey, DnsRecord, Domain, Link, Mailbox, MailboxSpec, Role, RoleSpec, StalwartClient
from tests.support.vendor import ANSWER_LOST, NOTHING_SENT, ScriptedVendor, answer

pytestmark = pytest.mark.asyncio

LIMIT = "urn:ietf:params:jmap:error:limit"
UNKNOWN_CAPABILITY = "urn:ietf:params:jmap:error:unknownCapability"
MAILBOX = MailboxSpec(local_part="anna", domain_id="b", description="op-1", role_id="h", quota_bytes=5_000)
ZONE = """\
example.org. IN MX 10 mail.example.org.
example.org. IN TXT "v=spf1 mx ra=postmaster -all"
202611r._domainkey.example.org. IN TXT (
    "v=DKIM1; k=rsa; h=sha256; p=AAAA"
    "BBBB"
)
mta-sts.example.org. IN CNAME mail.example.org.
_jmap._tcp.example.org. IN SRV 0 1 443 mail.example.org.
_25._tcp.mail.example.org. IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
"""


def done(method: str, result: dict[str, Any], call_id: str = "c0") -> httpx.Response:
    """The answer to a request of one call."""
    return answer(200, {"methodResponses": [[method, result, call_id]], "sessionState": "0"})


def method_error(kind: str) -> httpx.Response:
    """A call that failed as a whole."""
    return done("error", {"type": kind, "description": "no"})


def set_answer(result: dict[str, Any]) -> Callable[[httpx.Request], httpx.Response]:
    """Answer any `set` under its own name."""
    return lambda request: done(json.loads(request.content)["methodCalls"][0][0], result)


class Store:
    """A server whose queries ignore their filter: they return every object of the kind, newest first."""

    def __init__(self, *rows: dict[str, Any], page: int | None = None) -> None:
        self._rows = {row["id"]: row for row in rows}
        self._page = page
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        ((method, arguments, _),) = json.loads(request.content)["methodCalls"]
        self.calls.append((method, arguments))
        assert "accountId" not in arguments
        if method.endswith("/get"):
            known = [self._rows[row_id] for row_id in arguments["ids"] if row_id in self._rows]
            return done(method, {"list": known, "notFound": []})
        start, size = arguments["position"], self._page or arguments["limit"]
        ids = list(reversed(self._rows))[start : start + size]
        clamped = {"limit": self._page} if self._page else {}
        return done(method, {"ids": ids, "position": start, **clamped})


CALLS: dict[str, tuple[bool, Callable[[StalwartClient], Awaitable[object]]]] = {
    "find_domain": (False, lambda client: client.find_domain("example.org")),
    "read_dns_records": (False, lambda client: client.read_dns_records("b")),
    "dkim_keys": (False, lambda client: client.dkim_keys("b")),
    "find_roles": (False, lambda client: client.find_roles("tenant-acme")),
    "find_user_role": (False, lambda client: client.find_user_role()),
    "find_mailbox": (False, lambda client: client.find_mailbox("anna", "b")),
    "create_domain": (True, lambda client: client.create_domain("example.org", "op-1")),
    "create_role": (True, lambda client: client.create_role(RoleSpec(description="tenant-acme"))),
    "destroy_role": (True, lambda client: client.destroy_role("h")),
    "destroy_domain": (True, lambda client: client.destroy_domain("h")),
    "destroy_dkim_key": (True, lambda client: client.destroy_dkim_key("h")),
    "destroy_mailbox": (True, lambda client: client.destroy_mailbox("h")),
    "create_mailbox": (True, lambda client: client.create_mailbox(MAILBOX)),
}
EVERY_METHOD = pytest.mark.parametrize("name", CALLS)
WRITES = [name for name, (write, _) in CALLS.items() if write]
CREATES = ["create_domain", "create_role", "create_mailbox"]
DESTROYS = {
    "destroy_role": "Role",
    "destroy_domain": "Domain",
    "destroy_dkim_key": "DkimSignature",
    "destroy_mailbox": "Account",
}


async def ask(name: str, vendor: ScriptedVendor) -> object:
    """Make the call."""
    async with vendor.http() as http:
        return await CALLS[name][1](StalwartClient(http))


async def fail(name: str, *answers: Any) -> VendorError:
    """Make the call and return the error it raised, having asked the vendor just once."""
    vendor = ScriptedVendor(*answers)
    with pytest.raises(VendorError) as caught:
        await ask(name, vendor)
    assert len(vendor.requests) == 1
    assert caught.value.vendor == "stalwart"
    return caught.value


async def test_check_generation() -> None:
    """The descriptor of our account tells the edition and our permissions."""
    vendor = ScriptedVendor(answer(200, {"permissions": ["sysDomainGet"], "edition": "community", "locale": "en"}))
    async with vendor.http() as http:
        info = await StalwartClient(http).check_generation()
    assert (info.edition, info.permissions) == ("community", frozenset({"sysDomainGet"}))
    assert vendor.last.url.path == "/api/account"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "generation_mismatch", VendorRejected),
        (401, "vendor_auth_failed", VendorAuthFailed),
        (403, "vendor_forbidden", VendorRejected),
        (503, "vendor_unavailable", VendorUnavailable),
    ],
)
async def test_check_generation_refused(status: int, code: str, kind: type[VendorError]) -> None:
    """A server of the old generation does not know the route."""
    async with ScriptedVendor(httpx.Response(status)).http() as http:
        with pytest.raises(kind) as caught:
            await StalwartClient(http).check_generation()
    assert caught.value.code == code


async def test_request_shape() -> None:
    """One call per request, the management capability named, no account id."""
    vendor = ScriptedVendor(done("x:Domain/query", {"ids": []}))
    assert await ask("find_domain", vendor) is None
    assert (vendor.last.method, vendor.last.url.path) == ("POST", "/jmap/")
    assert vendor.last.headers["Content-Type"] == "application/json"
    assert vendor.body == {
        "using": ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"],
        "methodCalls": [
            ["x:Domain/query", {"filter": {"name": "example.org"}, "position": 0, "limit": 500}, "c0"],
        ],
    }


async def test_ignored_filter_is_not_believed() -> None:
    """Out of every domain of the server only the one of this name is ours."""
    store = Store({"id": "b", "name": "example.org", "description": "op-1"}, {"id": "c", "name": "www.example.org"})
    assert await ask("find_domain", ScriptedVendor(store)) == Domain(id="b", name="example.org", description="op-1")
    assert store.calls[-1][1]["properties"] == ["id", "name", "description"]
    store = Store({"id": "c", "name": "example.org.uk"})
    assert await ask("find_domain", ScriptedVendor(store)) is None


async def test_every_page_is_read() -> None:
    """A server that clamps the page is paged through."""
    rows = [{"id": f"r{number}", "description": "[tenant-acme]"} for number in range(5)]
    store = Store(*rows, page=2)
    roles = await ask("find_roles", ScriptedVendor(store))
    assert isinstance(roles, list)
    assert [role.id for role in roles] == ["r0", "r1", "r2", "r3", "r4"]
    assert [arguments["position"] for method, arguments in store.calls if method.endswith("query")] == [0, 2, 4]


async def test_find_roles_compares_the_marker_as_a_whole() -> None:
    """The filter finds words; the marker of another tenant that begins with ours is not ours."""
    store = Store(
        {"id": "k", "description": "Acme (tenant-acme)", "disabledPermissions": {"b": True, "a": True}},
        {"id": "d", "description": "tenant-acme", "roleIds": {"b": True}},
        {"id": "e", "description": "tenant-acme-corp"},
        {"id": "f", "description": "my-tenant-acme"},
        {"id": "g", "description": "acme tenant"},
        {"id": "h"},
    )
    assert await ask("find_roles", ScriptedVendor(store)) == [
        Role(id="d", description="tenant-acme", role_ids=("b",)),
        Role(id="k", description="Acme (tenant-acme)", disabled_permissions=("a", "b")),
    ]


async def test_find_user_role() -> None:
    """The built-in role is known by its whole description; the oldest wins."""
    store = Store(
        {"id": "b", "description": "User"}, {"id": "c", "description": "User"}, {"id": "a", "description": "Power User"}
    )
    assert await ask("find_user_role", ScriptedVendor(store)) == Role(id="b", description="User")
    assert await ask("find_user_role", ScriptedVendor(Store())) is None


async def test_find_mailbox() -> None:
    """Name and domain are both compared, and a group at the address is no mailbox."""
    account = {"@type": "User", "name": "anna", "domainId": "b"}
    store = Store(
        account | {"id": "a", "domainId": "c"},
        account | {"id": "b", "@type": "Group"},
        account | {"id": "c", "name": "annabel"},
        account
        | {
            "id": "d",
            "description": "op-1",
            "roles": {"@type": "Custom", "roleIds": {"h": True}},
            "quotas": {"maxDiskQuota": 5_000},
        },
    )
    found = await ask("find_mailbox", ScriptedVendor(store))
    assert found == Mailbox(
        id="d", local_part="anna", domain_id="b", description="op-1", role_ids=("h",), quota_bytes=5_000
    )
    store = Store(account | {"id": "d", "roles": {"@type": "User"}})
    plain = await ask("find_mailbox", ScriptedVendor(store))
    assert plain == Mailbox(id="d", local_part="anna", domain_id="b")
    assert isinstance(found, Mailbox)
    assert Mailbox.model_validate(found.model_dump()) == found


async def test_dkim_keys() -> None:
    """Only keys of this domain count, and the private key is not even asked for."""
    key = {"@type": "Dkim1RsaSha256", "domainId": "b", "selector": "202611r", "stage": "active"}
    store = Store(
        key | {"id": "r"},
        key | {"id": "x", "domainId": "c"},
        {"id": "e", "@type": "Dkim1Ed25519Sha256", "domainId": "b", "selector": "202611e"},
        key | {"id": "z", "@type": "Dkim2New", "stage": "pending"},
    )
    assert await ask("dkim_keys", ScriptedVendor(store)) == [
        DkimKey(id="e", selector="202611e", algorithm="ed25519-sha256", stage="active"),
        DkimKey(id="r", selector="202611r", algorithm="rsa-sha256", stage="active"),
        DkimKey(id="z", selector="202611r", algorithm="Dkim2New", stage="pending"),
    ]
    assert "privateKey" not in store.calls[-1][1]["properties"]


async def test_read_dns_records() -> None:
    """The zone is parsed: strings joined, names absolute, no trailing dots."""
    vendor = ScriptedVendor(Store({"id": "b", "dnsZoneFile": ZONE}))
    tlsa = "3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    assert await ask("read_dns_records", vendor) == [
        DnsRecord(name="example.org", type="MX", value="10 mail.example.org"),
        DnsRecord(name="example.org", type="TXT", value="v=spf1 mx ra=postmaster -all"),
        DnsRecord(name="202611r._domainkey.example.org", type="TXT", value="v=DKIM1; k=rsa; h=sha256; p=AAAABBBB"),
        DnsRecord(name="mta-sts.example.org", type="CNAME", value="mail.example.org"),
        DnsRecord(name="_jmap._tcp.example.org", type="SRV", value="0 1 443 mail.example.org"),
        DnsRecord(name="_25._tcp.mail.example.org", type="TLSA", value=tlsa),
    ]


async def test_read_dns_records_of_no_domain() -> None:
    """An unknown domain is not the same as one without records."""
    assert await ask("read_dns_records", ScriptedVendor(Store({"id": "b", "dnsZoneFile": ""}))) == []
    error = await fail("read_dns_records", Store({"id": "c", "dnsZoneFile": ZONE}))
    assert error.code == "stalwart_not_found"


async def test_zone_that_is_not_understood() -> None:
    """A broken zone is not half a zone."""
    error = await fail("read_dns_records", Store({"id": "b", "dnsZoneFile": "example.org. IN MX ten"}))
    assert type(error) is VendorUnavailable


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        (
            "create_domain",
            "Domain",
            {
                "name": "example.org",
                "description": "op-1",
                "aliases": {},
                "certificateManagement": {"@type": "Manual"},
                "dkimManagement": {"@type": "Automatic"},
                "dnsManagement": {"@type": "Manual"},
                "subAddressing": {"@type": "Enabled"},
            },
        ),
        (
            "create_role",
            "Role",
            {"description": "tenant-acme", "roleIds": {}, "enabledPermissions": {}, "disabledPermissions": {}},
        ),
        (
            "create_mailbox",
            "Account",
            {
                "@type": "User",
                "name": "anna",
                "domainId": "b",
                "description": "op-1",
                "roles": {"@type": "Custom", "roleIds": {"h": True}},
                "permissions": {"@type": "Inherit"},
                "quotas": {"maxDiskQuota": 5_000},
            },
        ),
    ],
)
async def test_create(name: str, kind: str, fields: dict[str, Any]) -> None:
    """A create sends one object and returns its id; a mailbox never gets a credential."""
    vendor = ScriptedVendor(set_answer({"created": {"new": {"id": "k"}}}))
    assert await ask(name, vendor) == "k"
    assert vendor.body["methodCalls"] == [[f"x:{kind}/set", {"create": {"new": fields}}, "c0"]]


async def test_create_role_with_members() -> None:
    """Sets travel as objects whose keys are the members."""
    vendor = ScriptedVendor(set_answer({"created": {"new": {"id": "k"}}}))
    spec = RoleSpec(description="m", disabled_permissions=("jmapPrincipalGet",), inherits=("b",))
    async with vendor.http() as http:
        await StalwartClient(http).create_role(spec)
    sent = vendor.body["methodCalls"][0][1]["create"]["new"]
    assert sent["roleIds"] == {"b": True}
    assert sent["disabledPermissions"] == {"jmapPrincipalGet": True}


@pytest.mark.parametrize(("name", "kind"), DESTROYS.items())
@pytest.mark.parametrize("result", [{"destroyed": ["h"]}, {"notDestroyed": {"h": {"type": "notFound"}}}])
async def test_destroy(name: str, kind: str, result: dict[str, Any]) -> None:
    """A destroy names one object, and an absent one is a success."""
    vendor = ScriptedVendor(set_answer(result))
    assert await ask(name, vendor) == []
    assert vendor.body["methodCalls"] == [[f"x:{kind}/set", {"destroy": ["h"]}, "c0"]]


async def test_destroy_linked() -> None:
    """What keeps an object is named, with or without the prefix of its kind; unnamed it is a refusal, not a success."""
    links = [{"object": "x:Account", "id": "a"}, {"object": "Role", "id": "b"}]
    linked = set_answer({"notDestroyed": {"h": {"type": "objectIsLinked", "linkedObjects": links}}})
    assert await ask("destroy_role", ScriptedVendor(linked)) == [
        Link(kind="Account", id="a"),
        Link(kind="Role", id="b"),
    ]
    for problem in ({"type": "objectIsLinked"}, {"type": "objectIsLinked", "linkedObjects": []}):
        error = await fail("destroy_role", set_answer({"notDestroyed": {"h": problem}}))
        assert (type(error), error.code) == (VendorRejected, "stalwart_object_is_linked")


@pytest.mark.parametrize("name", DESTROYS)
async def test_destroy_refused(name: str) -> None:
    """Any other refusal is final."""
    error = await fail(name, set_answer({"notDestroyed": {"h": {"type": "forbidden"}}}))
    assert (type(error), error.code) == (VendorRejected, "vendor_forbidden")


async def test_any_exists() -> None:
    """Each object is asked for by its own kind, until one is there."""
    links = [Link(kind="Account", id="a"), Link(kind="Role", id="h"), Link(kind="Role", id="k")]
    registry = Store({"id": "h"})
    async with ScriptedVendor(registry).http() as http:
        client = StalwartClient(http)
        assert await client.any_exists(links)
        assert not await client.any_exists([links[0], links[2]])
        assert not await client.any_exists([])
    assert [method for method, _ in registry.calls] == ["x:Account/get", "x:Role/get", "x:Account/get", "x:Role/get"]


@pytest.mark.parametrize("name", CREATES)
async def test_primary_key_violation_carries_nothing_else(name: str) -> None:
    """The holder may be somebody else's: its id is not handed on, the caller reads again."""
    problem = {
        "type": "primaryKeyViolation",
        "objectId": {"object": "Domain", "id": "secretid"},
        "properties": ["name"],
    }
    error = await fail(name, set_answer({"notCreated": {"new": problem}}))
    assert (type(error), error.code) == (VendorRejected, "already_exists")
    assert "secretid" not in error.message


@pytest.mark.parametrize("name", CREATES)
@pytest.mark.parametrize(
    ("problem", "code"),
    [
        ({"type": "forbidden", "description": "You are not authorized"}, "vendor_forbidden"),
        ({"type": "invalidForeignKey", "objectId": {"object": "Domain", "id": "q"}}, "stalwart_invalid_foreign_key"),
        ({"type": "validationFailed", "properties": ["name"]}, "stalwart_validation_failed"),
        ({"type": "overQuota"}, "stalwart_over_quota"),
        ({"type": "<script>"}, "stalwart_unknown"),
        ({}, "stalwart_unknown"),
    ],
)
async def test_refused_object(name: str, problem: dict[str, Any], code: str) -> None:
    """The third layer: an object that was refused, in a 200."""
    error = await fail(name, set_answer({"notCreated": {"new": problem}}))
    assert (type(error), error.code) == (VendorRejected, code)


async def test_object_rate_limit() -> None:
    """An object can be refused for now."""
    error = await fail("create_role", set_answer({"notCreated": {"new": {"type": "rateLimit"}}}))
    assert type(error) is VendorRateLimited


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("result", [{}, {"created": {"other": {"id": "k"}}}, {"created": {"new": None}}])
async def test_neither_done_nor_refused(name: str, result: dict[str, Any]) -> None:
    """A 200 without our object in it proves nothing."""
    assert type(await fail(name, set_answer(result))) is OutcomeUnknown


@EVERY_METHOD
@pytest.mark.parametrize("kind", ["serverUnavailable", "serverFail", "serverPartialFail"])
async def test_server_unavailable(name: str, kind: str) -> None:
    """The second layer: any store error, also of the loser of a race, leaves a set open."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, method_error(kind))) is expected


@EVERY_METHOD
@pytest.mark.parametrize(
    ("kind", "code"), [("forbidden", "vendor_forbidden"), ("unsupportedFilter", "stalwart_unsupported_filter")]
)
async def test_refused_call(name: str, kind: str, code: str) -> None:
    """The second layer: a call that was refused."""
    error = await fail(name, method_error(kind))
    assert (type(error), error.code) == (VendorRejected, code)


@EVERY_METHOD
@pytest.mark.parametrize(
    "given",
    [
        done("x:Tenant/get", {}),
        done("error", {"type": "forbidden"}, call_id="c1"),
        answer(200, {"methodResponses": [], "sessionState": "0"}),
        answer(200, {"methodResponses": [["x:Domain/get", {}, "c0"], ["x:Domain/get", {}, "c0"]]}),
        httpx.Response(200, html="<html>"),
    ],
)
async def test_answer_to_something_else(name: str, given: httpx.Response) -> None:
    """Method name and call id are checked: another call's answer proves nothing."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, given)) is expected


@EVERY_METHOD
@pytest.mark.parametrize(
    ("status", "problem", "kind", "code"),
    [
        (401, "about:blank", VendorAuthFailed, "vendor_auth_failed"),
        (402, "about:blank", VendorAuthFailed, "vendor_auth_failed"),
        (403, "about:blank", VendorRejected, "vendor_forbidden"),
        (404, "about:blank", VendorRejected, "generation_mismatch"),
        (400, UNKNOWN_CAPABILITY, VendorRejected, "generation_mismatch"),
        (400, "urn:ietf:params:jmap:error:notRequest", VendorRejected, "stalwart_not_request"),
        (400, LIMIT, VendorRateLimited, "vendor_rate_limited"),
        (429, "about:blank", VendorRateLimited, "vendor_rate_limited"),
    ],
)
async def test_refused_request(name: str, status: int, problem: str, kind: type[VendorError], code: str) -> None:
    """The first layer: HTTP; too many requests at a time are a 400."""
    given = answer(status, {"type": problem, "status": status, "detail": "no"}, Retry_After="60")
    error = await fail(name, given)
    assert (type(error), error.code, error.http_status) == (kind, code, status)
    assert error.retry_after == (timedelta(seconds=60) if kind is VendorRateLimited else None)


@EVERY_METHOD
async def test_server_error(name: str) -> None:
    """A 5xx leaves a set open."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, httpx.Response(502, text="bad gateway"))) is expected


@EVERY_METHOD
async def test_nothing_sent(name: str) -> None:
    """A refused connection is weather, for sets too."""
    assert type(await fail(name, NOTHING_SENT[0])) is VendorUnavailable


@EVERY_METHOD
async def test_answer_lost(name: str) -> None:
    """A dropped connection leaves a set open."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, ANSWER_LOST[-1])) is expected


async def test_secrets_are_not_repeated() -> None:
    """A private key in the vendor's text does not reach our errors."""
    pem = "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBg\\n-----END PRIVATE KEY-----"
    problem = {"type": "validationFailed", "description": f"exists: {pem}"}
    error = await fail("create_domain", set_answer({"notCreated": {"new": problem}}))
    assert "MIIE" not in error.message


@pytest.mark.parametrize("name", sorted(set(CALLS) - set(WRITES)))
async def test_row_that_is_not_understood(name: str) -> None:
    """A row without what we need is no answer."""
    row = {"id": "b", "@type": "User", "name": 7, "domainId": "b", "description": 7, "dnsZoneFile": "("}
    with pytest.raises(VendorUnavailable):
        await ask(name, ScriptedVendor(Store(row)))
