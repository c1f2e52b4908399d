"""The Stripe stand-in behaves as the vendor does, hazards included."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import stripe
import uvicorn

from sandbox.state import State
from sandbox.stripe import create_app

pytestmark = pytest.mark.asyncio

URL = "http://stripe.test"
TOKEN = "sk_test_secret"
Form = dict[str, Any]


def connect(state: State, token: str = TOKEN) -> httpx.AsyncClient:
    """Return a client of a stand-in on this state."""
    app = create_app(state, public_url=URL, token=TOKEN)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=URL, headers={"Authorization": f"Bearer {token}"}
    )


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a fresh installation."""
    state = State()
    async with connect(state) as client:
        yield client
    state.close()


async def post(client: httpx.AsyncClient, path: str, key: str = "", **form: Any) -> Form:
    """Send a form that has to be accepted."""
    answer = await client.post(f"/v1/{path}", data=form, headers={"Idempotency-Key": key} if key else {})
    assert answer.status_code == 200, answer.text
    body: Form = answer.json()
    return body


async def refused(client: httpx.AsyncClient, path: str, status: int = 400, **form: Any) -> Form:
    """Send a form that has to be refused and return the error."""
    answer = await client.post(f"/v1/{path}", data=form)
    assert answer.status_code == status, answer.text
    error: Form = answer.json()["error"]
    return error


async def rows(client: httpx.AsyncClient, path: str, **query: Any) -> list[Form]:
    """Return one page of a list."""
    answer = await client.get(f"/v1/{path}", params=query)
    assert answer.status_code == 200, answer.text
    data: list[Form] = answer.json()["data"]
    return data


async def new_price(client: httpx.AsyncClient, amount: int = 900, /, **form: Any) -> Form:
    """Create a monthly price in euro, and its product if it is the first."""
    await client.post("/v1/products", data={"id": "prod_plan", "name": "Plan"})
    fields = {"product": "prod_plan", "currency": "eur", "unit_amount": amount, "recurring[interval]": "month"}
    return await post(client, "prices", **{**fields, **form})


async def new_subscription(client: httpx.AsyncClient, price: str, **form: Any) -> Form:
    """Subscribe a new customer, by invoice."""
    customer = await post(client, "customers", email="billing@acme.test")
    fields = {
        "customer": customer["id"],
        "items[0][price]": price,
        "items[0][quantity]": 3,
        "collection_method": "send_invoice",
        "days_until_due": 14,
    }
    return await post(client, "subscriptions", **{**fields, **form})


async def test_a_product_with_an_own_id_is_created_once(client: httpx.AsyncClient) -> None:
    """A repeated create with the same id is refused, so the id makes it idempotent."""
    product = await post(client, "products", id="prod_plan", name="Plan", **{"metadata[dezkyRow]": "pro-month"})
    assert product["id"] == "prod_plan"
    assert product["metadata"] == {"dezkyRow": "pro-month"}
    error = await refused(client, "products", id="prod_plan", name="Plan")
    assert (error["type"], error["code"]) == ("invalid_request_error", "resource_already_exists")


async def test_metadata_is_merged_and_emptied(client: httpx.AsyncClient) -> None:
    """An update replaces sent keys, removes those sent empty and, sent empty as a whole, removes all."""
    await post(client, "products", id="p", name="Plan", **{"metadata[a]": "1", "metadata[b]": "2"})
    assert (await post(client, "products/p", **{"metadata[a]": "", "metadata[c]": "3"}))["metadata"] == {
        "b": "2",
        "c": "3",
    }
    assert (await post(client, "products/p", metadata=""))["metadata"] == {}


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        ({"name": "Plan", "colour": "red"}, "parameter_unknown", "colour"),
        ({"id": "p"}, "parameter_missing", "name"),
        ({"name": ""}, "parameter_invalid_empty", "name"),
        ({"name": "Plan", "active": "yes"}, None, "active"),
    ],
)
async def test_parameters_are_checked(client: httpx.AsyncClient, form: Form, code: str | None, param: str) -> None:
    """An unknown, missing, empty or malformed parameter is named in the refusal."""
    error = await refused(client, "products", **form)
    assert (error.get("code"), error["param"]) == (code, param)


