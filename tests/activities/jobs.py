"""Attempts of steps in a test: the real interceptor and the real recorder around any body, without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from domain.audit import AuditEvent
from domain.catalog import GIB, Currency, Cycle, Plan, Price, Subscription
from domain.ids import activity_id, tenant_lock, workflow_id
from domain.operations import Operation, OperationKind, OperationState, RequestedBy, Step
from domain.people import Membership, TenantRole, User
from domain.provisioning import DomainRequest, RetryProfile, TenantRequest
from domain.tenants import DomainProof, DomainState, Tenant, TenantDomain, TenantStatus
from runtime.clock import new_id, utcnow
from runtime.interceptors import StepInterceptor
from runtime.wiring import Store, build_breakers, build_recorder
from store.database import Session

START_TO_CLOSE = timedelta(seconds=30)
RETRY = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30))


class _Body(ActivityInboundInterceptor):
    def __init__(self, body: Callable[[], Awaitable[Any]]) -> None:
        self._body = body

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        return await self._body()


class Job:
    """A tenant with an open provisioning operation, and attempts of its steps."""

    def __init__(self, store: Store, tenant: Tenant, operation: Operation) -> None:
        self._store = store
        self._interceptor = StepInterceptor(build_recorder(store), build_breakers(store, RetryProfile.FAST))
        self._attempts: dict[str, int] = {}
        self._scheduled_at = utcnow()
        self.slug = tenant.slug
        self.tenant_id = tenant.id
        self.admin_id = tenant.admin_user_id
        self.price_id = tenant.price_id
        self.operation_id = operation.id
        self.workflow_id = operation.workflow_id
        self.request = TenantRequest(operation_id=operation.id, tenant_slug=tenant.slug)
        self.domain = tenant.domains[0].name
        self.domain_request = DomainRequest(
            operation_id=operation.id, tenant_slug=tenant.slug, domain=tenant.domains[0].name
        )

    async def attempt(
        self,
        step: str,
        body: Callable[[], Awaitable[Any]],
        *,
        number: int | None = None,
        environment: ActivityEnvironment | None = None,
        **info: Any,
    ) -> Any:
        """Run the next attempt of a step, or the one of that number, as a worker would."""
        self._attempts[step] = number or self._attempts.get(step, 0) + 1
        environment = environment or ActivityEnvironment()
        described = {
            "activity_id": activity_id(step, 1),
            "workflow_id": self.workflow_id,
            "attempt": self._attempts[step],
            "scheduled_time": self._scheduled_at,
            "current_attempt_scheduled_time": self._scheduled_at + timedelta(seconds=self._attempts[step]),
            "start_to_close_timeout": START_TO_CLOSE,
            "schedule_to_close_timeout": timedelta(days=1),
            "retry_policy": RETRY,
            **info,
        }
        environment.info = dataclasses.replace(environment.info, **described)
        wrapped = self._interceptor.intercept_activity(_Body(body))
        call = ExecuteActivityInput(fn=body, args=(), executor=None, headers={})
        return await environment.run(wrapped.execute_activity, call)

    async def tenant(self) -> Tenant:
        """Return the tenant as it is stored."""
        tenant = await self._store.tenants.get(self.slug)
        assert tenant is not None
        return tenant

    async def admin(self) -> User:
        """Return the first admin as stored."""
        user = await self._store.users.get(self.admin_id)
        assert user is not None
        return user

    async def operation(self) -> Operation:
        """Return the operation as it is stored."""
        operation = await self._store.operations.get(self.operation_id)
        assert operation is not None
        return operation

    async def step(self, name: str) -> Step:
        """Return a step as it is recorded."""
        return (await self.operation()).step(name)

    async def events(self) -> list[tuple[str, str]]:
        """Return action and outcome of the operation's audit events, oldest first."""
        return [(event.action, event.outcome.value) for event in await self.step_events()]

    async def step_events(self) -> list[AuditEvent]:
        """Return the operation's audit events, oldest first."""
        return await self._store.audit.find({"operationId": self.operation_id})

    async def close(self, state: OperationState = OperationState.TERMINATED) -> None:
        """End the operation, as the sweep would."""

        async def body(session: Session) -> None:
            await build_recorder(self._store).close(await self.operation(), state, session)

        await self._store.database.run_transaction(body)


async def open_job(
    store: Store, *, admin_domain: str | None = None, tenant_age: timedelta = timedelta(), admin: User | None = None
) -> Job:
    """Commit a pending tenant, sold under a catalog row of its own, with its open operation.

    Its first admin is a new person, or one who is there already.

    Nothing in it has a name that another test uses: the stand-ins keep what they are told for the whole run.
    """
    name = new_id()[-12:].lower()
    slug, now = f"t{name}", utcnow()
    plan = Plan(key=f"plan-{name}", name="Test", storage_bytes_per_seat=GIB, mail_quota_bytes=GIB)
    price = Price(id=f"row-{name}", plan=plan.key, cycle=Cycle.MONTHLY, amounts={Currency.EUR: 650})
    await store.catalog.seed([plan], [price])
    domain = f"{slug}.example"
    operation_id, tenant_id = new_id(), new_id()
    membership = Membership(tenant_id=tenant_id, role=TenantRole.ADMIN)
    person = admin or User(id=new_id(), email=f"anna@{admin_domain or domain}", name="Anna Example", created_at=now)
    tenant = Tenant(
        id=tenant_id,
        slug=slug,
        name="Acme & Sons ApS.",
        plan=plan.key,
        cycle=Cycle.MONTHLY,
        currency=Currency.EUR,
        seats=3,
        domains=[
            TenantDomain(
                name=domain,
                state=DomainState.VERIFIED,
                claimed_at=now,
                proof=DomainProof(method="assumed", at=now),
            )
        ],
        admin_user_id=person.id,
        price_id=price.id,
        status=TenantStatus.PENDING,
        created_at=now - tenant_age,
        updated_at=now,
    )
    subscription = Subscription(
        id=new_id(),
        tenant_id=tenant_id,
        price_id=price.id,
        cycle=Cycle.MONTHLY,
        currency=Currency.EUR,
        per_seat_amount=650,
        seats=3,
        created_at=now,
    )
    lock = tenant_lock(slug)
    operation = Operation(
        id=operation_id,
        kind=OperationKind.TENANT_PROVISION,
        input={"tenantId": tenant_id},
        lock_key=lock,
        open=True,
        state=OperationState.RUNNING,
        workflow_id=workflow_id(lock, operation_id),
        tenant_slug=slug,
        requested_by=RequestedBy(type="operator", id=new_id()),
        created_at=now,
    )

    async def body(session: Session) -> None:
        if admin is None:
            await store.users.insert(person, session)
        await store.users.add_membership(person.id, membership, session)
        await store.tenants.insert(tenant, session)
        await store.subscriptions.insert(subscription, session)
        await store.operations.insert(operation, session)

    await store.database.run_transaction(body)
    return Job(store, tenant, operation)
