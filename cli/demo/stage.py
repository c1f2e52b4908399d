"""Where the demo plays: the running stack, as partners, operators and engineers meet it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from temporalio.client import Client, WorkflowHandle

from cli.token import mint
from domain.operations import system_of
from runtime.wiring import Store
from sandbox.stack.layout import VENDORS
from sandbox.stack.seeds import OPERATOR_EMAIL, STAFF_EMAIL
from sandbox.stack.stack import Facts

SEATS = 5
PATIENCE_SECONDS = 120.0
COME_BACK_AFTER_SECONDS = 1.0
# A demo that is killed releases nothing: its faults end by themselves.
LONGEST_FAULT_SECONDS = 120.0

Json = dict[str, Any]
Objects = dict[str, list[Json]]

_COLOURS = {
    "done": "green",
    "compensated": "green",
    "running": "yellow",
    "compensating": "yellow",
    "retrying": "red",
    "parked": "red",
    "failed": "red",
}


class CannotGoOn(Exception):
    """The platform did not do what the rest of an act builds on."""


@dataclass(frozen=True)
class Stage:
    """The running stack, and whom the demo acts as."""

    console: Console
    facts: Facts
    partner: httpx.AsyncClient
    operator: httpx.AsyncClient
    temporal: Client
    store: Store

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, console: Console, facts: Facts) -> AsyncIterator[Stage]:
        """Log a partner's staff and an operator in, for the length of the block."""
        async with contextlib.AsyncExitStack() as opened:
            partner = _http(facts.api, await mint(facts, "partner", STAFF_EMAIL))
            await opened.enter_async_context(partner)
            operator = _http(facts.api, await mint(facts, "operator", OPERATOR_EMAIL))
            await opened.enter_async_context(operator)
            store = Store(facts.mongo, facts.mongoDatabase)
            opened.callback(store.database.close)
            # Without the keys for payloads: ids, states and search attributes are in clear.
            temporal = await Client.connect(facts.temporal)
            yield cls(console, facts, partner, operator, temporal, store)

    def say(self, line: str) -> None:
        """Tell what happens."""
        self.console.print(line, soft_wrap=True)

    async def order(self, slug: str) -> Json:
        """Order a tenant as a partner's staff does, and return the operation that provisions it.

        Raises:
            CannotGoOn: the API does not take it.
        """
        self.say(f"A partner's staff orders the tenant [bold]{slug}[/bold]: business, {SEATS} seats, monthly, in DKK.")
        response = await self.partner.post("/tenants", json=order(slug), headers={"Idempotency-Key": slug})
        if response.status_code != 202:
            raise CannotGoOn(f"The API answered {response.status_code}: {response.text}")
        operation: Json = response.json()
        self.say(f"The API answered 202 with operation {operation['id']}; a durable workflow carries it out:")
        return operation

    async def watch(
        self,
        operation: Json,
        *,
        until: Callable[[Json], bool] = lambda _operation: False,
        about: str = "",
    ) -> Json:
        """Show the steps as they change, until the operation has ended or something is so.

        Args:
            about: part of the names of the steps that stay on the screen.

        Returns:
            The operation as it then is, to a partner; also if patience ran out.
        """
        live = Live(console=self.console, refresh_per_second=10, transient=True)
        with live, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS), contextlib.aclosing(self._events(operation)) as events:
                async for event in events:
                    operation = event
                    live.update(_steps_table(operation))
                    if operation["closedAt"] is not None or until(operation):
                        break
        self.console.print(_steps_table(operation, about))
        return operation

    async def tenant(self, slug: str) -> Json:
        """Return a tenant as its partner reads it."""
        found: Json = (await self.partner.get(f"/tenants/{slug}")).raise_for_status().json()
        return found

    async def as_operator(self, operation: Json) -> Json:
        """Return an operation as an operator reads it."""
        found: Json = (await self.operator.get(f"/operations/{operation['id']}")).raise_for_status().json()
        return found

    async def decide(self, operation: Json, action: str, reason: str) -> httpx.Response:
        """Decide about an operation as an operator does."""
        return await self.operator.post(f"/operations/{operation['id']}/{action}", json={"reason": reason})

    async def execution(self, operation: Json) -> WorkflowHandle[Any, Any]:
        """Return the execution of an operation, as an engineer finds it."""
        return self.temporal.get_workflow_handle((await self.as_operator(operation))["workflowId"])

    async def objects(self) -> dict[str, Objects]:
        """Return everything that exists in the four outside systems."""
        found = {}
        for vendor in VENDORS:
            async with self._standin(vendor) as http:
                found[vendor] = (await http.get("/_sandbox/objects")).raise_for_status().json()
        return found

    @contextlib.asynccontextmanager
    async def fault(self, vendor: str, action: str, contains: list[str], **spec: Any) -> AsyncIterator[None]:
        """Let a system fail for the length of the block, for the requests that contain all these words."""
        body = {
            "action": action,
            "contains": contains,
            "times": None,
            "seconds": LONGEST_FAULT_SECONDS,
            **spec,
        }
        async with self._standin(vendor) as http:
            fault = (await http.post("/_sandbox/faults", json=body)).raise_for_status().json()
            try:
                yield
            finally:
                await http.delete(f"/_sandbox/faults/{fault['id']}")

    async def _events(self, operation: Json) -> AsyncGenerator[Json, None]:
        """Yield an operation as it changes; a stream that is cut off is opened again."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                async with self.partner.stream("GET", f"/operations/{operation['id']}/events") as response:
                    async for line in response.raise_for_status().aiter_lines():
                        if line.startswith("data: "):
                            yield json.loads(line.removeprefix("data: "))
            await asyncio.sleep(COME_BACK_AFTER_SECONDS)

    def _standin(self, vendor: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.facts.sandbox[vendor], trust_env=False, timeout=10)


def new_slug() -> str:
    """Return a slug that no tenant has."""
    return f"demo-{secrets.token_hex(3)}"


def order(slug: str, domain: str | None = None) -> Json:
    """Return the body that orders a tenant with one domain; its own if none is given."""
    domain = domain or f"{slug}.example"
    return {
        "slug": slug,
        "name": f"Demo {slug}",
        "plan": "business",
        "cycle": "monthly",
        "currency": "DKK",
        "seats": SEATS,
        "domains": [domain],
        "adminEmail": f"admin@{domain}",
        "billingInfo": {"companyName": f"Demo {slug} ApS", "country": "DK"},
    }


def waits_in(system: str) -> Callable[[Json], bool]:
    """Return what tells whether an operation waits for people in one system, and is done in the others."""

    def waits(operation: Json) -> bool:
        may_be = {name: {"done"} for name in VENDORS} | {system: {"done", "parked", "pending"}}
        at_rest = all(step["state"] in may_be[system_of(step["name"])] for step in operation["steps"])
        return operation["state"] == "needsOperator" and at_rest

    return waits


def _http(url: str, token: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=40)


def _steps_table(operation: Json, about: str = "") -> Table:
    progress = operation["progress"]
    title = f"{operation['state']}: {progress['done']} of {progress['total']} steps"
    table = Table(title=title, title_justify="left")
    for column in ("Step", "State", "Attempts", "Problem"):
        table.add_column(column, overflow="fold")
    for step in operation["steps"]:
        if about not in step["name"]:
            continue
        state = step["state"]
        colour = _COLOURS.get(state, "default")
        problem = step["lastError"]["code"] if step["lastError"] else ""
        table.add_row(step["name"], f"[{colour}]{state}[/{colour}]", str(step["attempts"]), problem)
    return table
