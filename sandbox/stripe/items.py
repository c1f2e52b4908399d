"""The items of a subscription: which price, how many, for which period. Nothing here is stored."""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from sandbox.state import Document, Table
from sandbox.stripe.endpoints import new_id
from sandbox.stripe.errors import StripeError, no_such
from sandbox.stripe.params import Params, merged_metadata, missing

MOST_ITEMS = 20

_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "year": 12}
_DAY_SECONDS = 86400


@dataclass(frozen=True)
class Change:
    """What a changed list of items means for its subscription."""

    items: list[Document]
    interval_changed: bool


def period_end(start: int, price: Document) -> int:
    """Return when a period that begins at `start` ends; a day that the month lacks becomes its last day."""
    interval: str = price["recurring"]["interval"]
    count: int = price["recurring"]["interval_count"]
    if interval in _DAYS:
        return start + _DAYS[interval] * count * _DAY_SECONDS
    begin = datetime.fromtimestamp(start, UTC)
    years, month = divmod(begin.month - 1 + _MONTHS[interval] * count, 12)
    year = begin.year + years
    day = min(begin.day, calendar.monthrange(year, month + 1)[1])
    return int(begin.replace(year=year, month=month + 1, day=day).timestamp())


def new_item(price: Document, params: Params, start: int, end: int | None = None) -> Document:
    """Return an item on this price whose first period starts at `start`."""
    return {
        "id": new_id("si"),
        "price": price["id"],
        "quantity": None if _metered(price) else params.get("quantity", 1),
        "metadata": merged_metadata({}, params),
        "created": int(time.time()),
        "current_period_start": start,
        "current_period_end": end or period_end(start, price),
    }


def changed_items(stored: list[Document], changes: list[Params], prices: Table, currency: str) -> Change:
    """Return the items after an update; `stored` is left as it is.

    An entry without `id` adds an item, `deleted` removes one, and a new price without `quantity` resets it to 1.
    """
    items = {item["id"]: item for item in stored}
    interval_changed = False
    now = int(time.time())
    for position, change in enumerate(changes):
        param = f"items[{position}]"
        if "id" not in change:
            if "price" not in change:
                raise missing(f"{param}[price]")
            added = new_item(usable_price(prices, change["price"], currency, f"{param}[price]"), change, now)
            items[added["id"]] = added
            continue
        item = items.get(change["id"])
        if item is None:
            raise no_such("subscription_item", change["id"], param=f"{param}[id]")
        if change.get("deleted"):
            del items[item["id"]]
            continue
        changed = _changed(item, change, prices, currency, f"{param}[price]")
        interval_changed |= _rhythm(prices, item) != _rhythm(prices, changed)
        items[item["id"]] = changed
    if not items:
        raise StripeError("A subscription must have at least one active item.", param="items")
    result = list(items.values())
    refuse_repeated_prices(result)
    if len(result) > MOST_ITEMS:
        raise StripeError(f"A subscription can have up to {MOST_ITEMS} items.", param="items")
    return Change(result, interval_changed)


def usable_price(prices: Table, price_id: str, currency: str | None, param: str) -> Document:
    """Return a price that may be newly attached to a subscription in that currency (any, if None)."""
    price = prices.get(price_id)
    if price is None:
        raise no_such("price", price_id, param=param)
    if not price["active"]:
        raise StripeError(
            "The price specified is inactive. This field only accepts active prices.",
            code="price_inactive",
            param=param,
        )
    if price["type"] != "recurring":
        raise StripeError(
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.",
            param=param,
        )
    if currency is not None and price["currency"] != currency:
        raise combined_currencies(param)
    return price


def refuse_repeated_prices(items: list[Document]) -> None:
    """Raise if two items have one price."""
    seen: set[str] = set()
    for item in items:
        if item["price"] in seen:
            raise StripeError(
                f"Cannot add multiple subscription items with the same plan: {item['price']}", param="items"
            )
        seen.add(item["price"])


def combined_currencies(param: str) -> StripeError:
    """Return the refusal of a second currency."""
    return StripeError(
        "You cannot combine currencies on a single customer or subscription: it already has another currency.",
        param=param,
    )


def price_of(item: Document, prices: Table) -> Document:
    """Return the price of an item."""
    price = prices.get(item["price"])
    assert price is not None, "prices are never deleted"
    return price


def present_item(item: Document, subscription_id: str, prices: Table) -> Document:
    """Return an item as the API shows it, with its price as it is now."""
    price = price_of(item, prices)
    recurring = price["recurring"]
    return {
        "object": "subscription_item",
        "billing_thresholds": None,
        "discounts": [],
        "subscription": subscription_id,
        "tax_rates": [],
        **item,
        "price": price,
        "plan": {
            "id": price["id"],
            "object": "plan",
            "active": price["active"],
            "amount": price["unit_amount"],
            "amount_decimal": price["unit_amount_decimal"],
            "billing_scheme": price["billing_scheme"],
            "created": price["created"],
            "currency": price["currency"],
            "interval": recurring["interval"],
            "interval_count": recurring["interval_count"],
            "livemode": False,
            "metadata": price["metadata"],
            "meter": None,
            "nickname": price["nickname"],
            "product": price["product"],
            "tiers_mode": None,
            "transform_usage": None,
            "trial_period_days": recurring["trial_period_days"],
            "usage_type": recurring["usage_type"],
        },
    }


def _changed(item: Document, change: Params, prices: Table, currency: str, param: str) -> Document:
    changed = {**item, "metadata": merged_metadata(item["metadata"], change)}
    if "quantity" in change:
        changed["quantity"] = change["quantity"]
    if change.get("price", item["price"]) == item["price"]:
        return changed
    price = usable_price(prices, change["price"], currency, param)
    changed["price"] = price["id"]
    changed["quantity"] = None if _metered(price) else change.get("quantity", 1)
    if _rhythm(prices, item) != _rhythm(prices, changed):
        # The item bills in the new rhythm from the change on.
        changed["current_period_start"] = int(time.time())
        changed["current_period_end"] = period_end(changed["current_period_start"], price)
    return changed


def _rhythm(prices: Table, item: Document) -> tuple[str, int]:
    recurring = price_of(item, prices)["recurring"]
    return recurring["interval"], recurring["interval_count"]


def _metered(price: Document) -> bool:
    return bool(price["recurring"]["usage_type"] == "metered")
