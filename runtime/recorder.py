"""Keeps the record of operations and their steps, and what must be written together with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from domain.audit import event_of_step
from domain.errors import VendorError
from domain.operations import Failure, Fence, Operation, OperationKind, OperationState, Step, StepState, system_of
from domain.tenants import SYSTEMS, system_state
from runtime.clock import utcnow
from runtime.failures import describe
from store.audit import AuditRepository
from store.database import Session
from store.operations import OperationRepository
from store.tenants import TenantRepository


class Recorder:
    """Writes what happens to steps and operations: on the operation, on the tenant, and in the audit log."""

    def __init__(self, operations: OperationRepository, tenants: TenantRepository, audit: AuditRepository) -> None:
        self.operations = operations
        self._tenants = tenants
        self._audit = audit

    async def done(self, operation_id: str, name: str, fence: Fence) -> None:
        """Record that an attempt did what its step is for."""
        now = utcnow()

        def change(step: Step) -> Step:
            return _ended(step, now).model_copy(
                update={"state": StepState.DONE, "last_error": None, "next_retry_at": None, "replayed_error": False}
            )

        await self._end(operation_id, name, fence, change)

    async def failed(
        self, operation_id: str, name: str, fence: Fence, error: BaseException, retry_at: datetime | None
    ) -> None:
        """Record that an attempt failed, for good if `retry_at` is None."""
        now = utcnow()
        failure = describe(error)

        def change(step: Step) -> Step:
            ended = _ended(step, now)
            unsettled = ended.unsettled_until
            if isinstance(error, VendorError) and error.outcome_unknown and step.attempt is not None:
                # The request may still lie somewhere on its way and be carried out until the attempt's deadline.
                unsettled = max(filter(None, (unsettled, step.attempt.deadline)))
            return ended.model_copy(
                update={
                    "state": StepState.FAILED if retry_at is None else StepState.RETRYING,
                    "last_error": failure,
                    "next_retry_at": retry_at,
                    "unsettled_until": unsettled,
                    "replayed_error": isinstance(error, VendorError) and error.replayed,
                }
            )

        await self._end(operation_id, name, fence, change)

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
        if closed.kind is OperationKind.TENANT_PROVISION and closed.tenant_slug is not None and failure is not None:
            for system in sorted({system_of(step.name) for step in closed.steps.values()} & set(SYSTEMS)):
                await self._summarise(closed, closed.tenant_slug, system, session)
            await self._tenants.give_up_systems(closed.tenant_slug, failure.code, session)
        return True

    async def _summarise(self, operation: Operation, slug: str, system: str, session: Session) -> None:
        status, failure = system_state(operation.steps.values(), system)
        await self._tenants.set_system(slug, system, status, failure, session)

    async def _end(self, operation_id: str, name: str, fence: Fence, change: Callable[[Step], Step]) -> None:
        await self.operations.end_attempt(operation_id, name, fence, change, self._also)

    async def _also(self, operation: Operation, step: Step, session: Session) -> None:
        """Keep the tenant's summary and the audit event with the end of the attempt, in its transaction."""
        if operation.kind is OperationKind.TENANT_PROVISION and operation.tenant_slug is not None:
            system = system_of(step.name)
            if system in SYSTEMS:
                await self._summarise(operation, operation.tenant_slug, system, session)
        # An attempt that failed speaks for itself only: a newer one may still succeed. Its event comes with the close.
        if step.acting is not None and step.state is StepState.DONE:
            await self._audit.write(event_of_step(operation, step, utcnow()), session)


def _ended(step: Step, now: datetime) -> Step:
    attempt = step.attempt.model_copy(update={"ended_at": now}) if step.attempt is not None else None
    return step.model_copy(update={"attempt": attempt})
