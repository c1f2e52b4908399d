"""Canceled during each step of a provision: nothing of the tenant is left anywhere, and its names are as promised.

Every vendor write is held while the cancel comes: before it is done, so that it is done later as a zombie's, and after
it was done, so that nobody has heard of it. One cancel serves a whole column: each cell is a tenant of its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.census import census, leftovers, not_exactly_one
from tests.support.platform import Platform, eventually, order

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# (step, method, part of the body)
WRITES = [
    ("authentik.group", "POST", ""),
    ("authentik.user", "POST", ""),
    ("authentik.member", "POST", ""),
    ("stalwart.role", "POST", '"x:Role/set"'),
    ("stalwart.domain", "POST", '"x:Domain/set"'),
    ("stalwart.mailbox", "POST", '"x:Account/set"'),
    ("ocis.group", "POST", ""),
    ("ocis.space", "POST", ""),
    ("ocis.member", "POST", ""),
    ("stripe.customer", "POST", ""),
    ("stripe.subscription", "POST", ""),
]
UNDOING = [
    ("authentik.group_undo", "DELETE", ""),
    ("authentik.user_undo", "DELETE", ""),
    ("authentik.member_undo", "POST", ""),
    ("stalwart.role_undo", "POST", '"x:Role/set"'),
    ("stalwart.domain_undo", "POST", '"x:Domain/set"'),
    ("stalwart.mailbox_undo", "POST", '"x:Account/set"'),
    ("ocis.group_undo", "DELETE", ""),
    ("ocis.space_undo", "DELETE", ""),
    ("stripe.customer_undo", "DELETE", ""),
    ("stripe.subscription_undo", "DELETE", ""),
]

HELD = {"hold_before": "held before", "hold_after": "held after"}
ACCIDENTS = {
    "hold_before": "killed, held before",
    "hold_after": "killed, held after",
    "lose_answer": "answer lost",
}
# As each of them would say it.
REFUSAL = '{"error": {"type": "invalid_request_error", "code": "refused", "message": "no"}}'


@dataclass
class Cell:
    """A tenant that is canceled during one step."""

    step: str
    slug: str
    fault: str
    operation_id: str
    tenant: dict[str, Any]
    outcome: str = ""

    @property
    def vendor(self) -> str:
        return self.step.partition(".")[0]

    @property
    def admin(self) -> str:
        return f"admin@{self.slug}.example"


def submit(platform: Platform, slug: str, step: str, **fault: Any) -> Cell:
    """Order a tenant that meets a fault at one step."""
    vendor = step.partition(".")[0]
    contains = [f"tenant/{slug}/", f"/{step}.", *filter(None, [fault.pop("part", "")])]
    identifier = platform.inject(vendor, fault.pop("action"), contains=contains, **fault)
    with platform.api() as http:
        answer = http.post("/tenants", json=order(slug))
        assert answer.status_code == 202, answer.text
        tenant = http.get(f"/tenants/{slug}").json()
    return Cell(step, slug, identifier, answer.json()["id"], tenant)


def submit_undoing(platform: Platform, name: str, **fault: Any) -> list[Cell]:
    """Order a tenant for each removal, which meets a fault at it once the tenant is canceled."""
    cells = []
    for number, (step, method, part) in enumerate(UNDOING):
        slug = f"u{number}-{name}"
        # One of its steps parks, so that everything else is made and it can still be canceled.
        needles = [f"tenant/{slug}/", "/ocis.member."]
        platform.inject("ocis", "status", status=400, method="POST", contains=needles)
        cells.append(submit(platform, slug, step, method=method, part=part, **fault))
    return cells


def cancel_made(platform: Platform, cells: list[Cell]) -> None:
    """Cancel each tenant once all but the parked step of it is made."""
    for cell in cells:
        eventually(f"all of {cell.slug} is made", functools.partial(_all_but_one_made, platform, cell))
        cancel(platform, cell)


def conclude(
    platform: Platform, cells: list[Cell], title: str, columns: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Wait for the end of every cell, print what came of them, and see that nothing is left."""
    for cell in cells:
        cell.outcome = outcome(platform, cell)
    with capsys.disabled():
        print("\n\n" + f"{title:<26}" + "".join(f"{each:<22}" for each in columns))
        for step in dict.fromkeys(cell.step for cell in cells):
            print(f"{step:<26}" + "".join(f"{cell.outcome:<22}" for cell in cells if cell.step == step))
    assert [f"{cell.slug} {cell.step}: {cell.outcome}" for cell in cells if cell.outcome != "nothing left"] == []


