"""What asking the breaker adds to a vendor call."""

from __future__ import annotations

from runtime.wiring import build_breakers
from tests.bench.measure import Bench, milliseconds, ratio, timed

CALLS = 300


async def gate(bench: Bench) -> None:
    """Measure one cheap call with and without the gate, and the gate alone."""
    breakers = build_breakers(bench.store, bench.settings.operation_profile)

    async def call() -> None:
        await bench.vendors.ocis.find_group("nobody")

    async def guarded() -> None:
        async with breakers.guarding():
            await call()

    async def admit() -> None:
        await breakers.admit("ocis")

    kinds = {"a call of a stand-in": call, "the same through the gate": guarded, "the gate alone": admit}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for work in kinds.values():
        await work()
    for _ in range(CALLS):
        for name, work in kinds.items():
            times[name].append(await timed(work))
    least = times["a call of a stand-in"]
    rows = [(name, *milliseconds(took), ratio(took, least)) for name, took in times.items()]
    bench.print(f"The breaker's gate, {CALLS} calls taking turns", ("p50", "p99", "beside the call"), rows)
