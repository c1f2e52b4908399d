"""Activities that write only our own database."""

from __future__ import annotations

from datetime import datetime

from temporalio import activity

from activities.tenants import load_admin, load_tenant
from domain.audit import Actor, ActorType, AuditEvent, Outcome, Resource
from domain.errors import NotFound
from domain.flags import FlagSubject, evaluate
from domain.model import to_timestamp
from domain.operations import Failure, Operation, Step, StepState, is_undo, object_of, undo_of
from domain.provisioning import (
    UNDOABLE,
    CloseRequest,
    OutcomeRequest,
    ProvisionPlan,
    Settlement,
    StepRecord,
    TenantRequest,
    UndoPlan,
)
from domain.tenants import SYSTEMS, SystemStatus, TenantStatus
from runtime.clock import utcnow
from runtime.recorder import Recorder
from store.audit import AuditRepository
from store.catalog import FlagRepository, SubscriptionRepository
from store.database import Database, Session
from store.people import UserRepository
from store.tenants import TenantRepository

BILLING_FLAG = "new_billing_engine"


# Steps of a canceled run that nothing is undone of, and on which nobody works any more.
ABANDONED_STEPS = frozenset({StepState.RUNNING, StepState.RETRYING, StepState.PARKED})


class PlatformActivities:
    """Plans a run, keeps what its workflow decides about it, records how it ended, releases its lock."""

    def __init__(
        self,
        database: Database,
        *,
        recorder: Recorder,
        tenants: TenantRepository,
        users: UserRepository,
        flags: FlagRepository,
        subscriptions: SubscriptionRepository,
        audit: AuditRepository,
        environment: str,
        billing_enabled: bool,
    ) -> None:
        self._database = database
        self._recorder = recorder
        self._operations = recorder.operations
        self._tenants = tenants
        self._users = users
        self._flags = flags
        self._subscriptions = subscriptions
        self._audit = audit
        self._environment = environment
        self._billing_enabled = billing_enabled

    @activity.defn(name="plan_provision")
    async def plan_provision(self, request: TenantRequest) -> ProvisionPlan:
        """Decide what a provisioning run will do, and show its steps as pending.

        Idempotency: steps that are recorded already are kept.
        """
        tenant = await load_tenant(self._tenants, request)
        admin = await load_admin(self._users, tenant)
        domains = [each.name for each in tenant.proved_domains]
        admin_domain = admin.email.rpartition("@")[2]
        subject = FlagSubject(
            tenant_id=tenant.id,
            tenant_slug=tenant.slug,
            plan=tenant.plan,
            partner_slug=tenant.partner_slug,
            environment=self._environment,
        )
        flag = await self._flags.get(BILLING_FLAG)
        plan = ProvisionPlan(
            domains=domains,
            mailbox_domain=admin_domain if admin_domain in domains else None,
            billing_enabled=self._billing_enabled and flag is not None and evaluate(flag, subject),
        )

        async def body(session: Session) -> ProvisionPlan:
            operation = await self._operation(request.operation_id, session)
            await self._operations.plan_steps(request.operation_id, plan.steps, session)
            # After a reset, and for a late attempt, the tenant says already how far it is.
            for system in SYSTEMS if not operation.steps else ():
                dark = system == "stripe" and not plan.billing_enabled
                status = SystemStatus.DISABLED if dark else SystemStatus.PENDING
                await self._tenants.set_system(tenant.slug, system, status, None, session)
            return plan.model_copy(update={"canceled": operation.cancel_requested_at is not None})

        return await self._database.run_transaction(body)

    @activity.defn(name="record_step")
    async def record_step(self, request: StepRecord) -> None:
        """Give steps the state that their workflow gives them: parked, wanted again, skipped, undone.

        Ensures that a step that parks alerts people once, and that decisions about these steps count as obeyed.

        Idempotency: the same state again changes nothing, and the alert has one id for each try of the step.

        Raises:
            OperationClosed: the operation has ended.
        """
        await self._recorder.set_steps(request, _asked_at())

    @activity.defn(name="plan_undoing")
    async def plan_undoing(self, request: TenantRequest) -> UndoPlan:
        """Record that a run is being canceled, and say what it has to undo and for how long it must wait before.

        Whatever was tried may have been made, so it is undone; steps that are not are shown as failed. If the outcome
        stands, because the tenant is in use, nothing is recorded and nothing is to be undone.

        Idempotency: what is undone already is not planned again.
        """
        tenant = await load_tenant(self._tenants, request)
        if tenant.status not in (TenantStatus.PENDING, TenantStatus.ABANDONED):
            return UndoPlan(outcome_stands=True)

        def change(operation: Operation) -> dict[str, Step]:
            changed: dict[str, Step] = {}
            for step in operation.steps.values():
                if _to_undo(step):
                    changed[step.name] = step.model_copy(
                        update={"state": StepState.COMPENSATING, "next_retry_at": None}
                    )
                    undo = undo_of(step.name)
                    changed[undo] = operation.step(undo)
                elif step.state in ABANDONED_STEPS and not is_undo(step.name):
                    error = step.last_error or Failure(code="canceled", message="The job was canceled.")
                    changed[step.name] = step.model_copy(
                        update={"state": StepState.FAILED, "next_retry_at": None, "last_error": error}
                    )
            return changed

        operation = await self._recorder.begin_undoing(request.operation_id, _asked_at(), change)
        return UndoPlan(
            outcome_stands=operation.undoing_since is None,
            unsettled_seconds=operation.unsettled_for(utcnow()),
            steps=[step.name for step in operation.steps.values() if step.state is StepState.COMPENSATING],
        )

    @activity.defn(name="record_tenant_outcome")
    async def record_tenant_outcome(self, request: OutcomeRequest) -> Settlement:
        """Turn the tenant active if every branch is ok, keep the event of how it went, and say what must settle.

        From then on the job cannot be canceled; one that was canceled before is told so, and nothing is recorded.

        Idempotency: the tenant is activated once and the event has one id. An operation that has ended changes nothing.
        """

        async def body(session: Session) -> Settlement:
            operation = await self._operation(request.operation_id, session)
            now = utcnow()
            if operation.open:
                tenant = await self._tenants.get(request.tenant_slug, session)
                pending = tenant is not None and tenant.status is TenantStatus.PENDING
                if pending and operation.cancel_requested_at is not None:
                    return Settlement(canceled=True)
                await self._operations.settle(operation, now, session)
                if request.failure is None:
                    await self._tenants.activate(request.tenant_slug, now, session)
                await self._audit.write(_outcome_event(operation, request, now), session)
                if operation.unsettled_until is not None and operation.unsettled_for(now):
                    until = operation.unsettled_until.strftime("%H:%M:%S UTC")
                    message = f"The lock is kept until {until}: until then a lost attempt may still write."
                    await self._operations.say(operation.id, message, session)
            return Settlement(
                unsettled_seconds=operation.unsettled_for(now),
                repeated=[step.name for step in operation.steps.values() if step.attempts > 1],
            )

        return await self._database.run_transaction(body)

    @activity.defn(name="record_tenant_abandoned")
    async def record_tenant_abandoned(self, request: OutcomeRequest) -> None:
        """Give a tenant up whose provisioning was canceled: its domains are free, its slug never is again.

        Its people lose their place in it, and its subscription here is canceled.

        Idempotency: the tenant is abandoned once and the event has one id. An operation that has ended changes nothing.
        """

        async def body(session: Session) -> None:
            operation = await self._operation(request.operation_id, session)
            if not operation.open:
                return
            now = utcnow()
            tenant_id = operation.input["tenantId"]
            if not await self._tenants.abandon(request.tenant_slug, now, session):
                return
            await self._users.remove_memberships(tenant_id, session)
            await self._subscriptions.cancel(tenant_id, session)
            await self._audit.write(_abandoned_event(operation, request, now), session)

        await self._database.run_transaction(body)

    @activity.defn(name="close_operation")
    async def close_operation(self, request: CloseRequest) -> float:
        """Release the lock, unless an attempt may still write outside.

        Returns:
            For how many seconds the lock must still be kept; 0 once it is released.

        Idempotency: an operation that is closed stays as it ended.
        """

        async def body(session: Session) -> float:
            operation = await self._operation(request.operation_id, session)
            seconds = operation.unsettled_for(utcnow())
            if operation.open and seconds:
                return seconds
            await self._recorder.close(
                operation, request.state, session, failure=request.failure, result=request.result
            )
            return 0.0

        return await self._database.run_transaction(body)

    async def _operation(self, operation_id: str, session: Session) -> Operation:
        operation = await self._operations.get(operation_id, session)
        if operation is None:
            raise NotFound(f"There is no operation {operation_id}.")
        return operation


