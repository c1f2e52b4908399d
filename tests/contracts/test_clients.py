"""Each client against the stand-in of its vendor, every exchange held against the vendor's own OpenAPI document."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn

from domain.errors import VendorAuthFailed, VendorRejected, VendorUnavailable
from integrations.authentik import AuthentikClient, UserSpec
from integrations.call_context import correlation_id, deadline
from integrations.http import build_http_client
from integrations.ocis import SPACE_EDITOR, OcisClient, SpaceSpec
from integrations.stalwart import DkimKey, Link, MailboxSpec, RoleSpec, StalwartClient
from integrations.stripe import (
    OPERATION_KEY,
    TENANT_ID_KEY,
    TENANT_SLUG_KEY,
    CustomerSpec,
    PriceSpec,
    ProductSpec,
    StripeBilling,
    SubscriptionSpec,
)
from sandbox.serve import load
from sandbox.state import State
from tests.support.openapi import CONTRACTS, Contract, ContractTransport, ContractViolation

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not CONTRACTS.is_dir(), reason=f"the vendors' documents are not at {CONTRACTS}"),
]

TOKEN = "sk_test_contract"
URL = "https://vendor.example"
JMAP = "urn:stalwart:jmap"
MARK = {TENANT_ID_KEY: "t1", TENANT_SLUG_KEY: "acme", OPERATION_KEY: "op1"}

# What real servers do although the documents lack it, each from the vendor's contract page.
CONTRACTS_OF: dict[str, dict[str, Any]] = {
    "authentik": {"file_name": "authentik-openapi.yaml", "undeclared": (404,)},
    "stalwart": {"file_name": "stalwart-openapi.yaml"},
    # A 401 has no body.
    "ocis": {"file_name": "ocis-openapi.yaml", "undeclared": (401,)},
    "stripe": {"file_name": "stripe-openapi.json", "also": {"GET /v1/customers/{customer}": "deleted_customer"}},
}


@pytest.fixture(autouse=True)
def _clean_context() -> None:
    correlation_id.set("op-1")
    deadline.set(None)


@asynccontextmanager
async def wire(vendor: str) -> AsyncIterator[ContractTransport]:
    """Build a fresh stand-in and a transport to it that checks every exchange."""
    state = State()
    app: Any = load(vendor)(state, public_url=URL, token=TOKEN)
    try:
        yield ContractTransport(httpx.ASGITransport(app), Contract(**CONTRACTS_OF[vendor]))
    finally:
        state.close()


@asynccontextmanager
async def http_of(vendor: str, token: str = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a fresh stand-in."""
    async with wire(vendor) as transport:
        headers = {"Authorization": f"Bearer {token}"}
        async with build_http_client(URL, headers, transport=transport) as http:
            yield http


async def test_authentik_groups_and_users() -> None:
    """A group and a user are created once, found again, and linked."""
    async with http_of("authentik") as http:
        client = AuthentikClient(http)
        assert await client.check()
        assert await client.find_group("dezky-tenant-acme") is None
        group = await client.create_group("dezky-tenant-acme", {"dezkyTenantId": "t1"})
        assert group.attributes == {"dezkyTenantId": "t1"}
        assert await client.find_group("dezky-tenant-acme") == group
        spec = UserSpec(username="Anna@acme.example", name="Anna", email="anna@acme.example", attributes={"a": 1})
        user = await client.create_user(spec)
        assert (user.username, user.is_active) == ("anna@acme.example", True)
        for _ in range(2):
            await client.add_user_to_group(group.pk, user.pk)
        found = await client.find_user_by_subject(user.subject)
        assert found is not None
        assert found.group_pks == (group.pk,)
        assert await client.find_user("ANNA@acme.example") == found
        assert not (await client.set_user_active(user.pk, False)).is_active
        assert (await client.set_user_active(user.pk, True)).is_active


