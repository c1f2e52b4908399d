"""What tests of watching operations share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from domain.operations import Operation, OperationState
from runtime.clock import utcnow
from runtime.wiring import Store

PATIENCE_SECONDS = 30


async def close(store: Store, operation: Operation) -> Operation:
    """End an operation and return it as it is then."""
    current = await store.operations.get(operation.id)
    assert current is not None
    return await store.database.run_transaction(
        lambda session: store.operations.close(current, OperationState.COMPLETED, utcnow(), session)
    )


async def eventually(look: Callable[[], Any]) -> None:
    """Return once something holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not look():
            await asyncio.sleep(0.005)
