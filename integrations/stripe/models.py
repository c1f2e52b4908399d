"""What is read from and written to Stripe.

Units: amounts are integers in the minor unit as Stripe defines it; currencies are upper case here, lower on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AliasPath, BeforeValidator, Field, model_validator

from integrations.model import VendorModel

# Our mark on an object. Only ids and the public slug: metadata is shown in the dashboard and in exports.
TENANT_ID_KEY: Final = "dezkyTenantId"
TENANT_SLUG_KEY: Final = "dezkyTenant"
OPERATION_KEY: Final = "dezkyOperation"

Interval = Literal["month", "year"]
TaxBehavior = Literal["exclusive", "inclusive", "unspecified"]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _id_of(value: object) -> object:
    # Source: a reference is an id, or the object itself where it was expanded.
    return value.get("id") if isinstance(value, Mapping) else value


Currency = Annotated[str, BeforeValidator(_upper), Field(pattern="^[A-Z]{3}$")]
Reference = Annotated[str, BeforeValidator(_id_of)]


class Customer(VendorModel):
    """A customer; `operation_id` is the operation that created it, None if it does not carry our mark."""

    id: str
    operation_id: str | None = Field(default=None, validation_alias=AliasPath("metadata", OPERATION_KEY))
    metadata: dict[str, str]
    created: datetime


class CustomerSpec(VendorModel):
    """A customer to be created."""

    name: str
    email: str | None = None
    metadata: dict[str, str]


class Product(VendorModel):
    """What prices belong to."""

    id: str
    name: str
    active: bool
    metadata: dict[str, str]


class ProductSpec(VendorModel):
    """A product to be created under our own id, which makes it unique."""

    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    metadata: dict[str, str]


class Price(VendorModel):
    """A price; `unit_amount` is None if it has fractions of the minor unit, `interval` if it does not recur."""

    id: str
    product: Reference
    currency: Currency
    unit_amount: int | None
    interval: str | None = Field(default=None, validation_alias=AliasPath("recurring", "interval"))
    lookup_key: str | None = None
    tax_behavior: str | None = None
    active: bool
    metadata: dict[str, str]


class PriceSpec(VendorModel):
    """A price to be created; its amount, currency, interval and tax behaviour can never be changed."""

    product: str
    currency: Currency
    unit_amount: int = Field(ge=0)
    interval: Interval
    lookup_key: str = Field(min_length=1, max_length=200)
    tax_behavior: TaxBehavior
    metadata: dict[str, str]


class Subscription(VendorModel):
    """A subscription and its first item, the only one that ours have."""

    id: str
    customer: Reference
    status: str
    item_id: str
    price_id: str
    quantity: int
    metadata: dict[str, str]
    currency: Currency

    @model_validator(mode="before")
    @classmethod
    def _read_item(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("items"), Mapping):
            return data
        item = (data["items"].get("data") or [{}])[0]
        price = item.get("price") or {}
        # Source: metered items have no quantity.
        return {**data, "item_id": item.get("id"), "price_id": price.get("id"), "quantity": item.get("quantity", 0)}


class SubscriptionSpec(VendorModel):
    """A subscription to be created, paid by invoice."""

    customer: str
    price: str
    quantity: int = Field(ge=1)
    days_until_due: int = Field(ge=0)
    metadata: dict[str, str]
