"""What a cancel leaves behind, on a server whose clock runs as ours: heartbeats carry the cancel."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from domain.errors import ForeignObject, OperationUndoing, VendorRateLimited
from domain.operations import DecisionAction, OperationState, undo_of
from domain.provisioning import UNDOABLE, ProvisionPlan
from tests.workflows.script import DOMAIN, MAIL_DOMAIN, NEEDED_BY, PLAN, STEPS, Script, Stage, until_cancelled
from workflows.provision_tenant import UNDO

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

EVERY_STEP = pytest.mark.parametrize("step", NEEDED_BY)
REFUSED = ForeignObject("vendor", "not ours")
CANCEL, RETRY, SKIP = DecisionAction.CANCEL, DecisionAction.RETRY, DecisionAction.SKIP
# A step is undone after those that build upon it.
ORDER = [
    ("authentik.member", "authentik.user"),
    ("authentik.member", "authentik.group"),
    ("stalwart.mailbox", MAIL_DOMAIN),
    ("stalwart.mailbox", "stalwart.role"),
    ("ocis.space", "ocis.group"),
    ("stripe.subscription", "stripe.customer"),
]

Cancel = Callable[[Stage, "WorkflowHandle[Any, None]"], Awaitable[None]]


async def by_update(stage: Stage, handle: WorkflowHandle[Any, None]) -> None:
    """Cancel as the platform does."""
    await stage.decide(handle, CANCEL)


async def in_temporal(_stage: Stage, handle: WorkflowHandle[Any, None]) -> None:
    """Cancel as somebody does in Temporal's web UI."""
    await handle.cancel()


HOW = pytest.mark.parametrize("cancel", [by_update, in_temporal])


def undone(script: Script) -> list[str]:
    """Return the steps that undo something, in the order they began."""
    return [name for name in sorted(script.begun, key=lambda each: script.begun[each]) if "_undo" in name]


async def until(stage: Stage, condition: Callable[[], bool]) -> None:
    """Return once a condition holds."""
    while not condition():
        await stage.moment()


async def test_every_undoable_step_has_its_undoing() -> None:
    """What is planned to be undone and what undoes it are the same."""
    assert set(UNDO) == UNDOABLE


@HOW
@EVERY_STEP
async def test_during_each_step(live_stage: Stage, step: str, cancel: Cancel) -> None:
    """Canceled while a step runs: it ends, no other begins, and what was begun is undone in reverse."""
    script = Script(attempts={step: [until_cancelled]})
    handle = await live_stage.start(script)
    await until(live_stage, lambda: script.running == {step} and set(script.ended) == STEPS - {step} - NEEDED_BY[step])
    await cancel(live_stage, handle)
    await handle.result()
    begun = STEPS - NEEDED_BY[step]
    assert set(script.begun) & STEPS == begun
    undoable = {name for name in begun if name.startswith(tuple(UNDOABLE)) and "dkim" not in name}
    assert set(undone(script)) == {undo_of(name) for name in undoable}
    for later, earlier in ORDER:
        if {later, earlier} <= undoable:
            assert script.begun[undo_of(later)] < script.begun[undo_of(earlier)]
    assert {name for name in STEPS if script.states(name) == ["compensated"]} == undoable
    assert script.outcome is None
    assert script.abandoned is not None
    assert script.abandoned.failure is None
    assert (script.closed.state, script.closed.failure) == (OperationState.CANCELED, None)


@HOW
async def test_several_run(live_stage: Stage, cancel: Cancel) -> None:
    """Every running step ends before anything is undone."""
    held = {"ocis.space", "stalwart.role", "stripe.product", "authentik.user"}
    script = Script(attempts={name: [until_cancelled] for name in held})
    handle = await live_stage.start(script)
    await until(live_stage, lambda: script.running == held)
    await cancel(live_stage, handle)
    await until(live_stage, lambda: script.undo_planned_at is not None)
    assert script.running == set()
    await handle.result()
    assert script.closed.state is OperationState.CANCELED


@HOW
async def test_step_that_finishes_anyway(live_stage: Stage, cancel: Cancel) -> None:
    """A step that finishes although it was canceled is undone as any other, and no further step begins."""
    finish = functools.partial(until_cancelled, finish_anyway=True)
    script = Script(attempts={"stripe.customer": [finish]})
    handle = await live_stage.start(script)
    await until(live_stage, lambda: script.running == {"stripe.customer"} and "stripe.price" in script.ended)
    await cancel(live_stage, handle)
    await handle.result()
    assert "stripe.customer" in script.ended
    assert "stripe.subscription" not in script.begun
    assert "stripe.customer_undo" in script.ended
    assert script.closed.state is OperationState.CANCELED


