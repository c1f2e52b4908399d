"""Every fault, acted out by a real server on a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import faults
from sandbox.faults import AnswerLost, FaultInjector

pytestmark = pytest.mark.asyncio


class Shop:
    """A minimal stand-in: it keeps what it is sent, with the time of arrival."""

    def __init__(self) -> None:
        self.things: list[str] = []
        self.arrivals: list[float] = []
        routes = [Route("/things", self._create, methods=["POST"]), Route("/_sandbox/objects", self._objects)]
        self.app = FaultInjector(Starlette(routes=routes))

    async def _create(self, request: Request) -> Response:
        self.things.append((await request.body()).decode())
        self.arrivals.append(time.monotonic())
        return JSONResponse({"number": len(self.things)}, 201)

    async def _objects(self, _request: Request) -> Response:
        return JSONResponse({"things": self.things})


@pytest.fixture
def shop() -> Shop:
    """Return a stand-in without any fault."""
    return Shop()


@pytest_asyncio.fixture
async def client(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the stand-in by uvicorn, as it is run in earnest, and yield a client of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(shop.app, http="h11", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await eventually(lambda: server.started)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=20) as client:
        yield client
        await client.delete("/_sandbox/faults")
    server.should_exit = True
    await serving


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def set_fault(client: httpx.AsyncClient, **spec: Any) -> str:
    """Set a fault and return its id."""
    answer = await client.post("/_sandbox/faults", json=spec)
    assert answer.status_code == 201, answer.text
    fault_id: str = answer.json()["id"]
    return fault_id


async def wait_until_held(client: httpx.AsyncClient, fault_id: str) -> None:
    """Wait until the fault holds a request."""
    async with asyncio.timeout(10):
        while True:
            listed = (await client.get("/_sandbox/faults")).json()["items"]
            if next(fault for fault in listed if fault["id"] == fault_id)["held"]:
                return
            await asyncio.sleep(0.005)


async def post_and_leave(client: httpx.AsyncClient, body: str, before_leaving: Awaitable[None]) -> None:
    """Send a request as a process would that is killed before the answer."""
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = f"POST /things HTTP/1.1\r\nHost: shop\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body.encode())
    await before_leaving
    writer.transport.abort()


async def test_without_a_fault_requests_pass_and_are_listed(client: httpx.AsyncClient, shop: Shop) -> None:
    """The list shows what arrived, but neither control requests nor the stand-in's own control paths."""
    await client.post("/things?a=1", content="x", headers={"X-Request-ID": "r-1", "Idempotency-Key": "k-1"})
    assert (await client.get("/_sandbox/objects")).json() == {"things": ["x"]}
    (seen,) = (await client.get("/_sandbox/requests")).json()["items"]
    assert seen["method"] == "POST"
    assert seen["target"] == "/things?a=1"
    assert (seen["requestId"], seen["idempotencyKey"], seen["body"]) == ("r-1", "k-1", "x")
    assert (seen["fault"], seen["status"], seen["answerLost"]) == (None, 201, False)
    assert (await client.delete("/_sandbox/requests")).json() == {"items": []}
    assert shop.things == ["x"]


@pytest.mark.parametrize(("action", "things"), [("refuse", []), ("lose_answer", ["x"])])
async def test_lost_connections(
    client: httpx.AsyncClient, shop: Shop, caplog: pytest.LogCaptureFixture, action: str, things: list[str]
) -> None:
    """The caller sees a closed connection and the server no bug; only `lose_answer` does the work."""
    await set_fault(client, action=action)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await client.post("/things", content="x")
    assert shop.things == things
    (seen,) = (await client.get("/_sandbox/requests")).json()["items"]
    assert seen["answerLost"] is True
    assert seen["status"] == (201 if things else None)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (await client.post("/things", content="y")).status_code == 201


async def test_status_with_retry_after(client: httpx.AsyncClient, shop: Shop) -> None:
    """The stand-in is not asked; the caller gets the status, the body and the time to wait."""
    await set_fault(client, action="status", status=429, retryAfter=7, body='{"e": 1}', contentType="application/json")
    answer = await client.post("/things", content="x")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()) == (429, "7", {"e": 1})
    assert shop.things == []


async def test_delay(client: httpx.AsyncClient, shop: Shop) -> None:
    """The work is done at once, the answer comes later."""
    await set_fault(client, action="delay", delaySeconds=0.3)
    assert (await client.post("/things", content="x")).status_code == 201
    assert time.monotonic() - shop.arrivals[0] >= 0.29


@pytest.mark.parametrize(("action", "things"), [("hold_before", []), ("hold_after", ["x"])])
async def test_held_requests_are_answered_on_release(
    client: httpx.AsyncClient, shop: Shop, action: str, things: list[str]
) -> None:
    """A caller who waits gets the answer after the release; `hold_after` has done the work by then."""
    fault = await set_fault(client, action=action)
    pending = asyncio.create_task(client.post("/things", content="x"))
    await wait_until_held(client, fault)
    assert shop.things == things
    released = await client.post(f"/_sandbox/faults/{fault}/release")
    assert released.json()["spent"] is True
    assert (await pending).status_code == 201
    assert shop.things == ["x"]


