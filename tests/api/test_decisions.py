"""Retry, skip and cancel: who may decide, about what, and that an accepted decision is kept and told once."""

from __future__ import annotations

from typing import Any

import pytest

from domain.operations import Decision, DecisionAction, Failure, Operation, OperationState, Step, StepState, step_key
from runtime.clock import new_id, utcnow
from runtime.wiring import Store
from tests.api.client import Api, assert_problem, nothing_changes
from tests.store.builders import build_operation, build_tenant, keep

pytestmark = pytest.mark.asyncio

PARKED = ("ocis.space", "stripe.customer")
REFUSED = Failure(code="foreign_object", message="not ours")
CANCEL = "/cancel"
ALL = "/retry"
ONE = "/steps/ocis.space/retry"
SKIP = "/steps/ocis.space/skip"
EVERY = pytest.mark.parametrize("what", [CANCEL, ALL, ONE, SKIP])


async def parked(store: Store, **changes: Any) -> Operation:
    """Keep an operation of which two steps wait for a decision, and whose workflow was never started."""
    steps = {step_key(name): Step(name=name, state=StepState.PARKED, attempts=1, last_error=REFUSED) for name in PARKED}
    steps[step_key("ocis.group")] = Step(name="ocis.group", state=StepState.DONE, attempts=1)
    fields: dict[str, Any] = {"steps": steps, "state": OperationState.NEEDS_OPERATOR, **changes}
    operation = build_operation(**fields)
    await keep(store, "tenants", build_tenant())
    await keep(store, "operations", operation)
    return operation


async def reread(store: Store, operation: Operation) -> Operation:
    found = await store.operations.get(operation.id)
    assert found is not None
    return found


async def events(store: Store, operation: Operation) -> list[tuple[str, str, str | None, str | None]]:
    """Return action, actor, reason and steps of the operation's events."""
    found = await store.audit.find({"operationId": operation.id})
    return [(each.action, each.actor.type.value, each.reason, str(each.metadata.get("steps"))) for each in found]


@EVERY
@pytest.mark.parametrize("who", ["nordic", "member"])
async def test_only_operators(api: Api, store: Store, what: str, who: str) -> None:
    """Whoever is no operator decides nothing, not even about their own tenant."""
    operation = await parked(store)
    async with nothing_changes(store):
        response = await api.post(f"/operations/{operation.id}{what}", who)
    assert_problem(response, 403, "operator_only")


@EVERY
async def test_nobody(api: Api, store: Store, what: str) -> None:
    """Without a token nothing is decided."""
    operation = await parked(store)
    async with nothing_changes(store):
        response = await api.post(f"/operations/{operation.id}{what}", None)
    assert_problem(response, 401, "unauthenticated")


@pytest.mark.parametrize(
    ("what", "action", "steps"),
    [
        (CANCEL, DecisionAction.CANCEL, []),
        (ALL, DecisionAction.RETRY, list(PARKED)),
        (ONE, DecisionAction.RETRY, ["ocis.space"]),
        (SKIP, DecisionAction.SKIP, ["ocis.space"]),
    ],
    ids=["cancel", "retry all", "retry one", "skip"],
)
async def test_is_kept(api: Api, store: Store, what: str, action: DecisionAction, steps: list[str]) -> None:
    """A decision is kept until its workflow has acted upon it, and has one event with its reason."""
    operation = await parked(store)
    response = await api.post(f"/operations/{operation.id}{what}", "operator", json={"reason": "quota was raised"})
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/operations/{operation.id}"
    (kept,) = (await reread(store, operation)).decisions
    assert (kept.action, kept.steps) == (action, steps)
    assert [each["id"] for each in response.json()["decisions"]] == [kept.id]
    assert await events(store, operation) == [
        (f"operation.{action.value}_requested", "operator", "quota was raised", ", ".join(steps) if steps else "None")
    ]


@EVERY
async def test_without_a_body(api: Api, store: Store, what: str) -> None:
    """A reason is not asked for."""
    operation = await parked(store)
    response = await api.post(f"/operations/{operation.id}{what}", "operator")
    assert response.status_code == 202, response.text


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain", None])
@EVERY
async def test_an_empty_body_is_none(api: Api, store: Store, what: str, content_type: str | None) -> None:
    """Whatever a client declares about nothing."""
    operation = await parked(store)
    headers = {"Content-Type": content_type} if content_type is not None else {}
    response = await api.post(f"/operations/{operation.id}{what}", "operator", content=b"", headers=headers)
    assert response.status_code == 202, response.text


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"json": {"because": "x"}}, 422, "invalid"),
        ({"json": {"reason": ""}}, 422, "invalid"),
        ({"json": ["reason"]}, 422, "invalid"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed"),
        ({"content": b"reason=x"}, 415, "unsupported_media_type"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"params": {"dryRun": "true"}}, 400, "not_supported"),
        ({"headers": {"If-Plan-Match": "x"}}, 400, "not_supported"),
        ({"params": {"force": "1"}}, 400, "unknown_parameter"),
        ({"headers": {"Idempotency-Key": "with a space"}}, 400, "idempotency_key_malformed"),
    ],
)
@EVERY
async def test_bad_requests(api: Api, store: Store, what: str, options: dict[str, Any], status: int, code: str) -> None:
    """A request that is not understood decides nothing."""
    operation = await parked(store)
    async with nothing_changes(store):
        response = await api.post(f"/operations/{operation.id}{what}", "operator", **options)
    assert_problem(response, status, code)