@HOW
async def test_last_step_finishes_anyway(live_stage: Stage, cancel: Cancel) -> None:
    """The cancel is heard though the very last step swallows it."""
    finish = functools.partial(until_cancelled, finish_anyway=True)
    script = Script(attempts={"stripe.subscription": [finish]})
    handle = await live_stage.start(script)
    await until(live_stage, lambda: set(script.ended) == STEPS - {"stripe.subscription"})
    await cancel(live_stage, handle)
    await handle.result()
    assert script.outcome is None
    assert script.closed.state is OperationState.CANCELED


@HOW
async def test_during_an_outage(live_stage: Stage, cancel: Cancel) -> None:
    """A step that waits hours for its next attempt holds no cancel up."""
    away = VendorRateLimited("ocis", "away", retry_after=timedelta(hours=5))
    script = Script().fails("ocis.space", away)
    handle = await live_stage.start(script)
    await until(live_stage, lambda: "ocis.space" in script.begun and not script.running)
    await cancel(live_stage, handle)
    await handle.result()
    assert script.closed.state is OperationState.CANCELED


@HOW
async def test_while_parked(live_stage: Stage, cancel: Cancel) -> None:
    """A step that waits for a person waits no longer."""
    script = Script().fails("ocis.space", REFUSED)
    handle = await live_stage.start(script)
    await live_stage.parked(script, "ocis.space")
    await cancel(live_stage, handle)
    await handle.result()
    assert script.states("ocis.space") == ["parked", "compensated"]
    assert script.closed.state is OperationState.CANCELED


async def test_waits_until_no_attempt_may_write(live_stage: Stage) -> None:
    """Nothing is undone before the last attempt can have made something, however often it has to look."""
    wait = timedelta(seconds=0.4)
    script = Script(attempts={"stripe.subscription": [until_cancelled]}, undo_waits=[wait, wait])
    handle = await live_stage.start(script)
    await until(live_stage, lambda: script.running == {"stripe.subscription"})
    await live_stage.decide(handle, CANCEL)
    await until(live_stage, lambda: script.undo_planned_at is not None)
    first_look = script.undo_planned_at
    assert first_look is not None
    await handle.result()
    assert min(script.begun[name] for name in undone(script)) - first_look > 2 * wait


async def test_before_it_began(live_stage: Stage) -> None:
    """A job that was canceled before its workflow began does nothing but end."""
    plan = PLAN.model_copy(update={"canceled": True})
    script = await live_stage.play(Script(plan=plan))
    assert script.begun == {}
    assert script.abandoned is not None
    assert script.closed.state is OperationState.CANCELED


async def test_accepted_before_the_outcome(live_stage: Stage) -> None:
    """A cancel that was accepted before the outcome stood is obeyed though the workflow has not heard of it."""
    script = await live_stage.play(Script(canceled_before_outcome=True))
    assert script.outcome is None
    assert "stripe.subscription_undo" in script.ended
    assert script.closed.state is OperationState.CANCELED


async def test_after_the_outcome(live_stage: Stage) -> None:
    """Once the tenant is active its provisioning cannot be canceled; in Temporal it changes nothing."""
    script = Script(unsettled=timedelta(seconds=1))
    handle = await live_stage.start(script)
    # The workflow has heard of it, and sleeps until no attempt may write.
    while not [each async for each in handle.fetch_history_events() if each.HasField("timer_started_event_attributes")]:
        await live_stage.moment()
    await until_refused(live_stage, handle)
    await handle.cancel()
    await handle.result()
    assert script.abandoned is None
    assert script.closed.state is OperationState.COMPLETED


async def until_refused(stage: Stage, handle: WorkflowHandle[Any, None]) -> None:
    """Cancel, and see it refused."""
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await stage.decide(handle, CANCEL)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "not_cancelable"


