"""What holds for every request: ids, addresses, unknown ways, a world that is away, and the API's own description."""

from __future__ import annotations

import asyncio
from typing import Any

import jsonschema
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from pymongo.errors import OperationFailure
from starlette.types import Message, Receive, Scope, Send

import store.database
from api.app import create_app
from api.middleware import LONGEST_LOGGED_PATH, RequestContext
from api.routers import health
from runtime import intents
from runtime.settings import Settings
from runtime.wiring import Store
from tests.api.client import Api, assert_problem, create, new_tenant
from tests.api.conftest import CallFrom, running
from tests.support.servers import HOST, free_port

PATHS = {
    "/health",
    "/health/ready",
    "/me",
    "/tenants",
    "/tenants/{slug}",
    "/operations",
    "/operations/{operation_id}",
    "/operations/{operation_id}/cancel",
    "/operations/{operation_id}/events",
    "/operations/{operation_id}/retry",
    "/operations/{operation_id}/steps/{name}/retry",
    "/operations/{operation_id}/steps/{name}/skip",
    "/codec/decode",
    "/codec/encode",
    "/codec/session",
}


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        ("abc-1.2_3:4/5", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("two words", False),
        ("a\tb", False),
        ("", False),
    ],
)
async def test_a_usable_request_id_is_kept(api: Api, offered: str, kept: bool) -> None:
    """The caller's id comes back if it can stand in a log line, else one is made."""
    response = await api.get("/health", None, headers={"X-Request-Id": offered})
    answered = response.headers["X-Request-Id"]
    assert (answered == offered) is kept
    assert answered


async def test_made_request_ids_differ(api: Api) -> None:
    """Two requests without an id get two."""
    first, second = await api.get("/health", None), await api.get("/health", None)
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("socket", "forwarded", "expected"),
    [
        ("192.0.2.7", [], "192.0.2.7"),
        ("192.0.2.7", ["203.0.113.9"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [" , "], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    ],
)
async def test_a_forwarded_address_counts_only_from_proxies(
    call_from: CallFrom, store: Store, socket: str, forwarded: list[str], expected: str
) -> None:
    """What the client itself writes into the header never becomes its address."""
    api = call_from(socket)
    headers = [("Authorization", f"Bearer {api.token('nordic')}"), *(("X-Forwarded-For", line) for line in forwarded)]
    response = await api.http.post("/tenants", json=new_tenant(), headers=headers)
    assert response.status_code == 202
    (event,) = await store.audit.find({})
    (own,) = [each for each in event.personal if each.subject == "nordic"]
    assert await store.audit.open_personal(own) == {"address": expected}


@pytest.mark.parametrize("path", ["/", "/nothing", "/tenants/acme/nothing", "/docs", "/tenants/"])
async def test_unknown_paths(api: Api, path: str) -> None:
    """A path that leads nowhere is a problem document too."""
    assert_problem(await api.get(path), 404, "not_found")


def _logged_paths(caplog: pytest.LogCaptureFixture) -> list[str]:
    events: list[Any] = [record.msg for record in caplog.records if "'request'" in str(record.msg)]
    return [event["path"] for event in events]


async def test_a_path_is_logged_as_it_was_sent(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger can write no control characters, and no pages, into the log."""
    await api.get("/%1b%5b2Jcleared%00/tenants%2Facme/%c3%a9", None)
    await api.get(f"/{'x' * 5000}", None)
    wild, long = _logged_paths(caplog)
    assert wild.lower() == "/%1b%5b2jcleared%00/tenants%2facme/%c3%a9"
    assert long == f"/{'x' * (LONGEST_LOGGED_PATH - 1)}"


@pytest.mark.parametrize("scope", [{"path": "/\x1b[2J\0"}, {"path": "", "raw_path": b"/\x1b[2J\0\xff\n"}])
async def test_what_a_server_lets_pass_is_encoded_for_the_log(
    scope: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the server tells no raw path, or an unclean one."""

    async def nothing(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        return

    await RequestContext(nothing, [])({"type": "http", "method": "GET", "headers": [], **scope}, receive, send)
    (path,) = _logged_paths(caplog)
    assert path.startswith("/%1B%5B2J%00")
    assert path.isprintable()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/tenants", "GET, HEAD, POST"),
        ("PUT", "/tenants/acme", "GET, HEAD"),
        ("POST", "/operations", "GET, HEAD"),
    ],
)
async def test_wrong_methods(api: Api, method: str, path: str, allowed: str) -> None:
    """A wrong method is answered with all that are right."""
    response = await api.request(method, path)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == allowed


async def test_head(api: Api) -> None:
    """HEAD answers as GET would, without the body: load balancers ask so."""
    response = await api.request("HEAD", "/health")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


async def test_a_bug_is_a_problem_document(
    api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What we did not think of is answered with its id and without its text, and logged with both."""

    async def broken(*_: Any) -> None:
        raise OperationFailure("secret of the house")

    monkeypatch.setattr(app.state.store.tenants, "get", broken)
    response = await api.get("/tenants/acme", headers={"X-Request-Id": "req-of-a-bug"})
    assert assert_problem(response, 500, "internal_error")["requestId"] == "req-of-a-bug"
    assert "secret" not in response.text
    (logged,) = [record for record in caplog.records if "request_failed" in str(record.msg)]
    assert "req-of-a-bug" in str(logged.msg)


async def test_health(api: Api) -> None:
    """A living process says who it is, to anybody."""
    body = (await api.get("/health", None)).json()
    assert (body["status"], body["service"]) == ("ok", "dezky-platform-api")
    assert body["version"]
    assert (await api.get("/health/ready", None)).json() == {"status": "ok", "mongo": "ok", "temporal": "ok"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon on what is away."""
    monkeypatch.setattr(store.database, "SERVER_SELECTION_SECONDS", 0.3)
    monkeypatch.setattr(intents, "START_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(health, "PROBE_TIMEOUT", health.PROBE_TIMEOUT / 5)


@pytest.mark.usefixtures("impatient")
async def test_the_api_starts_while_mongodb_is_away(api_settings: Settings, app: FastAPI, call_from: CallFrom) -> None:
    """It lives, says that it is not ready, and refuses requests for now."""
    nowhere = f"mongodb://{HOST}:{free_port()}/?directConnection=true"
    settings = api_settings.model_copy(update={"mongo_url": SecretStr(nowhere)})
    async with running(settings, app.state.temporal.service_client.config.target_host) as lonely:
        api = call_from(application=lonely)
        assert (await api.get("/health", None)).status_code == 200
        for response in (await api.get("/health/ready", None), await api.post("/tenants", json=new_tenant())):
            assert_problem(response, 503, "database_unavailable")
            assert int(response.headers["Retry-After"]) > 0


@pytest.mark.usefixtures("impatient")
async def test_the_api_takes_orders_while_temporal_is_away(
    api_settings: Settings, call_from: CallFrom, store: Store
) -> None:
    """It is not ready, and what it accepts all the same waits for the dispatcher."""
    async with running(api_settings, f"{HOST}:{free_port()}") as lonely:
        api = call_from(application=lonely)
        assert (await api.get("/health", None)).status_code == 200
        response = await api.get("/health/ready", None)
        assert_problem(response, 503, "temporal_unavailable")
        assert int(response.headers["Retry-After"]) > 0
        operation = await store.operations.get((await create(api))["id"])
    assert operation is not None
    assert operation.open
    assert operation.started_at is None


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    """The API's own description."""
    described: dict[str, Any] = (await api.get("/openapi.json", None)).json()
    return described


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_references, node))
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(_references, node.values()))
    return set()


