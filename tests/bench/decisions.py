"""How soon a job obeys, beside a Temporal update that does nothing."""

from __future__ import annotations

import time
from datetime import datetime

from temporalio.worker import Worker

from domain.operations import Operation, StepState
from domain.provisioning import DecisionRequest
from runtime.clock import utcnow
from tests.bench.empty import EmptyUpdates
from tests.bench.measure import LAST_STEP, Bench, milliseconds, new_name, park, ratio, timed, until

RUNS = 100
QUEUE = "bench-updates"


async def decisions(bench: Bench) -> None:
    """Measure retries of a step that is refused again and again."""
    operation_id = await park(bench, with_domain=False)
    empty: list[float] = []
    answered: list[float] = []
    begun: list[float] = []
    async with Worker(bench.client, task_queue=QUEUE, workflows=[EmptyUpdates]):
        handle = await bench.client.start_workflow(EmptyUpdates.run, id=new_name("updates"), task_queue=QUEUE)
        request = DecisionRequest(steps=[LAST_STEP])
        await handle.execute_update(EmptyUpdates.retry, request)  # the first one waits for the workflow's start
        for number in range(RUNS):
            empty.append(await timed(lambda: handle.execute_update(EmptyUpdates.retry, request)))
            asked, started = utcnow(), time.perf_counter()
            (await bench.operator.post(f"/operations/{operation_id}/retry")).raise_for_status()
            answered.append(time.perf_counter() - started)
            begun.append((await _begun(bench, operation_id, number + 2) - asked).total_seconds())
        await handle.terminate()
    rows = [
        ("empty Temporal update", *milliseconds(empty), "1.00 x"),
        ("POST /operations/{id}/retry to its answer", *milliseconds(answered), ratio(answered, empty)),
        ("POST /operations/{id}/retry to the new attempt", *milliseconds(begun), ratio(begun, empty)),
    ]
    bench.print(f"A decision, {RUNS} one after another", ("p50", "p99", "beside the empty update"), rows)


async def _begun(bench: Bench, operation_id: str, number: int) -> datetime:
    """Return when the step's attempt of that number began, once the step is parked again."""

    def parked(operation: Operation) -> bool:
        step = operation.step(LAST_STEP)
        return step.attempts == number and step.state is StepState.PARKED

    attempt = (await until(bench, operation_id, parked)).step(LAST_STEP).attempt
    assert attempt is not None
    return attempt.started_at
