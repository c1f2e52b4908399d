"""Lists, single documents, and what whom they are shown to may read in them."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from api.paging import encode_cursor
from domain.catalog import Currency, Cycle, Subscription
from domain.operations import Attempt, Failure, Fence, OperationState, Step, StepState, step_key
from domain.tenants import SystemFailure, SystemStatus, TenantStatus
from runtime.clock import utcnow
from runtime.wiring import Store
from tests.api.client import OWN_TENANT, TEMPORAL_UI, Api, assert_problem, create, wrong_fields
from tests.store.builders import LONG_AGO, build_domain, build_operation, build_tenant, keep

SORTS = ["createdAt", "-createdAt", "slug", "-slug", "name", "-name"]
VENDOR_TEXT = "ldap bind to 10.1.2.3 failed"


async def _pages(api: Api, path: str, who: str = "operator", **query: Any) -> list[list[dict[str, Any]]]:
    pages: list[list[dict[str, Any]]] = []
    cursor: dict[str, str] = {}
    while True:
        response = await api.get(path, who, params={**query, **cursor})
        assert response.status_code == 200, response.text
        pages.append(response.json()["items"])
        if response.json()["nextCursor"] is None:
            return pages
        cursor = {"cursor": response.json()["nextCursor"]}


@pytest.mark.parametrize("sort", SORTS)
async def test_pages_are_stable_under_inserts(api: Api, store: Store, sort: str) -> None:
    """Whoever pages through sees each tenant that was there once, in order, whatever is added meanwhile."""
    tenants = [
        build_tenant(f"tenant-{number}", name=f"Name {number % 2}", created_at=LONG_AGO + timedelta(hours=number // 2))
        for number in range(7)
    ]
    await keep(store, "tenants", *tenants)
    first = (await api.get("/tenants", "operator", params={"sort": sort, "limit": 2})).json()
    added = {"tenant-a": "Name 0", "tenant-00": "A", "zz": "Z"}
    await keep(store, "tenants", *(build_tenant(slug, name=name, created_at=utcnow()) for slug, name in added.items()))
    pages = await _pages(api, "/tenants", sort=sort, limit=2, cursor=first["nextCursor"])
    listed = [each for page in (first["items"], *pages) for each in page]
    assert sorted(each["slug"] for each in listed if each["slug"] not in added) == [each.slug for each in tenants]
    field = sort.lstrip("-")
    assert listed == sorted(listed, key=lambda each: (each[field], each["id"]), reverse=sort.startswith("-"))
    assert len({each["id"] for each in listed}) == len(listed)


@pytest.mark.parametrize("path", ["/tenants", "/operations"])
async def test_the_last_page_says_so(api: Api, store: Store, path: str) -> None:
    """A list that ends with its page promises no other one."""
    await keep(store, "tenants", *(build_tenant(f"tenant-{number}") for number in range(2)))
    await keep(store, "operations", *(build_operation(f"tenant-{number}") for number in range(2)))
    assert [len(page) for page in await _pages(api, path, limit=2)] == [2]
    assert [len(page) for page in await _pages(api, path, limit=1)] == [1, 1]


async def test_operations_page_newest_first(api: Api, store: Store) -> None:
    """Operations come by their ids, which sort by time."""
    operations = [build_operation(f"tenant-{number}") for number in range(5)]
    await keep(store, "operations", *operations)
    pages = await _pages(api, "/operations", limit=2)
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [each["id"] for page in pages for each in page] == sorted((each.id for each in operations), reverse=True)


@pytest.mark.parametrize("sort", ["name", "-name"])
async def test_the_longest_name_still_makes_a_cursor(api: Api, store: Store, sort: str) -> None:
    """A cursor that the API gave is one that it takes."""
    await keep(store, "tenants", *(build_tenant(slug, name="\N{ROCKET}" * 200) for slug in ("first", "second")))
    assert [len(page) for page in await _pages(api, "/tenants", sort=sort, limit=1)] == [1, 1]


def _cursor(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "garbage",
        "\u00e6",
        "=" * 9,
        _cursor({"at": "now"}),
        _cursor("abc"),
        _cursor([1, 2, 3]),
        _cursor(["slug", 2**70, "x"]),
        _cursor(["slug", "\ud800", "x"]),
        _cursor(["slug", {"$gt": ""}, "x"]),
        base64.urlsafe_b64encode(b"[" * 1400).decode(),
        encode_cursor("slug", "acme"),
        encode_cursor("name", "Acme", "x"),
        encode_cursor("-slug", "acme", "x"),
        encode_cursor("01K0OPERATION"),
    ],
    ids=lambda cursor: cursor[:20],
)
async def test_a_cursor_of_something_else_is_refused(api: Api, cursor: str) -> None:
    """Only what this list gave in this order is a cursor."""
    response = await api.get("/tenants", params={"sort": "slug", "cursor": cursor})
    assert_problem(response, 400, "cursor_malformed")


@pytest.mark.parametrize("value", ["yesterday", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
async def test_a_cursor_needs_a_time_that_is_one(api: Api, value: str) -> None:
    """A time beyond what can be stored is no time of ours."""
    response = await api.get("/tenants", params={"cursor": encode_cursor("-createdAt", value, "x")})
    assert_problem(response, 400, "cursor_malformed")


async def test_a_cursor_of_tenants_is_none_of_operations(api: Api) -> None:
    """Cursors do not travel between lists."""
    response = await api.get("/operations", params={"cursor": encode_cursor("slug", "acme", "x")})
    assert_problem(response, 400, "cursor_malformed")


@pytest.mark.parametrize(
    ("path", "loc"),
    [
        ("/tenants?limit=0", "limit"),
        ("/tenants?limit=501", "limit"),
        ("/tenants?limit=x", "limit"),
        ("/tenants?sort=seats", "sort"),
        ("/tenants?status=asleep", "status"),
        ("/tenants?provisioning=maybe", "provisioning"),
        ("/tenants?q=%00", "q"),
        (f"/tenants?q={'x' * 101}", "q"),
        ("/operations?kind=tenant.explode", "kind"),
        ("/operations?state=asleep", "state"),
    ],
)
async def test_bad_parameters_are_named(api: Api, path: str, loc: str) -> None:
    """A parameter with a value that is none of its own is 422 and says which."""
    assert wrong_fields(assert_problem(await api.get(path), 422, "invalid")) == [["query", loc]]


@pytest.mark.parametrize("path", ["/tenants", "/tenants/acme", "/operations", "/operations/1", "/me"])
async def test_unknown_parameters_are_refused(api: Api, path: str) -> None:
    """A misspelt filter must not silently return everything."""
    problem = assert_problem(await api.get(f"{path}?stauts=active"), 400, "unknown_parameter")
    assert "stauts" in problem["detail"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"alpha", "beta", "gamma"}),
        ("status=suspended", {"beta"}),
        ("plan=starter", {"gamma"}),
        ("partner=nordic", {"alpha"}),
        ("provisioning=error", {"beta"}),
        ("q=ALPH", {"alpha"}),
        ("q=mail.beta", {"beta"}),
        ("q=m%26m", {"gamma"}),
        ("q=.*", set()),
        ("q=a&status=active", {"alpha", "gamma"}),
    ],
)
async def test_tenants_are_filtered(api: Api, store: Store, query: str, expected: set[str]) -> None:
    """Every filter narrows the list, and text is text, no pattern."""
    await keep(
        store,
        "tenants",
        build_tenant("alpha", partner_id="partner-nordic", partner_slug="nordic"),
        build_tenant(
            "beta",
            status=TenantStatus.SUSPENDED,
            domains=[build_domain("mail.beta.example")],
            provisioning_status={"ocis": SystemStatus.ERROR, "stripe": SystemStatus.OK},
        ),
        build_tenant("gamma", plan="starter", name="M&M"),
    )
    found = (await api.get(f"/tenants?{query}", "operator")).json()
    assert {each["slug"] for each in found["items"]} == expected
    partner = (await api.get(f"/tenants?{query}", "nordic")).json()
    assert {each["slug"] for each in partner["items"]} == expected & {"alpha"}, "a filter never widens what is visible"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"alpha", "beta"}),
        ("tenant=beta", {"beta"}),
        ("state=failed", {"beta"}),
        ("kind=tenant.provision", {"alpha", "beta"}),
        ("tenant=alpha&state=failed", set()),
    ],
)
async def test_operations_are_filtered(api: Api, store: Store, query: str, expected: set[str]) -> None:
    """A partner's filters stay within its own tenants."""
    await keep(store, "tenants", build_tenant("alpha", partner_id="partner-nordic"), build_tenant("beta"))
    closed = build_operation("beta", open=False, state=OperationState.FAILED)
    await keep(store, "operations", build_operation("alpha"), closed)
    for who, visible in (("operator", expected), ("nordic", expected & {"alpha"}), ("rival", set())):
        found = (await api.get(f"/operations?{query}", who)).json()
        assert {each["tenantSlug"] for each in found["items"]} == visible
    assert_problem(await api.get("/operations", "member"), 403, "not_allowed")


