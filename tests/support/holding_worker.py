"""The worker, able to be held before or after an activity: `python -m tests.support.holding_worker DIRECTORY`.

A file `hold.<when>.<activity>.<tenant>` in the directory holds that activity of that tenant once; the worker answers
with `held.<when>.<activity>.<tenant>` and goes on when `release` appears.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

import worker
from runtime.process import run_and_exit

LOOK_EVERY_SECONDS = 0.02


class Holding(Interceptor):
    """Holds activities around everything else that surrounds them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Wrap the activities of a worker."""
        return _HeldActivity(next, self._directory)


class _HeldActivity(ActivityInboundInterceptor):
    def __init__(self, next_: ActivityInboundInterceptor, directory: Path) -> None:
        super().__init__(next_)
        self._directory = directory

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        tenant = (info.workflow_id or "").split("/")[1]
        await self._hold(f"before.{info.activity_type}.{tenant}")
        result = await super().execute_activity(input)
        await self._hold(f"after.{info.activity_type}.{tenant}")
        return result

    async def _hold(self, moment: str) -> None:
        wanted = self._directory / f"hold.{moment}"
        if not wanted.exists():
            return
        wanted.rename(self._directory / f"held.{moment}")
        while not (self._directory / "release").exists():
            await asyncio.sleep(LOOK_EVERY_SECONDS)


if __name__ == "__main__":
    queues = ["platform", "authentik", "stalwart", "ocis", "stripe"]
    run_and_exit(worker.serve(queues, [Holding(Path(sys.argv[1]))]))
