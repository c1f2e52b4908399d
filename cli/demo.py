"""`dezky demo`: one tenant's provisioning, told while it happens and checked where it happened."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from temporalio.client import Client

from cli.errors import say
from cli.status import is_ready, running_stack
from cli.token import mint
from domain.ids import drive_alias, tenant_group, tenant_marker
from runtime.search_attributes import TENANT_SLUG
from sandbox.stack.seeds import OPERATOR_EMAIL, STAFF_EMAIL
from sandbox.stack.stack import Facts

PATIENCE_SECONDS = 120.0
LOOK_EVERY_SECONDS = 0.1
SEATS = 5
Objects = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Claim:
    """Something the demo says, and whether it was found to be so."""

    text: str
    holds: bool
    found: str


async def run_demo(port_base: int | None, data_dir: Path) -> int:
    """Tell the story. Returns 0 if every claim was found to hold."""
    facts = running_stack(port_base, data_dir)
    if not await is_ready(facts):
        say("The platform runs and is not ready yet.")
        return 1
    console = Console()
    slug = f"demo-{secrets.token_hex(3)}"
    console.print(f"A partner's staff orders the tenant [bold]{slug}[/bold]: business, {SEATS} seats, monthly, in DKK.")
    headers = {"Authorization": f"Bearer {await mint(facts, 'partner', STAFF_EMAIL)}"}
    async with httpx.AsyncClient(base_url=facts.api, headers=headers, trust_env=False, timeout=40) as http:
        response = await http.post("/tenants", json=_order(slug), headers={"Idempotency-Key": slug})
        if response.status_code != 202:
            console.print(f"[red]The API answered {response.status_code}:[/red] {response.text}")
            return 1
        operation = response.json()
        console.print(f"The API answered 202 with operation {operation['id']}; a durable workflow carries it out:")
        operation = await _watch(console, http, operation["id"])
        tenant = (await http.get(f"/tenants/{slug}")).json()
    claims = [
        Claim("the operation completed", operation["state"] == "completed", operation["state"]),
        Claim("the tenant is active", tenant["status"] == "active", tenant["status"]),
        *await _vendor_claims(facts, slug, tenant),
        await _temporal_claim(facts, slug),
    ]
    table = Table(title="What was promised, and what is there", title_justify="left")
    for column in ("", "Claim", "Found"):
        table.add_column(column, overflow="fold")
    for claim in claims:
        table.add_row("[green]yes[/green]" if claim.holds else "[red]NO[/red]", claim.text, claim.found)
    console.print(table)
    for line in _dns_lines(tenant):
        console.print(line)
    link = await _operator_link(facts, operation["id"])
    console.print(f"The same job in the Temporal web UI: {link}", soft_wrap=True)
    console.print(f"Log in as the tenant's admin: dezky token member --tenant {slug}")
    return 0 if all(claim.holds for claim in claims) else 1


def _order(slug: str) -> dict[str, Any]:
    return {
        "slug": slug,
        "name": f"Demo {slug}",
        "plan": "business",
        "cycle": "monthly",
        "currency": "DKK",
        "seats": SEATS,
        "domains": [f"{slug}.example"],
        "adminEmail": f"admin@{slug}.example",
        "billingInfo": {"companyName": f"Demo {slug} ApS", "country": "DK"},
    }


async def _watch(console: Console, http: httpx.AsyncClient, operation_id: str) -> dict[str, Any]:
    """Show the steps until the operation has ended, and return it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_SECONDS
    with Live(console=console, refresh_per_second=10, transient=not console.is_terminal) as live:
        while True:
            operation: dict[str, Any] = (await http.get(f"/operations/{operation_id}")).json()
            live.update(_steps_table(operation))
            if operation["closedAt"] is not None or loop.time() > until:
                break
            await asyncio.sleep(LOOK_EVERY_SECONDS)
    if not console.is_terminal:
        console.print(_steps_table(operation))
    return operation


def _steps_table(operation: dict[str, Any]) -> Table:
    progress = operation["progress"]
    table = Table(title=f"{operation['state']}: {progress['done']} of {progress['total']} steps", title_justify="left")
    for column in ("Step", "State", "Attempts", "Problem"):
        table.add_column(column, overflow="fold")
    colours = {"done": "green", "running": "yellow", "retrying": "red", "failed": "red"}
    for step in operation["steps"]:
        state = step["state"]
        colour = colours.get(state, "default")
        problem = step["lastError"]["code"] if step["lastError"] else ""
        table.add_row(step["name"], f"[{colour}]{state}[/{colour}]", str(step["attempts"]), problem)
    return table


async def _vendor_claims(facts: Facts, slug: str, tenant: dict[str, Any]) -> list[Claim]:
    """Look in each outside system for what the tenant must have there, exactly once."""
    objects = {name: await _objects(facts.sandbox[name]) for name in ("authentik", "stalwart", "ocis", "stripe")}
    marker = tenant_marker(slug)
    domain = f"{slug}.example"
    found: list[tuple[str, str, list[dict[str, Any]]]] = []

    def look(system: str, kind: str, text: str, mine: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
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
    spaces = look("ocis", "spaces", "A space under its alias", lambda row: row["driveAlias"] == drive_alias(slug))
    group_id = tenant["resources"].get("ocisGroupId")
    look("ocis", "memberships", "The group may edit the space", lambda row: row["id"] == group_id)
    customers = look("stripe", "customers", "A customer", lambda row: row["metadata"].get("dezkyTenant") == slug)
    customer_ids = {customer["id"] for customer in customers}
    dark = tenant["provisioningStatus"]["stripe"] == "disabled"
    if dark:
        found.pop()
    else:
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
    if not spaces:
        claims.append(Claim("ocis: the space is known here", False, "absent"))
    return claims


async def _objects(url: str) -> Objects:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as http:
        objects: Objects = (await http.get("/_sandbox/objects")).raise_for_status().json()
        return objects


def _quantity(subscription: dict[str, Any]) -> int:
    items = subscription["items"]
    rows = items["data"] if isinstance(items, dict) else items
    return int(rows[0]["quantity"])


def _count(rows: list[dict[str, Any]]) -> str:
    return "exactly one" if len(rows) == 1 else str(len(rows))


async def _temporal_claim(facts: Facts, slug: str) -> Claim:
    """Look the job up as an engineer would: by the tenant's slug."""
    client = await Client.connect(facts.temporal)
    loop = asyncio.get_running_loop()
    until = loop.time() + 10
    ids: list[str] = []
    # Visibility follows the history after a moment.
    while not ids and loop.time() < until:
        ids = [run.id async for run in client.list_workflows(f"{TENANT_SLUG.name} = '{slug}'")]
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    return Claim(f"Temporal finds the workflow by TenantSlug = {slug}", len(ids) == 1, ", ".join(ids) or "nothing")


async def _operator_link(facts: Facts, operation_id: str) -> str:
    headers = {"Authorization": f"Bearer {await mint(facts, 'operator', OPERATOR_EMAIL)}"}
    async with httpx.AsyncClient(base_url=facts.api, headers=headers, trust_env=False, timeout=10) as http:
        operation = (await http.get(f"/operations/{operation_id}")).raise_for_status().json()
    return str(operation["links"]["temporalUi"])


def _dns_lines(tenant: dict[str, Any]) -> list[str]:
    lines = []
    for domain in tenant["domains"]:
        kinds = sorted({record["type"] for record in domain["dnsRecords"]})
        count = len(domain["dnsRecords"])
        lines.append(f"{domain['name']} is {domain['state']}; {count} DNS records to publish ({', '.join(kinds)}).")
    return lines
