"""`dezky token`."""

from __future__ import annotations

from pathlib import Path

import httpx
from pymongo.errors import PyMongoError

from cli.errors import say
from cli.status import running_stack
from domain.people import User
from domain.tenants import TenantStatus
from runtime.wiring import Store
from sandbox.stack.stack import Facts

APPLICATIONS = {"operator": "dezky-operator", "partner": "dezky-portal", "member": "dezky-portal"}


async def run_token(role: str, partner: str, tenant: str | None, port_base: int | None, data_dir: Path) -> int:
    """Print an access token. Returns the exit code."""
    if role not in APPLICATIONS:
        say(f"The role must be operator, partner or member, not {role}.")
        return 2
    facts = running_stack(port_base, data_dir)
    store = Store(facts.mongo, facts.mongoDatabase)
    try:
        user = await _find(store, role, partner, tenant)
        token = await mint(facts, role, user.email) if user is not None else None
    except (PyMongoError, httpx.HTTPError) as error:
        say(f"The database or the login of the stack does not answer ({type(error).__name__}): see dezky status.")
        return 1
    finally:
        store.database.close()
    if token is None:
        return 1
    print(token, flush=True)
    return 0


async def mint(facts: Facts, role: str, username: str) -> str:
    """Return an access token that the embedded login issues to a person, for the application of a role."""
    async with httpx.AsyncClient(base_url=facts.sandbox["authentik"], trust_env=False, timeout=10) as http:
        body = {"application": APPLICATIONS[role], "username": username}
        response = await http.post("/_sandbox/tokens", json=body)
        return str(response.raise_for_status().json()["accessToken"])


async def _find(store: Store, role: str, partner: str, tenant: str | None) -> User | None:
    match role:
        case "operator":
            user = await store.users.operator()
            missing = "There is no active operator."
        case "partner":
            found = await store.partners.by_slug(partner)
            user = await store.users.staff_of(found.id) if found is not None else None
            missing = f"There is no partner {partner} with active staff."
        case _:
            place = await store.tenants.get(tenant) if tenant is not None else await store.tenants.newest()
            if place is not None and place.status is TenantStatus.ABANDONED:
                say(f"The tenant {place.slug} was abandoned; nobody logs in to it.")
                return None
            user = await store.users.get(place.admin_user_id) if place is not None else None
            missing = f"There is no tenant {tenant}." if tenant is not None else "There is no tenant yet."
    if user is None:
        say(missing)
        return None
    if user.subject is None:
        say(f"{role}: the login does not exist yet; provisioning has not come that far.")
        return None
    return user
