"""Files: doubles that OCIS allows, what is foreign, and quotas."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.exceptions import ApplicationError

from domain.catalog import GIB
from domain.ids import drive_alias, tenant_group, tenant_marker
from domain.provisioning import SpaceResult, StepResult
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
    double = await make_space(house, vendors, tenant_marker(house.job.slug))
    hold = await house.fault("ocis", action="hold_before", method="DELETE")
    late = asyncio.create_task(house.run("ocis.space_double.1", "delete_space_double"))
    await house.held("ocis", hold)
    await vendors.ocis.disable_space(double.id)
    await vendors.ocis.purge_space(double.id)
    await house.release("ocis", hold)
    assert (await late).resource_id == double.id
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


async def test_every_space_goes(house: House, vendors: Vendors) -> None:
    """The tenant's space, a double and a disabled one go, each in a step of its own; a stranger's is left."""
    await house.run("ocis.space", "ensure_space")
    await make_space(house, vendors, tenant_marker(house.job.slug))
    disabled = await make_space(house, vendors, tenant_marker(house.job.slug))
    await vendors.ocis.disable_space(disabled.id)
    stranger = await make_space(house, vendors, "made by hand")
    more = [(await house.run(f"ocis.space_undo.{number}", "delete_space")).doubles for number in (1, 2, 3)]
    assert more == [True, True, False]
    assert [space.id for space in await vendors.ocis.find_spaces(drive_alias(house.job.slug))] == [stranger.id]
    assert "ocisSpaceId" not in (await house.job.tenant()).resources
    assert (await house.job.events()).count(("ocis.space_removed", "success")) == 3
    assert await house.run("ocis.space_undo.4", "delete_space") == StepResult()


async def test_known_space_without_mark(house: House, store: Store, vendors: Vendors) -> None:
    """The space we know is the tenant's, whatever its members made of the description."""
    space = await make_space(house, vendors, "by hand")
    assert await house.run("ocis.space_undo", "delete_space") == StepResult()
    await store.tenants.set_resource(await house.job.tenant(), "ocisSpaceId", space.id)
    assert await house.run("ocis.space_undo", "delete_space") == StepResult(resource_id=space.id)
    assert await vendors.ocis.find_spaces(drive_alias(house.job.slug)) == []


async def test_space_with_files(house: House, vendors: Vendors) -> None:
    """A space with files in it is for a person to decide about: it is left as it is, and the empty ones go."""
    kept = (await house.run("ocis.space", "ensure_space")).resource_id
    await make_space(house, vendors, tenant_marker(house.job.slug))
    await house.control("ocis", f"spaces/{kept}/files", {"bytes": 10})
    assert (await house.run("ocis.space_undo", "delete_space")).doubles
    assert await house.refused("ocis.space_undo.2", "delete_space") == "space_not_empty"
    (space,) = await vendors.ocis.find_spaces(drive_alias(house.job.slug))
    assert (space.id, space.disabled, space.quota_used) == (kept, False, 10)
    assert (await house.job.tenant()).resources["ocisSpaceId"] == kept
    assert (await house.job.events()).count(("ocis.space_removed", "success")) == 1


async def test_disabled_space_with_files(house: House, vendors: Vendors) -> None:
    """A disabled space does not tell what is in it: it is looked into, and left with its files."""
    kept = (await house.run("ocis.space", "ensure_space")).resource_id
    await house.control("ocis", f"spaces/{kept}/files", {"bytes": 10})
    await vendors.ocis.disable_space(kept)
    assert (await house.run("ocis.space_undo", "delete_space")).doubles
    assert ("ocis.space_restored", "success") in await house.job.events()
    assert await house.refused("ocis.space_undo.2", "delete_space") == "space_not_empty"
    (space,) = await vendors.ocis.find_spaces(drive_alias(house.job.slug))
    assert (space.disabled, space.quota_used) == (False, 10)


async def test_space_half_removed(house: House, vendors: Vendors) -> None:
    """A space that was disabled when its remover died is purged by the next attempt."""
    await house.run("ocis.space", "ensure_space")
    await house.fault("ocis", action="delay", method="DELETE")
    await house.fault("ocis", action="refuse", method="DELETE")
    with pytest.raises(ApplicationError):
        await house.run("ocis.space_undo", "delete_space")
    (space,) = await vendors.ocis.find_spaces(drive_alias(house.job.slug))
    assert space.disabled
    assert not (await house.run("ocis.space_undo", "delete_space")).doubles
    assert await vendors.ocis.find_spaces(drive_alias(house.job.slug)) == []


async def test_space_we_may_not_remove(house: House) -> None:
    """What is hidden from us gets the answer of what is gone: the list tells, and a person has to help."""
    kept = (await house.run("ocis.space", "ensure_space")).resource_id
    gone = '{"error":{"code":"itemNotFound","message":"gone"}}'
    await house.fault("ocis", action="status", status=404, body=gone, content_type="application/json", method="DELETE")
    assert await house.refused("ocis.space_undo", "delete_space") == "vendor_forbidden"
    assert (await house.job.tenant()).resources["ocisSpaceId"] == kept


async def test_group_of_another_spelling(house: House, vendors: Vendors) -> None:
    """OCIS finds names in any case; a group that is spelt otherwise is not the tenant's."""
    name = tenant_group(house.job.slug).upper()
    await vendors.ocis.create_group(name)
    assert await house.run("ocis.group_undo", "delete_files_group") == StepResult()
    assert await vendors.ocis.find_group(name) is not None
