"""The caller's own profile."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from api.access import Caller, Guard
from domain.catalog import Currency, Cycle
from domain.model import Model
from domain.people import PartnerStatus
from domain.tenants import TenantStatus
from runtime.wiring import Store

router = APIRouter(tags=["me"])


class OwnPartner(Model):
    """The partner the caller works for."""

    slug: str
    name: str
    status: PartnerStatus


class OwnTenant(Model):
    """A tenant the caller is a member of."""

    slug: str
    name: str
    status: TenantStatus
    role: str


class OwnSubscription(Model):
    """A subscription of one of those tenants."""

    tenant_slug: str
    cycle: Cycle
    currency: Currency
    per_seat_amount: int
    seats: int
    status: str


class Me(Model):
    """Who the caller is here."""

    id: str
    email: str
    name: str
    role: str
    platform_admin: bool
    partner: OwnPartner | None
    tenants: list[OwnTenant]
    subscriptions: list[OwnSubscription]


@router.get("/me")
async def me(request: Request, caller: Annotated[Caller, Depends(Guard())]) -> Me:
    """Return the caller's profile, role, partner, tenants and their subscriptions."""
    store: Store = request.app.state.store
    user = caller.user
    tenants = await store.tenants.by_ids([each.tenant_id for each in user.memberships])
    slugs = {tenant.id: tenant.slug for tenant in tenants}
    subscriptions = await store.subscriptions.of_tenants(list(slugs))
    partner = caller.partner
    return Me(
        id=user.id,
        email=user.email,
        name=user.name,
        role=caller.role.value,
        platform_admin=caller.is_operator,
        partner=OwnPartner(slug=partner.slug, name=partner.name, status=partner.status) if partner else None,
        tenants=[
            OwnTenant(slug=each.slug, name=each.name, status=each.status, role=user.role_in(each.id) or "")
            for each in tenants
        ],
        subscriptions=[
            OwnSubscription(
                tenant_slug=slugs[each.tenant_id],
                cycle=each.cycle,
                currency=each.currency,
                per_seat_amount=each.per_seat_amount,
                seats=each.seats,
                status=each.status,
            )
            for each in subscriptions
        ],
    )
