"""An operation: one run of one job, as people read it. It outlives Temporal's memory of the workflow."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from domain.model import Model, Timestamp


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
    created_at: Timestamp
    started_at: Timestamp | None = None
    closed_at: Timestamp | None = None

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
