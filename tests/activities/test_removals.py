"""What holds for every removal: repeatable, safe against a lost answer, silent where there is nothing, and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from domain.operations import StepState, undo_of
from domain.provisioning import UNDOABLE, StepResult
from domain.tenants import DomainState
from runtime.wiring import Store
from tests.activities.conftest import House

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

ENSURED = {
    "authentik.group": "ensure_login_group",
    "authentik.user": "ensure_login_user",
    "authentik.member": "ensure_login_membership",
    "stalwart.role": "ensure_mail_role",
    "stalwart.domain.{domain}": "ensure_mail_domain",
    "stalwart.dkim.{domain}": "observe_mail_domain_keys",
    "stalwart.mailbox": "ensure_mailbox",
    "ocis.group": "ensure_files_group",
    "ocis.space": "ensure_space",
    "ocis.member": "ensure_space_member",
    "stripe.customer": "ensure_customer",
    "stripe.product": "ensure_product",
    "stripe.price": "ensure_price",
    "stripe.subscription": "ensure_subscription",
}


@dataclass(frozen=True)
class Case:
    """A removal: of what, what goes before it, and how its write is known."""

    step: str
    activity: str
    kind: str
    event: str
    after: tuple[str, ...] = ()
    method: str = "DELETE"
    path: str | None = None
    contains: tuple[str, ...] = ()
    # Writes before the one that is meant.
    skip: int = 0
    key: str | None = None
    # Which of the objects that are left are still what they were.
    alive: Callable[[dict[str, Any]], bool] = lambda _row: True

    @property
    def vendor(self) -> str:
        """The system it is removed from."""
        return self.step.partition(".")[0]


CASES = {
    case.activity: case
    for case in (
        Case(
            "authentik.member", "delete_login_membership", "users", "authentik.member_removed",
            method="POST", path="remove_user", alive=lambda row: bool(row["groups"]),
        ),
        Case("authentik.user", "delete_login_user", "users", "authentik.user_removed", path="core/users"),
        Case(
            "authentik.group", "delete_login_group", "groups", "authentik.group_removed",
            path="core/groups", key="authentikGroupId",
        ),
        Case(
            "stalwart.mailbox", "delete_mailbox", "accounts", "stalwart.mailbox_removed",
            method="POST", contains=("x:Account/set",), key="stalwartMailboxId",
        ),
        Case(
            "stalwart.domain.{domain}", "delete_mail_domain", "domains", "stalwart.domain_removed",
            after=("delete_mailbox",), method="POST", contains=("x:Domain/set",),
        ),
        Case(
            "stalwart.role", "delete_mail_role", "roles", "stalwart.role_removed",
            after=("delete_mailbox",), method="POST", contains=("x:Role/set",), key="stalwartRoleId",
        ),
        Case("ocis.space", "delete_space", "spaces", "ocis.space_removed", path="drives", skip=1, key="ocisSpaceId"),
        Case(
            "ocis.group", "delete_files_group", "groups", "ocis.group_removed",
            after=("delete_space",), path="groups", key="ocisGroupId",
        ),
        Case(
            "stripe.subscription", "delete_subscription", "subscriptions", "stripe.subscription_canceled",
            path="subscriptions", key="stripeSubscriptionId", alive=lambda row: row["status"] != "canceled",
        ),
        Case(
            "stripe.customer", "delete_customer", "customers", "stripe.customer_removed",
            after=("delete_subscription",), path="customers", key="stripeCustomerId",
        ),
    )
}  # fmt: skip
EVERY_REMOVAL = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def undo(house: House, case: Case) -> str:
    """Return the name of the step that removes it."""
    return undo_of(case.step.format(domain=house.job.domain))


async def provision(house: House, case: Case) -> None:
    """Make all that a tenant has in the system, and remove what goes first."""
    for step, activity in ENSURED.items():
        if step.startswith(case.vendor):
            await house.run_until_done(step.format(domain=house.job.domain), activity)
    for activity in case.after:
        await house.run(undo(house, CASES[activity]), activity)
    if case.vendor == "stalwart":
        # What a removed mailbox had is held until its mail is erased.
        while await house.objects("stalwart", "accountErasures"):
            pass


async def left(house: House, case: Case) -> int:
    """Return how many there are."""
    return sum(map(case.alive, await house.objects(case.vendor, case.kind)))


async def events(house: House, case: Case) -> list[str]:
    """Return the outcomes of the removal's events."""
    return [outcome for action, outcome in await house.job.events() if action == case.event]


async def test_everything_undoable_has_its_removal() -> None:
    """What a run makes for its tenant is what is tried here."""
    assert {case.step.removesuffix(".{domain}") for case in CASES.values()} == UNDOABLE


