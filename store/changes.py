"""What changes in the `operations` collection, told as it happens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from domain.operations import Operation
from store.database import Database, Document
from store.documents import from_document

# Only which one: a reader fetches what it wants, once for many changes, and most operations have no reader.
_WHICH: list[Document] = [{"$project": {"documentKey": 1}}]


class OperationChanges:
    """Tells which operations change, and reads them as no failover can take them back.

    So a revision that was read once never comes again with another content.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._committed = database.committed("operations")

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[AsyncIterator[str]]:
        """Yield the id of each operation that changes, other than what `read` shows once the block is entered.

        The ids end when the collection is dropped. After that, and after an error, changes may have been missed:
        follow again, then read again.

        Raises:
            PyMongoError: the changes cannot be followed, or no longer.
        """
        async with self._database.following("operations", _WHICH) as changes:
            yield _ids(changes)

    async def read(self, operation_id: str) -> Operation | None:
        """Return an operation, None if there is none."""
        return from_document(Operation, await self._committed.find_one({"_id": operation_id}))


async def _ids(changes: AsyncIterator[Document]) -> AsyncIterator[str]:
    async for change in changes:
        # A collection that is dropped or renamed names no document; its changes end with that.
        if "documentKey" in change:
            yield change["documentKey"]["_id"]
