"""The dispatcher on a real Temporal: every intent is started once, and no ending stays untold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from domain.audit import ActorType
from domain.operations import Attempt, Fence, Operation, OperationState, Step, StepState, step_key
from domain.provisioning import RetryProfile
from domain.tenants import SystemFailure, SystemStatus
from runtime import dispatcher as dispatching
from runtime.clock import utcnow
from runtime.codec import build_data_converter
from runtime.dispatcher import Dispatcher
from runtime.search_attributes import ensure_search_attributes
from runtime.wiring import Store, build_recorder
from sandbox.stack.layout import find_binary
from tests.store.builders import LONG_AGO, build_operation, build_tenant, keep
from tests.support.keys import key_ring

ELSEWHERE = "stand-in-for-a-job"


@workflow.defn(name="Ending", sandboxed=False)
class Ending:
    """Ends as it is told, without closing its operation."""

    @workflow.run
    async def run(self, how: str) -> None:
        if how == "failed":
            raise ApplicationError("told so")
        if how != "completed":
            await workflow.wait_condition(lambda: False)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def temporal() -> AsyncIterator[Client]:
    """A real Temporal that nobody works for."""
    server = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=build_data_converter(key_ring("tests"))
    )
    async with server:
        await ensure_search_attributes(server.client)
        yield server.client


@pytest.fixture
def dispatcher(temporal: Client, store: Store) -> Dispatcher:
    """The dispatcher of a worker."""
    return build_dispatcher(temporal, store)


def build_dispatcher(client: Client, store: Store) -> Dispatcher:
    return Dispatcher(client, store.database, build_recorder(store), store.audit, RetryProfile.FAST)


async def reread(store: Store, operation: Operation) -> Operation:
    found = await store.operations.get(operation.id)
    assert found is not None
    return found


async def run_id(temporal: Client, operation: Operation) -> str:
    description = await temporal.get_workflow_handle(operation.workflow_id).describe()
    assert description.status is WorkflowExecutionStatus.RUNNING
    return description.run_id


async def test_an_intent_left_behind_is_started_once(temporal: Client, dispatcher: Dispatcher, store: Store) -> None:
    """However many dispatchers see it, and although the first acknowledgement was lost, it is one execution."""
    operation = build_operation()
    await keep(store, "operations", operation)
    await asyncio.gather(*(build_dispatcher(temporal, store).dispatch() for _ in range(3)))
    first = await run_id(temporal, operation)
    started = await reread(store, operation)
    assert started.started_at is not None
    await store.database.collection("operations").update_one({"_id": operation.id}, {"$set": {"startedAt": None}})
    await dispatcher.dispatch()
    assert await run_id(temporal, operation) == first
    assert (await reread(store, operation)).started_at is not None


async def test_an_execution_that_has_ended_is_not_started_again(
    temporal: Client, dispatcher: Dispatcher, store: Store
) -> None:
    """An intent runs once: a lost acknowledgement of a job that is over does not repeat it."""
    operation = build_operation()
    await keep(store, "operations", operation)
    await dispatcher.start(operation)
    await temporal.get_workflow_handle(operation.workflow_id).terminate()
    await store.database.collection("operations").update_one({"_id": operation.id}, {"$set": {"startedAt": None}})
    await dispatcher.dispatch()
    description = await temporal.get_workflow_handle(operation.workflow_id).describe()
    assert description.status is WorkflowExecutionStatus.TERMINATED
    assert (await reread(store, operation)).started_at is not None


@pytest.mark.parametrize(
    "changes", [{"created_at": utcnow() + timedelta(hours=1)}, {"open": False}, {"started_at": LONG_AGO}]
)
async def test_what_is_not_left_behind_is_left_alone(
    temporal: Client, dispatcher: Dispatcher, store: Store, changes: dict[str, Any]
) -> None:
    """Fresh intents are the API's to start; closed and started ones are nobody's."""
    operation = build_operation(**changes)
    await keep(store, "operations", operation)
    await dispatcher.dispatch()
    with pytest.raises(RPCError, match="not found"):
        await temporal.get_workflow_handle(operation.workflow_id).describe()


async def test_an_intent_that_temporal_refuses_holds_up_nobody(
    temporal: Client, dispatcher: Dispatcher, store: Store
) -> None:
    """The intents behind it are started all the same."""
    refused = build_operation("refused", workflow_id="x" * 2000)
    behind = build_operation("behind", created_at=LONG_AGO + timedelta(seconds=1))
    await keep(store, "operations", refused, behind)
    await dispatcher.dispatch()
    assert await run_id(temporal, behind)
    assert (await reread(store, refused)).started_at is None


async def ended(temporal: Client, operation: Operation, how: str) -> None:
    """Run an operation's execution to an end that does not close the operation."""
    if how == "vanished":
        return
    timeout = timedelta(seconds=1) if how == "timedOut" else None
    handle = await temporal.start_workflow(
        Ending.run, how, id=operation.workflow_id, task_queue=ELSEWHERE, run_timeout=timeout
    )
    if how == "terminated":
        await handle.terminate()
    elif how == "timedOut":
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    else:
        await _work_until_the_end(temporal, handle, cancel=how == "canceled")


