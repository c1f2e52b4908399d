"""A credential that one vendor refuses: nothing goes there any more, nobody else is held up, and all of it recovers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from domain.breakers import PACES
from domain.provisioning import RetryProfile
from sandbox.stack.layout import Ports
from tests.support.census import census, not_exactly_one
from tests.support.platform import Platform, eventually, order

pytestmark = pytest.mark.e2e

OTHERS = ("authentik", "ocis", "stripe")
CODES = {"vendor_auth_failed", "vendor_breaker_open"}
QUIET = {"pending", "parked", "done"}


@pytest.fixture
def database(platform: Platform) -> Iterator[Database[dict[str, Any]]]:
    """The platform's own database."""
    with MongoClient[dict[str, Any]](platform.facts["mongo"], tz_aware=True) as client:
        yield client[platform.facts["mongoDatabase"]]


def submit(platform: Platform, slug: str) -> str:
    with platform.api() as http:
        answer = http.post("/tenants", json=order(slug))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def operation_of(platform: Platform, operation_id: str) -> dict[str, Any]:
    with platform.api("operator") as http:
        found: dict[str, Any] = http.get(f"/operations/{operation_id}").json()
        return found


def tenant_of(platform: Platform, slug: str) -> dict[str, Any]:
    with platform.api() as http:
        found: dict[str, Any] = http.get(f"/tenants/{slug}").json()
        return found


def seen_since(platform: Platform, moment: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the probes and the other requests that reached Stalwart after a moment, in seconds since 1970."""
    with platform.standin("stalwart") as http:
        requests = [each for each in http.get("/_sandbox/requests").json()["items"] if each["at"] > moment]
    probes = [each for each in requests if each["requestId"] == "probe/stalwart"]
    return probes, [each for each in requests if each not in probes]


def gauge(platform: Platform, vendor: str) -> float | None:
    """Return what the worker's metrics say of a breaker."""
    port = Ports(platform.port_base).worker_metrics
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.TransportError:
        return None
    lines = [line for line in text.splitlines() if line.startswith("dezky_vendor_breaker_open{")]
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if f'vendor="{vendor}"' in line), None)


def test_a_refused_credential(platform: Platform, database: Database[dict[str, Any]]) -> None:
    """After the first refusal is recorded no call begins, what needs that vendor parks, and all recovers untouched.

    Whatever else is on its way to Stalwart at that moment is held there: three of the four calls that the worker
    makes at a time. So a request that arrives after the recorded time of the refusal was begun after it.
    """
    held, late = ["breaker-a", "breaker-b", "breaker-c"], ["breaker-d", "breaker-e", "breaker-f"]
    slugs = [*held, *late]
    holds = [platform.inject("stalwart", "hold_before", contains=[f"tenant/{slug}/"]) for slug in held]
    operations = {slug: submit(platform, slug) for slug in held}
    eventually("three calls are held", lambda: all(platform.faults("stalwart")[each]["held"] == 1 for each in holds))
    refusal = platform.inject("stalwart", "status", times=None, status=401, body='{"type":"about:blank","status":401}')
    operations |= {slug: submit(platform, slug) for slug in late}
    breaker = eventually(
        "the breaker is open", lambda: database["breakers"].find_one({"_id": "stalwart", "state": "open"})
    )
    opened_at = breaker["openedAt"].timestamp()
    for each in holds:
        platform.release("stalwart", each)

    def all_parked() -> list[dict[str, Any]]:
        found = [operation_of(platform, each) for each in operations.values()]
        mail = [step for each in found for step in each["steps"] if step["name"].startswith("stalwart.")]
        quiet = {step["state"] for step in mail} <= QUIET
        return mail if quiet and all(each["state"] == "needsOperator" for each in found) else []

    mail = eventually("everything that needs Stalwart is parked", all_parked)
    codes = [step["lastError"]["code"] for step in mail if step["state"] == "parked"]
    assert len(codes) >= len(slugs)
    assert set(codes) <= CODES
    assert codes.count("vendor_auth_failed") == 1

    def others_done() -> bool:
        states = [tenant_of(platform, slug)["provisioningStatus"] for slug in slugs]
        return all(state[system] == "ok" for state in states for system in OTHERS)

    eventually("the other systems are done", others_done)
    assert {tenant_of(platform, slug)["provisioningStatus"]["stalwart"] for slug in slugs} == {"error"}
    eventually("the metric says so", lambda: gauge(platform, "stalwart") == 1)
    assert gauge(platform, "ocis") == 0

    platform.kill("worker")
    eventually("the new worker probes", lambda: gauge(platform, "stalwart") == 1)
    eventually("four probes", lambda: len(seen_since(platform, opened_at)[0]) >= 4)
    probes, calls = seen_since(platform, opened_at)
    assert calls == []
    assert platform.faults("stalwart")[refusal]["acted"] == 1 + len(probes)
    times = [opened_at, *(probe["at"] for probe in probes)]
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    pace = PACES[RetryProfile.FAST]
    for number, pause in enumerate(pauses):
        assert pause >= pace.pause("stalwart", number).total_seconds() - 0.001

    platform.release("stalwart", refusal)

    def settled() -> list[dict[str, Any]]:
        tenants = [tenant_of(platform, slug) for slug in slugs]
        done = all(tenant["status"] == "active" and tenant["operation"] is None for tenant in tenants)
        return tenants if done else []

    for tenant in eventually("all are active", settled):
        assert not_exactly_one(census(platform, tenant)) == {}
    eventually("the metric says so", lambda: gauge(platform, "stalwart") == 0)

    events = list(database["audit_events"].find({"resource": {"type": "vendor", "id": "stalwart"}}).sort("at", 1))
    assert [event["action"] for event in events] == ["vendor.breaker_opened", "vendor.breaker_closed"]
    retries = list(
        database["audit_events"].find(
            {"action": "operation.retry_requested", "operationId": {"$in": list(operations.values())}}
        )
    )
    assert {event["operationId"] for event in retries} == set(operations.values())
    assert {(event["actor"]["type"], event["actor"]["id"]) for event in retries} == {("system", "breaker")}