@pytest.mark.parametrize("change", [{"unit_amount": 1}, {"currency": "usd"}, {"recurring[interval]": "year"}])
async def test_a_price_keeps_amount_currency_and_interval(client: httpx.AsyncClient, change: Form) -> None:
    """What a price costs is no parameter of its update."""
    price = await new_price(client)
    assert (await refused(client, f"prices/{price['id']}", **change))["code"] == "parameter_unknown"


async def test_a_lookup_key_is_unique_and_moves(client: httpx.AsyncClient) -> None:
    """A second price takes a lookup key only when it says that it takes it over."""
    old = await new_price(client, lookup_key="row:eur")
    assert (await refused(client, f"prices/{(await new_price(client))['id']}", lookup_key="row:eur"))[
        "param"
    ] == "lookup_key"
    new = await new_price(client, 1200, lookup_key="row:eur", transfer_lookup_key="true")
    assert [row["id"] for row in await rows(client, "prices", **{"lookup_keys[]": "row:eur"})] == [new["id"]]
    assert (await client.get(f"/v1/prices/{old['id']}")).json()["lookup_key"] is None


async def test_prices_are_found_by_their_filters(client: httpx.AsyncClient) -> None:
    """Product, currency, activity and type filter a list of prices, and each by itself."""
    monthly = await new_price(client)
    dollars = await new_price(client, currency="USD")
    archived = await new_price(client)
    await post(client, f"prices/{archived['id']}", active="false")
    once = await post(client, "prices", product="prod_plan", currency="eur", unit_amount=5)
    assert {row["id"] for row in await rows(client, "prices", active="true", currency="eur", type="recurring")} == {
        monthly["id"]
    }
    assert [row["id"] for row in await rows(client, "prices", currency="usd")] == [dollars["id"]]
    assert [row["id"] for row in await rows(client, "prices", type="one_time")] == [once["id"]]
    assert await rows(client, "prices", product="prod_other") == []


async def test_the_default_price_of_a_product_cannot_be_archived(client: httpx.AsyncClient) -> None:
    """The default has to be moved first."""
    old, new = await new_price(client), await new_price(client)
    await post(client, "products/prod_plan", default_price=old["id"])
    assert (await refused(client, f"prices/{old['id']}", active="false"))["param"] == "active"
    await post(client, "products/prod_plan", default_price=new["id"])
    assert (await post(client, f"prices/{old['id']}", active="false"))["active"] is False


async def test_creating_a_customer_twice_makes_two(client: httpx.AsyncClient) -> None:
    """No address is unique, and the filter by it minds the case."""
    first = await post(client, "customers", email="Ann@acme.test")
    second = await post(client, "customers", email="Ann@acme.test")
    assert [row["id"] for row in await rows(client, "customers", email="Ann@acme.test")] == [second["id"], first["id"]]
    assert await rows(client, "customers", email="ann@acme.test") == []


async def test_customers_are_listed_by_time_of_creation(client: httpx.AsyncClient) -> None:
    """Each bound of `created` holds by itself."""
    created = (await post(client, "customers"))["created"]
    for bound, found in (("gte", 1), ("gt", 0), ("lte", 1), ("lt", 0)):
        assert len(await rows(client, "customers", **{f"created[{bound}]": created})) == found, bound


async def test_a_deleted_customer_leaves_a_stub_and_no_subscription(client: httpx.AsyncClient) -> None:
    """Deleting cancels what the customer has; the id still answers, the list no longer has it."""
    subscription = await new_subscription(client, (await new_price(client))["id"])
    customer = subscription["customer"]
    assert (await client.delete(f"/v1/customers/{customer}")).json() == {
        "id": customer,
        "object": "customer",
        "deleted": True,
    }
    assert (await client.get(f"/v1/customers/{customer}")).json()["deleted"] is True
    assert await rows(client, "customers") == []
    assert (await client.get(f"/v1/subscriptions/{subscription['id']}")).json()["status"] == "canceled"


async def test_lists_are_paged_newest_first(client: httpx.AsyncClient) -> None:
    """Cursors lead through a list without gap or repetition, in both directions."""
    made = [(await post(client, "customers"))["id"] for _ in range(5)]
    newest = made[::-1]
    page = (await client.get("/v1/customers", params={"limit": 2})).json()
    assert ([row["id"] for row in page["data"]], page["has_more"], page["url"]) == (newest[:2], True, "/v1/customers")
    rest = (await client.get("/v1/customers", params={"limit": 3, "starting_after": newest[1]})).json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (newest[2:], False)
    back = (await client.get("/v1/customers", params={"limit": 2, "ending_before": newest[3]})).json()
    assert ([row["id"] for row in back["data"]], back["has_more"]) == (newest[1:3], True)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"starting_after": "cus_none"}, {"shape": "round"}])
