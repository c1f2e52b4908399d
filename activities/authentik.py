"""Login: a tenant's group and its people in Authentik."""

from __future__ import annotations

from temporalio import activity

from activities.tenants import load_admin, load_tenant
from domain.errors import ForeignObject, IdentityExists, OutcomeUnknown, ResourceChanged, VendorRejected
from domain.ids import tenant_group
from domain.operations import Acting
from domain.people import User
from domain.provisioning import StepResult, TenantRequest
from domain.tenants import Tenant
from integrations.authentik import AuthentikClient, UserSpec
from integrations.authentik import Group as AuthentikGroup
from integrations.authentik import User as AuthentikUser
from runtime.steps import current_step
from store.people import UserRepository
from store.tenants import TenantRepository

VENDOR = "authentik"
GROUP = "authentikGroupId"
TENANT_MARK = "dezkyTenantId"
OPERATION_MARK = "dezkyOperation"
USER_MARK = "dezkyUserId"


class AuthentikActivities:
    """Ensures groups, users and memberships, and their absence."""

    def __init__(self, authentik: AuthentikClient, tenants: TenantRepository, users: UserRepository) -> None:
        self._authentik = authentik
        self._tenants = tenants
        self._users = users

    @activity.defn(name="ensure_login_group")
    async def ensure_login_group(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's group exists, carries our mark and is known here.

        Idempotency: group names are unique in Authentik; the one found is checked for our mark.

        Raises:
            ForeignObject: the name belongs to a group that is not this tenant's.
        """
        tenant = await load_tenant(self._tenants, request)
        name = tenant_group(tenant.slug)
        group = await self._authentik.find_group(name)
        if group is None:
            marks = {TENANT_MARK: tenant.id, OPERATION_MARK: request.operation_id}
            group = await self._create_group(name, marks)
        if group.attributes.get(TENANT_MARK) != tenant.id:
            raise ForeignObject(VENDOR, f"The group {name} exists and is not this tenant's.")
        await self._tenants.set_resource(tenant, GROUP, group.pk)
        return StepResult(resource_id=group.pk)

    @activity.defn(name="ensure_login_user")
    async def ensure_login_user(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's first admin can log in, and that we know them by their subject.

        Idempotency: a user is found by the stored subject, else by login name and our mark. One that the person has
        given up is removed first, because whoever gave it up may not have come to it yet.

        Raises:
            IdentityExists: the login name belongs to an identity that is not linked to this person.
            ResourceChanged: the identity was given up since the person was read.
            VendorRejected: `user_gone` if the person is linked to an identity that was deleted.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        user = await self._find_user(person)
        if user is not None and user.subject in person.former_subjects:
            # The event of who gave it up tells of it too, should this one's be replaced by that of the create.
            await current_step().acting(_acting("authentik.user_removed", "user", person.id))
            await self._authentik.delete_user(user.pk)
            user = None
        if user is None and person.subject is not None:
            # A new one would have another subject: nobody's here, and nobody would be let in with it.
            raise VendorRejected(VENDOR, "The user linked to this person is gone.", code="user_gone")
        if user is None:
            user = await self._create_user(person, request.operation_id)
        elif person.active and not user.is_active:
            # A member of a tenant that is not suspended may log in, whatever an earlier suspension did.
            await current_step().acting(_acting("authentik.user_activated", "user", person.id))
            user = await self._authentik.set_user_active(user.pk, True)
        if not await self._users.link(person.id, user.subject):
            raise ResourceChanged("The identity was given up, or another one was linked meanwhile.")
        return StepResult(resource_id=user.subject)

    @activity.defn(name="ensure_login_membership")
    async def ensure_login_membership(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's first admin is in the tenant's group.

        Idempotency: adding a member again is accepted by Authentik and changes nothing.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        group_pk = tenant.resources[GROUP]
        user = await self._find_user(person)
        if user is None:
            raise VendorRejected(VENDOR, "The user is gone.", code="user_gone")
        if group_pk not in user.group_pks:
            await current_step().acting(_acting("authentik.member_added", "user", person.id))
            await self._authentik.add_user_to_group(group_pk, user.pk)
        return StepResult(resource_id=group_pk)

    @activity.defn(name="delete_login_membership")
    async def delete_login_membership(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's first admin is not in the tenant's group.

        Idempotency: a membership that is gone is not found again.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        group = await self._own_group(tenant)
        user = await self._known_user(person)
        if group is None or user is None or group.pk not in user.group_pks:
            return StepResult()
        await current_step().acting(_acting("authentik.member_removed", "user", person.id))
        await self._authentik.remove_user_from_group(group.pk, user.pk)
        return StepResult(resource_id=group.pk)

    @activity.defn(name="delete_login_user")
    async def delete_login_user(self, request: TenantRequest) -> StepResult:
        """Ensure that the identity which was made here for the first admin is gone, if nobody else needs it.

        It is needed if the person is a member of another tenant, on a partner's staff, an operator or an auditor. Then
        it stays, whichever operation made it. The person's place in this tenant goes first, so that of two tenants
        that are canceled at once the later one sees that it is the last.

        Idempotency: first the person gives the identity up here, then it is deleted in Authentik. In between it is
        found by login name and marks, and being given up is for good.

        Another tenant may take the person on at any moment. If it does so before the giving up, the identity stays;
        if after, its run cannot link this identity any more and makes another one. So nobody is linked to what is
        deleted here. The window that remains is outside of us: what others in Authentik build on the identity between
        our look and our delete goes with it.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        user = await self._known_user(person)
        if user is None or user.attributes.get(USER_MARK) != person.id:
            return StepResult()
        await self._users.remove_membership(person.id, tenant.id)
        await current_step().acting(_acting("authentik.user_removed", "user", person.id))
        given_up = user.subject in person.former_subjects
        if not given_up and not await self._users.give_up(person.id, user.subject, tenant.id):
            await current_step().not_acting()
            return StepResult()
        await self._authentik.delete_user(user.pk)
        return StepResult(resource_id=user.subject)

    @activity.defn(name="delete_login_group")
    async def delete_login_group(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's group is gone; a group of its name without the tenant's mark is left alone.

        Idempotency: what is gone is not found again.
        """
        tenant = await load_tenant(self._tenants, request)
        group = await self._own_group(tenant)
        if group is not None:
            await current_step().acting(_acting("authentik.group_removed", "group", group.name))
            await self._authentik.delete_group(group.pk)
        await self._tenants.forget_resource(tenant.slug, GROUP, tenant.resources.get(GROUP))
        return StepResult(resource_id=group.pk if group is not None else None)

    async def _own_group(self, tenant: Tenant) -> AuthentikGroup | None:
        """Return the tenant's group, None if there is none of its name or that one is not the tenant's."""
        group = await self._authentik.find_group(tenant_group(tenant.slug))
        return group if group is not None and group.attributes.get(TENANT_MARK) == tenant.id else None

    async def _create_group(self, name: str, marks: dict[str, str]) -> AuthentikGroup:
        await current_step().acting(_acting("authentik.group_created", "group", name))
        try:
            return await self._authentik.create_group(name, marks)
        except VendorRejected as error:
            found = await self._authentik.find_group(name) if error.code == "already_exists" else None
            if found is None:
                raise
            return found

    async def _find_user(self, person: User) -> AuthentikUser | None:
        if person.subject is not None:
            return await self._authentik.find_user_by_subject(person.subject)
        user = await self._authentik.find_user(person.email)
        if user is not None and user.attributes.get(USER_MARK) != person.id:
            raise IdentityExists(VENDOR, "The login name belongs to an identity that is not linked to this person.")
        return user

    async def _known_user(self, person: User) -> AuthentikUser | None:
        """Return the person's identity, None if there is none or the login name is somebody else's."""
        try:
            return await self._find_user(person)
        except IdentityExists:
            return None

    async def _create_user(self, person: User, operation_id: str) -> AuthentikUser:
        spec = UserSpec(
            username=person.email,
            email=person.email,
            name=person.name,
            attributes={USER_MARK: person.id, OPERATION_MARK: operation_id},
        )
        # Made once, however many tenants believe they made it; but each one after a removal is another one.
        shared = not person.former_subjects
        await current_step().acting(_acting("authentik.user_created", "user", person.id, shared=shared))
        try:
            return await self._authentik.create_user(spec)
        except VendorRejected as error:
            if error.code != "already_exists":
                raise
        user = await self._find_user(person)
        if user is None:
            # Taken a moment ago and not to be seen: look again at the next attempt.
            raise OutcomeUnknown(VENDOR, "The login name is taken, and nobody has it.")
        return user


def _acting(action: str, kind: str, identifier: str, *, shared: bool = False) -> Acting:
    return Acting(action=action, resource_type=f"authentik_{kind}", resource_id=identifier, shared=shared)
