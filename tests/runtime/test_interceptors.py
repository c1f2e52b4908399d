"""What is recorded around an attempt: before the vendor is called, and when and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from temporalio import activity, workflow
from temporalio.api.failure.v1 import Failure
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from temporalio.workflow import ActivityCancellationType

from domain.errors import (
    AttemptOutdated,
    ForeignObject,
    NotReadyYet,
    OperationClosed,
    OutcomeUnknown,
    VendorRateLimited,
    VendorUnavailable,
)
from domain.operations import Acting, Fence, StepState
from domain.provisioning import RetryProfile, StepRecord, StepResult
from domain.tenants import SystemStatus
from integrations import call_context
from runtime.clock import utcnow
from runtime.codec import build_data_converter
from runtime.interceptors import MARGIN, StepInterceptor
from runtime.recorder import Recorder
from runtime.search_attributes import ensure_search_attributes
from runtime.steps import current_step
from runtime.wiring import Store, Vendors, build_breakers, build_recorder
from sandbox.stack.layout import find_binary
from tests.activities.jobs import START_TO_CLOSE, Job, open_job
from tests.support.keys import key_ring

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

STEP = "ocis.space"
ACTING = Acting(action="ocis.space_created", resource_type="ocis_space", resource_id="alias")
DONE = StepResult(resource_id="1")


@pytest_asyncio.fixture(loop_scope="session")
async def job(store: Store) -> Job:
    """A new tenant's job."""
    return await open_job(store)


async def succeed() -> StepResult:
    """Change something outside, and succeed."""
    await current_step().acting(ACTING)
    return DONE


def fail(error: Exception, *, acting: bool = True) -> Callable[[], Awaitable[Any]]:
    """Return a body that fails, after it said what it is about to change."""

    async def body() -> None:
        if acting:
            await current_step().acting(ACTING)
        raise error

    return body


async def refusal(attempt: Awaitable[Any]) -> ApplicationError:
    """Return what an attempt fails with."""
    with pytest.raises(ApplicationError) as caught:
        await attempt
    return caught.value


async def test_recorded_before_the_vendor_is_called(job: Job) -> None:
    """While the vendor is called, the attempt stands on the operation with the time by which it must end."""
    seen = []

    async def look() -> StepResult:
        seen.append(await job.step(STEP))
        return DONE

    before = utcnow()
    assert await job.attempt(STEP, look) == DONE
    (step,) = seen
    assert (step.state, step.attempts) == (StepState.RUNNING, 1)
    assert step.attempt is not None
    assert before <= step.attempt.started_at <= utcnow()
    assert step.attempt.deadline == step.attempt.started_at + START_TO_CLOSE
    assert step.may_write_until == step.attempt.deadline


