"""Subscriptions and the calls on their items."""

from __future__ import annotations

import time
from typing import Literal, get_args

from sandbox.state import Document, State
from sandbox.stripe.endpoints import LATEST_TIME, LIST_FIELDS, Endpoint, agrees, new_id, page
from sandbox.stripe.errors import ParameterError, StripeError, no_such
from sandbox.stripe.items import (
    MOST_ITEMS,
    changed_items,
    combined_currencies,
    new_item,
    period_end,
    present_item,
    price_of,
    refuse_repeated_prices,
    usable_price,
)
from sandbox.stripe.params import (
    Check,
    Params,
    array,
    boolean,
    choice,
    currency,
    either,
    fields,
    merged_metadata,
    metadata,
    missing,
    number,
    text,
    unsettable,
)

Status = Literal["active", "canceled", "incomplete", "incomplete_expired", "past_due", "paused", "trialing", "unpaid"]
ENDED = ("canceled", "incomplete_expired")
_DAY_SECONDS = 86400

_TIME = number(0, LATEST_TIME)
_PRORATION: dict[str, Check] = {
    "proration_behavior": choice("create_prorations", "none", "always_invoice"),
    "payment_behavior": choice(
        "allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"
    ),
}
_ITEM: dict[str, Check] = {"price": text, "quantity": number(least=0), "metadata": metadata}
_CANCELLATION = fields({"comment": unsettable(text), "feedback": unsettable(text)})
_COMMON: dict[str, Check] = {
    **_PRORATION,
    "cancel_at_period_end": boolean,
    "collection_method": choice("charge_automatically", "send_invoice"),
    "days_until_due": number(least=0),
    "default_payment_method": unsettable(text),
    "description": unsettable(text),
    "metadata": metadata,
    "off_session": boolean,
    "trial_end": either(choice("now"), _TIME),
}
_CREATE: dict[str, Check] = {
    **_COMMON,
    "billing_cycle_anchor": _TIME,
    "billing_mode": fields({"type": choice("classic", "flexible")}, required=["type"]),
    "cancel_at": _TIME,
    "currency": currency,
    "customer": text,
    "items": array(fields(_ITEM, required=["price"]), most=MOST_ITEMS),
    "trial_period_days": number(0, 730),
}
_UPDATE: dict[str, Check] = {
    **_COMMON,
    "billing_cycle_anchor": fields({"type": choice("now", "unchanged")}, required=["type"]),
    "cancel_at": unsettable(either(choice("min_period_end", "max_period_end"), _TIME)),
    "cancellation_details": _CANCELLATION,
    "items": array(fields({**_ITEM, "id": text, "deleted": boolean, "clear_usage": boolean}), most=MOST_ITEMS),
    "pause_collection": unsettable(
        fields(
            {"behavior": choice("keep_as_draft", "mark_uncollectible", "void"), "resumes_at": _TIME},
            required=["behavior"],
        )
    ),
    "proration_date": _TIME,
}
# What an update may still name; everything else is refused.
_OF_CANCELED = {"metadata", "cancellation_details"}
_OF_INCOMPLETE = {"metadata", "default_payment_method"}
_STORED_AS_SENT = (
    "cancel_at_period_end",
    "collection_method",
    "days_until_due",
    "default_payment_method",
    "description",
)