async def test_the_description_is_whole(document: dict[str, Any]) -> None:
    """Every route is there, every reference leads somewhere, every schema is one."""
    assert set(document["paths"]) == PATHS
    schemas = document["components"]["schemas"]
    assert _references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "$defs" not in schema
    assert "HTTPValidationError" not in schemas


async def test_every_route_names_its_answers(document: dict[str, Any]) -> None:
    """Success has a schema, everything else is a problem, and only health is open to anybody."""
    for path, item in document["paths"].items():
        for operation in item.values():
            success = operation["responses"].get("202", operation["responses"].get("200"))
            media_type = "text/event-stream" if path.endswith("/events") else "application/json"
            assert success["content"][media_type]["schema"]
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert operation["security"] == ([] if path.startswith("/health") else [{"bearer": []}])
    creation = document["paths"]["/tenants"]["post"]
    assert {"200", "202"} <= set(creation["responses"])
    assert {each["name"] for each in creation["parameters"]} == {"Idempotency-Key", "Prefer"}


async def test_bodies_and_answers_are_as_described(api: Api, document: dict[str, Any]) -> None:
    """What works is valid by the description, and what the description forbids is refused."""

    def errors(body: Any, schema: dict[str, Any]) -> list[str]:
        rooted = {**schema, "components": document["components"]}
        return [error.message for error in jsonschema.Draft202012Validator(rooted).iter_errors(body)]

    post = document["paths"]["/tenants"]["post"]
    asked = post["requestBody"]["content"]["application/json"]["schema"]
    body = new_tenant(billingInfo={"companyName": "Acme", "country": "DK"})
    assert errors(body, asked) == []
    assert errors({**body, "billingInfo": {"country": "Denmark"}}, asked)
    operation = await create(api, billingInfo=body["billingInfo"])
    assert errors(operation, post["responses"]["202"]["content"]["application/json"]["schema"]) == []
    problem = (await api.post("/tenants", json={})).json()
    assert errors(problem, {"$ref": "#/components/schemas/Problem"}) == []


async def test_two_applications_describe_themselves_alike(app: FastAPI, api_settings: Settings) -> None:
    """Describing one leaves the routes as they were for the next."""
    assert create_app(api_settings).openapi() == app.openapi()


async def test_a_slow_database_does_not_hide_an_accepted_job(
    api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the wait for the end fails, the answer still tells that the job was accepted."""

    async def broken(*_: Any) -> None:
        await asyncio.sleep(0)
        raise OperationFailure("away")

    monkeypatch.setattr(app.state.store.operations, "get", broken)
    response = await api.post("/tenants", json=new_tenant(), headers={"Prefer": "wait=5"})
    assert response.status_code == 202
