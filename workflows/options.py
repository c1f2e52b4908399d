"""The timeouts and retries of activities, by name, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig

with workflow.unsafe.imports_passed_through():
    from domain.provisioning import RetryProfile

PLATFORM_QUEUE = "platform"


@dataclass(frozen=True)
class Profile:
    """One set of options for every kind of activity."""

    # A call of an outside system. Start-to-close bounds how long a zombie may write, and so how long the lock is kept
    # after it; the budget is a day, because vendors have outages of hours; the cap keeps the recovery after one
    # quick. Waiting for the end of a cancelled attempt keeps an undoing from racing it.
    vendor: ActivityConfig
    # A write of our own database: never given up, since nothing can end truthfully without it.
    record: ActivityConfig


def _profile(
    *, attempt: timedelta, budget: timedelta, heartbeat: timedelta, first: timedelta, longest: timedelta
) -> Profile:
    retry = RetryPolicy(initial_interval=first, backoff_coefficient=2.0, maximum_interval=longest)
    return Profile(
        vendor=ActivityConfig(
            start_to_close_timeout=attempt,
            schedule_to_close_timeout=budget,
            heartbeat_timeout=heartbeat,
            retry_policy=retry,
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        ),
        record=ActivityConfig(
            task_queue=PLATFORM_QUEUE,
            start_to_close_timeout=timedelta(seconds=30),
            heartbeat_timeout=heartbeat,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=200),
                backoff_coefficient=2.0,
                maximum_interval=min(longest, timedelta(seconds=10)),
            ),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        ),
    )


PROFILES = {
    RetryProfile.PRODUCTION: _profile(
        attempt=timedelta(seconds=30),
        budget=timedelta(hours=24),
        heartbeat=timedelta(seconds=5),
        first=timedelta(seconds=1),
        longest=timedelta(seconds=30),
    ),
    # For tests: the same shape, sooner.
    RetryProfile.FAST: _profile(
        attempt=timedelta(seconds=20),
        budget=timedelta(minutes=5),
        heartbeat=timedelta(seconds=2),
        first=timedelta(milliseconds=100),
        longest=timedelta(seconds=1),
    ),
}
