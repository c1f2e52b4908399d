"""Tenants."""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field, StringConstraints

from api.access import Caller, Guard, identify, refuse_unknown_query
from api.body import JsonBody, Payload, idempotency_key, idempotent_request
from api.fields import Domain, Email, LoginEmail, Slug, Text
from api.paging import DEFAULT_LIMIT, Cursor, Limit, decode_cursor, encode_cursor, split_page
from api.reference import IDEMPOTENCY_KEY, PREFER
from api.routers.operations import answer_job, encode, refuse_plan, show
from api.views import OperationView, TenantPage, TenantView, summarise_tenant, view_tenant
from domain.catalog import Currency, Cycle, Price
from domain.errors import Invalid, Malformed, NotAllowed, NotFound
from domain.ids import tenant_lock
from domain.tenants import MAX_DOMAINS, MAX_SEATS, BillingInfo, SystemStatus, TenantStatus
from runtime.intents import Intents, NewTenant, require_active
from runtime.wiring import Store
from store.tenants import TenantFilter

router = APIRouter(tags=["tenants"])


class BillingInfoPayload(Payload):
    """Who is invoiced; the e-mail is the first admin's if absent."""

    company_name: Text
    country: Annotated[str, StringConstraints(pattern="^[A-Z]{2}$")]
    vat_id: Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, max_length=30)] | None = None
    email: Email | None = None


class TenantCreate(Payload):
    """A new tenant of the caller's partner."""

    slug: Slug
    name: Text
    plan: Text
    cycle: Cycle
    currency: Currency
    seats: Annotated[int, Field(ge=1, le=MAX_SEATS, strict=True)]
    domains: Annotated[list[Domain], Field(max_length=MAX_DOMAINS)]
    admin_email: LoginEmail
    billing_info: BillingInfoPayload | None = None


CREATE = JsonBody(TenantCreate)
# MongoDB takes a NUL in a text, but not in a pattern.
NO_NUL = r"^[^\x00]*$"
SORTABLE = {"createdAt": "created_at", "slug": "slug", "name": "name"}


async def tenant_creator(request: Request) -> Caller:
    """Admit the staff of an active partner.

    Raises:
        NotAllowed: an operator (`tenants_are_created_by_partners`), somebody else, or a partner that is not active.
        Malformed: the request asks for a plan, or has an unknown query parameter.
    """
    caller = await identify(request)
    if caller.is_operator:
        raise NotAllowed("Tenants belong to partners and are created by them.", code="tenants_are_created_by_partners")
    if caller.partner is None:
        raise NotAllowed("Only a partner's staff may create tenants.")
    require_active(caller.partner)
    refuse_plan(request)
    refuse_unknown_query(request)
    return caller


@router.post(
    "/tenants",
    status_code=202,
    response_model=OperationView,
    responses={200: {"model": OperationView, "description": "The job ended within `Prefer: wait`"}},
    openapi_extra={**CREATE.openapi, "parameters": [IDEMPOTENCY_KEY, PREFER]},
)
async def create_tenant(request: Request, caller: Annotated[Caller, Depends(tenant_creator)]) -> JSONResponse:
    """Create a tenant of the caller's partner; the answer is the operation that provisions it.

    Idempotency: with an `Idempotency-Key` the same request gets the same answer for 24 hours.
    """
    store: Store = request.app.state.store
    intents: Intents = request.app.state.intents
    key = idempotency_key(request)
    body = await CREATE.read(request)
    repeat = idempotent_request(request, caller, key, body) if key is not None else None
    new = _new_tenant(body)
    price = await _price(store, new)
    assert caller.partner is not None, "the guard has seen to it"

    recorded = await intents.create_tenant(
        new,
        partner_id=caller.partner.id,
        price=price,
        requester=caller.requester,
        repeat=repeat,
        encode=functools.partial(encode, request, caller),
    )
    return await answer_job(request, caller, recorded)


