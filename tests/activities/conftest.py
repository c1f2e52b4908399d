"""The activities, wired to a real MongoDB and to stand-ins that can be made to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from domain.provisioning import TenantRequest
from runtime.clock import utcnow
from runtime.settings import Settings
from runtime.wiring import Store, Vendors, build_activities
from tests.activities.jobs import Job, open_job

Activity = Callable[[TenantRequest], Awaitable[Any]]


class House:
    """A new tenant's job, every activity by its name, and the control of the stand-ins."""

    def __init__(self, job: Job, activities: dict[str, Activity], standins: dict[str, str], http: httpx.AsyncClient):
        self.job = job
        self._activities = activities
        self._standins = standins
        self._http = http

    def of(self, job: Job) -> House:
        """Return the same house with another tenant's job in it."""
        return House(job, self._activities, self._standins, self._http)

    async def run(self, step: str, name: str, *, environment: ActivityEnvironment | None = None) -> Any:
        """Run the next attempt of a step with the activity of that name."""
        request = self.job.domain_request if step.endswith(self.job.domain) or "mailbox" in step else self.job.request
        return await self.job.attempt(step, lambda: self._activities[name](request), environment=environment)

    async def refused(self, step: str, name: str) -> str:
        """Run a step that is refused for good, and return the code."""
        with pytest.raises(ApplicationError) as caught:
            await self.run(step, name)
        assert caught.value.non_retryable
        assert caught.value.type is not None
        return caught.value.type

    async def run_until_done(self, step: str, name: str) -> Any:
        """Run attempts of a step until one is not told to wait."""
        while True:
            try:
                return await self.run(step, name)
            except ApplicationError as error:
                if error.type != "not_ready_yet":
                    raise

    async def call(self, name: str, request: Any, *, at: datetime | None = None) -> Any:
        """Run an activity that is no step, as its workflow asked for it at a time, now if none is given."""
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, scheduled_time=at or utcnow())
        return await environment.run(self._activities[name], request)

    async def fault(self, vendor: str, **spec: Any) -> str:
        """Set a fault and return its id."""
        answer = await self._http.post(f"{self._standins[vendor]}/_sandbox/faults", json=spec)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def control(self, vendor: str, path: str, body: object) -> None:
        """Post to another control path of a stand-in."""
        answer = await self._http.post(f"{self._standins[vendor]}/_sandbox/{path}", json=body)
        assert answer.is_success, answer.text

    async def release(self, vendor: str, fault: str) -> None:
        """Let a held request go on, and return when it has been carried out."""
        await self._http.post(f"{self._standins[vendor]}/_sandbox/faults/{fault}/release")
        while any(each["status"] is None and each["fault"] == fault for each in await self.requests(vendor)):
            pass

    async def held(self, vendor: str, fault: str) -> None:
        """Return when a request is held by the fault."""
        while True:
            answer = await self._http.get(f"{self._standins[vendor]}/_sandbox/faults")
            if any(each["id"] == fault and each["held"] for each in answer.json()["items"]):
                return

    async def requests(self, vendor: str) -> list[dict[str, Any]]:
        """Return the requests that a stand-in saw in this test, oldest first."""
        answer = await self._http.get(f"{self._standins[vendor]}/_sandbox/requests")
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def writes(self, vendor: str) -> int:
        """Return how many requests of this job a stand-in saw that would change something."""
        seen = [each for each in await self.requests(vendor) if self.job.operation_id in each["requestId"]]
        reads = ("/get", "/query")
        return sum(each["method"] != "GET" and not any(f'{read}"' in each["body"] for read in reads) for each in seen)

    async def objects(self, vendor: str, kind: str) -> list[dict[str, Any]]:
        """Return the objects of one kind that name this job's tenant, its domain, its price row or its people."""
        answer = await self._http.get(f"{self._standins[vendor]}/_sandbox/objects")
        job = self.job
        names = (job.slug, job.tenant_id, job.admin_id, job.price_id)
        return [row for row in answer.json()[kind] if any(name in str(row) for name in names)]


@pytest_asyncio.fixture(loop_scope="session")
async def house(store: Store, settings: Settings, vendors: Vendors, standins: dict[str, str]) -> AsyncIterator[House]:
    """A house with a new tenant in it; the faults it sets end with the test."""
    queues = build_activities(settings, store, vendors)
    activities = {method.__name__: method for methods in queues.values() for method in methods}
    async with httpx.AsyncClient(trust_env=False) as http:
        for url in standins.values():
            await http.delete(f"{url}/_sandbox/requests")
        yield House(await open_job(store), activities, standins, http)
        for url in standins.values():
            await http.delete(f"{url}/_sandbox/faults")
