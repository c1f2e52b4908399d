"""What an exception becomes: for Temporal, for people, and for the time of the next attempt."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.errors import AutoReconnect
from temporalio import activity
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment

from domain.errors import (
    ForeignObject,
    NotFound,
    NotReadyYet,
    OperationClosed,
    OutcomeUnknown,
    VendorAuthFailed,
    VendorRateLimited,
    VendorUnavailable,
)
from runtime.failures import MESSAGE_LIMIT, describe, next_retry_at, to_application_error

NOW = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
WEATHER = VendorUnavailable("ocis", "away")
BENIGN = ApplicationErrorCategory.BENIGN
UNSPECIFIED = ApplicationErrorCategory.UNSPECIFIED


@pytest.mark.parametrize(
    ("error", "code", "final", "category"),
    [
        (WEATHER, "vendor_unavailable", False, BENIGN),
        (OutcomeUnknown("ocis", "lost"), "outcome_unknown", False, BENIGN),
        (NotReadyYet("stalwart", "soon"), "not_ready_yet", False, BENIGN),
        (AutoReconnect("away"), "database_unavailable", False, BENIGN),
        (KeyError("bug"), "internal_error", False, UNSPECIFIED),
        (ForeignObject("ocis", "not ours"), "foreign_object", True, UNSPECIFIED),
        (VendorAuthFailed("ocis", "refused"), "vendor_auth_failed", True, UNSPECIFIED),
        (OperationClosed("ended"), "operation_closed", True, UNSPECIFIED),
        (NotFound("gone"), "not_found", True, UNSPECIFIED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_to_application_error(error: Exception, code: str, final: bool, category: ApplicationErrorCategory) -> None:
    """The code is the type, which workflows branch on; weather alerts nobody, and a bug may be mended meanwhile."""
    translated = to_application_error(error)
    assert (translated.type, translated.non_retryable, translated.category) == (code, final, category)


def test_messages_are_bounded_and_without_credentials() -> None:
    """A vendor's text is cut, and credentials in it are taken out."""
    message = describe(VendorUnavailable("ocis", "Bearer abc123 sk_live_abc " + "x" * 9999)).message
    assert len(message) == MESSAGE_LIMIT
    assert "abc123" not in message
    assert "live_abc" not in message


def test_bug_is_named_by_its_kind() -> None:
    """The text of an unexpected error stays in the log: it may quote a person's address, and histories keep this."""
    assert describe(ValueError("anna@acme.example is odd")).message == "This is a bug: ValueError."


def info(attempt: int = 1, **changes: Any) -> activity.Info:
    """An attempt with the policy of a test."""
    defaults: dict[str, Any] = {
        "attempt": attempt,
        "scheduled_time": NOW,
        "schedule_to_close_timeout": timedelta(days=1),
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30)),
    }
    return dataclasses.replace(ActivityEnvironment.default_info(), **{**defaults, **changes})


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 1), (2, 2), (5, 16), (6, 30), (100_000, 30)], ids=lambda value: str(value)
)
def test_backoff(attempt: int, seconds: int) -> None:
    """The pause doubles up to its maximum, and a very late attempt does not overflow."""
    assert next_retry_at(info(attempt), WEATHER, NOW) == NOW + timedelta(seconds=seconds)


def test_asked_delay_wins() -> None:
    """A time that the vendor asked for replaces the pause, also above its maximum."""
    error = VendorRateLimited("stripe", "slow down", retry_after=timedelta(minutes=5))
    assert next_retry_at(info(), error, NOW) == NOW + timedelta(minutes=5)
    assert to_application_error(error).next_retry_delay == timedelta(minutes=5)


def test_asked_for_no_delay() -> None:
    """A `Retry-After` of zero is no wish: Temporal is told none, and waits by its policy."""
    error = VendorRateLimited("stripe", "slow down", retry_after=timedelta(0))
    assert next_retry_at(info(), error, NOW) == NOW + timedelta(seconds=1)
    assert to_application_error(error).next_retry_delay is None


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (ForeignObject("ocis", "not ours"), {}),
        (WEATHER, {"retry_policy": RetryPolicy(maximum_attempts=1)}),
        (WEATHER, {"scheduled_time": NOW - timedelta(days=1)}),
        (WEATHER, {"retry_policy": None}),
    ],
    ids=["refused for good", "attempts spent", "time spent", "no policy"],
)
def test_given_up(error: Exception, changes: dict[str, Any]) -> None:
    """There is no next attempt when it was refused for good or a budget is spent."""
    assert next_retry_at(info(**changes), error, NOW) is None
