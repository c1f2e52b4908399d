"""Saves the histories that replay tests need: `python -m tests.replay.save_histories`.

Runs the real workflow on a real server with activities that follow a script; nothing in it is anybody's data.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from domain.errors import ForeignObject, OutcomeUnknown, VendorRateLimited, VendorUnavailable
from domain.operations import DecisionAction
from domain.provisioning import ProvisionPlan, RetryProfile
from runtime.codec import build_data_converter
from runtime.process import run_and_exit
from runtime.replay import to_stored
from sandbox.stack.layout import find_binary
from tests.workflows.script import DOMAIN, Script, Stage, until_cancelled

HISTORIES = Path(__file__).parent / "histories"

SECOND = timedelta(seconds=1)
CASES = {
    "happy-path": Script(),
    "weather-then-healed": Script()
    .fails("ocis.space", VendorUnavailable("ocis", "away"), VendorUnavailable("ocis", "away"))
    .fails("stripe.customer", VendorRateLimited("stripe", "slow down", retry_after=SECOND)),
    "refused-branch": Script().fails(f"stalwart.domain.{DOMAIN}", ForeignObject("stalwart", "not ours")),
    "billing-dark": Script(plan=ProvisionPlan(domains=[DOMAIN], mailbox_domain=DOMAIN, billing_enabled=False)),
    "lost-answer": Script(unsettled=SECOND, repeated=("ocis.space",), not_yet=[SECOND]).fails(
        "ocis.space", OutcomeUnknown("ocis", "lost")
    ),
    "doubles-and-quota": Script(quota_matches=False, doubles=frozenset({"ocis.space", "stalwart.role"})),
}


Meanwhile = Callable[[Stage, Script, "WorkflowHandle[Any, None]"], Awaitable[None]]


def decided(step: str, action: DecisionAction) -> Meanwhile:
    """Decide about a step once it is parked."""

    async def meanwhile(stage: Stage, script: Script, handle: WorkflowHandle[Any, None]) -> None:
        await stage.parked(script, step)
        await stage.decide(handle, action, step)

    return meanwhile


async def _canceled(
    stage: Stage, script: Script, handle: WorkflowHandle[Any, None], *, in_temporal: bool, when: Callable[[Script], Any]
) -> None:
    while not when(script):
        await stage.moment()
    await (handle.cancel() if in_temporal else stage.decide(handle, DecisionAction.CANCEL))


def canceled(when: Callable[[Script], Any], *, in_temporal: bool) -> Meanwhile:
    """Cancel once something holds."""
    return functools.partial(_canceled, in_temporal=in_temporal, when=when)


REFUSED = ForeignObject("ocis", "not ours")
HELD = {"ocis.space", "stripe.customer"}


def _held() -> Script:
    return Script(attempts={step: [until_cancelled] for step in HELD})


# What people do meanwhile, in cases that need them.
MEANWHILE: dict[str, tuple[Script, Meanwhile]] = {
    "parked-then-retried": (
        Script().fails("ocis.space", REFUSED),
        decided("ocis.space", DecisionAction.RETRY),
    ),
    "parked-then-skipped": (
        Script().fails("ocis.space", REFUSED),
        decided("ocis.space", DecisionAction.SKIP),
    ),
    "canceled": (_held(), canceled(lambda script: script.running == HELD, in_temporal=False)),
    "canceled-in-temporal": (_held(), canceled(lambda script: script.running == HELD, in_temporal=True)),
    "canceled-while-parked": (
        Script().fails("ocis.space", REFUSED),
        canceled(lambda script: script.waiting, in_temporal=False),
    ),
    "canceled-in-temporal-after-the-outcome": (
        Script(unsettled=SECOND),
        canceled(lambda script: script.outcome, in_temporal=True),
    ),
    "canceled-before-the-outcome-and-undone-in-two-tries": (
        Script(canceled_before_outcome=True, undo_waits=[SECOND]).fails("ocis.space_undo", REFUSED),
        decided("ocis.space_undo", DecisionAction.RETRY),
    ),
    "undoing-skipped": (
        Script(canceled_before_outcome=True, doubles=frozenset({"stalwart.role_undo"})).fails(
            "ocis.space_undo", REFUSED
        ),
        decided("ocis.space_undo", DecisionAction.SKIP),
    ),
}


async def nothing(_stage: Stage, _script: Script, _handle: WorkflowHandle[Any, None]) -> None:
    """Let it run."""


async def save(folder: Path) -> list[Path]:
    """Save the history of every case that has none, and return what was saved."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=build_data_converter(None)
    )
    async with environment, Stage(environment.client).working() as stage:
        for name, (script, meanwhile) in {
            **{name: (each, nothing) for name, each in CASES.items()},
            **MEANWHILE,
        }.items():
            path = folder / f"{name}.json"
            if path.exists():  # what ran once must replay for ever: a history is never rewritten
                continue
            handle = await stage.start(script, profile=RetryProfile.FAST)
            await meanwhile(stage, script, handle)
            await handle.result()
            path.write_text(to_stored(await handle.fetch_history()))
            saved.append(path)
    return saved


async def main() -> int:
    """Save the cases that have no history yet."""
    for each in await save(HISTORIES / "ProvisionTenant"):
        print(f"saved {each.name}")
    return 0


if __name__ == "__main__":
    run_and_exit(main())
