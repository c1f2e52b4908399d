"""The `operations` collection: intents, locks, and the record of every attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from weakref import WeakValueDictionary

from domain.errors import AttemptOutdated, OperationClosed, OperationUndoing
from domain.operations import (
    FINISHED_STEPS,
    SETTLED_STEPS,
    Acting,
    Decision,
    DecisionAction,
    Failure,
    Fence,
    Operation,
    OperationKind,
    OperationState,
    Progress,
    Step,
    StepState,
    is_undo,
    step_key,
)
from store.database import Database, Document, Session
from store.documents import from_document, to_document

_STEPS = ("state", "progress", "steps", "decisions", "cancelRequestedAt", "undoingSince", "settledAt", "revision")
_CLOSING = ("open", "closedAt", "error", "result", *_STEPS)

UNDER_WAY = frozenset({StepState.RUNNING, StepState.RETRYING, StepState.PARKED, StepState.COMPENSATING})


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

    async def undelivered(self, limit: int) -> list[Operation]:
        """Return open operations with a decision that their workflow has not acted upon, oldest first."""
        query = {"open": True, "startedAt": {"$ne": None}, "decisions.id": {"$gt": ""}}
        rows = await self._operations.find(query).sort("_id", 1).to_list(limit)
        return [Operation.model_validate(row) for row in rows]

    async def needing_operator(self, after: str | None, limit: int) -> list[Operation]:
        """Return open operations with parked steps, by id, beyond the id `after`."""
        query: Document = {"open": True, "state": OperationState.NEEDS_OPERATOR.value}
        if after is not None:
            query["_id"] = {"$gt": after}
        rows = await self._operations.find(query).sort("_id", 1).to_list(limit)
        return [Operation.model_validate(row) for row in rows]

    async def count_open(self) -> dict[tuple[str, str], int]:
        """Return how many open operations there are by kind and state."""
        group = {"_id": {"kind": "$kind", "state": "$state"}, "count": {"$sum": 1}}
        rows = await self._operations.aggregate([{"$match": {"open": True}}, {"$group": group}]).to_list(None)
        return {(row["_id"]["kind"], row["_id"]["state"]): int(row["count"]) for row in rows}

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

    async def decide(self, operation: Operation, decision: Decision, session: Session) -> Operation:
        """Keep a decision about an open operation until its workflow has acted upon it; return what now is."""
        decided = operation.model_copy(
            update={
                "decisions": [*operation.decisions, decision],
                "cancel_requested_at": operation.cancel_requested_at
                or (decision.at if decision.action is DecisionAction.CANCEL else None),
                "revision": operation.revision + 1,
            }
        )
        await self._save(decided, ("decisions", "cancelRequestedAt", "revision"), session)
        return decided

    async def withdraw(self, operation_id: str, decision: Decision) -> None:
        """Drop a decision that the workflow refused, so that nobody is promised what will not come."""
        changes: Document = {"$pull": {"decisions": {"id": decision.id}}, "$inc": {"revision": 1}}
        if decision.action is DecisionAction.CANCEL:
            changes["$set"] = {"cancelRequestedAt": None}
        await self._operations.update_one({"_id": operation_id, "decisions.id": decision.id}, changes)

    async def set_steps(
        self,
        operation_id: str,
        at: datetime,
        change: Callable[[Operation], dict[str, Step]],
        also: Callable[[Operation, Operation, Session], Awaitable[None]],
        *,
        undoing: bool = False,
    ) -> Operation:
        """Give steps of an open operation the state that its workflow gives them, and return what now is.

        Decisions about these steps have taken effect and are dropped.

        Args:
            change: returns the steps that change, by name; may run several times.
            also: writes what must be kept with it, given the operation before and after the change.
            at: when the workflow asked for it, by Temporal's clock.
            undoing: records that the operation is being canceled; then every decision has taken effect. If its
                outcome stands nothing changes, and `undoing_since` of what is returned says so.

        A step that was given a state since `at` keeps it: this is a late attempt of something done already.

        Raises:
            OperationClosed: the operation has ended.
        """

        async def body(session: Session) -> Operation:
            before = await self._open(operation_id, session)
            if undoing and before.settled_at is not None and before.undoing_since is None:
                return before
            changed = {
                name: step.model_copy(update={"given_at": at})
                for name, step in change(before).items()
                if (given_at := before.step(name).given_at) is None or given_at < at
            }
            after = before.model_copy(update={"decisions": _without(before.decisions, set(changed))})
            if undoing:
                now = before.undoing_since or at
                message = "It was canceled: what it made is being removed."
                after = after.model_copy(
                    update={
                        "decisions": [],
                        "cancel_requested_at": before.cancel_requested_at or now,
                        "undoing_since": now,
                        "settled_at": before.settled_at or now,
                        "progress": before.progress.model_copy(update={"message": message}),
                    }
                )
            steps = {**before.steps, **{step_key(name): step for name, step in changed.items()}}
            after = await self._save_steps(after, steps, session)
            await also(before, after, session)
            return after

        async with self._turn(operation_id):
            return await self._database.run_transaction(body)

    async def settle(self, operation: Operation, at: datetime, session: Session) -> None:
        """Record that the outcome of an open operation stands: from now on it cannot be canceled."""
        await self._operations.update_one(
            {"_id": operation.id, "open": True, "settledAt": None},
            {"$set": {"settledAt": at}, "$inc": {"revision": 1}},
            session=session,
        )

    async def begin_attempt(
        self, operation_id: str, name: str, fence: Fence, started_at: datetime, deadline: datetime
    ) -> Begun:
        """Record an attempt before its vendor is called, and return the step as it stands.

        The end of an earlier attempt that was never recorded becomes part of `unsettledUntil`.

        Raises:
            OperationClosed: the operation has ended.
            OperationUndoing: it is being undone, and this step does not undo.
            AttemptOutdated: a newer attempt was recorded, or the workflow has given the step up meanwhile: then this
                attempt comes from a worker that was cut off.
        """
        path = f"steps.{step_key(name)}"
        attempt = {
            "fence": {"scheduledAt": fence.scheduled_at, "number": fence.number},
            "startedAt": started_at,
            "deadline": deadline,
            "endedAt": None,
        }
        fence_path = f"{path}.attempt.fence"
        query: Document = {
            "_id": operation_id,
            "open": True,
            f"{path}.givenAt": {"$not": {"$gte": fence.scheduled_at}},
            "$or": [
                {f"{path}.attempt": None},
                {f"{fence_path}.scheduledAt": {"$lt": fence.scheduled_at}},
                {f"{fence_path}.scheduledAt": fence.scheduled_at, f"{fence_path}.number": {"$lt": fence.number}},
            ],
        }
        if not is_undo(name):
            query["undoingSince"] = None
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
            raise await self._superseded(operation_id, name)
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

    async def turn_to(
        self,
        operation_id: str,
        name: str,
        fence: Fence,
        acting: Acting,
        also: Callable[[Operation, Step, Session], Awaitable[None]],
    ) -> None:
        """Record that an attempt is about to change something else outside than the step was before.

        Args:
            also: writes what must be kept of that, given the operation and the step before.

        Raises:
            OperationClosed: the operation has ended.
            AttemptOutdated: a newer attempt has begun.
        """

        async def body(session: Session) -> None:
            operation = await self._open(operation_id, session)
            before = operation.step(name)
            if before.attempt is None or before.attempt.fence != fence:
                raise AttemptOutdated("A newer attempt of this step has begun.")
            after = before.model_copy(update={"acting": acting})
            await self._save_steps(operation, {**operation.steps, step_key(name): after}, session)
            await also(operation, before, session)

        async with self._turn(operation_id):
            await self._database.run_transaction(body)

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
            under_way = step.state in UNDER_WAY
            if under_way or (step.name == named and step.state not in FINISHED_STEPS):
                error = step.last_error or (failure if step.name == named else lost)
                if step.state is StepState.COMPENSATING:
                    error = failure or error  # that it was not removed says more than what it once met
                ended = {"state": StepState.FAILED, "next_retry_at": None, "last_error": error}
                steps[key] = step.model_copy(update=ended)
        closed = operation.model_copy(
            update={
                "open": False,
                "state": state,
                "closed_at": at,
                "error": failure,
                "result": result,
                "progress": _progress(steps, ""),
                "decisions": [],
                "steps": steps,
                "revision": operation.revision + 1,
            }
        )
        await self._save(closed, _CLOSING, session)
        return closed

    def _turn(self, operation_id: str) -> asyncio.Lock:
        return self._turns.setdefault(operation_id, asyncio.Lock())

    async def _open(self, operation_id: str, session: Session) -> Operation:
        operation = await self.get(operation_id, session)
        if operation is None or not operation.open:
            raise OperationClosed("The operation has ended.")
        return operation

    async def _save_steps(self, operation: Operation, steps: dict[str, Step], session: Session) -> Operation:
        parked = any(step.state is StepState.PARKED for step in steps.values())
        saved = operation.model_copy(
            update={
                "steps": steps,
                "state": OperationState.NEEDS_OPERATOR if parked else OperationState.RUNNING,
                "progress": _progress(steps, operation.progress.message),
                "revision": operation.revision + 1,
            }
        )
        await self._save(saved, _STEPS, session)
        return saved

    async def _save(self, operation: Operation, fields: tuple[str, ...], session: Session) -> None:
        document = to_document(operation)
        changes = {field: document[field] for field in fields}
        await self._operations.update_one({"_id": operation.id, "open": True}, {"$set": changes}, session=session)

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
            raise await self._superseded(operation_id, name)

    async def _superseded(self, operation_id: str, name: str) -> OperationClosed | OperationUndoing | AttemptOutdated:
        """Return why an attempt may not write."""
        operation = await self.get(operation_id)
        if operation is None or not operation.open:
            return OperationClosed("The operation has ended.")
        if operation.undoing_since is not None and not is_undo(name):
            return OperationUndoing("The operation is being undone.")
        return AttemptOutdated("A newer attempt of this step has begun.")


def _progress(steps: dict[str, Step], message: str) -> Progress:
    done = sum(step.state in SETTLED_STEPS for step in steps.values())
    return Progress(done=done, total=len(steps), message=message)


def _without(decisions: list[Decision], steps: set[str]) -> list[Decision]:
    """Return the decisions without these steps, and without those that are about no other."""
    left = [
        decision.model_copy(update={"steps": [name for name in decision.steps if name not in steps]})
        for decision in decisions
    ]
    return [after for before, after in zip(decisions, left, strict=True) if after.steps or not before.steps]
