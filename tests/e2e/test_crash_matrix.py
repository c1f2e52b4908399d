"""Whatever write is under way when something dies, the tenant converges and has exactly one of each object.

Every vendor write of a provisioning run meets three accidents: the worker is killed while the request is held before
it is done (it is done later all the same, as a zombie), while it is held after it was done, and the answer is lost.
One kill serves a whole column: each cell is a tenant of its own, held at its own write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from domain.ids import drive_alias, tenant_marker
from tests.support.census import census, doubled_catalog, not_exactly_one
from tests.support.platform import Platform, eventually, order

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

ACCIDENTS = {
    "hold_before": "killed, held before",
    "hold_after": "killed, held after",
    "lose_answer": "answer lost",
}
# A row of its own for each cell: whoever is first mints the product, the price is minted beside it.
PRODUCT_ROWS = {
    "hold_before": ("starter", "monthly"),
    "hold_after": ("starter", "yearly"),
    "lose_answer": ("enterprise", "monthly"),
}


@dataclass(frozen=True)
class Write:
    """One kind of write that provisioning sends to a vendor."""

    name: str
    step: str
    methods: str = "POST"
    contains: tuple[str, ...] = ()

    @property
    def vendor(self) -> str:
        return self.step.partition(".")[0]


WRITES = [
    Write("create group", "authentik.group"),
    Write("create user", "authentik.user"),
    Write("activate user", "authentik.user", methods="PATCH"),
    Write("add member", "authentik.member"),
    Write("create role", "stalwart.role", contains=('"x:Role/set"',)),
    Write("create domain", "stalwart.domain", contains=('"x:Domain/set"',)),
    Write("create mailbox", "stalwart.mailbox", contains=('"x:Account/set"',)),
    Write("remove role double", "stalwart.role_double.1", contains=('"x:Role/set"',)),
    Write("create files group", "ocis.group"),
    Write("create space", "ocis.space"),
    Write("set quota", "ocis.quota", methods="PATCH"),
    Write("invite group", "ocis.member"),
    Write("disable space double", "ocis.space_double.1", methods="DELETE"),
    Write("purge space double", "ocis.space_double.1", methods="DELETE"),
    Write("create customer", "stripe.customer"),
    Write("create product", "stripe.product"),
    Write("create price", "stripe.price"),
    Write("create subscription", "stripe.subscription"),
    Write("remove customer double", "stripe.customer_double.1", methods="DELETE"),
]


@dataclass
class Cell:
    """A tenant that meets an accident at one write."""

    write: Write
    accident: str
    slug: str
    body: dict[str, Any]
    fault: str = ""
    operation_id: str = ""
    tenant: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], str]:
    """What came of each cell."""
    return {}


@pytest.mark.parametrize("accident", list(ACCIDENTS))
def test_every_vendor_write_converges(
    platform: Platform, accident: str, results: dict[tuple[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cell ends with an active tenant, a completed operation and exactly one of each marked object."""
    cells = [_cell(platform, write, accident, number) for number, write in enumerate(WRITES)]
    with contextlib.ExitStack() as doubles:
        for cell in cells:
            cell.fault = _inject(platform, cell)
            releases = [_hold_for_double(platform, cell)] if "double" in cell.write.name else []
            _submit(platform, cell)
            for release in releases:
                doubles.callback(release)
    _wait_until_met(platform, cells)
    if accident != "lose_answer":
        platform.kill("worker")
        if accident == "hold_before":
            _wait_for_second_attempts(platform, cells)
        for cell in cells:
            platform.release(cell.write.vendor, cell.fault)
    for cell in cells:
        cell.outcome = _outcome(platform, cell)
        results[cell.write.name, accident] = cell.outcome
    with capsys.disabled():
        _print_table(results)
    assert [f"{cell.write.name}: {cell.outcome}" for cell in cells if cell.outcome != "converged"] == []
    assert doubled_catalog(platform) == []


def _cell(platform: Platform, write: Write, accident: str, number: int) -> Cell:
    slug = f"m{number}-{accident.replace('_', '-')}"
    body = order(slug)
    if write.name == "create product":
        body["plan"], body["cycle"] = PRODUCT_ROWS[accident]
    if write.name == "create price":
        body["plan"], body["cycle"], body["currency"] = *PRODUCT_ROWS[accident], "USD"
    if write.name == "set quota":
        _make_space(platform, slug, quota=1024)
    if write.name == "activate user":
        body["adminEmail"] = _inactive_admin(platform, slug)
    return Cell(write=write, accident=accident, slug=slug, body=body)


def _inject(platform: Platform, cell: Cell) -> str:
    write = cell.write
    needles = [f"tenant/{cell.slug}/", f"/{write.step}.", *write.contains]
    return platform.inject(write.vendor, cell.accident, method=write.methods, contains=needles)


def _submit(platform: Platform, cell: Cell) -> None:
    with platform.api() as http:
        answer = http.post("/tenants", json=cell.body)
        assert answer.status_code == 202, answer.text
        cell.operation_id = answer.json()["id"]
        cell.tenant = http.get(f"/tenants/{cell.slug}").json()


