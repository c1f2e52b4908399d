"""How soon people see a change, and what watching costs the API, beside clients that ask again and again."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import psutil
from pymongo import MongoClient, ReturnDocument
from pymongo.collection import Collection

from store.database import MAJORITY, Document
from tests.bench.measure import PATIENCE_SECONDS, Bench, milliseconds, park

MANY = 200
POLL_EVERY_SECONDS = 0.1

_REVISION = re.compile(rb'"revision":(\d+)')


@dataclass
class Sight:
    """What one client has seen: revisions, and when by `time.perf_counter()`."""

    revisions: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def see(self, revision: int) -> None:
        """Keep that a revision is here."""
        self.revisions.append(revision)
        self.times.append(time.perf_counter())

    @property
    def newest(self) -> int:
        """The newest revision, 0 before the first."""
        return self.revisions[-1] if self.revisions else 0

    def seconds_after(self, revision: int, committed: float) -> float:
        """Return for how long a revision was not seen; one that came with a later one was seen with that."""
        return self.times[bisect.bisect_left(self.revisions, revision)] - committed


class Connection:
    """One client on a bare socket: an HTTP library would take more of the machine than what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._request = request

    async def watch(self, sight: Sight) -> None:
        """See every event."""
        self._writer.write(self._request)
        revision = 0
        while line := await self._reader.readline():
            if line.startswith(b"id: "):
                revision = int(line[4:])
            elif line.startswith(b"data: "):
                sight.see(revision)

    async def poll(self, sight: Sight) -> None:
        """Ask ten times a second, as far as the answers come that fast."""
        while True:
            due = time.perf_counter() + POLL_EVERY_SECONDS
            self._writer.write(self._request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length is not None, head
            found = _REVISION.search(await self._reader.readexactly(int(length[1])))
            assert found is not None, head
            sight.see(int(found[1]))
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


@contextlib.asynccontextmanager
async def _looking(
    bench: Bench, path: str, count: int, look: Callable[[Connection, Sight], Awaitable[None]]
) -> AsyncIterator[list[Sight]]:
    """Let clients look at a path for the length of the block, which begins when each has seen something."""
    host, _, port = bench.platform.facts["api"].removeprefix("http://").partition(":")
    token = bench.platform.token("operator")
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    sights = [Sight() for _ in range(count)]

    async def client(number: int) -> None:
        await asyncio.sleep(number * POLL_EVERY_SECONDS / count)  # not all in the same instant
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.closing(writer):
            await look(Connection(reader, writer, request), sights[number])

    tasks = [asyncio.create_task(client(number)) for number in range(count)]
    try:
        await _until_seen(sights, 1)
        yield sights
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def _until_seen(sights: list[Sight], revision: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(sight.newest < revision for sight in sights):
            await asyncio.sleep(0.05)


def _change(operations: Collection[Document], operation_id: str) -> tuple[int, float]:
    """Change an operation; return its revision and when the change was committed."""
    changed = operations.find_one_and_update(
        {"_id": operation_id}, {"$inc": {"revision": 1}}, {"revision": 1}, return_document=ReturnDocument.AFTER
    )
    committed = time.perf_counter()
    assert changed is not None
    return changed["revision"], committed


async def live(bench: Bench) -> None:
    """Measure one operation that changes, and those who look at it."""
    operation_id = await park(bench, with_domain=False)
    path = f"/operations/{operation_id}"
    api = psutil.Process(bench.platform.children()["api"])
    kinds = [
        ("1 watcher, 10 changes a second", f"{path}/events", 1, Connection.watch, 100, 0.1),
        (f"{MANY} watchers, 2 changes a second", f"{path}/events", MANY, Connection.watch, 20, 0.5),
        (f"{MANY} polling each 0.1 s, 2 changes a second", path, MANY, Connection.poll, 20, 0.5),
    ]
    rows = []
    with MongoClient[Document](bench.platform.facts["mongo"]) as mongo:
        database = mongo[bench.platform.facts["mongoDatabase"]]
        operations = database.get_collection("operations", write_concern=MAJORITY)
        for name, where, count, look, changes, pause in kinds:
            async with _looking(bench, where, count, look) as sights:
                commits = []
                seen_before = sum(len(sight.times) for sight in sights)
                cpu, started = _cpu_seconds(api), time.perf_counter()
                for _ in range(changes):
                    # In a thread, or the time of the commit would wait for its turn among what is read.
                    commits.append(await asyncio.to_thread(_change, operations, operation_id))
                    await asyncio.sleep(pause)
                await _until_seen(sights, commits[-1][0])
                took = time.perf_counter() - started
                cpu = (_cpu_seconds(api) - cpu) / took
                answers = (sum(len(sight.times) for sight in sights) - seen_before) / took
            late = [sight.seconds_after(*commit) for commit in commits for sight in sights]
            rows.append((name, *milliseconds(late), f"{answers:.0f}", f"{cpu:.2f}"))
    columns = ("p50", "p99", "answers per second", "API's CPU seconds per second")
    bench.print("From the commit of a change to the client", columns, rows)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
