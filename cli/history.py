"""`dezky history`: histories of runs, fetched and kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

from temporalio.client import Client, WorkflowHistory
from temporalio.service import RPCError, RPCStatusCode

from cli.errors import say
from cli.status import running_facts
from runtime.key_ring import CannotOpen, KeyRing
from runtime.replay import in_clear, to_stored
from runtime.temporal import connect
from sandbox.stack.layout import Files, LayoutError, Ports
from sandbox.stack.stack import Stack

# What of a stack's environment leads to its Temporal, and lets one read what it keeps.
_WAY_TO_TEMPORAL = ("TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "PAYLOAD_KEYS")
# An id may be longer than the name of a file may be.
_LONGEST_STEM = 200


class CannotCheck(Exception):
    """A history cannot be had or read; the message says why."""


async def run_save(workflow_id: str, run_id: str | None, to: Path | None, port_base: int | None, data_dir: Path) -> int:
    """Save the history of a run to a new file. Returns the exit code."""
    path = to or Path(re.sub(r"[^A-Za-z0-9_.-]", "-", workflow_id)[:_LONGEST_STEM] + ".json")
    try:
        exists = path.exists()
    except OSError as error:
        say(f"{path} cannot be written: {error.strerror}.")
        return 1
    if exists:
        say(f"{path} exists, and a saved history is never rewritten: give another --to.")
        return 1
    try:
        history = await fetch(await connect_client(port_base, data_dir), workflow_id, run_id)
    except CannotCheck as error:
        say(f"{workflow_id}: {error}")
        return 2
    try:
        # Only for whoever saved it: a live history may hold customers' data.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(to_stored(history))
    except OSError as error:
        say(f"{path} cannot be written: {error.strerror}.")
        return 1
    print(path)
    say(f"{len(history.events)} events. Commit it only if the run was synthetic: a live history is customer data.")
    return 0


async def connect_client(port_base: int | None, data_dir: Path) -> Client:
    """Return a client of the Temporal that the environment names, else of the running stack's.

    Raises:
        CannotCheck: there is none, or it does not answer.
    """
    if port_base is not None or not _is_configured():
        _adopt_stack(port_base, data_dir)
    try:
        client = await connect(key_ring())
    # The SDK raises the second for an address that can be none.
    except (RuntimeError, ValueError) as error:
        raise CannotCheck(f"Temporal does not answer: {error}") from None
    say(f"Temporal at {client.service_client.config.target_host}, namespace {client.namespace}")
    return client


def _is_configured() -> bool:
    return any(os.environ.get(name) for name in ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE"))


def _adopt_stack(port_base: int | None, data_dir: Path) -> None:
    facts = running_facts(data_dir)
    if facts is None or (port_base is not None and port_base != facts.portBase):
        where = str(data_dir) if port_base is None else f"{data_dir} on port base {port_base}"
        raise CannotCheck(f"No stack runs in {where}, and TEMPORAL_ADDRESS is not set.")
    try:
        theirs = Stack(Ports(facts.portBase), Files(data_dir), lambda _line: None).environment()
    except LayoutError as error:
        raise CannotCheck(str(error)) from None
    os.environ.update({name: theirs[name] for name in _WAY_TO_TEMPORAL})


def key_ring() -> KeyRing | None:
    """Return what opens payloads, None without `PAYLOAD_KEYS`; the other settings are not needed here.

    Raises:
        CannotCheck: it cannot be read.
    """
    text = os.environ.get("PAYLOAD_KEYS")
    try:
        return KeyRing.parse(text) if text else None
    except ValueError as error:
        raise CannotCheck(f"PAYLOAD_KEYS cannot be read: {error}.") from None


async def fetch(client: Client, workflow_id: str, run_id: str | None = None) -> WorkflowHistory:
    """Return the history of a run in clear; of its latest run without a run id.

    Raises:
        CannotCheck: it is not there, or cannot be read.
    """
    try:
        history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
            raise CannotCheck(f"there is no such run: {error.message}") from None
        raise CannotCheck(f"Temporal does not answer: {error.message}") from None
    try:
        return await in_clear(history, client.data_converter)
    except CannotOpen as error:
        raise CannotCheck(str(error)) from None
