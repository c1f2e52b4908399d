"""No workflow commands anything new unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.replay.changed import Changes
from tests.replay.fingerprints import BASELINE, difference, fingerprints, workflow_sources
from worker import WORKFLOWS

JOB = """
from temporalio import workflow
from workflows.steps import Steps

class Job:
    def __init__(self, steps: Steps):
        self._steps = steps

    @workflow.update(name="stop")
    async def stop(self, request):
        self._steps.stop()
"""
STEPS = """
import asyncio
from temporalio import workflow

TIMEOUT = 30
PATCH = "2026-first"

class Steps:
    async def run(self, name, method, request):
        handle = workflow.start_activity_method(method, request, activity_id=name, start_to_close_timeout=TIMEOUT)
        self._handle = handle
        return await handle

    def stop(self):
        self._handle.cancel()

async def together(*parts):
    return await asyncio.gather(*parts)
"""
MAKE = """
from datetime import timedelta
from temporalio import workflow
from activities.things import ThingActivities
from workflows.job import Job
from workflows.steps import PATCH, Steps, together

REMOVE = {"thing": ThingActivities.delete_thing}

@workflow.defn(name="Make")
class Make(Job):
    def __init__(self, request):
        super().__init__(Steps())

    @workflow.run
    async def run(self, request):
        await together(self._first(request), self._second(request))
        if workflow.patched(PATCH):
            await self._steps.run("thing.third", ThingActivities.ensure_third, request)
        # The end of it.
        await workflow.wait_condition(lambda: self.done, timeout=timedelta(days=30))
        await self._remove("thing", request)

    async def _first(self, request):
        await self._steps.run("thing.first", ThingActivities.ensure_first, request)

    async def _second(self, request):
        result = await self._steps.run(f"thing.second.{request.name}", ThingActivities.ensure_second, request)
        if not result.fits:
            await workflow.sleep(timedelta(seconds=1))

    async def _remove(self, name, request):
        step = f"{name}_double"
        while (await self._steps.run(step, REMOVE[name], request)).more:
            step = f"{name}_double_more"
"""
SOURCES = {"workflows.job": JOB, "workflows.steps": STEPS, "workflows.make": MAKE}
THIRD = 'await self._steps.run("thing.third", ThingActivities.ensure_third, request)'
FIRST = 'await self._steps.run("thing.first", ThingActivities.ensure_first, request)'


def replaced(old: str, new: str) -> dict[str, str]:
    """Return the sources with one place changed."""
    assert sum(source.count(old) for source in SOURCES.values()) == 1
    return {name: source.replace(old, new) for name, source in SOURCES.items()}


def difference_of(old: str, new: str) -> str:
    """Return what the guard says of a change."""
    return difference(fingerprints(SOURCES), fingerprints(replaced(old, new)))


def test_nothing_new_is_commanded() -> None:
    """What each workflow commands is what was accepted last."""
    now = fingerprints(workflow_sources())
    assert set(now) == {each.__name__ for each in WORKFLOWS}
    told = difference(json.loads(BASELINE.read_text()), now)
    assert not told, told


@pytest.mark.parametrize("changed", WORKFLOWS, ids=lambda each: each.__name__)
def test_sees_into_every_workflow(changed: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer more at the start of any workflow is told from its source."""
    before = workflow_sources()
    with_timer = Changes(tmp_path, monkeypatch).source(changed, "run", "await workflow.sleep(1)")
    said = difference(fingerprints(before), fingerprints({**before, changed.__module__: with_timer}))
    assert "workflow.sleep" in [each[1:].strip() for each in said.splitlines() if each.startswith("+")]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (FIRST, f'{FIRST}; await self._steps.run("thing.more", ThingActivities.ensure_more, request)',
         "+Steps.run 'thing.more' ThingActivities.ensure_more"),
        (FIRST, "pass", "-Steps.run 'thing.first' ThingActivities.ensure_first"),
        ("self._first(request), self._second(request)", "self._second(request), self._first(request)",
         "+Make._first"),
        ("ThingActivities.ensure_second", "ThingActivities.ensure_other", "+Steps.run f'thing.second.{_.name}' ThingActivities.ensure_other"),
        ("thing.first", "thing.one", "+Steps.run 'thing.one' ThingActivities.ensure_first"),
        ("thing.second.", "second.", "+Steps.run f'second.{_.name}' ThingActivities.ensure_second"),
        ("{name}_double_more", "{name}_next", "+Steps.run f'{_}_double' or f'{_}_next' REMOVE[_]"),
        (f"if workflow.patched(PATCH):\n            {THIRD}", THIRD, "-workflow.patched '2026-first'"),
        ('PATCH = "2026-first"', 'PATCH = "2026-second"', "+workflow.patched '2026-second'"),
        ("ThingActivities.delete_thing", "ThingActivities.purge_thing", "+'thing': ThingActivities.purge_thing"),
        ("timeout=timedelta(days=30)", "", "-workflow.wait_condition with timeout"),
        ("await workflow.sleep(timedelta(seconds=1))", "pass", "-workflow.sleep"),
        ("if not result.fits:", "if result.fits:", "+if _.fits"),
        ("while (await", "if (await", "-while (await self._steps.run(_, REMOVE[_], _)).more"),
        ("self._handle.cancel()", "self._handle = None", "-cancel of a handle"),
        ("activity_id=name, ", "", "-workflow.start_activity_method activity_id=_"),
        ('name="stop"', 'name="halt"', "+update 'halt' Job.stop"),
    ],
    ids=[
        "added activity", "removed activity", "reordered", "another activity", "step name", "step name with a variable",
        "step name in a loop", "removed patch", "renamed patch", "table", "timer of a wait", "timer", "condition",
        "loop", "cancel in an update", "activity id", "update",
    ],
)  # fmt: skip
def test_sees_a_change(old: str, new: str, line: str) -> None:
    """A change of what is commanded is told, with the line that changed and what to do."""
    said = difference_of(old, new)
    assert line in {each[:1] + each[1:].strip() for each in said.splitlines()}
    assert 'workflow.patched("...")' in said
    assert "python -m tests.replay.fingerprints" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# The end of it.", "# The very end."),
        ("TIMEOUT = 30", "TIMEOUT = 60"),
        ("start_to_close_timeout=TIMEOUT", "start_to_close_timeout=TIMEOUT, summary=name"),
        ("timedelta(days=30)", "timedelta(days=60)"),
        ("timedelta(seconds=1)", "timedelta(seconds=2)"),
        ("handle = workflow.start", "handle: Any = workflow.start"),
        ("ThingActivities.ensure_third, request)", "ThingActivities.ensure_third, request.third())"),
        ("result = await", "log(request)\n        result = await"),
    ],
    ids=["comment", "timeout", "summary", "longer wait", "longer timer", "annotation", "payload", "other call"],
)
def test_does_not_see(old: str, new: str) -> None:
    """A change that issues the same commands passes."""
    assert difference_of(old, new) == ""
