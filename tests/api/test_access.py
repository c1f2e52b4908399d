"""Who may do what: a token proves somebody, the database says what they may, and a refusal leaves no trace."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import Depends, FastAPI

from api import tokens
from api.access import OPERATOR_ONLY, Caller, Guard, Role
from api.errors import install_error_handlers
from api.middleware import RequestContext
from api.tokens import TokenVerifier
from domain.errors import Unauthenticated, Unavailable
from runtime.wiring import Store
from tests.api.client import OWN_TENANT, Api, assert_problem, create, new_tenant, nothing_changes
from tests.api.conftest import CallFrom
from tests.api.issuers import OPERATOR, PORTAL, Issuers
from tests.store.builders import build_tenant, keep

SUBJECT = "sub-nordic"


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def _handmade(issuers: Issuers, algorithm: str, sign: Callable[[bytes], bytes]) -> str:
    header = {"alg": algorithm, "kid": PORTAL, "typ": "JWT"}
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, issuers.claims(PORTAL, SUBJECT)))
    return f"{signed}.{_encoded(sign(signed.encode()))}"


def _signed_with_public_key(issuers: Issuers) -> str:
    public = issuers.keys[PORTAL].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _handmade(issuers, "HS256", lambda text: hmac.digest(public, text, hashlib.sha256))


def _signed_with_other_key(issuers: Issuers) -> str:
    claims = issuers.claims(PORTAL, SUBJECT)
    return issuers.token(OPERATOR, SUBJECT, kid=PORTAL, iss=claims["iss"], aud=PORTAL)


def _tampered(issuers: Issuers) -> str:
    header, _, signature = issuers.token(PORTAL, "sub-member").split(".")
    return f"{header}.{_encoded(json.dumps(issuers.claims(PORTAL, SUBJECT)).encode())}.{signature}"


def _minted(**changes: Any) -> Callable[[Issuers], str]:
    return lambda issuers: issuers.token(PORTAL, SUBJECT, **changes)


WORTHLESS: dict[str, tuple[str, Callable[[Issuers], str]]] = {
    "garbage": ("token_invalid", lambda _: "garbage"),
    "deeply nested": ("token_invalid", lambda _: f"{_encoded(b'[' * 20_000)}.e30.eHg"),
    "expired": ("token_expired", _minted(exp=int(time.time()) - 60)),
    "unsigned": ("token_invalid", lambda issuers: _handmade(issuers, "none", lambda _: b"")),
    "public key as a secret": ("token_invalid", _signed_with_public_key),
    "another application's key": ("token_invalid", _signed_with_other_key),
    "tampered": ("token_invalid", _tampered),
    "unknown key id": ("token_invalid", _minted(kid="made-up")),
    "unknown issuer": ("token_invalid", _minted(iss="https://evil.example/")),
    "portal issuer for operators": ("token_invalid", _minted(aud=OPERATOR)),
    "unknown audience": ("token_invalid", _minted(aud="elsewhere")),
    "no subject": ("token_invalid", _minted(sub=None)),
    "a number for a subject": ("token_invalid", _minted(sub=7)),
    "no expiry": ("token_invalid", _minted(exp=None)),
    "no audience": ("token_invalid", _minted(aud=None)),
    "no issuer": ("token_invalid", _minted(iss=None)),
    "not yet valid": ("token_invalid", _minted(nbf=int(time.time()) + 3600)),
    "issued in the future": ("token_invalid", _minted(iat=int(time.time()) + 3600)),
}


@pytest.mark.parametrize("name", WORTHLESS)
async def test_a_token_that_proves_nothing_is_refused(api: Api, store: Store, name: str) -> None:
    """Whatever is wrong with a token, a creation with it is 401 and leaves nothing."""
    code, make = WORTHLESS[name]
    headers = {"Authorization": f"Bearer {make(api.issuers)}"}
    async with nothing_changes(store):
        response = await api.post("/tenants", None, json=new_tenant(), headers=headers)
    assert_problem(response, 401, code)
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic bm9yZGljOnB3"])
@pytest.mark.parametrize("path", ["/me", "/tenants", "/tenants/acme", "/operations", "/operations/1"])
async def test_every_route_needs_a_token(api: Api, path: str, authorization: str | None) -> None:
    """Without a bearer token nothing is answered but health."""
    headers = {"Authorization": authorization} if authorization is not None else {}
    assert_problem(await api.get(path, None, headers=headers), 401, "unauthenticated")


@pytest.mark.parametrize(("who", "code"), [("retired", "user_deactivated"), ("stranger", "unknown_user")])
async def test_a_good_token_of_nobody_here_is_refused(api: Api, store: Store, who: str, code: str) -> None:
    """A deactivated operator and an unknown subject hold good tokens, and may do nothing."""
    async with nothing_changes(store):
        assert_problem(await api.post("/tenants", who, json=new_tenant()), 403, code)
        assert_problem(await api.get("/me", who), 403, code)


@pytest.fixture
def operators_only(app: FastAPI, call_from: CallFrom) -> Api:
    """A caller of an application with one route, which is for operators."""
    small = FastAPI()
    small.state = app.state
    small.add_middleware(RequestContext, trusted_proxies=[])
    install_error_handlers(small)

    @small.get("/")
    async def route(caller: Annotated[Caller, Depends(Guard(Role.OPERATOR))]) -> str:
        return caller.user.id

    return call_from(application=small)


async def test_an_operator_needs_the_token_and_the_database(operators_only: Api, store: Store) -> None:
    """Either proof alone is refused, also when the database takes its half back while the token lives."""
    portal = {"Authorization": f"Bearer {operators_only.issuers.token(PORTAL, 'sub-operator')}"}
    scoped = {"Authorization": f"Bearer {operators_only.issuers.token(OPERATOR, 'sub-member')}"}
    assert (await operators_only.get("/", "operator")).json() == "operator"
    for headers in (portal, scoped):
        problem = assert_problem(await operators_only.get("/", None, headers=headers), 403, "operator_only")
        assert problem["detail"] == OPERATOR_ONLY
    await store.database.collection("users").update_one({"_id": "operator"}, {"$set": {"platformAdmin": False}})
    assert_problem(await operators_only.get("/", "operator"), 403, "operator_only")


async def test_a_revoked_operator_sees_nothing_more(api: Api, store: Store) -> None:
    """Revocation works before the token expires."""
    operation = await create(api)
    assert (await api.get("/tenants/acme", "operator")).status_code == 200
    await store.database.collection("users").update_one({"_id": "operator"}, {"$set": {"platformAdmin": False}})
    assert_problem(await api.get("/tenants/acme", "operator"), 404, "not_found")
    assert_problem(await api.get(f"/operations/{operation['id']}", "operator"), 403, "not_allowed")


@pytest.mark.parametrize("who", ["rival", "member", "terminated"])
async def test_what_is_not_yours_looks_like_nothing(api: Api, who: str) -> None:
    """Another's tenant and a missing one are told apart by nobody."""
    await create(api)
    for_another, for_none = (await api.get("/tenants/acme", who)), (await api.get("/tenants/nobody", who))
    differing = {"instance", "requestId"}
    seen, missing = (
        {name: value for name, value in assert_problem(response, 404, "not_found").items() if name not in differing}
        for response in (for_another, for_none)
    )
    assert seen == missing


