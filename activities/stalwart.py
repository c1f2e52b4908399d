"""Mail: a tenant's role, domains and first mailbox in Stalwart."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity

from activities.tenants import load_admin, load_plan, load_tenant
from domain.errors import ForeignObject, NotReadyYet, OutcomeUnknown, VendorRejected
from domain.ids import tenant_marker
from domain.operations import Acting
from domain.people import User
from domain.provisioning import DomainRequest, StepResult, TenantRequest, keeper
from domain.tenants import DnsRecord
from integrations.stalwart import Link, Mailbox, MailboxSpec, RoleSpec, StalwartClient
from runtime.steps import current_step
from store.catalog import CatalogRepository
from store.people import UserRepository
from store.tenants import TenantRepository

VENDOR = "stalwart"
ROLE = "stalwartRoleId"
MAILBOX = "stalwartMailboxId"
DKIM_POLL = timedelta(seconds=1)
# A kind of link that only the server itself makes.
DKIM_KEY = "DkimSignature"
REMOVAL_POLL = timedelta(seconds=1)
# The community edition shows every mailbox of the server to every other one through these. `jmapPrincipalGet` is
# among them because asking it for no particular id answers with the first five hundred.
DIRECTORY_LEAKS = (
    "davPrincipalList",
    "davPrincipalMatch",
    "davPrincipalSearch",
    "davPrincipalSearchPropSet",
    "jmapPrincipalChanges",
    "jmapPrincipalGet",
    "jmapPrincipalQuery",
    "jmapPrincipalQueryChanges",
)


class StalwartActivities:
    """Ensures roles, domains, their keys, and mailboxes, and their absence."""

    def __init__(
        self,
        stalwart: StalwartClient,
        tenants: TenantRepository,
        users: UserRepository,
        catalog: CatalogRepository,
    ) -> None:
        self._stalwart = stalwart
        self._tenants = tenants
        self._users = users
        self._catalog = catalog

    @activity.defn(name="ensure_mail_role")
    async def ensure_mail_role(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant has a role of its own that shuts the directory, and that we know its id.

        Idempotency: roles are not unique; they are found by the marker in their description. A double that a late
        attempt makes is removed by `delete_mail_role_double`.
        """
        tenant = await load_tenant(self._tenants, request)
        marker = tenant_marker(tenant.slug)
        ids = [role.id for role in await self._stalwart.find_roles(marker)]
        if not ids:
            inherited = await self._stalwart.find_user_role()
            if inherited is None:
                raise VendorRejected(VENDOR, "The built-in role of ordinary users is gone.", code="user_role_missing")
            spec = RoleSpec(
                description=f"{marker} {_operation_mark(request)}",
                disabled_permissions=DIRECTORY_LEAKS,
                inherits=(inherited.id,),
            )
            await current_step().acting(_acting("stalwart.role_created", "role", marker))
            created = await self._stalwart.create_role(spec)
            ids = [role.id for role in await self._stalwart.find_roles(marker)] or [created]
        role_id = keeper(ids, known=tenant.resources.get(ROLE))
        await self._tenants.set_resource(tenant, ROLE, role_id)
        return StepResult(resource_id=role_id, doubles=len(ids) > 1)

    @activity.defn(name="delete_mail_role_double")
    async def delete_mail_role_double(self, request: TenantRequest) -> StepResult:
        """Ensure that there is one role less beside the tenant's own with its marker; one that is in use is left.

        Idempotency: what is gone is not found again. `doubles` tells whether it is to be called once more.
        """
        tenant = await load_tenant(self._tenants, request)
        kept = tenant.resources[ROLE]
        roles = await self._stalwart.find_roles(tenant_marker(tenant.slug))
        left = [role.id for role in roles if role.id != kept]
        while left:
            role_id = left.pop()
            await current_step().acting(_acting("stalwart.role_double_removed", "role", role_id))
            if not await self._stalwart.destroy_role(role_id):
                return StepResult(resource_id=role_id, doubles=bool(left))
            await current_step().not_acting()
        return StepResult()

    @activity.defn(name="ensure_mail_domain")
    async def ensure_mail_domain(self, request: DomainRequest) -> StepResult:
        """Ensure that a proved domain exists in Stalwart with our mark, and that we know its id.

        Idempotency: domain names are unique in Stalwart.

        Raises:
            ForeignObject: the domain exists without this tenant's mark.
        """
        tenant = await load_tenant(self._tenants, request)
        marker = tenant_marker(tenant.slug)
        domain = await self._stalwart.find_domain(request.domain)
        if domain is None:
            await current_step().acting(_acting("stalwart.domain_created", "domain", request.domain))
            try:
                await self._stalwart.create_domain(request.domain, f"{marker} {_operation_mark(request)}")
            except VendorRejected as error:
                if error.code != "already_exists":
                    raise
            domain = await self._stalwart.find_domain(request.domain)
            if domain is None:
                raise OutcomeUnknown(VENDOR, "The domain was made, and is not to be seen.")
        if marker not in (domain.description or ""):
            raise ForeignObject(VENDOR, f"The domain {request.domain} exists and is not this tenant's.")
        await self._tenants.set_domain_id(tenant.slug, request.domain, domain.id)
        return StepResult(resource_id=domain.id)

    @activity.defn(name="observe_mail_domain_keys")
    async def observe_mail_domain_keys(self, request: DomainRequest) -> StepResult:
        """Ensure that the domain is live: both its DKIM keys exist, and its DNS records are kept for publishing.

        Idempotency: only reads outside.

        Raises:
            NotReadyYet: Stalwart makes the keys in the background and has not finished.
        """
        tenant = await load_tenant(self._tenants, request)
        domain = tenant.domain(request.domain)
        if domain is None or domain.external_id is None:
            raise VendorRejected(VENDOR, f"The domain {request.domain} is not known here.", code="domain_gone")
        keys = await self._stalwart.dkim_keys(domain.external_id)
        if len({key.algorithm for key in keys}) < 2:
            raise NotReadyYet(VENDOR, "The DKIM keys are being made.", retry_after=DKIM_POLL)
        records = await self._stalwart.read_dns_records(domain.external_id)
        ours = [DnsRecord(name=each.name, type=each.type, value=each.value) for each in records]
        await self._tenants.set_domain_live(tenant.slug, request.domain, ours)
        return StepResult(resource_id=domain.external_id)

    @activity.defn(name="ensure_mailbox")
    async def ensure_mailbox(self, request: DomainRequest) -> StepResult:
        """Ensure that the first admin has a mailbox on a live domain, under the tenant's role, without a password.

        Idempotency: addresses are unique in Stalwart; the one found is checked for our mark.

        Raises:
            ForeignObject: the address belongs to somebody else.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        domain = tenant.domain(request.domain)
        if domain is None or domain.external_id is None:
            raise VendorRejected(VENDOR, f"The domain {request.domain} is not known here.", code="domain_gone")
        plan = await load_plan(self._catalog, tenant)
        local_part = _local_part(person)
        mark = _user_mark(person)
        mailbox = await self._stalwart.find_mailbox(local_part, domain.external_id)
        if mailbox is None:
            spec = MailboxSpec(
                local_part=local_part,
                domain_id=domain.external_id,
                description=f"{mark} {_operation_mark(request)}",
                role_id=tenant.resources[ROLE],
                quota_bytes=plan.mail_quota_bytes,
            )
            await current_step().acting(_acting("stalwart.mailbox_created", "user", person.id))
            try:
                await self._stalwart.create_mailbox(spec)
            except VendorRejected as error:
                if error.code != "already_exists":
                    raise
            mailbox = await self._stalwart.find_mailbox(local_part, domain.external_id)
            if mailbox is None:
                raise ForeignObject(VENDOR, "The address is taken by a group, a list or an alias.")
        if mark not in (mailbox.description or ""):
            raise ForeignObject(VENDOR, "The address belongs to a mailbox that was not made here.")
        await self._tenants.set_resource(tenant, MAILBOX, mailbox.id)
        return StepResult(resource_id=mailbox.id)

    @activity.defn(name="delete_mailbox")
    async def delete_mailbox(self, request: DomainRequest) -> StepResult:
        """Ensure that the first admin has no mailbox on a domain; one without our mark is left alone.

        Idempotency: what is gone is not found again. The domain is found by its name, so its id need not be known.

        Raises:
            NotReadyYet: the server has not come to it yet.
        """
        tenant = await load_tenant(self._tenants, request)
        person = await load_admin(self._users, tenant)
        mailbox = await self._own_mailbox(person, request.domain)
        if mailbox is not None:
            await current_step().acting(_acting("stalwart.mailbox_removed", "user", person.id))
            await self._require_gone(await self._stalwart.destroy_mailbox(mailbox.id))
            if await self._own_mailbox(person, request.domain) is not None:
                raise NotReadyYet(VENDOR, "The mailbox is being removed.", retry_after=REMOVAL_POLL)
        await self._tenants.forget_resource(tenant.slug, MAILBOX, tenant.resources.get(MAILBOX))
        return StepResult(resource_id=mailbox.id if mailbox is not None else None)

    @activity.defn(name="delete_mail_domain")
    async def delete_mail_domain(self, request: DomainRequest) -> StepResult:
        """Ensure that a domain of the tenant is gone from Stalwart; one without the tenant's mark is left alone.

        Idempotency: what is gone is not found again. The DKIM keys go before the domain; one that the server makes
        meanwhile goes with the next attempt.

        Raises:
            NotReadyYet: what referred to the domain is being removed, or a key has come meanwhile.
            VendorRejected: `still_in_use` if there are other mailboxes or lists in it.
        """
        tenant = await load_tenant(self._tenants, request)
        domain = await self._stalwart.find_domain(request.domain)
        if domain is not None and tenant_marker(tenant.slug) not in (domain.description or ""):
            return StepResult()
        if domain is not None:
            await current_step().acting(_acting("stalwart.domain_removed", "domain", request.domain))
            for key in await self._stalwart.dkim_keys(domain.id):
                await self._require_gone(await self._stalwart.destroy_dkim_key(key.id))
            await self._require_gone(await self._stalwart.destroy_domain(domain.id))
        known = tenant.domain(request.domain)
        external_id = known.external_id if known is not None else None
        await self._tenants.forget_domain_id(tenant.slug, request.domain, external_id)
        return StepResult(resource_id=domain.id if domain is not None else None)

    @activity.defn(name="delete_mail_role")
    async def delete_mail_role(self, request: TenantRequest) -> StepResult:
        """Ensure that there is one role less with the tenant's marker, whichever operation made it.

        Idempotency: what is gone is not found again. `doubles` tells whether it is to be called once more.

        Raises:
            NotReadyYet: the mailboxes that had the role are being removed.
            VendorRejected: `still_in_use` if other mailboxes or roles refer to all that are left.
        """
        tenant = await load_tenant(self._tenants, request)
        known = tenant.resources.get(ROLE)
        roles = await self._stalwart.find_roles(tenant_marker(tenant.slug))
        doubles = len(roles) > 1
        links: list[Link] = []
        for role in roles:
            await current_step().acting(_acting("stalwart.role_removed", "role", role.id))
            held = await self._stalwart.destroy_role(role.id)
            if not held:
                await self._tenants.forget_resource(tenant.slug, ROLE, role.id if doubles else known)
                return StepResult(resource_id=role.id, doubles=doubles)
            await current_step().not_acting()
            links += held
        await self._require_gone(links)
        await self._tenants.forget_resource(tenant.slug, ROLE, known)
        return StepResult()

    async def _own_mailbox(self, person: User, domain_name: str) -> Mailbox | None:
        """Return the mailbox that was made for a person on a domain, None if there is none."""
        domain = await self._stalwart.find_domain(domain_name)
        if domain is None:
            return None
        mailbox = await self._stalwart.find_mailbox(_local_part(person), domain.id)
        return mailbox if mailbox is not None and _user_mark(person) in (mailbox.description or "") else None

    async def _require_gone(self, links: list[Link]) -> None:
        """Ensure that nothing refers to what was to be destroyed, so that it is gone.

        Raises:
            NotReadyYet: what refers to it is being removed itself, or is a key that goes with the next attempt.
            VendorRejected: `still_in_use` if something refers to it that a person has to remove.
        """
        if not links:
            return
        if await self._stalwart.any_exists([link for link in links if link.kind != DKIM_KEY]):
            raise VendorRejected(VENDOR, "Something that is not being removed refers to it.", code="still_in_use")
        raise NotReadyYet(VENDOR, "What refers to it is being removed.", retry_after=REMOVAL_POLL)


def _user_mark(person: User) -> str:
    return f"dezky-user={person.id};"


def _local_part(person: User) -> str:
    return person.email.rpartition("@")[0]


def _operation_mark(request: TenantRequest) -> str:
    return f"dezky-operation={request.operation_id};"


def _acting(action: str, kind: str, identifier: str) -> Acting:
    return Acting(action=action, resource_type=f"stalwart_{kind}", resource_id=identifier)
