"""Mail: roles that may be double, domains and addresses that may be another's, and keys that take their time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from domain.ids import tenant_marker
from domain.operations import StepState
from domain.tenants import DomainState, SystemStatus
from integrations.stalwart import MailboxSpec, RoleSpec
from runtime.wiring import Store, Vendors
from tests.activities.conftest import House

pytestmark = pytest.mark.asyncio


async def make_role(house: House, vendors: Vendors) -> str:
    """Make a second role with the tenant's marker, as a late attempt would."""
    return await vendors.stalwart.create_role(
        RoleSpec(description=tenant_marker(house.job.slug), disabled_permissions=(), inherits=())
    )


async def prepare_domain(house: House) -> None:
    """Make what a mailbox needs."""
    await house.run("stalwart.role", "ensure_mail_role")
    await house.run(f"stalwart.domain.{house.job.domain}", "ensure_mail_domain")


async def refused(house: House, step: str, activity: str) -> str:
    """Run a step that is refused for good, and return the code."""
    with pytest.raises(ApplicationError) as caught:
        await house.run(step, activity)
    assert caught.value.non_retryable
    assert caught.value.type is not None
    return caught.value.type


async def test_double_of_a_late_attempt(house: House, vendors: Vendors) -> None:
    """The role we know stays, and a double that came later goes."""
    kept = await house.run("stalwart.role", "ensure_mail_role")
    await make_role(house, vendors)
    for _ in range(2):
        await house.run("stalwart.role_double.1", "delete_mail_role_double")
    assert [row["id"] for row in await house.objects("stalwart", "roles")] == [kept.resource_id]


async def test_double_in_use(house: House, vendors: Vendors) -> None:
    """A double that a mailbox has is left."""
    await prepare_domain(house)
    double = await make_role(house, vendors)
    domain = await vendors.stalwart.find_domain(house.job.domain)
    assert domain is not None
    await vendors.stalwart.create_mailbox(
        MailboxSpec(local_part="bo", domain_id=domain.id, description="x", role_id=double, quota_bytes=1)
    )
    await house.run("stalwart.role_double.1", "delete_mail_role_double")
    assert double in [row["id"] for row in await house.objects("stalwart", "roles")]
    assert "stalwart.role_double_removed" not in [action for action, _ in await house.job.events()]


async def test_foreign_domain(house: House, vendors: Vendors) -> None:
    """A domain that exists without this tenant's mark is not taken over."""
    await vendors.stalwart.create_domain(house.job.domain, "dezky-tenant=another;")
    step = f"stalwart.domain.{house.job.domain}"
    assert await refused(house, step, "ensure_mail_domain") == "foreign_object"
    assert (await house.job.tenant()).domains[0].external_id is None


async def test_foreign_mailbox(house: House, vendors: Vendors) -> None:
    """A mailbox at the admin's address that was not made for that person is not taken over."""
    await prepare_domain(house)
    domain = await vendors.stalwart.find_domain(house.job.domain)
    assert domain is not None
    role = (await house.job.tenant()).resources["stalwartRoleId"]
    await vendors.stalwart.create_mailbox(
        MailboxSpec(local_part="anna", domain_id=domain.id, description="by hand", role_id=role, quota_bytes=1)
    )
    assert await refused(house, "stalwart.mailbox", "ensure_mailbox") == "foreign_object"


async def test_mailbox_without_plan(house: House, store: Store) -> None:
    """A mailbox is not made with an unlimited quota because its plan is gone."""
    await prepare_domain(house)
    plan = (await house.job.tenant()).plan
    await store.database.collection("plans").delete_one({"_id": plan})
    assert await refused(house, "stalwart.mailbox", "ensure_mailbox") == "not_found"
    assert await house.objects("stalwart", "accounts") == []


async def test_keys_not_ready(house: House) -> None:
    """A domain whose keys are still being made is polled: pending for people, no error, live only at the end."""
    await house.run("stalwart.role", "ensure_mail_role")
    await house.run(f"stalwart.domain.{house.job.domain}", "ensure_mail_domain")
    step = f"stalwart.dkim.{house.job.domain}"
    empty = '{"methodResponses": [["x:DkimSignature/query", {"ids": []}, "c0"]], "sessionState": "0"}'
    await house.fault(
        "stalwart", action="status", status=200, body=empty, contentType="application/json",
        contains=["x:DkimSignature/query"],
    )  # fmt: skip
    with pytest.raises(ApplicationError) as caught:
        await house.run(step, "observe_mail_domain_keys")
    assert caught.value.type == "not_ready_yet"
    assert caught.value.next_retry_delay == timedelta(seconds=1)
    tenant = await house.job.tenant()
    assert tenant.domains[0].state is DomainState.VERIFIED
    assert tenant.provisioning_status["stalwart"] is SystemStatus.PENDING
    assert tenant.provisioning_errors == {}

    await house.run(step, "observe_mail_domain_keys")
    domain = (await house.job.tenant()).domains[0]
    assert domain.state is DomainState.LIVE
    assert {record.type for record in domain.dns_records} >= {"MX", "TXT"}
    assert (await house.job.step(step)).state is StepState.DONE
