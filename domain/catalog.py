"""What is sold: plans, cycles, currencies and prices per seat."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from domain.model import Model, Timestamp

GIB = 1024**3


class Cycle(StrEnum):
    """How often a subscription is billed."""

    MONTHLY = "monthly"
    YEARLY = "yearly"


class Currency(StrEnum):
    """The currencies that are sold; each has two decimals, also at Stripe."""

    DKK = "DKK"
    EUR = "EUR"
    USD = "USD"


class Plan(Model):
    """A plan and what a seat of it may use."""

    key: str = Field(alias="_id")
    name: str
    storage_bytes_per_seat: int
    mail_quota_bytes: int
    max_seats: int | None = None


class Price(Model):
    """A catalog row: what a seat of a plan costs per cycle, in minor units by currency."""

    id: str = Field(alias="_id")
    plan: str
    cycle: Cycle
    amounts: dict[Currency, int]
    stripe_product_id: str | None = None
    stripe_price_ids: dict[Currency, str] = Field(default_factory=dict)
    retired_price_ids: dict[Currency, list[str]] = Field(default_factory=dict)
    revision: int = 1
    active: bool = True


class Subscription(Model):
    """A tenant's subscription: a snapshot of what it was sold for, and the ids Stripe knows it by."""

    id: str = Field(alias="_id")
    tenant_id: str
    price_id: str
    cycle: Cycle
    currency: Currency
    per_seat_amount: int
    seats: int
    status: str = "pending"
    stripe_customer_id: str | None = None
    stripe_subscription_id: str | None = None
    stripe_item_id: str | None = None
    sync_ticket: int = 0
    created_at: Timestamp
