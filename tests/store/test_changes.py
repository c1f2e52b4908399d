"""The change stream: what is told, when it begins and ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pymongo.errors import PyMongoError

import store.database
from runtime.wiring import Store
from store.changes import _WHICH, OperationChanges
from tests.store.builders import build_operation, keep
from tests.support.cursors import change_streams
from tests.support.servers import Mongod, running_mongod

PATIENCE_SECONDS = 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stream that hears nothing ask soon again, so that it closes soon."""
    monkeypatch.setattr(store.database, "LONGEST_LOOK_SECONDS", 0.1)


@pytest_asyncio.fixture(loop_scope="session")
async def own(mongod: Mongod) -> AsyncIterator[Store]:
    """Repositories on a database of the test's own."""
    made = Store(mongod.url, "dezky_changes")
    yield made
    await made.database.drop()
    made.database.close()


async def told(changed: AsyncIterator[str], count: int) -> list[str]:
    """Return the next ids."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await anext(changed) for _ in range(count)]


async def test_whatever_changes_after_the_beginning_is_told(own: Store) -> None:
    """Inserts and updates are told once each in their order, from the moment the block is entered."""
    first, second = build_operation("first"), build_operation("second")
    await keep(own, "operations", first)
    async with OperationChanges(own.database).following() as changed:
        await own.operations.mark_started(first.id, first.created_at)
        await keep(own, "operations", second)
        await keep(own, "tenants", build_operation("elsewhere"))
        await own.operations.mark_started(second.id, first.created_at)
        assert await told(changed, 3) == [first.id, second.id, second.id]


async def test_no_change_falls_between_reading_and_being_told(own: Store) -> None:
    """What is read after the beginning shows every change that is not told, however many are being written."""
    changes = OperationChanges(own.database)
    operations = [build_operation(f"busy-{number}") for number in range(8)]
    await keep(own, "operations", *operations)
    collection = own.database.collection("operations")

    async def write(operation_id: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await collection.update_one({"_id": operation_id}, {"$inc": {"revision": 1}})

    for _ in range(25):
        stop = asyncio.Event()
        writers = [asyncio.create_task(write(each.id, stop)) for each in operations]
        async with changes.following() as changed:
            stop.set()
            read = [await changes.read(each.id) for each in operations]
            await asyncio.gather(*writers)
            end = build_operation("end")
            await keep(own, "operations", end)
            heard: set[str] = set()
            while end.id not in heard:
                heard |= set(await told(changed, 1))
        now = [await changes.read(each.id) for each in operations]
        changed_since = {
            after.id for before, after in zip(read, now, strict=True) if before != after and after is not None
        }
        assert changed_since <= heard


async def test_only_ids_come_over_the_wire(own: Store) -> None:
    """Most operations are watched by nobody: their contents stay where they are."""
    async with own.database.following("operations", _WHICH) as changes:
        await keep(own, "operations", build_operation())
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert set(await anext(changes)) == {"_id", "documentKey"}


async def test_a_transaction_is_told_once_it_is_committed(own: Store) -> None:
    """What was rolled back is never told."""
    undone, kept = build_operation("undone"), build_operation("kept")
    await keep(own, "operations", build_operation("there"))

    async def fail(session: Any) -> None:
        await own.operations.insert(undone, session)
        raise ValueError("half way")

    async with OperationChanges(own.database).following() as changed:
        with pytest.raises(ValueError, match="half way"):
            await own.database.run_transaction(fail)
        await own.database.run_transaction(lambda session: own.operations.insert(kept, session))
        assert await told(changed, 1) == [kept.id]


async def test_a_dropped_collection_ends_the_changes(own: Store) -> None:
    """They can be followed again at once, although the collection is not there."""
    changes = OperationChanges(own.database)
    await keep(own, "operations", build_operation())
    async with changes.following() as changed:
        await own.database.collection("operations").drop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [each async for each in changed] == []
    operation = build_operation()
    async with changes.following() as changed:
        await keep(own, "operations", operation)
        assert await told(changed, 1) == [operation.id]


async def test_a_lost_cursor_is_resumed_where_it_was(own: Store) -> None:
    """A cursor that the server has forgotten costs no change."""
    operation = build_operation()
    async with OperationChanges(own.database).following() as changed:
        await keep(own, "operations", operation)
        assert await told(changed, 1) == [operation.id]
        cursors = await change_streams(own.database)
        await own.database._database.command("killCursors", "operations", cursors=cursors)
        await own.operations.mark_started(operation.id, operation.created_at)
        assert await told(changed, 1) == [operation.id]
        assert await change_streams(own.database) != cursors


async def test_a_server_that_is_away_is_an_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows is told, so as to read again once it is back."""
    monkeypatch.setattr(store.database, "SERVER_SELECTION_SECONDS", 0.3)
    with running_mongod(tmp_path) as server:
        made = Store(server.url, "dezky_changes")
        changes = OperationChanges(made.database)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                with pytest.raises(PyMongoError):  # noqa: PT012 - entering must succeed, going on must not
                    async with changes.following() as changed:
                        server.kill()
                        await anext(changed)
                with pytest.raises(PyMongoError):
                    await changes.following().__aenter__()
            server.start()
            operation = build_operation()
            async with changes.following() as changed:
                await keep(made, "operations", operation)
                assert await told(changed, 1) == [operation.id]
        finally:
            made.database.close()


async def test_whoever_stops_following_leaves_no_cursor(own: Store) -> None:
    """Also when cancelled in the middle of waiting."""
    inside = asyncio.Event()

    async def follow() -> None:
        async with OperationChanges(own.database).following() as changed:
            inside.set()
            async for _ in changed:
                pass

    task = asyncio.create_task(follow())
    await inside.wait()
    assert len(await change_streams(own.database)) == 1
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await change_streams(own.database) == []


async def test_reading(own: Store) -> None:
    """An operation is read as it is; one that is not there is None."""
    operation = build_operation()
    await keep(own, "operations", operation)
    changes = OperationChanges(own.database)
    assert await changes.read(operation.id) == operation
    assert await changes.read("nobody") is None
