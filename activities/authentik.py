"""Login: a tenant's group and its people in Authentik."""

from __future__ import annotations

from temporalio import activity

from activities.tenants import load_admin, load_tenant
from domain.errors import ForeignObject, IdentityExists, OutcomeUnknown, VendorRejected
from domain.ids import tenant_group
from domain.operations import Acting
from domain.people import User
from domain.provisioning import StepResult, TenantRequest
from integrations.authentik import AuthentikClient, UserSpec
from integrations.authentik import Group as AuthentikGroup
from integrations.authentik import User as AuthentikUser
from runtime.steps import current_step
from store.people import UserRepository
from store.tenants import TenantRepository

VENDOR = "authentik"
TENANT_MARK = "dezkyTenantId"
OPERATION_MARK = "dezkyOperation"
USER_MARK = "dezkyUserId"


class AuthentikActivities:
    """Ensures groups, users and memberships."""

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
        await self._tenants.set_resource(tenant, "authentikGroupId", group.pk)
        return StepResult(resource_id=group.pk)

    @activity.defn(name="ensure_login_user")
    async def ensure_login_user(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's first admin can log in, and that we know them by their subject.

        Idempotency: a user is found by the stored subject, else by login name and our mark.

        Raises:
            IdentityExists: the login name belongs to an identity that is not linked to this person.
            VendorRejected: `user_gone` if the person is linked to an identity that was deleted.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        user = await self._find_user(person)
        if user is None and person.subject is not None:
            # A new one would have another subject: nobody's here, and nobody would be let in with it.
            raise VendorRejected(VENDOR, "The user linked to this person is gone.", code="user_gone")
        if user is None:
            user = await self._create_user(person, request.operation_id)
        elif person.active and not user.is_active:
            # A member of a tenant that is not suspended may log in, whatever an earlier suspension did.
            await current_step().acting(_acting("authentik.user_activated", "user", person.id))
            user = await self._authentik.set_user_active(user.pk, True)
        await self._users.link(person.id, user.subject)
        return StepResult(resource_id=user.subject)

    @activity.defn(name="ensure_login_membership")
    async def ensure_login_membership(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's first admin is in the tenant's group.

        Idempotency: adding a member again is accepted by Authentik and changes nothing.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        group_pk = tenant.resources["authentikGroupId"]
        user = await self._find_user(person)
        if user is None:
            raise VendorRejected(VENDOR, "The user is gone.", code="user_gone")
        if group_pk not in user.group_pks:
            await current_step().acting(_acting("authentik.member_added", "user", person.id))
            await self._authentik.add_user_to_group(group_pk, user.pk)
        return StepResult(resource_id=group_pk)

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

    async def _create_user(self, person: User, operation_id: str) -> AuthentikUser:
        spec = UserSpec(
            username=person.email,
            email=person.email,
            name=person.name,
            attributes={USER_MARK: person.id, OPERATION_MARK: operation_id},
        )
        await current_step().acting(_acting("authentik.user_created", "user", person.id, shared=True))
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
