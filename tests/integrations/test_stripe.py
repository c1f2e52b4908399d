"""The Stripe client: what it sends, what it believes, and what it makes of refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
import stripe
from pydantic import ValidationError

from domain.errors import (
    OutcomeUnknown,
    VendorAuthFailed,
    VendorError,
    VendorRateLimited,
    VendorRejected,
    VendorUnavailable,
)
from integrations.call_context import correlation_id, deadline
from integrations.stripe import (
    OPERATION_KEY,
    TENANT_ID_KEY,
    TENANT_SLUG_KEY,
    CustomerSpec,
    Price,
    PriceSpec,
    ProductSpec,
    StripeBilling,
    SubscriptionSpec,
)
from tests.support.vendor import ANSWER_LOST, NOTHING_SENT, ScriptedVendor, answer

pytestmark = pytest.mark.asyncio

SINCE = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
MARK = {TENANT_ID_KEY: "t1", TENANT_SLUG_KEY: "acme", OPERATION_KEY: "op1"}
CUSTOMER = CustomerSpec(name="Acme", email="billing@acme.example", metadata=MARK)
PRODUCT = ProductSpec(id="dezky-team", name="Team", metadata={})
PRICE = PriceSpec(
    product="dezky-team",
    currency="dkk",
    unit_amount=4_900,
    interval="month",
    lookup_key="price:row:DKK:1",
    tax_behavior="exclusive",
    metadata=MARK,
)
SUBSCRIPTION = SubscriptionSpec(customer="cus_1", price="price_1", quantity=3, days_until_due=14, metadata=MARK)


@pytest.fixture(autouse=True)
def _clean_context() -> None:
    correlation_id.set("")
    deadline.set(None)


def customer(customer_id: str = "cus_1", tenant: str = "t1") -> dict[str, Any]:
    """A customer as Stripe shows it."""
    metadata = MARK | {TENANT_ID_KEY: tenant}
    return {"id": customer_id, "object": "customer", "created": 1_795_160_690, "metadata": metadata, "email": None}


def price(price_id: str = "price_1", lookup_key: str | None = PRICE.lookup_key) -> dict[str, Any]:
    """A price as Stripe shows it."""
    return {
        "id": price_id,
        "object": "price",
        "active": True,
        "product": "dezky-team",
        "currency": "dkk",
        "unit_amount": 4_900,
        "unit_amount_decimal": "4900",
        "recurring": {"interval": "month", "interval_count": 1},
        "lookup_key": lookup_key,
        "tax_behavior": "exclusive",
        "metadata": MARK,
    }


def product() -> dict[str, Any]:
    """A product as Stripe shows it."""
    return {"id": "dezky-team", "object": "product", "name": "Team", "active": True, "metadata": {}}


def subscription(subscription_id: str = "sub_1", status: str = "active", owner: str = "cus_1") -> dict[str, Any]:
    """A subscription as Stripe shows it."""
    item = {"id": "si_1", "object": "subscription_item", "price": price(), "quantity": 3}
    return {
        "id": subscription_id,
        "object": "subscription",
        "customer": owner,
        "status": status,
        "currency": "dkk",
        "items": {"object": "list", "data": [item], "has_more": False, "url": "/v1/subscription_items"},
        "metadata": MARK,
    }


def page(url: str, *rows: dict[str, Any], has_more: bool = False) -> httpx.Response:
    """One page of a list."""
    return answer(200, {"object": "list", "data": rows, "has_more": has_more, "url": url})


def refusal(
    status: int, code: str | None = None, kind: str = "invalid_request_error", **headers: str
) -> httpx.Response:
    """An error as Stripe sends it."""
    error = {"type": kind, "message": "no"} | ({"code": code} if code else {})
    return answer(status, {"error": error}, request_id="req_1", **headers)


CALLS: dict[str, tuple[bool, Callable[[StripeBilling], Awaitable[object]]]] = {
    "check": (False, lambda billing: billing.check()),
    "find_customers": (False, lambda billing: billing.find_customers(SINCE, "t1")),
    "retrieve_customer": (False, lambda billing: billing.retrieve_customer("cus_1")),
    "find_product": (False, lambda billing: billing.find_product("dezky-team")),
    "find_price": (False, lambda billing: billing.find_price(PRICE.lookup_key)),
    "find_subscriptions": (False, lambda billing: billing.find_subscriptions("cus_1")),
    "create_customer": (True, lambda billing: billing.create_customer(CUSTOMER, "k1")),
    "delete_customer": (True, lambda billing: billing.delete_customer("cus_1")),
    "create_product": (True, lambda billing: billing.create_product(PRODUCT)),
    "create_price": (True, lambda billing: billing.create_price(PRICE, "k1")),
    "create_subscription": (True, lambda billing: billing.create_subscription(SUBSCRIPTION, "k1")),
    "cancel_subscription": (True, lambda billing: billing.cancel_subscription("sub_1")),
}
EVERY_CALL = pytest.mark.parametrize("name", CALLS)
WRITES = [name for name, (write, _) in CALLS.items() if write]
MISSING_IS_FINE = {"retrieve_customer", "find_product", "delete_customer", "cancel_subscription"}


def billing_of(vendor: ScriptedVendor) -> StripeBilling:
    """A client that reaches only this vendor."""
    return StripeBilling("sk_test_1", "https://stripe.example", transport=httpx.MockTransport(vendor))


async def ask(name: str, *answers: Any) -> tuple[Any, ScriptedVendor]:
    """Make the call; return its result and the vendor."""
    vendor = ScriptedVendor(*answers)
    billing = billing_of(vendor)
    result = await CALLS[name][1](billing)
    await billing.aclose()
    return result, vendor


async def fail(name: str, *answers: Any) -> VendorError:
    """Make the call and return the error it raised, having asked the vendor just once."""
    vendor = ScriptedVendor(*answers)
    billing = billing_of(vendor)
    with pytest.raises(VendorError) as caught:
        await CALLS[name][1](billing)
    await billing.aclose()
    assert len(vendor.requests) == 1
    assert caught.value.vendor == "stripe"
    return caught.value


def form(request: httpx.Request) -> dict[str, str]:
    """The form body of a request."""
    return dict(parse_qsl(request.content.decode(), keep_blank_values=True))


async def test_check() -> None:
    """The probe reads the balance with our key, at the configured address."""
    _, vendor = await ask("check", answer(200, {"object": "balance", "available": [], "livemode": False}))
    assert str(vendor.last.url) == "https://stripe.example/v1/balance"
    assert vendor.last.headers["Authorization"] == "Bearer sk_test_1"


async def test_default_address_is_stripe() -> None:
    """Without an address of our own the requests go to Stripe."""
    vendor = ScriptedVendor(answer(200, {"object": "balance"}))
    billing = StripeBilling("sk_test_1", transport=httpx.MockTransport(vendor))
    await billing.check()
    await billing.aclose()
    assert vendor.last.url.host == "api.stripe.com"


async def test_find_customers() -> None:
    """Every page is read, other tenants' customers are left out, and the order is ours."""
    first = page("/v1/customers", customer("cus_9"), customer("cus_5", tenant="t2"), has_more=True)
    found, vendor = await ask("find_customers", first, page("/v1/customers", customer("cus_1"), customer("cus_0", "t")))
    assert [row.id for row in found] == ["cus_1", "cus_9"]
    assert found[0].operation_id == "op1"
    assert found[0].created == datetime.fromtimestamp(1_795_160_690, UTC)
    assert vendor.requests[0].url.params["created[gte]"] == str(int(SINCE.timestamp()))
    assert vendor.requests[0].url.params["limit"] == "100"
    assert vendor.requests[1].url.params["starting_after"] == "cus_5"


