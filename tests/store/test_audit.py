"""Audit events: written once, with personal data that only its subject's key opens."""

from __future__ import annotations

import asyncio

import bson
import pytest
from cryptography.exceptions import InvalidTag

from domain.audit import Actor, ActorType, AuditEvent, Outcome, PersonalData, Resource
from runtime.wiring import Store
from tests.store.builders import LONG_AGO

ADA = PersonalData(subject="ada", fields={"email": "ada@example.org"})


def build_event(identifier: str) -> AuditEvent:
    return AuditEvent(
        id=identifier,
        at=LONG_AGO,
        actor=Actor(type=ActorType.SYSTEM, id="worker"),
        action="tenant.created",
        outcome=Outcome.SUCCESS,
        resource=Resource(type="tenant", id="acme"),
        source="api",
    )


async def write(store: Store, identifier: str, *personal: PersonalData) -> AuditEvent:
    await store.database.run_transaction(
        lambda session: store.audit.write(build_event(identifier), session, list(personal))
    )
    (event,) = await store.audit.find({"_id": identifier})
    return event


async def test_an_event_is_written_once(store: Store) -> None:
    """However often and by however many it is tried, the first one stays."""
    first = await write(store, "op:step:action", ADA)
    await asyncio.gather(*(write(store, "op:step:action", ADA) for _ in range(5)))
    assert await store.audit.find({}) == [first]


async def test_racing_writers_of_one_event(store: Store) -> None:
    """Attempts that end at the same time write one event and fail not."""
    await asyncio.gather(*(write(store, "op:step:action", ADA) for _ in range(5)))
    assert len(await store.audit.find({})) == 1


async def test_personal_data_is_sealed(store: Store) -> None:
    """The stored document holds no address; with the key it opens."""
    event = await write(store, "1", ADA)
    raw = await store.database.collection("audit_events").find_one({"_id": "1"})
    assert b"example.org" not in bson.encode(raw)
    assert await store.audit.open_personal(event.personal[0]) == ADA.fields


async def test_everybody_has_one_key(store: Store) -> None:
    """Events of a person share a key, and nobody else's opens them."""
    eve = PersonalData(subject="eve", fields={"email": "eve@example.org"})
    first, second = await write(store, "1", ADA), await write(store, "2", ADA, eve)
    of_ada, of_eve = second.personal
    assert first.personal[0].key_id == of_ada.key_id != of_eve.key_id
    moved = of_eve.model_copy(update={"subject": of_ada.subject, "key_id": of_ada.key_id})
    with pytest.raises(InvalidTag):
        await store.audit.open_personal(moved)


async def test_a_destroyed_key_erases_for_good(store: Store) -> None:
    """What it sealed stays unreadable, also when the person appears again and gets another key."""
    before = await write(store, "1", ADA)
    await store.database.collection("subject_keys").delete_one({"_id": "ada"})
    assert await store.audit.open_personal(before.personal[0]) is None
    after = await write(store, "2", ADA)
    assert await store.audit.open_personal(before.personal[0]) is None
    assert await store.audit.open_personal(after.personal[0]) == ADA.fields
