"""Runs that began with older code go on with the code of today."""

from __future__ import annotations

import base64
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory
from temporalio.worker import UnsandboxedWorkflowRunner

from runtime.replay import ReplayGate
from tests.replay.changed import Changes
from tests.replay.save_histories import CASES, HISTORIES, MEANWHILE
from worker import WORKFLOWS, workflow_runner
from workflows.provision_tenant import ProvisionTenant

pytestmark = pytest.mark.asyncio

STORED = sorted(HISTORIES.glob("*/*.json"))
EVERY_HISTORY = pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
HAPPY = HISTORIES / "ProvisionTenant" / "happy-path.json"
ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


def history(path: Path) -> WorkflowHistory:
    """Return a stored history."""
    return WorkflowHistory.from_json(path.stem, path.read_text())


def payloads(value: Any) -> Iterator[str]:
    """Yield the clear text of every payload in a history."""
    if isinstance(value, dict):
        if isinstance(value.get("data"), str):
            yield base64.b64decode(value["data"]).decode()
        for each in value.values():
            yield from payloads(each)
    elif isinstance(value, list):
        for each in value:
            yield from payloads(each)


async def test_every_case_is_stored() -> None:
    """There is a history for every case, and a folder for every workflow."""
    assert {path.stem for path in STORED} >= {*CASES, *MEANWHILE}
    assert {path.parent.name for path in STORED} == {each.__name__ for each in WORKFLOWS}


@EVERY_HISTORY
async def test_replays(path: Path) -> None:
    """A stored history replays with the worker's own sandbox and converter."""
    verdict = await ReplayGate(WORKFLOWS, workflow_runner()).check(history(path))
    assert verdict.fits, verdict


@EVERY_HISTORY
async def test_names_nobody(path: Path) -> None:
    """A stored history holds no e-mail address, in clear or inside a payload, and no folder of who saved it."""
    text = path.read_text()
    inside = list(payloads(json.loads(text)))
    assert inside
    assert "stackTrace" not in text
    assert not [each for each in (text, *inside) if ADDRESS.search(each)]


TIMER = "await workflow.sleep(1)"
ACTIVITY = """
from datetime import timedelta
await workflow.execute_activity("extra", start_to_close_timeout=timedelta(seconds=1))
"""


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Changes:
    """What changes workflows."""
    return Changes(tmp_path, monkeypatch)


@pytest.mark.parametrize("first", [TIMER, ACTIVITY], ids=["timer", "activity"])
@pytest.mark.parametrize("changed", WORKFLOWS, ids=lambda each: each.__name__)
async def test_incompatible_change_is_caught(changed: type, first: str, changes: Changes) -> None:
    """A command more at the start of any workflow fits no stored run of it, and one is told what to do.

    The same behind a gate fits all of them.
    """
    gated = f"if workflow.patched('more'):\n{textwrap.indent(first.strip(), '    ')}"
    broken = ReplayGate([changes.workflow(changed, "run", first)], workflow_runner())
    mended = ReplayGate([changes.workflow(changed, "run", gated)], workflow_runner())
    of_this = [path for path in STORED if path.parent.name == changed.__name__]
    assert of_this
    for path in of_this:
        refused = await broken.check(history(path))
        assert refused.mismatch is not None
        assert refused.mismatch.event_id == 5
        assert str(refused).startswith(f"{changed.__name__}, ")
        assert 'workflow.patched("...")' in str(refused)
        taken = await mended.check(history(path))
        assert taken.fits, taken


@pytest.mark.parametrize(
    ("first", "event", "recorded", "instead"),
    [
        (TIMER, 5, "the activity plan_provision with the id 1", "issues a command of the kind 'Timer'"),
        (ACTIVITY, 5, "the activity plan_provision with the id 1", "starts the activity extra"),
        ("await workflow.execute_child_workflow('X', id='x')", 5, "the activity plan_provision with the id 1",
         "issues a command of the kind 'Child workflow'"),
        ("return", 5, "the activity plan_provision with the id 1", "issues a command of the kind 'Complete workflow'"),
        ("await workflow.wait_condition(lambda: False)", 5, "the activity plan_provision with the id 1",
         "issues no command"),
        ("raise ValueError('wrong \\n \"way\"')", 4, "WORKFLOW_TASK_COMPLETED", 'fails: ValueError wrong   "way"'),
    ],
    ids=["timer", "activity", "child", "end", "nothing", "error"],
)  # fmt: skip
async def test_says_where_they_part(first: str, event: int, recorded: str, instead: str, changes: Changes) -> None:
    """A mismatch is told by its event, what the run has there, and what the code did instead."""
    gate = ReplayGate([changes.workflow(ProvisionTenant, "run", first)], workflow_runner())
    mismatch = (await gate.check(history(HAPPY))).mismatch
    assert mismatch is not None
    assert (mismatch.event_id, mismatch.recorded, mismatch.instead) == (event, recorded, instead)