async def test_customer_without_our_mark() -> None:
    """A customer made by hand has no operation, and none of ours is found in it."""
    plain = customer() | {"metadata": {}}
    found, _ = await ask("retrieve_customer", answer(200, plain))
    assert found.operation_id is None
    assert (await ask("find_customers", page("/v1/customers", plain)))[0] == []


@pytest.mark.parametrize("name", ["retrieve_customer", "find_product"])
async def test_missing_is_none(name: str) -> None:
    """An absent object and a deleted one are none."""
    assert (await ask(name, refusal(404, "resource_missing")))[0] is None
    deleted = {"id": "cus_1", "object": "customer", "deleted": True}
    assert (await ask(name, answer(200, deleted)))[0] is None


async def test_create_customer() -> None:
    """The mark and the key travel with the create."""
    created, vendor = await ask("create_customer", answer(200, customer()))
    assert created.id == "cus_1"
    assert vendor.last.headers["Idempotency-Key"] == "k1"
    assert form(vendor.last) == {
        "name": "Acme",
        "email": "billing@acme.example",
        "metadata[dezkyTenantId]": "t1",
        "metadata[dezkyTenant]": "acme",
        "metadata[dezkyOperation]": "op1",
    }


async def test_delete_customer() -> None:
    """Deleting twice is as good as once."""
    _, vendor = await ask("delete_customer", answer(200, {"id": "cus_1", "object": "customer", "deleted": True}))
    assert (vendor.last.method, vendor.last.url.path) == ("DELETE", "/v1/customers/cus_1")
    await ask("delete_customer", refusal(404, "resource_missing"))


