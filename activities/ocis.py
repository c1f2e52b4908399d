"""Files: a tenant's group and space in OCIS."""

from __future__ import annotations

from typing import Literal

from temporalio import activity

from activities.tenants import load_plan, load_tenant
from domain.errors import ForeignObject, OutcomeUnknown, VendorRejected
from domain.ids import drive_alias, tenant_group, tenant_marker
from domain.operations import Acting
from domain.provisioning import SpaceResult, StepResult, TenantRequest, keeper
from domain.tenants import Tenant
from integrations.ocis import SPACE_EDITOR, OcisClient, Space, SpaceSpec
from runtime.steps import current_step
from store.catalog import CatalogRepository
from store.tenants import TenantRepository

VENDOR = "ocis"
GROUP = "ocisGroupId"
SPACE = "ocisSpaceId"


class OcisActivities:
    """Ensures groups, spaces and who may enter them, and the absence of groups and spaces."""

    def __init__(self, ocis: OcisClient, tenants: TenantRepository, catalog: CatalogRepository) -> None:
        self._ocis = ocis
        self._tenants = tenants
        self._catalog = catalog

    @activity.defn(name="ensure_files_group")
    async def ensure_files_group(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's group exists, so that it has an id before anybody logs in.

        Idempotency: group names are unique in OCIS, and the name is the mark: logins fill it by name.
        """
        tenant = await load_tenant(self._tenants, request)
        name = tenant_group(tenant.slug)
        group = await self._ocis.find_group(name)
        if group is None:
            await current_step().acting(_acting("ocis.group_created", "group", name))
            try:
                group = await self._ocis.create_group(name)
            except VendorRejected as error:
                if error.code != "already_exists":
                    raise
                group = await self._ocis.find_group(name)
        if group is None:
            raise OutcomeUnknown(VENDOR, "The group exists, and is not to be seen.")
        await self._tenants.set_resource(tenant, GROUP, group.id)
        return StepResult(resource_id=group.id)

    @activity.defn(name="ensure_space")
    async def ensure_space(self, request: TenantRequest) -> SpaceResult:
        """Ensure that the tenant has a space under its alias, and that we know its id.

        Idempotency: neither name nor alias is unique in OCIS; a double that a late attempt makes is removed by
        `delete_space_double`.

        Raises:
            ForeignObject: only spaces without our mark stand under the alias.
        """
        tenant = await load_tenant(self._tenants, request)
        quota = await self._quota(tenant)
        alias = drive_alias(tenant.slug)
        marker = tenant_marker(tenant.slug)
        spaces = await self._spaces(tenant)
        # One that is disabled is what a broken-off removal left: nobody could enter it.
        if all(space.disabled for space in spaces):
            spec = SpaceSpec(
                name=_space_name(tenant),
                drive_alias=alias,
                description=f"{marker} dezky-operation={request.operation_id};",
                quota_bytes=quota,
            )
            await current_step().acting(_acting("ocis.space_created", "space", alias))
            created = await self._ocis.create_space(spec)
            spaces = await self._spaces(tenant) or [created]
        usable = {space.id: space for space in spaces if not space.disabled}
        used = min((space.id for space in usable.values() if space.quota_used), default=None)
        space = usable[keeper(list(usable), known=tenant.resources.get(SPACE), in_use=used)]
        await self._tenants.set_resource(tenant, SPACE, space.id)
        return SpaceResult(resource_id=space.id, doubles=len(spaces) > 1, quota_matches=space.quota_total == quota)

    @activity.defn(name="delete_space_double")
    async def delete_space_double(self, request: TenantRequest) -> StepResult:
        """Ensure that there is one space less beside the tenant's own under its alias; one with files in it is left.

        Idempotency: what is gone is not found again. A disabled space does not tell whether it is empty, so it is
        restored first: also one that an earlier attempt disabled. `doubles` tells whether it is to be called once
        more.
        """
        tenant = await load_tenant(self._tenants, request)
        kept = tenant.resources[SPACE]
        marker = tenant_marker(tenant.slug)
        spaces = await self._ocis.find_spaces(drive_alias(tenant.slug))
        left = [each for each in spaces if each.id != kept and marker in (each.description or "")]
        while left:
            space = left.pop()
            if await self._remove_if_empty(space, "space_double"):
                return StepResult(resource_id=space.id, doubles=bool(left))
        return StepResult()

    @activity.defn(name="delete_space")
    async def delete_space(self, request: TenantRequest) -> StepResult:
        """Ensure that there is one space less of the tenant's, disabled or not, whichever operation made it.

        Idempotency: what is gone is not found again. A disabled space does not tell whether it is empty, so it is
        restored first: also one that an earlier attempt disabled. `doubles` tells whether it is to be called once
        more. A file that is stored in the moment between the look and the disabling goes with the space.

        Raises:
            VendorRejected: `space_not_empty` if there are files in all that is left: a person has to decide.
        """
        tenant = await load_tenant(self._tenants, request)
        alias, known = drive_alias(tenant.slug), tenant.resources.get(SPACE)
        spaces = _of_tenant(await self._ocis.find_spaces(alias), tenant)
        for space in spaces:
            if await self._remove_if_empty(space, "space"):
                left = _of_tenant(await self._ocis.find_spaces(alias), tenant)
                if all(each.id != space.id for each in left):
                    await self._tenants.forget_resource(tenant.slug, SPACE, space.id if left else known)
                return StepResult(resource_id=space.id, doubles=bool(left))
        if spaces:
            raise VendorRejected(VENDOR, "There are files in the tenant's space.", code="space_not_empty")
        await self._tenants.forget_resource(tenant.slug, SPACE, known)
        return StepResult()

    @activity.defn(name="delete_files_group")
    async def delete_files_group(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's group is gone. The tenant's spaces go before: memberships outlive a group.

        Idempotency: what is gone is not found again; the name is the mark.
        """
        tenant = await load_tenant(self._tenants, request)
        group = await self._ocis.find_group(tenant_group(tenant.slug))
        if group is not None:
            await current_step().acting(_acting("ocis.group_removed", "group", group.name))
            await self._ocis.delete_group(group.id)
        await self._tenants.forget_resource(tenant.slug, GROUP, tenant.resources.get(GROUP))
        return StepResult(resource_id=group.id if group is not None else None)

    async def _remove_if_empty(self, space: Space, what: Literal["space", "space_double"]) -> bool:
        """Remove a space unless there are files in it; return whether anything was changed.

        Raises:
            VendorRejected: `vendor_forbidden` if the space is there, and we may not change it.
        """
        try:
            return await self._disable_and_purge(space, what)
        except VendorRejected as error:
            if error.code != "vendor_not_found":
                raise
        # What is gone and what we have no right to get the same answer: only the list tells.
        if any(each.id == space.id for each in await self._ocis.find_spaces(space.drive_alias or "")):
            raise VendorRejected(VENDOR, "The space may not be changed by us.", code="vendor_forbidden")
        return True

    async def _disable_and_purge(self, space: Space, what: Literal["space", "space_double"]) -> bool:
        if space.disabled:
            await current_step().acting(_acting(f"ocis.{what}_restored", "space", space.id))
            space = await self._ocis.restore_space(space.id)
            if space.quota_used:
                return True
        if space.quota_used:
            return False
        await current_step().acting(_acting(f"ocis.{what}_removed", "space", space.id))
        await self._ocis.disable_space(space.id)
        await self._ocis.purge_space(space.id)
        return True

    @activity.defn(name="ensure_space_quota")
    async def ensure_space_quota(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's space has the quota of its plan and seats.

        Idempotency: setting the same quota again changes nothing.
        """
        tenant = await load_tenant(self._tenants, request)
        space_id = tenant.resources[SPACE]
        await current_step().acting(_acting("ocis.space_quota_set", "space", space_id))
        await self._ocis.set_quota(space_id, await self._quota(tenant))
        return StepResult(resource_id=space_id)

    @activity.defn(name="ensure_space_member")
    async def ensure_space_member(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's group may edit the tenant's space.

        Idempotency: a second invitation is refused as existing, which is what is wanted.
        """
        tenant = await load_tenant(self._tenants, request)
        space_id, group_id = tenant.resources[SPACE], tenant.resources[GROUP]
        members = await self._ocis.space_members(space_id)
        if not any(member.group_id == group_id for member in members):
            await current_step().acting(_acting("ocis.space_member_added", "space", space_id))
            try:
                await self._ocis.invite_group(space_id, group_id, SPACE_EDITOR)
            except VendorRejected as error:
                if error.code != "already_exists":
                    raise
        return StepResult(resource_id=space_id)

    async def _spaces(self, tenant: Tenant) -> list[Space]:
        """Return the spaces under the tenant's alias that carry our mark, disabled ones among them.

        Raises:
            ForeignObject: only spaces without our mark stand under the alias.
        """
        alias = drive_alias(tenant.slug)
        spaces = await self._ocis.find_spaces(alias)
        ours = _of_tenant(spaces, tenant)
        if spaces and not ours:
            raise ForeignObject(VENDOR, f"The alias {alias} belongs to a space that was not made here.")
        return ours

    async def _quota(self, tenant: Tenant) -> int:
        plan = await load_plan(self._catalog, tenant)
        return plan.storage_bytes_per_seat * tenant.seats


def _of_tenant(spaces: list[Space], tenant: Tenant) -> list[Space]:
    """Return the spaces that carry our mark, and the one we know: people who manage a space can edit the mark."""
    known, marker = tenant.resources.get(SPACE), tenant_marker(tenant.slug)
    return [space for space in spaces if space.id == known or marker in (space.description or "")]


def _space_name(tenant: Tenant) -> str:
    """Return the tenant's name as OCIS allows it: without the characters it refuses, among them the dot."""
    allowed = "".join(" " if char in '/\\.:?*"><|' else char for char in tenant.name)
    return " ".join(allowed.split()).encode()[:255].decode(errors="ignore") or tenant.slug


def _acting(action: str, kind: str, identifier: str) -> Acting:
    return Acting(action=action, resource_type=f"ocis_{kind}", resource_id=identifier)
