"""A workflow of the same shape as ProvisionTenant whose activities do nothing: what Temporal alone takes."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import activity, workflow

QUEUE = "bench-empty"
# The steps of the four branches of a run with one domain.
CHAINS = (3, 4, 3, 4)


@activity.defn(name="do_nothing")
async def do_nothing() -> None:
    """Do nothing."""


@workflow.defn(name="EmptyBranches")
class EmptyBranches:
    """One activity, four chains at once, two activities."""

    @workflow.run
    async def run(self) -> None:
        """Run as many empty activities as a provisioning run has."""
        await self._chain(1)
        await asyncio.gather(*(self._chain(length) for length in CHAINS))
        await self._chain(2)

    async def _chain(self, length: int) -> None:
        for _ in range(length):
            await workflow.execute_activity(do_nothing, start_to_close_timeout=timedelta(seconds=10))
