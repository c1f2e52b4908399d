"""Operations: one open holder per lock, and attempts that never overwrite newer ones."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from pymongo.errors import DuplicateKeyError

from domain.errors import AttemptOutdated, OperationClosed, OperationUndoing
from domain.operations import Acting, Failure, Fence, Operation, OperationState, Step, StepState
from runtime.clock import utcnow
from runtime.wiring import Store, build_recorder
from store.database import Session
from tests.store.builders import LONG_AGO, build_operation, keep

STEP = "stalwart.dkim.example.org"
DEADLINE = LONG_AGO + timedelta(seconds=30)


def fence(number: int, scheduled: int = 0) -> Fence:
    return Fence(scheduled_at=LONG_AGO + timedelta(seconds=scheduled), number=number)


async def begin(store: Store, operation: Operation, at: Fence, deadline: datetime = DEADLINE) -> Step:
    begun = await store.operations.begin_attempt(operation.id, STEP, at, LONG_AGO, deadline)
    return begun.step


async def end(store: Store, operation: Operation, at: Fence, state: StepState = StepState.DONE) -> list[Step]:
    """End an attempt and return the steps that were handed on."""
    handed: list[Step] = []

    def change(step: Step) -> Step:
        assert step.attempt is not None
        return step.model_copy(
            update={"state": state, "attempt": step.attempt.model_copy(update={"ended_at": utcnow()})}
        )

    async def also(_: Operation, step: Step, __: Session) -> None:
        handed.append(step)

    await store.operations.end_attempt(operation.id, STEP, at, change, also)
    return handed


async def close(store: Store, operation: Operation, state: OperationState = OperationState.COMPLETED) -> bool:
    failure = Failure(code="x", message="x") if state is OperationState.FAILED else None
    current = await reread(store, operation)
    return await store.database.run_transaction(
        lambda session: build_recorder(store).close(current, state, session, failure=failure)
    )


async def reread(store: Store, operation: Operation) -> Operation:
    found = await store.operations.get(operation.id)
    assert found is not None
    return found


@pytest.fixture
async def operation(store: Store) -> Operation:
    """An open operation."""
    kept = build_operation()
    await keep(store, "operations", kept)
    return kept


async def test_one_open_operation_holds_a_lock(store: Store, operation: Operation) -> None:
    """A second one is refused until the first has closed."""

    async def insert() -> None:
        await store.database.run_transaction(lambda session: store.operations.insert(build_operation(), session))

    with pytest.raises(DuplicateKeyError):
        await insert()
    assert await store.operations.holder(operation.lock_key) == operation
    assert await close(store, operation)
    assert await store.operations.holder(operation.lock_key) is None
    await insert()


async def test_an_operation_ends_once(store: Store, operation: Operation) -> None:
    """How it ended first is how it ended."""
    assert await close(store, operation, OperationState.FAILED)
    ended = await reread(store, operation)
    assert not await close(store, operation, OperationState.COMPLETED)
    assert await reread(store, operation) == ended
    assert (ended.state, ended.open, ended.revision) == (OperationState.FAILED, False, operation.revision + 1)


async def test_an_attempt_is_recorded_from_begin_to_end(store: Store, operation: Operation) -> None:
    """The step runs, then is done, and the progress and the revision tell."""
    step = await begin(store, operation, fence(1))
    assert (step.name, step.state, step.attempts) == (STEP, StepState.RUNNING, 1)
    assert step.may_write_until == DEADLINE
    (handed,) = await end(store, operation, fence(1))
    kept = await reread(store, operation)
    assert kept.step(STEP) == handed
    assert (kept.progress.done, kept.progress.total) == (1, 1)
    assert kept.unsettled_until is None
    assert kept.revision == operation.revision + 2


@pytest.mark.parametrize("older", [fence(2), fence(1), fence(9, scheduled=-1)])
async def test_an_older_attempt_never_replaces_a_newer_one(store: Store, operation: Operation, older: Fence) -> None:
    """It may not begin, announce, change its key or end."""
    newer = fence(2)
    await begin(store, operation, newer)
    with pytest.raises(AttemptOutdated):
        await begin(store, operation, older)
    if older == newer:
        return
    with pytest.raises(AttemptOutdated):
        await store.operations.mark_acting(
            operation.id, STEP, older, Acting(action="a", resource_type="b", resource_id="c")
        )
    with pytest.raises(AttemptOutdated):
        await store.operations.bump_key(operation.id, STEP, older, 2)
    before = await reread(store, operation)
    assert await end(store, operation, older) == []
    assert await reread(store, operation) == before


@pytest.mark.parametrize("newer", [fence(2), fence(1, scheduled=1)])
async def test_a_newer_attempt_takes_over(store: Store, operation: Operation, newer: Fence) -> None:
    """By its number, or by its time after a retry by a person."""
    await begin(store, operation, fence(1))
    step = await begin(store, operation, newer)
    assert step.attempt is not None
    assert (step.attempts, step.attempt.fence) == (2, newer)


async def test_attempts_that_begin_at_once_leave_the_newest(store: Store, operation: Operation) -> None:
    """In whatever order they arrive."""
    arrivals = (begin(store, operation, fence(number)) for number in (3, 5, 1, 4, 2))
    await asyncio.gather(*arrivals, return_exceptions=True)
    attempt = (await reread(store, operation)).step(STEP).attempt
    assert attempt is not None
    assert attempt.fence.number == 5


async def test_an_attempt_without_an_end_may_still_write(store: Store, operation: Operation) -> None:
    """The latest deadline of those whose end was not recorded is remembered through those that ended."""
    late, early = DEADLINE + timedelta(minutes=1), DEADLINE - timedelta(seconds=10)
    await begin(store, operation, fence(1), late)
    assert (await begin(store, operation, fence(2), early)).unsettled_until == late
    assert (await begin(store, operation, fence(3), early)).unsettled_until == late
    await end(store, operation, fence(3), StepState.RETRYING)
    await begin(store, operation, fence(4))
    await end(store, operation, fence(4))
    assert (await reread(store, operation)).unsettled_until == late


async def test_an_attempt_with_an_end_leaves_nothing_unsettled(store: Store, operation: Operation) -> None:
    """A recorded end is the end."""
    await begin(store, operation, fence(1))
    await end(store, operation, fence(1), StepState.RETRYING)
    assert (await begin(store, operation, fence(2))).unsettled_until is None


async def test_a_closed_operation_takes_no_attempt(store: Store, operation: Operation) -> None:
    """Without its lock nothing begins, and nothing is recorded any more."""
    await begin(store, operation, fence(1))
    await close(store, operation)
    before = await reread(store, operation)
    with pytest.raises(OperationClosed):
        await begin(store, operation, fence(2))
    with pytest.raises(OperationClosed):
        await store.operations.bump_key(operation.id, STEP, fence(1), 2)
    with pytest.raises(OperationClosed):
        await store.database.run_transaction(
            lambda session: store.operations.plan_steps(operation.id, ["ocis.space"], session)
        )
    assert await end(store, operation, fence(1)) == []
    assert await reread(store, operation) == before


async def test_an_attempt_keeps_what_it_announces(store: Store, operation: Operation) -> None:
    """What it is about to change and under which key stands on the step, for the attempts after it."""
    await begin(store, operation, fence(1))
    acting = Acting(action="mail.domain_created", resource_type="tenant", resource_id="acme")
    await store.operations.mark_acting(operation.id, STEP, fence(1), acting)
    await store.operations.bump_key(operation.id, STEP, fence(1), 2)
    step = await begin(store, operation, fence(2))
    assert (step.acting, step.key_number, step.replayed_error) == (acting, 2, False)


async def test_planning_again_keeps_what_has_run(store: Store, operation: Operation) -> None:
    """A repeated plan shows new steps as pending and leaves the others."""
    await begin(store, operation, fence(1))
    await end(store, operation, fence(1))
    for _ in range(2):
        await store.database.run_transaction(
            lambda session: store.operations.plan_steps(operation.id, [STEP, "ocis.space"], session)
        )
    kept = await reread(store, operation)
    assert [(step.name, step.state) for step in kept.steps.values()] == [
        (STEP, StepState.DONE),
        ("ocis.space", StepState.PENDING),
    ]
    assert (kept.progress.done, kept.progress.total) == (1, 2)


async def test_steps_that_end_at_once_lose_nothing(store: Store, operation: Operation) -> None:
    """Branches record their steps at the same time on one document."""
    names = [f"ocis.step{number}" for number in range(8)]

    async def run(name: str) -> None:
        async def nothing(*_: object) -> None: ...

        await store.operations.begin_attempt(operation.id, name, fence(1), LONG_AGO, DEADLINE)
        await store.operations.end_attempt(
            operation.id, name, fence(1), lambda step: step.model_copy(update={"state": StepState.DONE}), nothing
        )

    await asyncio.gather(*map(run, names))
    kept = await reread(store, operation)
    assert {step.name for step in kept.steps.values() if step.state is StepState.DONE} == set(names)
    assert kept.progress.done == 8


async def test_the_first_acknowledgement_stays(store: Store, operation: Operation) -> None:
    """A repeated start does not move the time of the first."""
    await store.operations.mark_started(operation.id, LONG_AGO)
    await store.operations.mark_started(operation.id, utcnow())
    assert (await reread(store, operation)).started_at == LONG_AGO


async def give(store: Store, operation: Operation, name: str, state: StepState, seconds: int, **options: bool) -> None:
    """Give a step a state, as its workflow asked for it so many seconds after the beginning."""

    def change(found: Operation) -> dict[str, Step]:
        return {name: found.step(name).model_copy(update={"state": state})}

    async def also(_before: Operation, _after: Operation, _session: Session) -> None:
        """Nothing is kept with it."""

    at = LONG_AGO + timedelta(seconds=seconds)
    await store.operations.set_steps(operation.id, at, change, also, **options)


@pytest.mark.parametrize("state", [StepState.PARKED, StepState.SKIPPED, StepState.PENDING, StepState.COMPENSATED])
async def test_an_attempt_from_before_the_workflow_gave_the_step_up(
    store: Store, operation: Operation, state: StepState
) -> None:
    """A worker that was cut off begins nothing that its workflow has given up; what was scheduled since begins."""
    await begin(store, operation, fence(1))
    await give(store, operation, STEP, state, seconds=10)
    with pytest.raises(AttemptOutdated):
        await begin(store, operation, fence(2, scheduled=9))
    assert (await reread(store, operation)).step(STEP).state is state
    assert (await begin(store, operation, fence(1, scheduled=11))).state is StepState.RUNNING


async def test_only_undoing_begins_while_it_is_undone(store: Store, operation: Operation) -> None:
    """Once a canceled operation is being undone, no other step begins, whether it was ever seen or not."""
    await give(store, operation, "ocis.space", StepState.COMPENSATING, seconds=10, undoing=True)
    with pytest.raises(OperationUndoing):
        await begin(store, operation, fence(1, scheduled=20))
    begun = await store.operations.begin_attempt(
        operation.id, "ocis.space_undo", fence(1, scheduled=20), LONG_AGO, DEADLINE
    )
    assert begun.step.state is StepState.RUNNING


async def test_what_was_not_removed_says_why(store: Store, operation: Operation) -> None:
    """A step that was to be undone, and was not, has failed for the reason that ended its operation."""
    await give(store, operation, STEP, StepState.COMPENSATING, seconds=10, undoing=True)
    await close(store, operation, OperationState.FAILED)
    step = (await reread(store, operation)).step(STEP)
    assert step.last_error is not None
    assert (step.state, step.last_error.code) == (StepState.FAILED, "x")