async def test_authentik_removals() -> None:
    """A membership, a user and a group go, and once more; a member outlives the group."""
    async with http_of("authentik") as http:
        client = AuthentikClient(http)
        group = await client.create_group("dezky-tenant-acme", {"dezkyTenantId": "t1"})
        spec = UserSpec(username="anna@acme.example", name="Anna", email="anna@acme.example", attributes={})
        user = await client.create_user(spec)
        await client.add_user_to_group(group.pk, user.pk)
        for _ in range(2):
            await client.remove_user_from_group(group.pk, user.pk)
        assert (await client.find_user(user.username)) == user
        await client.add_user_to_group(group.pk, user.pk)
        for _ in range(2):
            await client.delete_group(group.pk)
        assert await client.find_group(group.name) is None
        assert (await client.find_user(user.username)) == user
        for _ in range(2):
            await client.delete_user(user.pk)
        assert await client.find_user(user.username) is None
        await client.remove_user_from_group(group.pk, user.pk)


async def test_authentik_refusals() -> None:
    """Duplicates, absent objects and a bad token are told apart."""
    async with http_of("authentik") as http:
        client = AuthentikClient(http)
        await client.create_group("g", {})
        spec = UserSpec(username="a@b.example", name="", email="a@b.example", attributes={})
        await client.create_user(spec)
        for repeat in (client.create_group("g", {}), client.create_user(spec)):
            with pytest.raises(VendorRejected) as caught:
                await repeat
            assert caught.value.code == "already_exists"
            assert caught.value.request_id
        with pytest.raises(VendorRejected) as caught:
            await client.add_user_to_group("4339db4a-c64e-41ec-896d-e9ad238efa43", 1)
        assert caught.value.code == "vendor_not_found"
    async with http_of("authentik", token="wrong") as http:
        with pytest.raises(VendorAuthFailed):
            await AuthentikClient(http).check()


async def test_stalwart_domain() -> None:
    """A domain is created once; its keys appear later, and its records can be published."""
    async with http_of("stalwart") as http:
        client = StalwartClient(http)
        assert (await client.check_generation()).permissions
        assert await client.find_domain("acme.example") is None
        domain_id = await client.create_domain("acme.example", "op-1")
        found = await client.find_domain("acme.example")
        assert found is not None
        assert (found.id, found.description) == (domain_id, "op-1")
        with pytest.raises(VendorRejected) as caught:
            await client.create_domain("acme.example", "op-2")
        assert caught.value.code == "already_exists"
        keys = await dkim_keys(client, domain_id)
        assert {key.algorithm for key in keys} == {"ed25519-sha256", "rsa-sha256"}
        records = await client.read_dns_records(domain_id)
        assert {record.type for record in records} >= {"MX", "TXT"}
        names = {record.name for record in records}
        assert {f"{key.selector}._domainkey.acme.example" for key in keys} <= names
        assert not any(record.name.endswith(".") or '"' in record.value for record in records if record.type == "TXT")


async def dkim_keys(client: StalwartClient, domain_id: str) -> list[DkimKey]:
    """Poll until both keys of a new domain are there."""
    async with asyncio.timeout(10):
        while len(keys := await client.dkim_keys(domain_id)) < 2:
            await asyncio.sleep(0.1)
    return keys


