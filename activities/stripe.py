"""Billing: a tenant's customer and subscription, and the catalog's product and price, in Stripe."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from temporalio import activity

from activities.tenants import load_admin, load_tenant
from domain.catalog import Cycle, Price, Subscription
from domain.errors import ForeignObject, NotFound, VendorRejected
from domain.ids import price_lookup_key, product_id
from domain.operations import Acting
from domain.provisioning import StepResult, TenantRequest, keeper
from domain.tenants import Tenant
from integrations.stripe import CustomerSpec, PriceSpec, ProductSpec, StripeBilling, SubscriptionSpec
from runtime.steps import current_step
from store.catalog import CatalogRepository, SubscriptionRepository
from store.people import UserRepository
from store.tenants import TenantRepository

VENDOR = "stripe"
CUSTOMER = "stripeCustomerId"
SUBSCRIPTION = "stripeSubscriptionId"
# Stripe's clock and ours need not agree to the second.
CLOCK_SKEW = timedelta(minutes=5)
INTERVALS: dict[Cycle, Literal["month", "year"]] = {Cycle.MONTHLY: "month", Cycle.YEARLY: "year"}
ENDED = frozenset({"canceled", "incomplete_expired"})


class StripeActivities:
    """Ensures customers, products, prices and subscriptions, and the absence of customers and subscriptions."""

    def __init__(
        self,
        billing: StripeBilling,
        *,
        tenants: TenantRepository,
        users: UserRepository,
        catalog: CatalogRepository,
        subscriptions: SubscriptionRepository,
        days_until_due: int,
    ) -> None:
        self._billing = billing
        self._tenants = tenants
        self._users = users
        self._catalog = catalog
        self._subscriptions = subscriptions
        self._days_until_due = days_until_due

    @activity.defn(name="ensure_customer")
    async def ensure_customer(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant is a Stripe customer, and that we know its id.

        Idempotency: found by the known id, else by our mark among the customers made since the tenant was, whichever
        operation made them; the key covers the time until the list shows it. A double is removed by
        `delete_customer_double`.
        """
        tenant = await load_tenant(self._tenants, request)
        known = tenant.resources.get(CUSTOMER)
        if known is not None and await self._billing.retrieve_customer(known) is not None:
            # An attempt that died after it kept the tenant's id may not have come to the subscription's.
            await self._subscriptions.keep_customer(tenant.id, known)
            return StepResult(resource_id=known)
        ids = await self._customer_ids(tenant)
        if not ids:
            step = current_step()
            await step.seen_absent()
            await step.acting(_acting("stripe.customer_created", "customer", tenant.slug))
            created = await self._billing.create_customer(
                await self._customer_spec(tenant, request), idempotency_key=step.idempotency_key
            )
            ids = await self._customer_ids(tenant) or [created.id]
        customer_id = keeper(ids, known=known)
        await self._tenants.set_resource(tenant, CUSTOMER, customer_id)
        await self._subscriptions.keep_customer(tenant.id, customer_id)
        return StepResult(resource_id=customer_id, doubles=len(ids) > 1)

    @activity.defn(name="delete_customer_double")
    async def delete_customer_double(self, request: TenantRequest) -> StepResult:
        """Ensure that there is one customer less beside the tenant's own; one with a subscription is left.

        Idempotency: what is gone is not found again. `doubles` tells whether it is to be called once more.
        """
        tenant = await load_tenant(self._tenants, request)
        kept = tenant.resources[CUSTOMER]
        left = [each for each in await self._customer_ids(tenant) if each != kept]
        while left:
            customer_id = left.pop()
            if await self._billing.find_subscriptions(customer_id):
                continue
            await current_step().acting(_acting("stripe.customer_double_removed", "customer", customer_id))
            await self._billing.delete_customer(customer_id)
            return StepResult(resource_id=customer_id, doubles=bool(left))
        return StepResult()

    @activity.defn(name="ensure_product")
    async def ensure_product(self, request: TenantRequest) -> StepResult:
        """Ensure that the tenant's catalog row has its product.

        Idempotency: we choose the id, so a second create is refused as existing. The product belongs to the row.

        Raises:
            ForeignObject: the id belongs to a product that is not the row's.
        """
        _tenant, price, _subscription = await self._sold(request)
        identifier = product_id(price.id)
        product = await self._billing.find_product(identifier)
        if product is None:
            step = current_step()
            await step.acting(_acting("stripe.product_created", "product", identifier, shared=True))
            spec = ProductSpec(
                id=identifier,
                name=f"Dezky {price.plan} ({price.cycle.value})",
                metadata={"dezkyPrice": price.id},
            )
            try:
                product = await self._billing.create_product(spec)
            except VendorRejected as error:
                product = await self._billing.find_product(identifier) if error.code == "already_exists" else None
                if product is None:
                    raise
        if product.metadata.get("dezkyPrice") != price.id:
            raise ForeignObject(VENDOR, f"The product {identifier} is not the catalog's.")
        await self._catalog.keep_product(price.id, product.id)
        return StepResult(resource_id=product.id)

    @activity.defn(name="ensure_price")
    async def ensure_price(self, request: TenantRequest) -> StepResult:
        """Ensure that the catalog row has a Stripe price for the tenant's currency.

        Idempotency: minted once per row, currency and revision; found by its lookup key, which Stripe keeps unique.

        Raises:
            ForeignObject: the lookup key leads to a price of another amount.
        """
        _tenant, row, subscription = await self._sold(request)
        currency = subscription.currency
        lookup_key = price_lookup_key(row.id, currency.value, row.revision)
        price = await self._billing.find_price(lookup_key)
        if price is None:
            step = current_step()
            await step.seen_absent()
            await step.acting(_acting("stripe.price_created", "price", lookup_key, shared=True))
            spec = PriceSpec(
                product=product_id(row.id),
                currency=currency.value,
                unit_amount=row.amounts[currency],
                interval=INTERVALS[row.cycle],
                lookup_key=lookup_key,
                tax_behavior="exclusive",
                metadata={"dezkyPrice": row.id, "dezkyRevision": str(row.revision)},
            )
            # The price is the row's, so its key is too: two tenants that need it at once get the same one.
            generation = step.idempotency_key.rsplit(":", 1)[-1]
            try:
                price = await self._billing.create_price(spec, idempotency_key=f"{lookup_key}:{generation}")
            except VendorRejected:
                # Another tenant's run may have been first under another key: Stripe then refuses the lookup key.
                price = await self._billing.find_price(lookup_key)
                if price is None:
                    raise
        if (price.unit_amount, price.currency) != (row.amounts[currency], currency.value):
            raise ForeignObject(VENDOR, f"The price {lookup_key} has another amount.")
        await self._catalog.keep_price(row, currency, price.id)
        return StepResult(resource_id=price.id)

    @activity.defn(name="ensure_subscription")
    async def ensure_subscription(self, request: TenantRequest) -> StepResult:
        """Ensure that the customer has the tenant's one subscription, invoiced per seat.

        Idempotency: found among the customer's subscriptions by our mark; the key covers a lost answer.
        """
        tenant, row, sold = await self._sold(request)
        customer_id = tenant.resources[CUSTOMER]
        found = [
            each
            for each in await self._billing.find_subscriptions(customer_id)
            if each.metadata.get("dezkyTenantId") == tenant.id and each.status not in ENDED
        ]
        if found:
            subscription = min(found, key=lambda each: each.id)
        else:
            step = current_step()
            await step.seen_absent()
            await step.acting(_acting("stripe.subscription_created", "subscription", tenant.slug))
            spec = SubscriptionSpec(
                customer=customer_id,
                price=row.stripe_price_ids[sold.currency],
                quantity=sold.seats,
                days_until_due=self._days_until_due,
                metadata=_marks(tenant, request),
            )
            subscription = await self._billing.create_subscription(spec, idempotency_key=step.idempotency_key)
        await self._tenants.set_resource(tenant, SUBSCRIPTION, subscription.id)
        await self._subscriptions.keep_subscription(
            tenant.id, subscription.id, subscription.item_id, subscription.status
        )
        return StepResult(resource_id=subscription.id)

    @activity.defn(name="delete_subscription")
    async def delete_subscription(self, request: TenantRequest) -> StepResult:
        """Ensure that one subscription less of the tenant's runs, and here that it is canceled once none does.

        It ends at once, without credit and without a final invoice. An invoice that was finalised before stays open,
        for a person to void: Stripe only stops collecting it.

        Idempotency: what has ended is not found again. `doubles` tells whether it is to be called once more.
        """
        tenant = await load_tenant(self._tenants, request)
        running = [
            each
            for customer_id in await self._own_customers(tenant)
            for each in await self._billing.find_subscriptions(customer_id)
            if each.metadata.get("dezkyTenantId") == tenant.id
        ]
        if running:
            await current_step().acting(_acting("stripe.subscription_canceled", "subscription", running[0].id))
            await self._billing.cancel_subscription(running[0].id)
        doubles = len(running) > 1
        if not doubles:
            await self._subscriptions.cancel(tenant.id)
            await self._tenants.forget_resource(tenant.slug, SUBSCRIPTION, tenant.resources.get(SUBSCRIPTION))
        return StepResult(resource_id=running[0].id if running else None, doubles=doubles)

    @activity.defn(name="delete_customer")
    async def delete_customer(self, request: TenantRequest) -> StepResult:
        """Ensure that there is one customer less of the tenant's, whichever operation made it.

        Idempotency: what is gone is not found again. `doubles` tells whether it is to be called once more.

        Raises:
            VendorRejected: `still_in_use` if all that are left have a subscription that was not made here: it would
                end with its customer.
        """
        tenant = await load_tenant(self._tenants, request)
        known = tenant.resources.get(CUSTOMER)
        customers = await self._own_customers(tenant)
        doubles = len(customers) > 1
        for customer_id in customers:
            found = await self._billing.find_subscriptions(customer_id)
            if any(each.metadata.get("dezkyTenantId") != tenant.id for each in found):
                continue
            await current_step().acting(_acting("stripe.customer_removed", "customer", customer_id))
            await self._billing.delete_customer(customer_id)
            await self._tenants.forget_resource(tenant.slug, CUSTOMER, customer_id if doubles else known)
            return StepResult(resource_id=customer_id, doubles=doubles)
        if customers:
            raise VendorRejected(VENDOR, "The customer has a subscription that was not made here.", code="still_in_use")
        await self._tenants.forget_resource(tenant.slug, CUSTOMER, known)
        return StepResult()

    async def _own_customers(self, tenant: Tenant) -> list[str]:
        """Return the customers that carry the tenant's mark, and the one we know."""
        ids = await self._customer_ids(tenant)
        known = tenant.resources.get(CUSTOMER)
        if known is None or known in ids or await self._billing.retrieve_customer(known) is None:
            return ids
        return [known, *ids]

    async def _customer_ids(self, tenant: Tenant) -> list[str]:
        since = tenant.created_at - CLOCK_SKEW
        return [customer.id for customer in await self._billing.find_customers(since, tenant.id)]

    async def _customer_spec(self, tenant: Tenant, request: TenantRequest) -> CustomerSpec:
        info = tenant.billing_info
        email = info.email if info is not None else None
        if email is None:
            email = (await load_admin(self._users, tenant)).email
        name = info.company_name if info is not None else tenant.name
        return CustomerSpec(name=name, email=email, metadata=_marks(tenant, request))

    async def _sold(self, request: TenantRequest) -> tuple[Tenant, Price, Subscription]:
        """Return the tenant, the catalog row it was sold, and its subscription."""
        tenant = await load_tenant(self._tenants, request)
        price = await self._catalog.price(tenant.price_id)
        subscription = await self._subscriptions.of_tenant(tenant.id)
        if price is None or subscription is None:
            raise NotFound(f"What {tenant.slug} was sold is gone from the catalog.")
        return tenant, price, subscription


def _marks(tenant: Tenant, request: TenantRequest) -> dict[str, str]:
    return {"dezkyTenantId": tenant.id, "dezkyTenant": tenant.slug, "dezkyOperation": request.operation_id}


def _acting(action: str, kind: str, identifier: str, *, shared: bool = False) -> Acting:
    return Acting(action=action, resource_type=f"stripe_{kind}", resource_id=identifier, shared=shared)