async def test_bad_list_parameters_are_refused(client: httpx.AsyncClient, query: Form) -> None:
    """A limit out of bounds, an unknown cursor and an unknown filter are errors."""
    assert (await client.get("/v1/customers", params=query)).status_code == 400


async def test_paging_survives_a_cursor_that_ceases_to_match(client: httpx.AsyncClient) -> None:
    """A sweep over a price goes on after the subscription that it has just moved to another one."""
    old, new = await new_price(client), await new_price(client, 1200)
    older = await new_subscription(client, old["id"])
    newer = await new_subscription(client, old["id"])
    await post(client, f"subscription_items/{newer['items']['data'][0]['id']}", price=new["id"], quantity=3)
    left = await rows(client, "subscriptions", price=old["id"], starting_after=newer["id"])
    assert [row["id"] for row in left] == [older["id"]]


async def test_a_new_subscription_is_flexible_with_periods_on_its_items(client: httpx.AsyncClient) -> None:
    """The billing mode defaults to flexible, the period is the item's and lasts a month."""
    price = await new_price(client)
    subscription = await new_subscription(client, price["id"], **{"metadata[tenant]": "acme"})
    assert subscription["status"] == "active"
    assert subscription["billing_mode"]["type"] == "flexible"
    assert subscription["latest_invoice"] is None
    assert subscription["metadata"] == {"tenant": "acme"}
    assert "current_period_end" not in subscription
    [item] = subscription["items"]["data"]
    assert (item["quantity"], item["price"]["id"], item["plan"]["amount"]) == (3, price["id"], 900)
    assert 28 * 86400 <= item["current_period_end"] - item["current_period_start"] <= 31 * 86400


async def test_an_invoiced_subscription_says_when_it_is_due(client: httpx.AsyncClient) -> None:
    """`days_until_due` goes with `send_invoice` and only with it."""
    price = (await new_price(client))["id"]
    customer = (await post(client, "customers"))["id"]
    form = {"customer": customer, "items[0][price]": price}
    assert (await refused(client, "subscriptions", collection_method="send_invoice", **form))["code"] == (
        "parameter_missing"
    )
    assert (await refused(client, "subscriptions", days_until_due=3, **form))["param"] == "days_until_due"
    assert (await refused(client, "subscriptions", **form))["code"] == "resource_missing"
    pending = await post(client, "subscriptions", payment_behavior="default_incomplete", **form)
    assert pending["status"] == "incomplete"


async def test_prices_that_cannot_be_subscribed_to(client: httpx.AsyncClient) -> None:
    """Archived, one-time, repeated and foreign-currency prices are refused, and nothing is created."""
    price = (await new_price(client))["id"]
    customer = (await new_subscription(client, price))["customer"]
    archived = (await new_price(client, active="false"))["id"]
    once = (await post(client, "prices", product="prod_plan", currency="eur", unit_amount=5))["id"]
    dollars = (await new_price(client, currency="usd"))["id"]
    due = {"customer": customer, "collection_method": "send_invoice", "days_until_due": 1}
    assert "inactive" in (await refused(client, "subscriptions", **due, **{"items[0][price]": archived}))["message"]
    assert "one_time" in (await refused(client, "subscriptions", **due, **{"items[0][price]": once}))["message"]
    assert (
        "combine currencies"
        in (await refused(client, "subscriptions", **due, **{"items[0][price]": dollars}))["message"]
    )
    twice = {"items[0][price]": price, "items[1][price]": price}
    assert "same plan" in (await refused(client, "subscriptions", **due, **twice))["message"]
    assert len(await rows(client, "subscriptions", status="all")) == 1