async def test_stalwart_roles_and_mailboxes() -> None:
    """A role can be made twice and is removed only while nobody has it; an address is unique."""
    async with http_of("stalwart") as http:
        client = StalwartClient(http)
        domain_id = await client.create_domain("acme.example", "op-1")
        spec = RoleSpec(description="dezky:tenant/acme", disabled_permissions=("jmapPrincipalGet",))
        first, second = [await client.create_role(spec) for _ in range(2)]
        await client.create_role(RoleSpec(description="dezky:tenant/acme-corp", inherits=(first,)))
        roles = await client.find_roles("dezky:tenant/acme")
        assert [role.id for role in roles] == sorted([first, second])
        assert roles[0].disabled_permissions == ("jmapPrincipalGet",)
        for _ in range(2):
            assert await client.destroy_role(second) == []
        assert await client.find_mailbox("anna", domain_id) is None
        mailbox = MailboxSpec(
            local_part="anna", domain_id=domain_id, description="op-1", role_id=first, quota_bytes=5_000
        )
        mailbox_id = await client.create_mailbox(mailbox)
        found = await client.find_mailbox("anna", domain_id)
        assert found is not None
        assert (found.id, found.role_ids, found.quota_bytes) == (mailbox_id, (first,), 5_000)
        with pytest.raises(VendorRejected) as caught:
            await client.create_mailbox(mailbox)
        assert caught.value.code == "already_exists"
        (link, other) = await client.destroy_role(first)
        assert (link, other.kind) == (Link(kind="Account", id=mailbox_id), "Role")
        assert await client.any_exists([link])


async def test_stalwart_removals() -> None:
    """A domain goes after its mailboxes and its keys, and everything may be removed once more."""
    async with http_of("stalwart") as http:
        client = StalwartClient(http)
        domain_id = await client.create_domain("acme.example", "op-1")
        role_id = await client.create_role(RoleSpec(description="dezky:tenant/acme"))
        mailbox = MailboxSpec(local_part="anna", domain_id=domain_id, description="m", role_id=role_id, quota_bytes=1)
        mailbox_id = await client.create_mailbox(mailbox)
        keys = await dkim_keys(client, domain_id)
        links = await client.destroy_domain(domain_id)
        assert {(link.kind, link.id) for link in links} == {
            ("Account", mailbox_id),
            *(("DkimSignature", key.id) for key in keys),
        }
        for _ in range(2):
            assert await client.destroy_mailbox(mailbox_id) == []
        assert await client.find_mailbox("anna", domain_id) is None
        for key in keys * 2:
            assert await client.destroy_dkim_key(key.id) == []
        assert await client.dkim_keys(domain_id) == []
        async with asyncio.timeout(10):
            while links := await client.destroy_domain(domain_id):
                # Its mail is being erased: it is named, and not to be seen.
                assert links == [Link(kind="Account", id=mailbox_id)]
                assert not await client.any_exists(links)
        assert await client.find_domain("acme.example") is None
        assert await client.destroy_domain(domain_id) == []
        assert await client.destroy_role(role_id) == []


async def test_stalwart_refused_credential() -> None:
    """A bad key is refused as such, by both interfaces."""
    async with http_of("stalwart", token="wrong") as http:
        for attempt in (StalwartClient(http).check_generation(), StalwartClient(http).find_domain("acme.example")):
            with pytest.raises(VendorAuthFailed):
                await attempt


async def test_ocis_space() -> None:
    """A space is created, shared with a group, changed, disabled and purged."""
    async with http_of("ocis") as http:
        client = OcisClient(http)
        await client.check()
        assert await client.find_group("dezky-tenant-acme") is None
        group = await client.create_group("dezky-tenant-acme")
        assert await client.find_group("dezky-tenant-acme") == group
        spec = SpaceSpec(name="Acme", drive_alias="project/dezky-acme", description="op-1", quota_bytes=5_000)
        space = await client.create_space(spec)
        await client.create_space(spec.model_copy(update={"drive_alias": "project/dezky-acme-corp"}))
        assert await client.find_spaces("project/dezky-acme") == [space]
        assert (space.quota_total, space.description, space.disabled) == (5_000, "op-1", False)
        assert (await client.set_quota(space.id, 9_000)).quota_total == 9_000
        await client.invite_group(space.id, group.id, SPACE_EDITOR)
        with pytest.raises(VendorRejected) as caught:
            await client.invite_group(space.id, group.id, SPACE_EDITOR)
        assert caught.value.code == "already_exists"
        members = {member.group_id: member.role_ids for member in await client.space_members(space.id)}
        assert members[group.id] == (SPACE_EDITOR,)
        with pytest.raises(VendorRejected) as caught:
            await client.purge_space(space.id)
        assert caught.value.code == "vendor_rejected"
        for _ in range(2):
            await client.disable_space(space.id)
        assert [found.disabled for found in await client.find_spaces("project/dezky-acme")] == [True]
        assert await client.space_members(space.id) == []
        await client.purge_space(space.id)
        for _ in range(2):
            await client.delete_group(group.id)
        assert await client.find_group("dezky-tenant-acme") is None
        assert await client.find_spaces("project/dezky-acme") == []
        with pytest.raises(VendorRejected) as caught:
            await client.purge_space(space.id)
        assert caught.value.code == "vendor_not_found"


