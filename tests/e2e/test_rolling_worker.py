"""A changed worker is deployed over open runs, as docs/how-to/change-a-workflow.md tells it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio import activity
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import WorkflowExecutionStatus
from temporalio.testing import WorkflowEnvironment

from activities.ocis import OcisActivities
from domain.errors import ForeignObject
from domain.operations import DecisionAction, OperationState
from domain.provisioning import SpaceResult, TenantRequest
from runtime.codec import build_data_converter
from runtime.replay import ReplayGate, in_clear
from sandbox.stack.layout import find_binary
from tests.replay.changed import Changes
from tests.support.keys import key_ring
from tests.workflows.script import NEEDED_BY, STEPS, Script, Stage
from worker import WORKFLOWS, workflow_runner
from workflows.provision_tenant import ProvisionTenant

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

HOW_TO = Path(__file__).parent.parent.parent / "docs" / "how-to" / "change-a-workflow.md"
NEW_STEP = "ocis.room"
RUNS = 100


class Held:
    """A run that stays in one step until it is released: in the activity of it, or parked."""

    def __init__(self, place: str, *, parked: bool) -> None:
        self.place = place
        self.parked = parked
        self._released = asyncio.Event()
        # An attempt that is cut off is tried again, and held again.
        self.script = Script(attempts={place: [self._hold] * 10})
        if parked:
            self.script.fails(place, ForeignObject(place.partition(".")[0], "not ours"))

    async def start(self, stage: Stage) -> None:
        """Start the run."""
        self.handle = await stage.start(self.script)

    async def _hold(self) -> None:
        while not self._released.is_set():
            activity.heartbeat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), timeout=1)

    @property
    def rests(self) -> bool:
        """Whether all has been done that can be done."""
        here = self.script.waiting if self.parked else self.script.running
        return here == {self.place} and set(self.script.ended) == STEPS - {self.place} - NEEDED_BY[self.place]

    async def release(self, stage: Stage) -> None:
        """Let the run go on."""
        self._released.set()
        if self.parked:
            await stage.decide(self.handle, DecisionAction.RETRY, self.place)

    async def ended_with(self, steps: set[str]) -> None:
        """See the run complete, with each of these steps done once."""
        await self.handle.result()
        assert Counter(self.script.ended) == Counter(steps)
        assert self.script.closed.state is OperationState.COMPLETED


async def until_all_rest(stage: Stage, runs: Sequence[Held]) -> None:
    """Return once every run is where it is held."""
    while not all(run.rests for run in runs):
        await stage.moment()


@pytest_asyncio.fixture(loop_scope="session")
async def stage() -> AsyncIterator[Stage]:
    """A stage on a real server, without a worker yet."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=build_data_converter(key_ring("tests"))
    )
    async with environment:
        yield Stage(environment.client)


@pytest.fixture
def change() -> str:
    """The worked example of the guide."""
    (found,) = re.findall(r"```python\n(if workflow\.patched\(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert NEW_STEP in found
    return str(found)


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Changes:
    """What changes workflows; the activity of the worked example is there."""

    @activity.defn(name="observe_room")
    async def observe_room(_self: OcisActivities, _request: TenantRequest) -> SpaceResult:
        raise AssertionError("the stage acts it out")

    monkeypatch.setattr(OcisActivities, "observe_room", observe_room, raising=False)
    return Changes(tmp_path, monkeypatch)


async def verdicts(workflows: Sequence[type], runs: Sequence[Held]) -> list[bool]:
    """Return for each run whether it fits the code, as `dezky replay` finds it."""
    gate = ReplayGate(workflows, workflow_runner())
    keys = build_data_converter(key_ring("tests"))
    return [(await gate.check(await in_clear(await run.handle.fetch_history(), keys))).fits for run in runs]


async def test_gated_change_over_open_runs(stage: Stage, changes: Changes, change: str) -> None:
    """A hundred open runs go over to a changed worker, none loses or repeats a step; only a new run takes the new way."""
    gated = [changes.workflow(ProvisionTenant, "_files", change)]
    places = [(place, parked) for place in sorted(STEPS) for parked in (False, True)]
    runs = [Held(place, parked=parked) for place, parked in itertools.islice(itertools.cycle(places), RUNS)]
    async with stage.working(WORKFLOWS):
        await asyncio.gather(*(run.start(stage) for run in runs))
        await until_all_rest(stage, runs)
    assert all(await verdicts(gated, runs))
    async with stage.working(gated):
        await until_all_rest(stage, runs)
        await asyncio.gather(*(run.release(stage) for run in runs))
        for run in runs:
            await run.ended_with(STEPS)
        new = await stage.play(Script())
    assert Counter(new.ended) == Counter(STEPS | {NEW_STEP})
    assert new.ended.index(NEW_STEP) < new.ended.index("ocis.group")


async def test_run_that_has_not_come_to_the_change(stage: Stage, changes: Changes, change: str) -> None:
    """An open run that comes to the gate only after the deployment takes the new way."""
    gated = [changes.workflow(ProvisionTenant, "_close", change)]
    run = Held("stripe.product", parked=False)
    async with stage.working(WORKFLOWS):
        await run.start(stage)
        await until_all_rest(stage, [run])
    async with stage.working(gated):
        await run.release(stage)
        await run.ended_with(STEPS | {NEW_STEP})


async def test_ungated_change_stops_open_runs(stage: Stage, changes: Changes, change: str) -> None:
    """The same without the gate: open runs stand still, in sight and with nothing lost, until the gate is deployed."""
    gated = [changes.workflow(ProvisionTenant, "_files", change)]
    ungated = textwrap.dedent("".join(change.splitlines(keepends=True)[1:]))
    broken = [changes.workflow(ProvisionTenant, "_files", ungated)]
    runs = [Held(place, parked=False) for place in ("authentik.user", "ocis.space", "ocis.member", "stripe.price")]
    async with stage.working(WORKFLOWS):
        await asyncio.gather(*(run.start(stage) for run in runs))
        await until_all_rest(stage, runs)
    assert not any(await verdicts(broken, runs))
    async with stage.working(broken):
        await asyncio.gather(*(run.release(stage) for run in runs))
        for run in runs:
            await until_nondeterminism(stage, run)
        for run in runs:
            assert (await run.handle.describe()).status is WorkflowExecutionStatus.RUNNING
            assert run.script.closes == []
            assert NEW_STEP not in run.script.begun
    async with stage.working(gated):
        for run in runs:
            await run.ended_with(STEPS)


async def until_nondeterminism(stage: Stage, run: Held) -> None:
    """Return once a workflow task of a run has failed because the code does not fit its history."""
    cause = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
    while not any(
        event.workflow_task_failed_event_attributes.cause == cause
        for event in (await run.handle.fetch_history()).events
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    ):
        await stage.moment()
