"""Hundreds of intents whose API was killed between commit and start: each runs, and runs once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from domain.operations import OperationState
from domain.provisioning import RetryProfile, SpaceResult
from runtime.dispatcher import Dispatcher
from runtime.metrics import build_metrics
from runtime.search_attributes import ensure_search_attributes
from runtime.settings import Settings
from runtime.wiring import Store, build_activities, build_recorder, build_vendors
from sandbox.stack.children import die_with_parent
from sandbox.stack.layout import find_binary
from tests.api.client import PARTNERS, PEOPLE, Api, new_tenant
from tests.api.issuers import OPERATOR, PORTAL, Issuers
from tests.conftest import DATABASE, TOKEN
from tests.store.builders import keep
from tests.support.servers import free_port
from tests.workflows.script import CLASSES, activity_names
from worker import WORKFLOWS, workflow_runner
from workflows.options import PLATFORM_QUEUE

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(280)]

INTENTS = 500
AT_A_TIME = 25


@contextlib.contextmanager
def stalled_api(settings: Settings, issuers: Issuers, temporal: Client) -> Any:
    """Run an API that never starts what it commits; it is killed at the end of the block."""
    port = free_port()
    environment = {
        **os.environ,
        "MONGO_URL": settings.mongo_url.get_secret_value(),
        "MONGO_DATABASE": DATABASE,
        "TEMPORAL_ADDRESS": temporal.service_client.config.target_host,
        "AUTHENTIK_URL": settings.authentik.url,
        "AUTHENTIK_TOKEN": TOKEN,
        "AUTHENTIK_ISSUER": ",".join(issuers.issuer(name) for name in (PORTAL, OPERATOR)),
        "AUTHENTIK_AUDIENCE": f"{PORTAL},{OPERATOR}",
        "STALWART_URL": settings.stalwart.url,
        "STALWART_TOKEN": TOKEN,
        "OCIS_URL": settings.ocis.url,
        "OCIS_TOKEN": TOKEN,
        "LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "tests.support.stalled_api", str(port)]
    process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def commit_all(api: Api, store: Store) -> None:
    """Ask for all tenants, some at a time; no answer ever comes."""
    operations = store.database.collection("operations")
    waiting = []
    for first in range(0, INTENTS, AT_A_TIME):
        for number in range(first, first + AT_A_TIME):
            body = new_tenant(f"many-{number}", domains=[], adminEmail=f"admin@many-{number}.example")
            waiting.append(asyncio.create_task(api.post("/tenants", json=body)))
        while await operations.count_documents({}) < first + AT_A_TIME:
            assert not [task for task in waiting if task.done()]
            await asyncio.sleep(0.02)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@contextlib.asynccontextmanager
async def working(
    client: Client, settings: Settings, store: Store, done: Counter[tuple[str, str]]
) -> AsyncIterator[None]:
    """Serve every queue with our own activities, and with ones that count in place of the vendors'."""
    vendors = build_vendors(settings)
    queues: dict[str, list[Callable[..., Any]]] = {
        PLATFORM_QUEUE: build_activities(settings, store, vendors)[PLATFORM_QUEUE],
        **{queue: [_counting(name, done) for name in activity_names(each)] for queue, each in CLASSES.items()},
    }
    async with contextlib.AsyncExitStack() as running:
        running.push_async_callback(vendors.aclose)
        for queue, activities in queues.items():
            worker = Worker(
                client,
                task_queue=queue,
                workflows=WORKFLOWS if queue == PLATFORM_QUEUE else [],
                activities=activities,
                workflow_runner=workflow_runner(),
            )
            await running.enter_async_context(worker)
        yield


def _counting(name: str, done: Counter[tuple[str, str]]) -> Callable[..., Any]:
    @activity.defn(name=name)
    async def run(_request: dict[str, Any]) -> SpaceResult:
        info = activity.info()
        assert info.workflow_id is not None
        done[info.workflow_id, info.activity_id] += 1
        return SpaceResult(resource_id="1")

    return run


async def test_each_runs_once(api_settings: Settings, issuers: Issuers, store: Store) -> None:
    """Two workers' dispatchers find all intents that a killed API left behind; every job is done once, to its end."""
    await keep(store, "partners", *PARTNERS)
    await keep(store, "users", *PEOPLE)
    server = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=pydantic_data_converter
    )
    async with server:
        await ensure_search_attributes(server.client)
        with stalled_api(api_settings, issuers, server.client) as url:
            async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as http:
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await http.get("/health/ready")).status_code == 200:
                            break
                await commit_all(Api(http, issuers), store)
        assert [each async for each in server.client.list_workflows()] == []
        done: Counter[tuple[str, str]] = Counter()
        operations = store.database.collection("operations")
        async with working(server.client, api_settings, store, done):
            dispatchers = [
                Dispatcher(server.client, store.database, build_recorder(store), store.audit, RetryProfile.FAST)
                for _ in range(2)
            ]
            running = asyncio.gather(*(each.run(build_metrics(server.client)) for each in dispatchers))
            while await operations.count_documents({"open": True}):
                await asyncio.sleep(0.1)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        runs = Counter([each.id async for each in server.client.list_workflows()])
    rows = await operations.find({}).to_list(None)
    assert Counter(row["state"] for row in rows) == {OperationState.COMPLETED.value: INTENTS}
    assert runs == Counter(row["workflowId"] for row in rows)
    assert set(done.values()) == {1}
    assert {workflow for workflow, _ in done} == set(runs)
    tenants = store.database.collection("tenants")
    assert await tenants.count_documents({"status": "active"}) == INTENTS
    assert len(await store.audit.find({"action": "tenant.activated"})) == INTENTS
