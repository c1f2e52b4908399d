"""What a tenant costs, beside its vendor calls alone and beside Temporal alone; and what encryption adds to that."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from functools import partial

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from domain.provisioning import TenantRequest
from runtime.clock import new_id
from tests.bench.direct import DirectRun
from tests.bench.empty import CHAINS, EmptyBranches, do_nothing
from tests.bench.measure import CONCURRENCY, LOOK_SELDOM_SECONDS, Bench, median, new_name, provision, seconds_for

RUNS = 8
TENANTS = 40
# A machine's other work weighs on both alike only if they take turns.
ROUNDS = 8
EMPTY_RUNS = 20


async def time_to_active(bench: Bench) -> None:
    """Measure one tenant after another."""
    rows = []
    for with_domain in (False, True):
        kind = "one domain" if with_domain else "no domain"

        def direct(*, parallel: bool, with_domain: bool = with_domain) -> Callable[[], Awaitable[None]]:
            return lambda: DirectRun(bench.vendors, new_name("direct"), with_domain, parallel).run()

        times = {
            "vendor calls alone, in parallel": await median(RUNS, direct(parallel=True)),
            "vendor calls alone, one after another": await median(RUNS, direct(parallel=False)),
            "POST /tenants to active": await median(RUNS, partial(provision, bench, with_domain=with_domain)),
        }
        least = times["vendor calls alone, in parallel"]
        rows += [(f"{name}, {kind}", f"{took:.3f}", f"{took / least:.1f} x") for name, took in times.items()]
    bench.print(
        f"Time to active, median of {RUNS} in turn (DKIM takes 0.5 s, polled each 1 s)",
        ("seconds", "beside parallel calls"),
        rows,
    )


async def throughput(bench: Bench) -> None:
    """Measure ten at once."""
    clear = await Client.connect(bench.platform.facts["temporal"], data_converter=pydantic_data_converter)
    clients = {"in clear": clear, "encrypted": bench.client}
    took: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(ROUNDS + 1):
        for name, client in clients.items():
            seconds = await _empty(client, f"bench-{name}", EMPTY_RUNS)
            if number > 0:  # the first round is slower, whoever it is
                took[name].append(seconds)
    rates = {name: EMPTY_RUNS / statistics.median(rounds) for name, rounds in took.items()}
    look = partial(provision, bench, with_domain=True, look=LOOK_SELDOM_SECONDS)
    tenants = TENANTS / await seconds_for(TENANTS, look)
    activities = 1 + sum(CHAINS) + 2
    rows = [
        (
            f"empty workflow with {activities} empty activities, {name}",
            f"{rate:.1f}",
            f"{rate / rates['encrypted']:.2f}",
        )
        for name, rate in rates.items()
    ]
    rows.append(("tenants to active, one domain each", f"{tenants:.1f}", f"{tenants / rates['encrypted']:.2f}"))
    bench.print(f"Per second at concurrency {CONCURRENCY}", ("per second", "beside the encrypted empty one"), rows)


async def _empty(client: Client, queue: str, count: int) -> float:
    async def run() -> None:
        request = TenantRequest(operation_id=new_id(), tenant_slug="bench")
        await client.execute_workflow(EmptyBranches.run, request, id=new_name(queue), task_queue=queue)

    async with Worker(client, task_queue=queue, workflows=[EmptyBranches], activities=[do_nothing]):
        return await seconds_for(count, run)
