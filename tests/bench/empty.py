"""Workflows that do nothing: what Temporal alone takes."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from domain.provisioning import DecisionRequest, StepResult, TenantRequest

# The steps of the four branches of a run with one domain.
CHAINS = (3, 4, 3, 4)


@activity.defn(name="do_nothing")
async def do_nothing(request: TenantRequest) -> StepResult:
    """Do nothing, with the payloads of a step."""
    return StepResult(resource_id=request.operation_id)


@workflow.defn(name="EmptyBranches")
class EmptyBranches:
    """The shape of ProvisionTenant: one activity, four chains at once, two activities."""

    @workflow.run
    async def run(self, request: TenantRequest) -> None:
        """Run as many empty activities as a provisioning run has."""
        await self._chain(1, request)
        await asyncio.gather(*(self._chain(length, request) for length in CHAINS))
        await self._chain(2, request)

    async def _chain(self, length: int, request: TenantRequest) -> None:
        for _ in range(length):
            await workflow.execute_activity(do_nothing, request, start_to_close_timeout=timedelta(seconds=10))


@workflow.defn(name="EmptyUpdates")
class EmptyUpdates:
    """Takes updates as a job takes decisions, and does nothing about them."""

    @workflow.run
    async def run(self) -> None:
        """Wait until terminated."""
        await workflow.wait_condition(lambda: False)

    @workflow.update
    def retry(self, request: DecisionRequest) -> None:
        """Do nothing."""
