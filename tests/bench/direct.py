"""The vendor calls of one provisioning run, made without workflow, database or record: the least that it can take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from activities.stalwart import DIRECTORY_LEAKS, DKIM_POLL
from domain.ids import drive_alias, price_lookup_key, product_id, tenant_group, tenant_marker
from integrations.authentik import UserSpec
from integrations.ocis import SPACE_EDITOR, SpaceSpec
from integrations.stalwart import MailboxSpec, RoleSpec
from integrations.stripe import CustomerSpec, PriceSpec, ProductSpec, SubscriptionSpec
from runtime.wiring import Vendors

ROW = "business-monthly"


@dataclass(frozen=True)
class DirectRun:
    """One tenant's worth of calls."""

    vendors: Vendors
    slug: str
    with_domain: bool
    parallel: bool

    async def run(self) -> None:
        """Make the calls, branches and independent calls at once if `parallel`, else one after another."""
        await self._all(self._login(), self._mail(), self._files(), self._billing())

    async def _all(self, *parts: Awaitable[object]) -> None:
        if self.parallel:
            await asyncio.gather(*parts)
        else:
            for part in parts:
                await part

    async def _login(self) -> None:
        authentik, name, email = self.vendors.authentik, tenant_group(self.slug), f"admin@{self.slug}.example"

        async def group() -> None:
            await authentik.find_group(name)
            await authentik.create_group(name, {"dezkyTenantId": self.slug})

        async def user() -> None:
            await authentik.find_user(email)
            await authentik.create_user(UserSpec(username=email, email=email, name=email, attributes={}))

        await self._all(group(), user())
        made, person = await authentik.find_group(name), await authentik.find_user(email)
        assert made is not None
        assert person is not None
        await authentik.add_user_to_group(made.pk, person.pk)

    async def _mail(self) -> None:
        stalwart, marker = self.vendors.stalwart, tenant_marker(self.slug)
        domain = f"{self.slug}.example"

        async def role() -> None:
            await stalwart.find_roles(marker)
            everyday = await stalwart.find_user_role()
            inherits = (everyday.id,) if everyday is not None else ()
            await stalwart.create_role(
                RoleSpec(description=marker, disabled_permissions=DIRECTORY_LEAKS, inherits=inherits)
            )

        async def keys() -> None:
            await stalwart.find_domain(domain)
            made = await stalwart.create_domain(domain, marker)
            await stalwart.find_domain(domain)
            while len(await stalwart.dkim_keys(made)) < 2:
                await asyncio.sleep(DKIM_POLL.total_seconds())
            await stalwart.read_dns_records(made)

        await self._all(role(), *([keys()] if self.with_domain else []))
        roles = await stalwart.find_roles(marker)
        if self.with_domain:
            found = await stalwart.find_domain(domain)
            assert found is not None
            await stalwart.find_mailbox("admin", found.id)
            await stalwart.create_mailbox(
                MailboxSpec(
                    local_part="admin",
                    domain_id=found.id,
                    description=marker,
                    role_id=roles[0].id,
                    quota_bytes=1024**3,
                )
            )

    async def _files(self) -> None:
        ocis, alias = self.vendors.ocis, drive_alias(self.slug)

        async def group() -> None:
            await ocis.find_group(tenant_group(self.slug))
            await ocis.create_group(tenant_group(self.slug))

        async def space() -> None:
            await ocis.find_spaces(alias)
            await ocis.create_space(SpaceSpec(name=self.slug, drive_alias=alias, description="", quota_bytes=1024**3))

        await self._all(group(), space())
        made, spaces = await ocis.find_group(tenant_group(self.slug)), await ocis.find_spaces(alias)
        assert made is not None
        await ocis.space_members(spaces[0].id)
        await ocis.invite_group(spaces[0].id, made.id, SPACE_EDITOR)

    async def _billing(self) -> None:
        stripe = self.vendors.stripe
        marks = {"dezkyTenantId": self.slug}
        since = datetime.now(UTC) - timedelta(minutes=5)
        lookup_key = price_lookup_key(ROW, "DKK", 1)

        async def customer() -> None:
            await stripe.find_customers(since, self.slug)
            await stripe.create_customer(CustomerSpec(name=self.slug, metadata=marks), f"bench:{self.slug}:customer")

        async def price() -> None:
            if await stripe.find_product(product_id(ROW)) is None:
                await stripe.create_product(ProductSpec(id=product_id(ROW), name=ROW, metadata={"dezkyPrice": ROW}))
            if await stripe.find_price(lookup_key) is None:
                spec = PriceSpec(
                    product=product_id(ROW),
                    currency="DKK",
                    unit_amount=9900,
                    interval="month",
                    lookup_key=lookup_key,
                    tax_behavior="exclusive",
                    metadata={"dezkyPrice": ROW},
                )
                await stripe.create_price(spec, f"{lookup_key}:1")

        await self._all(customer(), price())
        customers, found = await stripe.find_customers(since, self.slug), await stripe.find_price(lookup_key)
        assert found is not None
        await stripe.find_subscriptions(customers[0].id)
        spec = SubscriptionSpec(customer=customers[0].id, price=found.id, quantity=3, days_until_due=14, metadata=marks)
        await stripe.create_subscription(spec, f"bench:{self.slug}:subscription")
