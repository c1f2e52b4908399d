"""How every job runs its steps and reads their failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.types import MethodAsyncSingleParam

with workflow.unsafe.imports_passed_through():
    from domain.ids import activity_id
    from domain.operations import Failure, system_of
    from domain.provisioning import RetryProfile
    from workflows.options import PROFILES, Profile

P = TypeVar("P")
R = TypeVar("R")


class Steps:
    """Runs activities with the options of one profile."""

    def __init__(self, profile: RetryProfile) -> None:
        self._profile: Profile = PROFILES[profile]

    async def run(self, name: str, method: MethodAsyncSingleParam[Any, P, R], request: P) -> R:
        """Run a step on the queue of its system until it is done.

        Raises:
            ActivityError: it was refused for good, or its budget is spent.
            CancelledError: the run was cancelled. Asked before each step, because an activity that finishes anyway
                swallows the cancellation of who awaits it.
        """
        if workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError
        config = self._profile.vendor.copy()
        config["activity_id"] = activity_id(name, 1)
        config["task_queue"] = system_of(name)
        config["summary"] = name
        return await workflow.execute_activity_method(method, request, **config)

    async def record(self, method: MethodAsyncSingleParam[Any, P, R], request: P) -> R:
        """Run an activity that writes our own database until it is done."""
        return await workflow.execute_activity_method(method, request, **self._profile.record)


async def together(*parts: Awaitable[Any]) -> list[Any]:
    """Await all parts to their end, then raise the first failure among them.

    Plain `gather` would raise at once and leave the others running behind the workflow's back.
    """
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def branch(part: Awaitable[Any]) -> Failure | None:
    """Await a branch and return why it failed, None if it did not, so that other branches go on."""
    try:
        await part
    except ActivityError as error:
        return failure_of(error)
    return None


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
