"""Plays the acts one after the other, and says of each claim whether it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from temporalio.service import RPCError

from cli.demo import canceling, outage, parking, provisioning
from cli.demo.claims import Claim
from cli.demo.stage import CannotGoOn, Stage
from cli.errors import say
from cli.status import is_ready, running_stack

ACTS = (provisioning, outage, parking, canceling)


async def run_demo(port_base: int | None, data_dir: Path, *, quick: bool) -> int:
    """Play the acts, only the first if it is to be quick. Returns 0 if every claim was found to hold."""
    facts = running_stack(port_base, data_dir)
    if not await is_ready(facts):
        say("The platform runs and is not ready yet.")
        return 1
    console = Console()
    claims: list[Claim] = []
    try:
        async with Stage.open(console, facts) as stage:
            for number, act in enumerate(ACTS[:1] if quick else ACTS, start=1):
                console.print(f"\n[bold]{number}. {act.TITLE}[/bold]")
                found = await act.play(stage)
                console.print(_table(found))
                claims += found
    except asyncio.CancelledError:
        say("Interrupted. Its faults are released; a tenant of it may wait for an operator: docs/runbooks.")
        raise
    except (CannotGoOn, httpx.HTTPError, PyMongoError, RPCError) as error:
        console.print(f"[red]The demo cannot go on:[/red] {escape(str(error) or type(error).__name__)}")
        return 1
    wrong = sum(not claim.holds for claim in claims)
    console.print(f"{len(claims)} claims were looked up, {wrong or 'none'} of them found to be wrong.")
    return 1 if wrong else 0


def _table(claims: list[Claim]) -> Table:
    table = Table(title="What was promised, and what is there", title_justify="left")
    for column in ("", "Claim", "Found"):
        table.add_column(column, overflow="fold")
    for claim in claims:
        table.add_row("[green]yes[/green]" if claim.holds else "[red]NO[/red]", claim.text, escape(claim.found))
    return table
