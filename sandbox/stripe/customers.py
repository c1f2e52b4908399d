"""Customers."""

from __future__ import annotations

import time
from collections.abc import Callable

from sandbox.state import Document, State
from sandbox.stripe.endpoints import LIST_FIELDS, Endpoint, agrees, new_id, page
from sandbox.stripe.errors import ParameterError, no_such
from sandbox.stripe.params import (
    Check,
    Params,
    array,
    choice,
    fields,
    merged_metadata,
    metadata,
    text,
    unsettable,
)

_ADDRESS = ("city", "country", "line1", "line2", "postal_code", "state")


def _email(value: object, name: str) -> str:
    email = text(value, name)
    if email.count("@") != 1 or email.startswith("@") or email.endswith("@"):
        raise ParameterError(f"Invalid email address: {email}", code="email_invalid", param=name)
    return email


_CUSTOMER_FIELDS: dict[str, Check] = {
    "address": unsettable(fields(dict.fromkeys(_ADDRESS, unsettable(text)))),
    "business_name": unsettable(text),
    "description": unsettable(text),
    "email": unsettable(_email),
    "individual_name": unsettable(text),
    "metadata": metadata,
    "name": unsettable(text),
    "phone": unsettable(text),
    "preferred_locales": array(text),
    "tax_exempt": choice("none", "exempt", "reverse"),
}


class Customers:
    """Who is billed. Nothing about a customer is unique but the id: creating twice makes two."""

    def __init__(self, state: State, cancel_subscriptions: Callable[[str], None]) -> None:
        """Take what is to happen to the subscriptions of a customer who is deleted."""
        self._customers = state.table("customers")
        self._deleted = state.table("deleted_customers")
        self._cancel_subscriptions = cancel_subscriptions

    def endpoints(self) -> list[Endpoint]:
        """Return the calls on customers."""
        return [
            Endpoint("POST", "/v1/customers", fields(_CUSTOMER_FIELDS), self.create),
            Endpoint("GET", "/v1/customers", fields({**LIST_FIELDS, "email": text}), self.list_customers),
            Endpoint("GET", "/v1/customers/{object_id}", fields({}), self.retrieve),
            Endpoint("POST", "/v1/customers/{object_id}", fields(_CUSTOMER_FIELDS), self.update),
            Endpoint("DELETE", "/v1/customers/{object_id}", fields({}), self.delete),
        ]

    def create(self, params: Params) -> Document:
        """Create a customer."""
        customer_id = new_id("cus")
        customer: Document = {
            "id": customer_id,
            "object": "customer",
            "address": None,
            "balance": 0,
            "created": int(time.time()),
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": None,
            "discount": None,
            "email": None,
            "invoice_prefix": customer_id[-8:].upper(),
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "livemode": False,
            "name": None,
            "next_invoice_sequence": 1,
            "phone": None,
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
            **params,
            "metadata": merged_metadata({}, params),
        }
        return self._customers.put(customer_id, customer)

    def retrieve(self, _params: Params, object_id: str) -> Document:
        """Return a customer, or what is left of a deleted one."""
        return self._deleted.get(object_id) or self._existing(object_id)

    def update(self, params: Params, object_id: str) -> Document:
        """Change what was sent."""
        customer = self._existing(object_id)
        metadata = merged_metadata(customer["metadata"], params)
        return self._customers.put(object_id, {**customer, **params, "metadata": metadata})

    def delete(self, _params: Params, object_id: str) -> Document:
        """Delete a customer and cancel the subscriptions at once."""
        self._existing(object_id)
        self._cancel_subscriptions(object_id)
        gone: Document = {"id": object_id, "object": "customer", "deleted": True}
        self._deleted.put(object_id, gone)
        self._customers.delete(object_id)
        return gone

    def list_customers(self, params: Params) -> Document:
        """Return a page of customers; the e-mail filter is exact and minds the case."""
        return page("/v1/customers", "customer", self._customers, params, lambda row: agrees(row, params, "email"))

    def _existing(self, customer_id: str) -> Document:
        customer = self._customers.get(customer_id)
        if customer is None:
            raise no_such("customer", customer_id)
        return customer
