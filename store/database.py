"""The connection, transactions and everything else that differs between Motor and PyMongo's own async client."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC
from typing import Any, TypeVar

from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession
from pymongo import IndexModel, WriteConcern
from pymongo.errors import AutoReconnect, BulkWriteError, ConnectionFailure, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from domain.errors import Unavailable

Document = dict[str, Any]
Session = AsyncIOMotorClientSession
Collection = Any  # Motor's classes are built at run time and carry no types
T = TypeVar("T")

MAJORITY = WriteConcern(w="majority", j=True)
SERVER_SELECTION_SECONDS = 3.0
TRANSACTION_SECONDS = 20.0
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.25
LONGEST_LOOK_SECONDS = 1.0
NAMESPACE_EXISTS = 48
DUPLICATE_KEY = 11000


class RaceLost(Exception):
    """Raised by the body of a transaction whose snapshot is outdated: somebody else was first. It starts over."""


class Database:
    """One client of one database."""

    def __init__(self, url: str, name: str) -> None:
        """Connect lazily; a server that is away shows at the first call, after 3 s."""
        self._client: Any = AsyncIOMotorClient(
            url,
            tz_aware=True,
            tzinfo=UTC,
            serverSelectionTimeoutMS=int(SERVER_SELECTION_SECONDS * 1000),
            connectTimeoutMS=3000,
            socketTimeoutMS=15000,
            appname="dezky",
        )
        self.name = name
        options: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)
        self._database: Any = self._client.get_database(name, codec_options=options, write_concern=MAJORITY)

    def collection(self, name: str) -> Collection:
        """Return a collection whose writes are acknowledged by a majority and journaled."""
        return self._database[name]

    def committed(self, name: str) -> Collection:
        """Return a collection for reading what a majority has: no failover takes it back."""
        return self.collection(name).with_options(read_concern=ReadConcern("majority"))

    @contextlib.asynccontextmanager
    async def following(self, name: str, pipeline: list[Document]) -> AsyncIterator[AsyncIterator[Document]]:
        """Follow a collection: each change comes as the pipeline leaves it, once it is committed.

        What a majority has when the block is entered does not come: `committed` shows it. A connection that breaks is
        resumed where it broke. The changes end when the collection is dropped or renamed.
        It takes one thread of the driver's, asking once a second while nothing changes.

        Raises:
            PyMongoError: the stream cannot be opened, or cannot be resumed; changes may have been missed.
        """
        # By itself a stream begins at the server's present: what is written but not committed then comes neither in the
        # stream nor in a read after it (seen).
        hello = await self._client.admin.command("hello")
        committed = hello.get("lastWrite", {}).get("majorityOpTime")
        if committed is None:
            raise AutoReconnect("The server does not know yet what a majority has.")
        async with self.collection(name).watch(
            pipeline,
            start_at_operation_time=Timestamp(committed["ts"].time, committed["ts"].inc + 1),
            max_await_time_ms=int(LONGEST_LOOK_SECONDS * 1000),
        ) as stream:
            yield _changes(stream)

    async def ping(self) -> None:
        """Ensure that the server answers.

        Raises:
            Unavailable: it does not.
        """
        try:
            await asyncio.wait_for(asyncio.ensure_future(self._client.admin.command("ping")), SERVER_SELECTION_SECONDS)
        except (PyMongoError, TimeoutError) as error:
            raise Unavailable("The database cannot be reached.", code="database_unavailable") from error

    async def ensure_indexes(self, indexes: Mapping[str, list[IndexModel]]) -> None:
        """Create every declared collection and index that is missing.

        Idempotency: an existing one is left alone. Collections are made first, because MongoDB would otherwise
        create them inside the transaction that first needs them and make it wait for the catalog's lock.
        """
        for name, models in indexes.items():
            try:
                # The server is the one to say that it exists: a look before it would race with other processes.
                await self._database.create_collection(name, check_exists=False)
            except OperationFailure as error:
                if error.code != NAMESPACE_EXISTS:
                    raise
            if models:
                await self.collection(name).create_indexes(models)

    async def run_transaction(self, body: Callable[[Session], Awaitable[T]]) -> T:
        """Run `body` in a transaction until it commits, and return what it returned.

        The body may run several times: it must only write through its session. Racing transactions are retried with
        jitter; an unknown commit is committed again. A duplicate key is the body's business and is raised.

        Raises:
            Unavailable: it could not commit within 20 s.
            DuplicateKeyError: another document holds a unique value, and has committed.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + TRANSACTION_SECONDS
        pause = FIRST_PAUSE_SECONDS
        async with await self._client.start_session() as session:
            while True:
                try:
                    return await self._attempt(session, body)
                except (PyMongoError, RaceLost) as error:
                    transient = isinstance(error, RaceLost) or error.has_error_label("TransientTransactionError")
                    if not transient:
                        raise
                    if loop.time() >= give_up_at:
                        raise Unavailable("The change could not be committed.", code="database_busy") from error
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _attempt(self, session: Session, body: Callable[[Session], Awaitable[T]]) -> T:
        session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)
        try:
            result = await body(session)
        except BaseException:
            in_transaction: Any = session.in_transaction  # a property that Motor's annotations call a method
            if in_transaction:
                try:
                    await session.abort_transaction()
                except PyMongoError:
                    pass  # the server ends it by itself after transactionLifetimeLimitSeconds
            raise
        for commit in range(5):
            try:
                await session.commit_transaction()
                return result
            except PyMongoError as error:
                if not error.has_error_label("UnknownTransactionCommitResult") or commit == 4:
                    raise
        return result

    async def drop(self) -> None:
        """Remove the whole database. For tests."""
        await self._client.drop_database(self.name)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()


async def _changes(stream: Any) -> AsyncIterator[Document]:
    while stream.alive:
        looking = asyncio.ensure_future(stream.try_next())
        try:
            change = await asyncio.shield(looking)
        except asyncio.CancelledError:
            # The driver's thread goes on: closing the cursor under it would make it open another one.
            await asyncio.wait([looking], timeout=2 * LONGEST_LOOK_SECONDS)
            if looking.done():
                looking.exception()  # nobody else asks how it ended
            raise
        if change is not None:
            yield change


async def insert_missing(collection: Collection, documents: list[Document]) -> None:
    """Insert the documents whose unique values nobody holds; the others stay as they are.

    Idempotency: repeating it changes nothing, also from several processes at once.
    """
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if any(each["code"] != DUPLICATE_KEY for each in error.details["writeErrors"]):
            raise


def is_connection_loss(error: BaseException) -> bool:
    """Tell whether an error says that the server is away, so that the same call may succeed later."""
    return isinstance(error, ConnectionFailure)
