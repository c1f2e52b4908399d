"""Transactions that race, databases that are prepared twice, seeds that leave edits alone."""

from __future__ import annotations

import asyncio

import pytest
from pymongo.errors import DuplicateKeyError

from domain.errors import Unavailable
from runtime.wiring import Store
from store.database import RaceLost, Session
from store.indexes import INDEXES
from tests.support.servers import Mongod


async def test_racing_increments_lose_nothing(store: Store) -> None:
    """Twenty transactions read and write one number, and it counts all of them."""
    numbers = store.database.collection("flags")
    await numbers.insert_one({"_id": "counter", "value": 0})

    async def increment(session: Session) -> None:
        found = await numbers.find_one({"_id": "counter"}, session=session)
        await asyncio.sleep(0)
        await numbers.update_one({"_id": "counter"}, {"$set": {"value": found["value"] + 1}}, session=session)

    await asyncio.gather(*(store.database.run_transaction(increment) for _ in range(20)))
    assert (await numbers.find_one({"_id": "counter"}))["value"] == 20


async def test_a_lost_race_starts_over_without_a_trace(store: Store) -> None:
    """What the body wrote before it lost is gone when it runs again."""
    flags = store.database.collection("flags")
    runs: list[int] = []

    async def body(session: Session) -> str:
        runs.append(await flags.count_documents({"_id": "mine"}, session=session))
        await flags.insert_one({"_id": "mine"}, session=session)
        if len(runs) < 3:
            raise RaceLost
        return "done"

    assert await store.database.run_transaction(body) == "done"
    assert runs == [0, 0, 0]
    assert await flags.count_documents({"_id": "mine"}) == 1


async def test_a_duplicate_key_is_the_callers_business(store: Store) -> None:
    """It is raised at once, and nothing of the transaction stays."""
    flags = store.database.collection("flags")
    await flags.insert_one({"_id": "taken"})

    async def body(session: Session) -> None:
        await flags.insert_one({"_id": "other"}, session=session)
        await flags.insert_one({"_id": "taken"}, session=session)

    with pytest.raises(DuplicateKeyError):
        await store.database.run_transaction(body)
    assert await flags.count_documents({"_id": "other"}) == 0


async def test_any_error_of_the_body_undoes_it(store: Store) -> None:
    """A transaction is whole or nothing."""
    flags = store.database.collection("flags")

    async def body(session: Session) -> None:
        await flags.insert_one({"_id": "half"}, session=session)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        await store.database.run_transaction(body)
    assert await flags.count_documents({"_id": "half"}) == 0


async def test_a_race_that_never_ends_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the caller is told to come back."""
    monkeypatch.setattr("store.database.TRANSACTION_SECONDS", 0.0)

    async def body(_: Session) -> None:
        raise RaceLost

    with pytest.raises(Unavailable) as raised:
        await store.database.run_transaction(body)
    assert raised.value.code == "database_busy"


async def test_processes_that_start_together_all_prepare(mongod: Mongod) -> None:
    """Collections, indexes and seeds are made once, however many processes make them at the same time."""
    processes = [Store(mongod.url, "dezky_prepared_together") for _ in range(4)]
    try:
        await asyncio.gather(*(each.prepare() for each in processes))
        await processes[0].prepare()
        for name, models in INDEXES.items():
            made = await processes[0].database.collection(name).index_information()
            assert set(made) == {"_id_", *(model.document["name"] for model in models)}
    finally:
        await processes[0].database.drop()
        for each in processes:
            each.database.close()


async def test_seeds_keep_what_operators_edited(store: Store) -> None:
    """Preparing again adds what is missing and touches nothing else."""
    edits = {"flags": "jmap_native_v2", "plans": "starter", "prices": "starter-monthly"}
    for collection, identifier in edits.items():
        await store.database.collection(collection).update_one({"_id": identifier}, {"$set": {"edited": True}})
    await store.database.collection("flags").delete_one({"_id": "dns_autopublish"})
    own = {"_id": "our-own-row", "plan": "business", "cycle": "yearly"}
    await store.database.collection("prices").delete_one({"_id": "business-yearly"})
    await store.database.collection("prices").insert_one(own)
    await store.prepare()
    for collection, identifier in edits.items():
        assert (await store.database.collection(collection).find_one({"_id": identifier}))["edited"]
    assert await store.flags.get("dns_autopublish") is not None
    assert await store.database.collection("prices").find({"plan": "business", "cycle": "yearly"}).to_list(None) == [
        own
    ]