async def test_names_the_event_late_in_a_run(changes: Changes) -> None:
    """The event is found wherever it lies, also where the SDK does not name it."""
    gate = ReplayGate([changes.workflow(ProvisionTenant, "_close", ACTIVITY)], workflow_runner())
    mismatch = (await gate.check(history(HAPPY))).mismatch
    assert mismatch is not None
    (close,) = [
        each.event_id
        for each in history(HAPPY).events
        if each.activity_task_scheduled_event_attributes.activity_type.name == "close_operation"
    ]
    assert mismatch.event_id == close
    assert mismatch.instead == "starts the activity extra"


async def test_removed_patch_is_caught(changes: Changes) -> None:
    """A run that recorded a patch does not fit code that has forgotten it."""
    gate = ReplayGate(WORKFLOWS, workflow_runner())
    marked = history(HAPPY)
    marker = HistoryEvent(event_id=5, event_type=EventType.EVENT_TYPE_MARKER_RECORDED)
    marker.marker_recorded_event_attributes.marker_name = "core_patch"
    marker.marker_recorded_event_attributes.workflow_task_completed_event_id = 4
    patch = Payload(metadata={"encoding": b"json/plain"}, data=b'{"id":"gone","deprecated":false}')
    marker.marker_recorded_event_attributes.details["patch-data"].payloads.append(patch)
    mismatch = (await gate.check(WorkflowHistory("marked", [*marked.events[:4], marker]))).mismatch
    assert mismatch is not None
    assert mismatch.recorded == 'the marker core_patch {"id":"gone","deprecated":false}'
    assert mismatch.instead == 'never asks workflow.patched("gone")'


@workflow.defn(name="Other")
class Other:
    """A workflow that is none of ours."""

    @workflow.run
    async def run(self) -> None:
        """End at once."""


async def test_unknown_workflow_is_told() -> None:
    """A run of a workflow that the code no longer has does not fit, whether it has begun or not."""
    gate = ReplayGate([Other], UnsandboxedWorkflowRunner())
    for events in (1, None):
        begun = WorkflowHistory("x", history(HAPPY).events[:events])
        verdict = await gate.check(begun)
        assert str(verdict.mismatch).startswith(
            "At event 1 the run has the start of ProvisionTenant, but the code has no such workflow.\nKeep the workflow"
        )


@pytest.mark.parametrize("events", [1, 2, 3])
async def test_run_that_decided_nothing_fits(events: int, changes: Changes) -> None:
    """A run whose first workflow task has not ended goes any way."""
    gate = ReplayGate([changes.workflow(ProvisionTenant, "run", TIMER)], workflow_runner())
    verdict = await gate.check(WorkflowHistory("x", history(HAPPY).events[:events]))
    assert verdict.fits, verdict


DAMAGED = {
    "one is missing": [*range(40), *range(41, 83)],
    "the last but one is missing": [*range(81), 82],
    "one stands twice": [*range(41), *range(40, 83)],
    "all stand twice": [*range(83), *range(83)],
    "two have changed places": [*range(40), 41, 40, *range(42, 83)],
}


@pytest.mark.parametrize("places", DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_history_says_nothing_about_the_code(places: list[int]) -> None:
    """Each event must be there once and in order, else neither verdict would be true."""
    events = history(HAPPY).events
    assert len(events) == 83
    with pytest.raises(ValueError, match="it is damaged: event "):
        await ReplayGate(WORKFLOWS, workflow_runner()).check(WorkflowHistory("x", [events[each] for each in places]))


async def test_something_else_is_no_history() -> None:
    """What does not begin with a start is refused."""
    gate = ReplayGate(WORKFLOWS, workflow_runner())
    for events in ([], history(HAPPY).events[3:]):
        with pytest.raises(ValueError, match="does not begin with the start of a workflow"):
            await gate.check(WorkflowHistory("x", events))