async def _work_until_the_end(temporal: Client, handle: WorkflowHandle[Ending, None], *, cancel: bool) -> None:
    runner = UnsandboxedWorkflowRunner()
    async with Worker(temporal, task_queue=ELSEWHERE, workflows=[Ending], workflow_runner=runner):
        if cancel:
            await handle.cancel()
        try:
            await handle.result()
        except WorkflowFailureError:
            pass


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("terminated", OperationState.TERMINATED),
        ("canceled", OperationState.TERMINATED),
        ("timedOut", OperationState.TIMED_OUT),
        ("failed", OperationState.FAILED),
        ("completed", OperationState.FAILED),
        ("vanished", OperationState.FAILED),
    ],
)
async def test_endings_behind_our_back_are_told(
    temporal: Client, dispatcher: Dispatcher, store: Store, how: str, state: OperationState
) -> None:
    """The operation ends truthfully, its lock is free, and there is one event about it."""
    operation = build_operation(started_at=LONG_AGO)
    await keep(store, "operations", operation)
    await ended(temporal, operation, how)
    await asyncio.gather(dispatcher.sweep(), build_dispatcher(temporal, store).sweep())
    await dispatcher.sweep()
    closed = await reread(store, operation)
    assert (closed.state, closed.open) == (state, False)
    assert closed.closed_at is not None
    assert closed.error is not None
    assert closed.error.code == "ended_outside"
    assert await store.operations.holder(operation.lock_key) is None
    (event,) = await store.audit.find({})
    assert (event.action, event.operation_id) == ("operation.ended_outside", operation.id)
    assert event.actor.type is ActorType.EXTERNAL
    assert event.metadata == {"state": state.value}


async def test_the_tenant_is_told_that_nobody_works_on_it(dispatcher: Dispatcher, store: Store) -> None:
    """A system that was not done no longer promises another try; one that was done stays as it is."""
    operation = build_operation(started_at=LONG_AGO)
    promised = SystemFailure(code="vendor_unavailable", message="", attempts=3, next_retry_at=LONG_AGO)
    tenant = build_tenant(
        operation.tenant_slug or "",
        provisioning_status={
            "authentik": SystemStatus.OK,
            "stalwart": SystemStatus.ERROR,
            "ocis": SystemStatus.PENDING,
            "stripe": SystemStatus.DISABLED,
        },
        provisioning_errors={"stalwart": promised},
    )
    await keep(store, "operations", operation)
    await keep(store, "tenants", tenant)
    await dispatcher.sweep()
    told = await store.tenants.get(tenant.slug)
    assert told is not None
    assert {name: status.value for name, status in told.provisioning_status.items()} == {
        "authentik": "ok",
        "stalwart": "error",
        "ocis": "error",
        "stripe": "disabled",
    }
    seen = {name: (error.code, error.attempts) for name, error in told.provisioning_errors.items()}
    assert seen == {"stalwart": ("ended_outside", 3), "ocis": ("ended_outside", 0)}
    assert {error.next_retry_at for error in told.provisioning_errors.values()} == {None}


async def test_the_lock_outlives_an_attempt_that_may_still_write(dispatcher: Dispatcher, store: Store) -> None:
    """A vanished job keeps its lock until the deadline of its last attempt has passed."""

    def running(deadline: datetime) -> dict[str, Any]:
        attempt = Attempt(fence=Fence(scheduled_at=LONG_AGO, number=1), started_at=LONG_AGO, deadline=deadline)
        step = Step(name="ocis.space", state=StepState.RUNNING, attempt=attempt)
        return {"steps": {step_key(step.name): step}, "started_at": LONG_AGO}

    waiting = build_operation("waiting", **running(utcnow() + timedelta(hours=1)))
    settled = build_operation("settled", **running(utcnow() - timedelta(seconds=1)))
    await keep(store, "operations", waiting, settled)
    await dispatcher.sweep()
    assert (await reread(store, waiting)) == waiting
    assert not (await reread(store, settled)).open
    assert len(await store.audit.find({})) == 1


async def test_a_job_that_was_reset_runs_on(temporal: Client, dispatcher: Dispatcher, store: Store) -> None:
    """After a reset the newest run counts, not the one that it replaced."""
    operation = build_operation(started_at=LONG_AGO)
    await keep(store, "operations", operation)
    await ended(temporal, operation, "completed")
    handle = temporal.get_workflow_handle(operation.workflow_id)
    done = [
        event.event_id
        async for event in handle.fetch_history_events()
        if event.HasField("workflow_task_completed_event_attributes")
    ]
    await temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=operation.workflow_id),
            reason="test",
            request_id=operation.id,
            workflow_task_finish_event_id=done[0],
        )
    )
    await dispatcher.sweep()
    assert await reread(store, operation) == operation


async def test_a_running_job_is_left_alone(temporal: Client, dispatcher: Dispatcher, store: Store) -> None:
    """Neither an execution without a worker nor one that has only just started is an ending."""
    running, fresh = build_operation("running", started_at=LONG_AGO), build_operation("fresh", started_at=utcnow())
    await keep(store, "operations", running, fresh)
    await dispatcher.start(running)
    await dispatcher.sweep()
    assert (await reread(store, running)).open
    assert (await reread(store, fresh)).open


async def test_the_sweep_looks_at_all_of_many(
    dispatcher: Dispatcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long jobs in front do not hide an ending behind them."""
    monkeypatch.setattr(dispatching, "BATCH", 2)
    running = [build_operation(f"running-{number}", started_at=LONG_AGO) for number in range(3)]
    vanished = build_operation("vanished", started_at=LONG_AGO)
    await keep(store, "operations", *running, vanished)
    for operation in running:
        await dispatcher.start(operation)
    await dispatcher.sweep()
    assert not (await reread(store, vanished)).open
    assert all([(await reread(store, operation)).open for operation in running])


async def test_a_wrong_namespace_ends_nothing(temporal: Client, store: Store) -> None:
    """A setting that points nowhere says nothing about jobs."""
    operation = build_operation(started_at=LONG_AGO)
    await keep(store, "operations", operation)
    nowhere = await Client.connect(temporal.service_client.config.target_host, namespace="nowhere")
    with pytest.raises(RPCError):
        await build_dispatcher(nowhere, store).sweep()
    assert await reread(store, operation) == operation