async def test_operations_of_others_look_like_nothing(api: Api) -> None:
    """A partner finds its own operation and no other; a member finds none."""
    operation = await create(api)
    path = f"/operations/{operation['id']}"
    assert (await api.get(path, "nordic")).status_code == (await api.get(path, "operator")).status_code == 200
    theirs = assert_problem(await api.get(path, "rival"), 404, "not_found")
    none = assert_problem(await api.get("/operations/01NOTHING", "rival"), 404, "not_found")
    assert theirs["detail"] == none["detail"]
    assert_problem(await api.get(path, "member"), 403, "not_allowed")


async def test_a_member_sees_the_own_tenant_only(api: Api, store: Store) -> None:
    """Membership opens one tenant."""
    await keep(store, "tenants", build_tenant("own", id=OWN_TENANT), build_tenant("other"))
    assert (await api.get("/tenants/own", "member")).status_code == 200
    assert_problem(await api.get("/tenants/other", "member"), 404, "not_found")
    listed = (await api.get("/tenants", "member")).json()["items"]
    assert [each["slug"] for each in listed] == ["own"]


@pytest.mark.parametrize(
    ("who", "code"),
    [
        ("operator", "tenants_are_created_by_partners"),
        ("member", "not_allowed"),
        ("paused", "partner_paused"),
        ("negotiating", "partner_not_active"),
        ("terminated", "not_allowed"),
    ],
)
async def test_only_staff_of_active_partners_create_tenants(api: Api, store: Store, who: str, code: str) -> None:
    """Everybody else is refused before anything is looked at or written."""
    async with nothing_changes(store):
        assert_problem(await api.post("/tenants", who, json=new_tenant()), 403, code)
        assert_problem(await api.post("/tenants?dryRun=true", who, content=b"{"), 403, code)


