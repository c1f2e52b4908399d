"""The `operations` collection: intents, locks, and the record of every attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from domain.errors import AttemptOutdated, OperationClosed
from domain.operations import (
    FINISHED_STEPS,
    Acting,
    Failure,
    Fence,
    Operation,
    OperationKind,
    OperationState,
    Progress,
    Step,
    StepState,
    step_key,
)
from store.database import Database, Document, Session
from store.documents import from_document, to_document

_CLOSING = ("open", "state", "closedAt", "error", "result", "progress", "steps", "revision")


@dataclass(frozen=True)
class OperationFilter:
    """Which operations are wanted; None leaves an axis open."""

    # Only those of these tenants: what a partner may see.
    among: list[str] | None = None
    tenant_slug: str | None = None
    kind: OperationKind | None = None
    state: OperationState | None = None

    @property
    def query(self) -> list[Document]:
        """Return the conditions that a wanted operation meets."""
        exact = {"tenantSlug": self.tenant_slug, "kind": self.kind, "state": self.state}
        conditions: list[Document] = [{name: str(value)} for name, value in exact.items() if value is not None]
        if self.among is not None:
            conditions.append({"tenantSlug": {"$in": self.among}})
        return conditions


class Begun(NamedTuple):
    """A recorded attempt: its step as it stands, and the request that its operation came from."""

    step: Step
    request_id: str | None


class OperationRepository:
    """Reads and writes operations."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._operations = database.collection("operations")
        # The steps of a run that go on at once write one document. MongoDB makes the losers start over after a pause;
        # taking turns within the process costs a hundredth of that. It orders writes for speed, never for safety.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def insert(self, operation: Operation, session: Session) -> None:
        """Record an intent; it takes its lock by being inserted open.

        Raises:
            DuplicateKeyError: another open operation holds the lock.
        """
        await self._operations.insert_one(to_document(operation), session=session)

    async def get(self, operation_id: str, session: Session | None = None) -> Operation | None:
        """Return an operation, None if there is none."""
        return from_document(Operation, await self._operations.find_one({"_id": operation_id}, session=session))

    async def holder(self, lock_key: str, session: Session | None = None) -> Operation | None:
        """Return the open operation that holds a lock, None if it is free."""
        found = await self._operations.find_one({"lockKey": lock_key, "open": True}, session=session)
        return from_document(Operation, found)

    async def page(self, wanted: OperationFilter, before: str | None, limit: int) -> list[Operation]:
        """Return the wanted operations newest first, older than the id `before`."""
        older: Document = {"_id": {"$lt": before}} if before is not None else {}
        rows = await self._operations.find({"$and": [older, *wanted.query]}).sort("_id", -1).to_list(limit)
        return [Operation.model_validate(row) for row in rows]

    async def unstarted(self, created_before: datetime, limit: int) -> list[Operation]:
        """Return intents that hold their lock and whose start Temporal has not acknowledged, oldest first."""
        query = {"open": True, "startedAt": None, "createdAt": {"$lt": created_before}}
        rows = await self._operations.find(query).sort("createdAt", 1).to_list(limit)
        return [Operation.model_validate(row) for row in rows]

    async def started(self, started_before: datetime, after: str | None, limit: int) -> list[Operation]:
        """Return open operations whose workflow was started, by id, beyond the id `after`."""
        query: Document = {"open": True, "startedAt": {"$lt": started_before}}
        if after is not None:
            query["_id"] = {"$gt": after}
        rows = await self._operations.find(query).sort("_id", 1).to_list(limit)
        return [Operation.model_validate(row) for row in rows]

    async def mark_started(self, operation_id: str, at: datetime) -> None:
        """Keep the time at which Temporal acknowledged the workflow; the first one stays."""
        await self._operations.update_one(
            {"_id": operation_id, "startedAt": None}, {"$set": {"startedAt": at}, "$inc": {"revision": 1}}
        )

    async def plan_steps(self, operation_id: str, names: list[str], session: Session) -> None:
        """Show the planned steps of an open operation as pending; a step that is there already is kept.

        Raises:
            OperationClosed: the operation has ended.
        """
        operation = await self._open(operation_id, session)
        steps = {step_key(name): operation.step(name) for name in names}
        await self._save_steps(operation, {**steps, **operation.steps}, session)

    async def say(self, operation_id: str, message: str, session: Session) -> None:
        """Tell people in a sentence what an open operation is waiting for."""
        await self._operations.update_one(
            {"_id": operation_id, "open": True},
            {"$set": {"progress.message": message}, "$inc": {"revision": 1}},
            session=session,
        )

    async def begin_attempt(
        self, operation_id: str, name: str, fence: Fence, started_at: datetime, deadline: datetime
    ) -> Begun:
        """Record an attempt before its vendor is called, and return the step as it stands.

        The end of an earlier attempt that was never recorded becomes part of `unsettledUntil`.

        Raises:
            OperationClosed: the operation has ended.
            AttemptOutdated: a newer attempt was recorded.
        """
        path = f"steps.{step_key(name)}"
        attempt = {
            "fence": {"scheduledAt": fence.scheduled_at, "number": fence.number},
            "startedAt": started_at,
            "deadline": deadline,
            "endedAt": None,
        }
        fence_path = f"{path}.attempt.fence"
        query = {
            "_id": operation_id,
            "open": True,
            "$or": [
                {f"{path}.attempt": None},
                {f"{fence_path}.scheduledAt": {"$lt": fence.scheduled_at}},
                {f"{fence_path}.scheduledAt": fence.scheduled_at, f"{fence_path}.number": {"$lt": fence.number}},
            ],
        }
        unsettled = {
            "$cond": [
                {
                    "$and": [
                        {"$gt": [f"${path}.attempt", None]},
                        {"$not": [{"$gt": [f"${path}.attempt.endedAt", None]}]},
                    ]
                },
                {"$max": [f"${path}.unsettledUntil", f"${path}.attempt.deadline"]},
                {"$ifNull": [f"${path}.unsettledUntil", None]},
            ]
        }
        update: list[Document] = [
            {
                "$set": {
                    f"{path}.name": {"$literal": name},
                    f"{path}.state": StepState.RUNNING.value,
                    f"{path}.attempts": {"$add": [{"$ifNull": [f"${path}.attempts", 0]}, 1]},
                    f"{path}.unsettledUntil": unsettled,
                    f"{path}.nextRetryAt": None,
                    "revision": {"$add": ["$revision", 1]},
                }
            },
            # In a stage of its own: the first one still reads the attempt that this one replaces.
            {"$set": {f"{path}.attempt": {"$literal": attempt}}},
        ]
        async with self._turn(operation_id):
            found = await self._operations.find_one_and_update(
                query, update, projection={path: 1, "requestId": 1}, return_document=True
            )
        if found is None:
            raise await self._superseded(operation_id)
        return Begun(Step.model_validate(found["steps"][step_key(name)]), found["requestId"])

    async def mark_acting(self, operation_id: str, name: str, fence: Fence, acting: Acting | None) -> None:
        """Record what an attempt is about to change outside; None takes it back.

        Raises:
            OperationClosed: the operation has ended.
            AttemptOutdated: a newer attempt has begun.
        """
        await self._update_attempt(
            operation_id, name, fence, {"acting": to_document(acting) if acting is not None else None}
        )

    async def bump_key(self, operation_id: str, name: str, fence: Fence, number: int) -> None:
        """Record that the next vendor write of the step uses a new idempotency key.

        Raises:
            OperationClosed: the operation has ended.
            AttemptOutdated: a newer attempt has begun.
        """
        await self._update_attempt(operation_id, name, fence, {"keyNumber": number, "replayedError": False})

    async def end_attempt(
        self,
        operation_id: str,
        name: str,
        fence: Fence,
        change: Callable[[Step], Step],
        also: Callable[[Operation, Step, Session], Awaitable[None]],
    ) -> None:
        """Record how an attempt ended, together with what belongs to it, in one transaction.

        Args:
            change: returns the step after the attempt from the step before; may run several times.
            also: writes what must be kept with it, given the operation after the change.

        An attempt that a newer one has replaced, or whose operation has ended, records nothing.
        """

        async def body(session: Session) -> None:
            operation = await self.get(operation_id, session)
            if operation is None or not operation.open:
                return
            before = operation.step(name)
            if before.attempt is None or before.attempt.fence != fence:
                return
            after = change(before)
            steps = {**operation.steps, step_key(name): after}
            saved = await self._save_steps(operation, steps, session)
            await also(saved, after, session)

        async with self._turn(operation_id):
            await self._database.run_transaction(body)

    async def close(
        self,
        operation: Operation,
        state: OperationState,
        at: datetime,
        session: Session,
        *,
        failure: Failure | None = None,
        result: dict[str, str] | None = None,
    ) -> Operation:
        """Release the lock of an open operation and keep how it ended.

        Returns:
            The operation as it now is. Steps that were under way have failed, because nobody works on them any more,
            and so has the step that the failure names.
        """
        lost = Failure(code="attempt_lost", message="How the last attempt ended is not known.")
        named = failure.step if failure is not None else None
        steps = dict(operation.steps)
        for key, step in operation.steps.items():
            under_way = step.state in (StepState.RUNNING, StepState.RETRYING)
            if under_way or (step.name == named and step.state not in FINISHED_STEPS):
                reason = failure if step.name == named else lost
                ended = {"state": StepState.FAILED, "next_retry_at": None, "last_error": step.last_error or reason}
                steps[key] = step.model_copy(update=ended)
        closed = operation.model_copy(
            update={
                "open": False,
                "state": state,
                "closed_at": at,
                "error": failure,
                "result": result,
                "progress": operation.progress.model_copy(update={"message": ""}),
                "steps": steps,
                "revision": operation.revision + 1,
            }
        )
        document = to_document(closed)
        changes = {name: document[name] for name in _CLOSING}
        await self._operations.update_one({"_id": operation.id, "open": True}, {"$set": changes}, session=session)
        return closed

    def _turn(self, operation_id: str) -> asyncio.Lock:
        return self._turns.setdefault(operation_id, asyncio.Lock())

    async def _open(self, operation_id: str, session: Session) -> Operation:
        operation = await self.get(operation_id, session)
        if operation is None or not operation.open:
            raise OperationClosed("The operation has ended.")
        return operation

    async def _save_steps(self, operation: Operation, steps: dict[str, Step], session: Session) -> Operation:
        done = sum(step.state in FINISHED_STEPS for step in steps.values())
        progress = Progress(done=done, total=len(steps), message=operation.progress.message)
        saved = operation.model_copy(update={"steps": steps, "progress": progress, "revision": operation.revision + 1})
        document = to_document(saved)
        changes: dict[str, Any] = {name: document[name] for name in ("steps", "progress", "revision")}
        await self._operations.update_one({"_id": operation.id}, {"$set": changes}, session=session)
        return saved

    async def _update_attempt(self, operation_id: str, name: str, fence: Fence, changes: Document) -> None:
        path = f"steps.{step_key(name)}"
        query = {
            "_id": operation_id,
            "open": True,
            f"{path}.attempt.fence.scheduledAt": fence.scheduled_at,
            f"{path}.attempt.fence.number": fence.number,
        }
        update = {"$set": {f"{path}.{field}": value for field, value in changes.items()}, "$inc": {"revision": 1}}
        async with self._turn(operation_id):
            answer = await self._operations.update_one(query, update)
        if answer.matched_count == 0:
            raise await self._superseded(operation_id)

    async def _superseded(self, operation_id: str) -> OperationClosed | AttemptOutdated:
        """Return why an attempt may not write."""
        operation = await self.get(operation_id)
        if operation is not None and operation.open:
            return AttemptOutdated("A newer attempt of this step has begun.")
        return OperationClosed("The operation has ended.")