def cancel(platform: Platform, cell: Cell) -> None:
    """Cancel a cell's job, as an operator does."""
    with platform.api("operator") as http:
        answer = http.post(f"/operations/{cell.operation_id}/cancel", json={"reason": "ordered by mistake"})
        assert answer.status_code == 202, answer.text


def operation(platform: Platform, cell: Cell) -> dict[str, Any]:
    """Return a cell's operation as an operator reads it."""
    with platform.api("operator") as http:
        found: dict[str, Any] = http.get(f"/operations/{cell.operation_id}").json()
        return found


def closed(platform: Platform, cell: Cell) -> dict[str, Any]:
    """Return a cell's operation once it has ended."""

    def ended() -> dict[str, Any] | None:
        found = operation(platform, cell)
        return found if found["closedAt"] is not None else None

    found: dict[str, Any] = eventually(f"{cell.step} ({cell.slug}) is closed", ended)
    return found


def outcome(platform: Platform, cell: Cell) -> str:
    """Say what came of a canceled tenant."""
    ended = closed(platform, cell)
    if (ended["state"], ended["error"]) != ("canceled", None):
        return f"{ended['state']}: {ended['error']}"
    with platform.api("operator") as http:
        tenant = http.get(f"/tenants/{cell.slug}").json()
    if (tenant["status"], tenant["domains"], tenant["operation"], tenant["resources"]) != ("abandoned", [], None, {}):
        return f"tenant {tenant['status']}, domains {tenant['domains']}, resources {tenant['resources']}"
    left = leftovers(platform, cell.tenant, cell.admin)
    if left:
        return f"left: {left}"
    undone = {step["name"]: step["state"] for step in ended["steps"]}
    wrong = {
        name: state for name, state in undone.items() if state in ("running", "retrying", "parked", "compensating")
    }
    return f"steps {wrong}" if wrong else "nothing left"