async def test_partners_read_our_words_only(api: Api, store: Store) -> None:
    """A vendor's text, workflow ids and Temporal's address reach operators and nobody else."""
    now = utcnow()
    failure = Failure(code="vendor_rejected", message=VENDOR_TEXT, step="ocis.space")
    attempt = Attempt(fence=Fence(scheduled_at=now, number=1), started_at=now, deadline=now, ended_at=now)
    step = Step(name="ocis.space", state=StepState.FAILED, attempts=1, attempt=attempt, last_error=failure)
    operation = build_operation(steps={step_key(step.name): step}, error=failure)
    ours = SystemFailure(code="vendor_rejected", message="Ours.", attempts=1)
    tenant = build_tenant(
        partner_id="partner-nordic",
        provisioning_status={"ocis": SystemStatus.ERROR},
        provisioning_errors={"ocis": ours},
    )
    await keep(store, "operations", operation)
    await keep(store, "tenants", tenant)
    for path in ("/operations", f"/operations/{operation.id}", "/tenants/acme"):
        partner, operator = (await api.get(path, "nordic")).text, (await api.get(path, "operator")).text
        for hidden in (VENDOR_TEXT, operation.workflow_id, TEMPORAL_UI):
            assert hidden in operator
            assert hidden not in partner
        assert "vendor_rejected" in partner
    link = (await api.get(f"/operations/{operation.id}", "operator")).json()["links"]["temporalUi"]
    assert link == f"{TEMPORAL_UI}/namespaces/default/workflows/tenant%2Facme%2F{operation.id}"


