"""How an exception becomes what Temporal and people are told."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from pymongo.errors import PyMongoError
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from domain.errors import ControlPlaneError, VendorError
from domain.operations import Failure

MESSAGE_LIMIT = 500
_BEARER = re.compile(r"(?i)(bearer\s+|sk_(live|test)_)\S+")


def describe(error: BaseException) -> Failure:
    """Return the code and a bounded message of an exception, without credentials."""
    match error:
        case ControlPlaneError():
            code, message = error.code, error.message
        case PyMongoError():
            code, message = "database_unavailable", "The database did not take the write."
        case _:
            # Only the kind: its text, which the log has, may quote personal data, and this is kept in histories.
            code, message = "internal_error", f"This is a bug: {type(error).__name__}."
    return Failure(code=code, message=_BEARER.sub(r"\1[redacted]", message)[:MESSAGE_LIMIT])


def is_retryable(error: BaseException) -> bool:
    """Tell whether the attempt may be repeated; a bug may be, since steps observe first."""
    return error.retryable if isinstance(error, ControlPlaneError) else True


def asked_delay(error: BaseException) -> timedelta | None:
    """Return how long the vendor asked us to wait, None if it did not.

    Zero is none: the SDK does not send it, so Temporal would wait by its own policy after all.
    """
    return error.retry_after or None if isinstance(error, VendorError) else None


def to_application_error(error: BaseException) -> ApplicationError:
    """Return what leaves an activity: the code as its type, which is all that workflows branch on."""
    failure = describe(error)
    retryable = is_retryable(error)
    weather = isinstance(error, VendorError | PyMongoError) and retryable
    return ApplicationError(
        failure.message,
        type=failure.code,
        non_retryable=not retryable,
        next_retry_delay=asked_delay(error),
        category=ApplicationErrorCategory.BENIGN if weather else ApplicationErrorCategory.UNSPECIFIED,
    )


def next_retry_at(info: activity.Info, error: BaseException, now: datetime) -> datetime | None:
    """Return when Temporal will try again by the attempt's own policy, None if it gives up."""
    policy = info.retry_policy
    if not is_retryable(error) or policy is None:
        return None
    if policy.maximum_attempts and info.attempt >= policy.maximum_attempts:
        return None
    delay = asked_delay(error)
    if delay is None:
        # Bounded as a factor: a day of outage is thousands of attempts, and the product would soon be no timedelta.
        longest = policy.maximum_interval or policy.initial_interval * 100
        factor = policy.backoff_coefficient ** min(info.attempt - 1, 60)
        delay = policy.initial_interval * min(factor, longest / policy.initial_interval)
    retry_at = now + delay
    if info.schedule_to_close_timeout and retry_at >= info.scheduled_time + info.schedule_to_close_timeout:
        return None
    return retry_at