class Subscriptions:
    """Who pays which prices, and since when."""

    def __init__(self, state: State) -> None:
        self._subscriptions = state.table("subscriptions")
        self._customers = state.table("customers")
        self._prices = state.table("prices")

    def endpoints(self) -> list[Endpoint]:
        """Return the calls on subscriptions and their items."""
        subscriptions = fields(
            {
                **LIST_FIELDS,
                "collection_method": choice("charge_automatically", "send_invoice"),
                "customer": text,
                "price": text,
                "status": choice(*get_args(Status), "all", "ended"),
            }
        )
        cancel = fields({"invoice_now": boolean, "prorate": boolean, "cancellation_details": _CANCELLATION})
        update_item = fields({**_ITEM, **_PRORATION, "proration_date": _TIME, "off_session": boolean})
        items = fields({**LIST_FIELDS, "subscription": text}, required=["subscription"])
        return [
            Endpoint("POST", "/v1/subscriptions", fields(_CREATE, required=["customer", "items"]), self.create),
            Endpoint("GET", "/v1/subscriptions", subscriptions, self.list_subscriptions),
            Endpoint("GET", "/v1/subscriptions/{object_id}", fields({}), self.retrieve),
            Endpoint("POST", "/v1/subscriptions/{object_id}", fields(_UPDATE), self.update),
            Endpoint("DELETE", "/v1/subscriptions/{object_id}", cancel, self.cancel),
            Endpoint("GET", "/v1/subscription_items", items, self.list_items),
            Endpoint("GET", "/v1/subscription_items/{object_id}", fields({}), self.retrieve_item),
            Endpoint("POST", "/v1/subscription_items/{object_id}", update_item, self.update_item),
        ]

    def create(self, params: Params) -> Document:
        """Subscribe a customer. No invoice is made: `latest_invoice` stays null."""
        customer = self._customers.get(params["customer"])
        if customer is None:
            raise no_such("customer", params["customer"], param="customer")
        if not params["items"]:
            raise missing("items")
        _check_due(params.get("collection_method", "charge_automatically"), params.get("days_until_due"))
        currency = self._currency(customer["id"], params)
        now = int(time.time())
        trial_end = _trial_end(params, now)
        anchor = trial_end or params.get("billing_cycle_anchor") or now
        prices = [
            usable_price(self._prices, entry["price"], currency, f"items[{position}][price]")
            for position, entry in enumerate(params["items"])
        ]
        first_end = anchor if anchor > now else None
        items = [new_item(price, entry, now, first_end) for price, entry in zip(prices, params["items"], strict=True)]
        refuse_repeated_prices(items)
        subscription: Document = {
            "id": new_id("sub"),
            "billing_cycle_anchor": anchor,
            "billing_mode": {
                "type": params.get("billing_mode", {}).get("type", "flexible"),
                "flexible": None,
                "updated_at": now,
            },
            "cancel_at": params.get("cancel_at"),
            "cancel_at_period_end": False,
            "canceled_at": None,
            "cancellation_details": {"comment": None, "feedback": None, "reason": None},
            "collection_method": "charge_automatically",
            "created": now,
            "currency": currency,
            "customer": customer["id"],
            "days_until_due": None,
            "default_payment_method": None,
            "description": None,
            "ended_at": None,
            "items": items,
            "metadata": merged_metadata({}, params),
            "pause_collection": None,
            "start_date": now,
            "status": self._first_status(params, prices, trial_end),
            "trial_end": trial_end,
            "trial_start": now if trial_end else None,
            **{name: params[name] for name in _STORED_AS_SENT if name in params},
        }
        self._subscriptions.put(subscription["id"], subscription)
        self._customers.put(customer["id"], {**customer, "currency": currency})
        return self._present(subscription)

    def retrieve(self, _params: Params, object_id: str) -> Document:
        """Return a subscription."""
        return self._present(self._existing(object_id))

    def list_subscriptions(self, params: Params) -> Document:
        """Return a page of subscriptions; without `status`, of all that are not canceled."""
        wanted = params.get("status")

        def keep(row: Document) -> bool:
            if wanted is None:
                in_status = row["status"] != "canceled"
            elif wanted == "ended":
                in_status = row["status"] in ENDED
            else:
                in_status = wanted in ("all", row["status"])
            on_price = "price" not in params or any(item["price"] == params["price"] for item in row["items"])
            return in_status and on_price and agrees(row, params, "customer", "collection_method")

        found = page("/v1/subscriptions", "subscription", self._subscriptions, params, keep)
        return {**found, "data": [self._present(row) for row in found["data"]]}

    def update(self, params: Params, object_id: str) -> Document:
        """Change what was sent, all of it or nothing."""
        stored = self._existing(object_id)
        _check_changeable(stored, set(params) - {"off_session", "payment_behavior", "proration_behavior"})
        now = int(time.time())
        changed = {**stored, **{name: params[name] for name in _STORED_AS_SENT if name in params}}
        changed["metadata"] = merged_metadata(stored["metadata"], params)
        if {"collection_method", "days_until_due"} & params.keys():
            if changed["collection_method"] == "charge_automatically" and "days_until_due" not in params:
                changed["days_until_due"] = None
            _check_due(changed["collection_method"], changed["days_until_due"])
        if "pause_collection" in params:
            pause = params["pause_collection"]
            changed["pause_collection"] = pause and {"resumes_at": None, **pause}
        if "cancellation_details" in params:
            changed["cancellation_details"] = {**stored["cancellation_details"], **params["cancellation_details"]}
        if "items" in params:
            change = changed_items(stored["items"], params["items"], self._prices, stored["currency"])
            changed["items"] = change.items
            if change.interval_changed and stored["billing_mode"]["type"] == "classic":
                self._restart_periods(changed, now)
        if params.get("billing_cycle_anchor", {}).get("type") == "now":
            self._restart_periods(changed, now)
        if "trial_end" in params:
            self._move_trial_end(changed, now if params["trial_end"] == "now" else params["trial_end"], now)
        if "cancel_at" in params:
            ends = [item["current_period_end"] for item in changed["items"]]
            words = {"min_period_end": min(ends), "max_period_end": max(ends)}
            changed["cancel_at"] = words.get(params["cancel_at"], params["cancel_at"])
        if "cancel_at_period_end" in params:
            leaving: bool = params["cancel_at_period_end"]
            changed["cancel_at"] = min(item["current_period_end"] for item in changed["items"]) if leaving else None
            changed["canceled_at"] = now if leaving else None
        return self._present(self._subscriptions.put(object_id, changed))

    def cancel(self, params: Params, object_id: str) -> Document:
        """End a subscription at once, for good; an ended one is not found."""
        stored = self._existing(object_id)
        if stored["status"] in ENDED:
            raise no_such("subscription", object_id)
        now = int(time.time())
        details = {**stored["cancellation_details"], **params.get("cancellation_details", {})}
        canceled = {
            **stored,
            "status": "canceled",
            "canceled_at": now,
            "ended_at": now,
            "cancellation_details": {**details, "reason": "cancellation_requested"},
        }
        return self._present(self._subscriptions.put(object_id, canceled))

    def cancel_all(self, customer_id: str) -> None:
        """Cancel what a customer still has."""
        for row in self._subscriptions:
            if row["customer"] == customer_id and row["status"] not in ENDED:
                self.cancel({}, row["id"])

    def set_status(self, object_id: str, status: Status) -> Document:
        """Put a subscription into a status that only payments would lead to; for tests."""
        return self._present(self._subscriptions.put(object_id, {**self._existing(object_id), "status": status}))

    def everything(self) -> list[Document]:
        """Return all subscriptions, oldest first."""
        return [self._present(row) for row in self._subscriptions]

    def list_items(self, params: Params) -> Document:
        """Return a page of the items of a subscription."""
        items = self._present(self._existing(params["subscription"], param="subscription"))["items"]["data"]
        return page("/v1/subscription_items", "subscription_item", items, params, lambda _: True)

    def retrieve_item(self, _params: Params, object_id: str) -> Document:
        """Return an item."""
        holder = self._holder(object_id)
        item = next(item for item in holder["items"] if item["id"] == object_id)
        return present_item(item, holder["id"], self._prices)

    def update_item(self, params: Params, object_id: str) -> Document:
        """Change one item as an update of its subscription would."""
        change = {name: params[name] for name in _ITEM if name in params}
        self.update({"items": [{**change, "id": object_id}]}, self._holder(object_id)["id"])
        return self.retrieve_item({}, object_id)

    def _existing(self, subscription_id: str, param: str | None = None) -> Document:
        subscription = self._subscriptions.get(subscription_id)
        if subscription is None:
            raise no_such("subscription", subscription_id, param=param)
        return subscription

    def _holder(self, item_id: str) -> Document:
        for row in self._subscriptions:
            if any(item["id"] == item_id for item in row["items"]):
                return row
        raise no_such("subscription_item", item_id)

    def _currency(self, customer_id: str, params: Params) -> str:
        first = usable_price(self._prices, params["items"][0]["price"], params.get("currency"), "items[0][price]")
        currency: str = first["currency"]
        held = (row for row in self._subscriptions if row["customer"] == customer_id and row["status"] not in ENDED)
        if any(row["currency"] != currency for row in held):
            raise combined_currencies("customer")
        return currency

    def _first_status(self, params: Params, prices: list[Document], trial_end: int | None) -> str:
        if trial_end:
            return "trialing"
        free = all(price["unit_amount"] == 0 for price in prices)
        if params.get("collection_method") == "send_invoice" or params.get("default_payment_method") or free:
            return "active"
        if params.get("payment_behavior") == "default_incomplete":
            return "incomplete"
        raise StripeError(
            "This customer has no attached payment source or default payment method.", code="resource_missing"
        )

    def _restart_periods(self, subscription: Document, now: int) -> None:
        subscription["billing_cycle_anchor"] = now
        subscription["items"] = [
            {
                **item,
                "current_period_start": now,
                "current_period_end": period_end(now, price_of(item, self._prices)),
            }
            for item in subscription["items"]
        ]

    def _move_trial_end(self, subscription: Document, trial_end: int, now: int) -> None:
        if trial_end <= now:
            subscription.update(status="active", trial_end=now if subscription["trial_end"] else None)
            self._restart_periods(subscription, now)
            return
        subscription.update(status="trialing", trial_end=trial_end, billing_cycle_anchor=trial_end)
        subscription["trial_start"] = subscription["trial_start"] or now
        subscription["items"] = [{**item, "current_period_end": trial_end} for item in subscription["items"]]

    def _present(self, subscription: Document) -> Document:
        items = [present_item(item, subscription["id"], self._prices) for item in subscription["items"]]
        return {
            "object": "subscription",
            "application": None,
            "application_fee_percent": None,
            "automatic_tax": {"enabled": False, "disabled_reason": None, "liability": None},
            "billing_cycle_anchor_config": None,
            "billing_schedules": [],
            "billing_thresholds": None,
            "default_source": None,
            "default_tax_rates": [],
            "discounts": [],
            "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
            "latest_invoice": None,
            "livemode": False,
            "next_pending_invoice_item_invoice": None,
            "on_behalf_of": None,
            "payment_settings": None,
            "pending_invoice_item_interval": None,
            "pending_setup_intent": None,
            "pending_update": None,
            "schedule": None,
            "test_clock": None,
            "transfer_data": None,
            "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
            **subscription,
            "items": {
                "object": "list",
                "data": items,
                "has_more": False,
                "url": f"/v1/subscription_items?subscription={subscription['id']}",
            },
        }


def _check_due(collection_method: str, days_until_due: int | None) -> None:
    if collection_method == "send_invoice" and days_until_due is None:
        raise missing("days_until_due")
    if collection_method != "send_invoice" and days_until_due is not None:
        raise ParameterError(
            "`days_until_due` is only valid for subscriptions with `collection_method=send_invoice`.",
            param="days_until_due",
        )


def _check_changeable(subscription: Document, sent: set[str]) -> None:
    if subscription["status"] in ENDED and not sent <= _OF_CANCELED:
        raise StripeError(
            "A canceled subscription can only update its cancellation_details and metadata.",
            code="invalid_canceled_subscription_fields",
        )
    if subscription["status"] == "incomplete" and not sent <= _OF_INCOMPLETE:
        raise StripeError("An incomplete subscription can only update its metadata and default payment method.")


def _trial_end(params: Params, now: int) -> int | None:
    if params.get("trial_period_days"):
        return now + int(params["trial_period_days"]) * _DAY_SECONDS
    end = params.get("trial_end")
    return None if end in (None, "now") or end <= now else int(end)
