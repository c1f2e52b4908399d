"""Counts what a tenant has at the vendors: what provisioning promises is exactly one of each."""

from __future__ import annotations

from typing import Any

from domain.ids import drive_alias, tenant_group, tenant_marker
from tests.support.platform import Platform


def census(platform: Platform, tenant: dict[str, Any]) -> dict[str, int]:
    """Return how many objects of each kind carry the tenant's mark."""
    slug, tenant_id = tenant["slug"], tenant["id"]
    authentik, stalwart, ocis, stripe = (
        platform.objects(vendor) for vendor in ("authentik", "stalwart", "ocis", "stripe")
    )
    marker = tenant_marker(slug)
    groups = [row for row in authentik["groups"] if row["name"] == tenant_group(slug)]
    roles = [row for row in stalwart["roles"] if marker in (row["description"] or "")]
    domains = [row for row in stalwart["domains"] if marker in (row["description"] or "")]
    role_ids, domain_ids = {row["id"] for row in roles}, {row["id"] for row in domains}
    file_groups = [row for row in ocis["groups"] if row["displayName"] == tenant_group(slug)]
    spaces = [row for row in ocis["spaces"] if row["driveAlias"] == drive_alias(slug)]
    customers = [row for row in stripe["customers"] if row["metadata"].get("dezkyTenantId") == tenant_id]
    customer_ids = {row["id"] for row in customers if not row.get("deleted")}
    members = [row for row in authentik["users"] if {group["pk"] for group in groups} & set(row["groups"])]
    return {
        "authentik group": len(groups),
        "authentik member": len(members),
        "stalwart role": len(roles),
        "stalwart domain": len(domains),
        "stalwart mailbox": len(
            [
                row
                for row in stalwart["accounts"]
                if row["domainId"] in domain_ids and role_ids & set(row["roles"].get("roleIds", {}))
            ]
        ),
        "ocis group": len(file_groups),
        "ocis space": len(spaces),
        "ocis space member": len(
            [
                row
                for row in ocis["memberships"]
                if row["id"] in {group["id"] for group in file_groups}
                and any(space["id"].endswith(row["spaceId"]) for space in spaces)
            ]
        ),
        "stripe customer": len(customer_ids),
        "stripe subscription": len([row for row in stripe["subscriptions"] if row["customer"] in customer_ids]),
    }


def not_exactly_one(counts: dict[str, int]) -> dict[str, int]:
    """Return what is missing or there more than once."""
    return {name: count for name, count in counts.items() if count != 1}


def doubled_catalog(platform: Platform) -> list[str]:
    """Return the catalog's products and prices that exist more than once at Stripe."""
    stripe = platform.objects("stripe")
    names = [row["metadata"].get("dezkyPrice", "") for row in stripe["products"]]
    names += [f"{row['metadata'].get('dezkyPrice')}:{row['currency']}" for row in stripe["prices"]]
    return sorted({name for name in names if names.count(name) > 1})


def leftovers(platform: Platform, tenant: dict[str, Any], admin_email: str | None = None) -> dict[str, list[Any]]:
    """Return what is left of a canceled tenant at the vendors, by kind.

    A deleted customer, a canceled subscription and the catalog's product and price are no leftovers.
    """
    slug, tenant_id = tenant["slug"], tenant["id"]
    authentik, stalwart, ocis, stripe = (
        platform.objects(vendor) for vendor in ("authentik", "stalwart", "ocis", "stripe")
    )
    marker = tenant_marker(slug)
    domains = {f"{slug}.example"}
    found = {
        "authentik group": [row["name"] for row in authentik["groups"] if row["name"] == tenant_group(slug)],
        "authentik user": [row["username"] for row in authentik["users"] if row["username"] == admin_email],
        "stalwart role": [row["id"] for row in stalwart["roles"] if marker in (row["description"] or "")],
        "stalwart domain": [row["name"] for row in stalwart["domains"] if row["name"] in domains],
        "stalwart mailbox": [
            row["id"] for row in stalwart["accounts"] if row.get("emailAddress", "").rpartition("@")[2] in domains
        ],
        "ocis group": [row["displayName"] for row in ocis["groups"] if row["displayName"] == tenant_group(slug)],
        "ocis space": [row["id"] for row in ocis["spaces"] if row["driveAlias"] == drive_alias(slug)],
        "stripe customer": [
            row["id"]
            for row in stripe["customers"]
            if row.get("metadata", {}).get("dezkyTenantId") == tenant_id and not row.get("deleted")
        ],
        "stripe subscription": [
            row["id"]
            for row in stripe["subscriptions"]
            if row["metadata"].get("dezkyTenantId") == tenant_id and row["status"] != "canceled"
        ],
    }
    return {kind: rows for kind, rows in found.items() if rows}
