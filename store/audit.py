"""The `audit_events` and `subject_keys` collections."""

from __future__ import annotations

import json
import os
from datetime import datetime

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pymongo.errors import DuplicateKeyError

from domain.audit import AuditEvent, Personal, PersonalData
from store.database import Database, Document, RaceLost, Session
from store.documents import to_document

_NONCE_BYTES = 12


class AuditRepository:
    """Writes events and the personal data in them."""

    def __init__(self, database: Database) -> None:
        self._events = database.collection("audit_events")
        self._keys = database.collection("subject_keys")

    async def write(self, event: AuditEvent, session: Session, personal: list[PersonalData] | None = None) -> None:
        """Insert an event unsequenced, inside the transaction of the mutation it describes.

        Idempotency: an event whose id exists is left as it is. Looked up first, because inside a transaction a
        duplicate key ends the transaction.
        """
        if await self._events.find_one({"_id": event.id}, {"_id": 1}, session=session) is not None:
            return
        sealed = [await self._seal(data, event.at, session) for data in personal or []]
        try:
            await self._events.insert_one(to_document(event.model_copy(update={"personal": sealed})), session=session)
        except DuplicateKeyError:
            raise RaceLost from None

    async def find(self, query: Document) -> list[AuditEvent]:
        """Return events as they are stored, oldest first."""
        rows = await self._events.find(query).sort("at", 1).to_list(None)
        return [AuditEvent.model_validate(row) for row in rows]

    async def open_personal(self, personal: Personal) -> dict[str, str] | None:
        """Return personal data in clear, None if the subject's key was destroyed."""
        row = await self._keys.find_one({"_id": personal.subject})
        if row is None or row["keyId"] != personal.key_id:
            return None
        sealed = bytes(personal.ciphertext)
        clear = AESGCM(bytes(row["key"])).decrypt(
            sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], personal.subject.encode()
        )
        fields: dict[str, str] = json.loads(clear)
        return fields

    async def _seal(self, data: PersonalData, at: datetime, session: Session) -> Personal:
        key_id, key = await self._key_of(data.subject, at, session)
        nonce = os.urandom(_NONCE_BYTES)
        clear = json.dumps(data.fields, sort_keys=True).encode()
        # The subject is bound in, so that a ciphertext moved to another person's event does not open.
        ciphertext = nonce + AESGCM(key).encrypt(nonce, clear, data.subject.encode())
        return Personal(subject=data.subject, key_id=key_id, ciphertext=ciphertext)

    async def _key_of(self, subject: str, at: datetime, session: Session) -> tuple[str, bytes]:
        row = await self._keys.find_one({"_id": subject}, session=session)
        if row is None:
            # Never named alike twice: what was sealed with a destroyed key stays unreadable, whatever is written later.
            key_id = f"{subject}:{os.urandom(8).hex()}"
            row = {"_id": subject, "keyId": key_id, "key": AESGCM.generate_key(256), "createdAt": at}
            try:
                await self._keys.insert_one(row, session=session)
            except DuplicateKeyError:
                raise RaceLost from None
        return row["keyId"], bytes(row["key"])