@EVERY_REMOVAL
async def test_removed(house: House, case: Case) -> None:
    """It is gone, its id is forgotten, one event tells of it; once more, nothing is there to be done."""
    await provision(house, case)
    assert await left(house, case) == 1
    result = await house.run(undo(house, case), case.activity)
    assert (await left(house, case), result.doubles) == (0, False)
    assert result.resource_id is not None
    assert "@" not in result.model_dump_json()
    tenant = await house.job.tenant()
    assert case.key not in tenant.resources
    assert await events(house, case) == ["success"]

    writes = await house.writes(case.vendor)
    assert await house.run(undo(house, case), case.activity) == StepResult()
    assert await house.writes(case.vendor) == writes
    assert await house.job.tenant() == tenant


@EVERY_REMOVAL
async def test_nothing_made(house: House, case: Case) -> None:
    """Where the run had made nothing, nothing is written and nothing is told."""
    assert await house.run(undo(house, case), case.activity) == StepResult()
    assert await house.writes(case.vendor) == 0
    assert await house.job.events() == []


@EVERY_REMOVAL
async def test_lost_answer(house: House, case: Case) -> None:
    """After a removal whose answer was lost, the next attempt finds it gone, and one event tells of it."""
    await provision(house, case)
    spec = {"method": case.method, "path": case.path, "contains": list(case.contains)}
    if case.skip:
        await house.fault(case.vendor, action="delay", times=case.skip, **spec)
    await house.fault(case.vendor, action="lose_answer", **spec)
    with pytest.raises(ApplicationError) as caught:
        await house.run(undo(house, case), case.activity)
    assert (caught.value.type, caught.value.non_retryable) == ("outcome_unknown", False)

    await house.run(undo(house, case), case.activity)
    assert await left(house, case) == 0
    assert case.key not in (await house.job.tenant()).resources
    assert (await house.job.step(undo(house, case))).state is StepState.DONE
    assert await events(house, case) == ["success"]


@EVERY_REMOVAL
async def test_weather(house: House, case: Case) -> None:
    """A vendor that is away fails attempts for a while, and nothing is forgotten."""
    await provision(house, case)
    tenant = await house.job.tenant()
    await house.fault(case.vendor, action="status", status=503, method=case.method, times=1, path=case.path,
                      contains=list(case.contains))  # fmt: skip
    with pytest.raises(ApplicationError) as caught:
        await house.run(undo(house, case), case.activity)
    assert caught.value.type in {"vendor_unavailable", "outcome_unknown"}
    assert not caught.value.non_retryable
    assert (await house.job.tenant()).resources == tenant.resources
    assert await left(house, case) == 1


@EVERY_REMOVAL
async def test_made_by_another_operation(house: House, case: Case, store: Store) -> None:
    """What carries the tenant's mark goes, and a person's login with ours, whichever operation made it."""
    await provision(house, case)
    request = house.job.request.model_copy(update={"operation_id": "another"})
    house.job.request = request
    house.job.domain_request = house.job.domain_request.model_copy(update={"operation_id": "another"})
    await house.run(undo(house, case), case.activity)
    assert await left(house, case) == 0


async def test_domain_is_only_proved_again(house: House) -> None:
    """A domain that was live is proved and no more: its id and the records to publish are forgotten."""
    case = CASES["delete_mail_domain"]
    await provision(house, case)
    assert (await house.job.tenant()).domains[0].state is DomainState.LIVE
    await house.run(undo(house, case), case.activity)
    (domain,) = (await house.job.tenant()).domains
    assert (domain.state, domain.external_id, domain.dns_records) == (DomainState.VERIFIED, None, [])
    assert domain.proof is not None


async def test_only_what_is_gone_is_forgotten(house: House, store: Store) -> None:
    """An id that was recorded meanwhile stays, and a domain that was never proved does not become so."""
    tenants, slug, domain = store.tenants, house.job.slug, house.job.domain
    await tenants.set_resource(await house.job.tenant(), "ocisSpaceId", "new")
    await tenants.set_domain_id(slug, domain, "new")
    await tenants.set_domain_live(slug, domain, [])
    before = await house.job.tenant()
    for outdated in ("old", None):
        await tenants.forget_resource(slug, "ocisSpaceId", outdated)
        await tenants.forget_domain_id(slug, domain, outdated)
    assert await house.job.tenant() == before

    unverified = {"domains.0.state": DomainState.UNVERIFIED.value, "domains.0.externalId": None}
    await store.database.collection("tenants").update_one({"slug": slug}, {"$set": unverified})
    await tenants.forget_domain_id(slug, domain, None)
    assert (await house.job.tenant()).domains[0].state is DomainState.UNVERIFIED
