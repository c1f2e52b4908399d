"""The one clock and the one source of ids."""

from __future__ import annotations

from datetime import UTC, datetime

from ulid import ULID


def utcnow() -> datetime:
    """Return the time in UTC, cut to the millisecond as MongoDB keeps it."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def new_id() -> str:
    """Return a new ULID: unique, and sorting by the time it was made."""
    return str(ULID())