async def test_ocis_refusals() -> None:
    """A taken name is refused; a bad token looks like a server that is still starting."""
    async with http_of("ocis") as http:
        await OcisClient(http).create_group("dezky-tenant-acme")
        with pytest.raises(VendorRejected) as caught:
            await OcisClient(http).create_group("dezky-tenant-acme")
        assert caught.value.code == "already_exists"
    async with http_of("ocis", token="wrong") as http:
        with pytest.raises(VendorUnavailable) as weather:
            await OcisClient(http).check()
        assert weather.value.code == "vendor_warming_up"


@asynccontextmanager
async def billing_of(api_key: str = TOKEN) -> AsyncIterator[StripeBilling]:
    """A billing client of a fresh stand-in."""
    async with wire("stripe") as transport:
        billing = StripeBilling(api_key, URL, transport=transport)
        try:
            yield billing
        finally:
            await billing.aclose()


PRICE = PriceSpec(
    product="dezky-team",
    currency="DKK",
    unit_amount=4_900,
    interval="month",
    lookup_key="price:row:DKK:1",
    tax_behavior="exclusive",
    metadata=MARK,
)


async def test_stripe_subscription() -> None:
    """A customer, a product, a price and a subscription are created once each under their keys, and found again."""
    since = datetime.now(UTC) - timedelta(minutes=1)
    async with billing_of() as billing:
        await billing.check()
        assert await billing.find_customers(since, "t1") == []
        spec = CustomerSpec(name="Acme", email="billing@acme.example", metadata=MARK)
        customer = await billing.create_customer(spec, "customer:1")
        assert await billing.create_customer(spec, "customer:1") == customer
        await billing.create_customer(CustomerSpec(name="Other", metadata=MARK | {TENANT_ID_KEY: "t2"}), "customer:2")
        assert await billing.find_customers(since, "t1") == [customer]
        assert await billing.retrieve_customer(customer.id) == customer
        assert customer.operation_id == "op1"

        assert await billing.find_product("dezky-team") is None
        product = await billing.create_product(ProductSpec(id="dezky-team", name="Team", metadata={}))
        assert await billing.find_product("dezky-team") == product

        assert await billing.find_price(PRICE.lookup_key) is None
        price = await billing.create_price(PRICE, "price:1")
        assert await billing.find_price(PRICE.lookup_key) == price
        assert (price.currency, price.unit_amount, price.interval) == ("DKK", 4_900, "month")

        assert await billing.find_subscriptions(customer.id) == []
        wanted = SubscriptionSpec(customer=customer.id, price=price.id, quantity=3, days_until_due=14, metadata=MARK)
        subscription = await billing.create_subscription(wanted, "subscription:1")
        assert await billing.find_subscriptions(customer.id) == [subscription]
        assert (subscription.price_id, subscription.quantity, subscription.currency) == (price.id, 3, "DKK")

        for _ in range(2):
            await billing.cancel_subscription(subscription.id)
        assert await billing.find_subscriptions(customer.id) == []
        for _ in range(2):
            await billing.delete_customer(customer.id)
        assert await billing.retrieve_customer(customer.id) is None


