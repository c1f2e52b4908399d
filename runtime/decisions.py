"""What people decide about a job that waits or runs: retry, skip, cancel."""

from __future__ import annotations

import asyncio

from pymongo.errors import PyMongoError
from temporalio.service import RPCError

from domain.audit import Actor, ActorType, AuditEvent, Outcome, Resource
from domain.errors import Conflict, NotFound
from domain.operations import Decision, DecisionAction, Operation, step_key
from runtime.clock import new_id, utcnow
from runtime.commits import Commits, Encode, Recorded, Requester
from runtime.dispatcher import Dispatcher
from runtime.logging import get_logger
from store.audit import AuditRepository
from store.database import Database, Session
from store.idempotency import IdempotentRequest
from store.operations import OperationRepository

log = get_logger(__name__)

DELIVERY_PATIENCE_SECONDS = 3.0


class Decisions:
    """Commits decisions and hands them to the workflows they are about.

    A decision is kept on its operation until the workflow has acted upon it, and every worker's dispatcher sends what
    is left: an accepted decision is never lost, whatever dies meanwhile.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        commits: Commits,
        operations: OperationRepository,
        audit: AuditRepository,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._commits = commits
        self._operations = operations
        self._audit = audit

    async def decide(
        self,
        operation_id: str,
        action: DecisionAction,
        *,
        step: str | None,
        reason: str | None,
        requester: Requester,
        repeat: IdempotentRequest | None,
        encode: Encode,
    ) -> Recorded:
        """Record a decision about an operation and send it to its workflow.

        Args:
            step: the parked step that is meant; None for all that are parked, and for a cancel.

        Idempotency: a cancel of what is being canceled changes nothing.

        Raises:
            NotFound: there is no such operation, or no such step in it.
            Conflict: `step_not_parked`, or `not_cancelable`.
        """

        async def body(session: Session, _now: object) -> Operation:
            operation = await self._operations.get(operation_id, session)
            if operation is None:
                raise NotFound("There is no such operation.")
            if action is DecisionAction.CANCEL:
                if operation.open and operation.cancel_requested_at is not None:
                    return operation
                steps = _require_cancelable(operation)
            else:
                steps = _require_parked(operation, step)
            return await self._keep(operation, action, steps, reason, requester, session)

        recorded = await self._commits.commit(body, repeat, encode)
        if recorded.operation is not None:
            await self._deliver(recorded.operation)
        return recorded

    async def retry_parked(self, operation_id: str, system: str, codes: frozenset[str], actor: str) -> bool:
        """Let the steps of one system that parked for these reasons be tried again, in the name of a part of ours.

        Returns:
            Whether there was such a step.
        """
        requester = Requester(actor=Actor(type=ActorType.SYSTEM, id=actor), request_id=None, address=None)

        async def body(session: Session) -> Operation | None:
            operation = await self._operations.get(operation_id, session)
            steps = operation.parked_for(system, codes) if operation is not None and operation.open else []
            if operation is None or not steps:
                return None
            return await self._keep(operation, DecisionAction.RETRY, steps, None, requester, session)

        operation = await self._database.run_transaction(body)
        if operation is not None:
            await self._deliver(operation)
        return operation is not None

    async def _keep(
        self,
        operation: Operation,
        action: DecisionAction,
        steps: list[str],
        reason: str | None,
        requester: Requester,
        session: Session,
    ) -> Operation:
        decision = Decision(id=new_id(), action=action, steps=steps, at=utcnow())
        event = AuditEvent(
            id=new_id(),
            at=decision.at,
            actor=requester.actor,
            action=f"operation.{action.value}_requested",
            outcome=Outcome.SUCCESS,
            resource=Resource(type="operation", id=operation.id),
            tenant_slug=operation.tenant_slug,
            partner_slug=operation.partner_slug,
            source="api" if requester.actor.type is not ActorType.SYSTEM else "platform",
            request_id=requester.request_id,
            operation_id=operation.id,
            reason=reason,
            metadata={"steps": ", ".join(steps)} if steps else {},
        )
        await self._audit.write(event, session, [requester.personal] if requester.personal is not None else [])
        return await self._operations.decide(operation, decision, session)

    async def _deliver(self, operation: Operation) -> None:
        """Send it now if the workflow can be reached; if not, a worker's dispatcher does it later."""
        try:
            await asyncio.wait_for(self._dispatcher.deliver(operation), DELIVERY_PATIENCE_SECONDS)
        except (RPCError, PyMongoError, RuntimeError, TimeoutError) as error:
            log.warning("decision_left_to_dispatcher", operation_id=operation.id, error=type(error).__name__)


def _require_cancelable(operation: Operation) -> list[str]:
    if not operation.cancelable:
        raise Conflict("The outcome of the operation stands.", code="not_cancelable")
    return []


def _require_parked(operation: Operation, step: str | None) -> list[str]:
    parked = operation.parked_steps if operation.open else []
    if step is None:
        if not parked:
            raise Conflict("No step of the operation waits for a decision.", code="step_not_parked")
        return parked
    if step_key(step) not in operation.steps:
        raise NotFound("The operation has no such step.")
    if step not in parked:
        raise Conflict("The step does not wait for a decision.", code="step_not_parked")
    return [step]
