"""ProvisionTenant: what waits for what, and how long the lock is kept."""

from __future__ import annotations

from datetime import timedelta

import pytest

from domain.errors import VendorRateLimited, VendorUnavailable
from domain.operations import OperationState
from domain.provisioning import ProvisionPlan
from tests.workflows.script import DKIM, DOMAIN, MAIL_DOMAIN, NEEDED_BY, PLAN, STEPS, Script, Stage

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

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


async def test_many_attempts(stage: Stage) -> None:
    """Attempts that fail by the step's own backoff are repeated until one succeeds."""
    script = await stage.play(Script().fails("ocis.space", *[VendorUnavailable("ocis", "away")] * 8))
    assert script.ended.count("ocis.space") == 1
    assert script.closed.state is OperationState.COMPLETED


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
