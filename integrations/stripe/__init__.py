"""Stripe: customers, products, prices and subscriptions."""

from integrations.stripe.client import StripeBilling
from integrations.stripe.models import (
    OPERATION_KEY,
    TENANT_ID_KEY,
    TENANT_SLUG_KEY,
    Customer,
    CustomerSpec,
    Interval,
    Price,
    PriceSpec,
    Product,
    ProductSpec,
    Subscription,
    SubscriptionSpec,
    TaxBehavior,
)

__all__ = [
    "OPERATION_KEY",
    "TENANT_ID_KEY",
    "TENANT_SLUG_KEY",
    "Customer",
    "CustomerSpec",
    "Interval",
    "Price",
    "PriceSpec",
    "Product",
    "ProductSpec",
    "StripeBilling",
    "Subscription",
    "SubscriptionSpec",
    "TaxBehavior",
]