@router.get("/tenants")
async def list_tenants(
    request: Request,
    caller: Annotated[Caller, Depends(Guard())],
    status: TenantStatus | None = None,
    plan: str | None = None,
    partner: Annotated[str | None, Query(description="slug")] = None,
    q: Annotated[str | None, Query(max_length=100, pattern=NO_NUL, description="part of slug, name or domain")] = None,
    provisioning: Annotated[SystemStatus | None, Query(description="any system in this state")] = None,
    sort: Literal["createdAt", "-createdAt", "slug", "-slug", "name", "-name"] = "-createdAt",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> TenantPage:
    """List the tenants that are visible to the caller."""
    store: Store = request.app.state.store
    wanted = TenantFilter(status=status, plan=plan, partner_slug=partner, text=q, provisioning=provisioning)
    field, descending = sort.lstrip("-"), sort.startswith("-")
    after = None
    if cursor is not None:
        named, value, identifier = decode_cursor(cursor, str, datetime if field == "createdAt" else str, str)
        if named != sort:
            raise Malformed("The cursor belongs to another order.", code="cursor_malformed")
        after = (value, identifier)
    found = await store.tenants.page(
        caller.visible_tenants, wanted, sort=field, descending=descending, after=after, limit=limit + 1
    )
    page, last = split_page(found, limit)
    return TenantPage(
        items=[summarise_tenant(each) for each in page],
        next_cursor=encode_cursor(sort, getattr(last, SORTABLE[field]), last.id) if last is not None else None,
    )


@router.get("/tenants/{slug}", response_model=TenantView)
async def get_tenant(request: Request, caller: Annotated[Caller, Depends(Guard())], slug: str) -> JSONResponse:
    """Return a tenant; the ETag is its version, which bookkeeping of jobs does not raise."""
    store: Store = request.app.state.store
    tenant = await store.tenants.get(slug)
    if tenant is None or not caller.may_see(tenant):
        raise NotFound("There is no such tenant.")
    holder = await store.operations.holder(tenant_lock(slug))
    view = view_tenant(tenant, show(request, caller, holder) if holder is not None else None)
    return JSONResponse(view.model_dump(mode="json", by_alias=True), headers={"ETag": f'"{tenant.version}"'})


def _new_tenant(body: TenantCreate) -> NewTenant:
    if len(set(body.domains)) != len(body.domains):
        raise Invalid("The request is not valid.", errors=[{"loc": ["domains"], "msg": "A domain is named twice."}])
    info = body.billing_info
    return NewTenant(
        slug=body.slug,
        name=body.name,
        plan=body.plan,
        cycle=body.cycle,
        currency=body.currency,
        seats=body.seats,
        domains=list(body.domains),
        admin_email=body.admin_email,
        billing_info=BillingInfo(
            company_name=info.company_name,
            country=info.country,
            vat_id=info.vat_id,
            email=info.email or body.admin_email,
        )
        if info is not None
        else None,
    )


async def _price(store: Store, new: NewTenant) -> Price:
    """Return the catalog row the tenant is sold.

    Raises:
        Invalid: the plan is not one of ours, has fewer seats, or is not sold so.
    """

    def invalid(field: str, message: str) -> Invalid:
        return Invalid("The request is not valid.", errors=[{"loc": [field], "msg": message}])

    plan = await store.catalog.plan(new.plan)
    if plan is None:
        raise invalid("plan", f"There is no plan {new.plan!r}.")
    if plan.max_seats is not None and new.seats > plan.max_seats:
        raise invalid("seats", f"The plan {plan.key} has at most {plan.max_seats} seats.")
    price = await store.catalog.price_for(new.plan, new.cycle)
    if price is None or not price.active:
        raise invalid("cycle", f"The plan {plan.key} is not sold {new.cycle.value}.")
    if new.currency not in price.amounts:
        raise invalid("currency", f"The plan {plan.key} is not sold in {new.currency.value}.")
    return price
