"""`dezky status`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import httpx
import psutil

from cli.errors import say, stop_with
from sandbox.stack.stack import Facts, read_facts


def running_stack(port_base: int | None, data_dir: Path) -> Facts:
    """Return the stack that runs in the data directory, or end the command."""
    facts = running_facts(data_dir)
    if facts is None or (port_base is not None and port_base != facts.portBase):
        stop_with(_absent(facts, port_base, data_dir))
    return facts


def running_facts(data_dir: Path) -> Facts | None:
    """Return what is known of the stack that runs in the data directory, None if none does."""
    facts = read_facts(data_dir)
    return facts if facts is not None and _is_up(facts.pid) else None


def _is_up(pid: int) -> bool:
    """Tell whether a process is a `dezky up`: one that was killed leaves its facts behind."""
    try:
        return pid != os.getpid() and "up" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _absent(facts: Facts | None, port_base: int | None, data_dir: Path) -> str:
    if facts is None:
        return f"No stack runs in {data_dir}. Start it: dezky up"
    return f"The stack in {data_dir} runs on port base {facts.portBase}, not {port_base}."


async def is_ready(facts: Facts) -> bool:
    """Tell whether the API answers that it is ready."""
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"{facts.api}/health/ready", timeout=5)).status_code == 200
        except httpx.HTTPError:
            return False


async def run_status(port_base: int | None, data_dir: Path, *, as_json: bool) -> int:
    """Print where everything is. Returns 0 if it is ready."""
    facts = running_facts(data_dir)
    if facts is None or (port_base is not None and port_base != facts.portBase):
        say(_absent(facts, port_base, data_dir))
        facts = None
    ready = facts is not None and await is_ready(facts)
    document = {"ready": ready, **(_public(facts) if facts is not None else {})}
    if as_json:
        print(json.dumps(document))
    else:
        for name, value in document.items():
            if isinstance(value, dict):
                for inner, each in value.items():
                    print(f"{name}.{inner}: {each}")
            else:
                print(f"{name}: {str(value).lower() if isinstance(value, bool) else value}")
    return 0 if ready else 1


def _public(facts: Facts) -> dict[str, object]:
    return {name: value for name, value in asdict(facts).items() if name not in ("portBase", "pid")}
