"""Mail: roles that may be double, domains and addresses that may be another's, and keys that take their time."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from domain.ids import tenant_marker
from domain.operations import StepState
from domain.provisioning import StepResult
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
    assert await house.refused(step, "ensure_mail_domain") == "foreign_object"
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
    assert await house.refused("stalwart.mailbox", "ensure_mailbox") == "foreign_object"


async def test_mailbox_without_plan(house: House, store: Store) -> None:
    """A mailbox is not made with an unlimited quota because its plan is gone."""
    await prepare_domain(house)
    plan = (await house.job.tenant()).plan
    await store.database.collection("plans").delete_one({"_id": plan})
    assert await house.refused("stalwart.mailbox", "ensure_mailbox") == "not_found"
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


async def make_mailbox(house: House, vendors: Vendors, local_part: str, role_id: str, description: str) -> str:
    """Make a mailbox on the tenant's domain, as a person would by hand."""
    domain = await vendors.stalwart.find_domain(house.job.domain)
    assert domain is not None
    spec = MailboxSpec(
        local_part=local_part, domain_id=domain.id, description=description, role_id=role_id, quota_bytes=1
    )
    return await vendors.stalwart.create_mailbox(spec)


async def remove_domain(house: House) -> StepResult:
    """Run the next attempt of the step that removes the tenant's domain."""
    result: StepResult = await house.run(f"stalwart.domain_undo.{house.job.domain}", "delete_mail_domain")
    return result


async def test_all_goes_in_turn(house: House) -> None:
    """Mailbox, domain, role: what a removed mailbox still holds is waited for, and nothing is left."""
    await prepare_domain(house)
    await house.run("stalwart.mailbox", "ensure_mailbox")
    await house.run("stalwart.mailbox_undo", "delete_mailbox")
    await house.run_until_done(f"stalwart.domain_undo.{house.job.domain}", "delete_mail_domain")
    await house.run_until_done("stalwart.role_undo", "delete_mail_role")
    for kind in ("accounts", "domains", "roles"):
        assert await house.objects("stalwart", kind) == []
    assert (await house.job.tenant()).resources == {}


async def test_keys_go_before_the_domain(house: House, vendors: Vendors) -> None:
    """A domain with DKIM keys is refused, so they go first, each by itself, and none is left."""
    await prepare_domain(house)
    await house.run(f"stalwart.dkim.{house.job.domain}", "observe_mail_domain_keys")
    domain_id = (await house.job.tenant()).domains[0].external_id
    assert domain_id is not None
    await remove_domain(house)
    sent = [each["body"] for each in await house.requests("stalwart") if '"destroy"' in each["body"]]
    assert ["DkimSignature" in body for body in sent] == [True, True, False]
    assert await vendors.stalwart.dkim_keys(domain_id) == []


async def test_key_that_comes_meanwhile(house: House) -> None:
    """A key that the server made after our look keeps the domain for now, and goes with the next attempt."""
    await prepare_domain(house)
    await house.run(f"stalwart.dkim.{house.job.domain}", "observe_mail_domain_keys")
    empty = '{"methodResponses": [["x:DkimSignature/query", {"ids": []}, "c0"]], "sessionState": "0"}'
    await house.fault(
        "stalwart", action="status", status=200, body=empty, contentType="application/json",
        contains=["x:DkimSignature/query"],
    )  # fmt: skip
    with pytest.raises(ApplicationError) as caught:
        await remove_domain(house)
    assert (caught.value.type, caught.value.next_retry_delay) == ("not_ready_yet", timedelta(seconds=1))
    assert (await house.job.tenant()).domains[0].state is DomainState.LIVE
    await remove_domain(house)
    assert await house.objects("stalwart", "domains") == []


async def test_foreign_domain_stays(house: House, vendors: Vendors) -> None:
    """A domain without this tenant's mark is left, and a mailbox in it that is not ours too."""
    await vendors.stalwart.create_domain(house.job.domain, "dezky-tenant=another;")
    role = await make_role(house, vendors)
    mailbox = await make_mailbox(house, vendors, "anna", role, "by hand")
    assert await remove_domain(house) == StepResult()
    assert await house.run("stalwart.mailbox_undo", "delete_mailbox") == StepResult()
    domain = await vendors.stalwart.find_domain(house.job.domain)
    assert domain is not None
    found = await vendors.stalwart.find_mailbox("anna", domain.id)
    assert found is not None
    assert found.id == mailbox


