"""Client of Stripe Billing on the official package."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import InvalidOperation
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx
import stripe
from pydantic import ValidationError

from domain.errors import VendorAuthFailed, VendorError, VendorRateLimited, VendorRejected
from integrations.http import TOTAL_LIMIT, build_http_client, call, no_answer, retry_after, safe_text
from integrations.model import VendorModel
from integrations.stripe.models import (
    TENANT_ID_KEY,
    Customer,
    CustomerSpec,
    Price,
    PriceSpec,
    Product,
    ProductSpec,
    Subscription,
    SubscriptionSpec,
)

VENDOR = "stripe"

# Source: otherwise the package writes an id into the home directory and reports latencies. There is no option for it.
stripe.enable_telemetry = False
# Source: at DEBUG the package logs request and answer bodies, at INFO the vendor's texts: names and addresses.
logging.getLogger("stripe").setLevel(logging.WARNING)

_PAGE_SIZE = 100
_MISSING = "resource_missing"
_ENDED = frozenset({"canceled", "incomplete_expired"})
_RATE_LIMIT_CODES = frozenset({"rate_limit", "lock_timeout"})

_Model = TypeVar("_Model", bound=VendorModel)


class _Transport(stripe.HTTPClient):
    """Sends the package's requests like those of every other vendor.

    The package's own httpx transport reports every failure alike, so that "refused" could not be told from "sent, and
    the answer lost"; it also reads proxies from the environment and knows one timeout only.
    """

    name = "httpx"

    def __init__(self, http: httpx.AsyncClient, limit: timedelta) -> None:
        super().__init__()
        self._http = http
        self._limit = limit

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        write = method != "get"
        response = await call(
            VENDOR, self._http, method.upper(), url, write=write, content=post_data, headers=headers, limit=self._limit
        )
        return response.content, response.status_code, response.headers

    async def close_async(self) -> None:
        await self._http.aclose()


class StripeBilling:
    """Customers, products, prices and subscriptions of one Stripe account.

    Every method raises `VendorAuthFailed`, `VendorRejected` (`vendor_forbidden`, `already_exists`,
    `idempotency_conflict`, `stripe_<code>`), `VendorRateLimited`, `VendorUnavailable`, and, if it writes,
    `OutcomeUnknown`; `replayed` is set where the answer came from Stripe's idempotency store.

    Idempotency: the creates that take a key may be repeated with it for 24 hours; after that look first. Each call
    sends one request per page, never more: Stripe's errors are kept under the key too, so repeating is a decision.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str | None = None,
        timeout: timedelta = TOTAL_LIMIT,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Take the account's key and how to reach it.

        Args:
            api_key: secret or restricted key.
            base_url: None for Stripe itself.
            timeout: of each request as a whole.
            transport: in place of the network, for tests.
        """
        self._api_key = api_key
        self._base_url = base_url
        self._timeout = timeout
        self._transport = transport
        # Source: connections belong to the event loop that opened them; in another one every second call fails.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[stripe.StripeClient, _Transport]]
        self._clients = WeakKeyDictionary()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        _, transport = self._clients.pop(asyncio.get_running_loop(), (None, None))
        if transport is not None:
            await transport.close_async()

    async def check(self) -> None:
        """Ensure that Stripe answers and takes our credential."""
        with _mapped(write=False):
            await self._v1.balance.retrieve_async()

    async def find_customers(self, created_since: datetime, tenant_id: str) -> list[Customer]:
        """Return the customers that carry this tenant's mark, sorted by id.

        A list is used because it is consistent; search lags behind by up to an hour, and an e-mail is not unique.

        Args:
            created_since: from when on to look, for example the start of the operation; every page costs a request.
            tenant_id: value of `dezkyTenantId`.
        """
        with _mapped(write=False):
            pages = await self._v1.customers.list_async(
                {"created": {"gte": int(created_since.timestamp())}, "limit": _PAGE_SIZE}
            )
            customers = [_read(Customer, row) async for row in _rows(pages)]
        found = (customer for customer in customers if customer.metadata.get(TENANT_ID_KEY) == tenant_id)
        return sorted(found, key=lambda customer: customer.id)

    async def retrieve_customer(self, customer_id: str) -> Customer | None:
        """Return a customer; None if there is none or it was deleted."""
        with _mapped(write=False):
            try:
                row = await self._v1.customers.retrieve_async(customer_id)
            except stripe.InvalidRequestError as error:
                if error.code == _MISSING:
                    return None
                raise
            return None if _is_deleted(row) else _read(Customer, row)

    async def create_customer(self, spec: CustomerSpec, idempotency_key: str) -> Customer:
        """Create a customer. Idempotency: by the key; without it, or after a day, a repeat makes a second one."""
        params: stripe.params.CustomerCreateParams = {"name": spec.name, "metadata": spec.metadata}
        if spec.email is not None:
            params["email"] = spec.email
        with _mapped(write=True):
            return _read(Customer, await self._v1.customers.create_async(params, _key(idempotency_key)))

    async def delete_customer(self, customer_id: str) -> None:
        """Ensure that a customer is gone, and with it the customer's subscriptions.

        Idempotency: repeatable; an absent customer is a success.
        """
        with _mapped(write=True):
            try:
                await self._v1.customers.delete_async(customer_id)
            except stripe.InvalidRequestError as error:
                if error.code != _MISSING:
                    raise

    async def find_product(self, product_id: str) -> Product | None:
        """Return the product of this id; None if there is none or it was deleted."""
        with _mapped(write=False):
            try:
                row = await self._v1.products.retrieve_async(product_id)
            except stripe.InvalidRequestError as error:
                if error.code == _MISSING:
                    return None
                raise
            return None if _is_deleted(row) else _read(Product, row)

    async def create_product(self, spec: ProductSpec) -> Product:
        """Create a product under our own id. Idempotency: the id is unique; a repeat is `already_exists`."""
        with _mapped(write=True):
            row = await self._v1.products.create_async({"id": spec.id, "name": spec.name, "metadata": spec.metadata})
            return _read(Product, row)

    async def find_price(self, lookup_key: str) -> Price | None:
        """Return the price that holds this lookup key; there is at most one."""
        with _mapped(write=False):
            pages = await self._v1.prices.list_async({"lookup_keys": [lookup_key], "limit": _PAGE_SIZE})
            async for row in _rows(pages):
                price = _read(Price, row)
                if price.lookup_key == lookup_key:
                    return price
        return None

    async def create_price(self, spec: PriceSpec, idempotency_key: str) -> Price:
        """Create a recurring price. Idempotency: by the key; after a day the lookup key refuses a second one."""
        params: stripe.params.PriceCreateParams = {
            "product": spec.product,
            "currency": spec.currency.lower(),
            "unit_amount": spec.unit_amount,
            "recurring": {"interval": spec.interval},
            "lookup_key": spec.lookup_key,
            "tax_behavior": spec.tax_behavior,
            "metadata": spec.metadata,
        }
        with _mapped(write=True):
            return _read(Price, await self._v1.prices.create_async(params, _key(idempotency_key)))

    async def find_subscriptions(self, customer_id: str) -> list[Subscription]:
        """Return the subscriptions of a customer that have not ended, sorted by id."""
        with _mapped(write=False):
            pages = await self._v1.subscriptions.list_async({"customer": customer_id, "limit": _PAGE_SIZE})
            subscriptions = [_read(Subscription, row) async for row in _rows(pages)]
        found = (row for row in subscriptions if row.customer == customer_id and row.status not in _ENDED)
        return sorted(found, key=lambda subscription: subscription.id)

    async def create_subscription(self, spec: SubscriptionSpec, idempotency_key: str) -> Subscription:
        """Subscribe a customer, paid by invoice. Idempotency: by the key; after a day a repeat bills twice."""
        params: stripe.params.SubscriptionCreateParams = {
            "customer": spec.customer,
            "items": [{"price": spec.price, "quantity": spec.quantity}],
            "collection_method": "send_invoice",
            "days_until_due": spec.days_until_due,
            "metadata": spec.metadata,
        }
        with _mapped(write=True):
            return _read(Subscription, await self._v1.subscriptions.create_async(params, _key(idempotency_key)))

    async def cancel_subscription(self, subscription_id: str) -> None:
        """Ensure that a subscription has ended, at once and for good; nothing is credited and nothing more is billed.

        Idempotency: repeatable; one that has ended or never was is a success.
        Source: invoices that are open stay open, they are only no longer collected by themselves. Without parameters
        there is neither a final invoice nor a proration.
        """
        with _mapped(write=True):
            try:
                await self._v1.subscriptions.cancel_async(subscription_id)
            except stripe.InvalidRequestError as error:
                if error.code != _MISSING:
                    raise

    @property
    def _v1(self) -> stripe.V1Services:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            transport = _Transport(build_http_client(transport=self._transport), self._timeout)
            client = stripe.StripeClient(
                self._api_key,
                http_client=transport,
                max_network_retries=0,
                base_addresses={"api": self._base_url} if self._base_url else None,
            )
            self._clients[loop] = client, transport
        return self._clients[loop][0].v1


def _key(idempotency_key: str) -> stripe.RequestOptions:
    return {"idempotency_key": idempotency_key}


async def _rows(pages: stripe.ListObject[Any]) -> AsyncIterator[stripe.StripeObject]:
    async for row in pages.auto_paging_iter():
        yield row


def _is_deleted(row: stripe.StripeObject) -> bool:
    return bool(getattr(row, "deleted", False))


def _read(model: type[_Model], row: stripe.StripeObject) -> _Model:
    return model.model_validate(row.to_dict())


@contextmanager
def _mapped(*, write: bool) -> Iterator[None]:
    """Turn what the package raises into our errors; what `call` raised inside it passes through."""
    try:
        yield
    except stripe.StripeError as error:
        # Not chained: the package's errors carry whole bodies and echo parts of keys.
        raise _error(error, write=write) from None
    except (InvalidOperation, AttributeError, ValidationError):
        # Source: a malformed decimal in an answer escapes as `InvalidOperation`, another shape as `AttributeError`.
        raise no_answer(VENDOR, "stripe sent an answer that is not understood", write=write) from None


def _error(error: stripe.StripeError, *, write: bool) -> VendorError:
    # Source: only some classes have `code`; the error object has it always.
    code = (error.error.code if error.error else None) or error.code
    status, request_id, headers = error.http_status, error.request_id, httpx.Headers(error.headers)
    replayed = headers.get("Idempotent-Replayed") == "true"
    message = safe_text(f"stripe answered {status} {code or ''}: {error.user_message}")
    rejection: str | None = None
    if isinstance(error, stripe.AuthenticationError):
        return VendorAuthFailed(VENDOR, message, http_status=status, request_id=request_id)
    if isinstance(error, stripe.RateLimitError) or code in _RATE_LIMIT_CODES:
        wait = retry_after(headers)
        return VendorRateLimited(VENDOR, message, http_status=status, request_id=request_id, retry_after=wait)
    if isinstance(error, stripe.PermissionError):
        rejection = "vendor_forbidden"
    elif isinstance(error, stripe.IdempotencyError):
        rejection = "idempotency_conflict"
    elif code == "resource_already_exists":
        rejection = "already_exists"
    elif isinstance(error, stripe.InvalidRequestError | stripe.CardError):
        rejection = f"stripe_{code or 'invalid_request'}"
    if rejection is None:
        # 409 (`idempotency_key_in_use`: the first call with this key may have succeeded), 424, 5xx, a body not JSON.
        return no_answer(VENDOR, message, write=write, http_status=status, request_id=request_id, replayed=replayed)
    return VendorRejected(VENDOR, message, code=rejection, http_status=status, request_id=request_id, replayed=replayed)
