"""Breakers as they are stored: one document for each vendor, and one writer at a time."""

from __future__ import annotations

import asyncio

import pytest

from domain.breakers import PACES, Breaker
from domain.operations import Failure
from domain.provisioning import RetryProfile
from runtime.clock import utcnow
from runtime.wiring import Store
from store.database import Session

VENDOR = "ocis"
PACE = PACES[RetryProfile.PRODUCTION]


def opened(breaker: Breaker) -> Breaker:
    return breaker.opened(Failure(code="vendor_auth_failed", message="401"), utcnow(), PACE)


async def test_never_written(store: Store) -> None:
    """A vendor that never refused us is closed."""
    assert not await store.breakers.is_open(VENDOR)
    assert await store.breakers.get(VENDOR) == Breaker(vendor=VENDOR)


async def test_kept(store: Store) -> None:
    """What was written is read again, for that vendor only."""
    breaker = opened(Breaker(vendor=VENDOR))
    assert await store.breakers.save(breaker)
    assert await store.breakers.is_open(VENDOR)
    assert not await store.breakers.is_open("stripe")
    assert await store.breakers.get(VENDOR) == breaker.model_copy(update={"version": 2})


@pytest.mark.parametrize("written_before", [False, True])
async def test_one_of_many_writers(store: Store, written_before: bool) -> None:
    """Of all who read the same version, one writes: the others are told that they did not."""
    if written_before:
        assert await store.breakers.save(Breaker(vendor=VENDOR))
    read = await store.breakers.get(VENDOR)
    versions = [read.model_copy(update={"streak": number}) for number in range(8)]
    written = await asyncio.gather(*map(store.breakers.save, versions))
    assert sum(written) == 1
    assert (await store.breakers.get(VENDOR)).streak == written.index(True)


async def test_transactions_start_over(store: Store) -> None:
    """Transactions that change the same breaker take turns: none of their changes is lost, the first one included."""

    async def body(session: Session) -> None:
        breaker = await store.breakers.get(VENDOR, session)
        await store.breakers.save(breaker.model_copy(update={"streak": breaker.streak + 1}), session)

    await asyncio.gather(*(store.database.run_transaction(body) for _ in range(8)))
    assert (await store.breakers.get(VENDOR)).streak == 8
