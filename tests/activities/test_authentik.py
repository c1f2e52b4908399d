"""Login: whom and what is taken over in Authentik, and what never is."""

from __future__ import annotations

import pytest
from temporalio.exceptions import ApplicationError

from domain.ids import tenant_group
from integrations.authentik import UserSpec
from runtime.wiring import Store, Vendors
from tests.activities.conftest import House

pytestmark = pytest.mark.asyncio


async def refused(house: House, step: str, activity: str) -> str:
    """Run a step that is refused for good, and return the code."""
    with pytest.raises(ApplicationError) as caught:
        await house.run(step, activity)
    assert caught.value.non_retryable
    assert caught.value.type is not None
    return caught.value.type


async def test_foreign_group(house: House, vendors: Vendors) -> None:
    """A group of the tenant's name that carries another tenant's mark, or none, is not taken over."""
    await vendors.authentik.create_group(tenant_group(house.job.slug), {"dezkyTenantId": "another"})
    assert await refused(house, "authentik.group", "ensure_login_group") == "foreign_object"
    assert (await house.job.tenant()).resources == {}


@pytest.mark.parametrize("attributes", [{}, {"dezkyUserId": "another"}], ids=["no mark", "another's mark"])
async def test_identity_exists(house: House, vendors: Vendors, attributes: dict[str, str]) -> None:
    """An identity with the person's login name is not linked: an e-mail address proves nothing."""
    email = (await house.job.admin()).email
    await vendors.authentik.create_user(UserSpec(username=email, email=email, name="Anna", attributes=attributes))
    assert await refused(house, "authentik.user", "ensure_login_user") == "identity_exists"
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
    assert await refused(house, "authentik.user", "ensure_login_user") == "user_gone"
    assert await house.objects("authentik", "users") == []
