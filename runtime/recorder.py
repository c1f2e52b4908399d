"""Keeps the record of operations and their steps, and what must be written together with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from domain.audit import Actor, ActorType, AuditEvent, Outcome, Resource, event_of_replaced, event_of_step
from domain.errors import VendorError
from domain.operations import (
    Acting,
    Failure,
    Fence,
    Operation,
    OperationKind,
    OperationState,
    Step,
    StepState,
    system_of,
)
from domain.provisioning import StepRecord
from domain.tenants import SYSTEMS, TenantStatus, system_state
from runtime.clock import utcnow
from runtime.failures import describe
from runtime.logging import get_logger
from store.audit import AuditRepository
from store.database import Session
from store.operations import OperationRepository
from store.tenants import TenantRepository

log = get_logger(__name__)

# What such a step changed outside, or tried to, has its event already.
TOLD = frozenset({StepState.DONE, StepState.SKIPPED, StepState.COMPENSATING, StepState.COMPENSATED})


class Recorder:
    """Writes what happens to steps and operations: on the operation, on the tenant, and in the audit log."""

    def __init__(self, operations: OperationRepository, tenants: TenantRepository, audit: AuditRepository) -> None:
        self.operations = operations
        self._tenants = tenants
        self._audit = audit

    async def acting(self, operation_id: str, step: Step, acting: Acting, *, done: bool) -> None:
        """Record what the running attempt of a step is about to change outside.

        What the step was about to change before, in this attempt or in one whose end nobody knows, keeps an event of
        its own if it was something else.

        Args:
            step: as the attempt knows it.
            done: whether what it was about to change before was changed.

        Raises:
            OperationClosed: the operation has ended.
            AttemptOutdated: a newer attempt has begun.
        """
        if step.attempt is None:
            raise ValueError("a running step has an attempt")
        fence = step.attempt.fence
        if step.acting in (None, acting):
            await self.operations.mark_acting(operation_id, step.name, fence, acting)
            return

        async def also(operation: Operation, before: Step, session: Session) -> None:
            await self._audit.write(event_of_replaced(operation, before, utcnow(), done=done), session)

        await self.operations.turn_to(operation_id, step.name, fence, acting, also)

    async def done(self, operation_id: str, name: str, fence: Fence) -> None:
        """Record that an attempt did what its step is for."""
        now = utcnow()

        def change(step: Step) -> Step:
            return step.model_copy(
                update={"state": StepState.DONE, "last_error": None, "next_retry_at": None, "replayed_error": False}
            )

        await self._end(operation_id, name, fence, now, change)

    async def failed(
        self, operation_id: str, name: str, fence: Fence, error: BaseException, retry_at: datetime | None
    ) -> None:
        """Record that an attempt failed, for good if `retry_at` is None."""
        now = utcnow()
        failure = describe(error)

        def change(step: Step) -> Step:
            unsettled = step.unsettled_until
            if isinstance(error, VendorError) and error.outcome_unknown and step.attempt is not None:
                # The request may still lie somewhere on its way and be carried out until the attempt's deadline.
                unsettled = max(filter(None, (unsettled, step.attempt.deadline)))
            return step.model_copy(
                update={
                    "state": StepState.FAILED if retry_at is None else StepState.RETRYING,
                    "last_error": failure,
                    "next_retry_at": retry_at,
                    "unsettled_until": unsettled,
                    "replayed_error": isinstance(error, VendorError) and error.replayed,
                }
            )

        await self._end(operation_id, name, fence, now, change)

    async def set_steps(self, record: StepRecord, at: datetime) -> None:
        """Record the state that a workflow gives to steps; a step that parks alerts people.

        Args:
            at: when the workflow asked for it, by Temporal's clock.

        Raises:
            OperationClosed: the operation has ended.
        """
        now = utcnow()

        def change(operation: Operation) -> dict[str, Step]:
            return {name: _given(operation.step(name), record) for name in record.steps}

        async def also(before: Operation, after: Operation, session: Session) -> None:
            for name in record.steps:
                if after.step(name).given_at == before.step(name).given_at:
                    continue  # a late attempt: it has its events
                if record.state is StepState.PARKED:
                    await self._audit.write(_parked_event(after, name, record, now), session)
                if record.state is StepState.SKIPPED:
                    await self._write_tried(before, before.step(name), now, session)
            await self._summarise_all(after, {system_of(name) for name in record.steps}, session)

        operation = await self.operations.set_steps(record.operation_id, at, change, also)
        if record.state is StepState.PARKED and record.failure is not None:
            log.error(
                "operation_needs_operator",
                operation_id=operation.id,
                workflow_id=operation.workflow_id,
                steps=record.steps,
                code=record.failure.code,
            )

    async def begin_undoing(
        self, operation_id: str, at: datetime, change: Callable[[Operation], dict[str, Step]]
    ) -> Operation:
        """Record that an operation is being canceled and what that makes of its steps; return what now is.

        Nothing changes if its outcome stands; then `undoing_since` is None.

        Args:
            at: when the workflow asked for it, by Temporal's clock.

        Raises:
            OperationClosed: the operation has ended.
        """
        now = utcnow()

        async def also(before: Operation, after: Operation, session: Session) -> None:
            if before.cancel_requested_at is None:
                await self._audit.write(_canceled_outside_event(after, now), session)
            for step in before.steps.values():
                if after.step(step.name).state is not step.state:
                    await self._write_tried(before, step, now, session)
            await self._summarise_all(after, {system_of(step.name) for step in after.steps.values()}, session)

        return await self.operations.set_steps(operation_id, at, change, also, undoing=True)

    async def close(
        self,
        operation: Operation,
        state: OperationState,
        session: Session,
        *,
        failure: Failure | None = None,
        result: dict[str, str] | None = None,
    ) -> bool:
        """Release the lock of an operation, and keep how it ended: there, on the tenant, and in the audit log.

        To be called when no attempt may write any more.

        Returns:
            False if the operation had ended before; then nothing changes.
        """
        now = utcnow()
        if not operation.open:
            return False
        closed = await self.operations.close(operation, state, now, session, failure=failure, result=result)
        for step in closed.steps.values():
            if step.acting is not None and step.state is StepState.FAILED:
                await self._audit.write(event_of_step(closed, step, now), session)
        if closed.tenant_slug is not None and failure is not None and not await self._is_abandoned(closed, session):
            await self._summarise_all(closed, {system_of(step.name) for step in closed.steps.values()}, session)
            await self._tenants.give_up_systems(closed.tenant_slug, failure.code, session)
        return True

    async def _is_abandoned(self, operation: Operation, session: Session) -> bool:
        tenant = await self._tenants.get(operation.tenant_slug or "", session)
        return tenant is not None and tenant.status is TenantStatus.ABANDONED

    async def _summarise_all(self, operation: Operation, systems: set[str], session: Session) -> None:
        """Keep on the tenant how far it is in these systems."""
        if operation.kind is not OperationKind.TENANT_PROVISION or operation.tenant_slug is None:
            return
        for system in sorted(systems & set(SYSTEMS)):
            status, failure = system_state(operation.steps.values(), system)
            await self._tenants.set_system(operation.tenant_slug, system, status, failure, session)

    async def _write_tried(self, operation: Operation, step: Step, now: datetime, session: Session) -> None:
        """Write the event of a step that may have changed something and is not tried any more."""
        if step.acting is not None and step.state not in TOLD:
            await self._audit.write(event_of_step(operation, step, now), session)

    async def _end(
        self, operation_id: str, name: str, fence: Fence, now: datetime, change: Callable[[Step], Step]
    ) -> None:
        def ended(step: Step) -> Step:
            attempt = step.attempt.model_copy(update={"ended_at": now}) if step.attempt is not None else None
            after = change(step)
            if step.state is not StepState.RUNNING:
                # The workflow has given it another state meanwhile: all that counts is what may still be on its way.
                after = step.model_copy(update={"unsettled_until": after.unsettled_until})
            return after.model_copy(update={"attempt": attempt})

        await self.operations.end_attempt(operation_id, name, fence, ended, self._also)

    async def _also(self, operation: Operation, step: Step, session: Session) -> None:
        """Keep the tenant's summary and the audit event with the end of the attempt, in its transaction."""
        await self._summarise_all(operation, {system_of(step.name)}, session)
        # An attempt that failed speaks for itself only: a newer one may still succeed. Its event comes with the close.
        if step.acting is not None and step.state is StepState.DONE:
            await self._audit.write(event_of_step(operation, step, utcnow()), session)


