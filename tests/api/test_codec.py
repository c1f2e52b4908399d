"""The codec endpoint: who reads payloads in clear, by which proof, from which origin, and what of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from google.protobuf.json_format import MessageToDict
from temporalio.api.common.v1 import Payload

from api.routers import codec
from api.routers.codec import COOKIE, MAX_BODY_BYTES, MOST_PAYLOADS
from runtime.clock import utcnow
from runtime.codec import EncryptingCodec
from runtime.settings import Settings
from runtime.wiring import Store
from tests.api.client import MAX_BODY_BYTES as ORDINARY_MAX_BODY_BYTES
from tests.api.client import PUBLIC_URL, TEMPORAL_UI, Api, assert_problem, nothing_changes, wrong_fields
from tests.api.conftest import CallFrom, running
from tests.api.issuers import OPERATOR, PORTAL
from tests.support.keys import key_ring

FROM_UI = {"Origin": TEMPORAL_UI}
CLEAR = Payload(metadata={"encoding": b"json/plain"}, data=b'{"tenantSlug": "acme"}')
CLEAR_JSON: dict[str, Any] = {
    "metadata": {"encoding": base64.b64encode(b"json/plain").decode()},
    "data": base64.b64encode(b'{"tenantSlug": "acme"}').decode(),
}
EMPTY: dict[str, Any] = {"payloads": []}


async def encrypted(*key_ids: str) -> dict[str, Any]:
    """Return a payload as the command line sends it, encrypted with the first of some keys."""
    (sealed,) = await EncryptingCodec(key_ring(*key_ids)).encode([CLEAR])
    return MessageToDict(sealed)


async def open_session(api: Api) -> tuple[httpx.Response, dict[str, str]]:
    """Return the answer with the operator's cookie, and the header that a browser sends afterwards."""
    response = await api.post("/codec/session", "operator")
    assert response.status_code == 200, response.text
    # The client would send it by itself; here each request says what it carries.
    api.http.cookies.clear()
    return response, {"Cookie": f"{COOKIE}={response.cookies[COOKIE]}"}


