"""Tenants: names that are unique, claims that lapse, and bookkeeping that is not seen as a change."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pymongo.errors import DuplicateKeyError

from domain.errors import ResourceChanged
from domain.people import User
from domain.tenants import DnsRecord, DomainState, SystemFailure, SystemStatus, Tenant, TenantStatus
from runtime.clock import utcnow
from runtime.wiring import Store
from store.tenants import UNVERIFIED_CLAIM_LASTS
from tests.store.builders import LONG_AGO, build_domain, build_tenant, keep

NAME = "claimed.example.org"


async def reread(store: Store, slug: str = "acme") -> Tenant:
    found = await store.tenants.get(slug)
    assert found is not None
    return found


@pytest.mark.parametrize("rival", [build_tenant(), build_tenant("rival", domains=[build_domain(NAME)])])
async def test_slugs_and_domains_belong_to_one_tenant(store: Store, rival: Tenant) -> None:
    """The database itself refuses a second holder; tenants without domains do not collide."""
    await keep(store, "tenants", build_tenant(domains=[build_domain(NAME)]), build_tenant("b"), build_tenant("c"))
    with pytest.raises(DuplicateKeyError):
        await store.database.run_transaction(lambda session: store.tenants.insert(rival, session))


@pytest.mark.parametrize(
    ("state", "age", "kept"),
    [
        (DomainState.UNVERIFIED, UNVERIFIED_CLAIM_LASTS + timedelta(seconds=1), False),
        (DomainState.UNVERIFIED, UNVERIFIED_CLAIM_LASTS - timedelta(seconds=1), True),
        (DomainState.VERIFIED, UNVERIFIED_CLAIM_LASTS * 10, True),
        (DomainState.LIVE, UNVERIFIED_CLAIM_LASTS * 10, True),
    ],
)
async def test_unproved_claims_lapse(store: Store, state: DomainState, age: timedelta, kept: bool) -> None:
    """After 14 days without a proof a name is free; other names of the tenant are left alone."""
    now = utcnow()
    other = build_domain("other.example.org", claimed_at=now - age)
    await keep(store, "tenants", build_tenant(domains=[build_domain(NAME, state, now - age), other]))
    lapsed = await store.database.run_transaction(lambda session: store.tenants.lapse_claims([NAME], now, session))
    assert [(loser.slug, name) for loser, name in lapsed] == ([] if kept else [("acme", NAME)])
    holder = await store.database.run_transaction(lambda session: store.tenants.domain_holder([NAME], session))
    assert holder == ((NAME, "acme") if kept else None)
    tenant = await reread(store)
    assert tenant.domain("other.example.org") == other
    assert tenant.version == (1 if kept else 2)


async def test_bookkeeping_is_no_change(store: Store) -> None:
    """What jobs record of their systems leaves version and time of the tenant."""
    await keep(store, "tenants", build_tenant(domains=[build_domain(NAME, DomainState.VERIFIED)]))
    failure = SystemFailure(code="vendor_unavailable", message="ours", attempts=1)
    record = DnsRecord(name=NAME, type="MX", value="mail")
    await store.database.run_transaction(
        lambda session: store.tenants.set_system("acme", "ocis", SystemStatus.ERROR, failure, session)
    )
    await store.tenants.set_resource(await reread(store), "space", "1")
    await store.tenants.set_domain_id("acme", NAME, "d1")
    await store.tenants.set_domain_live("acme", NAME, [record])
    tenant = await reread(store)
    assert (tenant.version, tenant.updated_at) == (1, LONG_AGO)
    assert (tenant.provisioning_errors, tenant.resources) == ({"ocis": failure}, {"space": "1"})
    domain = tenant.domain(NAME)
    assert domain is not None
    assert (domain.state, domain.external_id, domain.dns_records) == (DomainState.LIVE, "d1", [record])
    await store.database.run_transaction(
        lambda session: store.tenants.set_system("acme", "ocis", SystemStatus.OK, None, session)
    )
    assert (await reread(store)).provisioning_errors == {}


async def test_an_outdated_choice_replaces_nothing(store: Store) -> None:
    """Whoever read the tenant before another object was recorded may repeat that one, and record no other."""
    await keep(store, "tenants", build_tenant())
    outdated = await reread(store)
    await store.tenants.set_resource(outdated, "space", "2")
    await store.tenants.set_resource(outdated, "space", "2")
    with pytest.raises(ResourceChanged):
        await store.tenants.set_resource(outdated, "space", "1")
    current = await reread(store)
    assert current.resources == {"space": "2"}
    await store.tenants.set_resource(current, "space", "3")
    assert (await reread(store)).resources == {"space": "3"}


async def test_an_unproved_domain_never_goes_live(store: Store) -> None:
    """Control is proved first."""
    await keep(store, "tenants", build_tenant(domains=[build_domain(NAME)]))
    await store.tenants.set_domain_live("acme", NAME, [])
    domain = (await reread(store)).domain(NAME)
    assert domain is not None
    assert domain.state is DomainState.UNVERIFIED


@pytest.mark.parametrize("status", list(TenantStatus))
async def test_only_a_pending_tenant_is_activated(store: Store, status: TenantStatus) -> None:
    """A suspended or deleted one stays what it is."""
    await keep(store, "tenants", build_tenant(status=status))
    pending = status is TenantStatus.PENDING
    activated = await store.database.run_transaction(lambda session: store.tenants.activate("acme", utcnow(), session))
    assert activated is pending
    tenant = await reread(store)
    assert (tenant.status, tenant.version) == ((TenantStatus.ACTIVE, 2) if pending else (status, 1))


async def test_what_is_gone_does_not_count(store: Store) -> None:
    """Deleted, purged and abandoned tenants use none of a partner's limits."""
    await keep(
        store,
        "tenants",
        *(build_tenant(f"t-{status}", partner_id="p", seats=2, status=status) for status in TenantStatus),
        build_tenant("of-another", partner_id="q"),
    )
    counted = await store.database.run_transaction(lambda session: store.tenants.count_of_partner("p", session))
    seats = await store.database.run_transaction(lambda session: store.tenants.seats_of_partner("p", session))
    none = await store.database.run_transaction(lambda session: store.tenants.seats_of_partner("nobody", session))
    assert (counted, seats, none) == (3, 6, 0)


async def test_a_person_is_linked_once(store: Store) -> None:
    """The first subject stays, and a subject belongs to one person; people without one do not collide."""
    people = [User(id=each, email=f"{each}@example.org", name=each, created_at=LONG_AGO) for each in ("ada", "eve")]
    await keep(store, "users", *people)
    await asyncio.gather(store.users.link("ada", "subject-1"), store.users.link("ada", "subject-1"))
    await store.users.link("ada", "subject-2")
    linked = await store.users.by_subject("subject-1")
    assert linked is not None
    assert linked.id == "ada"
    assert await store.users.by_subject("subject-2") is None
    with pytest.raises(DuplicateKeyError):
        await store.users.link("eve", "subject-1")
