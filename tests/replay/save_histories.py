"""Saves the histories that replay tests need: `python -m tests.replay.save_histories`.

Runs the real workflow on a real server with activities that follow a script; nothing in it is anybody's data.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from domain.errors import ForeignObject, OutcomeUnknown, VendorRateLimited, VendorUnavailable
from domain.provisioning import ProvisionPlan, RetryProfile
from runtime.process import run_and_exit
from sandbox.stack.layout import find_binary
from tests.workflows.script import DOMAIN, Script, Stage

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


async def save(folder: Path) -> list[Path]:
    """Save the history of every case that has none, and return what was saved."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")),
        data_converter=pydantic_data_converter,
        # The default would put this machine's name into the files.
        identity="worker",
    )
    async with environment, Stage(environment.client).working() as stage:
        for name, script in CASES.items():
            path = folder / f"{name}.json"
            if path.exists():  # what ran once must replay for ever: a history is never rewritten
                continue
            handle = await stage.start(script, profile=RetryProfile.FAST)
            await handle.result()
            path.write_text(without_traces((await handle.fetch_history()).to_json()))
            saved.append(path)
    return saved


def without_traces(history: str) -> str:
    """Return a history without stack traces, which name this machine's folders and mean nothing to a replay."""

    def strip(value: Any) -> Any:
        match value:
            case dict():
                return {key: strip(each) for key, each in value.items() if key != "stackTrace"}
            case list():
                return [strip(each) for each in value]
            case _:
                return value

    return json.dumps(strip(json.loads(history)), indent=1) + "\n"


async def main() -> int:
    """Save the cases that have no history yet."""
    for each in await save(HISTORIES / "ProvisionTenant"):
        print(f"saved {each.name}")
    return 0


if __name__ == "__main__":
    run_and_exit(main())