def _given(step: Step, record: StepRecord) -> Step:
    error = record.failure.model_copy(update={"step": None}) if record.failure is not None else step.last_error
    return step.model_copy(update={"state": record.state, "last_error": error, "next_retry_at": None})


def _canceled_outside_event(operation: Operation, now: datetime) -> AuditEvent:
    return AuditEvent(
        id=f"{operation.id}:undoing:operation.cancel_requested",
        at=now,
        actor=Actor(type=ActorType.EXTERNAL, id="temporal"),
        action="operation.cancel_requested",
        outcome=Outcome.SUCCESS,
        resource=Resource(type="operation", id=operation.id),
        tenant_slug=operation.tenant_slug,
        partner_slug=operation.partner_slug,
        source="temporal",
        operation_id=operation.id,
    )


def _parked_event(operation: Operation, step: str, record: StepRecord, now: datetime) -> AuditEvent:
    return AuditEvent(
        id=f"{operation.id}:{step}:operation.parked:{record.generation}",
        at=now,
        actor=Actor(type=ActorType.SYSTEM, id="worker"),
        on_behalf_of=Actor(type=ActorType(operation.requested_by.type), id=operation.requested_by.id),
        action="operation.parked",
        outcome=Outcome.FAILURE,
        resource=Resource(type="operation", id=operation.id),
        tenant_slug=operation.tenant_slug,
        partner_slug=operation.partner_slug,
        source="platform",
        request_id=operation.request_id,
        operation_id=operation.id,
        metadata={"step": step, "code": record.failure.code if record.failure is not None else None},
    )
