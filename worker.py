"""The worker's entry point: runs workflows and activities until it is told to stop.

One process serves every task queue by default; `--queues` splits them over processes, so that a slow vendor cannot
hold up the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Interceptor, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from domain.errors import ControlPlaneError, VendorRejected
from runtime.breaker import Breakers
from runtime.interceptors import StepInterceptor
from runtime.logging import configure_logging, get_logger
from runtime.metrics import build_metrics
from runtime.process import run_and_exit, stop_event
from runtime.settings import Settings
from runtime.temporal import connect, metrics_runtime, prepare_namespace
from runtime.wiring import (
    Store,
    Vendors,
    build_activities,
    build_breakers,
    build_decisions,
    build_dispatcher,
    build_prober,
    build_recorder,
    build_store,
    build_vendors,
)
from workflows.options import PLATFORM_QUEUE
from workflows.provision_tenant import ProvisionTenant

log = get_logger("worker")

WORKFLOWS = [ProvisionTenant]
GRACE = timedelta(seconds=10)
START_AGAIN_AFTER_SECONDS = 1.0
HEARTBEAT_THROTTLE = timedelta(milliseconds=500)


@dataclass(frozen=True)
class QueueLimits:
    """How much of a queue one worker process does at a time."""

    concurrent: int
    per_second: float | None = None


def queue_limits(settings: Settings) -> dict[str, QueueLimits]:
    """Return the limits by queue: what is too much for one vendor must not slow another."""
    return {
        PLATFORM_QUEUE: QueueLimits(concurrent=50),
        "authentik": QueueLimits(concurrent=20),
        # Stalwart answers more than four requests of one account at a time with an error.
        "stalwart": QueueLimits(concurrent=4),
        "ocis": QueueLimits(concurrent=20),
        "stripe": QueueLimits(concurrent=20, per_second=settings.stripe.rate_per_second),
    }


def workflow_runner() -> SandboxedWorkflowRunner:
    """Return the sandbox for workflows; our own rooms pass through, since they are pure where workflows use them."""
    rooms = ("domain", "workflows", "activities", "runtime", "integrations", "store", "pydantic", "pydantic_core")
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*rooms))


def build_workers(
    client: Client,
    settings: Settings,
    store: Store,
    vendors: Vendors,
    breakers: Breakers,
    *,
    queues: Sequence[str],
    extra_interceptors: Sequence[Interceptor] = (),
) -> list[Worker]:
    """Return a worker for each queue. The extra interceptors come first, around the recording one."""
    activities = build_activities(settings, store, vendors)
    limits = queue_limits(settings)
    interceptors = [*extra_interceptors, StepInterceptor(build_recorder(store), breakers)]
    return [
        Worker(
            client,
            task_queue=queue,
            workflows=WORKFLOWS if queue == PLATFORM_QUEUE else [],
            activities=activities[queue],
            workflow_runner=workflow_runner(),
            interceptors=interceptors,
            max_concurrent_activities=limits[queue].concurrent,
            max_task_queue_activities_per_second=limits[queue].per_second,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
            graceful_shutdown_timeout=GRACE,
        )
        for queue in queues
    ]


async def serve(queues: Sequence[str], extra_interceptors: Sequence[Interceptor] = ()) -> int:
    """Run the worker until SIGTERM or Ctrl-C; running activities get ten seconds to finish."""
    settings = Settings()
    configure_logging(as_json=settings.log_format == "json", level=settings.log_level)
    stop = stop_event()
    store = build_store(settings)
    vendors = build_vendors(settings)
    client = await _until_ready(settings, store, stop)
    if client is None:
        return 0
    breakers = build_breakers(store, settings.operation_profile)
    if not await _generation_fits(vendors, breakers):
        return 1
    workers = build_workers(
        client, settings, store, vendors, breakers, queues=queues, extra_interceptors=extra_interceptors
    )
    dispatcher = build_dispatcher(settings, store, client)
    metrics = build_metrics(client)
    prober = build_prober(settings, store, vendors, breakers, build_decisions(store, dispatcher), metrics)
    async with contextlib.AsyncExitStack() as running:
        for each in workers:
            await running.enter_async_context(each)
        loops = asyncio.gather(dispatcher.run(metrics), prober.run())
        log.info("worker_ready", queues=list(queues))
        await stop.wait()
        log.info("worker_stopping")
        loops.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loops
    await vendors.aclose()
    store.database.close()
    return 0


async def _until_ready(settings: Settings, store: Store, stop: asyncio.Event) -> Client | None:
    """Wait until Temporal and MongoDB are there; None if told to stop before."""
    runtime = metrics_runtime(settings.worker_metrics_host, settings.worker_metrics_port)
    while not stop.is_set():
        try:
            client = await connect(settings.key_ring, runtime=runtime)
            await prepare_namespace(client)
            await store.prepare()
            return client
        except Exception as error:  # noqa: BLE001 - at start everything may still be on its way up
            log.warning("worker_waits", error=f"{type(error).__name__}: {error}"[:300])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), START_AGAIN_AFTER_SECONDS)
    return None


async def _generation_fits(vendors: Vendors, breakers: Breakers) -> bool:
    """Tell whether Stalwart speaks the pinned generation; a server that is away is weather and decides nothing."""
    try:
        async with breakers.guarding():
            server = await vendors.stalwart.check_generation()
    except VendorRejected as error:
        log.error("stalwart_generation_mismatch", code=error.code, message=error.message)
        return error.code != "generation_mismatch"
    except ControlPlaneError as error:
        log.warning("stalwart_not_checked", code=error.code)
    else:
        log.info("stalwart_checked", edition=server.edition)
    return True


def main() -> None:
    """Parse the command line and run."""
    names = [PLATFORM_QUEUE, "authentik", "stalwart", "ocis", "stripe"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queues", nargs="+", choices=names, default=names, help="task queues to serve")
    run_and_exit(serve(parser.parse_args().queues))


if __name__ == "__main__":
    main()
