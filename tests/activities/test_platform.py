"""Planning a run, recording its outcome, releasing its lock."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from temporalio.exceptions import ApplicationError

from domain.errors import OperationClosed
from domain.operations import (
    Decision,
    DecisionAction,
    Failure,
    Fence,
    Operation,
    OperationState,
    StepState,
    step_key,
    undo_of,
)
from domain.provisioning import CloseRequest, OutcomeRequest, ProvisionPlan, StepRecord, UndoPlan
from domain.tenants import SystemStatus, TenantStatus
from runtime.clock import new_id, utcnow
from runtime.wiring import Store
from store.database import Session
from tests.activities.conftest import House

pytestmark = pytest.mark.asyncio

REFUSED = Failure(code="foreign_object", message="It is another's.", step="ocis.space")


def outcome(house: House, failure: Failure | None = None) -> OutcomeRequest:
    """The outcome of a run."""
    return OutcomeRequest(operation_id=house.job.operation_id, tenant_slug=house.job.slug, failure=failure)


def closing(house: House, failure: Failure | None = None) -> CloseRequest:
    """The end of a run."""
    state = OperationState.COMPLETED if failure is None else OperationState.FAILED
    return CloseRequest(operation_id=house.job.operation_id, state=state, failure=failure)


async def set_flag(store: Store, *, on: bool) -> None:
    """Switch billing for every tenant."""
    changes = {"state": "on" if on else "off"}
    await store.database.collection("flags").update_one({"_id": "new_billing_engine"}, {"$set": changes})


@pytest.mark.parametrize("billing", [True, False], ids=["billing", "billing dark"])
async def test_plan(house: House, store: Store, billing: bool) -> None:
    """The plan names proved domains, the admin's mailbox there, and billing only if its flag is on; ids, no addresses."""
    await set_flag(store, on=billing)
    plan = await house.call("plan_provision", house.job.request)
    assert plan == ProvisionPlan(domains=[house.job.domain], mailbox_domain=house.job.domain, billing_enabled=billing)
    assert "@" not in plan.model_dump_json()
    operation = await house.job.operation()
    assert [step.name for step in operation.steps.values()] == plan.steps
    status = (await house.job.tenant()).provisioning_status["stripe"]
    assert status is (SystemStatus.PENDING if billing else SystemStatus.DISABLED)


async def test_plan_without_proof(house: House, store: Store) -> None:
    """A domain that is only claimed is left out, and with it a mailbox there."""
    await store.database.collection("tenants").update_one(
        {"slug": house.job.slug}, {"$set": {"domains.0.state": "unverified"}}
    )
    plan = await house.call("plan_provision", house.job.request)
    assert (plan.domains, plan.mailbox_domain) == ([], None)


async def test_plan_again(house: House) -> None:
    """Planning again keeps what steps have done."""
    await house.call("plan_provision", house.job.request)
    await house.run("ocis.group", "ensure_files_group")
    await house.call("plan_provision", house.job.request)
    assert (await house.job.step("ocis.group")).state is StepState.DONE


async def test_plan_after_the_end(house: House) -> None:
    """A run of an operation that has ended plans nothing."""
    await house.job.close()
    with pytest.raises(OperationClosed):
        await house.call("plan_provision", house.job.request)


async def test_activated(house: House) -> None:
    """A run without failure activates the tenant, with one event, however often it is recorded."""
    for _ in range(2):
        settlement = await house.call("record_tenant_outcome", outcome(house))
    assert (settlement.unsettled_seconds, settlement.repeated) == (0, [])
    tenant = await house.job.tenant()
    assert (tenant.status, tenant.version) == (TenantStatus.ACTIVE, 2)
    assert await house.job.events() == [("tenant.activated", "success")]


async def test_failed(house: House) -> None:
    """A run with a failure leaves the tenant pending, with an event that says why."""
    await house.call("record_tenant_outcome", outcome(house, REFUSED))
    assert (await house.job.tenant()).status is TenantStatus.PENDING
    assert await house.job.events() == [("tenant.provision_failed", "failure")]


async def test_outcome_after_the_end(house: House) -> None:
    """A run of an operation that has ended activates nothing: it has no lock, and there would be no event."""
    await house.job.close()
    await house.call("record_tenant_outcome", outcome(house))
    assert (await house.job.tenant()).status is TenantStatus.PENDING
    assert await house.job.events() == []


