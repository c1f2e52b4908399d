"""Steps: what they say of themselves, of their system, and of what may still be written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain.audit import step_event_id
from domain.catalog import Currency, Cycle
from domain.operations import Attempt, Failure, Fence, Step, StepState, step_key, system_of
from domain.provisioning import ProvisionPlan, keeper
from domain.seeds import PLANS, PRICES
from domain.tenants import OUR_WORDS, SystemStatus, our_words, system_state
from tests.store.builders import build_operation

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)


def attempt(deadline: datetime = LATER, ended_at: datetime | None = None) -> Attempt:
    return Attempt(fence=Fence(scheduled_at=NOW, number=1), started_at=NOW, deadline=deadline, ended_at=ended_at)


def step(state: StepState, code: str | None = None, name: str = "ocis.space", retry: datetime | None = None) -> Step:
    error = Failure(code=code, message="vendor's words") if code is not None else None
    return Step(name=name, state=state, last_error=error, next_retry_at=retry, attempts=2)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], "pending"),
        ([step(StepState.PENDING)], "pending"),
        ([step(StepState.RUNNING)], "pending"),
        ([step(StepState.DONE)], "ok"),
        ([step(StepState.SKIPPED)], "skipped"),
        ([step(StepState.DONE), step(StepState.SKIPPED, name="ocis.member")], "skipped"),
        ([step(StepState.PENDING, "foreign_object")], "pending"),
        ([step(StepState.COMPENSATING)], "pending"),
        ([step(StepState.DONE, "vendor_unavailable")], "ok"),
        ([step(StepState.DONE), step(StepState.PENDING, name="ocis.member")], "pending"),
        ([step(StepState.RETRYING, "vendor_unavailable")], "error"),
        ([step(StepState.RUNNING, "vendor_unavailable")], "error"),
        ([step(StepState.PARKED, "budget_spent")], "error"),
        ([step(StepState.FAILED, "foreign_object")], "error"),
        ([step(StepState.FAILED)], "error"),
        ([step(StepState.RETRYING, "not_ready_yet")], "pending"),
        ([step(StepState.FAILED, "not_ready_yet")], "error"),
        ([step(StepState.FAILED, "vendor_rejected", name="stalwart.role")], "pending"),
    ],
)
def test_the_state_of_a_system(steps: list[Step], expected: str) -> None:
    """A system is in error while one of its own steps fails, and ok once all are finished."""
    status, failure = system_state(steps, "ocis")
    assert status == SystemStatus(expected)
    assert (failure is not None) is (status is SystemStatus.ERROR)


def test_what_will_not_heal_is_told_first_in_our_words() -> None:
    """Of several failing steps the one that waits for a person is shown, without the vendor's text."""
    retried = step(StepState.RETRYING, "vendor_unavailable", name="ocis.group", retry=LATER)
    final = step(StepState.FAILED, "foreign_object", name="ocis.space")
    _, failure = system_state([retried, final], "ocis")
    assert failure is not None
    assert (failure.code, failure.message) == ("foreign_object", OUR_WORDS["foreign_object"])
    assert "vendor's words" not in our_words("some_new_code")


def test_lost_is_derived() -> None:
    """A running attempt is lost once its deadline has passed, and only then."""
    running = Step(name="ocis.space", state=StepState.RUNNING, attempt=attempt())
    assert running.state_at(LATER) is StepState.RUNNING
    assert running.state_at(LATER + timedelta(milliseconds=1)) is StepState.LOST
    done = running.model_copy(update={"state": StepState.DONE})
    assert done.state_at(LATER + timedelta(days=1)) is StepState.DONE


@pytest.mark.parametrize(
    ("tested", "expected"),
    [
        (Step(name="a.b"), None),
        (Step(name="a.b", attempt=attempt()), LATER),
        (Step(name="a.b", attempt=attempt(ended_at=NOW)), None),
        (Step(name="a.b", attempt=attempt(ended_at=NOW), unsettled_until=LATER), LATER),
        (Step(name="a.b", attempt=attempt(deadline=NOW), unsettled_until=LATER), LATER),
    ],
)
def test_how_long_a_step_may_still_write(tested: Step, expected: datetime | None) -> None:
    """Until the latest deadline of an attempt whose end is not known."""
    assert tested.may_write_until == expected
    operation = build_operation(steps={"a/b": tested, "c/d": Step(name="c.d", unsettled_until=NOW)})
    assert operation.unsettled_until == (expected or NOW)


def test_step_names() -> None:
    """A step's key is no path in MongoDB, its system is its first word, its event has one id."""
    assert step_key("stalwart.dkim.example.org") == "stalwart/dkim/example/org"
    assert system_of("stalwart.dkim.example.org") == "stalwart"
    assert step_event_id("01OP", "ocis.space", "files.space_created") == "01OP:ocis.space:files.space_created"
    operation = build_operation(steps={"ocis/space": Step(name="ocis.space", attempts=3)})
    assert operation.step("ocis.space").attempts == 3
    assert operation.step("ocis.group").state is StepState.PENDING


@pytest.mark.parametrize(
    ("known", "in_use", "kept"),
    [
        (None, None, "a"),
        ("b", None, "b"),
        ("b", "c", "b"),
        (None, "c", "c"),
        ("gone", "c", "c"),
        ("gone", "gone", "a"),
    ],
)
def test_of_doubles_every_attempt_keeps_the_same(known: str | None, in_use: str | None, kept: str) -> None:
    """The known one, else the one in use, else the smallest id, in whatever order they were listed."""
    for listed in (["c", "a", "b"], ["b", "c", "a"]):
        assert keeper(listed, known=known, in_use=in_use) == kept


def test_a_plan_shows_what_will_run() -> None:
    """Steps that will not run are not planned."""
    full = ProvisionPlan(domains=["a.org", "b.org"], mailbox_domain="a.org", billing_enabled=True).steps
    bare = ProvisionPlan(domains=[], mailbox_domain=None, billing_enabled=False).steps
    assert {"stalwart.dkim.b.org", "stalwart.mailbox", "stripe.subscription"} <= set(full)
    assert {system_of(name) for name in bare} == {"authentik", "stalwart", "ocis"}
    assert len(set(full)) == len(full)


def test_every_plan_is_sold_in_every_way() -> None:
    """The catalog has a row per plan and cycle, each in every currency, a year for ten months."""
    assert {(each.plan, each.cycle) for each in PRICES} == {(plan.key, cycle) for plan in PLANS for cycle in Cycle}
    assert len({each.id for each in PRICES}) == len(PRICES)
    monthly = {each.plan: each.amounts for each in PRICES if each.cycle is Cycle.MONTHLY}
    yearly = {each.plan: each.amounts for each in PRICES if each.cycle is Cycle.YEARLY}
    for plan, amounts in monthly.items():
        assert set(amounts) == set(Currency)
        assert yearly[plan] == {currency: amount * 10 for currency, amount in amounts.items()}
