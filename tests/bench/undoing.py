"""How long a canceled provision takes to undo, beside the provision itself."""

from __future__ import annotations

import asyncio
from functools import partial
from statistics import median

from tests.bench.measure import LOOK_EVERY_SECONDS, Bench, park, provision, ratio, timed

RUNS = 5


async def undoing(bench: Bench) -> None:
    """Measure cancels of provisions whose last step is parked, so that no attempt is under way."""
    rows = []
    for with_domain in (False, True):
        kind = "one domain" if with_domain else "no domain"
        made: list[float] = []
        undone: list[float] = []
        for _ in range(RUNS):
            made.append(await timed(partial(provision, bench, with_domain=with_domain)))
            operation_id = await park(bench, with_domain=with_domain)
            undone.append(await timed(partial(_cancel, bench, operation_id)))
        rows.append((f"POST /tenants to active, {kind}", f"{median(made):.3f}", "1.00 x"))
        rows.append((f"POST cancel to canceled, {kind}", f"{median(undone):.3f}", ratio(undone, made)))
    bench.print(f"Undoing, median of {RUNS} one after another", ("seconds", "beside the provision"), rows)


async def _cancel(bench: Bench, operation_id: str) -> None:
    path = f"/operations/{operation_id}"
    (await bench.operator.post(f"{path}/cancel")).raise_for_status()
    while (operation := (await bench.operator.get(path)).json())["closedAt"] is None:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    assert operation["state"] == "canceled", operation