async def test_create_product() -> None:
    """A product gets our own id."""
    created, vendor = await ask("create_product", answer(200, product()))
    assert (created.id, created.name, created.active) == ("dezky-team", "Team", True)
    assert form(vendor.last) == {"id": "dezky-team", "name": "Team"}


async def test_find_product() -> None:
    """A product is read by its id."""
    found, vendor = await ask("find_product", answer(200, product()))
    assert found.id == "dezky-team"
    assert vendor.last.url.path == "/v1/products/dezky-team"


async def test_find_price() -> None:
    """An ignored filter is not believed: the lookup key is compared, over all pages."""
    first = page("/v1/prices", price("price_3", None), price("price_2", "price:row:DKK:10"), has_more=True)
    found, vendor = await ask("find_price", first, page("/v1/prices", price()))
    assert found == Price(
        id="price_1",
        product="dezky-team",
        currency="DKK",
        unit_amount=4_900,
        interval="month",
        lookup_key="price:row:DKK:1",
        tax_behavior="exclusive",
        active=True,
        metadata=MARK,
    )
    assert vendor.requests[0].url.params["lookup_keys[0]"] == PRICE.lookup_key
    assert (await ask("find_price", page("/v1/prices", price(lookup_key="other"))))[0] is None


async def test_create_price() -> None:
    """Money is integer minor units and a lower-case currency on the wire."""
    created, vendor = await ask("create_price", answer(200, price()))
    assert (created.currency, created.unit_amount, created.interval) == ("DKK", 4_900, "month")
    assert vendor.last.headers["Idempotency-Key"] == "k1"
    assert form(vendor.last) == {
        "product": "dezky-team",
        "currency": "dkk",
        "unit_amount": "4900",
        "recurring[interval]": "month",
        "lookup_key": "price:row:DKK:1",
        "tax_behavior": "exclusive",
        "metadata[dezkyTenantId]": "t1",
        "metadata[dezkyTenant]": "acme",
        "metadata[dezkyOperation]": "op1",
    }


async def test_price_spec_refuses_nonsense() -> None:
    """A price with a negative amount or an unknown interval cannot be made."""
    for change in ({"unit_amount": -1}, {"unit_amount": 0.5}, {"interval": "week"}, {"currency": "kroner"}):
        with pytest.raises(ValidationError):
            PriceSpec.model_validate(PRICE.model_dump() | change)


async def test_find_subscriptions() -> None:
    """Ended subscriptions and those of other customers are left out."""
    rows = [
        subscription("sub_9"),
        subscription("sub_2", status="incomplete_expired"),
        subscription("sub_3", status="canceled"),
        subscription("sub_4", owner="cus_2"),
        subscription("sub_1", status="past_due"),
    ]
    found, vendor = await ask("find_subscriptions", page("/v1/subscriptions", *rows))
    assert [row.id for row in found] == ["sub_1", "sub_9"]
    assert vendor.last.url.params["customer"] == "cus_1"


async def test_create_subscription() -> None:
    """A subscription is paid by invoice and carries its quantity and mark."""
    created, vendor = await ask("create_subscription", answer(200, subscription()))
    assert (created.id, created.item_id, created.price_id, created.quantity) == ("sub_1", "si_1", "price_1", 3)
    assert (created.status, created.currency, created.metadata) == ("active", "DKK", MARK)
    assert vendor.last.headers["Idempotency-Key"] == "k1"
    sent = form(vendor.last)
    assert sent["collection_method"] == "send_invoice"
    assert sent["days_until_due"] == "14"
    assert (sent["items[0][price]"], sent["items[0][quantity]"]) == ("price_1", "3")