async def test_a_new_price_without_quantity_resets_it(client: httpx.AsyncClient) -> None:
    """The vendor's trap: the number of seats is lost unless it is sent along, by either call."""
    first, second, third = [(await new_price(client, amount))["id"] for amount in (900, 1000, 1100)]
    subscription = await new_subscription(client, first)
    item = subscription["items"]["data"][0]["id"]
    assert (await post(client, f"subscription_items/{item}", price=second))["quantity"] == 1
    kept = await post(client, f"subscription_items/{item}", price=third, quantity=3, proration_behavior="none")
    assert (kept["id"], kept["quantity"]) == (item, 3)
    form = {"items[0][id]": item, "items[0][price]": first}
    changed = await post(client, f"subscriptions/{subscription['id']}", **form)
    assert [(row["id"], row["quantity"]) for row in changed["items"]["data"]] == [(item, 1)]


async def test_an_entry_without_id_adds_an_item(client: httpx.AsyncClient) -> None:
    """Leaving out the item's id makes both prices bill, and an item can be deleted again."""
    first, second = (await new_price(client))["id"], (await new_price(client, 1200))["id"]
    subscription = await new_subscription(client, first)
    path = f"subscriptions/{subscription['id']}"
    both = await post(client, path, **{"items[0][price]": second, "items[0][quantity]": 2})
    assert [row["price"]["id"] for row in both["items"]["data"]] == [first, second]
    listed = await rows(client, "subscription_items", subscription=subscription["id"])
    assert [row["quantity"] for row in listed] == [2, 3]
    gone = {"items[0][id]": both["items"]["data"][0]["id"], "items[0][deleted]": "true"}
    assert [row["price"]["id"] for row in (await post(client, path, **gone))["items"]["data"]] == [second]


async def test_an_update_happens_whole_or_not_at_all(client: httpx.AsyncClient) -> None:
    """A refused item leaves the rest of the update undone."""
    price = (await new_price(client))["id"]
    dollars = (await new_price(client, currency="usd"))["id"]
    subscription = await new_subscription(client, price)
    path = f"subscriptions/{subscription['id']}"
    form = {"description": "changed", "items[0][id]": subscription["items"]["data"][0]["id"]}
    assert "combine currencies" in (await refused(client, path, **form, **{"items[0][price]": dollars}))["message"]
    assert (await client.get(f"/v1/{path}")).json() == subscription


async def test_a_yearly_price_keeps_the_anchor_in_flexible_mode_only(client: httpx.AsyncClient) -> None:
    """A change of interval resets the billing date of classic subscriptions alone."""
    monthly = (await new_price(client))["id"]
    yearly = (await new_price(client, 9000, **{"recurring[interval]": "year"}))["id"]
    anchor = int(time.time()) + 5 * 86400
    for mode, kept in (("flexible", True), ("classic", False)):
        subscription = await new_subscription(
            client, monthly, **{"billing_mode[type]": mode, "billing_cycle_anchor": anchor}
        )
        item = subscription["items"]["data"][0]["id"]
        await post(client, f"subscription_items/{item}", price=yearly, quantity=3)
        changed = (await client.get(f"/v1/subscriptions/{subscription['id']}")).json()
        assert (changed["billing_cycle_anchor"] == anchor) is kept, mode
        [period] = [(row["current_period_start"], row["current_period_end"]) for row in changed["items"]["data"]]
        assert 365 * 86400 <= period[1] - period[0] <= 366 * 86400


async def test_collection_is_paused_and_resumed(client: httpx.AsyncClient) -> None:
    """Pausing collection leaves the status; the empty string resumes."""
    subscription = await new_subscription(client, (await new_price(client))["id"])
    path = f"subscriptions/{subscription['id']}"
    paused = await post(client, path, **{"pause_collection[behavior]": "void"})
    assert (paused["status"], paused["pause_collection"]) == ("active", {"behavior": "void", "resumes_at": None})
    assert (await post(client, path, pause_collection=""))["pause_collection"] is None
    assert (await refused(client, path, billing_cycle_anchor="now"))["param"] == "billing_cycle_anchor"


async def test_a_canceled_subscription_is_final(client: httpx.AsyncClient) -> None:
    """After cancel only metadata can change, and a second cancel finds nothing."""
    subscription = await new_subscription(client, (await new_price(client))["id"])
    path = f"subscriptions/{subscription['id']}"
    canceled = (await client.delete(f"/v1/{path}", params={"invoice_now": "false"})).json()
    assert canceled["status"] == "canceled"
    assert canceled["ended_at"] is not None
    assert (await refused(client, path, cancel_at_period_end="true"))["code"] == "invalid_canceled_subscription_fields"
    assert (await post(client, path, **{"metadata[a]": "1"}))["metadata"] == {"a": "1"}
    assert (await client.delete(f"/v1/{path}")).status_code == 404


