"""Login: whom and what is taken over in Authentik, and what never is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from domain.ids import tenant_group
from domain.provisioning import StepResult
from integrations.authentik import UserSpec
from runtime.wiring import Store, Vendors
from tests.activities.conftest import House
from tests.activities.jobs import open_job

pytestmark = pytest.mark.asyncio


async def test_foreign_group(house: House, vendors: Vendors) -> None:
    """A group of the tenant's name that carries another tenant's mark, or none, is not taken over."""
    await vendors.authentik.create_group(tenant_group(house.job.slug), {"dezkyTenantId": "another"})
    assert await house.refused("authentik.group", "ensure_login_group") == "foreign_object"
    assert (await house.job.tenant()).resources == {}


@pytest.mark.parametrize("attributes", [{}, {"dezkyUserId": "another"}], ids=["no mark", "another's mark"])
async def test_identity_exists(house: House, vendors: Vendors, attributes: dict[str, str]) -> None:
    """An identity with the person's login name is not linked: an e-mail address proves nothing."""
    email = (await house.job.admin()).email
    await vendors.authentik.create_user(UserSpec(username=email, email=email, name="Anna", attributes=attributes))
    assert await house.refused("authentik.user", "ensure_login_user") == "identity_exists"
    assert (await house.job.admin()).subject is None


async def test_inactive_user_is_activated(house: House, vendors: Vendors) -> None:
    """A known person whom an earlier suspension shut out may log in again, once."""
    await house.run("authentik.user", "ensure_login_user")
    user = await vendors.authentik.find_user((await house.job.admin()).email)
    assert user is not None
    await vendors.authentik.set_user_active(user.pk, False)
    for _ in range(2):
        await house.run("authentik.user", "ensure_login_user")
    (seen,) = await house.objects("authentik", "users")
    assert seen["is_active"]
    assert sum(each["method"] == "PATCH" and house.job.operation_id in each["requestId"] for each in
               await house.requests("authentik")) == 1  # fmt: skip


async def test_deactivated_person_stays_out(house: House, store: Store, vendors: Vendors) -> None:
    """A person who was deactivated here is not let in by a new tenant."""
    await house.run("authentik.user", "ensure_login_user")
    user = await vendors.authentik.find_user((await house.job.admin()).email)
    assert user is not None
    await vendors.authentik.set_user_active(user.pk, False)
    await store.database.collection("users").update_one({"_id": house.job.admin_id}, {"$set": {"active": False}})
    await house.run("authentik.user", "ensure_login_user")
    (seen,) = await house.objects("authentik", "users")
    assert not seen["is_active"]


async def test_linked_user_gone(house: House, store: Store) -> None:
    """A person whose linked identity was deleted does not silently get another one."""
    await store.users.link(house.job.admin_id, "7a0e4b1c-0000-4000-8000-000000000000")
    assert await house.refused("authentik.user", "ensure_login_user") == "user_gone"
    assert await house.objects("authentik", "users") == []


async def provision(house: House) -> str:
    """Make all that a tenant has in Authentik, and return the first admin's subject."""
    await house.run("authentik.group", "ensure_login_group")
    subject = (await house.run("authentik.user", "ensure_login_user")).resource_id
    await house.run("authentik.member", "ensure_login_membership")
    return str(subject)


async def remove_user(house: House) -> str | None:
    """Run the step that removes the admin's identity, and return the subject of what it removed."""
    result: StepResult = await house.run("authentik.user_undo", "delete_login_user")
    return result.resource_id


async def subjects(house: House) -> list[str]:
    """Return the subjects of the identities that carry our mark of this person."""
    return [row["uuid"] for row in await house.objects("authentik", "users")]


@pytest.mark.parametrize("attributes", [{}, {"dezkyTenantId": "another"}], ids=["no mark", "another's mark"])
async def test_foreign_group_stays(house: House, vendors: Vendors, attributes: dict[str, str]) -> None:
    """A group of the tenant's name that is not this tenant's is left, with its members."""
    group = await vendors.authentik.create_group(tenant_group(house.job.slug), attributes)
    await house.run("authentik.user", "ensure_login_user")
    user = await vendors.authentik.find_user((await house.job.admin()).email)
    assert user is not None
    await vendors.authentik.add_user_to_group(group.pk, user.pk)
    for name in ("membership", "group"):
        assert await house.run(f"authentik.{name}_undo", f"delete_login_{name}") == StepResult()
    found = await vendors.authentik.find_group(group.name)
    assert found is not None
    assert found.user_pks == (user.pk,)


@pytest.mark.parametrize("mark", [None, "another"], ids=["no mark", "another's mark"])
async def test_foreign_identity_stays(house: House, vendors: Vendors, mark: str | None) -> None:
    """An identity with the person's login name that is not the person's is left, in its groups too."""
    email = (await house.job.admin()).email
    marks = {"dezkyOperation": house.job.operation_id} | ({"dezkyUserId": mark} if mark else {})
    user = await vendors.authentik.create_user(UserSpec(username=email, email=email, name="Anna", attributes=marks))
    group = await house.run("authentik.group", "ensure_login_group")
    await vendors.authentik.add_user_to_group(group.resource_id, user.pk)
    assert await remove_user(house) is None
    assert await house.run("authentik.member_undo", "delete_login_membership") == StepResult()
    found = await vendors.authentik.find_user(email)
    assert found is not None
    assert found.group_pks == (group.resource_id,)