async def test_repeated(house: House) -> None:
    """What was tried more than once is named, with the time until which its lost attempt may still write."""
    await house.fault("ocis", action="lose_answer", method="POST")
    with pytest.raises(ApplicationError):
        await house.run("ocis.space", "ensure_space")
    lost = (await house.job.step("ocis.space")).attempt
    await house.run("ocis.space", "ensure_space")
    settlement = await house.call("record_tenant_outcome", outcome(house))
    assert lost is not None
    assert 0 < settlement.unsettled_seconds <= (lost.deadline - lost.started_at).total_seconds()
    assert settlement.repeated == ["ocis.space"]


async def test_close(house: House) -> None:
    """Closing releases the lock and keeps how it ended; closing again changes nothing."""
    assert await house.call("close_operation", closing(house, REFUSED)) == 0
    assert await house.call("close_operation", closing(house)) == 0
    operation = await house.job.operation()
    assert (operation.open, operation.state, operation.error) == (False, OperationState.FAILED, REFUSED)


async def test_close_tells_of_a_lost_write(house: House, store: Store) -> None:
    """An attempt that died after it began to write, and was never repeated, is failed and has its event."""
    await house.fault("ocis", action="lose_answer", method="POST")
    with pytest.raises(ApplicationError):
        await house.run("ocis.space", "ensure_space")
    path = f"steps.{step_key('ocis.space')}"
    over = {f"{path}.unsettledUntil": None, f"{path}.lastError": None, f"{path}.state": StepState.RUNNING.value}
    await store.database.collection("operations").update_one({"_id": house.job.operation_id}, {"$set": over})
    assert await house.call("close_operation", closing(house, REFUSED)) == 0
    step = await house.job.step("ocis.space")
    assert step.last_error is not None
    assert (step.state, step.last_error.code) == (StepState.FAILED, REFUSED.code)
    assert await house.job.events() == [("ocis.space_created", "failure")]


async def test_close_tells_the_tenant(house: House, store: Store) -> None:
    """Of an operation that has failed, no system says any more that it goes on, and the refused step is failed."""
    await house.call("plan_provision", house.job.request)
    await house.fault("ocis", action="status", status=503, method="POST")
    with pytest.raises(ApplicationError):
        await house.run("ocis.space", "ensure_space")
    path = f"steps.{step_key('ocis.space')}.unsettledUntil"
    await store.database.collection("operations").update_one({"_id": house.job.operation_id}, {"$set": {path: None}})
    refused = Failure(code="foreign_object", message="not ours", step="authentik.group")
    assert await house.call("close_operation", closing(house, refused)) == 0
    tenant = await house.job.tenant()
    assert {name for name, status in tenant.provisioning_status.items() if status is SystemStatus.ERROR} == {
        "authentik",
        "stalwart",
        "ocis",
    }
    assert tenant.provisioning_status["stripe"] is SystemStatus.DISABLED
    assert {name: error.code for name, error in tenant.provisioning_errors.items()} == {
        "authentik": "foreign_object",
        "stalwart": "foreign_object",
        "ocis": "outcome_unknown",
    }
    assert {error.next_retry_at for error in tenant.provisioning_errors.values()} == {None}
    assert not [error for error in tenant.provisioning_errors.values() if "tried again" in error.message]
    assert (await house.job.step("authentik.group")).state is StepState.FAILED


async def test_close_keeps_the_lock(house: House, store: Store) -> None:
    """The lock is kept while an attempt without a recorded end may still write, and released after its deadline."""
    now = utcnow()

    async def begin(number: int, deadline: datetime) -> None:
        fence = Fence(scheduled_at=now, number=number)
        await store.operations.begin_attempt(house.job.operation_id, "ocis.space", fence, now, deadline)

    await begin(1, now - timedelta(seconds=1))
    deadline = now + timedelta(seconds=30)
    await begin(2, deadline)
    assert 0 < await house.call("close_operation", closing(house)) <= 30
    assert (await house.job.operation()).open


async def test_close_after_the_deadline(house: House, store: Store) -> None:
    """An attempt whose end was never recorded holds the lock only until its deadline."""
    now = utcnow()
    fence = Fence(scheduled_at=now, number=1)
    await store.operations.begin_attempt(house.job.operation_id, "ocis.space", fence, now, now)
    assert await house.call("close_operation", closing(house)) == 0
    assert not (await house.job.operation()).open


def given(
    house: House, state: StepState, *steps: str, failure: Failure | None = None, generation: int = 1
) -> StepRecord:
    """A state that the workflow gives to steps."""
    return StepRecord(
        operation_id=house.job.operation_id, steps=list(steps), state=state, failure=failure, generation=generation
    )