async def test_an_operator_reads_payloads(api: Api, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Encrypted and plain payloads come back in clear, in order; the log has who and how many, and none of them."""
    async with nothing_changes(store):
        body = {"payloads": [await encrypted("api-test"), CLEAR_JSON, {}, await encrypted("api-test")]}
        response = await api.post("/codec/decode", "operator", json=body)
    assert response.json() == {"payloads": [CLEAR_JSON, CLEAR_JSON, {}, CLEAR_JSON]}
    (logged,) = [str(record.msg) for record in caplog.records if "payloads_decoded" in str(record.msg)]
    assert "'subject': 'operator'" in logged
    assert "'count': 4" in logged
    assert not any(text in str(record.msg) for record in caplog.records for text in ("acme", CLEAR_JSON["data"]))


async def test_encoding_is_the_way_back(api: Api) -> None:
    """What is encoded is encrypted with the current key, and decodes to what it was."""
    encoded = (await api.post("/codec/encode", "operator", json={"payloads": [CLEAR_JSON]})).json()
    (payload,) = encoded["payloads"]
    assert base64.b64decode(payload["metadata"]["encoding"]) == b"binary/encrypted"
    assert base64.b64decode(payload["metadata"]["encryption-key-id"]) == b"api-test"
    assert "acme" not in base64.b64decode(payload["data"]).decode("latin-1")
    assert (await api.post("/codec/decode", "operator", json=encoded)).json() == {"payloads": [CLEAR_JSON]}
    for nothing in (EMPTY, {}):
        assert (await api.post("/codec/decode", "operator", json=nothing)).json() == EMPTY


async def test_one_lost_key_hides_no_other_payload(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be decrypted comes back as it was, recognisable by its key id, and the log says why."""
    lost, damaged = await encrypted("lost"), await encrypted("api-test")
    damaged["data"] = base64.b64encode(base64.b64decode(damaged["data"])[:-1] + b"x").decode()
    body = {"payloads": [lost, await encrypted("api-test"), damaged]}
    response = await api.post("/codec/decode", "operator", json=body)
    assert response.json() == {"payloads": [lost, CLEAR_JSON, damaged]}
    (logged,) = [str(record.msg) for record in caplog.records if "payloads_not_decoded" in str(record.msg)]
    assert "The key 'lost' is not among the keys given" in logged
    assert "not what was sealed with the key 'api-test'" in logged


ROUTES = ["/codec/decode", "/codec/encode", "/codec/session"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("who", ["nordic", "member", "paused", "retired"])
async def test_nobody_but_operators(api: Api, path: str, who: str) -> None:
    """Partners, members and former operators get nothing, whatever they send."""
    code = "user_deactivated" if who == "retired" else "operator_only"
    assert_problem(await api.post(path, who, json="anything"), 403, code)


@pytest.mark.parametrize("path", ROUTES)
async def test_half_a_proof_is_none(api: Api, path: str) -> None:
    """A platform admin with the portal's token is no operator, nor a partner with an operator's audience."""
    for application, subject in ((PORTAL, "sub-operator"), (OPERATOR, "sub-nordic")):
        bearer = {"Authorization": f"Bearer {api.issuers.token(application, subject)}"}
        assert_problem(await api.post(path, None, json=EMPTY, headers=bearer), 403, "operator_only")
    assert_problem(await api.post(path, None, json=EMPTY), 401, "unauthenticated")


async def test_bad_bodies_are_refused(api: Api) -> None:
    """Each mistake has its own answer, and says where it is."""
    send = {"content": b"{", "headers": {"Content-Type": "application/json"}}
    assert_problem(await api.post("/codec/decode", "operator", **send), 400, "malformed")
    assert_problem(await api.post("/codec/decode", "operator", content=b"{}"), 415, "unsupported_media_type")
    for body in ({"payloads": "none"}, {"payloads": [1]}, {"payloads": [], "more": 1}):
        assert_problem(await api.post("/codec/decode", "operator", json=body), 422, "invalid")
    wrongs = [
        {"data": 5},
        {"data": "a"},
        {"metadata": 1},
        {"metadata": {"a": {}}},
        {"metadata": {"a": 1}},
        {"data": []},
    ]
    for wrong in wrongs:
        problem = assert_problem(
            await api.post("/codec/decode", "operator", json={"payloads": [CLEAR_JSON, wrong]}), 422, "invalid"
        )
        assert wrong_fields(problem) == [["payloads", "1"]]
    many = await api.post("/codec/decode", "operator", json={"payloads": [{"data": 5}] * 60})
    assert len(wrong_fields(assert_problem(many, 422, "invalid"))) == 50


async def test_only_so_many_payloads_are_read(api: Api) -> None:
    """However little each says, neither the work nor the answer grows beyond what a request may hold."""
    answer = await api.post("/codec/encode", "operator", json={"payloads": [{}] * MOST_PAYLOADS})
    assert answer.status_code == 200
    assert len(answer.json()["payloads"]) == MOST_PAYLOADS
    assert len(answer.content) < MAX_BODY_BYTES
    for count in (MOST_PAYLOADS + 1, 2_000_000):
        for path in ("/codec/encode", "/codec/decode"):
            content = json.dumps({"payloads": [{}] * count}, separators=(",", ":"))
            problem = assert_problem(await api.post(path, "operator", content=content, headers=JSON), 422, "invalid")
            assert wrong_fields(problem) == [["payloads"]]
            assert f"{MOST_PAYLOADS}" in problem["errors"][0]["msg"]


async def test_the_first_payload_that_is_no_object_ends_the_reading(api: Api) -> None:
    """Of millions of mistakes one is told, and no others are looked for."""
    content = json.dumps({"payloads": [1] * 1_000_000})
    problem = assert_problem(await api.post("/codec/decode", "operator", content=content, headers=JSON), 422, "invalid")
    assert wrong_fields(problem) == [["payloads", "0"]]


async def test_what_temporal_adds_is_no_mistake(api: Api) -> None:
    """A field of a newer protocol, and the parameter that the web UI sends, are taken; other parameters are not."""
    body = {"payloads": [{**CLEAR_JSON, "addedLater": True}]}
    response = await api.post("/codec/decode?preserveStorageRefs=true", "operator", json=body)
    assert response.json() == {"payloads": [CLEAR_JSON]}
    assert_problem(await api.post("/codec/decode?other=1", "operator", json=body), 400, "unknown_parameter")


async def test_the_largest_message_of_temporal_fits(api: Api) -> None:
    """4 MiB in base64 pass, whatever other routes read; what is larger than Temporal takes does not."""
    large = Payload(data=b"\0" * (4 * 1024 * 1024))
    response = await api.post("/codec/encode", "operator", json={"payloads": [MessageToDict(large)]})
    assert response.status_code == 200
    assert len(response.content) > ORDINARY_MAX_BODY_BYTES
    decoded = (await api.post("/codec/decode", "operator", content=response.content, headers=JSON)).json()
    assert decoded == {"payloads": [MessageToDict(large)]}
    too_large = await api.post("/codec/decode", "operator", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON)
    assert_problem(too_large, 413, "too_large")


JSON = {"Content-Type": "application/json"}


async def test_a_session_reads_payloads_in_the_web_ui(api: Api) -> None:
    """The cookie is kept from scripts and other sites, and opens the codec for the web UI's origin alone."""
    response, cookie = await open_session(api)
    (morsel,) = SimpleCookie(response.headers["Set-Cookie"]).values()
    attributes = {name: value for name, value in morsel.items() if value}
    assert 3590 <= int(str(attributes.pop("max-age"))) <= 3600
    assert attributes == {"path": "/codec", "httponly": True, "secure": True, "samesite": "strict"}
    assert response.headers["Cache-Control"] == "no-store"
    assert "sub-operator" not in morsel.value
    body = {"payloads": [await encrypted("api-test")]}
    decoded = await api.post("/codec/decode", None, json=body, headers={**cookie, **FROM_UI})
    assert decoded.json() == {"payloads": [CLEAR_JSON]}
    assert decoded.headers["Access-Control-Allow-Origin"] == TEMPORAL_UI
    assert decoded.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in decoded.headers["Vary"]


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        PUBLIC_URL,
        "https://evil.example",
        f"{TEMPORAL_UI}.evil.example",
        f"{TEMPORAL_UI}:8443",
        f"{TEMPORAL_UI}/",
        TEMPORAL_UI.replace("https", "http"),
    ],
)
async def test_a_cookie_from_elsewhere_opens_nothing(api: Api, origin: str | None) -> None:
    """A page of another origin, or a request that does not say where it comes from, has no use of the cookie."""
    _, cookie = await open_session(api)
    headers = {**cookie, **({"Origin": origin} if origin is not None else {})}
    for path in ("/codec/decode", "/codec/encode"):
        response = await api.post(path, None, json=EMPTY, headers=headers)
        assert_problem(response, 403, "origin_not_allowed")
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


