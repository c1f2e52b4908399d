"""What the demo says, and where it looks whether it is so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from temporalio.api.enums.v1 import EventType

from cli.demo.stage import SEATS, Json, Objects, Stage
from domain.audit import AuditEvent
from domain.ids import drive_alias, tenant_group, tenant_marker
from runtime.search_attributes import TENANT_SLUG
from sandbox.stack.layout import VENDORS

VISIBILITY_PATIENCE_SECONDS = 10.0
LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class Claim:
    """Something the demo says, and whether it was found to be so."""

    text: str
    holds: bool
    found: str


async def everything_once(stage: Stage, slug: str) -> list[Claim]:
    """Look in each outside system for what the tenant must have there, exactly once."""
    tenant = await stage.tenant(slug)
    objects = await stage.objects()
    marker = tenant_marker(slug)
    domain = str(tenant["domains"][0]["name"])
    found: list[tuple[str, str, list[Json]]] = []

    def look(system: str, kind: str, text: str, mine: Callable[[Json], bool]) -> list[Json]:
        rows = [row for row in objects[system][kind] if mine(row)]
        found.append((system, text, rows))
        return rows

    groups = look("authentik", "groups", f"Group {tenant_group(slug)}", lambda row: row["name"] == tenant_group(slug))
    member_of = {group["pk"] for group in groups}
    look(
        "authentik",
        "users",
        "The first admin, a member of the group",
        lambda row: row["username"] == f"admin@{domain}" and bool(member_of & set(row["groups"])),
    )
    roles = look("stalwart", "roles", "A role that shuts the directory", lambda row: marker in row["description"])
    domains = look("stalwart", "domains", f"Mail domain {domain}", lambda row: row["name"] == domain)
    role_ids, domain_ids = {role["id"] for role in roles}, {row["id"] for row in domains}
    look(
        "stalwart",
        "accounts",
        "The admin's mailbox under that role",
        lambda row: row["domainId"] in domain_ids and bool(role_ids & set(row["roles"].get("roleIds", {}))),
    )
    look("ocis", "groups", f"Group {tenant_group(slug)}", lambda row: row["displayName"] == tenant_group(slug))
    look("ocis", "spaces", "A space under its alias", lambda row: row["driveAlias"] == drive_alias(slug))
    group_id = tenant["resources"].get("ocisGroupId")
    look("ocis", "memberships", "The group may edit the space", lambda row: row["id"] == group_id)
    customers = [row for row in objects["stripe"]["customers"] if row["metadata"].get("dezkyTenant") == slug]
    customer_ids = {customer["id"] for customer in customers}
    dark = tenant["provisioningStatus"]["stripe"] == "disabled"
    if not dark:
        found.append(("stripe", "A customer", customers))
        look(
            "stripe",
            "subscriptions",
            f"A subscription for {SEATS} seats",
            lambda row: row["customer"] in customer_ids and _quantity(row) == SEATS,
        )
    claims = [Claim(f"{system}: {text}", len(rows) == 1, _count(rows)) for system, text, rows in found]
    keys = [row for row in objects["stalwart"]["dkimSignatures"] if row["domainId"] in domain_ids]
    claims.append(Claim("stalwart: both DKIM keys", len(keys) == 2, _count(keys)))
    if dark:
        claims.append(Claim("stripe: Nothing, for billing is off", not customers, str(len(customers))))
    return claims


async def all_at_once(stage: Stage, slug: str) -> Claim:
    """Say in one claim that the tenant has everything exactly once."""
    claims = await everything_once(stage, slug)
    wrong = [claim.text for claim in claims if not claim.holds]
    found = f"not so: {'; '.join(wrong)}" if wrong else f"{len(claims)} of {len(claims)} looks agree"
    return Claim(f"{slug} has everything it needs in the four systems, exactly once", not wrong, found)


def completed(operation: Json) -> Claim:
    """Say that the job was done."""
    return Claim("the operation completed", operation["state"] == "completed", operation["state"])


async def active(stage: Stage, slug: str) -> Claim:
    """Say that the tenant can be used."""
    status = (await stage.tenant(slug))["status"]
    return Claim("the tenant is active", status == "active", status)


async def found_in_temporal(stage: Stage, slug: str) -> Claim:
    """Look the job up as an engineer would: by the tenant's slug."""
    loop = asyncio.get_running_loop()
    until = loop.time() + VISIBILITY_PATIENCE_SECONDS
    ids: list[str] = []
    # Visibility follows the history after a moment.
    while not ids and loop.time() < until:
        ids = [run.id async for run in stage.temporal.list_workflows(f"{TENANT_SLUG.name} = '{slug}'")]
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    return Claim(f"Temporal finds the workflow by TenantSlug = {slug}", len(ids) == 1, ", ".join(ids) or "nothing")


async def updates(stage: Stage, operation: Json) -> int:
    """Return how many decisions stand in the history of the job's run."""
    history = await (await stage.execution(operation)).fetch_history()
    accepted = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
    return sum(event.event_type == accepted for event in history.events)


async def events(stage: Stage, operation: Json, action: str) -> list[AuditEvent]:
    """Return what the audit log holds of an action about an operation."""
    return await stage.store.audit.find({"operationId": operation["id"], "action": action})


async def traces(stage: Stage, operation: Json) -> dict[str, list[str]]:
    """Return the kinds of what is there of a tenant, by outside system: all that names it or its operation.

    What a system keeps of a deleted customer and of a canceled subscription is a record, and no trace of a tenant.
    """
    words = (operation["tenantSlug"], operation["id"])
    objects = await stage.objects()
    found = {vendor: _naming(objects[vendor], words) for vendor in VENDORS}
    # A key names its domain's id only, so it is one that outlived its domain.
    domain_ids = {row["id"] for row in objects["stalwart"]["domains"]}
    keys = [row for row in objects["stalwart"]["dkimSignatures"] if row["domainId"] not in domain_ids]
    found["stalwart"] += ["dkimSignatures"] * len(keys)
    return found


def _naming(objects: Objects, words: tuple[str, ...]) -> list[str]:
    return [
        kind
        for kind, rows in objects.items()
        for row in rows
        if any(word in json.dumps(row) for word in words)
        and not (row.get("deleted") or row.get("status") == "canceled")
    ]


def _quantity(subscription: Json) -> int:
    items = subscription["items"]
    rows = items["data"] if isinstance(items, dict) else items
    return int(rows[0]["quantity"])


def _count(rows: list[Json]) -> str:
    return "exactly one" if len(rows) == 1 else str(len(rows))