@pytest.mark.parametrize(
    "change",
    [
        {"$push": {"memberships": {"tenantId": "another", "role": "member"}}},
        {"$set": {"partnerId": "nordic"}},
        {"$set": {"platformAdmin": True}},
        {"$set": {"auditor": True}},
    ],
    ids=["member elsewhere", "staff", "operator", "auditor"],
)
async def test_person_needed_elsewhere(house: House, store: Store, change: dict[str, Any]) -> None:
    """A person who is anything else as well keeps the identity and the link, and no event tells of a removal."""
    subject = await provision(house)
    await store.database.collection("users").update_one({"_id": house.job.admin_id}, change)
    assert await remove_user(house) is None
    assert await subjects(house) == [subject]
    admin = await house.job.admin()
    assert (admin.subject, admin.former_subjects) == (subject, [])
    assert "authentik.user_removed" not in [action for action, _ in await house.job.events()]


async def test_membership_may_be_gone_before(house: House, store: Store) -> None:
    """A person who is nobody's member any more is nobody whom another tenant needs."""
    subject = await provision(house)
    await store.database.collection("users").update_one({"_id": house.job.admin_id}, {"$set": {"memberships": []}})
    assert await remove_user(house) == subject
    assert await subjects(house) == []


async def test_died_between_the_halves(house: House) -> None:
    """An attempt that gave the identity up and came no further is completed by the next one, by name and marks."""
    subject = await provision(house)
    await house.fault("authentik", action="refuse", method="DELETE")
    with pytest.raises(ApplicationError):
        await remove_user(house)
    admin = await house.job.admin()
    assert (admin.subject, admin.former_subjects) == (None, [subject])
    assert await subjects(house) == [subject]
    assert await remove_user(house) == subject
    assert await subjects(house) == []
    assert ("authentik.user_removed", "success") in await house.job.events()


async def test_user_that_was_never_linked(house: House) -> None:
    """An identity whose create was answered to nobody is found by name and marks, and goes."""
    await house.fault("authentik", action="lose_answer", method="POST", path="core/users")
    with pytest.raises(ApplicationError):
        await house.run("authentik.user", "ensure_login_user")
    (subject,) = await subjects(house)
    assert (await house.job.admin()).subject is None
    assert await remove_user(house) == subject
    assert await subjects(house) == []


async def test_taken_on_after_the_removal(house: House, store: Store) -> None:
    """A tenant that takes the person on afterwards makes another identity, and tells of it."""
    await provision(house)
    former = await remove_user(house)
    other = house.of(await open_job(store, admin=await house.job.admin()))
    (subject,) = {await provision(other)} - {former}
    assert await subjects(other) == [subject]
    assert (await other.job.admin()).subject == subject
    assert ("authentik.user_created", "success") in await other.job.events()


async def test_taken_on_between_the_halves(house: House, store: Store) -> None:
    """A tenant that takes the person on when the identity was given up and not yet deleted never links that one."""
    former = await provision(house)
    await house.fault("authentik", action="refuse", method="DELETE")
    with pytest.raises(ApplicationError):
        await remove_user(house)
    other = house.of(await open_job(store, admin=await house.job.admin()))
    subject = await provision(other)
    assert subject != former
    for _ in range(2):
        await remove_user(house)
    assert await subjects(other) == [subject]
    assert (await other.job.admin()).subject == subject
    (user,) = await other.objects("authentik", "users")
    assert user["groups"] == [(await other.job.tenant()).resources["authentikGroupId"]]


async def test_taken_on_before_the_removal(house: House, store: Store) -> None:
    """A tenant that took the person on before keeps the identity, in its group and in no other."""
    subject = await provision(house)
    other = house.of(await open_job(store, admin=await house.job.admin()))
    assert await provision(other) == subject
    await house.run("authentik.member_undo", "delete_login_membership")
    assert await remove_user(house) is None
    await house.run("authentik.group_undo", "delete_login_group")
    (user,) = await other.objects("authentik", "users")
    assert user["groups"] == [(await other.job.tenant()).resources["authentikGroupId"]]
    assert (await other.job.admin()).subject == subject


async def test_given_up_while_being_linked(house: House, store: Store) -> None:
    """An attempt that read the person before the identity was given up does not link it again; the next makes one."""
    former = await provision(house)
    users = store.database.collection("users")
    await users.update_one({"_id": house.job.admin_id}, {"$set": {"subject": None}})
    hold = await house.fault("authentik", action="hold_after", method="GET", path="core/users")
    late = asyncio.create_task(house.run("authentik.user", "ensure_login_user"))
    await house.held("authentik", hold)
    assert await store.users.give_up(house.job.admin_id, former, house.job.tenant_id)
    await house.release("authentik", hold)
    with pytest.raises(ApplicationError) as caught:
        await late
    assert (caught.value.type, caught.value.non_retryable) == ("resource_changed", False)
    assert (await house.job.admin()).subject is None
    result = await house.run("authentik.user", "ensure_login_user")
    assert await subjects(house) == [result.resource_id] != [former]
    assert (await house.job.admin()).subject == result.resource_id
