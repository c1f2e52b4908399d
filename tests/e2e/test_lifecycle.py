"""What a user meets around the platform: starting, resuming, stopping, taken ports, leftovers, tokens."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox.stack.layout import Files
from tests.support.platform import Platform, eventually, order
from tests.support.servers import free_port_base

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Platform]:
    """A platform of the test's own."""
    running = Platform(tmp_path / "data", free_port_base())
    running.start()
    yield running
    running.stop()


def _alive(pids: dict[str, int]) -> list[str]:
    return [name for name, pid in pids.items() if psutil.pid_exists(pid) and not _is_zombie(pid)]


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_status_is_plain_and_complete(platform: Platform) -> None:
    """`dezky status --json` prints one document with everything that a script needs."""
    document = json.loads(platform.run("status", "--json").stdout)
    assert document["ready"] is True
    assert set(document) == {"ready", "api", "temporal", "temporalUi", "mongo", "mongoDatabase", "s3", "sandbox"}
    assert set(document["sandbox"]) == {"authentik", "authentikToken", "stalwart", "ocis", "stripe"}
    assert document["temporal"] == f"127.0.0.1:{platform.port_base + 1}"


def test_tokens_open_what_their_role_may_see(platform: Platform) -> None:
    """Each token is the last line of stdout, and the API knows its bearer."""
    with platform.api() as http:
        answer = http.post("/tenants", json=order("token-tenant"), headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
    roles = {"operator": (), "partner": (), "member": ("--tenant", "token-tenant")}
    for role, arguments in roles.items():
        with platform.api(role) if not arguments else platform.api("partner") as http:
            http.headers["Authorization"] = f"Bearer {platform.token(role, *arguments)}"
            me = http.get("/me").json()
        assert me["role"] == role
    assert [tenant["slug"] for tenant in me["tenants"]] == ["token-tenant"]
    assert platform.run("token", "member", "--tenant", "nobody").returncode == 1
    assert platform.run("token", "emperor").returncode == 2


def test_the_temporal_search_finds_a_job_by_its_tenant(platform: Platform) -> None:
    """An engineer finds the workflow by `TenantSlug` with the official command."""
    with platform.api() as http:
        assert http.post("/tenants", json=order("findable")).status_code == 202
    from sandbox.stack.layout import find_binary

    def found() -> list[dict[str, Any]]:
        command = [
            str(find_binary("temporal")), "workflow", "list", "--address", platform.facts["temporal"],
            "--query", "TenantSlug = 'findable'", "--output", "json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    rows = eventually("the workflow is found", found)
    assert [row["type"]["name"] for row in rows] == ["ProvisionTenant"]


def test_a_second_start_resumes_and_ctrl_c_ends_every_child(own: Platform) -> None:
    """What was made before a stop is there after the next start, and no child outlives its stack."""
    with own.api() as http:
        assert http.post("/tenants", json=order("stays"), headers={"Prefer": "wait=30"}).status_code == 200
    children = own.children()
    own.stop()
    assert own.exit_code == 0, own.log()
    assert _alive(children) == []
    assert not (own.data_dir / "children.json").exists()
    own.start()
    with own.api() as http:
        assert http.get("/tenants/stays").json()["status"] == "active"
    assert [row["name"] for row in own.objects("stalwart")["domains"]] == ["stays.example"]


def test_children_die_with_a_killed_stack_and_the_next_one_starts(own: Platform) -> None:
    """A stack that is killed without a goodbye leaves nothing behind that would be in the way."""
    children = own.children()
    assert {os.getpgid(pid) for pid in children.values()} == {os.getpgid(own.pid)}
    own.crash()
    eventually("every child is gone", lambda: _alive(children) == [], patience=20)
    done = own.run("token", "operator")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"No stack runs in {own.data_dir}. Start it: dezky up\n"
    own.start()
    assert own.run("status").returncode == 0


def test_leftovers_of_an_earlier_stack_are_ended(tmp_path: Path) -> None:
    """A recorded process that still runs is ended; one that only reuses a recorded pid is left alone."""
    from sandbox.stack.children import end_leftovers, start_time

    said: list[str] = []
    left = subprocess.Popen(["sleep", "600"])
    other = subprocess.Popen(["sleep", "600"])
    try:
        rows = [
            {"name": "mongo", "pid": left.pid, "startedAt": start_time(left.pid)},
            {"name": "api", "pid": other.pid, "startedAt": start_time(other.pid) - 1000},
        ]
        (tmp_path / "children.json").write_text(json.dumps(rows))
        end_leftovers(tmp_path / "children.json", said.append)
        left.wait(10)
        assert other.poll() is None
        assert said == [f"ended mongo (pid {left.pid}), left over from an earlier run"]
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_a_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    """`up` says which port is taken by what, and starts nothing."""
    base = free_port_base()
    stack = Platform(tmp_path / "data", base)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", base + 4))
        holder.listen()
        done = stack.run("up")
    assert done.returncode == 1
    assert f"port {base + 4} (MongoDB) is taken by" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr


@pytest.mark.parametrize("base", ["0", "65500", "70000"])
def test_an_impossible_port_base_is_refused(tmp_path: Path, base: str) -> None:
    """A base whose hundred ports do not exist is refused in words."""
    done = Platform(tmp_path / "data", int(base)).run("up")
    assert done.returncode == 2
    assert "--port-base must be" in done.stderr


def test_a_second_stack_in_the_same_directory_is_refused(platform: Platform) -> None:
    """Two stacks on one data directory would fight over it."""
    done = platform.run("up")
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert platform.run("status").returncode == 0


def test_the_environment_of_up_reaches_the_product(tmp_path: Path) -> None:
    """Billing that is switched off for `up` is dark for the tenant, and nothing is made in Stripe."""
    with Platform(tmp_path / "data", free_port_base(), BILLING_STRIPE_ENABLED="false") as dark, dark.api() as http:
        assert http.post("/tenants", json=order("dark"), headers={"Prefer": "wait=30"}).status_code == 200
        assert http.get("/tenants/dark").json()["provisioningStatus"]["stripe"] == "disabled"
        assert dark.objects("stripe") == {"products": [], "prices": [], "customers": [], "subscriptions": []}
        done = dark.run("demo", "--quick")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "stripe: Nothing" in done.stdout


def test_data_of_another_port_base_is_taken_along(tmp_path: Path) -> None:
    """A data directory is not bound to the ports it was made under."""
    with Platform(tmp_path / "data", free_port_base()) as first, first.api() as http:
        assert http.post("/tenants", json=order("moves"), headers={"Prefer": "wait=30"}).status_code == 200
    with Platform(tmp_path / "data", free_port_base()) as second, second.api() as http:
        assert http.get("/tenants/moves").json()["status"] == "active"


def test_a_stack_that_is_still_starting_is_left_alone(tmp_path: Path) -> None:
    """Whoever holds the directory keeps it, even before it has told anybody where it is."""
    stack = Platform(tmp_path / "data", free_port_base())
    with Files(stack.data_dir).held():
        (stack.data_dir / "children.json").write_text("[]")
        done = stack.run("up")
    assert done.returncode == 1
    assert "Another stack is starting, running or stopping" in done.stderr
    assert (stack.data_dir / "children.json").exists()


def test_a_directory_that_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    """A file where the directory should be is no reason for a traceback."""
    (tmp_path / "data").touch()
    stack = Platform(tmp_path / "data", free_port_base())
    done = stack.run("up")
    assert done.returncode == 1
    assert done.stderr.startswith(f"The data directory {tmp_path / 'data'} cannot be used")
    assert len(done.stderr.splitlines()) == 1


def test_status_says_what_to_do_when_nothing_runs(tmp_path: Path) -> None:
    """A person reads what to do on stderr, a program one document on stdout."""
    done = Platform(tmp_path / "data", free_port_base()).run("status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"ready": False}
    assert done.stderr.startswith("No stack runs in")


def test_a_stack_on_another_port_base_is_not_denied(platform: Platform) -> None:
    """Who asks for the wrong ports is told the right ones."""
    other = Platform(platform.data_dir, platform.port_base + 1)
    assert f"runs on port base {platform.port_base}, not {other.port_base}" in other.run("token", "operator").stderr


def test_a_database_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` with the address of another server says that it is not there."""
    monkeypatch.setenv("MONGO_URL", "mongodb://127.0.0.1:1/?replicaSet=rs0")
    done = Platform(tmp_path / "data", free_port_base()).run("up")
    assert done.returncode == 1
    assert "The MongoDB that MONGO_URL names cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
