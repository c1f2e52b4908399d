"""Every collection and index, in one place. Ensured when the API or a worker starts."""

from __future__ import annotations

from pymongo import ASCENDING, DESCENDING, IndexModel

INDEXES: dict[str, list[IndexModel]] = {
    "tenants": [
        IndexModel([("slug", ASCENDING)], name="slug", unique=True),
        # Multikey: a domain name belongs to one tenant.
        IndexModel(
            [("domains.name", ASCENDING)],
            name="domain_name",
            unique=True,
            partialFilterExpression={"domains.name": {"$exists": True}},
        ),
        IndexModel([("partnerId", ASCENDING), ("_id", DESCENDING)], name="partner"),
    ],
    "partners": [IndexModel([("slug", ASCENDING)], name="slug", unique=True)],
    "users": [
        IndexModel([("email", ASCENDING)], name="email", unique=True),
        IndexModel(
            [("subject", ASCENDING)],
            name="subject",
            unique=True,
            partialFilterExpression={"subject": {"$type": "string"}},
        ),
        IndexModel([("memberships.tenantId", ASCENDING)], name="membership"),
        IndexModel([("partnerId", ASCENDING)], name="partner"),
    ],
    "plans": [],
    "prices": [IndexModel([("plan", ASCENDING), ("cycle", ASCENDING)], name="plan_cycle", unique=True)],
    "subscriptions": [IndexModel([("tenantId", ASCENDING)], name="tenant", unique=True)],
    "flags": [],
    "operations": [
        # The whole of mutual exclusion: one open operation per lock.
        IndexModel(
            [("lockKey", ASCENDING)],
            name="open_lock",
            unique=True,
            partialFilterExpression={"open": True},
        ),
        IndexModel([("open", ASCENDING), ("createdAt", ASCENDING)], name="open_created"),
        IndexModel([("tenantSlug", ASCENDING), ("_id", DESCENDING)], name="tenant"),
        IndexModel([("partnerSlug", ASCENDING), ("_id", DESCENDING)], name="partner"),
        # Asked once a second by every worker, and nearly always empty.
        IndexModel([("decisions.id", ASCENDING)], name="undelivered", sparse=True),
        # Every worker asks for those that need an operator every few seconds.
        IndexModel(
            [("state", ASCENDING), ("_id", ASCENDING)], name="open_state", partialFilterExpression={"open": True}
        ),
    ],
    "breakers": [],
    "idempotency_keys": [IndexModel([("expiresAt", ASCENDING)], name="expiry", expireAfterSeconds=0)],
    "audit_events": [
        IndexModel([("tenantSlug", ASCENDING), ("_id", DESCENDING)], name="tenant"),
        IndexModel([("operationId", ASCENDING)], name="operation"),
    ],
    "subject_keys": [],
}