async def test_domain_in_use(house: House, vendors: Vendors) -> None:
    """A domain in which somebody has a mailbox is for a person to decide about; once that is gone, it goes."""
    await prepare_domain(house)
    mailbox = await make_mailbox(house, vendors, "bo", await make_role(house, vendors), "by hand")
    assert await house.refused(f"stalwart.domain_undo.{house.job.domain}", "delete_mail_domain") == "still_in_use"
    assert (await house.job.tenant()).domains[0].external_id is not None
    assert await vendors.stalwart.destroy_mailbox(mailbox) == []
    await house.run_until_done(f"stalwart.domain_undo.{house.job.domain}", "delete_mail_domain")
    assert await house.objects("stalwart", "domains") == []


async def test_several_roles(house: House, vendors: Vendors) -> None:
    """Each role with the tenant's marker goes in a step of its own, with its own event."""
    await house.run("stalwart.role", "ensure_mail_role")
    for _ in range(2):
        await make_role(house, vendors)
    more = [(await house.run(f"stalwart.role_undo.{number}", "delete_mail_role")).doubles for number in (1, 2, 3)]
    assert more == [True, True, False]
    assert await house.objects("stalwart", "roles") == []
    assert "stalwartRoleId" not in (await house.job.tenant()).resources
    assert (await house.job.events()).count(("stalwart.role_removed", "success")) == 3


async def test_role_in_use(house: House, vendors: Vendors) -> None:
    """A role that somebody has by hand is for a person to decide about; the others go."""
    await prepare_domain(house)
    used = (await house.job.tenant()).resources["stalwartRoleId"]
    double = await make_role(house, vendors)
    await make_mailbox(house, vendors, "bo", used, "by hand")
    removed = await house.run("stalwart.role_undo", "delete_mail_role")
    assert removed == StepResult(resource_id=double, doubles=True)
    assert await house.refused("stalwart.role_undo.2", "delete_mail_role") == "still_in_use"
    assert (await house.job.tenant()).resources["stalwartRoleId"] == used
    assert (await house.job.events()).count(("stalwart.role_removed", "success")) == 1


async def test_role_of_another_tenant(house: House, vendors: Vendors) -> None:
    """A marker is compared as a whole: another tenant's role with a longer slug is left."""
    other = await vendors.stalwart.create_role(RoleSpec(description=tenant_marker(f"{house.job.slug}-corp")))
    assert await house.run("stalwart.role_undo", "delete_mail_role") == StepResult()
    assert [role.id for role in await vendors.stalwart.find_roles(tenant_marker(f"{house.job.slug}-corp"))] == [other]


@pytest.mark.parametrize("step", ["stalwart.domain_undo.{domain}", "stalwart.role_undo"])
async def test_what_a_removed_mailbox_holds(house: House, step: str) -> None:
    """Something that refers to it and cannot be read any more is on its way out: that is waited for."""
    await prepare_domain(house)
    step = step.format(domain=house.job.domain)
    activity, kind = ("delete_mail_role", "Role") if "role" in step else ("delete_mail_domain", "Domain")
    (row,) = await house.objects("stalwart", f"{kind.lower()}s")
    linked = {"type": "objectIsLinked", "linkedObjects": [{"object": "x:Account", "id": "gone"}]}
    answer = [[f"x:{kind}/set", {"notDestroyed": {row["id"]: linked}}, "c0"]]
    await house.fault(
        "stalwart", action="status", status=200, contentType="application/json", contains=[f"x:{kind}/set"],
        body=json.dumps({"methodResponses": answer, "sessionState": "0"}),
    )  # fmt: skip
    with pytest.raises(ApplicationError) as caught:
        await house.run(step, activity)
    assert (caught.value.type, caught.value.next_retry_delay) == ("not_ready_yet", timedelta(seconds=1))
    await house.run(step, activity)
    assert await house.objects("stalwart", f"{kind.lower()}s") == []