async def test_stripe_refusals() -> None:
    """A taken id, a key used for something else and a bad key are told apart."""
    async with billing_of() as billing:
        product = ProductSpec(id="dezky-team", name="Team", metadata={})
        await billing.create_product(product)
        with pytest.raises(VendorRejected) as caught:
            await billing.create_product(product)
        assert caught.value.code == "already_exists"
        await billing.create_price(PRICE, "price:1")
        with pytest.raises(VendorRejected) as caught:
            await billing.create_price(PRICE.model_copy(update={"unit_amount": 5_000}), "price:1")
        assert caught.value.code == "idempotency_conflict"
        with pytest.raises(VendorRejected) as caught:
            await billing.create_price(PRICE.model_copy(update={"product": "nothing"}), "price:2")
        assert caught.value.code == "stripe_resource_missing"
    async with billing_of("sk_test_wrong") as billing:
        with pytest.raises(VendorAuthFailed):
            await billing.find_product("dezky-team")


async def test_stripe_over_a_real_socket() -> None:
    """The official package's requests also work over the network, pages and deletions included."""
    state = State()
    app: Any = load("stripe")(state, public_url=URL, token=TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        billing = StripeBilling(TOKEN, f"http://127.0.0.1:{port}")
        customer = await billing.create_customer(CustomerSpec(name="Acme", metadata=MARK), "customer:1")
        assert await billing.find_customers(customer.created, "t1") == [customer]
        await billing.delete_customer(customer.id)
        assert await billing.retrieve_customer(customer.id) is None
        await billing.aclose()
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)
        state.close()


@pytest.mark.parametrize(
    ("vendor", "method", "path", "body", "found"),
    [
        ("authentik", "GET", "/api/v3/core/groups/?nam=x", None, "nam is not declared"),
        ("authentik", "POST", "/api/v3/core/groups/", {"name": "x", "colour": "red"}, "'colour'"),
        ("authentik", "POST", "/api/v3/core/groups/", {"name": 7}, "is not of type 'string'"),
        ("authentik", "GET", "/api/v3/core/nothing/", None, "is not declared"),
        ("ocis", "POST", "/graph/v1.0/groups", {"name": "x"}, "'name'"),
        ("stalwart", "POST", "/jmap/", {"using": [JMAP], "methodCalls": [["x:Domain/get", {"ids": 7}, "0"]]}, "body"),
        ("stalwart", "POST", "/jmap/", {"using": [JMAP], "methodCalls": [["x:Domian/get", {}, "0"]]}, "body"),
        ("stripe", "POST", "/v1/customers", "metadata[a]=b&nam=x", "'nam'"),
        ("stripe", "POST", "/v1/prices", "currency=dkk&unit_amount=many", "is not of type 'integer'"),
    ],
)
async def test_the_validator_bites(vendor: str, method: str, path: str, body: Any, found: str) -> None:
    """A request that the document does not allow is caught even if a server took it."""
    form = isinstance(body, str)
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    content, payload = (body, None) if form else (None, body)
    request = httpx.Request(method, URL + path, headers=headers, content=content, json=payload)
    with pytest.raises(ContractViolation, match=found):
        Contract(**CONTRACTS_OF[vendor]).check(request, httpx.Response(200, json={}))


async def test_the_validator_bites_on_answers() -> None:
    """An answer that the document does not allow is caught."""
    request = httpx.Request("GET", f"{URL}/v1/customers/cus_1")
    with pytest.raises(ContractViolation, match="answer 200"):
        Contract("stripe-openapi.json").check(request, httpx.Response(200, json={"id": "cus_1", "object": "price"}))
    request = httpx.Request("GET", f"{URL}/api/v3/core/users/4/")
    with pytest.raises(ContractViolation, match="status 404"):
        Contract("authentik-openapi.yaml").check(request, httpx.Response(404, json={}))