async def decided(house: House, store: Store, action: DecisionAction, *steps: str) -> Operation:
    """Keep a decision about the operation."""
    decision = Decision(id=new_id(), action=action, steps=list(steps), at=utcnow())

    async def body(session: Session) -> Operation:
        return await store.operations.decide(await house.job.operation(), decision, session)

    return await store.database.run_transaction(body)


async def refuse_space(house: House) -> None:
    """Let the space step end for good, though something may have been made."""
    await house.fault("ocis", action="status", status=400, method="POST", contains=["/graph/v1.0/drives"])
    with pytest.raises(ApplicationError):
        await house.run("ocis.space", "ensure_space")


async def test_parked(house: House) -> None:
    """A step that parks makes the operation wait for an operator, alerts once, and tells the tenant."""
    await house.call("plan_provision", house.job.request)
    for _ in range(2):
        await house.call("record_step", given(house, StepState.PARKED, "ocis.space", failure=REFUSED))
    operation = await house.job.operation()
    step = operation.step("ocis.space")
    assert operation.state is OperationState.NEEDS_OPERATOR
    assert step.last_error is not None
    assert (step.state, step.last_error.code, step.next_retry_at) == (StepState.PARKED, REFUSED.code, None)
    assert await house.job.events() == [("operation.parked", "failure")]
    error = (await house.job.tenant()).provisioning_errors["ocis"]
    assert (error.code, "waits for an operator" in error.message) == (REFUSED.code, True)


async def test_each_parking_alerts(house: House) -> None:
    """A step that parks again after a retry alerts again."""
    for generation in (1, 2):
        await house.call("record_step", given(house, StepState.PARKED, "ocis.space", generation=generation))
        await house.call("record_step", given(house, StepState.PENDING, "ocis.space"))
    assert [action for action, _ in await house.job.events()] == ["operation.parked"] * 2


async def test_wanted_again(house: House) -> None:
    """The operation runs again once no step of it is parked any more."""
    await house.call("plan_provision", house.job.request)
    await house.call("record_step", given(house, StepState.PARKED, "ocis.space", "ocis.group", failure=REFUSED))
    await house.call("record_step", given(house, StepState.PENDING, "ocis.space"))
    assert (await house.job.operation()).state is OperationState.NEEDS_OPERATOR
    await house.call("record_step", given(house, StepState.PENDING, "ocis.group"))
    assert (await house.job.operation()).state is OperationState.RUNNING
    assert (await house.job.tenant()).provisioning_status["ocis"] is SystemStatus.PENDING


async def test_decision_is_dropped_once_obeyed(house: House, store: Store) -> None:
    """A decision stays until the workflow has recorded what came of it, step by step."""
    await house.call("record_step", given(house, StepState.PARKED, "ocis.space", "ocis.group", failure=REFUSED))
    operation = await decided(house, store, DecisionAction.RETRY, "ocis.space", "ocis.group")
    assert operation.parked_steps == []
    await house.call("record_step", given(house, StepState.PENDING, "ocis.space"))
    ((left,),) = [each.steps for each in (await house.job.operation()).decisions]
    assert left == "ocis.group"
    await house.call("record_step", given(house, StepState.PENDING, "ocis.group"))
    assert (await house.job.operation()).decisions == []


async def test_skipped(house: House) -> None:
    """A skipped step counts as finished; what it may have changed before has its event."""
    await house.call("plan_provision", house.job.request)
    await refuse_space(house)
    await house.call("record_step", given(house, StepState.PARKED, "ocis.space", failure=REFUSED))
    await house.call("record_step", given(house, StepState.SKIPPED, "ocis.space"))
    for step in ("ocis.group", "ocis.member"):
        await house.call("record_step", given(house, StepState.SKIPPED, step))
    operation = await house.job.operation()
    assert (operation.state, operation.progress.done) == (OperationState.RUNNING, 3)
    assert (await house.job.tenant()).provisioning_status["ocis"] is SystemStatus.SKIPPED
    assert ("ocis.space_created", "failure") in await house.job.events()


async def test_steps_of_an_operation_that_has_ended(house: House) -> None:
    """An operation that has ended gets no step parked, nor is it canceled afterwards."""
    await house.job.close()
    for name, request in (
        ("record_step", given(house, StepState.PARKED, "ocis.space", failure=REFUSED)),
        ("plan_undoing", house.job.request),
    ):
        with pytest.raises(OperationClosed):
            await house.call(name, request)
    assert (await house.job.operation()).state is OperationState.TERMINATED


