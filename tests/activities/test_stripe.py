"""Billing: keys that stand for an error, doubles, and prices that several tenants share."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from temporalio.exceptions import ApplicationError

from domain.ids import price_lookup_key, product_id
from domain.operations import StepState
from domain.provisioning import StepResult
from integrations.stripe import CustomerSpec, PriceSpec, ProductSpec, SubscriptionSpec
from runtime.clock import utcnow
from runtime.wiring import Store, Vendors
from tests.activities.conftest import House

pytestmark = pytest.mark.asyncio


async def make_customer(house: House, vendors: Vendors) -> str:
    """Make a customer with the tenant's mark, as an attempt that nobody remembers would."""
    spec = CustomerSpec(name="Acme", email=None, metadata={"dezkyTenantId": house.job.tenant_id})
    return (await vendors.stripe.create_customer(spec, f"late-{house.job.operation_id}")).id


async def make_price(house: House, vendors: Vendors, amount: int, *, lookup_key: str) -> str:
    """Make the catalog row's product and a price, as the run of another tenant would."""
    product = product_id(house.job.price_id)
    await vendors.stripe.create_product(ProductSpec(id=product, name="x", metadata={"dezkyPrice": house.job.price_id}))
    spec = PriceSpec(
        product=product, currency="EUR", unit_amount=amount, interval="month", lookup_key=lookup_key,
        tax_behavior="exclusive", metadata={},
    )  # fmt: skip
    return (await vendors.stripe.create_price(spec, f"other-{house.job.operation_id}")).id


@pytest.mark.parametrize(
    ("step", "activity", "path"),
    [
        ("stripe.customer", "ensure_customer", "/v1/customers"),
        ("stripe.price", "ensure_price", "/v1/prices"),
        ("stripe.subscription", "ensure_subscription", "/v1/subscriptions"),
    ],
)
async def test_replayed_error(house: House, step: str, activity: str, path: str) -> None:
    """An error that Stripe keeps under the key is left behind by a new key, once the object was seen to be absent."""
    for earlier in ("product", "price", "customer"):
        if f"stripe.{earlier}" == step:
            break
        await house.run(f"stripe.{earlier}", f"ensure_{earlier}")
    await house.control("stripe", "fail-next", {"path": f"{path}$"})
    replayed = []
    for _ in range(2):
        with pytest.raises(ApplicationError) as caught:
            await house.run(step, activity)
        assert caught.value.type == "outcome_unknown"
        recorded = await house.job.step(step)
        replayed.append((recorded.key_number, recorded.replayed_error))
    assert replayed == [(1, False), (1, True)]

    await house.run(step, activity)
    recorded = await house.job.step(step)
    assert (recorded.key_number, recorded.replayed_error, recorded.state) == (2, False, StepState.DONE)
    seen = await house.requests("stripe")
    keys = [
        each["idempotencyKey"].rsplit(":", 1)[-1]
        for each in seen
        if each["method"] == "POST" and path in each["target"]
    ]
    assert keys == ["1", "1", "2"]


async def test_customer_kept_by_half(house: House, store: Store) -> None:
    """An attempt that died between its two records is completed by the next one."""
    made = await house.run("stripe.customer", "ensure_customer")
    subscriptions = store.database.collection("subscriptions")
    await subscriptions.update_one({"tenantId": house.job.tenant_id}, {"$set": {"stripeCustomerId": None}})
    await house.run("stripe.customer", "ensure_customer")
    subscription = await store.subscriptions.of_tenant(house.job.tenant_id)
    assert subscription is not None
    assert subscription.stripe_customer_id == made.resource_id


async def test_double_of_a_late_attempt(house: House, vendors: Vendors) -> None:
    """The customer we know stays, and a double that came later goes."""
    kept = await house.run("stripe.customer", "ensure_customer")
    await make_customer(house, vendors)
    for _ in range(2):
        await house.run("stripe.customer_double.1", "delete_customer_double")
    found = await vendors.stripe.find_customers(utcnow() - timedelta(hours=1), house.job.tenant_id)
    assert [each.id for each in found] == [kept.resource_id]


