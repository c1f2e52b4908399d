"""The watcher of a process: whatever happens to the database or to the change stream, no end is missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pymongo.errors import AutoReconnect, OperationFailure

import store.database
from api import live as api_live
from api.live import LiveOperations, Watch
from domain.operations import Operation
from runtime.wiring import Store
from store.changes import OperationChanges
from tests.api.watching import PATIENCE_SECONDS, close, eventually
from tests.store.builders import LONG_AGO, build_operation, keep
from tests.support.servers import Mongod, running_mongod

pytestmark = pytest.mark.usefixtures("quick_watching")


@pytest_asyncio.fixture(loop_scope="session")
async def operation(store: Store) -> Operation:
    """An open operation."""
    kept = build_operation()
    await keep(store, "operations", kept)
    return kept


class Faulty(OperationChanges):
    """Changes that are not told: the first time they are followed there are none until it breaks."""

    def __init__(self, changes: OperationChanges, error: Exception | None) -> None:
        self._changes = changes
        self._error = error
        self.followed = 0
        self.breaks = asyncio.Event()
        self.unreadable: dict[str, Exception] = {}

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[AsyncIterator[str]]:
        self.followed += 1
        if self.followed == 1:
            yield self._silence()
        else:
            async with self._changes.following() as changed:
                yield changed

    async def _silence(self) -> AsyncIterator[str]:
        await self.breaks.wait()
        if self._error is not None:
            raise self._error
        for told in list[str]():
            yield told

    async def read(self, operation_id: str) -> Operation | None:
        if operation_id in self.unreadable:
            raise self.unreadable[operation_id]
        return await self._changes.read(operation_id)


@contextlib.asynccontextmanager
async def faulty(store: Store, error: Exception | None = None) -> AsyncIterator[tuple[Faulty, LiveOperations]]:
    """Watch with changes that are not told."""
    changes = Faulty(OperationChanges(store.database), error)
    live = LiveOperations(changes)
    yield changes, live
    await live.aclose()


async def taken(watch: Watch) -> Operation | None:
    """Return the next snapshot, None if there is none any more."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await watch.wait(PATIENCE_SECONDS)
    return watch.take()


@pytest.mark.parametrize(
    "error",
    [
        OperationFailure("Resume of change stream was not possible, as the resume point may no longer be in the oplog.", 286),
        AutoReconnect("away"),
        ValueError("a bug"),
        None,
    ],
    ids=["stale token", "away", "bug", "dropped"],
)  # fmt: skip
async def test_what_was_missed_is_read_once_changes_are_followed_again(
    store: Store, operation: Operation, error: Exception | None
) -> None:
    """Whatever ended the change stream, the end of the operation arrives although nobody told of it."""
    async with faulty(store, error) as (changes, live):
        with live.watch(operation.id, after=0) as watch:
            first = await taken(watch)
            assert first is not None
            assert first.revision == 1
            await eventually(lambda: changes.followed == 1)
            closed = await close(store, operation)
            assert not watch.over
            changes.breaks.set()
            assert await taken(watch) == closed
            assert watch.over


async def test_a_change_that_was_never_told_is_seen_all_the_same(
    store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then everything that is watched is read, even if nothing seems to happen."""
    monkeypatch.setattr(api_live, "LOOK_AGAIN_EVERY_SECONDS", 0.05)
    async with faulty(store) as (changes, live):
        with live.watch(operation.id, after=1) as watch:
            await eventually(lambda: changes.followed == 1)
            closed = await close(store, operation)
            assert await taken(watch) == closed


async def test_what_could_not_be_read_is_read_later(store: Store, operation: Operation) -> None:
    """A database that is away costs time, never a change."""
    async with faulty(store) as (changes, live):
        changes.unreadable[operation.id] = AutoReconnect("away")
        with live.watch(operation.id, after=0) as watch:
            await watch.wait(0.1)
            assert (watch.take(), watch.over) == (None, False)
            changes.unreadable.clear()
            assert await taken(watch) == operation


@pytest.mark.usefixtures("app")  # it configures the log
async def test_one_that_cannot_be_understood_does_not_hold_up_the_others(
    store: Store, operation: Operation, caplog: pytest.LogCaptureFixture
) -> None:
    """Its watch ends, with a line in the log; the others go on."""
    other = build_operation("other")
    await keep(store, "operations", other)
    async with faulty(store) as (changes, live):
        changes.unreadable[operation.id] = ValueError("a state from the future")
        with live.watch(operation.id, after=0) as broken, live.watch(other.id, after=0) as watch:
            assert await taken(watch) == other
            assert await taken(broken) is None
            assert broken.over
            assert not watch.over
    assert [record for record in caplog.records if "live_operation_unreadable" in str(record.msg)]


async def test_operations_that_are_gone_are_watched_no_longer(mongod: Mongod) -> None:
    """A dropped collection ends its watches, and what is made after that can be watched."""
    own = Store(mongod.url, "dezky_dropped")
    live = LiveOperations(OperationChanges(own.database))
    operation = build_operation()
    try:
        await keep(own, "operations", operation)
        with live.watch(operation.id, after=0) as watch:
            assert await taken(watch) == operation
            await own.database.collection("operations").drop()
            assert await taken(watch) is None
            assert watch.over
        await keep(own, "operations", operation)
        with live.watch(operation.id, after=0) as watch:
            assert await taken(watch) == operation
            closed = await close(own, operation)
            assert await taken(watch) == closed
    finally:
        await live.aclose()
        await own.database.drop()
        own.database.close()


async def test_a_database_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch outlives it, and sees what happened after its return."""
    monkeypatch.setattr(store.database, "SERVER_SELECTION_SECONDS", 0.3)
    with running_mongod(tmp_path) as server:
        own = Store(server.url, "dezky_killed")
        live = LiveOperations(OperationChanges(own.database))
        operation = build_operation()
        try:
            await keep(own, "operations", operation)
            with live.watch(operation.id, after=0) as watch:
                assert await taken(watch) == operation
                server.kill()
                await watch.wait(1.0)
                assert (watch.take(), watch.over) == (None, False)
                server.start()
                closed = await close(own, operation)
                assert await taken(watch) == closed
        finally:
            await live.aclose()
            own.database.close()


async def test_watching_begins_while_the_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be there for somebody to wait for it."""
    monkeypatch.setattr(store.database, "SERVER_SELECTION_SECONDS", 0.3)
    with running_mongod(tmp_path) as server:
        own = Store(server.url, "dezky_away")
        operation = build_operation()
        await keep(own, "operations", operation)
        server.kill()
        live = LiveOperations(OperationChanges(own.database))
        try:
            with live.watch(operation.id, after=0) as watch:
                await watch.wait(0.5)
                server.start()
                assert await taken(watch) == operation
        finally:
            await live.aclose()
            own.database.close()


def test_a_watch_keeps_the_newest_only() -> None:
    """Whatever is offered in whatever order, revisions rise."""
    watch = Watch(after=3)
    for revision in (2, 3):
        watch.offer(build_operation(revision=revision))
    assert watch.take() is None
    for revision in (4, 7, 6, 7):
        watch.offer(build_operation(revision=revision))
    taken = watch.take()
    assert taken is not None
    assert (taken.revision, watch.take(), watch.over) == (7, None, False)
    watch.offer(build_operation(revision=8, closed_at=LONG_AGO))
    assert watch.over
    taken = watch.take()
    assert taken is not None
    assert taken.revision == 8