async def test_cancel_subscription() -> None:
    """Canceling asks for neither credit nor invoice, and one that has ended is as good as canceled."""
    _, vendor = await ask("cancel_subscription", answer(200, subscription(status="canceled")))
    assert (vendor.last.method, str(vendor.last.url)) == ("DELETE", "https://stripe.example/v1/subscriptions/sub_1")
    await ask("cancel_subscription", refusal(404, "resource_missing"))


async def test_correlation_id_is_sent() -> None:
    """Stripe too gets the id of the attempt."""
    correlation_id.set("op-1")
    _, vendor = await ask("retrieve_customer", answer(200, customer()))
    assert vendor.last.headers["X-Request-ID"] == "op-1"


async def test_nothing_is_written_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No telemetry: no file in the home directory, no header on the second request."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    vendor = ScriptedVendor(answer(200, customer(), request_id="req_1"))
    billing = billing_of(vendor)
    await billing.retrieve_customer("cus_1")
    await billing.retrieve_customer("cus_1")
    await billing.aclose()
    assert list(tmp_path.iterdir()) == []
    assert "X-Stripe-Client-Telemetry" not in vendor.last.headers


@EVERY_CALL
async def test_refused_credential(name: str) -> None:
    """A 401 is final."""
    error = await fail(name, refusal(401))
    assert type(error) is VendorAuthFailed
    assert (error.http_status, error.request_id) == (401, "req_1")


@EVERY_CALL
@pytest.mark.parametrize(
    ("status", "code", "kind", "expected"),
    [
        (403, None, "invalid_request_error", "vendor_forbidden"),
        (400, None, "idempotency_error", "idempotency_conflict"),
        (400, "resource_already_exists", "invalid_request_error", "already_exists"),
        (400, "parameter_unknown", "invalid_request_error", "stripe_parameter_unknown"),
        (400, None, "invalid_request_error", "stripe_invalid_request"),
        (404, "url_invalid", "invalid_request_error", "stripe_url_invalid"),
        (402, "card_declined", "card_error", "stripe_card_declined"),
    ],
)
async def test_refusal(name: str, status: int, code: str | None, kind: str, expected: str) -> None:
    """A refusal is final and keeps Stripe's code and id of the request."""
    error = await fail(name, refusal(status, code, kind))
    assert type(error) is VendorRejected
    assert (error.code, error.http_status, error.request_id) == (expected, status, "req_1")
    assert not error.replayed


@pytest.mark.parametrize("name", sorted(set(CALLS) - MISSING_IS_FINE))
async def test_missing_reference(name: str) -> None:
    """Something absent that a call refers to is a refusal."""
    assert (await fail(name, refusal(404, "resource_missing"))).code == "stripe_resource_missing"


@EVERY_CALL
@pytest.mark.parametrize(
    ("status", "code"),
    [(429, None), (429, "rate_limit"), (429, "lock_timeout"), (400, "rate_limit"), (400, "lock_timeout")],
)
async def test_rate_limit(name: str, status: int, code: str | None) -> None:
    """Limits and locks are weather; Stripe names no wait, a proxy may."""
    error = await fail(name, refusal(status, code, Retry_After="2"))
    assert type(error) is VendorRateLimited
    assert error.retry_after == timedelta(seconds=2)


@EVERY_CALL
@pytest.mark.parametrize(
    "given",
    [
        refusal(409, "idempotency_key_in_use", "idempotency_error"),
        refusal(424, None, "api_error"),
        refusal(500, None, "api_error"),
        httpx.Response(502, html="<html>bad gateway</html>"),
        httpx.Response(200, html="<html>hello</html>"),
    ],
    ids=["409", "424", "500", "502", "not JSON"],
)
async def test_no_usable_answer(name: str, given: httpx.Response) -> None:
    """A failed read is weather; a write may have been done, also by the other request with our key."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, given)) is expected


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"check", "delete_customer", "cancel_subscription"}))
@pytest.mark.parametrize("body", [{}, [], 7, {"id": 7, "object": "thing", "items": 7}])
async def test_answer_of_another_shape(name: str, body: object) -> None:
    """JSON that is not what was asked for is no answer."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, httpx.Response(200, json=body))) is expected