async def test_the_answer_to_a_creation_is_redacted_too(api: Api) -> None:
    """Its sender is a partner."""
    operation = await create(api)
    assert operation["workflowId"] is None
    assert operation["links"] == {"temporalUi": None}


async def test_an_attempt_past_its_deadline_shows_as_lost(api: Api, store: Store) -> None:
    """What nobody recorded the end of is told by its deadline."""
    attempt = Attempt(fence=Fence(scheduled_at=LONG_AGO, number=1), started_at=LONG_AGO, deadline=LONG_AGO)
    step = Step(name="ocis.space", state=StepState.RUNNING, attempts=1, attempt=attempt)
    operation = build_operation(steps={step_key(step.name): step})
    await keep(store, "operations", operation)
    (shown,) = (await api.get(f"/operations/{operation.id}", "operator")).json()["steps"]
    assert (shown["state"], shown["deadline"]) == ("lost", "2026-01-01T00:00:00Z")


async def test_a_tenant_shows_its_operation_and_its_version(api: Api, store: Store) -> None:
    """The holder of the lock is shown while it holds it; the ETag ignores what jobs record."""
    operation = await create(api)
    first = await api.get("/tenants/acme")
    assert first.headers["ETag"] == '"1"'
    assert first.json()["operation"]["id"] == operation["id"]
    await store.database.run_transaction(
        lambda session: store.tenants.set_system("acme", "ocis", SystemStatus.OK, None, session)
    )
    held = await store.operations.get(operation["id"])
    assert held is not None
    await store.database.run_transaction(
        lambda session: store.operations.close(held, OperationState.COMPLETED, utcnow(), session)
    )
    second = await api.get("/tenants/acme")
    assert second.headers["ETag"] == '"1"'
    assert second.json()["provisioningStatus"]["ocis"] == "ok"
    assert second.json()["operation"] is None


async def test_a_tenant_older_than_a_system_waits_for_it(api: Api, store: Store) -> None:
    """A document that lacks newer fields is shown with their defaults."""
    await keep(store, "tenants", build_tenant(provisioning_status={"authentik": SystemStatus.OK}))
    expected = {"authentik": "ok", "stalwart": "pending", "ocis": "pending", "stripe": "pending"}
    assert (await api.get("/tenants/acme", "operator")).json()["provisioningStatus"] == expected
    assert (await api.get("/tenants", "operator")).json()["items"][0]["provisioningStatus"] == expected


@pytest.mark.parametrize(
    ("who", "role", "partner"),
    [
        ("operator", "operator", None),
        ("nordic", "partner", "nordic"),
        ("paused", "partner", "paused"),
        ("terminated", "member", None),
        ("member", "member", None),
    ],
)
async def test_everybody_is_told_who_they_are(api: Api, store: Store, who: str, role: str, partner: str | None) -> None:
    """`/me` shows role, partner, tenants and their subscriptions, of the caller alone."""
    await keep(store, "tenants", build_tenant("own", id=OWN_TENANT), build_tenant("other", id="other"))
    terms: dict[str, Any] = {
        "price_id": "x",
        "cycle": Cycle.YEARLY,
        "currency": Currency.DKK,
        "per_seat_amount": 4900,
        "seats": 3,
    }
    await keep(
        store,
        "subscriptions",
        *(Subscription(id=each, tenant_id=each, created_at=LONG_AGO, **terms) for each in (OWN_TENANT, "other")),
    )
    profile = (await api.get("/me", who)).json()
    assert (profile["role"], profile["platformAdmin"]) == (role, role == "operator")
    assert (profile["partner"] or {}).get("slug") == partner
    assert profile["email"] == f"{who}@people.example.org"
    member = who == "member"
    assert [each["slug"] for each in profile["tenants"]] == (["own"] if member else [])
    assert [each["tenantSlug"] for each in profile["subscriptions"]] == (["own"] if member else [])
