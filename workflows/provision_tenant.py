"""ProvisionTenant: make the four outside systems hold what a new tenant needs.

Workflow id: `tenant/<slug>/<operation id>`. Input: `OperationRequest`. It accepts no messages.

1. Plan the run: which domains, a mailbox or not, billing or not.
2. Four branches at once, one per system. Weather is retried within a step and holds up only its own branch; a final
   refusal ends its branch, and the others still go to their end.
3. The tenant turns active if every branch is ok.
4. The lock is kept until no attempt may still write outside; what such an attempt made twice is removed.
5. The operation is closed: `completed`, or `failed` with the step that was refused.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.authentik import AuthentikActivities
    from activities.ocis import OcisActivities
    from activities.platform import PlatformActivities
    from activities.stalwart import StalwartActivities
    from activities.stripe import StripeActivities
    from domain.operations import Failure, OperationState
    from domain.provisioning import (
        CloseRequest,
        DomainRequest,
        OperationRequest,
        OutcomeRequest,
        ProvisionPlan,
        TenantRequest,
    )
    from workflows.steps import Steps, branch, together

# What a vendor does not make unique, and what removes a double of it.
REMOVE_DOUBLE = {
    "stalwart.role": StalwartActivities.delete_mail_role_double,
    "ocis.space": OcisActivities.delete_space_double,
    "stripe.customer": StripeActivities.delete_customer_double,
}


@workflow.defn(name="ProvisionTenant")
class ProvisionTenant:
    """Provisions one tenant; see the module's page."""

    @workflow.init
    def __init__(self, request: OperationRequest) -> None:
        self._steps = Steps(request.profile)
        self._operation_id = request.operation_id
        self._slug = request.tenant_slug
        self._tenant = TenantRequest(operation_id=request.operation_id, tenant_slug=request.tenant_slug)
        # The non-unique creates that were done, and whether each saw doubles.
        self._created: dict[str, bool] = {}

    @workflow.run
    async def run(self, request: OperationRequest) -> None:
        """Run the job to its end; how it ended stands on the operation."""
        del request  # taken apart by __init__
        plan = await self._steps.record(PlatformActivities.plan_provision, self._tenant)
        failures = await together(
            branch(self._login()),
            branch(self._mail(plan)),
            branch(self._files()),
            branch(self._billing(plan)),
        )
        failure = next((each for each in failures if each is not None), None)
        failure = await self._settle(failure)
        await self._close(failure)

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

    async def _settle(self, failure: Failure | None) -> Failure | None:
        """Record the outcome for the tenant, then see that nothing was made twice; return what failed."""
        outcome = OutcomeRequest(operation_id=self._operation_id, tenant_slug=self._slug, failure=failure)
        settlement = await self._steps.record(PlatformActivities.record_tenant_outcome, outcome)
        if settlement.unsettled_seconds:
            await _sleep(settlement.unsettled_seconds)
        checks = [
            branch(self._remove_doubles(name))
            for name, doubles in self._created.items()
            if doubles or name in settlement.repeated
        ]
        failures = [failure, *await together(*checks)]
        return next((each for each in failures if each is not None), None)

    async def _close(self, failure: Failure | None) -> None:
        state = OperationState.COMPLETED if failure is None else OperationState.FAILED
        request = CloseRequest(operation_id=self._operation_id, state=state, failure=failure)
        while seconds := await self._steps.record(PlatformActivities.close_operation, request):
            await _sleep(seconds)

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


async def _sleep(seconds: float) -> None:
    # A little longer, so that the first look afterwards finds it over.
    await workflow.sleep(timedelta(seconds=seconds + 0.1))
