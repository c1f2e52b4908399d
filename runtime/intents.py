"""Intents: what the API commits in one transaction before anything happens outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from pymongo.errors import PyMongoError
from temporalio.service import RPCError

from domain.audit import Actor, ActorType, AuditEvent, Outcome, PersonalData, Resource
from domain.catalog import Currency, Cycle, Price, Subscription
from domain.errors import Conflict, NotAllowed
from domain.ids import tenant_lock, workflow_id
from domain.operations import Operation, OperationKind, OperationState, RequestedBy
from domain.people import Membership, Partner, PartnerStatus, TenantRole, User
from domain.tenants import (
    SYSTEMS,
    BillingInfo,
    DomainProof,
    DomainState,
    SystemStatus,
    Tenant,
    TenantDomain,
    TenantStatus,
)
from runtime.clock import new_id, utcnow
from runtime.commits import Commits, Encode, Recorded, Requester
from runtime.dispatcher import Dispatcher
from runtime.logging import get_logger
from store.audit import AuditRepository
from store.catalog import SubscriptionRepository
from store.database import Session
from store.idempotency import IdempotentRequest
from store.operations import OperationRepository
from store.people import PartnerRepository, UserRepository
from store.tenants import TenantRepository

log = get_logger(__name__)

START_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class NewTenant:
    """A tenant as a partner asks for it, validated and normalised."""

    slug: str
    name: str
    plan: str
    cycle: Cycle
    currency: Currency
    seats: int
    domains: list[str]
    admin_email: str
    billing_info: BillingInfo | None


class Intents:
    """Commits intents and starts their workflows."""

    def __init__(
        self,
        commits: Commits,
        dispatcher: Dispatcher,
        *,
        operations: OperationRepository,
        tenants: TenantRepository,
        partners: PartnerRepository,
        users: UserRepository,
        subscriptions: SubscriptionRepository,
        audit: AuditRepository,
        assume_domain_proof: bool,
    ) -> None:
        self._commits = commits
        self._dispatcher = dispatcher
        self._operations = operations
        self._tenants = tenants
        self._partners = partners
        self._users = users
        self._subscriptions = subscriptions
        self._audit = audit
        self._assume_domain_proof = assume_domain_proof

    async def create_tenant(
        self,
        new: NewTenant,
        *,
        partner_id: str,
        price: Price,
        requester: Requester,
        repeat: IdempotentRequest | None,
        encode: Encode,
    ) -> Recorded:
        """Record a new tenant of a partner and start its provisioning.

        Ensures that tenant, first admin, subscription, audit event and operation exist together or not at all.

        Raises:
            NotAllowed: the partner is not active (`partner_not_active`, `partner_paused`).
            Conflict: `slug_taken`, `domain_taken` or `partner_limit`.
        """

        async def body(session: Session, now: datetime) -> Operation:
            partner = await self._partners.lock(partner_id, session)
            require_active(partner)
            assert partner is not None
            await self._require_free_names(new, requester, now, session)
            await self._require_within_limits(partner, new, session)
            return await self._insert_tenant(new, partner, price, requester, now, session)

        return await self._record(body, repeat, encode)

    async def _record(
        self,
        body: Callable[[Session, datetime], Awaitable[Operation]],
        repeat: IdempotentRequest | None,
        encode: Encode,
    ) -> Recorded:
        """Commit an intent, and start its workflow."""
        recorded = await self._commits.commit(body, repeat, encode)
        if recorded.operation is not None:
            await self._start(recorded.operation)
        return recorded

    async def _start(self, operation: Operation) -> None:
        """Start the workflow now if Temporal is there; if not, a worker's dispatcher does it later."""
        try:
            await asyncio.wait_for(self._dispatcher.start(operation), START_PATIENCE_SECONDS)
        except (RPCError, PyMongoError, RuntimeError, TimeoutError) as error:
            log.warning("start_left_to_dispatcher", operation_id=operation.id, error=type(error).__name__)

    async def _require_free_names(self, new: NewTenant, requester: Requester, now: datetime, session: Session) -> None:
        if await self._tenants.get(new.slug, session) is not None:
            raise Conflict(f"The slug {new.slug} is taken; slugs are never given away twice.", code="slug_taken")
        for loser, domain in await self._tenants.lapse_claims(new.domains, now, session):
            await self._audit.write(_lapse_event(loser, domain, requester, now), session)
        holder = await self._tenants.domain_holder(new.domains, session)
        if holder is not None:
            raise Conflict(f"The domain {holder[0]} belongs to another tenant.", code="domain_taken", domain=holder[0])

    async def _require_within_limits(self, partner: Partner, new: NewTenant, session: Session) -> None:
        limits = partner.limits
        if limits.tenants is not None:
            tenants = await self._tenants.count_of_partner(partner.id, session)
            if tenants >= limits.tenants:
                raise Conflict(f"The partner may have {limits.tenants} tenants.", code="partner_limit")
        if limits.seats is not None:
            seats = await self._tenants.seats_of_partner(partner.id, session)
            if seats + new.seats > limits.seats:
                raise Conflict(f"The partner may have {limits.seats} seats, {seats} are used.", code="partner_limit")

    async def _insert_tenant(
        self,
        new: NewTenant,
        partner: Partner,
        price: Price,
        requester: Requester,
        now: datetime,
        session: Session,
    ) -> Operation:
        tenant_id, operation_id = new_id(), new_id()
        admin = await self._ensure_person(
            new.admin_email, Membership(tenant_id=tenant_id, role=TenantRole.ADMIN), session
        )
        await self._tenants.insert(self._tenant(new, tenant_id, partner, admin, price, now), session)
        subscription = Subscription(
            id=new_id(),
            tenant_id=tenant_id,
            price_id=price.id,
            cycle=new.cycle,
            currency=new.currency,
            per_seat_amount=price.amounts[new.currency],
            seats=new.seats,
            created_at=now,
        )
        await self._subscriptions.insert(subscription, session)
        lock = tenant_lock(new.slug)
        operation = Operation(
            id=operation_id,
            kind=OperationKind.TENANT_PROVISION,
            lock_key=lock,
            open=True,
            state=OperationState.RUNNING,
            workflow_id=workflow_id(lock, operation_id),
            tenant_slug=new.slug,
            partner_slug=partner.slug,
            input={"tenantId": tenant_id},
            requested_by=RequestedBy(type=requester.actor.type.value, id=requester.actor.id),
            request_id=requester.request_id,
            created_at=now,
        )
        await self._operations.insert(operation, session)
        event = AuditEvent(
            id=new_id(),
            at=now,
            actor=requester.actor,
            action="tenant.created",
            outcome=Outcome.SUCCESS,
            resource=Resource(type="tenant", id=tenant_id),
            tenant_slug=new.slug,
            partner_slug=partner.slug,
            source="api",
            request_id=requester.request_id,
            operation_id=operation_id,
            metadata={"plan": new.plan, "cycle": new.cycle.value, "currency": new.currency.value, "seats": new.seats},
        )
        personal = [PersonalData(subject=admin.id, fields={"email": new.admin_email})]
        if requester.personal is not None:
            personal.append(requester.personal)
        await self._audit.write(event, session, personal)
        return operation

    async def _ensure_person(self, email: str, membership: Membership, session: Session) -> User:
        user = await self._users.by_email(email, session)
        if user is not None:
            await self._users.add_membership(user.id, membership, session)
            return user
        user = User(id=new_id(), email=email, name=email, memberships=[membership], created_at=utcnow())
        await self._users.insert(user, session)
        return user

    def _tenant(
        self, new: NewTenant, tenant_id: str, partner: Partner, admin: User, price: Price, now: datetime
    ) -> Tenant:
        proved = self._assume_domain_proof
        return Tenant(
            id=tenant_id,
            slug=new.slug,
            name=new.name,
            plan=new.plan,
            cycle=new.cycle,
            currency=new.currency,
            seats=new.seats,
            domains=[
                TenantDomain(
                    name=name,
                    state=DomainState.VERIFIED if proved else DomainState.UNVERIFIED,
                    claimed_at=now,
                    proof=DomainProof(method="assumed", at=now) if proved else None,
                )
                for name in new.domains
            ],
            partner_id=partner.id,
            partner_slug=partner.slug,
            admin_user_id=admin.id,
            price_id=price.id,
            status=TenantStatus.PENDING,
            billing_info=new.billing_info,
            provisioning_status=dict.fromkeys(SYSTEMS, SystemStatus.PENDING),
            created_at=now,
            updated_at=now,
        )


def _lapse_event(loser: Tenant, domain: str, requester: Requester, now: datetime) -> AuditEvent:
    return AuditEvent(
        id=new_id(),
        at=now,
        actor=Actor(type=ActorType.SYSTEM, id="api"),
        action="tenant.domain_lapsed",
        outcome=Outcome.SUCCESS,
        resource=Resource(type="tenant", id=loser.id),
        tenant_slug=loser.slug,
        partner_slug=loser.partner_slug,
        source="api",
        request_id=requester.request_id,
        metadata={"domain": domain},
    )


def require_active(partner: Partner | None) -> None:
    """Ensure that a partner may change things.

    Raises:
        NotAllowed: it is paused (`partner_paused`), or not or no longer active (`partner_not_active`).
    """
    if partner is None or partner.status is PartnerStatus.TERMINATED:
        raise NotAllowed("The partner is not active.", code="partner_not_active")
    if partner.status is PartnerStatus.PAUSED:
        raise NotAllowed("The partner is paused: its staff may read and change nothing.", code="partner_paused")
    if partner.status is not PartnerStatus.ACTIVE:
        raise NotAllowed("The partner is not active yet.", code="partner_not_active")