def _asked_at() -> datetime:
    """Return when the workflow asked for the running activity, by Temporal's clock; the same for all its attempts."""
    return to_timestamp(activity.info().scheduled_time)


def _to_undo(step: Step) -> bool:
    return object_of(step.name) in UNDOABLE and step.attempts > 0 and step.state is not StepState.COMPENSATED


def _outcome_event(operation: Operation, request: OutcomeRequest, now: datetime) -> AuditEvent:
    return _tenant_event(
        operation, request, now, "tenant.activated" if request.failure is None else "tenant.provision_failed"
    )


def _abandoned_event(operation: Operation, request: OutcomeRequest, now: datetime) -> AuditEvent:
    return _tenant_event(operation, request, now, "tenant.abandoned")


def _tenant_event(operation: Operation, request: OutcomeRequest, now: datetime, action: str) -> AuditEvent:
    failed = request.failure is not None
    return AuditEvent(
        id=f"{operation.id}:outcome:{action}",
        at=now,
        actor=Actor(type=ActorType.SYSTEM, id="worker"),
        on_behalf_of=Actor(type=ActorType(operation.requested_by.type), id=operation.requested_by.id),
        action=action,
        outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
        resource=Resource(type="tenant", id=operation.input["tenantId"]),
        tenant_slug=operation.tenant_slug,
        partner_slug=operation.partner_slug,
        source="platform",
        request_id=operation.request_id,
        operation_id=operation.id,
        metadata={"code": request.failure.code, "step": request.failure.step} if request.failure else {},
    )
