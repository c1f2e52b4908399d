"""What holds for every step: repeatable, safe against a lost answer, silent about people, and its failures recorded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from domain.operations import StepState
from tests.activities.conftest import House

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@dataclass(frozen=True)
class Case:
    """A step that writes outside, what must be there before it, and where its object is found."""

    step: str
    activity: str
    vendor: str
    kind: str
    before: tuple[str, ...] = ()
    write: str = "POST"
    path: str | None = None
    contains: str | None = None
    key: str | None = None

    @property
    def write_spec(self) -> dict[str, object]:
        """The fields of a fault that meets just the write."""
        spec: dict[str, object] = {"method": self.write}
        if self.path is not None:
            spec["path"] = self.path
        if self.contains is not None:
            spec["contains"] = [self.contains]
        return spec


CASES = {
    case.activity: case
    for case in (
        Case("authentik.group", "ensure_login_group", "authentik", "groups", key="authentikGroupId"),
        Case("authentik.user", "ensure_login_user", "authentik", "users"),
        Case(
            "authentik.member", "ensure_login_membership", "authentik", "users",
            before=("ensure_login_group", "ensure_login_user"), path="add_user",
        ),
        Case("stalwart.role", "ensure_mail_role", "stalwart", "roles", contains="x:Role/set", key="stalwartRoleId"),
        Case("stalwart.domain.{domain}", "ensure_mail_domain", "stalwart", "domains", contains="x:Domain/set"),
        Case(
            "stalwart.mailbox", "ensure_mailbox", "stalwart", "accounts",
            before=("ensure_mail_role", "ensure_mail_domain"), contains="x:Account/set", key="stalwartMailboxId",
        ),
        Case("ocis.group", "ensure_files_group", "ocis", "groups", key="ocisGroupId"),
        Case("ocis.space", "ensure_space", "ocis", "spaces", key="ocisSpaceId"),
        Case("ocis.quota", "ensure_space_quota", "ocis", "spaces", before=("ensure_space",), write="PATCH"),
        Case(
            "ocis.member", "ensure_space_member", "ocis", "spaces",
            before=("ensure_files_group", "ensure_space"), path="invite",
        ),
        Case("stripe.customer", "ensure_customer", "stripe", "customers", key="stripeCustomerId"),
        Case("stripe.product", "ensure_product", "stripe", "products"),
        Case("stripe.price", "ensure_price", "stripe", "prices", before=("ensure_product",)),
        Case(
            "stripe.subscription", "ensure_subscription", "stripe", "subscriptions",
            before=("ensure_product", "ensure_price", "ensure_customer"), key="stripeSubscriptionId",
        ),
    )
}  # fmt: skip
EVERY_STEP = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


async def prepare(house: House, case: Case) -> str:
    """Run what the step builds on, and return the step's name."""
    for name in case.before:
        await house.run(CASES[name].step.format(domain=house.job.domain), name)
    return case.step.format(domain=house.job.domain)


@EVERY_STEP
async def test_run_twice(house: House, case: Case) -> None:
    """A step that is run again finds what is there: one object, the same id, and no personal data in what it says."""
    step = await prepare(house, case)
    first = await house.run(step, case.activity)
    second = await house.run(step, case.activity)
    assert second.resource_id == first.resource_id is not None
    assert len(await house.objects(case.vendor, case.kind)) == 1
    if case.key is not None:
        assert (await house.job.tenant()).resources[case.key] == first.resource_id
    assert "@" not in f"{first.model_dump_json()}{house.job.request.model_dump_json()}"


@EVERY_STEP
async def test_lost_answer(house: House, case: Case) -> None:
    """After a write whose answer was lost, the next attempt ends with one object, and one event tells of it."""
    step = await prepare(house, case)
    before = len(await house.job.events())
    await house.fault(case.vendor, action="lose_answer", **case.write_spec)
    with pytest.raises(ApplicationError) as caught:
        await house.run(step, case.activity)
    assert caught.value.type == "outcome_unknown"
    assert not caught.value.non_retryable
    recorded = await house.job.step(step)
    assert recorded.attempt is not None
    assert recorded.unsettled_until == recorded.attempt.deadline

    await house.run(step, case.activity)
    assert len(await house.objects(case.vendor, case.kind)) == 1
    assert (await house.job.step(step)).state is StepState.DONE
    assert len(await house.job.events()) == before + 1


WEATHER = ({"action": "refuse"}, {"action": "status", "status": 503})


@EVERY_STEP
async def test_weather(house: House, case: Case) -> None:
    """A vendor that is away fails attempts for a while, and nothing is recorded as if it had been done."""
    step = await prepare(house, case)
    resources = (await house.job.tenant()).resources
    objects = await house.objects(case.vendor, case.kind)
    for weather in WEATHER:
        await house.fault(case.vendor, **weather)
        with pytest.raises(ApplicationError) as caught:
            await house.run(step, case.activity)
        assert caught.value.type in {"vendor_unavailable", "outcome_unknown"}
        assert not caught.value.non_retryable
    assert (await house.job.tenant()).resources == resources
    assert await house.objects(case.vendor, case.kind) == objects
    assert (await house.job.step(step)).state is StepState.RETRYING


@EVERY_STEP
async def test_cancelled_mid_call(house: House, case: Case) -> None:
    """A step cancelled while its write is on its way ends at once, and its attempt stays open as one that may write."""
    step = await prepare(house, case)
    fault = await house.fault(case.vendor, action="hold_before", **case.write_spec)
    environment = ActivityEnvironment()
    running = asyncio.create_task(house.run(step, case.activity, environment=environment))
    await house.held(case.vendor, fault)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    recorded = await house.job.step(step)
    assert recorded.attempt is not None
    assert recorded.attempt.ended_at is None
    assert recorded.may_write_until == recorded.attempt.deadline

    await house.release(case.vendor, fault)
    await house.run(step, case.activity)
    assert len(await house.objects(case.vendor, case.kind)) == 1
