"""What the measurements share: a running platform, tenants in it, and times taken and printed alike."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx
from rich.console import Console
from rich.table import Table
from temporalio.client import Client

from domain.operations import Operation, StepState
from runtime.settings import Settings
from runtime.wiring import Store, Vendors
from tests.support.platform import Platform, order

CONCURRENCY = 10
# Looking is work too: at ten tenants at once it must not be most of it.
LOOK_EVERY_SECONDS = 0.02
LOOK_SELDOM_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
# Nothing waits for it, so everything else is done while it is parked.
LAST_STEP = "ocis.member"
REFUSAL = {
    "status": 403,
    "body": '{"error":{"code":"accessDenied","message":"no"}}',
    "content_type": "application/json",
}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bench:
    """A running platform, and every way into it."""

    console: Console
    platform: Platform
    settings: Settings
    store: Store
    vendors: Vendors
    # Encrypts, like the platform's own.
    client: Client
    partner: httpx.AsyncClient
    operator: httpx.AsyncClient

    def print(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table whose first column names the rows."""
        table = Table(title=title, title_justify="left")
        for column in ("", *columns):
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def new_name(kind: str) -> str:
    """Return a name that was not given before."""
    return f"{kind}-{next(_numbers)}"


def order_of(slug: str, *, with_domain: bool) -> dict[str, object]:
    """Return the body of `POST /tenants` for a tenant with one domain or none."""
    return order(slug, **({} if with_domain else {"domains": []}))


async def provision(bench: Bench, *, with_domain: bool, look: float = LOOK_EVERY_SECONDS) -> None:
    """Order a tenant and return when it is active."""
    slug = new_name("bench")
    (await bench.partner.post("/tenants", json=order_of(slug, with_domain=with_domain))).raise_for_status()
    while (await bench.partner.get(f"/tenants/{slug}")).json()["status"] != "active":
        await asyncio.sleep(look)


async def park(bench: Bench, *, with_domain: bool) -> str:
    """Return a provision of which one step is parked, refused for ever, and everything else is done."""
    slug = new_name("parked")
    contains = [f"tenant/{slug}/", f"/{LAST_STEP}."]
    await asyncio.to_thread(
        bench.platform.inject, "ocis", "status", method="POST", contains=contains, times=None, **REFUSAL
    )
    answer = await bench.partner.post("/tenants", json=order_of(slug, with_domain=with_domain))
    operation_id = str(answer.raise_for_status().json()["id"])
    await until(bench, operation_id, _waits)
    return operation_id


async def until(bench: Bench, operation_id: str, enough: Callable[[Operation], bool]) -> Operation:
    """Return an operation once it is as wanted."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            operation = await bench.store.operations.get(operation_id)
            assert operation is not None
            if enough(operation):
                return operation
            await asyncio.sleep(LOOK_EVERY_SECONDS)


def _waits(operation: Operation) -> bool:
    left = {step.name: step.state for step in operation.steps.values() if step.state is not StepState.DONE}
    return left == {LAST_STEP: StepState.PARKED}


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds something takes."""
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def median(runs: int, work: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds something takes, one run after another."""
    await work()  # what is made once for all is not measured
    return statistics.median([await timed(work) for _ in range(runs)])


async def seconds_for(count: int, work: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds a number of runs take when ten are always under way."""
    left = iter(range(count))

    async def take() -> None:
        for _ in left:
            await work()

    started = time.perf_counter()
    await asyncio.gather(*(take() for _ in range(CONCURRENCY)))
    return time.perf_counter() - started


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def milliseconds(values: Sequence[float]) -> tuple[str, str]:
    """Return p50 and p99 of times in seconds."""
    return f"{percentile(values, 50) * 1000:.1f} ms", f"{percentile(values, 99) * 1000:.1f} ms"


def ratio(values: Sequence[float], least: Sequence[float]) -> str:
    """Return how many times longer one takes than the other, by their medians."""
    return f"{statistics.median(values) / statistics.median(least):.2f} x"
