"""What surrounds every activity: the record of its attempt, breakers, heartbeats, error mapping, log context."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import structlog
from pymongo.errors import PyMongoError
from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain.errors import ControlPlaneError
from domain.ids import operation_of_workflow, step_of_activity, vendor_key
from domain.operations import Acting, Fence, Step
from integrations import call_context
from runtime.breaker import Breakers
from runtime.clock import utcnow
from runtime.failures import describe, next_retry_at, to_application_error
from runtime.logging import get_logger
from runtime.recorder import Recorder
from runtime.steps import enter_step

log = get_logger(__name__)

HEARTBEAT_EVERY_SECONDS = 1.0
# The vendor's answer must be in, and recorded, before Temporal gives the attempt up.
MARGIN = timedelta(seconds=2)


class _RunningStep:
    """The step of one running attempt, as `runtime.steps.StepContext`."""

    def __init__(self, recorder: Recorder, lock_key: str, operation_id: str, step: Step) -> None:
        if step.attempt is None:
            raise ValueError("a running step has an attempt")
        self._recorder = recorder
        self._operations = recorder.operations
        self._lock_key = lock_key
        self._step = step
        self._fence = step.attempt.fence
        # Whether this attempt has announced something: then it did that before it announces something else.
        self._announced = False
        self.operation_id = operation_id

    @property
    def idempotency_key(self) -> str:
        return vendor_key(self._lock_key, self.operation_id, self._step.name, self._step.key_number)

    async def acting(self, acting: Acting) -> None:
        await self._recorder.acting(self.operation_id, self._step, acting, done=self._announced)
        self._announced = True
        self._step = self._step.model_copy(update={"acting": acting})

    async def not_acting(self) -> None:
        await self._operations.mark_acting(self.operation_id, self._step.name, self._fence, None)
        self._step = self._step.model_copy(update={"acting": None})

    async def seen_absent(self) -> None:
        if not self._step.replayed_error:
            return
        number = self._step.key_number + 1
        await self._operations.bump_key(self.operation_id, self._step.name, self._fence, number)
        self._step = self._step.model_copy(update={"key_number": number, "replayed_error": False})


class StepInterceptor(Interceptor):
    """Surrounds every activity of a worker."""

    def __init__(self, recorder: Recorder, breakers: Breakers) -> None:
        self._recorder = recorder
        self._breakers = breakers

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activities of a worker."""
        return _StepActivity(next, self._recorder, self._breakers)


class _StepActivity(ActivityInboundInterceptor):
    def __init__(self, next_: ActivityInboundInterceptor, recorder: Recorder, breakers: Breakers) -> None:
        super().__init__(next_)
        self._recorder = recorder
        self._breakers = breakers

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        step = step_of_activity(info.activity_id)
        workflow_id = info.workflow_id or ""
        context = {
            "workflow_id": workflow_id,
            "run_id": info.workflow_run_id,
            "activity": info.activity_type,
            "activity_id": info.activity_id,
            "attempt": info.attempt,
        }
        with structlog.contextvars.bound_contextvars(**context):
            try:
                async with _heartbeats():
                    if step is None:
                        return await self._run_body(input)
                    return await self._execute_step(input, info, workflow_id, step)
            except (ControlPlaneError, PyMongoError) as error:
                raise to_application_error(error) from None

    async def _execute_step(
        self, input_: ExecuteActivityInput, info: activity.Info, workflow_id: str, name: str
    ) -> Any:
        if info.start_to_close_timeout is None:
            raise ValueError("a step needs a start-to-close timeout: its deadline decides when the lock may go")
        operation_id = operation_of_workflow(workflow_id)
        fence = Fence(scheduled_at=info.current_attempt_scheduled_time, number=info.attempt)
        now = utcnow()
        # Taken before the record is written: a slow write must not let the vendor be called past the recorded deadline.
        last_call = asyncio.get_running_loop().time() + (info.start_to_close_timeout - MARGIN).total_seconds()
        step, request_id = await self._recorder.operations.begin_attempt(
            operation_id, name, fence, now, now + info.start_to_close_timeout
        )
        structlog.contextvars.bind_contextvars(request_id=request_id)
        lock_key = workflow_id.removesuffix(f"/{operation_id}")
        enter_step(_RunningStep(self._recorder, lock_key, operation_id, step))
        call_context.correlation_id.set(f"{workflow_id}/{info.activity_id}/{info.attempt}")
        call_context.deadline.set(last_call)
        try:
            result = await self._run_body(input_)
        # Cancellation is no Exception and passes: the end of that attempt stays unrecorded, which is the truth.
        except Exception as error:
            retry_at = next_retry_at(info, error, utcnow())
            log.info("step_failed", step=name, code=describe(error).code, next_retry_at=str(retry_at))
            if not isinstance(error, ControlPlaneError | PyMongoError):
                log.exception("step_raised_unexpectedly", step=name)
            with contextlib.suppress(PyMongoError, ControlPlaneError):
                await self._recorder.failed(operation_id, name, fence, error, retry_at)
            # Without its cause, which Temporal would keep whole: unredacted, unbounded, and with a bug's own words.
            raise to_application_error(error) from None
        await self._recorder.done(operation_id, name, fence)
        return result

    async def _run_body(self, input_: ExecuteActivityInput) -> Any:
        async with self._breakers.guarding():
            return await super().execute_activity(input_)


@contextlib.asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Heartbeat while the body runs, so that a cancel or the death of the worker is known within seconds."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(HEARTBEAT_EVERY_SECONDS)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
