"""Starts the workflow of every intent, and tells the truth about executions that ended behind our back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from domain.audit import Actor, ActorType, AuditEvent, Outcome, Resource
from domain.operations import Decision, Failure, Operation, OperationKind, OperationState
from domain.provisioning import DecisionRequest, OperationRequest, RetryProfile
from runtime.clock import utcnow
from runtime.logging import get_logger
from runtime.metrics import Metrics
from runtime.recorder import Recorder
from runtime.search_attributes import search_attributes_of
from store.audit import AuditRepository
from store.database import Database, Session
from workflows.job import NOT_CANCELABLE, STEP_NOT_PARKED
from workflows.options import PLATFORM_QUEUE
from workflows.provision_tenant import ProvisionTenant

log = get_logger(__name__)

WORKFLOWS = {OperationKind.TENANT_PROVISION: ProvisionTenant}

START_TIMEOUT = timedelta(seconds=5)
# An update needs a worker that is awake; one that sleeps on a long history may take a moment.
UPDATE_TIMEOUT = timedelta(seconds=5)
# The API starts its own intents at once; what is older than this was left behind.
LEFT_BEHIND_AFTER = timedelta(seconds=2)
DISPATCH_EVERY = timedelta(seconds=1)
SWEEP_EVERY = {RetryProfile.PRODUCTION: timedelta(seconds=60), RetryProfile.FAST: timedelta(seconds=5)}
COUNT_EVERY = timedelta(seconds=5)
BATCH = 200
# So many are sent at a time: one execution that does not answer must not hold up the others.
DELIVERIES = 20

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

    async def deliver(self, operation: Operation) -> None:
        """Send the decisions about an operation to its workflow.

        Idempotency: a decision's id is the update's, so however often it is sent the workflow hears it once. It stays
        on the operation until the workflow has recorded what came of it; one that the workflow refuses is withdrawn.

        Raises:
            RPCError: Temporal cannot be reached.
        """
        for decision in operation.decisions:
            await self._send(operation, decision)

    async def _send(self, operation: Operation, decision: Decision) -> None:
        try:
            await self._client.get_workflow_handle(operation.workflow_id).execute_update(
                decision.action.value,
                DecisionRequest(steps=decision.steps),
                id=decision.id,
                rpc_timeout=UPDATE_TIMEOUT,
            )
        except WorkflowUpdateFailedError as error:
            code = error.cause.type if isinstance(error.cause, ApplicationError) else None
            log.warning("decision_refused", operation_id=operation.id, action=decision.action.value, code=code)
            # Any other refusal is an older worker's, which does not know the update.
            if code in (STEP_NOT_PARKED, NOT_CANCELABLE):
                await self._operations.withdraw(operation.id, decision)
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            log.warning("decision_not_answered", operation_id=operation.id, action=decision.action.value)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # Not started yet, or ended: the sweep closes what ended behind our back.
            log.info("decision_without_execution", operation_id=operation.id, action=decision.action.value)

    async def deliver_left_behind(self) -> None:
        """Send every decision that its workflow has not acted upon."""
        gate = asyncio.Semaphore(DELIVERIES)

        async def send(operation: Operation) -> None:
            async with gate:
                await self.deliver(operation)

        left = await self._operations.undelivered(BATCH)
        for result in await asyncio.gather(*map(send, left), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

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

    async def run(self, metrics: Metrics) -> None:
        """Dispatch, sweep and count until cancelled; an error is logged and the next round tries again."""

        async def count() -> None:
            metrics.tell_operations(await self._operations.count_open())

        await asyncio.gather(
            _every(COUNT_EVERY, count, "count_failed"),
            _every(DISPATCH_EVERY, self.dispatch, "dispatch_failed"),
            _every(DISPATCH_EVERY, self.deliver_left_behind, "delivery_failed"),
            _every(SWEEP_EVERY[self._profile], self.sweep, "sweep_failed"),
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
