"""`dezky up`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli.errors import say
from cli.status import running_facts
from runtime.process import stop_event
from sandbox.stack.layout import Files, LayoutError, Ports
from sandbox.stack.seeds import OPERATOR_EMAIL, PARTNER_SLUG, STAFF_EMAIL
from sandbox.stack.stack import PRODUCT, Facts, Stack


async def run_up(port_base: int, data_dir: Path, without: Sequence[str]) -> int:
    """Start the platform, show where it is, and stop it on Ctrl-C. Returns the exit code."""
    # First of all, so that a Ctrl-C while starting also ends every child.
    stop = stop_event()
    unknown = sorted(set(without) - set(PRODUCT))
    if unknown:
        say(f"--without takes api or worker, not {', '.join(unknown)}")
        return 2
    files = Files(data_dir.resolve())
    running = running_facts(data_dir)
    if running is not None:
        say(f"A stack already runs in {data_dir} (pid {running.pid}, API {running.api}).")
        return 1
    try:
        stack = Stack(Ports(port_base), files, say, without=without)
    except LayoutError as error:
        say(str(error))
        return 2
    try:
        with files.held():
            say(f"Starting the platform in {data_dir} ...")
            return await _run(stack, stop)
    except LayoutError as error:
        say(str(error))
        return 1


async def _run(stack: Stack, stop: asyncio.Event) -> int:
    try:
        if not await _start_unless_stopped(stack, stop):
            return 0
        _show(stack.facts)
        await stop.wait()
        say("Stopping ...")
    finally:
        await stack.stop()
    return 0


async def _start_unless_stopped(stack: Stack, stop: asyncio.Event) -> bool:
    starting = asyncio.create_task(stack.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return False


def _show(facts: Facts) -> None:
    console = Console(stderr=True)
    table = Table(title="The platform is ready", title_justify="left")
    table.add_column("What")
    table.add_column("Where", overflow="fold")
    rows = [
        ("API", facts.api),
        ("API reference", f"{facts.api}/openapi.json"),
        ("Temporal web UI", facts.temporalUi),
        ("Temporal", f"{facts.temporal} (namespace default)"),
        ("MongoDB", facts.mongo),
        ("S3", facts.s3),
        *((f"{name} (stand-in)", url) for name, url in facts.sandbox.items() if name != "authentikToken"),
    ]
    for what, where in rows:
        table.add_row(what, where)
    console.print(table)
    logins = Table(title="Demo logins", title_justify="left")
    for column in ("Who", "E-mail", "Token"):
        logins.add_column(column, overflow="fold")
    logins.add_row("operator", OPERATOR_EMAIL, "dezky token operator")
    logins.add_row(f"staff of {PARTNER_SLUG}", STAFF_EMAIL, "dezky token partner")
    logins.add_row("a tenant's admin", "the one it was created with", "dezky token member --tenant SLUG")
    console.print(logins)
    say("Ready. Ctrl-C stops everything.")