def _wait_until_met(platform: Platform, cells: list[Cell]) -> None:
    """Return when every cell's request has met its fault."""

    def met() -> bool:
        acted = {
            fault["id"]: fault["held"] == 1 if cells[0].accident != "lose_answer" else fault["acted"] == 1
            for vendor in ("authentik", "stalwart", "ocis", "stripe")
            for fault in platform.faults(vendor).values()
            if fault["id"] in {cell.fault for cell in cells if cell.write.vendor == vendor}
        }
        return all(acted.values())

    eventually("every cell has met its fault", met)


def _wait_for_second_attempts(platform: Platform, cells: list[Cell]) -> None:
    """Return when a newer attempt of every cell's step has begun, so that the held request is a true zombie."""

    def begun() -> bool:
        return all(_step(platform, cell)["attempts"] >= 2 for cell in cells)

    eventually("every step was tried again", begun)


def _step(platform: Platform, cell: Cell) -> dict[str, Any]:
    with platform.api("operator") as http:
        operation = http.get(f"/operations/{cell.operation_id}").json()
    steps = [step for step in operation["steps"] if step["name"].startswith(cell.write.step)]
    return next((step for step in steps if step["name"] in _names(cell)), {"attempts": 0})


def _names(cell: Cell) -> set[str]:
    return {cell.write.step, f"{cell.write.step}.{cell.slug}.example"}


def _outcome(platform: Platform, cell: Cell) -> str:
    """Wait for the end of a cell's operation and say what came of it."""

    def closed() -> dict[str, Any] | None:
        with platform.api("operator") as http:
            operation: dict[str, Any] = http.get(f"/operations/{cell.operation_id}").json()
        return operation if operation["closedAt"] is not None else None

    operation = eventually(f"{cell.write.name} ({cell.slug}) is closed", closed)
    if operation["state"] != "completed":
        return f"{operation['state']}: {operation['error']}"
    with platform.api("operator") as http:
        tenant = http.get(f"/tenants/{cell.slug}").json()
    if tenant["status"] != "active" or tenant["operation"] is not None:
        return f"tenant {tenant['status']}, lock held: {tenant['operation'] is not None}"
    if set(tenant["provisioningStatus"].values()) != {"ok"}:
        return f"systems {tenant['provisioningStatus']}"
    wrong = not_exactly_one(census(platform, tenant))
    if cell.write.name == "activate user":
        # The person has a mailbox and a place in the tenant they came from.
        wrong.pop("stalwart mailbox", None)
    return f"not exactly one: {wrong}" if wrong else "converged"


def _make_space(platform: Platform, slug: str, quota: int) -> str:
    body = {
        "name": f"Space {slug}",
        "driveAlias": drive_alias(slug),
        "description": tenant_marker(slug),
        "quota": {"total": quota},
    }
    with platform.standin("ocis") as http:
        return str(http.post("/graph/v1.0/drives", json=body).raise_for_status().json()["id"])


def _inactive_admin(platform: Platform, slug: str) -> str:
    """Return the address of somebody who is known here, and whose login an earlier suspension has shut."""
    body = order(f"{slug}-old")
    with platform.api() as http:
        answer = http.post("/tenants", json=body, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
    with platform.standin("authentik") as http:
        found = http.get("/api/v3/core/users/", params={"username": body["adminEmail"]}).json()["results"]
        http.patch(f"/api/v3/core/users/{found[0]['pk']}/", json={"is_active": False}).raise_for_status()
    return str(body["adminEmail"])


def _hold_for_double(platform: Platform, cell: Cell) -> Callable[[], None]:
    """Hold the create of which a double is to be made; the returned function makes it and lets the create go."""
    vendor = cell.write.vendor
    create = {"stalwart": "stalwart.role", "ocis": "ocis.space", "stripe": "stripe.customer"}[vendor]
    needles = [f"tenant/{cell.slug}/", f"/{create}.", *cell.write.contains]
    fault = platform.inject(vendor, "hold_before", method="POST", contains=needles)

    def finish() -> None:
        eventually(f"{create} of {cell.slug} is held", lambda: platform.faults(vendor)[fault]["held"] == 1)
        _make_double(platform, cell)
        platform.release(vendor, fault)

    return finish


def _make_double(platform: Platform, cell: Cell) -> None:
    """Make what a late attempt of an earlier run could have made."""
    with platform.standin(cell.write.vendor) as http:
        match cell.write.vendor:
            case "stalwart":
                call = ["x:Role/set", {"create": {"d": {"description": tenant_marker(cell.slug)}}}, "0"]
                body = {"using": ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"], "methodCalls": [call]}
                http.post("/jmap/", json=body).raise_for_status()
            case "ocis":
                space = _make_space(platform, cell.slug, quota=2048)
                if cell.write.name.startswith("purge"):
                    http.delete(f"/graph/v1.0/drives/{space}").raise_for_status()
            case _:
                form = {"name": "double", "metadata[dezkyTenantId]": cell.tenant["id"]}
                http.post("/v1/customers", data=form).raise_for_status()


def _print_table(results: dict[tuple[str, str], str]) -> None:
    columns = [accident for accident in ACCIDENTS if any(key[1] == accident for key in results)]
    print(f"\n\n{'write':<26}" + "".join(f"{ACCIDENTS[column]:<22}" for column in columns))
    for write in WRITES:
        cells = "".join(f"{results.get((write.name, column), '-'):<22}" for column in columns)
        print(f"{write.name:<26}{cells}")
