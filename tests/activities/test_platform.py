"""Planning a run, recording its outcome, releasing its lock."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from temporalio.exceptions import ApplicationError

from domain.errors import OperationClosed
from domain.operations import Failure, Fence, OperationState, StepState, step_key
from domain.provisioning import CloseRequest, OutcomeRequest, ProvisionPlan
from domain.tenants import SystemStatus, TenantStatus
from runtime.clock import utcnow
from runtime.wiring import Store
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