def test_canceled_during_each_write(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever write is under way: once it cannot come any more, all is undone, and the domain is free again."""
    cells = [
        submit(platform, f"c{number}-{action.replace('_', '-')}", step, action=action, method=method, part=part)
        for action in HELD
        for number, (step, method, part) in enumerate(WRITES)
    ]
    for cell in cells:
        eventually(f"{cell.step} is held", functools.partial(_held, platform, cell))
        cancel(platform, cell)
    for cell in cells:
        # The request was given up by then: what it does now it does behind our back.
        eventually(f"{cell.step} is being undone", functools.partial(_undoing, platform, cell))
        platform.release(cell.vendor, cell.fault)
    conclude(platform, cells, "canceled during", list(HELD.values()), capsys)
    _names_are_as_promised(platform, cells[0])


def test_a_refused_undoing_keeps_the_job(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """A removal that is refused waits for an operator, and the job is canceled only once it is done."""
    refusal = {"status": 400, "body": REFUSAL, "content_type": "application/json", "times": None}
    cells = submit_undoing(platform, "refused", action="status", **refusal)
    cancel_made(platform, cells)
    for cell in cells:
        eventually(f"{cell.step} is parked", functools.partial(_parked, platform, cell))
    for cell in cells:
        assert operation(platform, cell)["state"] == "needsOperator"
        platform.release(cell.vendor, cell.fault)
        with platform.api("operator") as http:
            assert http.post(f"/operations/{cell.operation_id}/retry").status_code == 202
    conclude(platform, cells, "removal", ["refused, then retried"], capsys)


def test_accidents_while_undoing(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever removal is under way when the worker dies, or its answer is lost: nothing is left in the end."""
    cells = [
        cell for accident in ACCIDENTS for cell in submit_undoing(platform, accident.replace("_", "-"), action=accident)
    ]
    cancel_made(platform, cells)
    for cell in cells:
        eventually(f"{cell.step} has met its fault", functools.partial(_met, platform, cell))
    platform.kill("worker")
    for cell in cells:
        if "hold-before" in cell.slug:
            # A newer attempt has begun: what is held is done as a zombie's.
            eventually(f"{cell.step} is tried again", functools.partial(_tried_again, platform, cell))
        platform.release(cell.vendor, cell.fault)
    conclude(platform, cells, "removal", list(ACCIDENTS.values()), capsys)


def test_a_person_with_another_tenant_stays(platform: Platform) -> None:
    """The first admin of two tenants keeps their login when one of the two is canceled."""
    with platform.api() as http:
        assert http.post("/tenants", json=order("kept-one"), headers={"Prefer": "wait=30"}).status_code == 200
    hold = platform.inject("ocis", "hold_before", method="POST", contains=["tenant/dropped-one/", "/ocis.space."])
    with platform.api() as http:
        body = order("dropped-one", adminEmail="admin@kept-one.example")
        identifier = http.post("/tenants", json=body).json()["id"]
        tenant = http.get("/tenants/dropped-one").json()
    cell = Cell("ocis.space", "dropped-one", hold, identifier, tenant)
    eventually("the space is held", lambda: platform.faults("ocis")[hold]["held"] == 1)
    cancel(platform, cell)
    eventually("it is being undone", lambda: _undoing(platform, cell))
    platform.release("ocis", hold)
    assert outcome(platform, cell) == "nothing left"
    with platform.api() as http:
        kept = http.get("/tenants/kept-one").json()
    assert not_exactly_one(census(platform, kept)) == {}


def _undoing(platform: Platform, cell: Cell) -> dict[str, Any] | None:
    found = operation(platform, cell)
    return found if any(step["state"] in ("compensating", "compensated") for step in found["steps"]) else None


def _held(platform: Platform, cell: Cell) -> bool:
    return bool(platform.faults(cell.vendor)[cell.fault]["held"] == 1)


def _met(platform: Platform, cell: Cell) -> bool:
    fault = platform.faults(cell.vendor)[cell.fault]
    return bool(fault["acted"] == 1 if "lose-answer" in cell.slug else fault["held"] == 1)


def _tried_again(platform: Platform, cell: Cell) -> bool:
    steps = {step["name"]: step for step in operation(platform, cell)["steps"]}
    return bool(steps[_name(cell)]["attempts"] >= 2)


def _parked(platform: Platform, cell: Cell) -> bool:
    return _states(platform, cell)[_name(cell)] == "parked"


def _states(platform: Platform, cell: Cell) -> dict[str, str]:
    steps = operation(platform, cell)["steps"]
    return {_name(cell): "pending", **{step["name"]: step["state"] for step in steps}}


def _name(cell: Cell) -> str:
    return f"{cell.step}.{cell.slug}.example" if cell.step == "stalwart.domain_undo" else cell.step


def _all_but_one_made(platform: Platform, cell: Cell) -> bool:
    states = _states(platform, cell)
    del states[_name(cell)]
    return states.pop("ocis.member", None) == "parked" and set(states.values()) == {"done"}


def _names_are_as_promised(platform: Platform, cell: Cell) -> None:
    """The domain may be claimed by another tenant, the slug never again."""
    with platform.api() as http:
        again = http.post("/tenants", json=order(cell.slug))
        assert (again.status_code, again.json()["code"]) == (409, "slug_taken")
        body = {**order(f"{cell.slug}-heir"), "domains": [f"{cell.slug}.example"], "adminEmail": cell.admin}
        heir = http.post("/tenants", json=body, headers={"Prefer": "wait=30"})
        assert (heir.status_code, heir.json()["state"]) == (200, "completed"), heir.text