async def test_staff_of_a_paused_partner_still_read(api: Api, store: Store) -> None:
    """Pausing takes changes away, not sight."""
    await keep(store, "tenants", build_tenant("theirs", partner_id="partner-paused", partner_slug="paused"))
    assert (await api.get("/tenants/theirs", "paused")).status_code == 200
    assert (await api.get("/me", "paused")).json()["partner"]["status"] == "paused"


async def _verify(verifier: TokenVerifier, token: str) -> str:
    try:
        return (await verifier.verify(token)).subject
    except Unauthenticated as refused:
        return refused.code


async def test_made_up_key_ids_do_not_reach_the_issuer(issuers: Issuers, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many unknown key ids come, the keys are fetched at most once in a while; good tokens go on."""
    async with httpx.AsyncClient() as http:
        verifier = TokenVerifier([(issuers.issuer(PORTAL), PORTAL)], http)
        good = issuers.token(PORTAL, SUBJECT)
        before = issuers.fetched
        assert await _verify(verifier, good) == SUBJECT
        for number in range(20):
            assert await _verify(verifier, issuers.token(PORTAL, SUBJECT, kid=f"made-up-{number}")) == "token_invalid"
        assert issuers.fetched == before + 1
        assert await _verify(verifier, good) == SUBJECT
        monkeypatch.setattr(tokens, "REFRESH_AT_MOST_EVERY_SECONDS", 0.0)
        await _verify(verifier, issuers.token(PORTAL, SUBJECT, kid="new"))
        assert issuers.fetched == before + 2


async def test_an_issuer_that_is_away_is_asked_once_in_a_while(
    issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys nobody gets in, and those who wait for one attempt do not each make another."""
    asked: list[str] = []

    def away(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(503)

    async with httpx.AsyncClient(transport=httpx.MockTransport(away)) as http:
        verifier = TokenVerifier([(issuers.issuer(PORTAL), PORTAL)], http)
        for _ in range(5):
            with pytest.raises(Unavailable) as raised:
                await verifier.verify(issuers.token(PORTAL, SUBJECT))
            assert raised.value.code == "issuer_unavailable"
        assert len(asked) == 1
        monkeypatch.setattr(tokens, "FIRST_KEYS_AT_MOST_EVERY_SECONDS", 0.0)
        with pytest.raises(Unavailable):
            await verifier.verify(issuers.token(PORTAL, SUBJECT))
        assert len(asked) == 2


async def test_known_keys_outlive_an_issuer_that_is_away(issuers: Issuers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with a known key passes although the keys should be fetched again and cannot be."""
    async with httpx.AsyncClient() as http:
        verifier = TokenVerifier([(issuers.issuer(PORTAL), PORTAL)], http)
        assert await _verify(verifier, issuers.token(PORTAL, SUBJECT)) == SUBJECT
        monkeypatch.setattr(tokens, "KEYS_LAST_SECONDS", 0.0)
        monkeypatch.setattr(tokens, "REFRESH_AT_MOST_EVERY_SECONDS", 0.0)
        monkeypatch.setattr(issuers, "away", True)
        assert await _verify(verifier, issuers.token(PORTAL, SUBJECT)) == SUBJECT