@EVERY
async def test_no_such_operation(api: Api, store: Store, what: str) -> None:
    """Of what does not exist nothing is decided."""
    async with nothing_changes(store):
        assert_problem(await api.post(f"/operations/{new_id()}{what}", "operator"), 404, "not_found")


@pytest.mark.parametrize("action", ["retry", "skip"])
@pytest.mark.parametrize(
    ("step", "status", "code"),
    [("ocis.group", 409, "step_not_parked"), ("ocis.other", 404, "not_found"), ("ocis/space", 404, "not_found")],
)
async def test_steps_that_do_not_wait(api: Api, store: Store, action: str, step: str, status: int, code: str) -> None:
    """Only a parked step can be decided about."""
    operation = await parked(store)
    async with nothing_changes(store):
        response = await api.post(f"/operations/{operation.id}/steps/{step}/{action}", "operator")
    assert_problem(response, status, code)


@pytest.mark.parametrize("second", [ALL, ONE, SKIP])
async def test_decided_already(api: Api, store: Store, second: str) -> None:
    """What a decision is on its way about is not decided twice; the other steps still are."""
    operation = await parked(store)
    await api.post(f"/operations/{operation.id}{SKIP}", "operator")
    response = await api.post(f"/operations/{operation.id}{second}", "operator")
    if second == ALL:
        assert [each["steps"] for each in response.json()["decisions"]] == [["ocis.space"], ["stripe.customer"]]
        response = await api.post(f"/operations/{operation.id}{second}", "operator")
    assert_problem(response, 409, "step_not_parked")


@pytest.mark.parametrize(
    "state", [OperationState.COMPLETED, OperationState.FAILED, OperationState.CANCELED, OperationState.TERMINATED]
)
@EVERY
async def test_what_has_ended(api: Api, store: Store, what: str, state: OperationState) -> None:
    """An operation that has ended cannot be moved any more."""
    operation = await parked(store, open=False, state=state, closed_at=utcnow())
    async with nothing_changes(store):
        response = await api.post(f"/operations/{operation.id}{what}", "operator")
    assert_problem(response, 409, "not_cancelable" if what == CANCEL else "step_not_parked")


async def test_outcome_stands(api: Api, store: Store) -> None:
    """An operation whose outcome stands cannot be canceled, though it is still open; its steps can be decided about."""
    operation = await parked(store, settled_at=utcnow())
    async with nothing_changes(store):
        assert_problem(await api.post(f"/operations/{operation.id}{CANCEL}", "operator"), 409, "not_cancelable")
    assert (await api.post(f"/operations/{operation.id}{SKIP}", "operator")).status_code == 202


async def test_canceled_twice(api: Api, store: Store) -> None:
    """To cancel what is being canceled changes nothing, and is no mistake."""
    operation = await parked(store)
    await api.post(f"/operations/{operation.id}{CANCEL}", "operator")
    async with nothing_changes(store):
        response = await api.post(f"/operations/{operation.id}{CANCEL}", "operator")
    assert response.status_code == 202
    assert response.json()["cancelRequestedAt"] is not None


@EVERY
async def test_repeated_with_a_key(api: Api, store: Store, what: str) -> None:
    """The same request under one key is one decision, and gets the same answer."""
    operation = await parked(store)
    headers = {"Idempotency-Key": new_id()}
    first = await api.post(f"/operations/{operation.id}{what}", "operator", headers=headers)
    async with nothing_changes(store):
        second = await api.post(f"/operations/{operation.id}{what}", "operator", headers=headers)
    assert (second.status_code, second.json()) == (202, first.json())
    assert second.headers["Idempotency-Replayed"] == "true"


async def test_partners_read_decisions(api: Api, store: Store) -> None:
    """A partner sees that something was decided about its tenant's job, in no vendor's words."""
    decision = Decision(id=new_id(), action=DecisionAction.RETRY, steps=["ocis.space"], at=utcnow())
    tenant = build_tenant(partner_id="nordic", partner_slug="nordic")
    operation = await parked(store, decisions=[decision])
    await store.database.collection("tenants").update_one(
        {"slug": tenant.slug},
        {"$set": {"partnerId": (await store.partners.by_slug("nordic")).id}},  # type: ignore[union-attr]
    )
    seen = (await api.get(f"/operations/{operation.id}", "nordic")).json()
    assert [each["action"] for each in seen["decisions"]] == ["retry"]
    assert "not ours" not in str(seen)
