"""An operation: one run of one job, as people read it. It outlives Temporal's memory of the workflow."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from domain.model import Model, Timestamp

UNDO = "_undo"


class OperationKind(StrEnum):
    """What a job does; the value is a wire contract and a search attribute."""

    TENANT_PROVISION = "tenant.provision"


class OperationState(StrEnum):
    """Where an operation stands."""

    WAITING = "waiting"
    RUNNING = "running"
    NEEDS_OPERATOR = "needsOperator"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"
    TERMINATED = "terminated"
    TIMED_OUT = "timedOut"


class StepState(StrEnum):
    """Where a step stands. `lost` is never stored: readers derive it from a passed deadline."""

    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    LOST = "lost"
    PARKED = "parked"
    SKIPPED = "skipped"
    DONE = "done"
    FAILED = "failed"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"


FINISHED_STEPS = frozenset({StepState.DONE, StepState.SKIPPED})
# Nothing more will happen to them. `failed` is not among them: it is what an operation that ended makes of the rest.
SETTLED_STEPS = FINISHED_STEPS | {StepState.COMPENSATED}


class DecisionAction(StrEnum):
    """What a person may decide about a job; the value is the name of the workflow's update."""

    RETRY = "retry"
    SKIP = "skip"
    CANCEL = "cancel"


class Failure(Model):
    """Why a step or an operation failed. `message` may quote a vendor: for operators only."""

    code: str
    message: str
    step: str | None = None


class Fence(Model):
    """Orders the attempts of a step: a write of an older attempt never replaces that of a newer one."""

    scheduled_at: Timestamp
    number: int


class Attempt(Model):
    """The newest attempt of a step that was recorded before its vendor was called."""

    fence: Fence
    started_at: Timestamp
    deadline: Timestamp
    ended_at: Timestamp | None = None


class Acting(Model):
    """What an attempt was about to change outside; the attempt that ends the step turns it into an audit event."""

    action: str
    resource_type: str
    resource_id: str
    # Several tenants share the object: however many runs believe they made it, it was made once.
    shared: bool = False


class Step(Model):
    """One vendor write, or one wait, and all that is known about it."""

    name: str
    state: StepState = StepState.PENDING
    attempts: int = 0
    attempt: Attempt | None = None
    # An attempt that ended without our knowing how may still write until then.
    unsettled_until: Timestamp | None = None
    # When the workflow last gave it a state, by Temporal's clock: attempts that were scheduled before are outdated.
    given_at: Timestamp | None = None
    acting: Acting | None = None
    key_number: int = 1
    replayed_error: bool = False
    last_error: Failure | None = None
    next_retry_at: Timestamp | None = None

    def state_at(self, now: datetime) -> StepState:
        """Return the state with `lost` derived: running, but its attempt's deadline has passed."""
        lost = self.state is StepState.RUNNING and self.attempt is not None and now > self.attempt.deadline
        return StepState.LOST if lost else self.state

    @property
    def may_write_until(self) -> datetime | None:
        """Return the latest time at which an attempt of this step may still write outside, as far as known."""
        running = self.attempt.deadline if self.attempt is not None and self.attempt.ended_at is None else None
        times = [time for time in (running, self.unsettled_until) if time is not None]
        return max(times) if times else None


class Progress(Model):
    """How far an operation is, in steps."""

    done: int = 0
    total: int = 0
    message: str = ""


class Decision(Model):
    """What was decided about an open operation and has not taken effect yet.

    Kept here in the transaction that accepts it, so it reaches the workflow however often it has to be sent.
    """

    id: str
    action: DecisionAction
    # The parked steps it is about; none for a cancel.
    steps: list[str] = Field(default_factory=list)
    at: Timestamp


class RequestedBy(Model):
    """Who asked for it, as the audit log names actors; ids only, never personal data."""

    type: str
    id: str


class Operation(Model):
    """One run of one job."""

    id: str = Field(alias="_id")
    kind: OperationKind
    lock_key: str
    open: bool
    state: OperationState
    revision: int = 1
    workflow_id: str
    tenant_slug: str | None = None
    partner_slug: str | None = None
    input: dict[str, Any] = Field(default_factory=dict)
    requested_by: RequestedBy
    request_id: str | None = None
    reason: str | None = None
    plan_hash: str | None = None
    steps: dict[str, Step] = Field(default_factory=dict)
    progress: Progress = Progress()
    result: dict[str, Any] | None = None
    error: Failure | None = None
    decisions: list[Decision] = Field(default_factory=list)
    cancel_requested_at: Timestamp | None = None
    # Since then what it made is being undone, and no other step may begin.
    undoing_since: Timestamp | None = None
    # Since then its outcome stands, and it can no longer be canceled.
    settled_at: Timestamp | None = None
    created_at: Timestamp
    started_at: Timestamp | None = None
    closed_at: Timestamp | None = None

    @property
    def parked_steps(self) -> list[str]:
        """Return the names of the steps that wait for a decision, without those about which one is on its way."""
        decided = {name for decision in self.decisions for name in decision.steps}
        parked = [step.name for step in self.steps.values() if step.state is StepState.PARKED]
        return [name for name in parked if name not in decided]

    def parked_for(self, system: str, codes: frozenset[str]) -> list[str]:
        """Return the steps of a system that wait for a decision and were refused with one of these codes."""
        return [
            name
            for name in self.parked_steps
            if system_of(name) == system and (error := self.step(name).last_error) is not None and error.code in codes
        ]

    @property
    def cancelable(self) -> bool:
        """Whether it can still be canceled."""
        return self.open and self.settled_at is None

    def step(self, name: str) -> Step:
        """Return the step of that name, pending if it was never recorded."""
        return self.steps.get(step_key(name)) or Step(name=name)

    @property
    def unsettled_until(self) -> datetime | None:
        """Return the time until which some attempt may still write outside, None if all have ended."""
        times = [time for step in self.steps.values() if (time := step.may_write_until) is not None]
        return max(times) if times else None

    def unsettled_for(self, now: datetime) -> float:
        """Return for how many seconds some attempt may still write outside, 0 if none can.

        Both ends of that time are by the clock of our own processes, never by Temporal's.
        """
        until = self.unsettled_until
        return max((until - now).total_seconds(), 0.0) if until is not None else 0.0


def step_key(name: str) -> str:
    """Return the key of a step in `Operation.steps`: a dot would be a path in MongoDB."""
    return name.replace(".", "/")


def system_of(step: str) -> str:
    """Return the outside system a step belongs to."""
    return step.split(".", 1)[0]


def object_of(step: str) -> str:
    """Return a step's system and object, without its target."""
    return ".".join(step.split(".", 2)[:2])


def undo_of(step: str) -> str:
    """Return the name of the step that removes what a step made."""
    return f"{object_of(step)}{UNDO}{step.removeprefix(object_of(step))}"


def is_undo(step: str) -> bool:
    """Tell whether a step removes what another one made."""
    return object_of(step).endswith(UNDO)