async def test_subscriptions_are_listed_by_status(client: httpx.AsyncClient) -> None:
    """Without a status the list holds all that are not canceled; `ended` joins both ends."""
    price = (await new_price(client))["id"]
    active, canceled, expired, late = [(await new_subscription(client, price))["id"] for _ in range(4)]
    await client.delete(f"/v1/subscriptions/{canceled}")
    for subscription, status in ((expired, "incomplete_expired"), (late, "past_due")):
        control = await client.post("/_sandbox/subscription-status", json={"id": subscription, "status": status})
        assert control.status_code == 200

    async def listed(**query: Any) -> set[str]:
        return {row["id"] for row in await rows(client, "subscriptions", **query)}

    assert await listed() == {active, expired, late}
    assert await listed(status="all") == {active, canceled, expired, late}
    assert await listed(status="ended") == {canceled, expired}
    assert await listed(status="past_due", price=price) == {late}
    assert await listed(customer="cus_none") == set()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}])
async def test_a_wrong_key_is_refused(header: dict[str, str]) -> None:
    """Without the secret key nothing is answered, and the refusal does not repeat the key."""
    app = create_app(State(), public_url=URL, token=TOKEN)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL) as client:
        answer = await client.get("/v1/customers", headers=header)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "wrong" not in answer.text


