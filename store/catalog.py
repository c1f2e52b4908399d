"""The `plans`, `prices`, `subscriptions` and `flags` collections."""

from __future__ import annotations

from domain.catalog import Currency, Cycle, Plan, Price, Subscription
from domain.flags import Flag
from store.database import Database, Session, insert_missing
from store.documents import from_document, to_document


class CatalogRepository:
    """Reads and writes plans and prices."""

    def __init__(self, database: Database) -> None:
        self._plans = database.collection("plans")
        self._prices = database.collection("prices")

    async def plan(self, key: str) -> Plan | None:
        """Return a plan, None if there is none."""
        return from_document(Plan, await self._plans.find_one({"_id": key}))

    async def price(self, price_id: str) -> Price | None:
        """Return a catalog row, None if there is none."""
        return from_document(Price, await self._prices.find_one({"_id": price_id}))

    async def price_for(self, plan: str, cycle: Cycle) -> Price | None:
        """Return the catalog row of a plan and cycle, None if it is not sold."""
        found = await self._prices.find_one({"plan": plan, "cycle": cycle.value})
        return from_document(Price, found)

    async def keep_product(self, price_id: str, stripe_product_id: str) -> None:
        """Keep the Stripe product of a row. Repeating it changes nothing."""
        await self._prices.update_one({"_id": price_id}, {"$set": {"stripeProductId": stripe_product_id}})

    async def keep_price(self, price: Price, currency: Currency, stripe_price_id: str) -> None:
        """Keep the Stripe price of a row and currency, unless the row has been edited since it was read."""
        await self._prices.update_one(
            {"_id": price.id, "revision": price.revision},
            {"$set": {f"stripePriceIds.{currency.value}": stripe_price_id}},
        )

    async def seed(self, plans: list[Plan], prices: list[Price]) -> None:
        """Insert the plans and prices that are missing; what people edited since stays."""
        await insert_missing(self._plans, [to_document(plan) for plan in plans])
        await insert_missing(self._prices, [to_document(price) for price in prices])


class SubscriptionRepository:
    """Reads and writes subscriptions."""

    def __init__(self, database: Database) -> None:
        self._subscriptions = database.collection("subscriptions")

    async def insert(self, subscription: Subscription, session: Session) -> None:
        """Insert the one subscription of a tenant."""
        await self._subscriptions.insert_one(to_document(subscription), session=session)

    async def of_tenant(self, tenant_id: str) -> Subscription | None:
        """Return a tenant's subscription, None if there is none."""
        return from_document(Subscription, await self._subscriptions.find_one({"tenantId": tenant_id}))

    async def of_tenants(self, tenant_ids: list[str]) -> list[Subscription]:
        """Return the subscriptions of these tenants."""
        rows = await self._subscriptions.find({"tenantId": {"$in": tenant_ids}}).to_list(None)
        return [Subscription.model_validate(row) for row in rows]

    async def keep_customer(self, tenant_id: str, customer_id: str) -> None:
        """Keep the id Stripe knows the tenant by. Repeating it changes nothing."""
        await self._subscriptions.update_one({"tenantId": tenant_id}, {"$set": {"stripeCustomerId": customer_id}})

    async def cancel(self, tenant_id: str, session: Session | None = None) -> None:
        """Mark a tenant's subscription as canceled; its ids stay. Repeating it changes nothing."""
        await self._subscriptions.update_one({"tenantId": tenant_id}, {"$set": {"status": "canceled"}}, session=session)

    async def keep_subscription(self, tenant_id: str, subscription_id: str, item_id: str, status: str) -> None:
        """Keep the ids and the status Stripe gave. Repeating it changes nothing."""
        changes = {"stripeSubscriptionId": subscription_id, "stripeItemId": item_id, "status": status}
        await self._subscriptions.update_one({"tenantId": tenant_id}, {"$set": changes})


class FlagRepository:
    """Reads and writes feature flags."""

    def __init__(self, database: Database) -> None:
        self._flags = database.collection("flags")

    async def get(self, key: str) -> Flag | None:
        """Return a flag, None if there is none."""
        return from_document(Flag, await self._flags.find_one({"_id": key}))

    async def seed(self, flags: list[Flag]) -> None:
        """Insert the flags that are missing; what people edited since stays."""
        await insert_missing(self._flags, [to_document(flag) for flag in flags])
