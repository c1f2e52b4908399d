"""Runs that began with older code go on with the code of today."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from domain.provisioning import OperationRequest
from tests.replay.save_histories import CASES, HISTORIES
from worker import WORKFLOWS, workflow_runner
from workflows.provision_tenant import ProvisionTenant

pytestmark = pytest.mark.asyncio

STORED = sorted(HISTORIES.glob("*/*.json"))
EVERY_HISTORY = pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
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
    assert {path.stem for path in STORED} >= set(CASES)
    assert {path.parent.name for path in STORED} == {each.__name__ for each in WORKFLOWS}


@EVERY_HISTORY
async def test_replays(path: Path) -> None:
    """A stored history replays with the worker's own sandbox and converter."""
    replayer = Replayer(workflows=WORKFLOWS, workflow_runner=workflow_runner(), data_converter=pydantic_data_converter)
    await replayer.replay_workflow(history(path))


@EVERY_HISTORY
async def test_names_nobody(path: Path) -> None:
    """A stored history holds no e-mail address, in clear or inside a payload, and no folder of who saved it."""
    text = path.read_text()
    inside = list(payloads(json.loads(text)))
    assert inside
    assert "stackTrace" not in text
    assert not [each for each in (text, *inside) if ADDRESS.search(each)]


@workflow.defn(name="ProvisionTenant")
class WithTimer(ProvisionTenant):
    """ProvisionTenant with a timer that no stored run has."""

    @workflow.run
    async def run(self, request: OperationRequest) -> None:
        """Wait a second, then run as ever."""
        await workflow.sleep(1)
        await super().run(request)


@workflow.defn(name="ProvisionTenant")
class WithoutPlan(ProvisionTenant):
    """ProvisionTenant that closes at once."""

    @workflow.run
    async def run(self, request: OperationRequest) -> None:
        """Close without having planned."""
        del request
        await self._close(None)


@pytest.mark.parametrize("changed", [WithTimer, WithoutPlan], ids=["added timer", "left out activity"])
async def test_changed_workflow_is_refused(changed: type) -> None:
    """The check can fail: a workflow that issues other commands is told apart."""
    replayer = Replayer(
        workflows=[changed], workflow_runner=UnsandboxedWorkflowRunner(), data_converter=pydantic_data_converter
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(history(HISTORIES / "ProvisionTenant" / "happy-path.json"))
