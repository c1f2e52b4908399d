"""Starts the workflow of every intent, and tells the truth about executions that ended behind our back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from domain.audit import Actor, ActorType, AuditEvent, Outcome, Resource
from domain.operations import Failure, Operation, OperationKind, OperationState
from domain.provisioning import OperationRequest, RetryProfile
from runtime.clock import utcnow
from runtime.logging import get_logger
from runtime.recorder import Recorder
from runtime.search_attributes import search_attributes_of
from store.audit import AuditRepository
from store.database import Database, Session
from workflows.options import PLATFORM_QUEUE
from workflows.provision_tenant import ProvisionTenant

log = get_logger(__name__)

WORKFLOWS = {OperationKind.TENANT_PROVISION: ProvisionTenant}

START_TIMEOUT = timedelta(seconds=5)
# The API starts its own intents at once; what is older than this was left behind.
LEFT_BEHIND_AFTER = timedelta(seconds=2)
DISPATCH_EVERY = timedelta(seconds=1)
SWEEP_EVERY = timedelta(seconds=60)
BATCH = 200

# Answers about one execution; others are about Temporal itself and end the round.
NOT_TOLD = frozenset(
    {
        RPCStatusCode.INVALID_ARGUMENT,
        RPCStatusCode.FAILED_PRECONDITION,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.UNKNOWN,
    }
)

ENDED_OUTSIDE = {
    WorkflowExecutionStatus.TERMINATED: (OperationState.TERMINATED, "The execution was terminated in Temporal."),
    # Cancelled from outside: nothing was undone, so it is not an operation that was canceled.
    WorkflowExecutionStatus.CANCELED: (OperationState.TERMINATED, "The execution was cancelled in Temporal."),
    WorkflowExecutionStatus.TIMED_OUT: (OperationState.TIMED_OUT, "The execution timed out in Temporal."),
    WorkflowExecutionStatus.FAILED: (OperationState.FAILED, "The execution failed in Temporal."),
    WorkflowExecutionStatus.COMPLETED: (OperationState.FAILED, "The execution ended without closing the operation."),
}


class Dispatcher:
    """Starts intents and sweeps after executions that ended without closing their operation."""

    def __init__(
        self,
        client: Client,
        database: Database,
        recorder: Recorder,
        audit: AuditRepository,
        profile: RetryProfile,
    ) -> None:
        self._client = client
        self._database = database
        self._recorder = recorder
        self._operations = recorder.operations
        self._audit = audit
        self._profile = profile

    async def start(self, operation: Operation) -> None:
        """Start the workflow of an intent and record that Temporal acknowledged it.

        Idempotency: the workflow id belongs to the operation and is never reused, so however often and from wherever
        this is called, the job runs once; "already started" is success.

        Raises:
            RPCError: Temporal did not take it; the dispatcher of some worker will try again.
        """
        request = OperationRequest(
            operation_id=operation.id, tenant_slug=operation.tenant_slug or "", profile=self._profile
        )
        try:
            await self._client.start_workflow(
                WORKFLOWS[operation.kind].run,
                request,
                id=operation.workflow_id,
                task_queue=PLATFORM_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                search_attributes=search_attributes_of(operation),
                static_summary=f"{operation.kind.value} {operation.tenant_slug or operation.lock_key}",
                rpc_timeout=START_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            log.info("operation_already_started", operation_id=operation.id)
        await self._operations.mark_started(operation.id, utcnow())

    async def dispatch(self) -> None:
        """Start every intent that was left without an execution."""
        for operation in await self._operations.unstarted(utcnow() - LEFT_BEHIND_AFTER, BATCH):
            log.info("intent_dispatched", operation_id=operation.id, workflow_id=operation.workflow_id)
            try:
                await self.start(operation)
            except RPCError as error:
                # One that Temporal refuses must not hold up those behind it.
                log.warning("start_failed", operation_id=operation.id, error=error.status.name)

    async def sweep(self) -> None:
        """Close every open operation whose execution ended otherwise than by closing it."""
        started_before = utcnow() - LEFT_BEHIND_AFTER
        after: str | None = None
        while batch := await self._operations.started(started_before, after, BATCH):
            for operation in batch:
                try:
                    ended = await self._ended_outside(operation)
                except RPCError as error:
                    if error.status not in NOT_TOLD:
                        raise
                    # One that Temporal cannot tell about must not hide those behind it.
                    log.warning("sweep_skipped", operation_id=operation.id, error=error.status.name)
                    continue
                if ended is not None:
                    await self._close(operation.id, *ended)
            after = batch[-1].id

    async def _ended_outside(self, operation: Operation) -> tuple[OperationState, str] | None:
        try:
            # Without a run id: after a reset the newest run counts.
            description = await self._client.get_workflow_handle(operation.workflow_id).describe(
                rpc_timeout=START_TIMEOUT
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND and not _lacks_namespace(error):
                return OperationState.FAILED, "The execution can no longer be found in Temporal."
            raise
        return ENDED_OUTSIDE.get(description.status) if description.status is not None else None

    async def _close(self, operation_id: str, state: OperationState, message: str) -> None:
        async def body(session: Session) -> None:
            operation = await self._operations.get(operation_id, session)
            now = utcnow()
            if operation is None or operation.unsettled_for(now):
                return  # while an attempt may still write, the lock stays: the next sweep looks again
            failure = Failure(code="ended_outside", message=message)
            if not await self._recorder.close(operation, state, session, failure=failure):
                return
            event = AuditEvent(
                id=f"{operation.id}:sweep:operation.ended_outside",
                at=now,
                actor=Actor(type=ActorType.EXTERNAL, id="temporal"),
                action="operation.ended_outside",
                outcome=Outcome.FAILURE,
                resource=Resource(type="operation", id=operation.id),
                tenant_slug=operation.tenant_slug,
                partner_slug=operation.partner_slug,
                source="temporal",
                operation_id=operation.id,
                metadata={"state": state.value},
            )
            await self._audit.write(event, session)
            log.warning("operation_ended_outside", operation_id=operation.id, state=state.value)

        await self._database.run_transaction(body)

    async def run(self) -> None:
        """Dispatch and sweep until cancelled; an error is logged and the next round tries again."""
        await asyncio.gather(
            _every(DISPATCH_EVERY, self.dispatch, "dispatch_failed"),
            _every(SWEEP_EVERY, self.sweep, "sweep_failed"),
        )


def _lacks_namespace(error: RPCError) -> bool:
    """Tell whether it is the whole namespace that cannot be found: a wrong setting, which says nothing of a job."""
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)


async def _every(interval: timedelta, job: Callable[[], Awaitable[None]], failed: str) -> None:
    while True:
        try:
            await job()
        except Exception as error:  # noqa: BLE001 - whatever is away now may be back in the next round
            log.warning(failed, error=f"{type(error).__name__}: {error}"[:300])
        await asyncio.sleep(interval.total_seconds())
