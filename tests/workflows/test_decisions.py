"""ProvisionTenant: steps that park, and what people decide about them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from domain.errors import ForeignObject, OperationClosed, VendorRateLimited
from domain.operations import DecisionAction, OperationState
from tests.workflows.script import NEEDED_BY, STEPS, Script, Stage

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

EVERY_STEP = pytest.mark.parametrize("step", NEEDED_BY)
REFUSED = ForeignObject("vendor", "not ours")
RETRY, SKIP = DecisionAction.RETRY, DecisionAction.SKIP


@EVERY_STEP
async def test_retried(stage: Stage, step: str) -> None:
    """A refused step waits, all that does not need it goes to its end, and a retry heals it."""
    script = Script().fails(step, REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, step)
    while set(script.ended) != STEPS - {step} - NEEDED_BY[step]:
        await stage.moment()
    assert script.outcome is None
    await stage.decide(handle, RETRY, step)
    await handle.result()
    assert set(script.ended) == STEPS
    assert script.states(step) == ["parked", "pending"]
    assert script.closed.state is OperationState.COMPLETED


@EVERY_STEP
async def test_skipped(stage: Stage, step: str) -> None:
    """A skipped step takes with it what needs it and nothing else, and the tenant turns active."""
    script = Script().fails(step, REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, step)
    await stage.decide(handle, SKIP, step)
    await handle.result()
    assert set(script.ended) == STEPS - {step} - NEEDED_BY[step]
    assert script.states(step) == ["parked", "skipped"]
    assert {name for name in STEPS if script.states(name) == ["skipped"]} == NEEDED_BY[step]
    assert script.outcome is not None
    assert script.outcome.failure is None
    assert script.closed.state is OperationState.COMPLETED


async def test_what_needs_the_space_does_not_need_its_quota(stage: Stage) -> None:
    """Without its quota the space is still to be entered."""
    script = Script(quota_matches=False).fails("ocis.quota", REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.quota")
    assert "ocis.member" not in script.begun
    await stage.decide(handle, SKIP, "ocis.quota")
    await handle.result()
    assert "ocis.member" in script.ended


async def test_parks_as_often_as_it_is_refused(stage: Stage) -> None:
    """A step that is refused again parks again, and each time tells which try it was."""
    script = Script().fails("ocis.space", REFUSED, REFUSED)
    handle = await stage.start(script)
    for time in (1, 2):
        while script.states("ocis.space").count("parked") < time:
            await stage.moment()
        await stage.decide(handle, RETRY, "ocis.space")
    await handle.result()
    assert script.states("ocis.space") == ["parked", "pending"] * 2
    parked = [record for record in script.recorded if record.state.value == "parked"]
    assert [record.generation for record in parked] == [1, 2]
    assert {record.failure.code for record in parked if record.failure is not None} == {"foreign_object"}


async def test_all_at_once(stage: Stage) -> None:
    """One decision may be about several steps."""
    script = Script().fails("ocis.space", REFUSED).fails("stripe.customer", REFUSED).fails("authentik.user", REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.space", "stripe.customer", "authentik.user")
    await stage.decide(handle, RETRY, "ocis.space", "stripe.customer", "authentik.user")
    await handle.result()
    assert set(script.ended) == STEPS


async def test_weather_goes_on_meanwhile(stage: Stage) -> None:
    """A branch in an outage is not given up because another one waits for a person."""
    away = VendorRateLimited("authentik", "away", retry_after=timedelta(hours=5))
    script = Script().fails("ocis.group", REFUSED).fails("authentik.user", away)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.group")
    await stage.decide(handle, SKIP, "ocis.group")
    await handle.result()
    assert "authentik.member" in script.ended


async def test_budget_spent(stage: Stage) -> None:
    """After a day of trying a step parks, with the code of its last attempt."""
    away = VendorRateLimited("ocis", "away", retry_after=timedelta(hours=10))
    script = Script().fails("ocis.space", *[away] * 3)
    handle = await stage.start(script)
    # Time passes only while somebody waits for the end.
    waiting = asyncio.create_task(handle.result())
    await stage.parked(script, "ocis.space")
    assert script.attempts["ocis.space"] == []
    (record,) = [each for each in script.recorded if each.state.value == "parked"]
    assert record.failure is not None
    assert (record.failure.step, record.failure.code) == ("ocis.space", "vendor_rate_limited")
    await stage.decide(handle, RETRY, "ocis.space")
    await waiting
    assert script.closed.state is OperationState.COMPLETED


async def test_operation_that_has_ended(stage: Stage) -> None:
    """An attempt that comes after its operation has ended waits for nobody."""
    script = await stage.play(Script().fails("ocis.space", OperationClosed("ended")))
    assert script.recorded == []
    assert script.closed.failure is not None
    assert script.closed.failure.code == "operation_closed"


async def test_doubles_that_cannot_be_removed(stage: Stage) -> None:
    """Removing doubles parks as any other step; the tenant is active meanwhile."""
    script = Script(doubles=frozenset({"ocis.space"})).fails("ocis.space_double.1", REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.space_double.1")
    assert script.outcome is not None
    assert script.closes == []
    await stage.decide(handle, SKIP, "ocis.space_double.1")
    await handle.result()
    assert script.closed.state is OperationState.COMPLETED


async def test_doubles_of_a_skipped_create(stage: Stage) -> None:
    """A create that was skipped left nothing to keep, so nothing is removed."""
    script = Script(repeated=("ocis.space",)).fails("ocis.space", REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.space")
    await stage.decide(handle, SKIP, "ocis.space")
    await handle.result()
    assert "ocis.space_double.1" not in script.begun


@pytest.mark.parametrize("action", [RETRY, SKIP])
@pytest.mark.parametrize(
    "steps",
    [["stripe.customer"], ["ocis.space", "stripe.customer"], ["no.such"], []],
    ids=["running", "both", "no", ""],
)
async def test_only_of_parked_steps(stage: Stage, action: DecisionAction, steps: list[str]) -> None:
    """A decision about a step that does not wait is refused as a whole and changes nothing."""
    release = asyncio.Event()

    async def held() -> None:
        await release.wait()

    script = Script(attempts={"stripe.customer": [held]}).fails("ocis.space", REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.space")
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await stage.decide(handle, action, *steps)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "step_not_parked"
    assert script.waiting == {"ocis.space"}
    await stage.decide(handle, RETRY, "ocis.space")
    release.set()
    await handle.result()


async def test_two_decide_at_once(stage: Stage) -> None:
    """Of two decisions about one step the second is refused."""
    script = Script().fails("ocis.space", REFUSED)
    handle = await stage.start(script)
    await stage.parked(script, "ocis.space")
    both = [stage.decide(handle, action, "ocis.space") for action in (SKIP, RETRY)]
    results = await asyncio.gather(*both, return_exceptions=True)
    refused = [result for result in results if isinstance(result, WorkflowUpdateFailedError)]
    assert len(refused) == 1
    await handle.result()
    assert script.closed.state is OperationState.COMPLETED
