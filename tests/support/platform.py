"""The embedded stack as a user runs it: `dezky up` in a process of its own, driven over HTTP and by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from sandbox.stack.children import die_with_parent
from sandbox.stack.layout import find_binary

PATIENCE_SECONDS = 90.0
LOOK_EVERY_SECONDS = 0.05


def eventually(what: str, look: Callable[[], Any], patience: float = PATIENCE_SECONDS) -> Any:
    """Return what `look` returns once it is true; fail saying what did not come about."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(LOOK_EVERY_SECONDS)
    raise AssertionError(f"not within {patience:.0f} s: {what}")


class Platform:
    """One `dezky up`."""

    def __init__(self, root: Path, port_base: int, *, without: Sequence[str] = (), **environment: str) -> None:
        self.data_dir = root
        self.port_base = port_base
        self._without = without
        self._environment = {
            **os.environ,
            "OPERATION_PROFILE": "fast",
            "STRIPE_RATE_PER_SECOND": "200",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Platform:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def command(self, *arguments: str) -> list[str]:
        """Return a `dezky` command for this stack."""
        places = ["--port-base", str(self.port_base), "--data-dir", str(self.data_dir)]
        return [sys.executable, "-m", "cli.main", *arguments, *places]

    def start(self) -> None:
        """Start the stack and return when it is ready."""
        extra = [word for name in self._without for word in ("--without", name)]
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with (self.data_dir / "up.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self.command("up"), *extra],
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        eventually("the stack is ready", self._ready)
        self.tokens: dict[str, str] = {}

    def stop(self) -> None:
        """Press Ctrl-C and wait for the end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise

    def crash(self) -> None:
        """Kill `dezky up` without a goodbye."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def exit_code(self) -> int | None:
        """How `dezky up` ended, None while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def pid(self) -> int:
        """The process id of `dezky up`."""
        assert self._process is not None
        return self._process.pid

    def log(self, name: str = "up") -> str:
        """Return what a process wrote."""
        path = self.data_dir / "up.log" if name == "up" else self.data_dir / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def children(self) -> dict[str, int]:
        """Return the process ids of the children by name."""
        rows = json.loads((self.data_dir / "children.json").read_text())
        return {row["name"]: row["pid"] for row in rows}

    def kill(self, name: str) -> int:
        """Kill a child as a crash would, and return its process id."""
        pid = self.children()[name]
        os.kill(pid, signal.SIGKILL)
        eventually(f"{name} is gone", lambda: not psutil.pid_exists(pid) or self.children().get(name) != pid)
        return pid

    def freeze(self, name: str) -> None:
        """Stop a child in its tracks, as a host that hangs would; a kill ends it."""
        os.kill(self.children()[name], signal.SIGSTOP)

    def temporal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Temporal's own CLI."""
        command = [str(find_binary("temporal")), *arguments, "--address", self.facts["temporal"]]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `dezky` command to its end."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)

    def token(self, role: str, *arguments: str) -> str:
        """Return an access token, minted once per role."""
        key = " ".join((role, *arguments))
        if key not in self.tokens:
            done = self.run("token", role, *arguments)
            assert done.returncode == 0, done.stderr
            self.tokens[key] = done.stdout.splitlines()[-1]
        return self.tokens[key]

    def api(self, role: str = "partner") -> httpx.Client:
        """Return an HTTP client of the API, logged in."""
        return httpx.Client(
            base_url=self.facts["api"],
            headers={"Authorization": f"Bearer {self.token(role)}"},
            timeout=20,
            trust_env=False,
        )

    def standin(self, vendor: str) -> httpx.Client:
        """Return an HTTP client of a vendor's stand-in, logged in as the machine."""
        headers = {"Authorization": f"Bearer dev-{vendor}-token"}
        return httpx.Client(base_url=self.facts["sandbox"][vendor], headers=headers, timeout=20, trust_env=False)

    def objects(self, vendor: str) -> dict[str, list[dict[str, Any]]]:
        """Return everything that exists at a vendor."""
        with self.standin(vendor) as http:
            found: dict[str, list[dict[str, Any]]] = http.get("/_sandbox/objects").raise_for_status().json()
            return found

    def inject(self, vendor: str, action: str, **spec: Any) -> str:
        """Set a fault at a vendor and return its id."""
        with self.standin(vendor) as http:
            answer = http.post("/_sandbox/faults", json={"action": action, **spec})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["id"])

    def faults(self, vendor: str) -> dict[str, dict[str, Any]]:
        """Return the faults at a vendor by id."""
        with self.standin(vendor) as http:
            return {each["id"]: each for each in http.get("/_sandbox/faults").json()["items"]}

    def release(self, vendor: str, fault: str) -> None:
        """Let go whoever a fault holds."""
        with self.standin(vendor) as http:
            http.post(f"/_sandbox/faults/{fault}/release").raise_for_status()

    def _ready(self) -> bool:
        if self.exit_code is not None:
            raise AssertionError(f"dezky up ended with {self.exit_code}:\n{self.log()}")
        try:
            self.facts = json.loads((self.data_dir / "stack.json").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return "Ready." in self.log()


def order(slug: str, **changes: Any) -> dict[str, Any]:
    """Return the body of `POST /tenants` for a new tenant with one domain."""
    return {
        "slug": slug,
        "name": f"Tenant {slug}",
        "plan": "business",
        "cycle": "monthly",
        "currency": "DKK",
        "seats": 3,
        "domains": [f"{slug}.example"],
        "adminEmail": f"admin@{slug}.example",
        **changes,
    }