async def test_not_recorded_not_called(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the attempt cannot be recorded, the vendor is not called and the attempt fails for a while."""
    called = []

    async def body() -> None:
        called.append(True)

    async def away(*_args: object) -> None:
        raise VendorUnavailable("mongodb", "away", code="database_unavailable")

    monkeypatch.setattr(store.operations, "begin_attempt", away)
    error = await refusal(job.attempt(STEP, body))
    assert (error.type, error.non_retryable, called) == ("database_unavailable", False, [])


async def test_done(job: Job) -> None:
    """A step that is done shows no error and nothing that may still write, and its event says so."""
    await job.attempt(STEP, succeed)
    operation = await job.operation()
    step = operation.step(STEP)
    assert (step.state, step.last_error, step.next_retry_at, step.may_write_until) == (StepState.DONE, None, None, None)
    assert (operation.progress.done, operation.progress.total) == (1, 1)
    assert await job.events() == [("ocis.space_created", "success")]


async def test_failed_for_a_while(job: Job) -> None:
    """A failed attempt shows its code, the attempts so far and the next one, on the operation and for the tenant."""
    for attempts, pause in ((1, 1), (2, 2)):
        before = utcnow()
        await refusal(job.attempt(STEP, fail(VendorUnavailable("ocis", "502 from proxy7"))))
        step = await job.step(STEP)
        assert (step.state, step.attempts) == (StepState.RETRYING, attempts)
        assert step.last_error is not None
        assert (step.last_error.code, step.last_error.message) == ("vendor_unavailable", "502 from proxy7")
        assert step.attempt is not None
        assert step.attempt.ended_at is not None
        assert step.next_retry_at is not None
        assert before <= step.next_retry_at - timedelta(seconds=pause) <= utcnow()
    tenant = await job.tenant()
    assert tenant.provisioning_status["ocis"] is SystemStatus.ERROR
    shown = tenant.provisioning_errors["ocis"]
    assert (shown.code, shown.attempts, shown.next_retry_at) == ("vendor_unavailable", 2, step.next_retry_at)
    assert "proxy7" not in shown.message
    assert tenant.version == 1
    assert await job.events() == []


async def test_healed(job: Job) -> None:
    """Once the step is done, the tenant's system is ok and its error gone; the version of the tenant stays."""
    await refusal(job.attempt(STEP, fail(VendorUnavailable("ocis", "away"))))
    await job.attempt(STEP, succeed)
    tenant = await job.tenant()
    assert (tenant.provisioning_status["ocis"], tenant.provisioning_errors, tenant.version) == (SystemStatus.OK, {}, 1)
    assert await job.events() == [("ocis.space_created", "success")]


@pytest.mark.parametrize("info", [{}, {"schedule_to_close_timeout": timedelta(seconds=1)}], ids=["refused", "spent"])
async def test_failed_for_good(job: Job, info: dict[str, Any]) -> None:
    """A step that is refused for good, or has no time left, is failed, and its event says that it failed."""
    error = VendorUnavailable("ocis", "away") if info else ForeignObject("ocis", "not ours")
    await refusal(job.attempt(STEP, fail(error), **info))
    step = await job.step(STEP)
    assert (step.state, step.next_retry_at) == (StepState.FAILED, None)
    assert (await job.tenant()).provisioning_status["ocis"] is SystemStatus.ERROR
    assert await job.events() == [], "a newer attempt may still succeed"
    await job.close()
    assert await job.events() == [("ocis.space_created", "failure")]


async def test_shared_object(job: Job, store: Store) -> None:
    """What several tenants share was made once, however many runs believe that they made it."""
    other = await open_job(store)
    shared = ACTING.model_copy(update={"resource_id": job.slug, "shared": True})

    async def make() -> StepResult:
        await current_step().acting(shared)
        return DONE

    await asyncio.gather(job.attempt(STEP, make), other.attempt(STEP, make))
    assert [*await job.events(), *await other.events()] == [("ocis.space_created", "success")]


async def test_succeeded_after_a_failure_for_good(job: Job) -> None:
    """A step that failed for good and was done all the same, after a reset, is told of as done, and only so."""
    await refusal(job.attempt(STEP, fail(ForeignObject("ocis", "not ours"))))
    await job.attempt(STEP, succeed)
    await job.close()
    assert await job.events() == [("ocis.space_created", "success")]


async def test_refused_before_acting(job: Job) -> None:
    """A step that was refused before it changed anything leaves no event: nothing was done."""
    await refusal(job.attempt(STEP, fail(ForeignObject("ocis", "not ours"), acting=False)))
    assert await job.events() == []


async def test_died_between_write_and_end(job: Job) -> None:
    """An attempt that died after its write is told of by the next one, which finds the object and writes nothing."""
    environment = ActivityEnvironment()

    async def die() -> None:
        await current_step().acting(ACTING)
        environment.cancel()
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await job.attempt(STEP, die, environment=environment)
    lost = await job.step(STEP)
    assert lost.state is StepState.RUNNING
    assert lost.attempt is not None
    assert await job.events() == []

    async def find() -> StepResult:
        return DONE

    await job.attempt(STEP, find)
    step = await job.step(STEP)
    assert (step.state, step.attempts, step.unsettled_until) == (StepState.DONE, 2, lost.attempt.deadline)
    assert await job.events() == [("ocis.space_created", "success")]


async def test_repeated_end_is_one_event(job: Job) -> None:
    """A step whose success did not reach Temporal runs again, and its event stands once."""
    await job.attempt(STEP, succeed)
    await job.attempt(STEP, succeed)
    assert await job.events() == [("ocis.space_created", "success")]


async def test_closed_operation(job: Job) -> None:
    """An attempt of an operation that has ended fails for good, before its body, and records nothing."""
    await job.close()
    before = await job.operation()
    called = []

    async def body() -> None:
        called.append(True)

    error = await refusal(job.attempt(STEP, body))
    assert (error.type, error.non_retryable, called) == ("operation_closed", True, [])
    assert await job.operation() == before


async def test_closed_meanwhile(job: Job) -> None:
    """An attempt whose operation ends under it may not act any more, and its end changes nothing."""
    closed = []

    async def body() -> None:
        await job.close()
        closed.append(await job.operation())
        await current_step().acting(ACTING)

    error = await refusal(job.attempt(STEP, body))
    assert (error.type, error.non_retryable) == ("operation_closed", True)
    assert [await job.operation()] == closed
    assert await job.events() == []


@pytest.mark.parametrize("late_ends_well", [True, False], ids=["done", "failed"])
async def test_late_attempt(job: Job, late_ends_well: bool) -> None:
    """An attempt that was given up may neither act nor overwrite what a newer one has recorded."""
    begun, newer_done = asyncio.Event(), asyncio.Event()
    refused = []

    async def late() -> StepResult:
        begun.set()
        await newer_done.wait()
        try:
            await current_step().acting(ACTING)
        except AttemptOutdated as error:
            refused.append(error.code)
        if not late_ends_well:
            raise VendorUnavailable("ocis", "late")
        return DONE

    running = asyncio.create_task(job.attempt(STEP, late, number=1))
    await begun.wait()
    await job.attempt(STEP, succeed, number=2)
    recorded = await job.step(STEP)
    newer_done.set()
    await asyncio.gather(running, return_exceptions=True)
    assert refused == ["attempt_outdated"]
    assert await job.step(STEP) == recorded
    assert (recorded.state, recorded.attempts) == (StepState.DONE, 2)


async def test_attempt_overtaken_before_it_began(job: Job) -> None:
    """An attempt that reaches the database after a newer one does not begin."""
    await job.attempt(STEP, succeed, number=2)
    error = await refusal(job.attempt(STEP, succeed, number=1))
    assert (error.type, error.non_retryable) == ("attempt_outdated", False)


async def test_outcome_unknown_keeps_the_lock(job: Job) -> None:
    """A write whose answer was lost may be carried out until the deadline, also after the step is done."""
    await refusal(job.attempt(STEP, fail(OutcomeUnknown("ocis", "lost"))))
    step = await job.step(STEP)
    assert step.attempt is not None
    assert step.unsettled_until == step.attempt.deadline
    await job.attempt(STEP, succeed)
    assert (await job.operation()).unsettled_until == step.unsettled_until


async def test_still_working(job: Job) -> None:
    """A poll that has not seen the end is pending for people, and asks again after its own time."""
    error = NotReadyYet("ocis", "soon", retry_after=timedelta(seconds=1))
    refused = await refusal(job.attempt(STEP, fail(error, acting=False)))
    assert refused.next_retry_delay == timedelta(seconds=1)
    tenant = await job.tenant()
    assert (tenant.provisioning_status["ocis"], tenant.provisioning_errors) == (SystemStatus.PENDING, {})


async def test_branches_at_once(job: Job) -> None:
    """Steps of several systems that begin and end at once lose nothing of each other's record."""
    names = [f"{system}.step{number}" for system in ("authentik", "stalwart", "ocis", "stripe") for number in range(2)]
    await asyncio.gather(*(job.attempt(name, succeed) for name in names))
    operation = await job.operation()
    assert {name: operation.step(name).state for name in names} == dict.fromkeys(names, StepState.DONE)
    assert operation.progress.done == len(names)
    assert set((await job.tenant()).provisioning_status.values()) == {SystemStatus.OK}
    assert len(await job.events()) == len(names)


async def test_heartbeats(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step heartbeats for as long as its body runs."""
    monkeypatch.setattr("runtime.interceptors.HEARTBEAT_EVERY_SECONDS", 0.001)
    environment = ActivityEnvironment()
    beaten = asyncio.Event()
    beats = []

    def beat(*details: object) -> None:
        beats.append(details)
        if len(beats) == 3:
            beaten.set()

    environment.on_heartbeat = beat
    await job.attempt(STEP, beaten.wait, environment=environment)
    ended = len(beats)
    await asyncio.sleep(0.01)
    assert len(beats) == ended


async def test_deadline_reaches_the_clients(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client must end before the recorded deadline, however long recording the attempt took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    begin = store.operations.begin_attempt
    slow = 0.2

    async def begin_slowly(*args: Any) -> Any:
        step = await begin(*args)
        await asyncio.sleep(slow)
        return step

    async def left() -> float:
        deadline = call_context.deadline.get()
        assert deadline is not None
        return deadline - began

    monkeypatch.setattr(store.operations, "begin_attempt", begin_slowly)
    assert await job.attempt(STEP, left) < (START_TO_CLOSE - MARGIN).total_seconds() + slow


async def test_correlation_id_reaches_the_vendor(job: Job, vendors: Vendors, standins: dict[str, str]) -> None:
    """The vendor sees which attempt of which operation calls."""
    await job.attempt(STEP, lambda: vendors.ocis.find_spaces("nothing"))
    async with httpx.AsyncClient(trust_env=False) as http:
        seen = (await http.get(f"{standins['ocis']}/_sandbox/requests")).json()["items"]
    assert seen[-1]["requestId"] == f"{job.workflow_id}/{STEP}.1/1"


async def test_activity_that_is_no_step(job: Job) -> None:
    """An activity that writes only our own database is not recorded, and its errors are translated all the same."""
    before = await job.operation()

    async def fails() -> None:
        with pytest.raises(LookupError):
            current_step()
        raise OperationClosed("ended")

    assert (await refusal(job.attempt(STEP, fails, activity_id="7"))).type == "operation_closed"
    assert await job.operation() == before


async def test_step_without_deadline(job: Job) -> None:
    """A step without a start-to-close timeout is refused: nothing would say when its lock may go."""
    with pytest.raises(ValueError, match="start-to-close"):
        await job.attempt(STEP, succeed, start_to_close_timeout=None)


# On a real server: what Temporal makes of it.

QUEUE = "steps"
FIRST_PAUSE = timedelta(seconds=0.5)
Body = Callable[[], Awaitable[Any]]


@workflow.defn(name="OneStep")
class OneStep:
    """Runs the step once as a job would."""

    @workflow.run
    async def run(self, budget_seconds: float) -> None:
        """Run it to its end."""
        await workflow.execute_activity(
            "attempt",
            activity_id=f"{STEP}.1",
            start_to_close_timeout=timedelta(seconds=20),
            schedule_to_close_timeout=timedelta(seconds=budget_seconds),
            heartbeat_timeout=timedelta(seconds=5),
            retry_policy=RetryPolicy(initial_interval=FIRST_PAUSE),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


class Recorded(Recorder):
    """The real recorder, which also keeps the times at which it said that the next attempt would be."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.operations, store.tenants, store.audit)
        self.promised: list[datetime | None] = []

    async def failed(
        self, operation_id: str, name: str, fence: Fence, error: BaseException, retry_at: datetime | None
    ) -> None:
        """Keep the time and record the failure."""
        self.promised.append(retry_at)
        await super().failed(operation_id, name, fence, error, retry_at)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def temporal() -> AsyncIterator[Client]:
    """A client of a real server."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=build_data_converter(key_ring("tests"))
    )
    async with environment:
        await ensure_search_attributes(environment.client)
        yield environment.client


class Run:
    """One run of the step on a real server."""

    def __init__(self, client: Client, store: Store, job: Job, bodies: list[Body]) -> None:
        self._client = client
        self._job = job
        self._bodies = bodies
        self.recorder = Recorded(store)
        self._breakers = build_breakers(store, RetryProfile.FAST)
        self.scheduled: list[datetime] = []

    @contextlib.asynccontextmanager
    async def started(self, *, budget: timedelta = timedelta(minutes=1)) -> AsyncIterator[WorkflowHandle[Any, Any]]:
        """Start it, with a worker for the length of the block."""
        worker = Worker(
            self._client,
            task_queue=QUEUE,
            workflows=[OneStep],
            activities=[self._attempt],
            interceptors=[StepInterceptor(self.recorder, self._breakers)],
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
            default_heartbeat_throttle_interval=timedelta(milliseconds=50),
        )
        async with worker:
            yield await self._client.start_workflow(
                "OneStep",
                budget.total_seconds(),
                id=self._job.workflow_id,
                task_queue=QUEUE,
                execution_timeout=timedelta(minutes=1),
            )

    @activity.defn(name="attempt")
    async def _attempt(self) -> None:
        self.scheduled.append(activity.info().current_attempt_scheduled_time)
        await self._bodies.pop(0)()


async def test_next_attempt_is_when_it_was_said(temporal: Client, store: Store, job: Job) -> None:
    """The recorded time of the next attempt is the one at which Temporal schedules it, whoever chose the pause."""
    errors = [
        VendorRateLimited("ocis", "slow down", retry_after=timedelta(0)),
        VendorRateLimited("ocis", "slow down", retry_after=timedelta(seconds=1.2)),
        VendorUnavailable("ocis", "away"),
    ]
    run = Run(temporal, store, job, [*(fail(error) for error in errors), succeed])
    async with run.started() as handle:
        await handle.result()
    for promised, scheduled in zip(run.recorder.promised, run.scheduled[1:], strict=True):
        assert promised is not None
        assert abs(scheduled - promised) < FIRST_PAUSE * 0.8
    step = await job.step(STEP)
    assert (step.state, step.attempts) == (StepState.DONE, 4)
    assert await job.events() == [("ocis.space_created", "success")]


async def test_budget_ends_when_it_was_said(temporal: Client, store: Store, job: Job) -> None:
    """Where the next attempt would lie beyond the budget, the step is failed at once, here and in Temporal."""
    error = VendorRateLimited("ocis", "slow down", retry_after=timedelta(minutes=2))
    run = Run(temporal, store, job, [fail(error)])
    async with run.started() as handle:
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert run.recorder.promised == [None]
    assert (await job.step(STEP)).state is StepState.FAILED
    await job.close()
    assert await job.events() == [("ocis.space_created", "failure")]


async def test_cancel_reaches_a_running_step(
    temporal: Client, store: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running step hears by its heartbeats that its run was cancelled, and its attempt keeps the lock."""
    monkeypatch.setattr("runtime.interceptors.HEARTBEAT_EVERY_SECONDS", 0.05)
    acting = asyncio.Event()

    async def hang() -> None:
        await current_step().acting(ACTING)
        acting.set()
        await asyncio.Event().wait()

    run = Run(temporal, store, job, [hang])
    async with run.started() as handle:
        await acting.wait()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    step = await job.step(STEP)
    assert step.attempt is not None
    assert (step.state, step.may_write_until) == (StepState.RUNNING, step.attempt.deadline)
    assert await job.events() == []


@pytest.mark.parametrize("state", [StepState.PARKED, StepState.SKIPPED, StepState.COMPENSATED])
@pytest.mark.parametrize("late", ["done", "lost"])
async def test_late_end_of_a_step_that_was_given_up(store: Store, job: Job, state: StepState, late: str) -> None:
    """An attempt that ends after its workflow gave the step up leaves it so; what it may still do holds the lock."""

    async def give_up() -> StepResult:
        await current_step().acting(ACTING)
        record = StepRecord(operation_id=job.operation_id, steps=[STEP], state=state, failure=None)
        await build_recorder(store).set_steps(record, utcnow())
        if late == "lost":
            raise OutcomeUnknown("ocis", "no answer")
        return DONE

    with contextlib.suppress(ApplicationError):
        await job.attempt(STEP, give_up)
    step = await job.step(STEP)
    assert step.attempt is not None
    assert (step.state, step.attempt.ended_at is not None) == (state, True)
    assert (step.may_write_until is not None) is (late == "lost")


OTHER = Acting(action=ACTING.action, resource_type="ocis_space", resource_id="another")


async def test_what_a_lost_attempt_was_about_to_change_is_told(job: Job) -> None:
    """An attempt that changes something else than the lost one before leaves that one its event."""
    await refusal(job.attempt(STEP, fail(OutcomeUnknown("ocis", "no answer"))))

    async def another() -> StepResult:
        await current_step().acting(OTHER)
        return DONE

    await job.attempt(STEP, another)
    events = await job.step_events()
    assert [(each.resource.id, each.outcome.value, each.metadata) for each in events] == [
        ("alias", "failure", {"code": "outcome_unknown"}),
        ("another", "success", {}),
    ]


async def test_every_change_of_one_attempt_is_told(job: Job) -> None:
    """An attempt that changes two things leaves two events, repeated or not; one that it takes back leaves none."""

    async def both() -> StepResult:
        for acting in (ACTING, ACTING, OTHER):
            await current_step().acting(acting)
        await current_step().acting(ACTING.model_copy(update={"resource_id": "third"}))
        await current_step().not_acting()
        return DONE

    await job.attempt(STEP, both)
    assert [(each.resource.id, each.outcome.value) for each in await job.step_events()] == [
        ("alias", "success"),
        ("another", "success"),
    ]


async def test_nothing_else_is_announced_by_an_outdated_attempt(job: Job) -> None:
    """An attempt that a newer one has replaced turns to nothing else."""

    async def outdated() -> StepResult:
        await current_step().acting(ACTING)
        await job.attempt(STEP, succeed)
        await current_step().acting(OTHER)
        return DONE

    assert (await refusal(job.attempt(STEP, outdated))).type == "attempt_outdated"
    assert (await job.step(STEP)).acting == ACTING


@pytest.mark.parametrize(
    "error", [VendorUnavailable("ocis", "away"), ValueError("Bearer abc.SECRET")], ids=["ours", "a bug"]
)
async def test_nothing_leaves_with_its_cause(job: Job, error: Exception) -> None:
    """What Temporal keeps is our bounded, redacted sentence, and not the exception behind it."""
    told = await refusal(job.attempt(STEP, fail(error)))
    assert told.__cause__ is None
    assert told.__suppress_context__
    failure = Failure()
    await build_data_converter(None).encode_failure(told, failure)
    assert not failure.HasField("cause")
    assert "SECRET" not in failure.message
