"""The `tenants` collection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from domain.errors import ResourceChanged
from domain.tenants import (
    SYSTEMS,
    DnsRecord,
    DomainState,
    SystemFailure,
    SystemStatus,
    Tenant,
    TenantStatus,
    our_words,
)
from store.database import Database, Document, Session
from store.documents import from_document, to_document

UNVERIFIED_CLAIM_LASTS = timedelta(days=14)


@dataclass(frozen=True)
class Visibility:
    """Whose tenants somebody may see: all, those of a partner, those they are a member of."""

    everything: bool = False
    partner_id: str | None = None
    tenant_ids: tuple[str, ...] = ()

    @property
    def query(self) -> Document:
        """Return the condition that a visible tenant meets."""
        if self.everything:
            return {}
        alternatives: list[Document] = [{"_id": {"$in": list(self.tenant_ids)}}]
        if self.partner_id is not None:
            alternatives.append({"partnerId": self.partner_id})
        return {"$or": alternatives}


@dataclass(frozen=True)
class TenantFilter:
    """Which tenants are wanted; None leaves an axis open."""

    status: TenantStatus | None = None
    plan: str | None = None
    partner_slug: str | None = None
    # Part of the slug, the name or a domain, in any case.
    text: str | None = None
    # Any system in this state.
    provisioning: SystemStatus | None = None

    @property
    def query(self) -> list[Document]:
        """Return the conditions that a wanted tenant meets."""
        exact = {"status": self.status, "plan": self.plan, "partnerSlug": self.partner_slug}
        conditions: list[Document] = [{name: str(value)} for name, value in exact.items() if value is not None]
        if self.text is not None:
            part = {"$regex": re.escape(self.text), "$options": "i"}
            conditions.append({"$or": [{"slug": part}, {"name": part}, {"domains.name": part}]})
        if self.provisioning is not None:
            wanted = self.provisioning.value
            conditions.append({"$or": [{f"provisioningStatus.{system}": wanted} for system in SYSTEMS]})
        return conditions


class TenantRepository:
    """Reads and writes tenants."""

    def __init__(self, database: Database) -> None:
        self._tenants = database.collection("tenants")

    async def insert(self, tenant: Tenant, session: Session) -> None:
        """Insert a tenant; its slug and domain names are then taken.

        Raises:
            DuplicateKeyError: the slug or a domain name is taken.
        """
        await self._tenants.insert_one(to_document(tenant), session=session)

    async def get(self, slug: str, session: Session | None = None) -> Tenant | None:
        """Return a tenant, None if there is none."""
        return from_document(Tenant, await self._tenants.find_one({"slug": slug}, session=session))

    async def by_ids(self, ids: list[str]) -> list[Tenant]:
        """Return the tenants with these ids, in the order of their slugs."""
        rows = await self._tenants.find({"_id": {"$in": ids}}).sort("slug", 1).to_list(None)
        return [Tenant.model_validate(row) for row in rows]

    async def slugs(self, visible: Visibility) -> list[str]:
        """Return the slugs of the visible tenants."""
        return [str(slug) for slug in await self._tenants.distinct("slug", visible.query)]

    async def newest(self) -> Tenant | None:
        """Return the tenant that was created last, of those that were not abandoned."""
        kept = {"status": {"$ne": TenantStatus.ABANDONED.value}}
        return from_document(Tenant, await self._tenants.find_one(kept, sort=[("_id", -1)]))

    async def domain_holder(self, names: list[str], session: Session) -> tuple[str, str] | None:
        """Return (domain, slug of the tenant) for the first of these names that is taken, None if all are free."""
        row = await self._tenants.find_one({"domains.name": {"$in": names}}, session=session)
        if row is None:
            return None
        held = next(each["name"] for each in row["domains"] if each["name"] in names)
        return held, row["slug"]

    async def lapse_claims(self, names: list[str], now: datetime, session: Session) -> list[tuple[Tenant, str]]:
        """Free these names where they are claimed for longer than 14 days without a proof.

        Returns:
            Each tenant that lost a name, as it was, and the name.
        """
        stale = {
            "name": {"$in": names},
            "state": DomainState.UNVERIFIED.value,
            "claimedAt": {"$lt": now - UNVERIFIED_CLAIM_LASTS},
        }
        holding = {"domains": {"$elemMatch": stale}}
        rows = await self._tenants.find(holding, session=session).to_list(None)
        if not rows:
            return []
        await self._tenants.update_many(
            holding,
            {"$pull": {"domains": stale}, "$set": {"updatedAt": now}, "$inc": {"version": 1}},
            session=session,
        )
        limit = now - UNVERIFIED_CLAIM_LASTS
        return [
            (tenant, each.name)
            for tenant in map(Tenant.model_validate, rows)
            for each in tenant.domains
            if each.name in names and each.state is DomainState.UNVERIFIED and each.claimed_at < limit
        ]

    async def count_of_partner(self, partner_id: str, session: Session) -> int:
        """Return how many tenants a partner has that are not deleted."""
        return int(await self._tenants.count_documents(_present(partner_id), session=session))

    async def seats_of_partner(self, partner_id: str, session: Session) -> int:
        """Return the seats of all tenants of a partner that are not deleted."""
        pipeline = [{"$match": _present(partner_id)}, {"$group": {"_id": None, "seats": {"$sum": "$seats"}}}]
        rows = await self._tenants.aggregate(pipeline, session=session).to_list(1)
        return int(rows[0]["seats"]) if rows else 0

    async def page(
        self,
        visible: Visibility,
        wanted: TenantFilter,
        *,
        sort: str,
        descending: bool,
        after: tuple[Any, str] | None,
        limit: int,
    ) -> list[Tenant]:
        """Return visible tenants that are wanted, ordered by a field and then by id.

        Args:
            after: the field's value and the id of the last tenant of the page before; stable under inserts.
        """
        direction, beyond = (-1, "$lt") if descending else (1, "$gt")
        conditions = [visible.query, *wanted.query]
        if after is not None:
            value, identifier = after
            conditions.append({"$or": [{sort: {beyond: value}}, {sort: value, "_id": {beyond: identifier}}]})
        cursor = self._tenants.find({"$and": conditions}).sort([(sort, direction), ("_id", direction)])
        return [Tenant.model_validate(row) for row in await cursor.to_list(limit)]

    async def set_system(
        self, slug: str, system: str, status: SystemStatus, failure: SystemFailure | None, session: Session
    ) -> None:
        """Record how far a tenant is in one system. Never raises the version that ETags are made of."""
        update: Document = {"$set": {f"provisioningStatus.{system}": status.value}}
        if failure is None:
            update["$unset"] = {f"provisioningErrors.{system}": ""}
        else:
            update["$set"][f"provisioningErrors.{system}"] = to_document(failure)
        await self._tenants.update_one({"slug": slug}, update, session=session)

    async def give_up_systems(self, slug: str, code: str, session: Session) -> None:
        """Say of every system that still promised to go on that nobody works on it any more, and why."""
        tenant = await self.get(slug, session)
        if tenant is None:
            return
        for system, status in tenant.provisioning_status.items():
            known = tenant.provisioning_errors.get(system)
            promised = known is not None and known.next_retry_at is not None
            if status is SystemStatus.PENDING or promised:
                attempts = known.attempts if known is not None else 0
                failure = SystemFailure(code=code, message=our_words(code), attempts=attempts)
                await self.set_system(slug, system, SystemStatus.ERROR, failure, session)

    async def set_resource(self, tenant: Tenant, name: str, external_id: str) -> None:
        """Keep the id an outside system knows the tenant's object by. Repeating it changes nothing.

        Raises:
            ResourceChanged: since the tenant was read, another id was kept. An attempt that was cut off from Temporal
                and goes on must not replace what its successor has built upon.
        """
        known = tenant.resources.get(name)
        # In a query, None is also what a missing field equals.
        answer = await self._tenants.update_one(
            {"slug": tenant.slug, f"resources.{name}": {"$in": [known, external_id]}},
            {"$set": {f"resources.{name}": external_id}},
        )
        if answer.matched_count == 0:
            raise ResourceChanged(f"Another {name} was recorded meanwhile.")

    async def forget_resource(self, slug: str, name: str, external_id: str | None) -> None:
        """Forget the id of an object that is gone, unless another one was kept meanwhile. None forgets nothing."""
        # In a query, None is also what a missing field equals.
        await self._tenants.update_one(
            {"slug": slug, f"resources.{name}": external_id}, {"$unset": {f"resources.{name}": ""}}
        )

    async def set_domain_id(self, slug: str, domain: str, external_id: str) -> None:
        """Keep the id Stalwart knows a domain by. Repeating it changes nothing."""
        await self._tenants.update_one(
            {"slug": slug, "domains.name": domain}, {"$set": {"domains.$.externalId": external_id}}
        )

    async def set_domain_live(self, slug: str, domain: str, records: list[DnsRecord]) -> None:
        """Mark a proved domain as working, with the records to publish. Repeating it changes nothing."""
        await self._tenants.update_one(
            {"slug": slug, "domains": {"$elemMatch": {"name": domain, "state": {"$ne": DomainState.UNVERIFIED.value}}}},
            {
                "$set": {
                    "domains.$.state": DomainState.LIVE.value,
                    "domains.$.dnsRecords": [to_document(record) for record in records],
                }
            },
        )

    async def abandon(self, slug: str, at: datetime, session: Session) -> bool:
        """Give up a tenant that never was active: its domains are free again, nothing of it is provisioned.

        Returns:
            False if it was not pending; then nothing changes.
        """
        changes: dict[str, Any] = {
            "status": TenantStatus.ABANDONED.value,
            "domains": [],
            "provisioningStatus": dict.fromkeys(SYSTEMS, SystemStatus.DISABLED.value),
            "provisioningErrors": {},
            "updatedAt": at,
        }
        answer = await self._tenants.update_one(
            {"slug": slug, "status": TenantStatus.PENDING.value},
            {"$set": changes, "$inc": {"version": 1}},
            session=session,
        )
        return bool(answer.modified_count)

    async def forget_domain_id(self, slug: str, domain: str, external_id: str | None) -> None:
        """Turn a domain that is gone from Stalwart back into one that is only proved, unless another id was kept."""
        held = {"name": domain, "externalId": external_id, "state": {"$ne": DomainState.UNVERIFIED.value}}
        await self._tenants.update_one(
            {"slug": slug, "domains": {"$elemMatch": held}},
            {
                "$set": {
                    "domains.$.state": DomainState.VERIFIED.value,
                    "domains.$.externalId": None,
                    "domains.$.dnsRecords": [],
                }
            },
        )

    async def activate(self, slug: str, at: datetime, session: Session) -> bool:
        """Turn a pending tenant active.

        Returns:
            False if it was not pending; then nothing changes.
        """
        changes: dict[str, Any] = {"status": TenantStatus.ACTIVE.value, "updatedAt": at}
        answer = await self._tenants.update_one(
            {"slug": slug, "status": TenantStatus.PENDING.value},
            {"$set": changes, "$inc": {"version": 1}},
            session=session,
        )
        return bool(answer.modified_count)


def _present(partner_id: str) -> Document:
    gone = [TenantStatus.DELETED.value, TenantStatus.PURGED.value, TenantStatus.ABANDONED.value]
    return {"partnerId": partner_id, "status": {"$nin": gone}}