async def test_plan_undoing(house: House) -> None:
    """All that was tried is to be undone, in the order it was planned; what nothing is undone of has failed."""
    await house.call("plan_provision", house.job.request)
    await house.run("authentik.group", "ensure_login_group")
    await house.run(f"stalwart.domain.{house.job.domain}", "ensure_mail_domain")
    await refuse_space(house)
    await house.fault("stripe", action="status", status=503, method="POST")
    with pytest.raises(ApplicationError):
        await house.run("stripe.product", "ensure_product")
    first = await house.call("plan_undoing", house.job.request)
    domain = f"stalwart.domain.{house.job.domain}"
    assert first.steps == ["authentik.group", domain, "ocis.space"]
    operation = await house.job.operation()
    assert operation.cancel_requested_at is not None
    assert not operation.cancelable
    assert {name for name in first.steps if operation.step(name).state is StepState.COMPENSATING} == set(first.steps)
    assert {operation.step(undo_of(name)).state for name in first.steps} == {StepState.PENDING}
    failed = operation.step("stripe.product")
    assert failed.last_error is not None
    assert (failed.state, failed.next_retry_at) == (StepState.FAILED, None)
    assert ("ocis.space_created", "failure") in await house.job.events()
    # The lost answer of Stripe's product: its request may still be on its way.
    assert 0 < first.unsettled_seconds <= 30


async def test_plan_undoing_again(house: House) -> None:
    """What is undone already is not undone again."""
    await house.call("plan_provision", house.job.request)
    await house.run("authentik.group", "ensure_login_group")
    await house.run("authentik.user", "ensure_login_user")
    await house.call("plan_undoing", house.job.request)
    await house.run("authentik.group_undo", "delete_login_group")
    await house.call("record_step", given(house, StepState.COMPENSATED, "authentik.group"))
    assert await house.call("plan_undoing", house.job.request) == UndoPlan(steps=["authentik.user"])


async def test_undoing_obeys_every_decision(house: House, store: Store) -> None:
    """Once it is being undone nothing that was decided before is still to come."""
    await house.call("record_step", given(house, StepState.PARKED, "ocis.space", failure=REFUSED))
    await decided(house, store, DecisionAction.RETRY, "ocis.space")
    await decided(house, store, DecisionAction.CANCEL)
    await house.call("plan_undoing", house.job.request)
    operation = await house.job.operation()
    assert (operation.decisions, operation.state) == ([], OperationState.RUNNING)


async def test_canceled_before_the_plan(house: House, store: Store) -> None:
    """A run that was canceled before it began is told so by its plan."""
    await decided(house, store, DecisionAction.CANCEL)
    assert (await house.call("plan_provision", house.job.request)).canceled


async def test_canceled_before_the_outcome(house: House, store: Store) -> None:
    """A cancel that was accepted first keeps the tenant from turning active."""
    await decided(house, store, DecisionAction.CANCEL)
    settlement = await house.call("record_tenant_outcome", outcome(house))
    assert settlement.canceled
    assert (await house.job.tenant()).status is TenantStatus.PENDING
    assert await house.job.events() == []


async def test_outcome_first(house: House) -> None:
    """Once the outcome is recorded the operation cannot be canceled."""
    assert (await house.job.operation()).cancelable
    await house.call("record_tenant_outcome", outcome(house))
    assert not (await house.job.operation()).cancelable


async def test_abandoned(house: House, store: Store) -> None:
    """An abandoned tenant keeps its slug, and frees its domains and its people."""
    await house.call("plan_provision", house.job.request)
    for _ in range(2):
        await house.call("record_tenant_abandoned", outcome(house))
    tenant = await house.job.tenant()
    assert (tenant.status, tenant.domains, tenant.version) == (TenantStatus.ABANDONED, [], 2)
    assert (await house.job.admin()).memberships == []
    assert await house.job.events() == [("tenant.abandoned", "success")]
    subscription = await store.subscriptions.of_tenant(house.job.tenant_id)
    assert subscription is not None
    assert subscription.status == "canceled"
    assert await house.call("close_operation", closing(house, REFUSED)) == 0
    assert set((await house.job.tenant()).provisioning_status.values()) == {SystemStatus.DISABLED}


async def test_abandoned_after_the_end(house: House) -> None:
    """A run of an operation that has ended abandons nothing."""
    await house.job.close()
    await house.call("record_tenant_abandoned", outcome(house))
    assert (await house.job.tenant()).status is TenantStatus.PENDING


