"""What a cancel from outside leaves behind, on a server whose clock runs as ours: heartbeats carry the cancel."""

from __future__ import annotations

import functools

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import CancelledError

from tests.workflows.script import PLAN, Script, Stage, until_cancelled

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

STEPS = set(PLAN.steps)


async def cancel_when(stage: Stage, script: Script, *, running: set[str], ended: set[str]) -> None:
    """Cancel a run once exactly these steps run and those have ended, and see it end as cancelled."""
    handle = await stage.start(script)
    while script.running != running or set(script.ended) != ended:
        await stage.moment()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert script.running == set()
    assert script.closes == []


async def test_running_steps_end_first(live_stage: Stage) -> None:
    """A cancelled run ends once its running steps have, begins no other, and leaves the close to the sweep."""
    held = {"ocis.space", "stalwart.role", "stripe.product", "authentik.user"}
    script = Script(attempts={name: [until_cancelled] for name in held})
    waiting = {"authentik.member", "stalwart.mailbox", "ocis.member", "stripe.price", "stripe.subscription"}
    await cancel_when(live_stage, script, running=held, ended=STEPS - held - waiting)
    assert set(script.begun) == STEPS - waiting


async def test_step_that_finishes_anyway(live_stage: Stage) -> None:
    """A step that finishes although it was cancelled hides the cancel, yet no further step begins."""
    finish = functools.partial(until_cancelled, finish_anyway=True)
    script = Script(attempts={"stripe.product": [finish]})
    waiting = {"stripe.price", "stripe.subscription"}
    await cancel_when(live_stage, script, running={"stripe.product"}, ended=STEPS - {"stripe.product"} - waiting)
    assert set(script.ended) == STEPS - waiting
    assert set(script.begun) == STEPS - waiting