async def test_a_zombie_writes_after_its_caller_is_gone(
    client: httpx.AsyncClient, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """A request held before is carried out on release although its caller was killed meanwhile."""
    fault = await set_fault(client, action="hold_before")
    await post_and_leave(client, "x", wait_until_held(client, fault))
    # By the time this is answered, the server has seen the other connection close.
    await client.post("/things", content="y")
    assert shop.things == ["y"]
    await client.post(f"/_sandbox/faults/{fault}/release")
    await eventually(lambda: shop.things == ["y", "x"])
    listed = (await client.get("/_sandbox/requests")).json()["items"]
    assert [(seen["body"], seen["status"]) for seen in listed] == [("x", 201), ("y", 201)]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_half_a_request_is_no_request(client: httpx.AsyncClient, shop: Shop) -> None:
    """A caller killed while sending the body has changed nothing."""
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /things HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await client.post("/things", content="y")
    assert shop.things == ["y"]
    assert len((await client.get("/_sandbox/requests")).json()["items"]) == 1


async def test_times(client: httpx.AsyncClient) -> None:
    """A fault acts on so many matching requests and then no more."""
    await set_fault(client, action="status", times=2)
    answers = [(await client.post("/things")).status_code for _ in range(3)]
    assert answers == [503, 503, 201]


async def test_without_times_it_acts_until_deleted(client: httpx.AsyncClient) -> None:
    """`times: null` has no limit; deleting the fault ends it."""
    fault = await set_fault(client, action="status", times=None)
    assert [(await client.post("/things")).status_code for _ in range(3)] == [503] * 3
    assert (await client.delete(f"/_sandbox/faults/{fault}")).json()["acted"] == 3
    assert (await client.post("/things")).status_code == 201


async def test_share(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share acts on the requests that the dice choose, and the others do not use it up."""
    dice = iter([0.9, 0.1, 0.5])
    monkeypatch.setattr("sandbox.faults.random.random", lambda: next(dice))
    await set_fault(client, action="status", share=0.5, times=None)
    assert [(await client.post("/things")).status_code for _ in range(3)] == [201, 503, 201]


async def test_seconds(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault with a duration ends by itself."""

    class Clock:
        now = 100.0
        time = time.time

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(faults, "time", clock)
    await set_fault(client, action="status", seconds=10, times=None)
    assert (await client.post("/things")).status_code == 503
    clock.now = 110.0
    assert (await client.post("/things")).status_code == 201


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"method": "post"}, id="method in any case"),
        pytest.param({"path": r"^/things\?a=\d$"}, id="regular expression over path and query"),
        pytest.param({"contains": ["request-7"]}, id="request id"),
        pytest.param({"contains": ["key-7"]}, id="idempotency key"),
        pytest.param({"contains": ["acme", "a=1"]}, id="body and query"),
    ],
)
async def test_matching(client: httpx.AsyncClient, spec: dict[str, Any]) -> None:
    """A fault meets the requests that it describes."""
    await set_fault(client, action="status", **spec)
    headers = {"X-Request-ID": "request-7", "Idempotency-Key": "key-7"}
    answer = await client.post("/things?a=1", content="tenant acme", headers=headers)
    assert answer.status_code == 503


@pytest.mark.parametrize("spec", [{"method": "GET"}, {"path": "^/other"}, {"contains": ["acme", "missing"]}])
async def test_not_matching(client: httpx.AsyncClient, spec: dict[str, Any]) -> None:
    """One condition that does not hold lets the request pass, and the fault stays unused."""
    await set_fault(client, action="status", **spec)
    assert (await client.post("/things?a=1", content="tenant acme")).status_code == 201
    (fault,) = (await client.get("/_sandbox/faults")).json()["items"]
    assert (fault["acted"], fault["left"]) == (0, 1)


@pytest.mark.parametrize(
    "spec",
    [
        {"action": "explode"},
        {"action": "status", "tmies": 1},
        {"action": "refuse", "path": "("},
        {"action": "delay", "times": 0},
    ],
)
async def test_a_wrong_fault_is_refused(client: httpx.AsyncClient, spec: dict[str, Any]) -> None:
    """A misspelt fault is an error when it is set, and none is set."""
    answer = await client.post("/_sandbox/faults", content=json.dumps(spec))
    assert answer.status_code == 422
    assert (await client.get("/_sandbox/faults")).json() == {"items": []}


async def test_unknown_control_paths(client: httpx.AsyncClient) -> None:
    """A fault that does not exist and a verb that makes no sense are not found."""
    assert (await client.post("/_sandbox/faults/fault-9/release")).status_code == 404
    fault = await set_fault(client, action="refuse", path="^/never")
    assert (await client.post(f"/_sandbox/faults/{fault}/relase")).status_code == 404


async def test_deleting_all_faults_releases_whom_they_hold(client: httpx.AsyncClient, shop: Shop) -> None:
    """Nobody stays held by a fault that is gone."""
    fault = await set_fault(client, action="hold_before")
    pending = asyncio.create_task(client.post("/things", content="x"))
    await wait_until_held(client, fault)
    await client.delete("/_sandbox/faults")
    assert (await pending).status_code == 201
    assert shop.things == ["x"]


async def test_in_process_callers_get_a_connection_error(shop: Shop) -> None:
    """Without a socket to close, a lost answer is an exception at the caller."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop.app), base_url="http://shop") as client:
        await set_fault(client, action="lose_answer")
        with pytest.raises(AnswerLost):
            await client.post("/things", content="x")
    assert shop.things == ["x"]
