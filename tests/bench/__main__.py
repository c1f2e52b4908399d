"""`make bench`: what things cost, beside what the same could cost at the least.

It starts a platform of its own and ends it. Times on a busy machine wander; the ratios in one run are what counts.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import httpx
from rich.console import Console
from temporalio.client import Client

from runtime.codec import build_data_converter
from runtime.process import run_and_exit
from runtime.settings import Settings
from runtime.wiring import build_store, build_vendors
from sandbox.stack.layout import Files, Ports
from sandbox.stack.stack import Stack
from tests.bench.codec import codec
from tests.bench.decisions import decisions
from tests.bench.gate import gate
from tests.bench.live import live
from tests.bench.measure import Bench
from tests.bench.tenants import throughput, time_to_active
from tests.bench.undoing import undoing
from tests.support.platform import Platform
from tests.support.servers import free_port_base

PARTS = (time_to_active, throughput, codec, gate, live, decisions, undoing)


async def bench() -> int:
    """Measure, and print."""
    # The rate limit towards Stripe is lifted: it would be the only thing measured.
    limits = {"OPERATION_PROFILE": "production", "STRIPE_RATE_PER_SECOND": "1000", "LOG_LEVEL": "WARNING"}
    base = free_port_base()
    async with contextlib.AsyncExitStack() as opened:
        directory = opened.enter_context(tempfile.TemporaryDirectory())
        platform = opened.enter_context(Platform(Path(directory), base, **limits))
        os.environ.update(Stack(Ports(base), Files(platform.data_dir), print).environment())
        settings = Settings()
        store, vendors = build_store(settings), build_vendors(settings)
        opened.callback(store.database.close)
        opened.push_async_callback(vendors.aclose)

        async def http(role: str) -> httpx.AsyncClient:
            headers = {"Authorization": f"Bearer {platform.token(role)}"}
            client = httpx.AsyncClient(base_url=platform.facts["api"], headers=headers, trust_env=False, timeout=60)
            return await opened.enter_async_context(client)

        running = Bench(
            console=Console(width=120),
            platform=platform,
            settings=settings,
            store=store,
            vendors=vendors,
            client=await Client.connect(
                platform.facts["temporal"], data_converter=build_data_converter(settings.key_ring)
            ),
            partner=await http("partner"),
            operator=await http("operator"),
        )
        for part in PARTS:
            await part(running)
    return 0


if __name__ == "__main__":
    run_and_exit(bench())