async def test_double_in_use(house: House, vendors: Vendors) -> None:
    """A double that has a subscription is left: removing it would end what somebody pays for."""
    await house.run("stripe.customer", "ensure_customer")
    await house.run("stripe.product", "ensure_product")
    price = await house.run("stripe.price", "ensure_price")
    double = await make_customer(house, vendors)
    subscription = SubscriptionSpec(
        customer=double, price=price.resource_id, quantity=1, days_until_due=14, metadata={}
    )
    await vendors.stripe.create_subscription(subscription, f"late-{double}")
    await house.run("stripe.customer_double.1", "delete_customer_double")
    assert await vendors.stripe.retrieve_customer(double) is not None


async def test_customer_of_an_earlier_operation(house: House, store: Store) -> None:
    """A customer that an earlier operation made and could not record is looked for: since the tenant was made."""
    created = utcnow() - timedelta(days=30)
    await store.database.collection("tenants").update_one({"slug": house.job.slug}, {"$set": {"createdAt": created}})
    await house.run("stripe.customer", "ensure_customer")
    (first, *_) = await house.requests("stripe")
    since = int(parse_qs(urlsplit(first["target"]).query)["created[gte]"][0])
    assert since <= created.timestamp()


async def test_foreign_product(house: House, vendors: Vendors) -> None:
    """A product under our id that is not the catalog row's is not taken over."""
    identifier = product_id(house.job.price_id)
    await vendors.stripe.create_product(ProductSpec(id=identifier, name="x", metadata={}))
    with pytest.raises(ApplicationError) as caught:
        await house.run("stripe.product", "ensure_product")
    assert (caught.value.type, caught.value.non_retryable) == ("foreign_object", True)


async def test_price_of_another_amount(house: House, vendors: Vendors) -> None:
    """A price under our lookup key that asks for another amount is not taken over."""
    await make_price(house, vendors, 651, lookup_key=price_lookup_key(house.job.price_id, "EUR", 1))
    with pytest.raises(ApplicationError) as caught:
        await house.run("stripe.price", "ensure_price")
    assert (caught.value.type, caught.value.non_retryable) == ("foreign_object", True)


async def test_price_race_lost(house: House, vendors: Vendors) -> None:
    """A price that another tenant's run made after our look is taken, although Stripe refuses our create."""
    nothing = '{"object": "list", "data": [], "has_more": false, "url": "/v1/prices"}'
    price = await make_price(house, vendors, 650, lookup_key=price_lookup_key(house.job.price_id, "EUR", 1))
    await house.fault(
        "stripe", action="status", status=200, body=nothing, contentType="application/json", method="GET",
        path="/v1/prices",
    )  # fmt: skip
    assert (await house.run("stripe.price", "ensure_price")).resource_id == price
    assert len(await house.objects("stripe", "prices")) == 1


async def subscribe(house: House, vendors: Vendors, customer: str, metadata: dict[str, str]) -> str:
    """Make a subscription at the tenant's price, as a late attempt or a person would."""
    price = await house.run("stripe.price", "ensure_price")
    spec = SubscriptionSpec(
        customer=customer, price=price.resource_id, quantity=1, days_until_due=14, metadata=metadata
    )
    return (await vendors.stripe.create_subscription(spec, f"late-{customer}-{len(metadata)}")).id


async def provision(house: House) -> str:
    """Make all that a tenant has at Stripe, and return its customer."""
    for name in ("customer", "product", "price", "subscription"):
        await house.run(f"stripe.{name}", f"ensure_{name}")
    return (await house.job.tenant()).resources["stripeCustomerId"]


async def running(house: House) -> list[str]:
    """Return the tenant's subscriptions that have not ended."""
    return [row["id"] for row in await house.objects("stripe", "subscriptions") if row["status"] != "canceled"]


async def test_canceled_here_too(house: House, store: Store) -> None:
    """Our own row says that the subscription has ended; what several tenants share stays."""
    await provision(house)
    await house.run("stripe.subscription_undo", "delete_subscription")
    sold = await store.subscriptions.of_tenant(house.job.tenant_id)
    assert sold is not None
    assert (sold.status, sold.stripe_subscription_id is not None) == ("canceled", True)
    await house.run("stripe.customer_undo", "delete_customer")
    for kind in ("products", "prices"):
        assert len(await house.objects("stripe", kind)) == 1
    price = await store.catalog.price(house.job.price_id)
    assert price is not None
    assert price.stripe_price_ids


