"""Products and prices."""

from __future__ import annotations

import time

from sandbox.state import Document, State
from sandbox.stripe.endpoints import LIST_FIELDS, Endpoint, agrees, new_id, page
from sandbox.stripe.errors import ParameterError, StripeError, no_such
from sandbox.stripe.params import (
    Check,
    Params,
    array,
    boolean,
    choice,
    currency,
    decimal,
    fields,
    merged_metadata,
    metadata,
    missing,
    number,
    text,
    unsettable,
)

LOOKUP_KEYS_PER_LIST = 10

_INTERVAL = choice("day", "week", "month", "year")
_USAGE = choice("licensed", "metered")
_PRODUCT_FIELDS: dict[str, Check] = {
    "name": text,
    "active": boolean,
    "description": unsettable(text),
    "metadata": metadata,
    "tax_code": unsettable(text),
    "unit_label": unsettable(text),
    "url": unsettable(text),
}
_PRICE_CHANGES: dict[str, Check] = {
    "active": boolean,
    "nickname": unsettable(text),
    "metadata": metadata,
    "lookup_key": unsettable(text),
    "transfer_lookup_key": boolean,
    "tax_behavior": choice("exclusive", "inclusive", "unspecified"),
}
_PRICE_FIELDS: dict[str, Check] = {
    **_PRICE_CHANGES,
    "currency": currency,
    "product": text,
    "unit_amount": number(least=0),
    "unit_amount_decimal": decimal,
    "billing_scheme": choice("per_unit"),
    "recurring": fields(
        {
            "interval": _INTERVAL,
            "interval_count": number(1, 156),
            "usage_type": _USAGE,
            "trial_period_days": number(least=1),
        },
        required=["interval"],
    ),
    "transform_quantity": fields(
        {"divide_by": number(least=1), "round": choice("down", "up")}, required=["divide_by", "round"]
    ),
}


