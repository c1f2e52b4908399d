"""ProvisionTenant: what waits for what, what a failure stops, and how long the lock is kept."""

from __future__ import annotations

from datetime import timedelta

import pytest

from domain.errors import ForeignObject, VendorRateLimited, VendorUnavailable
from domain.operations import OperationState
from domain.provisioning import ProvisionPlan
from tests.workflows.script import DOMAIN, PLAN, Script, Stage

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

MAIL_DOMAIN = f"stalwart.domain.{DOMAIN}"
DKIM = f"stalwart.dkim.{DOMAIN}"
# The steps that need a step, directly or not.
NEEDED_BY = {
    "authentik.group": {"authentik.member"},
    "authentik.user": {"authentik.member"},
    "authentik.member": set(),
    "stalwart.role": {"stalwart.mailbox"},
    MAIL_DOMAIN: {DKIM, "stalwart.mailbox"},
    DKIM: {"stalwart.mailbox"},
    "stalwart.mailbox": set(),
    "ocis.group": {"ocis.member"},
    "ocis.space": {"ocis.member"},
    "ocis.member": set(),
    "stripe.customer": {"stripe.subscription"},
    "stripe.product": {"stripe.price", "stripe.subscription"},
    "stripe.price": {"stripe.subscription"},
    "stripe.subscription": set(),
}
STEPS = set(NEEDED_BY)
EVERY_STEP = pytest.mark.parametrize("step", NEEDED_BY)
OUTAGE = timedelta(hours=5)


def outage(hours: float) -> VendorRateLimited:
    """An error of a vendor that is away for hours."""
    return VendorRateLimited("vendor", "away", retry_after=timedelta(hours=hours))


async def test_planned_steps() -> None:
    """The steps that these tests know are those that the plan shows to people."""
    assert set(PLAN.steps) == STEPS


async def test_happy_path(stage: Stage) -> None:
    """Every step is done once, the tenant is recorded without failure, and the operation completed."""
    script = await stage.play(Script())
    assert sorted(script.ended) == sorted(STEPS)
    assert script.outcome is not None
    assert script.outcome.failure is None
    assert (script.closed.state, script.closed.failure) == (OperationState.COMPLETED, None)


@EVERY_STEP
async def test_weather_for_hours(stage: Stage, step: str) -> None:
    """A step in an outage of hours holds up what needs it and nothing else, and then everything heals."""
    script = await stage.play(Script().fails(step, outage(5)))
    late = {name for name, begun in script.begun.items() if begun - min(script.begun.values()) >= OUTAGE}
    assert late == {step} | NEEDED_BY[step]
    assert set(script.ended) == STEPS
    assert script.closed.state is OperationState.COMPLETED


@EVERY_STEP
async def test_refused_for_good(stage: Stage, step: str) -> None:
    """A refused step ends what needs it; all others go to their end; the operation fails and names the step."""
    script = await stage.play(Script().fails(step, ForeignObject("vendor", "not ours")))
    assert set(script.ended) == STEPS - {step} - NEEDED_BY[step]
    assert script.outcome is not None
    failure = script.outcome.failure
    assert failure is not None
    assert (failure.step, failure.code) == (step, "foreign_object")
    assert (script.closed.state, script.closed.failure) == (OperationState.FAILED, failure)


async def test_refused_while_others_have_weather(stage: Stage) -> None:
    """A branch in an outage is not given up because another one was refused."""
    script = Script().fails("ocis.group", ForeignObject("ocis", "not ours")).fails("authentik.user", outage(5))
    await stage.play(script)
    assert "authentik.member" in script.ended
    assert script.closed.failure is not None
    assert script.closed.failure.step == "ocis.group"


async def test_many_attempts(stage: Stage) -> None:
    """Attempts that fail by the step's own backoff are repeated until one succeeds."""
    script = await stage.play(Script().fails("ocis.space", *[VendorUnavailable("ocis", "away")] * 8))
    assert script.ended.count("ocis.space") == 1
    assert script.closed.state is OperationState.COMPLETED


async def test_budget_spent(stage: Stage) -> None:
    """After a day of trying the step has failed, with the code of its last attempt."""
    script = await stage.play(Script().fails("ocis.space", *[outage(10)] * 5))
    assert len(script.attempts["ocis.space"]) == 2
    assert script.closed.failure is not None
    assert (script.closed.failure.step, script.closed.failure.code) == ("ocis.space", "vendor_rate_limited")
    assert script.closed.state is OperationState.FAILED


