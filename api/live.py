"""Operations as they change: one change stream for the whole process, however many watch.

Three tasks run while anybody watches. One follows the changes and notes which watched operations are stale, one reads
those and hands them out, and one calls everything stale now and then, in case a change was never told. Each starts over
by itself, so no watcher is left waiting for a task that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Iterator

from pymongo.errors import PyMongoError

from domain.errors import Unavailable
from domain.operations import Operation
from runtime.logging import get_logger
from store.changes import OperationChanges

log = get_logger(__name__)

# Each takes a socket, and a process often may have no more than 1,024 files open.
MOST_WATCHES = 500
# While the database is away, checks must leave its driver's threads to everything else.
CHECKS_AT_ONCE = 2
# Somebody who reconnects finds the change stream still open.
LINGER_SECONDS = 30.0
START_OVER_AFTER_SECONDS = 1.0
CLOSE_PATIENCE_SECONDS = 3.0
LOOK_AGAIN_EVERY_SECONDS = 15.0


class Watch:
    """What a watcher of one operation has still to see: never more than the newest snapshot, however slow it is."""

    def __init__(self, after: int) -> None:
        """Watch for revisions beyond `after`."""
        self._newest = after
        self._unseen: Operation | None = None
        self._over = False
        self._news = asyncio.Event()

    def offer(self, operation: Operation) -> None:
        """Show a snapshot; one that is not newer than all before is left out."""
        if operation.revision > self._newest:
            self._newest = operation.revision
            self._unseen = operation
            self._news.set()
        if operation.closed_at is not None:
            self.end()

    def end(self) -> None:
        """Say that nothing more will come."""
        self._over = True
        self._news.set()

    async def wait(self, seconds: float) -> None:
        """Return when there is something to take, when the watch is over, or after the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def take(self) -> Operation | None:
        """Return the newest snapshot unless it was taken before; revisions rise from one to the next."""
        operation, self._unseen = self._unseen, None
        if not self._over:
            self._news.clear()
        return operation

    @property
    def over(self) -> bool:
        """Whether nothing more will come: the operation has ended or is gone, or the server stops."""
        return self._over


class LiveOperations:
    """Hands every change of an operation to those who watch it. It belongs to the event loop it is used in."""

    def __init__(self, changes: OperationChanges) -> None:
        self._changes = changes
        self._watches: dict[str, set[Watch]] = {}
        self._places_taken = 0
        # In the order in which they became stale, so that a busy one does not hold up the others.
        self._stale: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._stopped = False
        # Whether a watcher may still watch is asked again and again: never by all at once.
        self.checks = asyncio.Semaphore(CHECKS_AT_ONCE)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for watchers for the length of the block.

        It is taken before anything is awaited: of those who come at once no more get in than there are places.

        Raises:
            Unavailable: as many watch as one process serves.
        """
        if self._places_taken >= MOST_WATCHES:
            raise Unavailable("As many operations are watched here as can be.", code="too_many_watchers")
        self._places_taken += 1
        try:
            yield
        finally:
            self._places_taken -= 1

    @contextlib.contextmanager
    def watch(self, operation_id: str, *, after: int) -> Iterator[Watch]:
        """Watch an operation for the length of the block.

        Its state as of now comes first if its revision is beyond `after`, then every newer one, though those that
        follow each other closely may come as one. Whatever happens to the database or to the change stream, the last
        one comes, and then the watch is over.
        """
        watch = Watch(after)
        self._watches.setdefault(operation_id, set()).add(watch)
        try:
            self._begin(watch)
            # Read after it was added: nothing can change unseen in between.
            self._call_stale([operation_id])
            yield watch
        finally:
            self._watches[operation_id].remove(watch)
            if not self._watches[operation_id]:
                del self._watches[operation_id]
            if not self._watches:
                self._idle = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._cancel)

    def stop(self) -> None:
        """End every watch, and from now on every new one at once: the server is about to stop."""
        self._stopped = True
        for watches in self._watches.values():
            for watch in watches:
                watch.end()

    async def aclose(self) -> None:
        """End every watch and close the change stream."""
        self.stop()
        self._cancel()
        if self._running is not None:
            # A server that is away must not hold up the end.
            await asyncio.wait([self._running], timeout=CLOSE_PATIENCE_SECONDS)

    def _begin(self, watch: Watch) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._stopped:
            watch.end()
        elif self._running is None or self._running.cancelling() or self._running.done():
            # In a context of its own: its log lines are not those of the request that happened to come first.
            self._running = asyncio.create_task(self._run(), context=contextvars.Context())

    def _cancel(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        await asyncio.gather(*map(_for_ever, (self._follow, self._read, self._look_again)))

    async def _follow(self) -> None:
        """Note which watched operations change, until the changes cannot be followed any more."""
        async with self._changes.following() as changed:
            # What changed before this moment was told to nobody.
            self._call_stale(self._watches)
            async for operation_id in changed:
                if operation_id in self._watches:
                    self._call_stale([operation_id])

    async def _read(self) -> None:
        """Read what is stale and hand it out; what changed several times meanwhile is read once."""
        while True:
            await self._wake.wait()
            while self._stale:
                operation_id = next(iter(self._stale))
                del self._stale[operation_id]
                await self._hand_out(operation_id)
            self._wake.clear()

    async def _hand_out(self, operation_id: str) -> None:
        if operation_id not in self._watches:
            return
        try:
            operation = await self._changes.read(operation_id)
        except PyMongoError:
            self._call_stale([operation_id])
            raise
        except Exception as error:
            # One that cannot be understood must not hold up the others.
            log.error("live_operation_unreadable", operation_id=operation_id, exc_info=error)
            operation = None
        for watch in self._watches.get(operation_id, ()):
            if operation is None:
                watch.end()
            else:
                watch.offer(operation)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_EVERY_SECONDS)
            self._call_stale(self._watches)

    def _call_stale(self, operation_ids: Iterable[str]) -> None:
        self._stale.update(dict.fromkeys(operation_ids))
        self._wake.set()


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """Do a piece of work again and again, whatever ends it."""
    name = getattr(work, "__name__", "")
    while True:
        try:
            await work()
        except PyMongoError as error:
            log.warning("live_operations_interrupted", work=name, error=type(error).__name__)
        except Exception as error:
            # A bug must leave no watcher without an end.
            log.error("live_operations_broken", work=name, exc_info=error)
        await asyncio.sleep(START_OVER_AFTER_SECONDS)
