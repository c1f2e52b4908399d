"""Activities in a test: by their real names and queues, each doing what the script of its workflow says."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

from activities.authentik import AuthentikActivities
from activities.ocis import OcisActivities
from activities.stalwart import StalwartActivities
from activities.stripe import StripeActivities
from domain.errors import ControlPlaneError
from domain.ids import step_of_activity, tenant_lock, workflow_id
from domain.operations import DecisionAction, StepState, object_of
from domain.provisioning import (
    UNDOABLE,
    CloseRequest,
    DecisionRequest,
    OperationRequest,
    OutcomeRequest,
    ProvisionPlan,
    RetryProfile,
    Settlement,
    SpaceResult,
    StepRecord,
    TenantRequest,
    UndoPlan,
)
from runtime.clock import new_id
from runtime.failures import to_application_error
from worker import WORKFLOWS, workflow_runner
from workflows.options import PLATFORM_QUEUE

CLASSES: dict[str, type] = {
    "authentik": AuthentikActivities,
    "stalwart": StalwartActivities,
    "ocis": OcisActivities,
    "stripe": StripeActivities,
}
DOMAIN = "acme.example"
PLAN = ProvisionPlan(domains=[DOMAIN], mailbox_domain=DOMAIN, billing_enabled=True)
BLIND = timedelta(milliseconds=100)
MAIL_DOMAIN = f"stalwart.domain.{DOMAIN}"
DKIM = f"stalwart.dkim.{DOMAIN}"
# The steps that need a step, directly or not.
NEEDED_BY: dict[str, set[str]] = {
    "authentik.group": {"authentik.member"},
    "authentik.user": {"authentik.member"},
    "authentik.member": set(),
    "stalwart.role": {"stalwart.mailbox"},
    MAIL_DOMAIN: {DKIM, "stalwart.mailbox"},
    DKIM: {"stalwart.mailbox"},
    "stalwart.mailbox": set(),
    "ocis.group": {"ocis.member"},
    "ocis.space": {"ocis.member"},
    "ocis.member": set(),
    "stripe.customer": {"stripe.subscription"},
    "stripe.product": {"stripe.price", "stripe.subscription"},
    "stripe.price": {"stripe.subscription"},
    "stripe.subscription": set(),
}
STEPS = set(NEEDED_BY)


@dataclass
class Script:
    """What the activities of one run do, and what they did."""

    plan: ProvisionPlan = PLAN
    # What a step does in its attempts, in turn, before it succeeds.
    attempts: dict[str, list[Callable[[], Awaitable[None]]]] = field(default_factory=dict)
    quota_matches: bool = True
    # Creates that see another object made for the same purpose.
    doubles: frozenset[str] = frozenset()
    repeated: tuple[str, ...] = ()
    # How long after the outcome, and after each refused close, an attempt may still write.
    unsettled: timedelta | None = None
    not_yet: list[timedelta] = field(default_factory=list)

    # What a run before a reset has made.
    made: frozenset[str] = frozenset()

    begun: dict[str, datetime] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    # States that the workflow gave to steps, in its order.
    recorded: list[StepRecord] = field(default_factory=list)
    # For how long a canceled run is told to wait before it undoes anything.
    undo_waits: list[timedelta] = field(default_factory=list)
    canceled_before_outcome: bool = False
    outcome_stands: bool = False
    outcome: OutcomeRequest | None = None
    abandoned: OutcomeRequest | None = None
    undo_planned_at: datetime | None = None
    settled_at: datetime | None = None
    closes: list[tuple[CloseRequest, datetime, datetime | None]] = field(default_factory=list)

    def fails(self, step: str, *errors: ControlPlaneError) -> Script:
        """Let the attempts of a step fail in turn, as the interceptor would report it."""
        self.attempts[step] = [_raising(error) for error in errors]
        return self

    async def step(self, request: dict[str, Any]) -> SpaceResult:
        """Act out one attempt of the step of the running activity."""
        info = activity.info()
        name = step_of_activity(info.activity_id)
        assert name is not None
        self.begun[name] = info.started_time
        self.requests[name] = request
        self.running.add(name)
        try:
            todo = self.attempts.get(name)
            if todo:
                await todo.pop(0)()
        finally:
            self.running.discard(name)
        self.ended.append(name)
        return SpaceResult(resource_id="1", quota_matches=self.quota_matches, doubles=name in self.doubles)

    def record_outcome(self, request: OutcomeRequest) -> Settlement:
        """Keep the outcome and say what has to settle."""
        if self.canceled_before_outcome:
            return Settlement(canceled=True)
        self.outcome = request
        now = activity.info().scheduled_time
        self.settled_at = now + self.unsettled if self.unsettled is not None else None
        seconds = self.unsettled.total_seconds() if self.unsettled is not None else 0.0
        return Settlement(unsettled_seconds=seconds, repeated=list(self.repeated))

    def plan_undoing(self) -> UndoPlan:
        """Say what is to be undone, and how long to wait before."""
        if self.outcome_stands:
            return UndoPlan(outcome_stands=True)
        wait = self.undo_waits.pop(0) if self.undo_waits else timedelta(0)
        self.undo_planned_at = activity.info().scheduled_time
        tried = [name for name in self.plan.steps if name in {*self.begun, *self.made} and object_of(name) in UNDOABLE]
        return UndoPlan(unsettled_seconds=wait.total_seconds(), steps=tried)

    @property
    def waiting(self) -> set[str]:
        """The steps whose last given state is parked."""
        last = {name: record.state for record in self.recorded for name in record.steps}
        return {name for name, state in last.items() if state is StepState.PARKED}

    def states(self, name: str) -> list[str]:
        """Return the states that the workflow gave to a step, in turn."""
        return [record.state.value for record in self.recorded if name in record.steps]

    def close(self, request: CloseRequest) -> float:
        """Keep the close, and refuse it for as long as the script says."""
        now = activity.info().scheduled_time
        wait = self.not_yet.pop(0) if self.not_yet else None
        self.closes.append((request, now, now + wait if wait is not None else None))
        return wait.total_seconds() if wait is not None else 0.0

    @property
    def closed(self) -> CloseRequest:
        """The close that was accepted."""
        (accepted,) = [request for request, _, until in self.closes if until is None]
        return accepted


def _raising(error: ControlPlaneError) -> Callable[[], Awaitable[None]]:
    async def attempt() -> None:
        raise to_application_error(error) from None

    return attempt


class Stage:
    """Workers that serve every queue, and the runs they act out."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._scripts: dict[str, Script] = {}

    async def start(
        self, script: Script, *, profile: RetryProfile = RetryProfile.PRODUCTION, operation_id: str | None = None
    ) -> WorkflowHandle[Any, None]:
        """Start a provisioning run that follows the script."""
        operation_id = operation_id or new_id()
        identifier = workflow_id(tenant_lock("acme"), operation_id)
        self._scripts[identifier] = script
        request = OperationRequest(operation_id=operation_id, tenant_slug="acme", profile=profile)
        return await self._client.start_workflow(
            "ProvisionTenant",
            request,
            id=identifier,
            task_queue=PLATFORM_QUEUE,
            execution_timeout=timedelta(days=7),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )

    async def play(self, script: Script) -> Script:
        """Run to the end, and return the script with what was done."""
        await (await self.start(script)).result()
        return script

    async def parked(self, script: Script, *steps: str) -> None:
        """Return once exactly these steps wait for a decision."""
        while script.waiting != set(steps):
            await self.moment()

    async def decide(self, handle: WorkflowHandle[Any, None], action: DecisionAction, *steps: str) -> None:
        """Send a decision to a run."""
        await handle.execute_update(action.value, DecisionRequest(steps=list(steps)))

    async def moment(self) -> None:
        """Let a moment of real time pass, for a loop that waits for what activities do."""
        await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def working(self, workflows: Sequence[type] = WORKFLOWS) -> AsyncIterator[Stage]:
        """Serve all queues for the length of the block."""
        platform: list[Callable[..., Any]] = [
            self._plan,
            self._record,
            self._plan_undoing,
            self._outcome,
            self._abandoned,
            self._close,
        ]
        queues = {PLATFORM_QUEUE: platform, **{queue: self._mocks(each) for queue, each in CLASSES.items()}}
        async with contextlib.AsyncExitStack() as running:
            for queue, activities in queues.items():
                worker = Worker(
                    self._client,
                    task_queue=queue,
                    workflows=workflows if queue == PLATFORM_QUEUE else [],
                    activities=activities,
                    workflow_runner=workflow_runner(),
                    max_heartbeat_throttle_interval=BLIND,
                    default_heartbeat_throttle_interval=BLIND,
                )
                await running.enter_async_context(worker)
            yield self

    def _mocks(self, of: type) -> list[Callable[..., Any]]:
        return [self._mock(name) for name in activity_names(of)]

    def _mock(self, name: str) -> Callable[..., Any]:
        @activity.defn(name=name)
        async def run(request: dict[str, Any]) -> SpaceResult:
            return await self._script().step(request)

        return run

    @activity.defn(name="plan_provision")
    async def _plan(self, _request: TenantRequest) -> ProvisionPlan:
        return self._script().plan

    @activity.defn(name="record_tenant_outcome")
    async def _outcome(self, request: OutcomeRequest) -> Settlement:
        return self._script().record_outcome(request)

    @activity.defn(name="record_step")
    async def _record(self, request: StepRecord) -> None:
        self._script().recorded.append(request)

    @activity.defn(name="plan_undoing")
    async def _plan_undoing(self, _request: TenantRequest) -> UndoPlan:
        return self._script().plan_undoing()

    @activity.defn(name="record_tenant_abandoned")
    async def _abandoned(self, request: OutcomeRequest) -> None:
        self._script().abandoned = request

    @activity.defn(name="close_operation")
    async def _close(self, request: CloseRequest) -> float:
        return self._script().close(request)

    def _script(self) -> Script:
        identifier = activity.info().workflow_id
        assert identifier is not None
        return self._scripts[identifier]


def activity_names(of: type) -> list[str]:
    """Return the names of the activities of a class."""
    methods = [method for _, method in inspect.getmembers(of, inspect.isfunction)]
    definitions = [activity._Definition.from_callable(method) for method in methods]
    return [each.name for each in definitions if each is not None and each.name is not None]


async def until_cancelled(*, finish_anyway: bool = False) -> None:
    """Heartbeat until the step is cancelled; then end as cancelled, or do the work after all."""
    try:
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        if not finish_anyway:
            raise