async def test_doubles_after_everything_has_settled(stage: Stage) -> None:
    """What was created more than once is looked at only when no attempt can write any more, and before the close."""
    script = await stage.play(Script(unsettled=timedelta(seconds=30), repeated=("ocis.space", "ocis.group")))
    assert script.settled_at is not None
    assert script.begun["ocis.space_double.1"] > script.settled_at
    ((_, closed_at, _),) = script.closes
    assert closed_at > script.begun["ocis.space_double.1"]
    assert {name for name in script.begun if name.endswith("_double.1")} == {"ocis.space_double.1"}


async def test_nothing_repeated_but_unsettled(stage: Stage) -> None:
    """The lock outlives every attempt that may write, also when nothing has to be looked at again."""
    script = await stage.play(Script(unsettled=timedelta(seconds=30)))
    ((_, closed_at, _),) = script.closes
    assert script.settled_at is not None
    assert closed_at > script.settled_at
    assert set(script.begun) == STEPS


@pytest.mark.parametrize("create", ["stalwart.role", "ocis.space", "stripe.customer"])
async def test_doubles_seen(stage: Stage, create: str) -> None:
    """Doubles that a create saw are removed, however few attempts it took."""
    script = await stage.play(Script(doubles=frozenset({create})))
    assert {name for name in script.begun if name.endswith("_double.1")} == {f"{create}_double.1"}


async def test_doubles_of_a_refused_create(stage: Stage) -> None:
    """A create that was refused left nothing to keep, so nothing is removed."""
    script = Script(repeated=("ocis.space",)).fails("ocis.space", outage(1), ForeignObject("ocis", "not ours"))
    await stage.play(script)
    assert "ocis.space_double.1" not in script.begun


async def test_doubles_cannot_be_removed(stage: Stage) -> None:
    """If removing doubles is refused, the operation has failed there: one of each is what it promises."""
    script = Script(doubles=frozenset({"ocis.space"})).fails("ocis.space_double.1", ForeignObject("ocis", "not ours"))
    await stage.play(script)
    assert script.closed.failure is not None
    assert script.closed.failure.step == "ocis.space_double.1"
    assert script.outcome is not None
    assert script.outcome.failure is None


async def test_first_failure_is_told(stage: Stage) -> None:
    """The failure that kept the tenant from turning active is told before one of the clean-up."""
    script = Script(doubles=frozenset({"ocis.space"}))
    for step in ("ocis.space_double.1", "authentik.group"):
        script.fails(step, ForeignObject("vendor", "not ours"))
    await stage.play(script)
    assert script.closed.failure is not None
    assert script.closed.failure.step == "authentik.group"


async def test_close_is_repeated(stage: Stage) -> None:
    """A close that comes too early is repeated after the time it was told, until the lock is released."""
    script = await stage.play(Script(not_yet=[timedelta(seconds=30), timedelta(seconds=15)]))
    times = [at for _, at, _ in script.closes]
    told = [until for _, _, until in script.closes if until is not None]
    assert len(script.closes) == 3
    assert all(at > until for at, until in zip(times[1:], told, strict=True))


@pytest.mark.parametrize(
    ("plan", "left_out"),
    [
        (
            ProvisionPlan(domains=[DOMAIN], mailbox_domain=DOMAIN, billing_enabled=False),
            {"stripe.customer", "stripe.product", "stripe.price", "stripe.subscription"},
        ),
        (ProvisionPlan(domains=[], mailbox_domain=None, billing_enabled=True), {MAIL_DOMAIN, DKIM, "stalwart.mailbox"}),
        (ProvisionPlan(domains=[DOMAIN], mailbox_domain=None, billing_enabled=True), {"stalwart.mailbox"}),
    ],
    ids=["billing dark", "no domains", "admin elsewhere"],
)
async def test_smaller_plans(stage: Stage, plan: ProvisionPlan, left_out: set[str]) -> None:
    """What the plan leaves out is not done, and the rest is."""
    script = await stage.play(Script(plan=plan))
    assert set(script.ended) == STEPS - left_out
    assert script.closed.state is OperationState.COMPLETED


async def test_quota_that_does_not_match(stage: Stage) -> None:
    """The quota is set only where it does not match, before the group may enter."""
    script = await stage.play(Script(quota_matches=False))
    assert set(script.ended) == STEPS | {"ocis.quota"}
    assert script.begun["ocis.quota"] < script.begun["ocis.member"]
