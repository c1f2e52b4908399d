"""The people that the embedded stack begins with. Seeded only where absent: what people edit stays."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from domain.flags import FlagState
from domain.ids import OPERATORS_GROUP, PARTNER_STAFF_GROUP
from domain.people import Partner, PartnerStatus, User
from domain.seeds import FLAGS
from runtime.clock import new_id, utcnow
from runtime.wiring import Store

OPERATOR_EMAIL = "operator@dezky.local"
PARTNER_SLUG = "nordicmsp"
STAFF_EMAIL = "staff@nordicmsp.example"
EMBEDDED_FLAGS_ON = {"new_billing_engine"}


async def seed(store: Store, authentik_url: str, authentik_token: str) -> None:
    """Ensure an operator, a partner with staff, the catalog, and the flags that are on here."""
    # Before the general seeds, which would put these flags in as off.
    on = [flag.model_copy(update={"state": FlagState.ON}) for flag in FLAGS if flag.key in EMBEDDED_FLAGS_ON]
    await store.flags.seed(on)
    await store.prepare()
    now = utcnow()
    partner = Partner(
        id=new_id(),
        slug=PARTNER_SLUG,
        name="Nordic MSP",
        domain="nordicmsp.example",
        status=PartnerStatus.ACTIVE,
        margin_pct=20,
        created_at=now,
    )
    await store.partners.seed(partner)
    stored = await store.partners.by_slug(PARTNER_SLUG)
    assert stored is not None
    operator = User(id=new_id(), email=OPERATOR_EMAIL, name="Operator", platform_admin=True, created_at=now)
    staff = User(id=new_id(), email=STAFF_EMAIL, name="Partner staff", partner_id=stored.id, created_at=now)
    headers = {"Authorization": f"Bearer {authentik_token}"}
    async with httpx.AsyncClient(base_url=authentik_url, headers=headers, trust_env=False, timeout=10) as http:
        for person, group in ((operator, OPERATORS_GROUP), (staff, PARTNER_STAFF_GROUP)):
            user = await store.users.seed(person)
            subject = await _ensure_login(http, user, group)
            if user.subject is None:
                await store.users.link(user.id, subject)


async def _ensure_login(http: httpx.AsyncClient, user: User, group: str) -> str:
    """Ensure that a person can log in and is in a group; return the subject."""
    group_pk = await _ensure(http, "groups", "name", {"name": group}, "pk")
    body = {
        "username": user.email,
        "email": user.email,
        "name": user.name,
        "type": "internal",
        "attributes": {"dezkyUserId": user.id},
        "groups": [group_pk],
    }
    return await _ensure(http, "users", "username", body, "uuid")


async def _ensure(http: httpx.AsyncClient, kind: str, key: str, body: Mapping[str, object], wanted: str) -> str:
    path = f"/api/v3/core/{kind}/"
    found = (await http.get(path, params={key: str(body[key])})).raise_for_status().json()["results"]
    match = next((each for each in found if each[key] == body[key]), None)
    if match is None:
        match = (await http.post(path, json=body)).raise_for_status().json()
    return str(match[wanted])