@pytest.mark.parametrize("step", sorted(UNDO))
async def test_undoing_is_refused(live_stage: Stage, step: str) -> None:
    """A step that undoes and is refused parks: the job is not canceled before it is done."""
    name = MAIL_DOMAIN if step == "stalwart.domain" else step
    script = Script(canceled_before_outcome=True).fails(undo_of(name), REFUSED)
    handle = await live_stage.start(script)
    await live_stage.parked(script, undo_of(name))
    # Those of other systems go on; to cancel once more changes nothing.
    await live_stage.decide(handle, CANCEL)
    assert script.abandoned is None
    await live_stage.decide(handle, RETRY, undo_of(name))
    await handle.result()
    assert undo_of(name) in script.ended
    assert script.closed.state is OperationState.CANCELED


async def test_undoing_is_skipped(live_stage: Stage) -> None:
    """What an operator lets lie is named: the job has failed, it was not canceled."""
    script = Script(canceled_before_outcome=True).fails("ocis.space_undo", REFUSED)
    handle = await live_stage.start(script)
    await live_stage.parked(script, "ocis.space_undo")
    await live_stage.decide(handle, SKIP, "ocis.space_undo")
    await handle.result()
    assert "ocis.group_undo" in script.ended
    assert script.abandoned is not None
    failure = script.closed.failure
    assert failure is not None
    assert (failure.code, failure.step) == ("cleanup_incomplete", "ocis.space_undo")
    assert script.closed.state is OperationState.FAILED
    assert script.states("ocis.space") == []


async def test_canceled_in_temporal_while_undoing(live_stage: Stage) -> None:
    """Undoing goes on to its end, whoever cancels it."""
    release = asyncio.Event()

    async def held() -> None:
        await release.wait()

    script = Script(canceled_before_outcome=True, attempts={"ocis.space_undo": [held]})
    handle = await live_stage.start(script)
    await until(live_stage, lambda: "ocis.space_undo" in script.running)
    await handle.cancel()
    await until(live_stage, lambda: "stripe.customer_undo" in script.ended)
    release.set()
    await handle.result()
    assert script.closed.state is OperationState.CANCELED


async def test_several_of_a_kind(live_stage: Stage) -> None:
    """What was made more than once is removed one in a step, until none is left."""
    script = Script(canceled_before_outcome=True, doubles=frozenset({"ocis.space_undo", "ocis.space_undo.2"}))
    await live_stage.play(script)
    assert [name for name in script.ended if "space_undo" in name] == [
        "ocis.space_undo",
        "ocis.space_undo.2",
        "ocis.space_undo.3",
    ]


async def test_smaller_plan(live_stage: Stage) -> None:
    """What was never planned is not undone."""
    plan = ProvisionPlan(domains=[], mailbox_domain=None, billing_enabled=False)
    script = await live_stage.play(Script(plan=plan, canceled_before_outcome=True))
    assert set(undone(script)) == {undo_of(name) for name in plan.steps if name in UNDOABLE}


async def test_reset_to_before_the_cancel(live_stage: Stage) -> None:
    """A run that was reset to before it heard of the cancel learns it from the first step that is refused for it."""
    script = Script().fails("ocis.space", OperationUndoing("being undone"))
    await live_stage.play(script)
    assert script.waiting == set()
    assert script.outcome is None
    assert "ocis.space_undo" in script.ended
    assert script.closed.state is OperationState.CANCELED


async def test_canceled_in_temporal_when_the_tenant_is_in_use(live_stage: Stage) -> None:
    """A run that was reset and canceled though its tenant is active looks at all of it once more, and completes."""
    script = Script(attempts={"ocis.space": [until_cancelled]}, outcome_stands=True)
    handle = await live_stage.start(script)
    await until(live_stage, lambda: script.running == {"ocis.space"})
    await handle.cancel()
    await handle.result()
    assert undone(script) == []
    assert set(script.ended) == STEPS
    assert script.abandoned is None
    assert script.outcome is not None
    assert script.closed.state is OperationState.COMPLETED


async def test_reset_while_it_was_undone(live_stage: Stage) -> None:
    """A run that starts over while it is undone removes what the one before it made, each under its own domain."""
    plan = PLAN.model_copy(update={"canceled": True})
    script = await live_stage.play(
        Script(plan=plan, made=frozenset({"stalwart.mailbox", MAIL_DOMAIN, "stalwart.role"}))
    )
    assert undone(script) == ["stalwart.mailbox_undo", undo_of(MAIL_DOMAIN), "stalwart.role_undo"]
    domains = {name: script.requests[name].get("domain") for name in undone(script)}
    assert domains == {"stalwart.mailbox_undo": DOMAIN, undo_of(MAIL_DOMAIN): DOMAIN, "stalwart.role_undo": None}
