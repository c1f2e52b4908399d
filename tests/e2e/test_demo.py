"""`dezky demo`: what it shows, that its claims can fail, and what it leaves behind."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from typing import Any

import pytest
from rich.console import Console

from cli.demo.claims import everything_once, traces
from cli.demo.stage import Stage
from sandbox.stack.stack import Facts
from tests.support.census import census, not_exactly_one
from tests.support.platform import Platform, eventually, order

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_the_tour_checks_its_claims(platform: Platform) -> None:
    """All acts end well, and what they say of their tenants is so."""
    done = subprocess.run(platform.command("demo"), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed: 14 of 14 steps" in done.stdout
    assert " NO " not in done.stdout
    assert "none of them found to be wrong" in done.stdout
    *made, canceled = re.findall(r"orders the tenant (demo-\w+)", done.stdout)
    assert len(made) == 3
    for slug in made:
        tenant = _tenant(platform, slug)
        assert tenant["status"] == "active"
        assert not_exactly_one(census(platform, tenant)) == {}
    tenant = _tenant(platform, canceled)
    assert (tenant["status"], tenant["domains"], tenant["resources"]) == ("abandoned", [], {})
    assert _faults(platform) == []


def test_a_claim_that_does_not_hold_is_told(platform: Platform) -> None:
    """A tenant that is not finished is no success."""
    platform.inject("ocis", "status", status=400, method="POST", contains=["tenant/demo-", "/ocis.space."])
    done = platform.run("demo", "--quick")
    assert done.returncode == 1, done.stdout
    wrong = [row.split("│")[2].strip() for row in done.stdout.splitlines() if "│ NO " in row]
    assert wrong[:2] == ["the operation completed", "the tenant is active"]
    assert "ocis: A space under its alias" in wrong
    assert f"{len(wrong)} of them found to be wrong" in done.stdout
    found = re.search(r"with operation (\w+);", done.stdout)
    assert found is not None
    with platform.api("operator") as http:
        assert http.post(f"/operations/{found[1]}/cancel").status_code == 202
        eventually("it is canceled", lambda: http.get(f"/operations/{found[1]}").json()["state"] == "canceled")


async def test_what_is_missing_or_left_is_seen(platform: Platform) -> None:
    """The looks are at the outside systems, not at what we know of them."""
    with platform.api() as http:
        answer = http.post("/tenants", json=order("looked-at", seats=5), headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
    async with Stage.open(Console(file=io.StringIO()), Facts(**platform.facts)) as stage:
        assert [claim.text for claim in await everything_once(stage, "looked-at") if not claim.holds] == []
        group = next(row for row in platform.objects("ocis")["groups"] if row["displayName"].endswith("looked-at"))
        with platform.standin("ocis") as http:
            assert http.delete(f"/graph/v1.0/groups/{group['id']}").status_code == 204
        missing = [claim.text for claim in await everything_once(stage, "looked-at") if not claim.holds]
        left = await traces(stage, answer.json())
    assert missing == ["ocis: Group dezky-tenant-looked-at"]
    assert {vendor: sorted(kinds) for vendor, kinds in left.items()} == {
        "authentik": ["groups", "users"],
        "stalwart": ["accounts", "domains", "roles"],
        "ocis": ["spaces"],
        "stripe": ["customers", "subscriptions"],
    }


def test_an_interrupted_tour_releases_its_faults(platform: Platform) -> None:
    """Ctrl-C during the outage ends the outage too, and the tenant heals."""
    running = subprocess.Popen(platform.command("demo"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        fault = eventually("the outage has begun", lambda: next(iter(_faults(platform)), None))
        slug = fault["contains"][0].removeprefix("tenant/").removesuffix("/")
        eventually("the tenant is ordered", lambda: _tenant(platform, slug).get("status"))
        running.send_signal(signal.SIGINT)
        _out, told = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert told.startswith("Interrupted. Its faults are released")
    assert _faults(platform) == []
    eventually("the tenant is active", lambda: _tenant(platform, slug)["status"] == "active")


def _tenant(platform: Platform, slug: str) -> dict[str, Any]:
    with platform.api() as http:
        found: dict[str, Any] = http.get(f"/tenants/{slug}").json()
    return found


def _faults(platform: Platform) -> list[dict[str, Any]]:
    """Return the faults of demos that are set."""
    faults = [
        fault for vendor in ("authentik", "stalwart", "ocis", "stripe") for fault in platform.faults(vendor).values()
    ]
    return [
        fault
        for fault in faults
        if any(word.startswith("tenant/demo-") for word in fault["contains"]) and not fault["spent"]
    ]
