"""How every job runs its steps, waits for people where it cannot go on, and reads failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.types import MethodAsyncSingleParam

with workflow.unsafe.imports_passed_through():
    from activities.platform import PlatformActivities
    from domain.errors import OperationClosed, OperationUndoing
    from domain.ids import activity_id
    from domain.operations import DecisionAction, Failure, StepState, system_of
    from domain.provisioning import RetryProfile, StepRecord
    from workflows.options import PROFILES, Profile

P = TypeVar("P")
R = TypeVar("R")

# A step that cannot go on waits for a decision; before, it ended its branch for good.
PARK_STEPS = "2026-11-park-steps"
# A canceled run undoes what it made; before, it just stopped.
CANCEL_UNDOES = "2026-11-cancel-undoes"


class StepSkipped(Exception):
    """An operator skipped a step: what depends on it is not run."""


class JobCanceled(Exception):
    """The job was canceled: no further step begins."""


class Steps:
    """Runs the steps of one job with the options of one profile, and obeys what people decide about them."""

    def __init__(self, operation_id: str, profile: RetryProfile) -> None:
        self._operation_id = operation_id
        self._profile: Profile = PROFILES[profile]
        self._running: dict[str, workflow.ActivityHandle[Any]] = {}
        # The parked steps, with what was decided about them.
        self._parked: dict[str, DecisionAction | None] = {}
        self._cancel_asked = False
        # The outcome stands: the steps that still run belong to it, whether it is one or the undoing.
        self.settled = False
        self.begun: set[str] = set()

    @property
    def canceled(self) -> bool:
        """Whether the job was canceled, by us or in Temporal."""
        return self._cancel_asked or workflow.cancellation_reason() is not None

    @property
    def waiting(self) -> list[str]:
        """The parked steps about which nothing was decided."""
        return [name for name, decision in self._parked.items() if decision is None]

    def decide(self, action: DecisionAction, names: list[str]) -> None:
        """Take a decision about parked steps."""
        for name in names:
            self._parked[name] = action

    def cancel(self) -> None:
        """Let no further step begin, and end those that run or wait; nothing once the outcome stands."""
        if self.settled:
            return
        self._cancel_asked = True
        for handle in self._running.values():
            handle.cancel()

    def settle(self) -> None:
        """Let steps run from now on whether the job is canceled or not: they see its outcome through."""
        self.settled = True

    async def run(self, name: str, method: MethodAsyncSingleParam[Any, P, R], request: P) -> R:
        """Run a step on the queue of its system until it is done.

        A step that is refused for good, or whose budget is spent, parks: it waits for a person, while others go on.

        Raises:
            StepSkipped: an operator skipped it.
            JobCanceled: the job was canceled. Asked before each step, because an activity that finishes anyway
                swallows the cancellation of who awaits it.
            ActivityError: its operation has ended.
        """
        generation = 1
        while True:
            if self.must_stop:
                raise JobCanceled
            self.begun.add(name)
            try:
                return await self._try(name, generation, method, request)
            except ActivityError as error:
                if self.must_stop:
                    raise JobCanceled from None
                failure = failure_of(error)
                if failure.code == OperationUndoing.default_code and not self.settled:
                    # It was reset to before it heard of the cancel.
                    self.cancel()
                    raise JobCanceled from None
                if failure.code == OperationClosed.default_code or not workflow.patched(PARK_STEPS):
                    raise
            await self._park(name, failure, generation)
            generation += 1

    async def record(self, method: MethodAsyncSingleParam[Any, P, R], request: P) -> R:
        """Run an activity that writes our own database until it is done."""
        return await workflow.execute_activity_method(method, request, **self._profile.record)

    async def record_state(
        self, names: list[str], state: StepState, *, failure: Failure | None = None, generation: int = 1
    ) -> None:
        """Give steps a state that no attempt of theirs can have."""
        request = StepRecord(
            operation_id=self._operation_id, steps=names, state=state, failure=failure, generation=generation
        )
        await self.record(PlatformActivities.record_step, request)

    @property
    def must_stop(self) -> bool:
        """Whether no further step may begin."""
        return self.canceled and not self.settled

    async def _try(self, name: str, generation: int, method: MethodAsyncSingleParam[Any, P, R], request: P) -> R:
        config = self._profile.vendor.copy()
        config["activity_id"] = activity_id(name, generation)
        config["task_queue"] = system_of(name)
        config["summary"] = name
        handle = workflow.start_activity_method(method, request, **config)
        self._running[name] = handle
        try:
            return await handle
        finally:
            del self._running[name]

    async def _park(self, name: str, failure: Failure, generation: int) -> None:
        """Wait until somebody wants the step retried.

        Raises:
            StepSkipped: an operator skipped it.
            JobCanceled: the job was canceled.
        """
        # Before it is recorded: who reads the record may decide at once.
        self._parked[name] = None
        try:
            await self.record_state([name], StepState.PARKED, failure=failure, generation=generation)
            await workflow.wait_condition(lambda: self._parked[name] is not None or self.must_stop)
        finally:
            decision = self._parked.pop(name)
        if self.must_stop:
            raise JobCanceled
        if decision is DecisionAction.SKIP:
            await self.record_state([name], StepState.SKIPPED)
            raise StepSkipped(name)
        await self.record_state([name], StepState.PENDING)


async def together(*parts: Awaitable[Any]) -> list[Any]:
    """Await all parts to their end, then raise the weightiest failure among them.

    Plain `gather` would raise at once and leave the others running behind the workflow's back.
    """
    results = await asyncio.gather(*parts, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        # A step that was skipped stops what depends on it, a cancel stops everything.
        raise min(failures, key=lambda error: (isinstance(error, StepSkipped), not isinstance(error, JobCanceled)))
    return results


async def branch(part: Awaitable[Any]) -> Failure | None:
    """Await a branch and return why it failed, None if it did not, so that other branches go on."""
    try:
        await part
    except ActivityError as error:
        return failure_of(error)
    except StepSkipped:
        return None
    return None


async def uncancelable(part: Coroutine[Any, Any, R]) -> R:
    """Run a part of a job to its end, though the execution be cancelled in Temporal meanwhile."""
    task = asyncio.create_task(part)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                raise
            if not workflow.patched(CANCEL_UNDOES):
                task.cancel()
                return await task


def failure_of(error: ActivityError) -> Failure:
    """Return the step and the code with which an activity failed.

    A spent budget keeps the code of its last attempt: it says what to mend.
    """
    step = error.activity_id.rpartition(".")[0] if error.activity_id is not None else None
    cause = error.cause
    while cause is not None and not isinstance(cause, ApplicationError):
        cause = cause.__cause__
    if isinstance(cause, ApplicationError):
        return Failure(code=cause.type or "internal_error", message=cause.message, step=step)
    return Failure(code="budget_spent", message="The step was tried for as long as allowed.", step=step)


async def sleep_over(seconds: float) -> None:
    """Sleep a little longer than asked, so that the first look afterwards finds the time over."""
    await workflow.sleep(timedelta(seconds=seconds + 0.1))
