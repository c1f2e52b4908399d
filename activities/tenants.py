"""What every activity on a tenant begins with."""

from __future__ import annotations

from domain.catalog import Plan
from domain.errors import NotFound
from domain.people import User
from domain.provisioning import TenantRequest
from domain.tenants import Tenant
from store.catalog import CatalogRepository
from store.people import UserRepository
from store.tenants import TenantRepository


async def load_tenant(tenants: TenantRepository, request: TenantRequest) -> Tenant:
    """Return the tenant of a request.

    Raises:
        NotFound: there is none: its intent was committed before the workflow began, so this is a mistake.
    """
    tenant = await tenants.get(request.tenant_slug)
    if tenant is None:
        raise NotFound(f"There is no tenant {request.tenant_slug}.")
    return tenant


async def load_admin(users: UserRepository, tenant: Tenant) -> User:
    """Return the first admin of a tenant.

    Raises:
        NotFound: the person is gone.
    """
    user = await users.get(tenant.admin_user_id)
    if user is None:
        raise NotFound(f"The first admin of {tenant.slug} is gone.")
    return user


async def load_plan(catalog: CatalogRepository, tenant: Tenant) -> Plan:
    """Return the plan of a tenant.

    Raises:
        NotFound: it is gone. Going on without it would mean unlimited quotas.
    """
    plan = await catalog.plan(tenant.plan)
    if plan is None:
        raise NotFound(f"There is no plan {tenant.plan}.")
    return plan
