"""`make bench`: what a tenant costs, beside what the same could cost at the least.

It starts a platform of its own and ends it. Times on a busy machine wander; the ratios in one run are what counts.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from temporalio.client import Client
from temporalio.worker import Worker

from runtime.codec import build_data_converter
from runtime.process import run_and_exit
from runtime.settings import Settings
from runtime.wiring import Vendors, build_vendors
from sandbox.stack.layout import Files, Ports
from sandbox.stack.stack import Stack
from tests.bench.direct import DirectRun
from tests.bench.empty import CHAINS, QUEUE, EmptyBranches, do_nothing
from tests.support.platform import Platform, order
from tests.support.servers import free_port_base

RUNS = 8
CONCURRENCY = 10
TENANTS = 60
# Looking is work too: at ten tenants at once it must not be most of it.
LOOK_EVERY_SECONDS = 0.02
LOOK_SELDOM_SECONDS = 0.2

_numbers = itertools.count(1)


async def _until_active(http: httpx.AsyncClient, *, with_domain: bool, look: float = LOOK_EVERY_SECONDS) -> None:
    slug = f"bench-{next(_numbers)}"
    body = order(slug, **({} if with_domain else {"domains": []}))
    (await http.post("/tenants", json=body)).raise_for_status()
    while (await http.get(f"/tenants/{slug}")).json()["status"] != "active":
        await asyncio.sleep(look)


async def _median(runs: int, work: Callable[[], Awaitable[None]]) -> float:
    await work()  # what is made once for all is not measured
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def _per_second(count: int, work: Callable[[], Awaitable[object]]) -> float:
    """Return how many are done a second when ten are always under way."""
    left = iter(range(count))

    async def take() -> None:
        for _ in left:
            await work()

    started = time.perf_counter()
    await asyncio.gather(*(take() for _ in range(CONCURRENCY)))
    return count / (time.perf_counter() - started)


async def _time_to_active(console: Console, http: httpx.AsyncClient, vendors: Vendors) -> None:
    table = Table(title=f"Time to active, median of {RUNS} tenants one after another", title_justify="left")
    for column in ("", "seconds", "beside parallel calls"):
        table.add_column(column)
    for with_domain in (False, True):
        kind = "one domain (DKIM takes 0.5 s, polled each 1 s)" if with_domain else "no domain"

        def direct(*, parallel: bool, with_domain: bool = with_domain) -> Callable[[], Awaitable[None]]:
            return lambda: DirectRun(vendors, f"direct-{next(_numbers)}", with_domain, parallel).run()

        rows = {
            "vendor calls alone, in parallel": await _median(RUNS, direct(parallel=True)),
            "vendor calls alone, one after another": await _median(RUNS, direct(parallel=False)),
            "POST /tenants to active": await _median(RUNS, partial(_until_active, http, with_domain=with_domain)),
        }
        least = rows["vendor calls alone, in parallel"]
        for name, seconds in rows.items():
            table.add_row(f"{name}, {kind}", f"{seconds:.3f}", f"{seconds / least:.1f} x")
    console.print(table)


async def _throughput(console: Console, http: httpx.AsyncClient, temporal: str) -> None:
    # Encrypted alike, or the two would not compare.
    client = await Client.connect(temporal, data_converter=build_data_converter(Settings().key_ring))
    async with Worker(client, task_queue=QUEUE, workflows=[EmptyBranches], activities=[do_nothing]):

        async def empty() -> None:
            await client.execute_workflow(EmptyBranches.run, id=f"bench-empty-{next(_numbers)}", task_queue=QUEUE)

        await empty()
        alone = await _per_second(TENANTS, empty)
    tenants = await _per_second(TENANTS, partial(_until_active, http, with_domain=True, look=LOOK_SELDOM_SECONDS))
    activities = 1 + sum(CHAINS) + 2
    table = Table(title=f"Per second, {TENANTS} at concurrency {CONCURRENCY}", title_justify="left")
    for column in ("", "per second", "beside the empty workflow"):
        table.add_column(column)
    table.add_row(f"empty workflow with {activities} empty activities", f"{alone:.1f}", "1.00")
    table.add_row("tenants to active, one domain each", f"{tenants:.1f}", f"{tenants / alone:.2f}")
    console.print(table)


async def bench() -> int:
    """Measure, and print."""
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as directory:
        base = free_port_base()
        limits = {"OPERATION_PROFILE": "production", "STRIPE_RATE_PER_SECOND": "1000", "LOG_LEVEL": "WARNING"}
        # The rate limit towards Stripe is lifted: it would be the only thing measured.
        with Platform(Path(directory), base, **limits) as platform:
            os.environ.update(Stack(Ports(base), Files(platform.data_dir), print).environment())
            vendors = build_vendors(Settings())
            headers = {"Authorization": f"Bearer {platform.token('partner')}"}
            async with httpx.AsyncClient(
                base_url=platform.facts["api"], headers=headers, trust_env=False, timeout=60
            ) as http:
                await _time_to_active(console, http, vendors)
                await _throughput(console, http, platform.facts["temporal"])
            await vendors.aclose()
    return 0


if __name__ == "__main__":
    run_and_exit(bench())