async def test_ended_at_stripe_only(house: House, store: Store) -> None:
    """An attempt that died between Stripe's yes and our row is completed by the next one."""
    await provision(house)
    await house.fault("stripe", action="lose_answer", method="DELETE")
    with pytest.raises(ApplicationError):
        await house.run("stripe.subscription_undo", "delete_subscription")
    sold = await store.subscriptions.of_tenant(house.job.tenant_id)
    assert sold is not None
    assert sold.status == "active"
    await house.run("stripe.subscription_undo", "delete_subscription")
    sold = await store.subscriptions.of_tenant(house.job.tenant_id)
    assert sold is not None
    assert sold.status == "canceled"


async def test_never_subscribed(house: House, store: Store) -> None:
    """A tenant that came no further than its intent has nothing to cancel at Stripe, and is canceled here."""
    assert await house.run("stripe.subscription_undo", "delete_subscription") == StepResult()
    sold = await store.subscriptions.of_tenant(house.job.tenant_id)
    assert sold is not None
    assert sold.status == "canceled"


async def test_several_subscriptions(house: House, store: Store, vendors: Vendors) -> None:
    """Those of a double customer end as well, each in a step of its own; here it is canceled with the last."""
    await provision(house)
    double = await make_customer(house, vendors)
    await subscribe(house, vendors, double, {"dezkyTenantId": house.job.tenant_id})
    statuses = []
    for number in (1, 2):
        result = await house.run(f"stripe.subscription_undo.{number}", "delete_subscription")
        sold = await store.subscriptions.of_tenant(house.job.tenant_id)
        assert sold is not None
        statuses.append((result.doubles, sold.status))
    assert statuses == [(True, "active"), (False, "canceled")]
    assert await running(house) == []
    assert (await house.job.events()).count(("stripe.subscription_canceled", "success")) == 2


async def test_several_customers(house: House, vendors: Vendors) -> None:
    """Every customer with the tenant's mark goes, each in a step of its own; another tenant's is left."""
    await house.run("stripe.customer", "ensure_customer")
    await make_customer(house, vendors)
    spec = CustomerSpec(name="Other", email=None, metadata={"dezkyTenantId": f"{house.job.tenant_id}-2"})
    other = (await vendors.stripe.create_customer(spec, f"other-{house.job.operation_id}")).id
    more = [(await house.run(f"stripe.customer_undo.{number}", "delete_customer")).doubles for number in (1, 2)]
    assert more == [True, False]
    assert [row["id"] for row in await house.objects("stripe", "customers")] == [other]
    assert "stripeCustomerId" not in (await house.job.tenant()).resources


async def test_known_customer_without_mark(house: House, store: Store, vendors: Vendors) -> None:
    """The customer we know is the tenant's, whatever somebody made of its metadata."""
    spec = CustomerSpec(name="Acme", email=None, metadata={})
    customer = (await vendors.stripe.create_customer(spec, f"plain-{house.job.operation_id}")).id
    assert await house.run("stripe.customer_undo", "delete_customer") == StepResult()
    await store.tenants.set_resource(await house.job.tenant(), "stripeCustomerId", customer)
    assert await house.run("stripe.customer_undo", "delete_customer") == StepResult(resource_id=customer)
    assert await vendors.stripe.retrieve_customer(customer) is None


async def test_subscription_that_is_not_ours(house: House, vendors: Vendors) -> None:
    """A subscription that was made by hand is left, and so is its customer, for a person to decide about."""
    customer = await provision(house)
    by_hand = await subscribe(house, vendors, customer, {})
    await house.run("stripe.subscription_undo", "delete_subscription")
    assert [row.id for row in await vendors.stripe.find_subscriptions(customer)] == [by_hand]
    double = await make_customer(house, vendors)
    assert (await house.run("stripe.customer_undo", "delete_customer")).resource_id == double
    assert await house.refused("stripe.customer_undo.2", "delete_customer") == "still_in_use"
    assert await vendors.stripe.retrieve_customer(customer) is not None
    assert (await house.job.tenant()).resources["stripeCustomerId"] == customer