@pytest.mark.parametrize("late", [StepState.PARKED, StepState.PENDING])
async def test_late_attempt_to_record_a_state(house: House, late: StepState) -> None:
    """A worker that was cut off and records a state once more takes nothing back that has happened since."""
    start = utcnow()
    await house.call("plan_provision", house.job.request)
    parked = given(house, StepState.PARKED, "ocis.group", failure=REFUSED)
    wanted = given(house, StepState.PENDING, "ocis.group")
    await house.call("record_step", parked, at=start - timedelta(seconds=2))
    await house.call("record_step", wanted, at=start - timedelta(seconds=1))
    await house.run("ocis.group", "ensure_files_group")
    before = await house.job.operation()
    if late is StepState.PARKED:
        await house.call("record_step", parked, at=start - timedelta(seconds=2))
    else:
        await house.call("record_step", wanted, at=start - timedelta(seconds=1))
    after = await house.job.operation()
    assert (after.steps, after.state) == (before.steps, OperationState.RUNNING)
    assert [action for action, _ in await house.job.events()].count("operation.parked") == 1


async def test_late_attempt_to_plan(house: House) -> None:
    """A plan that is made once more does not take back how far the tenant is."""
    plan = await house.call("plan_provision", house.job.request)
    await house.call("record_step", given(house, StepState.SKIPPED, *plan.steps))
    before = (await house.job.tenant()).provisioning_status
    await house.call("plan_provision", house.job.request)
    assert (await house.job.tenant()).provisioning_status == before


@pytest.mark.parametrize("told_by", ["operation", "tenant"])
async def test_nothing_of_an_active_tenant_is_undone(house: House, store: Store, told_by: str) -> None:
    """A run that was reset and then canceled in Temporal undoes nothing of a tenant that is in use."""
    await house.call("plan_provision", house.job.request)
    await house.run("ocis.group", "ensure_files_group")
    await house.call("record_tenant_outcome", outcome(house))
    # What an older worker did not record, the tenant's state tells; before it is read, the operation does.
    table, changes = ("operations", {"settledAt": None}) if told_by == "tenant" else ("tenants", {"status": "pending"})
    key = {"_id": house.job.operation_id} if told_by == "tenant" else {"slug": house.job.slug}
    await store.database.collection(table).update_one(key, {"$set": changes})
    before = await house.job.operation()
    assert await house.call("plan_undoing", house.job.request) == UndoPlan(outcome_stands=True)
    assert await house.job.operation() == before


async def test_an_active_tenant_is_never_abandoned(house: House) -> None:
    """Nothing is taken from a tenant that is in use."""
    await house.call("record_tenant_outcome", outcome(house))
    await house.call("record_tenant_abandoned", outcome(house))
    assert (await house.job.tenant()).status is TenantStatus.ACTIVE
    assert len((await house.job.admin()).memberships) == 1
    assert await house.job.events() == [("tenant.activated", "success")]


async def test_an_active_tenant_is_not_canceled_afterwards(house: House, store: Store) -> None:
    """A cancel that an older worker's outcome did not know of comes too late."""
    await house.call("record_tenant_outcome", outcome(house))
    over = {"settledAt": None, "cancelRequestedAt": utcnow()}
    await store.database.collection("operations").update_one({"_id": house.job.operation_id}, {"$set": over})
    assert not (await house.call("record_tenant_outcome", outcome(house))).canceled


async def test_a_cancel_in_temporal_has_its_event(house: House, store: Store) -> None:
    """Undoing that nobody asked us for tells of who did; one that was asked for is told of once."""
    await house.call("plan_undoing", house.job.request)
    assert ("operation.cancel_requested", "success") in await house.job.events()
    (event,) = await store.audit.find({"operationId": house.job.operation_id})
    assert (event.actor.type.value, event.source) == ("external", "temporal")


async def test_a_cancel_of_ours_has_no_second_event(house: House, store: Store) -> None:
    """What was decided over the API has its event from there."""
    await decided(house, store, DecisionAction.CANCEL)
    await house.call("plan_undoing", house.job.request)
    assert await house.job.events() == []


async def test_progress_counts_every_step(house: House, store: Store) -> None:
    """In the end all steps are counted, also one that was not planned and whose attempt never ended."""
    plan = await house.call("plan_provision", house.job.request)
    now = utcnow()
    fence = Fence(scheduled_at=now, number=1)
    await store.operations.begin_attempt(house.job.operation_id, "ocis.space_double.1", fence, now, now)
    assert await house.call("close_operation", closing(house, REFUSED)) == 0
    operation = await house.job.operation()
    assert operation.progress.total == len(operation.steps) == len(plan.steps) + 1