async def test_refusals_can_be_read_by_the_web_ui(api: Api) -> None:
    """Without a cookie the web UI is told 401, not a failed request."""
    response = await api.post("/codec/decode", None, json=EMPTY, headers=FROM_UI)
    assert_problem(response, 401, "unauthenticated")
    assert response.headers["Access-Control-Allow-Origin"] == TEMPORAL_UI


async def preflight(api: Api, path: str, origin: str) -> httpx.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-namespace"}
    return await api.request("OPTIONS", path, None, headers={"Origin": origin, **asked})


async def test_only_the_web_ui_may_ask_across_origins(api: Api) -> None:
    """A preflight is granted to its origin, for these routes; to nobody else, and nowhere else."""
    granted = await preflight(api, "/codec/decode", TEMPORAL_UI)
    assert granted.status_code == 200
    assert granted.headers["Access-Control-Allow-Origin"] == TEMPORAL_UI
    assert granted.headers["Access-Control-Allow-Credentials"] == "true"
    assert {"content-type", "x-namespace"} <= set(
        re.split(", *", granted.headers["Access-Control-Allow-Headers"].lower())
    )
    for path, origin in (("/codec/decode", "https://evil.example"), ("/me", TEMPORAL_UI), ("/codec", TEMPORAL_UI)):
        refused = await preflight(api, path, origin)
        assert refused.status_code >= 400
        assert "Access-Control-Allow-Origin" not in refused.headers


async def test_a_bearer_needs_no_origin(api: Api) -> None:
    """A token is not sent by browsers on their own; and beside a cookie it is the token that counts."""
    for headers in ({}, {"Origin": "https://console.example"}, {"Origin": TEMPORAL_UI}):
        assert (await api.post("/codec/decode", "operator", json=EMPTY, headers=headers)).status_code == 200
    _, cookie = await open_session(api)
    response = await api.post("/codec/decode", "nordic", json=EMPTY, headers={**cookie, **FROM_UI})
    assert_problem(response, 403, "operator_only")


@pytest.mark.parametrize(
    ("change", "code"), [({"platformAdmin": False}, "operator_only"), ({"active": False}, "user_deactivated")]
)
async def test_whoever_stops_being_an_operator_loses_the_session(
    api: Api, store: Store, change: dict[str, bool], code: str
) -> None:
    """The database is asked at each use."""
    _, cookie = await open_session(api)
    assert (await api.post("/codec/decode", None, json=EMPTY, headers={**cookie, **FROM_UI})).status_code == 200
    await store.database.collection("users").update_one({"_id": "operator"}, {"$set": change})
    response = await api.post("/codec/decode", None, json=EMPTY, headers={**cookie, **FROM_UI})
    assert_problem(response, 403, code)


