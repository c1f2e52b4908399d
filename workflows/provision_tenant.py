"""ProvisionTenant: make the four outside systems hold what a new tenant needs.

Workflow id: `tenant/<slug>/<operation id>`. Input: `OperationRequest`. Updates: `retry`, `skip` and `cancel` (`Job`).

1. Plan the run: which domains, a mailbox or not, billing or not.
2. Four branches at once, one per system. Weather is retried within a step and holds up only its own branch; so does a
   final refusal, which parks its step until a person has decided.
3. The tenant turns active once every branch has gone to its end.
4. The lock is kept until no attempt may still write outside; what such an attempt made twice is removed.
5. The operation is closed as `completed`.

Canceled before 3., by us or in Temporal, it undoes what it made: once no attempt may still write outside, each system
at once and each in reverse, a step for each object. Then the tenant is abandoned and the operation `canceled`; or
`failed`, if an operator skipped such a step and something is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.authentik import AuthentikActivities
    from activities.ocis import OcisActivities
    from activities.platform import PlatformActivities
    from activities.stalwart import StalwartActivities
    from activities.stripe import StripeActivities
    from domain.operations import Failure, OperationState, StepState, object_of, system_of, undo_of
    from domain.provisioning import (
        CloseRequest,
        DomainRequest,
        OperationRequest,
        OutcomeRequest,
        ProvisionPlan,
        TenantRequest,
    )
    from workflows.job import Job
    from workflows.steps import (
        CANCEL_UNDOES,
        JobCanceled,
        Steps,
        StepSkipped,
        branch,
        sleep_over,
        together,
        uncancelable,
    )

# What a vendor does not make unique, and what removes a double of it.
REMOVE_DOUBLE = {
    "stalwart.role": StalwartActivities.delete_mail_role_double,
    "ocis.space": OcisActivities.delete_space_double,
    "stripe.customer": StripeActivities.delete_customer_double,
}
# What removes what a step made.
UNDO: dict[str, Any] = {
    "authentik.group": AuthentikActivities.delete_login_group,
    "authentik.user": AuthentikActivities.delete_login_user,
    "authentik.member": AuthentikActivities.delete_login_membership,
    "stalwart.role": StalwartActivities.delete_mail_role,
    "stalwart.domain": StalwartActivities.delete_mail_domain,
    "stalwart.mailbox": StalwartActivities.delete_mailbox,
    "ocis.group": OcisActivities.delete_files_group,
    "ocis.space": OcisActivities.delete_space,
    "stripe.customer": StripeActivities.delete_customer,
    "stripe.subscription": StripeActivities.delete_subscription,
}


@workflow.defn(name="ProvisionTenant")
class ProvisionTenant(Job):
    """Provisions one tenant; see the module's page."""

    @workflow.init
    def __init__(self, request: OperationRequest) -> None:
        super().__init__(Steps(request.operation_id, request.profile))
        self._operation_id = request.operation_id
        self._slug = request.tenant_slug
        self._tenant = TenantRequest(operation_id=request.operation_id, tenant_slug=request.tenant_slug)
        # The non-unique creates that were done, and whether each saw doubles.
        self._created: dict[str, bool] = {}
        self._mailbox_domain: str | None = None
        # Steps that undo something and were skipped: what they should have removed is left.
        self._left: list[str] = []

    @workflow.run
    async def run(self, request: OperationRequest) -> None:
        """Run the job to its end; how it ended stands on the operation."""
        del request  # taken apart by __init__
        try:
            failure = await self._provision()
        except (JobCanceled, asyncio.CancelledError):
            if not workflow.patched(CANCEL_UNDOES):
                raise asyncio.CancelledError from None
            await uncancelable(self._undo())
        else:
            await uncancelable(self._finish(failure))

    async def _provision(self) -> Failure | None:
        """Run the branches to their end and return the first failure of them."""
        plan = await self._steps.record(PlatformActivities.plan_provision, self._tenant)
        # Also of a run that was reset while it was undone: it may have a mailbox to remove.
        self._mailbox_domain = plan.mailbox_domain
        if plan.canceled and not self._steps.settled:
            raise JobCanceled
        systems = {
            "authentik": self._login(),
            "stalwart": self._mail(plan),
            "ocis": self._files(),
            "stripe": self._billing(plan),
        }
        failures = await together(*(self._branch(system, part, plan) for system, part in systems.items()))
        # Of the last step, whose activity finished anyway, nobody has heard of it.
        if self._steps.must_stop and workflow.patched(CANCEL_UNDOES):
            raise JobCanceled
        return next((each for each in failures if each is not None), None)

    async def _branch(self, system: str, part: Awaitable[None], plan: ProvisionPlan) -> Failure | None:
        failure = await branch(part)
        names = [name for name in plan.steps if system_of(name) == system and name not in self._steps.begun]
        if failure is None and names:
            # An operator skipped what they depend on.
            await self._steps.record_state(names, StepState.SKIPPED)
        return failure

    async def _login(self) -> None:
        await together(
            self._step("authentik.group", AuthentikActivities.ensure_login_group),
            self._step("authentik.user", AuthentikActivities.ensure_login_user),
        )
        await self._step("authentik.member", AuthentikActivities.ensure_login_membership)

    async def _mail(self, plan: ProvisionPlan) -> None:
        others = [domain for domain in plan.domains if domain != plan.mailbox_domain]
        await together(self._mailbox(plan.mailbox_domain), *(self._mail_domain(domain) for domain in others))

    async def _mailbox(self, domain: str | None) -> None:
        """Make the role, and under it the first admin's mailbox once its own domain is live."""
        role = self._create("stalwart.role", StalwartActivities.ensure_mail_role)
        if domain is None:
            await role
            return
        await together(role, self._mail_domain(domain))
        await self._steps.run("stalwart.mailbox", StalwartActivities.ensure_mailbox, self._domain(domain))

    async def _mail_domain(self, domain: str) -> None:
        request = self._domain(domain)
        await self._steps.run(f"stalwart.domain.{domain}", StalwartActivities.ensure_mail_domain, request)
        await self._steps.run(f"stalwart.dkim.{domain}", StalwartActivities.observe_mail_domain_keys, request)

    async def _files(self) -> None:
        _group, space = await together(
            self._step("ocis.group", OcisActivities.ensure_files_group),
            self._create("ocis.space", OcisActivities.ensure_space),
        )
        if not space.quota_matches:
            # What follows needs the space, not its quota.
            with contextlib.suppress(StepSkipped):
                await self._step("ocis.quota", OcisActivities.ensure_space_quota)
        await self._step("ocis.member", OcisActivities.ensure_space_member)

    async def _billing(self, plan: ProvisionPlan) -> None:
        if not plan.billing_enabled:
            return
        await together(
            self._create("stripe.customer", StripeActivities.ensure_customer),
            self._price(),
        )
        await self._step("stripe.subscription", StripeActivities.ensure_subscription)

    async def _price(self) -> None:
        await self._step("stripe.product", StripeActivities.ensure_product)
        await self._step("stripe.price", StripeActivities.ensure_price)

    async def _finish(self, failure: Failure | None) -> None:
        """Record the outcome for the tenant, see that nothing was made twice, and close."""
        outcome = OutcomeRequest(operation_id=self._operation_id, tenant_slug=self._slug, failure=failure)
        settlement = await self._steps.record(PlatformActivities.record_tenant_outcome, outcome)
        if settlement.canceled:
            await self._undo()
            return
        self._steps.settle()
        if settlement.unsettled_seconds:
            await sleep_over(settlement.unsettled_seconds)
        checks = [
            branch(self._remove_doubles(name))
            for name, doubles in self._created.items()
            if doubles or name in settlement.repeated
        ]
        failures = [failure, *await together(*checks)]
        failure = next((each for each in failures if each is not None), None)
        await self._close(OperationState.COMPLETED if failure is None else OperationState.FAILED, failure)

    async def _undo(self) -> None:
        """Remove what the run made, abandon the tenant, and close."""
        # Whoever cancels now hears that it is being done.
        self._steps.cancel()
        self._steps.settle()
        plan = await self._steps.record(PlatformActivities.plan_undoing, self._tenant)
        if plan.outcome_stands:
            # Canceled after a reset, when the tenant was in use already: all of it is looked at once more instead.
            await self._finish(await self._provision())
            return
        while plan.unsettled_seconds:
            await sleep_over(plan.unsettled_seconds)
            plan = await self._steps.record(PlatformActivities.plan_undoing, self._tenant)
        systems: dict[str, list[str]] = {}
        for name in reversed(plan.steps):
            systems.setdefault(system_of(name), []).append(name)
        failures = await together(*(branch(self._undo_all(names)) for names in systems.values()))
        failure = next((each for each in failures if each is not None), self._leftover())
        outcome = OutcomeRequest(operation_id=self._operation_id, tenant_slug=self._slug, failure=failure)
        await self._steps.record(PlatformActivities.record_tenant_abandoned, outcome)
        await self._close(OperationState.CANCELED if failure is None else OperationState.FAILED, failure)

    async def _undo_all(self, names: list[str]) -> None:
        for name in names:
            try:
                await self._undo_step(name)
            except StepSkipped:
                self._left.append(name)
            else:
                await self._steps.record_state([name], StepState.COMPENSATED)

    async def _undo_step(self, name: str) -> None:
        """Remove what a step made, one object in a step, so that each removal has its own record and event."""
        domain = self._mailbox_domain if name == "stalwart.mailbox" else name.removeprefix(object_of(name))[1:]
        request = self._domain(domain) if domain else self._tenant
        number, undo = 1, undo_of(name)
        while (await self._steps.run(undo, UNDO[object_of(name)], request)).doubles:
            number += 1
            undo = f"{undo_of(name)}.{number}"

    def _leftover(self) -> Failure | None:
        if not self._left:
            return None
        message = f"An operator skipped the removal of what these steps made: {', '.join(sorted(self._left))}."
        return Failure(code="cleanup_incomplete", message=message, step=undo_of(min(self._left)))

    async def _close(self, state: OperationState, failure: Failure | None) -> None:
        request = CloseRequest(operation_id=self._operation_id, state=state, failure=failure)
        while seconds := await self._steps.record(PlatformActivities.close_operation, request):
            await sleep_over(seconds)

    async def _remove_doubles(self, name: str) -> None:
        """Remove what was made twice, one in a step, so that each removal has its own record and event."""
        number = 1
        while (await self._step(f"{name}_double.{number}", REMOVE_DOUBLE[name])).doubles:
            number += 1

    async def _create(self, name: str, method: Any) -> Any:
        result = await self._step(name, method)
        self._created[name] = result.doubles
        return result

    def _step(self, name: str, method: Any) -> Awaitable[Any]:
        return self._steps.run(name, method, self._tenant)

    def _domain(self, domain: str) -> DomainRequest:
        return DomainRequest(operation_id=self._operation_id, tenant_slug=self._slug, domain=domain)
