"""How tests call the API, and what they expect of every refusal."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import httpx

from domain.people import Membership, Partner, PartnerStatus, TenantRole, User
from runtime.wiring import Store
from store.database import Document
from tests.api.issuers import OPERATOR, PORTAL, Issuers
from tests.store.builders import LONG_AGO

PUBLIC_URL = "https://api.dezky.example"
TEMPORAL_UI = "https://temporal.dezky.example"
MAX_BODY_BYTES = 16_384

PARTNERS = [
    Partner(id=f"partner-{slug}", slug=slug, name=slug.capitalize(), status=status, created_at=LONG_AGO)
    for slug, status in (
        ("nordic", PartnerStatus.ACTIVE),
        ("rival", PartnerStatus.ACTIVE),
        ("paused", PartnerStatus.PAUSED),
        ("negotiating", PartnerStatus.IN_NEGOTIATION),
        ("terminated", PartnerStatus.TERMINATED),
    )
]
OWN_TENANT = "tenant-of-the-member"


def _person(name: str, **changes: Any) -> User:
    email = f"{name}@people.example.org"
    return User(id=name, subject=f"sub-{name}", email=email, name=name, created_at=LONG_AGO, **changes)


PEOPLE = [
    _person("operator", platform_admin=True),
    _person("retired", platform_admin=True, active=False),
    _person("member", memberships=[Membership(tenant_id=OWN_TENANT, role=TenantRole.MEMBER)]),
    *(_person(partner.slug, partner_id=partner.id) for partner in PARTNERS),
]


class Api:
    """Calls the API as somebody: the operator with an operator's token, everybody else with the portal's."""

    def __init__(self, http: httpx.AsyncClient, issuers: Issuers) -> None:
        self.http = http
        self.issuers = issuers

    def token(self, who: str) -> str:
        """Return a good token of a person."""
        return self.issuers.token(OPERATOR if who in ("operator", "retired") else PORTAL, f"sub-{who}")

    async def get(self, path: str, who: str | None = "nordic", **options: Any) -> httpx.Response:
        """Read something; by nobody if `who` is None."""
        return await self.request("GET", path, who, **options)

    async def post(self, path: str, who: str | None = "nordic", **options: Any) -> httpx.Response:
        """Ask for something."""
        return await self.request("POST", path, who, **options)

    async def request(self, method: str, path: str, who: str | None = "nordic", **options: Any) -> httpx.Response:
        """Send any request."""
        bearer = {"Authorization": f"Bearer {self.token(who)}"} if who is not None else {}
        headers = {**bearer, **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)


def new_tenant(slug: str = "acme", **changes: Any) -> dict[str, Any]:
    """Return the body that asks for a tenant."""
    body = {
        "slug": slug,
        "name": "Acme",
        "plan": "business",
        "cycle": "monthly",
        "currency": "EUR",
        "seats": 5,
        "domains": [f"{slug}.example.org"],
        "adminEmail": f"admin@{slug}.example.org",
    }
    return {**body, **changes}


async def create(api: Api, slug: str = "acme", who: str = "nordic", **changes: Any) -> dict[str, Any]:
    """Create a tenant and return its operation."""
    response = await api.post("/tenants", who, json=new_tenant(slug, **changes))
    assert response.status_code == 202, response.text
    operation: dict[str, Any] = response.json()
    return operation


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Ensure that an answer is the whole problem document of a refusal, and return it."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    expected = {
        "type": f"{PUBLIC_URL}/problems/{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "instance": response.request.url.path,
        "requestId": response.headers["X-Request-Id"],
        "retryable": status >= 500,
    }
    assert {name: body[name] for name in expected} == expected
    assert body["detail"]
    return body


def wrong_fields(problem: dict[str, Any]) -> list[list[str]]:
    """Return where a request was wrong."""
    return [error["loc"] for error in problem["errors"]]


@contextlib.asynccontextmanager
async def nothing_changes(store: Store) -> AsyncIterator[None]:
    """Ensure that the block leaves every document as it was."""
    before = await _everything(store)
    yield
    assert await _everything(store) == before


async def _everything(store: Store) -> dict[str, list[Document]]:
    names = (
        "tenants",
        "partners",
        "users",
        "subscriptions",
        "operations",
        "idempotency_keys",
        "audit_events",
        "subject_keys",
    )
    return {name: await store.database.collection(name).find().sort("_id", 1).to_list(None) for name in names}
