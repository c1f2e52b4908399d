"""Documents for tests, whole and valid; anything may be changed by its field name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from domain.catalog import Currency, Cycle
from domain.ids import tenant_lock, workflow_id
from domain.model import Model
from domain.operations import Operation, OperationKind, OperationState, RequestedBy
from domain.tenants import DomainState, Tenant, TenantDomain, TenantStatus
from runtime.clock import new_id, utcnow
from runtime.wiring import Store
from store.documents import to_document

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def build_tenant(slug: str = "acme", **changes: Any) -> Tenant:
    """Return an active tenant without domains."""
    fields: dict[str, Any] = {
        "id": new_id(),
        "slug": slug,
        "name": slug.capitalize(),
        "plan": "business",
        "cycle": Cycle.MONTHLY,
        "currency": Currency.EUR,
        "seats": 5,
        "admin_user_id": "admin",
        "price_id": "business-monthly",
        "status": TenantStatus.ACTIVE,
        "created_at": LONG_AGO,
        "updated_at": LONG_AGO,
    }
    return Tenant(**{**fields, **changes})


def build_domain(
    name: str, state: DomainState = DomainState.UNVERIFIED, claimed_at: datetime | None = None
) -> TenantDomain:
    """Return a domain, claimed now if no time is given."""
    return TenantDomain(name=name, state=state, claimed_at=claimed_at or utcnow())


def build_operation(slug: str = "acme", **changes: Any) -> Operation:
    """Return an open operation that holds the lock of a tenant and whose start nobody has acknowledged."""
    identifier = changes.pop("id", None) or new_id()
    lock = tenant_lock(slug)
    fields: dict[str, Any] = {
        "id": identifier,
        "kind": OperationKind.TENANT_PROVISION,
        "lock_key": lock,
        "open": True,
        "state": OperationState.RUNNING,
        "workflow_id": workflow_id(lock, identifier),
        "tenant_slug": slug,
        "partner_slug": "nordic",
        "requested_by": RequestedBy(type="partner", id="nordic"),
        "created_at": LONG_AGO,
    }
    return Operation(**{**fields, **changes})


async def keep(store: Store, collection: str, *models: Model) -> None:
    """Insert documents as they are."""
    await store.database.collection(collection).insert_many([to_document(model) for model in models])