async def test_a_session_does_not_outlive_its_token(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the token, also for a browser that keeps the cookie longer than it was told."""
    soon = int((utcnow() + timedelta(minutes=5)).timestamp())
    bearer = {"Authorization": f"Bearer {api.issuers.token(OPERATOR, 'sub-operator', exp=soon)}"}
    response = await api.post("/codec/session", None, headers=bearer)
    assert 290 <= int(re.findall("Max-Age=([0-9]+)", response.headers["Set-Cookie"])[0]) <= 300
    headers = {"Cookie": f"{COOKIE}={response.cookies[COOKIE]}", **FROM_UI}
    api.http.cookies.clear()
    assert (await api.post("/codec/decode", None, json=EMPTY, headers=headers)).status_code == 200
    far = {"Authorization": f"Bearer {api.issuers.token(OPERATOR, 'sub-operator', exp=10**13)}"}
    assert "Max-Age=3600" in (await api.post("/codec/session", None, headers=far)).headers["Set-Cookie"]
    api.http.cookies.clear()
    monkeypatch.setattr(codec, "utcnow", lambda: utcnow() + timedelta(minutes=5))
    assert_problem(await api.post("/codec/decode", None, json=EMPTY, headers=headers), 401, "session_ended")


async def test_a_made_up_cookie_opens_nothing(api: Api) -> None:
    """Garbage, a changed cookie, one sealed with a key that is not ours, and a sealed payload in its place."""
    _, cookie = await open_session(api)
    good = cookie["Cookie"].removeprefix(f"{COOKIE}=")
    other = key_ring("other").seal(b'{"subject": "sub-operator", "expiresAt": 9999999999}', b"codec-session")
    payload = base64.b64decode((await encrypted("api-test"))["data"]).hex()
    changed = good[:-1] + ("0" if good[-1] != "0" else "1")
    for made_up in ("x", "api-test:", "api-test:zz", changed, f"other:{other[1].hex()}", f"api-test:{payload}"):
        headers = {"Cookie": f"{COOKIE}={made_up}", **FROM_UI}
        assert_problem(await api.post("/codec/decode", None, json=EMPTY, headers=headers), 401, "session_ended")


async def test_a_session_is_good_for_the_codec_alone(api: Api) -> None:
    """The cookie opens no other route, and no further session."""
    _, cookie = await open_session(api)
    assert_problem(await api.get("/me", None, headers={**cookie, **FROM_UI}), 401, "unauthenticated")
    assert_problem(await api.post("/codec/session", None, headers={**cookie, **FROM_UI}), 401, "unauthenticated")


async def test_the_page_runs_its_own_script_only(api: Api) -> None:
    """The page for browsers is static, names the web UI, and its policy admits the one script in it."""
    page = await api.get("/codec/session", None)
    assert page.headers["Content-Type"].startswith("text/html")
    assert f'href="{TEMPORAL_UI}"' in page.text
    (script,) = re.findall("<script>(.*?)</script>", page.text, re.DOTALL)
    assert_problem(await api.get("/codec/session?x=1", None), 400, "unknown_parameter")
    policy = page.headers["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))


@contextlib.asynccontextmanager
async def changed(app: FastAPI, settings: Settings, call_from: CallFrom, **changes: Any) -> AsyncIterator[Api]:
    """Call an application with other settings."""
    address = app.state.temporal.service_client.config.target_host
    async with running(settings.model_copy(update=changes), address) as other:
        yield call_from(application=other)


async def test_without_keys_there_is_nothing_to_decode(
    app: FastAPI, api_settings: Settings, call_from: CallFrom
) -> None:
    """The answer says which setting is missing."""
    async with changed(app, api_settings, call_from, payload_keys=None) as api:
        for path in ROUTES:
            assert_problem(await api.post(path, "operator", json=EMPTY), 404, "payloads_not_encrypted")


async def test_without_a_web_ui_no_origin_is_allowed(app: FastAPI, api_settings: Settings, call_from: CallFrom) -> None:
    """The page is not there, and a cookie is good nowhere."""
    async with changed(app, api_settings, call_from, temporal_ui_url=None) as api:
        assert_problem(await api.get("/codec/session", None), 404, "not_found")
        _, cookie = await open_session(api)
        for headers in (cookie, {**cookie, "Origin": ""}, {**cookie, **FROM_UI}):
            assert_problem(
                await api.post("/codec/decode", None, json=EMPTY, headers=headers), 403, "origin_not_allowed"
            )


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://ui.example/temporal/", "https://ui.example"),
        ("https://UI.example:443", "https://ui.example"),
        ("http://127.0.0.1:8402", "http://127.0.0.1:8402"),
    ],
)
async def test_origins_are_written_as_browsers_do(api_settings: Settings, url: str, origin: str) -> None:
    """Path and default port are no part of an origin, and names are in lower case."""
    assert codec.ui_origin(api_settings.model_copy(update={"temporal_ui_url": url})) == origin


async def test_over_http_the_cookie_is_sent_too(app: FastAPI, api_settings: Settings, call_from: CallFrom) -> None:
    """On a machine of one's own there is no TLS, and a Secure cookie would not come back."""
    async with changed(app, api_settings, call_from, public_url="http://127.0.0.1:8400") as api:
        response, _ = await open_session(api)
        assert "Secure" not in response.headers["Set-Cookie"]
