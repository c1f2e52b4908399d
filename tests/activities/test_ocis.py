"""Files: doubles that OCIS allows, what is foreign, and quotas."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.exceptions import ApplicationError

from domain.catalog import GIB
from domain.ids import drive_alias, tenant_group, tenant_marker
from domain.provisioning import SpaceResult
from integrations.ocis import Space, SpaceSpec
from runtime.wiring import Store, Vendors
from tests.activities.conftest import House

pytestmark = pytest.mark.asyncio


async def make_space(house: House, vendors: Vendors, description: str) -> Space:
    """Make a space under the tenant's alias, as a late attempt or a stranger would."""
    spec = SpaceSpec(name="Acme", drive_alias=drive_alias(house.job.slug), description=description, quota_bytes=3 * GIB)
    return await vendors.ocis.create_space(spec)


async def test_foreign_space(house: House, vendors: Vendors) -> None:
    """A space under the tenant's alias without our mark is not taken over."""
    await make_space(house, vendors, "made by hand")
    with pytest.raises(ApplicationError) as caught:
        await house.run("ocis.space", "ensure_space")
    assert (caught.value.type, caught.value.non_retryable) == ("foreign_object", True)
    assert (await house.job.tenant()).resources == {}


async def test_group_by_name(house: House, vendors: Vendors) -> None:
    """A group of the tenant's name is the tenant's, whoever made it: logins make groups by name."""
    group = await vendors.ocis.create_group(tenant_group(house.job.slug))
    assert (await house.run("ocis.group", "ensure_files_group")).resource_id == group.id


async def test_double_of_a_late_attempt(house: House, vendors: Vendors) -> None:
    """The space we know stays, a double that came later goes, and a stranger's is left alone."""
    kept = await house.run("ocis.space", "ensure_space")
    await make_space(house, vendors, tenant_marker(house.job.slug))
    stranger = await make_space(house, vendors, "made by hand")
    for _ in range(2):
        await house.run("ocis.space_double.1", "delete_space_double")
    left = {space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))}
    assert left == {kept.resource_id, stranger.id}


async def test_double_with_files(house: House, vendors: Vendors) -> None:
    """A double in which somebody has stored a file is left."""
    kept = await house.run("ocis.space", "ensure_space")
    double = await make_space(house, vendors, tenant_marker(house.job.slug))
    await house.control("ocis", f"spaces/{double.id}/files", {"bytes": 10})
    await house.run("ocis.space_double.1", "delete_space_double")
    left = {space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))}
    assert left == {kept.resource_id, double.id}


async def test_disabled_double_with_files(house: House, vendors: Vendors) -> None:
    """A disabled double does not tell what is in it: it is looked into, and left with its files."""
    kept = await house.run("ocis.space", "ensure_space")
    double = await make_space(house, vendors, tenant_marker(house.job.slug))
    await house.control("ocis", f"spaces/{double.id}/files", {"bytes": 10})
    await vendors.ocis.disable_space(double.id)
    await house.run("ocis.space_double.1", "delete_space_double")
    found = {space.id: space for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))}
    assert set(found) == {kept.resource_id, double.id}
    assert (found[double.id].disabled, found[double.id].quota_used) == (False, 10)
    assert ("ocis.space_double_restored", "success") in await house.job.events()


async def test_attempt_that_was_cut_off(house: House, vendors: Vendors) -> None:
    """An attempt that comes back after its successor recorded a space leaves that one recorded, and only a double."""
    hold = await house.fault("ocis", action="hold_before", method="POST", path="drives")
    late = asyncio.create_task(house.run("ocis.space", "ensure_space"))
    await house.held("ocis", hold)
    kept = await house.run("ocis.space", "ensure_space")
    await house.release("ocis", hold)
    # It ends well only if it happened to choose the recorded one among the two.
    await asyncio.gather(late, return_exceptions=True)
    assert (await house.job.tenant()).resources["ocisSpaceId"] == kept.resource_id
    await house.run("ocis.space_double.1", "delete_space_double")
    assert [space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))] == [kept.resource_id]


async def test_double_removed_by_a_late_attempt(house: House, vendors: Vendors) -> None:
    """A double that goes away while it is being removed is looked for again, and that it is gone is what counts."""
    kept = await house.run("ocis.space", "ensure_space")
    await make_space(house, vendors, tenant_marker(house.job.slug))
    gone = '{"error":{"code":"itemNotFound","message":"gone"}}'
    await house.fault("ocis", action="status", status=404, body=gone, content_type="application/json", method="DELETE")
    with pytest.raises(ApplicationError) as caught:
        await house.run("ocis.space_double.1", "delete_space_double")
    assert not caught.value.non_retryable
    await house.run("ocis.space_double.1", "delete_space_double")
    assert [space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))] == [kept.resource_id]


async def test_several_doubles(house: House, vendors: Vendors) -> None:
    """Each removal is a step of its own, with its own event, until none is left."""
    kept = await house.run("ocis.space", "ensure_space")
    for _ in range(3):
        await make_space(house, vendors, tenant_marker(house.job.slug))
    more = [(await house.run(f"ocis.space_double.{number}", "delete_space_double")).doubles for number in (1, 2, 3)]
    assert more == [True, True, False]
    assert [space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))] == [kept.resource_id]
    assert (await house.job.events()).count(("ocis.space_double_removed", "success")) == 3


async def test_space_in_use_is_chosen(house: House, vendors: Vendors) -> None:
    """Of several spaces that nobody recorded, the one with files in it becomes the tenant's."""
    spaces = [await make_space(house, vendors, tenant_marker(house.job.slug)) for _ in range(3)]
    used = max(spaces, key=lambda space: space.id)
    await house.control("ocis", f"spaces/{used.id}/files", {"bytes": 10})
    assert (await house.run("ocis.space", "ensure_space")).resource_id == used.id


async def test_double_half_removed(house: House, vendors: Vendors) -> None:
    """A double that was disabled when its remover died is purged by the next attempt."""
    kept = await house.run("ocis.space", "ensure_space")
    double = await make_space(house, vendors, tenant_marker(house.job.slug))
    await vendors.ocis.disable_space(double.id)
    await house.run("ocis.space_double.1", "delete_space_double")
    assert [space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))] == [kept.resource_id]


async def test_quota(house: House, store: Store) -> None:
    """The space step tells whether the quota fits seats and plan, and the quota step makes it fit."""
    first = await house.run("ocis.space", "ensure_space")
    assert first == SpaceResult(resource_id=first.resource_id, doubles=False, quota_matches=True)
    await store.database.collection("tenants").update_one({"slug": house.job.slug}, {"$set": {"seats": 5}})
    assert not (await house.run("ocis.space", "ensure_space")).quota_matches
    await house.run("ocis.quota", "ensure_space_quota")
    assert (await house.run("ocis.space", "ensure_space")).quota_matches