async def test_answers_carry_request_id_and_version(client: httpx.AsyncClient) -> None:
    """Every answer names its request and the version it was given in, refusals too."""
    answer = await client.get("/v1/customers/cus_none", headers={"Stripe-Version": "2026-10-28.endive"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "resource_missing"
    assert answer.headers["request-id"].startswith("req_")
    assert answer.headers["stripe-version"] == "2026-10-28.endive"
    assert (await client.get("/v1/unicorns")).status_code == 404


async def test_a_repeated_key_replays_the_answer(client: httpx.AsyncClient) -> None:
    """The same request under the same key is carried out once."""
    first = await post(client, "customers", "key-1", name="Acme")
    again = await client.post("/v1/customers", data={"name": "Acme"}, headers={"Idempotency-Key": "key-1"})
    assert (again.json(), again.headers["idempotent-replayed"]) == (first, "true")
    assert len(await rows(client, "customers")) == 1


async def test_a_key_stands_for_one_request(client: httpx.AsyncClient) -> None:
    """Other parameters or another path under a used key are refused, and so is a long key."""
    await post(client, "customers", "key-1", name="Acme")
    for path, key in (("customers", "key-1"), ("products", "key-1")):
        answer = await client.post(f"/v1/{path}", data={"name": "Other"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "idempotency_error")
    assert (await client.post("/v1/customers", headers={"Idempotency-Key": "x" * 256})).status_code == 400


async def test_a_failed_check_leaves_the_key_free(client: httpx.AsyncClient) -> None:
    """A malformed request is not remembered, one that was carried out and refused is."""
    malformed = await client.post("/v1/products", data={"id": "p"}, headers={"Idempotency-Key": "key-1"})
    assert malformed.status_code == 400
    await post(client, "products", "key-1", id="p", name="Plan")
    for replayed in (None, "true"):
        answer = await client.post(
            "/v1/products", data={"id": "p", "name": "Other"}, headers={"Idempotency-Key": "key-2"}
        )
        assert answer.json()["error"]["code"] == "resource_already_exists"
        assert answer.headers.get("idempotent-replayed") == replayed


async def test_a_stored_failure_is_replayed_until_the_key_expires(client: httpx.AsyncClient) -> None:
    """A 500 sticks to its key although nothing was done; a new key or a forgotten one gets through."""
    control = await client.post("/_sandbox/fail-next", json={"path": "/v1/customers$", "status": 500})
    assert (control.status_code, control.json()) == (201, {"path": "/v1/customers$", "status": 500})
    for replayed in (None, "true"):
        answer = await client.post("/v1/customers", data={"name": "Acme"}, headers={"Idempotency-Key": "key-1"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
        assert answer.headers.get("idempotent-replayed") == replayed
    assert await rows(client, "customers") == []
    assert (await client.post("/_sandbox/expire-idempotency-keys")).json() == {"expired": 1}
    await post(client, "customers", "key-1", name="Acme")


@pytest.mark.parametrize(
    ("path", "control"),
    [
        ("fail-next", {"path": "("}),
        ("fail-next", {"pth": "/v1/customers"}),
        ("subscription-status", {"id": "sub_none", "status": "active"}),
        ("subscription-status", {"id": "sub_none", "status": "happy"}),
    ],
)
async def test_a_control_that_would_do_nothing_is_refused(client: httpx.AsyncClient, path: str, control: Form) -> None:
    """A misspelt control must not pass for one that was set."""
    assert (await client.post(f"/_sandbox/{path}", json=control)).status_code == 422


async def test_one_key_at_work_refuses_a_second_request(client: httpx.AsyncClient) -> None:
    """Of two requests at once with one key, one is carried out and the other told to come again."""
    headers = {"Idempotency-Key": "key-1"}
    answers = await asyncio.gather(*(client.post("/v1/customers", headers=headers) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    refusal = next(answer for answer in answers if answer.status_code == 409)
    assert refusal.json()["error"]["code"] == "idempotency_key_in_use"
    assert (await client.post("/v1/customers", headers=headers)).headers["idempotent-replayed"] == "true"
    assert len(await rows(client, "customers")) == 1


async def test_everything_outlives_the_process(tmp_path: Path) -> None:
    """A stand-in on the same file has the same objects in the same order, and the same keys."""
    path = tmp_path / "stripe.sqlite"
    state = State(path)
    async with connect(state) as client:
        subscription = await new_subscription(client, (await new_price(client))["id"])
        await post(client, "customers", "key-1", name="Acme")
        before = (await client.get("/_sandbox/objects")).json()
    state.close()
    state = State(path)
    async with connect(state) as client:
        assert (await client.get("/_sandbox/objects")).json() == before
        assert (await client.get(f"/v1/subscriptions/{subscription['id']}")).json() == subscription
        replay = await client.post("/v1/customers", data={"name": "Acme"}, headers={"Idempotency-Key": "key-1"})
        assert replay.headers["idempotent-replayed"] == "true"
    state.close()
    assert {name: len(found) for name, found in before.items()} == {
        "products": 1,
        "prices": 1,
        "customers": 2,
        "subscriptions": 1,
    }


@contextmanager
def served(state: State) -> Iterator[str]:
    """Serve a stand-in on a free port of this machine and yield its address."""
    app = create_app(state, public_url=URL, token=TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        assert server.started, "the server did not come up"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
async def test_the_official_client_works_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's package creates, lists, retrieves, repeats and understands a refusal."""
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    with served(State()) as address:
        http = stripe.HTTPXClient(timeout=10)
        client = stripe.StripeClient(TOKEN, http_client=http, base_addresses={"api": address})
        product = await client.v1.products.create_async({"id": "prod_plan", "name": "Plan"})
        price = await client.v1.prices.create_async(
            {"product": product.id, "currency": "eur", "unit_amount": 900, "recurring": {"interval": "month"}}
        )
        made = [
            await client.v1.customers.create_async({"email": "a@acme.test"}, {"idempotency_key": f"key-{number}"})
            for number in (1, 2, 2)
        ]
        assert made[1].id == made[2].id
        answers = [customer.last_response for customer in made]
        assert ["idempotent-replayed" in answer.headers for answer in answers if answer] == [False, False, True]
        found = await client.v1.customers.list_async({"email": "a@acme.test", "limit": 1})
        assert [row.id async for row in found.auto_paging_iter()] == [made[1].id, made[0].id]
        subscription = await client.v1.subscriptions.create_async(
            {
                "customer": made[0].id,
                "items": [{"price": price.id, "quantity": 3}],
                "collection_method": "send_invoice",
                "days_until_due": 14,
            }
        )
        read = await client.v1.subscriptions.retrieve_async(subscription.id)
        assert (read.items.data[0].quantity, read.items.data[0].price.unit_amount) == (3, 900)
        with pytest.raises(stripe.InvalidRequestError) as refusal:
            await client.v1.products.create_async({"id": "prod_plan", "name": "Plan"})
        assert refusal.value.code == "resource_already_exists"
        await http.close_async()  # type: ignore[no-untyped-call]
