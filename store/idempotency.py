"""The `idempotency_keys` collection: the answers that a repeated request gets again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pymongo.errors import DuplicateKeyError

from domain.errors import Invalid
from domain.model import Model
from store.database import Database, RaceLost, Session

KEPT_FOR = timedelta(hours=24)


class IdempotentRequest(Model):
    """A request that carries an Idempotency-Key, by its scope and the fingerprint of its body and query."""

    key: str
    subject: str
    method: str
    path: str
    fingerprint: str

    @property
    def row_id(self) -> str:
        """Return the id under which its answer is kept."""
        return "\n".join((self.subject, self.method, self.path, self.key))


class IdempotencyRepository:
    """Keeps answers for 24 hours."""

    def __init__(self, database: Database) -> None:
        self._keys = database.collection("idempotency_keys")

    async def find(self, request: IdempotentRequest, now: datetime, session: Session) -> dict[str, Any] | None:
        """Return the kept answer of an earlier equal request, None if there was none.

        Raises:
            Invalid: the key was used for another payload (`idempotency_key_reused`).
        """
        row = await self._keys.find_one({"_id": request.row_id}, session=session)
        if row is None:
            return None
        if row["expiresAt"] <= now:
            # MongoDB removes expired rows about once a minute; until then they must not speak.
            await self._keys.delete_one({"_id": request.row_id}, session=session)
            return None
        if row["fingerprint"] != request.fingerprint:
            raise Invalid("The Idempotency-Key was used for another request.", code="idempotency_key_reused")
        answer: dict[str, Any] = row["answer"]
        return answer

    async def keep(self, request: IdempotentRequest, answer: dict[str, Any], now: datetime, session: Session) -> None:
        """Keep the answer with the transaction that made it true.

        Raises:
            RaceLost: an equal request was first.
        """
        row = {
            "_id": request.row_id,
            "fingerprint": request.fingerprint,
            "answer": answer,
            "createdAt": now,
            "expiresAt": now + KEPT_FOR,
        }
        try:
            await self._keys.insert_one(row, session=session)
        except DuplicateKeyError:
            raise RaceLost from None
