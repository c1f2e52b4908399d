"""The `breakers` collection: one document for each outside system that ever refused our credential."""

from __future__ import annotations

from pymongo.errors import DuplicateKeyError

from domain.breakers import Breaker, BreakerState
from store.database import Database, RaceLost, Session
from store.documents import from_document, to_document


class BreakerRepository:
    """Reads and writes breakers."""

    def __init__(self, database: Database) -> None:
        self._breakers = database.collection("breakers")

    async def is_open(self, vendor: str) -> bool:
        """Tell whether calls to a vendor are held back: one look-up by key, for it stands before every call."""
        found = await self._breakers.find_one({"_id": vendor, "state": BreakerState.OPEN.value}, {"_id": 1})
        return found is not None

    async def get(self, vendor: str, session: Session | None = None) -> Breaker:
        """Return the breaker of a vendor; one that was never written is closed."""
        found = await self._breakers.find_one({"_id": vendor}, session=session)
        return from_document(Breaker, found) or Breaker(vendor=vendor)

    async def save(self, breaker: Breaker, session: Session | None = None) -> bool:
        """Write a breaker unless somebody wrote it after it was read.

        Returns:
            Whether it was written; a transaction starts over instead.
        """
        query = {"_id": breaker.vendor, "version": breaker.version}
        document = to_document(breaker.model_copy(update={"version": breaker.version + 1}))
        try:
            # One that was never written is inserted; one that has another version stands in the way of that.
            await self._breakers.replace_one(query, document, upsert=True, session=session)
        except DuplicateKeyError:
            if session is not None:
                raise RaceLost from None
            return False
        return True
