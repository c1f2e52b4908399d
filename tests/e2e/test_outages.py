"""Outages of a vendor and deaths of our own servers, seen from outside."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.census import census, not_exactly_one
from tests.support.platform import Platform, eventually, order

pytestmark = pytest.mark.e2e

# The worker's metrics are served at this distance from the base of the ports.
WORKER_METRICS = 6


def _tenant(platform: Platform, slug: str) -> dict[str, Any]:
    with platform.api() as http:
        found: dict[str, Any] = http.get(f"/tenants/{slug}").json()
        return found


def _submit(platform: Platform, slug: str, **changes: Any) -> str:
    with platform.api() as http:
        answer = http.post("/tenants", json=order(slug, **changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def _active_and_settled(platform: Platform, slug: str) -> dict[str, Any] | None:
    tenant = _tenant(platform, slug)
    return tenant if tenant["status"] == "active" and tenant["operation"] is None else None


def test_an_outage_of_one_vendor_holds_up_only_its_branch(platform: Platform) -> None:
    """While Stalwart is away the others are ok, the tenant says why and when next, and it heals untouched."""
    slug = "outage-stalwart"
    fault = platform.inject("stalwart", "refuse", times=None, contains=[f"tenant/{slug}/"])
    _submit(platform, slug)

    def waiting() -> dict[str, Any] | None:
        tenant = _tenant(platform, slug)
        others = {tenant["provisioningStatus"][system] for system in ("authentik", "ocis", "stripe")}
        error = tenant["provisioningErrors"].get("stalwart", {})
        return tenant if others == {"ok"} and error.get("attempts", 0) >= 3 and error["nextRetryAt"] else None

    tenant = eventually("the others are ok and Stalwart is in error", waiting)
    assert tenant["status"] == "pending"
    assert tenant["provisioningStatus"]["stalwart"] == "error"
    assert tenant["provisioningErrors"]["stalwart"]["code"] == "vendor_unavailable"
    platform.release("stalwart", fault)
    healed = eventually("the tenant is active", lambda: _active_and_settled(platform, slug))
    assert healed["provisioningErrors"] == {}
    assert not_exactly_one(census(platform, healed)) == {}


def test_a_refusal_waits_for_an_operator(platform: Platform) -> None:
    """What a vendor refuses for good parks that step alone, alerts people at once, and goes on when it is retried."""
    slug = "refused-ocis"
    refusal = '{"error":{"code":"accessDenied","message":"no"}}'
    fault = platform.inject(
        "ocis", "status", times=None, status=403, body=refusal, content_type="application/json",
        contains=[f"tenant/{slug}/", "/ocis.space."],
    )  # fmt: skip
    operation_id = _submit(platform, slug)

    def waiting() -> dict[str, Any] | None:
        tenant = _tenant(platform, slug)
        others = {tenant["provisioningStatus"][system] for system in ("authentik", "stalwart", "stripe")}
        return tenant if others == {"ok"} and tenant["operation"]["state"] == "needsOperator" else None

    tenant = eventually("all but one step is done", waiting)
    assert tenant["status"] == "pending"
    error = tenant["provisioningErrors"]["ocis"]
    assert error["nextRetryAt"] is None
    assert "waits for an operator" in error["message"]
    assert "operation_needs_operator" in platform.log("worker")
    eventually("it is counted", lambda: _counted(platform) == len(_listed(platform)))
    assert operation_id in _listed(platform)
    platform.release("ocis", fault)
    with platform.api("operator") as http:
        answer = http.post(f"/operations/{operation_id}/steps/ocis.space/retry", headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.json()["state"]) == (200, "completed"), answer.text
    assert not_exactly_one(census(platform, _tenant(platform, slug))) == {}
    assert operation_id not in _listed(platform)
    eventually("it is not counted any more", lambda: _counted(platform) == len(_listed(platform)))


def _listed(platform: Platform) -> list[str]:
    """Return the operations that wait for people, by the API; other tests may leave some."""
    with platform.api("operator") as http:
        rows = http.get("/operations", params={"state": "needsOperator", "limit": 500}).json()["items"]
    return [row["id"] for row in rows]


def _counted(platform: Platform) -> int | None:
    """Return how many operations wait for people, by the worker's metrics."""
    url = f"http://127.0.0.1:{platform.port_base + WORKER_METRICS}/metrics"
    lines = httpx.get(url, timeout=5, trust_env=False).text.splitlines()
    found = [line for line in lines if line.startswith("dezky_operations_open") and 'state="needsOperator"' in line]
    return int(float(found[0].rsplit(" ", 1)[1])) if found else None


@pytest.mark.parametrize("victim", ["temporal", "mongo", "api", "worker", "standin-stalwart"])
def test_killing_a_server_during_a_provision_loses_nothing(platform: Platform, victim: str) -> None:
    """Each of our servers, and a vendor's, is killed while a write is held; the tenant converges all the same."""
    slug = f"killed-{victim}"
    fault = platform.inject("ocis", "hold_after", method="POST", contains=[f"tenant/{slug}/", "/ocis.space."])
    _submit(platform, slug)
    eventually("the write is held", lambda: platform.faults("ocis")[fault]["held"] == 1)
    platform.kill(victim)
    platform.release("ocis", fault)

    def settled() -> dict[str, Any] | None:
        try:
            return _active_and_settled(platform, slug)
        except Exception:
            return None  # the API itself may be the one that is away

    tenant = eventually("the tenant is active", settled)
    assert not_exactly_one(census(platform, tenant)) == {}
    assert f"{victim} ended with signal 9; restarted" in platform.log()
