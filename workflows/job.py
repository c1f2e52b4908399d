"""What every job answers to: what people decide about it while it runs."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from domain.operations import DecisionAction
    from domain.provisioning import DecisionRequest
    from workflows.steps import Steps

STEP_NOT_PARKED = "step_not_parked"
NOT_CANCELABLE = "not_cancelable"


class Job:
    """The base of every workflow that runs an operation.

    Its updates only set what the steps look at, so they are answered at once. They are sent by the platform for a
    decision it has recorded; whoever sends one by hand leaves no event in the audit log.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @workflow.update(name=DecisionAction.RETRY.value, description="Try parked steps again.")
    async def retry(self, request: DecisionRequest) -> None:
        """Try parked steps again."""
        self._steps.decide(DecisionAction.RETRY, request.steps)

    @workflow.update(name=DecisionAction.SKIP.value, description="Go on without parked steps and what needs them.")
    async def skip(self, request: DecisionRequest) -> None:
        """Go on without parked steps and what depends on them."""
        self._steps.decide(DecisionAction.SKIP, request.steps)

    @workflow.update(name=DecisionAction.CANCEL.value, description="Stop, and undo what was made.")
    async def cancel(self, request: DecisionRequest) -> None:
        """Stop, and undo what was made."""
        del request  # the job is meant, not a step of it
        self._steps.cancel()

    @retry.validator
    def _may_retry(self, request: DecisionRequest) -> None:
        self._require_waiting(request)

    @skip.validator
    def _may_skip(self, request: DecisionRequest) -> None:
        self._require_waiting(request)

    @cancel.validator
    def _may_cancel(self, request: DecisionRequest) -> None:
        del request
        if self._steps.settled and not self._steps.canceled:
            raise ApplicationError("The outcome of the job stands.", type=NOT_CANCELABLE)

    def _require_waiting(self, request: DecisionRequest) -> None:
        waiting = self._steps.waiting
        if not request.steps or any(name not in waiting for name in request.steps):
            raise ApplicationError("Not all of these steps are parked.", type=STEP_NOT_PARKED)