class Catalog:
    """What can be sold."""

    def __init__(self, state: State) -> None:
        self._products = state.table("products")
        self._prices = state.table("prices")

    def endpoints(self) -> list[Endpoint]:
        """Return the calls on products and prices."""
        products = fields({**LIST_FIELDS, "active": boolean, "ids": array(text)})
        prices = fields(
            {
                **LIST_FIELDS,
                "active": boolean,
                "currency": currency,
                "product": text,
                "type": choice("one_time", "recurring"),
                "lookup_keys": array(text, most=LOOKUP_KEYS_PER_LIST),
                "recurring": fields({"interval": _INTERVAL, "usage_type": _USAGE}),
            }
        )
        create_product = fields({**_PRODUCT_FIELDS, "id": text}, required=["name"])
        update_product = fields({**_PRODUCT_FIELDS, "default_price": text})
        return [
            Endpoint("POST", "/v1/products", create_product, self.create_product),
            Endpoint("GET", "/v1/products", products, self.list_products),
            Endpoint("GET", "/v1/products/{object_id}", fields({}), self.retrieve_product),
            Endpoint("POST", "/v1/products/{object_id}", update_product, self.update_product),
            Endpoint("POST", "/v1/prices", _check_new_price, self.create_price),
            Endpoint("GET", "/v1/prices", prices, self.list_prices),
            Endpoint("GET", "/v1/prices/{object_id}", fields({}), self.retrieve_price),
            Endpoint("POST", "/v1/prices/{object_id}", fields(_PRICE_CHANGES), self.update_price),
        ]

    def create_product(self, params: Params) -> Document:
        """Create a product; an id of the caller's own can be used once."""
        product_id: str = params.get("id") or new_id("prod")
        if product_id in self._products:
            raise StripeError("Product already exists.", code="resource_already_exists", param="id")
        now = int(time.time())
        product: Document = {
            "id": product_id,
            "object": "product",
            "active": True,
            "created": now,
            "default_price": None,
            "description": None,
            "images": [],
            "livemode": False,
            "marketing_features": [],
            "name": params["name"],
            "package_dimensions": None,
            "shippable": None,
            "statement_descriptor": None,
            "tax_code": None,
            "type": "service",
            "unit_label": None,
            "updated": now,
            "url": None,
        }
        return self._products.put(product_id, {**product, **params, "id": product_id, **_metadata_of({}, params)})

    def retrieve_product(self, _params: Params, object_id: str) -> Document:
        """Return a product."""
        product = self._products.get(object_id)
        if product is None:
            raise no_such("product", object_id)
        return product

    def update_product(self, params: Params, object_id: str) -> Document:
        """Change what was sent; the default price must be one of the product's."""
        product = self.retrieve_product({}, object_id)
        if "default_price" in params:
            price = self._prices.get(params["default_price"])
            if price is None or price["product"] != object_id:
                raise no_such("price", params["default_price"], param="default_price")
        changed = {**product, **params, **_metadata_of(product["metadata"], params), "updated": int(time.time())}
        return self._products.put(object_id, changed)

    def list_products(self, params: Params) -> Document:
        """Return a page of products."""

        def keep(product: Document) -> bool:
            return agrees(product, params, "active") and ("ids" not in params or product["id"] in params["ids"])

        return page("/v1/products", "product", self._products, params, keep)

    def create_price(self, params: Params) -> Document:
        """Create a price of an existing product; amount, currency and interval never change afterwards."""
        if params["product"] not in self._products:
            raise no_such("product", params["product"], param="product")
        self._claim_lookup_key(None, params)
        price_id = new_id("price")
        sent = {name: value for name, value in params.items() if name != "transfer_lookup_key"}
        amount: int | None = params.get("unit_amount")
        if amount is None and params["unit_amount_decimal"].isdigit():
            amount = int(params["unit_amount_decimal"])
        recurring = params.get("recurring")
        price: Document = {
            "id": price_id,
            "object": "price",
            "active": True,
            "billing_scheme": "per_unit",
            "created": int(time.time()),
            "custom_unit_amount": None,
            "livemode": False,
            "lookup_key": None,
            "nickname": None,
            "tax_behavior": "unspecified",
            "tiers_mode": None,
            "transform_quantity": None,
            "unit_amount_decimal": str(amount),
            **sent,
            "recurring": recurring
            and {"interval_count": 1, "meter": None, "trial_period_days": None, "usage_type": "licensed", **recurring},
            "type": "recurring" if recurring else "one_time",
            "unit_amount": amount,
            **_metadata_of({}, params),
        }
        return self._prices.put(price_id, price)

    def retrieve_price(self, _params: Params, object_id: str) -> Document:
        """Return a price."""
        price = self._prices.get(object_id)
        if price is None:
            raise no_such("price", object_id)
        return price

    def update_price(self, params: Params, object_id: str) -> Document:
        """Change what may change; a product's default price cannot be archived."""
        price = self.retrieve_price({}, object_id)
        product = self._products.get(price["product"])
        if params.get("active") is False and product is not None and product["default_price"] == object_id:
            raise StripeError(
                "This price cannot be archived because it is the default price of its product.", param="active"
            )
        behavior = params.get("tax_behavior", price["tax_behavior"])
        if price["tax_behavior"] not in ("unspecified", behavior):
            raise StripeError("The tax behavior of a price cannot be changed once it is set.", param="tax_behavior")
        self._claim_lookup_key(object_id, params)
        sent = {name: value for name, value in params.items() if name != "transfer_lookup_key"}
        return self._prices.put(object_id, {**price, **sent, **_metadata_of(price["metadata"], params)})

    def list_prices(self, params: Params) -> Document:
        """Return a page of prices."""

        def keep(price: Document) -> bool:
            keys = params.get("lookup_keys")
            return (
                agrees(price, params, "active", "currency", "product", "type")
                and (keys is None or price["lookup_key"] in keys)
                and agrees(price["recurring"] or {}, params.get("recurring", {}), "interval", "usage_type")
            )

        return page("/v1/prices", "price", self._prices, params, keep)

    def _claim_lookup_key(self, price_id: str | None, params: Params) -> None:
        key = params.get("lookup_key")
        if key is None:
            return
        holder = next((row for row in self._prices if row["lookup_key"] == key and row["id"] != price_id), None)
        if holder is None:
            return
        if not params.get("transfer_lookup_key"):
            raise StripeError(
                f"A price (`{holder['id']}`) already uses that lookup key.",
                code="resource_already_exists",
                param="lookup_key",
            )
        self._prices.put(holder["id"], {**holder, "lookup_key": None})


def _check_new_price(value: Params, name: str) -> Params:
    params: Params = fields(_PRICE_FIELDS, required=["currency", "product"])(value, name)
    if "unit_amount" in params and "unit_amount_decimal" in params:
        raise ParameterError("You may only specify one of unit_amount, unit_amount_decimal.", param="unit_amount")
    if "unit_amount" not in params and "unit_amount_decimal" not in params:
        raise missing("unit_amount")
    return params


def _metadata_of(stored: dict[str, str], params: Params) -> Document:
    return {"metadata": merged_metadata(stored, params)}
