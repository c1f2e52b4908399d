"""How the API commits what it accepted: in one transaction, with the answer to the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo.errors import DuplicateKeyError

from domain.audit import Actor, PersonalData
from domain.operations import Operation
from runtime.clock import utcnow
from store.database import Database, RaceLost, Session
from store.idempotency import IdempotencyRepository, IdempotentRequest

Encode = Callable[[Operation], dict[str, Any]]


@dataclass(frozen=True)
class Requester:
    """Who asks, for the operation and the audit event."""

    actor: Actor
    request_id: str | None
    address: str | None

    @property
    def personal(self) -> PersonalData | None:
        """Return what identifies the requester, to be kept under their own key."""
        if self.address is None:
            return None
        return PersonalData(subject=self.actor.id, fields={"address": self.address})


@dataclass(frozen=True)
class Recorded:
    """A committed change, or the answer that an equal request got before."""

    operation: Operation | None
    answer: dict[str, Any]

    @property
    def replayed(self) -> bool:
        """Whether this is the answer of an earlier request."""
        return self.operation is None


class Commits:
    """Commits changes with the answers to their requests."""

    def __init__(self, database: Database, idempotency: IdempotencyRepository) -> None:
        self._database = database
        self._idempotency = idempotency

    async def commit(
        self,
        body: Callable[[Session, datetime], Awaitable[Operation]],
        repeat: IdempotentRequest | None,
        encode: Encode,
    ) -> Recorded:
        """Commit a change with the answer to its request, or return the answer to an equal earlier request."""

        async def transaction(session: Session) -> Recorded:
            now = utcnow()
            if repeat is not None:
                answer = await self._idempotency.find(repeat, now, session)
                if answer is not None:
                    return Recorded(operation=None, answer=answer)
            try:
                operation = await body(session, now)
            except DuplicateKeyError:
                # Somebody committed the same name after our look: look again, and say what it is.
                raise RaceLost from None
            answer = encode(operation)
            if repeat is not None:
                await self._idempotency.keep(repeat, answer, now, session)
            return Recorded(operation=operation, answer=answer)

        return await self._database.run_transaction(transaction)
