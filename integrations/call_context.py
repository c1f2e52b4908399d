"""What every vendor call of one attempt shares: correlation id, deadline, and who lets it pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta

# Sent as X-Request-ID, so that a vendor's log leads back to the operation. Empty: not sent.
correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")

# Units: seconds of the running event loop's clock (`loop.time()`). None: only the limit of each call counts.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

# Awaited with the vendor's name before each request; what it raises keeps the request from being sent. None: all pass.
gate: ContextVar[Callable[[str], Awaitable[None]] | None] = ContextVar("gate", default=None)


async def pass_gate(vendor: str) -> None:
    """Return if a request may be sent to this vendor.

    Raises:
        BreakerOpen: the vendor refused our credential before.
        Unavailable: it cannot be told.
    """
    admit = gate.get()
    if admit is not None:
        await admit(vendor)


def out_of_time() -> bool:
    """Tell whether the deadline has passed, so that nothing more may be sent."""
    end = deadline.get()
    return end is not None and end <= asyncio.get_running_loop().time()


@asynccontextmanager
async def time_limit(default: timedelta) -> AsyncIterator[None]:
    """End the block at the deadline of the attempt or after `default`, whichever comes first.

    Raises:
        TimeoutError: the time was up. A cancellation from outside stays a `CancelledError`.
    """
    end = asyncio.get_running_loop().time() + default.total_seconds()
    attempt_end = deadline.get()
    async with asyncio.timeout_at(end if attempt_end is None else min(end, attempt_end)):
        yield