@pytest.mark.parametrize("name", ["find_customers", "find_price", "find_subscriptions"])
async def test_row_of_another_shape(name: str) -> None:
    """A list whose rows are not what was asked for is no answer."""
    assert type(await fail(name, page("/v1/x", {"id": 7, "object": "thing"}))) is VendorUnavailable


@pytest.mark.parametrize(("status", "kind"), [(500, OutcomeUnknown), (400, VendorRejected)])
async def test_replayed(status: int, kind: type[VendorError]) -> None:
    """An error kept under the key is marked, so that the caller takes the next key after looking."""
    error = await fail("create_customer", refusal(status, None, "api_error", Idempotent_Replayed="true"))
    assert type(error) is kind
    assert error.replayed


@pytest.mark.parametrize("name", ["create_price", "find_price"])
async def test_malformed_decimal(name: str) -> None:
    """A decimal that cannot be read escapes the package's own errors, not ours."""
    broken = price() | {"unit_amount_decimal": "4,900"}
    given = answer(200, broken) if name in WRITES else page("/v1/prices", broken)
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, given)) is expected


@EVERY_CALL
async def test_nothing_sent(name: str) -> None:
    """A refused connection is weather, for writes too."""
    assert type(await fail(name, NOTHING_SENT[0])) is VendorUnavailable


@EVERY_CALL
@pytest.mark.parametrize("lost", ANSWER_LOST, ids=lambda error: type(error).__name__)
async def test_answer_lost(name: str, lost: Exception) -> None:
    """A dropped connection leaves a write open, and the package does not repeat it."""
    expected = OutcomeUnknown if name in WRITES else VendorUnavailable
    assert type(await fail(name, lost)) is expected


async def test_passed_deadline_sends_nothing() -> None:
    """After the deadline nothing is sent."""
    vendor = ScriptedVendor(answer(200, customer()))
    deadline.set(asyncio.get_running_loop().time())
    billing = billing_of(vendor)
    with pytest.raises(VendorUnavailable):
        await billing.create_customer(CUSTOMER, "k1")
    await billing.aclose()
    assert vendor.requests == []


class Silent(httpx.AsyncBaseTransport):
    """Takes a request and never answers."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        await asyncio.Event().wait()
        raise AssertionError


async def test_timeout() -> None:
    """The timeout given to the client limits the whole request."""
    billing = StripeBilling("sk_test_1", timeout=timedelta(seconds=0.05), transport=Silent())
    with pytest.raises(OutcomeUnknown):
        await billing.create_customer(CUSTOMER, "k1")
    with pytest.raises(VendorUnavailable):
        await billing.retrieve_customer("cus_1")
    await billing.aclose()


async def test_cancellation_passes_through() -> None:
    """Who cancels the caller sees a cancellation."""
    billing = StripeBilling("sk_test_1", transport=Silent())
    task = asyncio.create_task(billing.create_customer(CUSTOMER, "k1"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await billing.aclose()


async def test_secrets_are_not_repeated() -> None:
    """Stripe echoes parts of a refused key; we do not, nor do we chain its error."""
    echoed = {"error": {"type": "invalid_request_error", "message": "Invalid API Key provided: sk_test_*****abcd"}}
    error = await fail("check", answer(401, echoed))
    assert "abcd" not in error.message
    assert error.__cause__ is None


async def test_one_client_for_several_event_loops() -> None:
    """Each event loop gets its own connections, and an ended loop is forgotten."""
    vendor = ScriptedVendor(answer(200, customer()))
    billing = billing_of(vendor)

    async def twice() -> None:
        assert await billing.retrieve_customer("cus_1") is not None
        assert await billing.retrieve_customer("cus_1") is not None
        await billing.aclose()
        await billing.aclose()

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, twice())
    assert len(vendor.requests) == 4


async def test_package_keeps_quiet() -> None:
    """The package would log bodies at DEBUG and phone home; both are off once the client is imported."""
    assert stripe.enable_telemetry is False
    assert not stripe._util.logger.isEnabledFor(10)  # noqa: SLF001
